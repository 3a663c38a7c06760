"""A scanner's errors are what their settings say, and leave air alone."""

from __future__ import annotations

import numpy as np
import pytest

from bids_perfdeficit.phantom.disturbance import disturb
from bids_perfdeficit.phantom.patient import make_patient
from bids_perfdeficit.phantom.settings import ScanErrors, ScannerSettings

SHAPE, STEP = (41, 51, 31), 2.0
AFFINE = np.diag([STEP, STEP, STEP, 1.0])
EDGES = np.array([[0.0, 0, 0], [80, 100, 60]])


def added(image=None, **errors):
    image = np.zeros(SHAPE, np.int16) if image is None else image
    rng = np.random.default_rng(4)
    return disturb(image, AFFINE, EDGES, ScanErrors(**errors), rng) - image


def test_nothing_is_added_by_default():
    assert np.abs(added()).max() == 0


def test_an_offset_is_the_same_everywhere_but_in_air():
    image = np.zeros(SHAPE, np.int16)
    image[:5] = -1000
    found = added(image, offset=2.0)
    assert (found[5:] == 2).all()
    assert (found[:5] == 0).all()


@pytest.mark.parametrize('axis', range(3))
def test_shading_is_odd_and_has_its_level_at_the_edge(axis):
    level = [0.0, 0.0, 0.0]
    level[axis] = 2.0
    found = np.moveaxis(added(shading=tuple(level)), axis, 0)
    np.testing.assert_allclose(found[-1], 2.0, atol=1e-4)
    np.testing.assert_allclose(found, -found[::-1], atol=1e-4)


def test_cupping_is_brighter_at_the_rim_than_on_the_axis():
    found = added(cupping=2.0)
    assert found[0, 25, 15] - found[20, 25, 15] == pytest.approx(2.0, abs=0.01)
    assert np.abs(found - found[..., :1]).max() < 1e-5


def test_patches_have_their_level_and_length():
    found = added(np.zeros((60, 60, 60), np.int16), patches=1.5, patches_mm=8.0)
    assert found.std() == pytest.approx(1.5, rel=0.35)
    # Correlation of a Gaussian of sigma s at a distance d is exp(-d^2 / (4 s^2)).
    one, other = found[:-4].ravel(), found[4:].ravel()
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(np.exp(-0.25), abs=0.15)


def test_white_noise_falls_with_the_voxel():
    assert added(noise=10.0).std() == pytest.approx(10 / np.sqrt(STEP * STEP), rel=0.05)


def test_movement_shifts_top_and_base_apart():
    image = np.zeros(SHAPE, np.float32)
    image[20, 25] = 100.0
    found = added(image, movement=2.0) + image
    places = [np.array(np.nonzero(found[..., k])) for k in (0, 30)]
    weights = [found[..., k][found[..., k] != 0] for k in (0, 30)]
    centres = [(p * w).sum(1) / w.sum() for p, w in zip(places, weights, strict=True)]
    assert np.linalg.norm(centres[1] - centres[0]) * STEP == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    'bad', [{'noise': -1.0}, {'patches': -1.0}, {'gain': -0.1}, {'patches_mm': 0.0}]
)
def test_impossible_errors_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ScanErrors(**bad)


def test_a_patient_is_scanned_with_its_scanners_errors():
    plain, shaded, strong = (
        make_patient(5, spacing=3.0, scanner=ScannerSettings(errors=errors))
        for errors in (ScanErrors(), ScanErrors(offset=7.0), ScanErrors(gain=1.3))
    )
    values = [np.asarray(p.cta.dataobj, np.float32) for p in (plain, shaded, strong)]
    head = values[0] > -200
    assert np.median((values[1] - values[0])[head]) == pytest.approx(7.0)
    np.testing.assert_array_equal(plain.ncct.dataobj, shaded.ncct.dataobj)
    artery = np.asarray(plain.truth.enhancement.dataobj)
    ratio = np.asarray(strong.truth.enhancement.dataobj)[artery > 200] / artery[artery > 200]
    assert np.median(ratio) == pytest.approx(1.3, rel=0.03)
