"""Wall time and peak memory of the participant level, one patient at 1 mm on the cores given.

Peak memory is the sum over the run's process tree of the proportional set size, so that pages
shared between workers count once; sampled ten times a second.

Run: python benchmarks/participant.py BIDS_DIR [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PERIOD_S = 0.1


def tree_memory(root: psutil.Process) -> int:
    """Return the bytes that a process and its children hold."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def measure(bids_dir: Path, options: list[str]) -> tuple[float, float, int]:
    """Run once; return seconds, peak GiB and exit code."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, '-m', 'bids_perfdeficit.cli.run', str(bids_dir), out]
        start, peak = time.perf_counter(), 0
        with subprocess.Popen([*command, 'participant', *options]) as run:
            process = psutil.Process(run.pid)
            while run.poll() is None:
                peak = max(peak, tree_memory(process))
                time.sleep(PERIOD_S)
        return time.perf_counter() - start, peak / 2**30, run.returncode


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('--repeats', type=int, default=3)
    arguments, options = parser.parse_known_args()
    runs = [measure(arguments.bids_dir, options) for _ in range(arguments.repeats)]
    print('\n| what | median | spread | target |\n|---|---|---|---|')
    for name, column, target in (('wall, s', 0, '< 180'), ('peak memory, GiB', 1, '< 4')):
        values = [run[column] for run in runs]
        print(
            f'| {name} | {statistics.median(values):.1f} '
            f'| {min(values):.1f} to {max(values):.1f} | {target} |'
        )
    print(f'| exit codes | {[run[2] for run in runs]} | | 0 |')


if __name__ == '__main__':
    main()
