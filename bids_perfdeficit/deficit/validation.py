"""Held-out prediction: does a map say more about a score than the deficit of each territory?

Stratified K-fold, repeated if asked for; folds may keep groups (sites) whole. Everything, the
generative model of maps included, is fitted on the training part. One fold of one model is one
call (`fit_fold`), so that a scheduler can spread them; the results are put together by
`merge_folds`. Must not know files, BIDS, anatomy or Nipype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from bids_perfdeficit.deficit.fitting import check_scores
from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.models import get_model
from bids_perfdeficit.deficit.ordinal import fit_linear, level_probabilities
from bids_perfdeficit.deficit.preparation import (
    Prepared,
    channels,
    check_covariates,
    clean,
    subset,
)
from bids_perfdeficit.deficit.result import Item, standardise
from bids_perfdeficit.deficit.rules import covariate_scales, usable_items
from bids_perfdeficit.deficit.scale import healthy_pattern
from bids_perfdeficit.deficit.settings import DeficitSettings
from bids_perfdeficit.errors import InputError

#: What predictions are compared with, the best first: ordinal regressions on the mean excess of
#: each region (`territories`), of each hemisphere (`sides`) and of the brain (`volume`), with the
#: covariates and the likelihood that the models have; and how often each level occurs
#: (`frequency`).
BASELINES: tuple[str, ...] = ('territories', 'sides', 'volume', 'frequency')
#: Bins of predicted probability behind the calibration error.
_CALIBRATION_BINS = 10
#: Coverage of the intervals.
_INTERVAL = 0.95
#: mm from the midline within which a voxel belongs to neither side.
_MIDLINE = 1e-3
#: Fewest participants in a fold.
_LEAST_HELD_OUT = 2


@dataclass(frozen=True, eq=False)
class FoldPrediction:
    """What a model and the baselines predict for the participants of one fold.

    Parameters
    ----------
    fold, folds, repeat : int
        Which fold of how many, in which repetition.
    rows : (n,) array
        Participants that were held out.
    probabilities : (n, K, levels) array
        NaN where an item could not be fitted on the training part.
    baselines : dict of str to (n, K, levels) array
    reasons : dict of str to str
        Item to why it could not be fitted.
    """

    fold: int
    folds: int
    repeat: int
    rows: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    baselines: dict[str, NDArray[np.float64]]
    reasons: dict[str, str]


@dataclass(frozen=True)
class ItemMetrics:
    """How well one item is predicted by one predictor; means over repetitions.

    Parameters
    ----------
    item, predictor : str
        `predictor` is the model's name or one of `BASELINES`.
    n : int
        Participants with a score and a prediction.
    log_score : float
        Mean log probability of the observed level, nats; higher is better.
    kappa : float
        Quadratic-weighted, of the median predicted level.
    auc : float
        Of the probability of any deficit; NaN when one class is missing.
    ece : float
        Expected calibration error of that probability, over ten bins of equal number.
    gain, gain_low, gain_high : float
        Log score minus that of the bar (see `Validation`), and its 95 % interval
        (`corrected_interval`); 0 for the bar itself.
    """

    item: str
    predictor: str
    n: int
    log_score: float
    kappa: float
    auc: float
    ece: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, eq=False)
class Validation:
    """Held-out predictions of a whole cohort.

    Parameters
    ----------
    model : str
    items : tuple of Item
    bar : str
        The baseline that gains are over: ``territories``, or ``sides`` where no regions were
        given.
    repeats : int
        Repetitions of the cross-validation.
    folds : (N,) array
        Fold that each participant was held out in, the first time.
    scores : (N, K) array
        What was observed; NaN where missing.
    probabilities : (N, K, levels) array
        Held out, the mean over repetitions; NaN where an item could not be fitted.
    baselines : dict of str to (N, K, levels) array
    metrics : tuple of ItemMetrics
        Every item (those never fitted left out) under the model and each baseline.
    skipped : dict of str to str
        Items without predictions, with the reason.
    """

    model: str
    items: tuple[Item, ...]
    bar: str
    repeats: int
    folds: NDArray[np.intp]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    baselines: dict[str, NDArray[np.float64]]
    metrics: tuple[ItemMetrics, ...]
    skipped: dict[str, str]

    def of(self, item: str, predictor: str | None = None) -> ItemMetrics:
        """Return the metrics of one item, by the model unless a baseline is named."""
        wanted = (item, predictor or self.model)
        return next(m for m in self.metrics if (m.item, m.predictor) == wanted)

    def calibration(self, item: str) -> NDArray[np.float64]:
        """Return (bins, 3): mean predicted probability of any deficit, observed share, number."""
        k = [i.name for i in self.items].index(item)
        known = np.isfinite(self.scores[:, k]) & np.isfinite(self.probabilities[:, k, 0])
        return calibration_curve(
            1 - self.probabilities[known, k, 0], self.scores[known, k] > 0, _CALIBRATION_BINS
        )


def assign_folds(
    scores: NDArray[np.float64],
    folds: int,
    *,
    seed: int,
    groups: Sequence[str] | None = None,
) -> NDArray[np.intp]:
    """Assign participants to folds, alike in the total of their scores.

    Participants are sorted by the mean rank of their scores (ties in random order) and each run
    of `folds` neighbours is assigned at random, one to each fold. Groups stay whole: the largest
    first, in random order among those of one size, each goes to the smallest fold.

    Parameters
    ----------
    scores : (N, K) array
    folds, seed : int
    groups : sequence of str, optional
        N names, e.g. of sites: no group is split.

    Raises
    ------
    InputError
        If there are fewer than two folds, or too few participants or groups for them.
    """
    if folds < 2:
        raise InputError(f'{folds} folds hold no one out', fix='use 2 folds or more')
    if len(scores) < folds * _LEAST_HELD_OUT:
        raise InputError(
            f'{len(scores)} participants cannot be assigned to {folds} folds',
            fix='use fewer folds',
        )
    rng = np.random.default_rng(seed)
    n = len(scores)
    assignment = np.empty(n, dtype=np.intp)
    if groups is not None:
        names, members = np.unique(np.asarray(groups), return_inverse=True)
        if len(names) < folds:
            raise InputError(
                f'{len(names)} groups cannot be kept whole in {folds} folds',
                fix=f'use {max(len(names), 2)} folds or fewer, or do not group the folds',
            )
        sizes = np.bincount(members)
        held = np.zeros(folds, dtype=np.intp)
        for group in np.lexsort((rng.random(len(names)), -sizes)):
            smallest = rng.choice(np.flatnonzero(held == held.min()))
            assignment[members == group] = smallest
            held[smallest] += sizes[group]
        return assignment
    with np.errstate(all='ignore'):
        share = scores / np.maximum(np.nanmax(np.nan_to_num(scores), 0), 1)
        total = np.where(np.isfinite(share), share, 0).sum(1)
    order = np.lexsort((rng.random(n), total))
    for start in range(0, n, folds):
        run = order[start : start + folds]
        assignment[run] = rng.permutation(folds)[: len(run)]
    return assignment


def fit_fold(
    prepared: Prepared,
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64] | None = None,
    *,
    items: Sequence[Item],
    model: str = 'spatial',
    settings: DeficitSettings | None = None,
    folds: int = 5,
    fold: int = 0,
    regions: NDArray[np.integer] | None = None,
    groups: Sequence[str] | None = None,
) -> FoldPrediction:
    """Fit without one fold and predict it; one unit of work.

    Parameters
    ----------
    prepared : Prepared
        The whole cohort. Its generative model is fitted again on the training part.
    scores, covariates, items, model, settings
        As for `fit`.
    folds, fold : int
        How many there are, and which one (from 0). All folds of one seed fit together. Numbers
        from `folds` upwards are those of further repetitions, each with its own assignment.
    regions : (V coarse,) integer array, optional
        The region of each voxel of ``prepared.coarse``, for the baseline `territories`.
    groups : sequence of str, optional
        See `assign_folds`.
    """
    settings = settings or DeficitSettings()
    items = tuple(items)
    scores = check_scores(scores, items)
    covariates = check_covariates(covariates, len(scores))
    repeat, own = divmod(fold, folds)
    assignment = assign_folds(scores, folds, seed=_seed(settings.seed, repeat), groups=groups)
    train, test = np.flatnonzero(assignment != own), np.flatnonzero(assignment == own)
    part = subset(prepared, train, settings)
    cleaned = clean(prepared.scanned(test), part.generative, settings)
    shape = (len(test), len(items), max(item.levels for item in items))
    probabilities = np.full(shape, np.nan)
    usable, reasons = usable_items(scores[train], items, settings)
    if usable:
        # the test of an item as a whole changes no prediction
        found = get_model(model).fit(
            part, scores[train], covariates[train], items, _without_test(settings), maps=False
        )
        features = channels(cleaned, prepared.coarse, found.healthy)
        eta = found.readout.eta(features, covariates[test])
        probabilities = found.readout.probabilities(eta)
        reasons = {**reasons, **found.skipped}
        for k, item in enumerate(items):
            if item.name in reasons:
                probabilities[:, k] = np.nan
    healthy = None if settings.as_given else healthy_pattern(part.features[0], part.coarse)
    beyond = [channels(m, part.coarse, healthy)[0] for m in (part.features[0], cleaned)]
    baselines = {}
    for name, weights in _baseline_columns(part.coarse, regions).items():
        columns = [(m @ weights).astype(float) for m in beyond]
        if name != 'frequency':
            pairs = zip(columns, (train, test), strict=True)
            columns = [np.c_[own_columns, covariates[rows]] for own_columns, rows in pairs]
        baselines[name] = _fit_baseline(
            columns[0], columns[1], scores[train], items, usable, settings
        )
    return FoldPrediction(own, folds, repeat, test, probabilities, baselines, reasons)


def cross_validate(
    prepared: Prepared,
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64] | None = None,
    *,
    items: Sequence[Item],
    model: str = 'spatial',
    settings: DeficitSettings | None = None,
    folds: int = 5,
    repeats: int = 1,
    regions: NDArray[np.integer] | None = None,
    groups: Sequence[str] | None = None,
) -> Validation:
    """Fit and predict every fold of every repetition; see `fit_fold`."""
    parts = [
        fit_fold(
            prepared, scores, covariates,
            items=items, model=model, settings=settings, folds=folds, fold=fold,
            regions=regions, groups=groups,
        )
        for fold in range(folds * repeats)
    ]  # fmt: skip
    return merge_folds(parts, scores, items=items, model=model, groups=groups)


def merge_folds(
    parts: Sequence[FoldPrediction],
    scores: NDArray[np.float64],
    *,
    items: Sequence[Item],
    model: str,
    groups: Sequence[str] | None = None,
) -> Validation:
    """Put the folds together and measure every predictor.

    Parameters
    ----------
    parts : sequence of FoldPrediction
        All of them.
    scores : (N, K) array
    items, model, groups
        As they were fitted.

    Raises
    ------
    InputError
        If the folds of a repetition do not cover each participant once.
    """
    items = tuple(items)
    scores = check_scores(scores, items)
    repeats = max(part.repeat for part in parts) + 1
    shape = (repeats, len(scores), *parts[0].probabilities.shape[1:])
    assignment = np.empty((repeats, len(scores)), dtype=np.intp)
    merged = {name: np.full(shape, np.nan) for name in (model, *parts[0].baselines)}
    for repeat in range(repeats):
        own = [part for part in parts if part.repeat == repeat]
        rows = np.concatenate([part.rows for part in own] or [np.zeros(0, np.intp)])
        if not np.array_equal(np.sort(rows), np.arange(len(scores))):
            raise InputError(
                'the folds do not hold out each participant once',
                fix='fit all folds with the same scores, folds and seed',
            )
        for part in own:
            assignment[repeat, part.rows] = part.fold
            merged[model][repeat, part.rows] = part.probabilities
            for name, values in part.baselines.items():
                merged[name][repeat, part.rows] = values
    reasons = {name: reason for part in parts for name, reason in part.reasons.items()}
    bar = next(name for name in BASELINES if name in merged)
    metrics: list[ItemMetrics] = []
    skipped: dict[str, str] = {}
    for k, item in enumerate(items):
        known = np.isfinite(scores[:, k]) & np.isfinite(merged[model][:, :, k, 0]).all(0)
        if not known.any():
            skipped[item.name] = reasons.get(item.name, 'no fold could be fitted')
            continue
        observed = scores[known, k].astype(int)
        members = None if groups is None else np.asarray(groups)[known]
        reference = _log_scores(merged[bar][:, known, k], observed)
        for name, values in merged.items():
            metrics.append(
                _measure(
                    item, name, values[:, known, k], observed, reference, parts[0].folds, members
                )
            )
    means = {name: values.mean(0) for name, values in merged.items()}
    probabilities = means.pop(model)
    return Validation(
        model, items, bar, repeats, assignment[0], scores, probabilities, means, tuple(metrics),
        skipped,
    )  # fmt: skip


def corrected_interval(
    gain: NDArray[np.float64], folds: int, groups: NDArray | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of a mean gain of cross-validation.

    Folds share most of their training data, so that participants' gains are not independent. The
    variance over participants (over groups, where those were kept whole) is enlarged by the share
    that Nadeau & Bengio (Machine Learning 2003) add for it: the held-out part over the training
    part, once for each fold, ``1 + folds / (folds - 1)``. The quantiles are Student's.

    Parameters
    ----------
    gain : (n,) array
        Of each participant, the mean over repetitions.
    folds : int
    groups : (n,) array, optional
        Names.
    """
    mean, n = float(gain.mean()), len(gain)
    members = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    totals = np.bincount(members, gain - mean)
    units = len(totals)
    if units < 2:
        return float('-inf'), float('inf')
    sampling = units / (units - 1) * float((totals**2).sum()) / n**2
    half = stats.t.ppf((1 + _INTERVAL) / 2, units - 1) * np.sqrt(
        sampling * (1 + folds / (folds - 1))
    )
    return mean - float(half), mean + float(half)


