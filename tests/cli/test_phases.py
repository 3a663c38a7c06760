"""Several phases of a CTA by the command: what is used, what is left out, and what is redone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bids_perfdeficit.bids import ScanPair, participant_outputs
from bids_perfdeficit.cli.phantom import main as phantom
from bids_perfdeficit.settings import DEFAULT_SPACE

SCRIPT = Path(sys.executable).with_name('bids_perfdeficit')


def run(*arguments: str | Path) -> str:
    done = subprocess.run(
        [SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """Return a patient with two phases and a third that is damaged."""
    root = tmp_path_factory.mktemp('phases') / 'raw'
    options = ['--participants', '1', '--spacing', '4', '--seed', '4', '--phases', '3']
    assert phantom([str(root), *options]) == 0
    third = root / 'sub-01/ct/sub-01_acq-phase3_cta.nii.gz'
    third.write_bytes(third.read_bytes()[: third.stat().st_size // 2])
    return root


def test_a_dry_run_shows_the_phases_and_an_option_leaves_them_out(dataset, tmp_path):
    said = run(dataset, tmp_path / 'out', 'participant', '--dry-run')
    assert 'CTA, phase 2 ' in said
    assert 'used as later phases of the CTA, by the times in their sidecars' in said
    said = run(dataset, tmp_path / 'out', 'participant', '--dry-run', '--phases', 'first')
    assert 'CTA, phase' not in said


@pytest.mark.slow
def test_two_phases_are_used_a_damaged_one_is_said_and_a_new_one_redoes_the_maps(
    dataset, tmp_path
):
    out = tmp_path / 'out'
    pair = ScanPair('01', None, *(dataset / f'sub-01/ct/sub-01_{k}.nii.gz' for k in ('ct', 'cta')))
    paths = participant_outputs(out, pair, space=DEFAULT_SPACE)
    command = (dataset, out, 'participant', '--sloppy')
    run(*command)
    facts = json.loads(paths['perfusion_json'].read_text())
    assert facts['PhasesUsed'] == 2
    used, damaged = facts['LaterPhases']
    assert used['Used']
    assert used['Registration']['Correlation'] > 0.9
    assert not damaged['Used']
    assert damaged['LeftOut']
    assert sum('phase' in source for source in facts['Sources']) == 2
    page = (out / 'sub-01.html').read_text()
    assert 'Phases used' in page
    assert 'sub-01_acq-phase3_cta.nii.gz of the CTA is left out' in page
    assert 'Menon' in page
    fused = paths['perfusion'].read_bytes()

    first = paths['preproc_cta'].stat().st_mtime_ns
    assert 'compute done' not in run(*command)
    run(*command, '--phases', 'first')
    assert paths['perfusion'].read_bytes() != fused
    assert 'PhasesUsed' not in json.loads(paths['perfusion_json'].read_text())
    run(*command)
    assert paths['perfusion'].read_bytes() == fused
    assert paths['preproc_cta'].stat().st_mtime_ns == first
