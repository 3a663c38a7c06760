"""Eikonal solvers for the CPU, compiled by numba: voxels are settled in the order of arrival.

`solve` takes checked and cropped tensors from `eikonal.solve_eikonal`. Flat indices on a grid with
a border of two voxels, so that no stencil needs a bounds check.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

OUTSIDE, FAR, TRIAL, SETTLED = 0, 1, 2, 3
#: Radius of the ball around a source in which arrival comes from straight rays, in voxels along
#: the coarsest axis; it leaves 0.4 % of mean error at 1 mm. On an axis that is much finer it ends
#: at so many voxels, because its cost grows with their product.
BALL, BALL_LIMIT = 5, 12
#: Rays end where the slowness has changed by this factor: beyond it they no longer are straight.
RAY_CONTRAST = 2.0
#: A settled voxel is opened again when a later path is earlier by more than this share.
REOPEN = 1e-5


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile, and cache beside the package or in the user's cache where one can be written."""
    try:
        return numba.njit(cache=True, error_model='numpy', nogil=True)(function)
    except RuntimeError:  # no place to cache: a read-only install and home
        return numba.njit(error_model='numpy', nogil=True)(function)


@_jit
def _push(keys, items, place, size, item, key):  # type: ignore[no-untyped-def]
    """Insert `item`, or move it up if it is there with a higher key. Returns the new size."""
    pos = place[item]
    if pos < 0:
        pos = size
        size += 1
    while pos > 0:
        parent = (pos - 1) >> 1
        if keys[parent] <= key:
            break
        keys[pos] = keys[parent]
        items[pos] = items[parent]
        place[items[pos]] = pos
        pos = parent
    keys[pos] = key
    items[pos] = item
    place[item] = pos
    return size


@_jit
def _pop(keys, items, place, size):  # type: ignore[no-untyped-def]
    """Take the first item off the heap. Returns it; the caller's size is one less."""
    top = items[0]
    place[top] = -1
    size -= 1
    if size == 0:
        return top
    key = keys[size]
    item = items[size]
    pos = 0
    while True:
        child = 2 * pos + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[pos] = keys[child]
        items[pos] = items[child]
        place[items[pos]] = pos
        pos = child
    keys[pos] = key
    items[pos] = item
    place[item] = pos
    return top


@_jit
def _rays(time, state, slow, inverse, sources, strides, step, radius):  # type: ignore[no-untyped-def]
    """Arrival along straight rays in a ball around each source; `inverse` (N, 6) or (0, 6)."""
    sz, sy = strides[0], strides[1]
    metric = inverse.shape[0] > 0
    furthest = BALL * max(step[0], step[1], step[2])
    for source in sources:
        for dz in range(-radius[0], radius[0] + 1):
            for dy in range(-radius[1], radius[1] + 1):
                for dx in range(-radius[2], radius[2] + 1):
                    lz, ly, lx = dz * step[0], dy * step[1], dx * step[2]
                    length = math.sqrt(lz * lz + ly * ly + lx * lx)
                    if length == 0.0 or length > furthest:
                        continue
                    target = source + dz * sz + dy * sy + dx
                    # The border is two voxels wide, so walk outwards and stop at its first voxel.
                    samples = 2 * max(abs(dz), abs(dy), abs(dx))
                    cost = 0.0
                    free = True
                    for k in range(samples + 1):
                        share = k / samples
                        at = (
                            source
                            + math.floor(dz * share + 0.5) * sz
                            + math.floor(dy * share + 0.5) * sy
                            + math.floor(dx * share + 0.5)
                        )
                        if state[at] == OUTSIDE:
                            free = False
                            break
                        ratio = slow[at] / slow[source]
                        if ratio > RAY_CONTRAST or ratio * RAY_CONTRAST < 1.0:
                            free = False
                            break
                        if metric:
                            length = math.sqrt(
                                inverse[at, 0] * lz * lz
                                + inverse[at, 1] * ly * ly
                                + inverse[at, 2] * lx * lx
                                + 2.0
                                * (
                                    inverse[at, 3] * lz * ly
                                    + inverse[at, 4] * lz * lx
                                    + inverse[at, 5] * ly * lx
                                )
                            )
                        weight = 0.5 if k == 0 or k == samples else 1.0
                        cost += weight * slow[at] * length
                    if free:
                        cost /= samples
                        if cost < time[target]:
                            time[target] = cost


