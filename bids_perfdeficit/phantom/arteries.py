"""Grow a person's arteries in the template space: named trunks, then branches to every tissue.

The trunks are polylines whose coordinates and variants follow anatomy texts (Osborn, Diagnostic
Cerebral Angiography, 2nd ed.; Rhoton, Neurosurgery 2002 (51, suppl 1); Tatu et al., Neurology 1998
for the territories). Branches fill each territory by space colonisation (Runions et al.,
Eurographics Workshop on Natural Phenomena 2007): first over the pial surface, then into the
tissue. Radii follow Murray's law (PNAS 1926). Knows nothing of flow, occlusion or images.

Coordinates are template millimetres, RAS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_perfdeficit.phantom.anatomy import Head

Points = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Names of the territories. A label in an image is 2 * index + 1 on the left and 2 * index + 2 on
#: the right.
TERRITORIES = (
    'ACA',
    'MCA superior',
    'MCA inferior',
    'PCA',
    'lenticulostriate',
    'Heubner',
    'anterior choroidal',
    'thalamoperforating',
    'SCA',
    'AICA',
    'PICA',
    'basilar perforating',
    'vertebral perforating',
)
#: Those whose arteries run on the pial surface.
PIAL = (0, 1, 2, 3, 8, 9, 10)
#: Arteries that can be joined by leptomeningeal anastomoses.
CEREBRAL, CEREBELLAR = (0, 1, 2, 3), (8, 9, 10)

#: Trunks of the right side: name -> (parent or None, territory or None, points in mm). The first
#: point lies on the parent. 'pial' trunks are drawn to the pial surface afterwards.
_TRUNKS: dict[str, tuple[str | None, int | None, tuple[tuple[float, float, float], ...]]] = {
    'ICA': (None, None, (
        (27, -2, -111), (26, -8, -98), (25, -14, -84), (26, -20, -68), (27, -20, -56),
        (24, -15, -49), (18, -8, -46), (14, -5, -42), (13, -4, -36), (13, 2, -34),
        (13, 8, -32), (12, 10, -28), (11, 8, -24), (11, 4, -21), (12, 2, -18))),
    'M1': ('ICA', None, ((12, 2, -18), (18, 4, -18), (24, 7, -17), (29, 7, -15), (33, 5, -14))),
    'M2sup': ('M1', 1, ((33, 5, -14), (37, 10, -11), (40, 13, -4), (41, 12, 4), (42, 7, 12))),
    'M2inf': ('M1', 2, (
        (33, 5, -14), (38, 0, -11), (41, -6, -6), (42, -14, 0), (42, -23, 7), (41, -31, 14))),
    'orbitofrontal': ('M2sup', 1, ((37, 10, -11), (41, 20, -12), (46, 32, -10), (49, 38, -6))),
    'prefrontal': ('M2sup', 1, (
        (40, 13, -4), (43, 22, 3), (51, 26, 8), (56, 26, 18), (53, 30, 28))),
    'precentral': ('M2sup', 1, (
        (41, 12, 4), (48, 11, 11), (58, 8, 14), (62, 6, 26), (58, 6, 40))),
    'central': ('M2sup', 1, (
        (42, 7, 12), (50, -2, 16), (63, -6, 20), (66, -10, 34), (60, -16, 48))),
    'anterior parietal': ('M2sup', 1, (
        (42, 7, 12), (46, -8, 19), (64, -20, 24), (66, -28, 38), (56, -34, 54))),
    'temporopolar': ('M1', 2, ((29, 7, -15), (36, 11, -22), (45, 13, -26), (52, 10, -32))),
    'anterior temporal': ('M2inf', 2, ((38, 0, -11), (50, 0, -12), (60, -2, -18), (63, -8, -28))),
    'middle temporal': ('M2inf', 2, (
        (41, -6, -6), (52, -12, 0), (65, -16, -4), (69, -22, -14), (66, -26, -24))),
    'posterior temporal': ('M2inf', 2, (
        (42, -14, 0), (54, -26, 6), (68, -34, 4), (68, -42, -6), (62, -52, -14))),
    'temporo-occipital': ('M2inf', 2, (
        (42, -23, 7), (54, -38, 13), (65, -50, 8), (60, -66, 2), (50, -80, 0))),
    'angular': ('M2inf', 2, (
        (41, -31, 14), (52, -42, 20), (63, -52, 26), (56, -66, 32), (44, -78, 32))),
    'posterior parietal': ('M2inf', 2, (
        (41, -31, 14), (50, -38, 24), (64, -40, 36), (56, -48, 50), (44, -56, 58))),
    'A1': ('ICA', None, ((12, 2, -18), (8, 6, -17), (5, 9, -15), (2.5, 11, -14))),
    'A2': ('A1', 0, (
        (2.5, 11, -14), (2.5, 20, -15), (2, 30, -10), (2, 38, 0), (2, 38, 12))),
    'pericallosal': ('A2', 0, (
        (2, 38, 12), (2, 30, 21), (2, 16, 26), (2, 0, 29), (2, -18, 30), (2, -32, 28),
        (2, -42, 21))),
    'medial orbitofrontal': ('A2', 0, ((2.5, 20, -15), (3, 34, -23), (4, 50, -22))),
    'frontopolar': ('A2', 0, ((2, 30, -10), (2, 48, -8), (3, 62, -2), (6, 69, 8))),
    'callosomarginal': ('A2', 0, (
        (2, 38, 12), (2, 46, 18), (2, 44, 28), (2, 32, 37), (2, 16, 43), (2, 0, 46))),
    'anterior internal frontal': ('callosomarginal', 0, ((2, 44, 28), (2, 54, 30), (7, 58, 38))),
    'middle internal frontal': ('callosomarginal', 0, ((2, 32, 37), (2, 36, 50), (9, 36, 58))),
    'posterior internal frontal': ('callosomarginal', 0, (
        (2, 16, 43), (2, 16, 58), (9, 14, 72))),
    'paracentral': ('callosomarginal', 0, ((2, 0, 46), (2, -14, 56), (2, -24, 68), (9, -28, 78))),
    'superior internal parietal': ('pericallosal', 0, (
        (2, -18, 30), (2, -32, 42), (2, -46, 54), (7, -52, 70))),
    'inferior internal parietal': ('pericallosal', 0, ((2, -42, 21), (2, -54, 34), (2, -62, 44))),
    'VA': (None, None, (
        (16, -34, -111), (20, -40, -100), (22, -46, -90), (17, -52, -83), (12, -46, -77),
        (9, -38, -70), (6, -33, -62), (0, -29, -53))),
    'P1': ('BA', None, ((0, -13, -20), (5, -13, -19), (11, -16, -18))),
    'P2': ('P1', 3, (
        (11, -16, -18), (16, -21, -15), (19, -28, -10), (17, -35, -6), (14, -42, -3))),
    'calcarine': ('P2', 3, (
        (14, -42, -3), (13, -54, 2), (12, -66, 6), (10, -78, 8), (9, -94, 6))),
    'parieto-occipital': ('P2', 3, ((14, -42, -3), (12, -56, 9), (9, -68, 20), (6, -80, 32))),
    'anterior temporal P2': ('P2', 3, (
        (16, -21, -15), (22, -18, -24), (30, -16, -34), (40, -14, -40))),
    'posterior temporal P2': ('P2', 3, (
        (19, -28, -10), (26, -38, -13), (34, -50, -16), (42, -60, -18))),
    'SCA': ('BA', 8, (
        (0, -13.5, -23), (8, -15, -24), (15, -24, -22), (18, -34, -20), (14, -43, -16),
        (12, -53, -11))),
    'lateral SCA': ('SCA', 8, ((18, -34, -20), (26, -46, -22), (36, -56, -26))),
    'AICA': ('BA', 9, (
        (0, -17, -38), (10, -22, -42), (20, -30, -42), (30, -36, -43), (42, -46, -46))),
    'PICA': ('VA', 10, (
        (6, -33, -62), (11, -40, -63), (11, -50, -58), (8, -58, -56), (8, -70, -54))),
    'lateral PICA': ('PICA', 10, ((11, -50, -58), (22, -60, -64), (34, -68, -56))),
    'AChA': ('ICA', 6, (
        (11, 4, -21), (14, -4, -18), (17, -12, -16), (21, -18, -13), (24, -24, -8))),
    'Heubner': ('A2', 5, ((2.5, 11, -14), (8, 10, -14), (13, 11, -13))),
    'Pcom': ('ICA', None, ((11, 4, -21), (11, -5, -19), (11, -16, -18))),
}  # fmt: skip
_BASILAR = ((0, -29, -53), (0, -23, -46), (0, -18, -38), (0, -14, -30), (0, -13, -20))

#: Centres of the territories of the right side, mm: the nearest centre, less its pull in mm,
#: takes the tissue. Borders follow Tatu et al. (Neurology 1998) and the vascular maps of
#: Damasio (Arch Neurol 1983).
_CENTRES: tuple[tuple[int, tuple[tuple[float, float, float], ...]], ...] = (
    (0, ((4, 60, 0), (5, 48, 18), (6, 38, -20), (6, 58, -12), (5, 36, 38), (8, 52, 32),
         (8, 15, 60), (10, 0, 68), (8, -20, 68), (8, -38, 64), (6, -50, 48), (6, 20, 30),
         (6, 0, 40), (6, -25, 40), (18, 48, 34), (18, 24, 56), (18, 0, 66), (16, -30, 72),
         (6, -20, 28), (6, 34, 6), (10, 66, 10), (20, 10, 52))),
    (1, ((42, 36, 2), (50, 20, 14), (40, 44, 18), (36, 28, 34), (50, 5, 34), (46, -6, 50),
         (56, -8, 28), (46, -24, 54), (38, 12, 4), (34, 40, -12), (40, 12, 48), (30, 52, 6),
         (52, -26, 36), (30, 20, 22), (28, -5, 34), (28, -24, 42), (30, 40, 12))),
    (2, ((60, -14, -4), (58, -30, 6), (54, -4, -16), (48, 12, -26), (60, -44, 8), (50, -56, 28),
         (54, -42, 38), (42, -66, 34), (48, -68, 10), (60, -30, -14), (38, -12, 2),
         (34, -40, 22), (34, -52, 36), (52, -10, -32), (40, 0, -34), (40, -46, 48),
         (40, -60, 8), (30, -30, 26))),
    (3, ((10, -80, 6), (10, -60, 6), (14, -92, 4), (26, -88, 10), (26, -62, -8), (30, -42, -16),
         (26, -22, -28), (44, -52, -22), (8, -72, 26), (12, -46, 0), (26, -78, 24),
         (46, -34, -28), (34, -80, -8), (38, -18, -34), (22, -60, 10), (28, -6, -38),
         (16, -84, 34))),
    (4, ((24, 6, 2), (22, -4, 6), (24, 2, 14), (18, 6, 18), (20, -10, 20), (28, -4, -2),
         (26, 12, 8))),
    (5, ((11, 14, -4), (14, 20, 2), (12, 16, 8), (18, 16, 0))),
    (6, ((23, -18, 2), (22, -14, -6), (24, -8, -18), (20, -20, 10), (22, -24, -4))),
    (7, ((8, -18, 8), (10, -26, 6), (8, -8, 4), (6, -20, -8), (16, -22, 10), (5, -24, -14))),
    (8, ((20, -52, -20), (36, -58, -26), (6, -52, -10), (8, -66, -18), (24, -68, -24),
         (12, -44, -24))),
    (9, ((36, -46, -40), (24, -42, -38), (44, -56, -38), (18, -34, -36))),
    (10, ((16, -60, -50), (32, -66, -50), (6, -70, -36), (22, -76, -40), (6, -56, -42))),
    (11, ((5, -24, -30), (5, -30, -38), (7, -22, -22))),
    (12, ((4, -38, -56), (4, -44, -68))),
)  # fmt: skip
#: Pull of the small deep territories, mm: their centres lie closer together than the others'.
_PULL = {4: 0.0, 5: -1.0, 6: -2.5, 7: 0.0, 9: -2.0, 11: 0.0, 12: 0.0}

#: Step of growth, distance at which an attractor is reached, and spacing of attractors, mm.
STEP, REACH = 2.5, 3.2
PIAL_SPACING, DEEP_SPACING = 4.6, 6.5
#: Blood flow of grey and white matter, mL per 100 g and minute (Leenders et al., Brain 1990, from
#: 54 and 22); the density of brain is 1.04 g/mL.
FLOW_GREY, FLOW_WHITE = 54.0, 22.0
#: Murray's constant, mm (mm3/s)^(-1/3): an M1 of 1.35 mm radius carries 150 mL/min (Zarrinkoob et
#: al., J Cereb Blood Flow Metab 2015: 146 mL/min).
MURRAY = 1.35 / 2500.0 ** (1 / 3)
#: The large trunks are wider than Murray's law has them from their flow (mean diameters: carotid
#: 4 to 5 mm, basilar 3.2 mm; Krabbe-Hartkamp et al., Radiology 1998).
_WIDER = {'ICA': 1.25, 'VA': 1.25, 'BA': 1.25, 'A1': 1.05, 'P1': 1.05}
#: Prevalence of variants of the circle of Willis, per side or person (Krabbe-Hartkamp et al.,
#: Radiology 1998; Iqbal, J Clin Diagn Res 2013): fetal PCA, hypoplastic A1, absent Acom, Pcom.
P_FETAL, P_NO_A1, P_NO_ACOM, P_NO_PCOM = 0.11, 0.05, 0.08, 0.25


@dataclass(frozen=True)
class Tree:
    """Arteries of one person as a graph. Nodes are in template mm.

    Attributes
    ----------
    points : (N, 3) float array
    parent : (N,) int array
        Parent node; -1 at the four roots in the neck. A parent comes before its children.
    radius : (N,) float array
        Radius of the edge to the parent, mm.
    segment : (N,) int array
        Index into `segments`: the named trunk that the node belongs to or grew from.
    territory : (N,) int array
        Label of the territory (see `TERRITORIES`), 0 on shared trunks.
    kind : (N,) int8 array
        0 trunk, 1 pial branch, 2 branch within the tissue.
    demand : (N,) float array
        Healthy blood flow of the tissue that the node feeds, mm3/s; above 0 at terminals only.
    links : (L, 2) int array, link_radius : (L,) float array
        Communicating arteries, which are not part of the tree.
    anastomoses : (K, 2) int array
        Candidates for leptomeningeal collaterals: pial nodes of neighbouring territories.
    segments : tuple of str
        Names such as 'M1-L'.
    variants : tuple of str
        Variants of the circle of Willis that this person has.
    """

    points: Points
    parent: Ints
    radius: Points
    segment: Ints
    territory: Ints
    kind: NDArray[np.int8]
    demand: Points
    links: Ints
    link_radius: Points
    anastomoses: Ints
    segments: tuple[str, ...]
    variants: tuple[str, ...]

    @property
    def terminals(self) -> Ints:
        """Nodes that feed tissue."""
        return np.flatnonzero(self.demand > 0)

    def nodes(self, name: str) -> Ints:
        """Trunk nodes of a named segment, such as 'M1-L', from its origin to its end."""
        index = self.segments.index(name)
        return np.flatnonzero((self.segment == index) & (self.kind == 0))


def label(territory: int, side: str) -> int:
    """Image label of a territory's index and side."""
    return 2 * territory + (1 if side == 'L' else 2)


