"""Digital patients and cohorts as BIDS datasets on disk, with everything that is true of them.

Three datasets: the raw one with images; ``derivatives/phantom-truth``; and
``derivatives/bids_perfdeficit-cohort``, which holds maps and scores as the participant level
leaves them, so that the group level can be run on it alone. Must not compute a perfusion map.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_perfdeficit import __version__, data
from bids_perfdeficit.bids import (
    output_path,
    sidecar,
    sidecar_path,
    write_json,
    write_nifti,
    write_text,
    write_tsv,
)
from bids_perfdeficit.phantom.cohort import Cohort, make_cohort
from bids_perfdeficit.phantom.patient import Patient, _template_grid, make_patient
from bids_perfdeficit.phantom.scores import ITEMS, PARTS, draw_scores, substrates
from bids_perfdeficit.phantom.settings import Occlusion, ScannerSettings

SPACE = 'MNI152NLin2009aSym'
TRUTH, COHORT = 'derivatives/phantom-truth', 'derivatives/bids_perfdeficit-cohort'
#: What the first patients have; those after them go round again with other collaterals.
_CASES = (
    Occlusion(site='M1', side='L', collaterals=0.35, position=0.2),
    Occlusion(site='none'),
    Occlusion(site='M2inf', side='R', collaterals=0.3),
    Occlusion(site='ICA', side='R', collaterals=0.6),
    Occlusion(site='P2', side='L', collaterals=0.2),
    Occlusion(site='M2sup', side='L', collaterals=0.3),
    Occlusion(site='A2', side='R', collaterals=0.2),
    Occlusion(site='BA', collaterals=0.4),
)
#: Slice thickness of the NCCT that the patients have in turn, mm; None for the voxel size.
_SLICES = (None, 2.5, 5.0)
_MEANINGS = {
    'delay': 'True delay of the tissue, like the Tmax of CT perfusion',
    'hypoperfused': 'Tissue with a delay over 6 s',
    'core': 'Tissue with under 30 % of its healthy flow',
    'brain': 'The brain',
    'territory': 'Artery that feeds the tissue: 2 i + 1 left, 2 i + 2 right; see README',
    'artery': 'Share of the voxel that is artery',
    'vein': 'Veins and dural sinuses',
    'enhancement': 'CT angiogram minus non-contrast CT without noise or movement',
}
_UNITS = {'delay': 's', 'enhancement': 'HU'}
_README = """# A digital stroke phantom

Made by bids_perfdeficit-phantom. Nobody was scanned for this.

`sub-*/ct/` are digital patients: a non-contrast CT and a CT angiogram as a scanner would make
them, of a head whose arteries were grown, whose blood flow was computed, and one artery of which
may be occluded. `derivatives/phantom-truth` holds what is true of them,
`derivatives/bids_perfdeficit-cohort` more patients, with maps and scores but without images.
"""
_TRUTH_README = """# What is true of the digital patients

- `sub-*/sub-*_desc-delay.nii.gz` and the other maps lie on the grid of the patient's NCCT; each
  has a sidecar that says what it is.
- `sub-*/sub-*_truth.json`: occlusion, collaterals, variants of the arteries, the moment of the
  scan, volumes (mL), and the rigid motion between the scans (`ncct_to_cta`, RAS mm).
- `substrates/item-*_mask.nii.gz`: the parts of the brain that each NIHSS item depends on, on the
  2 mm grid of {space}.
- Labels of `desc-territory` (left; the right side has one more): {territories}
"""


def write_dataset(
    out: Path,
    *,
    participants: int,
    cohort: int,
    seed: int,
    spacing: float = 1.0,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the phantom.

    Parameters
    ----------
    out : Path
        Folder, which is made.
    participants, cohort : int
        Patients with images, and patients with maps and scores only.
    seed : int
        One seed gives the same bytes on one machine.
    spacing : float
        In-plane voxel size of the scans, mm.
    report : callable
        Is given lines of progress.
    """
    _describe(out, 'A digital stroke phantom', 'raw', _README)
    write_text('ct\n', out / '.bidsignore')
    rows, delays = [], []
    mask = np.asarray([])
    for number in range(participants):
        case, turn = _CASES[number % len(_CASES)], number // len(_CASES)
        changed = min(0.95, case.collaterals + 0.2 * turn)
        occlusion = Occlusion(**(vars(case) | {'collaterals': changed}))
        thickness = _SLICES[number % len(_SLICES)]
        if thickness is not None and thickness < spacing:
            thickness = None
        label = f'{number + 1:02d}'
        patient = make_patient(
            1000 * seed + number,
            occlusion,
            spacing=spacing,
            scanner=ScannerSettings(ncct_thickness=thickness, tilt=12.0 if number == 2 else 0.0),
        )
        _write_scans(out, label, patient)
        _write_truth(out / TRUTH, label, patient)
        template = np.asarray(patient.truth.delay_template.dataobj, np.float32)
        mask = np.asarray(patient.truth.brain_template.dataobj) > 0
        delays.append(template[mask])
        rows.append({'participant_id': f'sub-{label}', 'age': patient.person['age'],
                     'sex': patient.person['sex']})  # fmt: skip
        report(f'patient {number + 1} of {participants}: {occlusion.site} {occlusion.side}')
    if participants:
        scores = draw_scores(np.stack(delays), mask, seed, flips=0.0)
        _write_tables(out, pd.DataFrame(rows), scores)
    _write_substrates(out / TRUTH)  # those of the cohort too
    if cohort:
        _write_cohort(out / COHORT, make_cohort(seed, cohort, report=report))


