"""From maps on disk to what models are fitted on: coarse, completed, denoised, with asymmetry.

Done once per cohort and shared by items, folds and models. Sees no scores. Must not know files:
a memory-mapped array is read block by block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.perfusion_model import PerfusionModel, fit_perfusion_model
from bids_perfdeficit.deficit.scale import excess
from bids_perfdeficit.deficit.settings import AFFECTED_SHARE, LEAST_AFFECTED, DeficitSettings
from bids_perfdeficit.errors import InputError

#: Participants read at once: 64 maps at 2 mm are 60 MB.
_BLOCK = 64
#: Fewest participants that any group model is tried on.
_FEWEST = 10
#: mm by which voxels may be smaller than the spacing that a model asks for.
_NEARLY = 0.5


@dataclass(frozen=True, eq=False)
class Prepared:
    """A cohort's maps as models use them.

    Parameters
    ----------
    grid : Grid
        Of the maps that were given.
    coarse : Grid
        That the channels live on.
    measured : (N, V coarse) float32 array
        The maps averaged down and completed, not denoised.
    features : tuple of (N, V coarse) float32 arrays
        Channels: the denoised map, and its positive asymmetry; the map alone where maps are used
        as they are given.
    generative : PerfusionModel
    missing : (N, V coarse) bool array, optional
        Where `measured` was completed; None when everything was scanned.
    """

    grid: Grid
    coarse: Grid
    measured: NDArray[np.float32]
    features: tuple[NDArray[np.float32], ...]
    generative: PerfusionModel
    missing: NDArray[np.bool_] | None = None

    @property
    def n_participants(self) -> int:
        """Number of participants."""
        return len(self.measured)

    def scanned(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the maps of some participants as they were scanned: NaN where they were not."""
        found = self.measured[rows]
        if self.missing is not None:
            found[self.missing[rows]] = np.nan
        return found


def prepare(maps: NDArray[np.float32], grid: Grid, settings: DeficitSettings) -> Prepared:
    """Average maps down, learn their generative model and denoise them by it.

    Parameters
    ----------
    maps : (N, V) array
        Perfusion in [0, 1], higher is worse; NaN where not scanned; may be memory-mapped.
    grid : Grid
    settings : DeficitSettings

    Raises
    ------
    InputError
        If there are fewer than 10 participants, or the voxels do not fit the mask.
    """
    if maps.ndim != 2 or maps.shape[1] != grid.n_voxels:
        raise InputError(
            f'maps of shape {maps.shape} do not fit a mask of {grid.n_voxels} voxels',
            fix='give one row per participant and one column per voxel of the mask',
        )
    if len(maps) < _FEWEST:
        raise InputError(
            f'{len(maps)} participants have both a map and scores',
            fix=f'give at least {_FEWEST}; a substrate of one item needs a hundred or more',
        )
    coarse, weights = model_grid(grid, settings.coarse_spacing)
    return _complete(grid, coarse, coarse_maps(maps, weights), settings)


def model_grid(grid: Grid, spacing: float) -> tuple[Grid, sparse.csr_matrix]:
    """Return the grid that a model is fitted on; see `Grid.coarsen`.

    Voxels that are nearly as large as `spacing` are taken as they are: averaging them to voxels of
    nearly the same size would only blur.
    """
    return grid.coarsen(spacing, tolerance=_NEARLY)


def subset(prepared: Prepared, rows: NDArray[np.intp], settings: DeficitSettings) -> Prepared:
    """Return a part of the cohort, with a generative model that has seen no one else.

    Parameters
    ----------
    prepared : Prepared
    rows : (n,) array
        Indices of the participants to keep.
    settings : DeficitSettings
    """
    if len(rows) < _FEWEST:
        raise InputError(
            f'{len(rows)} participants remain for a fit',
            fix=f'use fewer folds, or give more than {_FEWEST} participants',
        )
    return _complete(prepared.grid, prepared.coarse, prepared.scanned(rows), settings)


