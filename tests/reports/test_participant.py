"""A participant's page is whole, says what it is given, and asks the network for nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from bids_perfdeficit.reports import FIGURES, build_participant_report, draw_brain_outline
from bids_perfdeficit.reports.words import DATA, SCRIPT

SECTIONS = (
    'summary',
    'perfusion',
    'vessels',
    'preparation',
    'quality',
    'errors',
    'methods',
    'reproduce',
)


#: A first row of a regional table.
WHOLE = {
    'region': 'hemisphere', 'hypoperfused_left': 1.6, 'hypoperfused_right': 120.2,
    'occlusion_site': 'M2', 'occlusion_side': 'right', 'occlusion_confidence': 0.71,
    'occlusion_any': 0.94, 'occlusion_next_site': 'PCA', 'occlusion_next_side': 'left',
    'occlusion_next_confidence': 0.19,
}  # fmt: skip


class Page(HTMLParser):
    """What a browser would load, the headings, the ids and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.alternatives: list[str] = []
        self.text = ''
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values['id']] if 'id' in values else []
        if tag == 'a':
            self.links.append(values['href'])
        else:
            self.loads += [values[k] for k in ('src', 'href', 'data', 'srcset') if k in values]
        if tag == 'img':
            self.alternatives.append(values.get('alt', ''))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    shape = (20, 24, 18)
    brain = np.zeros(shape)
    brain[4:16, 4:20, 4:14] = 1
    affine = np.diag([8.0, 8, 8, 1])
    for name in FIGURES:
        draw_brain_outline(
            nib.Nifti1Image((brain * 35).astype(np.float32), affine),
            nib.Nifti1Image(brain.astype(np.uint8), affine),
            tmp_path / 'sub-01' / 'figures' / f'sub-01_desc-{name}_ct.svg',
        )
    (tmp_path / 'index.html').write_text('')  # a run writes it after the pages
    return tmp_path


def build(out_dir: Path, session: str | None = None, **changes) -> Path:
    content = {
        'summary': {'Participant': 'sub-01', 'Later hemisphere': 'right'},
        'qc': {'brain_volume': 1431.0, 'skull_dice': 0.5, 'coverage_missing': 'none'},
        'regions': pd.DataFrame({'region': ['MCA'], 'arrival_left': [103.4]}),
        'methods': 'One paragraph.\n\nAnother one with <brackets> & signs.',
        'notes': ['The vertex was not scanned.'],
        'settings': '[processing]\nlevel = "full"\n',
        'versions': {'bids_perfdeficit': '1.2.3'},
    }
    return build_participant_report(out_dir, '01', session, **(content | changes))


def test_the_page_has_every_section_and_every_figure(out_dir):
    path = build(out_dir)
    assert path == out_dir / 'sub-01.html'
    page = Page(path)
    assert set(SECTIONS) <= set(page.ids)
    for name in FIGURES:
        assert f'sub-01/figures/sub-01_desc-{name}_ct.svg' in page.loads
    assert all(page.alternatives), 'each picture says what it is'


def test_what_is_handed_in_is_on_the_page(out_dir):
    text = Page(build(out_dir, errors=['Normalisation failed\nTraceback'])).text
    for words in (
        'Later hemisphere',
        'The vertex was not scanned.',
        '1431 mL',
        '103',
        'Another one with <brackets> & signs.',
        'level = "full"',
        '1.2.3',
        'Normalisation failed',
        'Not a medical device',
    ):
        assert words in text


def test_a_browser_would_load_nothing_from_elsewhere(out_dir):
    path = build(out_dir)
    page = Page(path)
    for reference in page.loads:
        assert reference.startswith('data:') or (out_dir / reference).is_file()
    assert not re.search(r'url\(|@import|<script', path.read_text())
    for link in page.links:
        assert link.startswith('#') or (out_dir / link).is_file()
        assert not link.startswith('#') or link[1:] in page.ids


def test_a_self_contained_page_needs_no_file_beside_it(out_dir):
    page = Page(build(out_dir, self_contained=True))
    assert len(page.loads) >= len(FIGURES)
    assert all(reference.startswith('data:') for reference in page.loads)
    assert all(link.startswith('#') for link in page.links)


