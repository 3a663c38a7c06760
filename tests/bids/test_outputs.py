"""Names and sidecars as design.md draws the tree, and what the validator says of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import (
    ScanPair,
    Scores,
    output_keys,
    output_path,
    participant_outputs,
    read_scores,
    sidecar,
    write_bytes,
    write_dataset_files,
    write_json,
    write_nifti,
    write_participants,
    write_phenotype,
    write_text,
    write_tsv,
)
from bids_perfdeficit.bids.nihss import ITEMS
from bids_perfdeficit.errors import InputError

SPACE = 'MNI152NLin2009aSym'
STD = f'sub-01_space-{SPACE}_res-2'

#: The tree of design.md for the participant level, without sidecars.
TREE = {
    'preproc_ct': 'sub-01_desc-preproc_ct.nii.gz',
    'brain_mask': 'sub-01_desc-brain_mask.nii.gz',
    'preproc_cta': 'sub-01_space-ct_desc-preproc_cta.nii.gz',
    'cta_xfm': 'sub-01_from-cta_to-ct_mode-image_xfm.txt',
    'template_xfm': f'sub-01_from-ct_to-{SPACE}_mode-image_xfm.h5',
    'template_inverse_xfm': f'sub-01_from-{SPACE}_to-ct_mode-image_xfm.h5',
    'subtraction': 'sub-01_space-ct_desc-subtraction_cta.nii.gz',
    'vessel': 'sub-01_space-ct_label-vessel_probseg.nii.gz',
    'toa': 'sub-01_space-ct_desc-computed_toa.nii.gz',
    'perfusion': 'sub-01_space-ct_desc-computed_perfusion.nii.gz',
    'hypoperfused': 'sub-01_space-ct_label-hypoperfused_probseg.nii.gz',
    'delay': 'sub-01_space-ct_desc-computed_delay.nii.gz',
    'delay_sd': 'sub-01_space-ct_desc-computedsd_delay.nii.gz',
    'std_preproc_ct': f'{STD}_desc-preproc_ct.nii.gz',
    'std_preproc_cta': f'{STD}_desc-preproc_cta.nii.gz',
    'std_brain_mask': f'{STD}_desc-brain_mask.nii.gz',
    'std_toa': f'{STD}_desc-computed_toa.nii.gz',
    'std_perfusion': f'{STD}_desc-computed_perfusion.nii.gz',
    'std_asymmetry': f'{STD}_desc-asymmetry_perfusion.nii.gz',
    'std_hypoperfused': f'{STD}_label-hypoperfused_probseg.nii.gz',
    'std_delay': f'{STD}_desc-computed_delay.nii.gz',
    'std_delay_sd': f'{STD}_desc-computedsd_delay.nii.gz',
    'qc_metrics': 'sub-01_desc-qc_metrics.tsv',
    'regions_metrics': 'sub-01_desc-regions_metrics.tsv',
}


@pytest.mark.parametrize(('key', 'name'), TREE.items())
def test_name_is_that_of_the_tree(key, name):
    path = output_path('out', key, participant='01', space=SPACE)
    assert path == Path('out/sub-01/ct', name)
    in_session = output_path('out', key, participant='01', session='x', space=SPACE)
    assert in_session == Path('out/sub-01/ses-x/ct', name.replace('sub-01_', 'sub-01_ses-x_'))


def test_report_and_figures_lie_where_the_report_looks():
    assert output_path('o', 'report', participant='01') == Path('o/sub-01.html')
    assert output_path('o', 'report', participant='01', session='x') == Path('o/sub-01_ses-x.html')
    assert output_path('o', 'figure_brain', participant='01', session='x') == Path(
        'o/sub-01/figures/sub-01_ses-x_desc-brain_ct.svg'
    )


def test_group_names():
    path = output_path(
        'o', 'group_statmap', space=SPACE, res='4', model='spatial', contrast='nihss5a',
        stat='effect',
    )  # fmt: skip
    assert path == Path(
        f'o/tpl-{SPACE}/ct/tpl-{SPACE}_res-4_model-spatial_contrast-nihss5a_stat-effect_statmap'
        '.nii.gz'
    )


def test_everything_that_has_a_sidecar_lists_it():
    pair = ScanPair('01', None, Path('a'), Path('b'))
    full = participant_outputs('o', pair, space=SPACE)
    minimal = participant_outputs('o', pair, space=SPACE, level='minimal')
    assert set(TREE) <= set(full)
    assert {f'{key}_json' for key in TREE} <= set(full)
    assert full['cta_xfm_json'].name == 'sub-01_from-cta_to-ct_mode-image_xfm.json'
    assert full['qc_metrics_json'].name == 'sub-01_desc-qc_metrics.json'
    assert set(minimal) < set(full)
    assert 'template_xfm' in minimal
    assert 'perfusion' not in minimal
    assert len(set(full.values())) == len(full)


def test_wrong_key_or_missing_label_names_what_there_is():
    with pytest.raises(ValueError, match='preproc_ct'):
        output_path('o', 'nothing')
    with pytest.raises(ValueError, match='needs participant, space'):
        output_path('o', 'std_toa')
    with pytest.raises(ValueError, match='has no sidecar'):
        output_path('o', 'report_json', participant='01')
    with pytest.raises(ValueError, match='calibration, dataset, evaluation, full'):
        output_keys('best')


@pytest.mark.parametrize('key', TREE)
def test_sidecar_says_what_and_whence(key):
    source = 'bids::sub-01/ct/sub-01_desc-preproc_ct.nii.gz'
    content = sidecar(key, sources=[source], space=SPACE, Notes=['a'])
    assert content['Description']
    assert content['Sources'] == [source]
    assert content['Notes'] == ['a']
    name = TREE[key]
    assert ('Resolution' in content) == ('_res-' in name)
    assert ('SpatialReference' in content) == ('_space-ct_' in name)
    if name.endswith('.nii.gz') and 'mask' not in name:
        assert content['Units'] in (('s',) if '_delay' in name else ('HU', 'arbitrary'))


def test_dataset_files_follow_the_version_and_the_place_of_the_input(tmp_path):
    out = tmp_path / 'out'
    assert write_dataset_files(out, bids_dir=tmp_path, version='1.0') == ()
    before = {p: p.read_bytes() for p in out.iterdir()}
    assert {p.name for p in before} == {
        'dataset_description.json', '.bidsignore', 'descriptions.tsv', 'README.md',
    }  # fmt: skip
    (note,) = write_dataset_files(out, bids_dir=tmp_path, version='2.0')
    assert 'version 1.0' in note
    changed = [p.name for p in out.iterdir() if p.read_bytes() != before[p]]
    assert changed == ['dataset_description.json']
    description = json.loads((out / 'dataset_description.json').read_text())
    assert description['GeneratedBy'] == [{'Name': 'bids_perfdeficit', 'Version': '2.0'}]
    assert description['DatasetLinks'] == {'raw': tmp_path.as_uri()}
    assert 'logs/CITATION.md' in description['HowToAcknowledge']
    assert description['License'].startswith('That of the source dataset')
    moved = tmp_path / 'moved'
    for relink in (False, True):
        write_dataset_files(out, bids_dir=moved, version='2.0', relink=relink)
        links = json.loads((out / 'dataset_description.json').read_text())['DatasetLinks']
        assert links == {'raw': (moved if relink else tmp_path).as_uri()}


def test_results_have_the_licence_of_their_source_unless_a_person_gave_another(tmp_path):
    raw, out = tmp_path / 'raw', tmp_path / 'out'
    raw.mkdir()
    (raw / 'dataset_description.json').write_text('{"Name": "x", "License": "CC0"}')
    write_dataset_files(out, bids_dir=raw, version='1.0')
    path = out / 'dataset_description.json'
    assert json.loads(path.read_text())['License'] == 'CC0'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'License': 'PDDL'}))
    (note,) = write_dataset_files(out, bids_dir=raw, version='1.0')
    assert 'PDDL' in note
    assert 'CC0' in note
    assert json.loads(path.read_text())['License'] == 'PDDL'


@pytest.mark.parametrize('raw', [{}, {'Name': 'x', 'License': 'CC0'}])
@pytest.mark.parametrize('lost', [(), ('License',), ('HowToAcknowledge', 'License', 'Name')])
def test_a_later_run_leaves_the_description_of_a_clean_run(tmp_path, raw, lost):
    (tmp_path / 'dataset_description.json').write_text(json.dumps(raw))
    out = tmp_path / 'out'
    write_dataset_files(out, bids_dir=tmp_path, version='1.0')
    path = out / 'dataset_description.json'
    clean = path.read_bytes()
    # as an older version, which wrote less, left it
    kept = {k: v for k, v in json.loads(clean).items() if k not in lost}
    path.write_text(json.dumps(kept))
    assert write_dataset_files(out, bids_dir=tmp_path, version='1.0') == ()
    assert path.read_bytes() == clean


@pytest.mark.parametrize('content', ['', '{"Name": "Comp'])
def test_a_damaged_description_is_written_again_where_the_outputs_are_ours(tmp_path, content):
    (tmp_path / 'dataset_description.json').write_text(content)
    with pytest.raises(InputError, match='cannot be read as JSON'):
        write_dataset_files(tmp_path, bids_dir=tmp_path, version='1')
    (tmp_path / 'logs' / 'a').mkdir(parents=True)
    (tmp_path / 'logs' / 'a' / 'status.json').write_text('{}')
    assert 'damaged' in write_dataset_files(tmp_path, bids_dir=tmp_path, version='1')[0]
    assert json.loads((tmp_path / 'dataset_description.json').read_text())['GeneratedBy']


def test_a_readme_and_the_description_of_another_program_are_kept(tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'README.md').write_text('mine')
    text = '{"DatasetType": "derivative", "GeneratedBy": [{"Name": "other"}]}'
    (out / 'dataset_description.json').write_text(text)
    (note,) = write_dataset_files(out, bids_dir=tmp_path, version='1.0')
    assert 'other' in note
    assert (out / 'dataset_description.json').read_text() == text
    assert (out / 'README.md').read_text() == 'mine'


def test_lines_are_added_to_a_bidsignore_that_is_there(tmp_path):
    (tmp_path / '.bidsignore').write_text('mine\nct')
    write_dataset_files(tmp_path, bids_dir=tmp_path, version='1')
    assert (tmp_path / '.bidsignore').read_text() == 'mine\nct\nfigures\nrecords\n*.html\n'


def test_raw_dataset_as_output_is_an_input_error(tmp_path):
    (tmp_path / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    with pytest.raises(InputError, match='raw dataset'):
        write_dataset_files(tmp_path, bids_dir=tmp_path, version='1')


def test_participants_keep_what_the_raw_dataset_tells(tmp_path):
    raw, out = tmp_path / 'raw', tmp_path / 'out'
    raw.mkdir()
    (raw / 'participants.tsv').write_text('participant_id\tage\nsub-01\t70\nsub-03\tn/a\n')
    (raw / 'participants.json').write_text('{"age": {"Units": "year"}}')
    write_participants(out, bids_dir=raw, participants=['02', '01'])
    write_participants(out, bids_dir=raw, participants=['03'])
    assert (out / 'participants.tsv').read_text() == (
        'participant_id\tage\nsub-01\t70\nsub-02\tn/a\nsub-03\tn/a\n'
    )
    assert (out / 'participants.json').is_file()


@pytest.mark.parametrize(
    ('content', 'want'),
    [
        ('participant_id\tage\tort\nsub-01\t70.50\tKöln\nsub-02\t\tn/a\n'.encode('cp1252'),
         'participant_id\tage\tort\nsub-01\t70.50\tKöln\nsub-02\tn/a\tn/a\n'),
        ('participant_id;age\n1;070\n2;1e3\n'.encode('utf-16'),
         'participant_id\tage\nsub-01\t070\nsub-02\t1e3\n'),
        (b'age\tparticipant_id\tsession_id\n1\tsub-01\tb\n2\tsub-01\ta\n3\tsub-02\ta\n',
         'participant_id\tage\tsession_id\n'
         'sub-01\t1\tb\nsub-01\t2\ta\nsub-02\t3\ta\n'),
        (b'participant_id\tsex\nsub-09\tF\n', 'participant_id\tsex\nsub-01\tn/a\nsub-02\tn/a\n'),
    ],
)  # fmt: skip
def test_no_column_row_or_spelling_of_the_raw_table_is_lost(tmp_path, content, want):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'participants.tsv').write_bytes(content)
    for _ in range(2):
        path = write_participants(
            tmp_path / 'out', bids_dir=tmp_path / 'raw', participants=['02', '01']
        )
        assert path.read_text() == want


def test_a_raw_table_that_cannot_be_read_is_a_warning(tmp_path, caplog):
    (tmp_path / 'participants.tsv').write_bytes(b'participant_id\tage\nsub-01\t1\nsub-02\n')
    path = write_participants(tmp_path / 'out', bids_dir=tmp_path, participants=['01'])
    assert path.read_text() == 'participant_id\nsub-01\n'
    assert 'row 3 has 1 cells' in caplog.text


def test_jobs_that_write_at_once_lose_nobody(tmp_path):
    code = (
        'import sys; from bids_perfdeficit.bids import write_dataset_files, write_participants; '
        f'write_dataset_files({str(tmp_path)!r}, bids_dir="/", version="1"); '
        f'write_participants({str(tmp_path)!r}, bids_dir="/", participants=[sys.argv[1]])'
    )
    running = [subprocess.Popen([sys.executable, '-c', code, f'{n:02d}']) for n in range(6)]
    assert [process.wait() for process in running] == [0] * 6
    table = pd.read_csv(tmp_path / 'participants.tsv', sep='\t')
    assert table['participant_id'].tolist() == [f'sub-{n:02d}' for n in range(6)]
    assert json.loads((tmp_path / 'dataset_description.json').read_text())
    assert not list(tmp_path.glob('.*.part'))


def write_output(key: str, path: Path) -> None:
    """Write a tiny file of the right kind, and its sidecar."""
    if path.name.endswith('.nii.gz'):
        write_nifti(nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)), path)
    elif path.suffix == '.tsv':
        write_tsv(pd.DataFrame({'name': ['a'], 'value': [1.0]}), path)
    elif path.suffix == '.json':
        source = 'bids::sub-01/ct/sub-01_desc-preproc_ct.nii.gz'
        write_json(sidecar(key.removesuffix('_json'), sources=[source], space=SPACE), path)
    elif path.suffix == '.svg':
        write_text('<svg xmlns="http://www.w3.org/2000/svg"/>', path)
    else:
        write_bytes(b'x', path)


@pytest.fixture(scope='module', params=[None, 'x'], ids=['no session', 'session'])
def tree(request, tmp_path_factory) -> Path:
    """Return an output folder with every file of both levels."""
    out = tmp_path_factory.mktemp('out')
    raw = tmp_path_factory.mktemp('raw')
    pair = ScanPair('01', request.param, Path('a'), Path('b'))
    write_dataset_files(out, bids_dir=raw, version='1.0')
    write_participants(out, bids_dir=raw, participants=['01'])
    for key, path in participant_outputs(out, pair, space=SPACE).items():
        write_output(key, path)
    for key in output_keys('group'):
        for suffix in ('', '_json'):
            try:
                path = output_path(
                    out, key + suffix, space=SPACE, res='2', model='ridge', contrast='nihss5a',
                    stat='std', figure='map',
                )  # fmt: skip
            except ValueError:
                continue
            write_output(key + suffix, path)
    table = pd.DataFrame(1.0, index=['01'], columns=list(ITEMS))
    table.loc['01', 'nihss_7'] = np.nan
    scores = Scores(table, pd.Series([14.0], index=['01']), (), raw)
    write_phenotype(scores, out)
    for name in ('settings.toml', 'status.json', 'run.log', 'methods.md'):
        write_text('{}', out / 'logs' / '20260101-000000_uuid' / name)
    return out


def validate(folder: Path) -> list[dict[str, str]]:
    program = Path(sys.executable).with_name('bids-validator-deno')
    done = subprocess.run(
        [program, '--format', 'json', folder], capture_output=True, text=True, timeout=120
    )
    issues = json.loads(done.stdout)['issues']['issues']
    return [issue for issue in issues if issue['severity'] == 'error']


needs_validator = pytest.mark.skipif(
    not Path(sys.executable).with_name('bids-validator-deno').exists(),
    reason='bids-validator-deno is not installed',
)


@needs_validator
def test_validator_finds_no_error(tree):
    assert validate(tree) == []


@needs_validator
@pytest.mark.parametrize('lost', [None, 'Resolution', 'SpatialReference'])
def test_sidecars_satisfy_the_validator_where_it_knows_the_file(tree, tmp_path, lost):
    """The validator looks at nothing in `ct/`; what BIDS names already, it judges in `anat/`."""
    out = tmp_path / 'out'
    shutil.copytree(tree, out)
    (anat := out / 'sub-01' / 'anat').mkdir()
    for key in ('brain_mask', 'std_brain_mask', 'vessel'):
        source = output_path(out, key, participant='01', space=SPACE)
        write_output(key, anat / source.name)
        content = sidecar(
            key, sources=['bids::sub-01/ct/sub-01_desc-preproc_ct.nii.gz'], space=SPACE
        )
        content.pop(lost, None)
        write_json(content, anat / source.name.replace('.nii.gz', '.json'))
    assert [issue['subCode'] for issue in validate(out)] == ([lost] if lost else [])


@needs_validator
def test_validator_is_not_silent_about_a_real_error(tree):
    path = tree / 'phenotype' / 'orphan.json'
    path.write_text('{')
    try:
        assert validate(tree)
    finally:
        path.unlink()


def test_phenotype_comes_back(tree):
    back = read_scores(tree)
    assert back.source == tree / 'phenotype/nihss.tsv'
    assert back.table.loc['01'].sum() == 14
    assert back.total['01'] == 14
    assert not back.notes
