"""All pages in a real browser: quiet, whole, reachable by keyboard, and left is left."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import write_tsv
from bids_perfdeficit.bids.ratings import Rating, read_ratings
from bids_perfdeficit.reports import (
    FIGURES,
    build_participant_report,
    draw_brain_outline,
    draw_flicker,
)
from bids_perfdeficit.reports.calibration import build_calibration_page
from bids_perfdeficit.reports.cohort import build_index
from bids_perfdeficit.reports.evaluation import build_evaluation_page
from bids_perfdeficit.reports.group import build_group_page
from tests.reports.test_participant import WHOLE

playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')

COUNT = 1400
FLICKERS = ('registration', 'normalization')
#: Everything that a screen reader or a keyboard needs, and that can be counted.
STRUCTURE = """() => {
  const all = (what) => Array.from(document.querySelectorAll(what));
  const levels = all('h1,h2,h3,h4').map((head) => Number(head.tagName[1]));
  const named = (e) => e.getAttribute('aria-label') || e.getAttribute('alt');
  const ids = all('[id]').map((e) => e.id);
  return {
    language: document.documentElement.lang,
    landmarks: ['header', 'nav[aria-label]', 'main'].filter((what) => all(what).length !== 1),
    firstHeadings: levels.filter((level) => level === 1).length,
    skippedHeadings: levels.filter((level, n) => n && level > levels[n - 1] + 1).length,
    nameless: all('img,[role=img],iframe').filter((e) => !named(e)).length,
    unlabelled: all('input,select').filter((e) => !e.labels.length).length,
    silent: all('button,a[href]').filter((e) => !e.textContent.trim()).length,
    scopeless: all('th:not([scope])').length,
    repeated: ids.filter((id, n) => ids.indexOf(id) !== n),
    broken: all('a[href^="#"]').map((a) => a.getAttribute('href').slice(1))
      .filter((id) => !document.getElementById(id)),
    wide: document.documentElement.scrollWidth > window.innerWidth,
  };
}"""
GOOD = {
    'language': 'en', 'landmarks': [], 'firstHeadings': 1, 'skippedHeadings': 0, 'nameless': 0,
    'unlabelled': 0, 'silent': 0, 'scopeless': 0, 'repeated': [], 'broken': [], 'wide': False,
}  # fmt: skip


@pytest.fixture(scope='module')
def browser():
    """Return a headless Chromium."""
    found = next(
        filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
    )
    with playwright.sync_playwright() as started:
        try:
            # No sandbox: tests run as root in containers, and the pages are our own.
            browser = started.chromium.launch(executable_path=found, args=['--no-sandbox'])
        except playwright.Error as error:
            raise pytest.skip.Exception(
                'no Chromium is at hand; install one to test the pages in a browser'
            ) from error
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what it asked for and complained of."""

    def __init__(self, browser, path: Path, width: int = 1280, height: int = 800) -> None:
        self.tab = browser.new_page(viewport={'width': width, 'height': height})
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.tab.on('request', lambda request: self.asked.append(request.url))
        self.tab.on('pageerror', lambda error: self.complaints.append(str(error)))
        self.tab.on(
            'console',
            lambda m: self.complaints.append(m.text) if m.type in ('error', 'warning') else None,
        )
        self.tab.goto(path.as_uri())

    def focused(self, key: str) -> str:
        """Press a key and return what has the focus then, by tag and class."""
        self.tab.keyboard.press(key)
        return self.tab.evaluate(
            "`${document.activeElement.tagName} ${document.activeElement.getAttribute('class')}`"
        )

    @property
    def files(self) -> list[str]:
        return [url for url in self.asked if not url.startswith(('data:', 'blob:'))]


@pytest.fixture
def visit(browser):
    """Return how to open a page; all are closed in the end."""
    opened = []

    def visit(path: Path, **options) -> Visit:
        opened.append(Visit(browser, path, **options))
        return opened[-1]

    yield visit
    for one in opened:
        one.tab.close()


