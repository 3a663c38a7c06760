"""Small pages of a group, from tables and maps that are made here."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import sidecar_path, write_nifti, write_tsv
from bids_perfdeficit.ct import load_template
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
