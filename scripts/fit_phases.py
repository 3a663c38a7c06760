"""Fit how later phases of a CTA are joined with the first, on digital patients.

The patients are drawn as in `benchmarks/perfusion.py` and scanned three times, 8 s apart (Menon et
al., Radiology 2015), the first time between 3.5 s before and 3 s after the arterial peak; the head
moves a little between the phases. The registrations are given; brain, shading, sources, features
and maps are the app's own. Added to the map of the first phase, the changes of the features are
fitted to the rank of the true delay plus its seconds, by ridge regression. The penalty and the
form were chosen on the same patients, each left out in turn: changes that were added to the log
odds of the probability gave no more exact volumes, so that it stays as it is. Prints what is
gained in patients that are left out.

Run: python scripts/fit_phases.py --cache DIR [--patients 30] [--seed 5000]
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_patients import SPACING, Across, patient_images

from bids_perfdeficit import perfusion
from bids_perfdeficit.data import load
from bids_perfdeficit.perfusion.agreement import spearman
from bids_perfdeficit.perfusion.combination import CHANGING
from bids_perfdeficit.perfusion.phases import stack_changes
from bids_perfdeficit.perfusion.targets import lateness
from bids_perfdeficit.phantom.patient import Patient, make_patient
from bids_perfdeficit.phantom.settings import Occlusion, ScannerSettings

#: s between the phases, and of the first: mean, standard deviation and limits.
LATER, FIRST, LIMITS = (8.0, 16.0), (0.0, 2.0), (-3.5, 3.0)
#: How often a site is drawn, as in `benchmarks/perfusion.py`.
SITES = {
    'none': 0.22, 'M1': 0.26, 'M2sup': 0.12, 'M2inf': 0.1, 'ICA': 0.14, 'A2': 0.05, 'P1': 0.03,
    'P2': 0.04, 'BA': 0.04,
}  # fmt: skip
#: Voxels of a patient that are fitted; penalty on the weights of standardised changes, a voxel.
VOXELS, RIDGE = 5_000, 0.1


def draw(seed: int, later: tuple[float, ...] = LATER) -> Patient:
    rng = np.random.default_rng([seed, 77])
    occlusion = Occlusion(
        site=str(rng.choice(list(SITES), p=list(SITES.values()))),
        side=str(rng.choice(['L', 'R'])),
        collaterals=float(rng.beta(2.5, 2.5)),
        position=float(rng.uniform(0, 0.7)),
        length=float(rng.uniform(5, 18)),
        onset_hours=float(rng.uniform(1, 10)),
    )
    thickness = float(rng.choice([SPACING, 3.0, 5.0], p=[0.5, 0.25, 0.25]))
    first = float(np.clip(np.random.default_rng([seed, 55]).normal(*FIRST), *LIMITS))
    scanner = ScannerSettings(ncct_thickness=thickness, phase=first, later=later)
    return make_patient(seed, occlusion, spacing=SPACING, scanner=scanner)


def measure(seed: int, cache: Path) -> dict[str, Any]:
    """Return what `synthesize` finds with two later phases, in the voxels of the brain."""
    stored = cache / f'{seed}_features.npz'
    if not stored.is_file():
        np.savez(stored, **_measure(seed, cache))
    with np.load(stored) as found:
        return {name: found[name] for name in found.files}


def _measure(seed: int, cache: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    images = patient_images(seed, cache, draw)
    names = ('ncct', 'cta', 'cta_2', 'cta_3', 'brain', 'inflow', 'veins', 'white', 'grey')
    data = {k: torch.from_numpy(np.ascontiguousarray(images[k].T)) for k in names}
    step = (SPACING,) * 3
    phases, references = [], []
    for name in ('cta', 'cta_2', 'cta_3'):
        enhancement = perfusion.enhance(
            data['ncct'], data[name], data['brain'], step,
            inside=phases[0].inside if phases else None,
        )  # fmt: skip
        reference = perfusion.fit_reference(
            data['ncct'], enhancement.subtraction, data['brain'], step,
            veins=data['veins'], white=data['white'], grey=data['grey'],
        )  # fmt: skip
        references.append(reference)
        phases.append(reference.correct(enhancement))
    first = phases[0]
    sources = perfusion.find_sources(
        first.subtraction, first.vesselness, data['inflow'], data['brain'], step
    )

    maps = perfusion.synthesize(
        data['ncct'], data['cta'], data['brain'], sources, step, veins=data['veins'],
        white=data['white'], grey=data['grey'],
        mirror=Across.of(images['brain'], images['mni']).mirror, enhancement=first,
        later=phases[1:], shading=references[0].left, residual=references[0].residual,
    )  # fmt: skip
    inside = images['brain'] & images['tbrain']
    kept = {k: v.numpy().T[inside] for k, v in maps.features.items() if v.ndim}
    kept['delay'] = images['delay'][inside]
    return {
        **{k: v.astype(np.float16) for k, v in kept.items()},
        'phase': float(images['phase']),
    }


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def changed(patient: dict[str, Any], phases: int) -> np.ndarray:
    """Return the changes to the later phases, (V, F), as the app stacks them."""
    brain = torch.ones(len(patient['delay']), dtype=torch.bool)
    later = [{name: tensor(patient[f'{name}_{k}']) for name in CHANGING}
             for k in range(2, phases + 1)]  # fmt: skip
    return stack_changes(later, brain).numpy().astype(float)


def fit(patients: list[dict[str, Any]], phases: int) -> np.ndarray:
    """Return the weights for so many phases, (F,)."""
    rows = [np.random.default_rng(k).permutation(len(p['delay']))[:VOXELS]
            for k, p in enumerate(patients)]  # fmt: skip
    x = np.concatenate([changed(p, phases)[r] for p, r in zip(patients, rows, strict=True)])
    missed = [lateness(p['delay'].astype(float)) - p['first_late'] for p in patients]
    y = np.concatenate([m[r] for m, r in zip(missed, rows, strict=True)])
    centre, scale = x.mean(0), x.std(0) + 1e-6
    z = (x - centre) / scale
    ridge = z.T @ z + RIDGE * len(z) * np.eye(z.shape[1])
    return np.asarray(np.linalg.solve(ridge, z.T @ (y - y.mean())) / scale)


def gain(patient: dict[str, Any], weight: np.ndarray, phases: int) -> float:
    """Return by how much the Spearman correlation with the delay rises."""
    first = patient['first_late'].astype(float)
    before, after = (spearman(k, patient['delay'].astype(float))
                     for k in (first, first + changed(patient, phases) @ weight))  # fmt: skip
    return after - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cache', type=Path, required=True, help='for the patients made')
    parser.add_argument('--patients', type=int, default=30)
    parser.add_argument('--seed', type=int, default=5000, help='of the first patient')
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    patients = []
    for k in range(options.patients):
        patients.append(measure(options.seed + k, options.cache))
        print(f'patient {k + 1} of {options.patients}', file=sys.stderr, flush=True)
    for phases in (2, 3):
        gains = [
            gain(p, fit([q for q in patients if q is not p], phases), phases) for p in patients
        ]
        print(f'{phases} phases, each patient left out: Spearman {np.mean(gains):+.4f} (standard '
              f'error {np.std(gains) / len(gains) ** 0.5:.4f})')  # fmt: skip
    content = {
        'changes': list(CHANGING),
        'weights': {str(n): np.round(fit(patients, n), 5).tolist() for n in (2, 3)},
        'provenance': {
            'Script': 'scripts/fit_phases.py',
            'Date': datetime.datetime.now(datetime.UTC).date().isoformat(),
            'Patients': options.patients,
            'FirstSeed': options.seed,
            'Spacing': SPACING,
            'LaterPhases': list(LATER),
            'BaseSHA256': perfusion.base_sha256(),
            'Target': 'rank of the true delay plus its seconds (to 12 s) over 8',
        },
    }
    load('phase_fusion.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
