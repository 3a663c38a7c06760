"""Maps of many participants become one array; those that cannot are told with their file."""

from __future__ import annotations

import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bids_perfdeficit.bids import resolution_label
from bids_perfdeficit.ct import load_template
from bids_perfdeficit.deficit import stack
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.pipeline import check_grids, make_lattice
from bids_perfdeficit.settings import DEFAULT_SPACE


@pytest.fixture(scope='module')
def brain():
    return load_template(DEFAULT_SPACE, spacing=2.0).brain_mask


@pytest.fixture(scope='module')
def lattice():
    return make_lattice(DEFAULT_SPACE, 8.0)


class Files:
    """Writes maps and masks."""

    def __init__(self, folder, brain) -> None:
        self.folder, self.brain = folder, brain
        self.inside = np.asarray(brain.dataobj) > 0
        self.x = nib.affines.apply_affine(
            brain.affine, np.moveaxis(np.indices(brain.shape), 0, -1)
        )[..., 0]
        self.maps, self.masks = [], []

    def add(self, values, mask=None, affine=None):
        number = len(self.maps)
        for kind, array, listed in (
            ('map', np.where(self.inside, values, 0).astype(np.float32), self.maps),
            ('mask', (self.inside if mask is None else mask).astype(np.uint8), self.masks),
        ):
            path = self.folder / f'sub-{number}_{kind}.nii'
            nib.save(nib.Nifti1Image(array, self.brain.affine if affine is None else affine), path)
            listed.append(path)
        return self

    def left(self, high: float = 0.9):
        return np.where(self.x < -10, high, 0.3)

    def right(self, high: float = 0.9):
        return np.where(self.x > 10, high, 0.3)


@pytest.fixture
def files(tmp_path, brain):
    return Files(tmp_path, brain)


def test_values_are_averaged_and_the_sides_are_measured(files, lattice, tmp_path):
    files.add(files.left()).add(files.right())
    result = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice)
    x = result.grid.coordinates[:, 0]
    np.testing.assert_allclose(result.values[0, x < -20], 0.9, atol=1e-5)
    np.testing.assert_allclose(result.values[0, x > 0], 0.3, atol=1e-5)
    assert result.measures['side'][0] > 0.4
    assert result.measures['side'][1] < -0.4
    half = (lattice.grid.coordinates[:, 0] < -14).sum() * lattice.grid.voxel_ml
    assert result.measures['total_deficit_volume'][0] == pytest.approx(half, rel=0.1)
    assert isinstance(np.load(tmp_path / 'm.npy', mmap_mode='r'), np.memmap)


def test_a_deficit_of_both_sides_has_its_volume(files, lattice, tmp_path):
    back = np.broadcast_to(np.arange(files.brain.shape[1])[:, None], files.brain.shape) < 36
    for _ in range(5):
        files.add(files.left()).add(files.right())
    files.add(np.where(back, 0.95, 0.3))
    result = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice)
    volumes = result.measures['total_deficit_volume']
    whole = back[files.inside].sum() * 0.008
    assert volumes[10] == pytest.approx(whole, rel=0.15)
    left = (files.x[files.inside] < -10).sum() * 0.008
    assert volumes[0] == pytest.approx(left, rel=0.15)


def test_one_map_alone_is_compared_with_the_cohort_of_the_model(files, lattice, tmp_path):
    for _ in range(4):
        files.add(files.left()).add(files.right())
    everyone = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice)
    alone = stack(
        files.maps[:1], files.masks[:1], tmp_path / 'n.npy', lattice=lattice,
        grid=everyone.grid, mean=np.asarray(everyone.values).mean(0),
    )  # fmt: skip
    assert alone.measures['total_deficit_volume'][0] == pytest.approx(
        everyone.measures['total_deficit_volume'][0]
    )
    assert alone.measures['total_deficit_volume'][0] > 100


def test_coverage_is_the_share_of_those_with_a_deficit_there(files, lattice, tmp_path):
    for _ in range(3):
        files.add(files.left())
    files.add(files.right())
    result = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice)
    own = result.coverage[lattice.grid.mask]
    x = lattice.grid.coordinates[:, 0]
    assert set(np.round(own[x < -20], 6)) == {0.75}
    assert set(np.round(own[x > 20], 6)) == {0.25}


