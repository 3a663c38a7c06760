"""The distribution of a cohort's maps from the whole brain down to single voxels, a flow.

A map is split in halves along one axis at a time, from the mean of the brain to its voxels. Each
split is one number, the *detail*: the difference of the two halves, scaled so that all details and
the mean are an orthonormal transform of the map (the Haar transform, generalised to a mask). The
density of a map is therefore the product of that of the details, each given what is coarser, as in
a wavelet flow (Yu, Derpanis & Brubaker, NeurIPS 2020). One network a split, shared by all places
(mixtures of Gaussians; Bishop, Aston University 1994), gives the density of a detail. It sees the
coarser map around, where it is, and for every second cell the details of its neighbours, so that
drawn maps have no seams. Sharing makes a few hundred maps enough.

`perfusion_model` estimates the map behind a measured one, linearly and in closed form; this is the
distribution of measured maps, and new participants are drawn from it. It knows no scores. Must not
know files or models of scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.errors import InputError

#: Units of each of the two hidden layers, and Gaussians of the mixture.
_UNITS, _GAUSSIANS = 64, 3
#: Details of a training step, step size at its largest and weight decay of AdamW.
_BATCH, _RATE, _DECAY = 4096, 5e-3, 1e-2
#: Share of participants that training is watched on, most details of theirs that are looked at,
#: and steps between two looks. The network that was best there is kept.
_WATCHED, _MOST_WATCHED, _EVERY = 1 / 6, 8000, 25
#: Details that networks are evaluated on at once, which bounds memory.
_BLOCK = 50_000
#: Standard deviations at which inputs are cut off, and bounds of a Gaussian's log sd.
_MOST, _LOG_SD = 8.0, (-7.0, 4.0)
#: Values at the bounds of the scale are continued beyond them by half-normal noise of this share
#: of the noise of the maps, which is at least so much.
_BEYOND, _LEAST_NOISE = 0.5, 0.02
#: Offsets to the 26 neighbours of a cell, and to those that it shares a face with.
_AROUND = [o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)]
_FACES = [o for o in _AROUND if sum(map(abs, o)) == 1]


@dataclass(frozen=True, eq=False)
class Split:
    """Cells of one level that are halved along one axis, C of P.

    Parameters
    ----------
    parent : (children,) integer array
        Cell that each child is a part of.
    average : (P, children) sparse array
        From the means of children to those of cells.
    cells : (C,) integer array
        Those with voxels in both halves.
    halves : (2, C) integer array
        Their children.
    shares : (2, C) array
        What a detail of 1 adds to the first half, and takes from the second.
    around : (C, 26) integer array
        Cells about each; -1 where there is none.
    faces : (C, 6) integer array
        The same of those with a common face, as indices into `cells`.
    second : (C,) bool array
        Every second cell, as on a chessboard: drawn when its neighbours are known.
    centres : (C, 3) array
        RAS mm.
    """

    parent: NDArray[np.intp]
    average: sparse.csr_array
    cells: NDArray[np.intp]
    halves: NDArray[np.intp]
    shares: NDArray[np.float32]
    around: NDArray[np.intp]
    faces: NDArray[np.intp]
    second: NDArray[np.bool_]
    centres: NDArray[np.float32]

    def analyse(self, values: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Return the (N, P) means and (N, C) details of (N, children) means."""
        first, second = values[:, self.halves[0]], values[:, self.halves[1]]
        means = (self.average @ values.T).T
        return means, (first - second) / self.shares.sum(0)

    def synthesise(
        self, means: NDArray[np.float32], details: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the (N, children) means that belong to means and details."""
        values = means[:, self.parent]
        values[:, self.halves[0]] += details * self.shares[0]
        values[:, self.halves[1]] -= details * self.shares[1]
        return values


def split_mask(grid: Grid) -> tuple[Split, ...]:
    """Return the splits from the voxels of a mask to one cell, the finest first.

    Each joins cells along the axis in which they are shortest.
    """
    places, centres = np.argwhere(grid.mask), np.asarray(grid.coordinates, float)
    counts, size = np.ones(len(places)), np.asarray(grid.spacing, float).copy()
    found = []
    while len(places) > 1:
        long = places.max(0) == places.min(0)
        axis = int(np.where(long, np.inf, size).argmin())
        size[axis] *= 2
        above = places.copy()
        above[:, axis] //= 2
        cells, parent = np.unique(above, axis=0, return_inverse=True)
        parent = parent.ravel()
        average = sparse.csr_array(
            (counts, (parent, np.arange(len(places)))), shape=(len(cells), len(places))
        )
        n = np.asarray(average.sum(1)).ravel()
        average = sparse.csr_array(sparse.diags_array(1 / n) @ average)
        children = np.full((2, len(cells)), -1)
        children[places[:, axis] % 2, parent] = np.arange(len(places))
        own = np.flatnonzero((children >= 0).all(0))
        halves = children[:, own]
        one, other = counts[halves]
        step = np.sqrt(one * other / (one + other))
        centres = average @ centres
        found.append(
            Split(
                parent, average.astype(np.float32), own, halves,
                np.stack([step / one, step / other]).astype(np.float32),
                _find_neighbours(cells, cells[own], _AROUND),
                _find_neighbours(cells[own], cells[own], _FACES),
                cells[own].sum(1) % 2 == 1, centres[own].astype(np.float32),
            )
        )  # fmt: skip
        places, counts = cells, n
    return tuple(found)


def _find_neighbours(
    cells: NDArray[np.intp], own: NDArray[np.intp], offsets: list[tuple[int, ...]]
) -> NDArray[np.intp]:
    """Return the index in `cells` of what lies at offsets from some of them; -1 for nothing."""
    index = np.full(cells.max(0) + 3, -1)
    index[tuple((cells + 1).T)] = np.arange(len(cells))
    return np.asarray(index[tuple(np.moveaxis(own[:, None] + 1 + np.array(offsets), 2, 0))])


class Details(nn.Module):
    """Density of details of one split, of F inputs.

    Parameters
    ----------
    inputs : int
        F.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer('centre', torch.zeros(inputs))
        self.register_buffer('spread', torch.ones(inputs))
        self.linear = nn.Linear(inputs, 1)
        last = nn.Linear(_UNITS, 3 * _GAUSSIANS)
        for layer in (self.linear, last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():  # different means and sizes at the start
            last.bias[: 2 * _GAUSSIANS] = torch.linspace(-0.5, 0.5, _GAUSSIANS).repeat(2)
        self.layers = nn.Sequential(
            nn.Linear(inputs, _UNITS), nn.GELU(), nn.Linear(_UNITS, _UNITS), nn.GELU(), last
        )

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means, log standard deviations and log weights of the Gaussians, (n, G)."""
        standard = ((inputs - self.centre) / self.spread).clamp(-_MOST, _MOST)
        mean, log_sd, weight = self.layers(standard).chunk(3, 1)
        return self.linear(standard) + mean, log_sd.clamp(*_LOG_SD), torch.log_softmax(weight, 1)

    def log_density(self, inputs: Tensor, details: Tensor) -> Tensor:
        """Return the (n,) log densities of details."""
        mean, log_sd, weight = self(inputs)
        z = (details[:, None] - mean) * torch.exp(-log_sd)
        return torch.logsumexp(weight - log_sd - z**2 / 2, 1) - np.log(2 * np.pi) / 2

    def draw(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw (n,) details."""
        mean, log_sd, weight = self(inputs)
        which = torch.multinomial(weight.exp(), 1, generator=generator)
        z = torch.randn(len(inputs), 1, generator=generator)
        return (mean + z * torch.exp(log_sd)).gather(1, which)[:, 0]


@dataclass(frozen=True, eq=False)
class Level:
    """What was learned about the details of one split.

    Parameters
    ----------
    network : Details
        Of details in units of `scale`.
    scale : float
    places : (C, F') array
        Inputs that belong to the cell: its centre, size and the cohort's details and mean there.
    """

    network: Details
    scale: float
    places: NDArray[np.float32]

    def inputs(
        self,
        split: Split,
        means: NDArray[np.float32],
        details: NDArray[np.float32],
        rows: NDArray[np.intp],
        cells: NDArray[np.intp],
    ) -> Tensor:
        """Return the (n, F) inputs of details of some maps and cells.

        Parameters
        ----------
        split : Split
        means : (N, P) array
        details : (N, C) array
            In units of `scale`; only those of first cells are used.
        rows, cells : (n,) integer arrays
        """
        return _inputs(split, self.places, means, details, rows, cells)


def _inputs(
    split: Split,
    places: NDArray[np.float32],
    means: NDArray[np.float32],
    details: NDArray[np.float32],
    rows: NDArray[np.intp],
    cells: NDArray[np.intp],
) -> Tensor:
    own = means[rows, split.cells[cells]][:, None]
    around, faces, second = split.around[cells], split.faces[cells], split.second[cells, None]
    near = np.where(around >= 0, means[rows[:, None], around] - own, 0)
    known = np.where((faces >= 0) & second, details[rows[:, None], faces], 0)
    whole = means.mean(1)[rows, None]
    columns = [known, second, near, own, whole, places[cells]]
    return torch.from_numpy(np.concatenate(columns, 1, dtype=np.float32))


@dataclass(frozen=True, eq=False)
class MapFlow:
    """Which maps a cohort has.

    Parameters
    ----------
    grid : Grid
    splits : tuple of Split
        The finest first; one without a cell to halve has no level.
    levels : tuple of (Level or None)
    brain_means : (N,) array
        Means over the brain of the maps that it was fitted to.
    bandwidth : float
        Standard deviation of their kernel density.
    beyond : float
        Scale of the noise that continues values beyond the bounds of the scale.
    """

    grid: Grid
    splits: tuple[Split, ...]
    levels: tuple[Level | None, ...]
    brain_means: NDArray[np.float32]
    bandwidth: float
    beyond: float

    def log_likelihood(self, maps: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float64]:
        """Return the (N,) log densities, in nats, of (N, V) maps without missing voxels.

        Values at the bounds of the scale are first continued beyond them; see `uncensor`.
        """
        values = uncensor(maps, self.beyond, seed=seed)
        total = np.zeros(len(maps))
        for split, level in zip(self.splits, self.levels, strict=True):
            values, details = split.analyse(values)
            if level is None:
                continue
            standard = details / np.float32(level.scale)
            for rows, cells in _blocks(len(maps), np.arange(len(split.cells))):
                inputs = level.inputs(split, values, standard, rows, cells)
                with torch.no_grad():
                    density = level.network.log_density(
                        inputs, torch.from_numpy(standard[rows, cells])
                    )
                total += np.bincount(rows, density.numpy() - np.log(level.scale), len(maps))
        z = (values - self.brain_means) / self.bandwidth
        scale = self.bandwidth * np.sqrt(2 * np.pi * self.grid.n_voxels)
        return total + np.log(np.exp(-(z**2) / 2).mean(1) / scale + np.finfo(float).tiny)

    def draw(self, count: int, *, seed: int) -> NDArray[np.float32]:
        """Draw (count, V) maps of new participants, noise included, clipped to [0, 1]."""
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        known = rng.choice(self.brain_means, count)
        values = (known + self.bandwidth * rng.standard_normal(count))[:, None].astype(np.float32)
        for split, level in zip(self.splits[::-1], self.levels[::-1], strict=True):
            details = np.zeros((count, len(split.cells)), np.float32)
            if level is not None:
                for part in (~split.second, split.second):
                    for rows, cells in _blocks(count, np.flatnonzero(part)):
                        inputs = level.inputs(split, values, details, rows, cells)
                        with torch.no_grad():
                            details[rows, cells] = level.network.draw(inputs, generator).numpy()
                details *= np.float32(level.scale)
            values = split.synthesise(values, details)
        return np.clip(values, 0, 1)

    def as_tensors(self) -> dict[str, Any]:
        """Return the parameters for a checkpoint; `from_tensors` reads them."""
        return {
            'mask': torch.from_numpy(self.grid.mask),
            'affine': torch.from_numpy(self.grid.affine),
            'levels': [
                None if level is None else {
                    'network': level.network.state_dict(),
                    'scale': level.scale,
                    'places': torch.from_numpy(level.places),
                }
                for level in self.levels
            ],
            'brain_means': torch.from_numpy(self.brain_means),
            'bandwidth': self.bandwidth,
            'beyond': self.beyond,
        }  # fmt: skip

    @classmethod
    def from_tensors(cls, content: dict[str, Any]) -> MapFlow:
        """Return the flow that `as_tensors` was called of."""
        grid = Grid(content['mask'].numpy(), content['affine'].numpy())
        levels: list[Level | None] = []
        for state in content['levels']:
            if state is None:
                levels.append(None)
                continue
            network = Details(len(state['network']['centre'])).eval()
            network.load_state_dict(state['network'])
            levels.append(Level(network, state['scale'], state['places'].numpy()))
        return cls(
            grid, split_mask(grid), tuple(levels), content['brain_means'].numpy(),
            content['bandwidth'], content['beyond'],
        )  # fmt: skip


def _blocks(
    count: int, cells: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield rows and cells of all details of some cells, a few maps at a time."""
    if not len(cells):
        return
    step = max(1, _BLOCK // len(cells))
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        yield np.repeat(rows, len(cells)), np.tile(cells, len(rows))


def uncensor(maps: NDArray[np.float32], scale: float, *, seed: int) -> NDArray[np.float32]:
    """Continue values at the bounds of the scale beyond them, by half-normal noise.

    Maps are clipped to [0, 1]: a value at a bound may be any beyond it. A density would
    otherwise be infinite there, and drawn maps would have no values at the bounds.

    Parameters
    ----------
    maps : (N, V) array
        In [0, 1].
    scale : float
        Standard deviation of the normal distribution that is halved.
    seed : int

    Raises
    ------
    InputError
        If a value lies outside [0, 1]: maps that were continued once would be continued again.
    """
    if maps.min() < 0 or maps.max() > 1:
        raise InputError(
            f'maps have values from {maps.min():g} to {maps.max():g}',
            fix='give maps in [0, 1], as they were measured',
        )
    rng = np.random.default_rng(seed)
    out = np.array(maps, np.float32)
    for row in out:
        beyond = scale * np.abs(rng.standard_normal(len(row), dtype=np.float32))
        row += np.where(row >= 1, beyond, 0) - np.where(row <= 0, beyond, 0)
    return out


def fit_map_flow(maps: NDArray[np.float32], grid: Grid, *, seed: int, steps: int = 400) -> MapFlow:
    """Fit the flow to maps and their mirror images.

    Parameters
    ----------
    maps : (N, V) array
        In [0, 1], without missing voxels.
    grid : Grid
    seed : int
        Of everything random.
    steps : int
        Of training, for each split.
    """
    rng, splits = np.random.default_rng(seed), split_mask(grid)
    finest = splits[0].analyse(np.asarray(maps[:64], np.float32))[1]
    noise = max(_LEAST_NOISE, 1.4826 * float(np.median(np.abs(finest))))
    watched = np.zeros(len(maps), bool)
    watched[rng.permutation(len(maps))[: max(1, round(_WATCHED * len(maps)))]] = True
    mirror = np.where(grid.mirror >= 0, grid.mirror, np.arange(grid.n_voxels))
    values = uncensor(np.concatenate([maps, maps[:, mirror]]), _BEYOND * noise, seed=seed)
    watched = np.r_[watched, watched]
    levels: list[Level | None] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for split in splits:
            values, details = split.analyse(values)
            if len(split.cells):
                levels.append(_fit_level(split, values, details, watched, steps, rng))
            else:
                levels.append(None)
    means = values[: len(maps), 0]
    bandwidth = max(1e-4, float(means.std()) * len(means) ** -0.2)  # Scott's rule
    return MapFlow(grid, splits, tuple(levels), means.copy(), bandwidth, _BEYOND * noise)


def _fit_level(
    split: Split,
    means: NDArray[np.float32],
    details: NDArray[np.float32],
    watched: NDArray[np.bool_],
    steps: int,
    rng: np.random.Generator,
) -> Level:
    """Train the network of one split by maximum likelihood."""
    scale = max(1e-6, float(details.std()))
    standard = details / np.float32(scale)
    shown, kept = np.flatnonzero(~watched), np.flatnonzero(watched)
    places = np.c_[
        split.centres / 50, np.abs(split.centres[:, :1]) / 50,
        standard[shown].mean(0), np.log(standard[shown].std(0) + 0.05),
        means[np.ix_(shown, split.cells)].mean(0), np.log(split.shares.sum(0)),
    ].astype(np.float32)  # fmt: skip

    def take(rows: NDArray[np.intp], count: int) -> tuple[Tensor, Tensor]:
        own = rows[rng.integers(0, len(rows), count)]
        cells = rng.integers(0, len(split.cells), count)
        inputs = _inputs(split, places, means, standard, own, cells)
        return inputs, torch.from_numpy(standard[own, cells])

    seen, _ = take(shown, _BATCH)
    network = Details(seen.shape[1])
    network.centre.copy_(seen.mean(0))
    network.spread.copy_(seen.std(0).clamp_min(1e-3))
    held = take(kept, _MOST_WATCHED)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    best, state = -np.inf, network.state_dict()
    for step in range(1, steps + 1):
        loss = -network.log_density(*take(shown, _BATCH)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _EVERY == 0 or step == steps:
            with torch.no_grad():
                found = float(network.log_density(*held).mean())
            if found > best:
                best = found
                state = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return Level(network.eval(), scale, places)
