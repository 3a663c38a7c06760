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
