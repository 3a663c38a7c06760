"""Simulated items: substrates of many shapes, and scores that follow them over a cohort's maps.

The prior from which the network of `models.deep` learns. It is broad on purpose: what it does not
hold the network cannot find (docs/deficit.rst lists it). Shapes know the mask and no anatomy: a
strip lies under the surface of the mask and a tube runs between two of its voxels, so that any
template and any coverage will do. Must not know files, BIDS or how a score is analysed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.preparation import Prepared, channels

#: mL of a whole substrate, drawn evenly in its cube root, and of one that is a tube.
_VOLUME_ML, _TUBE_ML = (1.0, 40.0), (1.0, 15.0)
#: Probability of one, two and three pieces, and that a further piece lies in the hemisphere of the
#: first one; there, that it lies within some mm of it.
_PIECES, _SAME_SIDE = (0.5, 0.32, 0.18), 0.7
_NEAR, _NEAR_MM = 0.6, 45.0
#: Probability that a substrate is compact: one to three spheres of some mm.
_COMPACT, _COMPACT_PIECES, _RADII_MM = 0.35, (0.5, 0.4, 0.1), (6.0, 14.0)
#: Probability that a substrate has a mirror image, for what either hemisphere can do.
_BILATERAL = 0.2
#: Probability that an item has no substrate: it follows volume, or nothing.
_NOTHING = 0.06
#: Probability that the second item of a left-right pair is not the mirror image of the first, and
#: share of a substrate that must have a mirror image for it to be one.
_UNLIKE, _LEAST_MIRRORED = 0.1, 0.7
#: mm below the surface of the mask within which a strip lies.
_CORTEX_MM = 10.0
#: Variance of the latent score that the substrate explains, and that volume explains in half of
#: the items, as shares.
_SIGNAL, _VOLUME = (0.15, 0.9), (0.0, 0.3)
#: Share of participants with more than the lowest level; share of scores that are lapses; share of
#: missing scores in half of the items.
_PREVALENCE, _LAPSES, _MISSING = (0.1, 0.6), (0.0, 0.08), (0.0, 0.3)
#: Numbers of levels that are drawn, those of the NIHSS most.
_LEVELS = (2, 3, 3, 4, 4, 5, 5, 10)
#: mm (standard deviation along each axis) by which a map misses the template: see
#: docs/validity.rst for the error of registration.
_JITTER_MM = 1.5
#: Fewest voxels of a piece.
_LEAST_VOXELS = 2
#: Attempts to draw a substrate in which participants differ.
_ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class Shapes:
    """A mask as shapes are drawn in it.

    Parameters
    ----------
    grid : Grid
    """

    grid: Grid

    @cached_property
    def depth(self) -> NDArray[np.float64]:
        """(V,) mm of each voxel below the surface of the mask."""
        padded = np.pad(self.grid.mask, 1)
        inside = ndimage.distance_transform_edt(padded, sampling=self.grid.spacing)
        return np.asarray(inside[1:-1, 1:-1, 1:-1][self.grid.mask])

    def draw(self, rng: np.random.Generator) -> list[NDArray[np.intp]]:
        """Draw a substrate.

        Returns
        -------
        list of integer arrays
            Voxels of each piece. Pieces may touch; a mirror image is a piece of its own.
        """
        compact = rng.random() < _COMPACT
        count = int(rng.choice(3, p=_COMPACT_PIECES if compact else _PIECES)) + 1
        names = rng.choice(list(_FAMILIES), size=count)
        low, high = _TUBE_ML if 'tube' in names else _VOLUME_ML
        total = rng.uniform(np.cbrt(low), np.cbrt(high)) ** 3
        shares = rng.dirichlet(np.full(count, 3.0))
        x = self.grid.coordinates[:, 0]
        first = int(rng.integers(self.grid.n_voxels))
        pieces: list[NDArray[np.intp]] = []
        for name, share in zip(names, shares, strict=True):
            centre = first
            if pieces:
                near = np.ones(len(x), bool)
                if rng.random() < _SAME_SIDE:
                    near = x * x[first] > 0
                    if rng.random() < _NEAR:
                        points = self.grid.coordinates
                        near &= np.linalg.norm(points - points[first], axis=1) < _NEAR_MM
                if near.any():
                    centre = int(rng.choice(np.flatnonzero(near)))
            if compact:
                order = ((self.grid.coordinates - self.grid.coordinates[centre]) ** 2).sum(1)
                volume = 4 / 3 * np.pi * rng.uniform(*_RADII_MM) ** 3 / 1000
            else:
                order = _FAMILIES[name](self, centre, rng)
                volume = share * total
            size = max(_LEAST_VOXELS, round(volume / self.grid.voxel_ml))
            size = min(size, self.grid.n_voxels // 4 + 1)
            pieces.append(np.argpartition(order, size - 1)[:size])
        if rng.random() < _BILATERAL:
            across = [self.grid.mirror[piece] for piece in pieces]
            pieces += [piece[piece >= 0] for piece in across if (piece >= 0).any()]
        return pieces

    def ellipsoid(self, centre: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return how far voxels are from a centre, in a metric that is stretched at random."""
        away = (self.grid.coordinates - self.grid.coordinates[centre]) @ _rotation(rng)
        return np.asarray(((away * np.exp(rng.normal(0, 0.35, 3))) ** 2).sum(1))

    def field(self, centre: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return a smooth random field that rises with the distance from a centre."""
        width = rng.uniform(4, 10)
        away = np.linalg.norm(self.grid.coordinates - self.grid.coordinates[centre], axis=1)
        return np.asarray(
            away / width - rng.uniform(0.5, 2) * _smooth_field(self.grid, width, rng)
        )

    def strip(self, centre: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return how far voxels are from a line under the surface, and how deep below it."""
        surface = np.flatnonzero(self.depth <= _CORTEX_MM)
        points = self.grid.coordinates
        centre = int(surface[((points[surface] - points[centre]) ** 2).sum(1).argmin()])
        away = (points - points[centre]) @ _rotation(rng)
        stretched = away * [1 / rng.uniform(3, 7), 1, 1]
        bent = 6 * _smooth_field(self.grid, 12, rng)  # mm
        stretched[:, 1] += bent - bent[centre]
        deep = np.maximum(self.depth - _CORTEX_MM, 0)
        return np.asarray(np.sqrt((stretched**2).sum(1)) + 3 * deep)

    def tube(self, centre: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return how far voxels are from a curve between two of them."""
        points = self.grid.coordinates
        reach = rng.uniform(25, 90)
        away = np.linalg.norm(points - points[centre], axis=1)
        end = points[int(np.abs(away - reach + rng.normal(0, 6, len(points))).argmin())]
        middle = (points[centre] + end) / 2 + rng.normal(0, 0.2 * reach, 3)
        t = np.linspace(0, 1, 40)[:, None]
        curve = (1 - t) ** 2 * points[centre] + 2 * t * (1 - t) * middle + t**2 * end
        return np.asarray(cKDTree(curve).query(points)[0])


#: Families of shapes, alike in probability.
_FAMILIES: dict[str, Callable[[Shapes, int, np.random.Generator], NDArray[np.float64]]] = {
    'ellipsoid': Shapes.ellipsoid,
    'field': Shapes.field,
    'strip': Shapes.strip,
    'tube': Shapes.tube,
}


@dataclass(frozen=True, eq=False)
class Simulated:
    """Items of a cohort whose substrates are known.

    Parameters
    ----------
    scores : (N, K) array
        0 ... levels - 1; NaN where missing.
    levels : (K,) integer array
    substrates : (K, V coarse) bool array
        Empty for an item without a substrate.
    partners : (K,) integer array
        The item that asks the same of the other side; -1 for an item that stands alone.
    """

    scores: NDArray[np.float64]
    levels: NDArray[np.intp]
    substrates: NDArray[np.bool_]
    partners: NDArray[np.intp]


def simulate(
    prepared: Prepared,
    healthy: NDArray[np.float32] | None,
    count: int,
    *,
    seed: int,
    pairs: int = 0,
) -> Simulated:
    """Simulate items over one draw of the true maps of a cohort.

    Parameters
    ----------
    prepared : Prepared
    healthy : (V coarse,) array, optional
        The pattern beyond which maps are a deficit; None where they are one as they are.
    count : int
        Items.
    seed : int
    pairs : int
        Left-right pairs among them, as of arms and legs: they come first, each item next to its
        partner. The substrate of the second is the mirror image of that of the first, under the
        same link, except where too little of it has one, and in one pair of ten.

    Returns
    -------
    Simulated
    """
    rng = np.random.default_rng(seed)
    maps = draw_maps(prepared, healthy, rng)
    volume = maps.mean(1, dtype=float)
    grid = prepared.coarse
    shapes = Shapes(grid)
    scores = np.full((len(maps), count), np.nan)
    levels = rng.choice(_LEVELS, size=count)
    substrates = np.zeros((count, grid.n_voxels), bool)
    partners = np.full(count, -1)
    k = 0
    while k < count:
        paired = k + 1 < count and k < 2 * pairs
        joined = int(rng.integers(2**32))
        pieces, load = _draw_load(maps, shapes, joined, rng)
        explained = _draw_explained(rng)
        drawn = [(pieces, load)]
        if paired:
            partners[k : k + 2] = k + 1, k
            levels[k + 1] = levels[k]
            across = [grid.mirror[piece] for piece in pieces]
            across = [piece[piece >= 0] for piece in across if (piece >= 0).any()]
            size, kept = sum(map(len, pieces)), sum(map(len, across))
            if rng.random() < _UNLIKE or not pieces or kept < _LEAST_MIRRORED * size:
                drawn.append(_draw_load(maps, shapes, joined, rng))
            else:
                drawn.append((across, link(maps, across, np.random.default_rng(joined))))
        for own, follows in drawn:
            if own:
                substrates[k, np.concatenate(own)] = True
            scores[:, k] = draw_scores(follows, volume, int(levels[k]), rng, explained)
            k += 1
    return Simulated(scores, levels, substrates, partners)


def _draw_load(
    maps: NDArray[np.float32], shapes: Shapes, joined: int, rng: np.random.Generator
) -> tuple[list[NDArray[np.intp]], NDArray[np.float64]]:
    """Return the pieces of a substrate, and the load under the link of seed `joined`.

    Without pieces, and a load of 0, for an item without a substrate.
    """
    if rng.random() >= _NOTHING:
        for _ in range(_ATTEMPTS):
            pieces = shapes.draw(rng)
            load = link(maps, pieces, np.random.default_rng(joined))
            if load.std() > 0:
                return pieces, load
    return [], np.zeros(len(maps))


def draw_maps(
    prepared: Prepared, healthy: NDArray[np.float32] | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw the true maps of a cohort, given those that were measured.

    Decoded maps with latents from their posterior under the generative model, as the excess over
    the healthy pattern; maps that are used as they are given are taken as measured. Each map is
    shifted at random by what registration leaves.

    Returns
    -------
    (N, V coarse) array
    """
    coarse, model = prepared.coarse, prepared.generative
    if healthy is None:
        maps = prepared.measured.copy()
    else:
        # of one map along a given direction; `shrinkage` is for directions that are uncertain
        precision = (model.loadings.astype(float) ** 2).sum(0) / model.noise**2 + 1
        errors = rng.standard_normal((prepared.n_participants, model.rank)) / np.sqrt(precision)
        maps = prepared.features[0] + errors.astype(np.float32) @ model.loadings.T
    shifts = rng.normal(0, _JITTER_MM, (len(maps), 3)) / coarse.spacing
    for row, shift in zip(maps, shifts, strict=True):
        volume = coarse.embed(row, fill=float(row.mean()) if healthy is not None else 0.0)
        row[:] = ndimage.shift(volume, shift, order=1, mode='nearest')[coarse.mask]
    return maps if healthy is None else channels(maps, coarse, healthy)[0]


def link(
    maps: NDArray[np.float32], pieces: list[NDArray[np.intp]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return a load of each participant that a score may follow.

    The load of a piece is the mean over its voxels of the map, of where the map lies above a
    threshold, or of a saturating function of it. Loads of pieces are joined by their mean, their
    maximum (OR), their minimum (AND) or a noisy-or; and what they add up to is taken as it is,
    saturates, or counts from a threshold on.

    Parameters
    ----------
    maps : (N, V) array
        True deficit.
    pieces : list of integer arrays
    rng : numpy.random.Generator

    Returns
    -------
    (N,) array
        0 everywhere when no participant differs.
    """
    kind = rng.choice(['share', 'threshold', 'saturating'])
    scale = float(np.quantile(maps[:, pieces[0]], rng.uniform(0.8, 0.98)))
    loads = []
    for piece in pieces:
        values = maps[:, piece].astype(float)
        if scale > 0 and kind == 'threshold':
            values = (values > rng.uniform(0.4, 1) * scale).astype(float)
        elif scale > 0 and kind == 'saturating':
            values = np.tanh(2 * values / scale)
        loads.append(values.mean(1))
    each = np.stack(loads, 1)
    each = each / np.maximum(each.max(0), 1e-9)
    join = rng.choice(['mean', 'or', 'and', 'noisy'], p=[0.35, 0.3, 0.15, 0.2])
    if join == 'mean':
        sizes = np.array([len(piece) for piece in pieces], float)
        load = each @ (sizes / sizes.sum())
    elif join == 'or':
        load = each.max(1)
    elif join == 'and':
        load = each.min(1)
    else:
        load = 1 - np.prod(1 - np.tanh(rng.uniform(1, 3) * each), 1)
    shape = rng.choice(['linear', 'saturating', 'threshold'], p=[0.5, 0.25, 0.25])
    if load.std() > 0 and shape != 'linear':
        middle = float(np.quantile(load, rng.uniform(0.6, 0.95)))
        if shape == 'saturating' and middle > 0:
            load = np.tanh(load / middle)
        elif shape == 'threshold':
            load = 1 / (1 + np.exp(-(load - middle) / (0.3 * load.std())))
    return np.asarray(load, float)


def _draw_explained(rng: np.random.Generator) -> tuple[float, float]:
    """Draw the shares of variance that the load and the volume explain."""
    return rng.uniform(*_SIGNAL), rng.uniform(*_VOLUME) * (rng.random() < 0.5)


def draw_scores(
    load: NDArray[np.float64],
    volume: NDArray[np.float64],
    levels: int,
    rng: np.random.Generator,
    explained: tuple[float, float] | None = None,
) -> NDArray[np.float64]:
    """Draw ordinal scores that follow a load, and often the volume of the deficit in a curve.

    Parameters
    ----------
    load, volume : (N,) arrays
        A load that does not vary explains nothing.
    levels : int
    rng : numpy.random.Generator
    explained : (float, float), optional
        Shares of the variance of the latent score that the load and the volume explain; drawn
        without it.

    Returns
    -------
    (N,) array
        0 ... levels - 1; NaN where missing.
    """
    n = len(load)
    latent = rng.logistic(size=n) * np.sqrt(3) / np.pi
    signal, follows = _draw_explained(rng) if explained is None else explained
    if load.std() == 0:
        signal, follows = 0.0, rng.uniform(0, 0.7) * (rng.random() < 0.7)
    left = max(1 - signal - follows, 0.08)
    curve = np.abs(volume) ** rng.uniform(0.4, 2)
    for share, values in ((signal, load), (follows, curve)):
        if share and values.std() > 0:
            latent += np.sqrt(share / left) * (values - values.mean()) / values.std()
    if levels >= 8:  # a total: participants spread over the levels
        shares = np.arange(levels - 1, 0, -1) / levels
    else:
        prevalence = rng.uniform(*_PREVALENCE)
        shares = prevalence * np.r_[1, np.sort(rng.uniform(0.1, 0.9, levels - 2))[::-1]]
    score = (latent[:, None] > np.quantile(latent, 1 - shares)).sum(1).astype(float)
    wrong = rng.random(n) < rng.uniform(*_LAPSES)
    score[wrong] = rng.permutation(score)[wrong]
    if rng.random() < 0.5:
        score[rng.random(n) < rng.uniform(*_MISSING)] = np.nan
    return score


def _rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random rotation."""
    return np.asarray(np.linalg.qr(rng.standard_normal((3, 3)))[0])


def _smooth_field(grid: Grid, width: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a smooth field of unit variance over the voxels; `width` in mm."""
    noise = rng.standard_normal(grid.mask.shape)
    field = ndimage.gaussian_filter(noise, width / grid.spacing)[grid.mask]
    return np.asarray(field / max(float(field.std()), 1e-12))
