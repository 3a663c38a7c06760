"""How well Tmax from a digital series of CT perfusion follows the true delay.

Patients are drawn as in `perfusion.py`; each is scanned by CT perfusion (`phantom.make_ctp`: 3 by
3 by 5 mm, 40 frames of 1.5 s, noise of 1.8 HU, a head that drifts) and goes through
`pipeline.split_series`. The true delay is the arrival plus a quarter of the transit time.

Run: python benchmarks/ctp.py [--patients 4] [--seed 1000] [--spacing 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from nibabel.processing import resample_from_to
from perfusion import draw

from bids_perfdeficit import pipeline
from bids_perfdeficit.perfusion.agreement import DEFICIT_S, dice, roc_area, spearman
from bids_perfdeficit.phantom import make_ctp


def measure(seed: int, spacing: float) -> dict[str, object]:
    """Return one patient's figures."""
    patient = draw(seed, spacing)
    series = make_ctp(patient, spacing=spacing)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'ctp.nii.gz')
        nib.save(series.image, path)
        found = pipeline.split_series(path, series.times.tolist())
    tmax = np.asarray(found.tmax.dataobj)
    delay = np.asarray(resample_from_to(patient.truth.delay, found.tmax, order=1).dataobj)
    brain = np.asarray(resample_from_to(patient.truth.brain, found.tmax, order=0).dataobj) > 0
    known = brain & (tmax > 0)
    voxel = abs(float(np.linalg.det(found.tmax.affine[:3, :3]))) / 1000
    late = delay[known] > DEFICIT_S
    drift = np.linalg.norm(series.motion[-1][:3, 3])
    return {
        'seed': seed,
        'site': patient.occlusion.site,
        'known': known.sum() / brain.sum(),
        'spearman': spearman(tmax[known], delay[known]),
        'auc': roc_area(tmax[known], late),
        'true ml': voxel * late.sum(),
        'found ml': voxel * (tmax[known] > DEFICIT_S).sum(),
        'dice': dice(tmax[known] > DEFICIT_S, late),
        **{
            f'median at {low}-{low + 2} s': float(np.median(tmax[known][part]))
            for low in (0, 2, 4, 6, 8)
            if (part := (delay[known] >= low) & (delay[known] < low + 2)).sum() > 50
        },
        'drift mm': float(drift),
        'found mm': found.largest_movement,
        'frames before': len(found.timing.before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--patients', type=int, default=4)
    parser.add_argument('--seed', type=int, default=1000)
    parser.add_argument('--spacing', type=float, default=3.0, help='mm, in the plane')
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in range(options.seed, options.seed + options.patients):
        rows.append(measure(seed, options.spacing))
        print(rows[-1], file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    print(f'| {" | ".join(table.columns)} |', f'|{"---|" * len(table.columns)}', sep='\n')
    for row in table.to_dict('records'):
        cells = [f'{v:.2f}' if isinstance(v, float) else str(v) for v in row.values()]
        print(f'| {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
