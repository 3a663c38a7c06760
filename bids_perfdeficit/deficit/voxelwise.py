"""Voxel-based lesion-symptom mapping: one regression per voxel, max-T family-wise error.

Permuted ordinary least squares of nilearn (Freedman & Lane, J Bus Econ Stat 1983; Winkler et al.,
NeuroImage 2014) on the coarse grid, one-sided: worse perfusion, worse score. Must not know other
models.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bids_perfdeficit.deficit.ordinal import fit_head
from bids_perfdeficit.deficit.preparation import Prepared
from bids_perfdeficit.deficit.result import Item, Readout, standardise
from bids_perfdeficit.deficit.rules import covariate_scales, usable_items
from bids_perfdeficit.deficit.settings import DeficitSettings

#: Family-wise error rate of the declared map: the field's convention.
_ALPHA = 0.05


def fit_voxelwise(
    prepared: Prepared,
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64],
    items: tuple[Item, ...],
    settings: DeficitSettings,
    *,
    maps: bool = True,
) -> dict[str, object]:
    """Fit every item; see `fit` for the arguments and the result.

    Scores are predicted by the mean perfusion of the declared voxels; where none is declared, by
    the levels' frequencies alone.
    """
    from nilearn.mass_univariate import permuted_ols  # slow to import

    n_items, coarse, grid = len(items), prepared.coarse, prepared.grid
    n_levels = max(item.levels for item in items)
    mean, scale = covariate_scales(covariates)
    standard = standardise(covariates, mean, scale)
    usable, skipped = usable_items(scores, items, settings)
    shape = (n_items, grid.n_voxels if maps else 0)
    effect, std, probability = (np.full(shape, np.nan, np.float32) for _ in range(3))
    declared = np.zeros(shape, bool)
    cut, p_value = np.full(n_items, np.nan), np.full(n_items, np.nan)
    weights = np.zeros((n_items, 1, coarse.n_voxels), np.float32)
    cuts = np.full((n_items, n_levels - 1), np.inf)
    frequencies = np.zeros((n_items, n_levels))
    for k in usable:
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
        p_value[k] = float(p.min())
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
        cuts[k, : own - 1], frequencies[k, :own] = c.numpy(), f.numpy()
        if not maps:
            continue
        x, y = prepared.measured[seen], score - score.mean()
        slope_per_voxel = (y @ (x - x.mean(0))) / np.maximum(((x - x.mean(0)) ** 2).sum(0), 1e-12)
        error = np.abs(slope_per_voxel) / np.maximum(np.abs(t), 1e-6)
        effect[k] = coarse.resample_to(slope_per_voxel, grid)
        std[k] = coarse.resample_to(error, grid)
        probability[k] = coarse.resample_to(1 - p, grid)
        cut[k] = 1 - _ALPHA
        declared[k] = probability[k] >= cut[k]
    gamma = np.zeros((n_items, covariates.shape[1]))
    return {
        'effect': effect,
        'std': std,
        'probability': probability,
        'declared': declared,
        'cut': cut,
        'p_value': p_value,
        'readout': Readout(weights, cuts, frequencies, settings.lapse, mean, scale, gamma),
        'skipped': skipped,
        'details': {},
    }
