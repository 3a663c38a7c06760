"""Cohorts whose substrates are known, in families; shared by the benchmarks of the deficit models.

``made``: vascular-like maps (an occlusion takes a branch of a jittered arterial tree, with a soft
border, collaterals, noise and misregistration) and 15 ordinal items whose substrates are single
spheres, cortex-and-tract networks and lateralised pairs, or nothing but volume. ``phantom``: the
patients and scores of `bids_perfdeficit.phantom`. ``shapes``: the maps of ``made`` with substrates
that are not spheres (`draw_shapes`): gyral strips, thin tracts, an arcuate bundle, two regions
that both must be affected, a bilateral function, 20 to 40 mL. ``lesions``: the same shapes in the
brain of the template and scores of real lesion masks.

Scores of ``shapes`` and ``lesions`` follow `hill` curves, the most affected segment of a bundle
(disconnection), the less affected of two regions, or the more affected of two sides, beside a part
that follows volume; 5 % are wrong and 3 % missing. Must not import `bids_perfdeficit.deficit`:
what makes a cohort shares no code with what is fitted to it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage, sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial import cKDTree

SEEDS = Path(__file__).parent / 'seeds'


@dataclass(frozen=True, eq=False)
class Space:
    """Voxels of a brain, in the order of ``volume[mask]``."""

    mask: np.ndarray
    affine: np.ndarray

    @functools.cached_property
    def coordinates(self) -> np.ndarray:
        """(V, 3) RAS mm."""
        return np.argwhere(self.mask) @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def n_voxels(self) -> int:
        return int(self.mask.sum())

    @property
    def spacing(self) -> np.ndarray:
        return np.abs(np.diag(self.affine[:3, :3]))

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing) / 1000)

    @functools.cached_property
    def depth(self) -> np.ndarray:
        """(V,) mm from the surface of the brain."""
        padded = np.pad(self.mask, 1)
        away = ndimage.distance_transform_edt(padded, sampling=self.spacing)
        return away[1:-1, 1:-1, 1:-1][self.mask]

    @functools.cached_property
    def tree(self) -> cKDTree:
        return cKDTree(self.coordinates)

    def embed(self, values: np.ndarray) -> np.ndarray:
        volume = np.zeros(self.mask.shape, np.result_type(values, np.float32))
        volume[self.mask] = values
        return volume


@dataclass(frozen=True)
class ItemSpec:
    """An ordinal score: 0 to ``levels - 1``; ``mirror`` asks the same of the other side."""

    name: str
    levels: int
    mirror: str | None = None


@dataclass(frozen=True, eq=False)
class Cohort:
    """Maps, scores and truth.

    ``maps`` (N, V) lie on ``space``; ``truths`` has the substrate (V,) of each item that has one;
    ``given`` says that maps are lesions, which models use as they are. ``truth_space`` is the
    brain of the truths where the maps cover only a part of it.
    """

    space: Space
    maps: np.ndarray
    scores: np.ndarray
    items: tuple[ItemSpec, ...]
    truths: dict[str, np.ndarray]
    given: bool = False
    truth_space: Space | None = None


def seeds_of(name: str, family: str) -> list[int]:
    """Return the seeds of a family in the set ``development`` or ``held_out``."""
    return json.loads((SEEDS / f'{name}.json').read_text())[family]


# --- maps of the family `made`

ITEMS = (
    ItemSpec('1a', 4), ItemSpec('1b', 3), ItemSpec('1c', 3), ItemSpec('2', 3), ItemSpec('3', 4),
    ItemSpec('4', 4), ItemSpec('5a', 5, '5b'), ItemSpec('5b', 5, '5a'), ItemSpec('6a', 5, '6b'),
    ItemSpec('6b', 5, '6a'), ItemSpec('7', 3), ItemSpec('8', 3), ItemSpec('9', 4),
    ItemSpec('10', 3), ItemSpec('11', 3),
)  # fmt: skip
#: Pieces of each substrate: RAS mm and radius. Items that are not here follow volume (1a to 1c) or
#: nothing (7).
SUBSTRATES = {
    '2': [((38, -2, 46), 11)],
    '3': [((-14, -86, 4), 12), ((14, -86, 4), 12)],
    '4': [((50, -8, 30), 9), ((-50, -8, 30), 9)],
    '5a': [((36, -20, 52), 11), ((26, -14, 14), 8)],
    '5b': [((-36, -20, 52), 11), ((-26, -14, 14), 8)],
    '6a': [((10, -30, 60), 10), ((22, -18, 10), 7)],
    '6b': [((-10, -30, 60), 10), ((-22, -18, 10), 7)],
    '8': [((42, -30, 50), 11)],
    '9': [((-46, 16, 14), 11), ((-52, -42, 16), 12)],
    '10': [((-44, -8, 22), 9)],
    '11': [((50, -44, 34), 14)],
}
#: Share of participants with any deficit, by item; others 0.4.
PREVALENCE = {'1a': 0.25, '1b': 0.3, '1c': 0.25, '3': 0.25, '7': 0.15, '11': 0.25, '2': 0.25}
LINKS = ('or', 'share', 'saturating', 'all')
#: The digital patients of `phantom`, by the links of their scores.
PHANTOMS = tuple(
    f'phantom-{k}{mix}'
    for k in ('mixed', 'threshold', 'saturating', 'synergistic')
    for mix in ('', '-distal')
)
#: Shares of the sites where smaller vessels and the posterior circulation are the rule.
DISTAL = {
    'none': 0.20, 'ICA': 0.05, 'M1': 0.15, 'M2sup': 0.15, 'M2inf': 0.15, 'A2': 0.10, 'P1': 0.05,
    'P2': 0.10, 'BA': 0.05,
}  # fmt: skip


def brain(spacing: float) -> Space:
    """Return an ellipsoid of the size of a brain, symmetric about the midline."""
    half = np.floor(68 / spacing) * spacing
    across = np.arange(-half, half + 1, spacing)
    axes = [across, np.arange(-104, 73, spacing), np.arange(-52, 77, spacing)]
    x, y, z = np.meshgrid(*axes, indexing='ij')
    mask = (x / 68) ** 2 + ((y + 16) / 86) ** 2 + ((z - 10) / 62) ** 2 <= 1
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [a[0] for a in axes]
    return Space(mask, affine)


def smooth_field(space: Space, rng, width: float) -> np.ndarray:
    """Return (V,) white noise smoothed by `width` mm, of mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(space.mask.shape), width / space.spacing)
    return ((field - field.mean()) / field.std())[space.mask]


