"""The eikonal equation: when does a front that starts at the sources arrive in each voxel?

One interface for both devices. CPU tensors go to ordered single-pass solvers (`_marching`, numba),
CUDA tensors to a block-wise iterative solver of the same discrete equations (`_blocks`, torch).
Must not know what the speed represents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def solve_eikonal(
    speed: Tensor,
    sources: Tensor,
    spacing: Sequence[float],
    *,
    mask: Tensor | None = None,
    metric: Tensor | None = None,
) -> Tensor:
    r"""Arrival `T` of a front: :math:`\nabla T^\top D\, \nabla T = 1 / F^2`, 0 at the sources.

    Without a metric (`D` the identity) the scheme is second-order upwind fast marching (Sethian,
    *SIAM Review* 1999). With one it is the semi-Lagrangian scheme on the 26 neighbours (Bornemann
    & Rasch, *Comput. Vis. Sci.* 2006): travel along `v` costs :math:`\sqrt{v^\top D^{-1} v} / F`.
    Both start from straight rays in a ball around the sources, because the corner that `T` has at
    a point source would else cost an order of accuracy everywhere.

    Parameters
    ----------
    speed : Tensor, shape (Z, Y, X)
        Speed `F` in mm per unit of arrival, positive and finite inside the mask.
    sources : Tensor
        Where the front starts: bool (Z, Y, X), or integer indices of shape (N, 3) in (z, y, x).
        Sources outside the mask are left out.
    spacing : sequence of float
        Voxel size in mm along (z, y, x).
    mask : Tensor, bool, shape (Z, Y, X), optional
        Where the front can run; everywhere by default.
    metric : Tensor, shape (6, Z, Y, X), optional
        Symmetric positive definite `D` in mm axes, ordered `zz, yy, xx, zy, zx, yx`.

    Returns
    -------
    Tensor, float32, shape (Z, Y, X)
        Arrival on the device of `speed`; `inf` outside the mask, and only there. A piece of the
        mask that has no source is reached across the gap, in which the speed is the lowest speed
        of the mask: late but ordered, and never infinite.

    Raises
    ------
    ValueError
        Shapes do not fit; a speed inside the mask is zero, negative or not finite; the metric is
        not positive definite; no source lies inside the mask.
    """
    if speed.ndim != 3 or min(speed.shape) == 0:
        raise ValueError(f'speed must be (Z, Y, X) and not empty, not {tuple(speed.shape)}')
    step = np.asarray(spacing, dtype=np.float64)
    if step.shape != (3,) or not (np.isfinite(step) & (step > 0)).all():
        raise ValueError(f'spacing must be three positive numbers in mm, not {spacing}')
    shape = tuple(speed.shape)
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=speed.device)
    if tuple(mask.shape) != shape:
        raise ValueError(f'mask is {tuple(mask.shape)} where speed is {shape}')
    mask = mask.to(device=speed.device, dtype=torch.bool)
    start = _source_mask(sources, shape, speed.device) & mask
    if not bool(start.any()):
        raise ValueError('no source lies inside the mask')
    inside = speed[mask]
    if not bool((torch.isfinite(inside) & (inside > 0)).all()):
        raise ValueError('speed must be positive and finite in every voxel of the mask')
    if metric is not None:
        if tuple(metric.shape) != (6, *shape):
            raise ValueError(f'metric must be {(6, *shape)}, not {tuple(metric.shape)}')
        if not _positive_definite(metric[:, mask]):
            raise ValueError('metric must be finite and positive definite inside the mask')

    box = bounding_box(mask)
    arrival = torch.full(shape, torch.inf, dtype=torch.float32, device=speed.device)
    crop = None if metric is None else metric[(slice(None), *box)].float()
    parts = (speed[box].float(), start[box], mask[box], crop)
    if speed.is_cuda:
        from bids_perfdeficit.perfusion._blocks import solve
    else:
        from bids_perfdeficit.perfusion._marching import solve
    arrival[box] = solve(*parts, step)
    return arrival


def _source_mask(sources: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    sources = torch.as_tensor(sources, device=device)
    if sources.dtype == torch.bool:
        if tuple(sources.shape) != shape:
            raise ValueError(f'sources are {tuple(sources.shape)} where speed is {shape}')
        return sources
    if sources.is_floating_point() or sources.ndim != 2 or sources.shape[1] != 3:
        raise ValueError('sources must be a bool mask or integer indices of shape (N, 3)')
    extent = torch.tensor(shape, device=device)
    if bool(((sources < 0) | (sources >= extent)).any()):
        raise ValueError(f'a source index lies outside the grid {shape}')
    out = torch.zeros(shape, dtype=torch.bool, device=device)
    out[tuple(sources.long().T)] = True
    return out


def _positive_definite(metric: Tensor) -> bool:
    """Sylvester's criterion on (6, N) tensors; NaN fails every comparison."""
    zz, yy, xx, zy, zx, yx = metric.double()
    minor = zz * yy - zy * zy
    det = xx * minor - zz * yx * yx - yy * zx * zx + 2 * zy * zx * yx
    finite = torch.isfinite(metric).all()
    return bool(((zz > 0) & (minor > 0) & (det > 0)).all() & finite)


def bounding_box(mask: Tensor) -> tuple[slice, slice, slice]:
    """Return the smallest box that holds a mask that is not empty."""
    spans = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hits = torch.nonzero(mask.any(dim=others[1]).any(dim=others[0]))
        spans.append(slice(int(hits.min()), int(hits.max()) + 1))
    return spans[0], spans[1], spans[2]
