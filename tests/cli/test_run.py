"""The participant level as users run it: a command, its files, its lines and its exit code."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import ScanPair, participant_outputs
from bids_perfdeficit.settings import DEFAULT_SPACE
from tests.conftest import add_broken_participants

#: Files that hold the time or the machine, and differ between equal runs.
VARIABLE = ('logs', 'html')


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the console script."""
    script = Path(sys.executable).with_name('bids_perfdeficit')
    return subprocess.run(
        [script, *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False
    )


def checksums(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file() and path.name.endswith(('.nii.gz', '.h5', '.txt', '.tsv'))
    }


def last_status(out: Path) -> dict:
    path = max((out / 'logs').glob('*/status.json'), key=lambda p: p.stat().st_mtime)
    return json.loads(path.read_text())


@pytest.fixture(scope='module')
def finished(stroke_dataset, tmp_path_factory):
    """Return dataset, output and the finished run of one good and five broken participants."""
    root = tmp_path_factory.mktemp('run') / 'raw'
    shutil.copytree(stroke_dataset, root)
    pieces = add_broken_participants(root)
    out = root.parent / 'out'
    done = run(root, out, 'participant', '--sloppy', '-w', root.parent / 'work')
    return root, out, done, pieces


@pytest.fixture(scope='module')
def pair(finished) -> ScanPair:
    folder = finished[0] / 'sub-01' / 'ct'
    return ScanPair(
        participant='01',
        session=None,
        ncct=folder / 'sub-01_ct.nii.gz',
        cta=folder / 'sub-01_cta.nii.gz',
    )


def test_one_bad_patient_never_stops_the_others(finished):
    _, out, done, pieces = finished
    assert done.returncode == 1, done.stderr
    lines = dict(line.split(': ', 1) for line in done.stdout.splitlines() if ': ' in line)
    assert lines['sub-01'] == 'complete'
    for label, piece in pieces.items():
        assert lines[f'sub-{label}'].startswith('failed: ')
        assert piece in lines[f'sub-{label}']
    assert '1 of 6 complete' in done.stdout
    status = last_status(out)
    assert status['exit_code'] == 1
    assert {n: p['status'] for n, p in status['participants'].items()} == {
        'sub-01': 'complete',
        **{f'sub-{label}': 'failed' for label in pieces},
    }


def test_every_file_of_the_tree_is_there(finished, pair):
    _, out, _, _ = finished
    missing = [p for p in participant_outputs(out, pair, space=DEFAULT_SPACE).values()
               if not p.is_file()]  # fmt: skip
    assert missing == []
    page = (out / 'sub-01.html').read_text()
    figures = sorted(p.name for p in (out / 'sub-01' / 'figures').glob('*.svg'))
    assert len(figures) == 13
    shown = [name for name in figures if 'thumbnail' not in name]
    assert all(name in page for name in shown)
    assert 'sub-01_desc-viewer_ct.js' in page
    assert 'sub-01_desc-thumbnail' in (out / 'index.html').read_text()
    names = {path.name for path in (out / 'logs').glob('CITATION.*')}
    assert names == {'CITATION.md', 'CITATION.html', 'CITATION.tex', 'CITATION.bib'}
    (log,) = (p for p in (out / 'logs').iterdir() if p.is_dir())
    assert {'settings.toml', 'status.json', 'methods.md', 'run.log'} <= {
        p.name for p in log.iterdir()
    }
    assert not list(out.rglob('*.part'))
    assert not list(out.rglob('*.lock'))


def test_the_deficit_is_late_and_on_its_side(finished, pair):
    """A left M1 occlusion with poor collaterals."""
    paths = participant_outputs(finished[1], pair, space=DEFAULT_SPACE)
    regions = pd.read_csv(paths['regions_metrics'], sep='\t', index_col='region')
    assert regions.asymmetry['MCA'] > 0.03
    assert regions.asymmetry['MCA'] > regions.asymmetry['ACA']
    assert regions.hypoperfused_left['MCA'] > 20
    assert regions.hypoperfused_right['MCA'] < 0.3 * regions.hypoperfused_left['MCA']
    assert regions.occlusion_side['hemisphere'] == 'left'
    assert regions.occlusion_site['hemisphere'] in ('M1', 'ICA')
    values = nib.load(paths['std_perfusion']).get_fdata()
    inside = np.asarray(nib.load(paths['std_brain_mask']).dataobj) > 0
    assert values[inside].min() >= 0
    assert values[inside].max() <= 1
    odd = nib.load(paths['std_asymmetry']).get_fdata()
    np.testing.assert_allclose(odd, -odd[::-1], atol=1e-6)


def test_outputs_satisfy_the_validator(finished):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    done = subprocess.run(
        [validator, finished[1], '--json'], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)['issues']['issues']
    assert [i for i in issues if i['severity'] == 'error'] == []


def test_a_second_run_redoes_only_what_is_missing(finished, pair):
    root, out, _, _ = finished
    paths = participant_outputs(out, pair, space=DEFAULT_SPACE)
    before, written = checksums(out), paths['perfusion'].stat().st_mtime_ns
    paths['std_perfusion'].unlink()
    again = run(root, out, 'participant', '--sloppy', '--participant-label', '01')
    assert again.returncode == 0, again.stderr
    assert checksums(out) == before
    assert paths['perfusion'].stat().st_mtime_ns == written
    assert 'register_template' not in again.stderr
    assert 'to_template' in again.stderr


def test_pages_of_the_other_kind_are_made_again_from_the_results(finished, tmp_path):
    root, done = finished[0], tmp_path / 'out'
    shutil.copytree(finished[1], done)
    page = done / 'sub-01.html'
    assert 'src="sub-01/figures/' in page.read_text()
    command = (root, done, 'participant', '--sloppy', '--participant-label', '01')
    again = run(*command, '--self-contained-reports')
    assert again.returncode == 0, again.stderr
    assert 'src="sub-01/figures/' not in page.read_text()
    assert ' done in ' not in again.stderr, 'a step ran for a page'
    made = page.stat().st_mtime_ns
    assert run(*command, '--self-contained-reports').returncode == 0
    assert page.stat().st_mtime_ns == made, 'nothing was left to do'


@pytest.mark.slow
def test_two_runs_with_one_seed_are_equal_to_the_bit(finished, tmp_path):
    """Also when they have other numbers of processes and threads."""
    root, out, _, _ = finished
    done = run(
        root, tmp_path / 'out', 'participant', '--sloppy', '--participant-label', '01',
        '--nprocs', '1', '--omp-nthreads', '3',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = checksums(out), checksums(tmp_path / 'out')
    keys = [k for k in theirs if k.startswith('sub-')]
    assert len(keys) > 10
    assert {k: ours[k] for k in keys} == {k: theirs[k] for k in keys}


def test_minimal_stops_after_normalisation_and_another_run_goes_on(finished, pair, tmp_path):
    root, out, _, _ = finished
    done = run(
        root, tmp_path / 'out', 'participant', '--sloppy', '--participant-label', 'sub-01',
        '--level', 'minimal', '-d', out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out' / 'sub-01.html').is_file()
    paths = participant_outputs(tmp_path / 'out', pair, space=DEFAULT_SPACE)
    assert not paths['perfusion'].exists()


def test_nothing_to_run_exits_with_2_and_names_the_remedy(tmp_path):
    root = tmp_path / 'raw'
    (root / 'sub-01').mkdir(parents=True)
    (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    done = run(root, tmp_path / 'out', 'participant')
    assert done.returncode == 2
    assert 'sub-01' in done.stderr or 'no CT' in done.stderr
    assert not (tmp_path / 'out' / 'logs').exists()


def test_dry_run_lists_stages_and_writes_nothing(stroke_dataset, tmp_path):
    done = run(stroke_dataset, tmp_path / 'out', 'participant', '--dry-run')
    assert done.returncode == 0
    assert 'sub-01: conform (not made yet), brain (not made yet), cta' in done.stdout
    assert re.search(
        r'^a job for each participant: --cpus-per-task=2 --mem=\d+G --time=00:\d\d:00 '
        r'\(largest scan: sub-01_cta?\.nii\.gz, \d+ x \d+ x \d+\)$',
        done.stdout, re.M,
    )  # fmt: skip
    assert not (tmp_path / 'out').exists()


def test_an_internal_error_exits_with_70(monkeypatch, stroke_dataset, tmp_path, capsys):
    from bids_perfdeficit.cli import runner
    from bids_perfdeficit.cli.run import main

    def broken(level):
        raise RuntimeError('a defect')

    monkeypatch.setattr(runner, 'run_level', broken)
    assert main([str(stroke_dataset), str(tmp_path / 'out'), 'participant']) == 70
    assert 'please report' in capsys.readouterr().err
