"""The default model: each item's substrate as a few spherical ROIs of unknown position and size.

A joint generative model of perfusion maps and ordinal scores::

    x_i ~ p(x | z_i) p(z_i)                                   the maps (see `perfusion_model`)
    eta_ik = sum_l b_kl * mean(excess of x_i over sphere gamma_kl) + null component + covariates
    y_ik ~ cumulative logit(cuts_k - eta_ik), mixed with lapses

Each of an item's components l is a "single effect" (SuSiE: Wang, Sarkar, Carbonetto & Stephens, J
R Stat Soc B 2020): one ROI gamma_kl out of a dictionary of positions and sizes, uniform a priori,
with a half-normal strength b_kl > 0 whose scale is set by the evidence. The posterior over
candidates is exact given the other components, so that voxels that no data can separate (the same
vascular territory) share their probability instead of being declared together. The ordinal
likelihood is expanded to second order around the current fit (as in Fisher scoring). The union of
the ROIs is the substrate: ``P(v in M) = 1 - prod_l (1 - P(v in sphere_l))``, a noisy-or.

Choices that are ours: the null component (mean deficit and mean asymmetry of the whole brain)
explains away whatever follows the volume of the deficit; the features are means of what decoded
maps ``E[x | z]`` have beyond the healthy pattern, and of its positive asymmetry; a candidate may
be an ROI with its mirror image, for what either hemisphere can do (gaze, face, speech); items of a
left-right pair share their mirrored candidates; the likelihood of a candidate is tempered. Must
not know files, BIDS or other models.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from bids_perfdeficit.deficit.dictionary import Dictionary, build_dictionary, membership
from bids_perfdeficit.deficit.models.base import DeficitModel, Drawing, ModelFit, Offers
from bids_perfdeficit.deficit.null import NullModel, exceeding, fit_null, measure_volume
from bids_perfdeficit.deficit.ordinal import (
    curvature,
    level_frequencies,
    starting_cuts,
    update_cuts,
)
from bids_perfdeficit.deficit.preparation import Prepared, channels
from bids_perfdeficit.deficit.result import Item, standardise
from bids_perfdeficit.deficit.rules import covariate_scales, dice_cut, exceedance
from bids_perfdeficit.deficit.scale import healthy_pattern
from bids_perfdeficit.deficit.settings import DeficitSettings

_LOG = logging.getLogger('bids_perfdeficit.deficit')

#: Prior scales of a component's strength that the evidence chooses from: log-odds per unit of map.
_STRENGTHS = (1.0, 2.0, 4.0, 8.0)
#: Log evidence under which a component is dropped (its posterior is then its prior).
_LEAST_EVIDENCE = 2.0
#: Prior precision of the null component and of covariates, per standard deviation.
_NUISANCE_PRECISION = 0.1
#: Log prior of a candidate that cannot be.
_IMPOSSIBLE = -1e4
#: Participants whose product with the features is formed at once.
_BLOCK = 256
#: Candidate regions whose products with drawn scores are formed at once.
_CANDIDATES = 1024
#: Information that the test adds to each candidate's own, in medians. Else the strongest candidate
#: of a draw is one that few participants have a deficit in (the fudge factor of Tusher, Tibshirani
#: & Chu, PNAS 2001, is for the same), and true substrates do not stand out against it.
_STEADY = 3.0
#: No voxel is declared under this probability, nor, where none reaches it, under this share of the
#: highest. The cut of best expected Dice takes too much where the posterior is spread over a
#: territory: on the cohorts of development false discoveries fell by .08, for .01 of Dice
#: (benchmarks/RESULTS.md). A posterior that is sure of itself is not touched.
_LEAST_PROBABILITY, _LEAST_SHARE = 0.35, 0.5
#: Standard deviations below 0 from which the normal's tail is taken from its expansion.
_FAR = 4.5
#: Posterior probability of an ROI below which it is left out of sums, relative to the largest.
_NEGLIGIBLE = 1e-5
#: Share of a component's posterior that is painted; the rest would take most of the time.
_PAINTED = 0.999


@dataclass(frozen=True, eq=False)
class Candidates:
    """Features of a cohort on a dictionary; shared by items and folds.

    There is a layer of candidates for each channel, and a last one whose candidates are an ROI and
    its mirror image in the first channel.
    """

    dictionary: Dictionary
    features: Tensor  #: (N, layers * P)
    log_prior: Tensor  #: (layers * P,)
    mirror: Tensor  #: (layers * P,)
    nuisance: NDArray[np.float64]  #: (N, channels) mean of each channel over the brain
    healthy: NDArray[np.float32] | None  #: (V coarse,) pattern beyond which the channels are
    mirrored: Tensor  #: (layers * P,) bool, whether the mirror image of a candidate is a candidate

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return self.nuisance.shape[1]

    def by_sphere(self, values: Tensor) -> Tensor:
        """Return (layers * P,) values of candidates as those of ROIs, (channels, P).

        A candidate of two ROIs counts half in each: values are shared out, not multiplied.
        """
        layers = values.reshape(-1, len(self.dictionary.radii))
        both = layers[-1]
        out = layers[:-1].clone()
        out[0] += (both + both[torch.from_numpy(self.dictionary.mirror)]) / 2
        return out


def lay_out(prepared: Prepared, settings: DeficitSettings) -> Candidates:
    """Compute the features of a cohort: the mean of each channel over each ROI."""
    dictionary = build_dictionary(
        prepared.coarse, settings.radii, settings.spacings, paired=not settings.as_given
    )
    denoised, healthy, taken = prepared.features[0], None, prepared.features
    if not settings.as_given:
        healthy = healthy_pattern(denoised, prepared.coarse)
        taken = channels(denoised, prepared.coarse, healthy)
    n_spheres, n_layers = len(dictionary.radii), len(taken) + 1
    averaging = dictionary.averaging.T.tocsr()
    features = torch.empty(prepared.n_participants, n_layers * n_spheres)
    for channel, values in enumerate(taken):
        for start in range(0, len(values), _BLOCK):
            part = (averaging @ values[start : start + _BLOCK].T).T
            rows = slice(start, start + len(part))
            features[rows, channel * n_spheres : (channel + 1) * n_spheres] = torch.from_numpy(
                part
            )
    single = features[:, :n_spheres]
    features[:, -n_spheres:] = (single + single[:, torch.from_numpy(dictionary.mirror)]) / 2
    prior = np.tile(dictionary.log_prior - np.log(n_layers), n_layers)
    # an ROI without a mirror image is a candidate of one ROI, not of two
    prior[-n_spheres:][dictionary.alone] = _IMPOSSIBLE
    mirror = np.concatenate([dictionary.mirror + c * n_spheres for c in range(n_layers)])
    device = torch.device(settings.device)
    return Candidates(
        dictionary,
        features.to(device),
        torch.from_numpy(prior).float().to(device),
        torch.from_numpy(mirror).to(device),
        np.stack([values.mean(1) for values in taken], 1).astype(float),
        healthy,
        torch.from_numpy(np.tile(~dictionary.alone, n_layers)).to(device),
    )


@dataclass(eq=False)
class _Effect:
    """One component of one item."""

    evidence: float = -np.inf
    strength: float = np.nan
    weights: Tensor | None = None  #: posterior over ROIs, None when dropped
    mean: Tensor | None = None  #: of the strength, given the ROI
    variance: Tensor | None = None
    kl: float = 0.0
    contribution: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(eq=False)
class _State:
    """One item while it is fitted. Participants without a score have weight 0."""

    level: Tensor
    seen: Tensor  #: 1.0 where there is a score
    cuts: Tensor
    frequencies: Tensor
    design: Tensor  #: (N, 1 + nuisance) with the intercept first
    eta: Tensor
    gamma: Tensor
    effects: list[_Effect]
    # set by `_linearise`
    weight: Tensor = field(default_factory=lambda: torch.zeros(0))
    response: Tensor = field(default_factory=lambda: torch.zeros(0))
    slope: Tensor = field(default_factory=lambda: torch.zeros(0))
    inverse: Tensor = field(default_factory=lambda: torch.zeros(0))
    cross: Tensor = field(default_factory=lambda: torch.zeros(0))
    information: Tensor = field(default_factory=lambda: torch.zeros(0))


def _start(score: NDArray[np.float64], design: Tensor, n_levels: int, n_effects: int) -> _State:
    seen = np.isfinite(score)
    level = torch.from_numpy(np.where(seen, score, 0).astype(np.int64)).to(design.device)
    mask = torch.from_numpy(seen.astype(float)).to(design.device)
    frequencies = level_frequencies(level[mask > 0], n_levels)
    zero = torch.zeros(len(score), dtype=torch.double, device=design.device)
    return _State(
        level,
        mask,
        starting_cuts(frequencies),
        frequencies,
        design,
        zero,
        torch.zeros(design.shape[1] - 1, dtype=torch.double, device=design.device),
        [_Effect(contribution=zero) for _ in range(n_effects)],
    )


def _linearise(state: _State, lapse: float) -> None:
    """Expand the likelihood around the current fit, as weighted least squares."""
    c = curvature(state.cuts, state.eta, state.level, lapse, state.frequencies)
    state.weight = (c.information * state.seen).clamp_min(1e-8)
    state.slope = c.slope * state.seen
    state.response = state.eta + state.slope / state.weight
    weighted = state.design.T * state.weight
    ridge = torch.full((state.design.shape[1],), _NUISANCE_PRECISION, dtype=torch.double)
    ridge[0] = 1e-6
    state.inverse = torch.linalg.inv(weighted @ state.design + torch.diag(ridge.to(weighted)))


def _project(states: list[_State], features: Tensor) -> None:
    """Project the nuisance out of all candidates, for all items in one pass over the features."""
    weights = torch.stack([s.weight for s in states]).float()
    columns = states[0].design.shape[1]
    rows = torch.cat([s.design.T * s.weight for s in states]).float()
    cross = rows @ features
    square = torch.zeros(len(states), features.shape[1], device=features.device)
    for start in range(0, len(features), _BLOCK):
        part = slice(start, start + _BLOCK)
        square.addmm_(weights[:, part], features[part].square())
    for number, state in enumerate(states):
        state.cross = cross[number * columns : (number + 1) * columns]
        explained = ((state.inverse.float() @ state.cross) * state.cross).sum(0)
        state.information = (square[number] - explained).clamp_min(1e-4)


def _residual(state: _State, without: _Effect | None) -> Tensor:
    """Return what the other components and the nuisance leave of the working response."""
    others = sum(
        (e.contribution for e in state.effects if e is not without), torch.zeros_like(state.eta)
    )
    rest = state.response - others
    weighted = state.design.T * state.weight
    return rest - state.design @ (state.inverse @ (weighted @ rest))


def _log_bayes_factors(
    gradient: Tensor, information: Tensor, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each ROI's log Bayes factor, and the normal that its half-normal posterior cuts."""
    variance = 1 / (information + strength**-2)
    mean = variance * gradient
    z = mean / variance.sqrt()
    evidence = (
        0.5 * torch.log(variance / strength**2) + 0.5 * z**2 + np.log(2.0) + _log_normal_cdf(z)
    )
    return evidence, mean, variance