def calibration_curve(
    probability: NDArray[np.float64], observed: NDArray[np.bool_], bins: int
) -> NDArray[np.float64]:
    """Return (bins, 3): mean probability, observed share and number, in bins of equal number."""
    order = np.argsort(probability, kind='stable')
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return np.array([[probability[p].mean(), observed[p].mean(), len(p)] for p in parts])


def calibration_error(
    probability: NDArray[np.float64], observed: NDArray[np.bool_], bins: int = _CALIBRATION_BINS
) -> float:
    """Return the mean distance of probabilities from observed shares, over bins."""
    curve = calibration_curve(probability, observed, bins)
    return float(np.average(np.abs(curve[:, 0] - curve[:, 1]), weights=curve[:, 2]))


def _without_test(settings: DeficitSettings) -> DeficitSettings:
    return replace(settings, permutations=0)


def _seed(seed: int, repeat: int) -> int:
    """Return a seed of its own for each repetition; the first has that of the fit."""
    if not repeat:
        return seed
    return int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0] % 2**31)


def _log_scores(probabilities: NDArray[np.float64], observed: NDArray[np.int_]) -> NDArray:
    """Return (repeats, n) log probabilities of what was observed."""
    return np.log(np.maximum(probabilities[:, np.arange(len(observed)), observed], 1e-9))


