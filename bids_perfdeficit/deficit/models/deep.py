"""Learned inference: a network that was trained on items simulated over the cohort's own maps.

For each cohort items are simulated whose substrates are known (`simulation`), over draws from the
generative model of its maps, and summarised as observed items are (`summaries`). A network learns
from them the probability that a voxel belongs to the substrate, given the summaries (`network`):
neural posterior estimation of each voxel's membership (Cranmer, Brehmer & Louppe, PNAS 2020). The
network is trained on maps alone, for any number of scores, levels and prevalence, so that one
training serves all items, shuffles and resamples of a cohort.

Its probability is averaged with that of `spatial` (a linear pool; Stone, Ann Math Stat 1961).
Simulated items that were held out, single ones and left-right pairs, show how right `spatial` is
for each kind, by which its posterior is tempered, how large its share should be, and how the mean
is to be calibrated.
Whether an item depends on any region at all is the test of `spatial`, and scores are predicted by
its regression. Must not know files or BIDS.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from bids_perfdeficit.deficit.checkpoint import Checkpoint
from bids_perfdeficit.deficit.models.base import DeficitModel, Drawing, ModelFit, Offers
from bids_perfdeficit.deficit.models.spatial import Candidates, Spatial, lay_out
from bids_perfdeficit.deficit.network import Calibration, Network, train
from bids_perfdeficit.deficit.ordinal import fit_head
from bids_perfdeficit.deficit.preparation import Prepared
from bids_perfdeficit.deficit.result import Item, standardise
from bids_perfdeficit.deficit.rules import dice_cut, exceedance
from bids_perfdeficit.deficit.settings import DeficitSettings
from bids_perfdeficit.deficit.simulation import Simulated, simulate
from bids_perfdeficit.deficit.summaries import Summaries

_LOG = logging.getLogger('bids_perfdeficit.deficit')

#: Draws of the true maps that the items of training are simulated over.
_DRAWS = 4
#: Items held out for the blend, as a share of those of training; half of them are in pairs.
_HELD_OUT, _LEAST_HELD_OUT = 0.08, 16
#: Most simulated items whose summaries are held at once, which bounds memory.
_BLOCK = 100
#: Name of what was learned in a checkpoint; another where its parts change.
_STATE = 'deep, compared'
#: Voxels outside the substrate of each item that training sees.
_OUTSIDE = 2500
#: Smallest and largest share of the network in the blend.
_LEAST_SHARE, _MOST_SHARE = 0.1, 0.9
#: Fewest simulated items that anything is fitted to, of a kind for what is of a kind. Those in
#: which `spatial` finds nothing are left out while there are enough: declared items have passed
#: their test, and items without a finding would make the probabilities of the others too small.
_FEWEST = 6
#: Bootstrap resamples of the comparison with `spatial`.
_RESAMPLES = 2000
#: Edges of the bins of probability in which the calibration is reported.
_EDGES = (0, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1)


@dataclass(frozen=True)
class Blend:
    """How two probabilities are made into one.

    Parameters
    ----------
    tempering : (Calibration, Calibration)
        Of the posterior of `spatial`, for single items and for those of a left-right pair. Items
        of a pair share their evidence, and with it their errors: where shape or link are not
        those of `spatial`, its posterior is surer of wrong regions in pairs than elsewhere.
    share : float
        Of the network.
    calibration : Calibration
        Of the mean: a mean of two reliable probabilities is too cautious (Ranjan & Gneiting, J R
        Stat Soc B 2010).
    """

    tempering: tuple[Calibration, Calibration]
    share: float
    calibration: Calibration

    def __call__(
        self, logits: NDArray[np.floating], posterior: NDArray[np.floating], *, paired: bool
    ) -> NDArray[np.float32]:
        """Return the probability, of logits of the network and the posterior of `spatial`."""
        learned = 1 / (1 + np.exp(-np.asarray(logits, float)))
        tempered = self.tempering[paired](posterior)
        return self.calibration(self.share * learned + (1 - self.share) * tempered)

    @classmethod
    def fit(cls, items: Sequence[Tested]) -> Blend:
        """Fit to simulated items by maximum likelihood.

        The tempering of a kind of which there are few items is fitted to all.
        """
        members = np.stack([item.members for item in items])
        posterior = np.stack([item.posterior for item in items])
        paired = np.array([item.paired for item in items])
        tempering, tempered = [], posterior.astype(float)
        for kind in (False, True):
            own = paired == kind
            used = own if own.sum() >= _FEWEST else np.ones(len(own), bool)
            tempering.append(Calibration.fit(posterior[used], members[used]))
            tempered[own] = tempering[-1](posterior[own])
        learned = 1 / (1 + np.exp(-np.stack([item.logits for item in items]).astype(float)))

        def loss(share: float) -> float:
            mean = np.clip(share * learned + (1 - share) * tempered, 1e-6, 1 - 1e-6)
            return float(-np.log(np.where(members, mean, 1 - mean)).mean())

        share = float(
            minimize_scalar(loss, bounds=(_LEAST_SHARE, _MOST_SHARE), method='bounded').x
        )
        calibration = Calibration.fit(share * learned + (1 - share) * tempered, members)
        return cls((tempering[0], tempering[1]), share, calibration)


@dataclass(frozen=True, eq=False)
class Tested:
    """A simulated item that was held out: (V,) logits, posterior of `spatial` and membership."""

    logits: NDArray[np.float32]
    posterior: NDArray[np.float32]
    members: NDArray[np.bool_]
    paired: bool


@dataclass(frozen=True)
class Comparison:
    """How well two models find the substrates of simulated items.

    Parameters
    ----------
    deep, spatial : float
        Mean Dice coefficient of the set with the largest expected one; NaN without items.
    low, high : float
        95 % interval of the mean difference over items (bootstrap).
    items : int
    """

    deep: float
    spatial: float
    low: float
    high: float
    items: int


@dataclass(frozen=True, eq=False)
class Trained:
    """What was learned for a cohort.

    Parameters
    ----------
    candidates : Candidates
        Of `spatial`.
    summaries : Summaries
    network : Network
    blend : Blend
        Of the network and `spatial`.
    reliability : tuple of (float, float, int)
        Mean probability, share of true voxels and number of voxels in each bin, on items that
        were held out from training and blend.
    comparison : Comparison
        With `spatial`, on the same items. They come from the prior of this model, which `spatial`
        does not have: the comparison is as good as that prior.
    """

    candidates: Candidates
    summaries: Summaries
    network: Network
    blend: Blend
    reliability: tuple[tuple[float, float, int], ...]
    comparison: Comparison


class Deep(DeficitModel[Trained]):
    """A network trained on simulated items, with the evidence of `spatial`."""

    name = 'deep'
    offers = Offers(membership=True)
    drawing = Drawing(
        'prob',
        'probability (posterior) that the voxel belongs to the substrate',
        ('unlikely', 'likely'),
        '#E69F00',
        'v',
    )
    statistics: ClassVar[Mapping[str, str]] = {
        'effect': 'Probability that the voxel is part of the substrate, times the log-odds that '
        'one whole unit of the map adds where the whole substrate has it',
    }
    methods = """\
