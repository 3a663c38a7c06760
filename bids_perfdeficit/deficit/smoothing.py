"""Gaussian smoothing of many maps at once, on the voxels of a mask. Must not know maps or scores.

As `scipy.ndimage.gaussian_filter` with zeros outside the mask, written as a matrix for each axis
and twice as fast.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from bids_perfdeficit.deficit.grid import Grid

#: Standard deviations at which the Gaussian ends.
_TRUNCATE = 3.0
#: Maps that are smoothed at once.
_BLOCK = 64


class Smoother:
    """Convolution of maps with a Gaussian, zero outside the mask.

    Parameters
    ----------
    grid : Grid
    width : float
        Standard deviation in mm.
    """

    def __init__(self, grid: Grid, width: float) -> None:
        self._shape = grid.mask.shape
        self._inside = torch.from_numpy(np.flatnonzero(grid.mask))
        self._axes = [
            torch.from_numpy(
                ndimage.gaussian_filter1d(np.eye(n), width / step, axis=0, truncate=_TRUNCATE)
            ).float()
            for n, step in zip(self._shape, grid.spacing, strict=True)
        ]
        #: Voxels that the Gaussian is as large as: over them a value of 1 is spread.
        self.volume = float(
            np.prod([max(1.0, np.sqrt(2 * np.pi) * width / s) for s in grid.spacing])
        )

    def __call__(self, maps: Tensor) -> Tensor:
        """Return (n, V) maps, smoothed."""
        across, along, up = self._axes
        flat = torch.zeros(len(maps), int(np.prod(self._shape)))
        flat[:, self._inside] = maps
        volumes = along @ (flat.reshape(-1, *self._shape) @ up.T)
        flat = (across @ volumes.reshape(len(maps), self._shape[0], -1)).reshape(flat.shape)
        return flat[:, self._inside]


def smooth_maps(maps: NDArray[np.float32], grid: Grid, width: float) -> NDArray[np.float32]:
    """Return (n, V) maps, smoothed by a Gaussian of `width` mm, block by block."""
    smooth = Smoother(grid, width)
    out = np.empty_like(maps)
    for start in range(0, len(maps), _BLOCK):
        rows = slice(start, start + _BLOCK)
        out[rows] = smooth(torch.from_numpy(np.ascontiguousarray(maps[rows]))).numpy()
    return out
