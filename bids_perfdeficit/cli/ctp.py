"""The command `bids_perfdeficit-ctp`: from CT perfusion to pairs of scans with references.

Writes a BIDS dataset that the other commands read: an NCCT and a CTA for each series, and its Tmax
in ``derivatives``, where the levels evaluate and calibrate find it. Must not import anything that
takes time before the options are known to be right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_perfdeficit import __version__
from bids_perfdeficit.cli.parser import (
    EXIT_OK,
    EXIT_SOME_FAILED,
    EXIT_USAGE,
    SmallParser,
    find_unwritable,
    print_problems,
)
from bids_perfdeficit.errors import InputError, printable

#: How a CTA is made, by what it is called.
ANGIOGRAMS = ('peak', 'maximum')
#: Folder of the maps below the dataset that is written.
_MAPS = 'derivatives/ctp'


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; values are text here and checked in `main`."""
    parser = SmallParser(
        prog='bids_perfdeficit-ctp',
        description='Make an NCCT, a CTA and a map of Tmax from each series of CT perfusion '
        '(suffix ctp, four dimensions), as a BIDS dataset for the other commands.',
        allow_abbrev=False,
    )
    parser.add_argument('bids_dir', metavar='BIDS_DIR', type=Path, help='dataset with the series')
    parser.add_argument('out', metavar='OUT', type=Path, help='folder of the dataset to write')
    parser.add_argument(
        '--participant-label', nargs='+', default=[], metavar='LABEL',
        help='only these participants, with or without "sub-"',
    )  # fmt: skip
    parser.add_argument(
        '--angiogram', default='peak', metavar='{peak,maximum}',
        help='the CTA is the mean of the frames about the arterial peak, or the maximum over '
        'time, which fills vessels that fill late (default: peak)',
    )  # fmt: skip
    parser.add_argument(
        '--no-motion-correction', action='store_true', help='take the frames as they are'
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the series and return the exit code."""
    options = build_parser().parse_args(argv)
    problems = []
    if options.angiogram not in ANGIOGRAMS:
        problems.append(
            f"--angiogram '{printable(options.angiogram)}': choose {' or '.join(ANGIOGRAMS)}"
        )
    out = options.out.absolute()
    if nearest := find_unwritable(out):
        problems.append(f'OUT {options.out}: {nearest} is not a folder to write in')
    if out == options.bids_dir.absolute():
        problems.append(f'OUT {options.out}: is BIDS_DIR itself; give another folder')
    if problems:
        print_problems(problems)
        return EXIT_USAGE

    from bids_perfdeficit.bids.ctp import find_ctp

    try:
        files, failed = find_ctp(options.bids_dir.absolute(), options.participant_label)
    except InputError as error:
        print_problems([str(error)])
        return EXIT_USAGE
    if not files:
        print_problems([str(problem) for problem in failed])
        return EXIT_USAGE
    _describe(out, options.bids_dir.absolute())
    good = 0
    for file in files:
        try:
            said = _convert(file, out, options)
        except InputError as error:
            print(f'{file.prefix}: failed: {printable(error)}', flush=True)
            continue
        good += 1
        print(f'{file.prefix}: complete{said}', flush=True)
    for problem in failed:
        print(f'failed: {printable(problem)}')
    total = len(files) + len(failed)
    print(f'{good} of {total} complete; written to {printable(options.out)}')
    return EXIT_OK if good == total else EXIT_SOME_FAILED


def _describe(out: Path, bids_dir: Path) -> None:
    from bids_perfdeficit.bids.dataset import BIDS_VERSION
    from bids_perfdeficit.bids.files import write_json, write_text

    made = {'Name': 'bids_perfdeficit-ctp', 'Version': __version__}
    common = {
        'BIDSVersion': BIDS_VERSION,
        'GeneratedBy': [made],
        'SourceDatasets': [{'URL': bids_dir.as_uri()}],
    }
    write_json(
        {'Name': 'Scans made from CT perfusion', 'DatasetType': 'raw', **common},
        out / 'dataset_description.json',
    )
    write_text('ct\n', out / '.bidsignore')
    write_json(
        {'Name': 'Tmax of CT perfusion', 'DatasetType': 'derivative', **common},
        out / _MAPS / 'dataset_description.json',
    )


def _convert(file: Any, out: Path, options: argparse.Namespace) -> str:
    """Convert one series; return what is to be said of it."""
    from bids_perfdeficit import pipeline
    from bids_perfdeficit.bids import sidecar_path, write_json, write_nifti
    from bids_perfdeficit.bids.ctp import frame_times
    from bids_perfdeficit.nifti import open_nifti

    header = open_nifti(file.path)
    frames = int(header.shape[3]) if len(header.shape) > 3 else 1
    step = float(header.header.get_zooms()[3]) if frames > 1 else 0.0
    times = frame_times(file.path, frames, step)
    found = pipeline.split_series(
        file.path, times, angiogram=options.angiogram, motion=not options.no_motion_correction
    )
    folder = file.prefix.replace('_', '/')
    facts = {
        'Sources': [file.path.as_uri()],
        'FramesBeforeContrast': len(found.timing.before),
        'ArterialPeak': times[found.timing.peak],
        'MotionCorrected': not options.no_motion_correction,
        'LargestMovement': round(found.largest_movement, 2),
        'Notes': list(found.notes),
    }
    angiogram = {
        'peak': 'CT angiogram: mean of the frames of CT perfusion about the arterial peak',
        'maximum': 'CT angiogram: maximum over the frames of CT perfusion',
    }[options.angiogram]
    for image, path, more in (
        (
            found.ncct,
            out / folder / 'ct' / f'{file.prefix}_ct.nii.gz',
            {'Description': 'Non-contrast CT: mean of the frames of CT perfusion before contrast'},
        ),
        (
            found.cta,
            out / folder / 'ct' / f'{file.prefix}_cta.nii.gz',
            {'Description': angiogram},
        ),
        (
            found.tmax,
            out / _MAPS / folder / 'ct' / f'{file.prefix}_tmax.nii.gz',
            {
                'Description': 'Time to the maximum of the residue function: deconvolution by a '
                'block-circulant singular value decomposition (Wu et al., 2003); 0 where it is '
                'not known',
                'Units': 's',
                'ArterialInput': [round(float(value), 2) for value in found.arterial],
                'FrameTimes': [round(time, 3) for time in times],
            },
        ),
    ):
        write_nifti(image, path)
        write_json({**more, **facts}, sidecar_path(path))
    return f' ({"; ".join(found.notes)})' if found.notes else ''


if __name__ == '__main__':
    sys.exit(main())
