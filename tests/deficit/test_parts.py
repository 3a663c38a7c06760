"""The models' parts against what is known analytically."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bids_perfdeficit.deficit.dictionary import build_dictionary, membership
from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.models.spatial import (
    _Effect,
    _log_bayes_factors,
    _paint,
    _truncated,
    lay_out,
)
from bids_perfdeficit.deficit.models.vae import divergence
from bids_perfdeficit.deficit.ordinal import (
    curvature,
    fit_head,
    fit_linear,
    level_frequencies,
    level_probabilities,
    starting_cuts,
)
from bids_perfdeficit.deficit.perfusion_model import fit_perfusion_model
from bids_perfdeficit.deficit.preparation import (
    coarse_maps,
    positive_asymmetry,
    prepare,
    subset,
)
from bids_perfdeficit.deficit.rules import dice_cut, exceedance
from bids_perfdeficit.deficit.scale import excess, healthy_pattern
from bids_perfdeficit.errors import InputError

CUTS = torch.tensor([-0.5, 0.7, 2.0], dtype=torch.double)


def block(shape=(9, 8, 7), spacing=4.0) -> Grid:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    return Grid(np.ones(shape, bool), affine)


# --- ordinal likelihood


def test_two_levels_are_logistic_regression():
    eta = torch.linspace(-3, 3, 7, dtype=torch.double)
    p = level_probabilities(torch.zeros(1, dtype=torch.double), eta)
    torch.testing.assert_close(p[:, 1], torch.sigmoid(eta))


@settings(deadline=None, max_examples=30)
@given(eta=st.floats(-4, 4), level=st.integers(0, 3), lapse=st.sampled_from([0.0, 0.05]))
def test_slope_is_the_derivative_of_the_log_likelihood(eta, level, lapse):
    frequencies = torch.full((4,), 0.25, dtype=torch.double)
    at = torch.tensor([eta], dtype=torch.double, requires_grad=True)
    c = curvature(CUTS, at, torch.tensor([level]), lapse, frequencies)
    (slope,) = torch.autograd.grad(c.log_likelihood.sum(), at)
    torch.testing.assert_close(c.slope.detach(), slope, atol=1e-6, rtol=1e-5)


def test_information_is_the_mean_squared_slope():
    eta = torch.tensor([0.3], dtype=torch.double)
    frequencies = torch.full((4,), 0.25, dtype=torch.double)
    p = level_probabilities(CUTS, eta)[0]
    slopes = [curvature(CUTS, eta, torch.tensor([k]), 0.0, frequencies).slope for k in range(4)]
    expected = sum(p[k] * slopes[k] ** 2 for k in range(4))
    found = curvature(CUTS, eta, torch.tensor([1]), 0.0, frequencies).information
    torch.testing.assert_close(found, expected)


def test_starting_cuts_give_the_frequencies():
    frequencies = torch.tensor([0.6, 0.3, 0.1], dtype=torch.double)
    p = level_probabilities(starting_cuts(frequencies), torch.zeros(1, dtype=torch.double))
    torch.testing.assert_close(p[0], frequencies)


def simulate(n=4000, slope=1.5):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(n)
    latent = slope * x + rng.logistic(size=n)
    return torch.from_numpy(x), torch.from_numpy((latent[:, None] > CUTS.numpy()).sum(1))


def test_head_and_regression_recover_slope_and_cuts():
    x, level = simulate()
    slope, cuts, frequencies = fit_head(x, level, 4, 0.0)
    assert slope == pytest.approx(1.5, abs=0.12)
    np.testing.assert_allclose(cuts.numpy(), CUTS.numpy(), atol=0.15)
    torch.testing.assert_close(frequencies, level_frequencies(level, 4))
    gamma, cuts, _ = fit_linear(x[:, None], level, 4, 0.0)
    assert float(gamma[0]) == pytest.approx(1.5, abs=0.12)
    np.testing.assert_allclose(cuts.numpy(), CUTS.numpy(), atol=0.15)


def test_head_switches_off_what_points_the_wrong_way():
    x, level = simulate()
    assert fit_head(-x, level, 4, 0.03)[0] == 0


# --- single effects


@pytest.mark.parametrize('gradient', [-5.0, 0.0, 8.0])
def test_bayes_factor_of_a_half_normal_strength_against_integration(gradient):
    information, strength = 4.0, 2.0
    evidence, mean, variance = _log_bayes_factors(
        torch.tensor([gradient]).double(), torch.tensor([information]).double(), strength
    )
    b = np.linspace(0, 30, 300_001)
    weight = np.exp(b * gradient - b**2 * information / 2) * (
        np.sqrt(2 / np.pi) / strength * np.exp(-(b**2) / (2 * strength**2))
    )
    mass = np.trapezoid(weight, b)
    assert float(evidence[0]) == pytest.approx(np.log(mass), abs=1e-4)
    m, v = _truncated(mean, variance)
    first = np.trapezoid(b * weight, b) / mass
    second = np.trapezoid(b**2 * weight, b) / mass
    assert float(m[0]) == pytest.approx(first, rel=1e-3)
    assert float(v[0]) == pytest.approx(second - first**2, rel=1e-2)


@pytest.fixture(scope='module')
def candidates(cohort, fast):
    return lay_out(cohort.prepared, fast)


def paint(cohort, candidates, chances: dict[int, float]) -> np.ndarray:
    """Return the painted probability of one effect from the posterior of a few candidates."""
    weights = torch.zeros(len(candidates.log_prior))
    for index, chance in chances.items():
        weights[index] = chance
    effect = _Effect(
        weights=weights, mean=torch.ones_like(weights), variance=torch.zeros_like(weights)
    )
    return _paint([effect], candidates, cohort.prepared)[2]


@settings(deadline=None, max_examples=40,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_voxel_is_in_the_candidates_that_hold_it_each_counted_once(cohort, candidates, data):
    """The painted probability is the sum over candidates, also where an ROI meets its mirror."""
    dictionary, n_spheres = candidates.dictionary, len(candidates.dictionary.radii)
    midline = np.flatnonzero(np.abs(dictionary.centres[:, 0]) < dictionary.radii)
    sphere = st.sampled_from(list(map(int, midline))) | st.integers(0, n_spheres - 1)
    drawn = data.draw(
        st.lists(st.tuples(st.integers(0, 2), sphere, st.floats(0.1, 1)), min_size=1, max_size=6)
    )
    total = sum(weight for *_, weight in drawn)
    chances: dict[int, float] = {}
    expected = np.zeros(cohort.grid.n_voxels)
    for layer, index, weight in drawn:
        key = layer * n_spheres + index
        chances[key] = chances.get(key, 0) + weight / total
        both = [index, dictionary.mirror[index]] if layer == 2 else [index]
        held = membership(cohort.grid, dictionary.centres[both], dictionary.radii[both])
        expected += weight / total * (np.asarray(held.sum(1)).ravel() > 0)
    np.testing.assert_allclose(paint(cohort, candidates, chances), expected, atol=5e-3)


def test_a_ball_at_the_midline_that_is_its_own_mirror_image_is_painted_once(cohort, candidates):
    dictionary, n_spheres = candidates.dictionary, len(candidates.dictionary.radii)
    own = int(np.flatnonzero(dictionary.mirror == np.arange(n_spheres))[0])
    found = paint(cohort, candidates, {2 * n_spheres + own: 0.3, n_spheres - 1: 0.7})
    inside = np.linalg.norm(cohort.grid.coordinates - dictionary.centres[own], axis=1)
    assert found[inside.argmin()] == pytest.approx(0.3, abs=1e-3)


# --- rules


def test_dice_cut_of_certain_voxels_takes_them_all_and_no_other():
    p = np.r_[np.ones(10), np.full(90, 1e-3)]
    assert (p >= dice_cut(p)).sum() == 10


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_dice_cut_is_the_best_of_all_cuts_by_simulation(seed):
    rng = np.random.default_rng(seed)
    p = np.sort(rng.beta(0.5, 1.5, 40))[::-1]
    truth = rng.random((4000, 40)) < p
    sizes = np.arange(1, 41)
    dice = (2 * np.cumsum(truth, 1) / (sizes + truth.sum(1, keepdims=True))).mean(0)
    assert dice[(p >= dice_cut(p)).sum() - 1] > dice.max() - 0.02


def test_nothing_is_declared_without_a_cut():
    assert not exceedance(np.ones(3), np.nan).any()
    assert not exceedance(np.zeros(3), 0.0).any()


# --- grid


def test_mirror_is_an_involution_that_flips_x():
    grid = block()
    np.testing.assert_array_equal(grid.mirror[grid.mirror], np.arange(grid.n_voxels))
    np.testing.assert_allclose(grid.coordinates[grid.mirror], grid.coordinates * [-1, 1, 1])


def test_a_grid_off_the_midline_is_refused():
    grid = block()
    affine = grid.affine.copy()
    affine[0, 3] += 1.3
    with pytest.raises(InputError, match='not symmetric about the midline'):
        _ = Grid(grid.mask, affine).mirror
    with pytest.raises(InputError, match='holds no voxels'):
        Grid(np.zeros((2, 2, 2), bool), affine)


def test_coarsening_keeps_constants_and_the_mean_of_linear_maps():
    fine = block((24, 20, 16), 2.0)
    coarse, weights = fine.coarsen(4.0)
    np.testing.assert_allclose(np.asarray(weights.sum(0)).ravel(), 1, atol=1e-5)
    moved = weights.T @ fine.coordinates
    inner = (np.abs(coarse.coordinates) < [20, 16, 12]).all(1)
    np.testing.assert_allclose(moved[inner], coarse.coordinates[inner], atol=1e-4)
    assert (coarse.mirror >= 0).all()


def test_coarse_maps_leave_out_what_was_not_scanned():
    fine = block((24, 20, 16), 2.0)
    _, weights = fine.coarsen(4.0)
    maps = np.full((2, fine.n_voxels), 0.4, np.float32)
    maps[0, fine.coordinates[:, 2] < 0] = np.nan
    found = coarse_maps(maps, weights)
    assert np.isnan(found[0]).any()
    assert np.isfinite(found[1]).all()
    np.testing.assert_allclose(found[np.isfinite(found)], 0.4, atol=1e-5)


def test_resampling_keeps_linear_maps():
    coarse, fine = block((9, 9, 9), 4.0), block((16, 16, 16), 2.0)
    found = coarse.resample_to(coarse.coordinates @ [1.0, -2.0, 0.5], fine)
    inner = (np.abs(fine.coordinates) <= 14).all(1)
    expected = fine.coordinates @ [1.0, -2.0, 0.5]
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-3)


def test_asymmetry_is_positive_on_the_worse_side_only():
    grid = block()
    maps = np.where(grid.coordinates[:, 0] > 0, 0.8, 0.3)[None].astype(np.float32)
    found = positive_asymmetry(maps, grid)[0]
    np.testing.assert_allclose(found[grid.coordinates[:, 0] > 0], 0.5, atol=1e-6)
    assert (found[grid.coordinates[:, 0] <= 0] == 0).all()


# --- one scale for all maps


def stretched(seed=0, *, contrast=0.15, n=60):
    """Return grid, deficits of one side and maps, each stretched to a range of its own."""
    grid = block((13, 15, 11))
    rng = np.random.default_rng(seed)
    x, y, z = grid.coordinates.T
    pattern = 0.4 + contrast * (np.sin(y / 12) + np.cos(z / 9))
    deficit = np.zeros((n, grid.n_voxels), np.float32)
    for row in deficit[: n // 2]:
        side, centre = rng.choice([-1, 1]), rng.uniform(-20, 20)
        row[(x * side > 8) & (abs(y - centre) < 10)] = rng.uniform(0.2, 0.6)
    stretch, offset = rng.uniform(0.7, 1.4, (n, 1)), rng.uniform(-0.1, 0.1, (n, 1))
    maps = offset + stretch * (pattern + deficit) + 0.01 * rng.standard_normal(deficit.shape)
    return grid, deficit, maps.astype(np.float32)


def test_excess_takes_out_what_each_map_was_stretched_by():
    grid, deficit, maps = stretched()
    found = excess(maps, healthy_pattern(maps, grid), grid)
    assert (found > 0).all()
    ill = deficit > 0
    raw = np.corrcoef(maps[ill], deficit[ill])[0, 1]
    assert np.corrcoef(found[ill], deficit[ill])[0, 1] > max(0.9, raw + 0.2)
    assert np.abs(found[ill] - deficit[ill]).mean() < 0.06
    assert found[deficit == 0].mean() < 0.06


def test_excess_does_not_know_of_a_map_s_own_stretch():
    """Twice the range about the same pattern is the same map, but for the prior of the stretch."""
    grid, _, maps = stretched(contrast=1.0)
    healthy = healthy_pattern(maps, grid)
    once, twice = (excess(k * maps[:20], healthy, grid) for k in (1, 2))
    np.testing.assert_allclose(once, twice, atol=0.05)


def test_maps_without_a_common_pattern_are_shifted_and_not_stretched():
    grid = block((13, 15, 11))
    maps = (0.1 + 0.05 * np.random.default_rng(1).standard_normal((40, grid.n_voxels))).astype(
        np.float32
    )
    maps[:, 300] = 0.8
    found = excess(maps, healthy_pattern(maps, grid), grid)
    np.testing.assert_allclose(found[:, 300], 0.72, atol=0.05)
    assert found.mean() < 0.1


@given(st.floats(0.5, 2.0), st.floats(-0.5, 0.5))
@settings(max_examples=20, deadline=None)
def test_excess_is_bounded_for_any_range(stretch, offset):
    grid, _, maps = stretched(n=12)
    found = excess((offset + stretch * maps).astype(np.float32), healthy_pattern(maps, grid), grid)
    assert np.isfinite(found).all()
    assert (found >= 0).all()


# --- dictionary


def test_ball_features_are_means_and_mirrors_are_exact():
    grid = block((15, 13, 11))
    dictionary = build_dictionary(grid, (6.0, 12.0), (4.0, 8.0))
    constant = np.full((2, grid.n_voxels), 0.7, np.float32) @ dictionary.averaging
    np.testing.assert_allclose(constant, 0.7, atol=1e-5)
    flipped = dictionary.centres[dictionary.mirror] * [-1, 1, 1]
    np.testing.assert_allclose(flipped, dictionary.centres)
    np.testing.assert_array_equal(dictionary.radii[dictionary.mirror], dictionary.radii)
    assert np.exp(dictionary.log_prior).sum() == pytest.approx(1)


def test_membership_counts_the_voxels_within_reach():
    grid = block((15, 15, 15))
    found = membership(grid, np.zeros((1, 3)), np.array([9.0]))
    expected = np.linalg.norm(grid.coordinates, axis=1) <= 9
    np.testing.assert_array_equal(found.toarray()[:, 0] > 0, expected)
    tiny = membership(grid, np.array([[1.0, 1.0, 1.0]]), np.array([0.1]))
    assert tiny.sum() == 1


# --- generative model of maps


def low_rank(n=200, v=300, noise=0.05):
    rng = np.random.default_rng(5)
    clean = 0.5 + 0.1 * rng.standard_normal((n, 4)) @ rng.standard_normal((4, v))
    return clean.astype(np.float32), (clean + noise * rng.standard_normal((n, v))).astype('f4')


def test_decoded_maps_are_nearer_to_the_truth_than_measured_ones():
    clean, noisy = low_rank()
    model = fit_perfusion_model(noisy, 4)
    assert np.abs(model.denoise(noisy) - clean).mean() < 0.4 * np.abs(noisy - clean).mean()
    assert model.noise == pytest.approx(0.05, rel=0.1)


def test_completion_fills_what_is_missing_and_touches_nothing_else():
    clean, noisy = low_rank()
    model = fit_perfusion_model(noisy, 4)
    holed = noisy.copy()
    holed[:, :100] = np.nan
    found = model.complete(holed)
    np.testing.assert_array_equal(found[:, 100:], noisy[:, 100:])
    assert np.abs(found[:, :100] - clean[:, :100]).mean() < 0.1 * np.abs(clean - 0.5).mean() + 0.02


def test_divergence_of_the_prior_is_zero_and_else_positive():
    zero = torch.zeros(3)
    assert divergence(zero, zero).sum() == 0
    assert (divergence(zero + 1, zero) == 0.5).all()
    assert (divergence(zero, zero - 1) > 0).all()


def test_part_of_a_cohort_is_completed_by_no_one_outside_it(cohort, fast):
    maps = cohort.maps.copy()
    maps[:60, : maps.shape[1] // 3] = np.nan
    rows = np.arange(0, len(maps), 2)
    others = maps.copy()
    others[1::2] = 1 - others[1::2]  # whoever is left out looks like nobody else
    for whole in (maps, others):
        part = subset(prepare(whole, cohort.grid, fast), rows, fast)
        alone = prepare(maps[rows], cohort.grid, fast)
        np.testing.assert_allclose(part.measured, alone.measured, atol=1e-5)
        np.testing.assert_array_equal(part.missing, alone.missing)
