"""Photograph the pages of a phantom run for the documentation, and write down what they say.

The pictures and the numbers of the documentation then belong to one run of one version:

    bids_perfdeficit-phantom data --participants 5 --cohort 300 --seed 11 --spacing 2
    bids_perfdeficit data out participant
    C=data/derivatives/bids_perfdeficit-cohort
    bids_perfdeficit $C group group -d $C --model spatial ridge --folds 3
    python scripts/page_pictures.py out group

Needs a Chromium on the machine. Usage: python scripts/page_pictures.py OUT GROUP
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import output_path
from bids_perfdeficit.reports.page import describe_findings, read_rows
from bids_perfdeficit.settings import DEFAULT_SPACE

STATIC = Path(__file__).resolve().parents[1] / 'docs' / '_static'
PATIENT = '01'


def shoot(tab: Page, page: Path, name: str, *, element: str = '', height: int = 1150) -> None:
    """Save the top of a page, or one of its elements."""
    tab.set_viewport_size({'width': 1200, 'height': height})
    tab.goto(page.resolve().as_uri())
    tab.wait_for_load_state('load')
    target: Any = tab.locator(element).first if element else tab
    if element:
        target.scroll_into_view_if_needed()
    path = STATIC / name
    target.screenshot(path=path)
    # 256 colours: a third of the size, and the eye sees no difference.
    Image.open(path).convert('RGB').quantize(256).save(path, optimize=True)


def facts(out: Path, group: Path) -> dict[str, str]:
    """Return what the documentation says of the run."""
    regions = read_rows(output_path(out, 'regions_metrics', participant=PATIENT))
    found = describe_findings(regions)
    path = output_path(group, 'group_summary', space=DEFAULT_SPACE, model='spatial')
    with path.open(encoding='utf-8', newline='') as stream:
        summary = {row['item']: row for row in csv.DictReader(stream, delimiter='\t')}
    ataxia, arm = summary['nihss_7'], summary['nihss_5a']
    return {
        'version': __version__,
        'site': str(found['Likely occlusion']),
        'left_ml': str(found['Hypoperfused left, mL']),
        'ataxia_n': ataxia['scored'],
        'ataxia_with': ataxia['with_deficit'],
        'ataxia_ml': f'{float(ataxia["declared_ml"]):.0f}',
        'arm_ml': f'{float(arm["declared_ml"]):.0f}',
    }


def main() -> None:
    """Write the pictures and ``pages.json``."""
    out, group = map(Path, sys.argv[1:3])
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which('chromium'), args=['--no-sandbox']
        )
        tab = browser.new_page()
        patient = out / f'sub-{PATIENT}.html'
        shoot(tab, patient, 'page-participant.png')
        shoot(tab, patient, 'report.png', element='#perfusion .figure')
        shoot(tab, out / 'index.html', 'page-cohort.png', height=1000)
        shoot(tab, group / 'group.html', 'page-group.png')
        browser.close()
    text = json.dumps(facts(out, group), indent=1, ensure_ascii=False) + '\n'
    (STATIC / 'pages.json').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
