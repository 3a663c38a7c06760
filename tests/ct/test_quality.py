"""Numbers on the quality of the prepared images, on images for which they are known."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit.ct import measure_quality
from bids_perfdeficit.ct.quality import dice
from tests.ct.heads import box_affine, floats, scan_head

AFFINE = box_affine(2.0, (-92, -112, -116))


def measure(shift=0, noise=5.0):
    ncct = np.asarray(floats(scan_head(AFFINE, (92, 120, 106))).dataobj)
    index = np.argwhere(np.ones(ncct.shape, bool)).reshape(*ncct.shape, 3)
    points = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    brain = np.linalg.norm(points / [62, 78, 60], axis=-1) < 1
    difference = np.random.default_rng(0).normal(4, noise, ncct.shape).astype(np.float32)
    vessel = np.linalg.norm(points[..., :2], axis=-1) < 3
    difference[vessel] = 250
    images = [ncct, np.roll(ncct, shift, 0), brain.astype(np.uint8), difference]
    return measure_quality(
        *(nib.Nifti1Image(i, AFFINE) for i in images), *[nib.Nifti1Image(images[2], AFFINE)] * 2
    )


def test_numbers_are_right():
    found = measure()
    assert found['brain_volume'] == pytest.approx(4 / 3 * np.pi * 62 * 78 * 60 / 1000, rel=0.01)
    assert found['subtraction_noise'] == pytest.approx(5, rel=0.05)
    assert found['vessel_contrast'] == 250
    assert found['skull_dice'] == 1
    assert found['template_dice'] == 1
    assert 25 < found['brain_mean'] < 45


def test_misalignment_shows_in_the_skull():
    assert measure(shift=2)['skull_dice'] < 0.8


def test_overlap():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert dice(a, b) == 0.5
    assert dice(a, ~a) == 0
    assert np.isnan(dice(a & ~a, a & ~a))
