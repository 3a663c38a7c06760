"""A digital patient, made once for the session."""

from __future__ import annotations

import pickle
from pathlib import Path

import filelock
import pytest

from bids_perfdeficit import ct
from tests.ct.heads import floats


@pytest.fixture(scope='session')
def patient(session_folder: Path):
    """Return a digital patient with a left M1 occlusion, scanned at 2 mm."""
    path = session_folder / 'patient.pickle'
    with filelock.FileLock(f'{path}.lock'):
        if not path.is_file():
            from bids_perfdeficit.phantom.patient import make_patient
            from bids_perfdeficit.phantom.settings import Occlusion

            made = make_patient(31, Occlusion(collaterals=0.2, position=0.1), spacing=2.0)
            path.write_bytes(pickle.dumps(made))
    return pickle.loads(path.read_bytes())  # noqa: S301 - written above


@pytest.fixture(scope='session')
def conformed(patient):
    """Return the patient's NCCT on a 2 mm grid."""
    return ct.conform(ct.CTVolume(floats(patient.ncct)), spacing=2.0).image


@pytest.fixture(scope='session')
def brain(conformed):
    """Return the mask that was found in it."""
    return ct.extract_brain(conformed).mask
