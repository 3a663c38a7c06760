"""Sources and maps on a made head, in which arteries, a sinus and an occlusion are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_perfdeficit.perfusion import (
    PerfusionSettings,
    asymmetry,
    find_sources,
    subtract,
    synthesize,
    vesselness,
)
from bids_perfdeficit.perfusion.combination import (
    _wide_smooth,
    calibration,
    denoise,
    tissue_enhancement,
)
from bids_perfdeficit.perfusion.vessels import smooth

SPACING = (2.0, 2.0, 2.0)
SHAPE = (50, 60, 54)


def tube(level, start, end, radius, height):
    """Draw a tube; points in mm from the centre, as (x, y, z)."""
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 2.0 for n in SHAPE], indexing='ij')
    points = np.stack([x, y, z], -1) - np.array(start, float)
    along = np.subtract(end, start).astype(float)
    share = np.clip(points @ along / (along @ along), 0, 1)
    away = np.linalg.norm(points - share[..., None] * along, axis=-1)
    np.maximum(level, height / (1 + np.exp(2 * (away - radius))), out=level)


def head(occluded=False, noise=0.0, seed=0):
    """NCCT, CTA, brain, inflow prior: two carotids and a basilar with a branch each side."""
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 2.0 for n in SHAPE], indexing='ij')
    radius = np.sqrt((x / 46) ** 2 + (y / 52) ** 2 + (z / 42) ** 2)
    brain = radius < 1
    ncct = np.where(brain, 35.0, 0.0)
    ncct[(radius >= 1.1) & (radius < 1.25)] = 900.0
    ncct[radius >= 1.25] = -1000.0
    level = np.zeros(SHAPE)
    prior = np.zeros(SHAPE)
    for side in (-1, 1):
        tube(prior, (side * 12, 8, -30), (side * 12, 8, -24), 5.0, 1.0)
        if occluded and side == 1:
            continue
        tube(level, (side * 12, 8, -33), (side * 12, 8, -22), 2.5, 300)
        tube(level, (side * 12, 8, -22), (side * 36, 4, 0), 1.8, 250)
        tube(level, (side * 12, 8, -22), (side * 4, 36, 10), 1.8, 250)
    tube(prior, (0, -14, -30), (0, -14, -24), 5.0, 1.0)
    tube(level, (0, -14, -36), (0, -14, -22), 2.5, 300)
    tube(level, (0, -14, -22), (0, -40, 0), 1.8, 250)
    random = np.random.default_rng(seed)
    cta = ncct + level + noise * random.standard_normal(SHAPE)
    arrays = (ncct, cta, prior)
    ncct, cta, prior = (torch.from_numpy(a.astype(np.float32)) for a in arrays)
    return ncct, cta, torch.from_numpy(brain), prior


def run(ncct, cta, brain, prior, **options):
    settings = PerfusionSettings(**options)
    difference = subtract(ncct, cta, brain, SPACING, settings=settings)
    tubes = vesselness(difference, SPACING)
    sources = find_sources(difference, tubes, prior, brain, SPACING, settings=settings)
    return sources, synthesize(ncct, cta, brain, sources, SPACING, settings=settings)


def side_of(mask):
    return np.argwhere(mask.numpy())[:, 2] > (SHAPE[2] - 1) / 2


def test_subtraction_is_the_contrast_in_the_brain_and_nothing_in_bone():
    ncct, cta, brain, _ = head()
    difference = subtract(ncct, cta + 5, brain, SPACING)
    assert (difference[ncct > 500] == 0).all()
    assert (difference[ncct < -500] == 0).all()
    far = brain & (cta - ncct < 1)
    torch.testing.assert_close(difference[far], (cta + 5 - ncct)[far])


def test_contrast_above_the_window_is_cut():
    ncct, cta, brain, _ = head()
    difference = subtract(ncct, cta * 10, brain, SPACING)
    assert float(difference.max()) == 300


def test_all_three_inflows_are_found_inside_the_arteries():
    ncct, cta, brain, prior = head(noise=10)
    sources, _ = run(ncct, cta, brain, prior)
    assert sources.method == 'prior'
    assert sources.found == {'left': True, 'right': True, 'posterior': True}
    assert ((cta - ncct)[sources.mask] > 60).all()
    assert sources.notes == ()


def test_an_occluded_side_keeps_its_source_and_is_late():
    ncct, cta, brain, prior = head(occluded=True, noise=5)
    sources, maps = run(ncct, cta, brain, prior)
    assert sources.found == {'left': True, 'right': False, 'posterior': True}
    assert any('right' in note for note in sources.notes)
    assert side_of(sources.mask).any()
    x = torch.arange(SHAPE[2])[None, None]
    # The arrival alone: this head has no tissue that enhances, which the other features ask for.
    assert maps.arrival[brain & (x > 34)].mean() > 1.2 * maps.arrival[brain & (x < 20)].mean()


def test_an_inflow_that_the_scan_does_not_hold_is_told_and_the_others_keep_their_names():
    ncct, cta, brain, prior = head()
    y = torch.arange(SHAPE[1])[None, :, None]
    x = torch.arange(SHAPE[2])[None, None]
    for lost, name in ((y < 29, 'posterior'), (x > 31, 'right'), (x < 22, 'left')):
        sources, _ = run(ncct, cta, brain, torch.where(lost, 0.0, prior))
        assert {side for side, found in sources.found.items() if not found} == {name}
        assert any(name in note for note in sources.notes)


def test_without_a_prior_the_lowest_strong_vessels_are_the_sources():
    ncct, cta, brain, prior = head(noise=5)
    for nothing in (None, torch.zeros_like(prior)):
        sources, maps = run(ncct, cta, brain, nothing)
        assert sources.method == 'fallback'
        assert sources.notes
        height = np.argwhere(sources.mask.numpy())[:, 0]
        assert height.max() < SHAPE[0] / 2
        assert torch.isfinite(maps.arrival[brain]).all()


def test_a_brain_without_any_contrast_still_gets_a_map():
    ncct, _, brain, prior = head()
    sources, maps = run(ncct, ncct.clone(), brain, prior)
    assert sources.found == {'left': False, 'right': False, 'posterior': False}
    assert torch.isfinite(maps.arrival[brain]).all()


@pytest.mark.parametrize('arrival', ['isotropic', 'anisotropic'])
def test_the_published_perfusion_is_a_rescaled_arrival_in_the_brain(arrival):
    ncct, cta, brain, prior = head(noise=5)
    _, maps = run(ncct, cta, brain, prior, arrival=arrival, recipe='published')
    assert torch.isfinite(maps.arrival[brain]).all()
    assert torch.isinf(maps.arrival[~brain]).all()
    assert (maps.perfusion[~brain] == 0).all()
    inside = maps.perfusion[brain]
    assert float(inside.min()) == 0
    assert float(inside.max()) == 1
    assert (inside == 0).float().mean() == pytest.approx(0.02, abs=0.005)
    order = maps.arrival[brain].argsort()
    assert (inside[order].diff() >= 0).all()


def test_the_recipe_decides_the_metric_where_nobody_else_does():
    ncct, cta, brain, prior = head(noise=5)

    def arrival(**options):
        return run(ncct, cta, brain, prior, **options)[1].arrival

    published = {
        how: arrival(recipe='published', arrival=how)
        for how in ('auto', 'anisotropic', 'isotropic')
    }
    assert torch.equal(published['auto'], published['anisotropic'])
    assert not torch.equal(published['auto'], published['isotropic'])
    assert torch.equal(arrival(), arrival(arrival='isotropic'))


def test_probability_and_delay_do_not_depend_on_the_recipe_nor_on_the_arrival():
    ncct, cta, brain, prior = head(noise=5)
    plain, published, along = (
        run(ncct, cta, brain, prior, **options)[1]
        for options in ({}, {'recipe': 'published'}, {'arrival': 'anisotropic'})
    )
    for name in ('hypoperfused', 'delay', 'delay_sd'):
        assert torch.equal(getattr(plain, name), getattr(published, name))
        assert torch.equal(getattr(plain, name), getattr(along, name))
        assert (getattr(plain, name)[~brain] == 0).all()
    assert not torch.equal(plain.perfusion, published.perfusion)
    assert torch.equal(plain.perfusion, along.perfusion)
    assert not torch.equal(plain.arrival, along.arrival)


def test_tissue_that_enhances_less_counts_as_later():
    ncct, cta, brain, prior = head(noise=5)
    pale = brain & (torch.arange(SHAPE[2])[None, None] < SHAPE[2] // 2 - 6)
    rest = brain & ~pale

    def later(maps):  # against the rest: each map is stretched to its own range
        return maps.perfusion[pale].mean() - maps.perfusion[rest].mean()

    sources, before = run(ncct, cta, brain, prior)
    after = synthesize(ncct, cta - 6.0 * pale, brain, sources, SPACING)
    assert later(after) > later(before) + 0.1
    plain = PerfusionSettings(recipe='published')
    only = synthesize(ncct, cta - 6.0 * pale, brain, sources, SPACING, settings=plain)
    same = synthesize(ncct, cta, brain, sources, SPACING, settings=plain)
    assert abs(only.perfusion[pale].mean() - same.perfusion[pale].mean()) < 0.1


def test_voxels_above_the_threshold_are_counted_by_half():
    ncct, cta, brain, prior = head(noise=5, occluded=True)
    sources, _ = run(ncct, cta, brain, prior)
    right = (torch.arange(SHAPE[2]) >= SHAPE[2] // 2).expand(SHAPE)
    fitted = calibration() | {'threshold': 0.01}
    counts, swapped = (
        synthesize(ncct, cta, brain, sources, SPACING, right=half, fitted=fitted).member_voxels
        for half in (right, ~right)
    )
    assert counts.shape == (len(calibration()['members']), 2)
    assert torch.equal(counts, swapped.flip(1))
    assert (counts.sum(1) > 0).all()


def test_white_matter_may_enhance_less_and_the_mirror_tells_what_a_side_lacks():
    ncct, cta, brain, prior = head(noise=5)
    x = torch.arange(SHAPE[2])[None, None]
    pale = brain & (x < SHAPE[2] // 2 - 6)
    sources, _ = run(ncct, cta, brain, prior)
    maps = synthesize(
        ncct, cta + 8.0 * brain - 5.0 * pale, brain, sources, SPACING,
        white=pale.float(), grey=(brain & ~pale).float(), mirror=lambda values: values.flip(-1),
    )  # fmt: skip
    # Without a prior of the veins nothing tells of the sinuses, nor without a field of shading.
    unknown = {'venous', 'shading', 'residual'}
    assert set(maps.features) == set(calibration()['features']) - unknown
    # ln(8 / 3), less what the smoothing takes from it
    assert 0.4 < maps.features['asymmetry'][pale].mean() < 1.0
    other = brain & (x > SHAPE[2] // 2 + 6)
    assert -1.0 < maps.features['asymmetry'][other].mean() < -0.4
    assert maps.features['white'][pale].unique().tolist() == [0.5]


def test_smoothing_on_a_coarse_grid_is_as_good_as_on_the_fine():
    image = torch.zeros(71, 80, 93)
    noise = np.random.default_rng(0).normal(1, 3, size=(31, 40, 53))
    image[20:51, 20:60, 20:73] = torch.from_numpy(noise).float()
    fine = smooth(image, 12.0, (1.0, 1.0, 1.0))
    coarse = _wide_smooth(image, 12.0, (1.0, 1.0, 1.0))
    assert (coarse - fine).abs().max() < 0.03 * fine.max()


def test_a_vein_carries_the_front_only_without_its_prior():
    ncct, cta, brain, prior = head()
    sinus = np.zeros(SHAPE)
    tube(sinus, (0, -14, -22), (0, 10, 38), 2.5, 1.0)
    sinus = torch.from_numpy(sinus.astype(np.float32))
    cta = cta + 280 * sinus
    sources, maps = run(ncct, cta, brain, prior)
    without = synthesize(ncct, cta, brain, sources, SPACING, veins=sinus)
    top = brain & (sinus > 0.5) & (torch.arange(SHAPE[0])[:, None, None] > 38)
    assert (without.arrival[top] > 3 * maps.arrival[top]).all()


def test_distance_is_geometry_only():
    ncct, cta, brain, prior = head(noise=5)
    sources, maps = run(ncct, cta, brain, prior)
    mask, plain = sources.mask, synthesize(ncct, ncct, brain, sources, SPACING)
    torch.testing.assert_close(maps.distance, plain.distance)
    assert (maps.distance[mask & brain] == 0).all()


def test_tissue_enhancement_is_recovered_without_the_vessels():
    ncct, cta, brain, _ = head(noise=8)
    z = torch.arange(SHAPE[0])[:, None, None]
    enhanced = cta + torch.where(z > 25, 6.0, 2.0) * brain
    level = enhanced - ncct
    smoothed = denoise(ncct, level, brain, SPACING)
    (found,) = tissue_enhancement(smoothed, level, brain, SPACING, sigmas=(4.0,))
    high = brain & (z > 32) & (z < 42)
    low = brain & (z > 8) & (z < 18)
    assert found[high].mean() == pytest.approx(6.0, abs=1.0)
    assert found[low].mean() == pytest.approx(2.0, abs=1.0)


@pytest.mark.parametrize('gain', [0.6, 0.8, 1.3])
def test_the_maps_do_not_depend_on_how_strong_all_contrast_is(gain):
    """Dose and voltage change it; what no HU tells from tissue at one gain is none at another."""
    ncct, cta, brain, prior = head(occluded=True, noise=3)  # without it, ranks are those of ties
    contrast = torch.where(brain, cta - ncct + 4.0, cta - ncct) * 0.7
    _, usual = run(ncct, ncct + contrast, brain, prior)
    sources, other = run(ncct, ncct + gain * contrast, brain, prior)
    assert sources.method == 'prior'
    inside = brain & ~sources.mask
    for name in ('perfusion', 'hypoperfused'):
        gap = (getattr(usual, name) - getattr(other, name))[inside].abs()
        assert gap.quantile(0.99) < 0.03, name
    tissue = [float(found.features['tissue']) for found in (usual, other)]
    assert tissue[1] == pytest.approx(tissue[0], abs=0.02)


def test_contrast_is_measured_in_arteries_and_not_at_a_residual_edge_of_bone():
    ncct, cta, brain, _ = head(noise=5)
    level = cta - ncct
    plain = denoise(ncct, level, brain, SPACING).scale
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 2.0 for n in SHAPE], indexing='ij')
    radius = np.sqrt((x / 46) ** 2 + (y / 52) ** 2 + (z / 42) ** 2)
    edge = level + torch.from_numpy(np.where((radius > 0.93) & (radius < 1), 150.0, 0.0)).float()
    assert denoise(ncct, edge, brain, SPACING).scale == pytest.approx(plain, rel=0.1)
    assert denoise(ncct, 0.5 * level, brain, SPACING).scale == pytest.approx(plain / 2, rel=0.05)


def test_without_arteries_the_contrast_is_bounded_below():
    ncct, _, brain, _ = head()
    found = denoise(ncct, torch.zeros_like(ncct), brain, SPACING)
    assert 0 < found.scale < 1
    nothing = torch.zeros_like(brain)
    assert denoise(ncct, torch.zeros_like(ncct), nothing, SPACING).scale == 1.0


def test_asymmetry_is_odd_and_positive_where_a_side_is_later():
    perfusion = torch.zeros(4, 5, 7)
    perfusion[..., 5] = 0.5
    out = asymmetry(perfusion)
    assert (out[..., 5] == 0.5).all()
    assert (out[..., 1] == -0.5).all()
    torch.testing.assert_close(out, -out.flip(-1))


def test_what_does_not_fit_is_refused():
    ncct, cta, brain, prior = head()
    with pytest.raises(ValueError, match='shapes differ'):
        subtract(ncct, cta[1:], brain, SPACING)
    with pytest.raises(ValueError, match='empty'):
        subtract(ncct, cta, torch.zeros_like(brain), SPACING)
    with pytest.raises(ValueError, match='empty'):
        find_sources(cta - ncct, prior, prior, torch.zeros_like(brain), SPACING)


def test_settings_cannot_be_changed_in_place():
    settings = PerfusionSettings()
    with pytest.raises(AttributeError):
        settings.floor = 1.0  # type: ignore[misc]
    assert replace(settings, floor=0.02).floor == 0.02
