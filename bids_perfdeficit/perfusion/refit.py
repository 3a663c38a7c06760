"""Refit the last layer of the networks, the threshold and the finder's bias to a site's own pairs.

A dozen pairs are too few to fit a network. What is fitted is linear in the last hidden layers of
all networks and held near the shipped values by a Gaussian prior: the map's output by ridge
regression, that of the probability by logistic regression, then the threshold, then the bias of
the likely occlusion. Each pair is left out in turn, and each of these parts is taken only where
the pairs that were left out get better by more than the standard error of the difference.
Must not know where pairs come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from bids_perfdeficit.perfusion import agreement
from bids_perfdeficit.perfusion.agreement import DEFICIT_S
from bids_perfdeficit.perfusion.combination import hidden_units
from bids_perfdeficit.perfusion.occlusion import OUTCOMES, log_odds, region_evidence
from bids_perfdeficit.perfusion.recalibration import calibration, last_layer
from bids_perfdeficit.perfusion.targets import hypoperfusion, lateness

Floats = NDArray[np.floating[Any]]

#: Pairs that are needed: with fewer, leaving one out says nothing.
LEAST_PAIRS = 5
#: Precision of the prior of a weight: of the map, where a pair adds its mean squared error, and of
#: the probability, where it adds its mean log loss. So a pair counts as one observation: its
#: voxels are not independent. Chosen on the development patients of `benchmarks/calibration.py`
#: with one network; with K it is K times as high, so that K equal ones fit what one would.
_MAP_PRIOR, _PROBABILITY_PRIOR = 0.5, 0.005
#: Thresholds that are tried, and the penalty of a step of .1 away from the shipped one, in units
#: of the relative error of one pair's volume.
_THRESHOLDS = np.round(np.arange(0.1, 0.901, 0.0125), 4)
_THRESHOLD_PRIOR = 0.05
#: mL that are added to a volume before its error counts as relative.
_FLOOR_ML = 10.0
#: Standard deviation of the prior of the finder's bias, in units of log odds.
_BIAS_SD = 1.0
#: Gain in Spearman's correlation from which a map is refitted. References are noisy and end at
#: some delay: a smaller gain on them was a loss against the true delay of digital patients.
_LEAST_GAIN = 0.01
#: What a part may cost and still not count as worse: rounding and sampling of voxels.
_SAME = 0.001


@dataclass(frozen=True)
class Pair:
    """Voxels of one patient in which the delay is known.

    Parameters
    ----------
    name : str
        Of the participant.
    features : ndarray, (V, F)
        In the order of the network's; not a number where there is none.
    delay : ndarray, (V,)
        Tmax, s.
    voxel_ml : float
        Volume that a row represents, mL.
    regions : sequence of two sequences of ndarray of bool, (V,)
        As in `occlusion.region_evidence`.
    trunks : ndarray, (2, T)
        From `occlusion.trunk_evidence`.
    outcome : int or None
        Place of the true occlusion in `occlusion.OUTCOMES`.
    """

    name: str
    features: Floats
    delay: Floats
    voxel_ml: float
    regions: Sequence[Sequence[NDArray[np.bool_]]] = ()
    trunks: Floats | None = None
    outcome: int | None = None


@dataclass(frozen=True)
class Weights:
    """What is refitted.

    Parameters
    ----------
    weight : ndarray, (2, K H)
    bias : ndarray, (2,)
        Of the last layer, on the units of all networks: the map, and the logit of the probability.
    threshold : float
    occlusion_bias : ndarray, (7,)
    """

    weight: Floats
    bias: Floats
    threshold: float
    occlusion_bias: Floats


#: The parts that are taken or not, with what each is.
PARTS: Mapping[str, str] = {
    'map': 'weights of the perfusion map',
    'probability': 'weights and threshold of the probability of hypoperfusion',
    'occlusion': 'bias of the likely occlusion',
}


@dataclass(frozen=True)
class Refit:
    """The result.

    Parameters
    ----------
    weights : Weights
        Of all pairs; shipped values in the parts that were not taken.
    taken : mapping of str to bool
        By `PARTS`.
    reasons : mapping of str to str
        By `PARTS`, why a part was taken or not, as a clause.
    every : Weights
        Of all pairs, whether taken or not.
    pairs : list of dict
        A row for each pair and calibration: ``name``, ``calibration`` (``shipped``, ``left out``:
        fitted without this pair, every part of it), and the measures.
    """

    weights: Weights
    taken: Mapping[str, bool]
    reasons: Mapping[str, str]
    every: Weights
    pairs: list[dict[str, object]] = field(default_factory=list)

    @property
    def is_better(self) -> bool:
        """Whether any part was taken."""
        return any(self.taken.values())

    @property
    def withholds_occlusion(self) -> bool:
        """Whether the likely occlusion cannot be reported.

        It is found by the probability. Where that was refitted, what finds it must be refitted
        too: in digital patients of another physics the shipped one was right in 5 of 20 with it,
        instead of 14.
        """
        return self.taken['probability'] and not self.taken['occlusion']


@dataclass(frozen=True)
class _Seen:
    """A pair with the last hidden layers and a column of ones, (V, K H + 1)."""

    pair: Pair
    hidden: Floats
    late: Floats
    target: Floats


def shipped_weights() -> Weights:
    """Return the values that are shipped."""
    fitted = calibration()
    last = last_layer()
    return Weights(
        np.asarray(last['weight'], float),
        np.asarray(last['bias'], float),
        float(fitted['threshold']),
        np.asarray(fitted['occlusion']['bias'], float),
    )


def refit(pairs: Sequence[Pair]) -> Refit:
    """Refit, with each pair left out in turn.

    Parameters
    ----------
    pairs : sequence of Pair
        At least `LEAST_PAIRS`.

    Returns
    -------
    Refit

    Raises
    ------
    ValueError
        With fewer pairs.
    """
    if len(pairs) < LEAST_PAIRS:
        raise ValueError(f'{len(pairs)} pairs, and at least {LEAST_PAIRS} are needed')
    shipped = shipped_weights()
    seen = [_see(pair) for pair in pairs]
    rows: list[dict[str, object]] = []
    for k, one in enumerate(seen):
        found = _fit([other for j, other in enumerate(seen) if j != k], shipped)
        for name, weights in (('shipped', shipped), ('left out', found)):
            rows.append({'name': one.pair.name, 'calibration': name, **_measure(one, weights)})
    taken, reasons = _decide(rows)
    every = _fit(seen, shipped)
    weight, bias = np.round(every.weight, 5), np.round(every.bias, 5)
    for part, row in (('map', 0), ('probability', 1)):
        if not taken[part]:
            weight[row], bias[row] = shipped.weight[row], shipped.bias[row]
    weights = Weights(
        weight,
        bias,
        every.threshold if taken['probability'] else shipped.threshold,
        np.round(every.occlusion_bias, 4) if taken['occlusion'] else shipped.occlusion_bias,
    )
    if taken['occlusion'] and not taken['probability']:
        # The bias is that for the probability that is used.
        weights = _fit_occlusion(seen, shipped, weights)
    return Refit(weights, taken, reasons, every, rows)


def measure_pair(pair: Pair, weights: Weights) -> dict[str, object]:
    """Return how a pair fares, as in `Refit.pairs`; without a deficit some are not a number."""
    return _measure(_see(pair), weights)


def _see(pair: Pair) -> _Seen:
    values = torch.from_numpy(np.ascontiguousarray(pair.features, np.float32))
    hidden = hidden_units(values).numpy().astype(float)
    delay = pair.delay
    wide = np.column_stack([hidden, np.ones(len(delay))])
    return _Seen(pair, wide, lateness(delay), hypoperfusion(delay))


def _fit(seen: Sequence[_Seen], shipped: Weights) -> Weights:
    start = np.column_stack([shipped.weight, shipped.bias])
    late = _fit_map(seen, start[0])
    logit = _fit_probability(seen, start[1])
    weight, bias = np.stack([late[:-1], logit[:-1]]), np.array([late[-1], logit[-1]])
    threshold = _fit_threshold(seen, logit, shipped.threshold)
    return _fit_occlusion(seen, shipped, Weights(weight, bias, threshold, shipped.occlusion_bias))


def _members() -> int:
    return len(calibration()['members'])


def _fit_map(seen: Sequence[_Seen], start: Floats) -> Floats:
    """Ridge regression about the shipped weights; the constant, which no map has, is free."""
    gram = np.zeros((len(start), len(start)))
    right = np.zeros(len(start))
    for one in seen:
        gram += one.hidden.T @ one.hidden / len(one.late)
        right += one.hidden.T @ (one.late - one.hidden @ start) / len(one.late)
    penalty = np.full(len(start), _MAP_PRIOR * _members())
    penalty[-1] = 1e-6
    return np.asarray(start + np.linalg.solve(gram + np.diag(penalty), right))


def _fit_probability(seen: Sequence[_Seen], start: Floats) -> Floats:
    """Logistic regression about the shipped weights, by Newton's method with halved steps."""
    prior = np.full(len(start), _PROBABILITY_PRIOR * _members())
    prior[-1] = _PROBABILITY_PRIOR  # of the constant, which all networks share

    def loss(theta: Floats) -> float:
        total = 0.5 * float((prior * np.square(theta - start)).sum())
        for one in seen:
            eta = one.hidden @ theta
            total += float((np.logaddexp(0, eta) - one.target * eta).mean())
        return total

    theta, value = start.copy(), loss(start)
    for _ in range(30):
        slope = prior * (theta - start)
        curve = np.diag(prior)
        for one in seen:
            share = expit(one.hidden @ theta)
            slope += one.hidden.T @ (share - one.target) / len(share)
            curve += (one.hidden.T * (share * (1 - share))) @ one.hidden / len(share)
        step, size = np.linalg.solve(curve, slope), 1.0
        while (new := loss(theta - size * step)) > value and size > 1e-4:
            size /= 2
        if value - new < 1e-9:
            break
        theta, value = theta - size * step, new
    return theta


