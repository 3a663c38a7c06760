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

from bids_perfdeficit.deficit.models.base import DeficitModel, Drawing, ModelFit
from bids_perfdeficit.deficit.ordinal import fit_head
from bids_perfdeficit.deficit.preparation import Prepared
from bids_perfdeficit.deficit.result import Item, standardise
from bids_perfdeficit.deficit.settings import DeficitSettings

#: Family-wise error rate of the declared map: the field's convention.
_ALPHA = 0.05


class Voxelwise(DeficitModel[None]):
    """One regression per voxel; scores are predicted by the mean over the declared voxels."""

    name = 'voxelwise'
    drawing = Drawing(
        'prob', '1 − p, family-wise corrected', ('chance', 'p near 0'), '#009E73', '^'
    )
    statistics: ClassVar[Mapping[str, str]] = {
        'effect': 'Slope of the score on perfusion in the voxel',
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
            result = permuted_ols(
                score[:, None],
                prepared.measured[seen].astype(float),
                confounding_vars=standard[seen] if standard.shape[1] else None,
                n_perm=settings.voxelwise_permutations,
                two_sided_test=False,
                random_state=settings.seed + k,
                n_jobs=1,
                verbose=0,
                output_type='dict',
            )
            t = np.asarray(result['t'][0], dtype=float)
            p = 10 ** -np.asarray(result['logp_max_t'][0], dtype=float)
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
            x, y = prepared.measured[seen], score - score.mean()
            slope_per_voxel = (y @ (x - x.mean(0))) / np.maximum(
                ((x - x.mean(0)) ** 2).sum(0), 1e-12
            )
            error = np.abs(slope_per_voxel) / np.maximum(np.abs(t), 1e-6)
            found.effect[k] = coarse.resample_to(slope_per_voxel, grid)
            found.std[k] = coarse.resample_to(error, grid)
            found.probability[k] = coarse.resample_to(1 - p, grid)
            found.cut[k] = 1 - _ALPHA
            found.declared[k] = found.probability[k] >= found.cut[k]
        return found
