"""A CT scanner: grids, partial volume, point spread, noise, streaks and cupping.

Takes attenuation in the template space, a way to it and tubes in scanner mm; gives HU as a scanner
writes them. Knows nothing of strokes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_perfdeficit.phantom.anatomy import Head
from bids_perfdeficit.phantom.render import Tubes, draw_tubes, slab_points

Floats = NDArray[np.floating]
#: Slices rendered at a time, to bound the memory.
_SLAB = 24


@dataclass(frozen=True)
class Grid:
    """A scan's voxels: `affine` to scanner mm, and `shape`."""

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Distances between voxel centres along the axes, mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))


def make_grid(corners: Floats, spacing: float, thickness: float, *, tilt: float = 0.0) -> Grid:
    """Return a grid of slices that holds the points `corners`, (N, 3) mm.

    A gantry tilt, degrees, shears the slices along y; the affine says so.
    """
    shear = np.tan(np.deg2rad(tilt))
    low, high = corners.min(0), corners.max(0)
    affine = np.diag([spacing, spacing, thickness, 1.0])
    affine[1, 2] = shear * thickness
    room = abs(shear) * (high[2] - low[2])
    low[1] -= room if shear > 0 else 0
    high[1] += room if shear < 0 else 0
    affine[:3, 3] = low
    n = np.ceil((high - low) / [spacing, spacing, thickness]).astype(int) + 1
    return Grid(affine, (int(n[0]), int(n[1]), int(n[2])))


def finer(grid: Grid, most: float = 1.25) -> tuple[Grid, int]:
    """Return the grid with each slice cut into thin ones, and how many there are to a slice."""
    factor = int(np.ceil(grid.spacing[2] / most))
    affine = grid.affine.copy()
    affine[:3, 2] /= factor
    affine[:3, 3] -= affine[:3, 2] * (factor - 1) / 2
    return Grid(affine, (grid.shape[0], grid.shape[1], grid.shape[2] * factor)), factor


def sample(
    grid: Grid,
    to_template: Callable[[Floats], Floats],
    head: Head,
    maps: list[NDArray[np.float32]],
    outside: list[float],
    *,
    order: int = 1,
) -> list[NDArray[np.float32]]:
    """Template-space maps on a scan's grid; `outside` is the value beyond the head's grid."""
    out = [np.empty(grid.shape, m.dtype) for m in maps]
    for first in range(0, grid.shape[2], _SLAB):
        last = min(first + _SLAB, grid.shape[2])
        index = head.index(to_template(slab_points(grid.shape, grid.affine, first, last)))
        for result, data, fill in zip(out, maps, outside, strict=True):
            result[:, :, first:last] = ndimage.map_coordinates(
                data, index, order=order, mode='constant', cval=fill, output=data.dtype
            )
    return out


def expose(
    grid: Grid,
    to_template: Callable[[Floats], Floats],
    head: Head,
    tissue: NDArray[np.float32],
    tubes: Tubes,
    *,
    noise: float,
    psf: float,
    rng: np.random.Generator,
) -> NDArray[np.int16]:
    """One scan in HU, (X, Y, Z).

    Parameters
    ----------
    grid : Grid
    to_template : callable
        Scanner mm to template mm.
    head : Head
        Names the grid of `tissue`.
    tissue : float32 array
        HU without the vessels, on the head's grid.
    tubes : Tubes
        Vessels in scanner mm with their HU.
    noise : float
        Standard deviation in a voxel of 1 mm at the centre of the brain, HU.
    psf : float
        In-plane full width at half maximum, mm.
    """
    thin, factor = finer(grid)
    image = sample(thin, to_template, head, [tissue], [-1000.0])[0]
    share, value = draw_tubes(thin.shape, thin.affine, tubes)
    image += share * (value - image)
    del share, value
    if factor > 1:
        image = image.reshape(*grid.shape, factor).mean(3)
    in_plane = float(grid.spacing[0])
    sigma = psf / 2.355 / in_plane
    if sigma > 0.15:
        image = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    image += _beam_hardening(image, grid)
    image += _noise(image, grid, noise, rng)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _beam_hardening(image: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Brighter brain next to the skull, and the dark bar between the petrous bones."""
    coarse = ndimage.gaussian_filter(np.clip(image, 200, 1500) - 200, 4.0 / grid.spacing)
    cupping = 0.015 * coarse
    # Rays that cross much bone from side to side are hardened most.
    dense = np.clip(image - 900, 0, 900)
    path = ndimage.gaussian_filter(dense.sum(0) * grid.spacing[0] / 1000, (1.5, 1.0))
    middle = np.arange(image.shape[0]) - image.shape[0] / 2
    between = np.exp(-((middle * grid.spacing[0] / 28) ** 2))
    bar = -0.35 * np.clip(path - 16, 0, 30)
    tissue = (image > -20) & (image < 200)
    effect = cupping + between[:, None, None] * bar[None]
    return np.where(tissue, effect, 0).astype(np.float32)


def _noise(
    image: NDArray[np.float32], grid: Grid, sd: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Quantum noise with a soft kernel's grain, and horizontal streaks through dense bone."""
    in_plane, thickness = float(grid.spacing[0]), float(grid.spacing[2])
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    width = 0.55 / in_plane
    if width > 0.2:
        grain = ndimage.gaussian_filter(grain, (width, width, 0))
    grain *= sd / (grain[::3, ::3, ::3].std() * np.sqrt(thickness * max(in_plane, 1.0)))
    head = image > -300
    across = head.mean(0) * image.shape[0] * in_plane / 150
    grain *= np.sqrt(np.clip(across, 0.25, 1.6)).astype(np.float32)[None]
    dense = np.clip(image - 700, 0, 1200).sum(0) * in_plane / 1000
    streak = rng.standard_normal(image.shape[1:], dtype=np.float32)
    streak = ndimage.gaussian_filter(streak, (0.7, 0.4)) * 0.22 * np.clip(dense - 12, 0, 60)
    wave = 0.6 + 0.4 * np.cos(np.linspace(0, 9, image.shape[0], dtype=np.float32))
    return np.asarray(grain + wave[:, None, None] * streak[None] * head, np.float32)
