"""The group page and its figures, from small tables and maps that are made here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import sidecar_path, write_nifti, write_tsv
from bids_perfdeficit.ct import load_template
from bids_perfdeficit.reports import group_figures
from bids_perfdeficit.reports.group import GroupReport, build_group_page, cite
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
    (tmp_path / 'sub-09.html').write_text('')
    summary = pd.DataFrame(
        {
            'item': [ITEM, SKIPPED],
            'status': ['fitted', 'skipped'],
            'reason': [None, 'only 0 participants have a deficit'],
            'scored': [10, 10],
            'with_deficit': [5, 0],
            'p_value': [0.004, None],
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
        [[ITEM, 1, 12.0, 36.0, -16.0, 44.0, 3.1, 'right', 'MCA']],
        columns=['item', 'cluster', 'volume_ml', 'x', 'y', 'z', 'peak', 'side', 'territory'],
    )
    write_tsv(clusters, report.path('group_clusters', model='spatial'))
    metrics = pd.DataFrame(
        [
            [ITEM, 'spatial', 10, -0.5, 0.6, 0.8, 0.1, -0.3, -0.5, -0.1],
            [ITEM, 'volume', 10, -0.2, 0.1, 0.6, 0.1, 0, 0, 0],
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


def test_the_page_tells_what_was_found_and_how_far_to_trust_it(report):
    page = build_group_page(report).read_text()
    assert '10 analysed, 2 left out' in page
    assert '2 left out: the file is truncated or damaged' in page  # told once for both
    assert 'href="sub-09.html"' in page
    assert 'spatial: 12 mL, p = 0.004' in page
    assert 'worse than volume alone' in page
    assert 'only 0 participants have a deficit' in page
    assert 'right MCA' in page
    assert '36, −16, 44' in page
    for warning in ('A caveat.', 'vascular bias', 'more than 5 % of the time',
                    'worse than by the volume'):  # fmt: skip
        assert warning in page.partition('id="cohort"')[0]
    for link in re.findall(r'(?:src|href)="([^"#:]+)"', page):
        assert (report.output_dir / link).is_file(), link
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_what_was_not_asked_for_is_left_out_and_not_missed(report):
    for key in ('group_metrics', 'group_null'):
        report.path(key, model='spatial').unlink()
    page = build_group_page(report).read_text()
    assert 'no cross-validation' in page
    assert 'not asked for' in page


def test_an_undeclared_map_is_shown_as_a_tendency_only(report):
    path = report.path('group_summary', model='spatial')
    table = pd.read_csv(path, sep='\t', na_values='n/a')
    table.loc[0, 'declared_ml'] = 0
    write_tsv(table, path)
    page = build_group_page(report).read_text()
    assert 'Nothing declared.' in page
    assert 'Tendency, no finding (spatial)' in page


def test_what_comes_from_tables_cannot_become_code(report):
    path = report.path('group_cohort')
    path.write_text(path.read_text().replace('is truncated', '<script>x</script>'))
    page = build_group_page(report).read_text()
    assert '<script>x' not in page
    assert '&lt;script&gt;x' in page


def test_figures_are_whole_mark_the_sides_and_are_repeatable(tmp_path):
    brain = load_template(DEFAULT_SPACE, spacing=8.0)
    inside = np.asarray(brain.brain_mask.dataobj) > 0
    t1 = nib.Nifti1Image(np.where(inside, brain.t1.get_fdata(), 0), brain.t1.affine)
    image = ball((36, -16, 44), 20)
    drawn = [
        group_figures.draw_deficit(
            image, image, t1, tmp_path / f'{n}.svg', title='a & b', ends=('low', 'high')
        )
        for n in range(2)
    ]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    root = ElementTree.fromstring(drawn[0].read_bytes())  # noqa: S314
    words = [element.text for element in root.iter('{http://www.w3.org/2000/svg}text')]
    assert {'R', 'L', 'A', 'P', 'from above', 'left half'} <= set(words)


def test_a_left_ball_is_drawn_on_the_right_of_the_view_from_above(tmp_path):
    """Radiological display: the patient's right is on the left."""
    from bids_perfdeficit.reports.figures import _look

    brain = load_template(DEFAULT_SPACE, spacing=8.0)
    inside = np.asarray(brain.brain_mask.dataobj) > 0
    view = _look(inside, brain.brain_mask, margin=4)
    plane = view.plane(ball((-40, 0, 30), 16).get_fdata(), 2, None)
    columns = np.nonzero(plane.any(axis=0))[0]
    assert columns.mean() > plane.shape[1] / 2


def test_plots_are_whole(tmp_path):
    rows = [(ITEM, 'spatial', 0.2, 0.1, 0.3), (ITEM, 'volume', 0, 0, 0)]
    gain = group_figures.draw_gain(rows, tmp_path / 'g.svg', names={})
    curves = {'ridge': {ITEM: [[0.1, 0.2, 5]]}, 'spatial': {ITEM: [[0.1, 0.2, 5]]}}
    calibration = group_figures.draw_calibration(curves, tmp_path / 'c.svg', names={})
    for path in (gain, calibration):
        ElementTree.fromstring(path.read_bytes())  # noqa: S314
        assert 'spatial' in path.read_text()


def test_citations_become_numbers_with_their_references():
    paragraphs, references = cite('One [@deficit; @nipype].\n\nTwo [after @deficit]. [sic]')
    assert paragraphs == ['One [1, 2].', 'Two [1]. [sic]']
    assert len(references) == 2
    assert '10.1038' in references[0]


@pytest.mark.parametrize('model', ['spatial', 'ridge', 'voxelwise', 'vae'])
def test_every_citation_of_the_methods_is_in_the_bibliography(model):
    from bids_perfdeficit.workflows.group import _MODEL_TEXTS

    keys = set(re.findall(r'@(\w+)', _MODEL_TEXTS[model]))
    text = (Path(__file__).parents[2] / 'bids_perfdeficit/data/boilerplate.bib').read_text()
    assert keys
    assert all(f'{{{key},' in text for key in keys)
