"""Eikonal solver for massively parallel devices, in torch: a block-wise fast iterative method.

The grid is cut into blocks of 8 voxels a side. Active blocks are gathered with their halo and
relaxed together for some sweeps; those that changed wake the blocks that see the change (Jeong &
Whitaker, *SIAM J. Sci. Comput.* 2008). The equations are those of `_marching`: both end at the
same arrival. Runs on any device, on GPUs without a metric by `_kernels`; the CPU has better.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from bids_perfdeficit.perfusion import _marching

BLOCK = 8
HALO = 2
#: Sweeps over a gathered block before its neighbours hear of them: a front crosses it once.
SWEEPS = 8
#: A voxel has settled when a visit changes it by less than this share.
TOLERANCE = 1e-5
#: Blocks relaxed at once with a metric, whose 48 triangles ask for 48 times the memory.
METRIC_CHUNK = 256


def solve(
    speed: Tensor, sources: Tensor, mask: Tensor, metric: Tensor | None, step: np.ndarray
) -> Tensor:
    """Arrival in `mask`, `inf` elsewhere; the arguments are those of `solve_eikonal`, checked."""
    slow = torch.where(mask, 1.0 / speed, (1.0 / speed[mask]).max())
    if metric is not None:
        identity = torch.tensor([1.0, 1, 1, 0, 0, 0], device=speed.device)
        metric = torch.where(mask, metric, identity[:, None, None, None])
    start = _around_sources(speed, sources, mask, metric, step)
    arrival = _relax(start, slow, sources | ~mask, metric, step)
    reached = mask & torch.isfinite(arrival)
    if not torch.equal(reached, mask):
        # Pieces without a source: across the gaps, and without short cuts for the others.
        arrival = _relax(arrival, slow, reached, metric, step)
    return torch.where(mask, arrival, torch.full_like(arrival, torch.inf))


def _around_sources(
    speed: Tensor, sources: Tensor, mask: Tensor, metric: Tensor | None, step: np.ndarray
) -> Tensor:
    """Rays about the sources, walked on the CPU in the small box that holds them."""
    where = torch.nonzero(sources)
    reach = torch.from_numpy(_marching.ball(step)).to(where.device)
    low = (where.min(0).values - reach).clamp_min(0).tolist()
    high = (where.max(0).values + reach + 1).tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    crop = None if metric is None else metric[(slice(None), *box)].cpu()
    near = _marching.around_sources(
        speed[box].cpu(), sources[box].cpu(), mask[box].cpu(), crop, step
    )
    start = torch.full_like(speed, torch.inf)
    start[box] = near.to(speed.device)
    return start


def _relax(
    start: Tensor, slow: Tensor, locked: Tensor, metric: Tensor | None, step: np.ndarray
) -> Tensor:
    """Lower every voxel that is not `locked` to its arrival, never above its start."""
    device, shape = start.device, start.shape
    counts = [-(-n // BLOCK) for n in shape]
    border: list[int] = []
    for axis in (2, 1, 0):
        border += [HALO, HALO + counts[axis] * BLOCK - shape[axis]]
    bound = pad(start, border, value=torch.inf)
    wide = bound.shape
    strides = torch.tensor([wide[1] * wide[2], wide[2], 1], device=device)
    bound = bound.reshape(-1)
    time = bound.clone()
    slow = pad(slow, border, value=1.0).reshape(-1)
    locked = pad(locked, border, value=True).reshape(-1)
    if metric is not None:
        metric = pad(metric, border).reshape(6, -1)
        rule = _MetricRule(step, device)

    halo = (_lattice([BLOCK + 2 * HALO] * 3, device) * strides).sum(-1)
    core = halo[HALO:-HALO, HALO:-HALO, HALO:-HALO]
    corners = (_lattice(counts, device) * BLOCK * strides).sum(-1)
    # Block numbers in a ring of one: the ring's slots are never relaxed.
    ring = torch.nn.functional.pad(torch.ones(counts, device=device), (1,) * 6).bool()
    slots = torch.nonzero(ring.reshape(-1)).squeeze(1)
    ring_strides = torch.tensor([(counts[1] + 2) * (counts[2] + 2), counts[2] + 2, 1]).to(device)
    around = ((_lattice([3] * 3, device) - 1) * ring_strides).sum(-1)
    corner_of = torch.zeros(ring.numel(), dtype=torch.long, device=device)
    corner_of[slots] = corners.reshape(-1)

    # Blocks that hold a start wake themselves and all that see them.
    finite = torch.isfinite(time)
    work = torch.zeros_like(ring).reshape(-1)
    blocks = slots[finite[corners.reshape(-1, 1) + core.reshape(1, -1)].any(1)]
    work[(blocks[:, None] + around.reshape(1, -1)).reshape(-1)] = True
    active = torch.nonzero(work & ring.reshape(-1)).squeeze(1)
    kernels = _kernels(device) if metric is None else None
    if kernels is not None:
        after, flags = time.clone(), work.byte()
        first_of = corner_of + core[0, 0, 0]
        while active.numel():
            flags.zero_()
            kernels.relax(
                time, after, (bound, slow, locked), (first_of[active], active), flags,
                tuple(strides.tolist()), tuple(ring_strides.tolist()),
                tuple(1 / step**2), BLOCK, HALO, SWEEPS, TOLERANCE,
            )  # fmt: skip
            active = torch.nonzero(flags.bool() & ring.reshape(-1)).squeeze(1)
    while active.numel():
        work.zero_()
        for part in active.split(METRIC_CHUNK if metric is not None else active.numel()):
            base = corner_of[part][:, None, None, None]
            here = time[base + halo]
            at = base + core
            cap, held, cost = bound[at], locked[at], slow[at]
            before = here[:, HALO:-HALO, HALO:-HALO, HALO:-HALO].clone()
            gram = None if metric is None else rule.prepare(metric[:, at], slow[base + halo])
            value = before
            for _ in range(SWEEPS):
                if gram is None:
                    value = torch.minimum(_upwind(here, cost, step), cap)
                else:
                    value = torch.minimum(rule.update(here, gram), value)
                value = torch.where(held, before, value)
                here[:, HALO:-HALO, HALO:-HALO, HALO:-HALO] = value
            time[at] = value
            changed = ~((value - before).abs() <= TOLERANCE * value) & (value != before)
            seen = _seen_from(changed)
            reach = part[:, None, None, None] + around
            work[reach[seen]] = True
        active = torch.nonzero(work & ring.reshape(-1)).squeeze(1)
    inner = time.reshape(wide)[HALO:, HALO:, HALO:]
    return inner[: shape[0], : shape[1], : shape[2]].contiguous()


def _kernels(device: torch.device) -> ModuleType | None:
    """Return the compiled inner loop, where there is a compiler for the device."""
    if device.type != 'cuda' or importlib.util.find_spec('triton') is None:
        return None
    from bids_perfdeficit.perfusion import _kernels

    return _kernels if _kernels.compiles(device) else None


def _lattice(size: list[int], device: torch.device) -> Tensor:
    axes = [torch.arange(n, device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)


def _seen_from(changed: Tensor) -> Tensor:
    """Which of the 27 blocks around each (N, 8, 8, 8) one have a change within their halo."""
    for axis in (1, 2, 3):
        size = changed.shape[axis]
        changed = torch.stack(
            [
                changed.narrow(axis, 0, HALO).any(axis),
                changed.any(axis),
                changed.narrow(axis, size - HALO, HALO).any(axis),
            ],
            axis,
        )
    return changed


def _shift(here: Tensor, offset: tuple[int, int, int]) -> Tensor:
    """Return the view of a block with halo that is moved by `offset` voxels, at most the halo."""
    spans = [slice(HALO + k, HALO + k + BLOCK) for k in offset]
    return here[:, spans[0], spans[1], spans[2]]


def _upwind(here: Tensor, slow: Tensor, step: np.ndarray) -> Tensor:
    """Return the second-order upwind rule of `_marching._upwind`, for whole blocks."""
    values, weights = [], []
    for axis in range(3):
        one = [0, 0, 0]
        one[axis] = 1
        two = [2 * k for k in one]
        low, high = _shift(here, _negative(one)), _shift(here, _triple(one))
        first = low <= high
        near = torch.where(first, low, high)
        beyond = torch.where(first, _shift(here, _negative(two)), _shift(here, _triple(two)))
        second = beyond <= near
        extrapolated = (4 * near - beyond) / 3
        values.append(torch.where(second & torch.isfinite(near), extrapolated, near))
        weights.append(torch.where(second, 2.25, 1.0) / step[axis] ** 2)
    a, order = torch.stack(values).sort(dim=0)
    c = torch.stack(weights).float().gather(0, order)
    time = a[0] + slow / c[0].sqrt()
    total, mean, square = c[0], c[0] * a[0], c[0] * a[0] ** 2
    open_ = torch.ones_like(time, dtype=torch.bool)
    for k in (1, 2):
        # Differences to the first keep float32 exact enough for the discriminant.
        total = total + c[k]
        shift = torch.where(torch.isfinite(a[k]), a[k] - a[0], torch.zeros_like(a[0]))
        mean = c[k] * shift if k == 1 else mean + c[k] * shift
        square = c[k] * shift**2 if k == 1 else square + c[k] * shift**2
        root = mean**2 - total * (square - slow**2)
        open_ = open_ & (time > a[k]) & (root >= 0)
        time = torch.where(open_, a[0] + (mean + root.clamp_min(0).sqrt()) / total, time)
    return time


def _triple(offset: list[int]) -> tuple[int, int, int]:
    return offset[0], offset[1], offset[2]


def _negative(offset: list[int]) -> tuple[int, int, int]:
    return -offset[0], -offset[1], -offset[2]


class _MetricRule:
    """The semi-Lagrangian rule of `_marching._from_vertex`, over all simplices at once."""

    def __init__(self, step: np.ndarray, device: torch.device) -> None:
        neighbours, triangles, axes, signs = _marching.stencil()
        edges = {tuple(sorted(pair)) for t in triangles for pair in (t[:2], t[1:], t[::2])}
        pairs = np.array(sorted(edges))
        vectors = neighbours * step
        self.offsets = [_triple([int(k) for k in offset]) for offset in neighbours]
        self.first = torch.as_tensor(pairs[:, 0], device=device)
        self.second = torch.as_tensor(pairs[:, 1], device=device)
        self.triangles = torch.as_tensor(triangles, device=device)
        self.norms = self._coefficients(vectors, vectors, device)
        self.products = self._coefficients(vectors[pairs[:, 0]], vectors[pairs[:, 1]], device)
        # Components of D along a triangle's own axes: diagonal i, then 2 + i + j for a pair.
        self.diagonal = torch.as_tensor(axes, device=device)
        pairs_of = [(0, 1), (0, 2), (1, 2)]
        mixed = np.stack([2 + axes[:, i] + axes[:, j] for i, j in pairs_of], 1)
        flips = np.stack([signs[:, i] * signs[:, j] for i, j in pairs_of], 1)
        self.mixed = torch.as_tensor(mixed, device=device)
        self.flips = torch.as_tensor(flips, device=device, dtype=torch.float32)[..., None]
        self.step = torch.as_tensor(step[axes], device=device, dtype=torch.float32)[..., None]

    @staticmethod
    def _coefficients(v: np.ndarray, w: np.ndarray, device: torch.device) -> Tensor:
        pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
        rows = [
            v[:, i] * w[:, j] if i == j else v[:, i] * w[:, j] + v[:, j] * w[:, i]
            for i, j in pairs
        ]
        return torch.as_tensor(np.stack(rows, 1), device=device, dtype=torch.float32)

    def prepare(self, metric: Tensor, slow: Tensor) -> tuple[Tensor, ...]:
        """Return what sweeps share: `D`, the stencil's Gram entries, slowness of paths."""
        form = metric.reshape(6, -1)
        identity = form.new_tensor([1.0, 1, 1, 0, 0, 0])[:, None]
        form = torch.where(form[:1] > 0, form, identity)
        zz, yy, xx, zy, zx, yx = form
        cofactors = torch.stack(
            [
                yy * xx - yx * yx,
                zz * xx - zx * zx,
                zz * yy - zy * zy,
                zx * yx - zy * xx,
                zy * yx - yy * zx,
                zy * zx - zz * yx,
            ]
        )
        inverse = cofactors / (zz * cofactors[0] + zy * cofactors[3] + zx * cofactors[4])
        own = _shift(slow, (0, 0, 0)).reshape(1, -1) / 2
        far = torch.stack([_shift(slow, offset).reshape(-1) for offset in self.offsets]) / 2
        segments = own + (far[self.first] + far[self.second]) / 2
        areas = own + sum(far[self.triangles[:, k]] for k in range(3)) / 3
        return form, self.norms @ inverse, self.products @ inverse, own + far, segments, areas

    def update(self, here: Tensor, gram: tuple[Tensor, ...]) -> Tensor:
        """Earliest arrival through any simplex of the blocks' voxels."""
        form, norms, products, vertices, segments, areas = gram
        times = torch.stack([_shift(here, offset).reshape(-1) for offset in self.offsets])
        best = (times + vertices * norms.sqrt()).amin(0)

        t1, t2 = times[self.first], times[self.second]
        g11, g22, g12 = norms[self.first], norms[self.second], products
        gap = t2 - t1
        a = g11 + g22 - 2 * g12
        b = gap * (g11 - g12)
        s = segments
        root = b * b - a * (g11 * gap * gap - s * s * (g11 * g22 - g12 * g12))
        d1 = (b + root.sqrt()) / a
        d2 = d1 - gap
        fits = (g22 * d1 >= g12 * d2) & (g11 * d2 >= g12 * d1)
        best = torch.minimum(best, torch.where(fits, t1 + d1, torch.inf).amin(0))

        face, edge, corner = (times[self.triangles[:, k]] for k in range(3))
        dii, djj, dmm = (form[self.diagonal[:, k]] for k in range(3))
        dij, dim, djm = (form[self.mixed[:, k]] * self.flips[:, k] for k in range(3))
        hi, hj, hm = (self.step[:, k] for k in range(3))
        uj = (face - edge) / hj
        um = (edge - corner) / hm
        b = dij * uj + dim * um
        s = areas
        root = b * b - dii * (djj * uj * uj + 2 * djm * uj * um + dmm * um * um - s * s)
        ui = (root.sqrt() - b) / dii
        wi = (dii * ui + b) / hi
        wj = (dij * ui + djj * uj + djm * um) / hj
        wm = (dim * ui + djm * uj + dmm * um) / hm
        fits = (wi >= wj) & (wj >= wm) & (wm >= 0)
        best = torch.minimum(best, torch.where(fits, face + hi * ui, torch.inf).amin(0))
        return best.reshape(-1, BLOCK, BLOCK, BLOCK)
