"""Blood flow through a person's arteries, and what the tissue sees of it.

A network of tubes: Poiseuille's law in every segment, a resistance to the veins at every terminal
that autoregulates, communicating arteries and leptomeningeal anastomoses. Occluding an edge and
solving for the pressures gives flow, direction of flow, transit times and perfusion everywhere.
Nothing here measures a distance in an image, so that a map made by travel through an image can be
tested on it. Knows nothing of scanners or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from bids_perfdeficit.phantom.arteries import Tree
from bids_perfdeficit.phantom.settings import Occlusion

Floats = NDArray[np.floating]

#: Viscosity of blood, mmHg s (3.5 mPa s); arterial pressure at the neck and venous pressure, mmHg.
VISCOSITY, ARTERIAL, VENOUS = 3.5e-3 / 133.322, 93.0, 8.0
#: Share of the healthy resistance that a fully dilated bed keeps (autoregulatory reserve; Paulson
#: et al., Cerebrovasc Brain Metab Rev 1990: flow is held until pressure has about halved).
RESERVE = 0.4
#: Mean transit time of healthy grey and white matter, s, and the share of it that a time to the
#: maximum of the residue function (Tmax) gains by it (Calamante et al., Stroke 2010).
MTT_GREY, MTT_WHITE, TMAX_SHARE = 3.3, 4.4, 0.25
#: Blood volume of grey and white matter, mL/100 g (Leenders et al., Brain 1990).
CBV_GREY, CBV_WHITE = 4.6, 2.3
#: Flow and slowness below which tissue is treated as equally bad: blood does not stand still even
#: in a core, and delays beyond about 20 s are not measurable in a perfusion scan of 60 s.
LEAST_FLOW, LATEST = 0.06, 20.0
#: Velocity of the bolus over the mean velocity of the blood. The axial stream is faster (twice in
#: a parabolic profile), but arteries wind, and their path is longer than the line of their nodes.
#: Set so that branches beyond an M1 clot fill some 2 to 4 s late, less than a phase of 8 s of a
#: multiphase CTA with good collaterals (Menon et al., Radiology 2015).
AXIAL = 0.8
#: Least velocity in a patent artery, mm/s.
CREEP = 4.0
#: Share of an open vessel's conductance that a clot leaves.
CLOT = 1e-9
#: mm of a carotid that a stenosis narrows.
STENOSIS_MM = 10.0
#: Flow of white matter that is diseased throughout over that of healthy white matter, at the same
#: blood volume (Markus et al., J Neurol Neurosurg Psychiatry 2000).
DISEASED_FLOW = 0.62
#: Radius of a leptomeningeal anastomosis at grade 0 and 1, mm, within the span of Brozici et al.,
#: Stroke 2003; set so that M1 and carotid occlusions with middling collaterals have the volumes
#: of Tmax > 6 s of DEFUSE 3 (Albers et al., N Engl J Med 2018: median 115 mL, quartiles 79, 146).
ANASTOMOSIS_POOR, ANASTOMOSIS_RICH = 0.13, 0.5


@dataclass(frozen=True)
class Flow:
    """The state of the circulation. Per node of the tree.

    Attributes
    ----------
    arrival : (N,) float array
        Time at which blood reaches the node, s after it passes the reference artery (the open
        carotid terminus).
    relative : (N,) float array
        Flow of the terminal's tissue over its healthy flow; 1 at other nodes.
    dilation : (N,) float array
        0 for a bed at rest, 1 for a fully dilated one.
    pressure : (N,) float array
        mmHg.
    blocked : (N,) bool array
        Whether the clot lies in the edge from the parent.
    velocity : (N,) float array
        In the edge from the parent, mm/s, positive away from the heart.
    """

    arrival: Floats
    relative: Floats
    dilation: Floats
    pressure: Floats
    blocked: NDArray[np.bool_]
    velocity: Floats


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile, and cache where a cache can be written."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # a read-only install and home
        return numba.njit(function)


@_jit
def _arrive(order, start, edge, other, discharge, volume, inflow):  # type: ignore[no-untyped-def]
    """Arrival in the order of falling pressure: the flow-weighted mean of what comes in."""
    arrival = np.zeros(len(order))
    for node in order:
        if inflow[node]:
            continue
        total, sum_time = 0.0, 0.0
        for k in range(start[node], start[node + 1]):
            q = discharge[edge[k]]
            if q > 1e-7 and not np.isnan(arrival[other[k]]):
                total += q
                sum_time += q * arrival[other[k]] + volume[edge[k]]
        arrival[node] = sum_time / total if total > 0.0 else np.nan
    return arrival


def clot_nodes(tree: Tree, points: Floats, occlusion: Occlusion) -> NDArray[np.bool_]:
    """Nodes whose edge to the parent is filled with clot."""
    blocked = np.zeros(len(tree.points), bool)
    if occlusion.site == 'none':
        return blocked
    side = occlusion.side
    name = 'BA' if occlusion.site == 'BA' else f'{occlusion.site}-{side}'
    if occlusion.site == 'P1' and name not in tree.segments:
        name = f'Pcom-{side}'  # a fetal PCA leaves the carotid
    line = tree.nodes(name)
    step = np.linalg.norm(points[line] - points[np.maximum(tree.parent[line], 0)], axis=1)
    along = np.cumsum(step)
    if occlusion.site == 'ICA':
        # The carotid's last millimetres and the first of what leaves it there.
        blocked[line[along > along[-1] - 4.0]] = True
        for follower in ('M1', 'A1'):
            if f'{follower}-{side}' in tree.segments:
                nodes = tree.nodes(f'{follower}-{side}')
                blocked[nodes[: 4 if follower == 'M1' else 2]] = True
        return blocked
    if occlusion.site == 'BA':
        # An embolus stops where the basilar ends; it covers the superior cerebellar arteries and
        # reaches into both P1. Further down, the communicating arteries would fill the tip.
        blocked[line[along > along[-1] - occlusion.length]] = True
        for name in ('P1-L', 'P1-R'):
            if name in tree.segments:
                blocked[tree.nodes(name)[:2]] = True
        return blocked
    begin = occlusion.position * max(along[-1] - min(occlusion.length, 0.6 * along[-1]), 0.0)
    inside = (along >= begin) & (along <= begin + occlusion.length)
    if not inside.any():
        inside[int(np.argmin(np.abs(along - begin)))] = True
    blocked[line[inside]] = True
    return blocked


def narrowing(tree: Tree, side: str, stenosis: float) -> Floats:
    """Share of the diameter that each edge to a parent keeps, (N,): a stenosis of one carotid.

    It takes the last centimetre before the first branch, or as much of it as there is.
    """
    kept = np.ones(len(tree.points))
    if stenosis:
        line = tree.nodes(f'ICA-{side}')
        step = np.linalg.norm(
            tree.points[line] - tree.points[np.maximum(tree.parent[line], 0)], axis=1
        )
        kept[line[np.cumsum(step[::-1])[::-1] <= STENOSIS_MM]] = 1 - stenosis
    return kept


def simulate(
    tree: Tree, points: Floats, occlusion: Occlusion, *, seed: int, kept: Floats | None = None
) -> Flow:
    """Solve the circulation of one person with one occlusion.

    Parameters
    ----------
    tree : Tree
    points : (N, 3) float array
        The nodes in the patient's own mm, which set the lengths.
    occlusion : Occlusion
    seed : int
        Sets the scatter of the anastomoses.
    kept : (N,) float array, optional
        From `narrowing`.

    Returns
    -------
    Flow
    """
    rng = np.random.default_rng([seed, 202])
    count = len(points)
    child = np.flatnonzero(tree.parent >= 0)
    first = np.concatenate([tree.parent[child], tree.links[:, 0], tree.anastomoses[:, 0]])
    second = np.concatenate([child, tree.links[:, 1], tree.anastomoses[:, 1]])
    length = np.maximum(np.linalg.norm(points[first] - points[second], axis=1), 0.2)
    # Anastomoses are tortuous; the conductance varies over more than a decade within a person.
    grade = occlusion.collaterals
    wide = ANASTOMOSIS_POOR * (ANASTOMOSIS_RICH / ANASTOMOSIS_POOR) ** grade
    wide = wide * np.exp(0.25 * rng.standard_normal(len(tree.anastomoses)))
    radius = np.concatenate([tree.radius[child], tree.link_radius, wide])
    length[len(child) + len(tree.links) :] *= 1.5
    conductance = np.pi * radius**4 / (8 * VISCOSITY * length)

    roots = np.flatnonzero(tree.parent < 0)
    ends = tree.terminals
    demand = tree.demand[ends]

    def solve(g: Floats, bed: Floats) -> Floats:
        diagonal = np.zeros(count)
        np.add.at(diagonal, first, g)
        np.add.at(diagonal, second, g)
        right = np.zeros(count)
        diagonal[ends] += bed
        right[ends] += bed * VENOUS
        diagonal[roots] += 1e6
        right[roots] += 1e6 * ARTERIAL
        rows = np.concatenate([first, second, np.arange(count)])
        columns = np.concatenate([second, first, np.arange(count)])
        matrix = sparse.csc_matrix((np.concatenate([-g, -g, diagonal]), (rows, columns)))
        factor = splu(matrix, permc_spec='MMD_AT_PLUS_A', options={'SymmetricMode': True},
                      diag_pivot_thresh=0.0)  # fmt: skip
        return np.asarray(factor.solve(right))

    # Health: each bed has the resistance that gives its tissue what it needs.
    drop = _healthy_pressure(tree, points)
    bed_rest = demand / np.maximum(drop[ends] - VENOUS, 15.0)
    blocked = clot_nodes(tree, points, occlusion)
    if blocked.any():
        conductance[: len(child)] *= np.where(blocked[child], CLOT, 1.0)
    if kept is not None:
        conductance[: len(child)] *= kept[child] ** 4
    changed = blocked.any() or (kept is not None and bool((kept < 1).any()))
    dilation = np.zeros(len(ends))
    pressure = solve(conductance, bed_rest)
    for _ in range(4 if changed else 1):
        flow = bed_rest / (1 - (1 - RESERVE) * dilation) * (pressure[ends] - VENOUS)
        wanted = (1 - (1 - RESERVE) * dilation) * flow / demand
        dilation = np.clip((1 - np.clip(wanted, 0, 1)) / (1 - RESERVE), 0, 1)
        pressure = solve(conductance, bed_rest / (1 - (1 - RESERVE) * dilation))
    flow = bed_rest / (1 - (1 - RESERVE) * dilation) * (pressure[ends] - VENOUS)

    discharge = conductance * (pressure[first] - pressure[second])
    area = np.pi * radius**2
    fast = np.maximum(np.abs(discharge), CREEP * area * (length > 0))
    volume = area * length / AXIAL * np.abs(discharge) / fast
    upstream = np.where(discharge >= 0, first, second)
    downstream = np.where(discharge >= 0, second, first)
    magnitude = np.abs(discharge)
    by_node = np.argsort(downstream, kind='stable')
    start = np.searchsorted(downstream[by_node], np.arange(count + 1))
    inflow = np.zeros(count, bool)
    inflow[roots] = True
    arrival = _arrive(
        np.argsort(-pressure, kind='stable'), start, by_node, upstream[by_node], magnitude,
        volume, inflow,
    )  # fmt: skip
    # Dead ends, such as the stump before a clot, have no flow: contrast creeps into them.
    gap = np.linalg.norm(points - points[np.maximum(tree.parent, 0)], axis=1) / CREEP
    for nodes in (range(count), range(count - 1, -1, -1)):
        for node in nodes:
            above = tree.parent[node]
            if above >= 0 and np.isnan(arrival[node]) != np.isnan(arrival[above]):
                late = float(np.nanmax([arrival[node], arrival[above]])) + gap[node]
                arrival[node if np.isnan(arrival[node]) else above] = late
    reference = [tree.nodes(f'ICA-{s}')[-1] for s in 'LR' if s != occlusion.side]
    if occlusion.site == 'none':
        reference = [tree.nodes(f'ICA-{s}')[-1] for s in 'LR']
    arrival = np.nan_to_num(arrival, nan=LATEST) - float(np.mean(arrival[reference]))
    # A soft ceiling: no number beyond what a perfusion scan could measure.
    arrival = soften(np.maximum(arrival, -2.0), 10, 8)

    relative, dilated = np.ones(count), np.zeros(count)
    relative[ends] = np.clip(flow / demand, 0, 1.3)
    dilated[ends] = dilation
    velocity = np.zeros(count)
    velocity[child] = discharge[: len(child)] / area[: len(child)]
    return Flow(arrival, relative, dilated, pressure, blocked, velocity)


def soften(values: Floats, start: float, room: float) -> Floats:
    """Bend values beyond `start` so that they end `room` higher: none can be measured there."""
    return np.where(values > start, start + room * np.tanh((values - start) / room), values)


def _healthy_pressure(tree: Tree, points: Floats) -> Floats:
    """Pressure at each node with every artery open and every demand met, mmHg."""
    flow = tree.demand.copy()
    for node in range(len(flow) - 1, -1, -1):
        if tree.parent[node] >= 0:
            flow[tree.parent[node]] += flow[node]
    length = np.linalg.norm(points - points[np.maximum(tree.parent, 0)], axis=1)
    loss = flow * 8 * VISCOSITY * length / (np.pi * tree.radius**4)
    pressure = np.full(len(flow), ARTERIAL)
    for node in range(len(flow)):
        if tree.parent[node] >= 0:
            pressure[node] = pressure[tree.parent[node]] - loss[node]
    return pressure


@dataclass(frozen=True)
class Feeding:
    """Which terminals feed which voxels, and how much. Depends on the tree alone.

    Attributes
    ----------
    terminals : (V, K) int array
        Nodes of the tree.
    weights : (V, K) float32 array
        They sum to 1.
    """

    terminals: NDArray[np.int64]
    weights: NDArray[np.float32]


def feed(tree: Tree, voxels: Floats, *, neighbours: int = 5) -> Feeding:
    """Nearest terminals of each voxel, (V, 3) template mm, blended by inverse square distance.

    The falx parts the hemispheres: tissue above the tentorium draws from its own side only.
    """
    ends = tree.terminals

    def split(points: Floats) -> Floats:
        far = np.where(points[:, 2] > -14, 40.0 * np.sign(points[:, 0]), 0.0)
        return np.column_stack([points, far])

    gap, index = cKDTree(split(tree.points[ends])).query(split(voxels), k=neighbours)
    weight = 1 / (gap**2 + 2.0)
    weight /= weight.sum(1, keepdims=True)
    return Feeding(ends[index], weight.astype(np.float32))


@dataclass(frozen=True)
class TissueState:
    """Per voxel: `delay` (s), `flow` (relative to health), `mtt` (s), `cbv` (mL/100 g)."""

    delay: NDArray[np.float32]
    flow: NDArray[np.float32]
    mtt: NDArray[np.float32]
    cbv: NDArray[np.float32]
    arrival: NDArray[np.float32]


def slow_down(state: TissueState, diseased: Floats) -> TissueState:
    """Return tissue in which a share of each voxel, (V,), is diseased white matter.

    Its flow is lower at the same blood volume, so that blood passes more slowly.
    """
    share = 1 - (1 - DISEASED_FLOW) * diseased
    slower = state.mtt / share
    delay = soften(state.delay + TMAX_SHARE * (slower - state.mtt), 14, 6)
    cast = np.float32
    return replace(
        state, flow=(state.flow * share).astype(cast), mtt=slower.astype(cast),
        delay=delay.astype(cast),
    )  # fmt: skip


def tissue_state(
    flow: Flow, feeding: Feeding, grey: NDArray[np.floating], white: NDArray[np.floating]
) -> TissueState:
    """Delay and perfusion of voxels with the fractions `grey` and `white`, (V,).

    The delay is that of Tmax: arterial arrival plus a share of the mean transit time, which is
    blood volume over flow (central volume theorem).
    """
    w = feeding.weights
    arrival = (flow.arrival[feeding.terminals] * w).sum(1)
    relative = (flow.relative[feeding.terminals] * w).sum(1)
    dilation = (flow.dilation[feeding.terminals] * w).sum(1)
    return perfuse(arrival, relative, dilation, grey, white)


def perfuse(
    arrival: Floats, relative: Floats, dilation: Floats, grey: Floats, white: Floats
) -> TissueState:
    """Return blood volume, transit and delay of tissue from what reaches it; all (V,).

    Parameters
    ----------
    arrival : ndarray
        Of arterial blood, s.
    relative, dilation : ndarray
        Flow over that of health, and dilation of the bed, 0 to 1.
    grey, white : ndarray
        Fractions of the voxel.

    Returns
    -------
    TissueState
    """
    part = np.clip(grey / np.maximum(grey + white, 0.05), 0, 1)
    rest_cbv = CBV_WHITE + (CBV_GREY - CBV_WHITE) * part
    # Dilated beds hold more blood; starved ones collapse (Hatazawa et al., Stroke 1984 f.).
    swell = 1 + 0.35 * dilation * np.clip((relative - 0.15) / 0.35, 0, 1)
    collapse = np.clip(relative / 0.35, 0.15, 1)
    slow = swell / np.maximum(relative, LEAST_FLOW + 0.1)
    mtt = (MTT_WHITE + (MTT_GREY - MTT_WHITE) * part) * np.clip(slow, 0.8, 6.0)
    delay = arrival + TMAX_SHARE * mtt
    delay = soften(delay, 14, 6)
    cast = np.float32
    return TissueState(
        np.maximum(delay, 0.2).astype(cast),
        relative.astype(cast),
        mtt.astype(cast),
        (rest_cbv * swell * collapse * np.clip(grey + white, 0, 1)).astype(cast),
        arrival.astype(cast),
    )
