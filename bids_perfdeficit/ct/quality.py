"""Quality of the preparation of a patient's scans, in numbers that a person can check.

Works on the prepared images alone, so that the numbers can be had for any earlier run. The values
that fail a participant or make it doubtful are in ``data/reports/quality.yml``. Must not know
where the images lie.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from bids_perfdeficit import data
from bids_perfdeficit.ct.conforming import resample
from bids_perfdeficit.ct.reading import AIR_HU
from bids_perfdeficit.errors import InputError

#: HU from which a voxel of a CT is taken as bone; contrast in vessels seldom reaches it at 1 mm.
BONE_HU = 500.0
#: mm around the brain in which bone is compared: the skull, not the neck and the head rest.
SKULL_MARGIN_MM = 15.0
#: HU in which NCCT and CTA look alike: air, soft tissue and bone, with contrast kept small.
HEAD_WINDOW = (-200.0, 1000.0)
#: HU by which two scans may differ in a voxel and still hold the same data, resampled.
SAME_HU = 1.0
#: HU that are bone, or a calcification, when both scans have them.
DENSE_HU = 120.0
#: mm from the edge of the brain, and from bone in it, within which misaligned bone looks like
#: contrast.
RIM_MM = 4.0
#: mm of the grid on which the head is compared with its mirror image.
MIRROR_MM = 4.0
#: HU below which there is air, or nothing was scanned; mm from the brain within which there is
#: none where the skull is closed.
OPEN_HU, OPEN_MM = -500.0, 4.0
#: Metrics that condemn a pair of scans before anything is computed from them.
PAIR_METRICS = (
    'cta_coverage', 'identical_share', 'swapped_contrast', 'arterial_contrast', 'scan_correlation',
)  # fmt: skip


def measure_quality(
    ncct: nib.Nifti1Image,
    cta: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    subtraction: nib.Nifti1Image,
    std_brain: nib.Nifti1Image,
    template_brain: nib.Nifti1Image,
    *,
    std_ncct: nib.Nifti1Image | None = None,
    template_density: nib.Nifti1Image | None = None,
) -> dict[str, float]:
    """Measure the brain, the alignment, noise and contrast of a patient's scans.

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
    std_ncct, template_density : Nifti1Image, optional
        The NCCT carried to the template, and the template's pseudo-CT, on the same grid.

    Returns
    -------
    dict of str to float
        Those of `measure_pair`, and ``brain_volume`` (mL), ``brain_mean`` (HU,
        without its rim of 4 mm), ``skull_dice`` of
        the bone of NCCT and CTA near the brain, ``template_dice`` of the brains,
        ``subtraction_noise`` (HU, robust standard deviation in the brain), ``vessel_contrast``
        (HU, 99.9th percentile in the brain), ``brain_balance`` (the smaller hemisphere's volume
        over the larger one's), ``brain_open`` (cm2 of the brain's surface beside air or the end of
        the scan), ``side_agreement`` (correlation between what is asymmetric in the NCCT and in
        the CTA) and ``template_correlation`` (of the density, in the template's brain; NaN when
        its images are not given).
    """
    mask = np.asarray(brain.dataobj) > 0
    spacing = np.asarray(brain.header.get_zooms()[:3], dtype=float)
    plain, contrast = (np.asarray(image.dataobj, dtype=np.float32) for image in (ncct, cta))
    around, near = _near(mask, spacing)
    deep = _deep(mask[around], spacing)
    difference = np.asarray(subtraction.dataobj, dtype=np.float32)[mask]
    centre = np.median(difference)
    target = np.asarray(template_brain.dataobj) > 0
    likeness = float('nan')
    if std_ncct is not None and template_density is not None:
        likeness = _resemble_template(std_ncct, template_density, std_brain, target)
    balance, sides = _compare_sides(ncct, cta, brain)
    return {
        'brain_volume': float(mask.sum() * spacing.prod() / 1000),
        'brain_mean': float(plain[around][deep].mean()) if deep.any() else float('nan'),
        'brain_balance': balance,
        'brain_open': _open_surface(plain, mask, around, spacing),
        'skull_dice': dice((plain[around] > BONE_HU) & near, (contrast[around] > BONE_HU) & near),
        'template_dice': dice(np.asarray(std_brain.dataobj) > 0, target),
        'template_correlation': likeness,
        # 1.4826 makes the median absolute deviation that of a normal distribution.
        'subtraction_noise': float(1.4826 * np.median(np.abs(difference - centre))),
        'vessel_contrast': float(np.percentile(difference, 99.9)),
        'side_agreement': sides,
        **_measure_pair(plain, contrast, mask, around, near, spacing),
    }


def measure_pair(
    ncct: nib.Nifti1Image, cta: nib.Nifti1Image, brain: nib.Nifti1Image
) -> dict[str, float]:
    """Measure whether two aligned scans are an NCCT and a CTA of one head.

    Parameters
    ----------
    ncct, cta, brain : Nifti1Image
        On one grid, (X, Y, Z) in RAS, HU; the brain is a mask.

    Returns
    -------
    dict of str to float
        ``cta_coverage``, the share of the brain that the CTA shows; ``identical_share``, the share
        of the brain in which both hold the same values; ``arterial_contrast``
        (HU), how much farther the bright tail of CTA - NCCT in the brain reaches than the dark one
        (percentiles 99.95 and 0.05), and ``swapped_contrast``, the reverse; ``enhancement`` (HU),
        the median difference in the brain; ``scan_correlation`` of the two in the brain and the
        skull around it.
    """
    mask = np.asarray(brain.dataobj) > 0
    spacing = np.asarray(brain.header.get_zooms()[:3], dtype=float)
    plain, contrast = (np.asarray(image.dataobj, dtype=np.float32) for image in (ncct, cta))
    return _measure_pair(plain, contrast, mask, *_near(mask, spacing), spacing)


def check_pair(ncct: nib.Nifti1Image, cta: nib.Nifti1Image, brain: nib.Nifti1Image) -> None:
    """Refuse two aligned scans from which no perfusion map can follow.

    To be called after the CTA was aligned and before anything is computed.

    Parameters
    ----------
    ncct, cta, brain : Nifti1Image
        As for `measure_pair`.

    Raises
    ------
    InputError
        When the CTA does not show the brain, both are the same scan, they are swapped, there is no
        contrast, or they do not fit each other. The limits stand in ``data/reports/quality.yml``.
    """
    found = measure_pair(ncct, cta, brain)
    for name in PAIR_METRICS:
        entry = quality_table()[name]
        value = found[name]
        low, high = entry.get('fail_minimum', -np.inf), entry.get('fail_maximum', np.inf)
        if not low <= value <= high:
            units = f' {entry["units"]}' if 'units' in entry else ''
            raise InputError(
                f'{entry["reason"]} ({entry["label"][0].lower()}{entry["label"][1:]}: '
                f'{value:.3g}{units})',
                fix=entry['fix'],
            )


@functools.cache
def quality_table() -> dict[str, dict[str, Any]]:
    """Return the limits of all metrics and what they mean."""
    return dict(yaml.safe_load(data.load('reports/quality.yml').read_text(encoding='utf-8')))


def sidecar_metrics(ncct: Mapping[str, Any], cta: Mapping[str, Any]) -> dict[str, object]:
    """Collect the metrics that were found when the scans were read.

    Parameters
    ----------
    ncct, cta : mapping
        Sidecars of the prepared scans, which hold `CTVolume.provenance`.

    Returns
    -------
    dict
        ``slice_jump``, ``slices_repeated`` and ``affine_difference``, the larger of both scans';
        ``hu_scale``, ``'as stored'``, ``'corrected'`` or ``'estimated'``, the worse of both;
        ``registration_residual`` (mm) of the CTA.
    """
    found: dict[str, object] = {}
    for name, key in (
        ('slice_jump', 'SliceJump'),
        ('slices_repeated', 'SlicesRepeated'),
        ('affine_difference', 'AffineDifference'),
    ):
        values = [float(facts[key]) for facts in (ncct, cta) if facts.get(key) is not None]
        if values:
            found[name] = max(values)
    if 'Residual' in (aligned := cta.get('Registration') or {}):
        found['registration_residual'] = aligned['Residual']
    scales = [facts for facts in (ncct, cta) if 'HUShift' in facts]
    if scales:
        corrected = any(s['HUSlope'] != 1 or s['HUShift'] != 0 for s in scales)
        known = all(s['HUScaleKnown'] for s in scales)
        found['hu_scale'] = ('corrected' if corrected else 'as stored') if known else 'estimated'
    return found


def _near(mask: np.ndarray, spacing: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return a box around the brain, and where in it brain and skull are."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    margin = np.ceil(SKULL_MARGIN_MM / spacing).astype(int)
    around = tuple(
        slice(max(s.start - m, 0), min(s.stop + m, n))
        for s, m, n in zip(box, margin, mask.shape, strict=True)
    )
    near = ndimage.distance_transform_edt(~mask[around], sampling=spacing) <= SKULL_MARGIN_MM
    return around, near


def _measure_pair(
    plain: np.ndarray,
    contrast: np.ndarray,
    mask: np.ndarray,
    around: tuple[slice, ...],
    near: np.ndarray,
    spacing: np.ndarray,
) -> dict[str, float]:
    inside, one, two = mask[around], plain[around], contrast[around]
    scanned = two > AIR_HU
    difference = two - one
    deep = _deep(inside, spacing) & scanned & (one > AIR_HU)
    # Beside bone a difference of slice thickness, or a degree of rotation, looks like contrast.
    bone = np.minimum(one, two) > DENSE_HU
    deep &= ~ndimage.binary_dilation(bone, iterations=int(np.ceil(RIM_MM / spacing.min())))
    up = down = middle = same = 0.0
    if deep.any():
        # Where voxels are small, three of them average the noise and keep an artery.
        smooth = ndimage.uniform_filter(difference, 3 if spacing.min() < 1.6 else 1)[deep]
        middle = float(np.median(smooth))
        up, down = np.percentile(smooth, [99.95, 0.05]) - middle
        same = float(np.mean(np.abs(difference[deep]) < SAME_HU))
    a, b = (np.clip(values[near & scanned], *HEAD_WINDOW) for values in (one, two))
    return {
        'cta_coverage': float(scanned[inside].mean()),
        'identical_share': same,
        # Noise has both tails, arteries have one.
        'arterial_contrast': float(up + down),
        'swapped_contrast': float(-down - up),
        'enhancement': middle,
        'scan_correlation': _correlation(a, b),
    }


def _deep(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the brain without its rim."""
    return np.asarray(
        ndimage.binary_erosion(inside, iterations=max(1, round(RIM_MM / spacing.min())))
    )


