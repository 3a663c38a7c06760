"""Refitting the last layer: what a site's pairs change, and what they must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_perfdeficit.perfusion import agreement
from bids_perfdeficit.perfusion.combination import combine, hidden_units
from bids_perfdeficit.perfusion.occlusion import OUTCOMES
from bids_perfdeficit.perfusion.recalibration import (
    FORMAT,
    FORMAT_VERSION,
    base_sha256,
    calibration,
    join_calibration,
    last_layer,
)
from bids_perfdeficit.perfusion.refit import Pair, refit, shipped_weights

VOXELS = 600
REGIONS = 14
#: Units of the last hidden layers of all networks.
WIDE = len(last_layer()['weight'][0])


def made(seed: int, delay_of, outcome: int | None = None) -> Pair:
    """Return a patient with random features, whose delay follows their hidden layer."""
    rng = np.random.default_rng(seed)
    fitted = calibration()
    wide = len(fitted['features'])
    features = np.asarray(fitted['centre']) + rng.normal(size=(VOXELS, wide)) * fitted['scale']
    hidden = hidden_units(torch.from_numpy(features.astype(np.float32))).numpy()
    masks = [[rng.random(VOXELS) < 0.1 for _ in range(REGIONS)] for _ in range(2)]
    return Pair(
        f'sub-{seed}', features, delay_of(hidden, rng), 0.5, masks, rng.normal(size=(2, 8)),
        outcome,
    )  # fmt: skip


def shipped_delay(hidden: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Seconds as the shipped network has them, so that nothing is to be gained."""
    weights = shipped_weights()
    logit = hidden @ weights.weight[1] + weights.bias[1]
    late = hidden @ weights.weight[0] + weights.bias[0]
    return np.clip(6 + logit / 1.5 + 0.1 * late, 0, None)


