"""What later phases of a CTA add: one phase against two and three, with the shipped weights.

Digital patients that had no part in the fit, drawn and scanned as in `scripts/fit_phases.py`:
three phases, 8 s apart, the first between 3.5 s before and 3 s after the arterial peak, the head
moving a little between them. The registrations are given; brain, shading, sources, features and
maps are the app's own. Differences from the first phase alone have 95 % intervals over patients
(bootstrap); first phases after the arterial peak stand apart.

Run: python benchmarks/multiphase.py FOLDER [--patients 40] [--seed 5100]; a second run in the same
folder goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bids_perfdeficit import perfusion
from bids_perfdeficit.perfusion.agreement import bootstrap_interval, measure_agreement

sys.path.insert(0, str(Path(__file__).parents[1] / 'scripts'))
from fit_phases import changed, measure

MAPS = {1: 'first phase alone', 2: 'two phases', 3: 'three phases'}
COLUMNS = ('Spearman', 'in the deficit', 'AUC', 'Dice, volume given')


def evaluate(seed: int, folder: Path) -> list[dict[str, object]]:
    """Return a row of measures of the map for one phase, two and three."""
    patient = measure(seed, folder)
    delay = patient['delay'].astype(float)
    first = patient['first_late'].astype(float)
    rows: list[dict[str, object]] = []
    for phases, name in MAPS.items():
        late = first
        if phases > 1:
            late = (
                first + changed(patient, phases) @ perfusion.phase_fusion()['weights'][str(phases)]
            )
        found = measure_agreement(late, delay, patient['arrival'].astype(float))
        rows.append({
            'seed': seed,
            'map': name,
            'phase': float(patient['phase']),
            'Spearman': found.spearman,
            'in the deficit': found.spearman_deficit,
            'AUC': found.auc,
            'Dice, volume given': found.dice_matched,
        })  # fmt: skip
    return rows


def interval(values: np.ndarray) -> str:
    """Return mean and 95 % interval over patients."""
    known = values[np.isfinite(values)]
    low, high = bootstrap_interval(known, seed=0)
    return f'{known.mean():+.3f} ({low:+.3f} to {high:+.3f})'


def show(table: pd.DataFrame) -> None:
    print(f'| map | n | {" | ".join(COLUMNS)} |')
    print('|---' * (2 + len(COLUMNS)) + '|')
    for name, part in table.groupby('map', sort=False):
        cells = ' | '.join(f'{part[c].mean():.3f}' for c in COLUMNS)
        print(f'| {name} | {len(part)} | {cells} |')
    one = table[table['map'] == MAPS[1]].set_index('seed')
    for phases in (2, 3):
        part = table[table['map'] == MAPS[phases]].set_index('seed')
        cells = ' | '.join(interval((part[c] - one[c]).to_numpy()) for c in COLUMNS)
        print(f'| {MAPS[phases]} less one | {len(part)} | {cells} |')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--patients', type=int, default=40)
    parser.add_argument('--seed', type=int, default=5100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(options.patients):
        rows += evaluate(options.seed + k, options.folder)
    table = pd.DataFrame(rows)
    show(table)
    print('\nFirst phase after the arterial peak:\n')
    show(table[table['phase'] > 0])
    best = table.pivot(index='seed', columns='map', values='Spearman')
    for phases in (2, 3):
        print(f'{MAPS[phases]} better than one in {(best[MAPS[phases]] > best[MAPS[1]]).sum()}')


if __name__ == '__main__':
    main()
