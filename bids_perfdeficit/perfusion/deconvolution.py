"""From a series of CT perfusion to its arterial input and the delay of the tissue (Tmax).

Contrast in tissue is the arterial input convolved with the residue function of the tissue. It is
inverted by a singular value decomposition of the block-circulant matrix of the input (Wu et al.,
Magn Reson Med 2003, 50: 164-174), which, unlike the original decomposition (Ostergaard et al.,
Magn Reson Med 1996, 36: 715-725), does not depend on how late the tissue fills. Tmax is the time
at which the residue function is highest. Works on NumPy arrays, time first. Must not know files,
nor how a series is acquired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: s of the grid in time on which curves are deconvolved.
STEP_S = 1.0
#: Share of the largest singular value below which a component is left out: 10 % was best for the
#: block-circulant decomposition (Wu et al.).
LEAST_SINGULAR = 0.1
#: Share of its peak at which a curve counts as arrived.
_ARRIVED = 0.1
#: Share of the brightest peak (but for one voxel in 1,000) from which a voxel is a vessel; share
#: of the vessels that are arteries, by their arrival; number of voxels whose mean is the input.
_BRIGHT, _EARLY, _VOXELS = 0.35, 0.25, 30
#: Share of its peak to which contrast in an artery has fallen when the series ends. A voxel beside
#: bone that brightens as the head moves does not fall.
_FALLEN = 0.6
#: Voxels that are deconvolved at once.
_CHUNK = 1 << 15


@dataclass(frozen=True)
class Timing:
    """What the arterial input says of the frames.

    Parameters
    ----------
    before : tuple of int
        Frames before contrast arrives.
    peak : int
        Frame at which the arterial input is highest.
    """

    before: tuple[int, ...]
    peak: int


def find_arterial_input(curves: Floats, times: Floats) -> Floats:
    """Find the arterial input in a brain.

    The brightest voxels are vessels, and the earliest of them arteries.

    Parameters
    ----------
    curves : ndarray, (T, V)
        HU, of the voxels of the brain and the vessels on it.
    times : ndarray, (T,)
        s.

    Returns
    -------
    ndarray, (T,)
        Enhancement, HU: 0 before contrast.

    Raises
    ------
    ValueError
        In one clause: there is no contrast, or it has not passed when the series ends.
    """
    start = curves[: max(1, len(times) // 10)].mean(0)
    rise = curves - start
    peak = rise.max(0)
    fallen = rise[-3:].mean(0) < _FALLEN * peak
    if not fallen.any():
        raise ValueError('it ends before contrast has passed the arteries')
    top = float(np.quantile(peak[fallen], 0.999))
    # Peaks of most voxels are those of noise and of tissue.
    if top < 2.5 * max(float(np.median(peak)), 1.0):
        raise ValueError('no vessel in it enhances')
    bright = np.flatnonzero(fallen & (peak >= _BRIGHT * top))
    half = np.array([times[np.argmax(rise[:, v] >= 0.5 * peak[v])] for v in bright])
    early = bright[half <= np.quantile(half, _EARLY)]
    chosen = early[np.argsort(-peak[early], kind='stable')[:_VOXELS]]
    curve = rise[:, chosen].mean(1)
    return np.asarray(curve - curve[: max(1, len(times) // 10)].mean(), float)


def time_frames(arterial: Floats) -> Timing:
    """Return which frames lie before contrast, and at which arteries are brightest.

    Parameters
    ----------
    arterial : ndarray, (T,)
        From `find_arterial_input`.

    Returns
    -------
    Timing

    Raises
    ------
    ValueError
        In one clause: contrast is there from the first frame on, or has not left arteries when
        the series ends.
    """
    peak = int(np.argmax(arterial))
    arrived = int(np.argmax(arterial >= _ARRIVED * arterial[peak]))
    # One frame more: contrast comes while the scanner turns.
    before = tuple(range(max(arrived - 1, 0)))
    if not before:
        raise ValueError('contrast is there from the first frames on')
    if peak >= len(arterial) - 3 or arterial[-1] > _FALLEN * arterial[peak]:
        raise ValueError('it ends before contrast has passed the arteries')
    return Timing(before, peak)


def compute_tmax(
    curves: Floats,
    arterial: Floats,
    times: Floats,
    *,
    step: float = STEP_S,
    least: float = LEAST_SINGULAR,
) -> Floats:
    """Deconvolve curves of tissue with the arterial input.

    Parameters
    ----------
    curves : ndarray, (T, V)
        Enhancement, HU: 0 before contrast.
    arterial : ndarray, (T,)
        Likewise.
    times : ndarray, (T,)
        s, ascending; distances may differ.
    step : float
        s of the grid in time.
    least : float
        Share of the largest singular value below which a component is left out.

    Returns
    -------
    ndarray, (V,)
        s by which the residue function is highest after the arterial input: from 0 to the length
        of the series. Tissue that fills before the input has 0.

    Examples
    --------
    >>> times = np.arange(0.0, 60.0)
    >>> arterial = np.maximum(times - 5, 0) ** 2 * np.exp(-np.maximum(times - 5, 0) / 2)
    >>> late = np.maximum(times - 12, 0) ** 2 * np.exp(-np.maximum(times - 12, 0) / 2)
    >>> float(compute_tmax(0.03 * late[:, None], arterial, times)[0].round(1))
    7.0
    """
    grid = np.arange(times[0], times[-1] + step / 2, step)
    count, long = len(grid), 2 * len(grid)
    inflow = np.zeros(long)
    inflow[:count] = np.interp(grid, times, arterial)
    # Column j is the input, j steps late, with its end wrapped round.
    matrix = step * np.stack([np.roll(inflow, j) for j in range(long)], 1)
    left, values, right = np.linalg.svd(matrix)
    kept = values >= least * values[0]
    inverse = (right[kept].T / values[kept]) @ left[:, kept].T
    # Only the first half of a curve is measured.
    inverse = inverse[:, :count]
    at, between = _positions(grid, times)
    out = np.empty(curves.shape[1])
    for first in range(0, curves.shape[1], _CHUNK):
        part = curves[:, first : first + _CHUNK]
        even = part[at] * (1 - between)[:, None] + part[at + 1] * between[:, None]
        residue = inverse @ even
        # The second half holds what comes before the input.
        top = residue.argmax(0)
        columns = np.arange(residue.shape[1])
        one, two, three = (residue[(top + k) % long, columns] for k in (-1, 0, 1))
        curve = one - 2 * two + three
        shift = np.where(curve < 0, 0.5 * (one - three) / np.where(curve < 0, curve, 1), 0)
        place = np.where(top >= count, 0.0, top + shift)
        out[first : first + _CHUNK] = np.clip(place, 0, count - 1) * step
    return out


def _positions(grid: Floats, times: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the frame before each time of a grid, and the share of the way to the next."""
    at = np.clip(np.searchsorted(times, grid, side='right') - 1, 0, len(times) - 2)
    return at, np.clip((grid - times[at]) / (times[at + 1] - times[at]), 0, 1)
