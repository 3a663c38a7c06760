"""The command `bids_perfdeficit-draw`: artificial participants, and completed maps.

Fits the flow of perfusion maps to a cohort, draws maps from it and scores from a model of the
group level, and writes both as the participant level and a study would leave them, so that they
can be shared and analysed. Can also complete the cohort's own maps where a scan ended. Must not
import anything that takes time before the options are known to be right.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_perfdeficit import __version__
from bids_perfdeficit.cli.parser import (
    EXIT_OK,
    EXIT_USAGE,
    SmallParser,
    find_unwritable,
    print_problems,
)
from bids_perfdeficit.errors import InputError, printable

if TYPE_CHECKING:
    import nibabel as nib

    from bids_perfdeficit.bids.cohort import Cohort
    from bids_perfdeficit.deficit import DeficitFit, Stack

#: Kinds of maps that can be drawn: those in [0, 1].
KINDS = ('perfusion', 'hypoperfused')
_README = """\
# Drawn participants

Made by bids_perfdeficit-draw. No participant was scanned: maps and scores were drawn from models
of a cohort. The sidecar of each map names the model.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; values are text here and checked in `main`."""
    parser = SmallParser(
        prog='bids_perfdeficit-draw',
        description='Draw participants from the models of a cohort: perfusion maps on the '
        'template and scores, as a dataset that the group level can analyse.',
        allow_abbrev=False,
    )
    parser.add_argument(
        'model', metavar='MODEL', type=Path,
        help='OUTPUT_DIR of a finished group run, or one tpl-*_model-*_params.pt in it',
    )  # fmt: skip
    parser.add_argument('out', metavar='OUT', type=Path, help='folder of the dataset to write')
    parser.add_argument(
        '--maps', nargs='+', type=Path, default=[], metavar='DIR',
        help='folders with the sub-*/ of the cohort (default: MODEL, where it is a folder)',
    )  # fmt: skip
    parser.add_argument(
        '--count', default='100', metavar='N', help='participants to draw (default: 100)'
    )
    parser.add_argument(
        '--model-name', metavar='NAME',
        help='which model, where MODEL holds several (default: that of the group level, or the '
        'only one)',
    )  # fmt: skip
    parser.add_argument(
        '--completed', action='store_true',
        help="write the cohort's own maps instead, with what was not scanned filled in",
    )  # fmt: skip
    parser.add_argument(
        '--include-doubtful', action='store_true',
        help='also take participants whose results were judged doubtful (default: leave them out)',
    )  # fmt: skip
    parser.add_argument(
        '--random-seed', default='20260101', metavar='SEED', help='default: 20260101'
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write; return the exit code."""
    options = build_parser().parse_args(argv)
    problems = _check(options)
    if problems:
        print_problems(problems)
        return EXIT_USAGE
    try:
        path, facts = _choose_model(options.model, options.model_name)
        _run(path, facts, options)
    except InputError as error:
        print_problems([str(error)])
        return EXIT_USAGE
    return EXIT_OK


def _check(options: argparse.Namespace) -> list[str]:
    problems = []
    for option, text, least in (
        ('--count', options.count, 1),
        ('--random-seed', options.random_seed, 0),
    ):
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            problems.append(f"{option} '{printable(text)}': give a whole number from {least} on")
    if not options.model.exists():
        problems.append(f'MODEL {options.model}: no such file or folder')
    elif options.model.is_file() and not options.maps:
        problems.append(
            f'MODEL {options.model}: is one file; name the folders of the maps with --maps'
        )
    problems += [f'--maps {path}: no such folder' for path in options.maps if not path.is_dir()]
    out = options.out.absolute()
    if nearest := find_unwritable(out):
        problems.append(f'OUT {options.out}: {nearest} is not a folder to write in')
    elif out in {path.absolute() for path in (options.model, *options.maps)}:
        problems.append(f'OUT {options.out}: holds the cohort itself; give another folder')
    elif out.is_dir() and any(out.glob('sub-*')):
        problems.append(
            f'OUT {options.out}: holds participants already; give a new folder, so that those of '
            'two draws are not taken for one cohort'
        )
    return problems


def _choose_model(model: Path, name: str | None) -> tuple[Path, dict[str, Any]]:
    """Return the parameters and their sidecar."""
    from bids_perfdeficit.bids import sidecar_path
    from bids_perfdeficit.settings import GroupSettings
    from bids_perfdeficit.workflows.group_plan import check_fitted

    found = [model] if model.is_file() else sorted(model.glob('**/tpl-*_model-*_params.pt'))
    named = {path.name.split('_model-')[-1].split('_')[0]: path for path in found}
    if not named:
        raise InputError(
            'there is no tpl-*_model-*_params.pt in it',
            fix='give the OUTPUT_DIR of a finished group run',
            path=model,
        )
    default = str(GroupSettings().model[0])
    if name is None and default not in named and len(named) == 1:
        default = next(iter(named))
    wanted = name or default
    if wanted not in named:
        raise InputError(
            f'it holds the models {", ".join(sorted(named))}, not {wanted}',
            fix='choose one with --model-name',
            path=model,
        )
    path = named[wanted]
    try:
        facts = json.loads(sidecar_path(path).read_text(encoding='utf-8'))
        for key in ('Space', 'VoxelSize', 'MapKind'):
            facts[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            'has no sidecar that names what it was fitted on',
            fix='keep the .json beside the .pt, or fit again',
            path=path,
        ) from error
    check_fitted(path)
    if facts['MapKind'] not in KINDS:
        raise InputError(
            f'was fitted to maps of the kind {facts["MapKind"]}; participants are drawn from '
            f'{" or ".join(KINDS)}',
            fix='fit the group level with --map-kind perfusion',
            path=path,
        )
    return path, facts


