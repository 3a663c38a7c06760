"""CTs as they come: repaired where that can be done, else reported in one sentence."""

from __future__ import annotations

import gzip
import os

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
        (np.diag([0.4, 0.4, 0.4, 1]), 'not the size of a head'),
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
    with pytest.raises(InputError, match='does not exist'):
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


def noisy(head, seed=0):
    """Return the head as a scanner shows it."""
    noise = np.rint(np.random.default_rng(seed).normal(0, 6, head.shape)).astype(np.int16)
    return np.maximum(head + noise, -1024)


SCALES = [(1, 1000), (1, 1024), (1, -1000), (1, -1024), (1, 8192), (1, 32768), (2, 0), (2, -1024),
          (0.5, 0), (-1, 0), (-1, 1024), (10, 0)]  # fmt: skip


@pytest.mark.parametrize(('slope', 'shift'), SCALES)
@pytest.mark.parametrize('padding', [None, -2000])
def test_known_scales_are_measured_named_and_undone(tmp_path, head, slope, shift, padding):
    whole = noisy(head).astype(np.float32)
    if padding is not None:
        whole[:5] = padding
    volume = read_ct(write(tmp_path, whole * slope + shift))
    assert (volume.scale.slope, volume.scale.shift, volume.scale.known) == (slope, shift, True)
    assert np.abs(np.asarray(volume.image.dataobj)[5:] - whole[5:]).max() < 0.1
    reported = ' '.join(volume.notes)
    assert f'{abs(shift)}' in reported if shift else slope == -1 or f'{slope:g}' in reported


@pytest.mark.parametrize('shift', [-300, 137, 500, 4096])
def test_other_shifts_are_undone_and_said_to_be_unknown(tmp_path, head, shift):
    whole = noisy(head)
    volume = read_ct(write(tmp_path, whole.astype(np.int32) + shift))
    assert not volume.scale.known
    assert abs(volume.scale.shift - shift) < 8
    assert np.abs(np.asarray(volume.image.dataobj) - whole).max() < 8
    assert any('no converter' in note for note in volume.notes)


def test_other_slopes_are_refused_with_their_size(tmp_path, head):
    with pytest.raises(InputError, match=r'multiplied by 0\.7'):
        read_ct(write(tmp_path, noisy(head) * np.float32(0.7)))


def test_signed_values_read_as_unsigned_are_undone(tmp_path, head):
    whole = noisy(head)
    values, notes = read_values(write(tmp_path, whole.view(np.uint16)))
    assert np.array_equal(values, whole)
    assert 'signed' in notes[0]


def coded(folder, values, sform, qform, codes, affine=AFFINE):
    image = nib.Nifti1Image(values, affine)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    path = folder / 'sub-01_ct.nii'
    nib.save(image, path)
    return path


def test_unknown_sides_are_refused_with_the_way_out(tmp_path, head):
    with pytest.raises(InputError, match='side is left') as caught:
        read_ct(coded(tmp_path, head, AFFINE, AFFINE, (0, 0)))
    assert 'dcm2niix' in caught.value.fix
    assert 'setsform' in caught.value.fix


@pytest.mark.parametrize('turn', [
    np.diag([-1.0, 1, 1, 1]), np.diag([1.0, -1, 1, 1]), np.diag([-1.0, -1, 1, 1]),
    np.diag([1.0, 1, -1, 1]), np.eye(4)[[1, 0, 2, 3]], np.eye(4)[[0, 2, 1, 3]],
])  # fmt: skip
def test_forms_that_name_different_sides_are_refused(tmp_path, head, turn):
    with pytest.raises(InputError, match='different sides'):
        read_ct(coded(tmp_path, head, AFFINE @ turn, AFFINE, (1, 1)))


