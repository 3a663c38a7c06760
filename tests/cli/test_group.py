"""The group level as users run it: a command, its files, its lines and its exit code."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import nibabel as nib
import numpy as np
import openpyxl
import pandas as pd
import pytest

from bids_perfdeficit.bids import output_path
from bids_perfdeficit.cli.run import main
from bids_perfdeficit.settings import DEFAULT_SPACE
from tests.cohorts import SUBSTRATES, MadeCohort, make_cohort

COUNT = 48
#: Coarse and quick; what is tested is the way through, not the science.
QUICK = ('--resolution', '8', '--sloppy', '--folds', '2', '--model', 'spatial', 'ridge')


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the console script."""
    script = Path(sys.executable).with_name('bids_perfdeficit')
    return subprocess.run(
        [script, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )


def here(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    """Run in this process, for what ends before anything is computed."""
    code = main([str(a) for a in arguments])
    reported = capsys.readouterr()
    return code, reported.out, reported.err


def path(out: Path, key: str, **entities: str) -> Path:
    return output_path(out, key, space=DEFAULT_SPACE, res='8', **entities)


def last_status(out: Path) -> dict:
    found = max((out / 'logs').glob('*/status.json'), key=lambda p: p.stat().st_mtime)
    return json.loads(found.read_text())


@pytest.fixture(scope='session')
def made(session_folder) -> MadeCohort:
    """Return a made cohort that nobody changes."""
    root = session_folder / 'made-cohort'
    with filelock.FileLock(f'{root}.lock'):
        if not root.is_dir():
            make_cohort(root, COUNT)
    return MadeCohort(root / 'raw', root / 'out')


@pytest.fixture(scope='module')
def finished(made, tmp_path_factory):
    """Return output folder, work folder and the finished run."""
    root = tmp_path_factory.mktemp('group')
    out, work = root / 'out', root / 'work'
    done = run(
        made.raw, out, 'group', '-d', made.out, *QUICK, '--covariates', 'age', 'sex',
        'total_deficit_volume', '--permutations', '2', '--bootstraps', '2', '-w', work,
    )  # fmt: skip
    return out, work, done


def again(made, out, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return run(
        made.raw, out, 'group', '-d', made.out, *QUICK, '--covariates', 'age', 'sex',
        'total_deficit_volume', '--permutations', '2', '--bootstraps', '2', *options,
    )  # fmt: skip


def test_models_are_complete_and_an_item_without_deficits_is_skipped(finished):
    out, _, done = finished
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(': ', 1) for line in done.stdout.splitlines() if ': ' in line)
    assert lines['spatial'] == 'complete'
    assert lines['ridge'] == 'complete'
    assert lines['nihss_7'].startswith('skipped: only 0 participants have a deficit')
    status = last_status(out)
    assert status['exit_code'] == 0
    assert {n: m['status'] for n, m in status['models'].items()} == {
        'spatial': 'complete', 'ridge': 'complete', 'nihss_7': 'skipped',
    }  # fmt: skip
    assert re.search(r'spatial: validation 1 done in \d+ s \(step \d+ of \d+', done.stderr)


def test_every_file_of_the_tree_is_there(finished):
    out, _, _ = finished
    for key in ('group_mask', 'group_coverage', 'group_cohort', 'group_report'):
        assert path(out, key).is_file(), key
    for model in ('spatial', 'ridge'):
        for key in ('params', 'summary', 'clusters', 'predictions', 'metrics', 'null',
                    'stability'):  # fmt: skip
            assert path(out, f'group_{key}', model=model).is_file(), key
            assert path(out, f'group_{key}_json', model=model).is_file(), key
        for stat in ('effect', 'std', 'prob', 'threshold', 'stability'):
            entities = {'model': model, 'contrast': 'nihss5b', 'stat': stat}
            reported = json.loads(path(out, 'group_statmap_json', **entities).read_text())
            assert reported['Item'] == 'nihss_5b'
            assert reported['Sources'][0].startswith('bids::tpl-')
            assert '8 mm' in reported['Resolution']
            assert path(out, 'group_statmap', **entities).is_file()
    assert not list(out.rglob('*.part'))
    assert (out / 'phenotype' / 'nihss.tsv').is_file()
    (log,) = (p for p in (out / 'logs').iterdir() if p.is_dir())
    assert {'settings.toml', 'status.json', 'methods.md', 'run.log'} <= {
        p.name for p in log.iterdir()
    }
    assert '*spatial*' in (log / 'methods.md').read_text()
    assert '*spatial*' in (out / 'logs' / 'CITATION.md').read_text()


@pytest.mark.parametrize('item', ['nihss_5a', 'nihss_5b', 'nihss_9'])
def test_the_map_is_strongest_where_the_scores_came_from(finished, item):
    out, _, _ = finished
    image = nib.load(
        path(out, 'group_statmap', model='spatial', contrast=item.replace('_', ''), stat='prob')
    )
    values = image.get_fdata()
    peak = nib.affines.apply_affine(
        image.affine, np.array(np.unravel_index(values.argmax(), values.shape))
    )
    assert np.linalg.norm(peak - SUBSTRATES[item]) < 20, peak


def test_held_out_predictions_cover_everyone_once(finished):
    out, _, _ = finished
    table = pd.read_csv(path(out, 'group_predictions', model='ridge'), sep='\t')
    own = table[table['item'] == 'nihss_5b']
    assert own['participant_id'].nunique() == len(own) == COUNT
    levels = own[[f'p_{n}' for n in range(5)]]
    np.testing.assert_allclose(levels.sum(axis=1), 1, atol=1e-3)
    metrics = pd.read_csv(path(out, 'group_metrics', model='ridge'), sep='\t')
    arm = metrics[metrics['item'] == 'nihss_5b'].set_index('predictor')
    assert arm.loc['ridge', 'log_score'] > arm.loc['volume', 'log_score']
    assert set(arm.index) == {'ridge', 'territories', 'sides', 'volume', 'frequency'}


def test_the_page_links_only_what_lies_beside_it(finished):
    out, _, _ = finished
    page = (out / 'group.html').read_text()
    assert '5b. Motor arm, right' in page
    links = re.findall(r'(?:href|src|data)="([^"#]+)"', page)
    files = [link for link in links if not link.startswith(('data:', '#'))]
    assert len(files) > 20
    missing = [link for link in files if not (out / link).is_file()]
    assert missing == []
    assert '"id": "nihss5b-spatial"' in page, 'the viewer holds the map'
    assert re.findall(r'<(?:link|script|img|iframe)\s[^>]*https?://[^>]*>', page) == []


def test_outputs_satisfy_the_validator(finished):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    done = subprocess.run(
        [validator, finished[0], '--json'], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)['issues']['issues']
    assert [i for i in issues if i['severity'] == 'error'] == []


def test_a_second_run_does_nothing_and_a_lost_file_is_made_again(made, finished):
    out, work, _ = finished
    params = path(out, 'group_params', model='spatial')
    lost = path(out, 'group_predictions', model='ridge')
    before, held = params.stat().st_mtime_ns, lost.read_bytes()
    done = again(made, out)
    assert done.returncode == 0, done.stderr
    assert 'nothing was done' in done.stdout
    lost.unlink()
    done = again(made, out, '-w', work)
    assert done.returncode == 0, done.stderr
    assert lost.read_bytes() == held
    assert 'ridge: ' in done.stdout
    assert 'fit done' not in done.stderr
    assert params.stat().st_mtime_ns == before


def test_models_are_applied_to_new_participants_without_scores(finished, tmp_path, capsys):
    fitted, _, _ = finished
    new = make_cohort(tmp_path, 6, seed=9, prefix='new')
    (new.raw / 'phenotype' / 'nihss.tsv').unlink()
    done = run(new.raw, new.out, 'group', '--apply', fitted, '--resolution', '8')
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(path(new.out, 'group_applied', model='ridge'), sep='\t')
    assert set(table['participant_id']) == {f'sub-new{n:03d}' for n in range(1, 7)}
    assert table['any_deficit'].between(0, 1).all()
    assert 'nihss_7' not in set(table['item'])
    assert not path(new.out, 'group_params', model='ridge').exists()
    again = run(new.raw, new.out, 'group', '--apply', fitted, '--resolution', '8')
    assert 'nothing was done' in again.stdout
    for options, piece in (
        (('--resolution', '4'), 'give --resolution 8'),
        (('--resolution', '8', '--map-kind', 'asymmetry'), 'give --map-kind perfusion'),
    ):
        code, _, err = here(capsys, new.raw, new.out, 'group', '--apply', fitted, *options)
        assert code == 2
        assert piece in err
    (tmp_path / 'empty').mkdir()
    code, _, err = here(
        capsys, new.raw, new.out, 'group', '--apply', tmp_path / 'empty', '--resolution', '8'
    )
    assert code == 2
    assert 'no tpl-*_model-*_params.pt' in err


def table_of(made: MadeCohort) -> pd.DataFrame:
    return pd.read_csv(made.raw / 'phenotype' / 'nihss.tsv', sep='\t', dtype=str)


BAD_TABLES = {
    'unknown ids': (
        lambda t: t.assign(participant_id='sub-x' + t.index.astype(str)),
        'scores of none of the participants are left',
    ),
    'three patients': (lambda t: t.head(3), '3 participants have both a map and scores'),
    'all zero': (
        lambda t: t[['participant_id']].assign(nihss_5a='0', nihss_5b='0'),
        'no item can be fitted: nihss_5a: only 0 participants have a deficit',
    ),
    'one class only': (
        lambda t: t[['participant_id']].assign(nihss_5a='2'),
        'only 0 participants are free of a deficit',
    ),
    'text in numbers': (
        lambda t: t[['participant_id']].assign(nihss_5a='weak'),
        '48 of 48 scores are not whole numbers (weak (48))',
    ),
    'two examinations': (
        lambda t: pd.concat([t, t.iloc[[2]].assign(nihss_5b='4', nihss_5a='3')]),
        '003 (rows 4, 50); add a session_id column and choose with --session-label',
    ),
    'no scores': (
        lambda t: t[['participant_id']].assign(colour='red'),
        'no column holds an NIHSS item',
    ),
}


@pytest.mark.parametrize('name', BAD_TABLES)
def test_a_bad_table_is_one_problem_with_its_remedy(made, tmp_path, capsys, name):
    spoil, piece = BAD_TABLES[name]
    table = tmp_path / 'scores.tsv'
    spoil(table_of(made)).to_csv(table, sep='\t', index=False)
    code, _, err = here(
        capsys, made.raw, tmp_path / 'out', 'group', '-d', made.out, '--scores', table, *QUICK
    )
    assert code == 2
    assert err.startswith('bids_perfdeficit: 1 problem:')
    assert piece in err
    assert '; ' in err  # the remedy
    assert not (tmp_path / 'out' / 'logs').exists()


def test_a_doubtful_table_runs_and_every_doubt_is_told(made, tmp_path, capsys):
    table = table_of(made)
    table.loc[0, 'nihss_5a'] = 'weak'
    table.loc[1, 'participant_id'] = 'sub-stranger'
    pd.concat([table, table.iloc[[2]]]).to_csv(tmp_path / 'scores.tsv', sep='\t', index=False)
    code, reported, _ = here(
        capsys, made.raw, tmp_path / 'out', 'group', '-d', made.out, '--dry-run',
        '--scores', tmp_path / 'scores.tsv', *QUICK,
    )  # fmt: skip
    assert code == 0
    assert f'{COUNT - 1} participants' in reported
    assert '001 (weak)' in reported
    assert 'have no images and are left out: stranger' in reported
    assert 'rows that are there twice and agree are counted once: 003' in reported
    assert 'sub-002: left out: there is no row in scores.tsv' in reported


def test_maps_on_another_grid_are_named(made, tmp_path, capsys):
    out = tmp_path / 'out'
    for label in ('001', '002'):
        shutil.copytree(made.out / f'sub-{label}', out / f'sub-{label}')
    for label in ('001', '002'):
        name = output_path(out, 'std_perfusion', participant=label, space=DEFAULT_SPACE)
        image = nib.load(name)
        affine = image.affine.copy()
        affine[2, 3] += 2
        nib.save(nib.Nifti1Image(image.get_fdata(), affine), name)
    code, _, err = here(capsys, made.raw, out, 'group', *QUICK)
    assert code == 2
    assert 'no map can be used' in err
    assert '2 mm off MNI152NLin2009aSym' in err
    assert 'sub-001_space-MNI152NLin2009aSym_res-2_desc-computed_perfusion.nii.gz' in err


def test_maps_that_turn_out_to_be_useless_are_bad_input(made, tmp_path, capsys):
    out = tmp_path / 'out'
    for number in range(1, 25):
        for key in ('std_perfusion', 'std_brain_mask'):
            name = {'participant': f'{number:03d}', 'space': DEFAULT_SPACE}
            source = output_path(made.out, key, **name)
            image = nib.load(source)
            values = np.full(image.shape, 0.5, np.float32)
            target = output_path(out, key, **name)
            target.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, image.affine), target)
    plugin = tmp_path / 'linear.yml'
    plugin.write_text('plugin: Linear\n')
    code, reported, _ = here(capsys, made.raw, out, 'group', *QUICK, '--use-plugin', plugin)
    assert code == 2
    assert 'spatial: failed: no map can be used' in reported
    assert 'run the participant level again' in reported


