"""What the viewer is given: bytes in the right order, the right grid, and an outline."""

from __future__ import annotations

import base64
import gzip

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit.reports.viewer import pack_volume, write_patient_view
from bids_perfdeficit.reports.words import read_view

AFFINE = nib.affines.from_matvec(np.eye(3), [-20, -30, -10])
SHAPE = (41, 51, 31)


def image(values) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(values, np.float32), AFFINE)


def unpack(volume: dict, key: str = 'data') -> np.ndarray:
    flat = np.frombuffer(gzip.decompress(base64.b64decode(volume[key])), np.uint8)
    return flat.reshape(volume['shape'], order='F')


def test_bytes_come_back_in_their_order_and_scale():
    values = np.arange(24, dtype=float).reshape(2, 3, 4)
    packed = pack_volume(nib.Nifti1Image(values, AFFINE), 2.0, offset=1.0)
    np.testing.assert_array_equal(unpack(packed), np.clip(2 * (values - 1), 0, 255))
    assert packed['origin'] == [-20, -30, -10]


def test_a_patient_is_averaged_cropped_and_kept_in_place(tmp_path):
    brain = np.zeros(SHAPE)
    brain[8:33, 10:43, 6:27] = 1
    late = np.zeros(SHAPE)
    late[24:30, 20:28, 12:20] = 1
    hot = np.zeros(SHAPE)
    hot[25, 23, 15] = 1.0
    path = write_patient_view(
        image(40 * brain), image(100 * brain), image(brain),
        [('p', 'Probability', image(np.maximum(late, hot)), 1.0)], image(late),
        tmp_path / 'view.js',
    )  # fmt: skip
    view = read_view(path)
    (map_,) = view['maps']
    values, mask = unpack(map_), unpack(map_, 'declared')
    assert set(np.unique(mask)) == {0, 1}
    assert mask.sum() * 8 == late.sum()
    centre = np.argwhere(mask).mean(0) * map_['spacing'] + map_['origin']
    expected = nib.affines.apply_affine(AFFINE, np.argwhere(late).mean(0))
    np.testing.assert_allclose(centre, expected, atol=1e-6)
    assert values[mask > 0].min() == 255
    start = np.round((np.array(map_['start']) - map_['origin']) / map_['spacing']).astype(int)
    assert mask[tuple(start)], 'it opens inside what is outlined'
    assert np.all(np.array(map_['shape']) <= np.array(SHAPE) // 2 + 1)
    assert {g['volume'] for g in view['grounds']} == set(view['volumes'])


def test_images_of_two_grids_are_refused(tmp_path):
    one, other = image(np.ones(SHAPE)), nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4))
    with pytest.raises(ValueError, match='share a grid'):
        write_patient_view(one, other, one, [], one, tmp_path / 'view.js')
