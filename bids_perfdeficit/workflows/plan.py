"""The stages of the participant level, and their state for a pair of scans.

Each stage is a task with a record (`stages.task`): it is done when the record of an earlier run
agrees with the options, the scans as they are now, the stages before it and the files on disk.
Must not import Nipype: a dry run asks here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bids_perfdeficit.bids import ScanPair, output_path, sidecar_path
from bids_perfdeficit.bids.jsonfile import read_facts, read_json
from bids_perfdeficit.bids.outputs import has_sidecar
from bids_perfdeficit.errors import InputError, printable
from bids_perfdeficit.perfusion.phase_weights import fusion_sha256
from bids_perfdeficit.perfusion.recalibration import base_sha256, join_calibration
from bids_perfdeficit.settings import DEFAULT_SPACE, Level, Settings
from bids_perfdeficit.stages.record import Stamp, sha256
from bids_perfdeficit.stages.task import State, Task, examine


@dataclass(frozen=True)
class Stage:
    """A step whose results are kept.

    Parameters
    ----------
    name : str
        For people and records.
    keys : tuple of str
        The outputs it leaves (keys of `data/io_spec.json`).
    options : callable
        From the settings to the options that shape the result.
    requires : tuple of str
        Stages whose outputs it reads.
    scans : tuple of str
        Raw images that it reads: ``'ncct'``, ``'cta'``.
    level : Level
        The least `--level` that runs it.
    version : int
        Raised whenever results change, so that older ones are not mixed with newer ones.
    phases : bool
        Whether it reads the later phases of the CTA. For a pair without them nothing else is
        recorded, so that its results hold.
    """

    name: str
    keys: tuple[str, ...]
    options: Callable[[Settings], Mapping[str, Any]] = lambda settings: {}
    requires: tuple[str, ...] = ()
    scans: tuple[str, ...] = ()
    level: Level = Level.MINIMAL
    version: int = 1
    phases: bool = False


def _seeded(settings: Settings) -> dict[str, Any]:
    return {'seed': settings.processing.random_seed, 'sloppy': settings.processing.sloppy}


def _space(settings: Settings) -> dict[str, Any]:
    return {'space': settings.processing.output_spaces[0]}


def _computed(settings: Settings) -> dict[str, Any]:
    """Return how maps are computed; with the metric that the arrival has."""
    return dataclasses.asdict(settings.perfusion) | {'arrival': settings.perfusion.metric}


def _calibrated(settings: Settings) -> dict[str, Any]:
    """Return the calibration of a site by its content; nothing for the shipped one."""
    path = settings.processing.calibration
    return {} if path is None else {'calibration': sha256(path)}


def read_calibration(settings: Settings) -> dict[str, Any] | None:
    """Return the weights with the site's own calibration; None for the shipped ones.

    Raises
    ------
    InputError
        When the file is not one.
    """
    path = settings.processing.calibration
    if path is None:
        return None
    try:
        return join_calibration(read_json(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            str(error), fix='give a file that the level calibrate wrote', path=path
        ) from error


def _figures(settings: Settings) -> tuple[str, ...]:
    full = settings.processing.level is Level.FULL
    return MINIMAL_FIGURES + (FULL_FIGURES if full else ())


MINIMAL_FIGURES = (
    'figure_brain',
    'figure_stroke',
    'figure_registration',
    'figure_normalization',
)
FULL_FIGURES = (
    'figure_hypoperfused',
    'figure_delay',
    'figure_thumbnail',
    'figure_arrival',
    'figure_perfusion',
    'figure_asymmetry',
    'figure_slabs',
    'figure_rotation',
    'figure_sources',
    'viewer',
)
_PREPARED = ('conform', 'brain', 'cta', 'template')

STAGES: tuple[Stage, ...] = (
    Stage(
        'conform',
        ('preproc_ct',),
        lambda s: {'spacing': s.processing.spacing, 'sloppy': s.processing.sloppy},
        scans=('ncct',),
    ),
    Stage('brain', ('brain_mask',), requires=('conform',)),
    Stage(
        'cta',
        ('preproc_cta', 'cta_xfm'),
        _seeded,
        requires=('conform', 'brain'),
        scans=('cta',),
        version=2,
    ),
    Stage(
        'template',
        ('template_xfm', 'template_inverse_xfm'),
        lambda s: _seeded(s) | _space(s),
        requires=('conform', 'brain'),
    ),
    Stage(
        'perfusion',
        ('perfusion', 'toa', 'hypoperfused', 'delay', 'delay_sd', 'subtraction', 'vessel'),
        lambda s: _computed(s) | _space(s) | _calibrated(s) | {'weights': base_sha256()},
        requires=_PREPARED,
        level=Level.FULL,
        version=4,
        phases=True,
    ),
    Stage(
        'standard',
        (
            'std_perfusion',
            'std_toa',
            'std_asymmetry',
            'std_hypoperfused',
            'std_delay',
            'std_delay_sd',
            'std_preproc_ct',
            'std_preproc_cta',
            'std_brain_mask',
        ),
        _space,
        requires=(*_PREPARED, 'perfusion'),
        level=Level.FULL,
        version=2,
    ),
    Stage(
        'metrics',
        ('qc_metrics', 'regions_metrics'),
        lambda s: _space(s) | _calibrated(s),
        requires=(*_PREPARED, 'perfusion', 'standard'),
        level=Level.FULL,
        version=5,
    ),
)
FIGURES = Stage('figures', (), lambda s: _space(s) | {'level': str(s.processing.level)}, version=3)


@dataclass(frozen=True)
class Plan:
    """What is there and what is to be done for one pair of scans.

    Parameters
    ----------
    pair : ScanPair
        The scans.
    tasks : mapping of str to Task
        By stage: those of the level that are not taken from `--derivatives`.
    states : mapping of str to State
        Of the tasks.
    existing : mapping of str to Path
        Outputs, by key, that hold and will be read.
    seen : mapping of str to Stamp
        Of the inputs when the plan was made, by BIDS URI.
    others : tuple of Task
        Stages beyond the level whose results, if any, no longer hold.
    refusal : str
        Why nothing can be computed for this pair; empty when all can be computed.
    notes : tuple of str
        What a user should know of the plan.
    """

    pair: ScanPair
    tasks: Mapping[str, Task]
    states: Mapping[str, State]
    existing: Mapping[str, Path]
    seen: Mapping[str, Stamp | None] = field(default_factory=dict)
    others: tuple[Task, ...] = ()
    refusal: str = ''
    notes: tuple[str, ...] = ()

    def has(self, stage: str) -> bool:
        """Return whether a stage is done."""
        return stage not in self.tasks or self.states[stage].done

    @property
    def to_run(self) -> tuple[str, ...]:
        """The stages that are still to run, in order."""
        return tuple(name for name in self.tasks if not self.states[name].done)

    @property
    def stale(self) -> tuple[Task, ...]:
        """Tasks whose results, if any, no longer hold."""
        return (*(self.tasks[name] for name in self.to_run), *self.others)

    @property
    def software(self) -> dict[str, str]:
        """Versions of the packages that the finished stages were computed with."""
        found: dict[str, str] = {}
        for state in self.states.values():
            found |= dict(state.record.software) if state.record is not None else {}
        return found

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the finished stages, by name."""
        return {
            name: state.record.fingerprint
            for name, state in self.states.items()
            if state.record is not None
        }


