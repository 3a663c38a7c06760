"""Three ways in which contrast may reach the tissue: what a digital patient's delay comes from.

``network`` is `flow`: pressures in a network of tubes, and blood that travels by them. The other
two differ in mechanism, so that a map which was fitted to one can be tested on the next.

``dispersion``: pressures as before, but arteries are fast and vessels beyond a clot fill soon.
Delay arises in the capillaries, whose transit times scatter, and on the way, where the bolus
spreads; it is the time to the maximum of the residue function (Tmax), which is computed from the
curves as perfusion software does (Calamante et al., Stroke 2010).

``filling``: no pressures. Open arteries carry contrast at a speed that depends on their calibre;
the tissue beyond a clot fills from its border, and the delay is the mean first-passage time of a
diffusion from there, which rises with the square of the depth.

Knows nothing of scanners or files.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from bids_perfdeficit.phantom.anatomy import Head
from bids_perfdeficit.phantom.arteries import Tree
from bids_perfdeficit.phantom.flow import (
    LATEST,
    Feeding,
    Flow,
    TissueState,
    clot_nodes,
    perfuse,
    simulate,
    soften,
    tissue_state,
)
from bids_perfdeficit.phantom.settings import PHYSICS, Occlusion

Floats = NDArray[np.floating]

#: Dispersion: share of the network's arrival that is left, since arteries are fast; scatter of
#: arterial transit as a share of the arrival (Calamante et al., Magn Reson Med 2003, use .3 to
#: .5); shape of the gamma distribution of capillary transit times in full flow and in none, since
#: they become alike where flow is low (Jespersen & Ostergaard, J Cereb Blood Flow Metab 2012).
FAST, SPREAD, SHAPE_FULL, SHAPE_LEAST = 0.3, 0.4, 2.0, 5.0
#: How far the transit of a starved bed exceeds that by its flow alone: it cannot dilate further.
UNEQUAL = 1.5
#: Scatter of the logarithm of a starved bed's transit time, over `SCATTER_MM`.
CAPILLARY_SCATTER = 0.35
#: Filling: mm2/s of the diffusion with hardly any and with excellent collaterals, and in white
#: matter as a share of that; scatter of its logarithm, and mm over which it varies. Set so that a
#: M1 occlusion has the volumes of Tmax > 6 s of DEFUSE 3 (see `flow`), up to twice as much.
POOR, RICH, WHITE_SHARE, SCATTER, SCATTER_MM = 36.0, 150.0, 0.7, 0.35, 14.0
#: mm/s in an open artery of 1 mm radius; it grows with the square root of the radius.
SPEED = 160.0
#: Delay at which flow has halved, s.
HALF_FLOW_S = 6.5
#: s that blood loses on its way through a communicating artery; radius from which one is open, mm.
DETOUR_S, OPEN_LINK_MM = 0.8, 0.3


def circulate(
    tree: Tree,
    points: Floats,
    occlusion: Occlusion,
    feeding: Feeding,
    head: Head,
    *,
    seed: int,
    physics: str,
    kept: Floats | None = None,
) -> tuple[Flow, TissueState]:
    """Return the state of the arteries and of the tissue.

    Parameters
    ----------
    tree : Tree
    points : (N, 3) float array
        Its nodes in the patient's own mm.
    occlusion : Occlusion
    feeding : Feeding
        Of the voxels of the brain of `head`.
    head : Head
        The head on the grid of the tissue.
    seed : int
    physics : str
        One of `PHYSICS`.
    kept : (N,) float array, optional
        Share of its diameter that each edge keeps (`flow.narrowing`).

    Returns
    -------
    flow : Flow
    state : TissueState

    Raises
    ------
    ValueError
        `physics` is none of them.
    """
    if physics == 'network':
        flow = simulate(tree, points, occlusion, seed=seed, kept=kept)
        state = tissue_state(flow, feeding, head.grey[head.brain], head.white[head.brain])
        return flow, state
    if physics == 'dispersion':
        flow = simulate(tree, points, occlusion, seed=seed, kept=kept)
        early = replace(flow, arrival=np.where(flow.arrival > 0, FAST, 1) * flow.arrival)
        return early, _dispersed(early, feeding, head, seed)
    if physics == 'filling':
        return _filled(tree, points, occlusion, feeding, head, seed, kept)
    raise ValueError(f'physics is {physics!r}; it must be one of {PHYSICS}')


def _rough(head: Head, rng: np.random.Generator, mm: float) -> Floats:
    """Smooth noise of unit standard deviation in the voxels of the brain, (V,)."""
    sigma = mm / float(head.affine[0, 0])
    noise = ndimage.gaussian_filter(rng.standard_normal(head.brain.shape), sigma)[head.brain]
    return np.asarray(noise / noise.std())


def _dispersed(flow: Flow, feeding: Feeding, head: Head, seed: int) -> TissueState:
    """Tissue whose delay comes from capillaries and from dispersion."""
    plain = tissue_state(flow, feeding, head.grey[head.brain], head.white[head.brain])
    starved = np.clip((1 - plain.flow) / 0.6, 0, 1)
    # How unequal capillaries are differs from place to place, most where they are starved.
    rough = _rough(head, np.random.default_rng([seed, 304]), SCATTER_MM)
    local = np.exp((0.08 + CAPILLARY_SCATTER * starved) * rough)
    mtt = np.clip(plain.mtt * local * (1 + (UNEQUAL - 1) * starved), 0.5, 24)
    arrival = np.clip(plain.arrival, 0, LATEST)
    delay = _tmax(arrival, mtt, starved)
    # What is scanned has lost its edge on the way, and in the capillaries.
    smeared = np.hypot(mtt, SPREAD * arrival + 0.3)
    return replace(plain, delay=delay.astype(np.float32), mtt=smeared.astype(np.float32))


@cache
def _tmax_table() -> tuple[Floats, Floats, Floats, Floats]:
    """Tmax over arrival, mean transit time and starvation."""
    step = 0.1
    time = np.arange(0, 90, step)
    arrivals = np.array([0, 0.5, 1, 2, 3, 4.5, 6, 9, 13, 20.0])
    transits = np.array([0.5, 2, 3, 4, 5, 7, 9, 12, 16, 24.0])
    starved = np.array([0, 0.5, 1.0])
    out = np.empty((len(arrivals), len(transits), len(starved)))
    for i, mean in enumerate(arrivals):
        sd = SPREAD * mean + 0.3
        shape, scale = ((mean + 0.6) / sd) ** 2, sd**2 / (mean + 0.6)
        vessel = (time + step / 2) ** (shape - 1) * np.exp(-(time + step / 2) / scale)
        vessel /= vessel.sum()
        for j, transit in enumerate(transits):
            for k, ill in enumerate(starved):
                shape = SHAPE_FULL + (SHAPE_LEAST - SHAPE_FULL) * ill
                scale = transit / shape
                density = (time + step / 2) ** (shape - 1) * np.exp(-(time + step / 2) / scale)
                residue = 1 - np.cumsum(density) / density.sum()
                seen = np.convolve(vessel, residue)[: len(time)]
                # Deconvolution is regularised: it sees the curve through some seconds.
                out[i, j, k] = time[int(ndimage.gaussian_filter1d(seen, 1.2 / step).argmax())]
    return arrivals, transits, starved, out


def _tmax(arrival: Floats, mtt: Floats, starved: Floats) -> Floats:
    arrivals, transits, levels, table = _tmax_table()
    where = [
        np.interp(values, axis, np.arange(len(axis)))
        for values, axis in ((arrival, arrivals), (mtt, transits), (starved, levels))
    ]
    found = ndimage.map_coordinates(table, where, order=1, mode='nearest')
    return np.asarray(np.clip(found, 0.2, LATEST))


def _reached(tree: Tree, blocked: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Floats]:
    """Which nodes open arteries lead to, and the detour, s."""
    count = len(tree.parent)
    reached, detour = np.ones(count, bool), np.zeros(count)
    opened = np.zeros(count, bool)  # by a communicating artery

    def pass_down() -> None:
        for node in range(count):  # a parent comes before its children
            above = tree.parent[node]
            if above >= 0 and not blocked[node] and not opened[node]:
                reached[node], detour[node] = reached[above], detour[above]

    reached[blocked] = False
    pass_down()
    for (a, b), radius in zip(tree.links, tree.link_radius, strict=True):
        for here, there in ((a, b), (b, a)):
            beyond = not reached[there] and not blocked[there]
            if radius > OPEN_LINK_MM and reached[here] and beyond:
                opened[there] = reached[there] = True
                detour[there] = detour[here] + DETOUR_S
    pass_down()
    return reached, detour


def _filled(
    tree: Tree, points: Floats, occlusion: Occlusion, feeding: Feeding, head: Head, seed: int,
    kept: Floats | None,
) -> tuple[Flow, TissueState]:  # fmt: skip
    """Vessels by calibre and length, tissue beyond the clot by diffusion from its border."""
    rng = np.random.default_rng([seed, 303])
    blocked = clot_nodes(tree, points, occlusion)
    reached, detour = _reached(tree, blocked)
    gap = np.linalg.norm(points - points[np.maximum(tree.parent, 0)], axis=1)
    gap[tree.parent < 0] = 0.0
    travel = gap / (SPEED * np.sqrt(np.maximum(tree.radius, 0.05)))
    arrival = np.zeros(len(points))
    # What a stenosis holds back, from half of the diameter on, comes by a communicating artery.
    held: Floats = np.zeros(len(points))
    if kept is not None:
        held = DETOUR_S * np.clip(1 - 2 * kept, 0, 1)
    held[tree.parent < 0] = 0.0
    for node in range(len(points)):
        above = tree.parent[node]
        if above >= 0:
            held[node] = max(held[node], held[above])
            arrival[node] = arrival[above] + travel[node]
    arrival = arrival - float(np.mean([arrival[tree.nodes(f'ICA-{s}')[-1]] for s in 'LR']))
    arrival = arrival + np.maximum(detour, held)

    spacing = float(head.affine[0, 0])
    share = (~reached[feeding.terminals] * feeding.weights).sum(1)
    shut = share > 0.5
    conduct = POOR * (RICH / POOR) ** occlusion.collaterals
    local = np.exp(SCATTER * _rough(head, rng, SCATTER_MM))
    grey, white = head.grey[head.brain], head.white[head.brain]
    part = np.clip(grey / np.maximum(grey + white, 0.05), 0, 1)
    local = conduct * local * (WHITE_SHARE + (1 - WHITE_SHARE) * part)
    places = np.argwhere(head.brain)
    passage = _passage(places, head.brain.shape, shut, local, spacing)

    own = (arrival[feeding.terminals] * feeding.weights * reached[feeding.terminals]).sum(1)
    own = own / np.maximum((feeding.weights * reached[feeding.terminals]).sum(1), 0.05)
    near = _nearest_value(places, shut, own)
    # Where vessels meet, some of the delay of the other side shows.
    late = np.where(shut, passage + near, own + 0.6 * share)
    late = soften(late, 10, 8)
    relative = 1 / (1 + (np.maximum(late - 1.0, 0) / HALF_FLOW_S) ** 1.5)
    state = perfuse(late, relative, _dilation(relative), grey, white)

    # Arteries beyond the clot fill backwards, from the tissue that they lead to.
    beyond = np.flatnonzero(~reached)
    arrival = np.maximum(arrival, -2.0)
    if shut.any() and len(beyond):
        own_mm = head.affine[:3, 3] + places[shut] * spacing
        _, index = cKDTree(own_mm).query(tree.points[beyond])
        arrival[beyond] = late[shut][index]
    flowing = np.ones(len(points))
    ends = tree.terminals
    means = np.bincount(feeding.terminals[:, 0], relative, len(points))
    number = np.bincount(feeding.terminals[:, 0], minlength=len(points))
    fed = ends[number[ends] > 0]
    flowing[fed] = means[fed] / number[fed]
    nothing = np.zeros(len(points))
    flow = Flow(arrival, flowing, _dilation(flowing), nothing, blocked, nothing)
    return flow, state


def _dilation(relative: Floats) -> Floats:
    """Return how far beds are dilated at a flow relative to health."""
    return np.clip(1.6 * (1 - relative), 0, 1)


def _passage(
    places: NDArray[np.int64], shape: tuple[int, ...], shut: NDArray[np.bool_], local: Floats,
    spacing: float,
) -> Floats:  # fmt: skip
    """Mean first-passage time, s, of a diffusion from open tissue into that which is shut.

    It solves ``div(D grad u) = -1`` there with 0 in open tissue; nothing passes the brain's
    surface, nor the falx.
    """
    out = np.zeros(len(places))
    if not shut.any() or shut.all():
        return out
    number = np.full(shape, -1)
    number[tuple(places.T)] = np.arange(len(places))
    row = np.full(len(places), -1)
    row[shut] = np.arange(int(shut.sum()))
    size = int(shut.sum())
    diagonal = np.full(size, 1e-4)
    rows, columns, values = [], [], []
    middle = (shape[0] - 1) / 2
    for axis in range(3):
        ahead = places.copy()
        ahead[:, axis] = np.minimum(ahead[:, axis] + 1, shape[axis] - 1)
        other = number[tuple(ahead.T)]
        pair = np.flatnonzero((other >= 0) & (other != np.arange(len(places))))
        if axis == 0:
            here, there = places[pair, 0] - middle, places[other[pair], 0] - middle
            pair = pair[(here > 0) == (there > 0)]
        other = other[pair]
        touching = shut[pair] | shut[other]
        pair, other = pair[touching], other[touching]
        rate = 2 * local[pair] * local[other] / (local[pair] + local[other]) / spacing**2
        for one, two in ((pair, other), (other, pair)):
            np.add.at(diagonal, row[one[shut[one]]], rate[shut[one]])
            both = shut[one] & shut[two]
            rows.append(row[one[both]])
            columns.append(row[two[both]])
            values.append(-rate[both])
    rows.append(np.arange(size))
    columns.append(np.arange(size))
    values.append(diagonal)
    matrix = sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (size, size)
    )
    scale = sparse.diags(1 / matrix.diagonal())
    found, _ = cg(matrix, np.ones(size), rtol=1e-4, maxiter=2000, M=scale)
    out[shut] = np.clip(found, 0, 3 * LATEST)
    return out


def _nearest_value(places: NDArray[np.int64], shut: NDArray[np.bool_], own: Floats) -> Floats:
    """Give tissue that is shut the arrival of the nearest open tissue."""
    if not shut.any() or shut.all():
        return own
    _, index = cKDTree(places[~shut]).query(places[shut])
    out = own.copy()
    out[shut] = own[~shut][index]
    return out
