"""What an earlier run left is never taken for a result of what is there now.

The kinds of change are those that users make: a scan or a table replaced under its name, another
option, files that were damaged, a run that was killed, derivatives of other scans. The logic is
tested without data in `tests/stages` and `tests/workflows`; here it is the commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import ScanPair, output_path, participant_outputs
from bids_perfdeficit.settings import DEFAULT_SPACE
from bids_perfdeficit.stages.record import Record
from tests.cohorts import make_cohort

GROUP = ('--resolution', '8', '--sloppy', '--folds', '0')
SCRIPT = Path(sys.executable).with_name('bids_perfdeficit')


def run(*arguments: str | Path, code: int = 0) -> str:
    """Run the console script and return what it printed."""
    done = subprocess.run(
        [SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def tree(out: Path) -> dict[str, str]:
    """Return the hash of each file; of records without the times of this machine."""
    found = {}
    for path in sorted(out.rglob('*')):
        name = path.relative_to(out).as_posix()
        # The description names BIDS_DIR, of which some tests have copies.
        if not path.is_file() or name.startswith('logs/') or name == 'dataset_description.json':
            continue
        content = path.read_bytes()
        if name.endswith('_record.json'):
            record = json.loads(content)
            for one in record['Inputs'].values():
                for key in ('ModifiedNs', 'ChangedNs', 'HashedNs'):
                    del one[key]
            content = json.dumps(record).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope='module')
def patient(stroke_dataset, tmp_path_factory):
    """Return a dataset, and what a run on it left."""
    root = tmp_path_factory.mktemp('stale')
    shutil.copytree(stroke_dataset, root / 'raw')
    run(root / 'raw', root / 'out', 'participant', '--sloppy')
    return root


@pytest.fixture
def copied(patient, tmp_path):
    """Return copies that a test may spoil: dataset, output, and the outputs by key."""
    for name in ('raw', 'out'):
        shutil.copytree(patient / name, tmp_path / name)
    pair = ScanPair('01', None, *(tmp_path / f'raw/sub-01/ct/sub-01_{k}.nii.gz'
                                  for k in ('ct', 'cta')))  # fmt: skip
    paths = participant_outputs(tmp_path / 'out', pair, space=DEFAULT_SPACE)
    return tmp_path / 'raw', tmp_path / 'out', paths


def test_a_scan_replaced_under_its_name_gives_what_a_clean_run_gives(copied, tmp_path):
    raw, out, paths = copied
    before = paths['perfusion'].read_bytes()
    cta = raw / 'sub-01/ct/sub-01_cta.nii.gz'
    image = nib.load(cta)
    values = np.asarray(image.dataobj).astype(np.int16)
    values[: values.shape[0] // 3] -= 2  # less contrast on one side
    nib.save(nib.Nifti1Image(values, image.affine), cta)
    run(raw, out, 'participant', '--sloppy', '-w', tmp_path / 'work')
    assert paths['perfusion'].read_bytes() != before
    shutil.move(out, tmp_path / 'kept')
    run(raw, out, 'participant', '--sloppy')
    assert tree(tmp_path / 'kept') == tree(out)


def test_a_scan_that_became_unreadable_leaves_no_older_results(copied):
    raw, out, paths = copied
    (raw / 'sub-01/ct/sub-01_ct.nii.gz').write_bytes(b'not an image any more')
    assert 'sub-01: failed' in run(raw, out, 'participant', '--sloppy', code=1)
    assert not paths['perfusion'].exists()
    assert not paths['std_perfusion'].exists()
    page = (out / 'sub-01.html').read_text()
    assert 'cannot be read as NIfTI' in page


@pytest.mark.parametrize('harm', ['deleted', 'emptied'])
def test_figures_sidecars_tables_and_the_page_come_back(copied, harm):
    raw, out, paths = copied
    want = tree(out)
    lost = [
        out / 'sub-01.html', out / 'index.html', out / 'participants.tsv',
        out / 'sub-01/figures/sub-01_desc-perfusion_perfusion.svg',
        paths['regions_metrics'], paths['qc_metrics_json'],
    ]  # fmt: skip
    for path in lost:
        path.unlink() if harm == 'deleted' else path.write_bytes(b'')
    said = run(raw, out, 'participant', '--sloppy')
    assert tree(out) == want
    assert 'compute done' not in said


def test_derivatives_of_other_scans_are_refused_for_that_participant(copied, tmp_path):
    raw, out, paths = copied
    sidecar = paths['preproc_ct_json']
    reported = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(reported | {'SourceSHA256': '0' * 64}))
    said = run(raw, tmp_path / 'new', 'participant', '--sloppy', '-d', out, code=1)
    assert 'were made from another NCCT' in said
    assert not list((tmp_path / 'new/sub-01').rglob('*.nii.gz'))


@pytest.mark.slow
@pytest.mark.parametrize('share', [0.2, 0.5, 0.8])
@pytest.mark.parametrize('kept', [True, False], ids=['kept work', 'no work'])
def test_a_run_with_another_option_killed_at_any_moment_leaves_nothing_of_both(
    copied, tmp_path, share, kept
):
    raw, out, _ = copied
    command = [raw, out, 'participant', '--sloppy', '--random-seed', '3']
    command += ['-w', tmp_path / 'work'] if kept else []
    begun = time.monotonic()
    process = subprocess.Popen(
        [SCRIPT, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    record = out / 'sub-01/records/sub-01_stage-cta_record.json'
    while process.poll() is None and time.monotonic() - begun < 200:
        found = Record.read(record)
        if found is not None and found.options['seed'] == 3:
            break
        time.sleep(0.02)
    time.sleep(share * 10)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(*command)
    shutil.move(out, tmp_path / 'killed')
    run(raw, out, 'participant', '--sloppy', '--random-seed', '3')
    assert tree(tmp_path / 'killed') == tree(out)


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
    made = make_cohort(tmp_path_factory.mktemp('stale-cohort'), 24)
    (made.raw / 'phenotype/nihss.tsv').rename(made.raw / 'scores.tsv')
    scores = pd.read_csv(made.raw / 'scores.tsv', sep='\t')
    scores.to_csv(made.raw / 'participants.tsv', sep='\t', index=False)
    return made


def group(cohort, out, *options: str | Path, raw: Path | None = None, code: int = 0) -> str:
    return run(
        raw or cohort.raw, out, 'group', '-d', cohort.out, *GROUP, '--model', 'ridge', *options,
        code=code,
    )  # fmt: skip


def used(out: Path) -> pd.DataFrame:
    return pd.read_csv(output_path(out, 'group_cohort', space=DEFAULT_SPACE), sep='\t')


@pytest.mark.parametrize('kept', [True, False], ids=['kept work', 'no work'])
def test_edited_scores_are_used(cohort, tmp_path, kept):
    raw, out = tmp_path / 'raw', tmp_path / 'out'
    raw.mkdir()
    work = ['-w', tmp_path / 'work'] if kept else []
    table = pd.read_csv(cohort.raw / 'participants.tsv', sep='\t')
    for step in range(2):
        table['nihss_9'] = 3 - table['nihss_9'] if step else table['nihss_9']
        table.to_csv(raw / 'participants.tsv', sep='\t', index=False)
        group(cohort, out, '--items', '5a', '9', *work, raw=raw)
        assert used(out)['nihss_9'].tolist() == table['nihss_9'].tolist()
    assert 'nothing was done' in group(cohort, out, '--items', '5a', '9', *work, raw=raw)


def test_each_run_has_the_scores_of_the_session_that_it_asked_for(cohort, tmp_path):
    raw, out = tmp_path / 'raw', tmp_path / 'out'
    raw.mkdir()
    first = pd.read_csv(cohort.raw / 'participants.tsv', sep='\t')
    second = first.assign(nihss_9=3 - first['nihss_9'])
    tables = [first.assign(session_id='ses-base'), second.assign(session_id='ses-day90')]
    pd.concat(tables).to_csv(raw / 'participants.tsv', sep='\t', index=False)
    for session, table in (('base', first), ('day90', second), ('base', first)):
        group(cohort, out, '--items', '9', '--session-label', session, raw=raw)
        assert used(out)['nihss_9'].tolist() == table['nihss_9'].tolist(), session


def test_maps_of_other_items_and_kinds_do_not_stay_beside_the_new_ones(cohort, tmp_path):
    out = tmp_path / 'out'
    group(cohort, out, '--items', '5a', '9')
    assert list(out.rglob('*nihss9*statmap.nii.gz'))
    group(cohort, out, '--items', '5a', '--resolution', '10')
    assert not list(out.rglob('*nihss9*'))
    assert not list(out.rglob('*res-8*'))
    reported = [json.loads(path.read_text()) for path in out.rglob('*statmap.json')]
    assert reported
    for content in reported:
        assert content['MapKind'] == 'perfusion'
        assert content['Sloppy'] is True
        assert content['VoxelSize'] == 10.0
    clean = tmp_path / 'clean'
    group(cohort, clean, '--items', '5a', '--resolution', '10')
    assert tree(out) == tree(clean)


@pytest.mark.parametrize('lost', ['deleted', 'emptied'])
def test_maps_whose_record_is_lost_do_not_stay_beside_those_of_other_items(cohort, tmp_path, lost):
    out, clean = tmp_path / 'out', tmp_path / 'clean'
    group(cohort, out, '--items', '5a', '9')
    (record,) = out.rglob('*stage-fit_record.json')
    record.unlink() if lost == 'deleted' else record.write_bytes(b'')
    own = out / f'tpl-{DEFAULT_SPACE}/ct/tpl-{DEFAULT_SPACE}_of-the_user.nii.gz'
    own.write_bytes(b'not ours')
    group(cohort, out, '--items', '5a')
    assert own.read_bytes() == b'not ours'
    own.unlink()
    group(cohort, clean, '--items', '5a')
    assert tree(out) == tree(clean)


def test_the_page_is_that_of_the_last_run(cohort, tmp_path):
    out = tmp_path / 'out'
    for model in ('ridge', 'voxelwise', 'ridge'):
        run(cohort.raw, out, 'group', '-d', cohort.out, *GROUP, '--model', model, '--items', '5a')
        page = (out / 'group.html').read_text()
        other = 'voxelwise' if model == 'ridge' else 'ridge'
        assert f'Model {model}' in page
        assert f'Model {other}' not in page


def test_applied_scores_stand_under_their_own_items(cohort, tmp_path):
    fitted, out = tmp_path / 'fitted', tmp_path / 'out'
    group(cohort, fitted, '--items', '5a', '9')
    run(cohort.raw, fitted, 'group', '-d', cohort.out, *GROUP, '--model', 'ridge', 'voxelwise',
        '--items', '9', '5a')  # fmt: skip
    run(cohort.raw, out, 'group', '-d', cohort.out, '--resolution', '8', '--sloppy',
        '--apply', fitted)  # fmt: skip
    true = pd.read_csv(cohort.raw / 'participants.tsv', sep='\t').set_index('participant_id')
    for model in ('ridge', 'voxelwise'):
        table = output_path(out, 'group_applied', space=DEFAULT_SPACE, res='8', model=model)
        rows = pd.read_csv(table, sep='\t')
        for item in ('nihss_5a', 'nihss_9'):
            own = rows[rows['item'] == item].set_index('participant_id')['score']
            assert own.tolist() == true.loc[own.index, item].tolist(), (model, item)


def test_a_sidecar_of_another_model_is_refused(cohort, tmp_path):
    fitted = tmp_path / 'fitted'
    group(cohort, fitted, '--items', '5a', '9')
    sidecar = output_path(fitted, 'group_params_json', space=DEFAULT_SPACE, model='ridge')
    reported = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(reported | {'Items': ['nihss_9', 'nihss_5a']}))
    said = run(cohort.raw, tmp_path / 'out', 'group', '-d', cohort.out, '--resolution', '8',
               '--apply', fitted, code=2)  # fmt: skip
    assert 'its sidecar names nihss_9, nihss_5a' in said
