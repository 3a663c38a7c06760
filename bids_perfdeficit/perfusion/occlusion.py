"""Which artery is likely to be occluded, and on which side.

A multinomial logistic regression on what `evidence` measures in template space: how much of each
region is likely to be hypoperfused, and how well the trunks of the arteries are filled. Weights
are shared by the two sides, so that left and right are judged alike; they were fitted on digital
patients and lie with the rest of the calibration. A hint for a reader, not a diagnosis. Must not
know files or registration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bids_perfdeficit.perfusion.priors import Points, paint, pair, vein_prior
from bids_perfdeficit.perfusion.recalibration import calibration
from bids_perfdeficit.perfusion.regions import both_sides

#: Sites with a side, and those without.
SIDED, MIDLINE = ('ICA', 'M1', 'M2', 'ACA', 'PCA'), ('none', 'BA')
#: Site and side of all classes, in the order of `log_odds`.
OUTCOMES = (
    *((site, side) for side in ('left', 'right') for site in SIDED),
    *((site, 'n/a') for site in MIDLINE),
)
OPEN = OUTCOMES.index(('none', 'n/a'))
#: Course of the trunks in MNI mm, the right ones: the carotid terminus beside the chiasm, M1 along
#: the sphenoid ridge, the divisions of M2 over the insula, A2 in front of and above the corpus
#: callosum, P1 and P2 about the midbrain, the basilar in front of the pons (Rhoton, Neurosurgery
#: 2002, 51 (4 Suppl): S53-S120, at the template's own cisterns).
_TRUNKS: dict[str, Points] = {
    'ICA': [(11, 3, -25), (12, 3, -17)],
    'M1': [(14, 3, -17), (23, 6, -17), (32, 5, -15)],
    'M2 superior': [(35, 6, -12), (40, 12, -5), (42, 10, 7)],
    'M2 inferior': [(36, 0, -12), (41, -8, -5), (42, -22, 6)],
    'A2': [(4, 14, -14), (4, 26, -4), (4, 34, 10)],
    'P1': [(3, -13, -18), (10, -16, -17)],
    'P2': [(14, -20, -16), (21, -28, -12), (20, -38, -6)],
}
_BASILAR: Points = [(0, -16, -34), (0, -13, -22)]
#: Radius in mm about a course in which its artery is sought: anatomy varies and normalisation
#: errs. Share of that tube's voxels that the artery is taken to fill.
_RADIUS, _FILL = 5.0, 0.1
#: Added before logarithms are taken: HU of contrast, and share of a region.
_FLOOR_HU, _FLOOR_SHARE = 15.0, 0.01


@dataclass(frozen=True)
class OcclusionFinding:
    """What is likely to be occluded.

    Attributes
    ----------
    site : str
        One of `SIDED` or `MIDLINE`.
    side : {'left', 'right', 'n/a'}
    confidence : float
        Probability of that site and side.
    occluded : float
        Probability of an occlusion, whichever.
    next_site, next_side, next_confidence
        What comes second, likewise.
    distance : float
        Squared Mahalanobis distance of what was seen from what is seen in digital patients with
        that site and side. Not a number where the calibration has no such statistics.
    distance_limit : float
        Above it the finding is unlike any that the finder was fitted on.
    """

    site: str
    side: str
    confidence: float
    occluded: float
    next_site: str
    next_side: str
    next_confidence: float
    distance: float = np.nan
    distance_limit: float = np.inf


def evidence(
    hypoperfused: np.ndarray, subtraction: np.ndarray, brain: np.ndarray, affine: np.ndarray
) -> np.ndarray:
    """Measure both sides.

    Parameters
    ----------
    hypoperfused, subtraction : ndarray, (X, Y, Z)
        Probability of hypoperfusion, and CTA minus NCCT in HU; in template space.
    brain : ndarray of bool, (X, Y, Z)
    affine : ndarray, (4, 4)
        Voxel to MNI mm, RAS.

    Returns
    -------
    ndarray, (2, F)
        Left and right: the logarithm of the share of each territory and ASPECTS region that is
        hypoperfused (mean probability), that of the contrast of each trunk against the best
        filled carotid, and that of the basilar, which is the same for both.
    """
    regions = both_sides(brain.shape, affine).values()
    shares = region_evidence(
        hypoperfused, [[halves[side] & brain for halves in regions] for side in (0, 1)]
    )
    return np.hstack([shares, trunk_evidence(subtraction, affine)])


def region_evidence(
    hypoperfused: np.ndarray, regions: Sequence[Sequence[np.ndarray]]
) -> np.ndarray:
    """Return the logarithm of the share of each region that is hypoperfused, (2, R).

    Parameters
    ----------
    hypoperfused : ndarray
        Probability, of voxels in any arrangement.
    regions : sequence of two sequences of ndarray of bool
        Which of those voxels lie in each region, of the left and of the right.
    """

    def share(inside: np.ndarray) -> float:
        mean = float(hypoperfused[inside].mean()) if inside.any() else 0.0
        return float(np.log(mean + _FLOOR_SHARE))

    return np.array([[share(inside) for inside in half] for half in regions])


def trunk_evidence(subtraction: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the logarithms of the contrast of each trunk and of the basilar, (2, T).

    Against the best filled carotid; parameters as in `evidence`.
    """

    def contrast(path: Points) -> float:
        return float(np.log(max(_brightest(subtraction, affine, path), 0.0) + _FLOOR_HU))

    trunks = np.array([[contrast(p) for p in pair(path)[::-1]] for path in _TRUNKS.values()]).T
    basilar = contrast(_BASILAR)
    reference = trunks[:, 0].max()
    return np.array([[*(trunks[side] - reference), basilar - reference] for side in (0, 1)])


