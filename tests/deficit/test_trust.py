"""Validation and inference: what is predicted, declared on nothing, and found again."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bids_perfdeficit.deficit import (
    Item,
    bootstrap,
    clusters_table,
    coverage_resemblance,
    cross_validate,
    find_clusters,
    fit,
    fit_fold,
    merge_folds,
    null_calibration,
    shuffle_scores,
)
from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.inference import adjust_holm, number_results
from bids_perfdeficit.deficit.validation import (
    BASELINES,
    assign_folds,
    calibration_error,
    corrected_interval,
)
from bids_perfdeficit.errors import InputError


@pytest.fixture(scope='module')
def regions(cohort):
    """Front and back of each side."""
    x, y, _ = cohort.prepared.coarse.coordinates.T
    return 2 * (x > 0) + (y > -16)


@pytest.fixture(scope='module')
def validation(cohort, fast, regions):
    return cross_validate(
        cohort.prepared, cohort.scores, items=cohort.items, settings=fast, folds=3,
        regions=regions,
    )  # fmt: skip


def test_folds_are_even_and_alike(cohort):
    folds = assign_folds(cohort.scores, 4, seed=0)
    assert np.ptp(np.bincount(folds)) <= 1
    totals = cohort.scores.sum(1)
    means = [totals[folds == f].mean() for f in range(4)]
    assert np.ptp(means) < 0.15 * totals.std()
    np.testing.assert_array_equal(folds, assign_folds(cohort.scores, 4, seed=0))
    assert (folds != assign_folds(cohort.scores, 4, seed=1)).any()


def test_maps_beat_regions_where_there_is_a_substrate_and_not_elsewhere(validation):
    assert validation.bar == 'territories'
    for name in ('5a', '5b', '9'):
        assert validation.of(name).gain_low > 0, name
        scores = [validation.of(name, b).log_score for b in BASELINES]
        assert validation.of(name).log_score > max(scores), name
    assert validation.of('1a').gain_low < 0 < validation.of('1a').gain_high
    assert validation.of('1a', 'territories').gain == 0


def test_without_regions_the_bar_is_the_mean_of_each_side(cohort, fast):
    found = cross_validate(
        cohort.prepared, cohort.scores[:, 2:3], items=cohort.items[2:3], model='ridge',
        settings=fast, folds=2,
    )  # fmt: skip
    assert found.bar == 'sides'
    assert set(found.baselines) == set(BASELINES) - {'territories'}
    with pytest.raises(InputError, match='2 regions for'):
        fit_fold(cohort.prepared, cohort.scores, items=cohort.items, settings=fast,
                 regions=np.zeros(2, int))  # fmt: skip


def test_baselines_have_the_covariates(cohort, fast):
    rng = np.random.default_rng(0)
    age = rng.standard_normal(240)
    score = (age[:, None] + 0.3 * rng.standard_normal((240, 1)) > [[0.3]]).astype(float)
    found = cross_validate(
        cohort.prepared, score, age[:, None], items=[Item('x', 2)], model='ridge', settings=fast,
        folds=2,
    )  # fmt: skip
    assert found.of('x', 'volume').auc > 0.9
    assert found.of('x', 'frequency').auc < 0.7


def test_groups_are_never_split_and_folds_are_even():
    sites = [f's{n}' for n in np.random.default_rng(1).integers(0, 20, 300)]
    folds = assign_folds(np.zeros((300, 1)), 4, seed=0, groups=sites)
    for site in set(sites):
        assert len(set(folds[np.array(sites) == site])) == 1
    assert np.ptp(np.bincount(folds)) < 20
    assert (folds != assign_folds(np.zeros((300, 1)), 4, seed=1, groups=sites)).any()
    with pytest.raises(InputError, match='20 groups cannot be kept whole in 21 folds'):
        assign_folds(np.zeros((300, 1)), 21, seed=0, groups=sites)


def test_repetitions_have_their_own_folds_and_are_averaged(cohort, fast):
    arguments = {
        'items': cohort.items[2:3], 'model': 'ridge', 'settings': fast, 'folds': 2,
    }  # fmt: skip
    score = cohort.scores[:, 2:3]
    whole = cross_validate(cohort.prepared, score, **arguments, repeats=2)
    parts = [fit_fold(cohort.prepared, score, **arguments, fold=fold) for fold in range(4)]
    assert [(part.repeat, part.fold) for part in parts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert set(parts[0].rows) != set(parts[2].rows)
    single = merge_folds(parts[:2], score, items=cohort.items[2:3], model='ridge')
    assert (whole.repeats, single.repeats) == (2, 1)
    first = single.probabilities
    second = np.full_like(first, np.nan)
    for part in parts[2:]:
        second[part.rows] = part.probabilities
    np.testing.assert_allclose(whole.probabilities, (first + second) / 2)
    with pytest.raises(InputError, match='do not hold out each participant once'):
        merge_folds(parts[:3], score, items=cohort.items[2:3], model='ridge')


def test_intervals_allow_for_what_folds_share():
    gain = np.random.default_rng(0).normal(0.1, 1, 400)
    low, high = corrected_interval(gain, 5)
    plain = 1.96 * gain.std(ddof=1) / 20
    assert (high - low) / 2 == pytest.approx(plain * np.sqrt(2.25), rel=0.01)
    assert (low + high) / 2 == pytest.approx(gain.mean())
    # participants of a site that are alike count as one
    sites = np.repeat(np.arange(20), 20)
    alike = np.repeat(np.random.default_rng(1).normal(0, 1, 20), 20)
    wide, narrow = corrected_interval(alike, 5, sites), corrected_interval(alike, 5)
    assert np.ptp(wide) > 4 * np.ptp(narrow)
    assert corrected_interval(alike, 5, np.zeros(400)) == (-np.inf, np.inf)


def test_predictions_are_calibrated(validation):
    for item in validation.items:
        assert validation.of(item.name).ece < 0.12
        curve = validation.calibration(item.name)
        assert curve[:, 2].sum() == len(validation.scores)


def test_metrics_agree_with_their_definitions(cohort, validation):
    known = validation.of('9')
    p = validation.probabilities[:, 2]
    observed = cohort.scores[:, 2].astype(int)
    assert known.log_score == pytest.approx(np.log(p[np.arange(240), observed]).mean())
    assert known.auc == pytest.approx(roc_auc_score(observed > 0, 1 - p[:, 0]))
    assert known.n == 240
    np.testing.assert_allclose(p.sum(1), 1)


def test_no_fold_sees_the_scores_that_it_predicts(cohort, fast, monkeypatch):
    arguments = {'items': cohort.items, 'settings': fast, 'folds': 3}
    first = fit_fold(cohort.prepared, cohort.scores, **arguments)
    folds = assign_folds(cohort.scores, 3, seed=fast.seed)
    np.testing.assert_array_equal(np.flatnonzero(folds == 0), first.rows)
    monkeypatch.setattr('bids_perfdeficit.deficit.validation.assign_folds', lambda *_, **__: folds)
    hidden = cohort.scores.copy()
    hidden[first.rows] = np.nan
    second = fit_fold(cohort.prepared, hidden, **arguments)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    for name, values in first.baselines.items():
        np.testing.assert_array_equal(values, second.baselines[name])


def test_folds_as_single_pieces_give_the_same(cohort, fast, validation, regions):
    parts = [
        pickle.loads(pickle.dumps(  # noqa: S301
            fit_fold(cohort.prepared, cohort.scores, items=cohort.items, settings=fast,
                     folds=3, fold=fold, regions=regions)
        ))
        for fold in (2, 0, 1)
    ]  # fmt: skip
    merged = merge_folds(parts, cohort.scores, items=cohort.items, model='spatial')
    np.testing.assert_array_equal(merged.probabilities, validation.probabilities)
    assert merged.metrics == validation.metrics
    with pytest.raises(InputError, match='do not hold out each participant once'):
        merge_folds(parts[:2], cohort.scores, items=cohort.items, model='spatial')


@pytest.mark.parametrize('model', ['ridge', 'voxelwise'])
def test_other_models_are_validated_alike(cohort, fast, model):
    found = cross_validate(
        cohort.prepared, cohort.scores[:, 2:3], items=cohort.items[2:3], model=model,
        settings=fast, folds=2,
    )  # fmt: skip
    assert found.of('9').auc > 0.6


def test_items_that_no_fold_can_fit_are_told(cohort, fast):
    scores = cohort.scores.copy()
    scores[:, 0] = 0
    scores[::5, 2] = np.nan
    found = cross_validate(cohort.prepared, scores, items=cohort.items, settings=fast, folds=2)
    assert list(found.skipped) == ['5a']
    assert 'deficit' in found.skipped['5a']
    assert found.of('9').n == 192


def test_folds_that_cannot_be_are_refused(cohort, fast):
    with pytest.raises(InputError, match='1 folds hold no one out'):
        fit_fold(cohort.prepared, cohort.scores, items=cohort.items, settings=fast, folds=1)
    with pytest.raises(InputError, match='cannot be assigned'):
        fit_fold(cohort.prepared, cohort.scores, items=cohort.items, settings=fast, folds=200)


def test_calibration_error_of_known_forecasts():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    assert calibration_error(p, rng.random(20_000) < p) < 0.02
    assert calibration_error(p, rng.random(20_000) < p**3) == pytest.approx(0.25, abs=0.03)


# --- shuffles


def test_a_shuffle_keeps_margins_and_missing_values(cohort):
    scores = cohort.scores.copy()
    scores[:30, 1] = np.nan
    found = shuffle_scores(scores, items=cohort.items, seed=3)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(scores))
    for k in range(4):
        np.testing.assert_array_equal(np.sort(found[:, k]), np.sort(scores[:, k]))
    assert (found[:, 0] != scores[:, 0]).mean() > 0.2
    np.testing.assert_array_equal(found, shuffle_scores(scores, items=cohort.items, seed=3))


def test_a_shuffle_keeps_the_bond_with_covariates_and_breaks_the_rest():
    rng = np.random.default_rng(4)
    covariate, other = rng.standard_normal((2, 3000))
    latent = 1.5 * covariate + 1.5 * other + rng.logistic(size=3000)
    scores = (latent[:, None, None] > np.array([0.0, 1.5, 3.0])).sum(2).astype(float)
    found = shuffle_scores(scores, covariate[:, None], items=[Item('9', 4)], seed=1)[:, 0]
    kept = np.corrcoef(found, covariate)[0, 1]
    assert kept == pytest.approx(np.corrcoef(scores[:, 0], covariate)[0, 1], abs=0.05)
    assert abs(np.corrcoef(found, other)[0, 1]) < 0.05
    shares = [np.bincount(s.astype(int), minlength=4) / 3000 for s in (found, scores[:, 0])]
    np.testing.assert_allclose(*shares, atol=0.03)


@pytest.mark.parametrize('model', ['spatial', 'ridge'])
def test_nothing_is_declared_on_shuffled_scores(cohort, fast, model):
    found = null_calibration(
        cohort.prepared, cohort.scores, items=cohort.items, model=model, settings=fast,
        shuffles=range(10),
    )  # fmt: skip
    assert found.share_clean.mean() >= 0.95
    assert np.isfinite(found.p_value).all()
    if model == 'spatial':
        assert np.median(found.kl) == 0, 'the posterior goes back to the prior'


@pytest.mark.slow
def test_p_values_are_uniform_on_shuffled_scores(cohort, fast):
    found = null_calibration(
        cohort.prepared, cohort.scores, items=cohort.items, settings=fast, shuffles=range(60)
    )
    p = found.p_value.ravel()
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=0.09)


def test_shuffles_can_be_split(cohort, fast):
    arguments = {'items': cohort.items, 'settings': fast}
    whole = null_calibration(cohort.prepared, cohort.scores, **arguments, shuffles=[0, 1, 2])
    split = null_calibration(
        cohort.prepared, cohort.scores, **arguments, shuffles=[0]
    ) + null_calibration(cohort.prepared, cohort.scores, **arguments, shuffles=[1, 2])
    np.testing.assert_array_equal(whole.p_value, split.p_value)
    np.testing.assert_array_equal(whole.shuffles, split.shuffles)


# --- stability


def test_substrates_are_found_again_in_resamples(cohort, fast):
    arguments = {'items': cohort.items[2:3], 'settings': fast}
    scores = cohort.scores[:, 2:3]
    whole = bootstrap(cohort.prepared, scores, **arguments, draws=range(4))
    split = bootstrap(cohort.prepared, scores, **arguments, draws=range(1)) + bootstrap(
        cohort.prepared, scores, **arguments, draws=range(1, 4)
    )
    np.testing.assert_array_equal(whole.count, split.count)
    assert whole.draws == split.draws == 4
    truth = cohort.substrates['9']
    assert whole.share[0, truth].mean() > 10 * whole.share[0, ~truth].mean()


# --- clusters and coverage


def cube() -> Grid:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -9, -9, -9
    return Grid(np.ones((10, 10, 10), bool), affine)


def test_clusters_have_their_peaks_and_volumes():
    grid = cube()
    volume = np.zeros(grid.mask.shape)
    volume[1:3, 1:3, 1:3] = 1
    volume[2, 1, 1] = 5
    volume[6:9, 6:9, 6:9] = 2
    volume[8, 8, 8] = 3
    volume[5, 0, 9] = 9
    found = find_clusters(volume[grid.mask], volume[grid.mask] > 0, grid, min_ml=0.01)
    assert [c.number for c in found] == [1, 2]
    assert [c.voxels for c in found] == [27, 8]
    assert found[0].volume_ml == pytest.approx(27 * 0.008)
    assert found[0].peak_mm == (7.0, 7.0, 7.0)
    assert found[0].centre_mm == (5.0, 5.0, 5.0)
    assert found[1].peak_mm == (-5.0, -7.0, -7.0)
    assert found[1].peak_value == 5
    assert find_clusters(volume[grid.mask], np.zeros(1000, bool), grid) == ()


def test_mirror_images_are_one_result_in_one_item_and_in_a_pair():
    grid = cube()
    volume = np.zeros(grid.mask.shape, bool)
    volume[1:3, 1:3, 1:3] = volume[7:9, 1:3, 1:3] = True  # a candidate and its mirror image
    volume[1:3, 7:9, 7:9] = True
    pieces = find_clusters(volume[grid.mask].astype(float), volume[grid.mask], grid)
    arm, other, face = Item('5a', 5, '5b'), Item('5b', 5, '5a'), Item('4', 4)
    left = [p for p in pieces if p.centre_mm[0] < 0 and p.centre_mm[1] < 0]
    right = [p for p in pieces if p.centre_mm[0] > 0]
    third = [p for p in pieces if p not in left + right]
    found = [(face, left[0]), (face, right[0]), (face, third[0])]
    assert number_results(found, grid).tolist() == [1, 1, 2]
    found = [(arm, right[0]), (other, left[0]), (face, left[0]), (other, right[0])]
    assert number_results(found, grid).tolist() == [1, 1, 2, 1]
    assert number_results([], grid).tolist() == []


def test_holm_as_published():
    found = adjust_holm(np.array([0.01, np.nan, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(found, [0.03, np.nan, 0.06, 0.06, 0.02])
    assert adjust_holm(np.array([0.6, 0.9])).tolist() == [1, 1]


def test_pieces_that_touch_by_a_corner_are_one():
    grid = cube()
    volume = np.zeros(grid.mask.shape, bool)
    volume[2, 2, 2] = volume[3, 3, 3] = True
    assert len(find_clusters(volume[grid.mask].astype(float), volume[grid.mask], grid)) == 1


def test_resemblance_to_coverage_is_one_for_coverage_itself(cohort, fast):
    found = fit(cohort.prepared, cohort.scores, mask=cohort.grid, items=cohort.items,
                model='ridge', settings=fast)  # fmt: skip
    common = cohort.prepared.measured.mean(0)
    effect = found.effect.copy()
    effect[0], effect[1], effect[2], effect[3] = common, -common, 1.0, np.nan
    out = coverage_resemblance(replace(found, effect=effect), cohort.prepared)
    np.testing.assert_allclose(out[:2], [1, -1], atol=1e-6)
    assert np.isnan(out[2:]).all()


@pytest.mark.parametrize(
    ('low', 'high', 'side'), [(-30, 30, 'both'), (-30, -7, 'left'), (-7, 30, 'right')]
)
def test_a_cluster_across_the_midline_lies_on_both_sides(cohort, fast, low, high, side):
    untested = replace(fast, permutations=0)
    grid = cohort.prepared.grid
    found = fit(
        cohort.prepared, cohort.scores, mask=grid, items=cohort.items, model='ridge',
        settings=untested,
    )  # fmt: skip
    x, y, z = grid.coordinates.T
    found.declared[:] = False
    found.declared[0] = (x >= low) & (x <= high) & (np.abs(y) < 15) & (np.abs(z - 10) < 15)
    found.effect[0] = np.abs(x - (low if side == 'left' else high) / 2) * -1.0
    assert clusters_table(found)['side'].tolist() == [side]