def stages_of(settings: Settings) -> tuple[Stage, ...]:
    """Return the stages that the level of a run comprises, in order."""
    level = settings.processing.level
    kept = tuple(s for s in STAGES if level is Level.FULL or s.level is Level.MINIMAL)
    return (*kept, _figures_stage(kept, settings))


def _figures_stage(before: Sequence[Stage], settings: Settings) -> Stage:
    """Return the stage that draws: what it leaves depends on the level."""
    return dataclasses.replace(
        FIGURES, keys=_figures(settings), requires=tuple(stage.name for stage in before)
    )


def path_of(root: Path, pair: ScanPair, key: str, space: str) -> Path:
    """Return where an output of this pair lies."""
    return output_path(root, key, participant=pair.participant, session=pair.session, space=space)


def record_path(root: Path, pair: ScanPair, stage: str) -> Path:
    """Return where the record of a stage lies."""
    return output_path(
        root, 'record', participant=pair.participant, session=pair.session, stage=stage
    )


def make_plan(pair: ScanPair, settings: Settings) -> Plan:
    """Compare the stages of a pair with what earlier runs left.

    What `--derivatives` hold is used as it is, before anything in OUTPUT_DIR: users who name them
    answer for their content. They must be of these scans.

    Parameters
    ----------
    pair : ScanPair
        The scans.
    settings : Settings
        Of the run.

    Returns
    -------
    Plan
        Nothing has been written.
    """
    root = settings.inputs.output_dir.absolute()
    verify = settings.outputs.verify
    tasks: dict[str, Task] = {}
    existing: dict[str, Path] = {}
    borrowed: dict[str, dict[str, Path]] = {}
    known: dict[Path, State] = {}
    roots = [d for d in settings.inputs.derivatives if not _same(d, root)]
    wanted = stages_of(settings)
    for stage in wanted:
        if found := _borrow(stage, pair, settings, roots):
            borrowed[stage.name] = found
            existing |= found
            continue
        tasks[stage.name] = _task(stage, pair, settings, tasks, borrowed)
    states = {n: examine(task, verify=verify, known=known) for n, task in tasks.items()}
    for stage in wanted:
        if stage.name in tasks and states[stage.name].done:
            paths = {k: path_of(root, pair, k, _space(settings)['space']) for k in stage.keys}
            existing |= paths
    refusal, notes = _check_borrowed(borrowed, pair)
    inputs = {n: p for task in tasks.values() for n, p in task.inputs.items()}
    return Plan(
        pair,
        tasks,
        states,
        existing,
        {name: Stamp.of(path) for name, path in inputs.items()},
        _others(pair, settings, tasks, borrowed, known),
        refusal,
        notes,
    )


