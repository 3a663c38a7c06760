"""A made cohort: files as the participant level leaves them, and a table of scores.

Maps are made of one sphere of late perfusion on one side, and scores of how much of a known region
it covers; nothing here calls the code under test, but for the template's grid and file names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_perfdeficit.bids import output_path, sidecar, sidecar_path, write_json, write_nifti
from bids_perfdeficit.ct import load_template
from bids_perfdeficit.settings import DEFAULT_SPACE

#: RAS mm of the middle of the candidates behind each item, and the radius.
SUBSTRATES = {
    'nihss_5a': (36.0, -16.0, 44.0),
    'nihss_5b': (-36.0, -16.0, 44.0),
    'nihss_9': (-46.0, 4.0, 12.0),
}
RADIUS = 14.0


@dataclass(frozen=True)
class MadeCohort:
    """Where a made cohort lies."""

    raw: Path
    out: Path


def make_cohort(
    root: Path, count: int, *, seed: int = 1, prefix: str = '', asymmetry: bool = False
) -> MadeCohort:
    """Write maps, masks and scores of made participants."""
    rng = np.random.default_rng(seed)
    brain = load_template(DEFAULT_SPACE, spacing=2.0).brain_mask
    inside = np.asarray(brain.dataobj) > 0
    index = np.moveaxis(np.indices(brain.shape), 0, -1)
    xyz = nib.affines.apply_affine(brain.affine, index).astype(np.float32)
    raw, out = root / 'raw', root / 'out'
    raw.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        label = f'{prefix}{number + 1:03d}'
        side = rng.choice([-1, 1])
        centre = np.array([side * rng.uniform(25, 50), rng.uniform(-50, 30), rng.uniform(0, 50)])
        radius = rng.uniform(18, 40)
        volume = np.full(brain.shape, 0.3, np.float32)
        volume += (
            0.02
            * np.kron(rng.standard_normal((13, 15, 12)), np.ones((8, 8, 8)))[
                : brain.shape[0], : brain.shape[1], : brain.shape[2]
            ]
        )
        volume[((xyz - centre) ** 2).sum(-1) < radius**2] += 0.5
        volume = np.where(inside, volume.clip(0, 1), 0).astype(np.float32).round(2)
        folder = {'participant': label, 'space': DEFAULT_SPACE}
        sources = {'std_perfusion': volume, 'std_brain_mask': inside.astype(np.uint8)}
        if asymmetry:
            sources['std_asymmetry'] = volume - volume[::-1]
        for key, values in sources.items():
            path = output_path(out, key, **folder)
            write_nifti(nib.Nifti1Image(values, brain.affine), path)
            write_json(sidecar(key, space=DEFAULT_SPACE), sidecar_path(path))
        row = {'participant_id': f'sub-{label}', 'age': int(rng.integers(40, 90)),
               'sex': rng.choice(['F', 'M'])}  # fmt: skip
        for item, weights in SUBSTRATES.items():
            there = ((xyz - weights) ** 2).sum(-1) < RADIUS**2
            share = (volume[there & inside] > 0.6).mean()
            level = 3 * share + rng.normal(0, 0.3)
            row[item] = int(np.clip(np.rint(level), 0, 4 if item != 'nihss_9' else 3))
        row['nihss_7'] = 0
        row['nihss_8'] = int(rng.random() < 0.3)
        rows.append(row)
    frame = pd.DataFrame(rows)
    columns = ['participant_id', 'age', 'sex']
    frame[columns].to_csv(raw / 'participants.tsv', sep='\t', index=False)
    (raw / 'phenotype').mkdir(exist_ok=True)
    frame.drop(columns=['age', 'sex']).to_csv(raw / 'phenotype/nihss.tsv', sep='\t', index=False)
    (raw / 'dataset_description.json').write_text(
        json.dumps({'Name': 'A made cohort', 'BIDSVersion': '1.10.0'})
    )
    return MadeCohort(raw, out)