def _measure(
    item: Item,
    predictor: str,
    probabilities: NDArray[np.float64],
    observed: NDArray[np.int_],
    reference: NDArray[np.float64],
    folds: int,
    groups: NDArray | None,
) -> ItemMetrics:
    own = probabilities[:, :, : item.levels]
    each = _log_scores(own, observed)
    median = (np.cumsum(own, 2) < 0.5).sum(2).clip(max=item.levels - 1)
    any_deficit, chance = observed > 0, 1 - own[:, :, 0]
    both = 0 < any_deficit.sum() < len(observed)
    # kappa is 0 / 0 when all are predicted alike and no one differs
    kappa = (
        np.mean([
            cohen_kappa_score(observed, m, weights='quadratic', labels=list(range(item.levels)))
            for m in median
        ])
        if len(np.unique(observed)) > 1
        else np.nan
    )  # fmt: skip
    gain = (each - reference).mean(0)
    low, high = corrected_interval(gain, folds, groups)
    return ItemMetrics(
        item.name,
        predictor,
        len(observed),
        float(each.mean()),
        float(kappa),
        float(np.mean([roc_auc_score(any_deficit, c) for c in chance])) if both else np.nan,
        float(np.mean([calibration_error(c, any_deficit) for c in chance])),
        float(gain.mean()),
        low,
        high,
    )