def _describe(folder: Path, name: str, kind: str, readme: str) -> None:
    description: dict[str, Any] = {'Name': name, 'BIDSVersion': '1.10.0', 'DatasetType': kind}
    description['License'] = 'CC0'
    if kind == 'derivative':
        description['GeneratedBy'] = [{'Name': 'bids_perfdeficit-phantom', 'Version': __version__}]
    else:
        description['Authors'] = ['bids_perfdeficit-phantom']
    write_json(description, folder / 'dataset_description.json')
    write_text(readme, folder / 'README.md')


def _write_scans(out: Path, label: str, patient: Patient) -> None:
    folder = out / f'sub-{label}' / 'ct'
    for suffix, image, facts in (
        ('ct', patient.ncct, {'ContrastBolusIngredient': 'none'}),
        ('cta', patient.cta, {'ContrastBolusIngredient': 'IODINE'}),
    ):
        path = folder / f'sub-{label}_{suffix}.nii.gz'
        write_nifti(image, path)
        write_json(
            {'Modality': 'CT', 'Manufacturer': 'bids_perfdeficit-phantom', 'KVP': 120, **facts},
            sidecar_path(path),
        )


def _write_truth(out: Path, label: str, patient: Patient) -> None:
    folder, truth = out / f'sub-{label}', patient.truth
    for name, meaning in _MEANINGS.items():
        path = folder / f'sub-{label}_desc-{name}.nii.gz'
        write_nifti(getattr(truth, name), path)
        write_json(
            {'Description': meaning, 'Units': _UNITS.get(name, 'arbitrary')}, sidecar_path(path)
        )
    write_json(
        {
            'seed': patient.seed,
            'occlusion': vars(patient.occlusion),
            'person': patient.person,
            'scan': patient.scan,
            'volumes_ml': truth.volumes,
            'ncct_to_cta': truth.ncct_to_cta.tolist(),
        },
        folder / f'sub-{label}_truth.json',
    )


def _write_substrates(out: Path) -> None:
    from bids_perfdeficit.phantom.arteries import TERRITORIES

    names = ', '.join(f'{2 * i + 1} {name}' for i, name in enumerate(TERRITORIES))
    readme = _TRUTH_README.format(space=SPACE, territories=names)
    _describe(out, 'Truth of a digital stroke phantom', 'derivative', readme)
    affine, _ = _template_grid()
    for item, where in substrates().items():
        path = out / 'substrates' / f'item-{item}_mask.nii.gz'
        write_nifti(nib.Nifti1Image(where.astype(np.uint8), affine), path)
        truth = ITEMS[item]
        write_json(
            {
                'Description': f'What item {item} of the NIHSS depends on in the phantom',
                'Parts': {
                    p: {'Centre': PARTS[p][0], 'HalfAxes': PARTS[p][1]} for p in truth.parts
                },
                'Sides': truth.sides,
                'Link': truth.link,
                'ShareOfVolume': truth.volume,
            },
            sidecar_path(path),
        )
    # The layout of the truth is its own; the validator looks at none of it but the description.
    write_text('sub-*\nsubstrates\n', out / '.bidsignore')


def _write_tables(out: Path, participants: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Write participants.tsv and phenotype/nihss.tsv with their sidecars; UN is untestable."""
    write_tsv(participants, out / 'participants.tsv')
    columns = {
        'age': {'Description': 'Age', 'Units': 'year'},
        'sex': {'Description': 'Sex', 'Levels': {'F': 'female', 'M': 'male'}},
    }
    write_json(
        columns
        | {
            name: {'Description': f'Truth of the phantom: {name.replace("_", " ")}'}
            for name in participants.columns[1:]
            if name not in columns
        },
        out / 'participants.json',
    )
    text = scores.map(lambda v: 'UN' if np.isnan(v) else str(int(v)))
    text.insert(0, 'participant_id', participants.participant_id.to_numpy())
    text['nihss_total'] = scores.fillna(0).sum(axis=1).astype(int).astype(str)
    write_tsv(text, out / 'phenotype' / 'nihss.tsv')
    scale = json.loads(data.load('nihss.json').read_text(encoding='utf-8'))
    kept = {key: scale[key] for key in ('MeasurementToolMetadata', *text.columns)}
    for item, truth in ITEMS.items():
        if truth.untestable:
            kept[f'nihss_{item}']['Levels']['UN'] = 'Untestable'
    write_json(kept, out / 'phenotype' / 'nihss.json')


def _write_cohort(out: Path, cohort: Cohort) -> None:
    """Write maps, masks and tables as the participant level and a study would leave them."""
    _describe(out, 'A digital stroke cohort', 'derivative', _README)
    write_text('ct\n', out / '.bidsignore')
    affine, mask = cohort.affine, cohort.mask
    for name, row in zip(cohort.participants.participant_id, cohort.perfusion, strict=True):
        values = np.zeros(mask.shape, np.float32)
        values[mask] = row.astype(np.float32).round(3)
        both = mask & mask[::-1]
        maps = {
            'std_perfusion': values,
            'std_asymmetry': np.where(both, values - values[::-1], 0).astype(np.float32),
            'std_brain_mask': mask.astype(np.uint8),
        }
        for key, volume in maps.items():
            path = output_path(out, key, participant=name.removeprefix('sub-'), space=SPACE)
            write_nifti(nib.Nifti1Image(volume, affine), path)
            write_json(sidecar(key, space=SPACE), sidecar_path(path))
    _write_tables(out, cohort.participants, cohort.scores)
