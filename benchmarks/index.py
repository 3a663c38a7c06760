"""How long the page of all participants takes: to write, and in a browser to open and to sort.

python benchmarks/index.py [PARTICIPANTS]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bids_perfdeficit.reports.cohort import build_index
from tests.reports.test_browser import cohort_page


def main() -> None:
    """Print a table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1400
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        page = cohort_page(Path(folder), count)
        rows = [('size, kB', page.stat().st_size / 1000)]
        begun = time.perf_counter()
        build_index(Path(folder), {})
        rows.append(('write, s', time.perf_counter() - begun))
        browser = started.chromium.launch(
            executable_path=shutil.which('chromium'), args=['--no-sandbox']
        )
        tab = browser.new_page()
        begun = time.perf_counter()
        tab.goto(page.as_uri())
        rows.append(('open, s', time.perf_counter() - begun))
        for name, act in (
            ('sort, s', "document.querySelectorAll('#people button')[4].click()"),
            ('filter, s', "const s = document.getElementById('search'); s.value = '7';"
             "s.dispatchEvent(new Event('input'))"),
        ):  # fmt: skip
            begun = time.perf_counter()
            tab.evaluate(act + '; document.body.offsetHeight')
            rows.append((name, time.perf_counter() - begun))
        browser.close()
    print(f'| {count} participants | |\n|---|---|')
    for name, value in rows:
        print(f'| {name} | {value:.2f} |')


if __name__ == '__main__':
    main()
