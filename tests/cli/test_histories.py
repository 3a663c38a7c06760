"""A dozen real histories: what `benchmarks/histories.py` does two hundred times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_real_runs_leave_what_clean_runs_leave(tmp_path):
    phantom = Path(sys.executable).with_name('bids_perfdeficit-phantom')
    data = tmp_path / 'phantom'
    subprocess.run(
        [phantom, data, '--participants', '2', '--cohort', '24', '--spacing', '4'],
        check=True, capture_output=True,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, ROOT / 'benchmarks/histories.py', data, '--histories', '12',
         '--seed', '7', '--jobs', '1'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert '| participant | 6 | 0 |' in done.stdout
