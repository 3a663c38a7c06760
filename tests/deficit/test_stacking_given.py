"""Maps that users give are read on any grid of the template; a bad one is left out by itself."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit.deficit import stack
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.pipeline import check_given, make_lattice
from bids_perfdeficit.settings import DEFAULT_SPACE

CENTRE, RADIUS = np.array([-30.0, -20.0, 20.0]), 22.0


@pytest.fixture(scope='module')
def lattice():
    return make_lattice(DEFAULT_SPACE, 8.0)


def grid(spacing=2.0, low=(-90, -126, -72), high=(90, 90, 108)):
    """Return shape and affine of a box of the template."""
    shape = tuple(int((h - a) / spacing) + 1 for a, h in zip(low, high, strict=True))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = low
    return shape, affine


def sphere(shape, affine, centre=CENTRE, radius=RADIUS):
    xyz = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return (((xyz - centre) ** 2).sum(-1) <= radius**2).astype(np.uint8)


def save(path, values, affine, **codes):
    image = nib.Nifti1Image(values, affine)
    for name, code in codes.items():
        getattr(image.header, f'set_{name}')(affine, code=code)
    nib.save(image, path)
    return path


@pytest.fixture
def lesion(tmp_path):
    """Return a good lesion on a grid of its own."""
    shape, affine = grid()
    return save(tmp_path / 'sub-good_mask.nii.gz', sphere(shape, affine), affine)


def read(paths, tmp_path, lattice, **more):
    more = {'threshold': 0.5, **more}
    # seven copies, so that the lesion is covered
    paths = [*paths, *[paths[0]] * 7]
    return stack(paths, [None] * len(paths), tmp_path / 'm.npy', lattice=lattice, **more)


def as_stored(name):
    shape, affine = grid()
    values = sphere(shape, affine)
    image = nib.Nifti1Image(values, affine)
    if name == 'flipped':
        return image.as_reoriented([[0, -1], [1, 1], [2, 1]])
    if name == 'sagittal':
        return image.as_reoriented([[2, 1], [0, -1], [1, -1]])
    shape, affine = {
        '1 mm': grid(1.0),
        '3 mm': grid(3.0),
        'cropped': grid(1.0, (-78, -112, -60), (78, 76, 85)),
        'off by half a voxel': grid(2.0, (-91, -127, -73), (91, 91, 109)),
    }[name]
    return nib.Nifti1Image(sphere(shape, affine), affine)


@pytest.mark.parametrize(
    ('name', 'atol'),
    [
        ('flipped', 1e-5), ('sagittal', 1e-5), ('1 mm', 0.1), ('3 mm', 0.25), ('cropped', 0.1),
        ('off by half a voxel', 0.1),
    ],
)  # fmt: skip
def test_one_lesion_on_any_grid_is_one_lesion(lesion, lattice, tmp_path, name, atol):
    nib.save(as_stored(name), tmp_path / 'sub-other_mask.nii.gz')
    result = read([lesion, tmp_path / 'sub-other_mask.nii.gz'], tmp_path, lattice)
    assert not result.dropped
    np.testing.assert_allclose(result.values[1], result.values[0], atol=atol)
    volumes = result.measures['total_deficit_volume']
    truth = 4 / 3 * np.pi * RADIUS**3 / 1000
    assert volumes[0] == pytest.approx(truth, rel=0.03)
    assert volumes[1] == pytest.approx(truth, rel=0.03)
    assert result.measures['side'][1] > 0, 'the lesion is on the left'


def test_values_are_the_share_of_the_voxel(lattice, tmp_path):
    shape, affine = grid(1.0)
    values = sphere(shape, affine)
    path = save(tmp_path / 'sub-1_mask.nii.gz', values, affine)
    result = read([path], tmp_path, lattice)
    voxel = np.abs(lattice.grid.coordinates - CENTRE).sum(1).argmin()
    centre = lattice.grid.coordinates[voxel]
    low = np.rint(nib.affines.apply_affine(np.linalg.inv(affine), centre - 4)).astype(int)
    part = values[tuple(slice(a, a + 9) for a in low)].astype(float)
    for axis in range(3):  # voxels at the faces lie half inside
        edge = np.ones(9)
        edge[[0, -1]] = 0.5
        part *= edge.reshape([-1 if a == axis else 1 for a in range(3)])
    row = np.zeros(lattice.grid.n_voxels)
    row[result.grid.mask[lattice.grid.mask]] = result.values[0]
    assert row[voxel] == pytest.approx(part.sum() / 512, abs=0.02)


def test_what_lies_outside_the_field_of_view_was_not_scanned(lesion, lattice, tmp_path):
    nib.save(as_stored('cropped'), tmp_path / 'sub-cropped_mask.nii.gz')
    paths = [tmp_path / 'sub-cropped_mask.nii.gz', lesion, lesion]
    result = stack(paths, [None] * 3, tmp_path / 'm.npy', lattice=lattice, threshold=0.5,
                   grid=lattice.grid)  # fmt: skip
    missing = np.isnan(result.values)
    low = lattice.grid.coordinates[:, 2] < -64
    assert missing[0, low].all()
    assert not missing[1:].any()


@pytest.mark.parametrize(
    ('make', 'threshold'),
    [
        (lambda v: 255 * v.astype(np.int16), 0.5),
        (lambda v: 0.7 * v.astype(np.float32), 0.5),
        (lambda v: 40 * v.astype(np.float32), 6.0),
    ],
    ids=['255', 'one other value', 'Tmax'],
)
def test_a_mask_may_have_any_number(lesion, lattice, tmp_path, make, threshold):
    shape, affine = grid()
    path = save(tmp_path / 'sub-1_x.nii.gz', make(sphere(shape, affine)), affine)
    result = read([path], tmp_path, lattice, threshold=threshold)
    plain = read([lesion], tmp_path, lattice)
    np.testing.assert_allclose(result.values, plain.values, atol=1e-5)
    pd_equal = result.measures['total_deficit_volume'], plain.measures['total_deficit_volume']
    np.testing.assert_allclose(*pd_equal)


def test_a_threshold_is_half_of_the_scale(lattice, tmp_path):
    shape, affine = grid()
    values = 3.0 * sphere(shape, affine) + 6.0 * sphere(shape, affine, radius=12.0)
    path = save(tmp_path / 'sub-1_Tmax.nii.gz', values.astype(np.float32), affine)
    result = read([path], tmp_path, lattice, threshold=6.0)
    assert result.values.max() == pytest.approx(0.75, abs=1e-3)  # 9 s of 12
    inner = 4 / 3 * np.pi * 12.0**3 / 1000
    assert result.measures['total_deficit_volume'][0] == pytest.approx(inner, rel=0.1)


def zero(values):
    return values * 0


BAD = {
    'series': (lambda v: np.stack([v, v], -1), {}, '2 volumes instead of one volume'),
    'flat': (lambda v: v[:, :, 0], {}, '2 dimensions instead of one volume'),
    'NaN': (lambda v: np.where(v > 0, np.nan, 0.0).astype(np.float32), {}, 'without a number'),
    'negative': (lambda v: -v.astype(np.int16), {}, 'negative values (down to -1)'),
    'empty': (zero, {}, 'is empty: no voxel is above 0'),
    'full': (lambda v: v * 0 + 1, {}, 'the same value everywhere'),
    'labels': (lambda v: v * (1 + np.arange(v.shape[0], dtype=np.uint8)[:, None, None] % 3), {},
               'several values up to 3'),
    'inverted': (lambda v: 1 - v, {}, 'affects most of the brain'),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_a_bad_map_is_left_out_with_its_reason(lesion, lattice, tmp_path, name):
    spoil, _, piece = BAD[name]
    shape, affine = grid()
    path = save(tmp_path / 'sub-bad_mask.nii.gz', spoil(sphere(shape, affine)), affine)
    result = read([lesion, path], tmp_path, lattice)
    assert list(result.dropped) == [1]
    assert piece in result.dropped[1]
    assert result.dropped[1].startswith(str(path))


def affine_of(**change):
    affine = grid()[1]
    for name, value in change.items():
        affine[{'x': 0, 'z': 2}[name], 3] += value
    return affine


def turned(degrees):
    angle, affine = np.deg2rad(degrees), grid()[1]
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def other_side():
    affine = grid()[1]
    affine[0, 0] *= -1  # the origin was not moved
    return affine


OFF = {
    'another template': (affine_of(z=60.0), 'of the brain of MNI152NLin2009aSym'),
    'flipped without its origin': (other_side(), 'of the brain of MNI152NLin2009aSym'),
    'rotated': (turned(8.0), 'is rotated against the axes'),
    'identity': (np.eye(4), 'of the brain of MNI152NLin2009aSym'),
}


@pytest.mark.parametrize('name', OFF)
def test_a_map_of_another_space_is_known_by_its_header(lesion, lattice, tmp_path, name):
    affine, piece = OFF[name]
    path = save(tmp_path / 'sub-off_mask.nii.gz', sphere(*grid()), affine)
    wrong = check_given([lesion, path], DEFAULT_SPACE)
    assert list(wrong) == [path]
    assert piece in wrong[path]
    assert 'is it in this space?' in wrong[path]
    assert list(read([lesion, path], tmp_path, lattice).dropped) == [1]


@pytest.mark.parametrize('how', ['unknown', 'contradicting'])
def test_a_side_that_is_not_known_is_not_guessed(lesion, tmp_path, how):
    shape, affine = grid()
    image = nib.Nifti1Image(sphere(shape, affine), affine)
    image.header.set_qform(np.diag([-1.0, 1, 1, 1]) @ affine, code=1)
    path = tmp_path / 'sub-side_mask.nii'
    nib.save(image, path)
    if how == 'unknown':  # nibabel would set the code of what it saves
        blob = bytearray(path.read_bytes())
        blob[252:256] = bytes(4)
        path.write_bytes(bytes(blob))
    told = check_given([path], DEFAULT_SPACE)[path]
    piece = 'does not say which side' if how == 'unknown' else 'name different sides (RAS and LAS)'
    assert piece in told


DAMAGES = {
    'cut': lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    'text': lambda p: p.write_text('no image'),
    'gone': lambda p: p.unlink(),
    'pipe': lambda p: (p.unlink(), os.mkfifo(p)),
    'folder': lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_no_damage_of_one_file_stops_the_others(lesion, lattice, tmp_path, damage):
    path = tmp_path / 'sub-bad_mask.nii.gz'
    path.write_bytes(lesion.read_bytes())
    DAMAGES[damage](path)
    result = read([lesion, path], tmp_path, lattice)
    assert list(result.dropped) == [1]
    assert str(path) in result.dropped[1]
    assert set(check_given([path], DEFAULT_SPACE)) <= {path}


def test_a_lesion_outside_the_brain_is_of_another_space(lesion, lattice, tmp_path):
    shape, affine = grid()
    far = sphere(shape, affine, centre=np.array([84.0, 80, 100]), radius=12.0)
    path = save(tmp_path / 'sub-far_mask.nii.gz', far, affine)
    assert 'lies outside the brain' in read([lesion, path], tmp_path, lattice).dropped[1]


def test_the_group_mask_is_that_of_the_lesions_and_not_of_their_mirror_image(
    lesion, lattice, tmp_path
):
    shape, affine = grid()
    few = [
        save(tmp_path / f'sub-{n}_mask.nii.gz', sphere(shape, affine, CENTRE * [-1, 1, 1]), affine)
        for n in range(4)
    ]
    result = read([lesion, *few], tmp_path, lattice)
    assert (result.grid.coordinates[:, 0] < 0).all(), 'four on the right are too few'
    covered = result.coverage[result.grid.mask] * len(result.measures)
    assert covered.min() >= 5
    more = read([lesion, *few], tmp_path, lattice, min_coverage=0.3)
    assert more.grid.n_voxels == result.grid.n_voxels
    with pytest.raises(InputError, match=r'in no voxel 12 of the 12 participants are affected'):
        read([lesion, *few], tmp_path, lattice, min_coverage=0.99)


def test_fewer_than_five_lesions_cover_nothing(lesion, lattice, tmp_path):
    with pytest.raises(InputError, match='in no voxel 5 of the 4 participants'):
        stack([lesion] * 4, [None] * 4, tmp_path / 'm.npy', lattice=lattice, threshold=0.5)


def test_no_usable_map_is_an_error_of_its_own(lattice, tmp_path):
    shape, affine = grid()
    path = save(tmp_path / 'sub-1_mask.nii.gz', zero(sphere(shape, affine)), affine)
    with pytest.raises(InputError, match=r'no map can be used .*is empty') as told:
        stack([path], [None], tmp_path / 'm.npy', lattice=lattice, threshold=0.5)
    assert 'participant level' not in str(told.value)
