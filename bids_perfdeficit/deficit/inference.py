"""How far a deficit map can be trusted: shuffled scores, resampled cohorts, vascular bias.

Each shuffle and each resample has its own seed, so that any split of them into pieces gives the
same numbers; pieces are put together with ``+``. Must not know files, BIDS or Nipype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import rankdata

from bids_perfdeficit.deficit.fitting import check_scores, confine
from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.models import get_model
from bids_perfdeficit.deficit.ordinal import fit_linear, level_probabilities
from bids_perfdeficit.deficit.preparation import Prepared, check_covariates
from bids_perfdeficit.deficit.result import DeficitFit, Item, standardise
from bids_perfdeficit.deficit.rules import covariate_scales, usable_items
from bids_perfdeficit.deficit.settings import DeficitSettings
from bids_perfdeficit.errors import InputError

#: Share of the participants in each resample: what a bootstrap sample holds of distinct ones.
_RESAMPLE_SHARE = 1 - np.exp(-1)
#: Dice coefficient of a cluster with the mirror image of another from which they are one result.
_MIRRORED = 0.5


@dataclass(frozen=True)
class Cluster:
    """A connected piece of a declared substrate.

    Parameters
    ----------
    number : int
        From 1, the largest first.
    peak_mm, centre_mm : (x, y, z)
        RAS mm of the highest value, and of the mean of the voxels.
    peak_value : float
        Of the map that was searched.
    volume_ml : float
    voxels : int
    members : (voxels,) array
        Indices of the voxels.
    """

    number: int
    peak_mm: tuple[float, float, float]
    centre_mm: tuple[float, float, float]
    peak_value: float
    volume_ml: float
    voxels: int
    members: NDArray[np.intp] = field(repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class NullCalibration:
    """What a model does on cohorts whose scores were shuffled.

    Parameters
    ----------
    items : tuple of Item
    shuffles : (S,) array
        Seeds of the shuffles.
    declared : (S, K) array
        1.0 where anything was declared, 0.0 where nothing, NaN where the item was not fitted.
    p_value : (S, K) array
        The item's own p, where the model has one.
    kl : (S, K) array
        Largest KL divergence of a part of the model from its prior in nats, where it has one.
    """

    items: tuple[Item, ...]
    shuffles: NDArray[np.intp]
    declared: NDArray[np.float64]
    p_value: NDArray[np.float64]
    kl: NDArray[np.float64]

    @property
    def share_clean(self) -> NDArray[np.float64]:
        """(K,) share of shuffled cohorts in which nothing was declared."""
        with np.errstate(invalid='ignore'):
            fitted = np.isfinite(self.declared).sum(0)
            return 1 - np.nansum(self.declared, 0) / np.where(fitted, fitted, np.nan)

    def __add__(self, other: NullCalibration) -> NullCalibration:
        return NullCalibration(
            self.items,
            np.r_[self.shuffles, other.shuffles],
            np.r_[self.declared, other.declared],
            np.r_[self.p_value, other.p_value],
            np.r_[self.kl, other.kl],
        )


@dataclass(frozen=True, eq=False)
class Stability:
    """How often each voxel is declared when the cohort is resampled.

    Parameters
    ----------
    items : tuple of Item
    count : (K, V) int32 array
        Resamples in which a voxel was declared.
    draws : int
    """

    items: tuple[Item, ...]
    count: NDArray[np.int32]
    draws: int

    @property
    def share(self) -> NDArray[np.float32]:
        """(K, V) share of resamples in which a voxel was declared."""
        return (self.count / max(self.draws, 1)).astype(np.float32)

    def __add__(self, other: Stability) -> Stability:
        return Stability(self.items, self.count + other.count, self.draws + other.draws)


def find_clusters(
    values: NDArray[np.floating],
    declared: NDArray[np.bool_],
    grid: Grid,
    *,
    min_ml: float = 0.0,
) -> tuple[Cluster, ...]:
    """Split a declared map into pieces that touch by a face, edge or corner, the largest first.

    Parameters
    ----------
    values, declared : (V,) arrays
        A map (its highest value is the peak) and the voxels to be split.
    grid : Grid
    min_ml : float
        Smaller pieces are left out.
    """
    labels, count = ndimage.label(grid.embed(declared).astype(bool), np.ones((3, 3, 3)))
    own = labels[grid.mask]
    found: list[Cluster] = []
    for label in range(1, count + 1):
        inside = np.flatnonzero(own == label)
        volume = len(inside) * grid.voxel_ml
        if volume < min_ml:
            continue
        peak = inside[int(np.nanargmax(np.nan_to_num(values[inside], nan=-np.inf)))]
        found.append(
            Cluster(
                0,
                _point(grid.coordinates[peak]),
                _point(grid.coordinates[inside].mean(0)),
                float(values[peak]),
                volume,
                len(inside),
                inside,
            )
        )
    found.sort(key=lambda c: (-c.voxels, c.peak_mm))
    return tuple(replace(c, number=i) for i, c in enumerate(found, 1))


def number_results(found: Sequence[tuple[Item, Cluster]], grid: Grid) -> NDArray[np.intp]:
    """Count mirror images of each other as one result, and return the result of each cluster.

    A candidate region of two spherical ROIs is declared on both sides, and the items of a
    left-right pair share their mirrored candidate regions (see `models.spatial`), so that the
    second of two such clusters is not a finding of its own.

    Parameters
    ----------
    found : sequence of (Item, Cluster)
    grid : Grid
        Of the clusters.

    Returns
    -------
    (n,) integer array
        From 1, in the order of `found`.
    """
    numbers = np.arange(len(found))
    for i, (item, cluster) in enumerate(found):
        across = grid.mirror[cluster.members]
        across = across[across >= 0]
        for j, (other, candidate) in enumerate(found[:i]):
            if other.name not in (item.name, item.mirror):
                continue
            shared = len(np.intersect1d(across, candidate.members))
            if 2 * shared >= _MIRRORED * (cluster.voxels + candidate.voxels):
                numbers[numbers == numbers[i]] = numbers[j]
    return np.unique(numbers, return_inverse=True)[1] + 1


def adjust_holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values adjusted for their number (Holm, Scand J Stat 1979); NaN stays and is none.

    Valid whatever the dependence between the items.
    """
    out = np.full(len(p_values), np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind='stable')]
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return out


