"""Fit how later phases of a CTA are joined with the first, on digital patients.

The patients are drawn as in `benchmarks/perfusion.py` and scanned three times, 8 s apart (Menon et
al., Radiology 2015), the first time between 3.5 s before and 3 s after the arterial peak; the head
moves a little between the phases. The registrations are given; brain, shading, sources, features
and maps are the app's own. Added to the map of the first phase, the changes of the features are
fitted to the rank of the true delay plus its seconds, by ridge regression; added to its log odds,
to a delay of more than 6 s, by logistic regression with the same penalty. The bias of the second
is then moved so that these patients have the volume at the shipped threshold that the first phase
alone gives them, since that was calibrated on many more.

Run: python scripts/fit_phases.py --cache DIR [--patients 10] [--seed 5000]
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
from calibrate_perfusion import LATEST, SECONDS, SPACING, mirrored, patient_images
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import rankdata

from bids_perfdeficit import perfusion
from bids_perfdeficit.data import load
from bids_perfdeficit.perfusion.combination import CHANGING
from bids_perfdeficit.perfusion.phases import limited_odds, stack_changes
from bids_perfdeficit.phantom.patient import HYPOPERFUSED, Patient, make_patient
from bids_perfdeficit.phantom.settings import Occlusion, ScannerSettings

#: s between the phases, and of the first: mean, standard deviation and limits.
LATER, FIRST, LIMITS = (8.0, 16.0), (0.0, 2.0), (-3.5, 3.0)
#: How often a site is drawn, as in `benchmarks/perfusion.py`.
SITES = {
    'none': 0.22, 'M1': 0.26, 'M2sup': 0.12, 'M2inf': 0.1, 'ICA': 0.14, 'A2': 0.05, 'P1': 0.03,
    'P2': 0.04, 'BA': 0.04,
}  # fmt: skip
#: Voxels of a patient that are fitted; penalties on the weights of standardised changes, a voxel,
#: of the map and of the log odds.
VOXELS, RIDGE, PENALTY = 5_000, 0.1, 0.01


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
    phases = []
    for name in ('cta', 'cta_2', 'cta_3'):
        enhancement = perfusion.enhance(
            data['ncct'], data[name], data['brain'], step,
            inside=phases[0].inside if phases else None,
        )  # fmt: skip
        reference = perfusion.fit_reference(
            data['ncct'], enhancement.subtraction, data['brain'], step,
            veins=data['veins'], white=data['white'], grey=data['grey'],
        )  # fmt: skip
        phases.append(reference.correct(enhancement))
    first = phases[0]
    sources = perfusion.find_sources(
        first.subtraction, first.vesselness, data['inflow'], data['brain'], step
    )

    def mirror(values: torch.Tensor) -> torch.Tensor:
        there = mirrored(values.numpy().T, images['brain'], images['mni'])
        return torch.from_numpy(np.ascontiguousarray(there.T.astype(np.float32)))

    maps = perfusion.synthesize(
        data['ncct'], data['cta'], data['brain'], sources, step, veins=data['veins'],
        white=data['white'], grey=data['grey'], mirror=mirror, enhancement=first,
        later=phases[1:],
    )  # fmt: skip
    inside = images['brain'] & images['tbrain']
    kept = {k: v.numpy().T[inside] for k, v in maps.features.items() if v.ndim}
    kept['delay'] = images['delay'][inside]
    whole = {k: float(v) for k, v in maps.features.items() if not v.ndim}
    for number, phase in enumerate(phases, 1):
        artery = float(phase.subtraction[sources.mask].quantile(0.8))
        sinus = float(phase.subtraction[data['veins'] > 0.8].quantile(0.9))
        whole |= {f'artery_{number}': artery, f'sinus_{number}': sinus}
    return {
        **{k: v.astype(np.float16 if k != 'first_hypoperfused' else np.float32)
           for k, v in kept.items()},
        **whole,
        'level_mm': first.subtraction.numpy().T[images['brain']].astype(np.float16),
        'index': np.flatnonzero(inside),
        'phase': float(images['phase']),
        'site': str(images['site']),
        'side': str(images['side']),
    }  # fmt: skip


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def changed(patient: dict[str, Any], phases: int) -> np.ndarray:
    """Return the changes to the later phases, (V, F), as the app stacks them."""
    brain = torch.ones(len(patient['delay']), dtype=torch.bool)
    later = [{name: tensor(patient[f'{name}_{k}']) for name in CHANGING}
             for k in range(2, phases + 1)]  # fmt: skip
    return stack_changes(later, brain).numpy().astype(float)


def odds(patient: dict[str, Any]) -> np.ndarray:
    """Return the log odds of the first phase, (V,)."""
    return limited_odds(tensor(patient['first_hypoperfused'])).numpy().astype(float)


def target(delay: np.ndarray) -> np.ndarray:
    delay = delay.astype(float)
    return rankdata(delay) / len(delay) + np.clip(delay, 0, LATEST) / SECONDS


def fit(patients: list[dict[str, Any]], phases: int, threshold: float) -> dict[str, Any]:
    """Fit the weights for so many phases."""
    rows = [np.random.default_rng(k).permutation(len(p['delay']))[:VOXELS]
            for k, p in enumerate(patients)]  # fmt: skip
    every = [changed(p, phases) for p in patients]

    def drawn(values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([v[r] for v, r in zip(values, rows, strict=True)])

    x = drawn(every)
    centre, scale = x.mean(0), x.std(0) + 1e-6
    z = (x - centre) / scale
    missed = drawn([target(p['delay']) - p['first_late'] for p in patients])
    ridge = z.T @ z + RIDGE * len(z) * np.eye(z.shape[1])
    weight = np.linalg.solve(ridge, z.T @ (missed - missed.mean())) / scale
    slope = _logistic(z, drawn([odds(p) for p in patients]),
                      drawn([p['delay'] > HYPOPERFUSED for p in patients])) / scale  # fmt: skip
    limit = np.log(threshold / (1 - threshold))
    alone = [odds(p) for p in patients]
    volume = sum((o > limit).sum() for o in alone)

    def excess(shift: float) -> float:
        pairs = zip(alone, every, strict=True)
        return float(sum((o + v @ slope + shift > limit).sum() for o, v in pairs) - volume)

    bias = brentq(excess, -8, 8, xtol=1e-3)
    return {
        'map': np.round(weight, 5).tolist(),
        'odds': np.round(slope, 5).tolist(),
        'bias': round(float(bias), 5),
    }


def _logistic(z: np.ndarray, offset: np.ndarray, deficit: np.ndarray) -> np.ndarray:
    """Return the weights of a penalised logistic regression with an offset (Newton's method)."""
    design = np.column_stack([z, np.ones(len(z))])
    penalty = PENALTY * len(z) * np.diag([1.0] * z.shape[1] + [0.0])
    weight = np.zeros(design.shape[1])
    for _ in range(25):
        chance = expit(offset + design @ weight)
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + penalty
        weight -= np.linalg.solve(curvature, design.T @ (chance - deficit) + penalty @ weight)
    return np.asarray(weight[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cache', type=Path, required=True, help='for the patients made')
    parser.add_argument('--patients', type=int, default=10)
    parser.add_argument('--seed', type=int, default=5000, help='of the first patient')
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    patients = []
    for k in range(options.patients):
        patients.append(measure(options.seed + k, options.cache))
        print(f'patient {k + 1} of {options.patients}', file=sys.stderr, flush=True)
    threshold = float(perfusion.calibration()['threshold'])
    content = {
        'changes': list(CHANGING),
        'fusions': {str(n): fit(patients, n, threshold) for n in (2, 3)},
        'provenance': {
            'Script': 'scripts/fit_phases.py',
            'Date': datetime.datetime.now(datetime.UTC).date().isoformat(),
            'Patients': options.patients,
            'FirstSeed': options.seed,
            'Spacing': SPACING,
            'LaterPhases': list(LATER),
            'BaseSHA256': perfusion.base_sha256(),
            'Targets': 'rank of the true delay plus its seconds (to 12 s) over 12; delay above '
            '6 s, with the volume that the first phase alone has at the shipped threshold',
        },
    }
    load('phase_fusion.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