def test_the_viewer_is_beside_the_page_or_in_one_that_is_mailed(out_dir):
    assert 'view-map' not in build(out_dir).read_text(), 'without volumes there is no viewer'
    script = out_dir / 'sub-01' / 'figures' / 'sub-01_desc-viewer_ct.js'
    view = {'maps': [{'id': 'p', 'title': 'A map'}], 'grounds': [{'title': 'NCCT'}], 'volumes': {}}
    script.write_text(f'{SCRIPT}{json.dumps(view)};\n')
    page = Page(build(out_dir))
    assert 'sub-01/figures/sub-01_desc-viewer_ct.js' in page.loads
    assert 'A map' in page.text
    mailed = Page(build(out_dir, self_contained=True))
    assert all(reference.startswith('data:') for reference in mailed.loads)
    assert json.dumps(view) in mailed.text


def test_two_pages_of_the_same_content_are_the_same_bytes_and_nothing_else_is_written(out_dir):
    before = {p: p.read_bytes() for p in out_dir.rglob('*') if p.is_file()}
    first = build(out_dir).read_bytes()
    assert build(out_dir).read_bytes() == first
    after = {p: p.read_bytes() for p in out_dir.rglob('*') if p.is_file()}
    assert after.pop(out_dir / 'sub-01.html') == first
    assert after == before


@pytest.mark.parametrize('content', [None, b'', b'<svg', b'\x89PNG', b'\xff\xfe\x00'])
def test_a_missing_or_broken_figure_is_said_and_the_rest_stays(out_dir, content):
    figure = out_dir / 'sub-01' / 'figures' / 'sub-01_desc-asymmetry_ct.svg'
    figure.unlink() if content is None else figure.write_bytes(content)
    page = Page(build(out_dir))
    assert "There is no figure 'asymmetry'" in page.text
    assert f'sub-01/figures/{figure.name}' not in page.loads
    assert 'sub-01/figures/sub-01_desc-perfusion_ct.svg' in page.loads


def test_a_page_can_be_built_for_a_patient_of_whom_nothing_was_computed(tmp_path):
    path = build(tmp_path, qc={}, regions=None, methods='', notes=(), errors=['No CTA'])
    page = Page(path)
    assert 'No CTA' in page.text
    assert 'Quality was not measured' in page.text


def test_sessions_have_pages_and_figures_of_their_own(out_dir):
    folder = out_dir / 'sub-01' / 'figures'
    named = folder / 'sub-01_ses-b_space-MNI152NLin2009aSym_desc-asymmetry_ct.svg'
    named.write_bytes((folder / 'sub-01_desc-asymmetry_ct.svg').read_bytes())
    path = build(out_dir, 'b')
    assert path == out_dir / 'sub-01_ses-b.html'
    drawn = [reference for reference in Page(path).loads if reference.endswith('.svg')]
    assert drawn == [f'sub-01/figures/{named.name}']
    (folder / 'sub-01_desc-asymmetry_ct.svg').unlink()
    assert "There is no figure 'asymmetry'" in Page(build(out_dir)).text


def test_text_from_outside_cannot_become_markup(out_dir):
    evil = '<script>alert(1)</script>'
    path = build(
        out_dir,
        summary={evil: evil},
        notes=[evil],
        errors=[evil],
        settings=evil,
        versions={evil: evil},
        methods=evil,
        qc={evil: evil},
        regions=pd.DataFrame({evil: [evil]}),
    )
    assert '<script' not in path.read_text()


@pytest.mark.parametrize(
    ('metrics', 'verdict'),
    [
        ({'skull_dice': 0.95}, '✓ usual'),
        ({'skull_dice': 0.2}, '⚠ look'),
        ({'skull_dice': float('nan')}, '⚠ look'),
        ({'brain_volume': 5000}, '⚠ look'),
        ({'coverage_missing': 'vertex'}, '⚠ look'),
        ({'inflow_method': 'prior'}, '✓ usual'),
    ],
)
def test_a_metric_is_set_beside_its_limits(out_dir, metrics, verdict):
    text = Page(build(out_dir, qc=pd.DataFrame([metrics]))).text
    assert verdict in text
    assert ({'✓ usual', '⚠ look'} - {verdict}).pop() not in text


