"""`make demo`: the main job on the built-in phantom, from images to the group report.

Must not hold anything that a user could not type: it only strings the commands together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bids_perfdeficit.cli import phantom, run

#: Patients with images, and patients of the cohort, who have maps and scores.
PARTICIPANTS, COHORT = 2, 300


def main(argv: Sequence[str] | None = None) -> int:
    """Make the phantom, run both levels on it, and say where the reports are."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    root = Path(arguments[0] if arguments else 'demo').absolute()
    data, out, group = root / 'data', root / 'out', root / 'group'
    cohort = data / 'derivatives' / 'bids_perfdeficit-cohort'
    steps = (
        (
            f'{PARTICIPANTS} digital patients with images, {COHORT} with maps and scores',
            phantom.main,
            [data, '--participants', PARTICIPANTS, '--cohort', COHORT, '--seed', 1],
        ),
        ('perfusion maps of the patients', run.main, [data, out, 'participant']),
        (
            'deficit maps of the cohort',
            run.main,
            [cohort, group, 'group', '-d', cohort, '--model', 'spatial', 'ridge', '--folds', 3],
        ),
    )
    begun = time.monotonic()
    for number, (what, command, options) in enumerate(steps, 1):
        minutes = (time.monotonic() - begun) / 60
        since = f' ({minutes:.0f} min so far)' if number > 1 else ''
        print(f'\nStep {number} of {len(steps)}: {what}{since}', flush=True)
        code = command([str(option) for option in options])
        if code:
            return code
    print('\nOpen these in a browser:')
    for page, what in (
        (out / 'index.html', 'all patients'),
        *((path, 'a patient') for path in sorted(out.glob('sub-*.html'))),
        (group / 'group.html', 'the deficit maps'),
    ):
        print(f'  {page}  ({what})')
    return 0


if __name__ == '__main__':
    sys.exit(main())