def _fit_threshold(seen: Sequence[_Seen], logit: Floats, start: float) -> float:
    """Choose the threshold with the least error of volumes, held near the shipped one."""
    total = _THRESHOLD_PRIOR * np.square((_THRESHOLDS - start) / 0.1)
    true = [one.pair.voxel_ml * float((one.pair.delay > DEFICIT_S).sum()) for one in seen]
    scale = np.mean(true) + _FLOOR_ML
    for one, volume in zip(seen, true, strict=True):
        ordered = np.sort(expit(one.hidden @ logit))
        above = len(ordered) - np.searchsorted(ordered, _THRESHOLDS, side='right')
        total = total + np.abs(above * one.pair.voxel_ml - volume) / scale
    return float(_THRESHOLDS[int(np.argmin(total))])


def _evidence(one: _Seen, weights: Weights) -> Floats:
    probability = expit(one.hidden @ np.append(weights.weight[1], weights.bias[1]))
    assert one.pair.trunks is not None
    return np.hstack([region_evidence(probability, one.pair.regions), one.pair.trunks])


def _odds(measured: Floats, bias: Floats) -> Floats:
    return log_odds(measured, {**calibration()['occlusion'], 'bias': bias})


def _fit_occlusion(seen: Sequence[_Seen], shipped: Weights, found: Weights) -> Weights:
    """Return the weights with the finder's bias at the maximum of its posterior."""
    known = [one for one in seen if one.pair.outcome is not None]
    start = shipped.occlusion_bias
    if not known:
        return found
    # The odds are those without a bias plus the bias, which sides share.
    plain = [_odds(_evidence(one, found), np.zeros(len(start))) for one in known]
    sided = len(OUTCOMES) - len(start)
    place = np.r_[np.arange(sided), np.arange(len(start))]

    def loss(bias: Floats) -> float:
        total = 0.5 * float(np.square((bias - start) / _BIAS_SD).sum())
        for one, odds in zip(known, plain, strict=True):
            assert one.pair.outcome is not None
            free = odds + bias[place]
            total += float(logsumexp(free) - free[one.pair.outcome])
        return total

    best = minimize(loss, start, method='L-BFGS-B').x
    return Weights(found.weight, found.bias, found.threshold, np.asarray(best))