def test_no_derivatives_is_told(made, tmp_path, capsys):
    code, _, err = here(capsys, made.raw, tmp_path / 'out', 'group')
    assert code == 2
    assert 'run the participant level first' in err


@pytest.mark.parametrize(
    ('options', 'piece'),
    [
        (['--folds', '1'], '--folds 1: must be 0 (none) or 2 to'),
        (['--resolution', '1'], '--resolution 1: must be 2 to 10 mm'),
        (['--min-coverage', '5'], '--min-coverage 5: must be 0 to below 1 (a share'),
        (['--permutations', '-1'], '--permutations -1: must be 0 to'),
        (
            ['--model', 'forest'],
            "--model: 'forest' is not one of spatial, deep, vae, ridge, voxelwise",
        ),
        (['--scores', '/none.tsv'], '--scores /none.tsv: no such file'),
        (['--apply', '/none'], '--apply /none: no such folder'),
        (['--session-label', 'a', 'b'], 'takes one session'),
    ],
)
def test_mistaken_options_are_told(made, tmp_path, capsys, options, piece):
    code, _, err = here(capsys, made.raw, tmp_path / 'out', 'group', *options)
    assert code == 2
    assert piece in err


def test_a_model_that_fails_leaves_the_others_complete(made, tmp_path, monkeypatch, capsys):
    from bids_perfdeficit import deficit

    whole = deficit.fit

    def broken(*arguments, model, **options):
        if model == 'ridge':
            raise RuntimeError('a defect')
        return whole(*arguments, model=model, **options)

    monkeypatch.setattr(deficit, 'fit', broken, raising=False)
    plugin = tmp_path / 'linear.yml'
    plugin.write_text('plugin: Linear\n')
    out = tmp_path / 'out'
    code, reported, _ = here(
        capsys, made.raw, out, 'group', '-d', made.out, *QUICK, '--folds', '0', '--items', '5a',
        '5b', '--use-plugin', plugin,
    )  # fmt: skip
    assert code == 1
    assert 'spatial: complete' in reported
    assert 'ridge: failed: fit failed: RuntimeError: a defect' in reported
    assert path(out, 'group_params', model='spatial').is_file()
    assert 'a defect' in (out / 'group.html').read_text()


