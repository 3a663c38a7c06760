"""What a scan shows beside the patient: offset, shading, cupping, patches, noise and movement.

Shading follows half a sine wave from edge to edge and cupping the fourth power of the distance
from the axis, with patches and noise of their own seeds. Must not know strokes, contrast or files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_perfdeficit.phantom.settings import ScanErrors

Floats = NDArray[np.floating]
#: HU below which a voxel is air, which calibration does not change.
AIR = -900.0


def disturb(
    image: NDArray[np.generic],
    affine: Floats,
    edges: Floats,
    errors: ScanErrors,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Add a scanner's errors to a scan.

    Parameters
    ----------
    image : array, (X, Y, Z)
        HU.
    affine : (4, 4) array
        Voxel to mm; axes along those of the patient, but for a few degrees.
    edges : (2, 3) array
        Lowest and highest mm of the head along each axis.
    errors : ScanErrors
        Its gain is not applied here: it belongs to the contrast.
    rng : numpy.random.Generator

    Returns
    -------
    float32 array, (X, Y, Z)
    """
    values = np.asarray(image, np.float32)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    middle, half = edges.mean(0), np.maximum((edges[1] - edges[0]) / 2, 1.0)
    # The axes of a scan are close to those of the patient: a place along each is enough.
    centre = (np.array(values.shape) - 1) / 2
    places = []
    for axis in range(3):
        index = np.tile(centre, (values.shape[axis], 1))
        index[:, axis] = np.arange(values.shape[axis])
        mm = index @ affine[:3, :3].T + affine[:3, 3]
        along = ((mm - middle) / half)[:, axis].clip(-1.2, 1.2)
        places.append(along.reshape([-1 if k == axis else 1 for k in range(3)]))
    field = np.full(values.shape, errors.offset, np.float32)
    for along, level in zip(places, errors.shading, strict=True):
        field += np.float32(level) * np.sin(np.pi / 2 * along)
    if errors.cupping:
        square = np.square(places[0]) + np.square(places[1])
        field += errors.cupping * (np.minimum(square, 1.3) ** 2 - 0.35)
    if errors.patches:
        field += errors.patches * _patches(values.shape, errors.patches_mm / steps, rng)
    if errors.noise:
        level = errors.noise / np.sqrt(steps[2] * max(steps[0], 1.0))
        field += np.float32(level) * rng.standard_normal(values.shape, dtype=np.float32)
    if errors.movement:
        values = _move(values, places[2].ravel(), errors.movement / steps[:2], rng)
    return np.where(values > AIR, values + field, values)


def _patches(
    shape: tuple[int, ...], sigma: Floats, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Smooth noise of unit standard deviation, made on a coarse grid."""
    factor = np.maximum(1, np.floor(sigma / 2)).astype(int)
    size = [int(np.ceil(n / f)) + 2 for n, f in zip(shape, factor, strict=True)]
    noise = ndimage.gaussian_filter(rng.standard_normal(size), sigma / factor, mode='wrap')
    fine = ndimage.affine_transform(
        noise / noise.std(), np.diag(1 / factor), output_shape=shape, order=1, mode='nearest'
    )
    return np.asarray(fine, np.float32)


def _move(
    values: NDArray[np.float32], along: Floats, voxels: Floats, rng: np.random.Generator
) -> NDArray[np.float32]:
    angle = rng.uniform(0, 2 * np.pi)
    shift = 0.5 * voxels * [np.cos(angle), np.sin(angle)]
    moved = [
        ndimage.shift(values[..., k], shift * along[k], order=1, mode='nearest')
        for k in range(values.shape[2])
    ]
    return np.stack(moved, -1)
