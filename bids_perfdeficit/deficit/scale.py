"""One scale for all maps: what each has beyond the pattern that healthy brains share.

The participant level stretches each map to its own range, so that a patient without an occlusion
has the full range too, made of noise and of the order in which healthy tissue fills. That order is
the same in everyone, and seen wherever one hemisphere is well: the pattern's contrast in a map
shows by how much the map was stretched. Must not know scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bids_perfdeficit.deficit.grid import Grid

#: Prior of a map's stretch about 1, as the contrast (standard deviation over voxels) that a
#: healthy pattern must have to count as much as the prior. Without it maps that share no pattern
#: are stretched by chance: on made cohorts Dice fell from .35 to .19 (benchmarks/RESULTS.md).
_CONTRAST = 0.12
#: A map is stretched by no less: what turned out smaller would be noise blown up.
_LEAST_STRETCH = 0.1
#: Width of the bend below which a map counts as healthy, in units of the map.
_BEND = 0.05


def healthy_pattern(maps: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Return the cohort's mean map of the better hemisphere in each voxel.

    Parameters
    ----------
    maps : (N, V) array
        Higher is worse.
    grid : Grid
        Symmetric about the midline.

    Returns
    -------
    (V,) array
    """
    return _better_side(maps, grid).mean(0)


def lower_side(mean: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Return the lower value of each voxel of a cohort's mean map and of its mirror image.

    A healthy pattern where the maps themselves are not at hand; where many participants have a
    deficit on either side it is a little later than `healthy_pattern`.

    Parameters
    ----------
    mean : (V,) array
    grid : Grid
        Symmetric about the midline.
    """
    return _better_side(mean[None], grid)[0]


def excess(
    maps: NDArray[np.float32], healthy: NDArray[np.float32], grid: Grid
) -> NDArray[np.float32]:
    """Return how much worse maps are than healthy tissue, on one scale for all.

    The better hemisphere of each map is ``offset + stretch * healthy`` by least squares, with a
    normal prior of the stretch about 1; the excess is ``(map - offset) / stretch - healthy``,
    bent to 0 smoothly (softplus) where it is negative.

    Parameters
    ----------
    maps : (N, V) array
        Higher is worse.
    healthy : (V,) array
        From `healthy_pattern` of the cohort that a model was fitted on.
    grid : Grid

    Returns
    -------
    (N, V) array, above 0
    """
    better = _better_side(maps, grid)
    mean = better.mean(1)
    pattern = healthy - healthy.mean()
    covariance = (better - mean[:, None]) @ pattern / len(pattern)
    stretch = (covariance + _CONTRAST**2) / (pattern.var() + _CONTRAST**2)
    offset = mean - stretch * healthy.mean()
    stretch = np.maximum(stretch, _LEAST_STRETCH)
    beyond = (maps - offset[:, None]) / stretch[:, None] - healthy
    return (_BEND * np.logaddexp(0, beyond / _BEND)).astype(np.float32)


def _better_side(maps: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Return the lower value of each voxel and its mirror image, where there is one."""
    mirror = np.where(grid.mirror >= 0, grid.mirror, np.arange(grid.n_voxels))
    return np.minimum(maps, maps[:, mirror])
