"""Fit the weights of the default perfusion map on digital patients.

The registrations are given, brain, sources and veins are the app's own. A ridge regression in each
patient's brain, all patients alike, to the rank of the true delay plus a share of its seconds: the
rank alone would order healthy tissue and neglect the deficit, the seconds alone the reverse.
Seeds from 300 on; the benchmark's are others.

Run: python scripts/calibrate_perfusion.py [--patients 39] [--seed 300]
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage
from scipy.stats import rankdata

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.data import load
from bids_perfdeficit.phantom.patient import Patient, make_patient
from bids_perfdeficit.phantom.settings import Occlusion, ScannerSettings

SPACING = 2.0
SITES = (
    'none', 'ICA', 'M1', 'M2sup', 'M2inf', 'A2', 'P2', 'BA', 'M1', 'M1', 'M2sup', 'M2inf',
)  # fmt: skip
#: Delay beyond which seconds count no more, and seconds that weigh as much as all ranks.
LATEST, SECONDS = 12.0, 12.0
RIDGE = 8e-4
#: Every so many voxels are fitted.
STRIDE = 21


def draw(seed: int) -> Patient:
    rng = np.random.default_rng(seed)
    side = 'LR'[rng.integers(2)]
    thickness = [None, None, 3.0, 5.0][rng.integers(4)]
    occlusion = Occlusion(
        site=SITES[seed % len(SITES)],
        side=side,
        collaterals=float(rng.beta(3, 2.2)),
        position=float(rng.uniform(0, 0.6)),
        onset_hours=float(rng.uniform(1, 6)),
    )
    scanner = ScannerSettings(ncct_thickness=thickness)
    return make_patient(seed, occlusion, spacing=SPACING, scanner=scanner)


def patient_images(seed: int, template: ct.Template) -> dict[str, np.ndarray]:
    """Make a patient; return images, priors, truth and MNI places on the conformed grid."""
    patient = draw(seed)
    truth = patient.truth
    with tempfile.TemporaryDirectory() as folder:
        for name in ('ncct', 'cta'):
            nib.save(getattr(patient, name), Path(folder, f'{name}.nii.gz'))
        raw = ct.read_ct(Path(folder, 'ncct.nii.gz'), role='NCCT')
        ncct = ct.conform(raw, spacing=SPACING).image
        cta = ct.read_ct(Path(folder, 'cta.nii.gz'), role='CTA').image
        cta = ct.resample(cta, ncct.shape, truth.ncct_to_cta @ ncct.affine)
        brain = ct.extract_brain(ncct).mask
    index = np.indices(ncct.shape).reshape(3, -1).T
    places = truth.warp.inverse(nib.affines.apply_affine(ncct.affine, index).astype(np.float32))
    mni = places.T.reshape(3, *ncct.shape)
    shape, affine = template.brain_mask.shape, template.brain_mask.affine
    where = np.moveaxis(
        nib.affines.apply_affine(np.linalg.inv(affine), np.moveaxis(mni, 0, -1)), -1, 0
    )
    priors = {
        'inflow': perfusion.inflow_prior(shape, affine),
        'veins': perfusion.vein_prior(shape, affine),
        'white': template.white.get_fdata(dtype=np.float32),
        'grey': template.grey.get_fdata(dtype=np.float32),
    }

    def known(image: nib.Nifti1Image, order: int) -> np.ndarray:
        return np.asarray(resample_from_to(image, ncct, order=order).dataobj)

    return {
        'ncct': np.asarray(ncct.dataobj, dtype=np.float32),
        'cta': cta,
        'brain': np.asarray(brain.dataobj) > 0,
        'mni': mni,
        'delay': known(truth.delay, 1),
        'tbrain': known(truth.brain, 0) > 0,
        **{name: ndimage.map_coordinates(k, where, order=1) for name, k in priors.items()},
    }


def mirrored(values: np.ndarray, inside: np.ndarray, mni: np.ndarray) -> np.ndarray:
    """Carry values to their mirror place, by way of a 2 mm grid in MNI space."""
    low, shape = np.array([-98, -134, -72.0]), (99, 117, 95)
    index = np.rint((mni[:, inside].T - low) / 2).astype(int)
    kept = ((index >= 0) & (index < shape)).all(1)
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, tuple(index[kept].T), values[inside][kept])
    np.add.at(count, tuple(index[kept].T), 1)
    total, count = (ndimage.gaussian_filter(k, 0.7) for k in (total, count))
    level = total / np.maximum(count, 0.05)
    nearest = ndimage.distance_transform_edt(
        count <= 0.05, return_distances=False, return_indices=True
    )
    out = np.zeros_like(values)
    there = (mni[:, inside].T * [-1, 1, 1] - low) / 2
    out[inside] = ndimage.map_coordinates(level[tuple(nearest)], there.T, order=1, mode='nearest')
    return out


def patient_signs(images: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the signs of one patient, (Z, Y, X)."""
    names = ('ncct', 'cta', 'brain', 'inflow', 'veins', 'white', 'grey')
    data = {k: torch.from_numpy(np.ascontiguousarray(images[k].T)) for k in names}
    step = (SPACING,) * 3
    level = perfusion.subtract(data['ncct'], data['cta'], data['brain'], step)
    sources = perfusion.find_sources(
        level, perfusion.vesselness(level, step), data['inflow'], data['brain'], step
    )

    def mirror(values: torch.Tensor) -> torch.Tensor:
        there = mirrored(values.numpy().T, images['brain'], images['mni'])
        return torch.from_numpy(np.ascontiguousarray(there.T.astype(np.float32)))

    return perfusion.synthesize(
        data['ncct'], data['cta'], data['brain'], sources, step, veins=data['veins'],
        white=data['white'], grey=data['grey'], mirror=mirror,
    ).signs  # fmt: skip


def normal_equations(images: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    found = patient_signs(images)
    inside = images['brain'] & images['tbrain']
    x = np.stack([k.numpy().T[inside][::STRIDE] for k in found.values()], 1).astype(float)
    delay = images['delay'][inside][::STRIDE]
    target = rankdata(delay) / len(delay) + np.clip(delay, 0, LATEST) / SECONDS
    x -= x.mean(0)
    return x.T @ x / len(x), x.T @ (target - target.mean()) / len(x), list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--patients', type=int, default=39)
    parser.add_argument('--seed', type=int, default=300, help='of the first patient')
    options = parser.parse_args()
    torch.set_num_threads(1)
    template = ct.load_template('MNI152NLin2009aSym', spacing=2.0)
    left: list[np.ndarray] = []
    right: list[np.ndarray] = []
    names: list[str] = []
    for seed in range(options.seed, options.seed + options.patients):
        a, b, names = normal_equations(patient_images(seed, template))
        left.append(a)
        right.append(b)
    weights = np.linalg.solve(np.mean(left, 0) + RIDGE * np.eye(len(names)), np.mean(right, 0))
    path = load('perfusion_calibration.json')
    known = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    known['weights'] = dict(zip(names, np.round(weights, 3).tolist(), strict=True))
    known['provenance'] = {
        'Script': 'scripts/calibrate_perfusion.py',
        'Date': datetime.datetime.now(datetime.UTC).date().isoformat(),
        'Patients': options.patients,
        'FirstSeed': options.seed,
        'Spacing': SPACING,
        'Target': 'rank of the true delay plus its seconds (to 12 s) over 12',
    }
    path.write_text(json.dumps(known, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
