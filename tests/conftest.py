"""Fixtures that every room's tests may use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import filelock
import nibabel as nib
import numpy as np
import pytest

if 'PYTEST_XDIST_WORKER' in os.environ:
    # Workers share the cores: with threads of their own in torch they wait for each other.
    os.environ.setdefault('OMP_NUM_THREADS', '1')

SHARED = Path(os.environ.get('PERFDEFICIT_SHARED', Path(__file__).resolve().parents[2] / 'shared'))


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Return the folder of real scans that are tried on but never shipped."""
    data = SHARED / 'data'
    if not data.is_dir():
        raise pytest.skip.Exception(
            'real scans are not at hand; set PERFDEFICIT_SHARED to their folder'
        )
    return data


@pytest.fixture(scope='session')
def session_folder(tmp_path_factory, worker_id: str) -> Path:
    """Return a folder that all workers of this test session share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == 'master' else base.parent


@pytest.fixture(scope='session')
def stroke_dataset(session_folder: Path) -> Path:
    """Return a BIDS dataset of one digital patient with a left M1 occlusion, at 2.5 mm."""
    root = session_folder / 'stroke-dataset'
    with filelock.FileLock(f'{root}.lock'):
        if not root.is_dir():
            from bids_perfdeficit.phantom.patient import make_patient
            from bids_perfdeficit.phantom.settings import Occlusion

            patient = make_patient(
                5, Occlusion(site='M1', side='L', collaterals=0.2, position=0.1), spacing=2.5
            )
            folder = root / 'sub-01' / 'ct'
            folder.mkdir(parents=True)
            for suffix, image in (('ct', patient.ncct), ('cta', patient.cta)):
                nib.save(image, folder / f'sub-01_{suffix}.nii.gz')
            description = {'Name': 'A digital stroke patient', 'BIDSVersion': '1.10.0'}
            (root / 'dataset_description.json').write_text(json.dumps(description))
            (root / 'participants.tsv').write_text('participant_id\tage\nsub-01\t71\n')
    return root


def add_broken_participants(root: Path) -> dict[str, str]:
    """Put five participants that cannot be used into a dataset.

    Returns
    -------
    dict of str to str
        From the label to a piece of the sentence that the user must read.
    """
    whole = root / 'sub-01' / 'ct'
    ncct, cta = (nib.load(whole / f'sub-01_{suffix}.nii.gz') for suffix in ('ct', 'cta'))
    values = np.asarray(ncct.dataobj, dtype=np.float32)
    bad = {
        'series': np.stack([values] * 3, axis=-1),
        'mri': np.clip(values + 1000, 0, None) / 3,
        'constant': np.full_like(values, 7),
    }
    for label in ('truncated', 'nocta', *bad):
        folder = root / f'sub-{label}' / 'ct'
        folder.mkdir(parents=True)
        image = nib.Nifti1Image(bad.get(label, values).astype(np.int16), ncct.affine)
        nib.save(image, folder / f'sub-{label}_ct.nii.gz')
        if label != 'nocta':
            nib.save(cta, folder / f'sub-{label}_cta.nii.gz')
    cut = root / 'sub-truncated' / 'ct' / 'sub-truncated_ct.nii.gz'
    cut.write_bytes(cut.read_bytes()[:20_000])
    return {
        'truncated': 'is truncated or damaged',
        'nocta': 'no CTA',
        'series': '3 volumes instead of one',
        'mri': 'does not look like a head CT in Hounsfield units',
        'constant': 'every voxel of the NCCT is 7',
    }
