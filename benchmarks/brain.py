"""Overlap of the extracted brain with the true one, over slice thickness and noise.

A digital patient is scanned at each thickness and noise; the scan is conformed and its brain
extracted, as in the app. A dataset may be given instead, with one participant and the mask
``truth/brainmask_in_ct_space.nii.gz``. Seconds are of CPU time and of the extraction alone.

Run: python benchmarks/brain.py [BIDS_DIR] [--patients 3] [--spacing 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_perfdeficit import ct
from bids_perfdeficit.ct.quality import dice
from bids_perfdeficit.phantom.patient import make_patient
from bids_perfdeficit.phantom.settings import Occlusion, ScannerSettings

#: Slice thickness, mm, and standard deviation of the noise, HU.
SCANS = ((0.0, 6.0), (2.5, 6.0), (5.0, 6.0), (0.0, 15.0), (5.0, 15.0))


def made_scans(patients: int, spacing: float) -> Iterator[tuple[str, nib.Nifti1Image, ...]]:
    """Make digital patients: name, NCCT, true brain."""
    for seed in range(400, 400 + patients):
        for thickness, noise in SCANS:
            scanner = ScannerSettings(ncct_thickness=thickness or spacing, ncct_noise=noise)
            patient = make_patient(seed, Occlusion(), spacing=spacing, scanner=scanner)
            name = f'{thickness or spacing:g} mm slices, noise {noise:g} HU'
            yield name, patient.ncct, patient.truth.brain


def read_scan(root: Path) -> tuple[str, nib.Nifti1Image, nib.Nifti1Image]:
    """Read the dataset's NCCT and true brain."""
    ncct = ct.read_ct(next(root.glob('sub-*/ct/*_ct.nii.gz'))).image
    truth = nib.load(root / 'truth' / 'brainmask_in_ct_space.nii.gz')
    assert isinstance(truth, nib.Nifti1Image)
    return root.name, ncct, truth


def main() -> None:
    """Print a line for each scan, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bids_dir', type=Path, nargs='?')
    parser.add_argument('--patients', type=int, default=3)
    parser.add_argument('--spacing', type=float, default=2.0)
    arguments = parser.parse_args()
    scans = (
        [read_scan(arguments.bids_dir)]
        if arguments.bids_dir
        else made_scans(arguments.patients, arguments.spacing)
    )
    rows = []
    for name, ncct, truth in scans:
        image, known = (
            nib.Nifti1Image(i.get_fdata(dtype=np.float32), i.affine) for i in (ncct, truth)
        )
        conformed = ct.conform(ct.CTVolume(image), spacing=arguments.spacing).image
        start = time.process_time()
        found = ct.extract_brain(conformed)
        seconds = time.process_time() - start
        true = ct.resample(known, conformed.shape, conformed.affine) > 0.5
        mask = np.asarray(found.mask.dataobj) > 0
        row = {
            'scan': name,
            'dice': dice(mask, true),
            'volume': mask.sum() / true.sum(),
            'seconds': seconds,
        }
        rows.append(row)
        print(row, flush=True)
    table = pd.DataFrame(rows).groupby('scan', sort=False)
    means, worst = table.mean(), table['dice'].min()
    print(f'\nat {arguments.spacing:g} mm, {len(rows)} scans; target: Dice >= 0.96')
    print('| scan | Dice | lowest | volume / true | CPU s |\n|---|---|---|---|---|')
    for name, row in means.iterrows():
        print(
            f'| {name} | {row["dice"]:.3f} | {worst[name]:.3f} | {row["volume"]:.3f} '
            f'| {row["seconds"]:.1f} |'
        )


if __name__ == '__main__':
    main()
