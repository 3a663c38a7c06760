"""A lock keeps two runs apart, says who holds it, and outlives no owner."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bids_perfdeficit.stages.lock import Busy, Holder, Lock
from bids_perfdeficit.stages.task import Task, publish

HOLD = (
    'import sys, time; from pathlib import Path; from bids_perfdeficit.stages.lock import Lock; '
    "lock = Lock(Path(sys.argv[1]), 'it').acquire(); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, tmp_path / 'lock'], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()


def test_a_lock_of_another_process_is_refused_with_its_owner(holder, tmp_path):
    with pytest.raises(Busy) as caught:
        Lock(tmp_path / 'lock', 'sub-01', patience=0).acquire()
    assert 'another run works on sub-01' in str(caught.value)
    assert f'process {holder.pid} on {os.uname().nodename}, since 20' in str(caught.value)


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken(holder, tmp_path, how):
    holder.send_signal(how)
    holder.wait()
    with Lock(tmp_path / 'lock', 'it', patience=0):
        assert json.loads((tmp_path / 'lock').read_text())['process'] == os.getpid()


def test_waiting_outlasts_an_owner_that_is_about_to_end(holder, tmp_path):
    subprocess.Popen(['sh', '-c', f'sleep 0.5; kill -9 {holder.pid}'])
    begun = time.monotonic()
    with Lock(tmp_path / 'lock', 'it', patience=20):
        assert time.monotonic() - begun > 0.3


def test_a_process_does_not_take_its_own_lock_twice(tmp_path):
    with Lock(tmp_path / 'lock', 'it'), pytest.raises(Busy):
        Lock(tmp_path / 'lock', 'it', patience=0).acquire()
    with Lock(tmp_path / 'lock', 'it', patience=0):
        pass
    assert not (tmp_path / 'lock').exists()


@pytest.mark.parametrize(
    ('owner', 'free'),
    [
        ('', True),
        ('damaged', True),
        (json.dumps({'host': os.uname().nodename, 'process': 2**22 + 1, 'started': '1'}), True),
        (json.dumps({'host': os.uname().nodename, 'process': 1, 'started': 'another'}), True),
        (json.dumps({'host': 'another', 'process': 1, 'started': '1'}), False),
    ],
)
def test_without_locks_of_the_kernel_the_owner_is_looked_for(tmp_path, monkeypatch, owner, free):
    def refuse(*args):
        raise OSError(errno.ENOLCK, 'no locks here')

    monkeypatch.setattr(fcntl, 'lockf', refuse)
    (tmp_path / 'lock').write_text(owner)
    lock = Lock(tmp_path / 'lock', 'it', patience=0)
    if free:
        lock.acquire()
        lock.release()
    else:
        with pytest.raises(Busy, match='another'):
            lock.acquire()


def test_a_step_of_a_run_that_was_replaced_writes_nothing(holder, tmp_path):
    """A job on a cluster outlives its run, and ends while the next run is at work."""
    task = Task('stage', 1, tmp_path, tmp_path / 'record.json', {})
    writers = {'result.txt': lambda path: path.write_text('old')}
    orphan = Holder(tmp_path / 'lock', json.loads((tmp_path / 'lock').read_text()))
    holder.kill()
    holder.wait()
    publish(task, writers, holder=orphan)  # no other run has begun: the results hold
    assert (tmp_path / 'result.txt').read_text() == 'old'
    with Lock(tmp_path / 'lock', 'it'):
        (tmp_path / 'result.txt').write_text('new')
        before = (tmp_path / 'record.json').read_bytes()
        with pytest.raises(Busy, match=f'process {holder.pid} .* has ended, and they were not'):
            publish(task, writers, holder=orphan)
        assert (tmp_path / 'result.txt').read_text() == 'new'
        assert (tmp_path / 'record.json').read_bytes() == before
        assert not task.pending.exists()
        publish(task, writers, holder=Holder.current(tmp_path / 'lock'))
    with pytest.raises(Busy):  # the run has given the lock back
        publish(task, writers, holder=orphan)


def test_a_holder_that_looks_does_not_lose_the_lock(tmp_path):
    """POSIX takes a lock away when its owner closes the file, also after only reading it."""
    with Lock(tmp_path / 'lock', 'it'):
        Holder.current(tmp_path / 'lock').check()
        publish(
            Task('stage', 1, tmp_path, tmp_path / 'record.json', {}),
            {'result.txt': lambda path: path.write_text('mine')},
            holder=Holder.current(tmp_path / 'lock'),
        )
        other = subprocess.run(
            [sys.executable, '-c', HOLD, tmp_path / 'lock'],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert 'another run works on it' in other.stderr


def test_only_who_holds_a_lock_is_its_holder(holder, tmp_path):
    assert Holder.current(tmp_path / 'lock') is None
    assert Holder.current(tmp_path / 'none') is None
    with Lock(tmp_path / 'mine', 'it'):
        assert Holder.current(tmp_path / 'mine').owner['process'] == os.getpid()
