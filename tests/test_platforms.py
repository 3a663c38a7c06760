"""What platforms read about the app says what the app is: Boutiques, Nipoppy, BABS, Neurodesk."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from argparse import SUPPRESS, _HelpAction, _VersionAction
from pathlib import Path

import pytest
import yaml
from boutiques import execute
from boutiques.validator import validate_descriptor

from bids_perfdeficit.cli.parser import build_parser, parse_settings
from bids_perfdeficit.settings import AnalysisLevel, Level

SCRIPT = Path(__file__).parents[1] / 'scripts' / 'boutiques_descriptor.py'


@pytest.fixture(scope='module')
def descriptor():
    spec = importlib.util.spec_from_file_location('boutiques_descriptor', SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.describe('bids_perfdeficit:test')


def test_boutiques_accepts_the_descriptor(descriptor):
    validate_descriptor(descriptor, format_output=False)


def test_every_option_is_an_input_and_every_input_an_option(descriptor):
    ours = {
        action.dest: [name for name in action.option_strings if name.startswith('--')][:1]
        for action in build_parser()._actions
        if not isinstance(action, _HelpAction | _VersionAction) and action.help != SUPPRESS
    }
    theirs = {i['id']: [i[k] for k in ('command-line-flag',) if k in i]
              for i in descriptor['inputs']}  # fmt: skip
    assert theirs == ours
    assert all(f'[{name.upper()}]' in descriptor['command-line'] for name in ours)


def test_what_a_platform_starts_is_what_was_asked_for(descriptor, tmp_path):
    """Boutiques makes the command line, the parser reads it."""
    (tmp_path / 'data').mkdir()
    asked = {
        'bids_dir': str(tmp_path / 'data'), 'output_dir': str(tmp_path / 'out'),
        'analysis_level': 'participant', 'participant_label': ['01', 'sub-02'],
        'level': 'minimal', 'mem': 7.5, 'nprocs': 3, 'sloppy': True, 'resolution': 6.5,
        'min_coverage': 0.05, 'work_dir': str(tmp_path / 'work'),
    }  # fmt: skip
    for name, content in (('descriptor.json', descriptor), ('invocation.json', asked)):
        (tmp_path / name).write_text(json.dumps(content))
    done = execute(
        'simulate', str(tmp_path / 'descriptor.json'), '-i', str(tmp_path / 'invocation.json')
    )
    program, *words = shlex.split(done.shell_command)
    assert program == 'bids_perfdeficit'
    settings = parse_settings(words)
    assert settings.inputs.analysis_level is AnalysisLevel.PARTICIPANT
    assert settings.inputs.participant_label == ('01', 'sub-02')
    assert settings.processing.level is Level.MINIMAL
    assert settings.processing.sloppy
    assert (settings.resources.mem, settings.resources.nprocs) == (7.5, 3)
    assert (settings.group.resolution, settings.group.min_coverage) == (6.5, 0.05)
    assert settings.resources.work_dir == tmp_path / 'work'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('platforms')
    subprocess.run(
        [sys.executable, SCRIPT.with_name('platform_files.py'), folder, '--image', 'o/n:1'],
        check=True,
    )
    return folder


def test_nipoppy_starts_what_the_parser_reads(written, descriptor, tmp_path):
    [pipeline] = (written / 'nipoppy').iterdir()
    assert json.loads((pipeline / 'descriptor.json').read_text())['container-image']['image'] == (
        'o/n:1'
    )
    config = json.loads((pipeline / 'config.json').read_text())
    assert pipeline.name == f'{config["NAME"]}-{config["VERSION"]}'
    (tmp_path / 'descriptor.json').write_text(json.dumps(descriptor))
    for step in config['STEPS']:
        text = (pipeline / step['INVOCATION_FILE']).read_text()
        replaced = re.sub(r'\[\[NIPOPPY_DPATH_(\w+)\]\]', rf'{tmp_path}/\1', text)
        replaced = re.sub(r'\[\[NIPOPPY_\w+_ID\]\]', '01', replaced)
        (tmp_path / 'BIDS').mkdir(exist_ok=True)
        (tmp_path / 'invocation.json').write_text(replaced)
        done = execute(
            'simulate', str(tmp_path / 'descriptor.json'), '-i', str(tmp_path / 'invocation.json')
        )
        settings = parse_settings(shlex.split(done.shell_command)[1:])
        assert settings.inputs.analysis_level.value == step['NAME']
        for name in (step['TRACKER_CONFIG_FILE'], step['HPC_CONFIG_FILE']):
            assert json.loads((pipeline / name).read_text())


def test_babs_passes_options_that_exist(written):
    config = yaml.safe_load((written / 'babs.yaml').read_text())
    known = set(build_parser()._option_string_actions)
    assert {o for o in config['bids_app_args'] if o.startswith('-')} <= known
    assert config['bids_app_args']['$SUBJECT_SELECTION_FLAG'] in known
    assert '@' not in (written / 'babs.yaml').read_text()


def test_the_recipe_of_neurodesk_is_based_on_the_image(written):
    recipe = yaml.safe_load((written / 'neurodesk' / 'build.yaml').read_text())
    assert recipe['build']['base-image'] == 'o/n:1'


def test_jobs_that_work_in_the_same_folders_wait_for_one_another(tmp_path):
    """Each level takes the locks of the participants; two at once would refuse each other's."""
    (tmp_path / 'bids' / 'sub-01').mkdir(parents=True)
    sbatch = tmp_path / 'sbatch'
    sbatch.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/said\nwc -l <{tmp_path}/said | tr -d " "\n'
    )
    sbatch.chmod(0o755)
    environ = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'EVALUATE': ' ', 'CALIBRATE': ' '}
    script = Path(__file__).parents[1] / 'scripts' / 'slurm.sh'
    subprocess.run(
        [script, tmp_path / 'bids', tmp_path / 'out'], check=True, env=environ, text=True
    )
    said = (tmp_path / 'said').read_text().splitlines()
    after = [re.search(r'--dependency (\S+)', line) for line in said]
    assert [found and found[1] for found in after] == [
        None, 'afterany:1', 'afterany:1', 'afterany:1:3',
    ]  # fmt: skip
