"""The run takes what its container or job allows, not what the machine has."""

from __future__ import annotations

import psutil
import pytest

from bids_perfdeficit.cli.resources import (
    available_cores,
    available_memory_gb,
    estimate_job,
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


def test_larger_scans_ask_for_more():
    small, large = estimate_job(172 * 216 * 184), estimate_job(512 * 512 * 900)
    assert small[0] < large[0]
    assert small[1] < large[1]
    # what the semi-real pair took at 1 mm, with room
    assert small[0] >= 2.1
    assert small[1] >= 2


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


def test_memory_is_that_of_the_job_around_this_process(tmp_path):
    """SLURM limits a group on the way to that of the step; Apptainer shows the whole tree."""
    own = tmp_path / 'own'
    own.write_text('4:memory:/slurm/job_7/step_0\n0::/user.slice/job_8\n')
    job = tmp_path / 'memory' / 'slurm' / 'job_7'
    (job / 'step_0').mkdir(parents=True)
    (job / 'step_0' / 'memory.limit_in_bytes').write_text('9223372036854771712')
    (job / 'memory.limit_in_bytes').write_text('3000000000')
    assert available_memory_gb(tmp_path, own, {}) == 3.0
    (tmp_path / 'user.slice').mkdir()
    (tmp_path / 'user.slice' / 'memory.max').write_text('1000000000')
    assert available_memory_gb(tmp_path, own, {}) == 1.0


def test_memory_is_no_more_than_was_asked_of_slurm(tmp_path):
    own = tmp_path / 'own'
    assert available_memory_gb(tmp_path, own, {'SLURM_MEM_PER_NODE': '1000'}) == 1.048576
    both = {'SLURM_MEM_PER_CPU': '500', 'SLURM_CPUS_ON_NODE': '2'}
    assert available_memory_gb(tmp_path, own, both) == 1.048576
    assert available_memory_gb(tmp_path, own, {'SLURM_MEM_PER_NODE': '0'}) > 1.1


def test_cores_follow_the_quota_of_older_control_groups(tmp_path):
    folder = tmp_path / 'cpu' / 'docker'
    folder.mkdir(parents=True)
    own = tmp_path / 'own'
    own.write_text('1:cpu,cpuacct:/docker\n')
    (folder / 'cpu.cfs_quota_us').write_text('100000\n')
    (folder / 'cpu.cfs_period_us').write_text('100000\n')
    assert available_cores(tmp_path, own) == 1
    (folder / 'cpu.cfs_quota_us').write_text('-1\n')
    assert available_cores(tmp_path, own) == available_cores(tmp_path / 'absent', own)
