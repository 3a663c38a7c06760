"""The command that draws participants, on a made cohort and a quick fit."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import output_path
from bids_perfdeficit.bids.cohort import find_cohort
from bids_perfdeficit.cli.draw import main
from bids_perfdeficit.cli.run import main as run
from bids_perfdeficit.settings import DEFAULT_SPACE
from tests.cohorts import make_cohort

KEY = 'std_perfusion'


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
    """Return the folders of a cohort's maps and of a group run; one map has a gap."""
    root = tmp_path_factory.mktemp('draw')
    make_cohort(root / 'cohort', 30)
    raw, maps = root / 'cohort' / 'raw', root / 'cohort' / 'out'
    first = find_cohort([maps], space=DEFAULT_SPACE).entries[0]
    for path in first.files:
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        values[:, :, -25:] = 0
        nib.save(nib.Nifti1Image(values, image.affine), path)
    code = run([str(word) for word in (
        raw, root / 'group', 'group', '-d', maps, '--resolution', '8', '--sloppy', '--folds', '0',
        '--model', 'ridge', 'spatial', '--permutations', '0', '--bootstraps', '0',
    )])  # fmt: skip
    assert code == 0
    return maps, root / 'group', first


@pytest.fixture(scope='module')
def drawn(fitted, tmp_path_factory):
    """Return the folder of 24 drawn participants."""
    maps, group, _ = fitted
    out = tmp_path_factory.mktemp('drawn') / 'one'
    assert main([str(group), str(out), '--maps', str(maps), '--count', '24']) == 0
    return out


def values_of(root, participant: str) -> np.ndarray:
    path = output_path(root, KEY, participant=participant, space=DEFAULT_SPACE)
    return np.asarray(nib.load(path).dataobj)


def test_drawn_maps_and_scores_are_like_those_of_the_cohort(fitted, drawn):
    maps, _, _ = fitted
    cohort = find_cohort([drawn], space=DEFAULT_SPACE)
    assert len(cohort.entries) == 24
    found = np.stack([values_of(drawn, e.participant) for e in cohort.entries])
    assert found.min() >= 0
    assert found.max() <= 1
    brain = found.max(0) > 0
    measured = find_cohort([maps], space=DEFAULT_SPACE).entries[1:]
    real = np.stack([np.asarray(nib.load(e.map).dataobj) for e in measured])
    assert found[:, brain].mean() == pytest.approx(real[:, brain].mean(), abs=0.05)
    assert (found[0] != found[1]).any()
    scores = pd.read_csv(drawn / 'phenotype' / 'nihss.tsv', sep='\t')
    assert len(scores) == 24
    assert scores['nihss_9'].dropna().between(0, 3).all()
    path = output_path(drawn, KEY, participant='drawn0001', space=DEFAULT_SPACE)
    facts = json.loads(path.with_name(path.name.replace('.nii.gz', '.json')).read_text())
    assert facts['Drawn'] is True
    assert facts['MapsOfCohort'] == 30


def test_the_same_seed_draws_the_same(fitted, drawn, tmp_path):
    maps, group, _ = fitted
    words = [str(group), str(tmp_path / 'two'), '--maps', str(maps), '--count', '24']
    assert main(words) == 0
    for participant in ('drawn0001', 'drawn0024'):
        again = values_of(tmp_path / 'two', participant)
        np.testing.assert_array_equal(again, values_of(drawn, participant))
    one, two = ((out / 'phenotype' / 'nihss.tsv').read_text() for out in (drawn, tmp_path / 'two'))
    assert one == two


def test_the_group_level_reads_drawn_participants(drawn, tmp_path):
    code = run([str(word) for word in (
        drawn, tmp_path / 'fit', 'group', '-d', drawn, '--resolution', '8', '--sloppy',
        '--folds', '0', '--model', 'ridge', '--permutations', '0',
    )])  # fmt: skip
    assert code == 0


