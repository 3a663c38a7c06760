"""Find the brain in a head CT, from density and the skull around it.

Classical morphology, without weights to download: soft tissue that the skull surrounds, separated
from the face and the neck by erosion, and cut at the foramen magnum. Where the skull is open, or
cut by the field of view, it is closed first. Must not know templates.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_perfdeficit.ct.skull import Closure, close_skull
from bids_perfdeficit.errors import InputError

#: HU, after smoothing: fluid and brain, with fresh blood; fat is below, bone above.
TISSUE_HU = (-8.0, 100.0)
#: HU from which a smoothed voxel is bone.
BONE_HU = 150.0
#: mm of smoothing before thresholds.
SMOOTH_MM = 1.0
#: mm of erosion that parts brain from orbits, nose and neck: wider than their openings' radii.
PART_MM = 5.0
#: mm of the grid on which shapes are found; edges are refined on the image's own.
COARSE_MM = 2.0
#: mm of bone around a voxel whose peak is that of the inner table, and mm by which the mask may
#: grow into the table's blurred flank.
TABLE_MM, FLANK_MM = 5.0, 3.0
#: Both in thick slices, in which bone is smeared further: share of the slice thickness, and mm
#: that are enough for slices of 10 mm.
THICK_SHARE, THICKEST_MM = (0.8, 0.6), (8.0, 6.0)
#: HU of brain, and the HU between which half of the table's peak lies for thin and dense bone.
BRAIN_HU, HALF_HU = 35.0, (120.0, 520.0)
#: cm2; the foramen magnum has 7 to 9, the level below it less brain than this.
FORAMEN_CM2 = 14.0
#: cm2 of opening above which it is noted; foramina, sutures and burr holes stay below.
OPENING_CM2 = 12.0
#: mL; a smaller object is not a brain, even of a child.
MIN_BRAIN_ML = 300.0


@dataclass(frozen=True)
class Brain:
    """Where the brain is.

    Parameters
    ----------
    mask : Nifti1Image
        uint8, on the grid of the CT: brain with its fluid, to the foramen magnum.
    volume_ml : float
        Its volume.
    opening_cm2 : float
        Area of the openings that were closed above the skull base.
    notes : tuple of str
        What makes it doubtful.
    """

    mask: nib.Nifti1Image
    volume_ml: float
    opening_cm2: float = 0.0
    notes: tuple[str, ...] = ()


def extract_brain(image: nib.Nifti1Image, *, slice_mm: float = 0.0) -> Brain:
    """Find the brain.

    Parameters
    ----------
    image : Nifti1Image
        Conformed NCCT: HU, (X, Y, Z), RAS, isotropic.
    slice_mm : float
        Thickness of the slices that it was read from (`Conformed.slice_mm`).

    Returns
    -------
    Brain

    Raises
    ------
    InputError
        When nothing that could be a brain is found.
    """
    values = np.asarray(image.dataobj, dtype=np.float32)
    spacing = float(image.header.get_zooms()[0])
    factor = max(1, round(COARSE_MM / spacing))
    smooth = ndimage.gaussian_filter(values, SMOOTH_MM / spacing, truncate=3)
    coarse = _shrink(smooth, factor)
    mm = factor * spacing
    closure = close_skull(coarse, coarse > BONE_HU, mm)
    found = _coarse_brain(coarse, closure, mm)
    if found.sum() * mm**3 / 1000 < MIN_BRAIN_ML:
        raise InputError(
            'no brain was found inside a skull', fix='check that the image is a head CT with skull'
        )
    mask = _refine(smooth, found, closure, factor, spacing)
    mask = _grow_to_table(values, mask, spacing, slice_mm)
    volume = float(mask.sum() * spacing**3 / 1000)
    notes = []
    if not 700 < volume < 2200:
        notes.append(f'the brain mask has {volume:.0f} mL, which is unusual; look at it')
    if closure.opening_cm2 > OPENING_CM2:
        notes.append(
            f'the skull is open over {closure.opening_cm2:.0f} cm2, or the scan cuts a side; the '
            'brain was outlined as if it were closed'
        )
    mask_image = nib.Nifti1Image(mask.astype(np.uint8), image.affine)
    return Brain(mask_image, volume, closure.opening_cm2, tuple(notes))


def _shrink(values: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of voxels; the last blocks are padded with their edge."""
    if factor == 1:
        return values
    padded = np.pad(values, [(0, -n % factor) for n in values.shape], mode='edge')
    x, y, z = (n // factor for n in padded.shape)
    return padded.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5), dtype=np.float32)