def make_maps(space: Space, n: int, seed: int, *, noise=0.08, shift=2.0):
    """Return (error-free, measured) maps; the measured ones noisy and `shift` mm off."""
    anatomy = np.random.default_rng(7)  # the same arteries for everyone, in every cohort
    rng = np.random.default_rng(seed)
    xyz = space.coordinates
    ends = brain(4.0).coordinates
    ends = ends[anatomy.choice(np.flatnonzero(ends[:, 0] > 4), 40, replace=False)]
    tree = [fcluster(linkage(ends, 'ward'), k, 'maxclust') for k in (2, 3, 6, 12, 24)]
    clean = np.zeros((n, space.n_voxels), np.float32)
    measured = np.empty_like(clean)
    for i in range(n):
        if rng.random() > 0.25:
            side = rng.choice([-1, 1])
            branches = tree[rng.choice(5, p=[0.12, 0.28, 0.25, 0.2, 0.15])]
            inside = branches == rng.integers(1, branches.max() + 1)
            moved = ends + rng.normal(0, 5, ends.shape)
            mine = xyz * [side, 1, 1]
            near = cKDTree(moved[inside]).query(mine)[0]
            far = cKDTree(moved[~inside]).query(mine)[0] if (~inside).any() else 99.0
            core = (mine[:, 0] > 0) / (1 + np.exp((near - far) / rng.uniform(2, 6)))
            collaterals = 1 + 0.35 * smooth_field(space, rng, 12)
            clean[i] = np.clip(rng.beta(4, 2) * core * collaterals, 0, 1)
        moved = space.embed(clean[i])
        if shift:
            moved = ndimage.shift(moved, rng.normal(0, shift, 3) / space.spacing, order=1)
        measured[i] = 0.1 + 0.05 * smooth_field(space, rng, 20) + moved[space.mask]
        measured[i] += noise * rng.standard_normal(space.n_voxels)
    return clean, np.clip(measured, 0, 1)