def _task(
    stage: Stage,
    pair: ScanPair,
    settings: Settings,
    tasks: Mapping[str, Task],
    borrowed: Mapping[str, Mapping[str, Path]],
) -> Task:
    root, space = settings.inputs.output_dir.absolute(), _space(settings)['space']
    inputs = {uri(pair, scan, settings): getattr(pair, scan).absolute() for scan in stage.scans}
    options = dict(stage.options(settings))
    if stage.phases and pair.later:
        inputs |= {file_uri(path, settings): path.absolute() for path in pair.later}
        # In the order in which they are joined; the registration of each has the run's seed.
        options |= _seeded(settings) | {
            'phases': [file_uri(path, settings) for path in pair.later],
            'fusion': fusion_sha256(),
        }
    for name in stage.requires:
        for path in borrowed.get(name, {}).values():
            inputs[path.absolute().as_uri()] = path.absolute()
    if 'space' in options:
        inputs |= template_inputs(space)
    outputs = []
    for key in stage.keys:
        path = path_of(root, pair, key, space)
        outputs += [path, *([sidecar_path(path)] if has_sidecar(key) else [])]
    return Task(
        stage.name,
        stage.version,
        root,
        record_path(root, pair, stage.name),
        options,
        inputs,
        tuple(tasks[name] for name in stage.requires if name in tasks),
        tuple(path.relative_to(root).as_posix() for path in outputs),
    )


@cache
def template_inputs(space: str) -> dict[str, Path]:
    """Return the files of a template by URI; none of the one that comes with a package.

    Raises
    ------
    InputError
        When the template is not at hand.
    """
    if space == DEFAULT_SPACE:
        return {}
    from bids_perfdeficit.ct.templates import find_template_files  # which takes a second

    paths = [path.absolute() for path in find_template_files(space).values()]
    return {path.as_uri(): path for path in paths}


def _others(
    pair: ScanPair,
    settings: Settings,
    tasks: Mapping[str, Task],
    borrowed: Mapping[str, Mapping[str, Path]],
    known: dict[Path, State],
) -> tuple[Task, ...]:
    """Return the stages that this run leaves out and whose results no longer hold.

    Those are stages beyond the level, and stages that are taken from elsewhere now.
    """
    full = dataclasses.replace(
        settings, processing=dataclasses.replace(settings.processing, level=Level.FULL)
    )
    every = dict(tasks)
    left_out = []
    for stage in STAGES:
        if stage.name in tasks:
            continue
        task = _task(stage, pair, full, every, borrowed)
        if stage.name in borrowed:
            left_out.append(task)
            continue
        every[stage.name] = task
        if not examine(task, known=known).done:
            left_out.append(task)
    return tuple(left_out)