def smooth_field(points: Points, rng: np.random.Generator, *, scale: float, sd: float) -> Points:
    """Return a smooth random displacement, (N, 3) mm: standard deviation `sd`, length `scale`."""
    waves = rng.standard_normal((3, 24, 3)) / scale
    phases = rng.uniform(0, 2 * np.pi, (3, 24))
    out = [np.cos(points @ w.T + p).sum(1) for w, p in zip(waves, phases, strict=True)]
    return np.stack(out, 1) * (sd / np.sqrt(12.0))


class _Surface:
    """The pial surface as the zero level of a signed distance, and how to move onto it."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.depth = ndimage.gaussian_filter(head.depth, 0.6 / head.affine[0, 0])
        self.gradient = np.stack(np.gradient(self.depth, head.affine[0, 0])).astype(np.float32)

    def __call__(self, points: Points) -> tuple[Points, Points]:
        """Signed distance, (N,), and outward unit normal, (N, 3)."""
        index = self.head.index(points)
        value = ndimage.map_coordinates(self.depth, index, order=1, mode='nearest')
        normal = np.stack(
            [ndimage.map_coordinates(g, index, order=1, mode='nearest') for g in self.gradient], 1
        )
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6
        return value.astype(float), normal.astype(float)

    def project(self, points: Points, *, height: float = 0.7, times: int = 2) -> Points:
        """Move points towards the level `height` mm above the tissue, at most 1.5 mm a time."""
        for _ in range(times):
            value, normal = self(points)
            points = points + normal * np.clip(height - value, -1.5, 1.5)[:, None]
        return points


def _resample(points: Points, step: float = 1.6) -> Points:
    """Return a polyline as a smooth curve with nodes about every `step` mm."""
    from scipy.interpolate import PchipInterpolator

    lengths = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    count = max(2, int(np.ceil(lengths[-1] / step)) + 1)
    return PchipInterpolator(lengths, points)(np.linspace(0, lengths[-1], count))


def _place(parent: str, name: str) -> float:
    """Where along its parent, 0 to 1, the trunk `name` leaves it."""
    if parent.startswith('A1-') or (parent.startswith('Pcom-') and name == 'P2'):
        return 1.0
    course = _BASILAR if parent == 'BA' else _TRUNKS[parent.rsplit('-', 1)[0]][2]
    line = _resample(np.array(course, float), 0.2)
    gap = np.linalg.norm(line - np.array(_TRUNKS[name][2][0]), axis=1)
    return float(np.argmin(gap) / (len(line) - 1))


class _Builder:
    """Nodes under construction."""

    def __init__(self) -> None:
        self.points: list[Points] = []
        self.parent: list[int] = []
        self.segment: list[int] = []
        self.territory: list[int] = []
        self.names: list[str] = []
        self.of: dict[str, list[int]] = {}

    def add(self, name: str, line: Points, parent: int, territory: int) -> None:
        self.names.append(name)
        nodes = []
        for point in line:
            self.points.append(point)
            self.parent.append(parent)
            self.segment.append(len(self.names) - 1)
            self.territory.append(territory)
            parent = len(self.points) - 1
            nodes.append(parent)
        self.of[name] = nodes

    def nearest(self, name: str, place: float) -> int:
        """Return the node at a share of the length of a trunk."""
        nodes = self.of[name]
        return nodes[round(place * (len(nodes) - 1))]


def _trunks(
    surface: _Surface, rng: np.random.Generator
) -> tuple[_Builder, list[tuple[int, int, float]], list[str]]:
    """Named trunks with this person's course and variants, and the communicating links."""
    builder = _Builder()
    links: list[tuple[int, int, float]] = []
    variants: list[str] = []
    shared = rng.spawn(1)[0]
    both: list[Any] = [shared.bit_generator.seed_seq] * 2
    own = rng.spawn(2)
    lines: dict[str, dict[str, Points]] = {}
    for mirror, side, generator, seed in zip((-1, 1), 'LR', own, both, strict=True):
        common = np.random.default_rng(seed)
        lines[side] = {}
        for name, (_, _, points) in _TRUNKS.items():
            line = _resample(np.array(points, float))
            sd = 1.0 if name in ('ICA', 'VA', 'Pcom', 'A1', 'P1') else 1.6
            # Most of a person's course is alike on both sides; the rest is each side's own.
            line += smooth_field(line, common, scale=14.0, sd=sd)
            line += smooth_field(line, generator, scale=9.0, sd=0.6 * sd)
            if name not in ('ICA', 'VA'):
                line = surface.project(line, times=3)
                line[1:-1] = ndimage.gaussian_filter1d(line, 1.0, axis=0)[1:-1]
            line[:, 0] = np.where(line[:, 0] < 0.8, 0.8, line[:, 0]) * mirror
            lines[side][name] = line
    basilar = _resample(np.array(_BASILAR, float))
    basilar += smooth_field(basilar, rng, scale=14.0, sd=1.2)
    basilar = surface.project(basilar, times=3)

    fetal = {side: bool(rng.random() < P_FETAL) for side in 'LR'}
    no_a1 = str(rng.choice(['', 'L', 'R'], p=[1 - 2 * P_NO_A1, P_NO_A1, P_NO_A1]))
    no_acom = not no_a1 and bool(rng.random() < P_NO_ACOM)
    pcom = {side: bool(rng.random() >= P_NO_PCOM) or fetal[side] for side in 'LR'}
    variants += [f'fetal PCA {s}' for s in 'LR' if fetal[s]]
    variants += [f'absent A1 {no_a1}'] if no_a1 else []
    variants += ['absent Acom'] if no_acom else []
    variants += [f'absent Pcom {s}' for s in 'LR' if not pcom[s]]

    def attach(name: str, side: str, parent: str | None) -> None:
        _, territory, _ = _TRUNKS[name]
        line = lines[side][name]
        origin = -1
        if parent is not None:
            origin = builder.nearest(parent, _place(parent, name))
            # The first millimetres bend over to where the parent really runs.
            fade = np.exp(-np.arange(len(line)) / 3.0)[:, None]
            line = (line + fade * (builder.points[origin] - line[0]))[1:]
        builder.add(
            f'{name}-{side}', line, origin, 0 if territory is None else label(territory, side)
        )

    for side in 'LR':
        attach('ICA', side, None)
        attach('VA', side, None)
    # The basilar continues the left vertebral in the tree; the right one joins by a link.
    dominant = 'L' if rng.random() < 0.6 else 'R'
    other = 'R' if dominant == 'L' else 'L'
    builder.add('BA', basilar, builder.of[f'VA-{dominant}'][-1], 0)
    links.append((builder.of[f'VA-{other}'][-1], builder.of['BA'][0], 1.25))
    sides = ['R', 'L'] if no_a1 == 'L' else ['L', 'R']
    for side in sides:
        for name, (parent, _, _) in _TRUNKS.items():
            if name in ('ICA', 'VA', 'Pcom'):
                continue
            if name == 'A1' and side == no_a1:
                continue
            if name == 'P1' and fetal[side]:
                continue
            if name == 'P2' and fetal[side]:
                attach('Pcom', side, f'ICA-{side}')
                attach(name, side, f'Pcom-{side}')
                continue
            if name == 'A2' and side == no_a1:
                attach(name, side, f'A1-{sides[0]}')
                continue
            attach(name, side, 'BA' if parent == 'BA' else f'{parent}-{side}')
        if fetal[side]:
            # A thin P1 remains.
            links.append((builder.of['BA'][-1], builder.of[f'Pcom-{side}'][-1], 0.35))
        elif pcom[side]:
            attach('Pcom', side, f'ICA-{side}')
            links.append((builder.of[f'Pcom-{side}'][-1], builder.of[f'P2-{side}'][0], 0.55))
    if not no_a1 and not no_acom:
        links.append((builder.of['A1-L'][-1], builder.of['A1-R'][-1], 0.75))
    return builder, links, variants


