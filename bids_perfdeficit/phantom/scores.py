"""Which parts of the brain each NIHSS item depends on, and scores drawn from what is hypoperfused.

The parts are ellipsoids about published coordinates, cut with the template's tissue. The links
from hypoperfusion to a score (threshold, saturating, synergistic) are not the deficit model's,
which is linear in one overlap. Must not know vessels, images' noise or files.

Coordinates are MNI mm, RAS, of the LEFT side; the right is their mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Point = tuple[float, float, float]

#: Part -> centre, half axes (mm) and tissue. Sources: hand, face and leg of the primary motor and
#: sensory cortex: Mayka et al., NeuroImage 2006. Corticospinal tract in the corona radiata and
#: the internal capsule: Archer et al., Cereb Cortex 2018. Frontal eye field: Paus,
#: Neuropsychologia 1996. Language: Vigneau et al., NeuroImage 2006. Neglect: Karnath & Rorden,
#: Neuropsychologia 2012. Calcarine cortex and optic radiation: Amunts et al., NeuroImage 2000;
#: Burgel et al., NeuroImage 2006. Thalamus: Morel in MNI space, Krauth et al., NeuroImage 2010.
#: Cerebral peduncle: Oishi et al., NeuroImage 2008. Cerebellum: Diedrichsen et al., NeuroImage
#: 2009.
PARTS: dict[str, tuple[Point, Point, str]] = {
    'hand': ((-38, -22, 56), (11, 10, 11), 'grey'),
    'face': ((-54, -7, 34), (9, 9, 11), 'grey'),
    'leg': ((-7, -28, 66), (7, 12, 10), 'grey'),
    'corona radiata': ((-26, -22, 30), (6, 9, 10), 'white'),
    'internal capsule': ((-24, -16, 8), (5, 8, 8), 'white'),
    'eye field': ((-32, -3, 50), (9, 9, 9), 'grey'),
    'inferior frontal': ((-48, 16, 14), (9, 12, 12), 'grey'),
    'insula': ((-37, 4, 2), (5, 15, 11), 'grey'),
    'superior temporal': ((-56, -32, 7), (9, 15, 9), 'grey'),
    'angular': ((-48, -60, 30), (11, 11, 11), 'grey'),
    'inferior parietal': ((-52, -44, 36), (11, 12, 12), 'grey'),
    'calcarine': ((-10, -82, 4), (9, 15, 10), 'grey'),
    'optic radiation': ((-32, -58, 6), (7, 16, 8), 'white'),
    'postcentral': ((-44, -29, 52), (11, 9, 11), 'grey'),
    'sensory thalamus': ((-15, -20, 5), (6, 7, 7), 'any'),
    'medial thalamus': ((-6, -16, 5), (5, 8, 7), 'any'),
    'peduncle': ((-14, -18, -14), (6, 6, 7), 'any'),
    'brain stem': ((-3, -29, -22), (7, 8, 14), 'any'),
    'cerebellum': ((-24, -62, -38), (18, 16, 12), 'any'),
}
_LEFT, _RIGHT, _BOTH = ('L',), ('R',), ('L', 'R')
_MOTOR = ('corona radiata', 'internal capsule', 'peduncle')
_LANGUAGE = ('inferior frontal', 'insula', 'superior temporal', 'angular')


@dataclass(frozen=True)
class ItemTruth:
    """How one item comes about.

    Parameters
    ----------
    levels : int
        Scores are 0 to ``levels - 1``.
    parts : tuple of str
        Keys of `PARTS`.
    sides : tuple of {'L', 'R'}
        Hemispheres. The left arm depends on the right one.
    link : {'threshold', 'saturating', 'synergistic'}
        From the share of each part that is hypoperfused to the drive of the score, when the
        cohort's links are mixed.
    volume : float
        Share of the drive that comes from the volume of the whole deficit.
    untestable : float
        Share of patients in whom it cannot be scored.
    """

    levels: int
    parts: tuple[str, ...]
    sides: tuple[str, ...]
    link: str
    volume: float = 0.0
    untestable: float = 0.0


#: By NIHSS item. Untestable: intubated, amputated or unable to follow (Josephson et al., Stroke
#: 2006 count ataxia among the items that are missing most).
ITEMS: dict[str, ItemTruth] = {
    '1a': ItemTruth(4, ('medial thalamus', 'brain stem'), _BOTH, 'saturating', volume=0.45),
    '1b': ItemTruth(3, ('superior temporal', 'inferior frontal'), _LEFT, 'saturating', volume=0.2),
    '1c': ItemTruth(3, ('angular', 'superior temporal'), _LEFT, 'saturating', volume=0.2),
    '2': ItemTruth(3, ('eye field', 'inferior parietal', 'brain stem'), _BOTH, 'threshold'),
    '3': ItemTruth(4, ('calcarine', 'optic radiation'), _BOTH, 'synergistic'),
    '4': ItemTruth(4, ('face', *_MOTOR), _BOTH, 'synergistic'),
    '5a': ItemTruth(5, ('hand', *_MOTOR), _RIGHT, 'synergistic', untestable=0.005),
    '5b': ItemTruth(5, ('hand', *_MOTOR), _LEFT, 'synergistic', untestable=0.005),
    '6a': ItemTruth(5, ('leg', *_MOTOR), _RIGHT, 'synergistic', untestable=0.01),
    '6b': ItemTruth(5, ('leg', *_MOTOR), _LEFT, 'synergistic', untestable=0.01),
    '7': ItemTruth(3, ('cerebellum',), _BOTH, 'threshold', untestable=0.06),
    '8': ItemTruth(3, ('postcentral', 'sensory thalamus'), _BOTH, 'threshold'),
    '9': ItemTruth(4, _LANGUAGE, _LEFT, 'saturating'),
    '10': ItemTruth(3, ('face', 'internal capsule', 'brain stem'), _BOTH, 'synergistic',
                    untestable=0.03),
    '11': ItemTruth(3, ('inferior parietal', 'superior temporal'), _RIGHT, 'threshold'),
}  # fmt: skip
LINKS = ('mixed', 'threshold', 'saturating', 'synergistic')
#: mL of hypoperfusion at which the part of the drive that volume has is two thirds of its whole.
_VOLUME_ML = 150.0
#: Drive at which a score of 1 begins, and that of the highest score.
_FIRST, _LAST = 0.18, 0.95
#: Standard deviation of what else shapes a score: effort, examiner, time of day.
_NOISE = 0.10


@lru_cache(maxsize=2)
def _tissue(spacing: int) -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]]]:
    from nilearn.datasets import (
        load_mni152_brain_mask,
        load_mni152_gm_template,
        load_mni152_wm_template,
    )

    brain = load_mni152_brain_mask(resolution=spacing)
    grey, white = (
        np.asarray(load(resolution=spacing).dataobj, np.float32)
        for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    inside = np.asarray(brain.dataobj) > 0
    masks = {'grey': inside & (grey > 0.35), 'white': inside & (white > 0.35), 'any': inside}
    return np.asarray(brain.affine, float), masks


@lru_cache(maxsize=2)
def _parts(spacing: int) -> dict[tuple[str, str], NDArray[np.bool_]]:
    affine, masks = _tissue(spacing)
    shape = masks['any'].shape
    x, y, z = (
        affine[a, 3] + affine[a, a] * np.arange(n).reshape([-1 if a == b else 1 for b in range(3)])
        for a, n in enumerate(shape)
    )
    out = {}
    for name, (centre, half, tissue) in PARTS.items():
        for side, sign in (('L', 1), ('R', -1)):
            away = (
                ((sign * x - centre[0]) / half[0]) ** 2
                + ((y - centre[1]) / half[1]) ** 2
                + ((z - centre[2]) / half[2]) ** 2
            )
            out[name, side] = (away <= 1) & masks[tissue]
    return out


def substrates(*, spacing: int = 2) -> dict[str, NDArray[np.bool_]]:
    """Return the true substrate of every item.

    Parameters
    ----------
    spacing : int
        mm of the grid, on which nilearn loads MNI152NLin2009aSym.

    Returns
    -------
    dict of str to bool array, (X, Y, Z)
        By item, in the order of the scale.
    """
    parts = _parts(spacing)
    return {
        item: np.logical_or.reduce([parts[p, s] for p in truth.parts for s in truth.sides])
        for item, truth in ITEMS.items()
    }


def draw_scores(
    delay: NDArray[np.floating],
    mask: NDArray[np.bool_],
    seed: int,
    *,
    links: str = 'mixed',
    flips: float = 0.05,
) -> pd.DataFrame:
    """Draw NIHSS scores from true delays.

    Parameters
    ----------
    delay : (N, V) array
        Seconds, in the voxels of `mask`.
    mask : bool array, (X, Y, Z)
        On the 2 mm grid of MNI152NLin2009aSym.
    seed : int
    links : {'mixed', 'threshold', 'saturating', 'synergistic'}
        One link for all items, or each item's own.
    flips : float
        Share of scores that are replaced by any level at random.

    Returns
    -------
    DataFrame
        A row per patient and a column ``nihss_<item>`` each, NaN where untestable.

    Raises
    ------
    ValueError
        For an unknown link, or a share outside [0, 1].
    """
    if links not in LINKS:
        raise ValueError(f'links is {links!r}; it must be one of {LINKS}')
    if not 0 <= flips <= 1:
        raise ValueError(f'flips is {flips}; it must lie between 0 and 1')
    rng = np.random.default_rng([seed, 505])
    parts = _parts(2)
    columns = {key: np.flatnonzero(where[mask]) for key, where in parts.items()}
    # Function fails gradually about the delay that defines hypoperfusion.
    shares = {
        key: (1 / (1 + np.exp(6.0 - delay[:, index].astype(np.float32)))).mean(1)
        for key, index in columns.items()
    }
    volume = (delay > 6.0).sum(1) * 0.008
    out = {}
    for item, truth in ITEMS.items():
        drive = np.max(
            [
                _link(
                    np.stack([shares[part, side] for part in truth.parts]),
                    truth.link if links == 'mixed' else links,
                )
                for side in truth.sides
            ],
            axis=0,
        )
        overall = 1 - np.exp(-volume / _VOLUME_ML)
        drive = (1 - truth.volume) * drive + truth.volume * overall
        felt = drive + _NOISE * rng.standard_normal(len(drive))
        cuts = np.linspace(_FIRST, _LAST, truth.levels - 1)
        score = (felt[:, None] > cuts).sum(1).astype(float)
        flipped = rng.random(len(score)) < flips
        score[flipped] = rng.integers(0, truth.levels, int(flipped.sum()))
        score[rng.random(len(score)) < truth.untestable] = np.nan
        out[f'nihss_{item}'] = score
    return pd.DataFrame(out)


def _link(shares: NDArray[np.floating], link: str) -> NDArray[np.floating]:
    """From the hypoperfused shares of the parts, (P, N), to the drive of the score in [0, 1]."""
    if link == 'threshold':  # a part fails as a whole once enough of it does
        return np.asarray((1 / (1 + np.exp(-(shares - 0.4) / 0.07))).max(0))
    if link == 'saturating':
        return np.asarray((1 - np.exp(-3 * shares.mean(0))) / (1 - np.exp(-3)))
    return np.asarray(1 - np.prod(1 - shares**1.3, axis=0))  # cortex or tract
