"""From the command line and the configuration file to `Settings`.

Every problem with the options is found before anything runs, and all are told together. Must not
import anything that takes time: `--help` and `--version` answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from bids_perfdeficit import __version__
from bids_perfdeficit.settings import (
    DEFAULT_SPACE,
    AnalysisLevel,
    Settings,
    coerce,
    option_fields,
)

#: Exit codes; see docs/usage.rst.
EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70

_USAGE = 'bids_perfdeficit BIDS_DIR OUTPUT_DIR {participant,group} [options]'

#: Where each option goes. Options keep their names in the settings, so a table suffices.
_TABLES: dict[str, str] = {key: table for table, key in option_fields()}


class UsageError(Exception):
    """One or more problems with the options, each a sentence for the user."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__('\n'.join(problems))


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
        metavar='{participant,group}',
        help='"participant" computes perfusion maps; "group" relates them to NIHSS scores',
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
        '{"ncct": {"run": 1}, "cta": {"acquisition": "angio"}}',
    )
    data.add_argument(
        '--bids-database-dir',
        metavar='DIR',
        help='keep the index of the dataset here and use it again, when the dataset is unchanged',
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
        help='folders with derivatives of an earlier run; what they hold is used, not redone',
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
        metavar='{anisotropic,isotropic}',
        help='how contrast travels: at one speed in all directions, or faster along vessels '
        '(default: isotropic)',
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
        '--model', nargs='+', metavar='{spatial,vae,ridge,voxelwise}',
        help='deficit models to fit side by side (default: spatial)',
    )  # fmt: skip
    group.add_argument(
        '--map-kind', metavar='{perfusion,asymmetry,hypoperfused}',
        help='relate scores to computed perfusion, to how much later it is than on the other '
        'side, or to the probability of hypoperfusion (default: perfusion)',
    )  # fmt: skip
    group.add_argument(
        '--folds', metavar='N', help='folds of the cross-validation, 0 for none (default: 5)'
    )
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
        '--min-coverage', metavar='SHARE',
        help='leave out voxels in which fewer participants have a deficit (default: 0.02)',
    )  # fmt: skip
    group.add_argument(
        '--apply', metavar='MODEL_DIR',
        help='predict scores with the models of an earlier group run; nothing is fitted',
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
    resources.add_argument('--omp-nthreads', metavar='N', help='threads of one step')
    resources.add_argument(
        '--mem',
        metavar='GB',
        help='memory that may be used (default: that of the machine, container or job)',
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
    return parser


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
    problems = [_unknown_option(parser, word) for word in unknown]
    problems += [
        f'{name} is missing; usage: {_USAGE}'
        for key, name in (
            ('bids_dir', 'BIDS_DIR'),
            ('output_dir', 'OUTPUT_DIR'),
            ('analysis_level', 'the analysis level'),
        )
        if given.get(key) is None
    ]
    settings = _merge(given, problems)
    problems += _check(settings, given)
    if problems:
        raise UsageError(problems)
    return settings


def _unknown_option(parser: argparse.ArgumentParser, word: str) -> str:
    if not word.startswith('-'):
        return (
            f'{word!r} is one argument too many; options that take several values go after '
            'BIDS_DIR, OUTPUT_DIR and the level'
        )
    known = [name for action in parser._actions for name in action.option_strings]
    close = difflib.get_close_matches(word.split('=')[0], known, n=1)
    hint = f'did you mean {close[0]}?' if close else 'see --help'
    return f'{word} is no option; {hint}'


def _merge(given: dict[str, Any], problems: list[str]) -> Settings:
    """Lay the command line over the configuration file over the defaults."""
    settings = Settings()
    config = given.get('config_file')
    if config is not None:
        try:
            settings = Settings.from_toml(Path(config).read_text(encoding='utf-8'))
        except OSError as error:
            problems.append(f'--config-file {config}: {error.strerror}; give a TOML file')
        except ValueError as error:
            problems += [f'--config-file {config}: {line}' for line in str(error).splitlines()]
    tables: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        if key == 'config_file' or value is None:
            continue
        table = _TABLES[key]
        hint = get_type_hints(type(getattr(settings, table)))[key]
        option = f'--{key.replace("_", "-")}'
        name = option if option in _OPTIONS else key.upper()
        try:
            tables.setdefault(table, {})[key] = coerce(value, hint)
        except ValueError as error:
            problems.append(f'{name}: {error}')
    for table, values in tables.items():
        settings = replace(settings, **{table: replace(getattr(settings, table), **values)})
    return settings


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
    if resources.use_plugin is not None and not resources.use_plugin.is_file():
        problems.append(f'--use-plugin {resources.use_plugin}: no such file; give a YAML file')
    problems += [
        f'--derivatives {path}: no such folder; give a folder with derivatives'
        for path in inputs.derivatives
        if not path.is_dir()
    ]
    problems += [
        f'{option} {value}: must not be negative'
        for option, value in (
            ('--nprocs', resources.nprocs),
            ('--omp-nthreads', resources.omp_nthreads),
            ('--mem', resources.mem),
            ('--random-seed', processing.random_seed),
        )
        if value < 0
    ]
    if processing.random_seed >= 2**31:
        problems.append(f'--random-seed {processing.random_seed}: must be below 2147483648')
    for label in inputs.participant_label + inputs.session_label:
        if not re.fullmatch(r'(sub-|ses-)?[A-Za-z0-9+]+', label):
            problems.append(f'label {label!r}: BIDS labels hold letters and digits only')
    if len(processing.output_spaces) != 1:
        problems.append(
            f'--output-spaces {" ".join(processing.output_spaces)}: give one template per run; '
            'a second run with the same OUTPUT_DIR adds another'
        )
    problems += _check_space(processing.output_spaces)
    problems += _check_device(processing.device)
    return problems


def _check_group(settings: Settings) -> list[str]:
    group, inputs = settings.group, settings.inputs
    problems = [
        f'{option} {value}: {rule}'
        for option, value, right, rule in (
            ('--folds', group.folds, group.folds == 0 or group.folds >= 2,
             'must be 0, or 2 and more'),
            ('--permutations', group.permutations, group.permutations >= 0,
             'must not be negative'),
            ('--bootstraps', group.bootstraps, group.bootstraps >= 0, 'must not be negative'),
            ('--resolution', group.resolution, 2 <= group.resolution <= 10,
             'must be 2 to 10 mm; the maps have 2'),
            ('--min-coverage', group.min_coverage, 0 <= group.min_coverage < 1,
             'is a share of the participants, from 0 to below 1'),
        )
        if not right
    ]  # fmt: skip
    if group.scores is not None and not group.scores.exists():
        problems.append(f'--scores {group.scores}: no such file; give a table of scores')
    if group.apply is not None and not group.apply.exists():
        problems.append(
            f'--apply {group.apply}: no such folder; give the OUTPUT_DIR of an earlier group run'
        )
    if len(inputs.session_label) > 1:
        problems.append(
            f'--session-label {" ".join(inputs.session_label)}: the group level takes one session'
        )
    return problems


def _check_folders(settings: Settings) -> list[str]:
    inputs, problems = settings.inputs, []
    bids_dir, output_dir = inputs.bids_dir.absolute(), inputs.output_dir.absolute()
    if not bids_dir.is_dir():
        problems.append(f'BIDS_DIR {inputs.bids_dir}: no such folder; give a BIDS dataset')
    if bids_dir == output_dir:
        problems.append(
            f'OUTPUT_DIR {inputs.output_dir}: is BIDS_DIR itself; '
            f'give another folder, for example {inputs.bids_dir / "derivatives/perfdeficit"}'
        )
    writable = output_dir
    while not writable.exists() and writable != writable.parent:
        writable = writable.parent
    if output_dir.exists() and not output_dir.is_dir():
        problems.append(f'OUTPUT_DIR {inputs.output_dir}: is a file; give a folder')
    elif not os.access(writable, os.W_OK):
        problems.append(
            f'OUTPUT_DIR {inputs.output_dir}: {writable} is not writable; '
            'give a folder of your own, or bind it read-write into the container'
        )
    work = settings.resources.work_dir
    if work is not None and bids_dir in (work.absolute(), *work.absolute().parents):
        problems.append(
            f'--work-dir {work}: lies inside BIDS_DIR, where it would be read as data; '
            'give another folder'
        )
    if settings.resources.clean_workdir and work is None:
        problems.append('--clean-workdir: needs --work-dir; the default one is always removed')
    return problems


def _check_filters(path: Path) -> list[str]:
    option = f'--bids-filter-file {path}'
    try:
        filters = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        return [f'{option}: {error.strerror}; give a JSON file']
    except ValueError as error:
        return [f'{option}: not valid JSON ({error}); mend the file']
    wrong = sorted(set(filters) - {'ncct', 'cta'}) if isinstance(filters, dict) else ['a list']
    if wrong:
        return [f'{option}: holds {", ".join(wrong)}; the keys are "ncct" and "cta"']
    return []


def _check_space(spaces: Sequence[str]) -> list[str]:
    if all(space == DEFAULT_SPACE for space in spaces):
        return []
    home = os.environ.get('TEMPLATEFLOW_HOME')
    problems = []
    for space in spaces:
        if space == DEFAULT_SPACE:
            continue
        folder = Path(home or '') / f'tpl-{space}'
        if home is None or not folder.is_dir():
            problems.append(
                f'--output-spaces {space}: not found in TEMPLATEFLOW_HOME ({home or "not set"}); '
                f'on a machine with a network run: TEMPLATEFLOW_HOME={home or "<folder>"} '
                f'python -c "import templateflow.api as t; t.get(\'{space}\')"'
            )
    return problems


def _check_device(device: str) -> list[str]:
    match = re.fullmatch(r'cpu|auto|cuda(?::(\d+))?', device)
    if match is None:
        return [f'--device {device}: is none of cpu, cuda, cuda:N, auto']
    if not device.startswith('cuda'):
        return []
    import torch  # late: takes seconds, and only a named GPU needs it here

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match.group(1) or 0) >= count:
        return [f'--device {device}: this machine has {count} GPUs; give cpu or auto']
    return []


def print_problems(problems: Sequence[str]) -> None:
    """Tell all problems at once on standard error."""
    noun = 'problem' if len(problems) == 1 else 'problems'
    print(f'bids_perfdeficit: {len(problems)} {noun}:', file=sys.stderr)
    for problem in problems:
        print(f'  - {problem}', file=sys.stderr)
