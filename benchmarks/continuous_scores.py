"""What a continuous score loses when it is cut into levels, against Gaussian regression.

Made cohorts (`families.py`) with a continuous score: the mean deficit of a spherical substrate and
noise that is normal, heavy-tailed (Student's t, 2 degrees of freedom) or skewed (exponential), as
large as the signal. The app's models see 3, 5, 10 (its choice) or 20 levels of equal number. Their
peer is scikit-learn's ridge regression on the same smoothed maps and the score as it is, its
strength chosen by leave-one-out. Same participants, same five folds.

Run: python benchmarks/continuous_scores.py [--seeds 5] [--participants 300] [--models ridge]
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from families import brain, link, make_maps
from scipy import stats
from sklearn.linear_model import RidgeCV

from bids_perfdeficit import deficit
from bids_perfdeficit.bids import scales
from bids_perfdeficit.deficit import DeficitSettings, Grid, Item
from bids_perfdeficit.deficit.models.ridge import smooth

LEVELS = (3, 5, 10, 20)
NOISES = {
    'normal': lambda rng, n: rng.standard_normal(n),
    't, 2 df': lambda rng, n: rng.standard_t(2, n),
    'exponential': lambda rng, n: rng.standard_exponential(n),
}
#: Centre (RAS mm) and radius of the substrate.
CENTRE, RADIUS = (44, -10, 30), 14
FOLDS = 5


def make_score(grid, clean, rng, noise):
    """Return a continuous score that follows the mean deficit of the substrate."""
    inside = np.linalg.norm(grid.coordinates - CENTRE, axis=1) <= RADIUS
    signal = link('share', clean, [inside])
    return stats.zscore(signal) + NOISES[noise](rng, len(clean))


def held_out(prepared, score, levels, model, settings):
    """Return the held-out expected score of a model that sees `levels` levels, and the folds."""
    scales.MOST_LEVELS = levels
    column = pd.Series(score)
    measure = scales.make_measure('score', column)
    item = Item('score', measure.levels, values=measure.values)
    level = measure.level(column).to_numpy()[:, None]
    found = deficit.cross_validate(
        prepared, level, items=[item], model=model, settings=settings, folds=FOLDS
    )
    return found.probabilities[:, 0, : item.levels] @ item.scale, found.folds


def peer(prepared, score, folds, settings):
    """Return the held-out prediction of ridge regression on the score as it is."""
    smoothed = smooth(prepared, settings).maps
    features = np.concatenate([widths[len(widths) // 2] for widths in smoothed], 1)
    out = np.empty(len(score))
    for fold in range(FOLDS):
        train, test = folds != fold, folds == fold
        mean = features[train].mean(0)
        alphas = np.logspace(-2, 6, 17)
        model = RidgeCV(alphas).fit(features[train] - mean, score[train])
        out[test] = model.predict(features[test] - mean)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--participants', type=int, default=300)
    parser.add_argument('--models', nargs='+', default=['ridge', 'spatial'])
    options = parser.parse_args()
    space, rows = brain(6.0), []
    grid = Grid(space.mask, space.affine)
    settings = DeficitSettings(permutations=0, coarse_spacing=6.0)
    for seed in range(options.seeds):
        clean, measured = make_maps(space, options.participants, seed)
        prepared = deficit.prepare(measured, grid, settings)
        for noise in NOISES:
            score = make_score(grid, clean, np.random.default_rng(seed), noise)
            folds = None
            for model in options.models:
                for levels in LEVELS:
                    predicted, folds = held_out(prepared, score, levels, model, settings)
                    rows.append((noise, f'{model}, {levels} levels', seed, predicted, score))
            gaussian = peer(prepared, score, folds, settings)
            rows.append((noise, 'ridge regression on the score', seed, gaussian, score))
    table = pd.DataFrame(
        [
            (noise, name, seed, stats.pearsonr(p, y).statistic, stats.spearmanr(p, y).statistic)
            for noise, name, seed, p, y in rows
        ],
        columns=['noise', 'model', 'seed', 'pearson', 'spearman'],
    )
    print('| noise | model | r, mean (SD) | Spearman, mean (SD) |\n|---|---|---|---|')
    for (noise, model), part in table.groupby(['noise', 'model'], sort=False):
        cells = [f'{part[c].mean():.3f} ({part[c].std():.3f})' for c in ('pearson', 'spearman')]
        print(f'| {noise} | {model} | {cells[0]} | {cells[1]} |')


if __name__ == '__main__':
    main()
