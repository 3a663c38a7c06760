"""Learned inference: a network that was trained on items simulated over the cohort's own maps.

For each cohort items are simulated whose substrates are known (`simulation`), over draws from the
generative model of its maps, and summarised as observed items are (`summaries`). A network learns
from them the probability that a voxel belongs to the substrate, given the summaries (`network`):
neural posterior estimation of each voxel's membership (Cranmer, Brehmer & Louppe, PNAS 2020). The
network is trained on maps alone, for any number of scores, levels and prevalence, so that one
training serves all items, shuffles and resamples of a cohort.

Its probability is averaged with that of `spatial` (Bayesian model averaging over two priors of
shapes; Hoeting et al., Stat Sci 1999), and calibrated on simulated items that were held out.
Whether an item depends on any region at all is the test of `spatial`, and scores are predicted by
its regression. Must not know files or BIDS.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
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
#: Items held out for the calibration, as a share of those of training.
_HELD_OUT, _LEAST_HELD_OUT = 0.1, 16
#: Name of what was learned in a checkpoint.
_STATE = 'deep'
#: Voxels outside the substrate of each item that training sees.
_OUTSIDE = 2500
#: Prior probability that the substrate is of the shapes that the network learned, rather than of
#: the spheres of `spatial`. At 0.5 Dice was lower where substrates are spheres.
_SHARE = 0.3
#: Fewest simulated items for the calibration. Those in which `spatial` finds nothing are left out
#: while there are enough: declared items have passed their test, and items without a finding would
#: make the probabilities of the others too small.
_FEWEST = 6
#: Edges of the bins of probability in which the calibration is reported.
_EDGES = (0, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1)


@dataclass(frozen=True, eq=False)
class Trained:
    """What was learned for a cohort.

    Parameters
    ----------
    candidates : Candidates
        Of `spatial`.
    summaries : Summaries
    network : Network
    calibration : Calibration
        Of both probabilities together.
    reliability : tuple of (float, float, int)
        Mean probability, share of true voxels and number of voxels in each bin, on items that
        were held out from training and calibration.
    """

    candidates: Candidates
    summaries: Summaries
    network: Network
    calibration: Calibration
    reliability: tuple[tuple[float, float, int], ...]


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
the probability that a voxel belongs to the substrate. It was averaged [@bma] with the posterior of
single effects [@susie] in a cumulative-logit model [@ordinal], and calibrated [@platt] on
simulated items that were held out. An item was declared when its strongest
region exceeded those of 99 % of scores that were drawn, by shuffled quantile residuals
[@quantileresiduals; @freedmanlane], from an ordinal regression on natural splines of the volume of
the deficit and of covariates; its map was cut where the expected Dice coefficient is largest.
Scores were predicted by the cumulative-logit model.
"""
    methods_given = """\
*deep*: simulation-based inference with a neural network [@sbi]. Items with known substrates of
many shapes, and with many links from lesion to score, were simulated over the cohort's own maps.
A network learned from summary maps of these items the probability that a voxel belongs to the
substrate. It was averaged [@bma] with the posterior of single effects [@susie] in a
cumulative-logit model [@ordinal], and calibrated [@platt] on simulated items that were held out.
An item was declared when its test by shuffled scores [@freedmanlane] passed; its map was cut where
the expected Dice coefficient is largest. Scores were predicted by the cumulative-logit model.
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
        readout = found.readout
        standard = standardise(covariates, readout.covariate_mean, readout.covariate_scale)
        learned = trained.summaries.summarise(scores[:, usable], standard)
        for k, summary in zip(usable, learned, strict=True):
            own = prepared.coarse.resample_to(_evaluate(trained.network, summary), prepared.grid)
            probability = trained.calibration(_join(own, found.probability[k]))
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
        return Trained(
            candidates, summaries, network, Calibration(*state['calibration']),
            tuple((low, high, int(count)) for low, high, count in state['reliability']),
        )  # fmt: skip
    held_out = max(_LEAST_HELD_OUT, round(_HELD_OUT * settings.simulations))
    counts = [*[-(-settings.simulations // _DRAWS)] * _DRAWS, held_out]
    seeds = [int(s) for s in np.random.SeedSequence(settings.seed).generate_state(len(counts))]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for count, seed in zip(counts[:-1], seeds, strict=False):
        parts += _sample(simulate(prepared, candidates.healthy, count, seed=seed), summaries, seed)
        _LOG.info('deep: simulated %d items', len(parts))
    shown, members, weights = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    del parts
    network = train(shown, members, weights, steps=settings.network_steps, seed=settings.seed)
    simulated = simulate(prepared, candidates.healthy, held_out, seed=seeds[-1])
    calibration, reliability = _calibrate(
        *_join_simulated(prepared, candidates, summaries, network, simulated, settings)
    )
    store.put(
        _STATE,
        {
            'network': network.state_dict(),
            'calibration': [calibration.slope, calibration.offset],
            'reliability': [list(row) for row in reliability],
        },
    )
    return Trained(candidates, summaries, network, calibration, reliability)


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


def _join(logits: NDArray[np.floating], probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probability under either prior of shapes: that of the network, or `spatial`'s."""
    learned = 1 / (1 + np.exp(-np.asarray(logits, float)))
    return np.asarray(_SHARE * learned + (1 - _SHARE) * probability, float)


def _join_simulated(
    prepared: Prepared,
    candidates: Candidates,
    summaries: Summaries,
    network: Network,
    simulated: Simulated,
    settings: DeficitSettings,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return joined probabilities and membership of the voxels of simulated items, (K, V).

    Of those in which `spatial` finds something, or of all where these are too few.
    """
    items = tuple(Item(f'simulated{k}', int(levels)) for k, levels in enumerate(simulated.levels))
    none = np.zeros((len(simulated.scores), 0))
    coarse = replace(prepared, grid=prepared.coarse)
    untested = replace(settings, permutations=0)
    found = Spatial().fit(coarse, simulated.scores, none, items, untested, shared=candidates)
    logits = [_evaluate(network, s) for s in summaries.summarise(simulated.scores, none)]
    kept = [k for k in found.usable if found.probability[k].max() > 0]
    if len(kept) < _FEWEST:
        kept = list(found.usable)
    joined = [_join(logits[k], found.probability[k]) for k in kept]
    return np.stack(joined), simulated.substrates[kept]


def _calibrate(
    probability: NDArray[np.float64], members: NDArray[np.bool_]
) -> tuple[Calibration, tuple[tuple[float, float, int], ...]]:
    """Return the calibration, and how reliable it is for items that it was not fitted to."""
    halves = np.arange(len(probability)) % 2 == 0
    crossed = np.empty(probability.shape, np.float32)
    for half in (halves, ~halves):
        crossed[half] = Calibration.fit(probability[~half], members[~half])(probability[half])
    rows = []
    for low, high in pairwise(_EDGES):
        inside = (crossed >= low) & ((crossed < high) | (high == 1))
        if inside.any():
            rows.append(
                (
                    round(float(crossed[inside].mean()), 4),
                    round(float(members[inside].mean()), 4),
                    int(inside.sum()),
                )
            )
    return Calibration.fit(probability, members), tuple(rows)


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
