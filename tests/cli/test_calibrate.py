"""The level calibrate as users run it, on digital patients laid out as ISLES'24 is released.

One patient is made and mapped; the others are copies under other names with references of their
own, since only the refit is under test.
"""

from __future__ import annotations

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit import pipeline
from bids_perfdeficit.bids import output_path
from bids_perfdeficit.perfusion.recalibration import join_calibration
from bids_perfdeficit.stages.record import sha256
from tests.mapped import add, add_clot, lines, noisy, read, run

#: By how much longer this site's Tmax is than that of the digital patients.
LONGER = 1.6


@pytest.fixture(scope='module')
def calibrated(mapped, tmp_path_factory):
    """Return a tree of five patients and one without a reference, OUTPUT_DIR and the run."""
    root = tmp_path_factory.mktemp('isles')
    delay = nib.load(mapped.delay).get_fdata()
    for number in range(1, 6):
        add_clot(mapped, add(mapped, root, number, noisy(LONGER * delay, number)))
    add(mapped, root, 6, None)
    return root, root / 'out', run(root, root / 'out', 'calibrate')


def test_a_file_is_written_with_what_it_came_from(calibrated):
    root, out, done = calibrated
    assert done.returncode == 0, done.stdout + done.stderr
    told = lines(done)
    assert told['sub-stroke0006_ses-01'] == 'skipped: there is no reference'
    path = output_path(out, 'calibration_file')
    assert f'use it with --calibration {path}' in told['calibration']
    content = json.loads(path.read_text())
    assert 'probability' in content['Refitted']
    # a longer Tmax has larger deficits
    row = {r['measure']: r for r in content['LeftOneOut']}['error_ml']
    assert row['n'] == 5
    assert row['after'] < 0.5 * row['before']
    made = content['Provenance']
    assert made['N'] == 5
    first = made['Participants'][0]
    assert first['Participant'] == 'sub-stroke0001_ses-01'
    reference = next(root.glob('derivatives/sub-stroke0001/*/perfusion-maps/*tmax.nii.gz'))
    assert first['ReferenceSHA256'] == sha256(reference)
    joined = join_calibration(content)
    assert joined['threshold'] == content['Threshold']
    # probabilities are higher with it
    sample = pipeline.Sample.load(
        output_path(out, 'calibration_samples', participant='stroke0001', session='01')
    )
    assert len(sample.delay) == len(sample.features) == pipeline.SAMPLED
    assert sample.outcome >= 0
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
    ):
        assert piece in text, piece
    links = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert links
    assert all((out / link).is_file() for link in links if not link.startswith('data:'))


def test_a_second_run_does_nothing(calibrated, tmp_path):
    root, out, _ = calibrated
    before = output_path(out, 'calibration_file').read_bytes()
    again = run(root, out, 'calibrate')
    assert again.returncode == 0, again.stderr
    assert 'everything is there already' in again.stdout
    assert output_path(out, 'calibration_file').read_bytes() == before
    dry = run(root, out, 'calibrate', '--dry-run')
    assert 'sub-stroke0001_ses-01: complete, nothing to do' in dry.stdout


def test_the_participant_level_takes_the_file_and_refuses_others(calibrated, mapped, tmp_path):
    _, out, _ = calibrated
    own = tmp_path / 'out'
    shutil.copytree(mapped.out, own)
    site = tmp_path / 'site.json'
    shutil.copy(output_path(out, 'calibration_file'), site)
    command = (mapped.raw, own, 'participant', '--sloppy', '--calibration', site)
    dry = run(*command, '--dry-run')
    assert re.search(r'sub-01: perfusion \(other options \(calibration\)\)', dry.stdout)
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    threshold = json.loads(site.read_text())['Threshold']
    for key in ('perfusion', 'hypoperfused', 'std_perfusion', 'regions_metrics'):
        path = output_path(own, f'{key}_json', participant='01', space='MNI152NLin2009aSym')
        facts = json.loads(path.read_text())
        assert facts['CalibrationSHA256'] == sha256(site)
        assert facts['HypoperfusionThreshold'] == threshold

    def volume(folder) -> float:
        table = read(output_path(folder, 'regions_metrics', participant='01'))
        row = table.set_index('region').loc['hemisphere']
        return row['hypoperfused_left'] + row['hypoperfused_right']

    assert volume(own) > 1.1 * volume(mapped.out)
    # the same content under another name is the same calibration
    moved = site.rename(tmp_path / 'other.json')
    again = run(*command[:-1], moved, '--dry-run')
    assert 'sub-01: complete, nothing to do' in again.stdout
    content = json.loads(moved.read_text())
    moved.write_text(json.dumps(content | {'BaseSHA256': '0'}))
    done = run(*command[:-1], moved)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('  - ')]
    assert 'was made for the weights of another version of the app; give a file that' in line
    moved.write_text('{')
    done = run(*command[:-1], moved)
    assert done.returncode == 2
    assert 'is not valid JSON' in done.stderr


def test_nothing_better_writes_no_file(calibrated, tmp_path):
    """Noise has nothing to learn: the run is good, and says what to do."""
    root = tmp_path / 'isles'
    shutil.copytree(calibrated[0], root)
    out = root / 'out'
    rng = np.random.default_rng(1)
    for number in range(1, 6):
        path = output_path(
            out, 'calibration_samples', participant=f'stroke000{number}', session='01'
        )
        sample = pipeline.Sample.load(path)
        assert len(sample.delay)
        reference = next(root.glob(f'derivatives/sub-stroke000{number}/*/perf*/*tmax.nii.gz'))
        image = nib.load(reference)
        noise = rng.uniform(0.5, 5.5, image.shape) * (image.get_fdata() > 0)
        nib.save(nib.Nifti1Image(noise.astype(np.float32), image.affine), reference)
    done = run(root, out, 'calibrate')
    assert done.returncode == 0, done.stdout + done.stderr
    assert not output_path(out, 'calibration_file').exists()
    assert 'no file was written, because nothing got better' in lines(done)['calibration']
    assert 'No calibration file was written' in output_path(out, 'calibration_report').read_text()


def test_four_pairs_end_with_a_clear_line(mapped, tmp_path):
    delay = nib.load(mapped.delay).get_fdata()
    for number in range(1, 5):
        add(mapped, tmp_path, number, noisy(delay, number))
    add(mapped, tmp_path, 5, None)
    out = tmp_path / 'out'
    done = run(tmp_path, out, 'calibrate')
    assert done.returncode == 2
    assert '4 participants have both maps and a reference' in done.stderr
    assert 'needs at least 5' in done.stderr
    assert not (out / 'calibration').exists()
    # a fifth whose reference is bad is found when it is read
    bad = add(mapped, tmp_path, 6, noisy(delay, 6) * 1000)
    assert bad.is_file()
    for path in out.glob('sub-stroke000[1-4]'):
        assert path.is_dir()
