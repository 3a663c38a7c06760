"""A NIfTI file is read, or there is one error with the file, the reason and what to do."""

from __future__ import annotations

import contextlib
import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bids_perfdeficit.errors import InputError
from bids_perfdeficit.nifti import find_affine, open_nifti, read_nifti

VALUES = np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5)).astype(np.int16)


def save(path, values=VALUES, dtype=None):
    image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]), dtype=dtype)
    nib.save(image, path)
    return path


@pytest.fixture(params=['.nii', '.nii.gz'])
def whole(request, tmp_path):
    return save(tmp_path / f'whole{request.param}')


def test_a_whole_file_is_read(whole):
    image, values = read_nifti(whole)
    np.testing.assert_array_equal(values, VALUES)
    assert values.dtype == np.float32
    assert image.affine[0, 0] == 2
    assert open_nifti(whole).shape == VALUES.shape


def test_nifti_2_and_scaled_values_are_read(tmp_path):
    nib.save(nib.Nifti2Image(VALUES, np.eye(4)), tmp_path / 'two.nii')
    np.testing.assert_array_equal(read_nifti(tmp_path / 'two.nii')[1], VALUES)
    image = nib.Nifti1Image(VALUES, np.eye(4))
    image.header.set_slope_inter(2, 1)
    nib.save(image, tmp_path / 'scaled.nii')
    np.testing.assert_allclose(read_nifti(tmp_path / 'scaled.nii')[1], 2.0 * VALUES + 1)


def spoil_header(path, at: int, code: bytes):
    raw = gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()
    blob = bytearray(raw)
    blob[at : at + len(code)] = code
    path.write_bytes(gzip.compress(bytes(blob)) if path.suffix == '.gz' else bytes(blob))


SPOILT = {
    'empty': lambda p: p.write_bytes(b''),
    'text': lambda p: p.write_text('no image at all'),
    'cut': lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size * 3 // 4]),
    'cut in the header': lambda p: p.write_bytes(p.read_bytes()[:100]),
    'datatype': lambda p: spoil_header(p, 70, b'\x39\x30'),
    'dimensions': lambda p: spoil_header(p, 40, b'\xff\xff'),
    'negative size': lambda p: spoil_header(p, 42, b'\xf0\xff'),
    'no size': lambda p: spoil_header(p, 42, b'\0\0'),
    'huge': lambda p: spoil_header(p, 40, b'\x03\0\xff\x7f\xff\x7f\xff\x7f'),
    'offset': lambda p: spoil_header(p, 108, b'\xff\xff\xff\x7f'),
    'magic': lambda p: spoil_header(p, 344, b'abcd'),
}


@pytest.mark.parametrize('how', SPOILT)
def test_a_spoilt_file_is_one_error_with_its_remedy(whole, how):
    SPOILT[how](whole)
    with pytest.raises(InputError) as caught:
        read_nifti(whole)
    assert str(whole) in str(caught.value)
    assert caught.value.fix
    assert '\n' not in str(caught.value)


def test_garbage_within_the_gzip_stream_is_told(tmp_path):
    path = save(tmp_path / 'map.nii.gz', np.random.default_rng(1).random((40, 40, 40)))
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2 : len(blob) // 2 + 400] = b'\xa5' * 400
    path.write_bytes(bytes(blob))
    with pytest.raises(InputError, match='truncated or damaged'):
        read_nifti(path)


def test_damage_that_still_decodes_is_found_by_the_checksum(tmp_path):
    path = tmp_path / 'map.nii.gz'
    save(tmp_path / 'map.nii', np.zeros((20, 20, 20), np.int16))
    blob = bytearray(gzip.compress((tmp_path / 'map.nii').read_bytes(), compresslevel=0))
    blob[-100] ^= 0xFF  # a stored voxel: any other value decodes as well
    path.write_bytes(bytes(blob))
    with pytest.raises(InputError, match='truncated or damaged'):
        read_nifti(path)