def test_gaps_are_filled_and_nothing_else_changes(fitted, tmp_path, capsys):
    maps, group, first = fitted
    assert main([str(group), str(tmp_path / 'whole'), '--maps', str(maps), '--completed']) == 0
    assert '1 of 30 maps had gaps' in capsys.readouterr().out
    path = output_path(tmp_path / 'whole', KEY, participant=first.participant, space=DEFAULT_SPACE)
    found = np.asarray(nib.load(path).dataobj)
    before = np.asarray(nib.load(first.map).dataobj)
    mask = np.asarray(nib.load(str(path).replace('computed_perfusion', 'brain_mask')).dataobj) > 0
    gap = mask & (np.indices(mask.shape)[2] >= mask.shape[2] - 25)
    assert gap.any()
    assert (before[gap] == 0).all()
    others = find_cohort([maps], space=DEFAULT_SPACE).entries[1:]
    usual = np.mean([np.asarray(nib.load(e.map).dataobj)[gap].mean() for e in others])
    assert found[gap].mean() == pytest.approx(usual, abs=0.1)
    facts = json.loads(path.with_name(path.name.replace('.nii.gz', '.json')).read_text())
    assert 0 < facts['CompletedShare'] < 0.6
    assert not any('drawn' in p.name for p in (tmp_path / 'whole').iterdir())


@pytest.mark.parametrize(
    ('words', 'reported'),
    [
        (['GROUP', 'OUT', '--maps', 'MAPS', '--count', '0'], "--count '0': give a whole number"),
        (['GROUP', 'OUT', '--maps', 'MAPS', '--random-seed', 'x'], "--random-seed 'x'"),
        (['/none', 'OUT'], 'MODEL /none: no such file or folder'),
        (['GROUP', 'OUT', '--maps', '/none'], '--maps /none: no such folder'),
        (['GROUP', 'GROUP', '--maps', 'MAPS'], 'holds the cohort itself'),
        (['MAPS', 'OUT'], 'there is no tpl-*_model-*_params.pt in it'),
        (['GROUP', 'OUT', '--maps', 'MAPS', '--model-name', 'vae'], 'not vae'),
        (['GROUP', 'OUT', '--maps', 'OUTER'], 'there is no'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_written(fitted, tmp_path, capsys, words, reported):
    maps, group, _ = fitted
    (tmp_path / 'outer').mkdir()
    known = {'GROUP': group, 'MAPS': maps, 'OUT': tmp_path / 'out', 'OUTER': tmp_path / 'outer'}
    assert main([str(known.get(word, word)) for word in words]) == 2
    assert reported in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('rating', 'options', 'read'),
    [('fail', [], 29), ('doubt', [], 29), ('doubt', ['--include-doubtful'], 30)],
)
def test_participants_that_the_group_level_leaves_out_have_no_part(
    fitted, tmp_path, capsys, monkeypatch, rating, options, read
):
    maps, group, first = fitted
    monkeypatch.setattr('bids_perfdeficit.cli.draw._complete', lambda *arguments: None)
    table = maps / 'ratings.tsv'
    table.write_text(f'participant_id\trating\nsub-{first.participant}\t{rating}\n')
    try:
        words = [str(group), str(tmp_path / 'out'), '--maps', str(maps), '--completed', *options]
        assert main(words) == 0
    finally:
        table.unlink()
    reported = capsys.readouterr().out
    assert (f'left out: {first.participant}: ' in reported) == (read < 30)
    assert f'{read} maps of the cohort are read' in reported
    assert not (tmp_path / 'out' / f'sub-{first.participant}').exists()


def test_a_model_that_was_changed_is_refused(fitted, tmp_path, capsys):
    maps, group, _ = fitted
    changed = tmp_path / 'group'
    shutil.copytree(group, changed)
    (path,) = changed.glob('**/*model-spatial_params.pt')
    path.write_bytes(path.read_bytes() + b'x')
    assert main([str(changed), str(tmp_path / 'out'), '--maps', str(maps)]) == 2
    assert 'is not the file that the group level wrote' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_two_draws_are_not_mixed(fitted, tmp_path, capsys):
    maps, group, _ = fitted
    (tmp_path / 'out' / 'sub-drawn0001').mkdir(parents=True)
    assert main([str(group), str(tmp_path / 'out'), '--maps', str(maps)]) == 2
    assert 'holds participants already' in capsys.readouterr().err
