"""Several signs of late contrast, joined into one map by calibrated weights.

No single sign is good enough: arrival knows the arteries but not the tissue, and the tissue's own
enhancement is confounded by its kind, for white matter holds half the blood. Each becomes a rank
in the brain or a logarithm, so that scanners and doses do not matter; their weights were fitted
on digital patients and lie in ``perfusion_calibration.json``. They know nothing of the moment of
the scan: the contrast of sinuses over that of arteries tells it (r = .87), but weights that
varied with it were no better in patients left out.
Must not know files of patients, or templates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate, pad

from bids_perfdeficit.perfusion.vessels import smooth

#: Carries a map in the patient to the place of its left-right mirror; same grid.
Mirror = Callable[[Tensor], Tensor]

#: Standard deviations in mm over which the tissue's enhancement is averaged.
NEAR, WIDE = 4.0, 12.0
#: HU of the NCCT that are brain tissue; HU of subtraction from which a voxel is a vessel; vein
#: prior from which it may be a vein.
_TISSUE = (15.0, 60.0)
_VESSEL_HU = 35.0
_VEIN = 0.2
#: Smoothing in mm before those are asked: single voxels are too noisy.
_DENOISE = 2.0
#: Enhancement in HU below which its logarithm is noise.
_LEAST_HU = 0.5


@cache
def calibration() -> dict[str, Any]:
    """The fitted weights, with their provenance."""
    from bids_perfdeficit.data import load

    return dict(json.loads(load('perfusion_calibration.json').read_text(encoding='utf-8')))


def ranks(values: Tensor, brain: Tensor) -> Tensor:
    """Ranks in the brain, from 0 to 1: scales of unlike signals become alike; 0 outside."""
    _, place, counts = torch.unique(values[brain], return_inverse=True, return_counts=True)
    middle = (torch.cumsum(counts, 0).double() - counts / 2) / len(place)  # ties share a rank
    out = torch.zeros_like(values)
    out[brain] = middle[place].to(values.dtype)
    return out


def _wide_smooth(values: Tensor, sigma: float, spacing: Sequence[float]) -> Tensor:
    """Smooth on a grid of about a third of sigma: as good, and much cheaper than on the fine."""
    factor = [max(1, int(sigma / 3 / h)) for h in spacing]
    if max(factor) == 1:
        return smooth(values, sigma, spacing)
    fill = [-n % f for n, f in zip(values.shape, factor, strict=True)]
    wide = pad(values[None, None], (0, fill[2], 0, fill[1], 0, fill[0]), mode='replicate')
    coarse = avg_pool3d(wide, factor)[0, 0]
    step = [h * f for h, f in zip(spacing, factor, strict=True)]
    fine = interpolate(
        smooth(coarse, sigma, step)[None, None], size=wide.shape[2:], mode='trilinear'
    )
    return fine[0, 0, : values.shape[0], : values.shape[1], : values.shape[2]]


def tissue_enhancement(
    ncct: Tensor,
    subtraction: Tensor,
    brain: Tensor,
    spacing: Sequence[float],
    *,
    veins: Tensor | None = None,
    sigmas: Sequence[float] = (NEAR,),
) -> list[Tensor]:
    """Mean enhancement of tissue: a normalised convolution over tissue voxels only.

    CSF, vessels and bone get weight zero, so that none of them bleeds across an edge.

    Parameters
    ----------
    ncct, subtraction : Tensor, (Z, Y, X)
        HU.
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    veins : Tensor, (Z, Y, X), optional
        Vein prior.
    sigmas : sequence of float
        mm; a map for each.

    Returns
    -------
    list of Tensor, (Z, Y, X)
        HU; 0 outside the brain.
    """
    density = smooth(ncct, _DENOISE, spacing)
    weight = brain & (density > _TISSUE[0]) & (density < _TISSUE[1])
    weight &= smooth(subtraction, _DENOISE, spacing) < _VESSEL_HU
    if veins is not None:
        weight &= veins < _VEIN
    share = weight.float()
    out = []
    for sigma in sigmas:
        total = _wide_smooth(share, sigma, spacing).clamp_min(1e-3)
        value = _wide_smooth(share * subtraction, sigma, spacing) / total
        out.append(torch.where(brain, value, torch.zeros_like(value)))
    return out


def signs(
    arrival: Tensor,
    enhancement: Sequence[Tensor],
    brain: Tensor,
    *,
    white: Tensor | None = None,
    grey: Tensor | None = None,
    mirror: Mirror | None = None,
) -> dict[str, Tensor]:
    """The signs of late contrast, each larger where contrast is later.

    Parameters
    ----------
    arrival : Tensor, (Z, Y, X)
        From the eikonal equation.
    enhancement : sequence of Tensor
        From `tissue_enhancement` over `NEAR` and `WIDE`.
    brain : Tensor, bool, (Z, Y, X)
    white, grey : Tensor, (Z, Y, X), optional
        Probability of the tissue.
    mirror : callable, optional
        Carries a map to its mirror place.

    Returns
    -------
    dict of str to Tensor
        Those whose inputs are there; centred on 0, within some units of it.
    """
    near, wide = enhancement
    out = {
        'arrival': ranks(arrival, brain) - 0.5,
        'near': ranks(-near, brain) - 0.5,
        'wide': ranks(-wide, brain) - 0.5,
    }
    if white is not None:
        out['white'] = white - 0.5
    if grey is not None:
        out['grey'] = grey - 0.5
    if mirror is not None:
        other = mirror(wide).clamp_min(_LEAST_HU)
        out['asymmetry'] = (other / wide.clamp_min(_LEAST_HU)).log().clamp(-1.5, 1.5)
    return out


def combine(found: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of the signs; one that is missing counts as 0."""
    total = torch.zeros_like(next(iter(found.values())))
    for name, values in found.items():
        total += weights.get(name, 0.0) * values
    return total
