"""The script for SLURM asks for what the scans need; a stand-in for `sbatch` notes its calls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'scripts' / 'slurm.sh'
SBATCH = """#!/bin/bash
echo "$PERFDEFICIT_TASK $*" >>"$(dirname "$0")/calls"
wc -l <"$(dirname "$0")/calls" | tr -d " "
"""


@pytest.fixture
def submit(tmp_path, stroke_dataset):
    """Return a function that submits the dataset and returns (output, calls of sbatch)."""
    commands = tmp_path / 'commands'
    commands.mkdir()
    (commands / 'sbatch').write_text(SBATCH)
    (commands / 'sbatch').chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ['PATH']])

    def call(*options: str, **environment: str) -> tuple[str, list[str]]:
        kept = {k: v for k, v in os.environ.items() if k not in ('SBATCH', 'APP', 'GROUP')}
        done = subprocess.run(
            [SCRIPT, stroke_dataset, tmp_path / 'out', *options],
            env={**kept, 'PATH': path, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, (commands / 'calls').read_text().splitlines()

    return call


def test_jobs_ask_for_what_the_headers_need(submit):
    said, calls = submit()
    participant, group = calls
    assert 'participant --parsable --job-name perfdeficit --array 1-' in participant
    assert '--cpus-per-task=2 --mem=' in participant
    assert '--mem=8G --time=00:30:00' not in participant
    assert 'each participant: --cpus-per-task=2 --mem=' in said
    assert group.startswith('group ')
    assert '--dependency afterany:1 ' in group


def test_what_the_user_asks_for_is_not_changed(submit):
    _, (participant,) = submit(SBATCH='--mem=1G', GROUP='no')
    assert ' --mem=1G ' in participant
    assert '--cpus-per-task' not in participant


def test_an_app_that_cannot_answer_leaves_the_default(submit):
    said, (participant,) = submit(APP='false', GROUP='no')
    assert '--mem=8G --time=00:30:00' in participant
    assert 'each participant: --cpus-per-task=2 --mem=8G' in said


def test_jobs_that_work_in_the_folders_of_all_participants_wait_for_one_another(submit):
    """Each level takes the locks of the participants; two at once would refuse each other's."""
    _, calls = submit(SBATCH='--mem=1G', EVALUATE=' ', CALIBRATE=' ')
    found = [re.search(r'--dependency (\S+)', call) for call in calls]
    assert [one and one[1] for one in found] == [None, 'afterany:1', 'afterany:1', 'afterany:1:3']
