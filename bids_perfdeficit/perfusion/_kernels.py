"""The inner loop of `_blocks` without a metric, as one Triton kernel: for CUDA devices.

In torch each sweep is some sixty launches that pass over memory; here a block stays in registers
for all of its sweeps. Triton comes with the CUDA builds of torch on Linux; where it is missing
`_blocks` computes the same in torch. Must not know which blocks are active, or why.
"""

from __future__ import annotations

import functools
import logging

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG = logging.getLogger('bids_perfdeficit.perfusion')


@functools.cache
def compiles(device: torch.device) -> bool:
    """Whether kernels can be compiled here, which takes a C compiler and Python's headers."""
    two = torch.arange(2.0, device=device)
    corner = torch.zeros(1, dtype=torch.long, device=device)
    try:
        _copy[(1,)](two, two, corner, 0, 0, 0, BLOCK=2, num_warps=1)
    except Exception as error:  # of any kind: Triton's, the compiler's, the loader's
        _LOG.warning(
            'the faster code for GPUs could not be compiled (%s): the same is computed, several '
            'times slower; install a C compiler and the headers of Python',
            str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        )
        return False
    return True


def relax(
    before: Tensor,
    after: Tensor,
    fields: tuple[Tensor, Tensor, Tensor],
    blocks: tuple[Tensor, Tensor],
    work: Tensor,
    strides: tuple[int, int, int],
    around: tuple[int, int, int],
    inverse_square: tuple[float, float, float],
    block: int,
    halo: int,
    sweeps: int,
    tolerance: float,
) -> None:
    """Relax some blocks, each from the same past of its neighbours.

    Parameters
    ----------
    before, after : Tensor, float32, flat
        Arrival before this round, which is read, and where that of the blocks' own voxels is
        written.
    fields : tuple of Tensor
        Highest arrival allowed (float32), slowness (float32), and where nothing changes (bool).
    blocks : tuple of Tensor, int64, shape (M,)
        Flat index of each block's first voxel, and of its slot in `work`.
    work : Tensor, uint8
        Set to 1 for each block that sees a change.
    strides, around : tuple of int
        Steps between neighbours in the fields, and in `work`, along (z, y, x).
    inverse_square : tuple of float
        Of the spacing, in 1 / mm².
    block, halo, sweeps, tolerance
        The constants of `_blocks`.
    """
    _relax[(len(blocks[0]),)](
        before, after, *fields, *blocks, work, *strides, *around, *inverse_square, tolerance,
        BLOCK=block, HALO=halo, SWEEPS=sweeps, num_warps=4,
    )  # fmt: skip
    # Neighbours must not have seen the new arrival before all blocks had ended.
    _copy[(len(blocks[0]),)](after, before, blocks[0], *strides, BLOCK=block, num_warps=4)