@_jit
def _upwind(time, state, slow, strides, weight, at):  # type: ignore[no-untyped-def]
    """Second-order upwind arrival at one voxel from its settled neighbours.

    Along each axis `c (t - a)^2` represents the squared one-sided derivative: `a` and `c` come
    from two neighbours where both are settled in order, else from one.
    """
    a0 = a1 = a2 = np.inf
    c0 = c1 = c2 = 0.0
    for axis in range(3):
        stride = strides[axis]
        near = np.inf
        side = 0
        if state[at - stride] == SETTLED:
            near = time[at - stride]
            side = -stride
        if state[at + stride] == SETTLED and time[at + stride] < near:
            near = time[at + stride]
            side = stride
        if side == 0:
            continue
        c = weight[axis]
        value = near
        beyond = at + 2 * side
        if state[beyond] == SETTLED and time[beyond] <= near:
            value = (4.0 * near - time[beyond]) / 3.0
            c *= 2.25
        # Keep the three in the order of `value`, so that the latest is left out first.
        if value < a0:
            a2, c2 = a1, c1
            a1, c1 = a0, c0
            a0, c0 = value, c
        elif value < a1:
            a2, c2 = a1, c1
            a1, c1 = value, c
        else:
            a2, c2 = value, c
    s = slow[at]
    t = a0 + s / math.sqrt(c0)
    if t > a1:
        a = c0 + c1
        b = c0 * a0 + c1 * a1
        d = b * b - a * (c0 * a0 * a0 + c1 * a1 * a1 - s * s)
        if d >= 0.0:
            t = (b + math.sqrt(d)) / a
            if t > a2:
                a += c2
                b += c2 * a2
                d = b * b - a * (c0 * a0 * a0 + c1 * a1 * a1 + c2 * a2 * a2 - s * s)
                if d >= 0.0:
                    t = (b + math.sqrt(d)) / a
    return t


@_jit
def _march(time, state, slow, strides, weight, mask, keys, items, place):  # type: ignore[no-untyped-def]
    """Fast marching from the trial voxels until all of the mask is settled or none is left."""
    size = 0
    wanted = 0
    for at in range(time.size):
        if mask[at] and state[at] != SETTLED:
            wanted += 1
        if state[at] == TRIAL:
            size = _push(keys, items, place, size, at, time[at])
    while size > 0 and wanted > 0:
        at = _pop(keys, items, place, size)
        size -= 1
        state[at] = SETTLED
        if mask[at]:
            wanted -= 1
        for axis in range(3):
            for side in range(2):
                other = at + (strides[axis] if side else -strides[axis])
                if state[other] == FAR or state[other] == TRIAL:
                    t = np.float32(_upwind(time, state, slow, strides, weight, other))
                    t = max(t, time[at])
                    if t < time[other]:
                        time[other] = t
                        state[other] = TRIAL
                        size = _push(keys, items, place, size, other, t)


@_jit
def _reseed(time, state, slow, strides, weight):  # type: ignore[no-untyped-def]
    """Make trial voxels of the unsettled neighbours of all that is settled."""
    for at in range(time.size):
        if state[at] == FAR:
            for axis in range(3):
                if state[at - strides[axis]] == SETTLED or state[at + strides[axis]] == SETTLED:
                    time[at] = _upwind(time, state, slow, strides, weight, at)
                    state[at] = TRIAL
                    break


def stencil() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the 26 neighbours and the 48 triangles that they make of a cube's surface.

    A triangle joins the neighbour along a signed axis (a face of the cube), one that moves along a
    second axis too (an edge) and one that moves along all three (a corner).

    Returns
    -------
    neighbours : ndarray, (26, 3)
        Offsets in voxels.
    triangles : ndarray, (48, 3)
        Neighbours' numbers: face, edge, corner.
    axes, signs : ndarray, (48, 3)
        In which order and direction each triangle takes the axes.
    """
    cube = [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    neighbours = [offset for offset in cube if any(offset)]
    triangles, axes, signs = [], [], []
    for order in itertools.permutations(range(3)):
        for sign in itertools.product((-1, 1), repeat=3):
            at = [0, 0, 0]
            corners = []
            for axis, direction in zip(order, sign, strict=True):
                at[axis] = direction
                corners.append(neighbours.index((at[0], at[1], at[2])))
            triangles.append(corners)
            axes.append(order)
            signs.append(sign)
    return np.array(neighbours), np.array(triangles), np.array(axes), np.array(signs)


def _incidence(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each neighbour, the triangles and the third vertices of the segments it belongs to."""
    members = np.full((26, 8), -1)
    partners = np.full((26, 8), -1)
    for vertex in range(26):
        touching = np.nonzero((triangles == vertex).any(axis=1))[0]
        others = sorted(set(triangles[touching].ravel()) - {vertex})
        members[vertex, : touching.size] = touching
        partners[vertex, : len(others)] = others
    return members, partners


@_jit
def _quadratic_form(form, at, v, w):  # type: ignore[no-untyped-def]
    """`v' form[at] w` of a symmetric form in the order zz, yy, xx, zy, zx, yx."""
    return (
        form[at, 0] * v[0] * w[0]
        + form[at, 1] * v[1] * w[1]
        + form[at, 2] * v[2] * w[2]
        + form[at, 3] * (v[0] * w[1] + v[1] * w[0])
        + form[at, 4] * (v[0] * w[2] + v[2] * w[0])
        + form[at, 5] * (v[1] * w[2] + v[2] * w[1])
    )