def test_a_named_item_without_a_column_is_skipped_and_none_is_bad_input(made, tmp_path, capsys):
    out = tmp_path / 'out'
    command = (made.raw, out, 'group', '-d', made.out, '--resolution', '8', '--sloppy',
               '--folds', '0', '--model', 'ridge', 'vae', '--items')  # fmt: skip
    done = run(*command, '5b', '1b')
    assert done.returncode == 0, done.stderr
    assert 'nihss_1b: skipped: no participant has a score' in done.stdout
    assert last_status(out)['models']['nihss_1b']['status'] == 'skipped'
    summary = pd.read_csv(path(out, 'group_summary', model='ridge'), sep='\t', index_col='item')
    assert summary.loc['nihss_1b', 'status'] == 'skipped'
    assert summary.loc['nihss_1b', 'reason'].startswith('no participant has a score')
    page = (out / 'group.html').read_text()
    assert 'no participant has a score' in page
    assert '<dd>phenotype/nihss.tsv</dd>' in page, 'where it lies in its dataset'
    for model in ('ridge', 'vae'):  # which has no probability, and so no map of it
        entities = {'model': model, 'contrast': 'nihss5b', 'stat': 'prob'}
        assert path(out, 'group_statmap', **entities).is_file() == (model == 'ridge')

    _, reported, _ = here(capsys, *command, '5b', '1b')
    assert 'nothing was done' in reported
    done = run(*command, '5b', '1b', '--self-contained-reports')
    assert done.returncode == 0, done.stderr
    assert 'nothing was done' not in done.stdout
    assert '<img src="tpl-' not in (out / 'group.html').read_text()
    _, reported, _ = here(capsys, *command, '5b', '1b', '--self-contained-reports')
    assert 'nothing was done' in reported

    code, _, err = here(capsys, *command, '1b')
    assert code == 2
    assert 'nihss_1b' in err