def test_bytes_after_the_voxels_are_ignored(tmp_path):
    nib.save(nib.Nifti1Image(VALUES, np.eye(4)), tmp_path / 'map.nii')
    path = tmp_path / 'map.nii.gz'
    path.write_bytes(gzip.compress((tmp_path / 'map.nii').read_bytes() + b'\0' * 5_000_000))
    np.testing.assert_array_equal(read_nifti(path)[1], VALUES)


def test_garbage_behind_the_magic_bytes_is_told(tmp_path):
    path = tmp_path / 'map.nii.gz'
    path.write_bytes(b'\x1f\x8b\x08\0\0\0\0\0\0\x03' + os.urandom(3000))
    with pytest.raises(InputError, match=r'map\.nii\.gz'):
        read_nifti(path)


@settings(deadline=None, max_examples=150,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_no_damage_is_any_other_error(tmp_path, data):
    """Bytes of the header or of the stream changed at random: values, or one `InputError`."""
    path = save(tmp_path / f'f{data.draw(st.sampled_from([".nii", ".nii.gz"]))}')
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(360, len(blob) - 1)))
        blob[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(blob[: data.draw(st.integers(0, len(blob)))]))
    with contextlib.suppress(InputError):
        image, values = read_nifti(path, memory=1e6)
        assert values.shape == image.shape


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'device', 'loop', 'missing', 'dangling'])
def test_what_is_no_regular_file_never_blocks(tmp_path, kind):
    path = tmp_path / 'map.nii.gz'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    elif kind == 'loop':
        path.symlink_to(path)
    elif kind == 'dangling':
        path.symlink_to(tmp_path / 'nothing')
    with pytest.raises(InputError, match=r'map\.nii\.gz'):
        open_nifti(path)


def test_more_voxels_than_the_memory_holds_are_refused_before_they_are_read(tmp_path):
    path = save(tmp_path / 'map.nii.gz', np.zeros((60, 60, 60), np.float32))
    with pytest.raises(InputError, match=r'need 0.0 GB of memory \(0.0 are free\)'):
        read_nifti(path, memory=1e5)


def test_other_formats_and_colours_are_refused(tmp_path):
    path = tmp_path / 'map.nii'
    nib.save(nib.MGHImage(VALUES.astype(np.float32), np.eye(4)), tmp_path / 'map.mgh')
    (tmp_path / 'map.mgh').rename(path)
    with pytest.raises(InputError):
        read_nifti(path)
    colour = np.zeros((4, 4, 4), [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), path)
    with pytest.raises(InputError, match='instead of numbers'):
        read_nifti(path)


def header_of(sform: float | None, qform: float | None) -> nib.Nifti1Image:
    """Return an image whose x axis has these steps in sform and qform; None leaves one unset."""
    image = nib.Nifti1Image(VALUES, np.eye(4))
    for name, step in (('sform', sform), ('qform', qform)):
        affine = np.diag([step or 1.0, 2.0, 2.0, 1.0])
        getattr(image.header, f'set_{name}')(affine, code=0 if step is None else 1)
    return image


@pytest.mark.parametrize(
    ('sform', 'qform', 'step'), [(2.0, None, 2), (None, -3.0, -3), (2.0, 2.1, 2), (-2.0, -2.0, -2)]
)
def test_the_affine_that_is_set_is_used(sform, qform, step):
    assert find_affine(header_of(sform, qform), 'x')[0, 0] == step


@pytest.mark.parametrize(
    ('sform', 'qform', 'piece'),
    [
        (None, None, 'does not say which side is left'),
        (2.0, -2.0, 'name different sides (RAS and LAS)'),
        (np.nan, None, 'unusable sform'),
        (1e-320, None, 'unusable sform'),
    ],
)
def test_sides_that_are_not_known_are_an_error(sform, qform, piece):
    with pytest.raises(InputError) as reported:
        find_affine(header_of(sform, qform), 'x.nii')
    assert piece in str(reported.value)
    assert 'x.nii' in str(reported.value)
