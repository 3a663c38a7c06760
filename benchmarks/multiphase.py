"""What later phases of a CTA could add: one phase against two and three.

Not part of the app, which uses one phase. Digital patients, drawn as in `perfusion.py`, are
scanned three times, 8 s apart (Menon et al., Radiology 2015), the first between 3.5 s before and
3 s after the arterial peak. Each phase gives the features of the network (registrations given, by
`scripts/calibrate_perfusion.py`). What is compared, on patients that had no part in it:

- the shipped network on the first phase, and on the second phase alone;
- a linear fusion of the first phase's two outputs, to which nothing is added (the control);
- the same with the changes of the features of enhancement from the first phase to the later ones.

Run: python benchmarks/multiphase.py FOLDER [--fit 5] [--others 5] [--seed 5000]; a second run in
the same folder goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from perfusion import draw
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from bids_perfdeficit.perfusion import calibration
from bids_perfdeficit.perfusion.agreement import DEFICIT_S, LEAST_VOXELS, roc_area, spearman
from bids_perfdeficit.perfusion.combination import hidden_units
from bids_perfdeficit.phantom.patient import Patient

sys.path.insert(0, str(Path(__file__).parents[1] / 'scripts'))
import calibrate_perfusion as fit

#: s between phases, and how many there are; voxels of a patient that are kept.
APART_S, PHASES, VOXELS = 8.0, 3, 20_000
#: Features whose change from phase to phase is added.
CHANGING = ('level', 'level_wide', 'vessels', 'asymmetry', 'asymmetry_wide', 'vessel_asymmetry')
#: Seeds of the others begin so far after those that are fitted.
OTHERS = 100


def scan(seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Return the features of each phase and the delay, of some voxels of a patient."""
    stored = folder / f'{seed}.npz'
    if not stored.is_file():
        first = float(np.clip(np.random.default_rng([seed, 55]).normal(0, 2), -3.5, 3))
        kept: dict[str, object] = {'phase': first}
        for k in range(PHASES):

            def at_phase(seed: int, phase: float = first + APART_S * k) -> Patient:
                return draw(seed, fit.SPACING, phase=phase)

            with tempfile.TemporaryDirectory() as cache, mock.patch.object(fit, 'draw', at_phase):
                found = fit.measure(seed, Path(cache))
            chosen = np.random.default_rng(seed).permutation(len(found['delay']))[:VOXELS]
            chosen.sort()
            order = [found['names'].index(name) for name in calibration()['features']]
            kept[f'f{k}'] = found['features'][chosen][:, order].astype(np.float32)
            kept |= {'delay': found['delay'][chosen], 'n': len(found['delay'])}
            kept['site'] = found['site']
        np.savez(stored, **kept)
    with np.load(stored) as found:
        return {name: found[name] for name in found.files}


def outputs(features: np.ndarray) -> np.ndarray:
    """Return the two outputs of the shipped network, (V, 2): the map, and the logit."""
    last = calibration()['layers'][-1]
    hidden = hidden_units(torch.from_numpy(features)).numpy()
    return hidden @ np.asarray(last['weight']).T + np.asarray(last['bias'])


def joined(patient: dict[str, np.ndarray], phases: int) -> np.ndarray:
    """Return what is fused, (V, F)."""
    first = outputs(patient['f0'])
    columns = [rankdata(first[:, 0]) / len(first), np.clip(first[:, 1], -8, 8)]
    for k in range(1, phases):
        for name in CHANGING:
            place = calibration()['features'].index(name)
            columns.append(patient[f'f{k}'][:, place] - patient['f0'][:, place])
    return np.nan_to_num(np.column_stack(columns))


def target(delay: np.ndarray) -> np.ndarray:
    return rankdata(delay) / len(delay) + np.clip(delay, 0, fit.LATEST) / fit.SECONDS


def fuse(
    fitted: list[dict[str, np.ndarray]], others: list[dict[str, np.ndarray]], phases: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the map and the probability of the others."""
    x = np.concatenate([joined(p, phases)[::4] for p in fitted])
    late = np.concatenate([target(p['delay'])[::4] for p in fitted])
    deficit = np.concatenate([(p['delay'] > DEFICIT_S)[::4] for p in fitted])
    centre, scale = x.mean(0), x.std(0) + 1e-6
    design = np.column_stack([x, np.ones(len(x))])
    penalty = 1e-4 * len(x) * np.diag([1.0] * x.shape[1] + [0.0])
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ late)
    model = LogisticRegression(max_iter=500).fit((x - centre) / scale, deficit)
    made = []
    for patient in others:
        own = joined(patient, phases)
        probability = model.predict_proba((own - centre) / scale)[:, 1]
        made.append((own @ weights[:-1], probability))
    return made


def measure(patient: dict[str, np.ndarray], late: np.ndarray, probability: np.ndarray) -> dict:
    delay = patient['delay']
    deficit = delay > DEFICIT_S
    volume = fit.SPACING**3 / 1000 * float(patient['n']) / len(delay)
    found = probability > calibration()['threshold']
    return {
        'phase': float(patient['phase']),
        'spearman': spearman(late, delay),
        'auc': roc_area(probability, deficit) if deficit.sum() >= LEAST_VOXELS else np.nan,
        'error ml': volume * abs(int(found.sum()) - int(deficit.sum())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--fit', type=int, default=5)
    parser.add_argument('--others', type=int, default=5)
    parser.add_argument('--seed', type=int, default=5000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    fitted = [scan(options.seed + k, options.folder) for k in range(options.fit)]
    others = [scan(options.seed + OTHERS + k, options.folder) for k in range(options.others)]
    rows = []
    for name, made in (
        ('shipped, first phase', [outputs(p['f0']) for p in others]),
        ('shipped, second phase alone', [outputs(p['f1']) for p in others]),
    ):
        for patient, found in zip(others, made, strict=True):
            rows.append({'map': name, **measure(patient, found[:, 0], expit(found[:, 1]))})
    for phases, name in ((1, 'fused, one phase'), (2, 'two phases'), (3, 'three phases')):
        for patient, found in zip(others, fuse(fitted, others, phases), strict=True):
            rows.append({'map': name, **measure(patient, *found)})
    table = pd.DataFrame(rows)
    columns = ['spearman', 'auc', 'error ml']
    print(f'| map | n | {" | ".join(columns)} | of phases after 0 s: n | Spearman |')
    print('|---' * 7 + '|')
    for name, part in table.groupby('map', sort=False):
        late = part[part['phase'] > 0]
        cells = ' | '.join(f'{part[c].mean():.3f}' for c in columns)
        print(f'| {name} | {len(part)} | {cells} | {len(late)} | {late["spearman"].mean():.3f} |')


if __name__ == '__main__':
    main()
