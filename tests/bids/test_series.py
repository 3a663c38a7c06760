"""Series are chosen by words and sidecars; what nothing tells apart is a doubt."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_perfdeficit.bids import ScanPair, discover
from bids_perfdeficit.bids.series import CRITERIA, classify, read_time, read_words

DOCS = Path(__file__).parents[2] / 'docs'


@pytest.fixture
def find(tmp_path: Path):
    """Return a function that makes one participant's files and returns the pair."""

    def build(*names: str, **sidecars: object) -> ScanPair:
        folder = tmp_path / 'bids/sub-01/ct'
        folder.mkdir(parents=True)
        for name in names:
            (folder / f'sub-01_{name}.nii.gz').write_bytes(b'\x1f\x8b')
        for name, content in sidecars.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / f'sub-01_{name.replace("__", "-")}.json').write_text(text)
        (pair,) = discover(tmp_path / 'bids').pairs
        return pair

    return build


def taken(pair: ScanPair) -> tuple[str, str]:
    """Return which files were chosen, without participant and extension."""
    ncct, cta = (re.sub(r'^sub-01_|\.nii\.gz$', '', p.name) for p in (pair.ncct, pair.cta))
    return ncct, cta


#: The better NCCT, and the worse one beside it.
NCCT = [
    ('acq-noncontrast', 'acq-contrast'),
    ('acq-nonContrast', 'acq-postContrast'),
    ('acq-NECT', 'acq-CECT'),
    ('acq-plain', 'acq-CE'),
    ('acq-nativ', 'acq-KM'),
    ('acq-pre', 'acq-post'),
    ('acq-unenhanced', 'acq-enhanced'),
    ('acq-noncontrast', ''),
    ('ce-none', 'acq-venous'),
    ('', 'acq-withcontrast'),
    ('', 'acq-C+'),
    ('', 'rec-VNC'),
    ('', 'rec-virtualNonContrast'),
    ('', 'rec-mono70kev'),
    ('', 'rec-bone'),
    ('', 'rec-boneplus'),
    ('', 'acq-lungfilter'),
    ('rec-H31s', 'rec-H60s'),
    ('rec-Hr38', 'rec-Hr64'),
    ('rec-standard', 'rec-sharp'),
    ('rec-soft', ''),
    ('', 'acq-scout'),
    ('', 'acq-topogram'),
    ('', 'acq-surview'),
    ('acq-wholehead', 'acq-scanogram'),
    ('', 'acq-localizer'),
    ('', 'acq-doseReport'),
    ('acq-admission', 'acq-24h'),
    ('acq-baseline', 'acq-followup'),
    ('', 'acq-24h'),
    ('', 'acq-72hours'),
    ('', 'acq-day7'),
    ('', 'acq-90d'),
    ('acq-0h', 'acq-48h'),
    ('', 'acq-postEVT'),
    ('', 'acq-postop'),
    ('', 'acq-control'),
    ('acq-head', 'acq-neck'),
    ('acq-brain', 'acq-cspine'),
    ('acq-brain', ''),
    ('', 'acq-chest'),
    ('', 'acq-motion'),
    ('acq-thin', ''),
    ('acq-1mm', 'acq-5mm'),
    ('acq-0p625mm', 'acq-2p5mm'),
    ('', 'rec-cor'),
    ('', 'rec-sagMPR'),
    ('', 'rec-3d'),
    ('', 'desc-skullstripped'),
    ('run-1', 'run-2'),
    ('run-2', 'run-10'),
    ('acq-admission_rec-bone', 'acq-24h_rec-soft'),  # when comes before the kernel
]

