"""Rules that all models share: which items can be fitted, and where a map is cut.

They see labels and posteriors, never a true substrate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bids_perfdeficit.deficit.settings import DeficitSettings

#: Expected share of a substrate that its credible set holds.
CREDIBLE_SHARE = 0.9


def usable_items(
    scores: NDArray[np.float64], items: tuple, settings: DeficitSettings
) -> tuple[list[int], dict[str, str]]:
    """Return the indices of items that can be fitted, and why the others cannot.

    Participants enough must have a deficit, and some cut between two levels must leave enough on
    either side: where nearly all have a deficit, its degree is still informative.
    """
    usable: list[int] = []
    skipped: dict[str, str] = {}
    for k, item in enumerate(items):
        score = scores[:, k][np.isfinite(scores[:, k])]
        deficits = int((score > 0).sum())
        if not len(score):
            skipped[item.name] = (
                'no participant has a score; check that the table has a column of it'
            )
        elif len(score) < settings.min_participants:
            skipped[item.name] = (
                f'only {len(score)} participants have a score; '
                f'{settings.min_participants} are needed'
            )
        elif deficits < settings.min_deficits:
            skipped[item.name] = (
                f'only {deficits} participants have a deficit; {settings.min_deficits} are needed'
            )
        elif _widest_split(score) < settings.min_deficits:
            skipped[item.name] = (
                f'only {len(score) - deficits} participants are free of a deficit and the others '
                f'differ too little; {settings.min_deficits} are needed on either side of a level'
            )
        else:
            usable.append(k)
    return usable, skipped


def _widest_split(score: NDArray[np.float64]) -> int:
    """Return the number on the smaller side of the most even cut between two levels."""
    levels, counts = np.unique(score, return_counts=True)
    below = np.cumsum(counts)[:-1]
    return int(np.minimum(below, len(score) - below).max()) if len(levels) > 1 else 0


def covariate_scales(
    covariates: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation per column; a constant column has scale 1."""
    if not covariates.shape[1]:
        return np.zeros(0), np.ones(0)
    with np.errstate(all='ignore'):
        mean = np.nan_to_num(np.nanmean(covariates, 0))
        scale = np.nan_to_num(np.nanstd(covariates, 0))
    return mean, np.where(scale > 1e-12, scale, 1.0)


def dice_cut(probability: NDArray[np.floating]) -> float:
    """Return the cut whose set has the largest expected Dice with the unknown substrate.

    ``E[Dice]`` of the k most probable voxels is about ``2 sum_k p / (k + sum p)``: the numerator
    is the expected overlap, the denominator the expected sizes.
    """
    ordered = np.sort(probability.astype(float))[::-1]
    expected = 2 * np.cumsum(ordered) / (np.arange(1, len(ordered) + 1) + ordered.sum())
    return float(ordered[expected.argmax()])


def expected_dice(probability: NDArray[np.floating], declared: NDArray[np.bool_]) -> float:
    """Return the Dice coefficient that a set is expected to have with the unknown substrate.

    >>> expected_dice(np.array([1.0, 0.5, 0.0]), np.array([True, True, False]))
    0.857...
    """
    p = probability.astype(float)
    return float(2 * p[declared].sum() / max(declared.sum() + p.sum(), 1e-12))


def expected_false_discoveries(
    probability: NDArray[np.floating], declared: NDArray[np.bool_]
) -> float:
    """Return the share of a set that is expected to lie outside the substrate; NaN when empty."""
    return float(1 - probability[declared].mean(dtype=float)) if declared.any() else float('nan')


def credible_set(
    probability: NDArray[np.floating], share: float = CREDIBLE_SHARE
) -> NDArray[np.bool_]:
    """Return the smallest set that is expected to hold a share of the substrate.

    >>> credible_set(np.array([0.5, 0.4, 0.1])).tolist()
    [True, True, False]
    """
    order = np.argsort(-probability, kind='stable')
    held = np.cumsum(probability[order], dtype=float)
    inside = np.zeros(len(probability), bool)
    if held[-1] > 0:
        # what rounding takes from a sum may not ask for one voxel more
        inside[order[: int(np.searchsorted(held, share * held[-1] * (1 - 1e-9))) + 1]] = True
    return inside


def exceedance(values: NDArray[np.floating], cut: float) -> NDArray[np.bool_]:
    """Return where values reach a cut and are above 0; nowhere when the cut is NaN."""
    return (values >= cut) & (values > 0)