def test_rarely_ill_voxels_are_left_out_on_both_sides_alike(files, lattice, tmp_path):
    z = np.broadcast_to(np.arange(files.brain.shape[2]), files.brain.shape)
    upper = z > files.brain.shape[2] // 2
    for _ in range(4):
        files.add(np.where(upper & (files.x < -3), 0.9, 0.3 + 0.001 * z / z.max()))
    result = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice, min_coverage=0.5)
    assert 0.2 < result.grid.n_voxels / lattice.grid.n_voxels < 0.75
    assert (result.grid.mirror >= 0).all()  # raises nothing and leaves no voxel without partner
    middle = np.abs(result.grid.coordinates[:, 0]) < 1
    assert middle.any()  # where a map and its mirror image are one, there is no asymmetry
    everything = stack(files.maps, files.masks, tmp_path / 'n.npy', lattice=lattice)
    assert everything.grid.n_voxels == lattice.grid.n_voxels


def test_no_covered_voxel_is_an_error_with_its_remedy(files, lattice, tmp_path):
    files.add(files.left(0.31)).add(files.right(0.31))
    with pytest.raises(InputError, match='lower --min-coverage'):
        stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice, min_coverage=0.1)


def test_what_was_not_scanned_is_missing_and_not_zero(files, lattice, tmp_path):
    mask = files.inside.copy()
    mask[:, :, -30:] = False
    files.add(files.left(), mask).add(files.left()).add(files.left())
    result = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice)
    missing = np.isnan(result.values)
    assert missing[0].mean() > 0.05
    assert not missing[1:].any()


def test_only_the_later_side_of_an_asymmetry_counts(files, lattice, tmp_path):
    signed = np.where(files.x < -10, 0.5, np.where(files.x > 10, -0.5, 0))
    files.add(signed).add(-signed)
    result = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice, asymmetry=True)
    x = result.grid.coordinates[:, 0]
    assert result.values.min() == 0
    np.testing.assert_allclose(result.values[0, x < -20], 0.5, atol=1e-5)
    np.testing.assert_allclose(result.values[0, x > 20], 0, atol=1e-5)


def test_damaged_maps_are_dropped_and_the_others_stay(files, lattice, tmp_path):
    files.add(files.left())
    files.add(files.left())
    files.add(1000 * files.left())
    files.add(np.full(files.brain.shape, 0.5))
    files.add(files.left(), np.zeros(files.brain.shape, bool))
    files.add(files.right())
    files.maps[1].write_bytes(files.maps[1].read_bytes()[:5000])
    result = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice, threads=2)
    assert list(result.measures.index) == [0, 5]
    assert result.values.shape[0] == 2
    for position, piece in {
        1: 'truncated or damaged',
        2: 'which is not such a map',
        3: 'same value everywhere',
        4: 'has no value inside the brain mask',
    }.items():
        assert piece in result.dropped[position]
        assert f'sub-{position}_' in result.dropped[position]


DAMAGES = {
    'datatype': lambda p: write_gzip(p, header={70: b'\x39\x30'}),
    'garbage in the stream': lambda p: garble(p),
    'garbage after the magic bytes': lambda p: p.write_bytes(b'\x1f\x8b\x08' + os.urandom(900)),
    'cut': lambda p: p.write_bytes(p.read_bytes()[:2000]),
    'empty': lambda p: p.write_bytes(b''),
    'huge': lambda p: write_gzip(p, header={42: b'\xff\x7f\xff\x7f\xff\x7f'}),
    'another grid': lambda p: nib.save(nib.Nifti1Image(np.ones((5, 5, 5)), np.eye(4)), p),
    'affine without numbers': lambda p: write_gzip(p, header={280: b'\0\0\xc0\x7f' * 12}),
    'a pipe': lambda p: (p.unlink(), os.mkfifo(p)),
    'gone': lambda p: p.unlink(),
}