*deep*: simulation-based inference with a neural network [@sbi]. Items with known substrates of
many shapes, and with many links from perfusion to score, were simulated over draws of the
cohort's own maps from their generative model. A network learned from summary maps of these items
the probability that a voxel belongs to the substrate. It was averaged with the posterior of single
effects [@susie] in a cumulative-logit model [@ordinal]; tempering of that posterior (apart for
single items and left-right pairs), the weights of the mean [@pool] and its calibration [@platt]
were fitted to simulated items that were held out. An item was declared when its strongest
region exceeded those of 99 % of scores that were drawn, by shuffled quantile residuals
[@quantileresiduals; @freedmanlane], from an ordinal regression on natural splines of the volume of
the deficit and of covariates; its map was cut where the expected Dice coefficient is largest.
Scores were predicted by the cumulative-logit model.
"""
    methods_given = """\
*deep*: simulation-based inference with a neural network [@sbi]. Items with known substrates of
many shapes, and with many links from lesion to score, were simulated over the cohort's own maps.
A network learned from summary maps of these items the probability that a voxel belongs to the
substrate. It was averaged with the posterior of single effects [@susie] in a cumulative-logit
model [@ordinal]; tempering of that posterior (apart for single items and left-right pairs), the
weights of the mean [@pool] and its calibration [@platt] were fitted to simulated items that were
held out. An item was declared when its test by shuffled scores [@freedmanlane] passed; its map
was cut where the expected Dice coefficient is largest. Scores were predicted by the
cumulative-logit model.
"""

    def share(self, prepared: Prepared, settings: DeficitSettings) -> Trained:
        """Return the network that was trained for the cohort; see `learn`."""
        return learn(prepared, settings)

    def fit(
        self,
        prepared: Prepared,
        scores: NDArray[np.float64],
        covariates: NDArray[np.float64],
        items: tuple[Item, ...],
        settings: DeficitSettings,
        *,
        shared: Trained | None = None,
        maps: bool = True,
        checkpoint: Path | None = None,
    ) -> ModelFit:
        """Fit all items; predictions alone are those of `spatial` and need no training."""
        if not maps:
            candidates = None if shared is None else shared.candidates
            return Spatial().fit(
                prepared, scores, covariates, items, settings, shared=candidates, maps=False
            )
        trained = learn(prepared, settings, checkpoint) if shared is None else shared
        found = Spatial().fit(
            prepared, scores, covariates, items, settings, shared=trained.candidates
        )
        if not found.usable:
            return found
        usable = list(found.usable)
        names = {items[k].name for k in usable}
        readout = found.readout
        standard = standardise(covariates, readout.covariate_mean, readout.covariate_scale)
        learned = trained.summaries.summarise(scores[:, usable], standard)
        for k, summary in zip(usable, learned, strict=True):
            own = prepared.coarse.resample_to(_evaluate(trained.network, summary), prepared.grid)
            paired = items[k].mirror in names
            probability = trained.blend(own, found.probability[k], paired=paired)
            strength = _strength(
                trained.summaries.maps[0], prepared.grid.resample_to(probability, prepared.coarse),
                scores[:, k], items[k].levels, settings.lapse,
            )  # fmt: skip
            found.probability[k] = probability
            found.effect[k] = strength * probability
            found.std[k] = strength * np.sqrt(probability * (1 - probability))
            found.cut[k], found.declared[k] = np.nan, False
            if settings.permutations and found.p_value[k] <= settings.alpha:
                found.cut[k] = dice_cut(probability)
                found.declared[k] = exceedance(probability, found.cut[k])
            found.details[items[k].name] = {
                **found.details[items[k].name],
                'reliability': [list(row) for row in trained.reliability],
                'comparison': asdict(trained.comparison),
            }
        return found


def learn(
    prepared: Prepared, settings: DeficitSettings, checkpoint: Path | None = None
) -> Trained:
    """Simulate items over the maps of a cohort, and train and calibrate a network on them.

    Parameters
    ----------
    prepared : Prepared
    settings : DeficitSettings
        `simulations` is the number of items.
    checkpoint : Path, optional
        Where what was learned is kept, and read from if it is of the same maps and settings.
    """
    candidates = lay_out(prepared, settings)
    summaries = Summaries.build(prepared, candidates.healthy)
    store = Checkpoint(checkpoint, _fingerprint(prepared, settings))
    if state := store.get(_STATE):
        network = Network(state['network']['centre'].shape[0]).eval()
        network.load_state_dict(state['network'])
        single, paired, mean = (Calibration(*own) for own in state['calibrations'])
        blend = Blend((single, paired), float(state['share']), mean)
        return Trained(
            candidates, summaries, network, blend,
            tuple((low, high, int(count)) for low, high, count in state['reliability']),
            Comparison(**state['comparison']),
        )  # fmt: skip
    held_out = max(_LEAST_HELD_OUT, round(_HELD_OUT * settings.simulations))
    draws = max(_DRAWS, -(-settings.simulations // _BLOCK))
    counts = [*[-(-settings.simulations // draws)] * draws, held_out]
    seeds = [int(s) for s in np.random.SeedSequence(settings.seed).generate_state(len(counts))]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for count, seed in zip(counts[:-1], seeds, strict=False):
        parts += _sample(simulate(prepared, candidates.healthy, count, seed=seed), summaries, seed)
        _LOG.info('deep: simulated %d items', len(parts))
    shown, members, weights = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    del parts
    network = train(shown, members, weights, steps=settings.network_steps, seed=settings.seed)
    simulated = simulate(
        prepared, candidates.healthy, held_out, seed=seeds[-1], pairs=held_out // 4
    )
    tested = _try_out(prepared, candidates, summaries, network, simulated, settings)
    blend, crossed = Blend.fit(tested), _cross(tested)
    reliability = _measure_reliability(crossed)
    comparison = _compare(crossed, seed=settings.seed)
    _LOG.info(
        'deep: share of the network %.2f; Dice on %d simulated items %.3f, of spatial %.3f',
        blend.share, comparison.items, comparison.deep, comparison.spatial,
    )  # fmt: skip
    used = (*blend.tempering, blend.calibration)
    store.put(
        _STATE,
        {
            'network': network.state_dict(),
            'calibrations': [[own.slope, own.offset] for own in used],
            'share': blend.share,
            'reliability': [list(row) for row in reliability],
            'comparison': asdict(comparison),
        },
    )
    return Trained(candidates, summaries, network, blend, reliability, comparison)


def _fingerprint(prepared: Prepared, settings: DeficitSettings) -> str:
    """Return what the training depends on."""
    digest = hashlib.sha256(np.ascontiguousarray(prepared.measured).tobytes())
    digest.update(repr(replace(settings, device='cpu', permutations=0)).encode())
    return digest.hexdigest()


def _sample(
    simulated: Simulated, summaries: Summaries, seed: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return summaries, membership and weight of some voxels of each item: all of the substrate,
    and others at random.
    """
    rng = np.random.default_rng(seed)
    none = np.zeros((len(simulated.scores), 0))
    found = []
    for own, summary in zip(
        simulated.substrates, summaries.summarise(simulated.scores, none), strict=True
    ):
        inside, outside = np.flatnonzero(own), np.flatnonzero(~own)
        taken = rng.choice(outside, min(_OUTSIDE, len(outside)), replace=False)
        rows = np.r_[inside, taken]
        weights = torch.ones(len(rows))
        weights[len(inside) :] = len(outside) / len(taken)
        members = torch.zeros(len(rows))
        members[: len(inside)] = 1
        found.append((summary[rows], members, weights))
    return found


