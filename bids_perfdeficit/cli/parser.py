"""From the command line and the configuration file to `Settings`.

Every problem with the options is found before anything runs, and all are reported together. Must
not import anything that takes time: `--help` and `--version` answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from bids_perfdeficit import __version__
from bids_perfdeficit.bids.jsonfile import read_text
from bids_perfdeficit.bids.listing import RAW_FOLDERS
from bids_perfdeficit.deficit.models import model_names
from bids_perfdeficit.errors import InputError, printable
from bids_perfdeficit.ranges import RangeError
from bids_perfdeficit.settings import (
    DEFAULT_SPACE,
    AnalysisLevel,
    CtaPhases,
    GroupSettings,
    MapKind,
    Settings,
    coerce,
    option_fields,
)

#: Exit codes; see docs/usage.rst.
EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70

_USAGE = 'bids_perfdeficit BIDS_DIR OUTPUT_DIR {participant,group,evaluate,calibrate} [options]'

#: Levels, as a sentence lists them.
_LEVELS = f'{", ".join(list(AnalysisLevel)[:-1])} or {list(AnalysisLevel)[-1]}'

#: Options of other BIDS Apps that scripts carry over: how many values each has (as argparse
#: counts them), and what to do instead. They are read with their values, so that these are not
#: taken for BIDS_DIR.
FOREIGN: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ('--nthreads', '--n-cpus', '--n_cpus', '--n-procs', '--n_procs', '--nproc'),
        ('1', 'give the processes with --nprocs, and the threads of each with --omp-nthreads'),
    ),
    '--ants-nthreads': ('1', 'remove it; each registration runs on one thread'),
    **dict.fromkeys(
        ('--mem-gb', '--mem_gb', '--mem-mb', '--mem_mb'),
        ('1', 'give the memory in GB with --mem'),
    ),
    '--fs-license-file': ('1', 'remove it; FreeSurfer is not used'),
    '--fs-subjects-dir': ('1', 'remove it; FreeSurfer is not used'),
    '--fs-no-reconall': ('0', 'remove it; FreeSurfer is not used'),
    '--no-submm-recon': ('0', 'remove it; FreeSurfer is not used'),
    '--cifti-output': ('?', 'remove it; surfaces are not computed'),
    '--skull-strip-template': ('1', 'remove it; the brain is extracted by CT values'),
    '--skull-strip-t1w': ('1', 'remove it; the brain is extracted by CT values'),
    '--anat-only': ('0', 'give --level minimal'),
    '--task-id': ('1', 'remove it; there are no tasks in CT'),
    '--dummy-scans': ('1', 'remove it; there are no time series'),
    '--use-syn-sdc': ('?', 'remove it; CT has no susceptibility distortion'),
    '--ignore': ('+', 'remove it; choose images with --bids-filter-file'),
    '--modalities': ('+', 'remove it; only CT is read'),
    '--longitudinal': ('0', 'remove it; each session is computed by itself'),
    '--output-layout': ('1', 'remove it; there is one layout'),
    '--output-resolutions': ('+', 'remove it; maps in the template have 2 mm'),
    '--no-sub': ('0', 'remove it; nothing is ever submitted'),
    '--email': ('1', 'remove it; nothing is ever submitted'),
    '--debug': ('*', 'give -vv'),
    '--run-uuid': ('1', 'remove it; each run names itself'),
}

#: Bytes that file systems allow in one name.
LONGEST_NAME = 255

#: Where each option goes. Options keep their names in the settings, so a table suffices.
_TABLES: dict[str, str] = {key: table for table, key in option_fields()}


class UsageError(Exception):
    """One or more problems with the options, each a sentence for the user.

    Parameters
    ----------
    problems : sequence of str
        Without a list, and without a line break.
    hint : str
        A last line that is not a problem.
    """

    def __init__(self, problems: Sequence[str], hint: str = '') -> None:
        self.problems, self.hint = tuple(problems), hint
        super().__init__('\n'.join(problems))


class SmallParser(argparse.ArgumentParser):
    """Parser of a command beside the app: wrong usage ends in the app's message and exit code."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and end with the exit code of wrong usage."""
        print_problems([message])
        raise SystemExit(EXIT_USAGE)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError([message])


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. All values are text here; `parse_settings` checks and converts them."""
    parser = _Parser(
        prog='bids_perfdeficit',
        usage=_USAGE,
        description='Computed perfusion and perfusion-deficit mapping of ischaemic stroke, from '
        'non-contrast CT and CT angiography. For research only; not a medical device.',
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='exit codes: 0 all done; 1 some participants failed, the others are complete; '
        '2 bad usage or input;\n70 internal error',
    )
    parser.add_argument('bids_dir', nargs='?', metavar='BIDS_DIR', help='the BIDS dataset')
    parser.add_argument(
        'output_dir', nargs='?', metavar='OUTPUT_DIR', help='where derivatives are written'
    )
    parser.add_argument(
        'analysis_level',
        nargs='?',
        metavar='{participant,group,evaluate,calibrate}',
        help='"participant" computes perfusion maps; "group" relates them to NIHSS scores; '
        '"evaluate" compares them with reference maps of CT perfusion; "calibrate" refits what '
        'they are computed with to such maps',
    )

    data = parser.add_argument_group('which data')
    data.add_argument(
        '--participant-label',
        '--participant_label',
        nargs='+',
        metavar='LABEL',
        help='only these participants, with or without "sub-"',
    )
    data.add_argument(
        '--session-label',
        '--session_label',
        nargs='+',
        metavar='LABEL',
        help='only these sessions, with or without "ses-"',
    )
    data.add_argument(
        '--bids-filter-file',
        metavar='FILE',
        help='JSON with the BIDS entities that the images must have, for example '
        '{"ncct": {"run": 1}, "cta": {"acquisition": "angio"}}, and those of the maps of '
        '--map-kind lesion, for example {"map": {"suffix": "Tmax"}}',
    )
    data.add_argument(
        '--pair-sessions',
        action='store_true',
        help='pair an NCCT and a CTA of one day that lie in different sessions',
    )
    data.add_argument(
        '--phases',
        choices=[phases.value for phases in CtaPhases],
        help='of a multi-phase CTA: the first and up to two later ones, where it is certain that '
        'they follow it, or the first alone (default: all)',
    )
    data.add_argument(
        '--bids-database-dir',
        metavar='DIR',
        help='accepted, as other BIDS Apps take it, and without effect: the dataset is searched '
        'anew in each run, which takes a second for 1,400 participants',
    )
    data.add_argument(
        '--skip-bids-validation',
        action='store_true',
        help='accepted, as other BIDS Apps take it, and without effect: what the run needs is '
        'always checked, and nothing else is',
    )
    data.add_argument(
        '-d',
        '--derivatives',
        nargs='+',
        metavar='DIR',
        help='folders with derivatives of an earlier run, or with lesion maps; what they hold is '
        'used, not redone',
    )

    science = parser.add_argument_group('what to compute')
    science.add_argument(
        '--output-spaces',
        nargs='+',
        metavar='SPACE',
        help=f'template of the standard-space maps (default: {DEFAULT_SPACE}, which needs no '
        'download; others are TemplateFlow names, looked up in TEMPLATEFLOW_HOME)',
    )
    science.add_argument(
        '--level',
        metavar='{minimal,full}',
        help='"minimal" stops after the normalisation (default: full)',
    )
    science.add_argument(
        '--arrival',
        metavar='{auto,anisotropic,isotropic}',
        help='how contrast travels: at one speed in all directions, or faster along vessels '
        '(default: auto, which is isotropic for the recipe "default" and anisotropic for '
        '"published")',
    )
    science.add_argument(
        '--calibration',
        metavar='FILE',
        help='compute the maps with the calibration that the level calibrate wrote (default: the '
        'one that is shipped)',
    )
    science.add_argument(
        '--random-seed', metavar='N', help='the one seed of the run (default: 20260101)'
    )
    science.add_argument(
        '--sloppy',
        action='store_true',
        help='coarse and quick, for trying things out only; never for results',
    )

    group = parser.add_argument_group('the group level')
    group.add_argument(
        '--items', nargs='+', metavar='ITEM',
        help='scores: NIHSS items such as 5a 5b 9, nihss_total, mrs, or any column of the table '
        '(default: all NIHSS items that the table has)',
    )  # fmt: skip
    group.add_argument(
        '--higher-is-better', nargs='+', metavar='ITEM',
        help='those of --items whose higher scores are better, such as the Barthel index',
    )  # fmt: skip
    group.add_argument(
        '--scores', metavar='FILE',
        help='table of scores (default: phenotype/nihss.tsv or participants.tsv), or the folder '
        "of ISLES'24",
    )  # fmt: skip
    group.add_argument(
        '--covariates', nargs='+', metavar='NAME',
        help='columns of participants.tsv to adjust for, and total_deficit_volume, which is '
        'measured on the maps',
    )  # fmt: skip
    group.add_argument(
        '--model', nargs='+', metavar=f'{{{",".join(model_names())}}}',
        help='deficit models to fit side by side (default: spatial)',
    )  # fmt: skip
    group.add_argument(
        '--map-kind', metavar=f'{{{",".join(MapKind)}}}',
        help='relate scores to computed perfusion, to how much later it is than on the other '
        'side, to the probability of hypoperfusion (default: perfusion), or to lesion maps of '
        'your own: sub-<label>_space-<template>_label-lesion_mask.nii.gz or _probseg.nii.gz in '
        'OUTPUT_DIR or --derivatives',
    )  # fmt: skip
    group.add_argument(
        '--map-threshold', metavar='VALUE',
        help='value above which a voxel is affected, in maps that {"map": ...} of '
        '--bids-filter-file chooses, such as 6 for Tmax in seconds; maps are divided by twice '
        'this value and cut at 1 (default: 0.5)',
    )  # fmt: skip
    group.add_argument(
        '--folds', metavar='N', help='folds of the cross-validation, 0 for none (default: 5)'
    )
    group.add_argument(
        '--fold-repeats', metavar='N',
        help='repeat the cross-validation with N assignments to folds (default: 1)',
    )  # fmt: skip
    group.add_argument(
        '--fold-groups', metavar='NAME',
        help='column of participants.tsv, such as the site, whose groups no fold splits',
    )  # fmt: skip
    group.add_argument(
        '--permutations', metavar='N',
        help='fit again on N shuffles of the scores, to see how often something is declared '
        'where there is nothing (default: 0)',
    )  # fmt: skip
    group.add_argument(
        '--bootstraps', metavar='N',
        help='fit again on N resampled cohorts, to see how stable the maps are (default: 0)',
    )  # fmt: skip
    group.add_argument(
        '--resolution', metavar='MM', help='voxel size of the group maps, from 2 (default: 4)'
    )
    group.add_argument(
        '--vae-epochs', metavar='N', help='passes of the training of vae (default: 4000)'
    )
    group.add_argument(
        '--vae-spacing', metavar='MM', help='voxel size of the grid of vae, from 4 (default: 6)'
    )
    group.add_argument(
        '--min-coverage', metavar='SHARE',
        help='leave out voxels in which fewer participants have a deficit (default: 0.02; with '
        '--map-kind lesion 0.01, and never fewer than 5 participants)',
    )  # fmt: skip
    group.add_argument(
        '--include-doubtful', action='store_true',
        help='also take participants whose results were judged doubtful (default: leave them '
        'out); at the levels evaluate and calibrate too',
    )  # fmt: skip
    group.add_argument(
        '--apply', metavar='MODEL_DIR',
        help='predict scores with the models of an earlier group run; nothing is fitted',
    )  # fmt: skip

    evaluation = parser.add_argument_group('the levels evaluate and calibrate')
    evaluation.add_argument(
        '--reference', nargs='+', metavar='PATTERN',
        help='maps of Tmax in seconds, registered to the NCCT: files, folders or quoted patterns, '
        'relative to BIDS_DIR or absolute; each must name its participant (default: all that '
        "are called tmax in BIDS_DIR/derivatives, as in ISLES'24)",
    )  # fmt: skip

    resources = parser.add_argument_group('what to use')
    resources.add_argument(
        '--device',
        metavar='{cpu,cuda,cuda:N,auto}',
        help='where tensors are computed; "auto" takes a GPU when there is one (default: auto)',
    )
    resources.add_argument(
        '--nprocs', metavar='N', help='processes at once (default: the cores of this job)'
    )
    resources.add_argument(
        '--omp-nthreads',
        metavar='N',
        help='threads of one step (default: the cores that other participants leave)',
    )
    resources.add_argument(
        '--mem',
        metavar='GB',
        help='memory that may be used, at least 1 (default: that of the machine, container or '
        'job)',
    )
    resources.add_argument(
        '--low-mem', action='store_true', help='one participant step at a time, to save memory'
    )
    resources.add_argument(
        '--use-plugin', metavar='FILE', help='YAML with a Nipype plugin and its arguments'
    )
    resources.add_argument(
        '-w',
        '--work-dir',
        metavar='DIR',
        help='for intermediate files (default: a temporary folder that is removed)',
    )
    resources.add_argument(
        '--clean-workdir', action='store_true', help='empty the working folder after a good run'
    )
    resources.add_argument(
        '--resource-monitor', action='store_true', help='record memory and CPU of each step'
    )
    resources.add_argument(
        '--stop-on-first-crash', action='store_true', help='stop all when one participant fails'
    )

    run = parser.add_argument_group('how to run')
    run.add_argument(
        '--config-file',
        metavar='FILE',
        help='TOML with options, as written to logs/<run>/settings.toml; options given here win',
    )
    run.add_argument(
        '--dry-run', action='store_true', help='list what would run for whom, and stop'
    )
    run.add_argument(
        '--verify',
        action='store_true',
        help='hash every input and output of earlier runs, instead of comparing sizes and times',
    )
    run.add_argument('--reports-only', action='store_true', help='only make the reports again')
    run.add_argument(
        '--self-contained-reports',
        action='store_true',
        help='put figures and tables into the reports, so that each can be mailed as one file',
    )
    run.add_argument('--boilerplate-only', action='store_true', help='only print the methods text')
    run.add_argument('--write-graph', action='store_true', help='draw the workflow to logs/<run>/')
    run.add_argument('-v', '--verbose', action='count', help='say more (twice: everything)')
    run.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    # Accepted in silence: there is no telemetry that could be switched off.
    parser.add_argument('--notrack', action='store_true', help=argparse.SUPPRESS)
    for option, (count, _) in FOREIGN.items():
        parser.add_argument(
            option,
            dest='foreign',
            action=_Foreign,
            nargs=int(count) if count.isdecimal() else count,
            help=argparse.SUPPRESS,
        )
    return parser


class _Foreign(argparse.Action):
    """Collects the options of `FOREIGN` that were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.foreign = [*getattr(namespace, 'foreign', []), option_string]


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Turn the command line into `Settings`.

    Raises
    ------
    UsageError
        With every problem found, not only the first.
    SystemExit
        After ``--help`` or ``--version``.
    """
    parser = build_parser()
    namespace, unknown = parser.parse_known_args(argv)
    given = vars(namespace)
    given.pop('notrack', None)
    problems = [
        f'{option} is an option of another BIDS App and is not needed here; {FOREIGN[option][1]}'
        for option in dict.fromkeys(given.pop('foreign', []))
    ]
    problems += [_unknown_option(parser, word) for word in unknown]
    missing = _name_missing(given)
    problems += missing
    settings = _merge(given, problems)
    problems += _check(settings, given)
    if problems:
        raise UsageError(
            [printable(problem) for problem in problems],
            f'usage: {_USAGE}; all options: bids_perfdeficit --help' if missing else '',
        )
    if note := _name_idle(settings, given):
        print(f'bids_perfdeficit: note: {note}', file=sys.stderr)
    return settings


def _name_idle(settings: Settings, given: dict[str, Any]) -> str:
    """Return the sentence about options that do nothing at this level, empty if there are none."""
    if settings.inputs.analysis_level is not AnalysisLevel.PARTICIPANT:
        if given.get('calibration') is not None:
            return '--calibration: of the participant level, without effect here'
        return ''
    names = [
        _name_option(key)
        for key, value in given.items()
        if value is not None and _TABLES.get(key) == 'group'
    ]
    return f'{", ".join(names)}: of the group level, without effect here' if names else ''


def _name_missing(given: dict[str, Any]) -> list[str]:
    """Return the sentence about missing arguments, and where they may have gone."""
    names = {
        'bids_dir': 'BIDS_DIR',
        'output_dir': 'OUTPUT_DIR',
        'analysis_level': f'the analysis level ({_LEVELS})',
    }
    missing = [name for key, name in names.items() if given.get(key) is None]
    if not missing:
        return []
    listed = ' and '.join(filter(None, (', '.join(missing[:-1]), missing[-1])))
    problem = f'{listed} {"is" if len(missing) == 1 else "are"} missing'
    for key, value in given.items():
        if isinstance(value, list) and set(value) & set(AnalysisLevel):
            option = f'--{key.replace("_", "-")}'
            problem += f'; {option} takes all values that follow it, so put it after the level'
    return [problem]


def _unknown_option(parser: argparse.ArgumentParser, word: str) -> str:
    if not word.startswith('-'):
        return (
            f'{word!r} is one argument too many; options that take several values go after '
            'BIDS_DIR, OUTPUT_DIR and the level'
        )
    known = [
        name
        for action in parser._actions
        for name in action.option_strings
        if action.help is not argparse.SUPPRESS
    ]
    close = difflib.get_close_matches(word.split('=')[0], known, n=1)
    hint = f'did you mean {close[0]}?' if close else 'see --help'
    return f'{word} is not an option; {hint}'


def _merge(given: dict[str, Any], problems: list[str]) -> Settings:
    """Lay the command line over the configuration file over the defaults."""
    settings = Settings()
    config = given.get('config_file')
    if config is not None:
        try:
            settings = Settings.from_toml(read_text(Path(config)))
        except InputError as error:
            problems.append(f'--config-file {config}: {error.reason}; {error.fix}')
        except ValueError as error:
            problems += [f'--config-file {config}: {line}' for line in str(error).splitlines()]
    tables: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        if key == 'config_file' or value is None:
            continue
        table = _TABLES[key]
        hint = get_type_hints(type(getattr(settings, table)))[key]
        try:
            tables.setdefault(table, {})[key] = coerce(value, hint)
        except ValueError as error:
            problems.append(
                f'invalid analysis level {value!r} (choose {_LEVELS})'
                if key == 'analysis_level'
                else f'{_name_option(key)}: {error}'
            )
    for table, values in tables.items():
        try:
            made = replace(getattr(settings, table), **values)
        except RangeError as error:
            problems += [f'{_name_option(key)} {said}' for key, said in error.problems.items()]
            right = {key: value for key, value in values.items() if key not in error.problems}
            made = replace(getattr(settings, table), **right)
        settings = replace(settings, **{table: made})
    return settings


def _name_option(key: str) -> str:
    """Return an option of the settings as it is written on the command line."""
    option = f'--{key.replace("_", "-")}'
    return option if option in _OPTIONS else key.upper()


_OPTIONS = frozenset(name for a in build_parser()._actions for name in a.option_strings)


def _check(settings: Settings, given: dict[str, Any]) -> list[str]:
    """Return what is wrong with the options among themselves and with the machine."""
    problems = []
    inputs, resources, processing = settings.inputs, settings.resources, settings.processing
    if given.get('bids_dir') is not None and given.get('output_dir') is not None:
        problems += _check_folders(settings)
    if inputs.analysis_level is AnalysisLevel.GROUP:
        problems += _check_group(settings)
    if inputs.bids_filter_file is not None:
        problems += _check_filters(inputs.bids_filter_file)
    if resources.use_plugin is not None and not os.path.isfile(resources.use_plugin):
        problems.append(f'--use-plugin {resources.use_plugin}: no such file; give a YAML file')
    problems += [
        f'--derivatives {path}: no such folder; give a folder with derivatives'
        for path in inputs.derivatives
        if not os.path.isdir(path)
    ]
    problems += _check_labels('--participant-label', 'sub-', inputs.participant_label)
    problems += _check_labels('--session-label', 'ses-', inputs.session_label)
    if len(processing.output_spaces) != 1:
        problems.append(
            f'--output-spaces {" ".join(processing.output_spaces)}: give one template per run; '
            'give another template an OUTPUT_DIR of its own'
        )
    problems += _check_space(processing.output_spaces)
    problems += _check_device(processing.device)
    if processing.calibration is not None:
        problems += _check_calibration(processing.calibration)
    return problems


def _check_group(settings: Settings) -> list[str]:
    group, inputs = settings.group, settings.inputs
    problems = []
    if group.scores is not None and not os.path.exists(group.scores):
        problems.append(f'--scores {group.scores}: no such file; give a table of scores')
    if group.apply is not None and not os.path.exists(group.apply):
        problems.append(
            f'--apply {group.apply}: no such folder; give the OUTPUT_DIR of an earlier group run'
        )
    if not group.map_kind.is_given and group.map_threshold != GroupSettings().map_threshold:
        problems.append(
            f'--map-threshold {group.map_threshold:g}: is for maps of your own; give --map-kind '
            'lesion as well, or leave it out'
        )
    if len(inputs.session_label) > 1:
        problems.append(
            f'--session-label {" ".join(inputs.session_label)}: the group level takes one session'
        )
    return problems


def _check_labels(option: str, prefix: str, labels: Sequence[str]) -> list[str]:
    problems = []
    for label in labels:
        parts = [part for part in re.split(r'[\s,;]+', label) if part]
        if len(parts) > 1 or (parts and parts != [label]):
            problems.append(
                f'{option} {label}: labels are separated by spaces; give {option} '
                f'{" ".join(parts)}'
            )
        elif not re.fullmatch(rf'({prefix})?[A-Za-z0-9+]+', label):
            problems.append(
                f"{option} '{printable(label)}': BIDS labels hold letters and digits only"
            )
    return problems


def _check_folders(settings: Settings) -> list[str]:
    """Return what is wrong with the folders, by where they really are."""
    inputs, work = settings.inputs, settings.resources.work_dir
    bids_dir, output_dir = inputs.bids_dir, inputs.output_dir
    problems = []
    if not os.path.isdir(bids_dir):
        kind = 'is not a folder' if os.path.exists(bids_dir) else 'no such folder'
        problems.append(f'BIDS_DIR {bids_dir}: {kind}; give the folder of a BIDS dataset')
    elif not os.access(bids_dir, os.R_OK | os.X_OK):
        problems.append(f'BIDS_DIR {bids_dir}: cannot be read; make it readable to you')
    elif where := _locate(output_dir, bids_dir):
        problems.append(
            f'OUTPUT_DIR {output_dir}: {where}; give another folder, for example '
            f'{bids_dir / "derivatives/perfdeficit"}'
        )
    problems += _check_writable('OUTPUT_DIR', output_dir)
    if work is not None:
        if _lies_in(work, bids_dir) or _locate(work, bids_dir):
            problems.append(
                f'--work-dir {work}: lies inside BIDS_DIR, where it would be read as data; '
                'give another folder'
            )
        elif _lies_in(work, output_dir).startswith('sub-'):
            problems.append(
                f'--work-dir {work}: lies inside the results of a participant; give another folder'
            )
        elif _resolve(work) == _resolve(output_dir) or _same(work, output_dir):
            problems.append(
                f'--work-dir {work}: is OUTPUT_DIR; give another folder, for example '
                f'{output_dir / "work"}'
            )
        problems += _check_writable('--work-dir', work)
    if settings.resources.clean_workdir and work is None:
        problems.append('--clean-workdir: needs --work-dir; the default one is always removed')
    return problems


def _locate(output_dir: Path, bids_dir: Path) -> str:
    """Say where in the raw data an output folder would lie; nothing when it does not.

    OUTPUT_DIR may contain BIDS_DIR (``derivatives/sourcedata/raw`` is a layout of BIDS) and may
    lie in BIDS_DIR (``derivatives``), but not where the raw images are.
    """
    for raw in (bids_dir, *(bids_dir / name for name in RAW_FOLDERS)):
        name = 'BIDS_DIR' if raw == bids_dir else f'{raw.name} of BIDS_DIR'
        below = _lies_in(output_dir, raw)
        if below == '.':
            return f'is {name} itself'
        participant = below.split(os.sep)[0]
        if not participant.startswith('sub-'):
            participant = next((n for n in _links(raw) if _lies_in(output_dir, raw / n)), '')
        if participant:
            return f'lies inside {participant} of {name}'
    return ''


def _links(folder: Path) -> list[str]:
    """Return the participants of a dataset whose folders are links to somewhere else."""
    try:
        with os.scandir(folder) as entries:
            return [e.name for e in entries if e.name.startswith('sub-') and e.is_symlink()]
    except OSError:
        return []


def _lies_in(path: Path, folder: Path) -> str:
    """Return a path relative to a folder that holds it, ``'.'`` for itself, or nothing.

    Links, ``..``, bind mounts and file systems that ignore case are seen through: what counts is
    whether the nearest existing parents are the same folder. Neither need exist.
    """
    real = _resolve(path)
    below: list[str] = []
    for parent in (real, *real.parents):
        if parent == _resolve(folder) or _same(parent, folder):
            return os.path.join(*below) if below else '.'
        below.insert(0, parent.name)
    return ''


def _resolve(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve fails on a loop of links


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _check_writable(name: str, path: Path) -> list[str]:
    """Say why nothing can be written to a folder that need not exist yet."""
    nearest = path.absolute()
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not os.path.exists(nearest):
        return [f'{name} {path}: {nearest} is a link that leads nowhere; give a folder']
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        return [f'{name} {path}: holds a name of more than {LONGEST_NAME} bytes; shorten it']
    if not os.path.isdir(nearest):
        where = (
            'is a file' if nearest == path.absolute() else f'lies below {nearest}, which is a file'
        )
        return [f'{name} {path}: {where}; give a folder']
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [
            f'{name} {path}: {nearest} is not writable; '
            'give a folder of your own, or bind it read-write into the container'
        ]
    return []


def _check_filters(path: Path) -> list[str]:
    from bids_perfdeficit.bids.filters import read_filters

    try:
        read_filters(path)
    except InputError as error:
        return [f'--bids-filter-file {path}: {error.reason}; {error.fix}']
    return []


def _check_calibration(path: Path) -> list[str]:
    from bids_perfdeficit.bids.jsonfile import read_json
    from bids_perfdeficit.perfusion.recalibration import join_calibration

    try:
        join_calibration(read_json(path))
    except InputError as error:
        return [f'--calibration {path}: {error.reason}; {error.fix}']
    except ValueError as error:
        return [f'--calibration {path}: {error}; give a file that the level calibrate wrote']
    return []


def _check_space(spaces: Sequence[str]) -> list[str]:
    if all(space == DEFAULT_SPACE for space in spaces):
        return []
    home = os.environ.get('TEMPLATEFLOW_HOME')
    problems = []
    for space in spaces:
        if space == DEFAULT_SPACE:
            continue
        if not re.fullmatch('[A-Za-z0-9]+', space):
            problems.append(
                f"--output-spaces '{printable(space)}': names of templates hold letters and "
                f'digits only; give, for example, {DEFAULT_SPACE}'
            )
            continue
        folder = Path(home or '') / f'tpl-{space}'
        if home is None or not os.path.isdir(folder):
            problems.append(
                f'--output-spaces {space}: not found in TEMPLATEFLOW_HOME ({home or "not set"}); '
                f'on a machine with a network run: TEMPLATEFLOW_HOME={home or "<folder>"} '
                f'python -c "import templateflow.api as t; t.get(\'{space}\')"'
            )
    return problems


def _check_device(device: str) -> list[str]:
    match = re.fullmatch(r'cpu|auto|cuda(?::(\d+))?', device)
    if match is None:
        return [f'--device {device}: is not one of cpu, cuda, cuda:N, auto']
    if not device.startswith('cuda'):
        return []
    import torch  # late: takes seconds, and only a named GPU needs it here

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match.group(1) or 0) >= count:
        return [f'--device {device}: this machine has {count} GPUs; give cpu or auto']
    return []


def find_unwritable(out: Path) -> Path | None:
    """Return what keeps a folder from being made or written in; None where nothing does.

    Asked before an hour of work, not after it.
    """
    whole = out.absolute()
    nearest = next(p for p in (whole, *whole.parents) if p.exists())
    return None if nearest.is_dir() and os.access(nearest, os.W_OK) else nearest


def print_problems(problems: Sequence[str], hint: str = '') -> None:
    """Print all problems at once on standard error, one a line, and a hint after them."""
    noun = 'problem' if len(problems) == 1 else 'problems'
    print(f'bids_perfdeficit: {len(problems)} {noun}:', file=sys.stderr)
    for problem in problems:
        print(f'  - {printable(problem)}', file=sys.stderr)
    if hint:
        print(hint, file=sys.stderr)
