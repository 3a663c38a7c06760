"""Measures of agreement, against SciPy, scikit-learn and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from bids_perfdeficit.perfusion import agreement

RNG = np.random.default_rng(4)
DELAY = RNG.gamma(2.0, 2.5, 4000)
CONTROL = RNG.standard_normal(4000)


def test_ranks_agree_with_scipy_and_the_area_with_scikit_learn():
    values = np.round(DELAY + 3 * RNG.standard_normal(4000), 1)  # with ties
    found = agreement.measure_agreement(values, DELAY, CONTROL)
    late = DELAY > agreement.DEFICIT_S
    assert found.spearman == pytest.approx(spearmanr(values, DELAY).statistic)
    assert found.spearman_deficit == pytest.approx(spearmanr(values[late], DELAY[late]).statistic)
    assert found.auc == pytest.approx(roc_auc_score(late, values))
    assert 0 < found.dice_matched < 1


def test_what_the_control_explains_is_taken_away():
    both = CONTROL + 0.1 * RNG.standard_normal(4000)
    plain, partial = agreement.correlations(
        both, CONTROL + 0.1 * RNG.standard_normal(4000), CONTROL
    )
    assert plain > 0.95
    assert abs(partial) < 0.05


def test_a_perfect_map_reaches_one_and_a_small_deficit_is_not_judged():
    found = agreement.measure_agreement(DELAY**2, DELAY, CONTROL)
    assert (found.spearman, found.auc, found.dice_matched) == pytest.approx((1, 1, 1))
    found = agreement.measure_agreement(DELAY, np.minimum(DELAY, 6), CONTROL)
    assert np.isnan([found.auc, found.dice_matched, found.spearman_deficit]).all()


def test_concordance_and_limits_by_hand():
    x, y = np.array([1.0, 2, 3, 4]), np.array([2.0, 3, 4, 5])
    # covariance 1.25, variances 1.25, means 1 apart
    assert agreement.concordance(x, y) == pytest.approx(2.5 / 3.5)
    assert agreement.concordance(x, x) == 1
    assert agreement.limits_of_agreement(x, y) == pytest.approx((-1, -1, -1))
    bias, low, high = agreement.limits_of_agreement([1, 2, 6], [0, 2, 3])
    spread = 1.96 * np.std([1, 0, 3], ddof=1)
    assert (bias, low, high) == pytest.approx((4 / 3, 4 / 3 - spread, 4 / 3 + spread))
    assert np.isnan(agreement.concordance([1, 1, 1], [1, 1, 1]))


def test_dice_of_two_masks():
    one = np.array([True, True, False, False])
    assert agreement.dice(one, ~one) == 0
    assert agreement.dice(one, [True, False, False, False]) == pytest.approx(2 / 3)
    assert np.isnan(agreement.dice(one & False, one & False))


@pytest.mark.parametrize(
    ('left', 'right', 'side'), [(20, 5, 'left'), (5, 20, 'right'), (6, 3, 'neither')]
)
def test_the_later_side(left, right, side):
    assert agreement.later_side(left, right) == side


def test_an_interval_is_that_of_the_mean_and_the_same_for_one_seed():
    low, high = agreement.bootstrap_interval(DELAY[:200], seed=1)
    assert low < DELAY[:200].mean() < high
    assert (low, high) == agreement.bootstrap_interval(DELAY[:200], seed=1)
    error = DELAY[:200].std() / np.sqrt(200)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_artefacts_are_counted_where_they_were_put():
    brain = np.zeros((40, 40, 40), bool)
    brain[8:32, 8:32, 8:32] = True
    delay = np.where(brain, 2.0, np.nan)
    delay[10:20, 10:20, 10:20] = 12.0  # 8 mL at the end of the scale
    delay[28, 28, 28] = delay[28, 10, 10] = 8.0  # two specks
    delay[22, 22, 8:32] = 0.0
    delay[2:6, 2:6, 2:22] = 9.0  # 2.56 mL outside
    found = agreement.find_artefacts(delay, brain, 0.008)
    assert (found.specks, found.top) == (2, 12.0)
    assert found.specks_ml == pytest.approx(0.016)
    assert found.outside_ml == pytest.approx(2.56)
    assert found.top_share == pytest.approx(1000 / 24**3)
    assert found.zero_share == pytest.approx(24 / 24**3)
    reported = ' '.join(agreement.describe_artefacts(found))
    assert 'ends at 12 s' in reported
    assert '3 mL of the reference above 6 s lie outside' in reported
    assert 'specks' not in reported  # less than one mL of them
