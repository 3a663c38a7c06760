"""The level evaluate as users run it, on digital patients laid out as ISLES'24 is released.

One patient is made and mapped; the others are copies under other names with references of their
own, since only the comparison is under test.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.processing import resample_from_to
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from bids_perfdeficit.bids import output_path
from bids_perfdeficit.settings import DEFAULT_SPACE
from tests.mapped import NEW, OLD, add, add_clot, lines, noisy, read, run


@pytest.fixture(scope='module')
def evaluated(mapped, tmp_path_factory):
    """Return a tree of four patients, OUTPUT_DIR and the finished run."""
    root = tmp_path_factory.mktemp('isles')
    delay = nib.load(mapped.delay).get_fdata()
    add(mapped, root, 1, delay)
    add_clot(mapped, add(mapped, root, 2, noisy(delay, 2)))
    flawed = noisy(delay, 3)
    flawed[:, :, -3:] = np.where(delay[:, :, -3:] > 0, flawed[:, :, -3:], 9)  # above the head
    add(mapped, root, 3, flawed)
    add(mapped, root, 4, None)
    done = run(root, root / 'out', 'evaluate')
    return root, root / 'out', done


def table(out: Path, number: int, key: str, names=OLD) -> pd.DataFrame:
    sub, ses = names[0].format(number), names[1]
    return read(
        output_path(
            out, key, participant=sub.removeprefix('sub-'), session=ses.removeprefix('ses-')
        )
    )


def test_each_participant_with_a_reference_is_compared(evaluated):
    _, out, done = evaluated
    assert done.returncode == 0, done.stdout + done.stderr
    reported = lines(done)
    for number in (1, 2, 3):
        assert reported[f'sub-stroke{number:04d}_ses-01'] == 'complete'
    assert reported['sub-stroke0004_ses-01'] == 'skipped: there is no reference'
    assert '3 of 3 complete' in done.stdout
    people = read(output_path(out, 'evaluation_participants'))
    (log,) = (p for p in (out / 'logs').iterdir() if p.is_dir())
    status = json.loads((log / 'status.json').read_text())
    assert status['exit_code'] == 0
    assert [e['status'] for e in status['evaluations'].values()].count('complete') == 3
    assert '@blandaltman' in (log / 'methods.md').read_text()
    assert list(people['status']) == ['evaluated'] * 3 + ['left out']
    assert people['reference'][0].startswith('bids:raw:derivatives/sub-stroke0001/ses-01/perf')
    for key in ('evaluation_participants', 'evaluation_metrics'):
        reported = json.loads(output_path(out, f'{key}_json').read_text())
        assert set(read(output_path(out, key)).columns) <= set(reported), key
    assert not list(out.rglob('*.part'))


def test_figures_are_those_of_the_benchmark(evaluated, mapped):
    """As `benchmarks/perfusion.py` has them: over the brain of both, on the conformed grid."""
    _, out, _ = evaluated

    def load(key: str) -> nib.Nifti1Image:
        return nib.load(output_path(mapped.out, key, participant='01', space=DEFAULT_SPACE))

    grid = load('brain_mask')
    delay = resample_from_to(nib.load(mapped.delay), grid, order=1).get_fdata()
    truth = resample_from_to(nib.load(mapped.brain), grid, order=0).get_fdata() > 0
    inside = (grid.get_fdata() > 0) & truth
    late = delay[inside] > 6
    found = table(out, 1, 'agreement_metrics').set_index('map')
    for name, key in (('computed', 'perfusion'), ('probability', 'hypoperfused')):
        values = load(key).get_fdata()[inside]
        rho = spearmanr(values, delay[inside]).statistic
        assert found.loc[name, 'spearman'] == pytest.approx(rho, abs=0.01)
        area = roc_auc_score(late, values)
        assert found.loc[name, 'auc'] == pytest.approx(area, abs=0.01)
    one = table(out, 1, 'reference_metrics').iloc[0]
    assert one['reference_ml'] == pytest.approx(late.sum() * 0.008, rel=0.01)
    assert (one['found_side'], one['reference_side']) == ('left', 'left')
    assert found.loc['distance', 'spearman'] < found.loc['computed', 'spearman']
    # noise and truncation cost agreement
    second = table(out, 2, 'agreement_metrics').set_index('map')
    assert second.loc['computed', 'spearman'] < found.loc['computed', 'spearman']


def test_artefacts_and_the_site_of_the_clot_are_said(evaluated):
    _, out, _ = evaluated
    clear, clot, flawed = (table(out, n, 'reference_metrics').iloc[0] for n in (1, 2, 3))
    assert pd.isna(clear['reference_site'])
    assert (clot['reference_site'], clot['reference_site_side']) == ('M1', 'left')
    assert clot['top'] == 12
    assert flawed['outside_ml'] > 10 > clear['outside_ml']
    notes = read(output_path(out, 'evaluation_participants'))['notes']
    assert 'longer delays were cut off' in notes[1]
    assert 'lie outside the brain' in notes[2]


def test_the_page_shows_all_and_links_what_is_there(evaluated):
    root, out, _ = evaluated
    page = output_path(out, 'evaluation_report')
    text = page.read_text()
    for section in ('summary', 'agreement', 'volumes', 'maps', 'participants', 'methods'):
        assert f'id="{section}"' in text
    for piece in ('Best by AUC', 'Worst by AUC', 'Unlearned blend', 'there is no reference',
                  'Bland, Altman', 'A concordance correlation coefficient',
                  'Only 3 participants', '--sloppy'):  # fmt: skip
        assert piece in text, piece
    links = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert links
    assert all((out / link).is_file() for link in links if not link.startswith('data:'))
    done = run(root, out, 'evaluate', '--self-contained-reports', '--reports-only')
    assert done.returncode == 0, done.stderr
    alone = re.findall(r'(?:src|href)="([^"#]+)"', page.read_text())
    assert all(link.startswith('data:') for link in alone)


def test_a_second_run_does_nothing_and_a_changed_reference_is_compared_again(evaluated, tmp_path):
    root = tmp_path / 'isles'
    shutil.copytree(evaluated[0], root)
    out = root / 'out'
    first = run(root, out, 'evaluate')
    assert first.returncode == 0, first.stderr
    before = output_path(out, 'evaluation_metrics').read_text()
    again = run(root, out, 'evaluate')
    assert 'everything is there already' in again.stdout
    path = next(root.glob('derivatives/sub-stroke0002/*/perfusion-maps/*tmax.nii.gz'))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(image.get_fdata() * 1.1, image.affine), path)
    only = run(root, out, 'evaluate', '--reports-only')
    assert only.returncode == 1
    assert 'run without --reports-only' in lines(only)['sub-stroke0002_ses-01']
    dry = run(root, out, 'evaluate', '--dry-run')
    assert 'sub-stroke0001_ses-01: complete, nothing to do' in dry.stdout
    assert re.search(r'sub-stroke0002_ses-01: evaluation \(.*tmax.nii.gz has changed', dry.stdout)
    assert 'lvo-msk' in dry.stdout
    done = run(root, out, 'evaluate')
    assert 'sub-stroke0002_ses-01: evaluate done' in done.stderr
    assert 'sub-stroke0001_ses-01: evaluate done' not in done.stderr
    assert output_path(out, 'evaluation_metrics').read_text() != before


def test_a_bad_reference_costs_its_participant_alone(mapped, tmp_path):
    delay = nib.load(mapped.delay).get_fdata()
    good = add(mapped, tmp_path, 1, delay)
    add(mapped, tmp_path, 2, delay * 1000)
    add(mapped, tmp_path, 3, np.stack([delay, delay], -1))
    shutil.copy(add(mapped, tmp_path, 4, noisy(delay, 4)), add(mapped, tmp_path, 5, None))
    # the sixth has a grid of its own, and the map of another patient
    add(mapped, tmp_path, 6, noisy(delay, 6))
    scan = next(tmp_path.glob('raw_data/sub-stroke0006/*/*_ncct.nii.gz'))
    image = nib.load(scan)
    moved = image.affine.copy()
    moved[:3, 3] += 7
    nib.save(nib.Nifti1Image(image.get_fdata(), moved), scan)
    out = tmp_path / 'out'
    done = run(tmp_path, out, 'evaluate')
    assert done.returncode == 1, done.stdout + done.stderr
    reported = {name.removeprefix('sub-stroke000')[:1]: line for name, line in lines(done).items()}
    assert reported['1'] == 'complete'
    for number, piece in {
        '2': 'looks like milliseconds; divide it by 1000',
        '3': 'has 2 volumes instead of one volume',
        '4': 'is the same file as the reference of sub-stroke0005_ses-01',
        '5': 'is the same file as the reference of sub-stroke0004_ses-01',
        '6': 'has the grid of the NCCT of',
    }.items():
        assert reported[number].startswith('failed: ')
        assert piece in reported[number], reported[number]
    people = read(output_path(out, 'evaluation_participants')).set_index('participant_id')
    assert (people['status'] == 'evaluated').sum() == 1
    assert 'milliseconds' in people.loc['sub-stroke0002', 'reason']
    assert 'milliseconds' in output_path(out, 'evaluation_report').read_text()
    # what was a result is none any more once its reference is bad
    nib.save(nib.Nifti1Image(np.full(delay.shape, 3.0), nib.load(good).affine), good)
    done = run(tmp_path, out, 'evaluate', '--participant-label', 'stroke0001')
    assert done.returncode == 1
    assert 'every voxel in the brain is 3' in done.stdout
    assert not list(out.glob('sub-stroke0001/*/ct/*agreement*'))
    assert not output_path(out, 'evaluation_report').exists()


def test_later_names_folders_and_raw_data_are_understood(mapped, tmp_path):
    delay = nib.load(mapped.delay).get_fdata()
    reference = add(mapped, tmp_path, 1, delay, NEW)
    add(mapped, tmp_path, 2, noisy(delay, 1), NEW)
    out = tmp_path / 'out'
    done = run(
        tmp_path / 'raw_data', out, 'evaluate', '--participant-label', 'strokecase0001', 'absent'
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'has no results in OUTPUT_DIR' in lines(done)['sub-absent']
    assert lines(done)['sub-strokecase0001_ses-0001'] == 'complete'
    assert 'strokecase0002' not in done.stdout
    assert table(out, 1, 'agreement_metrics', NEW).shape[0] == 6
    # named otherwise, and given as a pattern
    (tmp_path / 'site').mkdir()
    shutil.move(reference, tmp_path / 'site' / 'sub-strokecase0001_delay.nii.gz')
    done = run(tmp_path, out, 'evaluate', '--reference', 'site/*_delay.nii.gz', '--dry-run')
    assert 'sub-strokecase0001_ses-0001: evaluation (made from other files' in done.stdout


def test_what_cannot_be_run_ends_with_a_clear_line(mapped, tmp_path):
    add(mapped, tmp_path, 1, None)
    out = tmp_path / 'out'
    done = run(tmp_path, out, 'evaluate')
    assert done.returncode == 2
    assert 'no reference map was found by derivatives/' in done.stderr
    assert "give --reference with a quoted pattern, for example 'derivatives/" in done.stderr
    done = run(tmp_path, tmp_path / 'empty', 'evaluate')
    assert done.returncode == 2
    assert 'no participant has a finished perfusion map' in done.stderr
    assert not (tmp_path / 'empty').exists()


def test_only_what_the_participant_level_vouches_for_is_compared(mapped, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(mapped.out, out)
    folder = tmp_path / 'tmax'
    folder.mkdir()
    shutil.copy(mapped.delay, folder / 'sub-01_Tmax.nii.gz')
    verdict = output_path(out, 'verdict', participant='01')
    verdict.write_text(json.dumps({'Status': 'doubtful', 'Reasons': ['noise']}))
    command = (mapped.raw, out, 'evaluate', '--reference', folder)
    done = run(*command)
    assert done.returncode == 2
    assert 'its results are doubtful: noise (--include-doubtful takes it)' in done.stderr
    done = run(*command, '--include-doubtful')
    assert done.returncode == 0, done.stderr
    image = output_path(out, 'perfusion', participant='01', space=DEFAULT_SPACE)
    image.unlink()
    done = run(*command, '--include-doubtful')
    assert done.returncode == 2
    assert 'desc-computed_perfusion.nii.gz is missing' in done.stderr
