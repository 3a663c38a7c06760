"""Later phases of a CTA: how the enhancement goes on, joined with the maps of the first phase.

Collaterals fill what an occlusion has cut off some seconds later than the rest of the brain, so
that the change from phase to phase says more of the delay than one moment (Menon et al., Radiology
2015). To the two outputs of the first phase, the rank of its map and the log odds of its
probability, the changes of the features of enhancement are added, each with a weight. The weights
were fitted on digital patients and lie, with their provenance, in ``phase_fusion.json``. Must not
know files of patients, or templates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bids_perfdeficit.perfusion.combination import CHANGING, ranks

#: Later phases that are used at most; log odds of the first phase beyond which they are the same.
MOST_LATER, MOST_ODDS = 2, 8.0

#: Vein prior from which a voxel is a sinus.
SINUS = 0.8


@cache
def _shipped_text() -> str:
    from bids_perfdeficit.data import load

    return load('phase_fusion.json').read_text(encoding='utf-8')


@cache
def phase_fusion() -> dict[str, Any]:
    """Return the shipped weights, with their provenance."""
    return dict(json.loads(_shipped_text()))


@cache
def fusion_sha256() -> str:
    """Return the SHA-256 of the shipped weights, by which results name them."""
    return hashlib.sha256(_shipped_text().encode()).hexdigest()


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


def inputs(
    late: Tensor, hypoperfused: Tensor, later: Sequence[Mapping[str, Tensor]], brain: Tensor
) -> Tensor:
    """Return what is joined, (V, 2 + 6 K), for the V voxels of the brain.

    Parameters
    ----------
    late, hypoperfused : Tensor, (Z, Y, X)
        From `combination.combine`, of the first phase.
    later : sequence of mapping of str to Tensor
        From `changes`, of the K later phases. One that is missing counts as no change.
    brain : Tensor, bool, (Z, Y, X)
    """
    odds = hypoperfused[brain].clamp(1e-6, 1 - 1e-6).logit().clamp(-MOST_ODDS, MOST_ODDS)
    columns = [ranks(late, brain)[brain], odds]
    nothing = torch.zeros_like(odds)
    for one in later:
        columns += [one[name][brain] if name in one else nothing for name in CHANGING]
    return torch.stack(columns, 1).nan_to_num(0.0)


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
    x = inputs(late, hypoperfused, later, brain)
    out = []
    for name in ('map', 'probability'):
        weight = torch.tensor(chosen[name]['weight'], dtype=x.dtype, device=x.device)
        volume = torch.zeros_like(late)
        value = x @ weight + chosen[name]['bias']
        volume[brain] = value.sigmoid() if name == 'probability' else value
        out.append(volume)
    return out[0], out[1]


def is_later(before: Tensor, after: Tensor, veins: Tensor, start: Tensor) -> bool:
    """Return whether one phase of a CTA was acquired after another, by what veins hold.

    Parameters
    ----------
    before, after : Tensor, (Z, Y, X)
        Subtractions, HU.
    veins : Tensor, (Z, Y, X)
        Vein prior.
    start : Tensor, bool, (Z, Y, X)
        Arteries at the skull base, where the front starts.

    Returns
    -------
    bool
        True when the contrast of the sinuses over that of the arteries has risen, or where no
        sinus is known.
    """
    sinus = veins > SINUS
    if not bool(sinus.any()) or not bool(start.any()):
        return True
    shares = [
        float(level[sinus].float().quantile(0.9) / level[start].float().quantile(0.8).clamp_min(1))
        for level in (before, after)
    ]
    return shares[1] > shares[0]
