"""The level calibrate as users run it, on digital patients laid out as ISLES'24 is released.

One patient is made and mapped; the others are copies under other names. Voxels are drawn from made
features, since the drawing takes long; a slow test draws them.
"""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_perfdeficit import pipeline
from bids_perfdeficit.bids import output_path, sidecar_path, write_json
from bids_perfdeficit.perfusion.combination import hidden_units
from bids_perfdeficit.perfusion.recalibration import (
    calibration,
    join_calibration,
    last_layer,
)
from bids_perfdeficit.settings import DEFAULT_SPACE, InputSettings, Settings
from bids_perfdeficit.stages.record import sha256
from bids_perfdeficit.stages.task import publish
from bids_perfdeficit.workflows.evaluation_plan import CALIBRATION, make_evaluation_plan
from tests.mapped import add, add_clot, lines, noisy, read, run

#: By how much longer the Tmax of a site is than that of the digital patients.
LONGER = 1.6


def made_sample(seed: int, *, learnable: bool) -> pipeline.Sample:
    """Return voxels of a site where other hidden units count, or nothing does."""
    rng = np.random.default_rng(seed)
    fitted, voxels = calibration(), 2000
    scatter = rng.normal(size=(voxels, len(fitted['features'])))
    features = (np.asarray(fitted['centre']) + scatter * fitted['scale']).astype(np.float32)
    hidden = hidden_units(torch.from_numpy(features)).numpy()
    if learnable:
        delay = 4 + 3 * hidden @ np.cos(np.arange(hidden.shape[1])) + rng.normal(0, 0.3, voxels)
    else:
        # as many voxels above 6 s as are found, but others
        last = last_layer()
        logit = hidden @ np.asarray(last['weight'][1]) + last['bias'][1]
        found = 1 / (1 + np.exp(-logit)) > fitted['threshold']
        delay = np.where(rng.permutation(found), 8, 3) + rng.uniform(-1, 1, voxels)
    return pipeline.Sample(
        features, np.clip(delay, 0, None).astype(np.float32),
        rng.integers(0, 100_000, voxels).astype(np.int32), rng.normal(size=(2, 8)), 0.5, -1,
    )  # fmt: skip


def make_tree(mapped, root: Path, *, learnable: bool, count: int = 5) -> Path:
    """Make a tree of ISLES'24 whose voxels are drawn already; return OUTPUT_DIR."""
    delay = nib.load(mapped.delay).get_fdata()
    for number in range(1, count + 1):
        add(mapped, root, number, noisy(delay, number))
    add(mapped, root, count + 1, None)
    out = root / 'out'
    settings = Settings(inputs=InputSettings(bids_dir=root, output_dir=out))
    plan = make_evaluation_plan(settings, CALIBRATION)
    assert len(plan.cases) == count
    for seed, case in enumerate(plan.cases.values()):
        sample = made_sample(seed, learnable=learnable)
        (name,) = (n for n in case.task.outputs if n.endswith('.npz'))
        told = sidecar_path(Path(name)).as_posix()
        publish(
            case.task,
            {told: partial(write_json, {'Notes': [], 'Doubts': []}), name: sample.save},
        )
    return out


@pytest.fixture(scope='module')
def calibrated(mapped, tmp_path_factory):
    """Return a tree of five patients and one without a reference, OUTPUT_DIR and the run."""
    root = tmp_path_factory.mktemp('isles')
    out = make_tree(mapped, root, learnable=True)
    return root, out, run(root, out, 'calibrate')


def test_a_file_is_written_with_what_it_came_from(calibrated):
    root, out, done = calibrated
    assert done.returncode == 0, done.stdout + done.stderr
    told = lines(done)
    assert told['sub-stroke0006_ses-01'] == 'skipped: there is no reference'
    path = output_path(out, 'calibration_file')
    assert f'use it with --calibration {path}' in told['calibration']
    content = json.loads(path.read_text())
    assert content['Refitted'] == ['map', 'probability']
    row = {r['measure']: r for r in content['LeftOneOut']}
    assert row['error_ml']['n'] == 5
    assert row['error_ml']['after'] < row['error_ml']['before']
    assert row['spearman']['after'] > row['spearman']['before']
    made = content['Provenance']
    assert made['N'] == 5
    assert made['Participants'][0]['Participant'] == 'sub-stroke0001_ses-01'
    reference = next(root.glob('derivatives/sub-stroke0001/*/perfusion-maps/*tmax.nii.gz'))
    assert made['Participants'][0]['ReferenceSHA256'] == sha256(reference)
    assert join_calibration(content)['threshold'] == content['Threshold']
    people = read(output_path(out, 'calibration_participants'))
    assert list(people['status']) == ['used'] * 10 + ['left out']
    for key in ('calibration_participants', 'calibration_metrics'):
        columns = set(read(output_path(out, key)).columns)
        assert columns <= set(json.loads(output_path(out, f'{key}_json').read_text())), key
    assert not list(out.rglob('*.part'))