def participant_page(out_dir: Path, *, self_contained: bool = False) -> Path:
    shape = (20, 24, 18)
    brain = np.zeros(shape)
    brain[4:16, 4:20, 4:14] = 1
    affine = np.diag([8.0, 8, 8, 1])
    head = nib.Nifti1Image((brain * 35).astype(np.float32), affine)
    mask = nib.Nifti1Image(brain.astype(np.uint8), affine)
    for name in FIGURES:
        target = out_dir / 'sub-01' / 'figures' / f'sub-01_desc-{name}_ct.svg'
        if name in FLICKERS:
            draw_flicker(head, mask, target, contour=mask)
        else:
            draw_brain_outline(head, mask, target)
    (out_dir / 'index.html').write_text('')
    return build_participant_report(
        out_dir, '01', found={'Later side': 'left'}, summary={'Participant': 'sub-01'},
        qc={'brain_volume': 1431.0, 'skull_dice': 0.5},
        regions=pd.DataFrame({'region': ['MCA'], 'asymmetry': [0.2]}),
        methods='Done [@nipype].', settings='a = 1\n', versions={'numpy': '1'},
        self_contained=self_contained,
    )  # fmt: skip


def cohort_page(out_dir: Path, count: int) -> Path:
    """Every tenth failed, and every seventh of the others has a misaligned CTA."""
    reported = {}
    out_dir.mkdir(exist_ok=True)
    for number in range(count):
        name = f'sub-{number:04d}'
        reported[name] = {'status': 'complete', 'reasons': []}
        if number % 10 == 0:
            reported[name] = {'status': 'failed', 'reasons': [f'/d/{name}_ct.nii.gz is <damaged>']}
            continue
        (out_dir / f'{name}.html').write_text('')
        metrics = {'brain_volume': 1300.0 + number % 50, 'coverage_missing': 'none',
                   'brain_mean': 39.7, 'template_dice': 0.98, 'subtraction_noise': 9.2,
                   'vessel_contrast': 229.1, 'inflow_voxels': 133}  # fmt: skip
        metrics['skull_dice'] = 0.3 if number % 7 == 0 else 0.9
        folder = out_dir / name / 'ct'
        write_tsv(pd.DataFrame([metrics]), folder / f'{name}_desc-qc_metrics.tsv')
        regions = pd.DataFrame([
            WHOLE | {'occlusion_confidence': number % 40 / 40},
            {'region': 'VB', 'hypoperfused_right': 90.0},
        ])  # fmt: skip
        write_tsv(regions, folder / f'{name}_desc-regions_metrics.tsv')
    log = out_dir / 'logs' / '20260101-000000_x'
    log.mkdir(parents=True)
    (log / 'status.json').write_text(json.dumps({'participants': reported}))
    path = build_index(out_dir, {})
    assert path is not None
    return path


@pytest.fixture
def pages(tmp_path, report, evaluation, calibrated):
    """Return each kind of page, made by the same calls as in a run."""
    alone = tmp_path / 'alone'
    alone.mkdir()
    made = {'participant': participant_page(alone, self_contained=True)}
    # Alone: whatever it would ask for is not there.
    shutil.rmtree(alone / 'sub-01')
    group = build_group_page(replace(report, self_contained=True))
    made['group'] = Path(shutil.copy(group, alone / 'group.html'))
    compared = build_evaluation_page(replace(evaluation, self_contained=True))
    made['evaluation'] = Path(shutil.copy(compared, alone / 'evaluation.html'))
    return {
        'alone-participant': made['participant'],
        'alone-group': made['group'],
        'alone-evaluation': made['evaluation'],
        'evaluation': build_evaluation_page(evaluation),
        'calibration': build_calibration_page(calibrated),
        'group': build_group_page(report),
        'participant': participant_page(tmp_path),
        'cohort': cohort_page(tmp_path / 'many', 40),
    }


@pytest.mark.parametrize(
    'kind',
    ['participant', 'group', 'cohort', 'evaluation', 'calibration', 'alone-participant',
     'alone-group', 'alone-evaluation'],
)  # fmt: skip
def test_a_page_is_quiet_whole_and_stays_in_its_folder(visit, pages, kind):
    page = pages[kind]
    seen = visit(page)
    sizes = seen.tab.evaluate(
        """async () => {
          document.querySelectorAll('details').forEach((more) => { more.open = true; });
          const pictures = Array.from(document.querySelectorAll('img'));
          pictures.forEach((picture) => { picture.loading = 'eager'; });
          await Promise.all(pictures.map((picture) => picture.decode()));
          return pictures.map((picture) => picture.naturalWidth);
        }"""
    )
    if kind != 'cohort':
        assert sizes
    assert all(size > 0 for size in sizes)
    assert seen.complaints == []
    inside = page.parent.as_uri() + '/'
    assert all(url.startswith(inside) for url in seen.files)
    if kind.startswith('alone'):
        assert seen.files == [page.as_uri()]