def _point(xyz: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (round(float(v), 1) + 0.0 for v in xyz)
    return x, y, z


def coverage_resemblance(fit: DeficitFit, prepared: Prepared) -> NDArray[np.float64]:
    """Return how similar each item's map is to the map of often affected voxels: vascular bias.

    Spearman's correlation over voxels between the effect and the cohort's mean map.

    Returns
    -------
    (K,) array
        NaN for items that were not fitted, or whose map is constant.
    """
    common = prepared.coarse.resample_to(prepared.measured.mean(0), fit.grid)
    common = rankdata(common)
    out = np.full(len(fit.items), np.nan)
    for k, effect in enumerate(fit.effect):
        if np.isfinite(effect).all() and np.ptp(effect) > 0:
            out[k] = np.corrcoef(rankdata(effect), common)[0, 1]
    return out


def shuffle_scores(
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64] | None = None,
    *,
    items: Sequence[Item],
    seed: int,
    lapse: float = 0.0,
) -> NDArray[np.float64]:
    """Break the bond between scores and maps, and keep that between scores and covariates.

    Freedman & Lane (J Bus Econ Stat 1983) for ordinal scores: each score becomes a randomised
    quantile residual under its regression on the covariates (Dunn & Smyth, J Comput Graph Stat
    1996); the residuals of those who have a score are shuffled and turned into scores again. All
    items are shuffled alike to the extent that their missing values allow, so that their
    correlation stays. Without covariates this is a plain shuffle.

    Returns
    -------
    (N, K) array
        With missing values where they were.
    """
    items = tuple(items)
    covariates = check_covariates(covariates, len(scores))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(scores))
    out = np.full(scores.shape, np.nan)
    design = torch.from_numpy(standardise(covariates, *covariate_scales(covariates)))
    for k, item in enumerate(items):
        seen = np.isfinite(scores[:, k])
        source = order[seen[order]]
        if not covariates.shape[1] or not seen.any():
            out[seen, k] = scores[source, k]
            continue
        level = torch.from_numpy(scores[seen, k].astype(np.int64))
        gamma, cuts, _ = fit_linear(design[torch.from_numpy(seen)], level, item.levels, lapse)
        p = level_probabilities(cuts, design @ gamma).numpy()
        upper = np.c_[np.zeros(len(p)), np.cumsum(p, 1)]
        own = np.where(seen, scores[:, k], 0).astype(int)
        rows = np.arange(len(p))
        residual = rng.uniform(
            upper[rows, own], np.maximum(upper[rows, own + 1], upper[rows, own])
        )
        moved = residual[source]
        out[seen, k] = (moved[:, None] >= upper[seen, 1:-1]).sum(1)
    return out


