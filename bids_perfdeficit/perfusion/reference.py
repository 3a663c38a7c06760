"""A reference for what is not contrast: the shading between NCCT and CTA.

Two scans differ by more than contrast: their calibration drifts and their shading differs by a
Hounsfield unit or two from side to side, which is a third of the enhancement of white matter. The
subtraction is fitted by

    CTA - NCCT = b(x) + c(tissue) (1 + d(x)) + noise

with a plane ``b`` that all tissues share, an enhancement ``c`` that depends on the kind of tissue
and is learnt from the patient, and a smooth relative change ``d`` of it, which is delay. Delay
scales what a tissue takes up, and shading does not: that distinguishes them. An occlusion
lowers grey and white matter by nearly the same HU, so that some of it leaks into the plane; the
territories of the middle cerebral arteries, which no shading follows, take part of that, and
slopes that are small enough to be a leak are not applied.

The offset is estimated and left in place: it cannot be distinguished from a change of enhancement
everywhere, and does little harm. Cupping and noise of a centimetre are not seen. Must not know
files or templates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bids_perfdeficit.perfusion.synthesis import Enhancement
from bids_perfdeficit.perfusion.threads import run_all
from bids_perfdeficit.perfusion.vessels import smooth

#: mm of the blocks that are fitted, at least, and share of a block that must be tissue.
BLOCK_MM, BLOCK_SHARE = 4.0, 0.4
#: Fewest blocks with which the fit is believed: some 15 mL of tissue would follow any plane.
FEWEST = 500
#: mm of the brain's rim that are left out: partial volume of the skull, residual movement.
RIM_MM = 3.0
#: HU, after smoothing over so many mm, of tissue and CSF in the NCCT; HU of contrast from which a
#: voxel is a vessel; vein prior from which it may be a vein.
DENSITY, DENOISE_MM, VESSEL_HU, VEIN = (-5.0, 60.0), 2.0, 30.0, 0.2
#: Standard deviations, before the scan is seen, of the offset and of a slope: HU at the edge of
#: the brain, its middle being 0.
OFFSET_SD, SLOPE_SD = 0.3, 2.0
#: The same of the territories of the middle cerebral arteries, HU; their middle and half widths,
#: as shares of the brain's half size.
LATE_SD, LATE_MIDDLE, LATE_WIDTH = 2.0, (0.55, 0.05, 0.1), (0.25, 0.4, 0.45)
#: The same of the relative change of enhancement, and mm over which it varies.
CHANGE_SD, CHANGE_MM = 0.35, 20.0
#: Degrees of freedom of the changes (large ones are rare, but as large as an occlusion's) and of
#: the noise (vessels and calcifications are outliers).
CHANGE_FREEDOM, NOISE_FREEDOM = 3.0, 4.0
#: HU below which an enhancement is not scaled: CSF has next to none.
LEAST_HU = 0.3
#: HU of a slope that is left in place. A slope beyond it is applied less its square over the
#: slope: continuous, and nearly all of a large one.
DEAD_HU = 1.0
#: Rounds in which enhancement and weights follow each other.
ROUNDS = 4


@dataclass(frozen=True)
class ReferenceField:
    """The shading between two scans, and how much of it is taken away.

    Attributes
    ----------
    offset, offset_error : float
        HU, estimated at the middle of the brain, and its standard error. Not applied.
    slopes, errors : tuple of three float
        HU at the edge of the brain along (x, y, z), to the right, forward and upward, in which the
        CTA is brighter than contrast makes it; their standard errors. NaN where too little tissue
        was found.
    applied : tuple of three float
        What of the slopes is taken away, HU.
    residual : float
        HU: robust standard deviation of the blocks about the fit.
    field : Tensor, float32, (Z, Y, X)
        HU that are taken away.
    left : Tensor, float32, (Z, Y, X)
        HU that were estimated and left in place.
    """

    offset: float
    offset_error: float
    slopes: tuple[float, float, float]
    errors: tuple[float, float, float]
    applied: tuple[float, float, float]
    residual: float
    field: Tensor
    left: Tensor

    def correct(self, enhancement: Enhancement) -> Enhancement:
        """Take the field away from a subtraction; a plane has no curvature, so vessels stay."""
        level = enhancement.subtraction
        known = enhancement.inside & (level != 0)
        return replace(enhancement, subtraction=torch.where(known, level - self.field, level))

    def on(self, brain: Tensor) -> ReferenceField:
        """Return the same field on another grid, by its brain."""
        left = plane(brain, _left(self.slopes, self.applied))
        return replace(self, field=plane(brain, self.applied), left=left)


def _left(slopes: Sequence[float], applied: Sequence[float]) -> list[float]:
    """Return what of the slopes is not applied; nothing of slopes that are not known."""
    known = all(math.isfinite(v) for v in slopes)
    return [a - b if known else 0.0 for a, b in zip(slopes, applied, strict=True)]


def plane(brain: Tensor, slopes: Sequence[float]) -> Tensor:
    """Return a plane that is 0 in the middle of the brain.

    Parameters
    ----------
    brain : Tensor, bool, (Z, Y, X)
        x to the right, y forward, z upward.
    slopes : sequence of three float
        Its value at the edge of the brain along (x, y, z).

    Returns
    -------
    Tensor, float32, (Z, Y, X)
    """
    middle, half = _extent(brain.cpu().numpy())
    out = torch.zeros(brain.shape, dtype=torch.float32, device=brain.device)
    for axis, slope in zip((2, 1, 0), slopes, strict=True):
        along = (torch.arange(brain.shape[axis], device=brain.device) - middle[axis]) / half[axis]
        out += slope * along.reshape([-1 if k == axis else 1 for k in range(3)])
    return out


def fit_reference(
    ncct: Tensor,
    subtraction: Tensor,
    brain: Tensor,
    spacing: Sequence[float],
    *,
    veins: Tensor,
    white: Tensor,
    grey: Tensor,
    threads: int = 1,
) -> ReferenceField:
    """Estimate the shading between two scans together with the enhancement.

    Parameters
    ----------
    ncct, subtraction : Tensor, (Z, Y, X)
        HU; the subtraction is that of `enhance`.
    brain : Tensor, bool, (Z, Y, X)
        x to the right, y forward, z upward.
    spacing : sequence of float
        mm along (z, y, x).
    veins, white, grey : Tensor, (Z, Y, X)
        Vein prior and probabilities of the tissues.
    threads : int
        Threads; the result does not depend on them.

    Returns
    -------
    ReferenceField
        Of NaN, with nothing to take away, where there is too little tissue.
    """
    blocks = _blocks(ncct, subtraction, brain.bool(), spacing, threads, veins, white, grey)
    if len(blocks.contrast) < FEWEST:
        unknown = (math.nan,) * 3
        nothing = torch.zeros(brain.shape, dtype=torch.float32, device=brain.device)
        return ReferenceField(
            math.nan, math.nan, unknown, unknown, (0.0, 0.0, 0.0), math.nan, nothing, nothing
        )
    found, errors, residual = _fit(blocks)
    slopes = tuple(float(v) for v in found[1:])
    applied = tuple(_shrink(v) for v in slopes)
    return ReferenceField(
        float(found[0]), float(errors[0]), slopes, tuple(float(v) for v in errors[1:]),  # type: ignore[arg-type]
        applied, residual, plane(brain, applied),  # type: ignore[arg-type]
        plane(brain, _left(slopes, applied)),
    )  # fmt: skip


def _shrink(slope: float) -> float:
    """Return what is applied of a slope (Breiman's garrote)."""
    return 0.0 if abs(slope) <= DEAD_HU else slope - DEAD_HU**2 / slope


@dataclass(frozen=True)
class _Blocks:
    """Means over blocks of tissue, (N,), and where they lie, (N, 3) in (x, y, z)."""

    contrast: np.ndarray
    ncct: np.ndarray
    white: np.ndarray
    grey: np.ndarray
    count: np.ndarray
    mm: np.ndarray
    place: np.ndarray
    #: Share of the subtraction in the density whose noise does not correlate with its own.
    share: float


def _extent(brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return middle and half size of the brain, in voxels."""
    ends = [np.flatnonzero(brain.any(tuple(k for k in range(3) if k != a)))[[0, -1]]
            for a in range(3)]  # fmt: skip
    low, high = np.array(ends, float).T
    return (low + high) / 2, np.maximum((high - low) / 2, 1.0)


def _blocks(
    ncct: Tensor,
    subtraction: Tensor,
    brain: Tensor,
    spacing: Sequence[float],
    threads: int,
    *priors: Tensor,
) -> _Blocks:
    middle, half = _extent(brain.cpu().numpy())
    box = tuple(
        slice(max(0, math.floor(m - h)), math.ceil(m + h) + 1)
        for m, h in zip(middle, half, strict=True)
    )
    inside = np.pad(brain[box].cpu().numpy(), 1)

    def depth() -> np.ndarray:
        found = ndimage.distance_transform_edt(inside, sampling=tuple(spacing))
        return np.asarray(found[1:-1, 1:-1, 1:-1])

    def denoised(values: Tensor) -> np.ndarray:
        return np.asarray(smooth(values[box], DENOISE_MM, spacing).cpu().numpy())

    deep, density, contrast = run_all(
        [depth, lambda: denoised(ncct), lambda: denoised(subtraction)], threads
    )
    plain, level, veins, white, grey = (
        values[box].float().cpu().numpy() for values in (ncct, subtraction, *priors)
    )
    tissue = (deep > RIM_MM) & (density > DENSITY[0]) & (density < DENSITY[1])
    tissue &= (contrast < VESSEL_HU) & (veins < VEIN)
    factor = [max(1, math.ceil(BLOCK_MM / h - 1e-6)) for h in spacing]

    def total(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values, [(0, -n % f) for n, f in zip(values.shape, factor, strict=True)])
        shape = [k for n, f in zip(padded.shape, factor, strict=True) for k in (n // f, f)]
        return np.asarray(padded.reshape(shape).sum((1, 3, 5)))

    count = total(tissue.astype(np.float32))
    used = count >= BLOCK_SHARE * math.prod(factor)
    # Every other one, as on a chessboard: half the time, and what is left has enough.
    used &= np.indices(used.shape).sum(0) % 2 == 0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(total(np.where(tissue, values, 0.0))[used] / count[used], float)

    steps = np.array(factor)
    index = np.argwhere(used) * steps + (steps - 1) / 2 + [s.start for s in box]
    return _Blocks(
        mean(level), mean(plain), mean(white), mean(grey), count[used] / math.prod(factor),
        (index * np.asarray(spacing, float))[:, ::-1], ((index - middle) / half)[:, ::-1],
        _share(plain, plain + level, tissue),
    )  # fmt: skip


def _share(plain: np.ndarray, contrast: np.ndarray, tissue: np.ndarray) -> float:
    """Return the NCCT's share of the noise: neighbours differ by it, and by the same anatomy."""
    pairs = tissue[..., 1:] & tissue[..., :-1]
    one, two = (float(np.square(np.diff(v)[pairs]).mean()) if pairs.any() else 1.0
                for v in (plain, contrast))  # fmt: skip
    return one / max(one + two, 1e-6)


def _fit(blocks: _Blocks) -> tuple[np.ndarray, np.ndarray, float]:
    """Return offset and slopes (4,), their standard errors, and the residual in HU."""
    level, place = blocks.contrast, blocks.place
    plane_part = np.concatenate([np.ones((len(level), 1)), place], 1)
    late, changes = _late(place), _changes(blocks.mm)
    field = np.zeros(4)
    prior = np.ones(changes.shape[1])
    weight = blocks.count.copy()
    enhancement, spread = np.empty(0), 1.0
    for k in range(ROUNDS):
        shaded = blocks.share * (plane_part[:, 1:] @ field[1:])
        tissue = _kinds(blocks, blocks.ncct + blocks.share * level - shaded)
        if not k:
            root = np.sqrt(weight)[:, None]
            start = np.linalg.lstsq(tissue * root, level * root[:, 0], rcond=None)[0]
            enhancement = tissue @ start
            spread = _spread(level - enhancement)
        scaled = np.maximum(enhancement, LEAST_HU)[:, None] * changes
        design = np.concatenate([plane_part, tissue, late, scaled], 1)
        kinds = tissue.shape[1]
        precision = np.concatenate([
            [OFFSET_SD**-2], np.full(3, SLOPE_SD**-2), np.full(kinds, 1e-3),
            np.full(late.shape[1], LATE_SD**-2), prior,
        ])  # fmt: skip
        share = weight / spread**2
        form = (design * share[:, None]).T @ design
        form[np.diag_indices_from(form)] += precision
        found = np.linalg.solve(form, design.T @ (share * level))
        field = found[:4]
        enhancement = tissue @ found[4 : 4 + kinds]
        changed = found[-changes.shape[1] :]
        prior = (CHANGE_FREEDOM + 1) / (CHANGE_FREEDOM + changed**2)
        off = level - design @ found
        spread = _spread(off)
        weight = blocks.count * (NOISE_FREEDOM + 1) / (NOISE_FREEDOM + (off / spread) ** 2)
    errors = np.sqrt(np.diag(np.linalg.inv(form))[:4])
    return field, errors, spread


def _spread(values: np.ndarray) -> float:
    return max(float(1.4826 * np.median(np.abs(values - np.median(values)))), 0.05)


def _kinds(blocks: _Blocks, density: np.ndarray) -> np.ndarray:
    """Return what the enhancement of a tissue is a linear function of, (N, 10)."""
    g, w = blocks.grey, blocks.white
    d = np.clip(density, 0.0, 45.0) / 30.0
    return np.stack([np.ones_like(g), g, w, d, g * d, w * d, d * d, g * g, w * w, g * w], 1)


def _late(place: np.ndarray) -> np.ndarray:
    """Return both middle cerebral territories, (N, 2)."""
    x, y, z = LATE_MIDDLE
    away = [np.square((place - (side * x, y, z)) / LATE_WIDTH).sum(1) for side in (-1, 1)]
    return np.exp(-0.5 * np.stack(away, 1))


def _changes(mm: np.ndarray) -> np.ndarray:
    """Return smooth bumps, (N, J), whose sum with standard normal heights is the change."""
    axes = [
        np.arange(low - CHANGE_MM / 2, high + CHANGE_MM, CHANGE_MM)
        for low, high in zip(mm.min(0), mm.max(0), strict=True)
    ]
    centres = np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3)
    away = np.square(mm).sum(1)[:, None] + np.square(centres).sum(1) - 2 * mm @ centres.T
    away = away[:, away.min(0) < CHANGE_MM**2]
    bumps = np.exp(-0.5 * away / CHANGE_MM**2)
    return np.asarray(bumps * CHANGE_SD / np.sqrt(np.square(bumps).sum(1).mean()))
