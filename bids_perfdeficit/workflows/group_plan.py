"""What a group run has to do: who is in, which items can be fitted, and what is done already.

Each stage of each model is a task with a record (`stages.task`): it is done when the record of an
earlier run agrees with the options, the maps and tables as they are now, the stages before it and
the files on disk. Must not import Nipype: a dry run asks here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_perfdeficit.bids import ScanPair, Scores, output_path, resolution_label, sidecar_path
from bids_perfdeficit.bids.cohort import (
    LESION_LABEL,
    Cohort,
    Entry,
    add_covariates,
    add_groups,
    add_scores,
    find_cohort,
    item_mirror,
    map_entities,
)
from bids_perfdeficit.bids.filters import read_filters
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.bids.ratings import RATINGS, Rating, find_rating, read_ratings
from bids_perfdeficit.bids.scores import table_files
from bids_perfdeficit.deficit import DeficitFit, DeficitSettings, Item, get_model
from bids_perfdeficit.deficit.rules import usable_items
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.pipeline import check_given, check_grids
from bids_perfdeficit.settings import MapKind, Settings
from bids_perfdeficit.stages.record import Record, Stamp, digest
from bids_perfdeficit.stages.task import PENDING, State, Task, examine
from bids_perfdeficit.workflows.plan import file_uri, record_path, template_inputs

#: Versions of the stages, raised whenever results change, so that older ones are not mixed with
#: newer ones.
VERSIONS: Mapping[str, int] = {
    'cohort': 3, 'fit': 2, 'validation': 2, 'null': 2, 'stability': 2, 'apply': 3,
}  # fmt: skip
#: Fewest participants that a group is made of.
FEWEST = 10
#: Stages of the participant level whose results the group level reads, each from those before.
_READ = ('conform', 'brain', 'cta', 'template', 'perfusion', 'standard')


@dataclass(frozen=True)
class GroupPlan:
    """What is there and what is to be done.

    Parameters
    ----------
    cohort : Cohort
        Who is in.
    items : tuple of Item
        What is to be explained.
    skipped : mapping of str to str
        Items that cannot be fitted, with the reason.
    tasks : mapping of (str, str) to Task
        By stage and model; the cohort has model ''.
    states : mapping of (str, str) to State
        Of the tasks.
    models : mapping of str to Path
        With `--apply`: the parameters of each model.
    resolution : float
        mm.
    map_kind : MapKind
    given : mapping, optional
        Entities of the maps, where users give them.
    scores : Scores, optional
        The table of scores as it was read.
    seen : mapping of str to Stamp
        Of the inputs when the plan was made, by BIDS URI.
    """

    cohort: Cohort
    items: tuple[Item, ...]
    skipped: Mapping[str, str]
    tasks: Mapping[tuple[str, str], Task]
    states: Mapping[tuple[str, str], State]
    models: Mapping[str, Path]
    resolution: float
    map_kind: MapKind
    scores: Scores | None = None
    seen: Mapping[str, Stamp | None] = field(default_factory=dict)
    given: Mapping[str, Any] | None = None

    def to_run(self, model: str = '') -> tuple[str, ...]:
        """Return the stages of a model (or of the cohort) that are still to run."""
        return tuple(s for s, m in self.tasks if m == model and not self.states[s, m].done)

    @property
    def busy(self) -> bool:
        """Whether anything is to run."""
        return any(not state.done for state in self.states.values())

    @property
    def stale(self) -> tuple[Task, ...]:
        """Tasks whose results, if any, no longer hold."""
        return tuple(task for key, task in self.tasks.items() if not self.states[key].done)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Models in the order that they were asked for."""
        return tuple(dict.fromkeys(m for _, m in self.tasks if m))

    def examined(self, *, verify: bool = False) -> GroupPlan:
        """Return the plan with the states of its tasks as they are now."""
        return dataclasses.replace(self, states=_examine(self.tasks, verify))


def group_path(settings: Settings, key: str, **entities: str) -> Path:
    """Return where a group output of this run lies."""
    return output_path(
        settings.inputs.output_dir.absolute(),
        key,
        space=settings.processing.output_spaces[0],
        res=resolution_label(settings.group.resolution),
        **entities,
    )


