"""Small pages of a group and of an evaluation, from tables and maps that are made here."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import ScanPair, sidecar_path, write_json, write_nifti, write_tsv
from bids_perfdeficit.ct import load_template
from bids_perfdeficit.pipeline import MAPS, summarize_cohort
from bids_perfdeficit.reports.comparison import ComparisonReport
from bids_perfdeficit.reports.evaluation import EvaluationReport
from bids_perfdeficit.reports.group import GroupReport
from bids_perfdeficit.settings import DEFAULT_SPACE

ITEM, SKIPPED = 'nihss_5a', 'nihss_7'


def ball(centre, radius: float, spacing: float = 8.0) -> nib.Nifti1Image:
    """Return a map that is 1 in a ball."""
    brain = load_template(DEFAULT_SPACE, spacing=spacing).brain_mask
    xyz = nib.affines.apply_affine(brain.affine, np.moveaxis(np.indices(brain.shape), 0, -1))
    inside = ((xyz - centre) ** 2).sum(-1) < radius**2
    return nib.Nifti1Image(inside.astype(np.float32), brain.affine)


@pytest.fixture
def report(tmp_path) -> GroupReport:
    """Return a report of one model and two items, one of which was skipped."""
    report = GroupReport(
        tmp_path, DEFAULT_SPACE, '8', ('spatial',), {'Resolution': '8 mm'},
        warnings=('A caveat.',), methods='Done with *care* [@deficit].\n\nAnd [after @nipype].',
    )  # fmt: skip
    people = pd.DataFrame(
        {
            'participant_id': [f'sub-{n:02d}' for n in range(12)],
            'status': ['analysed'] * 10 + ['left out'] * 2,
            'reason': [None] * 10
            + [f'/a/sub-{n}_map.nii.gz is truncated or damaged' for n in (10, 11)],
            'total_deficit_volume': [*range(10), None, None],
            'side': 0.1,
            ITEM: [0, 1] * 5 + [None] * 2,
            SKIPPED: 0,
        }
    )
    write_tsv(people, report.path('group_cohort'))
    for name in ('sub-09', 'index'):
        (tmp_path / f'{name}.html').write_text('')
    summary = pd.DataFrame(
        {
            'item': [ITEM, SKIPPED],
            'status': ['fitted', 'skipped'],
            'reason': [None, 'only 0 participants have a deficit'],
            'scored': [10, 10],
            'with_deficit': [5, 0],
            'p_value': [0.004, None],
            'p_holm': [0.06, None],
            'cut': [0.5, None],
            'declared_ml': [12.0, None],
            'coverage_resemblance': [0.9, None],
        }
    )
    write_tsv(summary, report.path('group_summary', model='spatial'))
    entities = {'model': 'spatial', 'contrast': 'nihss5a'}
    image = ball((36, -16, 44), 20)
    for stat in ('prob', 'effect', 'std', 'threshold'):
        write_nifti(image, report.path('group_statmap', **entities, stat=stat))
    write_nifti(image, report.path('group_mask'))
    write_nifti(image, report.path('group_coverage'))
    clusters = pd.DataFrame(
        [[ITEM, 1, 12.0, 36.0, -16.0, 44.0, 3.1, 'right', 'VB', 1]],
        columns=[
            'item',
            'cluster',
            'volume_ml',
            'x',
            'y',
            'z',
            'peak',
            'side',
            'territory',
            'result',
        ],
    )
    write_tsv(clusters, report.path('group_clusters', model='spatial'))
    metrics = pd.DataFrame(
        [
            [ITEM, 'spatial', 10, -0.5, 0.6, 0.8, 0.1, -0.3, -0.5, -0.1],
            [ITEM, 'territories', 10, -0.2, 0.1, 0.6, 0.1, 0, 0, 0],
        ],
        columns=['item', 'predictor', 'n', 'log_score', 'kappa', 'auc', 'ece', 'gain',
                 'gain_low', 'gain_high'],
    )  # fmt: skip
    path = report.path('group_metrics', model='spatial')
    write_tsv(metrics, path)
    sidecar_path(path).write_text(
        json.dumps({'Calibration': {ITEM: [[0.1, 0.2, 5], [0.8, 0.7, 5]]}})
    )
    null = pd.DataFrame({'item': [ITEM], 'shuffles': [20], 'nothing_declared': [0.8]})
    write_tsv(null, report.path('group_null', model='spatial'))
    return report


#: AUC of the computed map of the made participants of an evaluation; the last has no deficit.
AREAS = {'01': 0.97, '02': 0.91, '03': 0.62, '04': np.nan}


@pytest.fixture
def evaluation(tmp_path) -> EvaluationReport:
    """Return a report of four participants with references, one of which failed beside them."""
    root = tmp_path / 'evaluation-out'
    pairs = tuple(ScanPair(label, None, Path(), Path()) for label in AREAS)
    report = EvaluationReport(
        output_dir=root, space=DEFAULT_SPACE, pairs=pairs,
        methods='Compared by concordance [@lin].', settings='a = 1\n', versions={'numpy': '1'},
        fingerprints={'sub-01': 'abc'},
    )  # fmt: skip
    brain = load_template(DEFAULT_SPACE, spacing=8.0).brain_mask
    inside = np.asarray(brain.dataobj) > 0
    people, maps, patients = [], [], []
    for number, (pair, area) in enumerate(zip(pairs, AREAS.values(), strict=True)):
        late = np.asarray(ball((-40, -10, 10), 30).dataobj) * (number < 3)
        images = {
            'preproc_ct': 35.0 * inside,
            'brain_mask': inside,
            'perfusion': 0.3 * inside + late / 2,
            'hypoperfused': late,
            'reference_tmax': np.where(inside, 2 + 8 * late, np.nan),
        }
        for key, values in images.items():
            path = report.of(pair, key)
            write_nifti(nib.Nifti1Image(values.astype(np.float32), brain.affine), path)
        reported = {'Notes': ['the reference ends at 12 s'], 'Doubts': []} if number == 1 else {}
        write_json(reported, sidecar_path(report.of(pair, 'reference_metrics')))
        rows = pd.DataFrame({
            'map': list(MAPS), 'spearman': [0.8 - 0.1 * n for n in range(6)],
            'partial': [0.7 - 0.1 * n for n in range(5)] + [np.nan], 'spearman_deficit': 0.4,
            'auc': area, 'dice_matched': 0.6, 'side': 'left',
        })  # fmt: skip
        one = {
            'covered': 0.8, 'found_ml': 30.0 + number, 'reference_ml': 25.0 * (number < 3),
            'dice': 0.7, 'found_side': 'left', 'reference_side': 'left', 'found_site': 'M1',
            'found_site_side': 'left', 'reference_site': 'ICA', 'reference_site_side': 'left',
            'zero_share': 0.0, 'top_share': 0.01, 'top': 12.0, 'specks': 1, 'specks_ml': 0.1,
            'outside_ml': 0.0,
        }  # fmt: skip
        write_tsv(rows, report.of(pair, 'agreement_metrics'))
        write_tsv(pd.DataFrame([one]), report.of(pair, 'reference_metrics'))
        (root / f'{pair.prefix}.html').write_text('')
        maps.append(rows.assign(participant_id=pair.prefix))
        patients.append({'participant_id': pair.prefix, **one})
        people.append({'participant_id': pair.prefix, 'status': 'evaluated', 'reason': None})
    people.append({
        'participant_id': 'sub-05', 'status': 'failed', 'reason': '/d/<b>tmax</b>.nii: is cut',
    })  # fmt: skip
    summary = summarize_cohort(pd.concat(maps), pd.DataFrame(patients), seed=1)
    write_tsv(pd.DataFrame(people), report.path('evaluation_participants'))
    write_tsv(summary, report.path('evaluation_metrics'))
    (root / 'index.html').write_text('')
    return report


@pytest.fixture
def calibrated(tmp_path) -> ComparisonReport:
    """Return a report of a calibration to three participants, of which a file was written."""
    root = tmp_path / 'calibration-out'
    report = ComparisonReport(
        output_dir=root, methods='Refitted as in [@lin].', settings='a = 1\n',
        versions={'numpy': '1'}, fingerprints={'sub-01': 'abc'},
    )  # fmt: skip
    measures = {
        'spearman': (0.69, 0.72), 'spearman_deficit': (0.6, 0.64), 'auc': (0.97, 0.98),
        'error_ml': (55.0, 21.0), 'dice': (0.68, 0.77), 'log_loss': (0.33, 0.26),
        'occlusion_score': (-3.0, -2.0), 'occlusion_right': (0.0, 1.0),
    }  # fmt: skip
    people = []
    for number, name in enumerate(('sub-01', 'sub-02', 'sub-03')):
        for column, calibration in enumerate(('shipped', 'left out')):
            people.append({
                'participant_id': name, 'status': 'used', 'reason': None,
                'reference': f'bids:raw:derivatives/{name}/a_long_name_of_{number}_tmax.nii.gz',
                'calibration': calibration, 'found_ml': 80.0 + 20 * column + number,
                'reference_ml': 100.0,
                'notes': 'the reference ends at 12 s | 3 specks' if number else None,
                **{measure: values[column] for measure, values in measures.items()},
            })  # fmt: skip
    people.append({
        'participant_id': 'sub-04', 'status': 'left out', 'reason': 'there is no reference',
    })  # fmt: skip
    rows = [
        {'measure': name, 'n': 3, 'before': a, 'after': b, 'change': b - a, 'better': 3}
        for name, (a, b) in {**measures, 'concordance': (0.7, 0.9)}.items()
    ]
    write_tsv(pd.DataFrame(people), report.path('calibration_participants'))
    path = report.path('calibration_metrics')
    write_tsv(pd.DataFrame(rows), path)
    write_json({
        'Refitted': ['probability'],
        'Reasons': {'probability': 'mean error of volumes 55.0 mL before and 21.0 mL after'},
    }, sidecar_path(path))  # fmt: skip
    write_json({
        'BaseSHA256': '0' * 64, 'Threshold': 0.48,
        'Provenance': {
            'GeneratedBy': {'Name': 'bids_perfdeficit', 'Version': '0.1.0.dev1+g72d044e'},
            'Space': DEFAULT_SPACE, 'RandomSeed': 1,
            'Participants': [
                {'Participant': 'sub-01', 'Reference': people[0]['reference'],
                 'ReferenceSHA256': '1' * 64},
            ],
        },
    }, report.path('calibration_file'))  # fmt: skip
    (root / 'index.html').write_text('')
    return report
