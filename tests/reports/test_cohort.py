"""The page of all participants: the outcome of each, counted and with its reason."""

from __future__ import annotations

import json
import re

from bids_perfdeficit.bids import write_dataset_files
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


def test_a_failed_participant_leads_to_its_log_and_others_to_a_thumbnail(tmp_path):
    folder = tmp_path / 'logs' / '20260101-000000_a'
    folder.mkdir(parents=True)
    (folder / 'run.log').write_text('')
    people = {
        'sub-01': {'status': 'failed', 'reasons': ['x']},
        'sub-02': {'status': 'complete', 'reasons': []},
    }
    (folder / 'status.json').write_text(json.dumps({'participants': people}))
    picture = tmp_path / 'sub-02' / 'figures' / 'sub-02_desc-thumbnail_probseg.svg'
    picture.parent.mkdir(parents=True)
    picture.write_text('<svg/>')
    html = build_index(tmp_path, {}).read_text()
    assert html.count('href="logs/20260101-000000_a/run.log"') == 2, 'in the table and the list'
    assert html.count('<img loading="lazy" src="sub-02/figures/') == 1


def test_dataset_and_version_are_named_and_ratings_are_shown(tmp_path):
    raw, out = tmp_path / 'r w', tmp_path / 'out'
    raw.mkdir()
    (raw / 'dataset_description.json').write_text('{"Name": "A <trial>"}')
    write_dataset_files(out, bids_dir=raw, version='1.0')
    (out / 'ratings.tsv').write_text('participant_id\trating\tremark\n01\tfail\tmoved & gone\n')
    html = build_index(out, {'sub-01': ('complete', ())}).read_text()
    facts = facts_of(html)
    assert facts['Dataset'] == 'A &lt;trial&gt;'
    assert facts['Rated by people'] == '1'
    assert '>fail: moved &amp; gone</td>' in html
    (out / 'ratings.tsv').write_text('participant_id\trating\n01\tfine\n')
    html = build_index(out, {'sub-01': ('complete', ())}).read_text()
    assert 'The ratings are not used' in html
    assert 'give pass, doubt, fail or n/a' in html