def make_group_plan(settings: Settings) -> GroupPlan:
    """Find out who is in and what an earlier run left.

    Raises
    ------
    InputError
        When there is nothing that can be run.
    """
    options, space = settings.group, settings.processing.output_spaces[0]
    models: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    if options.apply is not None:
        models, facts = find_models(settings)
    given = given_entities(settings)
    cohort = find_cohort(
        [settings.inputs.output_dir, *settings.inputs.derivatives],
        space=space,
        key=f'std_{options.map_kind}',
        given=given,
        participants=settings.inputs.participant_label,
        session=next(iter(settings.inputs.session_label), None),
    )
    if given is None:
        cohort = cohort.without(
            find_unproven(cohort.entries, include_doubtful=options.include_doubtful)
        )
    paths = {p: e.participant for e in cohort.entries for p in e.files}
    wrong = (check_grids if given is None else check_given)(list(paths), space)
    cohort = cohort.without({paths[path]: reason for path, reason in wrong.items()})
    if not cohort.entries:
        raise InputError(
            f'no map can be used ({_first_reasons(cohort)})',
            fix='run the participant level again with the same --output-spaces'
            if given is None
            else f'give maps in {space}, or name the template that they are in with '
            '--output-spaces',
        )
    if given is not None and given.get('space') != space:
        note = f'the maps are not named space-{space}, and are analysed as if they were'
        cohort = replace(cohort, notes=(*cohort.notes, note))
    if options.apply is not None:
        return _plan_apply(settings, cohort, models, facts)
    session = next(iter(settings.inputs.session_label), None)
    cohort, scores = add_scores(
        cohort,
        _score_source(settings),
        items=options.items,
        session=session,
        higher_is_better=options.higher_is_better,
    )
    if options.covariates:
        cohort = add_covariates(cohort, options.covariates, _tables(settings))
    if options.fold_groups and options.folds:
        cohort = add_groups(cohort, options.fold_groups, _tables(settings), folds=options.folds)
    if len(cohort.entries) < FEWEST:
        raise InputError(
            f'{len(cohort.entries)} participants have both a map and scores'
            + (f' ({_first_reasons(cohort)})' if cohort.dropped else ''),
            fix=f'give at least {FEWEST}; a map of one item needs a hundred or more',
            path=cohort.source,
        )
    items = tuple(
        Item(m.name, m.levels, item_mirror(m.name), m.values if m.grouped or m.reverse else ())
        for m in cohort.measures
    )
    usable, skipped = usable_items(cohort.levels.to_numpy(float), items, DeficitSettings())
    if not usable:
        raise InputError(
            'no item can be fitted: '
            + '; '.join(f'{name}: {reason}' for name, reason in skipped.items()),
            fix='add participants, or choose other --items',
            path=cohort.source,
        )
    tasks = group_tasks(cohort, settings)
    return _planned(cohort, items, skipped, tasks, {}, settings, scores)


def _planned(
    cohort: Cohort,
    items: tuple[Item, ...],
    skipped: Mapping[str, str],
    tasks: Mapping[tuple[str, str], Task],
    models: Mapping[str, Path],
    settings: Settings,
    scores: Scores | None,
) -> GroupPlan:
    inputs = {name: path for task in tasks.values() for name, path in task.inputs.items()}
    return GroupPlan(
        cohort, items, skipped, tasks, _examine(tasks, settings.outputs.verify), models,
        settings.group.resolution, settings.group.map_kind, scores,
        {name: Stamp.of(path) for name, path in inputs.items()}, given_entities(settings),
    )  # fmt: skip


def given_entities(settings: Settings) -> dict[str, Any] | None:
    """Return the entities of the maps that users give; None for computed ones."""
    if not settings.group.map_kind.is_given:
        return None
    chosen: Mapping[str, Any] = {}
    if settings.inputs.bids_filter_file is not None:
        chosen = read_filters(settings.inputs.bids_filter_file)[0].get('map', {})
    return map_entities(settings.processing.output_spaces[0], chosen)


def _examine(tasks: Mapping[tuple[str, str], Task], verify: bool) -> dict[tuple[str, str], State]:
    known: dict[Path, State] = {}
    return {key: examine(task, verify=verify, known=known) for key, task in tasks.items()}


