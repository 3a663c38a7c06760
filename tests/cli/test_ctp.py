"""The command that makes pairs of scans and references from CT perfusion, on a digital patient."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to

from bids_perfdeficit import ct
from bids_perfdeficit.bids import discover
from bids_perfdeficit.bids.references import find_references
from bids_perfdeficit.cli.ctp import main
from bids_perfdeficit.phantom import Occlusion, make_ctp, make_patient


@pytest.fixture(scope='module')
def scanned():
    """Return a patient with a left M1 occlusion and its series."""
    patient = make_patient(
        1000, Occlusion(site='M1', side='L', collaterals=0.35, position=0.2), spacing=4.0
    )
    return patient, make_ctp(patient, spacing=4.0, thickness=5.0, interval=2.0)


@pytest.fixture(scope='module')
def converted(scanned, tmp_path_factory):
    """Return the folder that the command wrote, its exit code, and the series' place."""
    _, series = scanned
    root = tmp_path_factory.mktemp('ctp')
    path = root / 'raw' / 'sub-01' / 'ct' / 'sub-01_ctp.nii.gz'
    path.parent.mkdir(parents=True)
    nib.save(series.image, path)
    timing = {'VolumeTiming': series.times.tolist()}
    path.with_name('sub-01_ctp.json').write_text(json.dumps(timing))
    return root / 'pairs', main([str(root / 'raw'), str(root / 'pairs')]), path


def on_grid(image, grid, order=1) -> np.ndarray:
    return resample_from_to(image, grid, order=order).get_fdata()


def test_the_series_fills_late_where_the_delay_is_long(scanned):
    patient, series = scanned
    values = np.asarray(series.image.dataobj, float)
    grid = nib.Nifti1Image(values[..., 0], series.image.affine)
    brain = on_grid(patient.truth.brain, grid, 0) > 0
    artery = on_grid(patient.truth.artery, grid) > 0.02
    delay = on_grid(patient.truth.delay, grid)
    rise = values - values[..., :3].mean(-1, keepdims=True)

    def half_time(mask: np.ndarray) -> float:
        curve = rise[mask].mean(0)
        return float(series.times[np.argmax(curve > 0.5 * curve.max())])

    tissue = brain & ~artery
    early, late = tissue & (delay < 2), tissue & (delay > 8)
    assert late.sum() > 100
    assert 4 < half_time(late) - half_time(early) < 14
    # nothing before the injection arrives, and a head that drifts
    assert abs(rise[tissue, 3].mean()) < 1.0
    assert series.motion[0] == pytest.approx(np.eye(4))
    assert np.abs(series.motion[-1] - np.eye(4)).max() > 0


def test_the_pair_and_tmax_are_where_other_commands_look(converted, scanned):
    out, code, _ = converted
    assert code == 0
    (pair,) = discover(out).pairs
    assert pair.ncct.name == 'sub-01_ct.nii.gz'
    assert pair.cta.name == 'sub-01_cta.nii.gz'
    (reference,), _ = find_references(out)
    assert reference.participant == '01'
    facts = json.loads(reference.path.with_name('sub-01_tmax.json').read_text())
    assert facts['Units'] == 's'
    assert facts['FramesBeforeContrast'] >= 2
    assert facts['Sources'][0].endswith('sub-01_ctp.nii.gz')
    # the CTA has arteries that the NCCT has not
    ncct, cta = nib.load(pair.ncct), nib.load(pair.cta)
    artery = on_grid(scanned[0].truth.artery, ncct) > 0.3
    assert (cta.get_fdata() - ncct.get_fdata())[artery].mean() > 30


def test_tmax_follows_the_true_delay(converted, scanned):
    out, _, _ = converted
    tmax = nib.load(next(out.glob('derivatives/ctp/sub-01/ct/*_tmax.nii.gz')))
    truth = scanned[0].truth
    found, delay = tmax.get_fdata(), on_grid(truth.delay, tmax)
    brain = (on_grid(truth.brain, tmax, 0) > 0) & (found > 0)
    medians = [
        np.median(found[brain & (delay >= low) & (delay < low + 2)]) for low in range(0, 10, 2)
    ]
    assert (np.diff(medians) > 0.5).all(), medians
    left = np.indices(found.shape)[0] < found.shape[0] / 2
    if tmax.affine[0, 0] < 0:
        left = ~left
    assert found[brain & left].mean() > found[brain & ~left].mean() + 1


def test_movement_is_found_and_undone(converted):
    _, _, path = converted
    series = ct.read_series(path)
    moved = series.values.copy()
    moved[..., 10:] = np.roll(moved[..., 10:], 1, axis=0)  # 4 mm to one side
    shifted = ct.Series(moved, series.affine, series.moved)
    found = ct.align_frames(shifted, soft_tissue(series))
    assert found.moved[12] == pytest.approx(4.0, abs=0.7)
    inner = np.s_[8:-8, 8:-8, 8:-8]
    before = np.abs(moved[..., 12] - series.values[..., 12])[inner].mean()
    after = np.abs(found.values[..., 12] - series.values[..., 12])[inner].mean()
    assert after < 0.6 * before


def soft_tissue(series: ct.Series) -> nib.Nifti1Image:
    """Return soft tissue in the middle of the head as a mask, on the grid of a series."""
    first = ct.first_frames(series)
    mask = np.zeros(first.shape, np.float32)
    inner = np.s_[10:-10, 10:-10, 10:-6]
    mask[inner] = (first[inner] > 0) & (first[inner] < 80)
    return series.image(mask)


def test_a_bad_series_costs_its_participant_alone(converted, tmp_path, capsys):
    _, _, path = converted
    for name in ('01', '02', '03'):
        folder = tmp_path / 'raw' / f'sub-{name}' / 'ct'
        folder.mkdir(parents=True)
    image = nib.load(path)
    short = nib.Nifti1Image(np.asarray(image.dataobj)[..., :4], image.affine)
    nib.save(short, tmp_path / 'raw/sub-01/ct/sub-01_ctp.nii.gz')
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine),
             tmp_path / 'raw/sub-02/ct/sub-02_ctp.nii.gz')  # fmt: skip
    (tmp_path / 'raw/sub-02/ct/sub-02_ctp.json').write_text('{"VolumeTiming": [0, 2000]}')
    flat = np.repeat(np.asarray(image.dataobj)[..., :1], 12, 3)
    nib.save(nib.Nifti1Image(flat, image.affine), tmp_path / 'raw/sub-03/ct/sub-03_ctp.nii.gz')
    (tmp_path / 'raw/sub-03/ct/sub-03_ctp.json').write_text('{"RepetitionTime": 2}')
    assert main([str(tmp_path / 'raw'), str(tmp_path / 'out')]) == 1
    said = capsys.readouterr().out
    assert 'sub-01: failed' in said
    assert 'has 2 times, and the series 30 frames' in said
    assert 'sub-03: failed' in said
    assert '0 of 3 complete' in said


def test_bad_options_end_with_a_line(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path), '--angiogram', 'x']) == 2
    said = capsys.readouterr().err
    assert 'choose peak or maximum' in said
    assert 'is BIDS_DIR itself' in said
    assert main([str(tmp_path), str(tmp_path / 'out')]) == 2
    assert 'holds no series of CT perfusion' in capsys.readouterr().err
