"""Models of the maps of a cohort: which maps they hold likely, and whether drawn ones look real.

Cohorts of the family ``made`` (`families.py`), of which a part is held out. ``ppca``: principal
components with white noise (`PerfusionModel`), drawn with a mixture of eight Gaussians over the
first twenty directions. ``flow``: `MapFlow`. Both are fitted to maps whose values at the bounds of
the scale are continued beyond them (`uncensor`), which gives them a density; drawn maps are
clipped again. Prints for each model the mean and the standard deviation over seeds of

  nats a map   log likelihood of held-out maps, continued alike for both
  AUC          of classifiers, five-fold, that separate held-out maps from as many drawn ones: the
               larger of a logistic regression and a forest on 24 region means and 29 statistics of
               texture, level and scale; and of logistic regressions on groups of these alone. Two
               sets of real maps have an AUC of about a half.
  CPU s        of the fit, and of drawing as many maps as are held out

Usage: python benchmarks/maps_model.py --seeds 12 13 --n 300 --held-out 200
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np
from families import brain, make_maps
from scipy import linalg, ndimage
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bids_perfdeficit.deficit import Grid, fit_map_flow
from bids_perfdeficit.deficit.map_flow import uncensor
from bids_perfdeficit.deficit.perfusion_model import PerfusionModel, fit_perfusion_model

#: Features of a map by group: regions, differences of neighbours, levels, scales.
GROUPS = {
    'regions': range(24), 'roughness': range(24, 30), 'levels': range(30, 43),
    'scales': range(43, 53),
}  # fmt: skip


def describe(maps: np.ndarray, grid: Grid) -> np.ndarray:
    """Return (N, 53) features."""
    region = KMeans(24, n_init=1, random_state=0).fit_predict(grid.coordinates)
    columns = [maps[:, region == k].mean(1) for k in range(24)]
    index = np.full(grid.mask.shape, -1)
    index[grid.mask] = np.arange(grid.n_voxels)
    for axis in range(3):
        one = np.delete(index, -1, axis).ravel()
        other = np.delete(index, 0, axis).ravel()
        both = (one >= 0) & (other >= 0)
        step = np.abs(maps[:, one[both]] - maps[:, other[both]])
        columns += [step.mean(1), step.std(1)]
    across = maps - maps[:, np.where(grid.mirror >= 0, grid.mirror, np.arange(grid.n_voxels))]
    columns += [maps.mean(1), maps.std(1), (maps > 0.4).mean(1)]
    columns += [(maps <= 0).mean(1), (maps >= 1).mean(1)]
    columns += [across.std(1), np.maximum(across, 0).mean(1)]
    columns += list(np.quantile(maps, [0.05, 0.25, 0.5, 0.75, 0.95, 0.99], axis=1))
    for width in (8, 16):
        inside = ndimage.gaussian_filter(grid.mask.astype(np.float32), width / grid.spacing)
        smooth = np.array(
            [ndimage.gaussian_filter(grid.embed(row), width / grid.spacing) for row in maps]
        )
        smooth = (smooth / np.maximum(inside, 1e-3))[:, grid.mask]
        z = (smooth - smooth.mean(1, keepdims=True)) / smooth.std(1, keepdims=True)
        columns += [smooth.std(1), smooth.max(1), (z**3).mean(1), (z**4).mean(1)]
        columns += [(maps - smooth).std(1)]
    return np.stack(columns, 1)


def separate(real: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Return the AUC of classifiers on (N, 53) features."""
    features, labels = np.r_[real, drawn], np.r_[np.ones(len(real)), np.zeros(len(drawn))]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0)

    def auc(model, columns) -> float:
        own = features[:, list(columns)]
        found = cross_val_predict(model, own, labels, cv=folds, method='predict_proba')
        return float(roc_auc_score(labels, found[:, 1]))

    out = {name: auc(linear, columns) for name, columns in GROUPS.items()}
    return {'all': max(auc(linear, range(53)), auc(forest, range(53))), **out}


def likelihood(model: PerfusionModel, maps: np.ndarray) -> np.ndarray:
    """Return the log density of maps under principal components with white noise."""
    loadings, left = model.loadings.astype(float), (maps - model.mean).astype(float)
    variance = model.noise**2
    root = np.linalg.cholesky(np.eye(model.rank) + loadings.T @ loadings / variance)
    explained = linalg.solve_triangular(root, (left @ loadings).T / variance, lower=True)
    square = (left**2).sum(1) / variance - (explained**2).sum(0)
    scale = maps.shape[1] * np.log(2 * np.pi * variance) + 2 * np.log(np.diag(root)).sum()
    return -(square + scale) / 2


def draw_components(model: PerfusionModel, maps: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw maps with a mixture of Gaussians for the first latent directions."""
    rng = np.random.default_rng(seed)
    first = model.latents(maps)[:, :20]
    mixture = GaussianMixture(8, covariance_type='diag', reg_covar=1e-3, random_state=seed)
    z = rng.standard_normal((count, model.rank)).astype(np.float32)
    z[:, : first.shape[1]] = rng.permutation(mixture.fit(first).sample(count)[0])
    drawn = model.decode(z)
    return drawn + model.noise * rng.standard_normal(drawn.shape, dtype=np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[12, 13])
    parser.add_argument('--n', type=int, default=300)
    parser.add_argument('--held-out', type=int, default=200)
    parser.add_argument('--ranks', type=int, nargs='+', default=[50, 200])
    parser.add_argument('--steps', type=int, default=400)
    arguments = parser.parse_args()
    space = brain(4.0)
    grid, n, held = Grid(space.mask, space.affine), arguments.n, arguments.held_out
    rows = defaultdict(list)
    for seed in arguments.seeds:
        maps = make_maps(space, n + held, seed)[1].astype(np.float32)
        shown, real = maps[:n], describe(maps[n:], grid)
        rows['two real sets'].append(separate(real, describe(shown[:held], grid)))
        started = time.process_time()
        flow = fit_map_flow(shown, grid, seed=seed, steps=arguments.steps)
        seconds = time.process_time() - started
        drawn = flow.draw(held, seed=seed)
        rows['flow'].append({
            'nats': float(flow.log_likelihood(maps[n:], seed=seed).mean()),
            **separate(real, describe(drawn, grid)),
            'fit': seconds, 'draw': time.process_time() - started - seconds,
        })  # fmt: skip
        continued = [uncensor(m, flow.beyond, seed=seed) for m in (shown, maps[n:])]
        for rank in arguments.ranks:
            started = time.process_time()
            model = fit_perfusion_model(continued[0], rank)
            seconds = time.process_time() - started
            drawn = draw_components(model, continued[0], held, seed)
            rows[f'ppca, {model.rank} directions'].append({
                'nats': float(likelihood(model, continued[1]).mean()),
                **separate(real, describe(np.clip(drawn, 0, 1), grid)), 'fit': seconds,
            })  # fmt: skip
        print(seed, {name: own[-1] for name, own in rows.items()}, flush=True)
    names = ('nats', 'all', *GROUPS, 'fit', 'draw')
    print(f'| model | {" | ".join(names)} |')
    print('|---' * (len(names) + 1) + '|')
    for model, own in rows.items():
        cells = []
        for name in names:
            values = [row[name] for row in own if name in row]
            digits = 0 if name in ('nats', 'fit', 'draw') else 3
            spread = f' ({np.std(values):.{digits}f})' if len(values) > 1 else ''
            cells.append(f'{np.mean(values):.{digits}f}{spread}' if values else '')
        print(f'| {model} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