def _baseline_columns(
    grid: Grid, regions: NDArray[np.integer] | None
) -> dict[str, NDArray[np.float32]]:
    """Return (V, C) averaging weights of each baseline, in the order of `BASELINES`."""
    x = grid.coordinates[:, 0]
    parts = {
        'sides': [x < -_MIDLINE, x > _MIDLINE],
        'volume': [np.ones(grid.n_voxels, bool)],
        'frequency': [],
    }
    if regions is not None:
        if len(regions) != grid.n_voxels:
            raise InputError(
                f'{len(regions)} regions for {grid.n_voxels} voxels',
                fix='give one label per voxel of the coarse grid',
            )
        parts = {'territories': [regions == label for label in np.unique(regions)], **parts}
    return {
        name: np.stack([m / max(m.sum(), 1) for m in masks], 1).astype(np.float32)
        if masks
        else np.zeros((grid.n_voxels, 0), np.float32)
        for name, masks in parts.items()
    }


def _fit_baseline(
    train: NDArray[np.float64],
    test: NDArray[np.float64],
    scores: NDArray[np.float64],
    items: tuple[Item, ...],
    usable: list[int],
    settings: DeficitSettings,
) -> NDArray[np.float64]:
    mean, scale = covariate_scales(train)
    train_design = torch.from_numpy(standardise(train, mean, scale))
    test_design = torch.from_numpy(standardise(test, mean, scale))
    out = np.full((len(test), len(items), max(item.levels for item in items)), np.nan)
    for k in usable:
        seen = np.isfinite(scores[:, k])
        gamma, cuts, frequencies = fit_linear(
            train_design[torch.from_numpy(seen)],
            torch.from_numpy(scores[seen, k].astype(np.int64)),
            items[k].levels,
            settings.lapse,
        )
        p = (1 - settings.lapse) * level_probabilities(cuts, test_design @ gamma)
        out[:, k] = 0.0
        out[:, k, : items[k].levels] = (p + settings.lapse * frequencies).numpy()
    return out
