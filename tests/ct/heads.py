"""A made head that can be scanned on any grid, and digital patients that are kept for the session.

The made head has a skull, ventricles, a face, and no symmetry, so that no flip looks like another.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_perfdeficit import ct

#: mm; half axes of the inner table.
INNER = np.array([64.0, 80.0, 62.0])
TABLE_MM = 7.0


def head_at(points: np.ndarray, *, neck: bool = False, table: bool = False) -> np.ndarray:
    """Return HU at RAS points (..., 3) mm: a smooth function, so that any grid sees one head."""

    def inside(centre, half, soft=2.0):
        """1 inside an ellipsoid, 0 outside, with an edge `soft` mm wide."""
        radius = np.linalg.norm((points - centre) / half, axis=-1)
        return 1 / (1 + np.exp(np.clip((radius - 1) * np.mean(half) * 4 / soft, -50, 50)))

    value = np.full(points.shape[:-1], -1000.0)

    def lay(share, hu):
        nonlocal value
        value = value + share * (hu - value)

    if table:
        low, high = np.array([-150, -125, -400]), np.array([150, -112, 200])
        lay(((points > low) & (points < high)).all(-1).astype(float), 150.0)
    if neck:
        lay(inside([0, -20, -150], [55, 60, 150]), 50.0)
        lay(inside([0, -45, -170], [15, 15, 160]), 600.0)
    lay(inside([0, 70, -60], [45, 35, 50]), 40.0)  # the face
    lay(inside([0, 0, 0], INNER + TABLE_MM + 6), 20.0)
    lay(inside([0, 0, 0], INNER + TABLE_MM), 1000.0)
    lay(inside([0, 0, 0], INNER), 34.0)
    lay(inside([12, 5, 8], [8, 25, 10]), 8.0)  # the ventricles, one larger
    lay(inside([-12, 8, 8], [5, 20, 7]), 8.0)
    lay(inside([-35, -20, 20], [15, 12, 10]), 60.0)  # a haematoma on the right
    return value


def scan_head(affine: np.ndarray, shape: tuple[int, ...], **parts: bool) -> nib.Nifti1Image:
    """Scan the made head on a grid; int16 HU."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing='ij'), -1)
    values = head_at(index @ affine[:3, :3].T + affine[:3, 3], **parts)
    return nib.Nifti1Image(np.rint(values).astype(np.int16), affine)


def box_affine(spacing, low) -> np.ndarray:
    """Return the affine of an RAS grid."""
    affine = np.diag([*np.broadcast_to(spacing, 3), 1.0])
    affine[:3, 3] = low
    return affine


#: The usual grid: 4 mm around the head.
AFFINE, SHAPE = box_affine(4.0, (-92, -112, -116)), (47, 60, 54)


def take(image, motion, thickness, seed=None, noise=0.0) -> nib.Nifti1Image:
    """Scan a moved head in slices: `motion` carries RAS mm of the image to those of the scan."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape])).reshape(3, -1)
    world = (motion @ image.affine)[:3] @ np.vstack([corners, np.ones(8)])
    step = np.linalg.norm(image.affine[:3, :3], axis=0)
    thin = max(1, round(thickness / step[2]))
    affine = box_affine(step, world.min(1))
    shape = np.ceil((world.max(1) - world.min(1)) / step).astype(int)
    shape[2] += -shape[2] % thin
    values = ct.resample(image, tuple(shape), np.linalg.inv(motion) @ affine)
    values = values.reshape(*shape[:2], -1, thin).mean(3)
    if noise:
        values += np.random.default_rng(seed).normal(0, noise, values.shape)
    affine[2, 3] += step[2] * (thin - 1) / 2
    affine[2, 2] *= thin
    return nib.Nifti1Image(values.astype(np.float32), affine)


def floats(image) -> nib.Nifti1Image:
    """Return an image as float32."""
    return nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)


def brain_points(image) -> np.ndarray:
    """Return some RAS points of a mask."""
    inside = ndimage.binary_erosion(np.asarray(image.dataobj) > 0)
    return np.argwhere(inside)[::97] @ image.affine[:3, :3].T + image.affine[:3, 3]
