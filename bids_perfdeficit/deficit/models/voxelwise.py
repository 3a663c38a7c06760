"""Voxel-based lesion-symptom mapping: one regression per voxel, max-T family-wise error.

Permuted ordinary least squares of nilearn (Freedman & Lane, J Bus Econ Stat 1983; Winkler et al.,
NeuroImage 2014) on the coarse grid, one-sided: worse perfusion, worse score. Must not know other
models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bids_perfdeficit.deficit.models.base import DeficitModel, Drawing, ModelFit, Offers
from bids_perfdeficit.deficit.ordinal import fit_head
from bids_perfdeficit.deficit.preparation import Prepared, find_covered
from bids_perfdeficit.deficit.result import Item, standardise
from bids_perfdeficit.deficit.settings import DeficitSettings

#: Family-wise error rate of the declared map: the field's convention.
_ALPHA = 0.05


class Voxelwise(DeficitModel[None]):
    """One regression per voxel; scores are predicted by the mean over the declared voxels."""

    name = 'voxelwise'
    offers = Offers(t=True)
    drawing = Drawing(
        'prob', '1 − p, family-wise corrected', ('chance', 'p near 0'), '#009E73', '^'
    )
    statistics: ClassVar[Mapping[str, str]] = {
        'effect': 'Slope of the score on the map in the voxel, adjusted for the covariates',
        'std': 'Standard error of the slope',
        'prob': '1 minus the p-value of the voxel, family-wise corrected',
    }
    methods = """\
*voxelwise*: one regression per voxel with family-wise error controlled by the maximum statistic
over permutations [@permutation], at 5 %.
"""

    def fit(
        self,
        prepared: Prepared,
        scores: NDArray[np.float64],
        covariates: NDArray[np.float64],
        items: tuple[Item, ...],
        settings: DeficitSettings,
        *,
        shared: None = None,
        maps: bool = True,
        checkpoint: Path | None = None,
    ) -> ModelFit:
        """Fit all items; where no voxel is declared, the frequencies of the levels predict."""
        from nilearn.mass_univariate import permuted_ols  # slow to import

        del shared, checkpoint
        coarse, grid = prepared.coarse, prepared.grid
        found = ModelFit.blank(prepared, scores, covariates, items, settings, maps=maps)
        weights, cuts = found.readout.weights, found.readout.cuts
        standard = standardise(
            covariates, found.readout.covariate_mean, found.readout.covariate_scale
        )
        for k in found.usable:
            own = items[k].levels
            seen = np.flatnonzero(np.isfinite(scores[:, k]))
            score = scores[seen, k]
            tested = find_covered(prepared, seen, settings)
            if not tested.any():
                found.skipped[items[k].name] = 'no voxel is covered by those who have a score'
                continue
            x = prepared.measured[seen][:, tested].astype(float)
            result = permuted_ols(
                score[:, None],
                x,
                confounding_vars=standard[seen] if standard.shape[1] else None,
                n_perm=settings.voxelwise_permutations,
                two_sided_test=False,
                random_state=settings.seed + k,
                n_jobs=1,
                verbose=0,
                output_type='dict',
            )
            t, p = np.zeros(coarse.n_voxels), np.ones(coarse.n_voxels)
            t[tested] = np.nan_to_num(np.asarray(result['t'][0], dtype=float))
            p[tested] = 10 ** -np.asarray(result['logp_max_t'][0], dtype=float)
            region = p <= _ALPHA
            found.p_value[k] = float(p.min())
            if region.any():
                weights[k, 0, region] = 1 / region.sum()
            eta = prepared.features[0][seen] @ weights[k, 0]
            slope, c, f = fit_head(
                torch.from_numpy(eta.astype(float)),
                torch.from_numpy(score.astype(np.int64)),
                own,
                settings.lapse,
            )
            weights[k] *= slope
            cuts[k, : own - 1], found.readout.frequencies[k, :own] = c.numpy(), f.numpy()
            if not maps:
                continue
            slope_per_voxel, error = np.zeros((2, coarse.n_voxels))
            slope_per_voxel[tested] = _slopes(score, x, standard[seen])
            error[tested] = np.abs(slope_per_voxel[tested]) / np.maximum(np.abs(t[tested]), 1e-6)
            found.effect[k] = coarse.resample_to(slope_per_voxel, grid)
            found.std[k] = coarse.resample_to(error, grid)
            found.probability[k] = coarse.resample_to(1 - p, grid)
            found.cut[k] = 1 - _ALPHA
            found.declared[k] = found.probability[k] >= found.cut[k]
        return found


def _slopes(
    score: NDArray[np.float64], maps: NDArray[np.float64], covariates: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the slope of the score on each voxel beside intercept and covariates.

    Both sides are projected off the covariates (Frisch & Waugh, Econometrica 1933). A voxel that
    the covariates explain has none.

    Parameters
    ----------
    score : (N,) array
    maps : (N, V) array
    covariates : (N, C) array

    Returns
    -------
    (V,) array
    """
    vectors, values, _ = np.linalg.svd(np.c_[np.ones(len(score)), covariates], full_matrices=False)
    basis = vectors[:, values > 1e-9 * values[0]]  # covariates may say the same
    y, x = (v - basis @ (basis.T @ v) for v in (score, maps))
    square, whole = (x**2).sum(0), (maps**2).sum(0)
    own = square > 1e-9 * whole
    return np.where(own, (y @ x) / np.where(own, square, 1), 0)
