"""The command line becomes settings, and every mistake is told at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bids_perfdeficit.cli.parser import UsageError, build_parser, parse_settings
from bids_perfdeficit.settings import Level, Settings, option_fields

#: Modules that take seconds to import.
SLOW_MODULES = ('torch', 'ants', 'nipype', 'niworkflows', 'bids', 'nilearn', 'pandas')


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    (tmp_path / 'raw').mkdir()
    return [str(tmp_path / 'raw'), str(tmp_path / 'out'), 'participant']


def problems_of(arguments: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        parse_settings(arguments)
    return '\n'.join(caught.value.problems)


def test_the_plain_command_gives_the_defaults(folders):
    settings = parse_settings(folders)
    assert settings.processing == Settings().processing
    assert settings.inputs.bids_dir == Path(folders[0])


def test_every_option_of_the_parser_has_its_place_in_the_settings():
    keys = {key for _, key in option_fields()}
    actions = {a.dest for a in build_parser()._actions} - {'help', 'version', 'config_file'}
    assert actions <= keys
    # What has no option is set in the configuration file alone: the fine print of the recipe.
    assert {t for t, k in option_fields() if k not in actions} == {'perfusion'}


def test_options_reach_their_tables(folders):
    settings = parse_settings(
        [*folders, '--participant-label', '01', 'sub-02', '--level', 'minimal', '--arrival',
         'anisotropic', '--nprocs', '3', '--mem', '7.5', '-vv', '--sloppy']
    )  # fmt: skip
    assert settings.inputs.participant_label == ('01', 'sub-02')
    assert settings.processing.level is Level.MINIMAL
    assert settings.perfusion.arrival == 'anisotropic'
    assert (settings.resources.nprocs, settings.resources.mem) == (3, 7.5)
    assert settings.outputs.verbose == 2
    assert settings.processing.sloppy


def test_the_command_line_wins_over_the_configuration_file(folders, tmp_path):
    config = tmp_path / 'run.toml'
    config.write_text('[processing]\nrandom_seed = 5\nsloppy = true\n[perfusion]\nfloor = 0.02\n')
    settings = parse_settings([*folders, '--config-file', str(config), '--random-seed', '6'])
    assert settings.processing.random_seed == 6
    assert settings.processing.sloppy
    assert settings.perfusion.floor == 0.02


def test_a_written_configuration_repeats_the_run(folders, tmp_path):
    settings = parse_settings([*folders, '--level', 'minimal', '--random-seed', '9'])
    config = tmp_path / 'settings.toml'
    config.write_text(settings.to_toml())
    assert parse_settings([*folders, '--config-file', str(config)]) == settings


def test_all_problems_are_told_at_once(tmp_path):
    told = problems_of(
        [str(tmp_path / 'absent'), str(tmp_path / 'out'), 'participant', '--level', 'most',
         '--random-seed', 'x', '--mem', '-1', '--output-spaces', 'MNIX', '--nprosc=2',
         '--device', 'gpu', '--participant-label', 'a_b']
    )  # fmt: skip
    for piece in (
        'no such folder',
        "--level: 'most' is none of minimal, full",
        "--random-seed: 'x' is not a whole number",
        '--mem -1.0: must not be negative',
        'MNIX: not found in TEMPLATEFLOW_HOME',
        'did you mean --nprocs?',
        '--device gpu',
        "'a_b'",
    ):
        assert piece in told
    assert len(told.splitlines()) == 8


def test_missing_arguments_are_named():
    told = problems_of([])
    assert 'BIDS_DIR is missing' in told
    assert 'OUTPUT_DIR is missing' in told
    assert 'the analysis level is missing' in told


@pytest.mark.parametrize(
    ('extra', 'piece'),
    [
        (['--work-dir', '{raw}/work'], 'lies inside BIDS_DIR'),
        (['--clean-workdir'], 'needs --work-dir'),
        (['--use-plugin', '{raw}/none.yml'], 'no such file'),
        (['--bids-filter-file', '{raw}/none.json'], 'No such file'),
        (['--config-file', '{raw}/none.toml'], 'No such file'),
        (['--derivatives', '{raw}/none'], 'no such folder'),
        (['--random-seed', '2147483648'], 'must be below'),
        (['--nprocs'], 'expected one argument'),
        (['--output-spaces', 'MNI152NLin2009aSym', 'MNI152NLin2009aSym'], 'one template per run'),
        (['--device', 'cuda:99'], 'GPUs; give cpu or auto'),
    ],
)
def test_each_mistake_has_its_sentence(folders, extra, piece):
    assert piece in problems_of([*folders, *(word.format(raw=folders[0]) for word in extra)])


def test_the_output_may_not_be_the_input(folders):
    assert 'is BIDS_DIR itself' in problems_of([folders[0], folders[0], 'participant'])


def test_a_file_is_no_output_folder(folders, tmp_path):
    (tmp_path / 'out').write_text('')
    assert 'is a file; give a folder' in problems_of(folders)


def test_an_output_below_a_folder_of_others_is_told(folders, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
    assert 'is not writable' in problems_of(folders)


@pytest.mark.parametrize(
    ('text', 'piece'), [('{', 'not valid JSON'), ('{"bold": {}}', 'holds bold'), ('[]', 'a list')]
)
def test_filters_are_checked(folders, tmp_path, text, piece):
    path = tmp_path / 'filter.json'
    path.write_text(text)
    assert piece in problems_of([*folders, '--bids-filter-file', str(path)])


@pytest.mark.parametrize('option', ['--help', '--version'])
def test_help_and_version_import_nothing_slow(option):
    code = (
        'import json, sys\n'
        'from bids_perfdeficit.cli.run import main\n'
        'try:\n'
        f'    main([{option!r}])\n'
        'except SystemExit as end:\n'
        '    print(json.dumps([end.code, sorted({m.split(".")[0] for m in sys.modules})]))\n'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    status, modules = json.loads(run.stdout.splitlines()[-1])
    assert status == 0
    assert not set(modules) & set(SLOW_MODULES)


def test_usage_errors_exit_with_2_and_a_list():
    run = subprocess.run(
        [sys.executable, '-m', 'bids_perfdeficit.cli.run', '/absent', '/other', 'participants'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith('bids_perfdeficit: 2 problems:')
    assert "ANALYSIS_LEVEL: 'participants' is none of participant, group" in run.stderr
