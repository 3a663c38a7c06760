"""What a group run has to do: who is in, which items can be fitted, and what is done already.

Each stage of each model leaves files, and beside the first of them a fingerprint of everything
that shaped them: the maps, the scores, the options. Files whose fingerprint still holds are used
again. Must not import Nipype: a dry run asks here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_perfdeficit.bids import Scores, output_path, sidecar_path
from bids_perfdeficit.bids.cohort import (
    Cohort,
    add_covariates,
    add_scores,
    find_cohort,
    item_mirror,
)
from bids_perfdeficit.deficit import DeficitSettings, Item
from bids_perfdeficit.deficit.rules import usable_items
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.interfaces.stacking import check_grids, resolution_label
from bids_perfdeficit.settings import MapKind, Settings

#: Raised whenever a stage's results change, so that older files are not mixed with newer ones.
GROUP_VERSION = 3
#: Fewest participants that a group is made of.
FEWEST = 10

#: Stages by name, each with the output whose sidecar carries the fingerprint.
LEADS: Mapping[str, str] = {
    'cohort': 'group_cohort',
    'fit': 'group_params',
    'validation': 'group_metrics',
    'null': 'group_null',
    'stability': 'group_stability',
    'apply': 'group_applied',
}


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
    fingerprints : mapping of (str, str) to str
        By stage and model; the cohort has model ''.
    done : frozenset of (str, str)
        Stages, by model, whose results hold.
    models : mapping of str to Path
        With `--apply`: the parameters of each model.
    resolution : float
        mm.
    map_kind : MapKind
    scores : Scores, optional
        The table of scores as it was read.
    """

    cohort: Cohort
    items: tuple[Item, ...]
    skipped: Mapping[str, str]
    fingerprints: Mapping[tuple[str, str], str]
    done: frozenset[tuple[str, str]]
    models: Mapping[str, Path]
    resolution: float
    map_kind: MapKind
    scores: Scores | None = None

    def to_run(self, model: str = '') -> tuple[str, ...]:
        """Return the stages of a model (or of the cohort) that are still to run."""
        return tuple(s for s, m in self.fingerprints if m == model and (s, m) not in self.done)

    @property
    def busy(self) -> bool:
        """Whether anything is to run."""
        return len(self.done) < len(self.fingerprints)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Models in the order that they were asked for."""
        return tuple(dict.fromkeys(m for _, m in self.fingerprints if m))


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
    cohort = find_cohort(
        [settings.inputs.output_dir, *settings.inputs.derivatives],
        space=space,
        key=f'std_{options.map_kind}',
        participants=settings.inputs.participant_label,
        session=next(iter(settings.inputs.session_label), None),
    )
    paths = {p: e.participant for e in cohort.entries for p in (e.map, e.mask)}
    wrong = check_grids(list(paths), space)
    cohort = cohort.without({paths[path]: reason for path, reason in wrong.items()})
    if not cohort.entries:
        raise InputError(
            f'no map has the grid of {space} ({next(iter(wrong.values()))})',
            fix='run the participant level again with the same --output-spaces',
        )
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
    fingerprints = _fingerprints(cohort, settings)
    done = frozenset(pair for pair, mark in fingerprints.items() if _holds(settings, *pair, mark))
    return GroupPlan(
        cohort, items, skipped, fingerprints, done, {},
        options.resolution, options.map_kind, scores,
    )  # fmt: skip


def find_models(settings: Settings) -> tuple[dict[str, Path], dict[str, Any]]:
    """Find the models of `--apply` and what they were fitted on.

    Returns
    -------
    models : dict of str to Path
        Parameters by model.
    facts : dict
        ``Levels`` by name of the items of all models together, and ``Covariates`` and
        ``CovariateColumns``, which all models share.

    Raises
    ------
    InputError
        When there is none, or they do not fit the options.
    """
    folder, space = settings.group.apply, settings.processing.output_spaces[0]
    assert folder is not None
    found = [folder] if folder.is_file() else sorted(folder.glob('**/tpl-*_model-*_params.pt'))
    models: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    for path in found:
        try:
            content = json.loads(sidecar_path(path).read_text(encoding='utf-8'))
            told = {name: content[name] for name in ('Model', 'Space', 'VoxelSize', 'MapKind')}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                'has no sidecar that tells what it was fitted on',
                fix='keep the .json beside the .pt, or fit again',
                path=path,
            ) from error
        for name, here, option in (
            ('Space', space, '--output-spaces'),
            ('VoxelSize', settings.group.resolution, '--resolution'),
            ('MapKind', str(settings.group.map_kind), '--map-kind'),
        ):
            if told[name] != here:
                raise InputError(
                    f'was fitted with {option} {told[name]}, this run has {here}',
                    fix=f'give {option} {told[name]}',
                    path=path,
                )
        models[told['Model']] = path
        if facts and content.get('Covariates') != facts['Covariates']:
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
            cohort, facts.get('CovariateColumns', names), _tables(settings), expected=names
        )
    if sorted(cohort.covariate_names) != sorted(names):
        raise InputError(
            f'the covariates are {", ".join(cohort.covariate_names)}; '
            f'the model has {", ".join(names)}',
            fix='give the new participants the same columns',
        )
    chain = _digest(GROUP_VERSION, _cohort_facts(cohort))
    fingerprints = {
        ('apply', model): _digest(chain, hashlib.sha256(path.read_bytes()).hexdigest())
        for model, path in models.items()
    }
    done = frozenset(pair for pair, mark in fingerprints.items() if _holds(settings, *pair, mark))
    return GroupPlan(
        cohort, items, {}, fingerprints, done, models,
        settings.group.resolution, settings.group.map_kind, scores,
    )  # fmt: skip


def _score_source(settings: Settings) -> Path:
    """Return the table that was named, otherwise the dataset; never an output of our own."""
    return settings.group.scores or settings.inputs.bids_dir


def _tables(settings: Settings) -> list[Path]:
    return [p for p in (settings.inputs.bids_dir, settings.group.scores) if p is not None]


def _fingerprints(cohort: Cohort, settings: Settings) -> dict[tuple[str, str], str]:
    options, seed = settings.group, settings.processing.random_seed
    common = _digest(
        GROUP_VERSION,
        settings.processing.output_spaces[0],
        options.resolution,
        options.map_kind,
        options.min_coverage,
        _cohort_facts(cohort),
    )
    marks = {('cohort', ''): common}
    for model in dict.fromkeys(options.model):
        fit = _digest(common, model, seed, settings.processing.sloppy)
        marks['fit', model] = fit
        for stage, count in (
            ('validation', options.folds),
            ('null', options.permutations),
            ('stability', options.bootstraps),
        ):
            if count:
                marks[stage, model] = _digest(fit, stage, count)
    return marks


def _cohort_facts(cohort: Cohort) -> list[object]:
    """Return what tells one cohort from another, wherever it lies and whenever it was copied."""
    return [
        [[e.participant, e.session, *_file_facts(e.map), *_file_facts(e.mask)]
         for e in cohort.entries],
        cohort.scores.columns.tolist(),
        np.nan_to_num(cohort.scores.to_numpy(float), nan=-1).tolist(),
        [[m.edges, m.values, m.reverse] for m in cohort.measures],
        cohort.score_sessions.to_numpy().tolist(),
        list(cohort.covariate_names),
        np.nan_to_num(cohort.covariates.to_numpy(float), nan=-1e9).tolist(),
    ]  # fmt: skip


def _file_facts(path: Path) -> list[object]:
    """Return a map's size and what its sidecar says, which names the options that made it."""
    try:
        told = sidecar_path(path).read_text(encoding='utf-8')
    except OSError:
        told = ''
    return [path.name, path.stat().st_size, hashlib.sha256(told.encode()).hexdigest()]


def _holds(settings: Settings, stage: str, model: str, fingerprint: str) -> bool:
    lead = group_path(settings, LEADS[stage], model=model)
    try:
        content = json.loads(sidecar_path(lead).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    root = settings.inputs.output_dir.absolute()
    return (
        lead.is_file()
        and content.get('Fingerprint') == fingerprint
        and all((root / name).is_file() for name in content.get('Outputs', []))
    )


def _digest(*facts: object) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _first_reasons(cohort: Cohort) -> str:
    counts: dict[str, int] = {}
    for reason in cohort.dropped.values():
        counts[reason] = counts.get(reason, 0) + 1
    listed = [f'{count}: {reason}' for reason, count in list(counts.items())[:3]]
    return 'left out ' + '; '.join(listed)


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
        lines.append(f'{model}: {", ".join(steps) if steps else "complete, nothing to do"}')
    return '\n'.join(lines)