def _evaluate(network: Network, summary: Tensor) -> NDArray[np.float32]:
    """Return the (V,) logits of an item."""
    with torch.no_grad():
        return np.asarray(network(summary).numpy(), np.float32)


def _try_out(
    prepared: Prepared,
    candidates: Candidates,
    summaries: Summaries,
    network: Network,
    simulated: Simulated,
    settings: DeficitSettings,
) -> list[Tested]:
    """Return simulated items in which `spatial` finds something, or all where these are few."""
    items = tuple(
        Item(f's{k}', int(levels), f's{other}' if other >= 0 else None)
        for k, (levels, other) in enumerate(zip(simulated.levels, simulated.partners, strict=True))
    )
    none = np.zeros((len(simulated.scores), 0))
    coarse = replace(prepared, grid=prepared.coarse)
    untested = replace(settings, permutations=0)
    found = Spatial().fit(coarse, simulated.scores, none, items, untested, shared=candidates)
    usable = list(found.usable)
    names = {items[k].name for k in usable}
    summarised = summaries.summarise(simulated.scores[:, usable], none)
    tested = [
        Tested(
            _evaluate(network, summary), found.probability[k], simulated.substrates[k],
            items[k].mirror in names,
        )
        for k, summary in zip(usable, summarised, strict=True)
    ]  # fmt: skip
    kept = [item for item in tested if item.posterior.max() > 0]
    return kept if len(kept) >= _FEWEST else tested