def null_calibration(
    prepared: Prepared,
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64] | None = None,
    *,
    items: Sequence[Item],
    model: str = 'spatial',
    settings: DeficitSettings | None = None,
    shuffles: Sequence[int] = range(100),
) -> NullCalibration:
    """Fit cohorts whose scores were shuffled and count what is declared nevertheless.

    Parameters
    ----------
    prepared, scores, covariates, items, model, settings
        As for `fit`.
    shuffles : sequence of int
        Numbers of the shuffles to do; a scheduler may split them.
    """
    settings = settings or DeficitSettings()
    items = tuple(items)
    scores = check_scores(scores, items)
    covariates = check_covariates(covariates, len(scores))
    own = get_model(model)
    shared = own.share(prepared, settings)
    shape = (len(shuffles), len(items))
    declared, p_value, kl = (np.full(shape, np.nan) for _ in range(3))
    for row, shuffle in enumerate(shuffles):
        shuffled = shuffle_scores(
            scores, covariates, items=items, seed=_seed(settings.seed, shuffle),
            lapse=settings.lapse,
        )  # fmt: skip
        reseeded = replace(settings, seed=_seed(settings.seed, shuffle) + 1)
        found = own.fit(prepared, shuffled, covariates, items, reseeded, shared=shared)
        confine(found, prepared, shuffled, reseeded)
        for k in found.usable:
            declared[row, k] = float(found.declared[k].any())
            p_value[row, k] = found.p_value[k]
            kl[row, k] = found.kl[k]
    return NullCalibration(items, np.asarray(shuffles, dtype=np.intp), declared, p_value, kl)


def bootstrap(
    prepared: Prepared,
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64] | None = None,
    *,
    items: Sequence[Item],
    model: str = 'spatial',
    settings: DeficitSettings | None = None,
    draws: Sequence[int] = range(50),
) -> Stability:
    """Fit resampled cohorts and count how often each voxel is declared.

    Each resample holds 63 % of the participants, as many as a bootstrap sample has distinct ones,
    without copies (Politis & Romano, Ann Stat 1994): copies would undo the shuffles behind the
    models' own tests. The scores of the others count as missing, so that what depends on maps
    alone is computed once.

    Parameters
    ----------
    prepared, scores, covariates, items, model, settings
        As for `fit`.
    draws : sequence of int
        Numbers of the resamples to do; a scheduler may split them.
    """
    settings = settings or DeficitSettings()
    items = tuple(items)
    scores = check_scores(scores, items)
    covariates = check_covariates(covariates, len(scores))
    own = get_model(model)
    shared = own.share(prepared, settings)
    size = round(_RESAMPLE_SHARE * len(scores))
    count = np.zeros((len(items), prepared.grid.n_voxels), np.int32)
    for draw in draws:
        rng = np.random.default_rng(_seed(settings.seed, draw))
        rows = rng.choice(len(scores), size=size, replace=False)
        drawn = np.full(scores.shape, np.nan)
        drawn[rows] = scores[rows]
        if usable_items(drawn, items, settings)[0]:
            found = own.fit(prepared, drawn, covariates, items, settings, shared=shared)
            confine(found, prepared, drawn, settings)
            count += found.declared
    return Stability(items, count, len(draws))


def _seed(seed: int, number: int) -> int:
    """Return a seed of its own for each shuffle or resample."""
    if number < 0:
        raise InputError(f'{number} is not the number of a shuffle', fix='count from 0')
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] % 2**31)
