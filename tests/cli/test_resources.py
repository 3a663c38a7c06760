"""The run takes what its container or job allows, not what the machine has."""

from __future__ import annotations

import psutil
import pytest

from bids_perfdeficit.cli.resources import (
    available_cores,
    available_memory_gb,
    resolve_device,
    share_threads,
)


def test_memory_is_that_of_the_control_group(tmp_path):
    (tmp_path / 'memory.max').write_text('2000000000\n')
    assert available_memory_gb(tmp_path) == 2.0


def test_memory_without_a_limit_is_that_of_the_machine(tmp_path):
    (tmp_path / 'memory.max').write_text('max\n')
    assert available_memory_gb(tmp_path) == psutil.virtual_memory().total / 1e9


def test_cores_follow_the_quota(tmp_path):
    (tmp_path / 'cpu.max').write_text('100000 100000\n')
    assert available_cores(tmp_path) == 1
    (tmp_path / 'cpu.max').write_text('max 100000\n')
    assert available_cores(tmp_path) == available_cores(tmp_path / 'absent')


@pytest.mark.parametrize(
    ('nprocs', 'participants', 'low_mem', 'threads'),
    [(2, 1, False, 2), (2, 5, False, 1), (8, 2, False, 4), (8, 5, True, 8), (64, 1, False, 8)],
)
def test_cores_go_to_participants_first(nprocs, participants, low_mem, threads):
    assert share_threads(nprocs, participants, low_mem=low_mem) == threads


def test_auto_says_what_it_chose():
    device, sentence = resolve_device('auto')
    assert device in ('cpu', 'cuda:0')
    assert sentence is not None
    assert resolve_device('cpu') == ('cpu', None)
