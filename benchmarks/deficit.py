"""Deficit models side by side on cohorts whose substrates are known.

Cohorts: vascular-like maps (an occlusion takes a branch of a jittered arterial tree, with a soft
border, collaterals, noise and misregistration) and 15 ordinal items whose substrates are single
spheres, cortex-and-tract networks and lateralised pairs, or nothing but volume. Links from map to
score are none of the models': `or`, `share`, `saturating`, `all`. Scores are flipped to any level
at random. `phantom-*` links are cohorts of `bids_perfdeficit.phantom` instead, in which every
item has a substrate; those that end in `-distal` have another mix of occlusions. The models were
developed on links `or` and `share` and phantoms, with seeds under 100.

Subcommands (each prints a markdown table; `run` appends to a JSON-lines file as it goes):
  run      fit models, write one line per cohort, model and item
  table    summarise such files: mean and sd over seeds, and paired intervals against `spatial`
  null     shuffled cohorts: share with nothing declared, per item
  scale    1,400 participants, 15 items, 2 mm: seconds and peak memory, with folds

Usage: python benchmarks/deficit.py run --seeds 100-104 --links saturating all --out results.jsonl
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial import cKDTree
from sklearn.metrics import average_precision_score

from bids_perfdeficit import deficit
from bids_perfdeficit.deficit import DeficitSettings, Grid, Item
from bids_perfdeficit.deficit.validation import calibration_error

ITEMS = (
    Item('1a', 4), Item('1b', 3), Item('1c', 3), Item('2', 3), Item('3', 4), Item('4', 4),
    Item('5a', 5, '5b'), Item('5b', 5, '5a'), Item('6a', 5, '6b'), Item('6b', 5, '6a'),
    Item('7', 3), Item('8', 3), Item('9', 4), Item('10', 3), Item('11', 3),
)  # fmt: skip
#: Pieces of each substrate: RAS mm and radius. Items that are not here follow volume (1a to 1c) or
#: nothing (7).
SUBSTRATES = {
    '2': [((38, -2, 46), 11)],
    '3': [((-14, -86, 4), 12), ((14, -86, 4), 12)],
    '4': [((50, -8, 30), 9), ((-50, -8, 30), 9)],
    '5a': [((36, -20, 52), 11), ((26, -14, 14), 8)],
    '5b': [((-36, -20, 52), 11), ((-26, -14, 14), 8)],
    '6a': [((10, -30, 60), 10), ((22, -18, 10), 7)],
    '6b': [((-10, -30, 60), 10), ((-22, -18, 10), 7)],
    '8': [((42, -30, 50), 11)],
    '9': [((-46, 16, 14), 11), ((-52, -42, 16), 12)],
    '10': [((-44, -8, 22), 9)],
    '11': [((50, -44, 34), 14)],
}
#: Share of participants with any deficit, by item; others 0.4.
PREVALENCE = {'1a': 0.25, '1b': 0.3, '1c': 0.25, '3': 0.25, '7': 0.15, '11': 0.25, '2': 0.25}
LINKS = ('or', 'share', 'saturating', 'all')
#: The digital patients of `phantom`, by the links of their scores.
PHANTOMS = tuple(
    f'phantom-{k}{mix}'
    for k in ('mixed', 'threshold', 'saturating', 'synergistic')
    for mix in ('', '-distal')
)
#: Shares of the sites where smaller vessels and the posterior circulation are the rule.
DISTAL = {
    'none': 0.20, 'ICA': 0.05, 'M1': 0.15, 'M2sup': 0.15, 'M2inf': 0.15, 'A2': 0.10, 'P1': 0.05,
    'P2': 0.10, 'BA': 0.05,
}  # fmt: skip
MODELS = ('spatial', 'ridge', 'voxelwise')
#: Label-only rules for GP-ridge: share of the map's maximum.
RIDGE_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8)


def brain_grid(spacing):
    half = np.floor(68 / spacing) * spacing  # symmetric about the midline
    across = np.arange(-half, half + 1, spacing)
    axes = [across, np.arange(-104, 73, spacing), np.arange(-52, 77, spacing)]
    x, y, z = np.meshgrid(*axes, indexing='ij')
    mask = (x / 68) ** 2 + ((y + 16) / 86) ** 2 + ((z - 10) / 62) ** 2 <= 1
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [a[0] for a in axes]
    return Grid(mask, affine)


def smooth_field(grid, rng, width):
    field = ndimage.gaussian_filter(rng.standard_normal(grid.mask.shape), width / grid.spacing)
    return ((field - field.mean()) / field.std())[grid.mask]


def make_maps(grid, n, seed, *, noise=0.08, shift=2.0):
    """Return (error-free, measured) maps; the measured ones noisy and `shift` mm off."""
    anatomy = np.random.default_rng(7)  # the same arteries for everyone, in every cohort
    rng = np.random.default_rng(seed)
    xyz = grid.coordinates
    ends = brain_grid(4.0).coordinates
    ends = ends[anatomy.choice(np.flatnonzero(ends[:, 0] > 4), 40, replace=False)]
    tree = [fcluster(linkage(ends, 'ward'), k, 'maxclust') for k in (2, 3, 6, 12, 24)]
    clean = np.zeros((n, grid.n_voxels), np.float32)
    measured = np.empty_like(clean)
    for i in range(n):
        if rng.random() > 0.25:
            side = rng.choice([-1, 1])
            branches = tree[rng.choice(5, p=[0.12, 0.28, 0.25, 0.2, 0.15])]
            inside = branches == rng.integers(1, branches.max() + 1)
            moved = ends + rng.normal(0, 5, ends.shape)
            mine = xyz * [side, 1, 1]
            near = cKDTree(moved[inside]).query(mine)[0]
            far = cKDTree(moved[~inside]).query(mine)[0] if (~inside).any() else 99.0
            core = (mine[:, 0] > 0) / (1 + np.exp((near - far) / rng.uniform(2, 6)))
            collaterals = 1 + 0.35 * smooth_field(grid, rng, 12)
            clean[i] = np.clip(rng.beta(4, 2) * core * collaterals, 0, 1)
        moved = grid.embed(clean[i])
        if shift:
            moved = ndimage.shift(moved, rng.normal(0, shift, 3) / grid.spacing, order=1)
        measured[i] = 0.1 + 0.05 * smooth_field(grid, rng, 20) + moved[grid.mask]
        measured[i] += noise * rng.standard_normal(grid.n_voxels)
    return clean, np.clip(measured, 0, 1)


def link(kind, maps, pieces):
    shares = np.stack([maps[:, p].mean(1) for p in pieces])
    if kind == 'or':
        return shares.max(0)
    if kind == 'share':
        return maps[:, np.any(pieces, 0)].mean(1)
    if kind == 'saturating':
        return 1 - np.prod(1 - np.tanh(2.5 * shares), 0)
    if kind == 'all':  # affected tissue counts only where it is severely affected, piece by piece
        return np.stack([(maps[:, p] > 0.35).mean(1) for p in pieces]).mean(0)
    raise ValueError(kind)


def make_scores(grid, clean, seed, kind, flips):
    rng = np.random.default_rng(seed + 5000)
    n, columns, truths = len(clean), [], {}
    for item in ITEMS:
        if item.name in SUBSTRATES:
            pieces = [
                np.linalg.norm(grid.coordinates - centre, axis=1) <= radius
                for centre, radius in SUBSTRATES[item.name]
            ]
            truths[item.name] = np.any(pieces, 0)
            drive = 7 * link(kind, clean, pieces)
        else:
            drive = np.zeros(n) if item.name == '7' else 25 * clean.mean(1)
        latent = drive + rng.logistic(size=n) * 0.7
        share = PREVALENCE.get(item.name, 0.4)
        cuts = np.quantile(latent, 1 - share * np.array([1, 0.6, 0.4, 0.2])[: item.levels - 1])
        score = (latent[:, None] > cuts).sum(1).astype(float)
        wrong = rng.random(n) < flips
        score[wrong] = rng.integers(0, item.levels, wrong.sum())
        score[rng.random(n) < 0.03] = np.nan
        columns.append(score)
    return np.stack(columns, 1), truths


def phantom_cohort(n, seed, kind):
    """Return a cohort of digital patients on the 2 mm template; about 2 s a patient on a core."""
    from bids_perfdeficit import phantom

    links, _, mix = kind.removeprefix('phantom-').partition('-')
    cohort = phantom.make_cohort(
        seed, n, trees=10, links=links, mix=DISTAL if mix == 'distal' else None
    )
    names = [column.removeprefix('nihss_') for column in cohort.scores.columns]
    scores = cohort.scores.iloc[:, [names.index(item.name) for item in ITEMS]].to_numpy(float)
    truths = {name: truth[cohort.mask] for name, truth in phantom.substrates(spacing=2).items()}
    return Grid(cohort.mask, cohort.affine), cohort.perfusion, scores, truths


def make_cohort(n, seed, kind, *, spacing=4.0, flips=0.05, noise=0.08, shift=2.0):
    if kind.startswith('phantom-'):
        return phantom_cohort(n, seed, kind)
    grid = brain_grid(spacing)
    clean, maps = make_maps(grid, n, seed, noise=noise, shift=shift)
    scores, truths = make_scores(grid, clean, seed, kind, flips)
    return grid, maps, scores, truths


# --- measures


def best_dice(values, truth):
    order = np.argsort(-values, kind='stable')
    hits = np.cumsum(truth[order])
    return float((2 * hits / (np.arange(1, len(truth) + 1) + truth.sum())).max())


def measure(grid, effect, probability, declared, truth, bias):
    ranked = probability if np.isfinite(probability).all() else effect
    out = {
        'dice': float(2 * (declared & truth).sum() / (declared.sum() + truth.sum())),
        'oracle': best_dice(effect, truth),
        'ap': float(average_precision_score(truth, effect)),
        'declared': bool(declared.any()),
        'ml': float(declared.sum() * grid.voxel_ml),
        'bias': float(bias),
    }
    if declared.any():
        away = cKDTree(grid.coordinates[truth]).query(grid.coordinates[declared])[0]
        centre = [grid.coordinates[m].mean(0) for m in (declared, truth)]
        out['fdr'] = float((~truth[declared]).mean())
        out['fdr8'] = float((away > 8).mean())
        out['centroid'] = float(np.linalg.norm(centre[0] - centre[1]))
    if np.isfinite(probability).all():
        p = np.clip(ranked.astype(float), 0, 1)
        out['ece'] = calibration_error(p, truth, 50)
        some = p > 0.05
        if some.any():
            out['ece_some'] = calibration_error(p[some], truth[some], 10)
    return out


def run_cohort(n, seed, kind, models, settings, folds, **options):
    grid, maps, scores, truths = make_cohort(n, seed, kind, **options)
    started = time.perf_counter()
    prepared = deficit.prepare(maps, grid, settings)
    shared = time.perf_counter() - started
    rows = []
    for model in models:
        started = time.perf_counter()
        fit = deficit.fit(
            prepared, scores, mask=grid, items=ITEMS, model=model, settings=settings
        )  # fmt: skip
        seconds = time.perf_counter() - started + shared
        bias = deficit.coverage_resemblance(fit, prepared)
        common = {'n': n, 'seed': seed, 'link': kind, 'seconds': seconds, **options}
        held_out = (
            deficit.cross_validate(
                prepared, scores, items=ITEMS, model=model, settings=settings, folds=folds
            )
            if folds
            else None
        )
        for k, item in enumerate(ITEMS):
            if item.name in fit.skipped:
                continue
            row = {**common, 'model': model, 'item': item.name, 'p': float(fit.p_value[k])}
            if item.name in truths:
                row |= measure(
                    grid, fit.effect[k], fit.probability[k], fit.declared[k],
                    truths[item.name], bias[k],
                )  # fmt: skip
            else:
                row |= {'declared': bool(fit.declared[k].any())}
            if 'kl' in fit.details.get(item.name, {}):
                row['kl'] = max(fit.details[item.name]['kl'], default=0.0)
            if held_out:
                own = held_out.of(item.name)
                volume = held_out.of(item.name, 'volume')
                row |= {
                    'auc': own.auc, 'auc_volume': volume.auc, 'gain': own.gain,
                    'gain_low': own.gain_low, 'kappa': own.kappa, 'ece_scores': own.ece,
                }  # fmt: skip
            rows.append(row)
            if model == 'ridge' and item.name in truths:
                # Its best rule that uses labels only: a share of the maximum, after its own
                # permutation test or without it.
                passed = np.isfinite(fit.cut[k])
                for share in RIDGE_SHARES:
                    other = fit.effect[k] >= share * fit.effect[k].max()
                    found = measure(
                        grid, fit.effect[k], fit.probability[k], other, truths[item.name], bias[k]
                    )
                    untested = {**common, 'item': item.name, 'model': f'ridge, no test@{share}'}
                    rows.append(untested | found)
                    rows.append(
                        ({**common, 'item': item.name} | found if passed else dict(row))
                        | {'model': f'ridge@{share}'}
                    )
    return rows


# --- commands


def numbers(text):
    first, _, last = text.partition('-')
    return range(int(first), int(last or first) + 1)


def run(arguments):
    settings = DeficitSettings(**json.loads(arguments.settings))
    with Path(arguments.out).open('a') as stream:
        for kind in arguments.links:
            for n in arguments.n:
                for seed in arguments.seeds:
                    rows = run_cohort(
                        n, seed, kind, arguments.models, settings, arguments.folds,
                        flips=arguments.flips, noise=arguments.noise, shift=arguments.shift,
                    )  # fmt: skip
                    stream.writelines(json.dumps(row) + '\n' for row in rows)
                    stream.flush()
    table(argparse.Namespace(files=[arguments.out]))


def table(arguments):
    rows = [json.loads(x) for f in arguments.files for x in Path(f).read_text().splitlines()]
    names = ['dice', 'oracle', 'ap', 'fdr', 'fdr8', 'centroid', 'ece', 'ece_some', 'bias', 'auc',
             'auc_volume', 'gain', 'kappa', 'ece_scores', 'ml', 'seconds']  # fmt: skip
    by_model = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if 'dice' in row:
            by_model[row['model']][row['link'], row['n'], row['seed']].append(row)
    used = [name for name in names if any(name in r for r in rows)]
    print('| model |', ' | '.join(used), '|')
    print('|---|' + '---|' * len(used))
    means = {}
    for model, cohorts in by_model.items():
        cells = []
        for name in used:
            per = {
                key: np.nanmean([r.get(name, np.nan) for r in found])
                for key, found in cohorts.items()
                if any(name in r for r in found)
            }
            means[model, name] = per
            values = np.array(list(per.values()))
            cells.append(f'{values.mean():.3g} ± {values.std():.2g}' if len(values) else '')
        print(f'| {model} |', ' | '.join(cells), '|')
    rng = np.random.default_rng(0)
    print('\n| spatial minus | dice | fdr | fdr8 |\n|---|---|---|---|')
    for model in by_model:
        if model == 'spatial' or 'spatial' not in by_model:
            continue
        cells = []
        for name in ('dice', 'fdr', 'fdr8'):
            keys = sorted(means['spatial', name].keys() & means[model, name].keys())
            if not keys:
                cells.append('')
                continue
            gap = np.array([means['spatial', name][k] - means[model, name][k] for k in keys])
            drawn = gap[rng.integers(len(gap), size=(4000, len(gap)))].mean(1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            cells.append(f'{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]')
        print(f'| {model} |', ' | '.join(cells), '|')
    print('\nDice by item (spatial / ridge / voxelwise), share declared of spatial')
    for item in ITEMS:
        found = {
            m: [r for r in rows if r['item'] == item.name and r['model'] == m] for m in MODELS
        }
        dice = [
            f'{np.mean([r["dice"] for r in f]):.2f}' if f and 'dice' in f[0] else '-'
            for f in found.values()
        ]
        reported = [
            f'{np.mean([r["declared"] for r in f]):.2f}' if f else '-' for f in found.values()
        ]
        print(f'{item.name:>3}', ' '.join(dice), ' declared', ' '.join(reported))


def null(arguments):
    settings = DeficitSettings(**json.loads(arguments.settings))
    grid, maps, scores, _ = make_cohort(arguments.n[0], arguments.seeds[0], arguments.links[0])
    prepared = deficit.prepare(maps, grid, settings)
    for model in arguments.models:
        started = time.perf_counter()
        found = deficit.null_calibration(
            prepared, scores, items=ITEMS, model=model, settings=settings,
            shuffles=range(arguments.shuffles),
        )  # fmt: skip
        clean = dict(zip([i.name for i in ITEMS], found.share_clean.round(3), strict=True))
        print(model, 'nothing declared:', {k: float(v) for k, v in clean.items()})
        print('least', found.share_clean.min(), 'mean', found.share_clean.mean(),
              'p <= 0.05:', np.nanmean(found.p_value <= 0.05),
              'KL > 0.5 nats:', np.nanmean(found.kl > 0.5),
              'seconds', round(time.perf_counter() - started))  # fmt: skip


def scale(arguments):
    settings = DeficitSettings(**json.loads(arguments.settings))
    path = Path(arguments.out)
    grid = brain_grid(2.0)
    n = arguments.n[0]
    if not path.exists():
        clean, maps = make_maps(brain_grid(4.0), n, arguments.seeds[0])
        scores, _ = make_scores(brain_grid(4.0), clean, arguments.seeds[0], 'or', 0.05)
        stored = np.lib.format.open_memmap(path, 'w+', np.float16, (n, grid.n_voxels))
        for i, row in enumerate(maps):
            stored[i] = brain_grid(4.0).resample_to(row, grid)
        np.save(f'{path}.scores.npy', scores)
        del stored, clean, maps
    maps, scores = np.load(path, mmap_mode='r'), np.load(f'{path}.scores.npy')
    for model in arguments.models:
        started = time.perf_counter()
        prepared = deficit.prepare(maps, grid, settings)
        ready = time.perf_counter() - started
        deficit.fit(prepared, scores, mask=grid, items=ITEMS, model=model, settings=settings)
        fitted = time.perf_counter() - started
        if arguments.folds:
            deficit.cross_validate(
                prepared, scores, items=ITEMS, model=model, settings=settings,
                folds=arguments.folds,
            )  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f'{model}: N {n}, {grid.n_voxels} voxels, prepared {ready:.0f} s, fitted at '
              f'{fitted:.0f} s, {arguments.folds} folds at {time.perf_counter() - started:.0f} s, '
              f'peak {peak:.1f} GiB', flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('command', choices=('run', 'table', 'null', 'scale'))
    parser.add_argument('files', nargs='*')
    parser.add_argument('--seeds', type=numbers, default=range(100, 105))
    parser.add_argument('--n', type=int, nargs='+', default=[300])
    parser.add_argument(
        '--links', nargs='+', default=['saturating', 'all'], choices=LINKS + PHANTOMS
    )
    parser.add_argument('--models', nargs='+', default=list(MODELS))
    parser.add_argument('--folds', type=int, default=0)
    parser.add_argument('--flips', type=float, default=0.05)
    parser.add_argument('--noise', type=float, default=0.08)
    parser.add_argument('--shift', type=float, default=2.0)
    parser.add_argument('--shuffles', type=int, default=100)
    parser.add_argument('--settings', default='{}', help='JSON of DeficitSettings to change')
    parser.add_argument('--out', default='deficit.jsonl')
    arguments = parser.parse_args()
    {'run': run, 'table': table, 'null': null, 'scale': scale}[arguments.command](arguments)


if __name__ == '__main__':
    main()
