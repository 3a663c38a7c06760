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
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy import ndimage, sparse

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.preparation import coarse_maps, positive_asymmetry
from bids_perfdeficit.deficit.scale import excess, lower_side
from bids_perfdeficit.deficit.settings import (
    AFFECTED_SHARE,
    DEFICIT_THRESHOLD,
    LEAST_AFFECTED,
    VOLUME_THRESHOLD,
)
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.nifti import find_affine, open_nifti, read_nifti

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
#: Share of the template's brain that the field of view of a given map must hold. Clinical
#: normalisation crops some of the cerebellum (98 % is left).
LEAST_FIELD = 0.9
#: Share of a given map that may lie outside the template's brain, and share of the brain that may
#: be affected. More is a map of another space, an inverted mask, or that of the brain.
MOST_OUTSIDE, MOST_AFFECTED = 0.75, 0.75
#: Sine of the angle by which the axes of a given map may be off those of the template.
_MOST_ROTATED = 1e-3
#: Share of a voxel that must lie in the field of view, or else it was not scanned.
_LEAST_SEEN = 0.5
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
        ``total_deficit_volume`` in mL and ``side``, left minus right mean of the map.
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


def check_given(paths: Sequence[Path], brain: Nifti1Image, space: str) -> dict[Path, str]:
    """Compare headers of maps that users give with a template; they may lie on any grid of it.

    Parameters
    ----------
    paths, brain, space
        As for `check_grids`.

    Returns
    -------
    dict of Path to str
        What is wrong with those that cannot be used.
    """
    fine, wrong = Grid(np.asarray(brain.dataobj) > 0, brain.affine), {}
    for path in paths:
        try:
            image = open_nifti(path)
            fault = _lay_over(image, path, fine)
        except InputError as error:
            wrong[path] = f'{path} {error.reason}'
            continue
        if isinstance(fault, str):
            wrong[path] = f'{path} {fault.replace("the template", space)}'
    return wrong


