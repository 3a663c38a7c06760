"""The command line becomes settings, and every mistake is reported at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bids_perfdeficit.cli.parser import UsageError, build_parser, parse_settings, print_problems
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
    without_place = {'help', 'version', 'config_file', 'foreign', 'notrack'}
    actions = {a.dest for a in build_parser()._actions} - without_place
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


def test_options_of_the_group_level_are_said_to_do_nothing_for_a_participant(folders, capsys):
    parse_settings([*folders, '--items', '5a', '--sloppy'])
    assert capsys.readouterr().err == (
        'bids_perfdeficit: note: --items: of the group level, without effect here\n'
    )
    parse_settings([*folders, '--sloppy'])
    parse_settings([*folders[:2], 'group', '--items', '5a'])
    assert 'note' not in capsys.readouterr().err


def test_a_written_configuration_repeats_the_run(folders, tmp_path):
    settings = parse_settings([*folders, '--level', 'minimal', '--random-seed', '9'])
    config = tmp_path / 'settings.toml'
    config.write_text(settings.to_toml())
    assert parse_settings([*folders, '--config-file', str(config)]) == settings


def test_all_problems_are_told_at_once(tmp_path):
    reported = problems_of(
        [str(tmp_path / 'absent'), str(tmp_path / 'out'), 'participant', '--level', 'most',
         '--random-seed', 'x', '--mem', '-1', '--output-spaces', 'MNIX', '--nprosc=2',
         '--device', 'gpu', '--participant-label', 'a_b']
    )  # fmt: skip
    for piece in (
        'no such folder',
        "--level: 'most' is not one of minimal, full",
        "--random-seed: 'x' is not a whole number",
        '--mem -1: must be 0 (all there is) or 1 to 100000 GB',
        'MNIX: not found in TEMPLATEFLOW_HOME',
        'did you mean --nprocs?',
        '--device gpu',
        "'a_b'",
    ):
        assert piece in reported
    assert len(reported.splitlines()) == 8


def test_a_command_without_arguments_gives_three_lines_and_points_to_the_help():
    run = subprocess.run(
        [sys.executable, '-m', 'bids_perfdeficit.cli.run'], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        'bids_perfdeficit: 1 problem:',
        '  - BIDS_DIR, OUTPUT_DIR and the analysis level (participant, group, evaluate or '
        'calibrate) are missing',
        'usage: bids_perfdeficit BIDS_DIR OUTPUT_DIR {participant,group,evaluate,calibrate} '
        '[options]; all options: bids_perfdeficit --help',
    ]


def test_what_is_missing_is_named(folders):
    assert problems_of(folders[:1]) == (
        'OUTPUT_DIR and the analysis level (participant, group, evaluate or calibrate) are missing'
    )
    assert (
        problems_of(folders[:2])
        == 'the analysis level (participant, group, evaluate or calibrate) is missing'
    )


def test_an_option_that_swallowed_the_folders_is_named(folders):
    reported = problems_of(['--participant-label', '01', *folders])
    assert '--participant-label takes all values that follow it' in reported


@pytest.mark.parametrize(
    ('extra', 'piece'),
    [
        (['--work-dir', '{raw}/work'], 'lies inside BIDS_DIR'),
        (['--clean-workdir'], 'needs --work-dir'),
        (['--use-plugin', '{raw}/none.yml'], 'no such file'),
        (['--bids-filter-file', '{raw}/none.json'], 'No such file'),
        (['--config-file', '{raw}/none.toml'], 'No such file'),
        (['--derivatives', '{raw}/none'], 'no such folder'),
        (['--random-seed', '2147483648'], 'must be 0 to 2147483647'),
        (['--nprocs'], 'expected one argument'),
        (['--output-spaces', 'MNI152NLin2009aSym', 'MNI152NLin2009aSym'], 'one template per run'),
        (['--device', 'cuda:99'], 'GPUs; give cpu or auto'),
    ],
)
def test_each_mistake_has_its_sentence(folders, extra, piece):
    assert piece in problems_of([*folders, *(word.format(raw=folders[0]) for word in extra)])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a dataset with a participant, one that is a link, and links to it."""
    raw = tmp_path / 'raw'
    (raw / 'sub-01/ct').mkdir(parents=True)
    (raw / 'raw_data/sub-01').mkdir(parents=True)
    (raw / 'derivatives').mkdir()
    (tmp_path / 'elsewhere/ct').mkdir(parents=True)
    (raw / 'sub-02').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'link').symlink_to(raw)
    (tmp_path / 'link to link').symlink_to('link')
    (tmp_path / 'deep').symlink_to(raw / 'sub-01/ct')
    (tmp_path / 'to be made').symlink_to(raw / 'sub-01/new')
    (tmp_path / 'loop').symlink_to('loop')
    (tmp_path / 'dangling').symlink_to('gone')
    (tmp_path / 'file').write_text('')
    return raw


