"""Time a second run, and dry runs, over a dataset of which everything is done.

Participants are made of tiny files and of the records that real runs leave, so that what is timed
is finding the scans, comparing records with files, and the tables and pages of the dataset. Each
figure stands beside that of reading the same number of records and nothing else.

Run: python benchmarks/rerun.py [--participants 1400] [--repeats 3] [--verify]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil

from bids_perfdeficit.bids import ScanPair, output_path, write_bytes, write_json
from bids_perfdeficit.cli.logbook import Outcome
from bids_perfdeficit.cli.participant import ParticipantLevel
from bids_perfdeficit.settings import InputSettings, Settings
from bids_perfdeficit.stages.record import Record
from bids_perfdeficit.stages.task import publish
from bids_perfdeficit.workflows.plan import make_plan

METRICS = 'brain_volume\tbrain_mean\tcoverage_missing\n1350\t33\tnone\n'


def make(root: Path, count: int) -> Settings:
    """Make a dataset and what a finished run leaves of it."""
    settings = Settings(inputs=InputSettings(bids_dir=root / 'raw', output_dir=root / 'out'))
    (root / 'raw').mkdir()
    (root / 'raw/dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    level = ParticipantLevel(settings)
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    for number in range(count):
        label = f'{number:04d}'
        paths = [root / f'raw/sub-{label}/ct/sub-{label}_{kind}.nii.gz' for kind in ('ct', 'cta')]
        paths[0].parent.mkdir(parents=True)
        for path in paths:
            nib.save(image, path)
        pair = ScanPair(label, None, *paths)
        plan = make_plan(pair, settings)
        for name, task in plan.tasks.items():
            assert task.outputs is not None
            publish(task, {
                output: partial(
                    write_bytes,
                    METRICS.encode() if output.endswith('qc_metrics.tsv') else name.encode(),
                )
                for output in task.outputs
            })  # fmt: skip
        plan = make_plan(pair, settings)
        page = level._page_task(plan, Outcome(pair.prefix, 'complete'))
        assert page.outputs is not None
        publish(page, {page.outputs[0]: partial(write_bytes, b'<html></html>')})
        verdict = output_path(root / 'out', 'verdict', participant=label)
        write_json({'Status': 'complete', 'Reasons': []}, verdict)
    return settings


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--participants', type=int, default=1400)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--verify', action='store_true')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='rerun-') as folder:
        root = Path(folder)
        make(root, options.participants)
        command = [sys.executable, '-m', 'bids_perfdeficit.cli.run', root / 'raw']
        again = [root / 'out', 'participant', *(['--verify'] if options.verify else [])]
        asked = {
            'second run': ([*command, *again], 'nothing was done'),
            'dry run of all done': ([*command, *again, '--dry-run'], 'complete, nothing to do'),
            'dry run, nothing done': (
                [*command, root / 'new', 'participant', '--dry-run'], 'not made yet',
            ),
        }  # fmt: skip
        rows = {name: [time_run(*one) for _ in range(options.repeats)]
                for name, one in asked.items()}  # fmt: skip
        reading = []
        for _ in range(options.repeats):
            begun = time.monotonic()
            records = [
                Record.read(path) for path in (root / 'out').glob('sub-*/records/*_record.json')
            ]
            reading.append((time.monotonic() - begun, 0.0))
        rows[f'reading the {len(records)} records alone, in one process'] = reading
    print(f'| {options.participants} participants | s, median (range) | peak MiB |')
    print('|---|---|---|')
    for name, measured in rows.items():
        seconds = [second for second, _ in measured]
        peak = max(mib for _, mib in measured)
        print(
            f'| {name} | {statistics.median(seconds):.1f} ({min(seconds):.1f} to '
            f'{max(seconds):.1f}) | {f"{peak:.0f}" if peak else ""} |'
        )


def time_run(command: list[object], expected: str) -> tuple[float, float]:
    """Run a command that must say what is expected; return its seconds and its peak MiB."""
    begun = time.monotonic()
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        watched, peak = psutil.Process(process.pid), [0]

        def watch() -> None:
            while process.poll() is None:
                with contextlib.suppress(psutil.Error):
                    peak[0] = max(peak[0], watched.memory_info().rss)
                time.sleep(0.05)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        said, complaints = process.communicate()
        seconds = time.monotonic() - begun
    if expected not in said:
        sys.exit(said[-2000:] + complaints[-2000:])
    return seconds, peak[0] / 2**20


if __name__ == '__main__':
    main()
