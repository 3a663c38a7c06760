"""The group page and its figures, from small tables and maps that are made here."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import sidecar_path, write_nifti, write_tsv
from bids_perfdeficit.ct import load_template
from bids_perfdeficit.deficit import get_model, model_names
from bids_perfdeficit.reports import group_figures
from bids_perfdeficit.reports.group import _on, _support, build_group_page
from bids_perfdeficit.reports.words import cite
from bids_perfdeficit.settings import DEFAULT_SPACE
from tests.reports.conftest import ITEM, ball


def test_the_page_says_what_was_found_and_how_far_to_trust_it(report):
    page = build_group_page(report).read_text()
    assert '10 analysed, 2 left out' in page
    assert '2 left out: the file is truncated or damaged' in page  # reported once for both
    assert 'href="sub-09.html"' in page
    assert '12 mL, p = 0.004 for the item as a whole' in page
    assert 'right vertebrobasilar' in page
    assert 'interpolated for display only' in page
    assert 'only 0 participants have a deficit' in page
    assert '36, −16, 44' in page
    for warning in ('A caveat.', 'vascular bias', 'more than 5 % of the cohorts',
                    'worse than by the deficit in each territory'):  # fmt: skip
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
    assert page.count('Not asked for in this run') == 1
    assert 'resampled cohorts (--bootstraps)' in page


@pytest.mark.parametrize(
    ('gain', 'reported'),
    [
        ((0.1, 0.3), ''),
        ((-0.1, 0.3), 'but it predicts no better than the deficit in each territory, so'),
        ((-0.3, -0.1), 'but it predicts worse than the deficit in each territory, so'),
        (None, 'but its prediction was not tested'),
    ],
)
def test_what_speaks_against_a_declared_map_is_as_large_as_the_declaration(report, gain, reported):
    summary = report.path('group_summary', model='spatial')
    table = pd.read_csv(summary, sep='\t', na_values='n/a').assign(coverage_resemblance=0.1)
    write_tsv(table, summary)
    report.path('group_null', model='spatial').unlink()
    path = report.path('group_metrics', model='spatial')
    if gain is None:
        path.unlink()
    else:
        metrics = pd.read_csv(path, sep='\t')
        metrics.loc[0, ['gain_low', 'gain_high']] = gain
        write_tsv(metrics, path)
    page = build_group_page(report).read_text()
    (headline,) = re.findall(r'<strong>(spatial: declared.*?)</strong>', page)
    assert headline.startswith(
        f'spatial: declared, {reported}' if reported else 'spatial: declared.'
    )


def test_bias_and_false_declarations_stand_beside_the_declaration_too(report):
    (headline,) = re.findall(
        r'<strong>(spatial: declared.*?)</strong>', build_group_page(report).read_text()
    )
    assert 'often hypoperfused voxels' in headline
    assert 'shuffled scores' in headline


@pytest.mark.parametrize('false', [0.3, 0.7])
def test_expected_errors_and_territories_stand_beside_a_declared_map(report, false):
    summary = report.path('group_summary', model='spatial')
    table = pd.read_csv(summary, sep='\t', na_values='n/a').assign(
        expected_dice=0.44, expected_false_discoveries=false, expected_ml=9.0, credible_ml=31.0
    )
    write_tsv(table, summary)
    territories = pd.DataFrame(
        [[table['item'][0], 'right', 'MCA', 0.8], [table['item'][0], 'left', 'PCA', 0.2]],
        columns=['item', 'side', 'territory', 'share'],
    )
    write_tsv(territories, report.path('group_territories', model='spatial'))
    shown = {'model': 'spatial', 'contrast': 'nihss5a'}
    write_nifti(ball((36, -16, 44), 40), report.path('group_statmap', **shown, stat='credible'))
    params = sidecar_path(report.path('group_params', model='spatial'))
    params.write_text(json.dumps({'Reliability': [[0.25, 0.21, 1234]]}))
    page = build_group_page(report).read_text()
    assert f'{false:.0%} of the declared volume lies outside the substrate' in page
    assert 'a credible set of 31 mL' in page
    assert 'right MCA 80\u00a0%, left PCA 20\u00a0%' in page
    assert ('read the credible set' in page) == (false > 0.5)
    row = (
        'somewhere in 31 mL (right MCA 80\u00a0%, left PCA 20\u00a0%); no region can be delimited'
    )
    assert (row in page) == (false > 0.5)
    assert ('12 mL: right vertebrobasilar' in page) == (false <= 0.5)
    figure = report.path('group_figure', **shown, figure='map').read_text()
    assert ('90 % credible set' in figure) == (false > 0.5)
    assert ('white line: declared' in figure) == (false <= 0.5)
    assert 'Reliability of the probabilities of spatial' in page
    assert '1,234' in page


@pytest.mark.parametrize(
    ('deep', 'low', 'high', 'said'),
    [
        (0.35, 0.02, 0.11, 'in this cohort deep is better supported'),
        (0.22, -0.12, -0.01, 'in this cohort spatial is better supported'),
        (0.29, -0.03, 0.04, 'in this cohort neither is better supported'),
    ],
)
def test_the_page_names_the_model_that_simulated_items_support(report, deep, low, high, said):
    compared = {'deep': deep, 'spatial': 0.28, 'low': low, 'high': high, 'items': 52}
    text = _support('deep', compared)
    assert said in text
    assert f'{deep - 0.28:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}' in text
    assert _support('deep', compared | {'items': 0}) == _support('deep', {}) == ''
    params = sidecar_path(report.path('group_params', model='spatial'))
    content = {'Reliability': [[0.25, 0.21, 1234]], 'SimulatedItems': compared}
    params.write_text(json.dumps(content))
    assert 'better supported' in build_group_page(report).read_text()


def test_caveats_call_items_by_their_names(report):
    caveat = 'nihss_5a: untestable, taken as missing: 01 (UN).'
    page = build_group_page(replace(report, warnings=(caveat,))).read_text()
    assert '<li>5a. Motor arm, left: untestable, taken as missing: 01 (UN).</li>' in page


def test_a_coarse_map_is_interpolated_for_display_within_its_own_range(report):
    entities = {'model': 'spatial', 'contrast': 'nihss5a'}
    target = load_template(DEFAULT_SPACE, spacing=2.0).brain_mask
    seen = _on(report.path('group_statmap', **entities, stat='prob'), target).get_fdata()
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert len(np.unique(seen)) > 100, 'no steps'
    line = _on(report.path('group_mask'), target, binary=True).get_fdata()
    assert ((line > 0.05) & (line < 0.45)).any(), 'the outline is drawn between voxels'


def test_an_undeclared_map_is_shown_as_a_tendency_only(report):
    path = report.path('group_summary', model='spatial')
    table = pd.read_csv(path, sep='\t', na_values='n/a')
    table.loc[0, 'declared_ml'] = 0
    write_tsv(table, path)
    page = build_group_page(report).read_text()
    assert '<strong>spatial: nothing declared.</strong>' in page
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
            image,
            image,
            t1,
            tmp_path / f'{n}.svg',
            title='a & b',
            ends=('low', 'high'),
            outlined='white line: declared',
        )
        for n in range(2)
    ]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    root = ElementTree.fromstring(drawn[0].read_bytes())  # noqa: S314
    words = [element.text for element in root.iter('{http://www.w3.org/2000/svg}text')]
    assert {
        'R',
        'L',
        'A',
        'P',
        'axial projection',
        'left surface (16 mm deep)',
        'white line: declared',
    } <= set(words)
    # White on black, to be seen on any colour of the scale.
    lines = [e.get('class') for e in root.iter('{http://www.w3.org/2000/svg}path')]
    assert lines == ['edge', 'core'] * (len(lines) // 2)
    assert len(lines) > 2


def test_a_left_ball_is_drawn_on_the_right_of_the_view_from_above(tmp_path):
    """Radiological display: the patient's right is on the left."""
    from bids_perfdeficit.reports.figures import _look

    brain = load_template(DEFAULT_SPACE, spacing=8.0)
    inside = np.asarray(brain.brain_mask.dataobj) > 0
    view = _look(inside, brain.brain_mask, margin=4)
    plane = view.plane(ball((-40, 0, 30), 16).get_fdata(), 2, None)
    columns = np.nonzero(plane.any(axis=0))[0]
    assert columns.mean() > plane.shape[1] / 2


