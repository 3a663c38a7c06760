"""Deficit models and peers side by side on cohorts whose substrates are known.

Families (`families.py`): ``made`` with links from map to score that are none of the models'
(`or`, `share`, `saturating`, `all`), ``phantom`` (``phantom-*`` links), ``shapes`` (substrates
that are not spheres). Real lesions with the same shapes: ``real_lesions.py substrates``. Models
are named as in the registry; ``bm svr sccan elasticnet forest`` are peers (`peers.py`), which see
the same maps at 4 mm. Seeds come from ``seeds/development.json`` or ``seeds/held_out.json``:
nothing is chosen on the second. `spatial` was developed on links `or` and `share` and on phantoms,
with seeds under 100.

Subcommands (each prints markdown tables; `run` appends to a JSON-lines file as it goes):
  run      fit models, write one line per cohort, model and item
  table    summarise such files: mean and sd over cohorts, items, reliability by bins of the
           probability, and paired intervals against `--reference`
  null     shuffled cohorts: share with nothing declared, per item
  scale    1,400 participants, 15 items, 2 mm: seconds and peak memory, with folds
  volume   measures of the volume of a deficit against that of the true delay, digital patients
  cost     seconds of a training step of the published model by the size of its grid

Usage: python benchmarks/deficit.py run --set held_out --family shapes --n 300 \
    --models spatial ridge bm forest --out shapes.jsonl
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from families import (
    ITEMS,
    LINKS,
    PHANTOMS,
    Cohort,
    brain,
    made_cohort,
    make_maps,
    make_scores,
    phantom_cohort,
    seeds_of,
    shape_cohort,
)
from measures import measure, paired_interval, reliability_table
from peers import PEERS, Peers
from scipy import stats

from bids_perfdeficit import deficit
from bids_perfdeficit.deficit import DeficitSettings, Grid, Item, Prepared, get_model
from bids_perfdeficit.deficit.models import vae
from bids_perfdeficit.deficit.preparation import coarse_maps, positive_asymmetry
from bids_perfdeficit.deficit.scale import excess, lower_side

MODELS = ('spatial', 'ridge', 'voxelwise')
#: Share of the maximum at which the map of `ridge` is also cut, whether its test passes or not.
RIDGE_SHARE = 0.7
#: Links that a family is run with unless others are named: held out for `spatial`.
FAMILY_LINKS = {
    'made': ('saturating', 'all'),
    'phantom': ('phantom-mixed', 'phantom-threshold-distal'),
    'shapes': ('shapes',),
}


def items_of(cohort: Cohort) -> tuple[Item, ...]:
    return tuple(Item(i.name, i.levels, i.mirror) for i in cohort.items)


def make_cohort(family: str, kind: str, n: int, seed: int, **options) -> Cohort:
    if family == 'phantom':
        return phantom_cohort(n, seed, kind)
    if family == 'shapes':
        return shape_cohort(n, seed, **options)
    return made_cohort(n, seed, kind, **options)


def only(cohort: Cohort, names: list[str]) -> Cohort:
    """Return a cohort with some of its items."""
    kept = [k for k, item in enumerate(cohort.items) if item.name in names]
    return replace(
        cohort, scores=cohort.scores[:, kept], items=tuple(cohort.items[k] for k in kept)
    )


class Embedding:
    """From the voxels of a cohort's maps to those of its truths; 0 where there are no maps."""

    def __init__(self, cohort: Cohort):
        self.space = cohort.truth_space or cohort.space
        self.inside = cohort.space.mask[self.space.mask]

    def lay(self, values: np.ndarray) -> np.ndarray:
        out = np.zeros(self.space.n_voxels, values.dtype)
        out[self.inside] = values
        return out