CTA = [
    ('', 'acq-bolus'),
    ('', 'acq-smartprep'),
    ('', 'acq-SureStart'),
    ('', 'acq-testbolus'),
    ('', 'acq-monitoring'),
    ('', 'acq-timing'),
    ('rec-standard', 'rec-mono40kev'),
    ('', 'rec-40keV'),
    ('', 'rec-VMI'),
    ('rec-standard', 'rec-iodine'),
    ('', 'rec-iodineMap'),
    ('', 'rec-VNC'),
    ('', 'rec-DSA'),
    ('', 'desc-subtracted'),
    ('', 'rec-boneRemoved'),
    ('', 'rec-MIP'),
    ('rec-1mm', 'rec-MIP10mm'),
    ('rec-3mm', 'rec-MIP1mm'),
    ('', 'rec-vrt'),
    ('', 'acq-equilibrium'),
    ('', 'acq-venous'),
    ('', 'acq-delayed'),
    ('acq-arterial', 'acq-delayed'),
    ('acq-arterial', 'acq-venous'),
    ('acq-phase1', 'acq-phase2'),
    ('', 'acq-ph3'),
    ('acq-peakarterial', 'acq-late'),
    ('', 'acq-noncontrast'),
    ('', 'acq-neck'),
    ('', 'acq-carotids'),
    ('acq-wholehead', 'acq-smartprep'),
    ('acq-head', 'acq-headneck'),
    ('acq-headneck', 'acq-neck'),
    ('', 'acq-followup'),
    ('acq-thin', 'acq-thick'),
    ('rec-Hv36', 'rec-Br59'),
    ('acq-neck', 'rec-iodine'),  # values come before the body part
    ('rec-bone', 'acq-venous'),  # the phase comes before the kernel
]


def name(entities: str, suffix: str) -> str:
    return f'{entities}_{suffix}' if entities else suffix


@pytest.mark.parametrize(('better', 'worse'), NCCT)
def test_of_two_nccts_the_better_is_taken_by_its_words(find, better, worse):
    pair = find(name(better, 'ct'), name(worse, 'ct'), 'cta')
    assert taken(pair) == (name(better, 'ct'), 'cta')
    assert not pair.doubts


@pytest.mark.parametrize(('better', 'worse'), CTA)
def test_of_two_ctas_the_better_is_taken_by_its_words(find, better, worse):
    pair = find('ct', name(better, 'cta'), name(worse, 'cta'))
    assert taken(pair) == ('ct', name(better, 'cta'))
    assert any(word in pair.notes[0] for word in ('because its', 'because the', 'because it'))


@pytest.mark.parametrize(
    'names',
    [
        ('acq-foo_ct', 'acq-bar_ct', 'cta'),
        ('ct', 'acq-foo_cta', 'acq-bar_cta'),
        ('ct', 'acq-80kv_cta', 'acq-140kv_cta', 'acq-100kv_cta'),
        ('acq-bone_rec-x_ct', 'acq-bone_rec-y_ct', 'cta'),
        ('ct', 'CT', 'cta'),
        ('ctb', 'ctc', 'cta'),
        ('ct', 'ctaa', 'ctab'),
    ],
)
def test_what_nothing_tells_apart_is_a_doubt_that_names_all(find, names):
    pair = find(*names)
    doubt = pair.doubts[0]
    role = [
        n for n in names if (n.lower().endswith('ct') or n in ('ctb', 'ctc')) == ('cta' in names)
    ]
    assert doubt.startswith(f'{len(role)} files could be the ')
    assert all(f'sub-01_{n}.nii.gz' in doubt for n in role)
    assert '--bids-filter-file' in doubt


def test_equally_poor_files_are_two_doubts(find):
    poor, tie = find('ct', 'rec-40kev_cta', 'rec-70kev_cta').doubts
    assert 'does not hold plain CT values' in poor
    assert 'rec-40kev' in tie
    assert 'rec-70kev' in tie


@pytest.mark.parametrize('names', [('acq-foo_ct', 'acq-bar_ct', 'cta'), ('ct', 'rec-mip_cta')])
def test_a_filter_that_names_the_file_leaves_no_doubt(find, names):
    pair = find(*names)
    assert pair.doubts
    filters = (
        {'ncct': {'acquisition': 'bar'}} if 'cta' in names else {'cta': {'reconstruction': 'mip'}}
    )
    (again,) = discover(pair.ncct.parents[2], filters=filters).pairs
    assert not again.doubts


@pytest.mark.parametrize(
    ('poor', 'why'),
    [
        ('acq-smartprep_cta', 'is not a diagnostic series'),
        ('rec-iodine_cta', 'does not hold plain CT values'),
        ('rec-mip_cta', 'does not hold plain CT values'),
        ('acq-noncontrast_cta', 'contradicts'),
        ('acq-venous_cta', 'not of the arterial phase'),
        ('acq-neck_cta', 'another part of the body'),
    ],
)
def test_the_only_cta_is_taken_and_doubted_when_its_name_speaks_against_it(find, poor, why):
    pair = find('ct', poor)
    assert taken(pair) == ('ct', poor)
    (doubt,) = pair.doubts
    assert why in doubt


