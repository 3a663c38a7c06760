"""How long does it take to find 1,400 participants' scans?

Makes a dataset of empty-shelled files (1,400 participants, two sessions, NCCT and CTA with
sidecars, and MR in the second session), and times `bids.discover` beside plain pybids.

Run: ``python benchmarks/indexing.py [--participants 1400] [--repeats 3]``
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bids.layout import BIDSLayout, BIDSLayoutIndexer

from bids_perfdeficit.bids import discover

#: Seconds; the target for `discover`.
TARGET = 9.0


def make_dataset(root: Path, participants: int) -> int:
    """Write the dataset and return the number of files."""
    (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    count = 1
    for number in range(1, participants + 1):
        for session, folder, suffixes in (
            ('baseline', 'ct', ('ct', 'cta')),
            ('followup', 'anat', ('T1w', 'FLAIR')),
        ):
            prefix = f'sub-{number:04d}_ses-{session}'
            place = root / prefix.replace('_', '/') / folder
            place.mkdir(parents=True)
            for suffix in suffixes:
                (place / f'{prefix}_{suffix}.nii.gz').write_bytes(b'\x1f\x8b')
                (place / f'{prefix}_{suffix}.json').write_text('{"Manufacturer": "x"}')
                count += 2
    return count


def time_it(action: Callable[[], object], repeats: int) -> str:
    """Return mean and range in seconds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return f'{statistics.mean(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})'


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--participants', type=int, default=1400)
    parser.add_argument('--repeats', type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        root = Path(work, 'bids')
        root.mkdir()
        files = make_dataset(root, options.participants)
        found = discover(root)
        assert len(found.pairs) == options.participants
        assert not found.problems
        lean = BIDSLayoutIndexer(validate=False, index_metadata=False)
        rows = {
            'pybids defaults, validate=False (index only)': lambda: BIDSLayout(
                root, validate=False
            ),
            'pybids without metadata (index only)': lambda: BIDSLayout(
                root, validate=False, indexer=lean
            ),
            f'**`discover`** (files and pairs; target {TARGET:g} s)': lambda: discover(root),
        }
        print(f'{options.participants} participants, 2 sessions, {files} files.\n')
        print('| method | seconds, mean (range) |\n|---|---|')
        for name, action in rows.items():
            print(f'| {name} | {time_it(action, options.repeats)} |')


if __name__ == '__main__':
    main()