def test_findings_are_reported_to_the_extent_that_the_table_has_them():
    from bids_perfdeficit.reports.page import describe_findings

    territories = [
        {'region': 'ACA', 'hypoperfused_right': 9.0},
        {'region': 'VB', 'hypoperfused_right': 90.0},
        {'region': 'M1', 'hypoperfused_right': 99.0},  # an ASPECTS region
    ]
    assert describe_findings([]) == {}
    assert describe_findings(territories) == {}
    found = describe_findings([WHOLE, *territories])
    assert found == {
        'Likely occlusion': 'right M2 (70 %), or left PCA (20 %)',
        'Probability of any occlusion': '95 %',
        'Hypoperfused left, mL': 2,
        'Hypoperfused right, mL': 120,
        'Later side': 'right, most in the vertebrobasilar territory',
    }
    rival = WHOLE | {'occlusion_site': 'M1', 'occlusion_next_site': 'M2',
                     'occlusion_next_side': 'right'}  # fmt: skip
    assert describe_findings([rival])['Likely occlusion'] == (
        'right M1 (70 %), or right M2 (20 %); often confused with right ICA'
    )
    named = rival | {'occlusion_next_site': 'ICA'}
    assert describe_findings([named])['Likely occlusion'] == 'right M1 (70 %), or right ICA (20 %)'
    sideless = WHOLE | {'occlusion_site': 'BA', 'occlusion_side': None}
    assert describe_findings([sideless])['Likely occlusion'].startswith('BA (70 %)')


def test_a_site_that_is_withheld_is_reported_with_its_reason():
    from bids_perfdeficit.reports.page import describe_findings

    nothing = dict.fromkeys([k for k in WHOLE if k.startswith('occlusion')])
    reason = 'left M2 does not hold under a shift of 1 mm (no occlusion then)'
    found = describe_findings([WHOLE | nothing | {'occlusion_withheld': reason}])
    assert found['Likely occlusion'] == f'not reported: {reason}'
    assert 'Probability of any occlusion' not in found
    assert 'Likely occlusion' not in describe_findings([WHOLE | nothing])


def test_a_volume_is_given_with_its_interval():
    from bids_perfdeficit.reports.page import describe_findings, describe_volumes

    ends = {'hypoperfused_low_left': 1.2, 'hypoperfused_high_left': 1.9,
            'hypoperfused_low_right': 101.0, 'hypoperfused_high_right': 139.6}  # fmt: skip
    found = describe_findings([WHOLE | ends])
    assert found['Hypoperfused right, mL'] == '120 (101 to 140)'
    assert found['Hypoperfused left, mL'] == '2 (1 to 2)'
    line = describe_volumes(WHOLE | ends)
    assert line.startswith('Hypoperfused: left 2 (1 to 2) mL, right 120 (101 to 140) mL')
    assert line.endswith('in brackets: 90 % interval')
    assert 'interval' not in describe_volumes(WHOLE)
    assert describe_volumes({}) == ''


@pytest.mark.parametrize(
    ('artery', 'sinus', 'phase'),
    [
        (200, 40, 'arterial'),
        (200, 180, 'equilibrium'),
        (100, 160, 'venous'),
        (20, 10, 'not known'),
    ],
)
def test_the_phase_is_that_of_the_contrast_of_arteries_and_sinuses(artery, sinus, phase):
    from bids_perfdeficit.reports.page import _describe_phase

    assert _describe_phase({'artery_contrast': artery, 'sinus_contrast': sinus}).startswith(phase)
    assert _describe_phase({}) == 'not measured'


def test_vessels_are_compared_between_sides_only_where_there_are_some():
    from bids_perfdeficit.reports.page import format_vessels

    table = format_vessels(
        pd.DataFrame({
            'region': ['hemisphere', 'MCA', 'VB', 'insula'],
            'vessels_left': [8.0, 3.0, 0.1, 1.0],
            'vessels_right': [10.0, 6.0, 0.3, 1.0],
        })
    )  # fmt: skip
    assert list(table['Ratio, left / right']) == ['0.80', '0.50', 'too few vessels']
    assert format_vessels(pd.DataFrame({'region': ['MCA']})).empty