@_jit
def _from_vertex(  # type: ignore[no-untyped-def]
    time,
    state,
    slow,
    metric,
    inverse,
    offsets,
    vectors,
    members,
    partners,
    triangles,
    axes,
    signs,
    step,
    at,
    vertex,
):
    """Earliest arrival at `at` by a straight path that ends in a simplex at neighbour `vertex`."""
    # The slowness of a path is the mean of its two ends, the far one being the simplex's mean:
    # that of `at` alone is late by half a voxel wherever speed changes.
    own = slow[at]
    v = vectors[vertex]
    t1 = time[at + offsets[vertex]]
    s1 = slow[at + offsets[vertex]]
    g11 = _quadratic_form(inverse, at, v, v)
    best = t1 + (own + s1) / 2.0 * math.sqrt(g11)
    for k in range(8):
        partner = partners[vertex, k]
        if partner < 0:
            break
        if state[at + offsets[partner]] != SETTLED:
            continue
        # Foot on the segment: (t - t1, t - t2) G^-1 (t - t1, t - t2)' = s^2 (Bornemann & Rasch).
        t2 = time[at + offsets[partner]]
        s = own / 2.0 + (s1 + slow[at + offsets[partner]]) / 4.0
        w = vectors[partner]
        g12 = _quadratic_form(inverse, at, v, w)
        g22 = _quadratic_form(inverse, at, w, w)
        gap = t2 - t1
        a = g11 + g22 - 2.0 * g12
        b = gap * (g11 - g12)
        c = g11 * gap * gap - s * s * (g11 * g22 - g12 * g12)
        d = b * b - a * c
        if d >= 0.0:
            d1 = (b + math.sqrt(d)) / a
            d2 = d1 - gap
            if g22 * d1 >= g12 * d2 and g11 * d2 >= g12 * d1 and t1 + d1 < best:
                best = t1 + d1
    for k in range(8):
        triangle = members[vertex, k]
        if triangle < 0:
            break
        face = at + offsets[triangles[triangle, 0]]
        edge = at + offsets[triangles[triangle, 1]]
        corner = at + offsets[triangles[triangle, 2]]
        if state[face] != SETTLED or state[edge] != SETTLED or state[corner] != SETTLED:
            continue
        # Foot inside the triangle: the differences along its legs are the gradient itself.
        s = own / 2.0 + (slow[face] + slow[edge] + slow[corner]) / 6.0
        i, j, m = axes[triangle, 0], axes[triangle, 1], axes[triangle, 2]
        si, sj, sm = signs[triangle, 0], signs[triangle, 1], signs[triangle, 2]
        dii, djj, dmm = metric[at, i], metric[at, j], metric[at, m]
        # zy, zx, yx are at 3, 4, 5: two axes' numbers sum to 1, 2, 3.
        dij = metric[at, 2 + i + j] * si * sj
        dim = metric[at, 2 + i + m] * si * sm
        djm = metric[at, 2 + j + m] * sj * sm
        uj = (time[face] - time[edge]) / step[j]
        um = (time[edge] - time[corner]) / step[m]
        b = dij * uj + dim * um
        c = djj * uj * uj + 2.0 * djm * uj * um + dmm * um * um - s * s
        d = b * b - dii * c
        if d < 0.0:
            continue
        ui = (-b + math.sqrt(d)) / dii
        t = time[face] + step[i] * ui
        if t >= best:
            continue
        wi = (dii * ui + b) / step[i]
        wj = (dij * ui + djj * uj + djm * um) / step[j]
        wm = (dim * ui + djm * uj + dmm * um) / step[m]
        if wi >= wj and wj >= wm and wm >= 0.0:
            best = t
    return best


@_jit
def _march_metric(  # type: ignore[no-untyped-def]
    time,
    state,
    slow,
    metric,
    inverse,
    offsets,
    vectors,
    members,
    partners,
    triangles,
    axes,
    signs,
    step,
    keys,
    items,
    place,
):
    """Label-correcting march: a settled voxel that a later path improves is opened again."""
    size = 0
    for at in range(time.size):
        if state[at] == TRIAL:
            size = _push(keys, items, place, size, at, time[at])
    while size > 0:
        at = _pop(keys, items, place, size)
        size -= 1
        state[at] = SETTLED
        for vertex in range(26):
            other = at - offsets[vertex]
            if state[other] == OUTSIDE or time[other] <= time[at]:
                continue
            t = np.float32(
                _from_vertex(
                    time,
                    state,
                    slow,
                    metric,
                    inverse,
                    offsets,
                    vectors,
                    members,
                    partners,
                    triangles,
                    axes,
                    signs,
                    step,
                    other,
                    vertex,
                )
            )
            if t < time[other] * (1.0 - REOPEN):
                time[other] = t
                state[other] = TRIAL
                size = _push(keys, items, place, size, other, t)


