"""Every workflow is built and expanded over a matrix of options, without data."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit.bids import ScanPair, output_path, sidecar_path, write_bytes, write_json
from bids_perfdeficit.bids.cohort import Entry
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.settings import (
    InputSettings,
    Level,
    OutputSettings,
    ProcessingSettings,
    Settings,
)
from bids_perfdeficit.stages.task import publish
from bids_perfdeficit.workflows.base import (
    branch_name,
    estimate_memory,
    init_bids_perfdeficit_wf,
)
from bids_perfdeficit.workflows.group_plan import find_unproven
from bids_perfdeficit.workflows.plan import (
    describe,
    make_plan,
    path_of,
    record_path,
    stages_of,
    template_inputs,
)

#: Nodes that compute, by stage.
COMPUTING = {
    'conform': 'conform',
    'brain': 'brain',
    'cta': 'register_cta',
    'template': 'register_template',
    'perfusion': 'compute',
    'standard': 'to_template',
    'metrics': 'measure',
    'figures': 'draw',
}


@pytest.fixture
def pair(tmp_path: Path) -> ScanPair:
    folder = tmp_path / 'raw' / 'sub-01' / 'ses-a' / 'ct'
    folder.mkdir(parents=True)
    paths = {}
    for suffix in ('ct', 'cta'):
        paths[suffix] = folder / f'sub-01_ses-a_{suffix}.nii.gz'
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), paths[suffix])
    return ScanPair(
        participant='01', session='a', ncct=paths['ct'], cta=paths['cta'], notes=('a note',)
    )


def settings_for(tmp_path: Path, level: Level = Level.FULL, **processing) -> Settings:
    return Settings(
        inputs=InputSettings(bids_dir=tmp_path / 'raw', output_dir=tmp_path / 'out'),
        processing=ProcessingSettings(level=level, **processing),
    )


def nodes_of(plan, settings: Settings) -> set[str]:
    workflow = init_bids_perfdeficit_wf(plans=[plan], settings=settings)
    workflow._generate_flatgraph()
    return {node.name for node in workflow._graph.nodes()}


def finish(plan, name: str) -> None:
    """Leave what a stage leaves."""
    task = plan.tasks[name]
    content = f'{name} {dict(task.options)}'.encode()
    publish(task, {name: partial(write_bytes, content) for name in task.outputs})


def finish_all(pair, settings: Settings) -> None:
    for name in make_plan(pair, settings).tasks:
        finish(make_plan(pair, settings), name)


@pytest.mark.parametrize(
    ('level', 'sloppy', 'arrival'),
    list(itertools.product(Level, (False, True), ('isotropic', 'anisotropic'))),
)
def test_every_combination_of_options_has_a_graph(pair, tmp_path, level, sloppy, arrival):
    settings = replace(
        settings_for(tmp_path, level, sloppy=sloppy), perfusion=PerfusionSettings(arrival=arrival)
    )
    workflow = init_bids_perfdeficit_wf(plans=[make_plan(pair, settings)], settings=settings)
    text = workflow.visit_desc()
    workflow._generate_flatgraph()
    nodes = {node.name: node for node in workflow._graph.nodes()}
    assert {COMPUTING[s.name] for s in stages_of(settings)} <= set(nodes)
    assert all(node.mem_gb > 0 for node in nodes.values())
    assert ('eikonal' in text) == (level is Level.FULL)
    if level is Level.FULL:
        assert nodes['compute'].n_procs == 1  # more would change the bits
        assert ('anisotropic' in text) == (arrival == 'anisotropic')


def test_the_methods_name_the_metric_that_the_recipe_has(pair, tmp_path):
    for recipe, named in (('default', False), ('published', True)):
        settings = replace(settings_for(tmp_path), perfusion=PerfusionSettings(recipe=recipe))
        workflow = init_bids_perfdeficit_wf(plans=[make_plan(pair, settings)], settings=settings)
        assert ('anisotropic' in workflow.visit_desc()) == named


def test_a_stage_that_is_done_stays_out_of_the_graph(pair, tmp_path):
    settings = settings_for(tmp_path)
    names = [stage.name for stage in stages_of(settings)]
    for count, name in enumerate(names):
        plan = make_plan(pair, settings)
        assert plan.to_run == tuple(names[count:])
        nodes = nodes_of(plan, settings)
        for position, other in enumerate(names):
            assert (COMPUTING[other] in nodes) == (position >= count), other
        finish(plan, name)
    assert make_plan(pair, settings).to_run == ()


@pytest.mark.parametrize(
    ('change', 'redone'),
    [
        ({'random_seed': 1}, ['cta', 'template', 'perfusion', 'standard', 'metrics', 'figures']),
        ({'sloppy': True}, [*COMPUTING]),
    ],
)
def test_another_option_redoes_what_depends_on_it(pair, tmp_path, change, redone):
    finish_all(pair, settings_for(tmp_path))
    assert list(make_plan(pair, settings_for(tmp_path, **change)).to_run) == redone


def test_another_recipe_redoes_the_maps(pair, tmp_path):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    other = replace(settings, perfusion=PerfusionSettings(arrival='anisotropic'))
    plan = make_plan(pair, other)
    assert plan.to_run == ('perfusion', 'standard', 'metrics', 'figures')
    assert plan.states['perfusion'].reason == 'other options (arrival)'


def test_the_metric_that_the_recipe_has_anyway_redoes_nothing(pair, tmp_path):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    same = replace(settings, perfusion=PerfusionSettings(arrival='isotropic'))
    assert make_plan(pair, same).to_run == ()


def test_a_scan_of_another_name_redoes_what_it_was_read_for(pair, tmp_path):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    other = pair.cta.with_name('sub-01_ses-a_run-2_cta.nii.gz')
    other.write_bytes(pair.cta.read_bytes())
    plan = make_plan(replace(pair, cta=other), settings)
    assert plan.to_run == ('cta', 'perfusion', 'standard', 'metrics', 'figures')


@pytest.fixture
def phased(pair) -> ScanPair:
    """Return the pair with two later phases of its CTA."""
    later = []
    for number in (2, 3):
        path = pair.cta.with_name(f'sub-01_ses-a_acq-phase{number}_cta.nii.gz')
        path.write_bytes(pair.cta.read_bytes() + bytes([number]))
        later.append(path)
    return replace(pair, later=tuple(later))


def test_one_phase_is_planned_as_before_there_were_more(pair, tmp_path):
    """Results of one phase must hold: nothing of the plan may change for them."""
    task = make_plan(pair, settings_for(tmp_path)).tasks['perfusion']
    names = {field.name for field in fields(PerfusionSettings)}
    assert set(task.options) == names | {'space', 'weights'}
    assert (task.version, dict(task.inputs)) == (4, {})
    assert 'align_phases' not in nodes_of(
        make_plan(pair, settings_for(tmp_path)), settings_for(tmp_path)
    )
    assert (
        '@multiphase'
        not in init_bids_perfdeficit_wf(
            plans=[make_plan(pair, settings_for(tmp_path))], settings=settings_for(tmp_path)
        ).visit_desc()
    )


def test_later_phases_are_aligned_and_recorded_by_the_stage_of_the_map(phased, tmp_path):
    settings = settings_for(tmp_path)
    plan = make_plan(phased, settings)
    names = [f'bids:raw:sub-01/ses-a/ct/{path.name}' for path in phased.later]
    assert list(plan.tasks['perfusion'].inputs) == names
    assert plan.tasks['perfusion'].options['phases'] == names
    others = [task for name, task in plan.tasks.items() if name != 'perfusion']
    assert not any(set(names) & set(task.inputs) for task in others)
    workflow = init_bids_perfdeficit_wf(plans=[plan], settings=settings)
    assert '@multiphase' in workflow.visit_desc()
    workflow._generate_flatgraph()
    nodes = {node.name: node for node in workflow._graph.nodes()}
    assert nodes['align_phases'].interface.inputs.phases == [str(p) for p in phased.later]
    assert set(names) <= set(nodes['ds_perfusion'].interface.inputs.sources)
    told = describe([plan])
    assert f'CTA, phase 2 {phased.later[0]}' in told
    assert f'CTA, phase 3 {phased.later[1]}' in told


@pytest.mark.parametrize('change', ['replaced', 'gone', 'new', 'order'])
def test_another_later_phase_redoes_the_maps_alone(pair, phased, tmp_path, change):
    settings = settings_for(tmp_path)
    finish_all(pair if change == 'new' else phased, settings)
    other = phased
    if change == 'replaced':
        phased.later[1].write_bytes(phased.later[0].read_bytes())
    elif change == 'gone':
        other = replace(phased, later=phased.later[:1])
    elif change == 'order':
        other = replace(phased, later=phased.later[::-1])
    plan = make_plan(other, settings)
    assert plan.to_run == ('perfusion', 'standard', 'metrics', 'figures')
    finish_all(other, settings)
    assert make_plan(other, settings).to_run == ()


def test_other_networks_redo_the_maps(pair, tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    monkeypatch.setattr('bids_perfdeficit.workflows.plan.base_sha256', lambda: 'other')
    plan = make_plan(pair, settings)
    assert plan.to_run == ('perfusion', 'standard', 'metrics', 'figures')
    assert plan.states['perfusion'].reason == 'other options (weights)'


def test_other_weights_redo_patients_with_later_phases_only(pair, phased, tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    for one, redone in ((pair, ()), (phased, ('perfusion', 'standard', 'metrics', 'figures'))):
        finish_all(one, settings)
        with monkeypatch.context() as patched:
            patched.setattr('bids_perfdeficit.workflows.plan.fusion_sha256', lambda: 'other')
            assert make_plan(one, settings).to_run == redone


@pytest.mark.parametrize('scan', ['ncct', 'cta'])
def test_a_scan_that_was_replaced_under_its_name_redoes_what_depends_on_it(pair, tmp_path, scan):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    path = getattr(pair, scan)
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])  # the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # and the same time
    first = make_plan(pair, settings).to_run[0]
    assert first == {'ncct': 'conform', 'cta': 'cta'}[scan]


@pytest.mark.parametrize('file', ['T1w', 'desc-brain_mask', 'label-GM_probseg'])
def test_a_template_that_was_replaced_redoes_all_that_is_made_in_it(
    pair, tmp_path, monkeypatch, file
):
    home = tmp_path / 'templates'
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(home))
    space = f'Own{file.replace("-", "").replace("_", "")}'
    folder = home / f'tpl-{space}'
    folder.mkdir(parents=True)
    for ending in ('T1w', 'desc-brain_mask', 'label-GM_probseg', 'label-WM_probseg'):
        (folder / f'tpl-{space}_res-01_{ending}.nii.gz').write_bytes(b'first')
    settings = settings_for(tmp_path, output_spaces=(space,))
    finish_all(pair, settings)
    assert make_plan(pair, settings).to_run == ()
    (folder / f'tpl-{space}_res-01_{file}.nii.gz').write_bytes(b'other')
    redone = ('template', 'perfusion', 'standard', 'metrics', 'figures')
    assert make_plan(pair, settings).to_run == redone
    (folder / f'tpl-{space}_res-01_{file}.nii.gz').write_bytes(b'first')
    assert make_plan(pair, settings).to_run == ()
    template_inputs.cache_clear()
    (folder / f'tpl-{space}_res-01_{file}.nii.gz').unlink()
    with pytest.raises(InputError, match=f'template {space} has no'):
        make_plan(pair, settings)


@pytest.mark.parametrize('harm', ['delete', 'cut', 'empty'])
@pytest.mark.parametrize('name', ['conform', 'standard', 'figures'])
def test_a_damaged_output_or_sidecar_is_made_again(pair, tmp_path, harm, name):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    for output in make_plan(pair, settings).tasks[name].outputs:
        path = settings.inputs.output_dir / output
        content = path.read_bytes()
        path.unlink() if harm == 'delete' else path.write_bytes(
            content[:-1] if harm == 'cut' else b''
        )
        assert make_plan(pair, settings).to_run[0] == name, output
        path.write_bytes(content)
    assert make_plan(pair, settings).to_run == ()


def test_verify_finds_an_output_of_the_right_size_and_another_content(pair, tmp_path):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    path = settings.inputs.output_dir / make_plan(pair, settings).tasks['standard'].outputs[0]
    path.write_bytes(path.read_bytes()[::-1])
    verified = replace(settings, outputs=OutputSettings(verify=True))
    assert make_plan(pair, verified).to_run[0] == 'standard'


def test_a_file_without_a_record_is_no_result(pair, tmp_path):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    make_plan(pair, settings).tasks['template'].record.unlink()
    assert make_plan(pair, settings).to_run[0] == 'template'


def lend(pair, settings: Settings, root: Path, name: str, **facts: str) -> Settings:
    """Lay a stage down in a folder of derivatives, and return settings that name it."""
    for key in next(s.keys for s in stages_of(settings) if s.name == name):
        path = path_of(root, pair, key, settings.processing.output_spaces[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'theirs')
        sidecar_path(path).write_text(json.dumps(facts))
    return replace(settings, inputs=replace(settings.inputs, derivatives=(root,)))


def test_derivatives_are_taken_before_own_results_and_as_they_are(pair, tmp_path):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    given = lend(pair, settings, tmp_path / 'theirs', 'brain')
    plan = make_plan(pair, given)
    assert plan.existing['brain_mask'].is_relative_to(tmp_path / 'theirs')
    assert plan.to_run == ('cta', 'template', 'perfusion', 'standard', 'metrics', 'figures')
    assert 'brain' in {task.stage for task in plan.stale}  # it would stand beside the other
    assert 'was not checked' in plan.notes[0]


@pytest.mark.parametrize('same', [True, False])
def test_derivatives_of_other_scans_are_refused(pair, tmp_path, same):
    settings = settings_for(tmp_path)
    reported = hashlib.sha256(pair.ncct.read_bytes()).hexdigest() if same else '0' * 64
    given = lend(pair, settings, tmp_path / 'theirs', 'conform', SourceSHA256=reported)
    plan = make_plan(pair, given)
    assert bool(plan.refusal) is not same
    assert same or 'another NCCT' in plan.refusal


def test_results_beyond_the_level_go_when_they_no_longer_hold(pair, tmp_path):
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    minimal = settings_for(tmp_path, Level.MINIMAL)
    assert [task.stage for task in make_plan(pair, minimal).stale] == ['figures']
    pair.cta.write_bytes(b'another')
    stale = [task.stage for task in make_plan(pair, minimal).stale]
    assert {'cta', 'perfusion', 'standard', 'metrics'} <= set(stale)


def test_a_dry_run_lists_files_steps_and_notes(pair, tmp_path):
    settings = settings_for(tmp_path, Level.MINIMAL)
    text = describe([make_plan(pair, settings)])
    assert text.splitlines()[0] == 'sub-01_ses-a: ' + ', '.join(
        f'{name} (not made yet)' for name in ('conform', 'brain', 'cta', 'template', 'figures')
    )
    assert str(pair.cta) in text
    assert 'a note' in text


def test_working_folders_are_those_of_version_options_and_scans(pair, tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    names = {branch_name(make_plan(pair, settings))}
    names.add(branch_name(make_plan(pair, settings_for(tmp_path, random_seed=3))))
    pair.ncct.write_bytes(b'another')
    names.add(branch_name(make_plan(pair, settings)))
    labels = [replace(pair, participant=label, session=None) for label in ('A+B', 'AplusB')]
    names |= {branch_name(make_plan(one, settings)) for one in labels}
    assert len(names) == 5
    assert all(name.replace('_', '').isalnum() for name in names)


def test_memory_follows_the_headers_and_survives_broken_ones(pair):
    small = estimate_memory(pair, 1.0)
    large = pair.cta.with_name('large_cta.nii.gz')
    nib.save(nib.Nifti1Image(np.zeros((300, 300, 300), np.int16), np.eye(4)), large)
    assert estimate_memory(replace(pair, cta=large), 1.0)['cta'] > small['cta'] + 0.3
    pair.cta.write_bytes(b'broken')
    assert estimate_memory(pair, 1.0)['cta'] > 0


@pytest.fixture
def entry(pair, tmp_path) -> Entry:
    """Return the maps of a participant whose stages are all done."""
    settings = settings_for(tmp_path)
    finish_all(pair, settings)
    space = settings.processing.output_spaces[0]
    paths = [
        path_of(settings.inputs.output_dir, pair, key, space)
        for key in ('std_perfusion', 'std_brain_mask')
    ]
    return Entry('01', 'a', *paths)


def judge(pair, tmp_path, status: str) -> None:
    path = output_path(tmp_path / 'out', 'verdict', participant='01', session='a')
    write_json({'Status': status, 'Reasons': ['a reason']}, path)


def test_maps_with_their_records_are_taken_and_so_are_maps_without_any(pair, entry, tmp_path):
    assert find_unproven([entry]) == {}
    judge(pair, tmp_path, 'complete')
    assert find_unproven([entry]) == {}
    shutil.rmtree(record_path(tmp_path / 'out', pair, 'standard').parent)
    assert find_unproven([entry]) == {}


@pytest.mark.parametrize(
    ('status', 'rating', 'taken', 'with_doubtful'),
    [
        ('complete', 'fail', False, False),
        ('complete', 'doubt', False, True),
        ('complete', 'pass', True, True),
        ('doubtful', 'pass', True, True),
        ('failed', 'pass', False, False),
    ],
)
def test_a_rating_by_a_person_decides_beside_the_verdict(
    pair, entry, tmp_path, status, rating, taken, with_doubtful
):
    judge(pair, tmp_path, status)
    (tmp_path / 'out' / 'ratings.tsv').write_text(
        f'participant_id\trating\tremark\nsub-01\t{rating}\ta remark\nsub-02\tfail\tn/a\n'
    )
    reasons = find_unproven([entry])
    assert (not reasons) == taken
    assert taken or status == 'failed' or 'a remark' in reasons['01']
    assert (not find_unproven([entry], include_doubtful=True)) == with_doubtful


@pytest.mark.parametrize('status', ['failed', 'doubtful'])
def test_the_verdict_decides_who_is_taken(pair, entry, tmp_path, status):
    judge(pair, tmp_path, status)
    assert 'a reason' in find_unproven([entry])['01']
    assert bool(find_unproven([entry], include_doubtful=True)) == (status == 'failed')


@pytest.mark.parametrize('harm', ['cut', 'no record', 'begun', 'older', 'damaged record'])
def test_maps_that_their_records_speak_against_are_left_out(pair, entry, tmp_path, harm):
    settings = settings_for(tmp_path)
    record = record_path(tmp_path / 'out', pair, 'standard')
    if harm == 'cut':
        entry.map.write_bytes(entry.map.read_bytes()[:-1])
    elif harm == 'no record':
        record.unlink()
    elif harm == 'begun':
        record.with_name(f'{record.name}.pending').write_text('{"Outputs": []}')
    elif harm == 'older':  # the maps in the patient were made again, those in the template not
        pair.cta.write_bytes(b'another')
        for name in ('cta', 'perfusion'):
            finish(make_plan(pair, settings), name)
    else:
        record.write_bytes(record.read_bytes()[:-10])
    assert find_unproven([entry], include_doubtful=True)['01']
