"""From the map files of many participants to one array, a few maps at a time.

The bridge between images and `deficit`, which knows arrays only. Maps lie on the 2 mm grid of the
template; they are averaged to the voxels that were asked for, and the rows are kept in a file that
is mapped into memory, so that a cohort of any size fits. Must not know scores or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage, sparse

from bids_perfdeficit import ct
from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.preparation import coarse_maps, positive_asymmetry
from bids_perfdeficit.errors import InputError

#: mm by which affines may differ: rounding in headers, never a shift that anyone could see.
AFFINE_TOLERANCE = 1e-3
#: How much later than its mirror image a voxel is when it counts as deficit.
DEFICIT_THRESHOLD = 0.2
#: Share of participants in whom a voxel of the group mask must have been scanned.
LEAST_SCANNED = 0.5
#: mm of gaps that are closed in the mask: at the midline a map and its mirror image are one.
CLOSED_GAP = 8.0
#: mm of the participants' maps.
MAP_SPACING = 2.0
#: Values may leave their range by this much, for they were interpolated.
_RANGE_TOLERANCE = 1e-2
#: Maps that are held as volumes at once.
_BLOCK = 16


@dataclass(frozen=True, eq=False)
class Lattice:
    """The voxels that a group is analysed on, before anything is left out.

    Parameters
    ----------
    fine : Grid
        The template's brain at 2 mm.
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


def make_lattice(space: str, resolution: float) -> Lattice:
    """Lay voxels of a size over the brain of a template."""
    brain = ct.load_template(space, spacing=MAP_SPACING).brain_mask
    fine = Grid(np.asarray(brain.dataobj) > 0, brain.affine)
    return Lattice(fine, *fine.coarsen(resolution))


def resolution_label(resolution: float) -> str:
    """Return the resolution as a BIDS label."""
    return f'{resolution:g}'.replace('.', 'p')


def check_grids(paths: Sequence[Path], space: str) -> dict[Path, str]:
    """Compare headers with the template's 2 mm grid.

    Returns
    -------
    dict of Path to str
        What is wrong with those that cannot be used.
    """
    brain = ct.load_template(space, spacing=MAP_SPACING).brain_mask
    wrong = {}
    for path in paths:
        try:
            image = _open(path)
            shape, affine = image.shape, image.affine
        except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError):
            wrong[path] = f'{path} cannot be read as NIfTI'
            continue
        if shape != brain.shape:
            wrong[path] = f'{path} has the grid {_by(shape)}, {space} has {_by(brain.shape)}'
        elif (off := float(np.abs(affine - brain.affine).max())) > AFFINE_TOLERANCE:
            wrong[path] = f'{path} lies {off:.3g} mm off {space} (its affine differs)'
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
            ill = worse > DEFICIT_THRESHOLD  # False where either side was not scanned
            scanned += np.isfinite(block).sum(0)
            deficits += ill.sum(0)
            rows[good] = block
            for i, row, bad in zip(good, block, ill, strict=True):
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


def _open(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


def _read(map_file: Path, mask_file: Path, fine: Grid, asymmetry: bool) -> NDArray | str:
    """Return a map's voxels in the template's brain, or what is wrong with it."""
    volumes = []
    for path in (map_file, mask_file):
        try:
            volumes.append(np.asarray(_open(path).dataobj, dtype=np.float32)[fine.mask])
        except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError):
            return f'{path} is truncated or damaged'
    values, mask = volumes
    values = np.where(mask > 0, values, np.nan)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return f'{map_file} holds no value inside the brain mask'
    low, high = float(finite.min()), float(finite.max())
    if low < (-1 if asymmetry else 0) - _RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        return f'{map_file} holds values from {low:.3g} to {high:.3g}, which is no such map'
    if low == high:
        return f'{map_file} has the same value everywhere'
    return np.maximum(values, 0) if asymmetry else values


def _group_mask(
    full: Grid, scanned: NDArray, coverage: NDArray[np.float32], min_coverage: float
) -> Grid:
    """Keep voxels that were scanned in most and ill in enough, on both sides alike."""
    covered = full.embed((coverage >= min_coverage).astype(np.float32)) > 0
    # Symmetric: models compare sides, and an infarct's place says nothing about the other side.
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