def find_unproven(entries: Sequence[Entry], *, include_doubtful: bool = False) -> dict[str, str]:
    """Find maps that a person, the verdict or the records beside them speak against.

    Ratings by people are read from ``ratings.tsv`` of the folder of each map: "fail" leaves a
    participant out, "doubt" makes it doubtful, and "pass" overrules a doubtful verdict. Maps
    without records (of other programs, or given by users) are taken as they are.

    Parameters
    ----------
    entries : sequence of Entry
        Maps that were found.
    include_doubtful : bool
        Whether doubtful participants are taken.

    Returns
    -------
    dict of str to str
        Participant to the reason.
    """
    reasons = {}
    known: dict[Path, dict[tuple[str, str], Rating]] = {}
    for entry in entries:
        root = entry.map.parents[3 if entry.session else 2]
        if root not in known:
            known[root] = read_ratings(root)
        rating = find_rating(known[root], entry.participant, entry.session)
        pair = ScanPair(entry.participant, entry.session or None, Path(), Path())
        reason = _speaks_against(root, pair, entry, include_doubtful, rating)
        if reason:
            reasons[entry.participant] = reason
    return reasons


def _speaks_against(
    root: Path, pair: ScanPair, entry: Entry, include_doubtful: bool, rating: Rating | None
) -> str:
    path = output_path(root, 'verdict', participant=pair.participant, session=pair.session)
    verdict = read_facts(path)
    reasons = '; '.join(map(str, verdict.get('Reasons', [])))
    if verdict.get('Status') == 'failed':
        return f'its participant level failed: {reasons}'
    said = rating.value if rating else ''
    remark = f': {rating.remark}' if rating and rating.remark else ''
    if said == 'fail':
        return f'rated "fail" in {RATINGS}{remark}'
    if said == 'doubt' and not include_doubtful:
        return f'rated "doubt" in {RATINGS}{remark} (--include-doubtful takes it)'
    if verdict.get('Status') == 'doubtful' and not include_doubtful and said != 'pass':
        return f'its results are doubtful: {reasons} (--include-doubtful takes it)'
    paths = {stage: record_path(root, pair, stage) for stage in _READ}
    pending = any(p.with_name(p.name + PENDING).exists() for p in paths.values())
    if not verdict and not pending and not any(path.exists() for path in paths.values()):
        return ''  # another program's, or given by users
    records = {stage: Record.read(path) for stage, path in paths.items()}
    last = records['standard']
    if last is None or pending:
        return 'its maps have no record: the participant level was not finished'
    for stage, record in records.items():
        for name, mark in (record.requires if record else {}).items():
            before = records.get(name)
            if before is None or before.fingerprint != mark:
                return f'its maps are older than its {name} ({stage} was not made again)'
    for path in entry.files:
        output = last.outputs.get(path.relative_to(root).as_posix())
        if output is not None and not output.agrees(path):
            return f'{path.name} is not as the participant level wrote it'
    return ''


def find_models(settings: Settings) -> tuple[dict[str, Path], dict[str, Any]]:
    """Find the models of `--apply` and what they were fitted on.

    Returns
    -------
    models : dict of str to Path
        Parameters by model.
    facts : dict
        ``Levels`` by name of the items of all models together, ``Covariates`` and
        ``CovariateColumns``; all models agree on space, resolution, map kind and covariates.

    Raises
    ------
    InputError
        When there is none, or they do not fit the options or each other.
    """
    folder, space = settings.group.apply, settings.processing.output_spaces[0]
    assert folder is not None
    found = [folder] if folder.is_file() else sorted(folder.glob('**/tpl-*_model-*_params.pt'))
    models: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    for path in found:
        try:
            content = json.loads(sidecar_path(path).read_text(encoding='utf-8'))
            fitted = {name: content[name] for name in ('Model', 'Space', 'VoxelSize', 'MapKind')}
            fitted['MapThreshold'] = content.get('MapThreshold')
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                'has no sidecar that names what it was fitted on',
                fix='keep the .json beside the .pt, or fit again',
                path=path,
            ) from error
        for name, here, option in (
            ('Space', space, '--output-spaces'),
            ('VoxelSize', settings.group.resolution, '--resolution'),
            ('MapKind', str(settings.group.map_kind), '--map-kind'),
            ('MapThreshold', _threshold(settings), '--map-threshold'),
        ):
            if fitted.get(name) != here:
                raise InputError(
                    f'was fitted with {option} {fitted[name]}, this run has {here}',
                    fix=f'give {option} {fitted[name]}',
                    path=path,
                )
        check_fitted(path)
        _check_items(path, content)
        models[fitted['Model']] = path
        if facts and content.get('Covariates', []) != facts['Covariates']:
            raise InputError(
                f'was fitted with other covariates than {next(iter(models))}',
                fix='apply one model at a time: give its params.pt to --apply',
                path=path,
            )
        facts.setdefault('Covariates', content.get('Covariates', []))
        facts.setdefault('CovariateColumns', content.get('CovariateColumns', []))
        facts.setdefault('Levels', {}).update(
            zip(content.get('Items', []), content.get('Levels', []), strict=False)
        )
    if not models:
        raise InputError(
            'there is no tpl-*_model-*_params.pt in it',
            fix='give the OUTPUT_DIR of a finished group run',
            path=folder,
        )
    return models, facts