def territory_of(points: Points, rng: np.random.Generator | None = None) -> Ints:
    """Territory labels of template points, (N, 3) mm, by centres with this person's borders."""
    side = points[:, 0] >= 0
    moved = np.abs(points) * [1, 0, 0] + points * [0, 1, 1]
    if rng is not None:
        moved = moved + smooth_field(moved, rng, scale=25.0, sd=4.0)
    best = np.full(len(points), np.inf)
    out = np.zeros(len(points), np.int64)
    brainstem = (np.abs(points[:, 0]) < 16) & (points[:, 2] < -14)
    # Further forward lie the straight gyri, which the anterior cerebral artery feeds.
    brainstem &= (points[:, 1] > -48) & (points[:, 1] < -6)
    cerebellum = (points[:, 2] < -12) & (points[:, 1] < -32) & ~brainstem
    # The tentorium: cerebrum above a roof that falls to both sides.
    roof = -8.0 - 0.28 * np.abs(points[:, 0]) - 0.12 * np.clip(-points[:, 1] - 60, 0, 60)
    cerebellum &= points[:, 2] < roof
    below = cerebellum | brainstem
    for territory, centres in _CENTRES:
        gap = cKDTree(np.array(centres, float)).query(moved)[0] - _PULL.get(territory, 0.0)
        if territory in (8, 9, 10):
            gap = np.where(cerebellum, gap, np.inf)
        elif territory in (11, 12):
            gap = np.where(brainstem, gap, np.inf)
        elif territory == 7:
            gap = np.where(cerebellum, np.inf, gap)
        else:
            gap = np.where(below, np.inf, gap)
        closer = gap < best
        best = np.where(closer, gap, best)
        out = np.where(closer, 2 * territory + 1 + side, out)
    return out