def test_the_verdict_comes_first_with_its_reasons(out_dir):
    page = build(out_dir, verdict=('doubtful', ['the subtraction is <noisy>']))
    text = page.read_text()
    assert text.index('Doubtful') < text.index('Participant')
    assert 'the subtraction is &lt;noisy&gt;' in text
    assert 'No quality metric is outside' in build(out_dir, verdict=('complete', [])).read_text()


@pytest.mark.parametrize(
    ('site', 'chance', 'reported'),
    [
        (
            'ICA',
            0.9999,
            'right ICA (> 95 %); often confused with right M1',
        ),  # the demo's, which is an M1
        ('M1', 0.96, 'right M1 (> 95 %); often confused with right ICA'),
        ('PCA', 1.0, 'right PCA (> 95 %); often confused with BA'),
        ('M2', 0.02, 'right M2 (< 5 %)'),
    ],
)
def test_no_site_is_reported_as_if_it_were_certain(site, chance, reported):
    from bids_perfdeficit.reports.page import describe_findings

    sure = {'occlusion_site': site, 'occlusion_confidence': chance, 'occlusion_any': 1.0,
            'occlusion_next_confidence': 0.001}  # fmt: skip
    found = describe_findings([WHOLE | sure])
    assert found['Likely occlusion'] == reported
    assert found['Probability of any occlusion'] == '> 95 %'


@pytest.mark.parametrize(
    ('left', 'right', 'reported'),
    [
        (0.07, 0.0, 'neither (both under 5 mL)'),
        (4.9, 0.0, 'neither (both under 5 mL)'),
        (60.0, 57.0, 'both alike'),
        (6.0, 0.0, 'left'),
        (6.0, 20.0, 'right'),
    ],
)
def test_a_side_is_called_later_only_where_there_is_something_to_see(left, right, reported):
    from bids_perfdeficit.reports.page import describe_findings

    whole = WHOLE | {'hypoperfused_left': left, 'hypoperfused_right': right}
    territory = {'region': 'MCA', 'asymmetry': 0.9}
    assert describe_findings([whole, territory])['Later side'] == reported


def test_regions_are_distinguished_from_arteries_and_with_as_many_digits_as_mean_something():
    from bids_perfdeficit.reports.page import format_regions

    table = format_regions(
        pd.DataFrame(
            {
                'region': ['hemisphere', 'VB', 'M1', 'insula'],
                'voxels_left': 9,
                'arrival_left': [962.34, 1.0, 1.0, np.nan],
                'asymmetry': [-0.0264, 0.001, -0.001, 0.5],
                'hypoperfused_right': [0.0264, 139.93, 1.0, 0.0],
                'occlusion_site': 'M1',
            }
        )
    )
    assert list(table['Region']) == [
        'Hemisphere', 'vertebrobasilar territory', 'ASPECTS M1 region', 'ASPECTS insula region',
    ]  # fmt: skip
    assert list(table.columns[1:]) == [
        'Arrival, left', 'Asymmetry, left − right', 'Hypoperfused right, mL',
    ]  # fmt: skip
    assert list(table['Arrival, left']) == ['962', '1', '1', 'n/a']
    assert list(table['Asymmetry, left − right']) == ['−0.03', '0.00', '0.00', '0.50']
    assert list(table['Hypoperfused right, mL']) == ['0.0', '139.9', '1.0', '0.0']


def test_numbers_have_the_digits_of_a_person():
    from bids_perfdeficit.reports.words import show

    reported = [
        show(v) for v in (1492.3, 39.662, 9.176, 0.98062, 0.8, 0.0264, 3.0, 0.0001, -0.0001, -4.44)
    ]
    assert reported == [
        '1492',
        '39.7',
        '9.2',
        '0.981',
        '0.8',
        '0.026',
        '3',
        '< 0.001',
        '0',
        '−4.4',
    ]


def test_the_layout_names_each_figure_once():
    layout = yaml.safe_load((DATA / 'participant.yml').read_text())
    listed = [
        reportlet['piece'] for section in layout['sections'] for reportlet in section['reportlets']
    ]
    assert len(listed) == len(set(listed))
    assert set(FIGURES) <= set(listed)


def test_importing_the_package_is_cheap():
    import subprocess
    import sys

    code = (
        'import sys, bids_perfdeficit.reports;'
        'print([m for m in ("matplotlib", "nireports", "nibabel", "bids") if m in sys.modules])'
    )
    answer = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == '[]'
