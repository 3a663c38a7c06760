"""Digital patients that were mapped once and are copied under other names as in ISLES'24."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_perfdeficit import ct
from bids_perfdeficit.bids import output_path
from bids_perfdeficit.settings import DEFAULT_SPACE

#: How participants and sessions are called: as first released, and later.
OLD, NEW = ('sub-stroke{:04d}', 'ses-01'), ('sub-strokecase{:04d}', 'ses-0001')
#: MNI mm of the clot of the made patient: the left M1.
CLOT = (-20.0, 4.0, -17.0)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the console script."""
    script = Path(sys.executable).with_name('bids_perfdeficit')
    return subprocess.run(
        [script, *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False
    )


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return dict(line.split(': ', 1) for line in done.stdout.splitlines() if ': ' in line)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep='\t', na_values=['n/a'], keep_default_na=False)


@dataclass(frozen=True)
class Mapped:
    """A made patient: raw images, results, and the truth on the grid of the NCCT."""

    raw: Path
    out: Path
    delay: Path
    brain: Path


def add(mapped: Mapped, root: Path, number: int, tmax: np.ndarray | None, names=OLD) -> Path:
    """Add a copy of the patient with a reference to a tree of ISLES'24; return the reference."""
    sub, ses = names[0].format(number), names[1]
    raw = root / 'raw_data' / sub / ses
    raw.mkdir(parents=True)
    for old, new in (('ct', 'ncct'), ('cta', 'cta')):
        shutil.copy(
            mapped.raw / 'sub-01' / 'ct' / f'sub-01_{old}.nii.gz',
            raw / f'{sub}_{ses}_{new}.nii.gz',
        )
    target = root / 'out' / sub / ses / 'ct'
    target.mkdir(parents=True)
    for path in (mapped.out / 'sub-01' / 'ct').iterdir():
        shutil.copy(path, target / path.name.replace('sub-01', f'{sub}_{ses}', 1))
    told = target / f'{sub}_{ses}_desc-preproc_ct.json'
    facts = json.loads(told.read_text())
    facts['Sources'] = [f'bids:raw:raw_data/{sub}/{ses}/{sub}_{ses}_ncct.nii.gz']
    told.write_text(json.dumps(facts))
    maps = root / 'derivatives' / sub / ses / 'perfusion-maps'
    maps.mkdir(parents=True)
    path = maps / f'{sub}_{ses}_space-ncct_tmax.nii.gz'
    if tmax is not None:
        truth = nib.load(mapped.delay)
        for name in ('tmax', 'cbf', 'mtt'):  # as in the release, of which one is wanted
            image = nib.Nifti1Image(tmax.astype(np.float32), truth.affine)
            nib.save(image, path.with_name(path.name.replace('tmax', name)))
    return path


def add_clot(mapped: Mapped, reference: Path) -> None:
    """Put a mask of the occlusion where ISLES'24 has it."""
    forward = output_path(mapped.out, 'template_xfm', participant='01', space=DEFAULT_SPACE)
    place = ct.carry(ct.read_transform(forward), np.asarray(CLOT)[:, None])[:, 0]
    truth = nib.load(mapped.delay)
    index = np.moveaxis(np.indices(truth.shape), 0, -1)
    away = np.linalg.norm(nib.affines.apply_affine(truth.affine, index) - place, axis=-1)
    mask = nib.Nifti1Image((away < 5).astype(np.uint8), truth.affine)
    name = reference.name.replace('tmax', 'lvo-msk')
    nib.save(mask, reference.parent.parent / name)


def noisy(delay: np.ndarray, seed: int) -> np.ndarray:
    """Return a delay as CT perfusion measures it: with noise, cut off at both ends."""
    noise = np.random.default_rng(seed).normal(0, 0.7, delay.shape)
    return np.where(delay > 0, np.clip(delay + noise, 0, 12), 0)