@pytest.mark.parametrize(
    'word', ['acq-contrast', 'acq-CECT', 'acq-post', 'acq-venous', 'rec-iodine']
)
def test_ct_with_contrast_is_offered_as_the_cta_when_there_is_none(find, word):
    pair = find('ct', f'{word}_ct')
    assert taken(pair) == ('ct', f'{word}_ct')
    assert 'not called an angiogram' in pair.doubts[0]


@pytest.mark.parametrize(
    ('poor', 'better'),
    [('rec-VNC_cta', True), ('acq-smartprep_cta', True), ('rec-mip_cta', True),
     ('acq-venous_cta', False), ('acq-neck_cta', False), ('acq-foo_cta', False)],
)  # fmt: skip
def test_ct_with_contrast_is_offered_beside_a_cta_that_cannot_be_one(find, poor, better):
    pair = find('ct', poor, 'acq-contrast_ct')
    assert taken(pair) == ('ct', 'acq-contrast_ct' if better else poor)
    assert bool(pair.doubts) == (poor != 'acq-foo_cta')


def test_ct_with_contrast_is_never_the_ncct(tmp_path):
    folder = tmp_path / 'sub-01/ct'
    folder.mkdir(parents=True)
    for suffix in ('acq-contrast_ct', 'cta'):
        (folder / f'sub-01_{suffix}.nii.gz').write_bytes(b'\x1f\x8b')
    (problem,) = discover(tmp_path).problems
    assert 'no NCCT' in str(problem)


SIDECARS = {
    'description': ({'SeriesDescription': 'HEAD W/O CONTRAST 5.0 H31s'},
                    {'SeriesDescription': 'HEAD POST CONTRAST'}),
    'contrast agent': ({}, {'ContrastBolusAgent': 'Iomeron 400'}),
    'no agent': ({'ContrastBolusAgent': 'NONE'}, {'ContrastBolusAgent': 'APPLIED'}),
    'kernel': ({'ConvolutionKernel': 'H31s'}, {'ConvolutionKernel': 'H60s'}),
    'kernel of GE': ({'ConvolutionKernel': 'STANDARD'}, {'ConvolutionKernel': 'BONEPLUS'}),
    'list of kernels': ({'ConvolutionKernel': ['Hr40', '3']},
                        {'ConvolutionKernel': ['Hr64', '3']}),
    'localizer': ({'ImageType': ['ORIGINAL', 'PRIMARY', 'AXIAL']},
                  {'ImageType': ['ORIGINAL', 'PRIMARY', 'LOCALIZER']}),
    'reformatted': ({'ImageType': ['ORIGINAL', 'PRIMARY', 'AXIAL']},
                    {'ImageType': ['DERIVED', 'SECONDARY', 'MPR']}),
    'thickness': ({'SliceThickness': 1.0}, {'SliceThickness': 5}),
    'time': ({'AcquisitionTime': '10:02:03.5'}, {'AcquisitionTime': '10:09:00.000'}),
    'compact time': ({'AcquisitionTime': '095959.123'}, {'AcquisitionTime': '100000.1'}),
    'midnight': ({'AcquisitionDateTime': '2024-01-01T23:58:00'},
                 {'AcquisitionDateTime': '2024-01-02T00:03:00'}),
}  # fmt: skip


@pytest.mark.parametrize(('better', 'worse'), SIDECARS.values(), ids=list(SIDECARS))
@pytest.mark.parametrize('order', ['ab', 'ba'])
def test_sidecars_decide_where_names_tie(find, better, worse, order):
    pair = find(
        'acq-a_ct', 'acq-b_ct', 'cta',
        **{f'acq__{order[0]}_ct': better, f'acq__{order[1]}_ct': worse},
    )  # fmt: skip
    assert taken(pair) == (f'acq-{order[0]}_ct', 'cta')
    assert not pair.doubts


def test_the_letters_of_dcm2niix_are_settled_by_sidecars_too(find):
    pair = find('ctc', 'ctb', 'cta', ctb={'ConvolutionKernel': 'H60s'},
                ctc={'ConvolutionKernel': 'H31s'})  # fmt: skip
    assert pair.ncct.name == 'sub-01_ctc.nii.gz'