@triton.jit
def _at(values, outer, lane, k, distance, stride, pointer, index, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Arrival `distance` voxels along an axis, of which `lane` steps are one voxel."""
    inside = (k + distance >= 0) & (k + distance < BLOCK)
    own = tl.gather(values, tl.where(inside, outer + distance * lane, outer), 0)
    halo = tl.load(pointer + index + distance * stride, mask=~inside, other=0.0)
    return tl.where(inside, own, halo)


@triton.jit
def _along(values, outer, lane, k, stride, weight, pointer, index, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Second-order upwind term of an axis: the arrival to start from, and its weight."""
    low = _at(values, outer, lane, k, -1, stride, pointer, index, BLOCK)
    high = _at(values, outer, lane, k, 1, stride, pointer, index, BLOCK)
    low_two = _at(values, outer, lane, k, -2, stride, pointer, index, BLOCK)
    high_two = _at(values, outer, lane, k, 2, stride, pointer, index, BLOCK)
    first = low <= high
    near = tl.where(first, low, high)
    beyond = tl.where(first, low_two, high_two)
    second = beyond <= near
    start = tl.where(second & (near < float('inf')), (4 * near - beyond) / 3, near)
    return start, tl.where(second, 2.25 * weight, weight)


@triton.jit
def _swap(a, b, c, d):  # type: ignore[no-untyped-def]
    """Order two terms by arrival."""
    right = a <= c
    return (
        tl.where(right, a, c), tl.where(right, b, d),
        tl.where(right, c, a), tl.where(right, d, b),
    )  # fmt: skip


@triton.jit
def _relax(  # type: ignore[no-untyped-def]
    before, after, cap_at, slow_at, held_at, corners, slots, work, sz, sy, sx, rz, ry, rx,
    wz, wy, wx, tolerance, BLOCK: tl.constexpr, HALO: tl.constexpr, SWEEPS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    corner = tl.load(corners + program)
    slot = tl.load(slots + program)
    own = tl.arange(0, BLOCK * BLOCK * BLOCK)
    z, y, x = own // (BLOCK * BLOCK), own // BLOCK % BLOCK, own % BLOCK
    index = corner + z * sz + y * sy + x * sx
    start = tl.load(before + index)
    cap = tl.load(cap_at + index)
    slow = tl.load(slow_at + index)
    held = tl.load(held_at + index) != 0
    value = start
    for _ in range(SWEEPS):
        a, p = _along(value, own, BLOCK * BLOCK, z, sz, wz, before, index, BLOCK)
        b, q = _along(value, own, BLOCK, y, sy, wy, before, index, BLOCK)
        c, r = _along(value, own, 1, x, sx, wx, before, index, BLOCK)
        a, p, b, q = _swap(a, p, b, q)
        b, q, c, r = _swap(b, q, c, r)
        a, p, b, q = _swap(a, p, b, q)
        time = a + slow / tl.sqrt(p)
        # Differences to the first keep float32 exact enough for the discriminant.
        shift = tl.where(b < float('inf'), b - a, 0.0)
        total = p + q
        mean = q * shift
        square = q * shift * shift
        root = mean * mean - total * (square - slow * slow)
        more = (time > b) & (root >= 0)
        time = tl.where(more, a + (mean + tl.sqrt(tl.maximum(root, 0.0))) / total, time)
        shift = tl.where(c < float('inf'), c - a, 0.0)
        total = total + r
        mean = mean + r * shift
        square = square + r * shift * shift
        root = mean * mean - total * (square - slow * slow)
        more = more & (time > c) & (root >= 0)
        time = tl.where(more, a + (mean + tl.sqrt(tl.maximum(root, 0.0))) / total, time)
        value = tl.where(held, start, tl.minimum(time, cap))
    tl.store(after + index, value)
    changed = (value != start) & ~(tl.abs(value - start) <= tolerance * value)
    for dz in tl.static_range(-1, 2):
        for dy in tl.static_range(-1, 2):
            for dx in tl.static_range(-1, 2):
                seen = _seen(z, dz, BLOCK, HALO) & _seen(y, dy, BLOCK, HALO)
                seen = seen & _seen(x, dx, BLOCK, HALO) & changed
                there = slot + dz * rz + dy * ry + dx * rx
                tl.store(work + there + own * 0, tl.full(own.shape, 1, tl.uint8), mask=seen)


@triton.jit
def _seen(k, side: tl.constexpr, BLOCK: tl.constexpr, HALO: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which voxels the block on that side has in its halo."""
    if side < 0:
        return k < HALO
    if side > 0:
        return k >= BLOCK - HALO
    return k >= 0


@triton.jit
def _copy(source, target, corners, sz, sy, sx, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    own = tl.arange(0, BLOCK * BLOCK * BLOCK)
    z, y, x = own // (BLOCK * BLOCK), own // BLOCK % BLOCK, own % BLOCK
    index = tl.load(corners + tl.program_id(0)) + z * sz + y * sy + x * sx
    tl.store(target + index, tl.load(source + index))
