"""The page of all participants: what became of each, counted and with its reason."""

from __future__ import annotations

import json
import re

from bids_perfdeficit.reports.cohort import build_index, read_statuses


def facts_of(html: str) -> dict[str, str]:
    found = re.findall(r'<dt>(.*?)</dt>\s*<dd>(.*?)</dd>', html, re.S)
    return {label: value.strip() for label, value in found}


def test_each_verdict_is_counted_and_its_reason_is_given(tmp_path):
    page = build_index(
        tmp_path,
        {
            'sub-01': ('complete', ()),
            'sub-02': ('doubtful', ('slices seem to be missing',)),
            'sub-03': ('failed', ('both scans hold the same data',)),
        },
    )
    html = page.read_text()
    facts = facts_of(html)
    assert (facts['Complete'], facts['Doubtful'], facts['Failed']) == ('1', '1', '1')
    assert 'slices seem to be missing' in html
    assert 'both scans hold the same data' in html


def test_no_doubts_need_no_section(tmp_path):
    html = build_index(tmp_path, {'sub-01': ('complete', ())}).read_text()
    assert 'id="doubts"' not in html


def test_who_was_running_when_a_run_was_killed_has_failed(tmp_path):
    folder = tmp_path / 'logs' / 'a'
    folder.mkdir(parents=True)
    reported = {
        'sub-01': {'status': 'running', 'reasons': []},
        'sub-02': {'status': 'complete', 'reasons': []},
    }
    (folder / 'status.json').write_text(json.dumps({'participants': reported}))
    assert read_statuses(tmp_path) == {
        'sub-01': ('failed', ['the run ended before it was finished']),
        'sub-02': ('complete', []),
    }