def test_a_sidecar_is_not_read_where_the_names_decide(find):
    pair = find('acq-noncontrast_ct', 'acq-other_ct', 'cta',
                acq__noncontrast_ct={'ContrastBolusAgent': 'Iomeron'})  # fmt: skip
    assert taken(pair)[0] == 'acq-noncontrast_ct'


@pytest.mark.parametrize(
    ('content', 'reported'),
    [
        ('{', 'not valid JSON'),
        ('[' * 100_000, 'nested too deeply'),
        ('[]', 'holds no JSON object'),
        (' ' * 5_000_000, 'at most'),
        (os.mkfifo, 'is a pipe'),
        (os.mkdir, 'is a folder'),
        (lambda p: p.write_bytes(b'{"SeriesDescription": "caf\xe9"}'), 'not UTF-8'),
        (lambda p: p.symlink_to(p.name), 'Too many levels'),
    ],
)
def test_a_sidecar_that_cannot_be_read_is_a_note_and_the_tie_a_doubt(tmp_path, content, reported):
    folder = tmp_path / 'sub-01/ct'
    folder.mkdir(parents=True)
    for suffix in ('acq-a_ct', 'acq-b_ct', 'cta'):
        (folder / f'sub-01_{suffix}.nii.gz').write_bytes(b'\x1f\x8b')
    path = folder / 'sub-01_acq-a_ct.json'
    if isinstance(content, str):
        path.write_text(content)
    else:
        content(path)
    (pair,) = discover(tmp_path).pairs
    assert any(
        'the sidecar of sub-01_acq-a_ct.nii.gz is ignored' in n and reported in n
        for n in pair.notes
    )
    assert len(pair.doubts) == 1


@pytest.mark.parametrize(
    'content',
    [
        {'SeriesDescription': None, 'ImageType': {'a': 1}, 'SliceThickness': 'thin'},
        {'SliceThickness': float('nan'), 'AcquisitionTime': 99, 'ConvolutionKernel': [[]]},
        {'SliceThickness': -1, 'AcquisitionTime': '25:61:00', 'SeriesDescription': 'x' * 99_999},
        {'SliceThickness': 10**400, 'ContrastBolusAgent': ''},
    ],
)
def test_a_sidecar_with_odd_values_says_nothing(find, content):
    pair = find('acq-a_ct', 'acq-b_ct', 'cta', acq__a_ct=content, acq__b_ct=content)
    assert len(pair.doubts) == 1


@pytest.mark.parametrize(
    ('text', 'criterion', 'words'),
    [
        ('postContrastHead', 'contrast', ('postcontrast',)),
        ('thinbone', 'kernel', ('bone',)),
        ('fooBone', 'kernel', ('bone',)),
        ('xcontrasty', 'contrast', ('contrast',)),
        ('posterior', 'contrast', ()),
        ('lateral', 'phase', ()),
        ('startVenue', 'phase', ()),
        ('latest', 'purpose', ()),
        ('artefact', 'phase', ()),
        ('artefact', 'quality', ('artefact',)),
        ('CTA Head 0.75 Hv36 MIP COR', 'values', ('mip',)),
        ('Kopf ohne KM', 'contrast', ('ohne KM',)),
        ('C- Head', 'contrast', ('c-',)),
        ('①24h', 'time', ('24h',)),
        ('3d', 'time', ()),
        ('7d', 'time', ('7d',)),
    ],
)
def test_words_are_found_where_they_are_words(text, criterion, words):
    assert read_words(text).words(criterion) == words


@given(st.text(max_size=200))
def test_any_text_can_be_read(text):
    reading = read_words(text)
    assert all(word.isprintable() for words in reading.said.values() for word in words)
    assert classify({'suffix': 'ct', 'acquisition': text}) in ('ncct', 'cta', 'contrast', 'other')


@given(st.dictionaries(st.sampled_from(['AcquisitionDateTime', 'AcquisitionTime',
                                        'AcquisitionDate']),
                       st.one_of(st.text(max_size=20), st.integers(), st.none())))  # fmt: skip
def test_any_time_can_be_read(content):
    assert read_time(content) is None or read_time(content).year