def write_gzip(path, header) -> None:
    blob = bytearray(gzip.decompress(path.read_bytes()))
    for at, code in header.items():
        blob[at : at + len(code)] = code
    path.write_bytes(gzip.compress(bytes(blob)))


def garble(path) -> None:
    blob = bytearray(path.read_bytes())
    middle = len(blob) // 2
    blob[middle : middle + 300] = os.urandom(300)
    path.write_bytes(bytes(blob))


@pytest.mark.parametrize('which', ['maps', 'masks'])
@pytest.mark.parametrize('damage', DAMAGES)
def test_no_damage_of_one_file_stops_the_others(files, lattice, tmp_path, which, damage):
    files.add(files.left()).add(files.left()).add(files.right())
    listed = getattr(files, which)
    packed = listed[1].with_suffix('.nii.gz')
    rng = np.random.default_rng(0).uniform(0, 0.01, files.brain.shape).astype(np.float32)
    whole = nib.load(listed[1])
    nib.save(nib.Nifti1Image(np.asarray(whole.dataobj) * (1 - rng), whole.affine), packed)
    listed[1] = packed
    DAMAGES[damage](packed)
    result = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice)
    assert list(result.measures.index) == [0, 2]
    assert str(packed) in result.dropped[1]
    assert check_grids([packed], DEFAULT_SPACE).keys() <= {packed}


@settings(deadline=None, max_examples=12)
@given(resolution=st.floats(2, 10))
@example(resolution=2.0)
@example(resolution=2.4)
@example(resolution=3.6)
def test_a_resolution_is_what_its_name_says(brain, resolution):
    lattice = make_lattice(DEFAULT_SPACE, round(resolution, 1))
    np.testing.assert_allclose(lattice.grid.spacing, round(resolution, 1), atol=1e-6)
    assert (lattice.grid.mirror >= 0).mean() > 0.95
    columns = np.asarray(lattice.weights.sum(0)).ravel()
    np.testing.assert_allclose(columns, 1, atol=1e-4)
    volumes = [g.n_voxels * g.voxel_ml for g in (lattice.fine, lattice.grid)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.06)


def test_voxels_smaller_than_those_of_the_maps_are_refused():
    with pytest.raises(InputError, match='smaller than those of the maps'):
        make_lattice(DEFAULT_SPACE, 1.5)


def test_no_usable_map_is_an_error(files, lattice, tmp_path):
    files.add(np.full(files.brain.shape, 0.5))
    with pytest.raises(InputError, match='no map can be used'):
        stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice)


def test_grids_may_differ_by_rounding_only(files, tmp_path):
    rounded, shifted = (files.brain.affine.copy() for _ in range(2))
    rounded[0, 3] += 1e-5
    shifted[0, 3] += 0.5
    files.add(files.left(), affine=rounded).add(files.left(), affine=shifted)
    small = tmp_path / 'sub-9_map.nii'
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), small)
    text = tmp_path / 'sub-8_map.nii'
    text.write_text('no image')
    wrong = check_grids([*files.maps, small, text], DEFAULT_SPACE)
    assert set(wrong) == {files.maps[1], small, text}
    assert '0.5 mm off' in wrong[files.maps[1]]
    assert '4 x 5 x 6' in wrong[small]
    assert 'cannot be read as NIfTI' in wrong[text]


def test_the_mask_of_a_fit_is_used_as_it_is(files, lattice, tmp_path):
    files.add(files.left()).add(files.right())
    first = stack(files.maps, files.masks, tmp_path / 'm.npy', lattice=lattice, min_coverage=0.4)
    again = stack(
        files.maps[:1], files.masks[:1], tmp_path / 'n.npy', lattice=lattice, grid=first.grid
    )
    np.testing.assert_array_equal(again.values[0], first.values[0])
    with pytest.raises(InputError, match='not those of the maps'):
        stack(
            files.maps, files.masks, tmp_path / 'o.npy',
            lattice=make_lattice(DEFAULT_SPACE, 6.0), grid=first.grid,
        )  # fmt: skip


def test_a_resolution_is_a_bids_label():
    assert resolution_label(4.0) == '4'
    assert resolution_label(2.5) == '2p5'
