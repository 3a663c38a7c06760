"""What the networks are fitted to, of a delay that is known. Must not know what is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata

from bids_perfdeficit.perfusion.agreement import DEFICIT_S

Floats = NDArray[np.floating[Any]]

#: s of delay beyond which longer ones count no more: the networks' delay ends there.
LONGEST_S = 12.0
#: s that weigh as much as the whole order of the brain, and steepness of hypoperfusion per s.
_SECONDS, _STEEP = 8.0, 1.5


def lateness(delay: Floats) -> Floats:
    """Return the rank of each delay plus its seconds over 8.

    The rank alone would order healthy tissue and neglect the deficit, the seconds alone the
    reverse.

    Parameters
    ----------
    delay : ndarray, (V,)
        s, of the brain of one patient.

    Returns
    -------
    ndarray, (V,)

    Examples
    --------
    >>> lateness(np.array([0.0, 4.0, 30.0])).round(2).tolist()
    [0.33, 1.17, 2.5]
    """
    order = rankdata(delay) / len(delay)
    return np.asarray(order + np.clip(delay, 0, LONGEST_S) / _SECONDS)


def hypoperfusion(delay: Floats) -> Floats:
    """Return from 0 to 1 how far a delay, s, lies above 6 s; .5 there.

    Examples
    --------
    >>> hypoperfusion(np.array([2.0, 6.0, 10.0])).round(3).tolist()
    [0.002, 0.5, 0.998]
    """
    return np.asarray(expit(_STEEP * (delay - DEFICIT_S)))