#: Where OUTPUT_DIR or the working folder may not be, below the folder that holds `raw`.
INSIDE = {
    'raw': 'is BIDS_DIR itself',
    'raw/': 'is BIDS_DIR itself',
    './raw/.': 'is BIDS_DIR itself',
    'raw/sub-01/..': 'is BIDS_DIR itself',
    'raw/none/..': 'is BIDS_DIR itself',
    'elsewhere/../link': 'is BIDS_DIR itself',
    'link to link/sub-01/../../raw': 'is BIDS_DIR itself',
    'raw/raw_data': 'is raw_data of BIDS_DIR itself',
    'raw/sub-01': 'lies inside sub-01',
    'link/sub-01/ct/new': 'lies inside sub-01',
    'raw/sub-99/new': 'lies inside sub-99',
    'elsewhere/new': 'lies inside sub-02',
    'deep': 'lies inside sub-01',
    'deep/../..': 'is BIDS_DIR itself',
    'to be made': 'lies inside sub-01',
    'raw/raw_data/sub-01/x': 'lies inside sub-01 of raw_data',
}


@pytest.mark.parametrize(('place', 'reported'), INSIDE.items(), ids=list(INSIDE))
@pytest.mark.parametrize('base', ['raw', 'link', 'link to link'])
@pytest.mark.parametrize('relative', [True, False])
@pytest.mark.parametrize('extra', [[], ['--dry-run']], ids=['run', 'dry run'])
def test_the_output_may_not_lie_among_the_raw_images(
    dataset, monkeypatch, place, reported, base, relative, extra
):
    monkeypatch.chdir(dataset.parent)
    prefix = '' if relative else f'{dataset.parent}/'
    before = sorted(dataset.rglob('*'))
    assert reported in problems_of([prefix + base, prefix + place, 'participant', *extra])
    assert sorted(dataset.rglob('*')) == before


@pytest.mark.parametrize(
    'place', ['raw/derivatives/app', 'raw/derivatives', 'out', '.', 'raw/out']
)
def test_the_output_may_lie_beside_above_or_in_the_derivatives_of_the_input(dataset, place):
    assert parse_settings([str(dataset), str(dataset.parent / place), 'participant'])


@pytest.mark.parametrize('place', [*INSIDE, 'raw/derivatives/work', 'link/new'])
def test_the_working_folder_may_not_lie_in_the_input(dataset, monkeypatch, place):
    monkeypatch.chdir(dataset.parent)
    assert 'lies inside BIDS_DIR' in problems_of(['raw', 'out', 'participant', '-w', place])


@pytest.mark.parametrize(
    ('place', 'reported'),
    [('out', 'is OUTPUT_DIR'), ('out/', 'is OUTPUT_DIR'), ('elsewhere/../out', 'is OUTPUT_DIR'),
     ('out/sub-01/work', 'results of a participant')],
)  # fmt: skip
def test_the_working_folder_may_not_be_the_output(dataset, monkeypatch, place, reported):
    monkeypatch.chdir(dataset.parent)
    assert reported in problems_of(['raw', 'out', 'participant', '-w', place])
    assert parse_settings(['raw', 'out', 'participant', '-w', 'out/work'])