def _coarse_brain(smooth: np.ndarray, closure: Closure, mm: float) -> np.ndarray:
    tissue = (smooth > TISSUE_HU[0]) & (smooth < TISSUE_HU[1]) & ~closure.outside
    tissue &= _enclosed(smooth > BONE_HU, closure)
    # Within the skull, metal, its streaks and calcifications belong to the brain; air does not.
    tissue |= closure.inside & (smooth > TISSUE_HU[0] - 100)
    depth = ndimage.distance_transform_edt(np.pad(tissue, 1))[1:-1, 1:-1, 1:-1] * mm
    core = _largest(depth > PART_MM)
    core = _cut_neck(core, mm)
    near = ndimage.distance_transform_edt(~core) * mm <= PART_MM + 1.5 * mm
    return _largest(tissue & near)


def _enclosed(bone: np.ndarray, closure: Closure) -> np.ndarray:
    """Return where there is bone, or an opening, to the left, right, front and back."""
    bone = bone | closure.outside
    inside = np.ones_like(bone)
    for axis in (0, 1):
        for edge in (0, -1):  # where the scan cuts the head, the opening lies beyond it
            at = (slice(None),) * axis + (edge,)
            bone[at] |= closure.open_[at]
        inside &= np.logical_or.accumulate(bone, axis)
        inside &= np.flip(np.logical_or.accumulate(np.flip(bone, axis), axis), axis)
    return inside


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return np.asarray(labels == np.argmax(np.bincount(labels.flat)[1:]) + 1)


def _cut_neck(core: np.ndarray, mm: float) -> np.ndarray:
    """Drop what lies below the narrowest level under the widest: the foramen magnum."""
    area = core.sum((0, 1)) * mm**2 / 100
    if not area.any():
        return core
    widest = int(np.argmax(area))
    for level in range(widest, -1, -1):
        if area[level] < FORAMEN_CM2 / 3:  # the core is eroded, and with it the foramen
            core = core.copy()
            core[..., :level] = False
            return _largest(core)
    return core


def _refine(
    smooth: np.ndarray, found: np.ndarray, closure: Closure, factor: int, spacing: float
) -> np.ndarray:
    """Carry the coarse mask to the fine grid, to the edge that the fine image shows."""

    def enlarge(coarse: np.ndarray) -> np.ndarray:
        for axis in range(3):
            coarse = np.repeat(coarse, factor, axis)
        return coarse[tuple(slice(n) for n in smooth.shape)]

    mask = enlarge(found)
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    box = tuple(slice(max(s.start - 6, 0), s.stop + 6) for s in box)
    part = mask[box]
    tissue = (smooth[box] > TISSUE_HU[0]) & (smooth[box] < TISSUE_HU[1])
    near = ndimage.distance_transform_edt(~part) * spacing <= COARSE_MM
    part = (tissue | enlarge(closure.inside)[box]) & near & ~enlarge(closure.outside)[box]
    # Sulci, vessels and calcifications inside the brain belong to it.
    ball = ndimage.generate_binary_structure(3, 1)
    steps = max(1, round(2.0 / spacing))
    part = ndimage.binary_closing(np.pad(part, steps + 1), ball, steps)
    part = part[tuple(slice(steps + 1, -steps - 1) for _ in range(3))]
    part = ndimage.binary_fill_holes(part)
    for level in range(part.shape[2]):
        part[..., level] = ndimage.binary_fill_holes(part[..., level])
    part = _largest(ndimage.binary_opening(part, ball, steps))
    mask = np.zeros(smooth.shape, dtype=bool)
    mask[box] = part
    return mask


def _grow_to_table(
    values: np.ndarray, mask: np.ndarray, spacing: float, slice_mm: float
) -> np.ndarray:
    """Move the edge from where bone begins to show to half the height of the inner table.

    The point spread of a scanner, and more so an averaged head, smears bone over the brain's rim;
    the physical edge of a blurred step is where it has half its height. Only into bone: openings
    of the skull are left as they are.
    """
    table, flank_mm = (
        min(max(thin, share * slice_mm), thick)
        for thin, share, thick in zip((TABLE_MM, FLANK_MM), THICK_SHARE, THICKEST_MM, strict=True)
    )
    margin = int(np.ceil((table + flank_mm) / spacing))
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    box = tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in box)
    part, inside = values[box], mask[box]
    width = 2 * round(table / spacing) + 1
    peak = ndimage.maximum_filter(ndimage.gaussian_filter(part, 0.5 / spacing), width)
    half = np.clip((peak + BRAIN_HU) / 2, *HALF_HU)
    flank = (part > TISSUE_HU[1] * 0.6) & (part < half) | inside
    ball = ndimage.generate_binary_structure(3, 1)
    grown = ndimage.binary_dilation(inside, ball, max(1, round(flank_mm / spacing)), mask=flank)
    grown = ndimage.binary_closing(np.pad(grown, 2), ball)[2:-2, 2:-2, 2:-2]
    result = mask.copy()
    result[box] = grown | inside
    return result
