"""Measure on which scale a head CT is stored, from the peaks of air and soft tissue.

Air and brain lie 1033 HU apart in every head CT, whatever a converter did to the values: the
distance of the two peaks gives the slope, their position the shift. Must not know files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

#: HU of air, and of air where a scanner clips at the lower end of 12 bits.
AIR_HU, CLIPPED_AIR_HU = -1000.0, -1024.0
#: HU of the most frequent soft tissue: brain and muscle, a little more with contrast.
TISSUE_HU = 33.0
#: Largest error of the distance between the peaks, as a share of it; 45 HU of 1033.
GAP_TOLERANCE = 0.045
#: HU in which the peak of soft tissue and of air are accepted as they are. Brain of newborns has
#: 20 HU, enhanced muscle 70; air of scanners that were not calibrated varies by 100 HU.
TISSUE_RANGE, AIR_RANGE = (-5.0, 75.0), (-1110.0, -890.0)
#: Slopes that converters are known to leave: applied twice or not at all, a sign, a scale of 10.
SLOPES = (1, -1, 2, 0.5, -2, -0.5, 4, 0.25, 10, 0.1, 3, 1.5, 5, 8, 16, 100, 0.01, 0.001)
#: HU by which converters are known to shift: an intercept that was left out or applied twice
#: (1000, 1024), the offset of a signed type (8192, 32768), and multiples.
SHIFTS = (0, 1000, 1024, -1000, -1024, 2000, 2048, -2000, -2048, 8192, -8192, 32768, -32768)
#: HU by which the peaks may miss those of a known shift: what they vary between scanners.
SHIFT_TOLERANCE = 26.0
#: mm of the blocks in which values are averaged, so that noise does not widen the peaks.
BLOCK_MM = 4.0
#: Bins of the histogram.
BINS = 1200


@dataclass(frozen=True)
class Scale:
    """How stored values follow from Hounsfield units: ``stored = slope * HU + shift``.

    Parameters
    ----------
    slope, shift : float
        As measured, or the known value that the measured one is close to.
    known : bool
        Whether both are known faults of converters, so that HU can be restored exactly.
    air, tissue : float
        Stored values of the two peaks.
    """

    slope: float
    shift: float
    known: bool
    air: float
    tissue: float

    @property
    def slope_known(self) -> bool:
        """Whether converters are known to leave this slope."""
        return self.slope in SLOPES

    @property
    def is_hounsfield(self) -> bool:
        """Whether values are in HU as they are stored."""
        return self.slope == 1 and self.shift == 0

    def describe(self) -> str:
        """Name slope and shift in words, such as ``shifted by +1024``."""
        words = []
        if self.slope == -1:
            words.append('inverted')
        elif self.slope < 0:
            words.append(f'inverted and multiplied by {-self.slope:g}')
        elif self.slope != 1:
            words.append(f'multiplied by {self.slope:g}')
        if self.shift or not words:
            words.append(f'shifted by {self.shift:+.0f}')
        return ' and '.join(words)


def blocks(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average cubes of about `BLOCK_MM`, and find those that hold one value throughout.

    Parameters
    ----------
    values : ndarray, (X, Y, Z)
    sizes : ndarray, (3,)
        Voxel sizes, mm.

    Returns
    -------
    mean : ndarray of float32
    flat : ndarray of bool
        Of the same shape; blocks of fewer than 8 voxels are never flat.
    """
    steps = np.maximum(1, np.rint(BLOCK_MM / sizes)).astype(int)
    x, y, z = (n // s for n, s in zip(values.shape, steps, strict=True))
    part = values[: x * steps[0], : y * steps[1], : z * steps[2]]
    part = part.reshape(x, steps[0], y, steps[1], z, steps[2])
    mean = part.mean((1, 3, 5), dtype=np.float32)
    if steps.prod() < 8:  # thick slices, coarse voxels: look at the neighbours instead
        low, high = (f(mean, 3) for f in (ndimage.minimum_filter, ndimage.maximum_filter))
        return mean, low == high
    return mean, part.min((1, 3, 5)) == part.max((1, 3, 5))


def measure_scale(mean: np.ndarray, flat: np.ndarray) -> Scale | None:
    """Find slope and shift of a head CT.

    Parameters
    ----------
    mean, flat : ndarray, (X, Y, Z)
        As `blocks` returns them.

    Returns
    -------
    Scale or None
        None when no two peaks lie as air and soft tissue do in a head CT.
    """
    # An image without noise, such as an average of many heads, is constant in its tissues too.
    return _measure(mean, flat) or _measure(mean, np.zeros_like(flat))


def _measure(mean: np.ndarray, flat: np.ndarray) -> Scale | None:
    # Beside constant blocks lie those that are partly padding.
    lively = mean[~ndimage.binary_dilation(flat)]
    if len(lively) < 500:
        return None
    peaks = _peaks(mean, lively)
    centre = _centre(mean, flat)
    best: tuple[float, Scale] | None = None
    for air in peaks:
        for tissue in peaks:
            if air == tissue:
                continue
            slope = (tissue - air) / (TISSUE_HU - AIR_HU)
            known = [s for s in SLOPES if abs(slope / s - 1) < GAP_TOLERANCE]
            score = _plausibility(mean, flat, lively, centre, tissue, known[0] if known else slope)
            if score <= 0:
                continue
            # Among plausible readings the simplest: a slope of one, then a known slope; then the
            # pair that lies apart as air and brain do, because muscle and fat have peaks too.
            simple = 10 if known and known[0] == 1 else 5 if known else 0
            rank = simple + score - 10 * (abs(slope / known[0] - 1) if known else 0)
            scale = _name(air, tissue, slope, known)
            if best is None or rank > best[0]:
                best = (rank, scale)
    return None if best is None else best[1]


def _peaks(mean: np.ndarray, lively: np.ndarray) -> list[float]:
    """Return the values of the peaks of the histogram that hold at least 1 % of all blocks."""
    low, high = np.percentile(mean, [0.05, 99.95])
    if not high > low:
        return []
    found: list[float] = []
    # Constant air and padding have peaks of their own; soft tissue is never constant.
    for sample in (lively, mean.ravel()):
        counts, edges = np.histogram(sample, BINS, (low, high))
        smooth = ndimage.gaussian_filter1d(counts.astype(float), 2.5)
        width = edges[1] - edges[0]
        tops = (smooth >= np.roll(smooth, 1)) & (smooth > np.roll(smooth, -1))
        tops[0] |= smooth[0] > smooth[1]
        tops[-1] |= smooth[-1] > smooth[-2]
        for k in np.flatnonzero(tops):
            top = edges[k] + width / 2
            near = sample[np.abs(sample - top) < 6 * width]
            if len(near) < 0.01 * mean.size:
                continue
            value = float(np.median(near))
            if all(abs(value - other) > 4 * width for other in found):
                found.append(value)
    return found


def _centre(mean: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Return the values in the middle half of the image, where the head is."""
    box = tuple(slice(n // 4, -(n // 4) or None) for n in mean.shape)
    return np.asarray(mean[box][~flat[box]])


def _plausibility(
    mean: np.ndarray,
    flat: np.ndarray,
    lively: np.ndarray,
    centre: np.ndarray,
    tissue: float,
    slope: float,
) -> float:
    """Return how much the values look like a head CT read with this slope; 0 for not at all."""
    inside = (lively - tissue) / slope + TISSUE_HU
    whole = (mean - tissue) / slope + TISSUE_HU
    air = np.mean((whole > -1150) & (whole < -850))
    soft = np.mean((inside > -60) & (inside < 110))
    bone = np.mean((inside > 250) & (inside < 2400))
    between = np.mean((inside > -800) & (inside < -250))
    # Padding below air is constant; what is not must not lie there, nor above dense bone.
    outside = np.mean((inside < -1200) | (inside > 3200))
    middle = (centre - tissue) / slope + TISSUE_HU
    brain = np.mean((middle > -60) & (middle < 110)) if len(centre) else 0.0
    if air < 0.01 or soft < 0.02 or bone < 0.002 or bone > 2 * soft or between > 2 * soft:
        return 0.0
    if outside > 0.05 or brain < 0.2:
        return 0.0
    return float(soft - between - outside)


def _name(air: float, tissue: float, slope: float, known: list[float]) -> Scale:
    """Return the known slope and shift that the peaks are closest to, else what was measured."""
    if not known:
        return Scale(float(slope), float(tissue - slope * TISSUE_HU), False, air, tissue)
    slope = float(known[0])
    if (
        slope == 1
        and TISSUE_RANGE[0] < tissue < TISSUE_RANGE[1]
        and AIR_RANGE[0] < air < AIR_RANGE[1]
    ):
        return Scale(1.0, 0.0, True, air, tissue)
    shifts = {float(k * f) for k in SHIFTS for f in (1, slope)}
    if slope < 0:  # values may have been subtracted from the largest or from a power of two
        shifts |= {4095.0, 2047.0, 3071.0, 1023.0}

    def misfit(shift: float) -> float:
        """HU; air varies less between scanners than soft tissue does between patients."""
        off = min(abs((air - shift) / slope - hu) for hu in (AIR_HU, CLIPPED_AIR_HU))
        return float(off + 0.5 * abs((tissue - shift) / slope - TISSUE_HU))

    shift = min(shifts, key=misfit)
    if misfit(shift) <= SHIFT_TOLERANCE:
        return Scale(slope, shift, True, air, tissue)
    by_air = [air - slope * hu for hu in (AIR_HU, CLIPPED_AIR_HU)]
    measured = min(by_air, key=lambda s: abs((tissue - s) / slope - TISSUE_HU))
    return Scale(slope, float(round(measured, 1)), False, air, tissue)
