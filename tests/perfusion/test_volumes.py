"""The interval of a hypoperfused volume against its formula."""

from __future__ import annotations

import math

import pytest

from bids_perfdeficit.perfusion import volume_interval

FITTED = {'volume_interval': {'log_sd': 0.3, 'floor_ml': 4.0, 'level': 0.9}}


def test_networks_that_agree_leave_the_errors_of_the_calibration():
    low, high = volume_interval(96.0, [90.0, 90.0, 90.0], FITTED)
    wide = math.exp(1.644854 * 0.3)
    assert (low, high) == pytest.approx((100 / wide - 4, 100 * wide - 4), rel=1e-5)
    assert volume_interval(96.0, [], FITTED) == pytest.approx((low, high))


def test_disagreement_widens_it_in_quadrature():
    # log(v_k + 4) are 3 -/+ 0.4
    each = [math.exp(3 - 0.4) - 4, math.exp(3 + 0.4) - 4]
    _, high = volume_interval(96.0, each, FITTED)
    assert math.log((high + 4) / 100) == pytest.approx(1.644854 * 0.5, rel=1e-5)


def test_no_volume_ends_at_zero_and_may_still_be_some_ml():
    low, high = volume_interval(0.0, [0.0], FITTED)
    assert low == 0
    assert 0 < high < 4


def test_a_calibration_without_it_gives_none():
    assert all(math.isnan(end) for end in volume_interval(10.0, [10.0], {}))
