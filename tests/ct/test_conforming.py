"""Whatever grid a head was scanned on, it comes out the same."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bids_perfdeficit.ct import CTVolume, conform, resample
from bids_perfdeficit.errors import InputError
from tests.ct.heads import AFFINE, SHAPE, box_affine, floats, head_at, scan_head

HEAD = floats(scan_head(AFFINE, SHAPE))


def conform_image(image, spacing=3.0):
    return conform(CTVolume(floats(image)), spacing=spacing)


def error(conformed, **parts):
    """Return the mean absolute difference from the head itself in and around the brain, HU."""
    image = conformed.image
    index = np.argwhere(np.ones(image.shape, bool))
    points = index @ image.affine[:3, :3].T + image.affine[:3, 3]
    points = points.reshape(*image.shape, 3)
    near = np.linalg.norm(points / [80, 96, 78], axis=-1) < 0.75
    assert near.sum() > 1000
    return float(np.abs(np.asarray(image.dataobj) - head_at(points, **parts))[near].mean())


def test_grid_is_ras_isotropic_and_around_the_head():
    conformed = conform_image(HEAD, 2.0)
    assert np.array_equal(conformed.image.affine[:3, :3], 2 * np.eye(3))
    assert conformed.image.get_data_dtype() == np.float32
    low = conformed.image.affine[:3, 3]
    high = low + 2 * (np.array(conformed.image.shape) - 1)
    assert (low < [-77, -93, -75]).all()
    assert (high > [77, 93, 75]).all()
    assert (high - low < [180, 225, 206]).all()
    assert conformed.coverage.complete


@given(
    order=st.sampled_from(list(itertools.permutations(range(3)))),
    flips=st.tuples(*[st.booleans()] * 3),
)
@settings(max_examples=25, deadline=None)
def test_axes_may_be_stored_in_any_order(order, flips):
    affine, values = HEAD.affine, np.asarray(HEAD.dataobj)
    stored, matrix = values.transpose(order), np.zeros((4, 4))
    for new, old in enumerate(order):
        matrix[old, new] = 1
        if flips[new]:
            stored = np.flip(stored, new)
            matrix[old, new], matrix[old, 3] = -1, values.shape[old] - 1
    matrix[3, 3] = 1
    reference = conform_image(HEAD)
    conformed = conform_image(nib.Nifti1Image(stored.copy(), affine @ matrix))
    assert np.allclose(conformed.image.affine, reference.image.affine)
    assert conformed.image.shape == reference.image.shape
    difference = np.asarray(conformed.image.dataobj) - np.asarray(reference.image.dataobj)
    assert np.abs(difference).max() < 0.1
    assert conformed.notes == reference.notes


@pytest.mark.parametrize('tilt', [-25.0, 12.0, 25.0])
def test_gantry_tilt_is_undone(tilt):
    shear = np.tan(np.radians(tilt))
    affine = box_affine((2.0, 2.0, 4.0), (-92, -112 + 90 * min(shear, 0) - 60 * abs(shear), -100))
    affine[1, 2] = shear * 4.0
    shape = (92, 112 + int(120 * abs(shear)), 50)
    conformed = conform_image(scan_head(affine, shape))
    assert error(conformed) < 12
    assert any(f'tilt of {abs(tilt):.1f} degrees' in note for note in conformed.notes)
    # Without the shear the same voxels are another head: the test can fail.
    affine[1, 2] = 0
    straight = conform_image(nib.Nifti1Image(scan_head(affine, shape).dataobj, affine))
    assert not any('tilt' in note for note in straight.notes)


def test_oblique_slices_are_undone():
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler('xyz', (20, -8, 12), degrees=True).as_matrix()
    affine = turn @ box_affine((2.5, 2.5, 4.0), (-110, -130, -125))
    conformed = conform_image(scan_head(affine, (88, 104, 62)))
    assert error(conformed) < 12
    assert not any('tilt' in note for note in conformed.notes)


def test_thick_slices_are_told():
    affine = box_affine((2.0, 2.0, 10.0), (-92, -112, -116))
    conformed = conform_image(scan_head(affine, (92, 120, 22)))
    assert 'slices are 10.0 mm thick' in conformed.notes[0]
    assert error(conformed) < 45
    assert conformed.coverage.complete


def test_neck_and_table_are_cropped():
    affine = box_affine(4.0, (-160, -150, -330))
    image = scan_head(affine, (80, 75, 105), neck=True, table=True)
    conformed = conform_image(image)
    low = conformed.image.affine[:3, 3]
    high = low + 3.0 * (np.array(conformed.image.shape) - 1)
    assert high[2] - low[2] <= 205 + 2 * 6 + 3
    assert high[2] > 75
    assert high[0] - low[0] < 200
    assert low[1] > -115, 'the table is in the picture'
    assert conformed.coverage.complete
    assert error(conformed, neck=True, table=True) < 12


@pytest.mark.parametrize(
    ('low', 'slices', 'missing'),
    [
        (-116, 36, ('vertex',)),
        (-20, 30, ('skull base',)),
        (-24, 13, ('vertex', 'skull base')),
        (-116, 54, ()),
    ],
)
def test_missing_part_is_named(low, slices, missing):
    affine = box_affine(4.0, (-92, -112, low))
    conformed = conform_image(scan_head(affine, (*SHAPE[:2], slices)))
    assert conformed.coverage.missing == missing
    assert conformed.coverage.complete == (not missing)
    assert any('not scanned' in note for note in conformed.notes) == bool(missing)


def test_no_head_is_told():
    values = np.full(SHAPE, -1000, np.int16)
    values[20:24, 20:24, 20:24] = 1000
    with pytest.raises(InputError, match='no head'):
        conform_image(nib.Nifti1Image(values, AFFINE))


def test_resampling_to_larger_voxels_averages_noise():
    noise = np.random.default_rng(0).normal(30, 10, (60, 60, 60)).astype(np.float32)
    image = nib.Nifti1Image(noise, np.eye(4))
    coarse = resample(image, (14, 14, 14), box_affine(4.0, (3, 3, 3)))
    picked = noise[3:57:4, 3:57:4, 3:57:4]
    assert coarse.std() < 0.3 * picked.std()
    assert abs(coarse.mean() - 30) < 0.5


def test_beyond_the_scan_is_air():
    away = resample(HEAD, (9, 9, 9), box_affine(4.0, (500, 0, 0)))
    assert (away == -1024).all()