def _resemble_template(
    std_ncct: nib.Nifti1Image,
    density: nib.Nifti1Image,
    std_brain: nib.Nifti1Image,
    target: np.ndarray,
) -> float:
    """Return the correlation of the density with the template's, away from the skull."""
    inside = ndimage.binary_erosion(target & (np.asarray(std_brain.dataobj) > 0), iterations=4)
    if not inside.any():
        return float('nan')
    values = np.clip(np.asarray(std_ncct.dataobj, dtype=np.float32), 0, 80)
    smooth = ndimage.gaussian_filter(values, 1, truncate=2)
    return _correlation(smooth[inside], np.asarray(density.dataobj, dtype=np.float32)[inside])


def _open_surface(
    plain: np.ndarray, mask: np.ndarray, around: tuple[slice, ...], spacing: np.ndarray
) -> float:
    """Return how much of the brain's surface lies beside air or the end of the scan, cm2."""
    inside = np.pad(mask[around], 1)
    closed = np.pad(plain[around] > OPEN_HU, 1)
    reach = max(1, round(OPEN_MM / spacing.min()))
    beside = ndimage.binary_dilation(~closed, iterations=reach)
    edge = inside & ~ndimage.binary_erosion(inside)
    # A voxel of a surface represents about one face, or a little more where it is oblique.
    return float((edge & beside).sum() * spacing.prod() ** (2 / 3) / 100)


