"""The group workflow is built and expanded over a matrix of options, without reading a map."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from bids_perfdeficit.bids import write_bytes
from bids_perfdeficit.bids.cohort import Cohort, Entry
from bids_perfdeficit.deficit import Item
from bids_perfdeficit.settings import (
    GroupSettings,
    InputSettings,
    MapKind,
    ProcessingSettings,
    Settings,
)
from bids_perfdeficit.stages.task import publish
from bids_perfdeficit.workflows.group import describe_methods, estimate_memory, init_group_wf
from bids_perfdeficit.workflows.group_plan import (
    GroupPlan,
    describe_group,
    group_tasks,
)


@pytest.fixture
def cohort(tmp_path) -> Cohort:
    entries = []
    for label in ('01', '02'):
        paths = [tmp_path / f'sub-{label}_{name}.nii.gz' for name in ('map', 'mask')]
        for path in paths:
            path.write_bytes(b'x')
        entries.append(Entry(label, '', *paths))
    labels = ['01', '02']
    return Cohort(
        tuple(entries),
        scores=pd.DataFrame({'nihss_5a': [0.0, 2.0]}, index=labels),
        covariates=pd.DataFrame({'age': [50.0, 60.0]}, index=labels),
        with_volume=True,
        dropped={'03': 'a reason'},
        notes=('a note',),
    )


def settings_for(root: Path, seed: int = 1, **group) -> Settings:
    return Settings(
        inputs=InputSettings(bids_dir=root / 'raw', output_dir=root / 'out'),
        processing=ProcessingSettings(random_seed=seed),
        group=GroupSettings(**group),
    )


def plan_for(cohort: Cohort, settings: Settings, models: dict | None = None) -> GroupPlan:
    tasks = group_tasks(cohort, settings)
    if models:
        common = tasks['cohort', '']
        tasks = {('apply', m): replace(common, stage='apply') for m in models}
    plan = GroupPlan(
        cohort, (Item('nihss_5a', 5),), {}, tasks, {}, models or {},
        settings.group.resolution, settings.group.map_kind,
    )  # fmt: skip
    return plan.examined()


def nodes_of(plan: GroupPlan, settings: Settings) -> dict[str, object]:
    workflow = init_group_wf(plan=plan, settings=settings, omp_nthreads=2)
    workflow._generate_flatgraph()
    return {f'{n._hierarchy}.{n.name}': n for n in workflow._graph.nodes()}


def finish(plan: GroupPlan, stage: str, model: str) -> Path:
    """Leave what a stage leaves."""
    task = plan.tasks[stage, model]
    names = task.outputs or (f'{stage}-{model}.nii.gz',)
    publish(task, {name: partial(write_bytes, name.encode()) for name in names})
    return task.root / names[0]


@pytest.mark.parametrize(
    ('models', 'folds', 'permutations', 'bootstraps', 'kind'),
    list(itertools.product(
        [('spatial',), ('ridge', 'voxelwise', 'vae')], (0, 3), (0, 25), (0, 8), MapKind,
    )),
)  # fmt: skip
def test_every_combination_of_options_has_a_graph(
    cohort, tmp_path, models, folds, permutations, bootstraps, kind
):
    settings = settings_for(
        tmp_path, model=models, folds=folds, permutations=permutations, bootstraps=bootstraps,
        map_kind=kind,
    )  # fmt: skip
    plan = plan_for(cohort, settings)
    nodes = nodes_of(plan, settings)
    steps = {'fit': 1, 'validation': folds, 'null': permutations, 'stability': bootstraps}
    for model in models:
        for step, count in steps.items():
            assert (f'group_wf.{model}_wf.{step}' in nodes) == bool(count), (model, step)
    if folds:
        assert nodes[f'group_wf.{models[0]}_wf.validation'].inputs.fold == list(range(folds))
    if permutations:
        dealt = nodes[f'group_wf.{models[0]}_wf.null'].inputs.numbers
        assert sorted(n for piece in dealt for n in piece) == list(range(permutations))
    assert nodes['group_wf.cohort_wf.stack'].inputs.asymmetry == (kind is MapKind.ASYMMETRY)
    assert all(node.mem_gb > 0 for node in nodes.values())
    text = describe_methods(plan, settings)
    assert all(f'*{model}*' in text for model in models)
    assert ('cross-validation' in text) == bool(folds)
    assert ('asymmetry of computed' in text) == (kind is MapKind.ASYMMETRY)


def test_a_stage_that_is_done_stays_out_of_the_graph(cohort, tmp_path):
    settings = settings_for(tmp_path, model=('ridge',), folds=2)
    plan = plan_for(cohort, settings)
    assert plan.to_run('ridge') == ('fit', 'validation')
    finish(plan, 'cohort', '')
    left = finish(plan, 'fit', 'ridge')
    plan = plan_for(cohort, settings)
    assert plan.to_run() == ()
    assert plan.to_run('ridge') == ('validation',)
    names = nodes_of(plan, settings)
    assert 'group_wf.ridge_wf.fit' not in names
    assert 'group_wf.ridge_wf.validation' in names
    left.unlink()  # one of its maps is gone
    assert plan_for(cohort, settings).to_run('ridge') == ('fit', 'validation')


def test_all_done_is_no_work(cohort, tmp_path):
    settings = settings_for(tmp_path, model=('ridge',), folds=0)
    plan = plan_for(cohort, settings)
    for stage, model in plan.tasks:
        finish(plan, stage, model)
    plan = plan_for(cohort, settings)
    assert not plan.busy
    assert 'ridge: complete' in describe_group(plan)


@pytest.mark.parametrize(
    'change', ['seed', 'scores', 'covariates', 'map', 'table', 'resolution', 'kind', 'order']
)
def test_what_shapes_a_result_has_it_made_again(cohort, tmp_path, change):
    table = tmp_path / 'scores.tsv'
    table.write_text('the table')
    cohort = replace(cohort, source=table)
    settings = settings_for(tmp_path, model=('ridge',), folds=0, scores=table)
    plan = plan_for(cohort, settings)
    for stage, model in plan.tasks:
        finish(plan, stage, model)
    assert not plan_for(cohort, settings).busy
    if change == 'seed':
        settings = settings_for(tmp_path, model=('ridge',), scores=table, folds=0, seed=2)
    elif change == 'scores':
        cohort.scores.loc['01', 'nihss_5a'] = 1.0
    elif change == 'covariates':
        cohort = replace(cohort, with_volume=False)
    elif change == 'map':
        cohort.entries[0].map.write_bytes(b'y')  # the same size
    elif change == 'table':
        table.write_text('the tabel')
    elif change == 'order':
        cohort = replace(cohort, scores=cohort.scores.assign(nihss_9=0.0))
    elif change == 'resolution':
        settings = settings_for(tmp_path, model=('ridge',), scores=table, folds=0, resolution=2.0)
    else:
        settings = settings_for(
            tmp_path, model=('ridge',), scores=table, folds=0, map_kind=MapKind.ASYMMETRY
        )
    assert 'fit' in plan_for(cohort, settings).to_run('ridge')


def test_more_folds_do_not_redo_the_fit(cohort, tmp_path):
    few, many = (settings_for(tmp_path, model=('ridge',), folds=n) for n in (2, 5))
    plan = plan_for(cohort, few)
    for stage, model in plan.tasks:
        finish(plan, stage, model)
    assert plan_for(cohort, many).to_run('ridge') == ('validation',)


def test_options_of_one_model_reach_it_and_redo_no_other(cohort, tmp_path):
    models = ('ridge', 'vae')
    plain, other = (
        settings_for(tmp_path, model=models, folds=2, vae_epochs=n) for n in (None, 200)
    )
    plan = plan_for(cohort, plain)
    for stage, model in plan.tasks:
        finish(plan, stage, model)
    assert plan_for(cohort, other).to_run('ridge') == ()
    assert plan_for(cohort, other).to_run('vae') == ('fit', 'validation')
    nodes = nodes_of(plan_for(cohort, other), other)
    for stage in ('fit', 'validation'):
        assert nodes[f'group_wf.vae_wf.{stage}'].inputs.options == {'vae_epochs': 200}
    assert 'vae_epochs = 200' in describe_methods(plan_for(cohort, other), other)


def test_repetitions_and_groups_make_other_folds_and_no_other_fit(cohort, tmp_path):
    once, twice = (
        settings_for(tmp_path, model=('ridge',), folds=2, fold_repeats=n) for n in (1, 2)
    )
    plan = plan_for(cohort, once)
    for stage, model in plan.tasks:
        finish(plan, stage, model)
    assert plan_for(cohort, once).to_run('ridge') == ()
    assert plan_for(cohort, twice).to_run('ridge') == ('validation',)
    nodes = nodes_of(plan_for(cohort, twice), twice)
    assert nodes['group_wf.ridge_wf.validation'].inputs.fold == [0, 1, 2, 3]
    grouped = replace(cohort, groups=('a', 'b'))
    assert plan_for(grouped, once).to_run('ridge') == ('validation',)
    assert nodes_of(plan_for(grouped, twice), twice)[
        'group_wf.cohort_wf.assemble'
    ].inputs.groups == ['a', 'b']


def test_applied_models_are_not_fitted(cohort, tmp_path):
    params = tmp_path / 'params.pt'
    params.write_bytes(b'x')
    settings = settings_for(tmp_path, apply=tmp_path)
    names = nodes_of(plan_for(cohort, settings, {'ridge': params}), settings)
    assert 'group_wf.ridge_wf.apply' in names
    assert not any(name.endswith(('.fit', '.prepare', '.validation')) for name in names)


def test_memory_follows_participants_and_voxels(cohort, tmp_path):
    def plan(count: int, resolution: float) -> GroupPlan:
        small = plan_for(cohort, settings_for(tmp_path, resolution=resolution))
        return replace(small, cohort=replace(cohort, entries=cohort.entries * (count // 2)))

    assert estimate_memory(plan(1400, 4.0))['fit'] > estimate_memory(plan(100, 4.0))['fit'] + 0.5
    assert estimate_memory(plan(1400, 2.0))['fit'] < 6


def test_a_dry_run_tells_who_is_left_out_and_what_would_run(cohort, tmp_path):
    settings = settings_for(tmp_path, model=('ridge',), folds=2)
    text = describe_group(replace(plan_for(cohort, settings), skipped={'nihss_7': 'too few'}))
    assert '2 participants' in text
    assert 'age, total_deficit_volume' in text
    assert 'sub-03: left out: a reason' in text
    assert 'nihss_7: skipped: too few' in text
    assert 'ridge: fit (not made yet), validation (not made yet)' in text
