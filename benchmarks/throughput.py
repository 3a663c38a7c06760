"""Patients an hour at 1 mm: 1, 2 and 4 copies of a patient in one run, beside another version.

The participant of a dataset is copied under other labels. Versions take turns, so that the load of
a shared machine falls on both; the load is that of the machine when a run starts. Seconds of the
steps are those in the run's log, which leaves out steps of under half a second. Peak memory is the
proportional set size of the run's process tree, as in `participant.py`.

Run: python benchmarks/throughput.py BIDS_DIR [--before PYTHON] [--patients 1 2 4] [options]
Options are those of the app; PYTHON is that of an environment which has the other version.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil
from participant import PERIOD_S, tree_memory

#: A line of the log on a step that has ended.
STEP = re.compile(r': (\w+) done in (\d+) s')


@dataclass(frozen=True)
class Run:
    """What one run took."""

    wall_s: float
    cpu_s: float
    peak_gib: float
    load: float
    steps: dict[str, list[float]]


def copy_participant(source: Path, target: Path, count: int) -> None:
    """Make a dataset of copies of the first participant of another."""
    first = min(path for path in source.glob('sub-*') if path.is_dir())
    target.mkdir(parents=True)
    shutil.copyfile(source / 'dataset_description.json', target / 'dataset_description.json')
    for number in range(1, count + 1):
        label = f'sub-{number:02d}'
        for path in first.rglob('*'):
            if path.is_file():
                there = target / str(path.relative_to(source)).replace(first.name, label)
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, there)


def measure(python: Path, bids_dir: Path, options: list[str]) -> Run:
    """Run the participant level of a version once.

    Raises
    ------
    SystemExit
        When the run fails.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile('w+') as log:
        # Not in the folder of a version: Python would import the package that lies there.
        command = [python, '-m', 'bids_perfdeficit.cli.run', bids_dir, f'{folder}/out']
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun, peak = time.perf_counter(), 0
        with subprocess.Popen(
            [*command, 'participant', *options], cwd=folder, stdout=log, stderr=log
        ) as run:
            process = psutil.Process(run.pid)
            while run.poll() is None:
                peak = max(peak, tree_memory(process))
                time.sleep(PERIOD_S)
        wall = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        log.seek(0)
        text = log.read()
    if run.returncode:
        sys.exit(f'{python} ended with {run.returncode}:\n{text[-2000:]}')
    steps = defaultdict(list)
    for name, seconds in STEP.findall(text):
        steps[name].append(float(seconds))
    cpu = sum(getattr(after, k) - getattr(before, k) for k in ('ru_utime', 'ru_stime'))
    return Run(wall, cpu, peak / 2**30, load, dict(steps))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('--before', type=Path, help='Python of the version to compare with')
    parser.add_argument('--patients', type=int, nargs='+', default=[1, 2, 4])
    arguments, options = parser.parse_known_args()
    pythons = {'now': Path(sys.executable)}
    if arguments.before is not None:
        pythons['before'] = arguments.before.absolute()
    runs: dict[tuple[str, int], Run] = {}
    print(
        '| version | patients | patients an hour | wall, s | CPU, s a patient | peak GiB, all '
        '| load before |\n|---|---|---|---|---|---|---|'
    )
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.patients:
            data = Path(folder) / str(count)
            copy_participant(arguments.bids_dir, data, count)
            for version, python in pythons.items():
                run = runs[version, count] = measure(python, data, options)
                print(
                    f'| {version} | {count} | {3600 * count / run.wall_s:.0f} | {run.wall_s:.1f} '
                    f'| {run.cpu_s / count:.1f} | {run.peak_gib:.2f} | {run.load:.1f} |',
                    flush=True,
                )
    names = list(dict.fromkeys(name for run in runs.values() for name in run.steps))
    heads = ' | '.join(f'{version}, {count}' for version, count in runs)
    print(f'\n| step, median s | {heads} |\n|{"---|" * (len(runs) + 1)}')
    for name in names:
        cells = [
            f'{statistics.median(run.steps[name]):.0f}' if name in run.steps else ''
            for run in runs.values()
        ]
        print(f'| {name} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