def _log_normal_cdf(z: Tensor) -> Tensor:
    """Return the log of the normal distribution function, to 1e-4.

    As `torch.special.log_ndtr`, whose time was most of a fit's, but six times faster.
    """
    low = z.clamp_max(-_FAR)
    tail = (
        -0.5 * low.square() - torch.log(-low) - 0.5 * np.log(2 * np.pi) - low.square().reciprocal()
    )
    middle = torch.log(0.5 * torch.erfc(z.clamp_min(-_FAR) * -(0.5**0.5)))
    return torch.where(z < -_FAR, tail, middle)


def _truncated(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a normal cut off below 0."""
    deviation = variance.sqrt()
    z = mean / deviation
    hazard = torch.exp(-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - torch.special.log_ndtr(z))
    return mean + deviation * hazard, variance * (1 - hazard * (hazard + z)).clamp_min(1e-6)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """The evidence for every ROI at the best prior scale of the strength."""

    total: Tensor
    each: Tensor
    mean: Tensor
    variance: Tensor
    strength: float


def _weigh(states: list[_State], index: int, candidates: Candidates) -> list[_Evidence]:
    """Return the evidence for one component of every item."""
    rest = torch.stack([s.weight * _residual(s, s.effects[index]) for s in states])
    gradients = rest.float() @ candidates.features
    return [_best(g, s.information, candidates) for g, s in zip(gradients, states, strict=True)]


def _best(gradient: Tensor, information: Tensor, candidates: Candidates) -> _Evidence:
    best: _Evidence | None = None
    for strength in _STRENGTHS:
        each, mean, variance = _log_bayes_factors(gradient, information, strength)
        total = torch.logsumexp(candidates.log_prior + each, 0)
        if best is None or total > best.total:
            best = _Evidence(total, each, mean, variance, strength)
    assert best is not None
    return best


def _assign(
    effect: _Effect,
    own: _Evidence,
    other: _Evidence | None,
    candidates: Candidates,
    settings: DeficitSettings,
    *,
    settled: bool,
) -> None:
    """Update a component from its evidence and that of its mirror item."""
    prior, tau = candidates.log_prior, settings.temperature
    evidence = own.total
    posterior = prior + tau * own.each
    if other is not None:
        rho = settings.pair_independence
        # where there is no candidate on the other side, its item says nothing about this one
        message = torch.logaddexp(
            torch.full_like(prior, np.log(rho)),
            np.log1p(-rho) + (other.each - other.total)[candidates.mirror] * candidates.mirrored,
        )
        evidence = torch.logsumexp(prior + own.each + message, 0)
        tempered = torch.logaddexp(
            torch.full_like(prior, np.log(rho)),
            np.log1p(-rho)
            + (tau * other.each - torch.logsumexp(prior + tau * other.each, 0))[candidates.mirror]
            * candidates.mirrored,
        )
        posterior = posterior + tempered
    posterior = posterior - torch.logsumexp(posterior, 0)
    effect.evidence, effect.strength = float(evidence), own.strength
    if effect.evidence < (_LEAST_EVIDENCE if settled else -5.0):
        effect.weights = effect.mean = effect.variance = None
        effect.kl = 0.0
        effect.contribution = torch.zeros_like(effect.contribution)
        return
    effect.weights = posterior.exp()
    effect.mean, effect.variance = _truncated(own.mean, own.variance)
    effect.kl = float((effect.weights * (posterior - prior)).sum())


def _contribute(effects: list[_Effect], features: Tensor) -> None:
    """Work out what each component adds to its item's linear predictor."""
    kept = [e for e in effects if e.weights is not None and e.mean is not None]
    if not kept:
        return
    coefficients = torch.stack([e.weights * e.mean for e in kept])  # type: ignore[operator]
    for effect, own in zip(kept, (features @ coefficients.T).T, strict=True):
        effect.contribution = own.double()


def _refit_nuisance(state: _State) -> None:
    total = sum((e.contribution for e in state.effects), torch.zeros_like(state.eta))
    weighted = state.design.T * state.weight
    solution = state.inverse @ (weighted @ (state.response - total))
    state.gamma = solution[1:]
    state.eta = total + state.design[:, 1:] @ state.gamma


def _recut(state: _State, lapse: float) -> None:
    seen = state.seen > 0
    c = curvature(state.cuts, state.eta[seen], state.level[seen], lapse, state.frequencies)
    state.cuts = update_cuts(state.cuts, state.eta[seen], state.level[seen], c.trust)


def _test(null: NullModel, candidates: Candidates, settings: DeficitSettings, seed: int) -> float:
    """Return the family-wise p of the strongest candidate, against scores that the null draws."""
    residuals = null.residuals(settings.permutations, seed=seed).to(candidates.features)
    information = null.information(candidates.features)
    scale = (information + _STEADY * information.median()).rsqrt()
    strongest = torch.full((len(residuals),), -torch.inf, device=residuals.device)
    # few candidates at a time: the products stay in the processor's cache
    for start in range(0, len(scale), _CANDIDATES):
        part = slice(start, start + _CANDIDATES)
        gradient = residuals @ candidates.features[:, part]
        strongest = torch.maximum(strongest, gradient.mul_(scale[part]).amax(1))
    return exceeding(strongest)


def _fit_together(
    states: list[_State],
    partners: list[int | None],
    candidates: Candidates,
    settings: DeficitSettings,
) -> None:
    """Fit all items by coordinate ascent, side by side so that they share passes over the data.

    Only the two items of a left-right pair know of each other.
    """
    for sweep in range(settings.iterations):
        for state in states:
            _linearise(state, settings.lapse)
        _project(states, candidates.features)
        for index in range(settings.components):
            if sweep < 2 * index:  # the first component settles before the next one starts
                continue
            found = _weigh(states, index, candidates)
            for state, own, partner in zip(states, found, partners, strict=True):
                _assign(
                    state.effects[index],
                    own,
                    None if partner is None else found[partner],
                    candidates,
                    settings,
                    settled=sweep >= 2 * index + 2,
                )
            _contribute([s.effects[index] for s in states], candidates.features)
        for state in states:
            _refit_nuisance(state)
            _recut(state, settings.lapse)


def _partners(items: tuple[Item, ...], usable: Sequence[int]) -> list[int | None]:
    """Return, for each usable item, the position of the one on the other side."""
    position = {items[k].name: number for number, k in enumerate(usable)}
    return [position.get(items[k].mirror or '') for k in usable]


class Spatial(DeficitModel[Candidates]):
    """Single effects on a dictionary of candidates."""

    name = 'spatial'
    offers = Offers(membership=True)
    drawing = Drawing(
        'prob',
        'probability (posterior) that the voxel belongs to the substrate',
        ('unlikely', 'likely'),
        '#0072B2',
        'o',
    )
    statistics: ClassVar[Mapping[str, str]] = {
        'effect': 'Expected log-odds that one whole unit of the map adds where the voxel is part '
        'of the substrate',
    }
    methods = """\
*spatial*: a cumulative-logit model [@ordinal] with lapses, in which the substrate of an item is a
sum of single effects [@susie], each a spherical ROI of unknown position, size and strength, beside
a component that follows the volume of the deficit. Maps were brought to one scale by the contrast
that the cohort's pattern of healthy tissue has in the better hemisphere of each. Items of a
left-right pair share their mirrored ROIs. An item was declared when its strongest ROI
exceeded those of 99 % of scores that were drawn, by shuffled quantile residuals
[@quantileresiduals; @freedmanlane], from an ordinal regression on natural splines of the volume of
the deficit and of covariates; its map was cut where the expected Dice coefficient is largest.
"""
    methods_given = """\
*spatial*: a cumulative-logit model [@ordinal] with lapses, in which the substrate of an item is a
sum of single effects [@susie], each a spherical ROI of unknown position, size and strength, beside
a component that follows the mean of the map. Items of a left-right pair share their mirrored
ROIs where both sides are covered. An item was declared when its strongest ROI exceeded
those of 99 % of scores that were drawn, by shuffled quantile residuals [@quantileresiduals;
@freedmanlane], from an ordinal regression on natural splines of the mean of the map and of
covariates; its map was cut where the expected Dice coefficient is largest.
"""

    def share(self, prepared: Prepared, settings: DeficitSettings) -> Candidates:
        """Return the features of the cohort; see `lay_out`."""
        return lay_out(prepared, settings)

    def fit(
        self,
        prepared: Prepared,
        scores: NDArray[np.float64],
        covariates: NDArray[np.float64],
        items: tuple[Item, ...],
        settings: DeficitSettings,
        *,
        shared: Candidates | None = None,
        maps: bool = True,
        checkpoint: Path | None = None,
    ) -> ModelFit:
        """Fit all items together."""
        del checkpoint
        candidates = lay_out(prepared, settings) if shared is None else shared
        device = candidates.features.device
        n_channels, coarse = candidates.n_channels, prepared.coarse
        found = ModelFit.blank(
            prepared, scores, covariates, items, settings,
            channels=n_channels, healthy=candidates.healthy, maps=maps,
        )  # fmt: skip
        readout = found.readout
        nuisance_mean, nuisance_scale = covariate_scales(candidates.nuisance)
        design = np.c_[
            np.ones(len(scores)),
            standardise(candidates.nuisance, nuisance_mean, nuisance_scale),
            standardise(covariates, readout.covariate_mean, readout.covariate_scale),
        ]
        design_tensor = torch.from_numpy(design).to(device)
        averaging = candidates.dictionary.averaging
        states = [
            _start(scores[:, k], design_tensor, items[k].levels, settings.components)
            for k in found.usable
        ]
        if settings.permutations:
            volume = measure_volume(prepared)
            for k in found.usable:
                null = fit_null(
                    scores[:, k], volume, covariates,
                    levels=items[k].levels, lapse=settings.lapse,
                )  # fmt: skip
                found.p_value[k] = _test(null, candidates, settings, settings.seed + k)
        if states:
            _fit_together(states, _partners(items, found.usable), candidates, settings)
        for k, state in zip(found.usable, states, strict=True):
            _LOG.debug('%s: evidence %s', items[k].name, [e.evidence for e in state.effects])
            own = items[k].levels
            readout.cuts[k, : own - 1] = state.cuts.cpu().numpy()
            readout.frequencies[k, :own] = state.frequencies.cpu().numpy()
            per_unit = state.gamma.cpu().numpy()
            readout.gamma[k] = per_unit[n_channels:]
            null_weight = per_unit[:n_channels] / nuisance_scale
            # the readout takes the nuisance as it is: its mean moves into the cut-points
            readout.cuts[k, : own - 1] += float(null_weight @ nuisance_mean)
            readout.weights[k] = (null_weight / coarse.n_voxels)[:, None]
            kept = [e for e in state.effects if e.weights is not None]
            for e in kept:
                assert e.weights is not None
                assert e.mean is not None
                coefficient = candidates.by_sphere((e.weights * e.mean).cpu()).numpy()
                coefficient[coefficient < _NEGLIGIBLE * coefficient.max()] = 0
                readout.weights[k] += (averaging @ coefficient.T).T
            found.details[items[k].name] = {
                'log_evidence': [round(e.evidence, 3) for e in state.effects],
                'kl': [round(e.kl, 3) for e in state.effects],
                'components': [_describe(e, candidates) for e in kept],
                'null_component': [float(v) for v in per_unit[:n_channels]],
            }
            found.kl[k] = max((round(e.kl, 3) for e in state.effects), default=0.0)
            if not maps:
                continue
            found.effect[k], found.std[k], found.probability[k] = _paint(
                kept, candidates, prepared
            )
            if settings.permutations and found.p_value[k] <= settings.alpha and kept:
                highest = float(found.probability[k].max())
                least = min(_LEAST_PROBABILITY, _LEAST_SHARE * highest)
                found.cut[k] = max(dice_cut(found.probability[k]), least)
                found.declared[k] = exceedance(found.probability[k], found.cut[k])
        return found


def _describe(effect: _Effect, candidates: Candidates) -> dict[str, object]:
    """Return a component's most probable ROI, for people."""
    assert effect.weights is not None
    assert effect.mean is not None
    n_spheres = len(candidates.dictionary.radii)
    weights = effect.weights.reshape(-1, n_spheres)
    best = int(weights.sum(0).argmax())
    return {
        'centre_mm': [float(v) for v in candidates.dictionary.centres[best]],
        'radius_mm': float(candidates.dictionary.radii[best]),
        'strength': float((effect.weights * effect.mean).sum()),
        'channels': [round(float(v), 4) for v in weights[:-1].sum(1)],
        'both_sides': round(float(weights[-1].sum()), 4),
    }


def _inside(
    spheres: NDArray[np.intp], dictionary: Dictionary, prepared: Prepared
) -> sparse.csc_matrix:
    """Return the (V, spheres) matrix that is 1 where a voxel of the fine grid is in an ROI."""
    if prepared.grid is prepared.coarse:
        return dictionary.members[:, spheres]
    return membership(prepared.grid, dictionary.centres[spheres], dictionary.radii[spheres])


def _paint(
    kept: list[_Effect], candidates: Candidates, prepared: Prepared
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Evaluate effect, sd and probability of membership at the voxels of the fine grid."""
    n_voxels, dictionary = prepared.grid.n_voxels, candidates.dictionary
    first, variance, outside = np.zeros(n_voxels), np.zeros(n_voxels), np.ones(n_voxels)
    for e in kept:
        assert e.weights is not None
        assert e.mean is not None
        assert e.variance is not None
        weights = e.weights.double().cpu()
        mean = candidates.by_sphere(weights * e.mean.cpu()).sum(0).numpy()
        square = candidates.by_sphere(weights * (e.mean**2 + e.variance).cpu()).sum(0).numpy()
        # A candidate of two ROIs is in both of them, not half in each.
        both = weights.reshape(-1, len(dictionary.radii))[-1]
        other = both[torch.from_numpy(dictionary.mirror)]
        chance = (candidates.by_sphere(weights).sum(0) + (both + other) / 2).numpy()
        order = np.argsort(-chance, kind='stable')
        enough = np.searchsorted(np.cumsum(chance[order]), _PAINTED * chance.sum()) + 1
        large = order[:enough]
        spheres = _inside(large, dictionary, prepared)
        m = spheres @ mean[large]
        first += m
        variance += np.maximum(spheres @ square[large] - m**2, 0)
        inside = spheres @ (chance[large] / float(weights.sum()))
        # A voxel in both of them is in the candidate once: where they overlap, at the midline.
        near = np.abs(dictionary.centres[large, 0]) < dictionary.radii[large]
        if near.any():
            twice = large[near]
            mirrored = dictionary.mirror[twice]
            overlap = spheres[:, near].multiply(_inside(mirrored, dictionary, prepared))
            inside -= overlap @ (both.numpy()[twice] / float(weights.sum()))
        outside *= 1 - np.clip(inside, 0, 1)
    return (
        first.astype(np.float32),
        np.sqrt(variance).astype(np.float32),
        (1 - outside).astype(np.float32),
    )
