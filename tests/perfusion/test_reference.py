"""A shading that is put into a scan is found beside the contrast, and a deficit is not one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bids_perfdeficit.perfusion import enhance, fit_reference, plane
from bids_perfdeficit.perfusion.reference import DEAD_HU

SPACING = (2.0, 2.0, 2.0)
SHAPE = (60, 80, 66)
#: HU that kinds of tissue have and take up: CSF, white and grey matter.
DENSITY, UPTAKE = (6.0, 29.0, 38.0), (0.5, 3.0, 7.0)


def scans(seed=0, late=0.0, noise=6.0):
    """NCCT, CTA, brain and tissues; `late` is the share that the right middle territory lacks."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1.05, 1.05, n) for n in SHAPE], indexing='ij')
    brain = x**2 + y**2 + z**2 < 1
    # Tissue in lumps of a centimetre, as gyri are, and a rim of cortex.
    lumps = torch.from_numpy(rng.standard_normal(SHAPE).astype(np.float32))
    from bids_perfdeficit.perfusion.vessels import smooth

    lumps = smooth(lumps, 5.0, SPACING).numpy()
    kind = 1 + (lumps > np.quantile(lumps, 0.6)) - (lumps < np.quantile(lumps, 0.1))
    density, uptake = np.choose(kind, DENSITY), np.choose(kind, UPTAKE)
    uptake = uptake * np.where((x > 0.25) & (abs(y) < 0.6) & (z > -0.3), 1 - late, 1.0)
    ncct = np.where(brain, density, 0) + noise / 2 * rng.standard_normal(SHAPE)
    cta = np.where(brain, density + uptake, 0) + noise * rng.standard_normal(SHAPE)
    arrays = (ncct, cta, (kind == 1) * 1.0, (kind == 2) * 1.0)
    ncct, cta, white, grey = (torch.from_numpy(a.astype(np.float32)) for a in arrays)
    return ncct, cta, torch.from_numpy(brain), white, grey


def fit(ncct, cta, brain, white, grey):
    level = enhance(ncct, cta, brain, SPACING)
    return level, fit_reference(
        ncct, level.subtraction, brain, SPACING, veins=torch.zeros_like(ncct), white=white,
        grey=grey,
    )  # fmt: skip


def test_plane_has_its_slopes_at_the_edge_of_the_brain():
    _, _, brain, *_ = scans()
    found = plane(brain, (1.0, 2.0, -3.0))
    where = torch.nonzero(brain)
    for axis, slope in ((2, 1.0), (1, 2.0), (0, -3.0)):
        low, high = where[where[:, axis].argmin()], where[where[:, axis].argmax()]
        middle = torch.div(low + high, 2, rounding_mode='floor')
        ends = []
        for end in (low, high):
            at = middle.clone()
            at[axis] = end[axis]
            ends.append(float(found[tuple(at)]))
        assert (ends[1] - ends[0]) / 2 == pytest.approx(slope)


def test_scans_without_shading_are_left_as_they_are():
    level, found = fit(*scans())
    assert found.applied == (0.0, 0.0, 0.0)
    assert torch.equal(found.correct(level).subtraction, level.subtraction)
    assert max(abs(s) for s in found.slopes) < 0.5


@pytest.mark.parametrize('slopes', [(2.0, 0.0, 0.0), (-2.0, 0.0, 0.0), (0.0, 2.0, -2.0)])
def test_shading_is_found_and_partly_taken_away(slopes):
    ncct, cta, brain, white, grey = scans(seed=1)
    shaded = cta + plane(brain, slopes)
    level, found = fit(ncct, shaded, brain, white, grey)
    np.testing.assert_allclose(found.slopes, slopes, atol=0.6)
    assert all(0 < error < 1 for error in found.errors)
    clean = enhance(ncct, cta, brain, SPACING).subtraction
    inside = brain & (level.subtraction != 0)
    before = (level.subtraction - clean)[inside].square().mean().sqrt()
    after = (found.correct(level).subtraction - clean)[inside].square().mean().sqrt()
    assert after < 0.7 * before
    assert torch.equal(found.correct(level).vesselness, level.vesselness)


def test_an_occlusion_is_not_taken_for_shading():
    """The right territory lacks 70 % of its contrast: 4 HU of its grey matter."""
    _, found = fit(*scans(seed=2, late=0.7))
    assert abs(found.slopes[0]) < 0.8
    assert found.applied[0] == 0.0


def test_a_slope_that_may_be_a_leak_is_left_and_a_large_one_is_applied_continuously():
    from bids_perfdeficit.perfusion.reference import _shrink

    assert _shrink(DEAD_HU) == _shrink(-DEAD_HU) == 0.0
    assert _shrink(DEAD_HU + 1e-6) == pytest.approx(0.0, abs=1e-5)
    assert _shrink(2.0) == pytest.approx(2.0 - DEAD_HU**2 / 2)
    assert _shrink(-2.0) == -_shrink(2.0)


def test_too_little_tissue_is_said_and_nothing_is_applied():
    ncct, cta, brain, white, grey = scans()
    few = brain.clone()
    few[:, :, :60] = False
    _, found = fit(ncct, cta, few, white, grey)
    assert all(math.isnan(slope) for slope in found.slopes)
    assert found.applied == (0.0, 0.0, 0.0)
    assert not found.field.any()
