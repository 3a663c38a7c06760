"""What the perfusion networks are fitted on: disturbed scans, and mirrored positions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'scripts'))
from calibrate_perfusion import (
    apply,
    fit_interval,
    fit_late,
    fit_networks,
    look_again,
    recall_surrounded,
    sample,
)
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
        made.append({
            'seed': seed, 'variant': 0, 'site': 'M1', 'side': 'L', 'phase': 0.0,
            'phase_contrast': (250.0, 100.0),
            'physics': 'network', 'names': ['a', 'b'], 'features': x, 'delay': delay,
        })  # fmt: skip
    return made


def test_networks_learn_what_delay_depends_on_and_agree_where_it_is_plain(scans):
    samples = [sample(scan) for scan in scans]
    fitted = fit_networks(samples)
    late, odds, delay = apply(fitted, scans[0])
    true = scans[0]['delay']
    assert np.corrcoef(late.mean(0), true)[0, 1] > 0.9
    assert np.abs(delay.mean(0) - true.clip(0, 12)).mean() < 0.8
    assert ((odds.mean(0) > 0) == (true > 6)).mean() > 0.93
    assert fit_networks(samples) == fitted


def test_a_second_look_sees_the_estimate_around_each_voxel_of_the_same_scan(scans, tmp_path):
    brain = np.zeros((20, 24, 22), bool)
    brain[2:17, 3:18, 4:18] = True
    x = np.argwhere(brain)[:, 0]
    count = len(x)
    delay = np.where(x < 9, 9.0, 2.0).astype(np.float16)  # a half is late
    features = np.stack([(delay - 6) / 4, np.zeros(count)], 1)
    scan = tmp_path / '7-0.npz'
    np.savez(tmp_path / '7.npz', brain=brain, tbrain=brain)
    np.savez(
        scan, names=['a', 'b'], features=features.astype(np.float16), delay=delay,
        meta='{"site": "M1", "side": "L", "phase": 0.0, "physics": "network"}',
    )  # fmt: skip
    first = fit_networks([sample(s) for s in scans], 1)
    folder = tmp_path / 'around'
    folder.mkdir()
    look_again(scan, first, folder)
    both = recall_surrounded(scan, folder)
    assert both['features'].shape == (count, 2 + 15)
    here = dict(zip(both['names'], both['features'].T.astype(float), strict=True))
    np.testing.assert_allclose(here['a'], features[:, 0])
    assert here['estimated_odds'][x < 9].min() > 0 > here['estimated_odds'][x >= 9].max()
    # Far from the border an average is what lies there; at the border it lies between.
    wide = here['probability_around_6']
    assert wide[x == 2].min() > 0.8
    assert wide[x == 16].max() < 0.2
    assert 0.3 < wide[x == 9].mean() < 0.6
    assert np.ptp(here['deficit_share']) == 0


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


def test_the_limit_of_late_scans_is_exceeded_by_few_early_ones():
    early = [
        {'phase_contrast': (100.0, 10.0 + k), 'phase': 1.0, 'variant': k % 2} for k in range(50)
    ]
    late = [{'phase_contrast': (100.0, 200.0), 'phase': 5.0, 'variant': k % 2} for k in range(10)]
    limit = fit_late([*early, *late])['limit']
    assert sum(np.log(scan['phase_contrast'][1] / 100) > limit for scan in early) == 1