def solve(
    speed: Tensor, sources: Tensor, mask: Tensor, metric: Tensor | None, step: np.ndarray
) -> Tensor:
    """Arrival in `mask`, `inf` elsewhere; the arguments are those of `solve_eikonal`, checked."""
    shape, strides, inside, slow, form, inverse, time, state = _start(
        speed, sources, mask, metric, step
    )
    heap = (
        np.empty(time.size, np.float32),
        np.empty(time.size, np.int32),
        np.full(time.size, -1, np.int32),
    )

    def march() -> None:
        if metric is None:
            _march(time, state, slow, strides, 1.0 / step**2, inside, *heap)
            return
        neighbours, triangles, axes, signs = stencil()
        tables = (neighbours @ strides, neighbours * step, *_incidence(triangles), triangles)
        _march_metric(time, state, slow, form, inverse, *tables, axes, signs, step, *heap)

    march()
    reached = inside & (state == SETTLED)
    if (inside & ~reached).any():
        before = time[reached]
        core = np.zeros(shape, bool)
        core[2:-2, 2:-2, 2:-2] = True
        state[core.ravel() & ~inside] = FAR
        heap[2][:] = -1
        _reseed(time, state, slow, strides, 1.0 / step**2)
        march()
        time[reached] = before  # no short cuts through the gaps
    time[~inside] = np.inf
    return torch.from_numpy(time.reshape(shape)[2:-2, 2:-2, 2:-2].copy())


def ball(step: np.ndarray) -> np.ndarray:
    """How many voxels the ball of straight rays reaches along each axis."""
    return np.minimum(np.ceil(BALL * step.max() / step), BALL_LIMIT).astype(np.int64)


def around_sources(
    speed: Tensor, sources: Tensor, mask: Tensor, metric: Tensor | None, step: np.ndarray
) -> Tensor:
    """Return where `solve` starts: 0 at sources, straight rays around, `inf` beyond."""
    shape, *_, time, _ = _start(speed, sources, mask, metric, step)
    return torch.from_numpy(time.reshape(shape)[2:-2, 2:-2, 2:-2].copy())


def _start(
    speed: Tensor, sources: Tensor, mask: Tensor, metric: Tensor | None, step: np.ndarray
) -> tuple[Any, ...]:
    """Flat arrays with the border: strides, mask, slowness, `D`, its inverse, arrival, state."""
    within = mask.numpy()
    padded = np.pad(within, 2)
    shape = padded.shape
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    start = np.pad(sources.numpy(), 2)
    slow = np.zeros(shape, np.float32)
    slow[2:-2, 2:-2, 2:-2][within] = 1.0 / speed.numpy()[within]
    slow[~padded] = slow.max()  # in gaps between pieces: the slowest speed of the mask
    time = np.where(start, np.float32(0), np.float32(np.inf)).ravel()
    state = padded.ravel().astype(np.uint8)  # FAR inside, OUTSIDE elsewhere
    form = inverse = np.zeros((0, 6), np.float32)
    if metric is not None:
        form = np.zeros((*shape, 6), np.float32)
        form[..., :3] = 1.0
        form[2:-2, 2:-2, 2:-2][within] = np.moveaxis(metric.numpy(), 0, -1)[within]
        form = form.reshape(-1, 6)
        inverse = _invert(form)
    # Only the surface of a source emits; a plain source is its own surface.
    surface = np.flatnonzero(start & ~_eroded(start | ~padded))
    _rays(time, state, slow.ravel(), inverse, surface, strides, step, ball(step))
    state[np.isfinite(time)] = TRIAL
    return shape, strides, padded.ravel(), slow.ravel(), form, inverse, time, state


def _eroded(mask: np.ndarray) -> np.ndarray:
    """`mask` without the voxels that have one of the six neighbours outside it."""
    out = mask.copy()
    for axis in range(3):
        for shift in (-1, 1):
            out &= np.roll(mask, shift, axis)
    return out


def _invert(form: np.ndarray) -> np.ndarray:
    """Inverse of symmetric 3 x 3 matrices in (N, 6), by cofactors."""
    zz, yy, xx, zy, zx, yx = form.T
    cofactors = np.stack(
        [
            yy * xx - yx * yx,
            zz * xx - zx * zx,
            zz * yy - zy * zy,
            zx * yx - zy * xx,
            zy * yx - yy * zx,
            zy * zx - zz * yx,
        ],
        axis=-1,
    )
    det = zz * cofactors[:, 0] + zy * cofactors[:, 3] + zx * cofactors[:, 4]
    return cofactors / det[:, None]
