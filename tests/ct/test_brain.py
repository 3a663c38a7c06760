"""The brain of a digital patient, whose extent is known."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_perfdeficit import ct
from bids_perfdeficit.ct.quality import dice
from bids_perfdeficit.errors import InputError
from tests.ct.heads import AFFINE, SHAPE, box_affine, floats, scan_head, take


def truth_on(image, patient):
    truth = floats(patient.truth.brain)
    return np.maximum(ct.resample(truth, image.shape, image.affine), 0) > 0.5


def test_brain_is_found(conformed, brain, patient):
    truth = truth_on(conformed, patient)
    mask = np.asarray(brain.dataobj) > 0
    assert brain.get_data_dtype() == np.uint8
    assert dice(mask, truth) > 0.96
    assert abs(mask.sum() / truth.sum() - 1) < 0.05
    assert ndimage.label(mask)[1] == 1


@pytest.mark.parametrize(
    ('thickness', 'noise'), [(2.0, 15.0), (6.0, 3.0)], ids=['noisy', 'thick slices']
)
def test_brain_is_found_in_poor_scans(patient, thickness, noise):
    scan = take(floats(patient.ncct), np.eye(4), thickness, seed=1, noise=noise)
    conformed = ct.conform(ct.CTVolume(scan), spacing=2.0).image
    found = ct.extract_brain(conformed)
    assert dice(np.asarray(found.mask.dataobj) > 0, truth_on(conformed, patient)) > 0.96
    assert found.notes == ()


def test_made_head_has_its_volume():
    image = scan_head(box_affine(2.0, (-92, -112, -116)), (92, 120, 106))
    found = ct.extract_brain(floats(image))
    true_ml = 4 / 3 * np.pi * 64 * 80 * 62 / 1000
    assert abs(found.volume_ml / true_ml - 1) < 0.04


def test_haematoma_and_ventricles_belong_to_the_brain():
    image = scan_head(box_affine(2.0, (-92, -112, -116)), (92, 120, 106))
    mask = np.asarray(ct.extract_brain(floats(image)).mask.dataobj) > 0
    to_voxels = np.linalg.inv(image.affine)
    for point in [(-35, -20, 20), (12, 5, 8), (-12, 8, 8)]:
        assert mask[tuple(np.rint(to_voxels @ [*point, 1])[:3].astype(int))]


def test_no_brain_is_told():
    values = floats(scan_head(AFFINE, SHAPE)).get_fdata(dtype=np.float32)
    values[(values > -20) & (values < 100)] = -500
    with pytest.raises(InputError, match='no brain'):
        ct.extract_brain(nib.Nifti1Image(values, AFFINE))


def test_unusual_volume_is_noted():
    affine = AFFINE.copy()
    image = floats(scan_head(AFFINE, SHAPE))
    affine[:3] *= 0.75  # a head of three quarters the size
    small = ct.extract_brain(nib.Nifti1Image(image.get_fdata(dtype=np.float32), affine))
    assert small.volume_ml < 700
    assert 'unusual' in small.notes[0]


def positions(image):
    """Return the RAS mm of all voxels, (X, Y, Z, 3)."""
    index = np.moveaxis(np.indices(image.shape), 0, -1)
    return index @ image.affine[:3, :3].T + image.affine[:3, 3]


def head_centre(image):
    where = positions(image)[np.asarray(image.dataobj) > -200]
    low, high = where.min(0), where.max(0)
    return np.array([*((low + high) / 2)[:2], high[2] - 75])


def with_hole(image, direction, radius, fill=40.0):
    """Replace the skull within a cylinder about a direction from the middle of the head."""
    values = np.array(image.dataobj, dtype=np.float32)
    direction = np.asarray(direction) / np.linalg.norm(direction)
    off = positions(image) - head_centre(image)
    along = off @ direction
    aside = np.linalg.norm(off - along[..., None] * direction, axis=-1)
    hole = (aside < radius) & (along > 25) & (values > 100)
    values[hole] = fill + np.random.default_rng(0).normal(0, 5, int(hole.sum()))
    return nib.Nifti1Image(values, image.affine)


def losses(image, patient, **options):
    """Return the shares of the brain that are lost, in all, left and right, and Dice."""
    conformed = ct.conform(ct.CTVolume(floats(image)), spacing=3.0)
    found = ct.extract_brain(conformed.image, slice_mm=conformed.slice_mm)
    mask, truth = np.asarray(found.mask.dataobj) > 0, truth_on(conformed.image, patient)
    scanned = np.ones(image.shape, np.float32)
    truth &= ct.resample(nib.Nifti1Image(scanned, image.affine), truth.shape,
                         conformed.image.affine) > 0.99  # fmt: skip
    lost = truth & ~mask
    right = positions(conformed.image)[..., 0] > head_centre(floats(patient.ncct))[0]
    shares = [float(part.sum() / truth.sum()) for part in (lost, lost & ~right, lost & right)]
    return (*shares, dice(mask, truth), found)


@pytest.fixture(scope='module')
def closed(patient):
    """Return what is lost of the same head with its skull closed."""
    return losses(floats(patient.ncct), patient)


DIRECTIONS = {'right': (1, 0.1, 0.3), 'front': (0.3, 1, 0.5), 'vertex': (0.4, -0.2, 1),
              'back': (-0.3, -1, 0.2), 'both sides': (0, 0.8, 0.6)}  # fmt: skip


@pytest.mark.parametrize('where', DIRECTIONS)
@pytest.mark.parametrize(
    ('fill', 'radius'), [(40.0, 7), (40.0, 20), (40.0, 40), (40.0, 60), (-1000.0, 40)]
)
def test_a_hole_in_the_skull_costs_no_brain(patient, closed, where, radius, fill):
    spoilt = with_hole(floats(patient.ncct), DIRECTIONS[where], radius, fill)
    lost, left, _, overlap, found = losses(spoilt, patient)
    assert lost - closed[0] < 0.03
    if where == 'right':
        assert left - closed[1] < 0.002
    assert overlap > (0.96 if radius < 60 else 0.95)
    assert (found.opening_cm2 > 12) == any('open' in note for note in found.notes)
    if radius >= 40:
        assert found.opening_cm2 > 12
    if radius == 7:
        assert found.opening_cm2 < 12


@pytest.mark.parametrize('mm', [15, 30, 45])
@pytest.mark.parametrize('side', [-1, 1])
def test_a_field_of_view_that_cuts_a_side_costs_nothing_else(patient, closed, side, mm):
    image = floats(patient.ncct)
    where = positions(image)[..., 0][np.asarray(image.dataobj) > -200]
    low, high = where.min(), where.max()
    keep = positions(image)[:, 0, 0, 0]
    keep = keep < high - mm if side > 0 else keep > low + mm
    first, last = np.flatnonzero(keep)[[0, -1]]
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 0] * first
    part = nib.Nifti1Image(np.asarray(image.dataobj)[first : last + 1], affine)
    lost, left, right, overlap, _ = losses(part, patient)
    assert lost - closed[0] < 0.01
    healthy = left - closed[1] if side > 0 else right - closed[2]
    assert healthy < 0.004  # of a brain that is smaller by what was cut off
    assert overlap > 0.97


def test_brain_is_found_in_slices_of_10_mm(patient):
    conformed = ct.conform(ct.CTVolume(take(floats(patient.ncct), np.eye(4), 10.0)), spacing=2.0)
    assert conformed.slice_mm == pytest.approx(10.0)
    found = ct.extract_brain(conformed.image, slice_mm=conformed.slice_mm)
    truth = truth_on(conformed.image, patient)
    assert dice(np.asarray(found.mask.dataobj) > 0, truth) > 0.96


def test_metal_and_a_catheter_cost_little(patient, closed):
    image = floats(patient.ncct)
    values, off = np.array(image.dataobj), positions(image) - head_centre(image)
    values[np.linalg.norm(off - [15, 15, -10], axis=-1) < 6] = 3071
    direction = np.array([0.72, -0.62, 0.3])
    aside = np.linalg.norm(off - (off @ direction)[..., None] * direction, axis=-1)
    values[(aside < 2) & (off @ direction > 10) & (off @ direction < 100)] = 700
    lost, _, _, overlap, _ = losses(nib.Nifti1Image(values, image.affine), patient)
    assert lost - closed[0] < 0.02
    assert overlap > 0.97
