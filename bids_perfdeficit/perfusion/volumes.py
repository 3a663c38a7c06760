"""The interval in which a hypoperfused volume lies.

A volume errs in proportion to its size, and by some mL more. How much was measured on digital
patients; where the networks disagree it errs more. Must not know how voxels were counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from bids_perfdeficit.perfusion.recalibration import calibration


def volume_interval(
    volume_ml: float, member_ml: Sequence[float], fitted: Mapping[str, Any] | None = None
) -> tuple[float, float]:
    """Return the ends of the interval of a volume.

    The ends are ``exp(log(v + b) -/+ z sqrt(a^2 + s^2)) - b`` and not below 0, with ``log_sd`` `a`
    and ``floor_ml`` `b` of the calibration, the standard deviation `s` of ``log(v_k + b)`` between
    the networks, and `z` from ``level``.

    Parameters
    ----------
    volume_ml : float
        mL above the threshold by the mean of the networks.
    member_ml : sequence of float
        mL above it by each network alone; none means that they are not known.
    fitted : mapping, optional
        The calibration; the shipped one by default.

    Returns
    -------
    low, high : float
        mL. Not a number where the calibration has no ``volume_interval``.

    Examples
    --------
    >>> fitted = {'volume_interval': {'log_sd': 0.2, 'floor_ml': 5.0, 'level': 0.9}}
    >>> [round(end) for end in volume_interval(100.0, [100.0, 100.0], fitted)]
    [71, 141]
    >>> [round(end) for end in volume_interval(100.0, [70.0, 140.0], fitted)]
    [51, 193]
    """
    known = (calibration() if fitted is None else fitted).get('volume_interval')
    if known is None:
        return np.nan, np.nan
    floor, level = float(known['floor_ml']), float(known['level'])
    between = float(np.log(np.asarray(member_ml, float) + floor).std()) if len(member_ml) else 0.0
    wide = norm.ppf(0.5 + level / 2) * np.hypot(float(known['log_sd']), between)
    middle = np.log(volume_ml + floor)
    low, high = (float(np.exp(middle + sign * wide)) - floor for sign in (-1, 1))
    return max(low, 0.0), max(high, 0.0)