def _borrow(
    stage: Stage, pair: ScanPair, settings: Settings, roots: Iterable[Path]
) -> dict[str, Path]:
    """Return a stage's outputs from `--derivatives`, none unless all are there."""
    space = _space(settings)['space']
    for root in roots:
        paths = {key: path_of(root, pair, key, space) for key in stage.keys}
        if all(path.is_file() for path in paths.values()):
            return paths if stage.name != 'figures' else {}
    return {}


def _check_borrowed(
    borrowed: Mapping[str, Mapping[str, Path]], pair: ScanPair
) -> tuple[str, tuple[str, ...]]:
    """Compare the hashes of the scans that derivatives were made from with the scans at hand."""
    folders = {path.parent for paths in borrowed.values() for path in paths.values()}
    hashes: dict[str, str] = {}
    compared = 0
    for folder in sorted(folders):
        for scan, ending in (('ncct', '_desc-preproc_ct.json'), ('cta', '_desc-preproc_cta.json')):
            path = folder / f'{pair.prefix}{"_space-ct" if scan == "cta" else ""}{ending}'
            recorded = read_facts(path).get('SourceSHA256')
            if not isinstance(recorded, str):
                continue
            if scan not in hashes:
                try:
                    hashes[scan] = sha256(getattr(pair, scan))
                except OSError as error:
                    return f'{getattr(pair, scan)}: cannot be read ({error.strerror}).', ()
            compared += 1
            if recorded != hashes[scan]:
                return (
                    f'the --derivatives in {folder} were made from another {scan.upper()} than '
                    f'{getattr(pair, scan).name} (the SHA-256 in {path.name} differs); name '
                    'derivatives of these scans, or leave --derivatives out.',
                    (),
                )
    if borrowed and not compared:
        names = ', '.join(sorted(borrowed))
        return '', (
            f'results of --derivatives ({names}) do not say which scans they were made from; '
            'whether they belong to these scans was not checked',
        )
    return '', ()


def uri(pair: ScanPair, key: str, settings: Settings) -> str:
    """Return the BIDS URI of a derivative or, for ``ncct`` and ``cta``, of a raw image."""
    if key in ('ncct', 'cta'):
        path = getattr(pair, key).absolute()
        root = settings.inputs.bids_dir.absolute()
        if path.is_relative_to(root):
            return f'bids:raw:{path.relative_to(root).as_posix()}'
        return str(path.as_uri())
    root = settings.inputs.output_dir
    path = path_of(root, pair, key, _space(settings)['space'])
    return f'bids::{path.relative_to(root).as_posix()}'


def file_uri(path: Path, settings: Settings) -> str:
    """Return the BIDS URI of a file in OUTPUT_DIR or BIDS_DIR, of others the address."""
    path = path.absolute()
    for scheme, root in (
        ('bids::', settings.inputs.output_dir.absolute()),
        ('bids:raw:', settings.inputs.bids_dir.absolute()),
    ):
        if path.is_relative_to(root):
            return f'{scheme}{path.relative_to(root).as_posix()}'
    return path.as_uri()


def describe(plans: Sequence[Plan]) -> str:
    """Return the lines of `--dry-run`: who, from which files, and which stages would run."""
    lines = []
    for plan in plans:
        steps = [f'{name} ({plan.states[name].reason})' for name in plan.to_run]
        what = f'refused: {plan.refusal}' if plan.refusal else ', '.join(steps)
        lines += [
            f'{plan.pair.prefix}: {what or "complete, nothing to do"}',
            f'    NCCT {plan.pair.ncct}',
            f'    CTA  {plan.pair.cta}',
            *(f'    CTA, phase {k} {path}' for k, path in enumerate(plan.pair.later, 2)),
            *(f'    doubtful: {doubt}' for doubt in plan.pair.doubts),
            *(f'    note: {note}' for note in (*plan.pair.notes, *plan.notes)),
        ]
    return '\n'.join(printable(line) for line in lines)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
