"""Fixtures of the commands."""

from __future__ import annotations

import filelock
import nibabel as nib
import pytest

from tests.mapped import Mapped, run


@pytest.fixture(scope='session')
def mapped(session_folder) -> Mapped:
    """Return a patient with a left M1 occlusion after the participant level."""
    root = session_folder / 'mapped'
    found = Mapped(root / 'raw', root / 'out', root / 'delay.nii.gz', root / 'brain.nii.gz')
    with filelock.FileLock(f'{root}.lock'):
        if not found.out.is_dir():
            from bids_perfdeficit.phantom import Occlusion, make_patient

            patient = make_patient(
                1000, Occlusion(site='M1', side='L', collaterals=0.35, position=0.2), spacing=4.0
            )
            folder = found.raw / 'sub-01' / 'ct'
            folder.mkdir(parents=True)
            nib.save(patient.ncct, folder / 'sub-01_ct.nii.gz')
            nib.save(patient.cta, folder / 'sub-01_cta.nii.gz')
            nib.save(patient.truth.delay, found.delay)
            nib.save(patient.truth.brain, found.brain)
            done = run(found.raw, found.out, 'participant', '--sloppy')
            assert done.returncode == 0, done.stdout + done.stderr
    return found
