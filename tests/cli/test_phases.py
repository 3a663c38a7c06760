"""Several phases of a CTA by the command: what is used, what is left out, and what is redone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit.bids import ScanPair, participant_outputs
from bids_perfdeficit.cli.participant import ParticipantLevel
from bids_perfdeficit.cli.phantom import main as phantom
from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.settings import DEFAULT_SPACE, InputSettings, ProcessingSettings, Settings
from tests.test_docs import site_calibration

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


@pytest.fixture
def small(tmp_path):
    """Return a dataset of tiny images: a pair with a later phase, and one whose header is cut."""
    folder = tmp_path / 'raw/sub-01/ct'
    folder.mkdir(parents=True)
    for name in ('ct', 'cta', 'acq-phase2_cta', 'acq-phase3_cta'):
        image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
        nib.save(image, folder / f'sub-01_{name}.nii.gz')
    (folder / 'sub-01_acq-phase3_cta.nii.gz').write_bytes(b'\x1f\x8b nothing more')
    return tmp_path


def found(folder: Path, **more: object) -> ScanPair:
    inputs = InputSettings(bids_dir=folder / 'raw', output_dir=folder / 'out')
    level = ParticipantLevel(replace(Settings(inputs=inputs), **more))
    assert level.find() == []
    (pair,) = level.found.pairs
    return pair


def test_a_phase_whose_header_cannot_be_read_is_left_out_with_a_note(small):
    pair = found(small)
    assert [path.name for path in pair.later] == ['sub-01_acq-phase2_cta.nii.gz']
    assert any('phase3_cta.nii.gz of the CTA is left out' in note for note in pair.notes)


def test_a_dry_run_shows_the_phases_and_an_option_leaves_them_out(small):
    command = (small / 'raw', small / 'out', 'participant', '--dry-run')
    said = run(*command)
    assert 'CTA, phase 2 ' in said
    assert 'CTA, phase 3 ' not in said
    assert 'taken as later phases of the CTA, by the numbers in their names' in said
    assert 'CTA, phase' not in run(*command, '--phases', 'first')


@pytest.mark.parametrize('why', ['published', '--calibration'])
def test_what_was_made_for_one_phase_uses_one_and_says_so(small, why):
    path = small / 'site.json'
    path.write_text(json.dumps(site_calibration()))
    more = (
        {'perfusion': PerfusionSettings(recipe='published')}
        if why == 'published'
        else {'processing': ProcessingSettings(calibration=path)}
    )
    pair = found(small, **more)
    assert pair.later == ()
    assert 'are not used' in pair.notes[-1]
    assert why in pair.notes[-1]
    assert not any(note.startswith('taken as later') for note in pair.notes)


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
