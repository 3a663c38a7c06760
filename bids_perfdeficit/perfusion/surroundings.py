"""What lies around a voxel in a first estimate of the delay: features of a second look.

A network that sees one voxel at a time neither knows how large the deficit is nor how deep in it
the voxel lies. So a first network is applied everywhere, its outputs are averaged over a
centimetre and more, and the networks that give the result see these averages beside the features
(auto-context; Tu & Bai, IEEE Trans Pattern Anal Mach Intell 2010). Must not know how the first
estimate came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bids_perfdeficit.perfusion.combination import Combined, share_smooth
from bids_perfdeficit.perfusion.threads import run_all

#: mm: standard deviations over which the first estimate is averaged.
AROUND_MM = (6, 12, 24)
#: Of them the one whose largest probability describes the patient, and the probability from which
#: a voxel counts as part of the deficit whose mean delay does.
_MIDDLE_MM, _DEFICIT = 12, 0.3
#: Log odds end here: float32 has no larger ones.
_LIMIT = 13.0
_AVERAGED = ('late', 'probability', 'delay')
#: Names of the features.
NAMES = (
    'estimated_late', 'estimated_odds', 'estimated_delay',
    *(f'{name}_around_{mm}' for mm in AROUND_MM for name in _AVERAGED),
    'deficit_share', 'deficit_peak', 'deficit_delay',
)  # fmt: skip


def surroundings(
    first: Combined, brain: Tensor, spacing: Sequence[float], *, threads: int = 1
) -> dict[str, Tensor]:
    """Return features of a first estimate.

    Parameters
    ----------
    first : Combined
        Maps (Z, Y, X).
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    threads : int
        Maps that are computed at once; the result is the same.

    Returns
    -------
    dict of str to Tensor
        `NAMES`. Maps, (Z, Y, X): lateness, log odds and the logarithm of the delay, as they are
        (``estimated_*``) and, with the probability in place of its log odds, averaged within the
        brain (``*_around_6``: over 6 mm). Numbers of the whole patient, without a dimension: the
        root of the share of the brain that is hypoperfused (``deficit_share``), the largest
        probability averaged over 12 mm (``deficit_peak``), and the mean logarithm of the delay
        where that is above .3 (``deficit_delay``).
    """
    zero = torch.zeros_like(first.late)
    seconds = torch.where(brain, first.delay.log1p(), zero)
    odds = first.hypoperfused.logit(1e-7).clamp(-_LIMIT, _LIMIT)
    maps = (first.late, first.hypoperfused, seconds)  # as `_AVERAGED` names them
    around = run_all(
        [partial(share_smooth, maps, brain, float(mm), spacing) for mm in AROUND_MM], threads
    )
    wide = around[AROUND_MM.index(_MIDDLE_MM)][_AVERAGED.index('probability')][brain]
    deficit = wide > _DEFICIT
    found = (
        first.late,
        torch.where(brain, odds, zero),
        seconds,
        *(values for same in around for values in same),
        first.hypoperfused[brain].mean().sqrt(),
        wide.max(),
        seconds[brain][deficit].mean() if bool(deficit.any()) else zero.sum(),
    )
    return dict(zip(NAMES, found, strict=True))
