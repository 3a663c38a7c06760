"""Inputs are compared by their content wherever their times cannot be relied on."""

from __future__ import annotations

import os
import time

import pytest

from bids_perfdeficit.stages import record
from bids_perfdeficit.stages.record import Input

DAY_NS = 86_400 * 10**9


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / 'scan'
    path.write_bytes(b'first')
    return path


def set_age(path, days):
    now = time.time_ns()
    os.utime(path, ns=(now, now - days * DAY_NS))


def rewrite(path, content):
    """Change the content and keep size and time, as copying tools do."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_old_scan_is_not_read_again(scan, monkeypatch):
    set_age(scan, 400)
    known = Input.of(scan)
    monkeypatch.setattr(record, 'sha256', lambda path: pytest.fail('was read'))
    assert known.agrees(scan) is known


@pytest.mark.parametrize('days', [400, 0, -1, -400], ids=lambda d: f'{d} days old')
def test_a_scan_is_recognised_and_a_change_seen_whatever_its_date(scan, days):
    set_age(scan, days)
    known = Input.of(scan)
    assert known.agrees(scan) is not None
    rewrite(scan, b'other')
    assert known.agrees(scan) is None


@pytest.mark.parametrize('days', [400, -400], ids=['ahead', 'behind'])
def test_a_clock_that_was_wrong_in_the_run_before_changes_nothing(scan, days, monkeypatch):
    """The earlier run took place in the future, or long before the scan was made."""
    real = time.time_ns
    with monkeypatch.context() as wrong:
        wrong.setattr(time, 'time_ns', lambda: real() + days * DAY_NS)
        known = Input.of(scan)
    assert known.agrees(scan) is not None
    rewrite(scan, b'other')
    assert known.agrees(scan) is None