def _compare_sides(
    ncct: nib.Nifti1Image, cta: nib.Nifti1Image, brain: nib.Nifti1Image
) -> tuple[float, float]:
    """Return the balance of the hemispheres, and how far NCCT and CTA agree on the sides.

    The mid-sagittal plane is the one about which the NCCT resembles its mirror image most. What is
    left of each scan when its mirror image is taken off changes its sign when one was flipped.
    """
    low = brain.affine[:3, 3]
    extent = np.array(brain.shape) * np.asarray(brain.header.get_zooms()[:3])
    shape = tuple(int(n) for n in np.ceil(extent / MIRROR_MM))
    affine = np.diag([MIRROR_MM, MIRROR_MM, MIRROR_MM, 1.0])
    affine[:3, 3] = low
    whole = nib.Nifti1Image(np.asarray(brain.dataobj, dtype=np.float32), brain.affine)
    inside = np.maximum(resample(whole, shape, affine), 0) > 0.5
    if inside.sum() < 200:
        return 0.0, 0.0
    plain, contrast = (
        np.clip(resample(_floats(image), shape, affine), *HEAD_WINDOW) for image in (ncct, cta)
    )
    near = ndimage.distance_transform_edt(~inside) * MIRROR_MM <= SKULL_MARGIN_MM
    points = np.argwhere(near).astype(float)
    centre = np.argwhere(inside).mean(0)

    def mirrored(parameters: np.ndarray, where: np.ndarray) -> np.ndarray:
        turn = Rotation.from_euler('yz', parameters[:2] / 5).as_matrix()
        normal = turn @ [1.0, 0.0, 0.0]
        off = (where - centre) @ normal - parameters[2] * 5
        return np.asarray(where - 2 * off[:, None] * normal)

    def read(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.map_coordinates(values, where.T, order=1, mode='nearest'))

    some = points[::3]
    here = read(plain, some)

    def unlike(parameters: np.ndarray) -> float:
        return 1 - _correlation(here, read(plain, mirrored(parameters, some)))

    best = optimize.minimize(
        unlike, np.zeros(3), method='Powell', options={'maxfev': 200, 'xtol': 1e-2, 'ftol': 1e-4}
    ).x
    there = mirrored(best, points)
    turn = Rotation.from_euler('yz', best[:2] / 5).as_matrix()
    side = (np.argwhere(inside) - centre) @ (turn @ [1.0, 0.0, 0.0]) > best[2] * 5
    counts = sorted([int(side.sum()), int((~side).sum())])
    uneven = [read(values, points) - read(values, there) for values in (plain, contrast)]
    return counts[0] / max(counts[1], 1), _correlation(*uneven)


def _floats(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Return Dice's overlap of two boolean arrays; nan when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return float(2 * np.logical_and(a, b).sum() / total) if total else float('nan')
