"""Lay a head CT on an isotropic RAS grid, cropped to the head.

Each output voxel is read through the file's full affine, so that gantry tilt (a shear) and oblique
slices are undone in the one interpolation that there is. Must not know what is in the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_perfdeficit.ct.reading import AIR_HU, CTVolume
from bids_perfdeficit.errors import InputError

#: mm kept below the vertex: the head and the carotids as they enter it, not the neck.
HEAD_HEIGHT_MM = 205.0
#: mm kept around the head.
MARGIN_MM = 6.0
#: HU from which a voxel is taken as the body rather than air, pillow or table foam.
BODY_HU = -250.0
#: mm of the grid on which the head is looked for.
COARSE_MM = 4.0
#: mm of opening that parts the head from table and head rest.
REST_MM = 8.0
#: mL of bone and soft tissue that make a head.
MIN_HEAD_ML = 500.0
#: HU from which a coarse voxel is skull, and below which one inside it is brain.
SKULL_HU, BRAIN_HU = 150.0, 100.0
#: cm2 of brain that the uppermost and the lowermost scanned level may cut through: a little of the
#: vertex, and the foramen magnum with the canal below it.
CUT_CM2 = {'vertex': 10.0, 'skull base': 25.0}


@dataclass(frozen=True)
class Coverage:
    """What of the head was scanned.

    Parameters
    ----------
    complete : bool
        Vertex to skull base.
    missing : tuple of str
        ``'vertex'``, ``'skull base'``.
    """

    complete: bool
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conformed:
    """A CT on an isotropic RAS grid.

    Parameters
    ----------
    image : Nifti1Image
        float32 HU, (X, Y, Z), RAS, axes parallel to the scanner's; -1024 outside the scan.
    notes : tuple of str
        A sentence each.
    coverage : Coverage
        What of the head was scanned.
    slice_mm : float
        Largest voxel size of the scan, mm: the thickness of its slices.
    provenance : mapping
        How the scan was read: `CTVolume.provenance`.
    """

    image: nib.Nifti1Image
    notes: tuple[str, ...]
    coverage: Coverage
    slice_mm: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)


def conform(volume: CTVolume, *, spacing: float = 1.0) -> Conformed:
    """Resample a CT to an isotropic RAS grid around the head.

    Parameters
    ----------
    volume : CTVolume
        As read.
    spacing : float
        mm.

    Returns
    -------
    Conformed

    Raises
    ------
    InputError
        When there is no head in the image.
    """
    image = volume.image
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    notes = []
    if sizes.max() > 3.5:
        notes.append(f'slices are {sizes.max():.1f} mm thick; small arteries are blurred')
    shear = _shear_degrees(image.affine)
    if shear > 0.5:
        notes.append(f'a gantry tilt of {shear:.1f} degrees was undone')
    low, high, coverage = _find_head(image)
    if coverage.missing:
        notes.append(f'not scanned: {", ".join(coverage.missing)}')
    shape = tuple(int(n) for n in np.ceil((high - low) / spacing) + 1)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = low
    values = resample(image, shape, affine)
    return Conformed(
        nib.Nifti1Image(values, affine), tuple(notes), coverage, float(sizes.max()),
        volume.provenance(),
    )  # fmt: skip


def resample(
    image: nib.Nifti1Image, shape: tuple[int, ...], affine: np.ndarray, *, order: int = 1
) -> np.ndarray:
    """Read an image on another grid through its full affine.

    Where the new voxels are larger than the old ones the image is smoothed first, so that noise
    averages instead of aliasing. Only the part of the image that the grid needs is worked on.

    Parameters
    ----------
    image : Nifti1Image
        (X, Y, Z), any affine.
    shape : tuple of int
        Of the new grid.
    affine : ndarray, (4, 4)
        Of the new grid, voxel to RAS mm.
    order : int
        0 nearest, 1 linear.

    Returns
    -------
    ndarray of float32
        -1024 outside the image.
    """
    new_mm = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    to_old = np.linalg.inv(image.affine) @ affine
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    reach = to_old[:3, :3] @ corners + to_old[:3, 3:]
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    margin = np.ceil(3 * new_mm / sizes).astype(int) + 1
    start = np.clip(np.floor(reach.min(1)).astype(int) - margin, 0, image.shape)
    stop = np.clip(np.ceil(reach.max(1)).astype(int) + margin + 1, 0, image.shape)
    if (stop <= start).any():
        return np.full(shape, AIR_HU, dtype=np.float32)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    values = np.asarray(image.dataobj[box], dtype=np.float32)
    # Half the width that the coarser voxel has over the finer one, as for a box of its size.
    sigma = np.sqrt(np.maximum((new_mm / sizes) ** 2 - 1, 0) / 12)
    if order and sigma.max() > 0.2:
        values = ndimage.gaussian_filter(values, sigma, truncate=3)
    offset = to_old[:3, 3] - start
    return np.asarray(
        ndimage.affine_transform(
            values, to_old[:3, :3], offset, output_shape=shape, order=order, cval=AIR_HU
        ),
        dtype=np.float32,
    )


def _shear_degrees(affine: np.ndarray) -> float:
    """Return by how much the axes of the voxel grid depart from right angles."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    return float(np.degrees(np.arcsin(np.clip(cosines, 0, 1))))


