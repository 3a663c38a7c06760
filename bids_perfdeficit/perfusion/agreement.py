"""Agreement of a map with a known delay of the tissue, in one patient and over a cohort.

The benchmark on digital patients and the evaluation against reference maps measure with the same
functions. Arrays are those of NumPy; a map is higher where contrast is later. Must not know where
maps or references come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.stats import rankdata

#: s of delay (Tmax) above which tissue is hypoperfused (Olivot et al., Stroke 2009).
DEFICIT_S = 6.0
#: Voxels that a deficit must have before ranks inside it and detection mean anything.
LEAST_VOXELS = 50
#: mL by which one side must exceed the other to be called the later one. In digital patients the
#: site with the smallest deficits, P2, has a median of 12 mL (`benchmarks/RESULTS.md`).
SIDE_ML = 5.0
#: mL below which a separate piece of a reference's deficit counts as a speck. Published volumes of
#: artefacts in Tmax maps have a median of 12 mL in total, in several pieces.
SPECK_ML = 1.0
#: Share of the highest value from which a voxel counts as at the maximum: stored numbers round.
_AT_TOP = 1 - 1e-4


@dataclass(frozen=True)
class Agreement:
    """How one map agrees with the delay, over the voxels of one brain.

    Parameters
    ----------
    spearman : float
        Rank correlation with the delay.
    partial : float
        The same without what the control explains of both.
    spearman_deficit : float
        Rank correlation inside the deficit (delay above `DEFICIT_S`).
    auc : float
        Area under the ROC curve for the deficit.
    dice_matched : float
        Dice coefficient of the deficit and as many of the map's highest voxels: what a threshold
        that has the volume right would reach.
    """

    spearman: float
    partial: float
    spearman_deficit: float
    auc: float
    dice_matched: float


@dataclass(frozen=True)
class Artefacts:
    """What in a reference map cannot be tissue's delay.

    Parameters
    ----------
    zero_share : float
        Share of the covered brain whose value is exactly 0.
    top_share : float
        Share of the covered brain at the highest value, where the map was cut off.
    top : float
        That value, s.
    specks : int
        Separate pieces of the deficit in the brain of less than `SPECK_ML`.
    specks_ml : float
        Their volume together, mL.
    outside_ml : float
        Volume above `DEFICIT_S` away from the brain, mL.
    """

    zero_share: float
    top_share: float
    top: float
    specks: int
    specks_ml: float
    outside_ml: float


def correlations(x: ArrayLike, y: ArrayLike, control: ArrayLike) -> tuple[float, float]:
    """Return Spearman's correlation of x and y, plain and without the control.

    Parameters
    ----------
    x, y, control : array-like, (N,)

    Returns
    -------
    plain, partial : float
        NaN where one of them is constant.
    """
    with np.errstate(invalid='ignore', divide='ignore'):
        matrix = np.corrcoef([rankdata(k) for k in (x, y, control)])
        xy, xc, yc = matrix[0, 1], matrix[0, 2], matrix[1, 2]
        return float(xy), float((xy - xc * yc) / np.sqrt((1 - xc**2) * (1 - yc**2)))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's correlation of x and y, (N,); NaN where one of them is constant."""
    with np.errstate(invalid='ignore', divide='ignore'):
        return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def roc_area(values: ArrayLike, positive: ArrayLike) -> float:
    """Return the area under the ROC curve of values (N,) for a mask (N,); NaN without a class."""
    mask = np.asarray(positive, bool)
    count = int(mask.sum())
    if not 0 < count < mask.size:
        return float('nan')
    total = float(rankdata(values)[mask].sum())
    return (total - count * (count + 1) / 2) / (count * (mask.size - count))


def dice(one: ArrayLike, other: ArrayLike) -> float:
    """Return the Dice coefficient of two masks of one shape; NaN where both are empty."""
    first, second = np.asarray(one, bool), np.asarray(other, bool)
    size = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / size if size else float('nan')


def highest(values: NDArray[np.floating], count: int) -> NDArray[np.bool_]:
    """Return a mask (N,) of the `count` highest values (N,); equal ones in their order."""
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(-values, kind='stable')[:count]] = True
    return chosen


def measure_agreement(
    values: NDArray[np.floating],
    delay: NDArray[np.floating],
    control: NDArray[np.floating],
    *,
    least: int = LEAST_VOXELS,
) -> Agreement:
    """Measure the agreement of a map with the delay.

    Parameters
    ----------
    values, delay, control : ndarray, (N,)
        In the voxels of the brain where both are known: the map, the delay in s, and the control
        whose part is taken away, such as the distance from the arterial inflow.
    least : int
        Voxels that the deficit must have; with fewer, what is about it is NaN.

    Returns
    -------
    Agreement
    """
    plain, partial = correlations(values, delay, control)
    late = delay > DEFICIT_S
    count = int(late.sum())
    if count < least:
        return Agreement(plain, partial, np.nan, np.nan, np.nan)
    return Agreement(
        plain,
        partial,
        spearman(values[late], delay[late]),
        roc_area(values, late),
        dice(highest(values, count), late),
    )