def _cross(tested: list[Tested]) -> list[tuple[Tested, NDArray[np.float32]]]:
    """Return each item with its probability under a blend that was not fitted to it."""
    halves = [tested[::4] + tested[1::4], tested[2::4] + tested[3::4]]  # mostly pairs together
    if not all(halves):
        return []
    return [
        (item, blend(item.logits, item.posterior, paired=item.paired))
        for blend, half in zip(map(Blend.fit, halves), halves[::-1], strict=True)
        for item in half
    ]


def _measure_reliability(
    crossed: list[tuple[Tested, NDArray[np.float32]]],
) -> tuple[tuple[float, float, int], ...]:
    """Return how reliable a blend is for items that it was not fitted to."""
    if not crossed:
        return ()
    values = np.concatenate([probability for _, probability in crossed])
    members = np.concatenate([item.members for item, _ in crossed])
    rows = []
    for low, high in pairwise(_EDGES):
        inside = (values >= low) & ((values < high) | (high == 1))
        if inside.any():
            rows.append(
                (
                    round(float(values[inside].mean()), 4),
                    round(float(members[inside].mean()), 4),
                    int(inside.sum()),
                )
            )
    return tuple(rows)


def _compare(crossed: list[tuple[Tested, NDArray[np.float32]]], *, seed: int) -> Comparison:
    """Compare the sets that the blend and `spatial` would declare of items with a substrate."""
    scores = []
    for item, probability in crossed:
        if item.members.any():
            own = []
            for values in (probability, item.posterior):
                chosen = exceedance(values, dice_cut(values))
                shared = np.count_nonzero(chosen & item.members)
                own.append(2 * shared / (chosen.sum() + item.members.sum()))
            scores.append(own)
    if not scores:
        return Comparison(float('nan'), float('nan'), float('nan'), float('nan'), 0)
    deep, spatial = np.array(scores).T
    gaps = deep - spatial
    rng = np.random.default_rng(seed)
    drawn = gaps[rng.integers(len(gaps), size=(_RESAMPLES, len(gaps)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Comparison(
        deep=round(float(deep.mean()), 4),
        spatial=round(float(spatial.mean()), 4),
        low=round(float(low), 4),
        high=round(float(high), 4),
        items=len(gaps),
    )


def _strength(
    deficit: NDArray[np.float32],
    probability: NDArray[np.float32],
    score: NDArray[np.float64],
    levels: int,
    lapse: float,
) -> float:
    """Return the log-odds that one unit of the deficit adds, over the whole substrate."""
    seen = np.isfinite(score)
    share = deficit[seen] @ probability / max(float(probability.sum()), 1e-9)
    slope, _, _ = fit_head(
        torch.from_numpy(share.astype(float)), torch.from_numpy(score[seen].astype(np.int64)),
        levels, lapse,
    )  # fmt: skip
    return slope