def _complete(
    grid: Grid, coarse: Grid, scanned: NDArray[np.float32], settings: DeficitSettings
) -> Prepared:
    """Learn the generative model of maps (NaN where not scanned), and complete them by it."""
    generative = fit_perfusion_model(scanned, settings.rank)
    cleaned = clean(scanned, generative, settings)
    features = (cleaned,) if settings.as_given else channels(cleaned, coarse)
    missing = ~np.isfinite(scanned)
    if not missing.any():
        return Prepared(grid, coarse, scanned, features, generative)
    measured = np.where(missing, cleaned, scanned)
    return Prepared(grid, coarse, measured, features, generative, missing)


def clean(
    scanned: NDArray[np.float32], generative: PerfusionModel, settings: DeficitSettings
) -> NDArray[np.float32]:
    """Return maps as models see them: decoded, or as they were given with their gaps filled.

    Decoding a lesion mask would blur its edge and spread it over tissue that is not lesioned.

    Parameters
    ----------
    scanned : (N, V coarse) array
        NaN where not scanned.
    generative : PerfusionModel
    settings : DeficitSettings
    """
    if not settings.as_given:
        return generative.denoise(scanned)
    completed = generative.complete(scanned)
    return completed if completed is scanned else np.clip(completed, 0, 1)


def find_covered(
    prepared: Prepared, rows: NDArray[np.intp], settings: DeficitSettings
) -> NDArray[np.bool_]:
    """Return the coarse voxels in which enough of some participants are affected.

    The group mask was made of all participants; an item may have scores of a few of them. All
    voxels count for computed maps, which have values everywhere.

    Parameters
    ----------
    prepared : Prepared
    rows : (n,) array
        Indices of the participants.
    settings : DeficitSettings

    Returns
    -------
    (V coarse,) bool array
    """
    if not settings.as_given:
        return np.ones(prepared.coarse.n_voxels, bool)
    return np.asarray((prepared.measured[rows] > AFFECTED_SHARE).sum(0) >= LEAST_AFFECTED)


def coarse_maps(maps: NDArray[np.float32], weights: sparse.csr_matrix) -> NDArray[np.float32]:
    """Average (N, V) maps over coarse voxels; one is NaN where none of its voxels was scanned."""
    out = np.empty((len(maps), weights.shape[1]), dtype=np.float32)
    transposed = weights.T.tocsr()
    for start in range(0, len(maps), _BLOCK):
        block = np.array(maps[start : start + _BLOCK], dtype=np.float32)
        seen = np.isfinite(block)
        part = (transposed @ np.where(seen, block, 0).T).T
        if not seen.all():
            share = (transposed @ seen.astype(np.float32).T).T
            part = np.where(share > 0.25, part / np.maximum(share, 1e-6), np.nan)
        out[start : start + _BLOCK] = part
    return out


def channels(
    maps: NDArray[np.float32], coarse: Grid, healthy: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the maps and their positive left-right asymmetry, both (N, V coarse).

    With a healthy pattern, of what the maps have beyond it (see `scale.excess`).
    """
    if healthy is not None:
        maps = excess(maps, healthy, coarse)
    return maps, positive_asymmetry(maps, coarse)


def positive_asymmetry(maps: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Return how much worse each voxel is than its mirror image, 0 where it is better."""
    mirror = grid.mirror
    difference = np.maximum(maps - maps[:, mirror], 0)
    difference[:, mirror < 0] = 0
    return difference


def check_covariates(
    covariates: NDArray[np.float64] | None, n_participants: int, *, expected: int | None = None
) -> NDArray[np.float64]:
    """Return covariates as (N, C); none are (N, 0).

    Raises
    ------
    InputError
        If their number of rows or columns is wrong.
    """
    table = np.zeros((n_participants, 0)) if covariates is None else np.asarray(covariates, float)
    if table.ndim != 2 or len(table) != n_participants:
        raise InputError(
            f'covariates of shape {table.shape} do not fit {n_participants} participants',
            fix='give one row per participant',
        )
    if expected is not None and table.shape[1] != expected:
        raise InputError(
            f'{table.shape[1]} covariates were given, the model was fitted with {expected}',
            fix='give the same covariates in the same order',
        )
    return table