def fit_peer(
    name: str, peers: Peers, prepared: Prepared, scores: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return effect and declaration of each item, on the grid of the maps."""
    found = []
    for score in scores.T:
        effect, declared = peers.fit(name, score)
        on_grid = prepared.coarse.resample_to(declared.astype(float), prepared.grid) >= 0.5
        found.append((prepared.coarse.resample_to(effect, prepared.grid), on_grid))
    return found


def run_models(
    cohort: Cohort, models: list[str], settings: DeficitSettings, folds: int, common: dict
) -> list[dict]:
    """Fit models and peers to a cohort and return a row for each of them and each item."""
    grid = Grid(cohort.space.mask, cohort.space.affine)
    items, layer = items_of(cohort), Embedding(cohort)
    started = time.process_time()
    prepared = deficit.prepare(cohort.maps, grid, settings)
    shared = time.process_time() - started
    seen = prepared.measured
    if not cohort.given:
        seen = positive_asymmetry(seen, prepared.coarse)
    peers = Peers(seen, prepared.coarse.mask, cohort.given, common['seed'])
    rows = []
    for model in models:
        started = time.process_time()
        held_out, p_values, skipped = None, np.full(len(items), np.nan), {}
        if model in PEERS:
            maps = [(e, d, None) for e, d in fit_peer(model, peers, prepared, cohort.scores)]
        else:
            fit = deficit.fit(
                prepared, cohort.scores, mask=grid, items=items, model=model, settings=settings
            )
            # of some models `prob` is something else, e.g. 1 - p
            of_substrate = 'substrate' in get_model(model).describe('prob')
            maps = [
                (fit.effect[k], fit.declared[k], fit.probability[k] if of_substrate else None)
                for k in range(len(items))
            ]
            p_values, skipped = fit.p_value, fit.skipped
        seconds = time.process_time() - started + shared
        if folds and model not in PEERS:
            held_out = deficit.cross_validate(
                prepared, cohort.scores, items=items, model=model, settings=settings, folds=folds
            )
        for k, item in enumerate(items):
            if item.name in skipped:
                continue
            effect, declared, probability = maps[k]
            row = {
                **common, 'model': model, 'item': item.name, 'seconds': seconds,
                'p': float(p_values[k]), 'declared': bool(declared.any()),
                'ml': float(declared.sum() * cohort.space.voxel_ml),
            }  # fmt: skip
            if item.name in cohort.truths:
                row |= measure(
                    layer.space.coordinates, layer.space.voxel_ml,
                    effect=layer.lay(effect), declared=layer.lay(declared),
                    truth=cohort.truths[item.name],
                    probability=None if probability is None else layer.lay(probability),
                )  # fmt: skip
                row['covered'] = float(layer.inside[cohort.truths[item.name]].mean())
            if held_out:
                own, volume = held_out.of(item.name), held_out.of(item.name, 'volume')
                row |= {
                    'auc': own.auc, 'auc_volume': volume.auc, 'gain': own.gain,
                    'gain_low': own.gain_low, 'kappa': own.kappa,
                }  # fmt: skip
            rows.append(row)
            if model == 'ridge' and item.name in cohort.truths:
                # its best rule that sees labels only, without its test
                other = effect >= RIDGE_SHARE * effect.max()
                rows.append(
                    {**row, 'model': f'ridge, no test, {RIDGE_SHARE:g}'}
                    | measure(
                        layer.space.coordinates, layer.space.voxel_ml,
                        effect=layer.lay(effect), declared=layer.lay(other),
                        truth=cohort.truths[item.name],
                    )
                )  # fmt: skip
    return rows


# --- commands


def numbers(text: str) -> range:
    first, _, last = text.partition('-')
    return range(int(first), int(last or first) + 1)


def run(arguments):
    settings = DeficitSettings(**json.loads(arguments.settings))
    options = {k: getattr(arguments, k) for k in ('flips', 'noise', 'shift')}
    with Path(arguments.out).open('a') as stream:
        for family in arguments.family:
            seeds = arguments.seeds or seeds_of(arguments.set, family)[: arguments.cohorts]
            for kind in arguments.links or FAMILY_LINKS[family]:
                for n in arguments.n:
                    for seed in seeds:
                        cohort = make_cohort(family, kind, n, seed, **options)
                        if arguments.items:
                            cohort = only(cohort, arguments.items)
                        common = {'family': family, 'link': kind, 'n': n, 'seed': seed}
                        common['set'] = 'named' if arguments.seeds else arguments.set
                        rows = run_models(
                            cohort, arguments.models, settings, arguments.folds, common
                        )
                        stream.writelines(json.dumps(row) + '\n' for row in rows)
                        stream.flush()
    table(argparse.Namespace(files=[arguments.out]))


def read_rows(files: list[str]) -> list[dict]:
    return [json.loads(x) for f in files for x in Path(f).read_text().splitlines()]


def table(arguments):
    rows = read_rows(arguments.files)
    for group in sorted({(r['family'], r['n']) for r in rows}):
        own = [r for r in rows if (r['family'], r['n']) == group]
        print(f'\n### {group[0]}, N {group[1]}\n')
        _print_models(own)
        _print_gaps(own, getattr(arguments, 'reference', 'spatial'))
        _print_items(own)
    print()
    print(*reliability_table(rows), sep='\n')


#: Columns of the table of models: measure, heading and decimals.
COLUMNS = (
    ('dice', 'Dice', 3), ('oracle', 'best', 3), ('ap', 'AP', 3), ('fdr', 'FDR', 2),
    ('expected_fdr', 'expected FDR', 2), ('fdr8', 'FDR > 8 mm', 2), ('ml', 'mL', 1),
    ('true_ml', 'true mL', 1), ('p_true_under_01', 'truth at P < .01', 2),
    ('credible', 'in the 90 % set', 2), ('credible_ml', 'its mL', 0), ('auc', 'AUC', 3),
    ('auc_volume', 'AUC, volume', 3), ('gain', 'gain, nats', 3), ('seconds', 'CPU s', 0),
)  # fmt: skip


def _print_models(rows: list[dict]) -> None:
    """Print means (standard deviations) over cohorts of means over items with a substrate."""
    used = [column for column in COLUMNS if any(column[0] in r for r in rows)]
    headings = ' | '.join(heading for _, heading, _ in used)
    print(f'| model | cohorts | declared | {headings} | declared without a substrate |')
    print('|---' * (len(used) + 4) + '|')
    for model in dict.fromkeys(r['model'] for r in rows):
        own = [r for r in rows if r['model'] == model and 'dice' in r]
        without = [r['declared'] for r in rows if r['model'] == model and 'dice' not in r]
        cells = []
        for name, _, digits in used:
            values = list(cohort_means(own, name).values())
            mean = f'{np.mean(values):.{digits}f}' if values else ''
            cells.append(f'{mean} ({np.std(values):.{digits}f})' if len(values) > 1 else mean)
        count = len({(r['link'], r['seed']) for r in own})
        declared = f'{sum(r["declared"] for r in own)} of {len(own)}'
        empty = f'{sum(without)} of {len(without)}' if without else ''
        print(f'| {model} | {count} | {declared} |', ' | '.join(cells), f'| {empty} |')


def cohort_means(rows: list[dict], name: str) -> dict[tuple, float]:
    """Return the mean over items of each cohort, where there is one."""
    values = defaultdict(list)
    for row in rows:
        if np.isfinite(row.get(name, np.nan)):
            values[row['link'], row['n'], row['seed']].append(row[name])
    return {key: float(np.mean(own)) for key, own in values.items()}


def _print_gaps(rows: list[dict], reference: str) -> None:
    models = list(dict.fromkeys(r['model'] for r in rows))
    if reference not in models or len(models) < 2:
        return
    print(f'\n| {reference} minus | Dice | AP | FDR |\n|---|---|---|---|')
    for model in models:
        if model == reference:
            continue
        cells = []
        for name in ('dice', 'ap', 'fdr'):
            one, other = (
                cohort_means([r for r in rows if r['model'] == m and 'dice' in r], name)
                for m in (reference, model)
            )
            gap = [one[k] - other[k] for k in sorted(one.keys() & other.keys())]
            if not gap:
                cells.append('')
                continue
            mean, low, high = paired_interval(gap)
            interval = f' [{low:+.3f}, {high:+.3f}]' if len(gap) > 1 else ''
            cells.append(f'{mean:+.3f}{interval}')
        print(f'| {model} |', ' | '.join(cells), '|')


def _print_items(rows: list[dict]) -> None:
    models = list(dict.fromkeys(r['model'] for r in rows))
    print('\n| item: Dice (share declared) |', ' | '.join(models), '|')
    print('|---' * (len(models) + 1) + '|')
    for item in dict.fromkeys(r['item'] for r in rows):
        cells = []
        for model in models:
            own = [r for r in rows if r['item'] == item and r['model'] == model]
            share = np.mean([r['declared'] for r in own]) if own else np.nan
            dice = f'{np.mean([r["dice"] for r in own]):.2f} ' if own and 'dice' in own[0] else ''
            cells.append(f'{dice}({share:.2f})' if own else '')
        print(f'| {item} |', ' | '.join(cells), '|')


def null(arguments):
    settings = DeficitSettings(**json.loads(arguments.settings))
    links, seeds = arguments.links or ['saturating'], arguments.seeds or [175]
    cohort = make_cohort('made', links[0], arguments.n[0], seeds[0])
    grid, scores = Grid(cohort.space.mask, cohort.space.affine), cohort.scores
    items = items_of(cohort)
    prepared = deficit.prepare(cohort.maps, grid, settings)
    for model in arguments.models:
        started = time.perf_counter()
        found = deficit.null_calibration(
            prepared, scores, items=items, model=model, settings=settings,
            shuffles=range(arguments.shuffles),
        )  # fmt: skip
        clean = dict(zip([i.name for i in items], found.share_clean.round(3), strict=True))
        print(model, 'nothing declared:', {k: float(v) for k, v in clean.items()})
        print('least', found.share_clean.min(), 'mean', found.share_clean.mean(),
              'p <= 0.05:', np.nanmean(found.p_value <= 0.05),
              'KL > 0.5 nats:', np.nanmean(found.kl > 0.5),
              'seconds', round(time.perf_counter() - started))  # fmt: skip


def scale(arguments):
    settings = DeficitSettings(**json.loads(arguments.settings))
    path = Path(arguments.out)
    fine, space = brain(2.0), brain(4.0)
    grid, coarse = (Grid(s.mask, s.affine) for s in (fine, space))
    items = tuple(Item(i.name, i.levels, i.mirror) for i in ITEMS)
    n, seed = arguments.n[0], (arguments.seeds or [100])[0]
    if not path.exists():
        clean, maps = make_maps(space, n, seed)
        scores, _ = make_scores(space, clean, seed, 'or', 0.05)
        stored = np.lib.format.open_memmap(path, 'w+', np.float16, (n, grid.n_voxels))
        for i, row in enumerate(maps):
            stored[i] = coarse.resample_to(row, grid)
        np.save(f'{path}.scores.npy', scores)
        del stored, clean, maps
    maps, scores = np.load(path, mmap_mode='r'), np.load(f'{path}.scores.npy')
    for model in arguments.models:
        started = time.perf_counter()
        prepared = deficit.prepare(maps, grid, settings)
        ready = time.perf_counter() - started
        deficit.fit(prepared, scores, mask=grid, items=items, model=model, settings=settings)
        fitted = time.perf_counter() - started
        if arguments.folds:
            deficit.cross_validate(
                prepared, scores, items=items, model=model, settings=settings,
                folds=arguments.folds,
            )  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f'{model}: N {n}, {grid.n_voxels} voxels, prepared {ready:.0f} s, fitted at '
              f'{fitted:.0f} s, {arguments.folds} folds at {time.perf_counter() - started:.0f} s, '
              f'peak {peak:.1f} GiB', flush=True)  # fmt: skip


#: Shares of the sites for `volume`: enough basilar occlusions, which both sides have.
BILATERAL = {
    'none': 0.25, 'ICA': 0.08, 'M1': 0.25, 'M2sup': 0.08, 'M2inf': 0.08, 'A2': 0.03, 'P1': 0.08,
    'P2': 0.03, 'BA': 0.12,
}  # fmt: skip


def volume(arguments):
    """Compare measures of the volume of a deficit with that of a delay above 6 s."""
    from bids_perfdeficit import phantom

    print('| seed, n | measure | rank r | r | mL of open arteries | of BA | of M1 |')
    print('|---|---|---|---|---|---|---|')
    n = arguments.n[0]
    for seed in arguments.seeds or [21]:
        cohort = phantom.make_cohort(seed, n, trees=8, mix=BILATERAL, processes=1)
        grid, weights = Grid(cohort.mask, cohort.affine).coarsen(4.0)
        maps, delay = (
            coarse_maps(v.astype(np.float32), weights) for v in (cohort.perfusion, cohort.delay)
        )
        true = (delay > 6).sum(1) * grid.voxel_ml
        beyond = excess(maps, lower_side(maps.mean(0), grid), grid)
        measures = {'true': delay > 6, 'asymmetry > .2': positive_asymmetry(maps, grid) > 0.2}
        measures |= {f'excess > {cut:g}': beyond > cut for cut in (0.2, 0.3, 0.4)}
        site = cohort.participants['site'].to_numpy()
        for name, found in measures.items():
            ml = found.sum(1) * grid.voxel_ml
            medians = [
                f'{np.median(ml[site == s]):.0f}' if (site == s).any() else ''
                for s in ('none', 'BA', 'M1')
            ]
            print(
                f'| {seed}, {n} | {name} | {stats.spearmanr(ml, true)[0]:.3f} '
                f'| {np.corrcoef(ml, true)[0, 1]:.3f} | {" | ".join(medians)} |', flush=True,
            )  # fmt: skip


#: Voxels along each axis that `cost` times, participants in a step and in a cohort.
SIDES, BATCH, PARTICIPANTS = (16, 32, 64), 10, 1_000


def cost(arguments):
    """Time steps of the published training; 4,000 epochs of a cohort follow from them."""
    device = torch.device(json.loads(arguments.settings).get('device', 'cpu'))
    print('| grid | CPU s a step | an item, 1,000 participants, 4,000 epochs |\n|---|---|---|')
    for side in SIDES:
        shape = (side,) * 3
        model = vae.PublishedVAE(shape, vae.halvings(shape), 50).to(device)
        optimizer = torch.optim.Adamax(model.parameters(), lr=1e-4, weight_decay=1e-5)
        x, y = torch.rand(BATCH, 1, *shape, device=device), torch.rand(BATCH, device=device)
        coordinates = torch.rand(1, 3, *shape, device=device)
        generator = torch.Generator().manual_seed(0)
        times = []
        for _ in range(4):
            started = time.process_time()
            loss = vae.losses(model, x, y, coordinates, generator)[0].sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            float(loss.detach())
            times.append(time.process_time() - started)
        step = float(np.median(times[1:]))
        days = step * PARTICIPANTS / BATCH * 4_000 / 86_400
        print(f'| {side}^3 | {step:.3g} | {days:.2g} days |', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('command', choices=('run', 'table', 'null', 'scale', 'volume', 'cost'))
    parser.add_argument('files', nargs='*')
    parser.add_argument('--family', nargs='+', default=['made'], choices=FAMILY_LINKS)
    parser.add_argument('--set', default='development', choices=('development', 'held_out'))
    parser.add_argument('--cohorts', type=int, default=5, help='of the seeds of the set')
    parser.add_argument('--seeds', type=numbers, help='seeds as 100-104, instead of a set')
    parser.add_argument('--n', type=int, nargs='+', default=[300])
    parser.add_argument('--links', nargs='+', choices=(*LINKS, *PHANTOMS, 'shapes'))
    parser.add_argument('--models', nargs='+', default=list(MODELS))
    parser.add_argument('--items', nargs='+', help='of `run`; all by default')
    parser.add_argument('--folds', type=int, default=0)
    parser.add_argument('--flips', type=float, default=0.05)
    parser.add_argument('--noise', type=float, default=0.08)
    parser.add_argument('--shift', type=float, default=2.0)
    parser.add_argument('--shuffles', type=int, default=100)
    parser.add_argument('--settings', default='{}', help='JSON of DeficitSettings to change')
    parser.add_argument('--reference', default='spatial', help='of `table`: model of the gaps')
    parser.add_argument('--out', default='deficit.jsonl')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commands = {
        'run': run, 'table': table, 'null': null, 'scale': scale, 'volume': volume, 'cost': cost,
    }  # fmt: skip
    commands[arguments.command](arguments)


if __name__ == '__main__':
    main()
