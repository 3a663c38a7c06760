"""Several networks: what their outputs are joined to, and what is added where they disagree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from bids_perfdeficit.perfusion.combination import (
    _error_of_delay,
    calibration,
    combine,
    hidden_units,
    unusual,
)
from bids_perfdeficit.perfusion.targets import LONGEST_S

SPREAD = {'edges': [0, 2, 6, 12], 'sd': [0.5, 1.5, 3.0]}


def networks(count: int, noise: float = 0.2, **more):
    """Return networks like the shipped one, each with noise of its own on its weights."""
    rng = np.random.default_rng(3)
    first = calibration()['members'][0]['layers']

    def changed(values):
        return (np.asarray(values) + noise * rng.normal(size=np.shape(values))).tolist()

    made = [
        {'layers': [{k: changed(layer[k]) for k in ('weight', 'bias')} for layer in first]}
        for _ in range(count)
    ]
    return {**calibration(), 'members': made, 'delay_spread': SPREAD, **more}


def one_of(fitted, number: int):
    return {**fitted, 'members': [fitted['members'][number]]}


@pytest.fixture
def patient():
    """Return features of a made brain, and the brain."""
    fitted = calibration()
    rng = np.random.default_rng(5)
    brain = torch.from_numpy(rng.random((12, 20, 30)) < 0.8)
    found = {}
    for name, centre, scale in zip(
        fitted['features'], fitted['centre'], fitted['scale'], strict=True
    ):
        shape = () if name in ('venous', 'tissue') else brain.shape
        values = centre + scale * rng.normal(size=shape)
        found[name] = torch.tensor(values, dtype=torch.float32)
    return found, brain


def test_outputs_are_the_means_of_those_of_the_networks(patient):
    found, brain = patient
    fitted = networks(3)
    joined = combine(found, brain, fitted)
    alone = [combine(found, brain, one_of(fitted, k)) for k in range(3)]
    inside = brain.nonzero(as_tuple=True)
    late = torch.stack([k.late for k in alone]).mean(0)
    logit = torch.stack([torch.logit(k.hypoperfused[inside]) for k in alone]).mean(0)
    torch.testing.assert_close(joined.late, late)
    torch.testing.assert_close(
        torch.logit(joined.hypoperfused[inside]), logit, atol=2e-3, rtol=1e-3
    )
    # below the longest delay also the seconds are means
    seconds = torch.stack([k.delay for k in alone])
    free = (seconds < LONGEST_S).all(0)
    torch.testing.assert_close(joined.delay[free], seconds.mean(0)[free])
    between = seconds.std(0, correction=0)[free & brain]
    expected = (between**2 + _error_of_delay(joined.delay[free & brain], fitted) ** 2).sqrt()
    torch.testing.assert_close(joined.delay_sd[free & brain], expected)
    assert between.max() > 0.1
    for values in (joined.late, joined.hypoperfused, joined.delay, joined.delay_sd):
        assert values.shape == brain.shape
        assert (values[~brain] == 0).all()


def test_the_delay_is_the_softplus_of_the_third_output_up_to_the_longest(patient):
    found, brain = patient
    fitted = networks(1)
    last = fitted['members'][0]['layers'][-1]
    last['weight'][2] = (40 * np.asarray(last['weight'][1])).tolist()
    table = torch.stack([
        found[k][brain] if found[k].ndim else found[k].expand(int(brain.sum()))
        for k in fitted['features']
    ], 1)  # fmt: skip
    free = hidden_units(table, fitted) @ torch.tensor(last['weight'][2]) + last['bias'][2]
    joined = combine(found, brain, fitted)
    expected = softplus(free).clamp_max(LONGEST_S)
    torch.testing.assert_close(joined.delay[brain], expected, atol=1e-3, rtol=1e-4)
    assert joined.delay.min() >= 0
    assert joined.delay.max() == LONGEST_S == 12


def test_equal_networks_are_one_network(patient):
    found, brain = patient
    fitted = networks(1)
    five = {**fitted, 'members': fitted['members'] * 5}
    one, same = (combine(found, brain, f) for f in (fitted, five))
    for name in ('late', 'hypoperfused', 'delay', 'delay_sd'):
        torch.testing.assert_close(getattr(one, name), getattr(same, name))
    assert same.member_voxels.tolist() == one.member_voxels.tolist() * 5


def test_voxels_are_counted_for_each_network_and_half(patient):
    found, brain = patient
    fitted = networks(3, threshold=0.4)
    half = torch.zeros_like(brain)
    half[..., 17:] = True
    joined = combine(found, brain, fitted, half=half)
    for k, counts in enumerate(joined.member_voxels.tolist()):
        above = combine(found, brain, one_of(fitted, k)).hypoperfused > 0.4
        assert counts == [int((above & ~half).sum()), int((above & half).sum())]
    whole = combine(found, brain, fitted).member_voxels
    assert whole[:, 0].tolist() == joined.member_voxels.sum(1).tolist()
    assert (whole[:, 1] == 0).all()


def test_errors_of_the_delay_are_linear_between_the_middles_of_their_bins():
    delay = torch.tensor([0.0, 1.0, 2.5, 4.0, 6.5, 9.0, 12.0])
    expected = torch.tensor([0.5, 0.5, 1.0, 1.5, 2.25, 3.0, 3.0])
    torch.testing.assert_close(_error_of_delay(delay, {'delay_spread': SPREAD}), expected)
    one = {'delay_spread': {'edges': [0, 12], 'sd': [2.0]}}
    assert _error_of_delay(delay, one).tolist() == [2.0] * 7


def test_networks_that_are_being_fitted_lack_threshold_and_errors(patient):
    found, brain = patient
    fitted = networks(2)
    raw = {k: fitted[k] for k in ('features', 'centre', 'scale', 'members')}
    joined, usual = combine(found, brain, raw), combine(found, brain, fitted)
    assert torch.equal(joined.delay, usual.delay)
    assert (joined.delay_sd[brain] < usual.delay_sd[brain]).all()


def test_results_do_not_depend_on_threads(patient, monkeypatch):
    monkeypatch.setattr('bids_perfdeficit.perfusion.combination._CHUNK', 512)
    found, brain = patient
    one, two = (combine(found, brain, networks(3), threads=n) for n in (1, 2))
    for name in ('late', 'hypoperfused', 'delay', 'delay_sd', 'member_voxels'):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_a_feature_that_is_missing_counts_as_usual():
    brain = torch.ones(2, 3, 4, dtype=torch.bool)
    brain[0] = False
    usual = dict(zip(calibration()['features'], calibration()['centre'], strict=True))
    every = {name: torch.full(brain.shape, value) for name, value in usual.items()}
    numbers = {name: torch.tensor(value) for name, value in usual.items()}
    whole = combine(every, brain)
    for found in ({}, numbers):
        other = combine(found, brain)
        for name in ('late', 'hypoperfused', 'delay', 'delay_sd'):
            torch.testing.assert_close(getattr(whole, name), getattr(other, name))
    assert whole.late.isfinite().all()
    assert ((whole.hypoperfused >= 0) & (whole.hypoperfused <= 1)).all()


def test_contrast_unlike_any_that_was_calibrated_is_reported():
    usual = dict(zip(calibration()['features'], calibration()['centre'], strict=True))
    found = {name: torch.tensor(usual[name]) for name in ('tissue', 'venous')}
    assert unusual(found) == ()
    assert unusual(found | {'tissue': torch.tensor(usual['tissue'] - 5.0)}) == ('tissue',)