def _thin(points: Points, spacing: float, rng: np.random.Generator) -> Ints:
    """Return indices of a random subset with about one point per cube of `spacing` mm."""
    order = rng.permutation(len(points))
    cells = np.floor(points[order] / spacing + rng.random(3)).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    return np.sort(order[first])


#: Offset between territories in the fourth coordinate, so that one kd-tree holds all of them and
#: a branch grows in its own territory only.
_APART = 1000.0


def _four(points: Points, territory: Ints) -> Points:
    return np.column_stack([points, territory * _APART])


def _colonise(
    points: Points,
    parent: Ints,
    segment: Ints,
    territory: Ints,
    roots: Ints,
    attractors: Points,
    wanted: Ints,
    surface: _Surface | None,
) -> tuple[Points, Ints, Ints, Ints, Ints]:
    """Grow branches from `roots` until each attractor is reached; it becomes a terminal.

    Returns the grown arrays and the node of each attractor.
    """
    size = len(points)
    room = size + 12 * len(attractors)
    pts, par = np.zeros((room, 3)), np.full(room, -1, np.int64)
    seg, ter = np.zeros(room, np.int64), np.zeros(room, np.int64)
    pts[:size], par[:size], seg[:size], ter[:size] = points, parent, segment, territory
    gap, near = cKDTree(_four(points[roots], territory[roots])).query(_four(attractors, wanted))
    if not np.all(gap < _APART / 2):
        lost = np.unique(wanted[gap >= _APART / 2])
        raise AssertionError(f'territories without a root: {lost}')
    near = roots[near]
    node = np.full(len(attractors), -1, np.int64)
    stuck = np.zeros(len(attractors), np.int64)
    while True:
        ready = np.flatnonzero((node < 0) & ((gap < REACH) | (stuck >= 3)))
        if len(ready):
            fresh = np.arange(size, size + len(ready))
            pts[fresh], par[fresh] = attractors[ready], near[ready]
            seg[fresh], ter[fresh] = seg[near[ready]], wanted[ready]
            node[ready] = fresh
            size += len(ready)
        active = np.flatnonzero(node < 0)
        if not len(active):
            break
        pull = attractors[active] - pts[near[active]]
        pull /= np.linalg.norm(pull, axis=1, keepdims=True) + 1e-9
        tips, inverse = np.unique(near[active], return_inverse=True)
        way: Points = np.stack([np.bincount(inverse, pull[:, a]) for a in range(3)], 1)
        way /= np.linalg.norm(way, axis=1, keepdims=True) + 1e-9
        if surface is not None:
            _, normal = surface(pts[tips])
            way -= 0.7 * (way * normal).sum(1, keepdims=True) * normal
            way /= np.linalg.norm(way, axis=1, keepdims=True) + 1e-9
        grown = pts[tips] + STEP * way
        if surface is not None:
            grown = surface.project(grown, times=1)
        if size + len(grown) + len(active) >= room:
            stuck[active] = 3
            continue
        fresh = np.arange(size, size + len(grown))
        pts[fresh], par[fresh], seg[fresh], ter[fresh] = grown, tips, seg[tips], ter[tips]
        ter[fresh] = wanted[active][np.unique(inverse, return_index=True)[1]]
        size += len(grown)
        closer, which = cKDTree(_four(grown, ter[fresh])).query(
            _four(attractors[active], wanted[active])
        )
        better = closer < gap[active] - 0.3
        stuck[active] = np.where(better, 0, stuck[active] + 1)
        gap[active] = np.where(better, closer, gap[active])
        near[active] = np.where(better, fresh[which], near[active])
    return pts[:size], par[:size], seg[:size], ter[:size], node


