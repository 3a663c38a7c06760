"""Learned inference: its prior, its summaries, its network and what the user is shown of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_perfdeficit.deficit import get_model
from bids_perfdeficit.deficit.models import deep
from bids_perfdeficit.deficit.network import Calibration, logit, train
from bids_perfdeficit.deficit.rules import (
    credible_set,
    dice_cut,
    expected_dice,
    expected_false_discoveries,
)
from bids_perfdeficit.deficit.scale import healthy_pattern
from bids_perfdeficit.deficit.simulation import Shapes, draw_scores, link, simulate
from bids_perfdeficit.deficit.smoothing import Smoother
from bids_perfdeficit.deficit.summaries import Summaries


@pytest.fixture(scope='module')
def healthy(cohort):
    return healthy_pattern(cohort.prepared.features[0], cohort.prepared.coarse)


@pytest.fixture(scope='module')
def summaries(cohort, healthy):
    return Summaries.build(cohort.prepared, healthy)


@pytest.fixture(scope='module')
def trained(cohort, fast):
    return deep.learn(cohort.prepared, fast)


# --- the prior


def test_substrates_have_volumes_of_the_prior(cohort):
    shapes, rng = Shapes(cohort.grid), np.random.default_rng(1)
    volumes = [
        len(np.unique(np.concatenate(shapes.draw(rng)))) * cohort.grid.voxel_ml for _ in range(200)
    ]
    assert min(volumes) >= cohort.grid.voxel_ml
    assert max(volumes) <= 80 + 1e-6  # 40 mL and its mirror image
    assert np.quantile(volumes, 0.9) > 2.5 * np.median(volumes)


def test_some_substrates_are_two_sided_and_most_are_not(cohort):
    shapes, rng = Shapes(cohort.grid), np.random.default_rng(2)
    mirrored = 0
    for _ in range(200):
        pieces = shapes.draw(rng)
        half = len(pieces) // 2
        mirrored += len(pieces) % 2 == 0 and all(
            set(cohort.grid.mirror[a]) == set(b)
            for a, b in zip(pieces[:half], pieces[half:], strict=True)
        )
    assert 0.1 < mirrored / 200 < 0.35


def test_a_strip_lies_under_the_surface_and_is_longer_than_wide(cohort):
    shapes, rng = Shapes(cohort.grid), np.random.default_rng(3)
    lengths = []
    for _ in range(20):
        voxels = np.argsort(shapes.strip(int(rng.integers(cohort.grid.n_voxels)), rng))[:40]
        assert np.median(shapes.depth[voxels]) <= 16
        spread = np.linalg.svd(np.cov(cohort.grid.coordinates[voxels].T))[1]
        lengths.append(np.sqrt(spread[0] / spread[2]))
    assert np.median(lengths) > 2


def test_a_tube_runs_through_its_first_voxel(cohort):
    shapes, rng = Shapes(cohort.grid), np.random.default_rng(4)
    for centre in rng.integers(cohort.grid.n_voxels, size=10):
        away = shapes.tube(int(centre), rng)
        assert away[centre] < 1e-6
        assert away.max() > 40


def test_links_join_pieces_as_they_say(cohort):
    maps = np.zeros((4, 6), np.float32)
    maps[1, :3], maps[2, 3:], maps[3] = 1, 1, 1
    pieces = [np.arange(3), np.arange(3, 6)]
    either, both = 0, 0
    for seed in range(60):
        none, first, second, all_of = link(maps, pieces, np.random.default_rng(seed))
        assert none <= min(first, second) + 1e-9
        assert max(first, second) <= all_of + 1e-9
        both += first == second == none and all_of > none
        either += first == second == all_of and all_of > none
    assert both > 3
    assert either > 10


@pytest.mark.parametrize('levels', [2, 5, 10])
def test_drawn_scores_are_levels_and_follow_the_load(levels):
    rng = np.random.default_rng(5)
    correlations = []
    for _ in range(20):
        load = rng.random(500)
        score = draw_scores(load, rng.random(500), levels, rng)
        seen = np.isfinite(score)
        assert set(np.unique(score[seen])) <= set(range(levels))
        assert seen.mean() > 0.4
        correlations.append(np.corrcoef(load[seen], score[seen])[0, 1])
    assert min(correlations) > 0
    assert np.mean(correlations) > 0.3


def test_a_seed_gives_the_same_items_and_another_seed_others(cohort, healthy):
    one, again, other = (simulate(cohort.prepared, healthy, 6, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.scores, again.scores)
    np.testing.assert_array_equal(one.substrates, again.substrates)
    assert (one.substrates != other.substrates).any()


def test_items_of_a_pair_are_mirror_images_and_the_others_stand_alone(cohort, healthy):
    drawn = simulate(cohort.prepared, healthy, 50, seed=3, pairs=20)
    np.testing.assert_array_equal(drawn.partners[:40], np.arange(40) ^ 1)
    assert (drawn.partners[40:] == -1).all()
    mirrored = 0
    for one, other in zip(drawn.substrates[:40:2], drawn.substrates[1:40:2], strict=True):
        across = np.zeros(cohort.grid.n_voxels, bool)
        across[cohort.grid.mirror[one & (cohort.grid.mirror >= 0)]] = True
        mirrored += one.any() and (across == other).all()
    assert 14 <= mirrored < 20  # nine of ten, of those that have a substrate
    np.testing.assert_array_equal(drawn.levels[:40:2], drawn.levels[1:40:2])


# --- summaries


def test_smoothing_is_that_of_scipy(cohort):
    maps = torch.from_numpy(cohort.maps[:3])
    found = Smoother(cohort.grid, 9.0)(maps)
    for own, wanted in zip(found, cohort.maps, strict=False):
        volume = ndimage.gaussian_filter(
            cohort.grid.embed(wanted), 9 / 8, mode='constant', truncate=3
        )
        inner = ndimage.binary_erosion(cohort.grid.mask, iterations=4)[cohort.grid.mask]
        np.testing.assert_allclose(own[inner], volume[cohort.grid.mask][inner], atol=1e-4)


def test_residuals_are_free_of_volume_and_covariates(cohort, summaries):
    covariates = np.random.default_rng(0).standard_normal((240, 2))
    scores = cohort.scores.copy()
    scores[::5] = np.nan
    residuals = summaries.residuals(scores, covariates)
    assert (residuals[:, ::5] == 0).all()
    left = residuals @ np.c_[np.ones(240), summaries.volume, covariates]
    assert np.abs(left).max() < 1e-3


def test_statistics_of_scores_that_follow_nothing_are_small(summaries):
    scores = np.random.default_rng(0).integers(0, 3, (240, 30)).astype(float)
    shown = torch.stack(list(summaries.summarise(scores, np.zeros((240, 0)))))
    assert torch.isfinite(shown).all()
    z = shown[:, :, : 3 * len(summaries.maps)]
    assert 0.5 < float(z.std()) < 1.3


def test_summaries_of_an_item_do_not_depend_on_the_others(cohort, summaries):
    none = np.zeros((240, 0))
    together = list(summaries.summarise(cohort.scores, none))
    alone = list(summaries.summarise(cohort.scores[:, 2:3], none))
    torch.testing.assert_close(together[2], alone[0], rtol=1e-3, atol=1e-3)


# --- network and calibration


def test_a_network_learns_a_rule_and_its_probabilities():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20000, 3))
    p = 1 / (1 + np.exp(-(2 * x[:, 0] - np.abs(x[:, 1]) - 1)))
    shown, known = torch.from_numpy(x).float(), torch.from_numpy(rng.random(20000) < p).float()
    network = train(shown, known, torch.ones(20000), steps=250, seed=1)
    with torch.no_grad():
        found = torch.sigmoid(network(shown)).numpy()
    assert np.abs(found - p).mean() < 0.03


def test_weights_undo_the_choice_of_voxels():
    shown = torch.zeros(4000, 1)
    known = torch.zeros(4000)
    known[:2000] = 1  # of 20,000 voxels, of which the others stand for 9 each
    weights = torch.where(known > 0, 1.0, 9.0)
    network = train(shown, known, weights, steps=200, seed=1)
    with torch.no_grad():
        assert float(torch.sigmoid(network(shown[:1]))) == pytest.approx(0.1, abs=0.02)


def test_calibration_finds_slope_and_offset():
    rng = np.random.default_rng(0)
    eta = rng.normal(-2, 2, 200_000)
    members = rng.random(len(eta)) < 1 / (1 + np.exp(-(0.6 * eta - 1)))
    found = Calibration.fit(1 / (1 + np.exp(-eta)), members)
    assert found.slope == pytest.approx(0.6, abs=0.02)
    assert found.offset == pytest.approx(-1, abs=0.05)
    np.testing.assert_allclose(logit(Calibration()(np.array([0.2]))), logit(0.2), rtol=1e-5)


def _tested(rng, *, paired, right):
    """Return an item whose posterior is right with some probability where it says .9."""
    members = np.zeros(4000, bool)
    sure = rng.choice(4000, 200, replace=False)
    members[sure] = rng.random(200) < right
    posterior = np.full(4000, 0.001, np.float32)
    posterior[sure] = 0.9
    return deep.Tested(np.full(4000, -4.0, np.float32), posterior, members, paired)


def test_a_blend_believes_spatial_as_far_as_it_was_right_for_the_kind_of_item():
    rng = np.random.default_rng(0)
    items = [_tested(rng, paired=p, right=0.2 if p else 0.9) for p in (False, True) * 8]
    blend = deep.Blend.fit(items)
    for paired, right in ((False, 0.9), (True, 0.2)):
        other = _tested(rng, paired=paired, right=right)
        found = blend(other.logits, other.posterior, paired=paired)
        assert found[other.posterior > 0.5].mean() == pytest.approx(right, abs=0.1)


def test_a_blend_gives_the_share_to_what_knows_more():
    rng = np.random.default_rng(0)
    known, blind = [], []
    for _ in range(8):
        members = rng.random(4000) < 0.05
        right = np.where(members, 2, -4).astype(np.float32)
        guess = np.full(4000, 0.05, np.float32)
        known.append(deep.Tested(right, guess, members, False))
        sure = (1 / (1 + np.exp(-right))).astype(np.float32)
        blind.append(deep.Tested(np.full(4000, -3, np.float32), sure, members, False))
    assert deep.Blend.fit(known).share > 0.8
    assert deep.Blend.fit(blind).share < 0.2


# --- what follows from a probability


def test_expectations_are_those_of_drawn_substrates():
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 2, 400)
    declared = p >= dice_cut(p)
    drawn = rng.random((4000, 400)) < p
    overlap = (drawn & declared).sum(1)
    dice = 2 * overlap / (declared.sum() + drawn.sum(1))
    assert expected_dice(p, declared) == pytest.approx(dice.mean(), abs=0.01)
    false = 1 - overlap / declared.sum()
    assert expected_false_discoveries(p, declared) == pytest.approx(false.mean(), abs=0.01)
    inside = credible_set(p)
    assert (drawn & inside).sum() / drawn.sum() == pytest.approx(0.9, abs=0.01)
    assert np.isnan(expected_false_discoveries(p, np.zeros(400, bool)))
    assert not credible_set(np.zeros(5)).any()


# --- the model


def test_probabilities_of_simulated_items_are_reliable(trained):
    for mean, seen, count in trained.reliability:
        if mean > 0.1 and count > 100:
            assert abs(mean - seen) < 0.25, trained.reliability


def test_the_model_that_finds_simulated_substrates_better_is_named():
    rng = np.random.default_rng(3)
    members = np.zeros((24, 200), bool)
    for row in members:
        row[rng.permutation(200)[:20]] = True
    right = np.where(members, 0.9, 0.02).astype(np.float32)
    wrong = rng.permuted(right, axis=1)

    def compare(learned, posterior):
        crossed = [
            (deep.Tested(np.zeros(200, np.float32), p, m, False), q)
            for p, q, m in zip(posterior, learned, members, strict=True)
        ]
        return deep._compare(crossed, seed=1)

    for learned, posterior, sign in ((right, wrong, 1), (wrong, right, -1)):
        found = compare(learned, posterior)
        assert found.items == 24
        assert max(found.deep, found.spatial) == 1.0
        assert min(sign * found.low, sign * found.high) > 0.5
    same = compare(right, right)
    assert same.low == same.high == 0.0
    assert deep._compare([], seed=1).items == 0


def test_training_is_read_from_its_checkpoint(cohort, fast, tmp_path, monkeypatch):
    path = tmp_path / 'state.pt'
    few = replace(fast, simulations=8, network_steps=4)
    first = deep.learn(cohort.prepared, few, path)
    monkeypatch.setattr(deep, 'train', None)  # it would fail
    again = deep.learn(cohort.prepared, few, path)
    shown = torch.randn(5, len(first.network.centre))
    torch.testing.assert_close(first.network(shown), again.network(shown))
    assert again.blend == first.blend
    assert again.reliability == first.reliability
    assert again.comparison == first.comparison
    with pytest.raises(TypeError):
        deep.learn(cohort.prepared, replace(few, seed=2), path)


def test_an_item_that_follows_volume_is_not_declared(cohort, fast, trained):
    found = get_model('deep').fit(
        cohort.prepared, cohort.scores, np.zeros((240, 0)), cohort.items, fast, shared=trained
    )
    assert not found.declared[3].any()
    assert np.isnan(found.cut[3])
    assert found.declared[:3].any(1).all()


def test_predictions_are_those_of_spatial(cohort, fast):
    arguments = (cohort.prepared, cohort.scores, np.zeros((240, 0)), cohort.items, fast)
    one, other = (get_model(name).fit(*arguments, maps=False) for name in ('deep', 'spatial'))
    np.testing.assert_array_equal(one.readout.weights, other.readout.weights)