def test_a_surface_is_coloured_by_what_lies_beneath_it_on_its_own_side():
    from bids_perfdeficit.reports.figures import _look

    brain = load_template(DEFAULT_SPACE, spacing=8.0)
    inside = np.asarray(brain.brain_mask.dataobj) > 0
    t1 = np.where(inside, brain.t1.get_fdata(), 0)
    view = _look(inside, brain.brain_mask, margin=4)
    field = ball((56, -20, 20), 14).get_fdata()

    def blend(plane: np.ndarray, ground: np.ndarray) -> np.ndarray:
        return np.where(plane[..., None] > 0.5, [200.0, 0, 0], ground)

    right, left = (
        group_figures._surface(view, field, t1, blend, left=is_left) for is_left in (False, True)
    )
    red = [(p[..., 0] - p[..., 1]) > 40 for p in (right, left)]
    assert red[0].any()
    assert not red[1].any()
    rows, columns = np.nonzero(red[0])
    assert columns.mean() < right.shape[1] / 2, 'behind, which is on the left from the right'
    assert rows.mean() < right.shape[0] * 0.6


def test_the_top_has_a_row_and_a_thumbnail_for_each_item(report):
    summary = report.path('group_summary', model='spatial')
    table = pd.read_csv(summary, sep='\t', na_values='n/a')
    write_tsv(table.assign(expected_false_discoveries=0.25), summary)
    page = build_group_page(report).read_text()
    table = page.partition('class="findings"')[2].partition('</table>')[0]
    assert table.count('<tr class=') == 2
    assert table.count('<img ') == 1
    (picture,) = re.findall(r'<img src="([^"]+)"', table)
    assert (report.output_dir / picture).is_file()
    for piece in ('12 mL: right vertebrobasilar', '25 %', '−0.300 (−0.500 to −0.100)', '0.06',
                  'not better than territories', 'only 0 participants'):  # fmt: skip
        assert piece in table, piece
    assert page.index('class="findings"') < page.index('id="cohort"')
    assert 'expected to be false' not in table, 'its probability is 1'
    assert 'How to cite' in page


def test_plots_are_whole(tmp_path):
    rows = [(ITEM, 'spatial', 0.2, 0.1, 0.3), (ITEM, 'territories', 0, 0, 0)]
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


def test_every_reference_says_where_it_was_published():
    from bids_perfdeficit.reports.words import references

    for key, line in references().items():
        assert re.search(r'10\.\d{4}|arXiv \d{4}\.\d{5}|https?://|Press', line), key


@pytest.mark.parametrize('model', model_names())
def test_every_citation_of_the_methods_is_in_the_bibliography(model):
    keys = set(re.findall(r'@(\w+)', get_model(model).methods))
    text = (Path(__file__).parents[2] / 'bids_perfdeficit/data/boilerplate.bib').read_text()
    assert keys
    assert all(f'{{{key},' in text for key in keys)
