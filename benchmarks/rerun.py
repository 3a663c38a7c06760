"""Time a second run over a dataset of which everything is done.

Participants are made of tiny files and of the records that real runs leave, so that what is timed
is finding the scans, comparing records with files, and the tables and pages of the dataset. Each
figure stands beside that of reading the same number of records and nothing else.

Run: python benchmarks/rerun.py [--participants 1400] [--repeats 3] [--verify]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

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
        command = [sys.executable, '-m', 'bids_perfdeficit.cli.run', root / 'raw', root / 'out',
                   'participant', *(['--verify'] if options.verify else [])]  # fmt: skip
        seconds, reading = [], []
        for _ in range(options.repeats):
            begun = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds.append(time.monotonic() - begun)
            if 'nothing was done' not in done.stdout:
                sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
            begun = time.monotonic()
            records = [
                Record.read(path) for path in (root / 'out').glob('sub-*/records/*_record.json')
            ]
            reading.append(time.monotonic() - begun)
    print('| participants | records | second run, s | reading the records alone, s |')
    print('|---|---|---|---|')
    print(
        f'| {options.participants} | {len(records)} | {statistics.median(seconds):.1f} '
        f'({min(seconds):.1f} to {max(seconds):.1f}) | {statistics.median(reading):.1f} |'
    )


if __name__ == '__main__':
    main()
