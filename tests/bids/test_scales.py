"""From scores of any kind to the levels of a cumulative model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_perfdeficit.bids.scales import (
    FEWEST_PER_LEVEL,
    MOST_LEVELS,
    fixed_measure,
    make_measure,
)


def test_an_item_keeps_its_levels():
    measure = fixed_measure('nihss_9', 4)
    scores = pd.Series([0, 3, np.nan, 1.0])
    np.testing.assert_array_equal(measure.level(scores), scores)
    assert measure.levels == 4


def test_a_short_scale_keeps_its_values_even_those_that_nobody_has():
    scores = pd.Series([0.0] * 6 + [2.0] * 6 + [6.0] * 6)
    measure = make_measure('mrs', scores, scale=range(7))
    assert measure.values == (0, 1, 2, 3, 4, 5, 6)
    np.testing.assert_array_equal(measure.level(scores), scores)
    assert not measure.grouped


def test_levels_of_a_scale_that_does_not_begin_at_0_are_counted_from_0():
    scores = pd.Series([1.0, 2.0, 5.0] * 6)
    measure = make_measure('x', scores)
    assert measure.values == (1, 2, 5)
    np.testing.assert_array_equal(measure.level(scores), [0, 1, 2] * 6)


def test_rare_values_at_the_ends_join_their_neighbours():
    scores = pd.Series([0.0] * 2 + [1.0] * 8 + [2.0] * 8 + [5.0] * 3 + [6.0] * 4)
    measure = make_measure('mrs', scores, scale=range(7))
    assert measure.levels == 5
    assert measure.values == pytest.approx((0.8, 2, 3, 4, 39 / 7))
    counts = measure.level(scores).value_counts()
    assert counts[0] == 10
    assert counts[4] == 7


def test_a_better_score_is_a_lower_level():
    scores = pd.Series(np.repeat([0.0, 50.0, 100.0], 6))
    measure = make_measure('barthel', scores, higher_is_better=True)
    assert measure.values == (100, 50, 0)
    np.testing.assert_array_equal(measure.level(scores), np.repeat([2, 1, 0], 6))


@given(
    st.lists(
        st.one_of(st.integers(0, 42), st.floats(-1e6, 1e6, allow_nan=False)),
        min_size=20, max_size=300,
    ),
    st.booleans(),
)  # fmt: skip
def test_levels_of_any_score_keep_its_order_and_have_participants_enough(values, better):
    scores = pd.Series(values, dtype=float)
    measure = make_measure('x', scores, higher_is_better=better)
    levels = measure.level(scores)
    assert 1 <= measure.levels <= MOST_LEVELS
    assert levels.between(0, measure.levels - 1).all()
    order = np.argsort(-scores if better else scores, kind='stable')
    assert (np.diff(levels.to_numpy()[order]) >= 0).all()
    assert (levels.groupby(scores).nunique() == 1).all()
    if scores.nunique() > MOST_LEVELS:
        counts = levels.value_counts()
        assert counts.reindex([0, measure.levels - 1], fill_value=0).min() >= FEWEST_PER_LEVEL


def test_a_normal_score_gets_ten_levels_of_about_equal_number():
    scores = pd.Series(np.random.default_rng(0).normal(size=1000))
    levels = make_measure('x', scores).level(scores)
    np.testing.assert_allclose(levels.value_counts(), 100, atol=1)
    means = scores.groupby(levels).mean()
    assert make_measure('x', scores).values == pytest.approx(tuple(means))
    assert np.corrcoef(scores, levels.map(means))[0, 1] ** 2 > 0.94
