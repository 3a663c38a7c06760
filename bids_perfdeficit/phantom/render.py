"""Voxels from millimetres: anti-aliased tubes, and sampling of the head on any scan's grid.

Knows nothing of anatomy, flow or contrast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Tubes:
    """Straight tubes. `start`, `end`: (S, 3) mm; `radius`: (S,) mm; `value`: (S,) HU inside."""

    start: Floats
    end: Floats
    radius: Floats
    value: Floats


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile, and cache where a cache can be written."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # a read-only install and home
        return numba.njit(function)


@_jit
def _draw(share, value, affine, inverse, start, end, radius, hu, soft):  # type: ignore[no-untyped-def]
    shape = share.shape
    for s in range(len(radius)):
        # Thin tubes are drawn wider and fainter, so that they keep their cross-section.
        wide = max(radius[s], 0.6 * soft)
        faint = (radius[s] / wide) ** 2
        reach = wide + 0.5 * soft
        low = np.empty(3, np.int64)
        high = np.empty(3, np.int64)
        for a in range(3):
            p = q = inverse[a, 3]
            slack = 0.0
            for b in range(3):
                p += inverse[a, b] * start[s, b]
                q += inverse[a, b] * end[s, b]
                slack += inverse[a, b] ** 2
            slack = reach * np.sqrt(slack)
            low[a] = max(0, int(np.ceil(min(p, q) - slack)))
            high[a] = min(shape[a] - 1, int(np.floor(max(p, q) + slack)))
        dx, dy, dz = end[s, 0] - start[s, 0], end[s, 1] - start[s, 1], end[s, 2] - start[s, 2]
        square = dx * dx + dy * dy + dz * dz + 1e-12
        for i in range(low[0], high[0] + 1):
            for j in range(low[1], high[1] + 1):
                for k in range(low[2], high[2] + 1):
                    x = affine[0, 0] * i + affine[0, 1] * j + affine[0, 2] * k + affine[0, 3]
                    y = affine[1, 0] * i + affine[1, 1] * j + affine[1, 2] * k + affine[1, 3]
                    z = affine[2, 0] * i + affine[2, 1] * j + affine[2, 2] * k + affine[2, 3]
                    x, y, z = x - start[s, 0], y - start[s, 1], z - start[s, 2]
                    t = min(1.0, max(0.0, (x * dx + y * dy + z * dz) / square))
                    x, y, z = x - t * dx, y - t * dy, z - t * dz
                    gap = np.sqrt(x * x + y * y + z * z)
                    cover = min(1.0, max(0.0, 0.5 + (wide - gap) / soft)) * faint
                    if cover > share[i, j, k]:
                        share[i, j, k] = cover
                        value[i, j, k] = hu[s]


def draw_tubes(
    shape: tuple[int, ...], affine: Floats, tubes: Tubes
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each voxel that lies in a tube, and the HU of that tube, both (X, Y, Z).

    Where tubes overlap the one that covers more of the voxel counts.
    """
    share, value = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    steps = np.sort(np.linalg.norm(affine[:3, :3], axis=0))
    _draw(
        share, value, np.asarray(affine, float), np.linalg.inv(affine),
        np.asarray(tubes.start, float), np.asarray(tubes.end, float),
        np.asarray(tubes.radius, float), np.asarray(tubes.value, float), float(steps[1]),
    )  # fmt: skip
    return share, value


def slab_points(
    shape: tuple[int, ...], affine: Floats, first: int, last: int
) -> NDArray[np.float32]:
    """Millimetres, (X, Y, last - first, 3), of the voxels of some slices."""
    i, j, k = (np.arange(n, dtype=np.float32) for n in (shape[0], shape[1], last - first))
    k = k + np.float32(first)
    a = np.asarray(affine, np.float32)
    out = np.empty((shape[0], shape[1], last - first, 3), np.float32)
    for axis in range(3):
        out[..., axis] = (
            a[axis, 0] * i[:, None, None]
            + a[axis, 1] * j[None, :, None]
            + a[axis, 2] * k[None, None, :]
            + a[axis, 3]
        )
    return out
