"""Tables of what a group analysis found, one row an item, cluster, prediction or predictor.

Columns are described in ``data/io_spec.json``. Must not know files, BIDS or anatomy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.inference import (
    Cluster,
    NullCalibration,
    Stability,
    adjust_holm,
    coverage_resemblance,
    find_clusters,
    number_results,
)
from bids_perfdeficit.deficit.models import get_model
from bids_perfdeficit.deficit.preparation import Prepared
from bids_perfdeficit.deficit.result import DeficitFit, Predictions
from bids_perfdeficit.deficit.rules import (
    credible_set,
    expected_dice,
    expected_false_discoveries,
)
from bids_perfdeficit.deficit.validation import ItemMetrics, Validation

#: Share of a cluster in the smaller of its hemispheres from which it lies in both.
_ON_BOTH_SIDES = 0.25
#: Columns of `clusters_table`.
_CLUSTERS = ('item', 'cluster', 'volume_ml', 'x', 'y', 'z', 'peak', 'side', 'result')
#: Columns of `summary_table` that follow from the probability of membership.
_EXPECTED = ('expected_dice', 'expected_false_discoveries', 'expected_ml', 'credible_ml')


def summary_table(
    fit: DeficitFit, scores: NDArray[np.float64], prepared: Prepared
) -> pd.DataFrame:
    """Return what was found for each item, one row each.

    Parameters
    ----------
    fit : DeficitFit
    scores : (N, K) array
        That it was fitted to.
    prepared : Prepared
        The maps that it was fitted to.
    """
    resemblance = coverage_resemblance(fit, prepared)
    adjusted = adjust_holm(fit.p_value)
    membership = get_model(fit.model).offers.membership
    rows = []
    for k, item in enumerate(fit.items):
        score = scores[:, k][np.isfinite(scores[:, k])]
        fitted = item.name not in fit.skipped
        rows.append(
            {
                'item': item.name,
                'status': 'fitted' if fitted else 'skipped',
                'reason': fit.skipped.get(item.name, np.nan),
                'scored': len(score),
                'with_deficit': int((score > 0).sum()),
                'p_value': fit.p_value[k] if fitted else np.nan,
                'p_holm': adjusted[k] if fitted else np.nan,
                'cut': fit.cut[k] if fitted else np.nan,
                'declared_ml': (
                    float(fit.declared[k].sum() * fit.grid.voxel_ml) if fitted else np.nan
                ),
                **_expected(fit, k, membership=membership and fitted),
                'coverage_resemblance': resemblance[k] if fitted else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _expected(fit: DeficitFit, item: int, *, membership: bool) -> dict[str, float]:
    """Return what is expected of an item's substrate and of what was declared of it.

    NaN where the model has no probability of membership, and where nothing was declared.
    """
    out = dict.fromkeys(_EXPECTED, np.nan)
    declared = fit.declared[item]
    if membership and declared.any():
        probability, unit = fit.probability[item], fit.grid.voxel_ml
        values = (
            expected_dice(probability, declared),
            expected_false_discoveries(probability, declared),
            probability.sum(dtype=float) * unit,
            credible_set(probability).sum() * unit,
        )
        out = dict(zip(_EXPECTED, map(float, values), strict=True))
    return out


def clusters_table(fit: DeficitFit) -> pd.DataFrame:
    """Return the declared clusters of all items, the largest of each item first.

    Those with one number as their ``result`` are mirror images; see `number_results`.
    """
    by_t = get_model(fit.model).offers.t  # a slope is largest where few are affected
    found = [
        (item, cluster)
        for k, item in enumerate(fit.items)
        if item.name not in fit.skipped
        for cluster in find_clusters(
            fit.t(k) if by_t else fit.effect[k], fit.declared[k], fit.grid
        )
    ]
    rows = []
    for (item, cluster), result in zip(found, number_results(found, fit.grid), strict=True):
        x, y, z = cluster.peak_mm
        side = _side(cluster, fit.grid)
        rows.append(
            (item.name, cluster.number, cluster.volume_ml, x, y, z, cluster.peak_value, side,
             result)
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(_CLUSTERS))


def _side(cluster: Cluster, grid: Grid) -> str:
    """Return the hemisphere of a cluster, ``both`` where each holds a quarter of it or more."""
    across = grid.coordinates[cluster.members, 0]
    left, right = (float((s * across > grid.spacing[0] / 2).mean()) for s in (-1, 1))
    if min(left, right) >= _ON_BOTH_SIDES:
        return 'both'
    x = cluster.peak_mm[0]
    return 'midline' if abs(x) < grid.spacing[0] else 'left' if x < 0 else 'right'


def predictions_table(
    participants: Sequence[str],
    scores: NDArray[np.float64],
    predictions: Predictions,
    **more: NDArray,
) -> pd.DataFrame:
    """Return one row per participant and item that was fitted.

    Parameters
    ----------
    participants : sequence of str
        N names.
    scores : (N, K) array
        Columns in the order of ``predictions.items``; NaN where not known.
    predictions : Predictions
    **more : (N,) array
        More columns, of the participants.
    """
    levels = predictions.probabilities.shape[2]
    columns = ['participant_id', 'item', *more, 'score', 'expected', 'any_deficit']
    columns += [f'p_{level}' for level in range(levels)]
    rows = [pd.DataFrame(columns=columns)]
    for k, item in enumerate(predictions.items):
        p = predictions.probabilities[:, k]
        if np.isnan(p).all():
            continue
        rows.append(
            pd.DataFrame(
                {
                    'participant_id': list(participants),
                    'item': item.name,
                    **more,
                    'score': scores[:, k],
                    'expected': predictions.expected[:, k],
                    'any_deficit': predictions.any_deficit[:, k],
                    **{
                        f'p_{level}': p[:, level] if level < item.levels else np.nan
                        for level in range(levels)
                    },
                }
            )
        )
    return pd.concat(rows[1:], ignore_index=True) if len(rows) > 1 else rows[0]


def metrics_table(validation: Validation) -> pd.DataFrame:
    """Return how well each predictor does, one row per item and predictor."""
    columns = [field.name for field in dataclasses.fields(ItemMetrics)]
    rows = [dataclasses.asdict(metrics) for metrics in validation.metrics]
    return pd.DataFrame(rows, columns=columns)


def null_table(null: NullCalibration) -> pd.DataFrame:
    """Return what was declared on shuffled scores, one row an item."""
    with np.errstate(all='ignore'):
        return pd.DataFrame(
            {
                'item': [item.name for item in null.items],
                'shuffles': np.isfinite(null.declared).sum(0),
                'nothing_declared': null.share_clean,
                'smallest_p': np.nanmin(null.p_value, axis=0, initial=1.0),
            }
        )


def stability_table(stability: Stability, grid: Grid) -> pd.DataFrame:
    """Return how stable the declared maps are, one row an item."""
    share = stability.share
    return pd.DataFrame(
        {
            'item': [item.name for item in stability.items],
            'resamples': stability.draws,
            'highest_share': share.max(1),
            'ml_in_half': (share >= 0.5).sum(1) * grid.voxel_ml,
        }
    )
