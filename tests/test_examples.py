"""The examples run as they are written, and say what they should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / 'examples'


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_one_patient_is_mapped(tmp_path):
    said = run('map_one_patient.py', str(tmp_path))
    found, true = map(float, re.search(r'(\d+) mL \(true: (\d+) mL\)', said).groups())
    assert 0.5 < found / true < 2
    assert re.search(r'likely occlusion: (M1|M2|ICA), left', said)
    assert (tmp_path / 'perfusion.nii.gz').is_file()


@pytest.mark.slow
def test_models_are_compared():
    lines = run('compare_models.py').splitlines()[1:]
    assert len(lines) == 6
    for line in lines:
        held_out, volume = (float(k) for k in line.split()[-2:])
        assert held_out > volume - 0.1, line
