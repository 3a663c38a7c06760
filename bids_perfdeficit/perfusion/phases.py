"""Later phases of a CTA: how the enhancement goes on, joined with the maps of the first phase.

Collaterals fill what an occlusion has cut off some seconds later than the rest of the brain, so
that the change from phase to phase says more of the delay than one moment (Menon et al., Radiology
2015). The changes of the features of enhancement, each with a weight, are added to the two outputs
of the first phase: to its map, and to the log odds of its probability. The weights were fitted on
digital patients and lie, with their provenance, in ``phase_fusion.json``. Must not know files of
patients, or templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bids_perfdeficit.perfusion.combination import CHANGING
from bids_perfdeficit.perfusion.phase_weights import phase_fusion

#: Later phases that are used at most; log odds at which those of the first phase end.
MOST_LATER, MOST_ODDS = 2, 8.0


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


def limited_odds(probability: Tensor) -> Tensor:
    """Return the log odds of a probability, limited to `MOST_ODDS`."""
    return probability.clamp(1e-6, 1 - 1e-6).logit().clamp(-MOST_ODDS, MOST_ODDS)


def fuse(
    late: Tensor,
    hypoperfused: Tensor,
    later: Sequence[Mapping[str, Tensor]],
    brain: Tensor,
    weights: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Join the maps of the first phase with the changes to later ones.

    Parameters
    ----------
    late, hypoperfused : Tensor, (Z, Y, X)
        From `combination.combine`, of the first phase.
    later : sequence of mapping of str to Tensor
        From `changes`, one or two, in the order of acquisition.
    brain : Tensor, bool, (Z, Y, X)
    weights : mapping, optional
        As `phase_fusion` returns them; the shipped ones by default.

    Returns
    -------
    late : Tensor, (Z, Y, X)
        As `combination.combine` returns it.
    hypoperfused : Tensor, (Z, Y, X)
        Probability of a delay of more than 6 s. Both are 0 outside the brain.

    Raises
    ------
    ValueError
        For no later phase, or more than `MOST_LATER`.
    """
    if not 1 <= len(later) <= MOST_LATER:
        raise ValueError(f'{len(later)} later phases; 1 to {MOST_LATER} can be joined')
    chosen = (phase_fusion() if weights is None else weights)['fusions'][str(1 + len(later))]
    x = stack_changes(later, brain)
    weight = {name: torch.tensor(chosen[name], device=x.device) for name in ('map', 'odds')}
    fused, probability = torch.zeros_like(late), torch.zeros_like(late)
    fused[brain] = late[brain] + x @ weight['map']
    odds = limited_odds(hypoperfused[brain]) + x @ weight['odds'] + chosen['bias']
    probability[brain] = odds.sigmoid()
    return fused, probability