@pytest.mark.parametrize(
    ('place', 'reported'),
    [('file', 'is a file'), ('file/out', 'lies below'), ('loop', 'leads nowhere'),
     ('loop/out', 'leads nowhere'),
        ('dangling', 'leads nowhere'),
 ('x' * 256, 'more than 255 bytes'),
     ('a\nb', 'holds control characters'), ('a\udce9', 'bytes that are not UTF-8')],
)  # fmt: skip
@pytest.mark.parametrize('option', ['OUTPUT_DIR', '--work-dir'])
def test_a_folder_that_cannot_be_made_is_refused(dataset, monkeypatch, place, reported, option):
    monkeypatch.chdir(dataset.parent)
    output = ['out', 'participant', '-w', place] if option != 'OUTPUT_DIR' else [place, 'group']
    (problem,) = problems_of(['raw', *output]).splitlines()
    assert problem.startswith(option)
    assert reported in problem


@pytest.mark.parametrize('place', ['x' * 5000, 'file', 'loop', 'none'])
def test_an_input_that_is_not_a_folder_is_refused(dataset, monkeypatch, place):
    monkeypatch.chdir(dataset.parent)
    assert problems_of([place, 'out', 'participant']).startswith('BIDS_DIR')


@pytest.mark.parametrize(
    ('label', 'reported'),
    [
        ('01,02', 'separated by spaces; give --participant-label 01 02'),
        ('01, 02', 'separated by spaces; give --participant-label 01 02'),
        ('sub-01;sub-02', 'give --participant-label sub-01 sub-02'),
        ('01,', 'give --participant-label 01'),
        ('a_b', "'a_b': BIDS labels hold letters and digits only"),
        ('', 'letters and digits only'),
        ('sub-', 'letters and digits only'),
        ('ses-01', 'letters and digits only'),
        ('a\x1b[2Jb', r"'a\x1b[2Jb'"),
        ('②', 'letters and digits only'),
    ],
)
def test_a_label_that_cannot_be_one_is_refused(folders, label, reported):
    assert reported in problems_of([*folders, '--participant-label', label])


#: Options of other apps with their values, what is said, and whether the folders may follow.
FOREIGN = [
    (['--fs-license-file', '/license.txt'], 'FreeSurfer is not used', True),
    (['--nthreads', '4'], 'give the processes with --nprocs', True),
    (['--n_cpus=4'], 'give the processes with --nprocs', True),
    (['--anat-only'], 'give --level minimal', True),
    (['--cifti-output'], 'surfaces are not computed', False),
    (['--cifti-output', '91k'], 'surfaces are not computed', True),
    (['--ignore', 'fieldmaps', 'slicetiming'], 'choose images with --bids-filter-file', False),
    (['--mem-mb', '8000'], 'in GB with --mem', True),
]


@pytest.mark.parametrize(
    ('arguments', 'reported'),
    [([None, *given], reported) for given, reported, _ in FOREIGN]
    + [([*given, None], reported) for given, reported, may_follow in FOREIGN if may_follow],
)
def test_an_option_of_another_app_is_said_to_be_not_needed(folders, arguments, reported):
    words = [w for word in arguments for w in (folders if word is None else [word])]
    (problem,) = problems_of(words).splitlines()
    assert 'is an option of another BIDS App and is not needed here' in problem
    assert reported in problem


def test_notrack_is_accepted_in_silence(folders):
    assert parse_settings([*folders, '--notrack']) == parse_settings(folders)