def spheres_of(space: Space, name: str) -> list[np.ndarray]:
    """Return the pieces (V,) of a substrate of `SUBSTRATES`."""
    return [
        np.linalg.norm(space.coordinates - centre, axis=1) <= radius
        for centre, radius in SUBSTRATES[name]
    ]


def link(kind: str, maps: np.ndarray, pieces: list[np.ndarray]) -> np.ndarray:
    """Return the drive of a score (N,) from maps and the pieces of its substrate."""
    shares = np.stack([maps[:, p].mean(1) for p in pieces])
    if kind == 'or':
        return shares.max(0)
    if kind == 'share':
        return maps[:, np.any(pieces, 0)].mean(1)
    if kind == 'saturating':
        return 1 - np.prod(1 - np.tanh(2.5 * shares), 0)
    if kind == 'all':  # tissue counts only where it is clearly affected, piece by piece
        return np.stack([(maps[:, p] > 0.35).mean(1) for p in pieces]).mean(0)
    raise ValueError(kind)


def make_scores(space: Space, clean: np.ndarray, seed: int, kind: str, flips: float):
    """Return (N, 15) scores of `ITEMS` and the truth of each item that has one."""
    rng = np.random.default_rng(seed + 5000)
    n, columns, truths = len(clean), [], {}
    for item in ITEMS:
        if item.name in SUBSTRATES:
            pieces = spheres_of(space, item.name)
            truths[item.name] = np.any(pieces, 0)
            drive = 7 * link(kind, clean, pieces)
        else:
            drive = np.zeros(n) if item.name == '7' else 25 * clean.mean(1)
        latent = drive + rng.logistic(size=n) * 0.7
        share = PREVALENCE.get(item.name, 0.4)
        cuts = np.quantile(latent, 1 - share * np.array([1, 0.6, 0.4, 0.2])[: item.levels - 1])
        columns.append(_spoil((latent[:, None] > cuts).sum(1), item.levels, flips, rng))
    return np.stack(columns, 1), truths


def _spoil(score: np.ndarray, levels: int, flips: float, rng) -> np.ndarray:
    """Replace a share of scores by any level, and 3 % by NaN."""
    score = score.astype(float)
    wrong = rng.random(len(score)) < flips
    score[wrong] = rng.integers(0, levels, wrong.sum())
    score[rng.random(len(score)) < 0.03] = np.nan
    return score


def made_cohort(n, seed, kind, *, spacing=4.0, flips=0.05, noise=0.08, shift=2.0) -> Cohort:
    """Return a cohort of the family ``made``, with one of `LINKS`."""
    space = brain(spacing)
    clean, maps = make_maps(space, n, seed, noise=noise, shift=shift)
    scores, truths = make_scores(space, clean, seed, kind, flips)
    return Cohort(space, maps, scores, ITEMS, truths)


def phantom_cohort(n: int, seed: int, kind: str) -> Cohort:
    """Return a cohort of digital patients on the 2 mm template; about 1 s a patient on a core."""
    from bids_perfdeficit import phantom

    links, _, mix = kind.removeprefix('phantom-').partition('-')
    cohort = phantom.make_cohort(
        seed, n, trees=10, links=links, mix=DISTAL if mix == 'distal' else None, processes=1
    )
    names = [column.removeprefix('nihss_') for column in cohort.scores.columns]
    scores = cohort.scores.iloc[:, [names.index(item.name) for item in ITEMS]].to_numpy(float)
    truths = {name: truth[cohort.mask] for name, truth in phantom.substrates(spacing=2).items()}
    return Cohort(Space(cohort.mask, cohort.affine), cohort.perfusion, scores, ITEMS, truths)


# --- substrates that are not spheres


