"""What the perfusion networks are fitted on: disturbed scans, and mirrored positions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'scripts'))
from calibrate_perfusion import fit_interval, fit_networks
from training_patients import LOW, SPACING, Across, draw_errors, thicken


def test_thick_slices_keep_what_is_linear_and_lose_what_is_thin():
    z = np.arange(40, dtype=np.float32)
    ramp = np.broadcast_to(z, (3, 4, 40)).copy()
    found = thicken(ramp, 5.0, np.random.default_rng(1))
    np.testing.assert_allclose(found[..., 5:-5], ramp[..., 5:-5], atol=0.02)
    thin = np.zeros_like(ramp)
    thin[..., 20] = 100.0
    lost = thicken(thin, 5.0, np.random.default_rng(1))
    assert lost.max() < 100 * SPACING / 5.0 + 1


def test_errors_are_drawn_on_both_sides_and_often_left_out():
    drawn = [draw_errors(np.random.default_rng(k)) for k in range(200)]
    for axis in range(3):
        slopes = np.array([errors.shading[axis] for errors, _ in drawn])
        assert 0.25 < (slopes == 0).mean() < 0.55
        assert (slopes > 0.5).sum() > 15
        assert (slopes < -0.5).sum() > 15
    assert {0.0, 3.0, 5.0} == {thick for _, thick in drawn}
    assert all(0.6 <= errors.gain <= 1.3 for errors, _ in drawn)


def test_a_map_is_carried_across_the_middle():
    index = np.indices((40, 30, 20)).reshape(3, -1)
    mni = (index * SPACING + np.array([-39.0, -30, -20])[:, None]).reshape(3, 40, 30, 20)
    across = Across.of(np.ones(mni.shape[1:], bool), mni)
    x = torch.from_numpy(np.ascontiguousarray(mni[0].T.astype(np.float32)))
    found = across.mirror(x)[2:-2, 2:-2, 3:-3]
    torch.testing.assert_close(found, -x[2:-2, 2:-2, 3:-3], atol=0.6, rtol=0)
    assert LOW[0] < -39


@pytest.fixture(scope='module')
def scans():
    rng = np.random.default_rng(2)
    made = []
    for seed in range(12):
        x = rng.standard_normal((3500, 2))
        delay = np.clip(6 + 4 * x[:, 0] + 0.1 * rng.standard_normal(3500), 0.2, None)
        made.append({'seed': seed, 'names': ['a', 'b'], 'features': x, 'delay': delay})
    return made


def test_networks_learn_what_delay_depends_on_and_agree_where_it_is_plain(scans):
    from calibrate_perfusion import apply

    fitted = fit_networks(scans)
    late, odds, delay = apply(fitted, scans[0])
    true = scans[0]['delay']
    assert np.corrcoef(late.mean(0), true)[0, 1] > 0.9
    assert np.abs(delay.mean(0) - true.clip(0, 12)).mean() < 0.8
    assert ((odds.mean(0) > 0) == (true > 6)).mean() > 0.93
    again = fit_networks(scans)
    assert again == fitted


def test_an_interval_holds_as_many_volumes_as_it_says():
    import pandas as pd

    rng = np.random.default_rng(3)
    true = rng.uniform(0, 200, 400)
    found = (true + 20) * np.exp(0.3 * rng.standard_normal(400)) - 20
    rows = pd.DataFrame({
        'true ml': true, 'mls': [np.array([v]) for v in found],
        'member mls': [[np.array([v])] * 3 for v in found],
    })  # fmt: skip
    assert fit_interval(rows, 0) == pytest.approx(0.3, rel=0.12)