def _threshold(settings: Settings) -> float | None:
    """Return above what a map is affected, where users give the maps."""
    return settings.group.map_threshold if settings.group.map_kind.is_given else None


def check_fitted(path: Path) -> None:
    """Refuse a fitted model whose record says that the file was changed or replaced."""
    for record in filter(None, map(Record.read, path.parent.parent.glob('records/*_record.json'))):
        for name, output in record.outputs.items():
            if Path(name).name == path.name and not output.agrees(path, verify=True):
                raise InputError(
                    'is not the file that the group level wrote (its record has another hash)',
                    fix='fit again',
                    path=path,
                )


def _check_items(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a fitted model whose sidecar names other items than the model itself."""
    try:
        fitted = [item.name for item in DeficitFit.load(path).items]
    except Exception as error:
        raise InputError('cannot be read as a fitted model', fix='fit again', path=path) from error
    if fitted != list(content.get('Items', [])):
        raise InputError(
            f'holds the items {", ".join(fitted)}, its sidecar names '
            f'{", ".join(map(str, content.get("Items", []))) or "none"}',
            fix='keep each .json beside the .pt that it was written with, or fit again',
            path=path,
        )


def _plan_apply(
    settings: Settings, cohort: Cohort, models: dict[str, Path], facts: Mapping[str, Any]
) -> GroupPlan:
    names = [str(n) for n in facts.get('Covariates', [])]
    items = tuple(Item(str(name), int(levels)) for name, levels in facts['Levels'].items())
    scores = None
    try:
        cohort, scores = add_scores(
            cohort,
            _score_source(settings),
            items=[item.name for item in items],
            session=next(iter(settings.inputs.session_label), None),
            required=False,
        )
    except InputError as error:  # new patients need no scores, unless they were named
        if settings.group.scores is not None:
            raise
        cohort = replace(cohort, notes=(*cohort.notes, f'no scores are known ({error.reason})'))
    if names:
        cohort = add_covariates(
            cohort, facts.get('CovariateColumns') or names, _tables(settings), expected=names
        )
    if sorted(cohort.covariate_names) != sorted(names):
        raise InputError(
            f'the covariates are {", ".join(cohort.covariate_names)}; '
            f'the model has {", ".join(names)}',
            fix='give the new participants the same columns',
        )
    inputs, root = _inputs(cohort, settings), settings.inputs.output_dir.absolute()
    tasks = {
        ('apply', model): Task(
            'apply',
            VERSIONS['apply'],
            root,
            _record(settings, 'apply', model),
            _options(cohort, settings) | {'model': model},
            {**inputs, file_uri(path, settings): path, file_uri(sidecar_path(path), settings):
             sidecar_path(path)},
        )
        for model, path in models.items()
    }  # fmt: skip
    return _planned(cohort, items, {}, tasks, models, settings, scores)


def _score_source(settings: Settings) -> Path:
    """Return the table that was named, otherwise the dataset; never an output of our own."""
    return settings.group.scores or settings.inputs.bids_dir


def _tables(settings: Settings) -> list[Path]:
    return [p for p in (settings.inputs.bids_dir, settings.group.scores) if p is not None]


def group_tasks(cohort: Cohort, settings: Settings) -> dict[tuple[str, str], Task]:
    """Return the tasks of a run that fits models, by stage and model."""
    options, seed = settings.group, settings.processing.random_seed
    root = settings.inputs.output_dir.absolute()
    outputs = [
        group_path(settings, key) for key in ('group_mask', 'group_coverage', 'group_cohort')
    ]
    outputs += [sidecar_path(path) for path in outputs]
    common = Task(
        'cohort',
        VERSIONS['cohort'],
        root,
        _record(settings, 'cohort'),
        _options(cohort, settings),
        _inputs(cohort, settings),
        outputs=tuple(path.relative_to(root).as_posix() for path in outputs),
    )
    tasks = {('cohort', ''): common}
    for model in dict.fromkeys(options.model):
        shared = {'model': model, 'seed': seed, **model_options(model, settings)}
        tasks['fit', model] = Task(
            'fit', VERSIONS['fit'], root, _record(settings, 'fit', model), shared,
            requires=(common,),
        )  # fmt: skip
        folds = {
            'folds': options.folds,
            'repeats': options.fold_repeats,
            'groups': digest(list(cohort.groups)),
        }
        for stage, count, own in (
            ('validation', options.folds, folds),
            ('null', options.permutations, {'permutations': options.permutations}),
            ('stability', options.bootstraps, {'bootstraps': options.bootstraps}),
        ):
            if count:
                tasks[stage, model] = Task(
                    stage, VERSIONS[stage], root, _record(settings, stage, model),
                    {**shared, **own}, requires=(common,),
                )  # fmt: skip
    return tasks


def model_options(model: str, settings: Settings) -> dict[str, float]:
    """Return the options of a model alone that were set; see `DeficitModel.options`."""
    options = {name: getattr(settings.group, name) for name in get_model(model).options}
    return {name: value for name, value in options.items() if value is not None}


def _options(cohort: Cohort, settings: Settings) -> dict[str, Any]:
    """Return what distinguishes one cohort from another, beside the files it was read from."""
    options = settings.group
    return {
        'space': settings.processing.output_spaces[0],
        'resolution': options.resolution,
        'map_kind': str(options.map_kind),
        'map_threshold': _threshold(settings),
        'map_entities': given_entities(settings),
        'min_coverage': options.least_coverage,
        'sloppy': settings.processing.sloppy,
        'session': list(settings.inputs.session_label),
        'items': [str(name) for name in cohort.scores.columns],
        'covariates': list(cohort.covariate_names),
        'participants': digest([[e.participant, e.session] for e in cohort.entries]),
        'dropped': digest(dict(cohort.dropped)),
        'scores': digest(np.nan_to_num(cohort.scores.to_numpy(float), nan=-1).tolist()),
        'levels': digest([[m.edges, m.values, m.reverse] for m in cohort.measures]),
        'score_sessions': digest(cohort.score_sessions.to_numpy().tolist()),
        'adjusted': digest(np.nan_to_num(cohort.covariates.to_numpy(float), nan=-1e9).tolist()),
    }


def _inputs(cohort: Cohort, settings: Settings) -> dict[str, Path]:
    """Return all files that a cohort was read from, by BIDS URI."""
    paths = [p for e in cohort.entries for p in e.files]
    if cohort.source is not None or cohort.covariates.size:
        paths += [path for source in _tables(settings) for path in table_files(source)]
    template = template_inputs(settings.processing.output_spaces[0])
    return {file_uri(path, settings): path.absolute() for path in dict.fromkeys(paths)} | template


def _record(settings: Settings, stage: str, model: str = '') -> Path:
    key = 'group_model_record' if model else 'group_record'
    return group_path(settings, key, stage=stage, **({'model': model} if model else {}))


def _first_reasons(cohort: Cohort) -> str:
    counts: dict[str, int] = {}
    for reason in cohort.dropped.values():
        counts[reason] = counts.get(reason, 0) + 1
    listed = [f'{count}: {reason}' for reason, count in list(counts.items())[:3]]
    return 'left out ' + '; '.join(listed)


def name_maps(plan: GroupPlan) -> str:
    """Return what the maps that users give are, as a noun."""
    given = plan.given or {}
    if given.get('label') == LESION_LABEL:
        return 'lesion maps'
    words = ', '.join(f'{k} {v}' for k, v in given.items() if k != 'space' and v is not None)
    return f'given maps ({words})'


def describe_group(plan: GroupPlan) -> str:
    """Return the lines of `--dry-run`."""
    cohort = plan.cohort
    lines = [
        f'{len(cohort.entries)} participants, {len(plan.items) - len(plan.skipped)} items, '
        f'covariates: {", ".join(cohort.covariate_names) or "none"}',
        *(f'{name}: skipped: {reason}' for name, reason in plan.skipped.items()),
        *(f'sub-{label}: left out: {reason}' for label, reason in cohort.dropped.items()),
        *(f'note: {note}' for note in cohort.notes),
    ]
    for model in plan.model_names:
        steps = plan.to_run(model)
        unfinished = [f'{step} ({plan.states[step, model].reason})' for step in steps]
        lines.append(
            f'{model}: {", ".join(unfinished) if unfinished else "complete, nothing to do"}'
        )
    return '\n'.join(lines)