def test_the_page_shows_before_and_after_and_links_what_is_there(calibrated):
    _, out, _ = calibrated
    text = output_path(out, 'calibration_report').read_text()
    for piece in (
        'A calibration file was written',
        'Only 5 participants',
        'there is no reference',
        'somewhat optimistic',
        'no likely occlusion is reported',
    ):
        assert piece in text, piece
    links = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert links
    assert all((out / link).is_file() for link in links if not link.startswith('data:'))


def test_a_second_run_does_nothing(calibrated):
    root, out, _ = calibrated
    before = output_path(out, 'calibration_file').read_bytes()
    again = run(root, out, 'calibrate')
    assert again.returncode == 0, again.stderr
    assert 'everything is there already' in again.stdout
    assert output_path(out, 'calibration_file').read_bytes() == before
    dry = run(root, out, 'calibrate', '--dry-run')
    assert 'sub-stroke0001_ses-01: complete, nothing to do' in dry.stdout


def test_a_file_remakes_what_depends_on_it_and_a_bad_one_is_refused(calibrated, mapped, tmp_path):
    _, out, _ = calibrated
    site = tmp_path / 'site.json'
    shutil.copy(output_path(out, 'calibration_file'), site)
    command = (mapped.raw, mapped.out, 'participant', '--sloppy', '--dry-run', '--calibration')
    dry = run(*command, site)
    assert re.search(r'sub-01: perfusion \(other options \(calibration\)\)', dry.stdout)
    content = json.loads(site.read_text())
    site.write_text(json.dumps(content | {'BaseSHA256': '0'}))
    done = run(*command, site)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('  - ')]
    assert 'was made for the weights of another version of the app; give a file that' in line
    site.write_text('{')
    done = run(*command, site)
    assert done.returncode == 2
    assert 'is not valid JSON' in done.stderr


def test_nothing_better_writes_no_file(mapped, tmp_path):
    out = make_tree(mapped, tmp_path, learnable=False)
    done = run(tmp_path, out, 'calibrate')
    assert done.returncode == 0, done.stdout + done.stderr
    assert not output_path(out, 'calibration_file').exists()
    assert 'no file was written, because nothing got better' in lines(done)['calibration']
    assert 'No calibration file was written' in output_path(out, 'calibration_report').read_text()


def test_four_pairs_end_with_a_clear_line(mapped, tmp_path):
    delay = nib.load(mapped.delay).get_fdata()
    for number in range(1, 5):
        add(mapped, tmp_path, number, noisy(delay, number))
    out = tmp_path / 'out'
    done = run(tmp_path, out, 'calibrate')
    assert done.returncode == 2
    assert '4 participants have both maps and a reference' in done.stderr
    assert 'needs at least 5' in done.stderr
    assert not (out / 'calibration').exists()


@pytest.mark.slow
def test_voxels_are_drawn_and_the_maps_of_a_site_get_its_volumes(mapped, tmp_path):
    delay = nib.load(mapped.delay).get_fdata()
    for number in range(1, 6):
        reference = add(mapped, tmp_path, number, noisy(LONGER * delay, number))
        add_clot(mapped, reference)
    out = tmp_path / 'out'
    done = run(tmp_path, out, 'calibrate')
    assert done.returncode == 0, done.stdout + done.stderr
    sample = pipeline.Sample.load(
        output_path(out, 'calibration_samples', participant='stroke0001', session='01')
    )
    assert len(sample.delay) == len(sample.features) == pipeline.SAMPLED
    assert sample.outcome >= 0
    site = output_path(out, 'calibration_file')
    content = json.loads(site.read_text())
    # a longer Tmax has larger deficits
    row = {r['measure']: r for r in content['LeftOneOut']}['error_ml']
    assert row['after'] < 0.5 * row['before']

    own = tmp_path / 'own'
    shutil.copytree(mapped.out, own)
    command = (mapped.raw, own, 'participant', '--sloppy', '--calibration')
    done = run(*command, site)
    assert done.returncode == 0, done.stdout + done.stderr
    for key in ('perfusion', 'hypoperfused', 'std_perfusion', 'regions_metrics'):
        path = output_path(own, f'{key}_json', participant='01', space=DEFAULT_SPACE)
        facts = json.loads(path.read_text())
        assert facts['CalibrationSHA256'] == sha256(site)
        assert facts['HypoperfusionThreshold'] == content['Threshold']

    def volume(folder: Path) -> float:
        table = read(output_path(folder, 'regions_metrics', participant='01'))
        row = table.set_index('region').loc['hemisphere']
        return float(row['hypoperfused_left'] + row['hypoperfused_right'])

    assert volume(own) > 1.1 * volume(mapped.out)
    # the same content under another name is the same calibration
    moved = tmp_path / 'other.json'
    shutil.copy(site, moved)
    again = run(*command, moved, '--dry-run')
    assert 'sub-01: complete, nothing to do' in again.stdout
