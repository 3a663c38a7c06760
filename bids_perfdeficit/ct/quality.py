"""How well a patient's scans were prepared, in numbers that a person can check.

Works on the prepared images alone, so that the numbers can be had for any earlier run. Must not
know where the images lie or what limits a project sets.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage

#: HU from which a voxel of a CT is taken as bone; contrast in vessels seldom reaches it at 1 mm.
BONE_HU = 500.0
#: mm around the brain in which bone is compared: the skull, not the neck and the head rest.
SKULL_MARGIN_MM = 15.0


def measure_quality(
    ncct: nib.Nifti1Image,
    cta: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    subtraction: nib.Nifti1Image,
    std_brain: nib.Nifti1Image,
    template_brain: nib.Nifti1Image,
) -> dict[str, float]:
    """Measure brain volume, alignment, noise and contrast.

    Parameters
    ----------
    ncct, cta : Nifti1Image
        On one grid, (X, Y, Z) in RAS, HU.
    brain : Nifti1Image
        Brain mask on that grid.
    subtraction : Nifti1Image
        CTA - NCCT on that grid, HU.
    std_brain, template_brain : Nifti1Image
        The patient's brain carried to the template, and the template's own, on one grid.

    Returns
    -------
    dict of str to float
        ``brain_volume`` (mL), ``skull_dice`` of the bone of NCCT and CTA near the brain,
        ``template_dice`` of the brains, ``subtraction_noise`` (HU, robust standard deviation in
        the brain), ``vessel_contrast`` (HU, 99.9th percentile in the brain), ``brain_mean`` (HU).
    """
    mask = np.asarray(brain.dataobj) > 0
    spacing = np.asarray(brain.header.get_zooms()[:3], dtype=float)
    plain, contrast = (np.asarray(image.dataobj, dtype=np.float32) for image in (ncct, cta))
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    margin = np.ceil(SKULL_MARGIN_MM / spacing).astype(int)
    around = tuple(
        slice(max(s.start - m, 0), min(s.stop + m, n))
        for s, m, n in zip(box, margin, mask.shape, strict=True)
    )
    near = ndimage.distance_transform_edt(~mask[around], sampling=spacing) <= SKULL_MARGIN_MM
    difference = np.asarray(subtraction.dataobj, dtype=np.float32)[mask]
    centre = np.median(difference)
    return {
        'brain_volume': float(mask.sum() * spacing.prod() / 1000),
        'brain_mean': float(plain[mask].mean()),
        'skull_dice': dice((plain[around] > BONE_HU) & near, (contrast[around] > BONE_HU) & near),
        'template_dice': dice(
            np.asarray(std_brain.dataobj) > 0, np.asarray(template_brain.dataobj) > 0
        ),
        # 1.4826 makes the median absolute deviation that of a normal distribution.
        'subtraction_noise': float(1.4826 * np.median(np.abs(difference - centre))),
        'vessel_contrast': float(np.percentile(difference, 99.9)),
    }


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Return Dice's overlap of two boolean arrays; nan when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return float(2 * np.logical_and(a, b).sum() / total) if total else float('nan')
