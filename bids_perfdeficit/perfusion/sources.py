"""Where contrast enters the brain: the starts of the front.

Works from a subtraction, its vesselness and a prior that is already in the patient's space. Must
not know templates or how the prior was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bids_perfdeficit.perfusion.settings import PerfusionSettings

#: Prior from which a voxel may be a source, and from which it belongs to an inflow's core.
_SEARCH, _CORE = 0.05, 0.5
#: Subtraction in HU from which a voxel is a well-filled artery at 1 mm.
_FILLED = 80.0
#: A source keeps the brightest of an inflow's voxels, up to this volume in mm^3: the carotid's
#: last centimetre. More would set healthy branches to zero, fewer depends on single voxels.
_VOLUME = 60.0
#: Volume in mm^3 of filled artery that counts as found, and of a source that is put by anatomy.
_LEAST = 8.0
#: An inflow less than so many mm from the midline is the basilar one.
_MIDLINE = 6.0
#: Without a prior: height in mm above the lowest strong vessel that counts as skull base.
_BASE = 15.0


@dataclass(frozen=True)
class Sources:
    """Where the front starts.

    Attributes
    ----------
    mask : Tensor, bool, (Z, Y, X)
    method : {'prior', 'fallback'}
        `fallback`: no prior voxel lies in the brain, so the lowest strong vessels were taken.
    found : dict
        For `left`, `right`, `posterior`: whether contrast was found there. A side that has none
        keeps its source at the prior's peak: contrast stands below an occlusion.
    notes : tuple of str
        What a reader of the quality report should know.
    """

    mask: Tensor
    method: Literal['prior', 'fallback']
    found: dict[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_sources(
    subtraction: Tensor,
    vesselness: Tensor,
    prior: Tensor | None,
    brain: Tensor,
    spacing: Sequence[float],
    *,
    settings: PerfusionSettings | None = None,
) -> Sources:
    """Find the arterial inflow at the skull base.

    Parameters
    ----------
    subtraction : Tensor, (Z, Y, X)
        From `subtract`: in HU, 0 in bone and outside the grown brain.
    vesselness : Tensor, (Z, Y, X)
        In [0, 1].
    prior : Tensor, (Z, Y, X), optional
        `inflow_prior`, warped to this grid. x grows to the right, y forward, z upward.
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    settings : PerfusionSettings, optional

    Returns
    -------
    Sources

    Raises
    ------
    ValueError
        The brain is empty.
    """
    settings = settings or PerfusionSettings()
    domain = brain.bool().cpu().numpy()
    if not domain.any():
        raise ValueError('the brain mask is empty')
    step = np.asarray(spacing, dtype=float)
    level = subtraction.cpu().numpy()
    tubes = vesselness.cpu().numpy()
    mask = np.zeros(domain.shape, bool)
    weights = (
        np.zeros((0, 0, 0)) if prior is None else prior.cpu().numpy() * (domain | (level != 0))
    )
    if weights.size == 0 or weights.max() < _CORE:
        mask = _lowest_vessels(level, tubes, domain, step)
        note = 'no inflow prior lies in the brain; the lowest strong vessels were taken as sources'
        return Sources(torch.from_numpy(mask).to(brain.device), 'fallback', {}, (note,))

    (box,) = ndimage.find_objects((weights >= _SEARCH).astype(np.uint8))
    level = np.minimum(level[box], settings.window[1])
    filled = (level >= _FILLED) & (tubes[box] > 0)
    found: dict[str, bool] = {}
    notes: list[str] = []
    middle = (np.flatnonzero(domain.any(axis=(0, 1))).mean() - box[2].start) * step[2]
    for name, region in _inflows(weights[box], step, middle).items():
        weight = np.where(region, weights[box], 0.0)
        strong = _heaviest_piece(filled & region, weight * level)
        found[name] = bool(strong.sum() * step.prod() >= _LEAST)
        if found[name]:
            mask[box] |= _largest(np.where(strong, weight * level, 0.0), _VOLUME / step.prod())
        elif region.any():
            notes.append(f'no contrast at the {name} inflow; its source is where anatomy puts it')
            mask[box] |= _largest(weight, _LEAST / step.prod())
        else:
            notes.append(f'the {name} inflow lies outside the brain')
    return Sources(torch.from_numpy(mask).to(brain.device), 'prior', found, tuple(notes))


def _largest(score: np.ndarray, count: float) -> np.ndarray:
    """Return the voxels with the `count` highest positive scores, at least one."""
    keep = min(int((score > 0).sum()), max(1, round(count)))
    out = np.zeros(score.shape, bool)
    out.ravel()[np.argsort(score, axis=None, kind='stable')[-keep:]] = True
    return out


def _inflows(prior: np.ndarray, step: np.ndarray, middle: float) -> dict[str, np.ndarray]:
    """Split the prior into left, right and posterior: each voxel joins the nearest core.

    `middle` is the x of the brain's centre in mm.
    """
    cores, count = ndimage.label(prior >= _CORE)
    sizes = np.bincount(cores.ravel(), minlength=count + 1)[1:]
    kept = np.argsort(sizes, kind='stable')[::-1][:3] + 1
    centres = np.array(ndimage.center_of_mass(prior, cores, kept)) * step
    nearest = ndimage.distance_transform_edt(
        ~np.isin(cores, kept), sampling=step, return_distances=False, return_indices=True
    )
    owner = cores[tuple(nearest)]
    out = {name: np.zeros(prior.shape, bool) for name in ('left', 'right', 'posterior')}
    if kept.size == 3:
        back = int(np.argmin(centres[:, 1]))
        left, right = sorted({0, 1, 2} - {back}, key=lambda k: centres[k, 2])
        names = {left: 'left', right: 'right', back: 'posterior'}
    else:
        # Some cores are cut off, or have merged: the brain's own middle says which are left.
        away = centres[:, 2] - middle
        sides = np.where(away < 0, 'left', 'right')
        names = dict(enumerate(np.where(np.abs(away) < _MIDLINE, 'posterior', sides)))
    for k, name in names.items():
        out[name] |= (owner == kept[k]) & (prior >= _SEARCH)
    return out


def _heaviest_piece(mask: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the connected piece with the most weight."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count < 2:
        return mask
    sums = ndimage.sum_labels(weight, labels, np.arange(1, count + 1))
    return labels == int(np.argmax(sums)) + 1


def _lowest_vessels(
    level: np.ndarray, tubes: np.ndarray, domain: np.ndarray, step: np.ndarray
) -> np.ndarray:
    """Strong vessels within some millimetres of the lowest one, in the inner half of the slices.

    The outer half holds the transverse and sigmoid sinuses.
    """
    where = np.argwhere(domain)
    centre = where.mean(axis=0)
    radius = np.sqrt(((where - centre)[:, 1:] ** 2).mean(axis=0)) * 1.2
    _, y, x = np.indices(domain.shape, sparse=True)
    inner = ((y - centre[1]) / radius[0]) ** 2 + ((x - centre[2]) / radius[1]) ** 2 < 0.5
    strong = (level >= _FILLED) & (tubes > 0) & inner
    labels, count = ndimage.label(strong, np.ones((3, 3, 3)))
    if count:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        strong = sizes[labels] * step.prod() >= 30.0
    if not strong.any():
        strong = domain & inner if (domain & inner).any() else domain
    heights = np.nonzero(strong.any(axis=(1, 2)))[0]
    low = heights.min()
    top = low + _BASE / step[0]
    out = strong.copy()
    out[int(np.ceil(top)) :] = False
    return out