def later_side(left: float, right: float, *, least: float = SIDE_ML) -> str:
    """Return ``'left'`` or ``'right'``, whichever has more mL by `least`, or ``'neither'``."""
    if abs(left - right) < least:
        return 'neither'
    return 'left' if left > right else 'right'


def concordance(x: ArrayLike, y: ArrayLike) -> float:
    """Return Lin's concordance correlation coefficient of two measurements (N,).

    Lin, *Biometrics* 1989; with variances over N. NaN for fewer than 3 or without any spread.
    """
    a, b = np.asarray(x, float), np.asarray(y, float)
    spread = a.var() + b.var() + (a.mean() - b.mean()) ** 2 if len(a) > 2 else 0.0
    if spread == 0:
        return float('nan')
    return float(2 * ((a - a.mean()) * (b - b.mean())).mean() / spread)


def limits_of_agreement(x: ArrayLike, y: ArrayLike) -> tuple[float, float, float]:
    """Return the mean of x - y and its 95 % limits of agreement.

    Bland and Altman, *Lancet* 1986: 1.96 standard deviations either way. NaN for fewer than 3.
    """
    difference = np.asarray(x, float) - np.asarray(y, float)
    if len(difference) < 3:
        return float('nan'), float('nan'), float('nan')
    bias, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1))
    return bias, bias - spread, bias + spread


def bootstrap_interval(
    values: ArrayLike, *, seed: int, repetitions: int = 2000
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of values (N,) over resampled patients."""
    kept = np.asarray(values, float)
    kept = kept[np.isfinite(kept)]
    if len(kept) < 3:
        return float('nan'), float('nan')
    rng = np.random.default_rng(seed)
    means = kept[rng.integers(len(kept), size=(repetitions, len(kept)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def find_artefacts(
    delay: NDArray[np.floating],
    brain: NDArray[np.bool_],
    voxel_ml: float,
    *,
    away: NDArray[np.bool_] | None = None,
) -> Artefacts:
    """Find what cannot be tissue's delay in a reference, on its own grid.

    Parameters
    ----------
    delay : ndarray, (X, Y, Z)
        s; not finite where nothing is known.
    brain : ndarray of bool, (X, Y, Z)
        The part of the patient's brain that the reference covers.
    voxel_ml : float
        Volume of a voxel, mL.
    away : ndarray of bool, (X, Y, Z), optional
        What is certainly not brain; all but `brain` by default.

    Returns
    -------
    Artefacts
    """
    away = ~brain if away is None else away
    known = np.isfinite(delay)
    inside = delay[brain & known]
    top = float(inside.max()) if inside.size else float('nan')
    late = known & (np.nan_to_num(delay) > DEFICIT_S)
    pieces, _ = ndimage.label(late & brain, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())[1:] * voxel_ml
    small = sizes[sizes < SPECK_ML]
    return Artefacts(
        zero_share=float((inside == 0).mean()) if inside.size else float('nan'),
        top_share=float((inside >= top * _AT_TOP).mean()) if inside.size else float('nan'),
        top=top,
        specks=len(small),
        specks_ml=float(small.sum()),
        outside_ml=float(np.count_nonzero(late & away) * voxel_ml),
    )


def describe_artefacts(found: Artefacts) -> tuple[str, ...]:
    """Return the artefacts that a reader must know, a sentence each without a full stop."""
    notes = []
    if found.zero_share > 0.02:
        notes.append(f'{found.zero_share:.0%} of the brain that the reference covers is exactly 0')
    if found.top_share > 0.001:
        notes.append(
            f'the reference ends at {found.top:.3g} s, which {found.top_share:.1%} of the brain '
            'have: longer delays were cut off'
        )
    if found.specks_ml >= SPECK_ML:
        notes.append(
            f'{found.specks} isolated specks of the reference above {DEFICIT_S:g} s '
            f'({found.specks_ml:.0f} mL) are each smaller than {SPECK_ML:g} mL'
        )
    if found.outside_ml >= SPECK_ML:
        notes.append(
            f'{found.outside_ml:.0f} mL of the reference above {DEFICIT_S:g} s lie outside the '
            'brain'
        )
    return tuple(notes)


def rank_shares(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the ranks of values (N,) from 0 to 1, ties sharing one."""
    return np.asarray((rankdata(values) - 0.5) / len(values))


def unlearned_blend(maps: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Return the mean rank of several maps (N,): a blend with nothing fitted."""
    return np.asarray(np.mean([rank_shares(values) for values in maps], axis=0))
