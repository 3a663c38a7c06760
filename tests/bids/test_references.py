"""References are found by name, belong to one participant each, and are not another's."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit.bids.cohort import Entry
from bids_perfdeficit.bids.references import (
    find_clot,
    find_copies,
    find_references,
    find_strangers,
    match_references,
)
from bids_perfdeficit.errors import InputError


@pytest.fixture
def touch(tmp_path):
    """Return a function that makes empty files in the dataset."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / 'data' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b'')
        return tmp_path / 'data'

    return make


def entry(participant: str, session: str = '') -> Entry:
    return Entry(participant, session, Path(), Path())


ISLES = 'derivatives/sub-{0}/ses-{1}/perfusion-maps/sub-{0}_ses-{1}_space-ncct_{2}.nii.gz'


@pytest.mark.parametrize('place', ['', 'raw_data'])
def test_tmax_of_isles24_is_found_by_name_and_nothing_else(touch, place):
    names = [
        ISLES.format(who, when, what)
        for who, when in (('stroke0010', '01'), ('strokecase0002', '0001'))
        for what in ('tmax', 'cbf', 'mtt')
    ]
    root = touch(
        *names, 'raw_data/sub-stroke0010/ses-01/sub-stroke0010_ses-01_ncct.nii.gz',
        'derivatives/out/sub-stroke0010/ct/sub-stroke0010_tmax.nii.gz',
        'derivatives/old/sub-01/ct/sub-01_space-ct_desc-reference_tmax.nii.gz',
        'derivatives/group_tmax.nii.gz', 'derivatives/sub-9/sub-9_tmax.json',
    )  # fmt: skip
    files, notes = find_references(root / place, output_dir=root / 'derivatives/out')
    assert [(f.participant, f.session) for f in files] == [
        ('stroke0010', '01'), ('strokecase0002', '0001'),
    ]  # fmt: skip
    assert notes == ('1 references name no participant: group_tmax.nii.gz',)


@pytest.mark.parametrize(
    'pattern',
    ['ctp/*/Tmax_s.nii', 'ctp/**/Tmax_s.nii', 'ctp/sub-01/Tmax_s.nii', '{root}/ctp/sub-0?/*.nii'],
)
def test_patterns_and_files_are_relative_or_absolute(touch, pattern):
    root = touch('ctp/sub-01/Tmax_s.nii', 'ctp/sub-01/notes.txt')
    (found,), _ = find_references(root, [pattern.format(root=root)])
    assert (found.participant, found.path.name) == ('01', 'Tmax_s.nii')


def test_a_folder_is_searched_for_tmax(touch):
    root = touch('ctp/a/b/sub-01_TMAX.nii.gz', 'ctp/sub-02_cbf.nii.gz')
    files, _ = find_references(root, ['ctp'])
    assert [f.participant for f in files] == ['01']


def test_no_reference_is_an_error_that_says_what_was_sought(touch):
    root = touch('derivatives/tmax.nii.gz')
    with pytest.raises(InputError, match=r'1 files match, and none names a participant'):
        find_references(root)
    with pytest.raises(InputError, match=r'no reference map was found by x/\*'):
        find_references(root, ['x/*'])


def test_each_session_gets_its_own_and_ambiguity_is_left_to_the_user(touch):
    root = touch(
        'd/sub-1/ses-01/sub-1_ses-01_tmax.nii', 'd/sub-1/ses-02/sub-1_ses-02_tmax.nii',
        'd/sub-2_run-1_tmax.nii', 'd/sub-2_run-2_tmax.nii', 'd/sub-3_tmax.nii',
        'd/sub-4_ses-9_tmax.nii', 'd/sub-5_ses-9_tmax.nii',
    )  # fmt: skip
    files, _ = find_references(root, ['d'])
    entries = [
        entry('1', '0001'), entry('1', '02'), entry('2'), entry('3', '01'), entry('4', '1'),
        entry('5'), entry('6'),
    ]  # fmt: skip
    matched, absent, several = match_references(entries, files)
    assert {key: path.name for key, path in matched.items()} == {
        ('1', '0001'): 'sub-1_ses-01_tmax.nii',
        ('1', '02'): 'sub-1_ses-02_tmax.nii',
        ('3', '01'): 'sub-3_tmax.nii',
        ('5', ''): 'sub-5_ses-9_tmax.nii',
    }
    assert set(several) == {('2', '')}
    assert '2 references match' in several['2', '']
    assert 'narrow --reference' in several['2', '']
    assert absent['4', '1'] == 'its references are of other sessions (ses-9)'
    assert absent['6', ''] == 'there is no reference'


def test_the_mask_of_the_occlusion_lies_beside_or_above(touch):
    root = touch(
        ISLES.format('a', '1', 'tmax'), ISLES.format('b', '1', 'tmax'),
        'derivatives/sub-a/ses-1/sub-a_ses-1_space-ncct_lvo-msk.nii.gz',
        'derivatives/sub-a/ses-1/sub-a_ses-1_space-ncct_cow-msk.nii.gz',
    )  # fmt: skip
    found = find_clot(root / ISLES.format('a', '1', 'tmax'))
    assert found is not None
    assert found.name == 'sub-a_ses-1_space-ncct_lvo-msk.nii.gz'
    assert find_clot(root / ISLES.format('b', '1', 'tmax')) is None


def test_equal_files_are_named_and_equal_sizes_are_not(tmp_path):
    paths = {name: tmp_path / f'{name}.nii' for name in ('sub-1', 'sub-2', 'sub-3')}
    for name, content in zip(paths, (b'aa', b'aa', b'ab'), strict=True):
        paths[name].write_bytes(content)
    reasons = find_copies({**paths, 'sub-4': tmp_path / 'gone.nii'})
    assert set(reasons) == {'sub-1', 'sub-2'}
    assert 'is the same file as the reference of sub-2' in reasons['sub-1']


def test_a_grid_of_another_patient_is_told_from_a_grid_of_its_own(tmp_path):
    def write(name: str, shift: float, shape=(6, 7, 8)) -> Path:
        affine = np.eye(4)
        affine[0, 3] = shift
        path = tmp_path / name
        nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), affine), path)
        return path

    scans = {'sub-1': write('1.nii', 1), 'sub-2': write('2.nii', 2)}
    references = {
        'sub-1': write('t1.nii', 2),  # that of sub-2
        'sub-2': write('t2.nii', 3.5, (9, 9, 9)),  # of nobody: registered
    }
    reasons = find_strangers(references, scans)
    assert set(reasons) == {'sub-1'}
    assert 'has the grid of the NCCT of sub-2 and not of sub-1' in reasons['sub-1']
    assert find_strangers(references, {'sub-2': scans['sub-2']}) == {}
