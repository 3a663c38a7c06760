"""Held-out prediction: does a map say more about a score than the size of the deficit does?

Stratified K-fold. Everything, the generative model of maps included, is fitted on the training
part. One fold of one model is one call (`fit_fold`), so that a scheduler can spread them; the
results are put together by `merge_folds`. Must not know files, BIDS or Nipype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from bids_perfdeficit.deficit.fitting import check_scores
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
from bids_perfdeficit.deficit.settings import DeficitSettings
from bids_perfdeficit.errors import InputError

#: What predictions are held against. `volume`: mean of the map over the brain. `coverage`: mean of
#: the map weighted by how often each voxel is ill in the cohort, the map that vascular bias alone
#: draws. `frequency`: how often each level occurs. The first two have the covariates as well.
BASELINES: tuple[str, ...] = ('volume', 'coverage', 'frequency')
#: Bins of predicted probability behind the calibration error.
_CALIBRATION_BINS = 10
#: Resamples of participants behind the intervals, and their coverage.
_RESAMPLES = 1000
_INTERVAL = 0.95


@dataclass(frozen=True, eq=False)
class FoldPrediction:
    """What a model and the baselines predict for the participants of one fold.

    Parameters
    ----------
    fold : int
    rows : (n,) array
        Participants that were held out.
    probabilities : (n, K, levels) array
        NaN where an item could not be fitted on the training part.
    baselines : dict of str to (n, K, levels) array
    reasons : dict of str to str
        Item to why it could not be fitted.
    """

    fold: int
    rows: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    baselines: dict[str, NDArray[np.float64]]
    reasons: dict[str, str]


@dataclass(frozen=True)
class ItemMetrics:
    """How well one item is predicted by one predictor.

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
        Log score minus that of the `volume` baseline, and its 95 % interval over participants
        (bootstrap); 0 for `volume` itself.
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
    folds : (N,) array
        Fold that each participant was held out in.
    scores : (N, K) array
        What was observed; NaN where missing.
    probabilities : (N, K, levels) array
        Held out; NaN where an item could not be fitted.
    baselines : dict of str to (N, K, levels) array
    metrics : tuple of ItemMetrics
        Every item (those never fitted left out) under the model and each baseline.
    skipped : dict of str to str
        Items without predictions, with the reason.
    """

    model: str
    items: tuple[Item, ...]
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
    scores: NDArray[np.float64], folds: int, *, seed: int, min_participants: int = 2
) -> NDArray[np.intp]:
    """Deal participants to folds, alike in the total of their scores.

    Participants are sorted by the mean rank of their scores (ties in random order) and each run
    of `folds` neighbours is dealt at random, one to each fold.

    Raises
    ------
    InputError
        If there are fewer than two folds, or too few participants for them.
    """
    if folds < 2:
        raise InputError(f'{folds} folds hold no one out', fix='use 2 folds or more')
    if len(scores) < folds * min_participants:
        raise InputError(
            f'{len(scores)} participants cannot be dealt to {folds} folds', fix='use fewer folds'
        )
    rng = np.random.default_rng(seed)
    n = len(scores)
    with np.errstate(all='ignore'):
        share = scores / np.maximum(np.nanmax(np.nan_to_num(scores), 0), 1)
        total = np.where(np.isfinite(share), share, 0).sum(1)
    order = np.lexsort((rng.random(n), total))
    assignment = np.empty(n, dtype=np.intp)
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
) -> FoldPrediction:
    """Fit without one fold and predict it; one unit of work.

    Parameters
    ----------
    prepared : Prepared
        The whole cohort. Its generative model is fitted again on the training part.
    scores, covariates, items, model, settings
        As for `fit`.
    folds, fold : int
        How many there are, and which one (from 0). All folds of one seed fit together.
    """
    settings = settings or DeficitSettings()
    items = tuple(items)
    scores = check_scores(scores, items)
    covariates = check_covariates(covariates, len(scores))
    assignment = assign_folds(scores, folds, seed=settings.seed)
    train, test = np.flatnonzero(assignment != fold), np.flatnonzero(assignment == fold)
    part = subset(prepared, train, settings)
    scanned = prepared.scanned(test)
    shape = (len(test), len(items), max(item.levels for item in items))
    probabilities = np.full(shape, np.nan)
    usable, reasons = usable_items(scores[train], items, settings)
    if usable:
        # the test of an item as a whole changes no prediction
        found = get_model(model).fit(
            part, scores[train], covariates[train], items, _without_test(settings), maps=False
        )
        cleaned = clean(scanned, part.generative, settings)
        features = channels(cleaned, prepared.coarse, found.healthy)
        eta = found.readout.eta(features, covariates[test])
        probabilities = found.readout.probabilities(eta)
        reasons = {**reasons, **found.skipped}
        for k, item in enumerate(items):
            if item.name in reasons:
                probabilities[:, k] = np.nan
    baselines = _fit_baselines(
        part.measured, part.generative.complete(scanned), scores[train], covariates[train],
        covariates[test], items, usable, settings,
    )  # fmt: skip
    return FoldPrediction(fold, test, probabilities, baselines, reasons)


def cross_validate(
    prepared: Prepared,
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64] | None = None,
    *,
    items: Sequence[Item],
    model: str = 'spatial',
    settings: DeficitSettings | None = None,
    folds: int = 5,
) -> Validation:
    """Fit and predict every fold; see `fit_fold`."""
    parts = [
        fit_fold(
            prepared, scores, covariates,
            items=items, model=model, settings=settings, folds=folds, fold=fold,
        )
        for fold in range(folds)
    ]  # fmt: skip
    return merge_folds(parts, scores, items=items, model=model)


def merge_folds(
    parts: Sequence[FoldPrediction],
    scores: NDArray[np.float64],
    *,
    items: Sequence[Item],
    model: str,
    seed: int = 0,
) -> Validation:
    """Put the folds together and measure every predictor.

    Parameters
    ----------
    parts : sequence of FoldPrediction
        All of them.
    scores : (N, K) array
    items, model
        As they were fitted.
    seed : int
        Of the intervals.

    Raises
    ------
    InputError
        If the folds do not cover each participant once.
    """
    items = tuple(items)
    scores = check_scores(scores, items)
    rows = np.concatenate([part.rows for part in parts])
    if not np.array_equal(np.sort(rows), np.arange(len(scores))):
        raise InputError(
            'the folds do not hold out each participant once',
            fix='fit all folds with the same scores, folds and seed',
        )
    shape = (len(scores), *parts[0].probabilities.shape[1:])
    assignment = np.empty(len(scores), dtype=np.intp)
    merged = {name: np.full(shape, np.nan) for name in (model, *BASELINES)}
    for part in parts:
        assignment[part.rows] = part.fold
        merged[model][part.rows] = part.probabilities
        for name, values in part.baselines.items():
            merged[name][part.rows] = values
    reasons = {name: reason for part in parts for name, reason in part.reasons.items()}
    metrics: list[ItemMetrics] = []
    skipped: dict[str, str] = {}
    for k, item in enumerate(items):
        known = np.isfinite(scores[:, k]) & np.isfinite(merged[model][:, k, 0])
        if not known.any():
            skipped[item.name] = reasons.get(item.name, 'no fold could be fitted')
            continue
        observed = scores[known, k].astype(int)
        reference = _log_scores(merged['volume'][known, k], observed)
        for name, values in merged.items():
            metrics.append(_measure(item, name, values[known, k], observed, reference, seed))
    probabilities = merged.pop(model)
    return Validation(
        model, items, assignment, scores, probabilities, merged, tuple(metrics), skipped
    )


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


def _log_scores(probabilities: NDArray[np.float64], observed: NDArray[np.int_]) -> NDArray:
    return np.log(np.maximum(probabilities[np.arange(len(observed)), observed], 1e-9))


def _measure(
    item: Item,
    predictor: str,
    probabilities: NDArray[np.float64],
    observed: NDArray[np.int_],
    reference: NDArray[np.float64],
    seed: int,
) -> ItemMetrics:
    own = probabilities[:, : item.levels]
    each = _log_scores(own, observed)
    median = (np.cumsum(own, 1) < 0.5).sum(1).clip(max=item.levels - 1)
    varied = len(np.unique(observed)) > 1
    # kappa is 0 / 0 when all are predicted alike and no one differs
    kappa = (
        float(
            cohen_kappa_score(
                observed, median, weights='quadratic', labels=list(range(item.levels))
            )
        )
        if varied
        else np.nan
    )
    any_deficit, chance = observed > 0, 1 - own[:, 0]
    both = 0 < any_deficit.sum() < len(observed)
    gain = each - reference
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(gain), size=(_RESAMPLES, len(gain)))
    low, high = np.quantile(gain[draws].mean(1), [(1 - _INTERVAL) / 2, (1 + _INTERVAL) / 2])
    return ItemMetrics(
        item.name,
        predictor,
        len(observed),
        float(each.mean()),
        kappa,
        float(roc_auc_score(any_deficit, chance)) if both else np.nan,
        calibration_error(chance, any_deficit),
        float(gain.mean()),
        float(low),
        float(high),
    )


def _fit_baselines(
    train_maps: NDArray[np.float32],
    test_maps: NDArray[np.float32],
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64],
    test_covariates: NDArray[np.float64],
    items: tuple[Item, ...],
    usable: list[int],
    settings: DeficitSettings,
) -> dict[str, NDArray[np.float64]]:
    common = train_maps.mean(0)
    common = common / max(float(common.sum()), 1e-9)
    columns = {
        'volume': (train_maps.mean(1)[:, None], test_maps.mean(1)[:, None]),
        'coverage': ((train_maps @ common)[:, None], (test_maps @ common)[:, None]),
        'frequency': (np.zeros((len(train_maps), 0)), np.zeros((len(test_maps), 0))),
    }
    shape = (len(test_maps), len(items), max(item.levels for item in items))
    out: dict[str, NDArray[np.float64]] = {}
    for name, (train, test) in columns.items():
        if name != 'frequency':
            train, test = np.c_[train, covariates], np.c_[test, test_covariates]
        mean, scale = covariate_scales(train)
        train_design = torch.from_numpy(standardise(train.astype(float), mean, scale))
        test_design = torch.from_numpy(standardise(test.astype(float), mean, scale))
        out[name] = np.full(shape, np.nan)
        for k in usable:
            seen = np.isfinite(scores[:, k])
            gamma, cuts, frequencies = fit_linear(
                train_design[torch.from_numpy(seen)],
                torch.from_numpy(scores[seen, k].astype(np.int64)),
                items[k].levels,
                settings.lapse,
            )
            p = (1 - settings.lapse) * level_probabilities(cuts, test_design @ gamma)
            out[name][:, k] = 0.0
            out[name][:, k, : items[k].levels] = (p + settings.lapse * frequencies).numpy()
    return out
