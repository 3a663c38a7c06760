"""The phantom on disk: valid BIDS, deterministic, and readable by both levels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import discover, output_path
from bids_perfdeficit.bids.cohort import find_cohort
from bids_perfdeficit.bids.scores import read_scores
from bids_perfdeficit.cli.phantom import main
from bids_perfdeficit.phantom.cohort import make_cohort
from bids_perfdeficit.phantom.scores import ITEMS, substrates

SPACE = 'MNI152NLin2009aSym'
COHORT, TRUTH = 'derivatives/bids_perfdeficit-cohort', 'derivatives/phantom-truth'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp('phantom') / 'data'
    options = ['--participants', '1', '--cohort', '2', '--seed', '2', '--spacing', '4']
    assert main([str(out), *options]) == 0
    return out


@pytest.mark.parametrize('folder', ['.', COHORT, TRUTH])
def test_the_validator_has_no_errors(written, folder):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    if not validator.exists():
        pytest.skip('bids-validator-deno is not installed')
    done = subprocess.run(
        [validator, written / folder, '--json'], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)['issues']['issues']
    assert [i for i in issues if i['severity'] == 'error'] == []


def test_raw_data_have_both_scans_and_scores(written):
    assert (written / 'sub-01' / 'ct' / 'sub-01_cta.json').is_file()
    ncct = nib.load(written / 'sub-01' / 'ct' / 'sub-01_ct.nii.gz')
    assert np.asarray(ncct.dataobj).min() < -900
    scores = read_scores(written)
    assert list(scores.table.index) == ['01']
    # The first patient has an occlusion of the left M1.
    truth = json.loads((written / TRUTH / 'sub-01' / 'sub-01_truth.json').read_text())
    assert (truth['occlusion']['site'], truth['occlusion']['side']) == ('M1', 'L')
    delay = nib.load(written / TRUTH / 'sub-01' / 'sub-01_desc-delay.nii.gz')
    assert delay.shape == ncct.shape
    assert np.allclose(delay.affine, ncct.affine)


def test_later_phases_are_written_beside_the_same_first_scans(written, tmp_path):
    out = tmp_path / 'phases'
    options = ['--participants', '1', '--seed', '2', '--spacing', '4', '--phases', '2']
    assert main([str(out), *options]) == 0
    folder = Path('sub-01', 'ct')
    for name in ('sub-01_ct.nii.gz', 'sub-01_cta.nii.gz', 'sub-01_ct.json'):
        assert (out / folder / name).read_bytes() == (written / folder / name).read_bytes()
    (pair,) = discover(out).pairs
    assert [path.name for path in pair.later] == ['sub-01_acq-phase2_cta.nii.gz']
    assert '8 s later' in ' '.join(pair.notes)
    truth = json.loads((out / TRUTH / 'sub-01' / 'sub-01_truth.json').read_text())
    assert truth['scan']['later'] == [8.0]
    # Veins have more contrast 8 s later, each phase read where the head then was.
    vein = nib.load(out / TRUTH / 'sub-01' / 'sub-01_desc-vein.nii.gz')
    points = nib.affines.apply_affine(vein.affine, np.argwhere(vein.get_fdata() > 0))
    levels = []
    for path, motion in zip(
        (pair.cta, *pair.later), (truth['ncct_to_cta'], *truth['ncct_to_later']), strict=True
    ):
        scan = nib.load(path)
        there = nib.affines.apply_affine(np.linalg.inv(scan.affine) @ motion, points)
        levels.append(scan.get_fdata()[tuple(np.rint(there).astype(int).T)].mean())
    assert levels[1] > levels[0] + 10


def test_the_truth_has_the_substrates(written):
    for item, where in substrates().items():
        image = nib.load(written / TRUTH / 'substrates' / f'item-{item}_mask.nii.gz')
        assert np.array_equal(np.asarray(image.dataobj) > 0, where)


def test_the_group_level_finds_the_cohort_as_it_was_made(written):
    folder = written / COHORT
    found = find_cohort([folder], space=SPACE)
    assert list(found.participants) == ['c0001', 'c0002']
    made = make_cohort(2, 2, processes=1)  # another number of processes, the same patients
    for label, row in zip(found.participants, made.perfusion, strict=True):
        path = output_path(folder, 'std_perfusion', participant=label, space=SPACE)
        values = np.asarray(nib.load(path).dataobj)
        assert np.allclose(values[made.mask], row, atol=1e-3)
        assert not values[~made.mask].any()
        other = output_path(folder, 'std_asymmetry', participant=label, space=SPACE)
        assert np.allclose(nib.load(other).dataobj, values - values[::-1], atol=1e-6)
    assert pd.read_csv(folder / 'participants.tsv', sep='\t').site.tolist() == list(
        made.participants.site.astype(str)
    )
    table = pd.read_csv(folder / 'phenotype' / 'nihss.tsv', sep='\t', dtype=str)
    for item in ITEMS:
        drawn = ['UN' if np.isnan(v) else str(int(v)) for v in made.scores[f'nihss_{item}']]
        assert table[f'nihss_{item}'].tolist() == drawn


def test_all_wrong_options_are_told_at_once(tmp_path, capsys):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').touch()
    wrong = ['--participants', 'x', '--seed', '-1', '--spacing', '9']
    assert main([str(tmp_path / 'full'), *wrong]) == 2
    reported = capsys.readouterr().err
    for name in ('--participants', '--seed', '--spacing', 'full'):
        assert name in reported


def test_help_is_quick():
    code = (
        'import sys, bids_perfdeficit.cli.phantom as p; p.build_parser(); '
        "sys.exit(any(m in sys.modules for m in ('numpy', 'nibabel', 'scipy')))"
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
