"""How well a map of a substrate agrees with the truth; shared by the benchmarks.

Reliability is counted in bins of the probability, so that counts of items and cohorts add up, and
the bins of the empty brain stand apart. Must not know models or how a cohort was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy.spatial import cKDTree
from sklearn.metrics import average_precision_score

#: Edges of the bins of probability.
BINS = (0, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0)


def best_dice(values: np.ndarray, truth: np.ndarray) -> float:
    """Return the largest Dice of any cut."""
    order = np.argsort(-values, kind='stable')
    hits = np.cumsum(truth[order])
    return float((2 * hits / (np.arange(1, len(truth) + 1) + truth.sum())).max())


def count_bins(probability: np.ndarray, truth: np.ndarray) -> list[list[float]]:
    """Return (number, sum of probabilities, true voxels) of each bin of `BINS`."""
    p = np.clip(probability.astype(float), 0, 1)
    own = np.clip(np.searchsorted(BINS, p, side='right') - 1, 0, len(BINS) - 2)
    return [
        [float((own == b).sum()), float(p[own == b].sum()), float(truth[own == b].sum())]
        for b in range(len(BINS) - 1)
    ]


def smallest_set(probability: np.ndarray, share: float) -> np.ndarray:
    """Return the fewest voxels that hold a share of the sum of the probabilities."""
    order = np.argsort(-probability, kind='stable')
    held = np.cumsum(probability[order], dtype=float)
    inside = np.zeros(len(probability), bool)
    inside[order[: int((held < share * held[-1] * (1 - 1e-9)).sum()) + 1]] = True
    return inside


def measure(
    coordinates: np.ndarray,
    voxel_ml: float,
    *,
    effect: np.ndarray,
    declared: np.ndarray,
    truth: np.ndarray,
    probability: np.ndarray | None = None,
) -> dict:
    """Return the measures of one map; (V,) arrays on voxels at `coordinates` (mm)."""
    out = {
        'dice': float(2 * (declared & truth).sum() / (declared.sum() + truth.sum())),
        'oracle': best_dice(effect, truth),
        'ap': float(average_precision_score(truth, effect)),
        'declared': bool(declared.any()),
        'ml': float(declared.sum() * voxel_ml),
        'true_ml': float(truth.sum() * voxel_ml),
    }
    if declared.any():
        away = cKDTree(coordinates[truth]).query(coordinates[declared])[0]
        centre = [coordinates[m].mean(0) for m in (declared, truth)]
        out['fdr'] = float((~truth[declared]).mean())
        out['fdr8'] = float((away > 8).mean())
        out['centroid'] = float(np.linalg.norm(centre[0] - centre[1]))
    if probability is not None and np.isfinite(probability).all():
        out['bins'] = count_bins(probability, truth)
        out['p_true_under_01'] = float((probability[truth] < 0.01).mean())
        if declared.any():
            inside = smallest_set(probability, 0.9)
            out['credible'] = float(inside[truth].mean())
            out['credible_ml'] = float(inside.sum() * voxel_ml)
            out['expected_fdr'] = float(1 - np.clip(probability[declared], 0, 1).mean())
    return out


def paired_interval(gap: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Return mean and 95 % bootstrap interval of differences between cohorts."""
    values = np.asarray(gap, float)
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(len(values), size=(4000, len(values)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def reliability_table(rows: Iterable[dict]) -> Iterator[str]:
    """Yield a markdown table of pooled counts: models against bins of their probability."""
    total: dict[tuple[str, str], np.ndarray] = {}
    for row in rows:
        if 'bins' in row:
            key = row['family'], row['model']
            total[key] = total.get(key, 0) + np.array(row['bins'])
    yield '| family | model | P | voxels | mean P | share true | of all true voxels |'
    yield '|---|---|---|---|---|---|---|'
    for (family, model), counts in total.items():
        for b, (n, p, true) in enumerate(counts):
            if n:
                yield (
                    f'| {family} | {model} | {BINS[b]:g} to {BINS[b + 1]:g} | {n:.0f} '
                    f'| {p / n:.3f} | {true / n:.3f} | {true / counts[:, 2].sum():.3f} |'
                )