def test_methods_can_be_printed_alone(made, tmp_path, capsys):
    code, reported, _ = here(
        capsys, made.raw, tmp_path / 'out', 'group', '-d', made.out, '--boilerplate-only'
    )
    assert code == 0
    assert 'For 48 participants computed perfusion maps' in reported
    assert not (tmp_path / 'out').exists()


def test_a_model_that_is_added_runs_to_its_page(made, tmp_path, capsys, monkeypatch):
    """The model of docs/howto.rst, with all that the group level does with a model."""
    from bids_perfdeficit.deficit import models
    from tests.deficit.test_contract import load_toy

    monkeypatch.setattr(models, '_REGISTRY', {**models._REGISTRY, 'difference': load_toy()})
    plugin = tmp_path / 'linear.yml'
    plugin.write_text('plugin: Linear\n')
    out = tmp_path / 'out'
    code, reported, _ = here(
        capsys, made.raw, out, 'group', '-d', made.out, '--resolution', '8', '--sloppy',
        '--folds', '2', '--permutations', '1', '--bootstraps', '1', '--items', '5b', '9',
        '--model', 'difference', 'ridge', '--covariates', 'age', '--use-plugin', plugin,
    )  # fmt: skip
    assert code == 0, reported
    assert 'difference: complete' in reported
    stats = {'effect': True, 'std': True, 'threshold': True, 'stability': True, 'prob': False}
    for stat, there in stats.items():
        entities = {'model': 'difference', 'contrast': 'nihss5b', 'stat': stat}
        assert path(out, 'group_statmap', **entities).is_file() == there, stat
    page = (out / 'group.html').read_text()
    assert 'difference of mean perfusion (no unit)' in page
    assert 'the difference of the mean maps of participants with and without' in page
    assert 'difference does not adjust its map for covariates' in page
    assert '"id": "nihss5b-difference"' in page, 'the viewer holds the map'
    new = make_cohort(tmp_path / 'new', 3, seed=9, prefix='new')
    code, reported, _ = here(
        capsys, new.raw, new.out, 'group', '--apply', out, '--resolution', '8', '--covariates',
        'age', '--use-plugin', plugin,
    )  # fmt: skip
    assert code == 0, reported
    assert path(new.out, 'group_applied', model='difference').is_file()