@pytest.mark.parametrize('kind', ['participant', 'group', 'cohort', 'evaluation', 'calibration'])
@pytest.mark.parametrize('width', [1280, 400])
def test_a_page_has_what_screen_readers_need_and_fits_the_screen(visit, pages, kind, width):
    seen = visit(pages[kind], width=width)
    assert seen.tab.evaluate(STRUCTURE) == GOOD


@pytest.mark.parametrize('kind', ['participant', 'group', 'cohort', 'evaluation', 'calibration'])
def test_no_table_is_wider_than_a_printed_page(visit, pages, kind):
    """A4 has 190 mm between margins of 10 mm, Letter has 196 mm; 96 pixels are an inch."""
    seen = visit(pages[kind], width=round(190 / 25.4 * 96))
    seen.tab.emulate_media(media='print')
    widest = """() => Math.max(...Array.from(document.querySelectorAll(
      'table, .figure, .plain, img'),
      (e) => e.getBoundingClientRect().right))"""
    assert seen.tab.evaluate(widest) <= round(190 / 25.4 * 96)


@pytest.mark.parametrize('width', [1440, 1280])
def test_no_column_of_the_table_of_all_participants_is_cut_off(visit, pages, width):
    seen = visit(pages['cohort'], width=width)
    assert seen.tab.locator('#people thead th').count() == 17
    assert seen.tab.locator('.tall').evaluate('box => box.scrollWidth - box.clientWidth') == 0


@pytest.mark.parametrize('kind', ['participant', 'group', 'cohort', 'evaluation', 'calibration'])
def test_the_first_key_leads_past_the_navigation(visit, pages, kind):
    seen = visit(pages[kind])
    assert seen.focused('Tab') == 'A skip'
    assert seen.tab.evaluate('document.activeElement.getBoundingClientRect().left') >= 0
    seen.tab.keyboard.press('Enter')
    assert seen.tab.evaluate('location.hash') == '#content'


def test_flickers_take_turns_under_pointer_and_keyboard_focus_and_rest_otherwise(visit, pages):
    seen = visit(pages['participant'])
    assert seen.tab.locator('svg.turning').count() == len(FLICKERS)
    moving = (
        "(n) => getComputedStyle(document.querySelectorAll('svg.turning')[n]"
        ".querySelector('.turn')).animationName"
    )
    assert [seen.tab.evaluate(moving, n) for n in (0, 1)] == ['none', 'none']
    reached = 0
    for _ in range(40):
        if reached < len(FLICKERS) and seen.focused('Tab') == 'svg turning':
            assert seen.tab.evaluate(moving, reached) == 'turn'
            reached += 1
    assert reached == len(FLICKERS)
    seen.tab.locator('svg.turning').first.hover()
    assert seen.tab.evaluate(moving, 0) == 'turn'


def test_the_viewer_shows_a_right_ball_on_the_right_which_is_on_the_left(visit, pages):
    seen = visit(pages['group'])
    reported = seen.tab.locator('#view-value')
    seen.tab.locator('.viewer').scroll_into_view_if_needed()  # it is drawn when it is seen
    playwright.expect(reported).to_contain_text('(right): 1, declared')
    # Mean column of what is coloured, as a share of the width of each plane; none is null.
    coloured = """(name) => {
      const canvas = document.getElementById(`view-${name}`);
      const { width, height } = canvas;
      const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
      let [sum, count] = [0, 0];
      for (let n = 0; n < width * height; n += 1) {
        const [red, blue] = [data[4 * n], data[4 * n + 2]];
        if (red > blue + 60) { sum += n % width; count += 1; }
      }
      return count ? sum / count / width : null;
    }"""
    assert seen.tab.evaluate(coloured, 'axial') < 0.4
    assert seen.tab.evaluate(coloured, 'coronal') < 0.4
    assert seen.tab.evaluate(coloured, 'sagittal') is not None
    white = """() => {
      const canvas = document.getElementById('view-axial');
      const { width, height } = canvas;
      const left = Math.round(0.1 * width);
      const wide = Math.round(0.35 * width); // without the letters at both ends
      const { data } = canvas.getContext('2d').getImageData(left, 0, wide, height);
      let count = 0;
      for (let n = 0; n < data.length; n += 4) count += Math.min(data[n], data[n + 2]) > 240;
      return count;
    }"""
    assert seen.tab.evaluate(white) > 50, 'the border of what is declared'
    slider = seen.tab.get_by_label('x (right is +)')
    slider.fill('-36')
    playwright.expect(reported).to_contain_text('(left): 0')
    assert seen.tab.evaluate(coloured, 'sagittal') is None, 'the left half holds nothing'
    slider.focus()
    before = reported.text_content()
    seen.tab.keyboard.press('ArrowRight')
    assert reported.text_content() != before
    box = seen.tab.locator('#view-axial').bounding_box()
    seen.tab.locator('#view-axial').click(position={'x': box['width'] * 0.25, 'y': 60})
    playwright.expect(reported).to_contain_text('(right)')


