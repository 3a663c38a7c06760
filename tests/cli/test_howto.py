"""The how-to of ISLES'24, its commands in order, on digital patients with its names.

The download and the unpacking are replaced by making the folder that they leave.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.mapped import NEW, OLD, noisy, read

HOWTO = Path(__file__).parents[2] / 'docs' / 'howto.rst'


def commands(title: str) -> list[str]:
    """Return the commands of a section, one string each."""
    text = re.sub(r'\\\n\s*', '', HOWTO.read_text())
    section = re.search(rf'^{re.escape(title)}\n-+\n(.*?)(?=^\S[^\n]*\n-+\n)', text, re.M | re.S)
    assert section, title
    return re.findall(r'^    (\S.*)$', section[1], re.M)


def make_release(folder: Path, scratch: Path, count: int, names: tuple[str, str]) -> None:
    """Make ``raw_data`` and ``derivatives`` with NCCT, CTA and Tmax."""
    script = Path(sys.executable).with_name('bids_perfdeficit-phantom')
    subprocess.run(
        [script, scratch, '--participants', str(count), '--spacing', '3'],
        check=True, capture_output=True,
    )  # fmt: skip
    for number in range(1, count + 1):
        label = f'sub-{number:02d}'
        sub, ses = names[0].format(number), names[1]
        raw, maps = folder / 'raw_data' / sub / ses, folder / 'derivatives' / sub / ses
        raw.mkdir(parents=True)
        (maps / 'perfusion-maps').mkdir(parents=True)
        for old, new in (('ct', 'ncct'), ('cta', 'cta')):
            shutil.copy(
                scratch / label / 'ct' / f'{label}_{old}.nii.gz',
                raw / f'{sub}_{ses}_{new}.nii.gz',
            )
        truth = scratch / 'derivatives' / 'phantom-truth' / label
        delay = nib.load(truth / f'{label}_desc-delay.nii.gz')
        brain = nib.load(truth / f'{label}_desc-brain.nii.gz').get_fdata() > 0
        # CT perfusion of a healthy brain has a Tmax of some seconds
        tmax = np.where(brain, noisy(delay.get_fdata() + 2.0, number), 0).astype(np.float32)
        nib.save(
            nib.Nifti1Image(tmax, delay.affine),
            maps / 'perfusion-maps' / f'{sub}_{ses}_space-ncct_tmax.nii.gz',
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ('names', 'count', 'titles'),
    [
        (OLD, 5, (
            "Compare the maps with CT perfusion (ISLES'24 in five commands)",
            'Calibrate the maps to your own CT perfusion',
        )),
        (NEW, 2, ("Compare the maps with CT perfusion (ISLES'24 in five commands)",)),
    ],
    ids=['as first released', 'later release'],
)  # fmt: skip
def test_an_owner_gets_from_the_download_to_the_report(names, count, titles, tmp_path):
    make_release(tmp_path / 'train', tmp_path / 'scratch', count, names)
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    chained = [
        c for title in titles for c in commands(title) if not c.startswith(('wget ', '7z '))
    ]
    assert len(chained) == 3 + 2 * (len(titles) - 1)
    refitted = tmp_path / 'OUT' / 'calibration' / 'ct' / 'desc-site_calibration.json'
    for command in chained:
        if '--calibration' in command and not refitted.exists():
            continue  # the run before said that nothing was gained
        words = shlex.split(command) + (['--sloppy'] if ' participant' in command else [])
        done = subprocess.run(
            words, cwd=tmp_path, env={**os.environ, 'PATH': path}, capture_output=True, text=True,
            timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, command + done.stdout + done.stderr
        if command.endswith('--dry-run'):
            for number in range(1, count + 1):
                assert f'{names[0].format(number)}_{names[1]}_space-ncct_tmax' in done.stdout
        if command.endswith('calibrate'):
            assert refitted.exists() or 'no file' in done.stdout
    table = tmp_path / 'OUT' / 'evaluation' / 'ct'
    assert (tmp_path / 'OUT' / 'evaluation.html').is_file()
    people = table / 'desc-evaluation_participants.tsv'
    assert list(read(people)['status']) == ['evaluated'] * count