@pytest.mark.parametrize(
    ('codes', 'source'), [((1, 0), 'sform'), ((0, 1), 'qform'), ((2, 1), 'sform')]
)
def test_the_form_that_was_used_is_kept(tmp_path, head, codes, source):
    volume = read_ct(coded(tmp_path, head, AFFINE, AFFINE, codes))
    assert volume.geometry.source == source
    assert volume.geometry.code == max(codes)
    assert volume.geometry.difference < 0.01
    assert volume.provenance()['AffineSource'] == source
    assert volume.notes == ()


@pytest.mark.parametrize(('shift', 'voxels'), [(2.0, 0.5), (9.0, 2.25)])
def test_forms_that_differ_in_place_are_told_and_measured(tmp_path, head, shift, voxels):
    moved = AFFINE.copy()
    moved[1, 3] += shift
    volume = read_ct(coded(tmp_path, head, AFFINE, moved, (1, 1)))
    assert volume.geometry.difference == pytest.approx(voxels, abs=0.01)
    assert 'sform and qform differ' in volume.notes[0]
    assert np.allclose(volume.image.affine, AFFINE)


def test_a_tilt_that_a_qform_cannot_hold_is_no_difference(tmp_path, head):
    sheared, straight = AFFINE.copy(), AFFINE.copy()
    sheared[1, 2] = 1.3
    volume = read_ct(coded(tmp_path, head, sheared, straight, (1, 1)))
    assert volume.geometry.difference < 0.01
    assert np.allclose(volume.image.affine, sheared, atol=1e-4)


@pytest.mark.parametrize('mm', [16, 24, 40])
@pytest.mark.parametrize('share', [0.25, 0.65, 0.7])
def test_missing_slices_are_measured(tmp_path, head, mm, share):
    at, count = int(head.shape[2] * share), mm // 4
    whole = noisy(head)
    gapped = np.concatenate([whole[..., :at], whole[..., at + count :]], 2)
    assert read_ct(write(tmp_path, whole)).slice_jump < 1.3
    assert read_ct(write(tmp_path, gapped)).slice_jump > 1.4


def test_repeated_slices_are_counted(tmp_path, head):
    whole = noisy(head)
    twice = np.concatenate([whole[..., :20], whole[..., 17:20], whole[..., 20:]], 2)
    twice[..., 20] = twice[..., 19]
    volume = read_ct(write(tmp_path, twice))
    assert volume.slices_repeated == 1
    assert any('repeat' in note for note in volume.notes)


@pytest.mark.parametrize('value', [0, 40, -100, 1000])
def test_constant_blocks_are_not_scanned(tmp_path, head, value):
    whole = noisy(head)
    whole[12:36, 44:, 5:25] = value  # a face that was removed
    values, notes = read_values(write(tmp_path, whole))
    assert (values[14:34, 46:-1, 7:23] == -1024).all()
    assert any('not scanned' in note for note in notes)
    rest = np.ones(head.shape, bool)
    rest[12:36, 44:, 5:25] = False
    assert np.mean(values[rest] != whole[rest]) < 0.001


@pytest.mark.parametrize('kind', ['pipe', 'folder', 'device'])
def test_what_could_block_is_refused_at_once(tmp_path, kind):
    path = tmp_path / 'sub-01_ct.nii.gz'
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'folder':
        path.mkdir()
    else:
        path.symlink_to('/dev/zero')
    with pytest.raises(InputError, match='regular file'):
        read_ct(path)


def test_a_header_that_claims_more_than_the_memory_is_refused(tmp_path, head):
    path = write(tmp_path, head)
    with pytest.raises(InputError, match='voxels'):
        read_ct(path, max_gb=0.001)


def test_the_closest_rotation_of_a_tilt_is_no_difference_either(tmp_path, head):
    sheared = AFFINE.copy()
    sheared[1, 2] = 1.3
    path = tmp_path / 'sub-01_ct.nii'
    image = nib.Nifti1Image(head, sheared)
    image.set_qform(sheared, 1, strip_shears=True)
    nib.save(image, path)
    assert read_ct(path).geometry.difference < 0.01
