"""From a registered pair of scans to the computed perfusion map.

Combines the parts of the package. Must not know where images, sources or priors come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bids_perfdeficit.perfusion.combination import (
    Mirror,
    combine,
    compute_features,
    denoise,
    enhancement_features,
    in_usual_contrast,
    unusual,
)
from bids_perfdeficit.perfusion.eikonal import bounding_box, solve_eikonal
from bids_perfdeficit.perfusion.phases import changes, fuse
from bids_perfdeficit.perfusion.recalibration import calibration
from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.perfusion.sources import Sources
from bids_perfdeficit.perfusion.surroundings import surroundings
from bids_perfdeficit.perfusion.vessels import orientation_metric, vesselness

#: Percentiles of arrival in the brain that become 0 and 1 of the perfusion map.
_RANGE = (0.02, 0.98)
#: Speed of the published recipe, `CVM ** 2 + 0.01` (VTrails, as released).
_PUBLISHED_EXPONENT, _PUBLISHED_FLOOR = 2.0, 0.01


@dataclass(frozen=True)
class PerfusionMaps:
    """What `synthesize` returns; all (Z, Y, X), on the device of the CTA.

    Attributes
    ----------
    subtraction : Tensor
        CTA - NCCT in HU, 0 in bone and outside the grown brain.
    vesselness : Tensor
        In [0, 1).
    arrival : Tensor
        Arrival in mm per unit of speed; `inf` outside the brain.
    perfusion : Tensor
        In [0, 1] inside the brain, higher is later; 0 outside. By the default recipe all
        `combination.compute_features` joined, else the arrival alone.
    hypoperfused : Tensor
        Probability of a delay of more than 6 s, the same by either recipe; 0 outside.
    delay, delay_sd : Tensor
        Expected delay in s, from 0 to 12 or more, and its standard deviation, the same by either
        recipe; 0 outside. See `combination.Combined`.
    member_voxels : Tensor of int64, (K, 2)
        Voxels above the threshold of hypoperfusion by each network alone, on the left and on the
        right.
    unusual : tuple of str
        From `combination.unusual`.
    distance : Tensor, optional
        Arrival at speed 1 everywhere, in mm: the control that every correlation stands beside.
    features : dict of str to Tensor
        What was joined: `combination.compute_features`, and `surroundings` of the first estimate
        from them; numbers of the whole patient have no dimension. With later phases also
        the changes to them (``level_2`` and so on), and the map of the first phase,
        ``first_late``. Empty without `diagnostics`.
    """

    subtraction: Tensor
    vesselness: Tensor
    arrival: Tensor
    perfusion: Tensor
    hypoperfused: Tensor
    delay: Tensor
    delay_sd: Tensor
    member_voxels: Tensor
    unusual: tuple[str, ...]
    distance: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Enhancement:
    """What contrast adds to the NCCT; all (Z, Y, X).

    Attributes
    ----------
    subtraction : Tensor
        CTA - NCCT in HU, 0 in bone and outside the grown brain.
    vesselness : Tensor
        In [0, 1).
    inside : Tensor, bool
        From `domain`: where the front can run.
    """

    subtraction: Tensor
    vesselness: Tensor
    inside: Tensor


def domain(
    ncct: Tensor, brain: Tensor, spacing: Sequence[float], settings: PerfusionSettings
) -> Tensor:
    """Return where the front can run: the brain, grown for the vessels on it, minus bone.

    Parameters
    ----------
    ncct : Tensor, (Z, Y, X)
        HU.
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    settings : PerfusionSettings

    Returns
    -------
    Tensor, bool, (Z, Y, X)
    """
    inside = brain.bool().cpu().numpy()
    margin = [math.ceil(settings.dilation / h) + 1 for h in spacing]
    (found,) = ndimage.find_objects(inside.astype(np.uint8))
    box = tuple(slice(max(0, k.start - m), k.stop + m) for k, m in zip(found, margin, strict=True))
    reach = ndimage.distance_transform_edt(~inside[box], sampling=tuple(spacing))
    grown = inside.copy()
    grown[box] |= (reach <= settings.dilation) & ~_bone(ncct.cpu().numpy()[box], settings.bone)
    return torch.from_numpy(grown).to(brain.device)


def _bone(ncct: np.ndarray, threshold: float) -> np.ndarray:
    """Bone with one voxel of rim, where partial volume and residual motion mimic contrast."""
    return np.asarray(ndimage.binary_dilation(ncct >= threshold))


def subtract(
    ncct: Tensor,
    cta: Tensor,
    brain: Tensor,
    spacing: Sequence[float],
    *,
    settings: PerfusionSettings | None = None,
) -> Tensor:
    """Digital subtraction of the registered pair.

    Parameters
    ----------
    ncct, cta : Tensor, (Z, Y, X)
        HU on one grid.
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    settings : PerfusionSettings, optional

    Returns
    -------
    Tensor, float32, (Z, Y, X)
        CTA - NCCT in HU, not above the window; negative where noise has it so; 0 in bone and
        outside the grown brain.

    Raises
    ------
    ValueError
        Shapes differ, or the brain is empty.
    """
    settings = settings or PerfusionSettings()
    _check(ncct, cta, brain)
    return _difference(ncct, cta, domain(ncct, brain, spacing, settings), settings)


def enhance(
    ncct: Tensor,
    cta: Tensor,
    brain: Tensor,
    spacing: Sequence[float],
    *,
    inside: Tensor | None = None,
    settings: PerfusionSettings | None = None,
    threads: int = 1,
) -> Enhancement:
    """Subtract a registered pair and find the vessels in it, for `find_sources` and `synthesize`.

    Parameters
    ----------
    ncct, cta : Tensor, (Z, Y, X)
        HU on one grid.
    brain : Tensor, bool, (Z, Y, X)
    spacing : sequence of float
        mm along (z, y, x).
    inside : Tensor, bool, (Z, Y, X), optional
        From `domain`, where it is known already.
    settings : PerfusionSettings, optional
    threads : int
        Threads; the result does not depend on them.

    Returns
    -------
    Enhancement

    Raises
    ------
    ValueError
        Shapes differ, or the brain is empty.
    """
    settings = settings or PerfusionSettings()
    _check(ncct, cta, brain)
    if inside is None:
        inside = domain(ncct, brain, spacing, settings)
    return _enhance(ncct, cta, inside, spacing, settings, threads)


def _enhance(
    ncct: Tensor,
    cta: Tensor,
    inside: Tensor,
    spacing: Sequence[float],
    settings: PerfusionSettings,
    threads: int,
) -> Enhancement:
    box = bounding_box(inside)
    difference = _difference(ncct[box], cta[box], inside[box], settings)
    vessels = vesselness(difference, spacing, mask=inside[box], threads=threads)
    return Enhancement(
        _whole(difference, box, inside.shape), _whole(vessels, box, inside.shape), inside
    )


def _whole(
    values: Tensor, box: tuple[slice, ...], shape: Sequence[int], fill: float = 0.0
) -> Tensor:
    out = torch.full(tuple(shape), fill, dtype=torch.float32, device=values.device)
    out[box] = values
    return out


def _check(ncct: Tensor, cta: Tensor, brain: Tensor) -> None:
    if not ncct.shape == cta.shape == brain.shape:
        raise ValueError(
            f'shapes differ: {tuple(ncct.shape)}, {tuple(cta.shape)}, {tuple(brain.shape)}'
        )
    if not bool(brain.any()):
        raise ValueError('the brain mask is empty')


def _difference(ncct: Tensor, cta: Tensor, inside: Tensor, settings: PerfusionSettings) -> Tensor:
    limit = settings.window[1]
    difference = (cta.float() - ncct.float()).nan_to_num().clamp(-limit, limit)
    return torch.where(inside, difference, torch.zeros_like(difference))


def speed_map(vessels: Tensor, *, veins: Tensor | None, settings: PerfusionSettings) -> Tensor:
    """Speed `F` of the front in mm per unit of arrival, at least the floor.

    Parameters
    ----------
    vessels : Tensor, (Z, Y, X)
        Vesselness in [0, 1).
    veins : Tensor, (Z, Y, X), optional
        Vein prior in [0, 1]; its vesselness is taken away.
    settings : PerfusionSettings

    Returns
    -------
    Tensor, float32, (Z, Y, X)
    """
    tube = vessels / vessels.max().clamp_min(1e-6)
    if settings.recipe == 'published':
        return tube**_PUBLISHED_EXPONENT + _PUBLISHED_FLOOR
    if veins is not None:
        tube = tube * (1 - settings.vein_suppression * veins.clamp(0, 1))
    return tube**settings.exponent + settings.floor


def synthesize(
    ncct: Tensor,
    cta: Tensor,
    brain: Tensor,
    sources: Sources | Tensor,
    spacing: Sequence[float],
    *,
    veins: Tensor | None = None,
    white: Tensor | None = None,
    grey: Tensor | None = None,
    mirror: Mirror | None = None,
    right: Tensor | None = None,
    enhancement: Enhancement | None = None,
    later: Sequence[Enhancement] = (),
    shading: Tensor | None = None,
    residual: float | None = None,
    settings: PerfusionSettings | None = None,
    fitted: Mapping[str, Any] | None = None,
    diagnostics: bool = True,
    threads: int = 1,
) -> PerfusionMaps:
    """Compute the perfusion map of one patient.

    Parameters
    ----------
    ncct, cta : Tensor, (Z, Y, X)
        HU on one grid, CTA registered to NCCT.
    brain : Tensor, bool, (Z, Y, X)
    sources : Sources or Tensor
        From `find_sources`, or a bool mask.
    spacing : sequence of float
        mm along (z, y, x).
    veins : Tensor, (Z, Y, X), optional
        `vein_prior`, warped to this grid.
    white, grey : Tensor, (Z, Y, X), optional
        Probability of the tissue, warped to this grid: white matter enhances less.
    mirror : callable, optional
        Carries a map on this grid to its left-right mirror, for what one side lacks of the other.
        Without it, or the tissues, the default recipe goes by the features that are left.
    right : Tensor, bool, (Z, Y, X), optional
        Where the right half of the brain is, for `PerfusionMaps.member_voxels`; without it all
        counts as left.
    enhancement : Enhancement, optional
        From `enhance`, of the same images and settings; computed when it is missing.
    later : sequence of Enhancement
        The same of later phases of the CTA, one or two in the order of acquisition, on the same
        grid. They change the perfusion map, by `phases.fuse`, and neither the probability nor
        the delay.
    shading : Tensor, (Z, Y, X), optional
    residual : float, optional
        `ReferenceField.left` and `ReferenceField.residual`.
    settings : PerfusionSettings, optional
    fitted : mapping, optional
        The networks that join the features; the shipped ones by default.
    diagnostics : bool
        Return also `distance` and `features`, which the maps themselves do not need.
    threads : int
        Threads; the maps do not depend on them.

    Returns
    -------
    PerfusionMaps

    Raises
    ------
    ValueError
        Shapes differ, the brain is empty, or no source lies in it.
    """
    settings = settings or PerfusionSettings()
    brain = brain.bool()
    start = sources.mask if isinstance(sources, Sources) else sources.bool()
    _check(ncct, cta, brain)
    if enhancement is None:
        inside = domain(ncct, brain, spacing, settings) | start
        enhancement = _enhance(ncct, cta, inside, spacing, settings, threads)
    inside = enhancement.inside | start
    box, shape = bounding_box(inside), ncct.shape
    ncct, brain, start, inside = (k[box] for k in (ncct, brain, start, inside))
    difference, vessels = enhancement.subtraction[box], enhancement.vesselness[box]
    within = None if veins is None else veins[box]
    denoised = denoise(ncct, difference, brain, spacing, veins=within, threads=threads)
    filled = in_usual_contrast(vessels, denoised.scale)
    tubes = vessels if settings.recipe == 'published' else filled
    speed = speed_map(tubes, veins=within, settings=settings)
    metric = None
    if settings.metric == 'anisotropic':
        metric = orientation_metric(difference, vessels, spacing, mask=inside)
    arrival = solve_eikonal(speed, start, spacing, mask=inside, metric=metric)
    seen = arrival
    if settings.recipe == 'published' or metric is not None:
        # The networks were fitted with the default's isotropic arrival, and see no other.
        usual = speed_map(filled, veins=within, settings=replace(settings, recipe='default'))
        seen = solve_eikonal(usual, start, spacing, mask=inside)
    never = torch.full_like(arrival, torch.inf)

    def whole(values: Tensor, fill: float = 0.0) -> Tensor:
        return _whole(values, box, shape, fill)

    across: Mirror | None = None
    if mirror is not None:
        reflect = mirror

        def across(values: Tensor) -> Tensor:
            return reflect(whole(values))[box]

    found = compute_features(
        ncct,
        denoised,
        difference,
        filled,
        seen,
        brain,
        start,
        spacing,
        veins=within,
        white=None if white is None else white[box],
        grey=None if grey is None else grey[box],
        mirror=across,
        shading=None if shading is None else shading[box],
        residual=residual,
        threads=threads,
    )
    fitted = calibration() if fitted is None else fitted
    estimate = combine(found, brain, fitted['first'], threads=threads)
    found |= surroundings(estimate, brain, spacing, threads=threads)
    joined = combine(
        found, brain, fitted, half=None if right is None else right[box], threads=threads
    )
    late = joined.late
    if later:
        moved = []
        for number, phase in enumerate(later, 2):
            level = phase.subtraction[box]
            smoothed = denoise(ncct, level, brain, spacing, veins=within, threads=threads)
            own = enhancement_features(
                replace(smoothed, scale=denoised.scale), level,
                in_usual_contrast(phase.vesselness[box], denoised.scale), brain, spacing,
                veins=within, mirror=across, threads=threads,
            )  # fmt: skip
            moved.append(changes(found, own))
            found |= {f'{name}_{number}': values for name, values in moved[-1].items()}
        found['first_late'] = late
        late = fuse(late, moved, brain)
    if settings.recipe == 'published':
        late = arrival
    distance, kept = None, {}
    if diagnostics:
        distance = solve_eikonal(torch.ones_like(speed), start, spacing, mask=inside)
        distance = whole(torch.where(brain, distance, never), torch.inf)
        kept = {name: whole(values) if values.ndim else values for name, values in found.items()}

    return PerfusionMaps(
        subtraction=enhancement.subtraction,
        vesselness=enhancement.vesselness,
        arrival=whole(torch.where(brain, arrival, never), torch.inf),
        perfusion=whole(_rescale(late, brain)),
        hypoperfused=whole(joined.hypoperfused),
        delay=whole(joined.delay),
        delay_sd=whole(joined.delay_sd),
        member_voxels=joined.member_voxels,
        unusual=unusual(found, fitted),
        distance=distance,
        features=kept,
    )


def _rescale(arrival: Tensor, brain: Tensor) -> Tensor:
    values = arrival[brain].double()
    low, high = np.quantile(values.cpu().numpy(), _RANGE)
    scaled = ((arrival - low) / max(high - low, 1e-6)).clamp(0, 1)
    return torch.where(brain, scaled, torch.zeros_like(scaled)).float()


def asymmetry(perfusion: Tensor) -> Tensor:
    """Perfusion minus its left-right mirror, on a grid that is symmetric along its last axis.

    Parameters
    ----------
    perfusion : Tensor, (Z, Y, X)
        In a symmetric template's space, whose mid-plane is the middle of the x axis.

    Returns
    -------
    Tensor, (Z, Y, X)
        Odd under the mirror; positive where a side is later than its counterpart.
    """
    return perfusion - perfusion.flip(-1)