def test_every_sidecar_says_how_its_file_was_made(finished):
    out, _, _ = finished
    found = list((out / f'tpl-{DEFAULT_SPACE}' / 'ct').glob('*.json'))
    assert len(found) > 50
    for name in found:
        reported = json.loads(name.read_text())
        assert reported['MapKind'] == 'perfusion', name
        assert reported['Space'] == DEFAULT_SPACE
        assert reported['VoxelSize'] == 8
        assert reported['DeficitThreshold'] == 0.2
        assert reported['Sloppy'] is True
        if '_model-' in name.name:
            assert reported['RandomSeed'] == 20260101
            assert f'_model-{reported["Model"]}_' in name.name
        if name.name.endswith('_statmap.json'):
            assert f'_contrast-{reported["Item"].replace("_", "")}_' in name.name
            assert 'Cut' in reported or 'stability' in name.name
    for table in (out / f'tpl-{DEFAULT_SPACE}' / 'ct').glob('*.tsv'):
        reported = json.loads(table.with_suffix('.json').read_text())
        columns = pd.read_csv(table, sep='\t', nrows=1).columns
        assert [c for c in columns if 'Description' not in reported.get(c, {})] == [], table


def test_a_damaged_map_is_the_fault_of_one_participant(made, tmp_path, capsys):
    """One that only reading finds out, one whose header is wrong, and a pipe."""
    out = tmp_path / 'out'
    names = {}
    for label in ('001', '002', '003'):
        shutil.copytree(made.out / f'sub-{label}', out / f'sub-{label}')
        where = {'participant': label, 'space': DEFAULT_SPACE}
        names[label] = output_path(out, 'std_perfusion', **where)
    blob = bytearray(names['001'].read_bytes())
    blob[len(blob) // 2] ^= 0xFF
    names['001'].write_bytes(bytes(blob))
    names['002'].write_bytes(gzip.compress(b'\0' * 348))
    names['003'].unlink()
    output_path(out, 'std_brain_mask', participant='003', space=DEFAULT_SPACE).unlink()
    os.mkfifo(output_path(out, 'std_brain_mask', participant='003', space=DEFAULT_SPACE))
    shutil.copy(
        output_path(made.out, 'std_perfusion', participant='003', space=DEFAULT_SPACE),
        names['003'],
    )
    plugin = tmp_path / 'linear.yml'
    plugin.write_text('plugin: Linear\n')
    code, reported, _ = here(
        capsys, made.raw, out, 'group', '-d', made.out, '--resolution', '8', '--sloppy',
        '--folds', '0', '--model', 'ridge', '--items', '5b', '--use-plugin', plugin,
    )  # fmt: skip
    assert code == 0, reported
    people = pd.read_csv(path(out, 'group_cohort'), sep='\t', index_col='participant_id')
    left_out = people[people['status'] == 'left out']
    assert set(left_out.index) == {'sub-001', 'sub-002', 'sub-003'}
    assert 'damaged' in left_out.loc['sub-001', 'reason']
    assert 'cannot be read as NIfTI' in left_out.loc['sub-002', 'reason']
    assert 'is missing' in left_out.loc['sub-003', 'reason']
    assert (people['status'] == 'analysed').sum() == COUNT - 3


@pytest.fixture(scope='module')
def isles(made, tmp_path_factory) -> Path:
    """Return a dataset with the workbooks of ISLES'24, whose scores follow the made ones."""
    root = tmp_path_factory.mktemp('isles')
    table = table_of(made).set_index('participant_id')
    severity = table[list(SUBSTRATES)].astype(int).sum(axis=1)
    for label, score in severity.items():
        folder = root / 'phenotype' / str(label)
        rows = {
            'ses-01/{}_ses-01_demographic_baseline.xlsx': {
                'Age': 70,
                'NIHSS at admission': float(2 * score),
                'mRS at admission': min(score, 5),
            },
            'ses-02/{}_ses-02_outcome.xlsx': {'Barthel': 100 - 7.5 * score},
        }  # fmt: skip
        for name, row in rows.items():
            book = openpyxl.Workbook()
            book.active.append(list(row))
            book.active.append(list(row.values()))
            path = folder / name.format(label)
            path.parent.mkdir(parents=True, exist_ok=True)
            book.save(path)
    return root


def test_isles24_goes_through_with_total_mrs_and_a_score_that_is_better_when_higher(
    made, isles, tmp_path
):
    names = ['nihss_total', 'mRS at admission', 'Barthel']
    done = run(
        isles, tmp_path, 'group', '-d', made.out, *QUICK, '--items', *names,
        '--higher-is-better', 'Barthel',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    people = pd.read_csv(path(tmp_path, 'group_cohort'), sep='\t')
    total = people['nihss_total']
    np.testing.assert_array_equal(people['Barthel'], 100 - 7.5 * total / 2)
    # levels count from the mildest, whichever way the score goes
    assert people['nihss_total_level'].equals(people['Barthel_level'])
    assert people['nihss_total_level'].corr(total, method='spearman') > 0.95
    for model in ('ridge', 'spatial'):
        rows = pd.read_csv(path(tmp_path, 'group_predictions', model=model), sep='\t')
        for name in names:
            own = rows[rows['item'] == name].set_index('participant_id')
            true = people.set_index('participant_id')[name]
            assert own['score'].dropna().equals(true[own.index].astype(float).rename('score'))
            assert own['expected'].between(true.min(), true.max()).all()
            assert own['expected'].corr(own['score'], method='spearman') > 0.3, (model, name)
        reported = path(
            tmp_path, 'group_statmap', model=model, contrast='mRSatadmission', stat='effect'
        )
        assert reported.is_file()
    assert 'mRS at admission' in (tmp_path / 'group.html').read_text()