def stack(
    maps: Sequence[Path],
    masks: Sequence[Path | None],
    out: Path,
    *,
    lattice: Lattice,
    asymmetry: bool = False,
    threshold: float | None = None,
    min_coverage: float = 0.0,
    grid: Grid | None = None,
    mean: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> Stack:
    """Read maps into one file.

    Parameters
    ----------
    maps, masks : sequence of Path
        Map and brain mask of each participant, on `lattice.fine`. Maps that users give lie on any
        grid of the template, without a mask (None).
    out : Path
        ``.npy`` to write.
    lattice : Lattice
    asymmetry : bool
        Whether maps are signed asymmetries; their positive part is kept.
    threshold : float, optional
        Set for maps that users give, such as lesion masks: the value above which a voxel is
        affected. They are divided by twice this value and cut at 1, so that a mask or probability
        stays as it is with 0.5.
    min_coverage : float
        Least share of participants with a deficit in a voxel; of maps that users give also at
        least `LEAST_AFFECTED` participants.
    grid : Grid, optional
        The group mask of an earlier fit, which is used as it is.
    mean : (V,) array, optional
        The mean map of the cohort of that fit on `grid`, with whose healthy tissue maps are
        compared; without it that of the maps that are read.
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
                pool.map(
                    lambda i: _read(maps[i], masks[i], lattice.fine, asymmetry, threshold), part
                )
            )
            dropped |= {i: r for i, r in zip(part, read, strict=True) if isinstance(r, str)}
            good = [i for i in part if i not in dropped]
            if not good:
                continue
            kept_maps = [r for r in read if not isinstance(r, str)]
            block = coarse_maps(np.stack([r.values for r in kept_maps]), lattice.weights)
            affected = (  # False where either side was not scanned
                block > AFFECTED_SHARE
                if threshold is not None
                else (block if asymmetry else positive_asymmetry(block, full)) > DEFICIT_THRESHOLD
            )
            scanned += np.isfinite(block).sum(0)
            deficits += affected.sum(0)
            rows[good] = block
            for i, one, row, bad in zip(good, kept_maps, block, affected, strict=True):
                # of computed maps it is measured below, against the healthy tissue of all
                volume = bad.sum() * full.voxel_ml if one.affected_ml is None else one.affected_ml
                measures[i] = {
                    'total_deficit_volume': float(volume),
                    'side': _mean(row[left]) - _mean(row[right]),
                }
    if not measures:
        raise InputError(
            f'no map can be used ({next(iter(dropped.values()), "there is none")})',
            fix='run the participant level again for them'
            if threshold is None
            else 'give masks or probabilities of lesions on a grid of the template',
        )
    count = len(measures)
    coverage = (deficits / count).astype(np.float32)
    if grid is None and threshold is not None:
        grid = _covered_mask(full, scanned / count, deficits, count, min_coverage)
    elif grid is None:
        grid = _group_mask(full, scanned / count, coverage, min_coverage)
    columns = grid.mask[full.mask]
    kept = sorted(measures)
    values = np.lib.format.open_memmap(
        out, mode='w+', dtype=np.float32, shape=(count, int(columns.sum()))
    )
    for start in range(0, count, _BLOCK):
        values[start : start + _BLOCK] = rows[kept[start : start + _BLOCK]][:, columns]
    values.flush()
    if threshold is None and not asymmetry:
        volumes = _measure_volumes(values, grid, mean)
        for position, volume in zip(kept, volumes, strict=True):
            measures[position]['total_deficit_volume'] = float(volume)
    del rows
    aside.unlink()
    table = pd.DataFrame.from_dict(measures, orient='index').loc[kept]
    return Stack(values, grid, full.embed(coverage).astype(np.float32), table, dropped)


def _measure_volumes(
    values: NDArray[np.float32], grid: Grid, mean: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Return the mL of each map that are later than healthy tissue, on either side.

    The asymmetry alone misses what both sides have, such as a basilar occlusion.
    """
    if mean is None:
        total, seen = np.zeros(grid.n_voxels), np.zeros(grid.n_voxels)
        for start in range(0, len(values), _BLOCK):
            block = np.asarray(values[start : start + _BLOCK])
            total += np.nan_to_num(block).sum(0)
            seen += np.isfinite(block).sum(0)
        mean = (total / np.maximum(seen, 1)).astype(np.float32)
    healthy = lower_side(mean, grid)
    found = []
    for start in range(0, len(values), _BLOCK):
        block = np.asarray(values[start : start + _BLOCK])
        later = excess(np.where(np.isfinite(block), block, healthy), healthy, grid)
        found.append(((later > VOLUME_THRESHOLD) & np.isfinite(block)).sum(1) * grid.voxel_ml)
    return np.concatenate(found)


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


@dataclass(frozen=True, eq=False)
class _Reading:
    """A map's voxels in the template's brain."""

    values: NDArray[np.float32]
    affected_ml: float | None = None  #: where it was measured on the map's own grid


def _read(
    map_file: Path, mask_file: Path | None, fine: Grid, asymmetry: bool, threshold: float | None
) -> _Reading | str:
    """Return a map, or what is wrong with it."""
    if threshold is not None:
        return _read_given(map_file, fine, threshold)
    assert mask_file is not None
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
    return _Reading(np.maximum(values, 0) if asymmetry else values)


def _read_given(path: Path, fine: Grid, threshold: float) -> _Reading | str:
    """Return a map that a user gave, averaged to the template's grid, or what is wrong with it."""
    try:
        image, values = read_nifti(path)
        laid = _lay_over(image, path, fine)
    except InputError as error:
        return f'{path} {error.reason}'
    if isinstance(laid, str):
        return f'{path} {laid}'
    values = values.reshape(image.shape[:3])
    if not np.isfinite(values).all():
        return f'{path} has voxels without a number (NaN or infinite); write 0 where nothing is'
    low, high = float(values.min()), float(values.max())
    if low < 0:
        return f'{path} has negative values (down to {low:.3g}); unaffected tissue is 0'
    if high == 0:
        return f'{path} is empty: no voxel is above 0'
    if low == high:
        return f'{path} has the same value everywhere'
    share = values / (2 * threshold)
    if threshold == AFFECTED_SHARE and high != 1 and not ((values > 0) & (values < high)).any():
        share = values / high  # a mask with another number than 1
    elif threshold == AFFECTED_SHARE and high > 1 + _RANGE_TOLERANCE:
        return (
            f'{path} has several values up to {high:.3g}; give a mask of one lesion label, a '
            'probability, or the --map-threshold of such maps'
        )
    share = np.minimum(share, 1)
    averaged = laid.average(np.asarray(share, np.float32))
    inside = averaged[fine.mask]
    voxel_ml = laid.voxel_ml
    whole, within = float(share.sum() * voxel_ml), float(np.nansum(inside) * fine.voxel_ml)
    if within < (1 - MOST_OUTSIDE) * whole:
        return (
            f'{path} lies outside the brain of the template with {1 - within / whole:.0%} of it: '
            'is it in this space?'
        )
    if within > MOST_AFFECTED * fine.n_voxels * fine.voxel_ml:
        return f'{path} affects most of the brain ({within:.0f} mL)'
    affected = float((share > AFFECTED_SHARE).sum() * voxel_ml)
    return _Reading(inside.astype(np.float32), affected)


@dataclass(frozen=True, eq=False)
class _Laid:
    """How the voxels of an image lie over those of a template, both along the same axes."""

    order: NDArray[np.float64]  #: nibabel's orientation that turns the image to RAS
    overlaps: tuple[NDArray[np.float32], ...]  #: per axis (target, source) share of each target
    voxel_ml: float

    def average(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean of an image over each voxel of the template; NaN outside of it."""
        turned = apply_orientation(values, self.order)
        # what is 0 needs no averaging, and most of a lesion map is
        some = turned != 0
        flat = some.any(2)
        there = (flat.any(1), flat.any(0), some.any((0, 1)))
        total = np.zeros([len(overlap) for overlap in self.overlaps], np.float32)
        if flat.any():
            own = [_span(n) for n in there]
            parts = [
                np.asarray(overlap[:, n]) for overlap, n in zip(self.overlaps, own, strict=True)
            ]
            target = [_span(np.asarray(part.any(1))) for part in parts]
            part = np.asarray(turned[tuple(own)], np.float32)
            for share, rows in zip(parts, target, strict=True):  # the first axis goes to the end
                part = np.tensordot(part, share[rows], (0, 1))
            total[tuple(target)] = part
        seen = self.seen
        return np.where(seen >= _LEAST_SEEN, total / np.maximum(seen, 1e-6), np.nan)

    @property
    def seen(self) -> NDArray[np.float32]:
        """Share of each voxel of the template in the field of view."""
        x, y, z = (np.minimum(overlap.sum(1), 1) for overlap in self.overlaps)
        return x[:, None, None] * y[:, None] * z


def _lay_over(image: Nifti1Image, path: Path, fine: Grid) -> _Laid | str:
    """Compare the grid of a map that a user gave with a template, or say what is wrong with it.

    Raises
    ------
    InputError
        When its sides are not known.
    """
    shape = tuple(image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        what = f'{shape[3]} volumes' if len(shape) > 3 else f'{len(shape)} dimensions'
        return f'has {what} instead of one volume'
    affine = find_affine(image, path)
    order = io_orientation(affine)
    turned = affine @ inv_ornt_aff(order, shape[:3])
    linear = turned[:3, :3]
    spacing = np.diag(linear)
    if np.abs(linear - np.diag(spacing)).max() > _MOST_ROTATED * spacing.max():
        return 'is rotated against the axes of the template: is it in this space?'
    sizes = [shape[int(axis)] for axis in np.argsort(order[:, 0])]
    overlaps = tuple(
        _overlap(
            fine.affine[axis, 3], float(fine.affine[axis, axis]), fine.mask.shape[axis],
            turned[axis, 3], float(spacing[axis]), sizes[axis],
        )
        for axis in range(3)
    )  # fmt: skip
    laid = _Laid(order, overlaps, float(spacing.prod() / 1000))
    held = float((laid.seen[fine.mask] >= _LEAST_SEEN).mean())
    if held < LEAST_FIELD:
        return f'holds only {held:.0%} of the brain of the template: is it in this space?'
    return laid


def _span(some: NDArray[np.bool_]) -> slice:
    """Return from the first to the last that is true; nothing when none is."""
    places = np.flatnonzero(some)
    return slice(places[0], places[-1] + 1) if len(places) else slice(0, 0)


def _overlap(
    first: float, step: float, count: int, own_first: float, own_step: float, own_count: int
) -> NDArray[np.float32]:
    """Return which share of each voxel of one axis lies in each voxel of another, both in mm."""
    centre = first + step * np.arange(count)[:, None]
    own = own_first + own_step * np.arange(own_count)
    low = np.maximum(centre - step / 2, own - own_step / 2)
    high = np.minimum(centre + step / 2, own + own_step / 2)
    return (np.clip(high - low, 0, None) / step).astype(np.float32)


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


def _covered_mask(
    full: Grid, scanned: NDArray, affected: NDArray, count: int, min_coverage: float
) -> Grid:
    """Keep voxels that were scanned in most and affected in enough; each side for itself.

    Nothing is known of the tissue that hardly anyone has lesioned, and its mirror image does not
    help: cohorts of lesions are often one-sided.
    """
    least = max(LEAST_AFFECTED, min_coverage * count)
    mask = full.embed(((affected >= least) & (scanned >= LEAST_SCANNED)).astype(np.float32)) > 0
    if not mask.any():
        raise InputError(
            f'in no voxel {int(np.ceil(least))} of the {count} participants are affected '
            f'(at most {int(affected.max())})',
            fix='lower --min-coverage, give more participants, or check the maps',
        )
    return Grid(mask, full.affine)


def _mean(values: NDArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float('nan')


def _by(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))
