"""Later phases of a CTA: how the enhancement goes on, joined with the map of the first phase.

Collaterals fill what an occlusion has cut off some seconds later than the rest of the brain, so
that the change from phase to phase says more of the delay than one moment (Menon et al., Radiology
2015). The changes of the features of enhancement, each with a weight, are added to the map of the
first phase. The probability of hypoperfusion, and what follows from it, stay those of the first
phase: later ones did not make volumes more exact (benchmarks). The weights were fitted on digital
patients and lie, with their provenance, in ``phase_fusion.json``. Must not know files of patients,
or templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bids_perfdeficit.perfusion.combination import CHANGING
from bids_perfdeficit.perfusion.phase_weights import phase_fusion

#: Later phases that are used at most.
MOST_LATER = 2


def changes(first: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return how the features of enhancement change from the first phase to a later one.

    Parameters
    ----------
    first, later : mapping of str to Tensor
        From `combination.compute_features` and `combination.enhancement_features`.

    Returns
    -------
    dict of str to Tensor
        Of `combination.CHANGING`, those that both have.
    """
    return {k: later[k] - first[k] for k in CHANGING if k in first and k in later}


def stack_changes(later: Sequence[Mapping[str, Tensor]], brain: Tensor) -> Tensor:
    """Return what the weights are multiplied with, (V, 6 K), for the V voxels of the brain.

    Parameters
    ----------
    later : sequence of mapping of str to Tensor
        From `changes`, of the K later phases. One that is missing or not a number counts as no
        change.
    brain : Tensor, bool, (Z, Y, X)

    Returns
    -------
    Tensor, (V, 6 K)
        Phase by phase, in the order of `combination.CHANGING`.
    """
    nothing = torch.zeros(int(brain.sum()), device=brain.device)
    columns = [one[name][brain] if name in one else nothing for one in later for name in CHANGING]
    return torch.stack(columns, 1).nan_to_num(0.0)


def fuse(
    late: Tensor,
    later: Sequence[Mapping[str, Tensor]],
    brain: Tensor,
    weights: Mapping[str, Any] | None = None,
) -> Tensor:
    """Join the map of the first phase with the changes to later ones.

    Parameters
    ----------
    late : Tensor, (Z, Y, X)
        From `combination.combine`, of the first phase.
    later : sequence of mapping of str to Tensor
        From `changes`, one or two, in the order of acquisition.
    brain : Tensor, bool, (Z, Y, X)
    weights : mapping, optional
        As `phase_fusion` returns them; the shipped ones by default.

    Returns
    -------
    Tensor, (Z, Y, X)
        As `combination.combine` returns it; 0 outside the brain.

    Raises
    ------
    ValueError
        For no later phase, or more than `MOST_LATER`.
    """
    if not 1 <= len(later) <= MOST_LATER:
        raise ValueError(f'{len(later)} later phases; 1 to {MOST_LATER} can be joined')
    chosen = (phase_fusion() if weights is None else weights)['weights'][str(1 + len(later))]
    x = stack_changes(later, brain)
    fused = torch.zeros_like(late)
    fused[brain] = late[brain] + x @ torch.tensor(chosen, device=x.device)
    return fused
