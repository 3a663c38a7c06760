"""Every layout that the field uses, as a skeleton of files, and everything that can be wrong."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from bids_perfdeficit.bids import discover
from bids_perfdeficit.bids.discovery import classify
from bids_perfdeficit.errors import InputError


@pytest.fixture
def make(tmp_path: Path):
    """Return a function that makes a dataset of the named files, in any order."""

    def build(*names: str, description: bool = True) -> Path:
        root = tmp_path / 'bids'
        root.mkdir(exist_ok=True)
        if description:
            (root / 'dataset_description.json').write_text(
                json.dumps({'Name': 'x', 'BIDSVersion': '1.10.0'})
            )
        shuffled = list(names)
        random.Random(1).shuffle(shuffled)
        for name in shuffled:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b'\x1f\x8b not an image')
        return root

    return build


def names(found) -> list[tuple[str, str]]:
    return [(pair.ncct.name, pair.cta.name) for pair in found.pairs]


LAYOUTS = {
    'BEP024': ('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_cta.nii.gz'),
    'upper-case folder': ('sub-01/CT/sub-01_ct.nii.gz', 'sub-01/CT/sub-01_cta.nii.gz'),
    'anat': ('sub-01/anat/sub-01_ct.nii.gz', 'sub-01/anat/sub-01_cta.nii.gz'),
    'no folder': ('sub-01/sub-01_ncct.nii.gz', 'sub-01/sub-01_cta.nii.gz'),
    'upper-case suffix': ('sub-01/ct/sub-01_CT.nii.gz', 'sub-01/ct/sub-01_CTA.nii'),
    'NCCT': ('sub-01/ct/sub-01_NCCT.nii.gz', 'sub-01/ct/sub-01_CTA.nii.gz'),
    'contrast entity': ('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_ce-iodine_ct.nii.gz'),
    'acq-angio': ('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_acq-angio_ct.nii.gz'),
    'acq-arterial': ('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_acq-arterial_ct.nii.gz'),
    'acq-CTA': ('sub-01/anat/sub-01_CT.nii.gz', 'sub-01/anat/sub-01_acq-CTA_CT.nii.gz'),
    'session': (
        'sub-01/ses-a/ct/sub-01_ses-a_ct.nii.gz',
        'sub-01/ses-a/ct/sub-01_ses-a_cta.nii.gz',
    ),
    'gantry tilt': (
        'sub-01/ct/sub-01_ct_Tilt_Eq_1.nii.gz',
        'sub-01/ct/sub-01_cta_Eq_1.nii.gz',
    ),
    'copies only': ('sub-01/ct/sub-01_ctb.nii.gz', 'sub-01/ct/sub-01_ctaa.nii.gz'),
}


@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
def test_layout_is_understood(make, layout):
    found = discover(make(*layout))
    assert [(str(p.ncct), str(p.cta)) for p in found.pairs] == [
        tuple(str(make() / name) for name in layout)
    ]
    assert not found.problems


@pytest.mark.parametrize('place', ['.', 'raw_data'])
def test_isles24_as_released(make, place):
    names_ = [
        f'raw_data/sub-stroke000{n}/ses-01/sub-stroke000{n}_ses-01_{suffix}.nii.gz'
        for n in (1, 2)
        for suffix in ('ncct', 'cta', 'ctp')
    ]
    names_ += [
        'raw_data/sub-stroke0001/ses-02/sub-stroke0001_ses-02_dwi.nii.gz',
        'derivatives/sub-stroke0001/ses-01/sub-stroke0001_ses-01_space-ncct_cta.nii.gz',
        'phenotype/sub-stroke0001/ses-01/x.csv',
    ]
    found = discover(make(*names_, description=False) / place)
    assert [p.prefix for p in found.pairs] == [
        'sub-stroke0001_ses-01',
        'sub-stroke0002_ses-01',
    ]
    assert found.pairs[0].folder == 'sub-stroke0001/ses-01'
    assert not found.problems
    assert any('no dataset_description.json' in note for note in found.notes)
    assert any('raw_data/' in note for note in found.notes) == (place == '.')


def test_derivatives_and_sourcedata_are_not_searched(make):
    root = make(
        'sub-01/ct/sub-01_ct.nii.gz',
        'sub-01/ct/sub-01_cta.nii.gz',
        'derivatives/x/sub-01/ct/sub-01_ct.nii.gz',
        'sourcedata/sub-02/ct/sub-02_ct.nii.gz',
        'code/sub-03_ct.nii.gz',
        'sub-01/ct/._sub-01_ct.nii.gz',
        'sub-01/.git/sub-01_ct.nii.gz',
    )
    found = discover(root)
    assert len(found.pairs) == 1
    assert not found.problems
    assert not found.pairs[0].notes
    assert not found.notes


def test_tilt_corrected_copy_is_preferred_and_told(make):
    root = make(
        *(f'sub-01/ct/sub-01_ct{c}.nii.gz' for c in ('', '_Eq_1', '_Tilt', '_Tilt_Eq_1', '_ROI1')),
        'sub-01/ct/sub-01_cta.nii.gz',
        'sub-01/ct/sub-01_ctaa.nii.gz',
    )
    found = discover(root)
    assert names(found) == [('sub-01_ct_Tilt_Eq_1.nii.gz', 'sub-01_cta.nii.gz')]
    ncct, cta = found.pairs[0].notes
    assert 'gantry tilt' in ncct
    assert 'it is the original' in cta
    assert '--bids-filter-file' in cta


def test_tilt_corrected_second_run_does_not_win_over_the_first_run(make):
    root = make(
        'sub-01/ct/sub-01_run-1_ct.nii.gz',
        'sub-01/ct/sub-01_run-2_ct_Tilt_Eq_1.nii.gz',
        'sub-01/ct/sub-01_cta.nii.gz',
    )
    assert names(discover(root)) == [('sub-01_run-1_ct.nii.gz', 'sub-01_cta.nii.gz')]


@pytest.mark.parametrize(
    ('better', 'worse', 'why'),
    [
        ('run-1_cta', 'run-2_cta', 'first run'),
        ('run-2_cta', 'run-10_cta', 'first run'),
        ('acq-thin_cta', 'acq-thick_cta', 'its name says thin'),
        ('rec-thin_cta', 'cta', 'thin'),
        ('cta', 'acq-venous_cta', 'the name of the other says venous'),
        ('cta', 'rec-mip_cta', 'the name of the other says mip'),
        ('cta', 'acq-b_cta', 'its name is plain'),
    ],
)
def test_of_two_ctas_one_is_taken_and_told_why(make, better, worse, why):
    root = make(
        'sub-01/ct/sub-01_ct.nii.gz',
        f'sub-01/ct/sub-01_{worse}.nii.gz',
        f'sub-01/ct/sub-01_{better}.nii.gz',
    )
    found = discover(root)
    assert names(found) == [('sub-01_ct.nii.gz', f'sub-01_{better}.nii.gz')]
    assert not found.problems
    note = found.pairs[0].notes[0]
    assert why in note
    assert worse in note


def test_second_copy_of_a_ct_that_reads_as_cta_is_doubted(make):
    root = make(*(f'sub-01/ct/sub-01_{s}.nii.gz' for s in ('ct', 'cta', 'ctb')))
    (doubt,) = discover(root).pairs[0].doubts
    assert '"a" copy' in doubt


def test_two_sessions_give_two_pairs_in_natural_order(make):
    files = [
        f'sub-{s}/ses-{x}/ct/sub-{s}_ses-{x}_{suffix}.nii.gz'
        for s in ('10', '2')
        for x in ('2', '10')
        for suffix in ('ct', 'cta')
    ]
    found = discover(make(*files))
    assert [p.prefix for p in found.pairs] == [
        'sub-2_ses-2', 'sub-2_ses-10', 'sub-10_ses-2', 'sub-10_ses-10',
    ]  # fmt: skip


def test_follow_up_without_cta_is_no_problem(make):
    root = make(
        'sub-01/ses-1/ct/sub-01_ses-1_ct.nii.gz',
        'sub-01/ses-1/ct/sub-01_ses-1_cta.nii.gz',
        'sub-01/ses-2/ct/sub-01_ses-2_ct.nii.gz',
        'sub-01/ses-3/anat/sub-01_ses-3_T1w.nii.gz',
    )
    found = discover(root)
    assert [p.prefix for p in found.pairs] == ['sub-01_ses-1']
    assert not found.problems
    assert found.notes == (
        'left out: sub-01_ses-2: no CTA; add sub-01/ses-2/ct/sub-01_ses-2_cta.nii.gz.',
    )
    asked = discover(root, session_labels=['ses-2'])
    assert [p.session for p in asked.problems] == ['2']


PROBLEMS = {
    'no CTA': (['ct/sub-01_ct.nii.gz'], 'no CTA; add sub-01/ct/sub-01_cta.nii.gz.'),
    'no NCCT': (['ct/sub-01_cta.nii.gz'], 'no NCCT; add sub-01/ct/sub-01_ct.nii.gz.'),
    'MR only': (['anat/sub-01_T1w.nii.gz'], 'no NCCT and no CTA; expected, for example'),
    'CTP only': (['ct/sub-01_ctp.nii.gz', 'ct/sub-01_acq-ctp_ct.nii.gz'], 'no NCCT and no CTA'),
    'DICOM': (['ct/IM0001.dcm'], 'DICOM files only; convert them with dcm2niix'),
    'no images': (['ct/readme.txt'], 'no images in sub-01'),
    'free names': (
        ['HeadCT.nii.gz', 'ct/sub-01_cta.nii.gz'],
        'no NCCT, but sub-01/HeadCT.nii.gz looks like CT; rename it',
    ),
    'other folder': (
        ['x/sub-01_ct.nii.gz', 'ct/sub-01_cta.nii.gz'],
        'no NCCT, but sub-01/x/sub-01_ct.nii.gz looks like CT',
    ),
    'other format': (
        ['ct/sub-01_ct.nrrd', 'ct/sub-01_cta.nii.gz'],
        'no NCCT, but sub-01/ct/sub-01_ct.nrrd looks like CT',
    ),
    'name of another': (
        ['ct/sub-02_ct.nii.gz', 'ct/sub-01_cta.nii.gz'],
        'no NCCT, but sub-01/ct/sub-02_ct.nii.gz looks like CT',
    ),
    'two sessions': (
        ['ses-1/ct/sub-01_ses-1_ct.nii.gz', 'ses-2/ct/sub-01_ses-2_cta.nii.gz'],
        '(the NCCT of sub-01_ses-1 must be in the same session; if both are of one day, '
        '--pair-sessions pairs them)',
    ),
}


@pytest.mark.parametrize(('files', 'reported'), PROBLEMS.values(), ids=PROBLEMS)
def test_broken_participant_is_told_with_the_fix_and_the_others_go_on(make, files, reported):
    root = make(
        'sub-09/ct/sub-09_ct.nii.gz',
        'sub-09/ct/sub-09_cta.nii.gz',
        *(f'sub-01/{name}' for name in files),
    )
    found = discover(root)
    assert [p.participant for p in found.pairs] == ['09']
    assert any(reported in str(problem) for problem in found.problems), found.problems
    assert all(p.participant == '01' and str(p).startswith('sub-01') for p in found.problems)


def test_label_with_an_underscore_is_told(make):
    root = make('sub-a_b/ct/sub-a_b_ct.nii.gz', 'sub-a_b/ct/sub-a_b_cta.nii.gz')
    (problem,) = discover(root).problems
    assert 'other characters' in problem.reason


@pytest.mark.parametrize(
    ('spoil', 'reported'),
    [
        (lambda p: p.write_bytes(b''), 'is empty (0 bytes)'),
        (
            lambda p: (p.unlink(), p.symlink_to('../../.git/annex/objects/a/b/SHA.nii.gz')),
            'bids && datalad get sub-01/ct/sub-01_cta.nii.gz.',
        ),
        (lambda p: p.write_text('/annex/objects/SHA-1'), 'datalad get sub-01/ct/sub-01_cta'),
        (lambda p: p.write_text('version https://git-lfs.github.com'), 'git lfs pull'),
        (lambda p: (p.unlink(), p.symlink_to('/gone/away.nii.gz')), 'a link to /gone/away'),
    ],
    ids=['empty', 'annex link', 'annex pointer', 'lfs pointer', 'link'],
)
def test_file_without_content_is_told_with_the_command_to_run(make, spoil, reported):
    root = make('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_cta.nii.gz')
    path = root / 'sub-01/ct/sub-01_cta.nii.gz'
    spoil(path)
    found = discover(root)
    assert not found.pairs
    (problem,) = found.problems
    assert reported in str(problem)
    assert problem.path == path


def test_annex_link_with_content_is_fine(make):
    root = make('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_cta.nii.gz', '.git/annex/a.nii.gz')
    path = root / 'sub-01/ct/sub-01_cta.nii.gz'
    path.unlink()
    path.symlink_to('../../.git/annex/a.nii.gz')
    assert discover(root).pairs[0].cta == path


def test_linked_participant_folder_is_followed(make, tmp_path):
    root = make('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_cta.nii.gz')
    (root / 'sub-01').rename(tmp_path / 'elsewhere')
    (root / 'sub-01').symlink_to(tmp_path / 'elsewhere')
    assert discover(root).pairs[0].ncct == root / 'sub-01/ct/sub-01_ct.nii.gz'


def test_labels_select_with_or_without_prefix_and_unknown_ones_are_told(make):
    root = make(
        *(f'sub-{n:02d}/ct/sub-{n:02d}_{s}.nii.gz' for n in range(1, 13) for s in ('ct', 'cta'))
    )
    found = discover(root, participant_labels=['sub-02', '05', '5', 'x'])
    assert [p.participant for p in found.pairs] == ['02', '05']
    assert [str(p) for p in found.problems] == [
        'participant sub-5 is not in the dataset; '
        'there are 05, 01, 02, 03, 04, 06, 07, 08 and 4 more.',
        'participant sub-x is not in the dataset; '
        'there are 01, 02, 03, 04, 05, 06, 07, 08 and 4 more.',
    ]


def test_unknown_session_is_told(make):
    root = make('sub-01/ses-a/ct/sub-01_ses-a_ct.nii.gz')
    found = discover(root, session_labels=['b'])
    assert [str(p) for p in found.problems] == ['session ses-b is not in the dataset; there is a.']


def test_stray_files_beside_a_complete_pair_are_one_note(make):
    root = make(
        'sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_cta.nii.gz', 'sub-01/CT_thin.nii.gz'
    )
    found = discover(root)
    assert len(found.pairs) == 1
    assert found.notes == (
        '1 file(s) look like CT in a name or folder that is not understood, and are left out: '
        'sub-01/CT_thin.nii.gz',
    )


FILTERS = [
    ({'cta': {'acquisition': 'b'}}, 'sub-01_acq-b_cta.nii.gz'),
    ({'cta': {'acquisition': ['x', 'b']}}, 'sub-01_acq-b_cta.nii.gz'),
    ({'cta': {'run': 2}}, 'sub-01_run-02_cta.nii.gz'),
    ({'cta': {'acquisition': None, 'run': None}}, 'sub-01_cta.nii.gz'),
    ({'cta': {'acquisition': '*'}}, 'sub-01_acq-a_cta.nii.gz'),
    ({'cta': {'suffix': 'odd', 'acquisition': 'vessel'}}, 'sub-01_acq-vessel_odd.nii.gz'),
]


@pytest.mark.parametrize(('filters', 'expected'), FILTERS)
def test_filter_chooses_the_cta(make, filters, expected):
    root = make(
        'sub-01/ct/sub-01_ct.nii.gz',
        'sub-01/ct/sub-01_cta.nii.gz',
        'sub-01/ct/sub-01_acq-a_cta.nii.gz',
        'sub-01/ct/sub-01_acq-b_cta.nii.gz',
        'sub-01/ct/sub-01_run-02_cta.nii.gz',
        'sub-01/odd/sub-01_acq-vessel_odd.nii.gz',
    )
    assert names(discover(root, filters=filters)) == [('sub-01_ct.nii.gz', expected)]


def test_file_named_by_a_filter_for_one_role_is_not_taken_for_the_other(make):
    root = make('sub-01/ct/sub-01_acq-one_ct.nii.gz', 'sub-01/ct/sub-01_acq-two_ct.nii.gz')
    filters = {'cta': {'suffix': 'ct', 'acquisition': 'one'}}
    assert names(discover(root, filters=filters)) == [
        ('sub-01_acq-two_ct.nii.gz', 'sub-01_acq-one_ct.nii.gz')
    ]


def test_one_file_for_both_roles_is_told(make):
    root = make('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_cta.nii.gz')
    found = discover(root, filters={role: {'suffix': 'ct'} for role in ('ncct', 'cta')})
    assert not found.pairs
    assert 'for NCCT and CTA alike' in str(found.problems[0])


@pytest.mark.parametrize(
    ('filters', 'reported'),
    [
        ({'tlw': {}}, 'ncct, cta, map'),
        ({'cta': {'run': {}}}, 'give a label'),
        ({'cta': {'run': True}}, 'give a label'),
        ({'cta': {'acq': 'x'}}, "perhaps 'acquisition' is meant"),
        ({'cta': ['x']}, 'not a table'),
    ],
)
def test_senseless_filter_is_an_input_error(make, filters, reported):
    root = make('sub-01/ct/sub-01_ct.nii.gz')
    with pytest.raises(InputError) as caught:
        discover(root, filters=filters)
    assert reported in str(caught.value)


def test_filter_that_fits_nothing_is_told(make):
    root = make('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_cta.nii.gz')
    (problem,) = discover(root, filters={'cta': {'run': 7}}).problems
    assert 'correct the filter of the CTA' in str(problem)


def test_folder_without_participants_is_an_input_error(tmp_path):
    for folder, reported in ((tmp_path, 'no participant'), (tmp_path / 'no', 'no such folder')):
        with pytest.raises(InputError) as caught:
            discover(folder)
        assert reported in str(caught.value)


def test_folder_of_one_participant_is_an_input_error(make):
    root = make('sub-01/ct/sub-01_ct.nii.gz')
    with pytest.raises(InputError) as caught:
        discover(root / 'sub-01')
    assert '--participant-label 01' in str(caught.value)


def test_dataset_below_a_folder_called_sub_something(tmp_path):
    """Pybids' own patterns take the participant from the first `sub-` of the absolute path."""
    root = tmp_path / 'sub-study/ses-x/acq-cta_bids'
    for suffix in ('ct', 'cta'):
        path = root / f'sub-01/ct/sub-01_{suffix}.nii.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')
    (pair,) = discover(root).pairs
    assert (pair.participant, pair.session, pair.ncct.name) == ('01', None, 'sub-01_ct.nii.gz')


