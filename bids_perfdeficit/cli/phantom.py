"""The command `bids_perfdeficit-phantom`: digital patients and cohorts as BIDS datasets.

Must not import anything that takes time before the options are known to be right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_perfdeficit import __version__
from bids_perfdeficit.cli.parser import (
    EXIT_OK,
    EXIT_USAGE,
    SmallParser,
    find_unwritable,
    print_problems,
)
from bids_perfdeficit.cli.pulse import Pulse

#: What an option must lie between; spacing in mm.
_RANGES = {'participants': (0, 999), 'cohort': (0, 9999), 'seed': (0, 2**31 - 1),
           'spacing': (0.4, 4.0), 'phases': (1, 3)}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; values are text here and checked in `main`."""
    parser = SmallParser(
        prog='bids_perfdeficit-phantom',
        description='Write digital stroke patients, whose vessels, delays and scores are known, '
        'as a BIDS dataset.',
        allow_abbrev=False,
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='folder, new or empty')
    parser.add_argument(
        '--participants', default='3', metavar='N', help='patients with images (default: 3)'
    )
    parser.add_argument(
        '--cohort',
        default='0',
        metavar='N',
        help='patients with maps and scores only, in OUT/derivatives/bids_perfdeficit-cohort, '
        'which is a BIDS_DIR of its own for the group level (default: 0)',
    )
    parser.add_argument('--seed', default='1', metavar='N', help='of everything (default: 1)')
    parser.add_argument(
        '--spacing', default='1', metavar='MM', help='voxel size of the scans (default: 1)'
    )
    parser.add_argument(
        '--phases', default='1', metavar='N', help='of each CTA, 8 s apart, 1 to 3 (default: 1)'
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the phantom and return the exit code."""
    options = build_parser().parse_args(argv)
    problems, values = [], {}
    for name, (low, high) in _RANGES.items():
        text = getattr(options, name)
        try:
            value = float(text) if name == 'spacing' else int(text)
            if not low <= value <= high:
                raise ValueError
        except ValueError:
            kind = 'a number' if name == 'spacing' else 'a whole number'
            problems.append(f'--{name} {text}: give {kind} from {low:g} to {high:g}.')
            continue
        values[name] = value
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        problems.append(f'{options.out} is there and not an empty folder; give a new one.')
    elif nearest := find_unwritable(options.out):
        problems.append(f'{options.out} cannot be made: {nearest} is not a folder to write in.')
    if values.get('participants') == 0 and values.get('cohort') == 0:
        problems.append('--participants and --cohort are both 0; there is nothing to write.')
    if problems:
        print_problems(problems)
        return EXIT_USAGE

    from bids_perfdeficit.phantom.dataset import write_dataset

    last = ['the first patient']

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def report(line: str) -> None:
        last[0] = line
        pulse.note()
        say(line)

    pulse = Pulse(say, lambda: f'still at work (last: {last[0]})')
    with pulse.beating():
        write_dataset(
            options.out,
            participants=int(values['participants']),
            cohort=int(values['cohort']),
            seed=int(values['seed']),
            spacing=float(values['spacing']),
            phases=int(values['phases']),
            report=report,
        )
    print(f'written to {options.out}')
    return EXIT_OK


if __name__ == '__main__':
    sys.exit(main())