@dataclass(frozen=True)
class _Writer:
    """Where images go, and what each sidecar says."""

    out: Path
    space: str
    key: str
    facts: Mapping[str, Any]

    def write(
        self,
        participant: str,
        image: nib.Nifti1Image,
        mask: nib.Nifti1Image,
        session: str | None = None,
        **more: Any,
    ) -> None:
        """Write a map and its mask."""
        from bids_perfdeficit.bids import (
            output_path,
            sidecar,
            sidecar_path,
            write_json,
            write_nifti,
        )

        for key, values in ((self.key, image), ('std_brain_mask', mask)):
            path = output_path(
                self.out, key, participant=participant, session=session, space=self.space
            )
            write_nifti(values, path)
            content = sidecar(key, space=self.space, **self.facts, **more)
            write_json(content, sidecar_path(path))


def _run(path: Path, facts: Mapping[str, Any], options: argparse.Namespace) -> None:
    from bids_perfdeficit import pipeline
    from bids_perfdeficit.bids.cohort import find_cohort
    from bids_perfdeficit.deficit import DeficitFit
    from bids_perfdeficit.workflows.group_plan import find_unproven

    fit = DeficitFit.load(path)
    space, key = facts['Space'], f'std_{facts["MapKind"]}'
    cohort = find_cohort(options.maps or [options.model], space=space, key=key)
    # As the group level leaves them out.
    cohort = cohort.without(
        find_unproven(cohort.entries, include_doubtful=options.include_doubtful)
    )
    for participant, reason in cohort.dropped.items():
        print(f'left out: {participant}: {printable(reason)}')
    if not cohort.entries:
        raise InputError('no map can be used', fix='see the reasons above')
    with tempfile.TemporaryDirectory() as folder:
        stack = pipeline.stack_cohort(
            [entry.map for entry in cohort.entries],
            [entry.mask for entry in cohort.entries if entry.mask],
            Path(folder, 'maps.npy'),
            space=space,
            resolution=float(facts['VoxelSize']),
            fit=fit,
        )
        print(f'{len(stack.values)} maps of the cohort are read', flush=True)
        for position, reason in stack.dropped.items():
            print(f'left out: {cohort.entries[position].map.name}: {printable(reason)}')
        said = {'FittedModel': path.name, 'MapsOfCohort': len(stack.values)}
        if options.completed:
            _complete(fit, stack, cohort, _Writer(options.out, space, key, said))
        else:
            said['RandomSeed'] = int(options.random_seed)
            _draw(fit, stack, int(options.count), _Writer(options.out, space, key, said))
    print(f'written to {printable(options.out)}')


def _draw(fit: DeficitFit, stack: Stack, count: int, writer: _Writer) -> None:
    """Write drawn participants."""
    from bids_perfdeficit import pipeline
    from bids_perfdeficit.bids.files import write_json, write_text, write_tsv

    maps, scores = pipeline.draw_cohort(fit, stack.values, count, seed=writer.facts['RandomSeed'])
    labels = [f'drawn{number:04d}' for number in range(1, count + 1)]
    _describe(writer.out, 'Drawn participants')
    for label, values in zip(labels, maps, strict=True):
        writer.write(label, *pipeline.on_template(values, fit.coarse, writer.space), Drawn=True)
    scores.insert(0, 'participant_id', [f'sub-{label}' for label in labels])
    table = writer.out / 'phenotype' / 'nihss.tsv'
    write_tsv(scores, table)
    columns = {
        item.name: {'Description': f'Drawn score of {item.name} at the mean of the covariates'}
        for item in fit.items
    }
    write_json(columns, table.with_suffix('.json'))
    write_tsv(scores[['participant_id']], writer.out / 'participants.tsv')
    write_text(_README, writer.out / 'README.md')
    print(f'{count} participants are drawn', flush=True)


def _complete(fit: DeficitFit, stack: Stack, cohort: Cohort, writer: _Writer) -> None:
    """Write the maps of the cohort without gaps."""
    import numpy as np

    from bids_perfdeficit import pipeline

    _describe(writer.out, 'Completed perfusion maps')
    gaps = 0
    for position, values in zip(stack.measures.index, stack.values, strict=True):
        missing = float(np.mean(~np.isfinite(values)))
        (filled,) = fit.complete(np.asarray(values)[None])
        entry = cohort.entries[position]
        writer.write(
            entry.participant,
            *pipeline.on_template(filled, fit.grid, writer.space),
            session=entry.session or None,
            CompletedShare=round(missing, 4),
        )
        gaps += missing > 0
    print(f'{gaps} of {len(stack.values)} maps had gaps, and are whole now', flush=True)


def _describe(out: Path, name: str) -> None:
    from bids_perfdeficit.bids.dataset import BIDS_VERSION
    from bids_perfdeficit.bids.files import write_json, write_text

    content = {
        'Name': name,
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [{'Name': 'bids_perfdeficit-draw', 'Version': __version__}],
    }
    write_json(content, out / 'dataset_description.json')
    write_text('ct\n', out / '.bidsignore')


if __name__ == '__main__':
    sys.exit(main())