def other_delay(hidden: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Seconds of another physics: other hidden units count, and there is more of it."""
    direction = np.cos(np.arange(hidden.shape[1]))
    return np.clip(4 + 3 * hidden @ direction + rng.normal(0, 0.3, len(hidden)), 0, None)


def test_hidden_units_are_those_that_the_networks_join():
    rng = np.random.default_rng(1)
    fitted = calibration()
    values = torch.from_numpy(rng.normal(size=(50, len(fitted['features']))).astype(np.float32))
    joined = combine(
        {name: values[:, k] for k, name in enumerate(fitted['features'])},
        torch.ones(50, dtype=torch.bool),
    )
    last = last_layer()
    out = hidden_units(values) @ torch.tensor(last['weight']).T + torch.tensor(last['bias'])
    torch.testing.assert_close(out[:, 0], joined.late)
    torch.testing.assert_close(out[:, 1].sigmoid(), joined.hypoperfused)
    # a feature that is missing counts as its mean
    values[:, 3] = torch.nan
    usual = values.clone()
    usual[:, 3] = fitted['centre'][3]
    torch.testing.assert_close(hidden_units(values), hidden_units(usual))


def test_another_physics_is_learned_by_pairs_that_were_left_out():
    found = refit([made(seed, other_delay) for seed in range(6)])
    assert found.taken == {'map': True, 'probability': True, 'occlusion': False}
    before = [row['spearman'] for row in found.pairs if row['calibration'] == 'shipped']
    after = [row['spearman'] for row in found.pairs if row['calibration'] == 'left out']
    assert np.mean(after) > np.mean(before) + 0.1
    errors = {
        name: np.mean([row['error_ml'] for row in found.pairs if row['calibration'] == name])
        for name in ('shipped', 'left out')
    }
    assert errors['left out'] < 0.5 * errors['shipped']
    # and by a pair that was not there at all
    new = made(99, other_delay)
    hidden = hidden_units(torch.from_numpy(new.features.astype(np.float32))).numpy()
    gained = agreement.spearman(hidden @ found.weights.weight[0], new.delay)
    assert gained > agreement.spearman(hidden @ shipped_weights().weight[0], new.delay) + 0.1
    assert '0 pairs have a mask' in found.reasons['occlusion']
    assert found.withholds_occlusion  # it is found by a probability that is another one now


def test_what_is_right_already_stays_as_it_is(monkeypatch):
    # the threshold at which these delays are 6 s
    fitted = calibration() | {'threshold': 0.5}
    monkeypatch.setattr('bids_perfdeficit.perfusion.refit.calibration', lambda: fitted)
    found = refit([made(seed, shipped_delay) for seed in range(6)])
    shipped = shipped_weights()
    assert not found.taken['occlusion']
    if not found.taken['map']:
        np.testing.assert_array_equal(found.weights.weight[0], shipped.weight[0])
    assert np.abs(found.weights.threshold - shipped.threshold) < 0.1


def test_noise_is_refused():
    def noise(hidden, rng):
        return rng.uniform(0, 5.5, len(hidden))  # no deficit, nothing to learn

    found = refit([made(seed, noise) for seed in range(5)])
    assert not found.taken['map']
    np.testing.assert_array_equal(found.weights.weight[0], shipped_weights().weight[0])


def test_the_prior_holds_few_pairs_nearer_to_the_shipped_weights():
    pairs = [made(seed, other_delay) for seed in range(20)]
    shipped = shipped_weights().weight[0]
    few, many = (np.linalg.norm(refit(pairs[:n]).weights.weight[0] - shipped) for n in (5, 20))
    assert 0 < few < many


def test_a_bias_of_the_likely_occlusion_needs_five_masks():
    opened = OUTCOMES.index(('none', 'n/a'))
    pairs = [made(seed, shipped_delay, opened if seed < 4 else None) for seed in range(6)]
    assert '4 pairs have a mask' in refit(pairs).reasons['occlusion']
    pairs = [made(seed, shipped_delay, opened) for seed in range(8)]
    found = refit(pairs)
    if found.taken['occlusion']:
        gain = found.weights.occlusion_bias - shipped_weights().occlusion_bias
        assert gain[-2] > 0  # of open arteries
        assert gain[:5].max() < gain[-2]


def test_four_pairs_are_too_few():
    with pytest.raises(ValueError, match='4 pairs, and at least 5'):
        refit([made(seed, other_delay) for seed in range(4)])


def content() -> dict:
    shipped = calibration()
    return {
        'Format': FORMAT,
        'FormatVersion': FORMAT_VERSION,
        'BaseSHA256': base_sha256(),
        'LastLayer': last_layer(),
        'Threshold': 0.5,
        'OcclusionBias': list(shipped['occlusion']['bias']),
        'OcclusionWithheld': False,
    }


def test_a_file_replaces_the_last_layer_and_nothing_else():
    joined, shipped = join_calibration(content()), calibration()
    assert joined['threshold'] == 0.5
    for one, other in zip(joined['members'], shipped['members'], strict=True):
        assert one['layers'][:-1] == other['layers'][:-1]
        for key in ('weight', 'bias'):
            np.testing.assert_allclose(one['layers'][-1][key], other['layers'][-1][key])
    assert joined['occlusion'] == shipped['occlusion']
    assert joined['centre'] == shipped['centre']
    told = content()
    told['LastLayer']['bias'][1] += 1
    for one, other in zip(join_calibration(told)['members'], shipped['members'], strict=True):
        moved = np.subtract(one['layers'][-1]['bias'], other['layers'][-1]['bias'])
        np.testing.assert_allclose(moved, [0, 1, 0], atol=1e-12)
    assert calibration()['threshold'] == shipped['threshold'] != 0.5


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'Format': 'x'}, "is not a site calibration \\(it has 'x'\\)"),
        ({'FormatVersion': 2}, 'format version 2'),
        ({'BaseSHA256': 'x'}, 'weights of another version'),
        ({'LastLayer': []}, 'has no LastLayer'),
        ({'LastLayer': {'weight': [[1.0]], 'bias': [0, 0]}}, 'does not have 2 rows'),
        (
            {'LastLayer': {'weight': [[1.0], [1.0]], 'bias': [0, 0]}},
            f'does not have {WIDE} numbers',
        ),
        ({'Threshold': 1.5}, 'must lie between 0 and 1'),
        ({'Threshold': 'x'}, "holds 'x', which is not a finite number"),
        ({'OcclusionBias': [0.0] * 6}, 'does not have 7 numbers'),
        ({'OcclusionBias': [float('nan')] * 7}, 'not a finite number'),
        ({'OcclusionWithheld': 1}, 'must be true or false'),
    ],
)
def test_a_damaged_file_is_refused_in_one_clause(change, told):
    with pytest.raises(ValueError, match=told):
        join_calibration(content() | change)


@pytest.fixture
def members(monkeypatch):
    """Ship several networks instead: copies of the first, each with noise of its own."""

    def ship(count, noise=0.0):
        rng = np.random.default_rng(7)
        first = calibration()['members'][0]['layers']
        fitted = calibration() | {
            'members': [
                {
                    'layers': [
                        {
                            key: (
                                np.asarray(layer[key])
                                + noise * rng.normal(size=np.shape(layer[key]))
                            ).tolist()
                            for key in ('weight', 'bias')
                        }
                        for layer in first
                    ]
                }
                for _ in range(count)
            ]
        }
        for module in ('recalibration', 'refit', 'combination'):
            name = f'bids_perfdeficit.perfusion.{module}.calibration'
            monkeypatch.setattr(name, lambda: fitted)
        return fitted

    return ship


def test_equal_networks_refit_as_one_does(members):
    members(1)
    pairs = [made(seed, other_delay) for seed in range(5)]
    one = refit(pairs)
    members(4)
    four = refit(pairs)
    assert four.taken == one.taken == {'map': True, 'probability': True, 'occlusion': False}
    width = one.weights.weight.shape[1]
    blocks = four.weights.weight.reshape(2, 4, width)
    np.testing.assert_allclose(blocks.sum(1), one.weights.weight, atol=3e-3)
    assert four.weights.threshold == one.weights.threshold


def test_a_file_for_several_networks_gives_its_outputs_and_keeps_their_delay(members):
    shipped = members(3, noise=0.1)
    found = refit([made(seed, other_delay) for seed in range(5)])
    layer = {'weight': found.weights.weight.tolist(), 'bias': found.weights.bias.tolist()}
    joined = join_calibration(content() | {'LastLayer': layer})
    new = made(99, other_delay).features.astype(np.float32)
    features = {name: torch.from_numpy(new[:, k]) for k, name in enumerate(shipped['features'])}
    brain = torch.ones(len(new), dtype=torch.bool)
    before, after = (combine(features, brain, fitted) for fitted in (shipped, joined))
    wanted = hidden_units(torch.from_numpy(new)).numpy() @ found.weights.weight.T
    wanted += found.weights.bias
    np.testing.assert_allclose(after.late, wanted[:, 0], atol=1e-4)
    chance = 1 / (1 + np.exp(-wanted[:, 1]))
    np.testing.assert_allclose(after.hypoperfused, chance, atol=1e-5)
    assert not torch.allclose(before.late, after.late, atol=0.01)
    assert torch.equal(before.delay, after.delay)


def test_statistics_of_the_finder_are_dropped_with_the_probability_they_were_made_for(members):
    seen = {'class_mean': [[0.0]], 'class_precision': [[1.0]], 'distance_limit': 1.0}
    members(1)['occlusion'] = calibration()['occlusion'] | seen
    assert seen.items() <= join_calibration(content())['occlusion'].items()
    told = content()
    told['LastLayer']['weight'][1][0] += 1
    assert not seen.keys() & join_calibration(told)['occlusion'].keys()