@dataclass(frozen=True, eq=False)
class Shape:
    """A substrate: its pieces (V,), and how they make up the drive of a score.

    ``link``: ``hill`` of the whole, ``disconnection`` (the pieces are segments of a bundle),
    ``and`` (the less affected piece), ``either`` (the more affected piece), ``early`` (a curve
    that saturates early, of the whole).
    """

    name: str
    pieces: tuple[np.ndarray, ...]
    link: str

    @functools.cached_property
    def whole(self) -> np.ndarray:
        return np.any(self.pieces, 0)

    def drive(self, maps) -> np.ndarray:
        """Return the drive (N,), 0 to 1, of (N, V) maps, which may be sparse."""
        shares = np.stack([_mean_over(maps, piece) for piece in self.pieces])
        if self.link == 'disconnection':
            return hill(shares.max(0), 0.35, 4)
        if self.link == 'and':
            return hill(shares.min(0), 0.15, 2)
        if self.link == 'either':
            return hill(shares.max(0), 0.25, 3)
        whole = _mean_over(maps, self.whole)
        return 1 - np.exp(-whole / 0.15) if self.link == 'early' else hill(whole, 0.2, 3)


def hill(share: np.ndarray, middle: float, power: float) -> np.ndarray:
    """Return a curve that is 0 at 0, a half at `middle`, and steep with `power`."""
    return share**power / (share**power + middle**power)


def _mean_over(maps, piece: np.ndarray) -> np.ndarray:
    if not piece.any():
        return np.zeros(maps.shape[0])
    if sparse.issparse(maps):
        return np.asarray(maps @ (piece / piece.sum())).ravel()
    return maps[:, piece].mean(1)


def draw_shapes(space: Space, rng) -> Iterator[Shape]:
    """Yield the eight substrates of a cohort; draws again each time that it is called."""
    sides = rng.permutation([-1, 1])
    for side, name in zip(sides, ('strip-1', 'strip-2'), strict=True):
        yield Shape(name, (_strip(space, rng, side),), 'hill')
    for side, name in zip(rng.permutation([-1, 1]), ('tract-1', 'tract-2'), strict=True):
        yield Shape(name, _tract(space, rng, side), 'disconnection')
    yield Shape('arcuate', _arcuate(space, rng, rng.choice([-1, 1])), 'disconnection')
    yield Shape('and', _pair(space, rng, rng.choice([-1, 1])), 'and')
    one = _blob(space, rng, _anywhere(space, rng, -1, 0), rng.uniform(4, 10))
    yield Shape('bilateral', (one, _mirror(space, one)), 'either')
    centre = _anywhere(space, rng, rng.choice([-1, 1]), 10)
    yield Shape('large', (_blob(space, rng, centre, rng.uniform(20, 40)),), 'early')


def _anywhere(space: Space, rng, side: int, depth: float) -> np.ndarray:
    """Return a voxel's mm on a side, deeper than `depth` mm and above the brain stem."""
    xyz = space.coordinates
    some = (side * xyz[:, 0] > 8) & (space.depth > depth) & (xyz[:, 2] > -20)
    return xyz[rng.choice(np.flatnonzero(some))]


def _strip(space: Space, rng, side: int) -> np.ndarray:
    """Return a winding strip of cortex: 40 to 80 mm long, 10 to 16 mm wide, 10 mm deep."""
    xyz = space.coordinates
    shell = xyz[(space.depth <= 10) & (side * xyz[:, 0] > 10) & (xyz[:, 2] > -5)]
    nearest = cKDTree(shell)
    point = shell[rng.integers(len(shell))]
    heading = rng.standard_normal(3)
    points = [point]
    for _ in range(int(rng.uniform(40, 80) / 4)):
        heading = heading / np.linalg.norm(heading) + 0.3 * rng.standard_normal(3)
        ahead = point + 4 * heading / np.linalg.norm(heading)
        ahead = shell[nearest.query(ahead)[1]]
        heading = ahead - point if np.any(ahead != point) else rng.standard_normal(3)
        point = ahead
        points.append(point)
    away = cKDTree(np.array(points)).query(xyz)[0]
    return (away <= rng.uniform(5, 8)) & (space.depth <= 10) & (side * xyz[:, 0] > 0)


def _tube(space: Space, knots: np.ndarray, radius: float, segments: int):
    """Return the segments of a tube along a smooth curve through knots."""
    along = np.linspace(0, 1, len(knots))
    fine = np.linspace(0, 1, 400)
    degree = min(3, len(knots) - 1)
    curve = np.stack([np.polyval(np.polyfit(along, k, degree), fine) for k in knots.T], 1)
    away, nearest = cKDTree(curve).query(space.coordinates)
    part = np.minimum(fine[nearest] * segments, segments - 1).astype(int)
    return tuple((away <= radius) & (part == s) for s in range(segments))


