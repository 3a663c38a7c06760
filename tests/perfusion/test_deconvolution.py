"""Deconvolution of CT perfusion, on curves whose residue function is known."""

from __future__ import annotations

import numpy as np
import pytest

from bids_perfdeficit.perfusion.deconvolution import (
    compute_tmax,
    find_arterial_input,
    time_frames,
)

TIMES = np.arange(0.0, 60.0, 1.5)
FINE = np.arange(0.0, 60.0, 0.05)


def inflow(times: np.ndarray, late: float = 0.0) -> np.ndarray:
    after = np.maximum(times - 8 - late, 0)
    return 200 * (after / 6) ** 2 * np.exp(2 * (1 - after / 6))


def tissue(late: float, transit: float) -> np.ndarray:
    """Return a curve by the convolution with a box of `transit` s after `late` s, (T,)."""
    residue = ((late <= FINE) & (late + transit > FINE)) / transit
    curve = 0.04 * 0.05 * np.convolve(inflow(FINE), residue)[: len(FINE)]
    return np.interp(TIMES, FINE, curve)


@pytest.mark.parametrize('late', [0.0, 2.0, 5.0, 9.0, 14.0])
def test_a_delay_is_found_whatever_the_transit(late):
    for transit in (3.0, 5.0):
        (found,) = compute_tmax(tissue(late, transit)[:, None], inflow(TIMES), TIMES)
        # The middle of the box, to half a frame: the decomposition smooths.
        assert found == pytest.approx(late + transit / 2, abs=0.8)


def test_tissue_that_fills_before_the_input_has_no_delay():
    (found,) = compute_tmax(tissue(0.0, 1.0)[:, None], inflow(TIMES, 4.0), TIMES)
    assert found == 0


def test_the_delay_does_not_depend_on_dose_or_frames():
    curve = tissue(6.0, 4.0)
    (one,) = compute_tmax(curve[:, None], inflow(TIMES), TIMES)
    (other,) = compute_tmax(7 * curve[:, None], inflow(TIMES), TIMES)
    assert one == pytest.approx(other)
    # every third frame missing in the second half, as some scanners do to save dose
    kept = np.r_[0:20, 20:40:3]
    (fewer,) = compute_tmax(curve[kept][:, None], inflow(TIMES)[kept], TIMES[kept])
    assert fewer == pytest.approx(one, abs=0.7)


def test_noise_leaves_the_order_of_delays():
    rng = np.random.default_rng(0)
    delays = np.linspace(0, 12, 200)
    curves = np.stack([tissue(late, 4.0) for late in delays], 1)
    curves += rng.normal(0, 0.05 * curves.max(), curves.shape)
    found = compute_tmax(curves, inflow(TIMES), TIMES)
    assert np.corrcoef(found, delays)[0, 1] > 0.9
    assert np.median(np.abs(found - delays - 2)) < 1.0


def made_brain() -> np.ndarray:
    """Return curves of tissue, of 60 arteries and of 60 veins, which are brighter and later."""
    rng = np.random.default_rng(1)
    tissues = np.stack([tissue(late, 4.0) for late in rng.uniform(0, 8, 6000)], 1)
    arteries = np.stack([inflow(TIMES, late) for late in rng.uniform(0, 0.5, 60)], 1)
    veins = 1.3 * np.stack([inflow(TIMES, late) for late in rng.uniform(6, 8, 60)], 1)
    curves = 35 + np.concatenate([tissues, arteries, veins], 1)
    return curves + rng.normal(0, 1, curves.shape)


def test_the_input_is_arterial_and_the_frames_are_told_by_it():
    found = find_arterial_input(made_brain(), TIMES)
    assert np.corrcoef(found, inflow(TIMES, 0.25))[0, 1] > 0.995
    timing = time_frames(found)
    assert TIMES[timing.before[-1]] < 8  # contrast comes after 8 s
    assert len(timing.before) >= 4
    assert TIMES[timing.peak] == pytest.approx(14.25, abs=1.5)


def test_a_series_without_contrast_or_cut_off_is_refused():
    rng = np.random.default_rng(2)
    with pytest.raises(ValueError, match='no vessel in it enhances'):
        find_arterial_input(35 + rng.normal(0, 3, (40, 3000)), TIMES)
    with pytest.raises(ValueError, match='from the first frames on'):
        time_frames(inflow(TIMES + 12))
    with pytest.raises(ValueError, match='ends before contrast has passed'):
        time_frames(inflow(TIMES)[:11])
