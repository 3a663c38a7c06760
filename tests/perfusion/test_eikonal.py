"""`solve_eikonal` against arrivals known exactly, and its two solvers against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from bids_perfdeficit.perfusion import _blocks, _marching, solve_eikonal


def grid(shape, centre, spacing=(1.0, 1.0, 1.0)):
    axes = [
        (torch.arange(n, dtype=torch.float64) - c) * h
        for n, c, h in zip(shape, centre, spacing, strict=True)
    ]
    return torch.meshgrid(*axes, indexing='ij')


def point(shape, centre):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(centre)] = True
    return mask


def errors(arrival, truth, away):
    """Relative errors (mean, 95th percentile) over the voxels of `away`."""
    relative = ((arrival - truth).abs() / truth)[away].numpy()
    return relative.mean(), np.quantile(relative, 0.95)


def packed(form):
    """A 3 x 3 tensor as the six components of a metric."""
    index = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    return torch.stack([torch.as_tensor(form[i][j], dtype=torch.float32) for i, j in index])


def rotated(eigenvalues, seed=0):
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.standard_normal((3, 3)))
    return axes @ np.diag(eigenvalues) @ axes.T


@pytest.mark.parametrize('spacing', [(1.0, 1.0, 1.0), (2.5, 1.0, 0.7)])
def test_a_point_source_in_a_constant_medium_makes_spheres(spacing):
    shape, centre = (31, 41, 51), (15, 20, 25)
    z, y, x = grid(shape, centre, spacing)
    truth = (z**2 + y**2 + x**2).sqrt() / 2.0
    arrival = solve_eikonal(torch.full(shape, 2.0), point(shape, centre), spacing)
    mean, high = errors(arrival, truth, truth > 0)
    assert mean < 0.02
    assert high < 0.05


def test_the_error_falls_at_least_with_the_voxel_size():
    def mean_error(n):
        spacing = (20.0 / n,) * 3
        shape, centre = (n + 1,) * 3, (n // 2,) * 3
        z, y, x = grid(shape, centre, spacing)
        truth = (z**2 + y**2 + x**2).sqrt()
        arrival = solve_eikonal(torch.ones(shape), point(shape, centre), spacing)
        return float((arrival - truth).abs().mean())

    # The ball of straight rays shrinks with the voxels; at a fixed radius the order would be two.
    assert mean_error(80) < 0.6 * mean_error(40)


def test_a_plane_front_crosses_a_constant_medium_exactly():
    shape = (8, 9, 40)
    sources = torch.zeros(shape, dtype=torch.bool)
    sources[..., 0] = True
    arrival = solve_eikonal(torch.full(shape, 0.5), sources, (1.0, 1.0, 0.8))
    torch.testing.assert_close(arrival[4, 4], torch.arange(40) * 1.6, atol=1e-3, rtol=1e-5)


def test_speed_that_grows_linearly_gives_the_known_arcs():
    # F = F0 + g x: T = acosh(1 + g^2 r^2 / (2 F0 F)) / g (Slotnick 1959).
    shape, centre = (41, 41, 61), (20, 20, 5)
    z, y, x = grid(shape, centre)
    base, slope = 1.0, 0.05
    speed = base + slope * (x + 5)
    here = base + slope * 5
    truth = torch.acosh(1 + slope**2 * (z**2 + y**2 + x**2) / (2 * here * speed)) / slope
    for metric in (None, packed(np.eye(3))[:, None, None, None].expand(6, *shape)):
        arrival = solve_eikonal(
            speed.float(), point(shape, centre), (1.0, 1.0, 1.0), metric=metric
        )
        mean, high = errors(arrival, truth, truth > 0)
        assert mean < 0.02
        assert high < 0.05


def test_a_front_is_refracted_between_two_half_spaces():
    # Fermat: the earliest path breaks at the interface; a fast layer also sends head waves.
    shape, centre = (3, 61, 61), (1, 15, 30)
    _, y, x = grid(shape, centre)
    slow, fast, interface = 1.0, 2.5, 15.5
    speed = torch.where(y < interface, slow, fast)
    across = torch.linspace(-60, 60, 6001, dtype=torch.float64)
    one, two = y[0].flatten(), x[0].flatten()
    leg = (interface**2 + across**2).sqrt() / slow
    broken = (
        leg + ((one[:, None] - interface) ** 2 + (two[:, None] - across) ** 2).sqrt() / fast
    ).amin(1)
    # On the slow side: straight, or along the interface and back.
    back = (interface - one).clamp_min(0)
    critical = math.sqrt(1 / slow**2 - 1 / fast**2)
    run = two.abs() - (interface + back) * (slow / fast) / math.sqrt(1 - (slow / fast) ** 2)
    head = torch.where(
        run > 0, two.abs() / fast + (interface + back) * critical, torch.full_like(two, torch.inf)
    )
    straight = (one**2 + two**2).sqrt() / slow
    truth = torch.where(one < interface, torch.minimum(straight, head), broken).reshape(61, 61)
    # Three slices with the source in the middle one: a thin slab has the same planar paths.
    arrival = solve_eikonal(speed.float(), point(shape, centre), (1.0, 1.0, 1.0))[1]
    mean, high = errors(arrival, truth, truth > 3)
    assert mean < 0.02
    assert high < 0.05


@pytest.mark.parametrize('ratio', [2.0, 4.0, 9.0])
def test_a_constant_metric_makes_ellipsoids(ratio):
    shape, centre = (31, 31, 31), (15, 15, 15)
    form = rotated([ratio ** (2 / 3), ratio ** (-1 / 3), ratio ** (-1 / 3)])
    offsets = torch.stack(grid(shape, centre), -1).numpy()
    truth = torch.from_numpy(
        np.sqrt(np.einsum('...i,ij,...j', offsets, np.linalg.inv(form), offsets)) / 1.5
    )
    metric = packed(form)[:, None, None, None].expand(6, *shape)
    arrival = solve_eikonal(
        torch.full(shape, 1.5), point(shape, centre), (1.0, 1.0, 1.0), metric=metric
    )
    mean, high = errors(arrival, truth, truth > 0)
    assert mean < 0.02
    assert high < 0.05


def test_a_metric_counts_in_mm_and_not_in_voxels():
    shape, centre, spacing = (15, 31, 41), (7, 15, 20), (2.0, 1.0, 0.7)
    form = rotated([3.0, 1.0, 0.6], seed=3)
    offsets = torch.stack(grid(shape, centre, spacing), -1).numpy()
    truth = torch.from_numpy(
        np.sqrt(np.einsum('...i,ij,...j', offsets, np.linalg.inv(form), offsets))
    )
    metric = packed(form)[:, None, None, None].expand(6, *shape)
    arrival = solve_eikonal(torch.ones(shape), point(shape, centre), spacing, metric=metric)
    mean, high = errors(arrival, truth, truth > 0)
    assert mean < 0.02
    assert high < 0.05


def test_a_front_goes_round_an_obstacle():
    shape = (3, 41, 41)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:, 20, :30] = False
    arrival = solve_eikonal(torch.ones(shape), point(shape, (1, 10, 10)), (1.0,) * 3, mask=mask)
    # Taut string: to the end of the wall (20, 30), and from there to the target.
    truth = math.hypot(10, 20) + math.hypot(10, 20)
    assert arrival[1, 30, 10] == pytest.approx(truth, rel=0.03)
    assert torch.isinf(arrival[~mask]).all()
    assert torch.isfinite(arrival[mask]).all()


@pytest.mark.parametrize('metric', [False, True])
def test_a_piece_without_a_source_is_reached_across_the_gap(metric):
    shape = (5, 5, 30)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 10:20] = False
    speed = torch.full(shape, 2.0)
    speed[..., :3] = 0.5
    form = packed(np.eye(3))[:, None, None, None].expand(6, *shape) if metric else None
    sources = torch.tensor([[2, 2, 5]])
    arrival = solve_eikonal(speed, sources, (1.0,) * 3, mask=mask, metric=form)
    assert torch.isfinite(arrival[mask]).all()
    assert torch.isinf(arrival[~mask]).all()
    # 4.5 voxels at 2, the gap of ten at the slowest speed of the mask, 0.5 voxels at 2.
    assert arrival[2, 2, 20] == pytest.approx(4 / 2 + 10.5 / 0.5, rel=0.1)
    alone = solve_eikonal(
        speed[..., :10], sources, (1.0,) * 3, metric=None if form is None else form[..., :10]
    )
    torch.testing.assert_close(arrival[..., :10], alone)


@pytest.mark.parametrize('bad', [0.0, -1.0, math.nan, math.inf])
def test_a_speed_that_is_no_speed_is_refused(bad):
    speed = torch.ones(4, 5, 6)
    speed[2, 2, 2] = bad
    with pytest.raises(ValueError, match='positive and finite'):
        solve_eikonal(speed, torch.tensor([[0, 0, 0]]), (1.0, 1.0, 1.0))


def test_a_bad_speed_outside_the_mask_does_no_harm():
    speed = torch.ones(4, 5, 6)
    speed[0] = math.nan
    mask = torch.ones_like(speed, dtype=torch.bool)
    mask[0] = False
    arrival = solve_eikonal(speed, torch.tensor([[1, 0, 0]]), (1.0, 1.0, 1.0), mask=mask)
    assert torch.isfinite(arrival[mask]).all()


def test_what_does_not_fit_is_refused():
    speed = torch.ones(4, 5, 6)
    at = torch.tensor([[1, 1, 1]])
    with pytest.raises(ValueError, match='spacing'):
        solve_eikonal(speed, at, (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match='outside the grid'):
        solve_eikonal(speed, torch.tensor([[9, 0, 0]]), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match='no source'):
        solve_eikonal(speed, torch.zeros(4, 5, 6, dtype=torch.bool), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match='mask is'):
        solve_eikonal(speed, at, (1.0, 1.0, 1.0), mask=torch.ones(4, 5, 5, dtype=torch.bool))
    form = packed(np.diag([1.0, 1.0, -1.0]))[:, None, None, None].expand(6, 4, 5, 6)
    with pytest.raises(ValueError, match='positive definite'):
        solve_eikonal(speed, at, (1.0, 1.0, 1.0), metric=form)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), factor=st.floats(0.2, 5.0))
def test_arrival_scales_with_speed_and_never_beats_the_fastest_straight_path(seed, factor):
    random = np.random.default_rng(seed)
    shape = (12, 13, 14)
    speed = torch.from_numpy(np.exp(random.standard_normal(shape))).float()
    centre = tuple(int(random.integers(n)) for n in shape)
    one = solve_eikonal(speed, point(shape, centre), (1.0, 1.0, 1.0))
    two = solve_eikonal(speed * factor, point(shape, centre), (1.0, 1.0, 1.0))
    torch.testing.assert_close(two, one / factor, rtol=1e-3, atol=1e-5)
    z, y, x = grid(shape, centre)
    bound = (z**2 + y**2 + x**2).sqrt() / float(speed.max())
    assert (one >= 0.97 * bound - 1e-5).all()


def patchy(shape, seed=0):
    """A smooth speed, a ragged mask of several pieces, two sources and a varying metric."""
    random = np.random.default_rng(seed)
    field = gaussian_filter(random.standard_normal(shape), 1.5)
    speed = torch.from_numpy(np.exp(field / field.std())).float()
    mask = torch.from_numpy(gaussian_filter(random.standard_normal(shape), 1.2) > -0.1)
    where = torch.nonzero(mask)
    sources = torch.zeros(shape, dtype=torch.bool)
    sources[tuple(where[[3, len(where) // 2]].T)] = True
    turns = gaussian_filter(random.standard_normal((3, *shape)), (0, 2, 2, 2))
    turns /= np.linalg.norm(turns, axis=0)
    form = np.einsum('izyx,jzyx->ijzyx', turns, turns) + 0.4 * np.eye(3)[:, :, None, None, None]
    return speed, sources, mask, packed(form)


@pytest.mark.parametrize('oriented', [False, True])
def test_the_parallel_solver_gives_the_same_arrival(oriented):
    speed, sources, mask, metric = patchy((14, 17, 19))
    step = np.array([1.2, 1.0, 0.8])
    form = metric if oriented else None
    one = _marching.solve(speed, sources, mask, form, step)
    two = _blocks.solve(speed, sources, mask, form, step)
    assert torch.equal(torch.isfinite(one), mask)
    assert torch.equal(torch.isfinite(two), mask)
    relative = ((one - two).abs() / one.clamp_min(0.1))[mask]
    assert relative.mean() < 1e-3
    assert relative.quantile(0.95) < 2e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@pytest.mark.parametrize('oriented', [False, True])
@pytest.mark.parametrize('shape', [(14, 17, 19), (16, 8, 24)])
def test_a_gpu_gives_the_same_arrival_each_time(shape, oriented):
    speed, sources, mask, metric = patchy(shape)
    form = metric if oriented else None
    one = solve_eikonal(speed, sources, (1.2, 1.0, 0.8), mask=mask, metric=form)
    runs = [
        solve_eikonal(
            speed.cuda(), sources.cuda(), (1.2, 1.0, 0.8), mask=mask.cuda(),
            metric=None if form is None else form.cuda(),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(*runs)
    two = runs[0].cpu()
    assert torch.equal(torch.isfinite(two), mask)
    assert ((one - two).abs() / one.clamp_min(0.1))[mask].mean() < 1e-3


def test_two_runs_are_identical():
    speed, sources, mask, metric = patchy((14, 17, 19), seed=4)
    for form in (None, metric):
        runs = [
            solve_eikonal(speed, sources, (1.0, 1.0, 1.0), mask=mask, metric=form)
            for _ in range(2)
        ]
        assert torch.equal(*runs)


def test_solvers_compile_where_nothing_can_be_cached(monkeypatch):
    compile_ = _marching.numba.njit

    def no_place(**options):
        if options.get('cache'):
            raise RuntimeError('cannot cache function: no locator available')
        return compile_(**options)

    monkeypatch.setattr(_marching.numba, 'njit', no_place)
    assert _marching._jit(lambda x: x + 1)(1) == 2