def _tract(space: Space, rng, side: int):
    """Return a corticospinal-like bundle of 4 to 5 mm radius, as six segments."""
    xyz = space.coordinates
    top = (side * xyz[:, 0] > 4) & (xyz[:, 2] > 40) & (np.abs(xyz[:, 1] + 20) < 30)
    start = xyz[rng.choice(np.flatnonzero(top & (space.depth < 12)))]
    knots = np.array(
        [start, (side * 26, -20, 30), (side * 23, -14, 8), (side * 14, -20, -12),
         (side * 8, -26, -32)]
    )  # fmt: skip
    knots[1:] += rng.normal(0, 3, (4, 3))
    return _tube(space, knots, rng.uniform(4, 5), 6)


def _arcuate(space: Space, rng, side: int):
    """Return a bundle that arches from the inferior frontal to the temporal lobe, 5 segments."""
    knots = np.array(
        [(46, 18, 12), (40, -2, 28), (36, -28, 34), (38, -50, 24), (50, -44, 4), (54, -26, -2)],
        float,
    )
    knots = (knots + rng.normal(0, 4, knots.shape)) * [side, 1, 1]
    return _tube(space, knots, rng.uniform(4, 6), 5)


def _blob(space: Space, rng, centre: np.ndarray, ml: float) -> np.ndarray:
    """Return a ragged region of a volume around a point, on the side of the point."""
    away = np.linalg.norm(space.coordinates - centre, axis=1)
    radius = (ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    rough = away / radius + 0.35 * smooth_field(space, rng, 8)
    rough[np.sign(space.coordinates[:, 0]) != np.sign(centre[0])] = np.inf
    rough[away > 2 * radius] = np.inf
    out = np.zeros(space.n_voxels, bool)
    out[np.argsort(rough)[: max(1, round(ml / space.voxel_ml))]] = True
    return out & np.isfinite(rough)


def _pair(space: Space, rng, side: int):
    """Return two regions of 4 to 8 mL of one hemisphere, 25 to 50 mm apart."""
    first = _anywhere(space, rng, side, 4)
    xyz = space.coordinates
    away = np.linalg.norm(xyz - first, axis=1)
    some = (away > 25) & (away < 50) & (side * xyz[:, 0] > 8) & (xyz[:, 2] > -20)
    second = xyz[rng.choice(np.flatnonzero(some))]
    return tuple(_blob(space, rng, centre, rng.uniform(4, 8)) for centre in (first, second))


def _mirror(space: Space, piece: np.ndarray) -> np.ndarray:
    flipped = space.coordinates[piece] * [-1, 1, 1]
    away, nearest = space.tree.query(flipped)
    out = np.zeros(space.n_voxels, bool)
    out[nearest[away < space.spacing.max()]] = True
    return out


#: Items of the families `shapes` and `lesions`: the shapes, volume alone, nothing.
SHAPE_NAMES = (
    'strip-1', 'strip-2', 'tract-1', 'tract-2', 'arcuate', 'and', 'bilateral', 'large', 'volume',
    'nothing',
)  # fmt: skip
SHAPE_ITEMS = tuple(ItemSpec(name, 4) for name in SHAPE_NAMES)
#: Log-odds between no and full drive, and those that volume adds.
_DRIVE, _VOLUME_DRIVE = 6.0, 1.5
#: Share of participants whom a substrate must touch, or it is drawn again.
_LEAST_TOUCHED = 0.03


def score_shapes(space: Space, maps, seed: int, flips: float = 0.05):
    """Return (N, 10) scores of `SHAPE_ITEMS` and the truths, for (N, V) error-free maps."""
    rng = np.random.default_rng([seed, 77])
    volume = np.asarray(maps.mean(1)).ravel()
    volume = np.clip(volume / np.quantile(volume, 0.98), 0, 1)
    drives: dict[str, np.ndarray] = {}
    truths: dict[str, np.ndarray] = {}
    for _ in range(200):
        for shape in draw_shapes(space, rng):
            if shape.name in truths:
                continue
            drive = shape.drive(maps)
            if (drive > 0.25).mean() >= _LEAST_TOUCHED:
                truths[shape.name], drives[shape.name] = shape.whole, drive
        if len(truths) == len(SHAPE_NAMES) - 2:
            break
    else:
        missing = set(SHAPE_NAMES[:-2]) - set(truths)
        raise RuntimeError(f'no participants are affected in {", ".join(sorted(missing))}')
    columns = []
    for item in SHAPE_ITEMS:
        latent = rng.logistic(size=len(volume))
        if item.name == 'volume':
            latent = latent + _DRIVE * (1 - np.exp(-volume / 0.3))
        elif item.name in truths:
            latent = latent + _DRIVE * drives[item.name] + _VOLUME_DRIVE * volume
        share = rng.uniform(0.2, 0.45)
        cuts = np.quantile(latent, 1 - share * np.array([1, 0.6, 0.3]))
        columns.append(_spoil((latent[:, None] > cuts).sum(1), item.levels, flips, rng))
    return np.stack(columns, 1), truths


def shape_cohort(n, seed, *, spacing=4.0, flips=0.05, noise=0.08, shift=2.0) -> Cohort:
    """Return a cohort of the family ``shapes``."""
    space = brain(spacing)
    clean, maps = make_maps(space, n, seed + 50_000, noise=noise, shift=shift)
    scores, truths = score_shapes(space, clean, seed, flips)
    return Cohort(space, maps, scores, SHAPE_ITEMS, truths)


# --- real lesions


def template_brain() -> Space:
    """Return the brain of the template at 2 mm."""
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    return Space(np.asarray(image.dataobj) > 0, np.asarray(image.affine, float))


def read_lesions(paths: list[Path], space: Space) -> sparse.csr_matrix:
    """Return (N, V) shares of each voxel that are lesioned, of masks on any finer grid."""
    number = np.full(space.mask.shape, -1)
    number[space.mask] = np.arange(space.n_voxels)
    rows, columns, values = [], [], []
    for row, path in enumerate(paths):
        image = nib.load(path)
        index = np.argwhere(np.asarray(image.dataobj) > 0.5)
        mm = index @ image.affine[:3, :3].T + image.affine[:3, 3]
        where = np.rint((mm - space.affine[:3, 3]) / np.diag(space.affine[:3, :3])).astype(int)
        where = where[((where >= 0) & (where < space.mask.shape)).all(1)]
        found = number[tuple(where.T)]
        voxels, counts = np.unique(found[found >= 0], return_counts=True)
        size = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        rows.append(np.full(len(voxels), row))
        columns.append(voxels)
        values.append(np.minimum(counts * size / space.voxel_ml, 1))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_matrix(entries, shape=(len(paths), space.n_voxels))


@dataclass(frozen=True, eq=False)
class Lesions:
    """Real lesions: at 2 mm, which scores are made of, and on the grid that models are given."""

    fine: Space
    shares: sparse.csr_matrix  #: (N, V fine)
    coarse: Space
    maps: np.ndarray  #: (N, V coarse)
    weights: sparse.csr_matrix = field(repr=False)  #: (V fine, V coarse)


def lesion_cohort(lesions: Lesions, n: int, seed: int, *, flips: float = 0.05) -> Cohort:
    """Return `n` of the lesions with scores of the family ``lesions``.

    The substrates are drawn for all lesions, so that cohorts of one seed and another size have the
    same ones. Maps keep the voxels that at least 1 % and 5 of the cohort have lesioned.
    """
    rng = np.random.default_rng([seed, 91])
    scores, truths = score_shapes(lesions.fine, lesions.shares, seed, flips)
    rows = np.sort(rng.choice(len(scores), n, replace=False))
    maps = lesions.maps[rows]
    kept = (maps > 0.5).sum(0) >= max(5, 0.01 * n)
    mask = np.zeros(lesions.coarse.mask.shape, bool)
    mask[lesions.coarse.mask] = kept
    laid = {name: lesions.weights.T @ truth.astype(np.float32) for name, truth in truths.items()}
    return Cohort(
        Space(mask, lesions.coarse.affine),
        np.ascontiguousarray(maps[:, kept]),
        scores[rows],
        SHAPE_ITEMS,
        {name: share >= 0.5 for name, share in laid.items()},
        given=True,
        truth_space=lesions.coarse,
    )