def measure_phase(subtraction: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """Measure the contrast of arteries and of dural sinuses, which shows the phase of the CTA.

    Parameters
    ----------
    subtraction : ndarray, (X, Y, Z)
        CTA minus NCCT in HU, in template space.
    affine : ndarray, (4, 4)
        Voxel to MNI mm, RAS.

    Returns
    -------
    arteries, sinuses : float
        HU of the brightest tenth of the tube about the better filled carotid terminus, and of
        the sinuses.
    """
    right, left = pair(_TRUNKS['ICA'])
    arteries = max(_brightest(subtraction, affine, path) for path in (right, left))
    return arteries, _mean_of_best(subtraction[vein_prior(subtraction.shape, affine) > 0.5])


def phase_ratio(arteries: float, sinuses: float) -> float:
    """Return the logarithm of the sinuses' contrast over the arteries', from `measure_phase`."""
    return float(np.log(max(sinuses, _FLOOR_HU) / max(arteries, _FLOOR_HU)))


def is_late(arteries: float, sinuses: float, fitted: Mapping[str, Any] | None = None) -> bool:
    """Return whether the CTA was scanned too late for the maps to be believed.

    Parameters
    ----------
    arteries, sinuses : float
        HU, from `measure_phase`.
    fitted : mapping, optional
        The shipped calibration by default; ``late_scan`` has the ``limit`` that `phase_ratio`
        exceeds in a late scan. Without it none is.

    Returns
    -------
    bool
        False where the arteries have no contrast, or lie outside the scan: that is another fault.
    """
    fitted = calibration() if fitted is None else fitted
    limit = fitted.get('late_scan', {}).get('limit', np.inf)
    return arteries > _FLOOR_HU and phase_ratio(arteries, sinuses) > limit


def _brightest(values: np.ndarray, affine: np.ndarray, path: Points) -> float:
    """Return the mean of the brightest voxels about a course, HU."""
    tube = np.zeros(values.shape, np.float32)
    paint(tube, affine, path, _RADIUS, 0.1)
    return _mean_of_best(values[tube > 0.5])


def _mean_of_best(values: np.ndarray) -> float:
    values = np.sort(values)
    best = values[int((1 - _FILL) * len(values)) :]
    return float(best.mean()) if best.size else 0.0


def log_odds(measured: np.ndarray, fitted: dict[str, object]) -> np.ndarray:
    """Return the logarithm of the odds of each outcome.

    Parameters
    ----------
    measured : ndarray, (2, F)
        From `evidence`.
    fitted : dict
        ``centre`` and ``scale`` (F,), ``weights`` (7, 2 F) for the sites of `SIDED` and
        `MIDLINE`, side of the occlusion first, and ``bias`` (7,).

    Returns
    -------
    ndarray, (12,)
        In the order of `OUTCOMES`.
    """
    centre, scale, weights, bias = (
        np.asarray(fitted[k], float) for k in ('centre', 'scale', 'weights', 'bias')
    )
    left, right = (measured - centre) / scale
    here, there = np.concatenate([left, right]), np.concatenate([right, left])
    sided = len(SIDED)
    both = 0.5 * (here + there)
    return np.concatenate(
        [
            weights[:sided] @ here + bias[:sided],
            weights[:sided] @ there + bias[:sided],
            weights[sided:] @ both + bias[sided:],
        ]
    )


def squared_distance(measured: np.ndarray, outcome: int, fitted: Mapping[str, Any]) -> float:
    """Return how far the evidence is from that of digital patients with an outcome.

    Parameters
    ----------
    measured : ndarray, (2, F)
        From `evidence`.
    outcome : int
        Place in `OUTCOMES`.
    fitted : mapping
        ``centre`` and ``scale`` (F,); ``class_mean`` (12, 2 F), the mean of the evidence of each
        of `OUTCOMES`, less the centre and over the scale, left side first; and
        ``class_precision`` (2 F, 2 F), the inverse of its covariance within outcomes.

    Returns
    -------
    float
        Squared Mahalanobis distance; not a number without ``class_mean`` or ``class_precision``.
    """
    if not {'class_mean', 'class_precision'} <= set(fitted):
        return np.nan
    centre, scale, mean, precision = (
        np.asarray(fitted[k], float) for k in ('centre', 'scale', 'class_mean', 'class_precision')
    )
    away = ((measured - centre) / scale).ravel() - mean[outcome]
    return float(away @ precision @ away)


def find_occlusion(
    measured: np.ndarray, fitted: Mapping[str, Any] | None = None
) -> OcclusionFinding:
    """Return the likeliest site and side.

    Parameters
    ----------
    measured : ndarray, (2, F)
        From `evidence`.
    fitted : mapping, optional
        The calibration; the shipped one by default.

    Returns
    -------
    OcclusionFinding
    """
    finder = (calibration() if fitted is None else fitted)['occlusion']
    odds = log_odds(measured, finder)
    probability = np.exp(odds - odds.max())
    probability /= probability.sum()
    first, second = (int(n) for n in np.argsort(-probability)[:2])
    return OcclusionFinding(
        *OUTCOMES[first],
        float(probability[first]),
        1 - float(probability[OPEN]),
        *OUTCOMES[second],
        float(probability[second]),
        squared_distance(measured, first, finder),
        float(finder.get('distance_limit', np.inf)),
    )


#: What the finder calls the artery of each trunk.
_SITES = {
    'ICA': 'ICA', 'M1': 'M1', 'M2 superior': 'M2', 'M2 inferior': 'M2', 'A2': 'ACA',
    'P1': 'PCA', 'P2': 'PCA',
}  # fmt: skip


def site_course(site: str, side: str) -> np.ndarray:
    """Return the course of the artery of a site in the template.

    Parameters
    ----------
    site, side : str
        As in `OcclusionFinding`.

    Returns
    -------
    ndarray, (N, 3)
        MNI mm, about 2 mm apart; empty for ``'none'``.
    """
    paths = [_BASILAR] if site == 'BA' else []
    for trunk, course in _TRUNKS.items():
        if _SITES[trunk] == site:
            right, left = pair(course)
            paths.append(left if side == 'left' else right)
    points = [np.zeros((0, 3))]
    for path in paths:
        for start, end in pairwise(np.asarray(path, float)):
            steps = max(2, int(np.ceil(np.linalg.norm(end - start) / 2)) + 1)
            points.append(np.linspace(start, end, steps))
    return np.concatenate(points)


def nearest_site(points: np.ndarray) -> tuple[str, str, float]:
    """Name the artery that a clot lies in: the one whose course is nearest to it on average.

    Parameters
    ----------
    points : ndarray, (N, 3)
        Voxels of the clot, MNI mm.

    Returns
    -------
    site, side : str
        One of `SIDED` and ``'left'`` or ``'right'``, or ``'BA'`` and ``'n/a'``.
    distance : float
        Mean distance to that course, mm.
    """
    away = {('BA', 'n/a'): _distance(points, _BASILAR)}
    for trunk, course in _TRUNKS.items():
        for side, path in zip(('right', 'left'), pair(course), strict=True):
            outcome = (_SITES[trunk], side)
            away[outcome] = min(away.get(outcome, np.inf), _distance(points, path))
    site, side = min(away, key=lambda outcome: away[outcome])
    return site, side, away[site, side]


def _distance(points: np.ndarray, path: Points) -> float:
    """Mean distance in mm of points (N, 3) from a course of straight pieces."""
    course = np.asarray(path, float)
    nearest = np.full(len(points), np.inf)
    for start, end in pairwise(course):
        along = end - start
        part = np.clip((points - start) @ along / (along @ along), 0, 1)
        nearest = np.minimum(
            nearest, np.linalg.norm(points - start - part[:, None] * along, axis=1)
        )
    return float(nearest.mean())
