"""From the map files of many participants to one array, a few maps at a time.

Maps lie on the grid of a template; they are averaged to the voxels that were asked for, and the
rows are kept in a file that is mapped into memory, so that a cohort of any size fits. Must not
know scores, models, or where a template comes from: its brain mask is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage, sparse

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.preparation import coarse_maps, positive_asymmetry
from bids_perfdeficit.deficit.settings import DEFICIT_THRESHOLD
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.nifti import open_nifti, read_nifti

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

#: mm by which affines may differ: rounding in headers, which shifts no voxel visibly.
AFFINE_TOLERANCE = 1e-3
#: Share of participants in whom a voxel of the group mask must have been scanned.
LEAST_SCANNED = 0.5
#: mm of gaps that are closed in the mask: at the midline a map and its mirror image are one.
CLOSED_GAP = 8.0
#: Values may leave their range by this much, because they were interpolated.
_RANGE_TOLERANCE = 1e-2
#: Maps that are held as volumes at once.
_BLOCK = 16


@dataclass(frozen=True, eq=False)
class Lattice:
    """The voxels that a group is analysed on, before anything is left out.

    Parameters
    ----------
    fine : Grid
        The brain of the template on the grid of the maps.
    grid : Grid
        The same at the resolution that was asked for.
    weights : (V fine, V) sparse matrix
        Averages over each voxel.
    """

    fine: Grid
    grid: Grid
    weights: sparse.csr_matrix


@dataclass(frozen=True, eq=False)
class Stack:
    """A cohort's maps.

    Parameters
    ----------
    values : (N, V) float32 array
        Mapped from its file; NaN where not scanned.
    grid : Grid
        The group mask.
    coverage : (X, Y, Z) float32 array
        Share of participants with a deficit.
    measures : DataFrame
        One row a kept map: its position in the list that was given (the index),
        ``total_deficit_volume`` in mL and ``side``, left minus right mean perfusion.
    dropped : dict of int to str
        Position to the reason.
    """

    values: NDArray[np.float32]
    grid: Grid
    coverage: NDArray[np.float32]
    measures: pd.DataFrame
    dropped: dict[int, str] = field(default_factory=dict)


def make_lattice(brain: Nifti1Image, resolution: float) -> Lattice:
    """Lay voxels of a size over the brain of a template.

    Parameters
    ----------
    brain : Nifti1Image
        Brain mask of the template on the grid of the maps.
    resolution : float
        mm, isotropic; any size from that of the maps upwards.

    Raises
    ------
    InputError
        When `resolution` is smaller than the voxels of the maps.
    """
    fine = Grid(np.asarray(brain.dataobj) > 0, brain.affine)
    if resolution < fine.spacing.max() - AFFINE_TOLERANCE:
        raise InputError(
            f'voxels of {resolution:g} mm are smaller than those of the maps '
            f'({fine.spacing.max():g} mm)',
            fix='choose a larger --resolution',
        )
    return Lattice(fine, *fine.coarsen(resolution))


def check_grids(paths: Sequence[Path], brain: Nifti1Image, space: str) -> dict[Path, str]:
    """Compare headers with the grid of a template.

    Parameters
    ----------
    paths : sequence of Path
        Maps or masks.
    brain : Nifti1Image
        Brain mask of the template on the grid of the maps.
    space : str
        Name of the template, for the messages.

    Returns
    -------
    dict of Path to str
        What is wrong with those that cannot be used.
    """
    wrong = {}
    for path in paths:
        try:
            image = open_nifti(path)
        except InputError as error:
            wrong[path] = f'{path} {error.reason}'
            continue
        if fault := _compare_grids(image, brain.shape, brain.affine, space):
            wrong[path] = f'{path} {fault}'
    return wrong


def stack(
    maps: Sequence[Path],
    masks: Sequence[Path],
    out: Path,
    *,
    lattice: Lattice,
    asymmetry: bool = False,
    min_coverage: float = 0.0,
    grid: Grid | None = None,
    threads: int = 1,
) -> Stack:
    """Read maps into one file.

    Parameters
    ----------
    maps, masks : sequence of Path
        Map and brain mask of each participant, on `lattice.fine`.
    out : Path
        ``.npy`` to write.
    lattice : Lattice
    asymmetry : bool
        Whether maps are signed asymmetries; their positive part is kept.
    min_coverage : float
        Least share of participants with a deficit in a voxel.
    grid : Grid, optional
        The group mask of an earlier fit, which is used as it is.
    threads : int
        Files that are read at once.

    Raises
    ------
    InputError
        When no map can be read, or the mask is empty.
    """
    full = lattice.grid
    if grid is not None and (
        grid.mask.shape != full.mask.shape
        or np.abs(grid.affine - full.affine).max() > AFFINE_TOLERANCE
    ):
        raise InputError(
            'the voxels of the model are not those of the maps',
            fix='give the space and resolution that the model was fitted with',
        )
    aside = out.with_suffix('.all.npy')
    rows = np.lib.format.open_memmap(
        aside, mode='w+', dtype=np.float32, shape=(len(maps), full.n_voxels)
    )
    scanned, deficits = np.zeros(full.n_voxels), np.zeros(full.n_voxels)
    left = full.coordinates[:, 0] < 0
    right = full.coordinates[:, 0] > 0
    measures: dict[int, dict[str, float]] = {}
    dropped: dict[int, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(maps), _BLOCK):
            part = range(start, min(start + _BLOCK, len(maps)))
            read = list(
                pool.map(lambda i: _read(maps[i], masks[i], lattice.fine, asymmetry), part)
            )
            dropped |= {i: r for i, r in zip(part, read, strict=True) if isinstance(r, str)}
            good = [i for i in part if i not in dropped]
            if not good:
                continue
            block = coarse_maps(
                np.stack([r for r in read if not isinstance(r, str)]), lattice.weights
            )
            worse = block if asymmetry else positive_asymmetry(block, full)
            affected = worse > DEFICIT_THRESHOLD  # False where either side was not scanned
            scanned += np.isfinite(block).sum(0)
            deficits += affected.sum(0)
            rows[good] = block
            for i, row, bad in zip(good, block, affected, strict=True):
                measures[i] = {
                    'total_deficit_volume': float(bad.sum() * full.voxel_ml),
                    'side': _mean(row[left]) - _mean(row[right]),
                }
    if not measures:
        raise InputError(
            f'no map can be used ({next(iter(dropped.values()), "there is none")})',
            fix='run the participant level again for them',
        )
    count = len(measures)
    coverage = (deficits / count).astype(np.float32)
    if grid is None:
        grid = _group_mask(full, scanned / count, coverage, min_coverage)
    columns = grid.mask[full.mask]
    kept = sorted(measures)
    values = np.lib.format.open_memmap(
        out, mode='w+', dtype=np.float32, shape=(count, int(columns.sum()))
    )
    for start in range(0, count, _BLOCK):
        values[start : start + _BLOCK] = rows[kept[start : start + _BLOCK]][:, columns]
    values.flush()
    del rows
    aside.unlink()
    table = pd.DataFrame.from_dict(measures, orient='index').loc[kept]
    return Stack(values, grid, full.embed(coverage).astype(np.float32), table, dropped)


def _compare_grids(
    image: Nifti1Image, shape: tuple[int, ...], affine: NDArray[np.float64], space: str
) -> str:
    """Return what is wrong with the grid of an image, or an empty string."""
    if image.shape != shape:
        return f'has the grid {_by(image.shape)}, {space} has {_by(shape)}'
    off = float(np.abs(np.asarray(image.affine) - affine).max())
    if not off <= AFFINE_TOLERANCE:  # also when it is not a number
        return f'lies {off:.3g} mm off {space} (its affine differs)'
    return ''


def _read(map_file: Path, mask_file: Path, fine: Grid, asymmetry: bool) -> NDArray | str:
    """Return a map's voxels in the template's brain, or what is wrong with it."""
    volumes = []
    for path in (map_file, mask_file):
        try:
            image, values = read_nifti(path)
        except InputError as error:
            return f'{path} {error.reason}'
        if fault := _compare_grids(image, fine.mask.shape, fine.affine, 'the template'):
            return f'{path} {fault}'
        volumes.append(values[fine.mask])
    values, mask = volumes
    values = np.where(mask > 0, values, np.nan)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return f'{map_file} has no value inside the brain mask'
    low, high = float(finite.min()), float(finite.max())
    if low < (-1 if asymmetry else 0) - _RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        return f'{map_file} has values from {low:.3g} to {high:.3g}, which is not such a map'
    if low == high:
        return f'{map_file} has the same value everywhere'
    return np.maximum(values, 0) if asymmetry else values


def _group_mask(
    full: Grid, scanned: NDArray, coverage: NDArray[np.float32], min_coverage: float
) -> Grid:
    """Keep voxels that were scanned in most and affected in enough, on both sides alike."""
    covered = full.embed((coverage >= min_coverage).astype(np.float32)) > 0
    # Symmetric: models compare sides, and where an infarct lies says nothing about the other side.
    covered |= covered[::-1]
    if min_coverage > 0 and covered.any():
        gap = int(np.ceil(CLOSED_GAP / full.spacing.min() / 2))
        padded = np.pad(covered, gap)
        covered = ndimage.binary_closing(padded, iterations=gap)[(slice(gap, -gap),) * 3]
    mask = full.mask & covered & (full.embed(scanned.astype(np.float32)) >= LEAST_SCANNED)
    if not mask.any():
        raise InputError(
            f'in no voxel at least {min_coverage:.0%} of the participants have a deficit',
            fix='lower --min-coverage, or check the maps',
        )
    return Grid(mask, full.affine)


def _mean(values: NDArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float('nan')


def _by(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))
