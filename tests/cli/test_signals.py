"""A run that receives a signal to end says so, and one that is killed leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

#: A run whose workers would never end by themselves.
RUN = """
import concurrent.futures, os, sys, time
from bids_perfdeficit.cli import run, runner

def work(_):
    time.sleep(1000)

def endless(level):
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        jobs = [pool.submit(work, 0) for _ in range(3)]
        print('ready', flush=True)
        while len(sys.argv) > 4:  # a destructor that swallows what is raised in it
            try:
                jobs[0].result()
            except BaseException:
                pass
        jobs[0].result()

runner.run_level = endless
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.fixture
def started(request, stroke_dataset, tmp_path):
    options = getattr(request, 'param', [])
    run = subprocess.Popen(
        [sys.executable, '-c', RUN, stroke_dataset, tmp_path / 'out', 'participant', *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdout.readline() == 'ready\n'
    workers = psutil.Process(run.pid).children(recursive=True)
    assert len(workers) == 2
    yield run, workers
    for process in workers:
        if process.is_running():
            process.kill()


def gone(workers):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not [w for w in workers if w.is_running() and w.status() != psutil.STATUS_ZOMBIE]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize('started', [[], ['--sloppy']], indirect=True, ids=['', 'swallowed'])
@pytest.mark.parametrize(
    ('number', 'word'),
    [
        (signal.SIGTERM, 'terminated'),
        (signal.SIGHUP, 'terminated'),
        (signal.SIGINT, 'interrupted'),
    ],
)
def test_a_signal_ends_the_run_with_its_code_and_a_last_line(started, number, word):
    run, workers = started
    run.send_signal(number)
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 128 + number
    assert errors.splitlines()[-1] == (
        f'bids_perfdeficit: {word}; run the same command again to go on'
    )
    assert gone(workers)


@pytest.mark.skipif(sys.platform != 'linux', reason='workers die with their run on Linux only')
def test_workers_die_with_a_run_that_is_killed(started):
    run, workers = started
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=20)
    assert gone(workers)


def test_a_full_disk_is_told_without_a_trace_back(monkeypatch, stroke_dataset, tmp_path, capsys):
    import errno

    from bids_perfdeficit.cli import runner
    from bids_perfdeficit.cli.run import main

    def full(level):
        raise OSError(errno.ENOSPC, 'No space left on device', '/out/logs')

    monkeypatch.setattr(runner, 'run_level', full)
    assert main([str(stroke_dataset), str(tmp_path / 'out'), 'participant']) == 2
    reported = capsys.readouterr().err
    assert reported == (
        'bids_perfdeficit: No space left on device: /out/logs; '
        'free some space and run the same command again to go on\n'
    )


def test_paths_are_absolute_before_anything_runs(monkeypatch, stroke_dataset, tmp_path):
    """A resumed run hands steps the files in OUTPUT_DIR, and each step has a folder of its own."""
    from bids_perfdeficit.cli import runner
    from bids_perfdeficit.cli.run import main

    seen = []
    monkeypatch.setattr(runner, 'run_level', lambda level: seen.append(level.settings) or 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').symlink_to(stroke_dataset)
    (tmp_path / 'before').mkdir()
    assert main(['data', 'out', 'participant', '-w', 'work', '-d', 'before']) == 0
    (settings,) = seen
    assert settings.inputs.bids_dir == tmp_path / 'data'
    assert settings.inputs.output_dir == tmp_path / 'out'
    assert settings.inputs.derivatives == (tmp_path / 'before',)
    assert settings.resources.work_dir == tmp_path / 'work'


@pytest.mark.parametrize(
    ('name', 'fix'),
    [
        ('EDQUOT', 'free some space within your quota'),
        ('EFBIG', 'raise the limit of the size of files (ulimit -f)'),
        ('EACCES', 'make it readable and writable to you'),
        ('ESTALE', 'make it readable and writable to you'),
    ],
)
def test_what_to_do_depends_on_what_failed(name, fix):
    import errno

    from bids_perfdeficit.cli.runner import explain

    error = OSError(getattr(errno, name), 'It failed', '/out/records/.lock')
    assert explain(error) == (
        f'/out/records/.lock: It failed; {fix}, and run the same command again.'
    )
