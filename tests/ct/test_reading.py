"""CTs as they come: repaired where that can be done, else told in one sentence."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bids_perfdeficit.ct import read_ct
from bids_perfdeficit.errors import InputError
from tests.ct.heads import AFFINE, SHAPE, scan_head


@pytest.fixture(scope='module')
def head():
    """Return the made head, int16."""
    return np.asarray(scan_head(AFFINE, SHAPE).dataobj)


def write(folder, values, affine=AFFINE, name='sub-01_ct.nii.gz'):
    path = folder / name
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def read_values(path):
    volume = read_ct(path)
    return np.asarray(volume.image.dataobj), volume.notes


def test_whole_scan_is_read_as_it_is(tmp_path, head):
    volume = read_ct(write(tmp_path, head))
    assert volume.image.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(volume.image.dataobj), head)
    assert np.allclose(volume.image.affine, AFFINE)
    assert volume.notes == ()


def test_affine_is_kept_even_when_sheared(tmp_path, head):
    affine = AFFINE.copy()
    affine[1, 2] = 1.3
    assert np.allclose(read_ct(write(tmp_path, head, affine)).image.affine, affine, atol=1e-4)


@pytest.mark.parametrize('padding', [-1500, -2000, -3024])
def test_padding_becomes_air(tmp_path, head, padding):
    padded = head.copy()
    padded[:6] = padding
    values, notes = read_values(write(tmp_path, padded))
    assert values[:6].max() == values.min() == -1024
    assert np.array_equal(values[6:], head[6:])
    assert f'padding of {padding}' in notes[0]


def test_unsigned_offset_is_taken_back(tmp_path, head):
    values, notes = read_values(write(tmp_path, (head + 1024).astype(np.uint16)))
    assert np.array_equal(values, head)
    assert 'shifted back' in notes[0]


def test_unsigned_offset_is_told_in_a_tight_field_of_view(tmp_path, head):
    tight = head[8:-8, 8:-8]
    assert (tight < -700).mean() < 0.6
    values, _ = read_values(write(tmp_path, (tight + 1024).astype(np.uint16)))
    assert np.array_equal(values, tight)


@pytest.mark.parametrize('slope', [float('nan'), 0.0])
def test_missing_slope_counts_as_one(tmp_path, head, slope):
    path = write(tmp_path, head, name='sub-01_ct.nii')
    data = bytearray(path.read_bytes())
    data[112:116] = np.float32(slope).tobytes()  # scl_slope
    data[116:120] = np.float32(0).tobytes()  # scl_inter
    path.write_bytes(bytes(data))
    assert np.array_equal(read_values(path)[0], head)


def test_slope_and_intercept_are_applied(tmp_path, head):
    path = write(tmp_path, (head + 1024).astype(np.uint16), name='sub-01_ct.nii')
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([1, -1024], np.float32).tobytes()
    path.write_bytes(bytes(data))
    values, notes = read_values(path)
    assert np.array_equal(values, head)
    assert notes == ()


def test_no_number_becomes_air(tmp_path, head):
    holed = head.astype(np.float32)
    holed[:5], holed[5], holed[6, 0, 0] = np.nan, -np.inf, np.inf
    values, notes = read_values(write(tmp_path, holed))
    assert np.isfinite(values).all()
    assert values[:6].max() == -1024
    assert values[6, 0, 0] == 3071
    assert 'without a number' in notes[0]


def test_trailing_axes_of_one_are_dropped(tmp_path, head):
    assert read_values(write(tmp_path, head[..., None, None]))[0].shape == SHAPE


def colour(head):
    return np.zeros(head.shape, dtype=[('R', 'u1'), ('G', 'u1'), ('B', 'u1')])


BROKEN = {
    'four volumes': (lambda h: np.stack([h] * 4, -1), '4 volumes', 'single volume'),
    'a slice': (lambda h: h[..., 20], '2 dimensions', 'single volume'),
    'scout': (lambda h: h[..., 20:22], 'scout', 'axial series'),
    'colour': (colour, 'colour', 'original series'),
    'complex': (lambda h: h.astype(np.complex64), 'complex', 'original series'),
    'constant': (lambda h: np.full_like(h, 7), 'every voxel of the NCCT is 7', 'export'),
    'nothing but nan': (lambda h: np.full(h.shape, np.nan, np.float32), 'every voxel', 'export'),
    'MRI-like': (
        lambda h: (np.clip(h + 1000, 0, None) / 3).astype(np.int16), 'does not look like', 'skull',
    ),
    'probability': (
        lambda h: (h > 0).astype(np.float32), 'does not look like', 'as the scanner',
    ),
    'stripped': (
        lambda h: np.where((h > 0) & (h < 80), h, 0), 'does not look like', 'with the skull',
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', BROKEN)
def test_what_is_no_head_ct_is_told(tmp_path, head, kind):
    change, reason, fix = BROKEN[kind]
    path = write(tmp_path, change(head))
    with pytest.raises(InputError) as caught:
        read_ct(path)
    assert reason in caught.value.reason
    assert fix in caught.value.fix
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ('affine', 'reason'),
    [
        (np.diag([0.004, 0.004, 0.004, 1]), 'voxels of'),
        (np.diag([40.0, 40, 40, 1]), 'voxels of'),
        (np.diag([0.4, 0.4, 0.4, 1]), 'no head'),
        (np.array([[4.0, 4, 0, 0], [4, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]]), 'affine'),
    ],
)
def test_useless_affine_is_told(tmp_path, head, affine, reason):
    path = tmp_path / 'sub-01_ct.nii'
    image = nib.Nifti1Image(head, None)
    image.header.set_sform(affine, code=1)
    image.header.set_qform(None, code=0)
    nib.save(image, path)
    with pytest.raises(InputError, match=reason) as caught:
        read_ct(path)
    assert 'dcm2niix' in caught.value.fix


@pytest.mark.parametrize('share', [0.002, 0.5, 0.99])
def test_truncated_gzip_is_told(tmp_path, head, share):
    noisy = head + np.random.default_rng(0).integers(0, 9, head.shape, dtype=np.int16)
    path = write(tmp_path, noisy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r'truncated|cannot be read') as caught:
        read_ct(path)
    assert 'again' in caught.value.fix
    assert caught.value.path == str(path)


def test_truncated_plain_file_is_told(tmp_path, head):
    path = write(tmp_path, head, name='sub-01_ct.nii')
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(InputError, match='truncated'):
        read_ct(path)


@pytest.mark.parametrize('content', [b'', b'hello', gzip.compress(b'hello', mtime=0)])
def test_what_is_no_nifti_is_told(tmp_path, content):
    path = tmp_path / 'sub-01_ct.nii.gz'
    path.write_bytes(content)
    with pytest.raises(InputError, match='cannot be read as NIfTI'):
        read_ct(path)


def test_absent_file_is_told(tmp_path):
    with pytest.raises(InputError, match='no such file'):
        read_ct(tmp_path / 'sub-01_ct.nii.gz')


def test_role_is_named(tmp_path, head):
    with pytest.raises(InputError, match='every voxel of the CTA'):
        read_ct(write(tmp_path, np.full_like(head, 3)), role='CTA')


@given(
    shift=st.sampled_from([0, 1024]),
    padding=st.sampled_from([None, -3024, -2000, -1025]),
    kind=st.sampled_from(['i2', 'i4', 'f4', 'f8']),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[*HealthCheck])
def test_same_head_whatever_the_encoding(tmp_path, head, shift, padding, kind):
    stored = head.astype(kind) + np.asarray(shift, kind)
    if padding is not None and not shift:
        stored[:, :3] = padding
    values, _ = read_values(write(tmp_path, stored, name='any_ct.nii'))
    assert np.array_equal(values[:, 3:], head[:, 3:])
    assert values.min() >= -1024