def grow(head: Head, seed: int) -> Tree:
    """Grow one person's arteries.

    Parameters
    ----------
    head : Head
        The template's head; 1 or 2 mm.
    seed : int
        Sets the course of the trunks, the variants, the borders of the territories and all
        branches.

    Returns
    -------
    Tree
    """
    rng = np.random.default_rng([seed, 101])
    surface = _Surface(head)
    builder, links, variants = _trunks(surface, rng)
    points = np.array(builder.points)
    parent, segment = np.array(builder.parent), np.array(builder.segment)
    territory = np.array(builder.territory)
    border_seed = int(rng.integers(2**31))

    # Tissue voxels about 2 mm apart: where the blood must go.
    stride = max(1, round(2.0 / head.affine[0, 0]))
    coarse = tuple(slice(None, None, stride) for _ in range(3))
    grid = np.argwhere(np.ones_like(head.brain[coarse])) * stride
    keep = (head.brain & (head.grey + head.white > 0.3))[tuple(grid.T)]
    voxel = grid[keep]
    tissue = head.affine[:3, 3] + voxel * head.affine[0, 0]
    of_tissue = territory_of(tissue, np.random.default_rng(border_seed))
    index = tuple(voxel.T)
    volume = (stride * head.affine[0, 0]) ** 3
    per_mm3 = 1.04 / 100 / 60  # mL/100 g/min -> mm3/s per mm3
    need = (FLOW_GREY * head.grey[index] + FLOW_WHITE * head.white[index]) * per_mm3 * volume
    depth = head.depth[index]

    pial = np.isin((of_tissue - 1) // 2, PIAL)
    rim = np.flatnonzero(pial & (depth > -3.0))
    on_rim = rim[_thin(tissue[rim], PIAL_SPACING, rng)]
    targets = surface.project(tissue[on_rim], times=4)
    targets[:, 0] = np.where(
        tissue[on_rim, 0] >= 0, np.maximum(targets[:, 0], 0.6), np.minimum(targets[:, 0], -0.6)
    )
    wanted = of_tissue[on_rim]
    trunk_count = len(points)
    roots = np.flatnonzero(np.isin((territory - 1) // 2, PIAL) & (territory > 0))
    points, parent, segment, territory, at = _colonise(
        points, parent, segment, territory, roots, targets, wanted, surface
    )
    pial_count, terminals = len(points), [at]

    deep = np.flatnonzero(~pial | (depth < -6.0))
    deep = deep[_thin(tissue[deep], DEEP_SPACING, rng)]
    # The perforators leave the trunks at the base; everything else comes from the pial arteries.
    names = np.array([n.rsplit('-', 1)[0] for n in builder.names])[segment]
    right = np.array([n.endswith('-R') for n in builder.names])[segment]
    trunk = np.arange(pial_count) < trunk_count
    extra: list[tuple[str, int, bool]] = [('M1', 4, False), ('P1', 7, False), ('BA', 11, True),
                                          ('VA', 12, False), ('AChA', 6, False)]  # fmt: skip
    roots_deep, root_territory = [np.flatnonzero(territory > 0)], [territory[territory > 0]]
    for name, index_of, midline in extra:
        nodes = np.flatnonzero(trunk & (names == name))
        if name == 'VA':
            nodes = nodes[points[nodes, 2] > -70]
        for side in 'LR':
            mine = nodes if midline else nodes[right[nodes] == (side == 'R')]
            if name == 'P1' and not len(mine):  # fetal: the thin P1 is a link
                mine = np.flatnonzero(trunk & (names == 'BA'))[-2:]
            roots_deep.append(mine)
            root_territory.append(np.full(len(mine), label(index_of, side)))
    root_nodes, root_label = np.concatenate(roots_deep), np.concatenate(root_territory)
    # A trunk that feeds two sides stands twice in the kd-tree, once under each label.
    copies = len(points) + np.arange(len(root_nodes))
    grown = _colonise(
        np.vstack([points, points[root_nodes]]),
        np.r_[parent, root_nodes],
        np.r_[segment, segment[root_nodes]],
        np.r_[territory, root_label],
        copies,
        tissue[deep],
        of_tissue[deep],
        None,
    )
    points, parent, segment, territory, at = grown
    # Take the copies out again.
    real = np.arange(len(points))
    real[copies] = root_nodes
    parent = np.where(parent >= 0, real[np.maximum(parent, 0)], -1)
    order = np.r_[np.arange(pial_count), np.arange(copies[-1] + 1, len(points))]
    place = np.full(len(points), -1)
    place[order] = np.arange(len(order))
    points, segment, territory = points[order], segment[order], territory[order]
    parent = np.where(parent[order] >= 0, place[parent[order]], -1)
    terminals.append(place[at])
    kind = np.full(len(points), 2, np.int8)
    kind[:trunk_count], kind[trunk_count:pial_count] = 0, 1

    ends = np.concatenate(terminals)
    # Each voxel's demand falls to the nearest terminal of its own territory.
    which = cKDTree(_four(points[ends], territory[ends])).query(_four(tissue, of_tissue))[1]
    demand = np.zeros(len(points))
    np.add.at(demand, ends[which], need)
    demand[ends] = np.maximum(demand[ends], 0.05)
    flow = demand.copy()
    for node in range(len(points) - 1, -1, -1):
        if parent[node] >= 0:
            flow[parent[node]] += flow[node]
    # Half of the basilar's flow comes by the vertebral that is only linked.
    vertebral = [n for n in builder.of if n.startswith('VA-')]
    through = flow[builder.of['BA'][0]]
    share = rng.uniform(0.4, 0.6)
    carrier = parent[builder.of['BA'][0]]
    for name in vertebral:
        for node in builder.of[name]:
            flow[node] += -share * through if builder.of[name][-1] == carrier else share * through
    radius = MURRAY * np.cbrt(np.maximum(flow, 0.05))
    wider = np.array([_WIDER.get(n.rsplit('-', 1)[0], 1.0) for n in builder.names])
    radius *= np.where(kind == 0, wider[segment], 1.0)
    # Trunks that carry little in health (a Pcom) still have a lumen.
    radius[:trunk_count] = np.maximum(radius[:trunk_count], 0.22)
    for name, along in builder.of.items():
        if name.startswith('Pcom') and radius[along[-1]] < 0.5:
            radius[along] = rng.uniform(0.35, 0.65)
    pairs = _anastomoses(points, territory, radius, kind, rng)
    return Tree(
        points=points,
        parent=parent,
        radius=radius,
        segment=segment,
        territory=territory,
        kind=kind,
        demand=demand,
        links=np.array([(a, b) for a, b, _ in links], np.int64).reshape(-1, 2),
        link_radius=np.array([r for _, _, r in links]),
        anastomoses=pairs,
        segments=tuple(builder.names),
        variants=tuple(variants),
    )


def _anastomoses(
    points: Points,
    territory: Ints,
    radius: Points,
    kind: NDArray[np.int8],
    rng: np.random.Generator,
) -> Ints:
    """Pairs of pial nodes of different territories within reach, spread along the borders.

    Leptomeningeal anastomoses join arterioles of 0.05 to 0.4 mm radius at the borders between the
    cerebral arteries (Brozici et al., Stroke 2003; Vander Eecken and Adams 1953).
    """
    out = []
    index = (territory - 1) // 2
    for group in (CEREBRAL, CEREBELLAR):
        for side in (0, 1):
            nodes = np.flatnonzero(
                (kind == 1) & (territory > 0) & (territory % 2 == 1 - side)
                & np.isin(index, group) & (radius > 0.18) & (radius < 0.4)
            )  # fmt: skip
            pairs = cKDTree(points[nodes]).query_pairs(14.0, output_type='ndarray')
            pairs = nodes[pairs]
            pairs = pairs[territory[pairs[:, 0]] != territory[pairs[:, 1]]]
            # The two divisions of the MCA are hardly joined, as two cerebral arteries are (Vander
            # Eecken and Adams 1953): a share of .02 left M2 occlusions half the harm they have.
            within = np.isin(index[pairs], (1, 2)).all(1)
            pairs = pairs[~within | (rng.random(len(pairs)) < 0.005)]
            # Prefer wide partners; no two anastomoses closer than 4 mm.
            merit = np.log(radius[pairs]).sum(1) + 0.3 * rng.standard_normal(len(pairs))
            taken: list[Ints] = []
            middle = points[pairs].mean(1)
            blocked = np.zeros(len(pairs), bool)
            tree = cKDTree(middle) if len(pairs) else None
            for i in np.argsort(-merit):
                if blocked[i] or tree is None:
                    continue
                blocked[tree.query_ball_point(middle[i], 4.0)] = True
                taken.append(pairs[i])
            out.extend(taken)
    return np.array(out, np.int64).reshape(-1, 2)