def test_the_choice_does_not_depend_on_the_order_of_files(tmp_path):
    names = ('acq-24h_ct', 'rec-bone_ct', 'acq-noncontrast_ct', 'acq-contrast_ct')
    chosen = set()
    for number, order in enumerate(itertools.permutations(names)):
        folder = tmp_path / f'{number}/sub-01/ct'
        folder.mkdir(parents=True)
        for stem in (*order, 'cta'):
            (folder / f'sub-01_{stem}.nii.gz').write_bytes(b'\x1f\x8b')
        (pair,) = discover(tmp_path / str(number)).pairs
        chosen.add(pair.ncct.name)
    assert chosen == {'sub-01_acq-noncontrast_ct.nii.gz'}


def test_the_page_lists_the_criteria_in_their_order():
    text = (DOCS / 'bids.rst').read_text(encoding='utf-8')
    listed = re.findall(r'^\d\. \*\*(\w+)\*\*', text, re.M)
    assert tuple(listed[: len(CRITERIA)]) == CRITERIA


#: Sessions and dates of an NCCT and a CTA, and whether they are paired, and doubted.
SESSIONS = {
    'dates in labels': ('20240101T0900', '20240101T0915', {}, {}, True, False),
    'dates of two days': ('20240101', '20240102', {}, {}, False, False),
    'dates in sidecars': (
        'a', 'b', {'AcquisitionDateTime': '2024-01-01T10:00:00'},
        {'AcquisitionDate': '20240101', 'AcquisitionTime': '11:00:00'}, True, False,
    ),
    'two days in sidecars': (
        'a', 'b', {'AcquisitionDateTime': '2024-01-01T10:00:00'},
        {'AcquisitionDateTime': '2024-01-03T10:00:00'}, False, False,
    ),
    'no dates': ('a', 'b', {}, {}, True, True),
    'one date': ('a', 'b', {'AcquisitionDateTime': '2024-01-01T10:00:00'}, {}, True, True),
}  # fmt: skip


@pytest.mark.parametrize(
    ('ncct', 'cta', 'first', 'second', 'paired', 'doubted'), SESSIONS.values(), ids=list(SESSIONS)
)
def test_sessions_of_one_day_are_paired_when_asked(
    tmp_path, ncct, cta, first, second, paired, doubted
):
    for session, suffix, content in ((ncct, 'ct', first), (cta, 'cta', second)):
        folder = tmp_path / f'sub-01/ses-{session}/ct'
        folder.mkdir(parents=True)
        (folder / f'sub-01_ses-{session}_{suffix}.nii.gz').write_bytes(b'\x1f\x8b')
        (folder / f'sub-01_ses-{session}_{suffix}.json').write_text(json.dumps(content))
    assert not discover(tmp_path).pairs
    found = discover(tmp_path, pair_sessions=True)
    assert [pair.session for pair in found.pairs] == ([ncct] if paired else [])
    assert bool(found.problems) != paired
    if paired:
        assert found.pairs[0].cta.parents[1].name == f'ses-{cta}'
        assert bool(found.pairs[0].doubts) == doubted
        assert any('are of one day' in note for note in found.notes) != doubted


def test_a_follow_up_is_not_paired_on_suspicion(tmp_path):
    for session, suffixes in (('1', ('ct', 'cta')), ('2', ('ct',)), ('3', ('cta',))):
        folder = tmp_path / f'sub-01/ses-{session}/ct'
        folder.mkdir(parents=True)
        for suffix in suffixes:
            (folder / f'sub-01_ses-{session}_{suffix}.nii.gz').write_bytes(b'\x1f\x8b')
    assert [p.session for p in discover(tmp_path, pair_sessions=True).pairs] == ['1']


def test_a_filter_by_folder_does_not_vouch_for_a_series(find):
    pair = find('ct', 'rec-mip_cta')
    (again,) = discover(pair.ncct.parents[2], filters={'cta': {'datatype': 'ct'}}).pairs
    assert again.doubts == pair.doubts != ()


def test_two_ctas_of_one_day_are_not_paired_with_one_ncct(tmp_path):
    for session, suffix in (('20240101', 'ct'), ('20240101a', 'cta'), ('20240101b', 'cta')):
        folder = tmp_path / f'sub-01/ses-{session}/ct'
        folder.mkdir(parents=True)
        (folder / f'sub-01_ses-{session}_{suffix}.nii.gz').write_bytes(b'\x1f\x8b')
    found = discover(tmp_path, pair_sessions=True)
    assert not found.pairs
    assert len(found.problems) == 3