def _measure(one: _Seen, weights: Weights) -> dict[str, object]:
    pair = one.pair
    late, logit = (one.hidden @ np.column_stack([weights.weight, weights.bias]).T).T
    probability = expit(logit)
    deficit = pair.delay > DEFICIT_S
    found = probability > weights.threshold
    enough = deficit.sum() >= agreement.LEAST_VOXELS
    row: dict[str, object] = {
        'spearman': agreement.spearman(late, pair.delay),
        'spearman_deficit': agreement.spearman(late[deficit], pair.delay[deficit])
        if enough
        else np.nan,
        'auc': agreement.roc_area(probability, deficit) if enough else np.nan,
        'found_ml': pair.voxel_ml * float(found.sum()),
        'reference_ml': pair.voxel_ml * float(deficit.sum()),
        'error_ml': pair.voxel_ml * abs(float(found.sum()) - float(deficit.sum())),
        'dice': agreement.dice(found, deficit) if enough else np.nan,
        'log_loss': float((np.logaddexp(0, logit) - one.target * logit).mean()),
        'occlusion_score': np.nan,
        'occlusion_right': np.nan,
    }
    if pair.outcome is not None:
        odds = _odds(_evidence(one, weights), weights.occlusion_bias)
        row['occlusion_score'] = float(odds[pair.outcome] - logsumexp(odds))
        row['occlusion_right'] = float(int(odds.argmax()) == pair.outcome)
    return row