def _find_head(image: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray, Coverage]:
    """Return the lower and upper corner of the head in RAS mm, and what of it was scanned."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape])).reshape(3, -1)
    world = image.affine[:3, :3] @ corners + image.affine[:3, 3:]
    low, high = world.min(1), world.max(1)
    shape = tuple(int(n) for n in np.ceil((high - low) / COARSE_MM) + 1)
    affine = np.diag([COARSE_MM, COARSE_MM, COARSE_MM, 1.0])
    affine[:3, 3] = low
    coarse = resample(image, shape, affine)
    radius = max(1, round(REST_MM / COARSE_MM / 2))
    ball = ndimage.generate_binary_structure(3, 1)
    body = np.pad(coarse > BODY_HU, radius + 1)
    body = ndimage.binary_erosion(body, ball, radius, border_value=0)
    labels, count = ndimage.label(body)
    voxel_ml = COARSE_MM**3 / 1000
    if count:
        largest = np.argmax(np.bincount(labels.flat)[1:]) + 1
        body = ndimage.binary_dilation(labels == largest, ball, radius)
    inner = slice(radius + 1, -radius - 1)
    body = body[inner, inner, inner] & (coarse > BODY_HU)
    if body.sum() * voxel_ml < MIN_HEAD_ML:
        raise InputError(
            'no head was found in the image', fix='give a head CT in Hounsfield units'
        )
    missing = _find_cuts(image, coarse, affine)
    occupied = np.argwhere(body)
    bottom, top = occupied.min(0) * COARSE_MM + low, occupied.max(0) * COARSE_MM + low
    bottom[2] = max(bottom[2], top[2] - HEAD_HEIGHT_MM)
    within = occupied[occupied[:, 2] * COARSE_MM + low[2] >= bottom[2]]
    bottom[:2] = within.min(0)[:2] * COARSE_MM + low[:2]
    top[:2] = within.max(0)[:2] * COARSE_MM + low[:2]
    corner = np.floor(bottom - MARGIN_MM)
    return corner, np.ceil(top + MARGIN_MM), Coverage(not missing, missing)


def _find_cuts(image: nib.Nifti1Image, coarse: np.ndarray, affine: np.ndarray) -> tuple[str, ...]:
    """Return at which end the scan cuts through brain: soft tissue in a ring of skull."""
    skull = coarse > SKULL_HU
    rings = ndimage.binary_closing(np.pad(skull, 2), np.ones((3, 3, 1)), 2)[2:-2, 2:-2, 2:-2]
    filled = np.stack(
        [ndimage.binary_fill_holes(rings[..., k]) for k in range(rings.shape[2])], axis=-1
    )
    brain = filled & ~skull & (coarse > -BRAIN_HU / 10) & (coarse < BRAIN_HU)
    grid = nib.Nifti1Image(np.ones(image.shape, np.float32), image.affine)
    scanned = np.pad(resample(grid, coarse.shape, affine, order=0) > 0, ((0, 0), (0, 0), (1, 1)))
    ends = {'vertex': ~scanned[..., 2:], 'skull base': ~scanned[..., :-2]}
    return tuple(
        name
        for name, beyond in ends.items()
        if (brain & beyond).sum() * COARSE_MM**2 / 100 > CUT_CM2[name]
    )
