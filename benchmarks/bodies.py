"""What other bodies and tube voltages do to the perfusion map, in held-out digital patients.

The patients of `perfusion.py` are made again, each with one change: severe leukoaraiosis, a
stenosis of 70 % of the carotid on the side without the occlusion, an old infarct, or a CTA at 80
or 100 kV beside the NCCT at 120. Their truth changes with them, but for the voltage. Nothing was
fitted on such persons or voltages.

Run: python benchmarks/bodies.py [--patients 12] [--seed 1000] [--spacing 2] [--rows FILE]
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from perfusion import draw, measure

from bids_perfdeficit import ct
from bids_perfdeficit.phantom.settings import PersonSettings

#: What is changed: of the person, and the voltage. The side is filled in.
CHANGES: dict[str, tuple[dict[str, Any], int]] = {
    'as drawn': ({}, 120),
    'leukoaraiosis': ({'leukoaraiosis': 1.0}, 120),
    'carotid stenosis of 70 %': ({'stenosis': 0.7}, 120),
    'old infarct': ({'old_infarct': True}, 120),
    'CTA at 100 kV': ({}, 100),
    'CTA at 80 kV': ({}, 80),
}


def summary(rows: pd.DataFrame) -> str:
    """Return the table, in Markdown: each change, paired with the patients as drawn."""
    lines = [
        '| change | n | Spearman (change, SE) | AUC of the probability (change, SE) '
        '| mean error, mL | open arteries: mean (largest) mL |',
        '|---|---|---|---|---|---|',
    ]
    plain = rows[rows.change == 'as drawn'].set_index('seed')
    for name in CHANGES:
        part = rows[rows.change == name].set_index('seed')
        cells = []
        for key in ('default.rho', 'probability.auc'):
            gap = (part[key] - plain[key]).dropna()
            error = gap.std() / max(len(gap), 1) ** 0.5
            cells.append(f'{part[key].mean():.3f} ({gap.mean():+.3f}, {error:.3f})')
        off = (part['found volume'] - part['true volume']).abs().mean()
        open_ml = part['found volume'][part.site == 'none']
        lines.append(
            f'| {name} | {len(part)} | {" | ".join(cells)} | {off:.1f} '
            f'| {open_ml.mean():.1f} ({open_ml.max():.0f}) |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--patients', type=int, default=12)
    parser.add_argument('--spacing', type=float, default=2.0, help='mm')
    parser.add_argument('--seed', type=int, default=1000, help='of the first patient')
    parser.add_argument('--rows', type=Path, help='JSON lines to which patients are added')
    options = parser.parse_args()
    torch.set_num_threads(1)
    template = ct.load_template('MNI152NLin2009aSym', spacing=2.0)
    rows: list[dict[str, object]] = []
    if options.rows and options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    done = {(row['seed'], row['change']) for row in rows}
    for seed in range(options.seed, options.seed + options.patients):
        side = draw(seed, 4.0).occlusion.side
        for name, (changed, voltage) in CHANGES.items():
            if (seed, name) in done:
                continue
            person = PersonSettings(stenosis_side='R' if side == 'L' else 'L', **changed)
            make = partial(draw, seed, options.spacing, person=person, cta_kvp=voltage)
            row = measure(make, options.spacing, template, steps=False, published=False)
            rows.append(row | {'change': name})
            if options.rows:
                with options.rows.open('a') as stream:
                    stream.write(json.dumps(rows[-1], default=float) + '\n')
    print(summary(pd.DataFrame(rows)))


if __name__ == '__main__':
    main()