def test_a_participant_is_found_sorted_and_saved(visit, pages, tmp_path):
    seen = visit(pages['cohort'])
    first = seen.tab.locator('#people tbody tr:not([hidden]) th').first
    seen.tab.get_by_role('button', name='Participant', exact=True).press('Enter')
    assert first.text_content() == 'sub-0039'
    seen.tab.get_by_role('button', name='CTA on NCCT').click()
    assert first.text_content() == 'sub-0007', 'the least overlap'
    seen.tab.get_by_role('button', name='CTA on NCCT').click()
    assert first.text_content() != 'sub-0007'
    last = seen.tab.locator('#people tbody tr').last.text_content()
    assert 'n/a' in last, 'what is unknown comes last'
    seen.tab.get_by_label('Show names with').fill('sub-002')
    shown = seen.tab.locator('#shown')
    assert shown.text_content() == '10 of 40 shown'
    seen.tab.get_by_label('only those').check()
    assert shown.text_content() == '3 of 40 shown', '20 failed, 21 and 28 are misaligned'
    with seen.tab.expect_download() as saved:
        seen.tab.get_by_role('button', name='Download').click()
    table = pd.read_csv(saved.value.path(), sep='\t')
    assert len(table) == 40
    assert table.set_index('Participant')['CTA on NCCT'].notna().sum() == 36
    assert seen.complaints == []


def test_a_rating_is_kept_saved_and_read_again(visit, pages, tmp_path):
    seen = visit(pages['cohort'])
    cell = seen.tab.locator('#people tbody tr', has_text='sub-0005').locator('td.rate')
    cell.click()
    seen.tab.get_by_label('Rating of sub-0005').select_option('fail')
    seen.tab.get_by_label('Remark on sub-0005').fill('moved  twice')
    seen.tab.get_by_role('button', name='OK').click()
    assert cell.text_content() == 'fail: moved twice'
    seen.tab.reload()
    assert cell.text_content() == 'fail: moved twice', 'the browser keeps it'
    with seen.tab.expect_download() as saved:
        seen.tab.get_by_role('button', name='Save ratings').click()
    shutil.copy(saved.value.path(), tmp_path / 'ratings.tsv')
    assert read_ratings(tmp_path) == {('0005', ''): Rating('fail', 'moved twice')}
    assert seen.complaints == []


def test_an_index_of_1400_is_one_file_and_little_work(visit, tmp_path):
    """Counts what the browser is asked to do; benchmarks/index.py has the seconds."""
    page = cohort_page(tmp_path, COUNT)
    seen = visit(page)
    assert seen.files == [page.as_uri()]
    assert page.stat().st_size < 500 * COUNT
    assert seen.tab.locator('#people tbody tr').count() == COUNT
    assert seen.tab.evaluate("document.querySelectorAll('*').length") < 20 * COUNT
    moved = """(act) => {
      const seen = new MutationObserver(() => {});
      seen.observe(document.querySelector('#people tbody'), { childList: true });
      eval(act);
      return seen.takeRecords().length;
    }"""
    act = "const s = document.getElementById('search'); s.value = '11';"
    assert seen.tab.evaluate(moved, act + "s.dispatchEvent(new Event('input'))") == 0
    assert seen.tab.evaluate(moved, "document.querySelector('#people button').click()") <= (
        2 * COUNT
    ), 'each row is moved once'
