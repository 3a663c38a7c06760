"""How often a model's test of an item finds a region where there is none, and where there is one.

Made cohorts (maps of `families.py`, or lesion masks cut from them) with scores that
follow the volume of the deficit alone (`linear`, `saturating`, `threshold`), follow nothing
(`nothing`), or follow one of its substrates (`substrate`: the power of the test).
Only the tests are run, no maps are fitted. `--scores 8` draws eight sets of scores for each set of
maps, which is faster. Half of the cohorts have 40 % of participants with a
deficit, half 20 %; 5 % of the scores are wrong and 3 % are missing.

Usage: python benchmarks/nulls.py --cohorts 200 --maps perfusion lesion --out nulls.jsonl
Prints a markdown table: p <= .01 and p <= .05 as counts, with Wilson intervals of 95 %.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from deficit import numbers
from families import brain, link, make_maps, spheres_of

from bids_perfdeficit import deficit
from bids_perfdeficit.deficit import DeficitSettings, Grid, Item, get_model

FORMS = ('linear', 'saturating', 'threshold', 'nothing', 'substrate')
MAPS = ('perfusion', 'lesion')
#: Substrates that the power is measured on; the link changes from cohort to cohort.
POWER = ('5a', '8', '9', '11')
POWER_LINKS = ('or', 'share', 'saturating', 'all')
LEVELS = 4
#: Log-odds (in units of the noise) between no deficit and the largest, of volume and substrate.
VOLUME_DRIVE, SUBSTRATE_DRIVE = 10.0, 4.0
#: mm of the dictionary on coarse grids: no spherical ROI is smaller than a voxel.
COARSE = {'radii': (7.0, 10.0, 14.0), 'spacings': (6.0, 8.0, 10.0)}


def make_lesions(clean, rng):
    """Cut each map at a share of its own maximum: binary, one-sided, of any size."""
    highest = clean.max(1, keepdims=True)
    cut = rng.uniform(0.25, 0.95, (len(clean), 1))
    return ((clean >= cut * highest) & (highest > 0.1)).astype(np.float32)


def drive_of(form, truth):
    volume = truth.mean(1)
    typical = np.median(volume[volume > 0.01])
    if form == 'linear':
        return volume / np.quantile(volume, 0.98)
    if form == 'saturating':
        return 1 - np.exp(-volume / (0.4 * typical))
    if form == 'threshold':
        return (volume > typical).astype(float)
    return np.zeros(len(volume))


def make_score(drive, prevalence, rng):
    latent = drive + rng.logistic(size=len(drive))
    cuts = np.quantile(latent, 1 - prevalence * np.array([1, 0.6, 0.3]))
    score = (latent[:, None] > cuts).sum(1).astype(float)
    wrong = rng.random(len(score)) < 0.05
    score[wrong] = rng.integers(0, LEVELS, wrong.sum())
    score[rng.random(len(score)) < 0.03] = np.nan
    return score


def make_cohort(space, kind, n, seed, forms, repeats=1):
    """Return maps, and `repeats` columns of scores for each form (four times for `substrate`)."""
    rng = np.random.default_rng(seed + 9000)
    clean, maps = make_maps(space, n, seed)
    if kind == 'lesion':
        clean = maps = make_lesions(clean, rng)
    names, columns = [], []
    for repeat, form in ((r, f) for r in range(repeats) for f in forms):
        prevalence = 0.4 if (seed + repeat) % 2 else 0.2
        for name in POWER if form == 'substrate' else (form,):
            if form == 'substrate':
                pieces = spheres_of(space, name)
                drive = SUBSTRATE_DRIVE * link(POWER_LINKS[seed % 4], clean, pieces)
            else:
                drive = VOLUME_DRIVE * drive_of(form, clean)
            names.append(f'{name}-{repeat}')
            columns.append(make_score(drive, prevalence, rng))
    return maps, tuple(Item(name, LEVELS) for name in names), np.stack(columns, 1)


def wilson(hits, n, z=1.96):
    share = hits / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def table(rows):
    print('| model | maps | form | tests | p <= .01 | p <= .05 | median p |')
    print('|---|---|---|---|---|---|---|')
    for key in sorted({(r['model'], r['maps'], r['form']) for r in rows}):
        p = np.array([r['p'] for r in rows if (r['model'], r['maps'], r['form']) == key])
        cells = []
        for level in (0.01, 0.05):
            hits = int((p <= level + 1e-12).sum())
            low, high = wilson(hits, len(p))
            cells.append(f'{hits} ({hits / len(p):.1%}; {low:.1%} to {high:.1%})')
        print(f'| {" | ".join(key)} | {len(p)} | {" | ".join(cells)} | {np.median(p):.3f} |')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('files', nargs='*', help='files of earlier runs: only print their table')
    parser.add_argument('--cohorts', type=int, default=20)
    parser.add_argument('--first', type=int, default=0, help='seed of the first cohort')
    parser.add_argument('--seeds', type=numbers, help='seeds as 0-19, instead of a number')
    parser.add_argument('--form', nargs='+', default=list(FORMS), choices=FORMS)
    parser.add_argument('--maps', nargs='+', default=list(MAPS), choices=MAPS)
    parser.add_argument('--models', nargs='+', default=['spatial', 'ridge'])
    parser.add_argument('--scores', type=int, default=1, help='sets of scores for each of maps')
    parser.add_argument('--n', type=int, default=300)
    parser.add_argument('--spacing', type=float, default=6.0, help='mm; 4 is the default grid')
    parser.add_argument('--permutations', type=int, default=299)
    parser.add_argument('--out', default='nulls.jsonl')
    arguments = parser.parse_args()
    if arguments.files:
        table([json.loads(x) for f in arguments.files for x in Path(f).read_text().splitlines()])
        return
    torch.set_num_threads(1)
    settings = DeficitSettings(
        permutations=arguments.permutations, iterations=0, coarse_spacing=arguments.spacing
    )
    if arguments.spacing > 4:
        settings = replace(settings, **COARSE)
    space = brain(arguments.spacing)
    grid = Grid(space.mask, space.affine)
    seeds = arguments.seeds or range(arguments.first, arguments.first + arguments.cohorts)
    rows = []
    started = time.process_time()
    with Path(arguments.out).open('a') as stream:
        for seed in seeds:
            for kind in arguments.maps:
                maps, items, scores = make_cohort(
                    space, kind, arguments.n, seed, arguments.form, arguments.scores
                )
                prepared = deficit.prepare(maps, grid, settings)
                for model in arguments.models:
                    found = get_model(model).fit(
                        prepared, scores, np.zeros((len(scores), 0)), items,
                        replace(settings, seed=seed), maps=False,
                    )  # fmt: skip
                    for k in found.usable:
                        name = items[k].name.partition('-')[0]
                        row = {
                            'model': model, 'maps': kind, 'seed': seed, 'item': name,
                            'form': 'substrate' if name in POWER else name,
                            'p': float(found.p_value[k]), 'n': arguments.n,
                            'spacing': arguments.spacing,
                        }  # fmt: skip
                        rows.append(row)
                        stream.write(json.dumps(row) + '\n')
                stream.flush()
    table(rows)
    seconds = time.process_time() - started
    print(
        f'{len(seeds)} cohorts of {arguments.n}, {arguments.spacing:g} mm, '
        f'{arguments.permutations} draws, {seconds:.0f} CPU s'
    )


if __name__ == '__main__':
    main()
