"""The public CI decides rightly what a change needs, and runs what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def configs():
    return [
        yaml.safe_load((ROOT / '.circleci' / f'{name}.yml').read_text())
        for name in ('config', 'continue')
    ]


def wanted(setup, *changed):
    """Return the parameters that a change sets, by the rules of the path-filtering orb."""
    options = setup['workflows']['decide']['jobs'][0]['path-filtering/filter']
    rules = [line.split() for line in options['mapping'].splitlines()]
    assert all(len(rule) == 3 and rule[2] == 'true' for rule in rules)
    return {what for path, what, _ in rules for name in changed if re.match(f'^{path}$', name)}


@pytest.mark.parametrize(
    ('changed', 'parameters'),
    [
        ('README.md', {'docs'}),
        ('LICENSE', set()),
        ('docs/usage.rst', {'docs'}),
        ('tests/cli/test_run.py', {'code'}),
        ('bids_perfdeficit/perfusion/maps.py', {'code', 'docs'}),
        ('bids_perfdeficit/cli/run.py', {'code', 'docs', 'image'}),
        ('constraints.txt', {'code', 'image'}),
        ('Dockerfile', {'image'}),
        ('.circleci/continue.yml', {'code'}),
    ],
)
def test_a_change_asks_for_what_it_may_break(configs, changed, parameters):
    assert wanted(configs[0], changed) == parameters


def test_the_mapping_names_files_that_are_there(configs):
    assert configs[0]['workflows']['decide']['jobs'][0]['path-filtering/filter'][
        'config-path'
    ] == '.circleci/continue.yml'  # fmt: skip
    assert wanted(configs[0], 'Makefile', 'docs/x', 'Dockerfile') == set(configs[1]['parameters'])


def test_jobs_run_targets_that_make_has(configs):
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))
    jobs = configs[1]['jobs'] | configs[1]['commands']
    commands = [
        step['run']['command']
        for job in jobs.values()
        for step in job['steps']
        if isinstance(step, dict) and 'run' in step
    ]
    made = {name for c in commands for name in re.findall(r'\bmake ([a-z-]+)', c)}
    assert {'setup', 'check', 'docs', 'image', 'image-test'} <= made <= targets


def test_a_release_waits_for_every_job_it_runs(configs):
    (publish,) = [j['publish'] for j in configs[1]['workflows']['release']['jobs']
                  if 'publish' in j]  # fmt: skip
    assert set(publish['requires']) == {'check', 'docs', 'image', 'test not slow', 'test slow'}
    assert publish['filters']['branches'] == {'ignore': '/.*/'}