def _decide(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, bool], dict[str, str]]:
    """Decide which parts are taken, by the pairs that were left out.

    A part is taken where its measure gets better by more than the standard error of the paired
    difference, and the measure beside it does not get worse.
    """

    def compare(measure: str) -> tuple[float, float, float, int]:
        """Return means before and after, the standard error of the change, and the count."""
        before, after = (
            np.array([float(row[measure]) for row in rows if row['calibration'] == name])
            for name in ('shipped', 'left out')
        )
        known = np.isfinite(before) & np.isfinite(after)
        count = int(known.sum())
        if count < 2:
            return np.nan, np.nan, np.inf, count
        before, after = before[known], after[known]
        error = float((after - before).std(ddof=1) / np.sqrt(count))
        return float(before.mean()), float(after.mean()), error, count

    taken, reasons = {}, {}
    before, after, error, _ = compare('spearman')
    taken['map'] = after - before > max(error, _LEAST_GAIN)
    reasons['map'] = f'mean Spearman {before:.3f} before and {after:.3f} after'
    volume, new_volume, error, _ = compare('error_ml')
    area, new_area, _, count = compare('auc')
    taken['probability'] = volume - new_volume > max(error, _SAME * _FLOOR_ML) and (
        count < 2 or new_area >= area - _SAME
    )
    reasons['probability'] = (
        f'mean error of volumes {volume:.1f} mL before and {new_volume:.1f} mL after'
        + (f', AUC {area:.3f} and {new_area:.3f}' if count > 1 else '')
    )
    score, new_score, error, count = compare('occlusion_score')
    right, new_right, _, _ = compare('occlusion_right')
    if count < LEAST_PAIRS:
        taken['occlusion'] = False
        reasons['occlusion'] = (
            f'{count} pairs have a mask of the occlusion, and at least {LEAST_PAIRS} are needed'
        )
    else:
        taken['occlusion'] = new_score - score > max(error, _SAME) and new_right >= right
        reasons['occlusion'] = (
            f'occlusion right in {right * count:.0f} of {count} before and '
            f'{new_right * count:.0f} after, mean log score {score:.2f} and {new_score:.2f}'
        )
    return taken, reasons