@pytest.mark.parametrize(
    ('given', 'reported'),
    [
        (['--mem', '0.001'], '--mem 0.001: must be 0 (all there is) or 1 to 100000 GB'),
        (['--mem', '.99'], '--mem 0.99'),
        (['--mem', 'nan'], '--mem nan'),
        (['--mem', 'inf'], '--mem inf'),
        (['--mem', '1e400'], '--mem inf'),
        (['--mem', '8GB'], "--mem: '8GB' is not a number"),
        (['--nprocs', '-1'], '--nprocs -1: must be 0 to 10000'),
        (['--nprocs', '²'], "--nprocs: '²' is not a whole number"),
        (['--omp-nthreads', '99999999999999999999'], '--omp-nthreads a number beyond 1e15'),
        (['--folds', '1'], '--folds 1: must be 0 (none) or 2 to 10000'),
        (['--folds', '-5'], '--folds -5'),
        (['--permutations', '-1'], '--permutations -1'),
        (['--bootstraps', '-1'], '--bootstraps -1'),
        (['--resolution', '1.9'], "--resolution 1.9: must be 2 to 10 mm (participants' maps"),
        (['--resolution', 'nan'], '--resolution nan'),
        (['--min-coverage', '1'], '--min-coverage 1: must be 0 to below 1'),
        (['--random-seed', '-1'], '--random-seed -1'),
    ],
)
@pytest.mark.parametrize('level', ['participant', 'group'])
def test_a_number_outside_its_range_is_refused_with_the_range(folders, given, reported, level):
    (problem,) = problems_of([*folders[:2], level, *given]).splitlines()
    assert problem.startswith(reported)


def test_settings_of_a_file_are_held_to_the_same_ranges(folders, tmp_path):
    config = tmp_path / 'run.toml'
    config.write_text('[perfusion]\nfloor = -1.0\nbone = nan\n[resources]\nmem = 0.5\n')
    reported = problems_of([*folders, '--config-file', str(config), '--folds', '1'])
    assert [line.split(': ')[1] for line in reported.splitlines()[:3]] == [
        'perfusion.floor -1', 'perfusion.bone nan', 'resources.mem 0.5',
    ]  # fmt: skip
    assert '--folds 1' in reported
    assert 'must be 0.0001 to 1' in reported


def test_problems_never_reach_the_terminal_raw(folders, capsys):
    bad = '\x1b[2J\nsub-99: complete'
    arguments = [*folders[:1], bad, bad, f'--{bad}', '--level', bad, '--device', bad,
                 '--participant-label', bad, '--output-spaces', bad]  # fmt: skip
    with pytest.raises(UsageError) as caught:
        parse_settings(arguments)
    print_problems(caught.value.problems, caught.value.hint)
    said = capsys.readouterr().err
    assert len(caught.value.problems) >= 6
    assert len(said.splitlines()) == len(caught.value.problems) + 1
    assert '\x1b' not in said


def test_a_file_is_no_output_folder(folders, tmp_path):
    (tmp_path / 'out').write_text('')
    assert 'is a file; give a folder' in problems_of(folders)


def test_an_output_below_a_folder_of_others_is_told(folders, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
    assert 'is not writable' in problems_of(folders)


@pytest.mark.parametrize(
    ('text', 'piece'),
    [
        ('{', 'not valid JSON'),
        ('{"cat": {}}', "perhaps 'cta' is meant"),
        ('[]', 'holds no JSON object'),
        ('{"cta":' * 100_000, 'nested too deeply'),
        ('\udcff', 'is not UTF-8'),
    ],
)
def test_filters_are_checked(folders, tmp_path, text, piece):
    path = tmp_path / 'filter.json'
    path.write_text(text, errors='surrogateescape')
    assert piece in problems_of([*folders, '--bids-filter-file', str(path)])


def test_a_filter_file_may_hold_keys_of_other_apps(folders, tmp_path):
    path = tmp_path / 'filter.json'
    path.write_text('{"bold": {"task": "rest"}, "cta": {"acquisition": "head"}}')
    assert parse_settings([*folders, '--bids-filter-file', str(path)])


@pytest.mark.parametrize('option', ['--bids-filter-file', '--config-file'])
@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir], ids=['pipe', 'folder'])
def test_what_is_not_a_file_is_not_opened(folders, tmp_path, option, make):
    make(tmp_path / 'it')
    assert re.search(
        r'is a (pipe|folder); give a file', problems_of([*folders, option, str(tmp_path / 'it')])
    )


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
    assert (
        "invalid analysis level 'participants' (choose participant, group, evaluate or calibrate)"
        in run.stderr
    )
