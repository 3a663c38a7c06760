"""Seconds of each step of one patient, of this version and of another on the same machine.

Versions take turns, so that the load of a shared machine falls on both. Wall seconds of the steps
are those in the run's log; CPU seconds are those of the run and of all its workers, which a busy
machine changes less. A version is a folder that holds the package (a worktree).

Run: python benchmarks/one_patient.py BIDS_DIR [--other FOLDER] [--repeats 3] [options of the app]
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

#: A line of the log on a step that has ended.
STEP = re.compile(r': (\w+) done in (\d+) s')


def measure(version: Path, bids_dir: Path, options: list[str]) -> dict[str, float]:
    """Run a version once; return the seconds of its steps, of the run and of the CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        run = subprocess.run(
            [sys.executable, '-m', 'bids_perfdeficit.cli.run', str(bids_dir.resolve()), out,
             'participant', *options],
            # Not in the folder of a version: Python would import the package that lies there.
            env={**os.environ, 'PYTHONPATH': str(version)}, cwd=out,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    seconds = {step: float(took) for step, took in STEP.findall(run.stderr)}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds['wall'] = time.perf_counter() - start
    seconds['CPU'] = sum(getattr(after, k) - getattr(before, k) for k in ('ru_utime', 'ru_stime'))
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('--other', type=Path, help='folder of the version to compare with')
    parser.add_argument('--repeats', type=int, default=3)
    arguments, options = parser.parse_known_args()
    versions = {'this': Path(__file__).resolve().parents[1]}
    if arguments.other is not None:
        versions['other'] = arguments.other.resolve()
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(arguments.repeats):
        for name, folder in versions.items():
            for step, seconds in measure(folder, arguments.bids_dir, options).items():
                found[step][name].append(seconds)
    heads = [f'{name}, {what}' for name in versions for what in ('least', 'median')]
    print(f'| seconds | {" | ".join(heads)} |\n|{"---|" * (len(heads) + 1)}')
    for step, runs in found.items():
        cells = [
            f'{f(runs[name]):.1f}' if runs[name] else ''
            for name in versions
            for f in (min, statistics.median)
        ]
        print(f'| {step} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
