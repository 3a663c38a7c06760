"""The command as its users run it: in a process of its own, with its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bids_perfdeficit.phantom.scores import ITEMS


def command(*options):
    code = [sys.executable, '-m', 'bids_perfdeficit.cli.phantom', *map(str, options)]
    return subprocess.run(code, capture_output=True, text=True, check=False)


@pytest.mark.parametrize('parts', [('file',), ('file', 'new')])
def test_a_place_that_cannot_be_made_is_told_before_the_work(tmp_path, parts):
    (tmp_path / 'file').touch()
    done = command(tmp_path.joinpath(*parts), '--participants', 'x')
    assert done.returncode == 2
    assert '2 problems' in done.stderr
    assert str(tmp_path / 'file') in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_cohort_alone_comes_with_its_substrates(tmp_path):
    done = command(tmp_path, '--participants', 0, '--cohort', 1, '--seed', 5)
    assert done.returncode == 0, done.stderr
    assert '1 of 1' in done.stderr
    truth = tmp_path / Path('derivatives', 'phantom-truth')
    assert (truth / 'dataset_description.json').is_file()
    found = {path.name for path in (truth / 'substrates').glob('*.nii.gz')}
    assert found == {f'item-{item}_mask.nii.gz' for item in ITEMS}