@pytest.mark.parametrize(
    ('entities', 'role'),
    [
        ({'suffix': 'ct'}, 'ncct'),
        ({'suffix': 'ct', 'ceagent': 'none'}, 'ncct'),
        ({'suffix': 'ct', 'ceagent': 'iodine'}, 'cta'),
        ({'suffix': 'NCCT'}, 'ncct'),
        ({'suffix': 'CTA', 'acquisition': 'thin'}, 'cta'),
        ({'suffix': 'ctp'}, 'other'),
        ({'suffix': 'T1w'}, None),
        ({}, None),
    ],
)
def test_role_by_name(entities, role):
    assert classify(entities) == role


def test_importing_the_package_loads_neither_pybids_nor_pandas():
    code = (
        'import sys, bids_perfdeficit.bids as bids; bids.discover; bids.output_path; '
        "assert not {'bids', 'pandas', 'nibabel'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_hybrid_dataset(shared_data):
    found = discover(shared_data / 'hybrid')
    assert names(found) == [('sub-hybrid01_ct.nii.gz', 'sub-hybrid01_cta.nii.gz')]
    assert not found.problems
    assert not found.pairs[0].notes


@pytest.mark.parametrize('names_', [('sub-01_ct.nii.gz', 'sub-01_cta.nii.gz'), ('p7_ct.nii.gz',)])
def test_images_without_folders_get_a_line_that_says_where_they_belong(make, names_):
    with pytest.raises(InputError) as caught:
        discover(make(*names_))
    assert names_[0] in str(caught.value)
    assert 'move or link the images of each patient' in str(caught.value)
    assert 'sub-01/ct/sub-01_cta.nii.gz' in str(caught.value)


def test_images_beside_the_folders_cost_their_own_participant_only(make):
    root = make(
        'sub-01/ct/sub-01_ct.nii.gz',
        'sub-01/ct/sub-01_cta.nii.gz',
        'sub-01_ct.nii.gz',
        'sub-02_ct.nii.gz',
        'sub-02_cta.nii.gz',
        'sub-01.html',
    )
    found = discover(root)
    assert names(found) == [('sub-01_ct.nii.gz', 'sub-01_cta.nii.gz')]
    (problem,) = found.problems
    assert problem.participant == '02'
    assert 'sub-02_ct.nii.gz, sub-02_cta.nii.gz lie beside the folders sub-*' in str(problem)
    assert 'move or link the images into sub-02/ct/' in str(problem)
    assert [note for note in found.notes if 'sub-01_ct.nii.gz lies beside' in note]
    assert not discover(root, participant_labels=['01']).problems
    (asked,) = discover(root, participant_labels=['02']).problems
    assert asked == problem


@pytest.mark.parametrize('place', ['derivatives', 'derivatives/registered'])
@pytest.mark.parametrize('raw', ['', 'raw_data/'])
def test_a_cta_in_derivatives_gets_the_line_that_links_it(make, place, raw):
    cta = f'{place}/sub-01/ses-1/sub-01_ses-1_space-ncct_cta.nii.gz'
    root = make(f'{raw}sub-01/ses-1/sub-01_ses-1_ct.nii.gz', cta)
    (problem,) = discover(root).problems
    assert f'no CTA, but {root / cta} could be one' in str(problem)
    command = problem.fix.partition(': ')[2]
    subprocess.run(['sh', '-c', command], check=True)
    (pair,) = discover(root).pairs
    assert pair.cta.resolve() == (root / cta).resolve()


def test_keys_of_other_apps_in_a_filter_are_a_note(make):
    root = make('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_cta.nii.gz')
    filters = {'bold': {'task': 'rest'}, 'T1w': {'datatype': 'anat'}, 'cta': {'datatype': 'ct'}}
    found = discover(root, filters=filters)
    assert len(found.pairs) == 1
    (note,) = found.notes
    assert note.startswith('the keys T1w, bold of the filter file belong to other BIDS Apps')


def test_the_session_that_all_keys_of_other_apps_name_is_taken(make):
    root = make(*(
        f'sub-01/ses-{s}/ct/sub-01_ses-{s}_{kind}.nii.gz' for s in 'AB' for kind in ('ct', 'cta')
    ))  # fmt: skip
    of_babs = {'fmap': {'datatype': 'fmap'}, 'bold': {'session': 'B'}, 't1w': {'session': 'ses-B'}}
    found = discover(root, filters=of_babs)
    assert [str(pair.cta.name) for pair in found.pairs] == ['sub-01_ses-B_cta.nii.gz']
    assert 'all of them name session B' in found.notes[0]
    # the app's own keys win, and sessions that differ select nothing
    for more in ({'cta': {'session': ['A', 'B']}}, {'flair': {'session': 'A'}}):
        assert len(discover(root, filters={**of_babs, **more}).pairs) == 2


def test_a_number_in_a_filter_is_compared_as_one_only_when_it_is_one(make):
    root = make('sub-01/ct/sub-01_ct.nii.gz', 'sub-01/ct/sub-01_run-02_cta.nii.gz')
    assert len(discover(root, filters={'cta': {'run': '2'}}).pairs) == 1
    assert not discover(root, filters={'cta': {'run': '²'}}).pairs
