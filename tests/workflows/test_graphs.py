"""Every workflow is built and expanded over a matrix of options, without data."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit.bids import ScanPair, sidecar_path
from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.settings import InputSettings, Level, ProcessingSettings, Settings
from bids_perfdeficit.workflows.base import estimate_memory, init_bids_perfdeficit_wf
from bids_perfdeficit.workflows.plan import (
    STAGES,
    describe,
    make_plan,
    path_of,
    stages_of,
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


def finish(plan, settings: Settings, stage, root: Path | None = None) -> None:
    """Lay down what a stage leaves."""
    space = settings.processing.output_spaces[0]
    for key in stage.keys:
        path = path_of(root or settings.inputs.output_dir, plan.pair, key, space)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')
        sidecar_path(path).write_text(json.dumps({'Fingerprint': plan.fingerprints[stage.name]}))


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
    assert {COMPUTING[s.name] for s in stages_of(level)} <= set(nodes)
    assert all(node.mem_gb > 0 for node in nodes.values())
    assert ('eikonal' in text) == (level is Level.FULL)
    if level is Level.FULL:
        assert nodes['compute'].n_procs == 1  # more would change the bits
        assert ('anisotropic' in text) == (arrival == 'anisotropic')


def test_a_stage_that_is_done_stays_out_of_the_graph(pair, tmp_path):
    settings = settings_for(tmp_path)
    for count, stage in enumerate(STAGES):
        plan = make_plan(pair, settings)
        assert plan.to_run(Level.FULL) == STAGES[count:]
        names = nodes_of(plan, settings)
        for position, other in enumerate(STAGES):
            assert (COMPUTING[other.name] in names) == (position >= count), other.name
        finish(plan, settings, stage)
    assert make_plan(pair, settings).to_run(Level.FULL) == ()


def test_another_seed_redoes_what_depends_on_it(pair, tmp_path):
    settings = settings_for(tmp_path)
    plan = make_plan(pair, settings)
    for stage in STAGES:
        finish(plan, settings, stage)
    other = settings_for(tmp_path, random_seed=1)
    assert [s.name for s in make_plan(pair, other).to_run(Level.FULL)] == [
        'cta',
        'template',
        'perfusion',
        'standard',
        'metrics',
    ]


def test_another_image_redoes_everything(pair, tmp_path):
    settings = settings_for(tmp_path)
    plan = make_plan(pair, settings)
    for stage in STAGES:
        finish(plan, settings, stage)
    moved = replace(pair, cta=pair.cta.with_name('sub-01_ses-a_run-2_cta.nii.gz'))
    assert make_plan(moved, settings).to_run(Level.FULL) == STAGES


def test_derivatives_of_others_are_taken_as_they_are(pair, tmp_path):
    theirs = tmp_path / 'theirs'
    settings = settings_for(tmp_path)
    finish(make_plan(pair, settings_for(tmp_path, random_seed=5)), settings, STAGES[0], theirs)
    given = replace(settings, inputs=replace(settings.inputs, derivatives=(theirs,)))
    assert 'preproc_ct' in make_plan(pair, given).existing
    assert 'preproc_ct' not in make_plan(pair, settings).existing


def test_a_dry_run_tells_files_steps_and_notes(pair, tmp_path):
    settings = settings_for(tmp_path, Level.MINIMAL)
    text = describe([make_plan(pair, settings)], settings)
    assert text.splitlines()[0] == 'sub-01_ses-a: conform, brain, cta, template'
    assert str(pair.cta) in text
    assert 'a note' in text


def test_memory_follows_the_headers_and_survives_broken_ones(pair):
    small = estimate_memory(pair, 1.0)
    large = pair.cta.with_name('large_cta.nii.gz')
    nib.save(nib.Nifti1Image(np.zeros((300, 300, 300), np.int16), np.eye(4)), large)
    assert estimate_memory(replace(pair, cta=large), 1.0)['cta'] > small['cta'] + 0.3
    pair.cta.write_bytes(b'broken')
    assert estimate_memory(pair, 1.0)['cta'] > 0
