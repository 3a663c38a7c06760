"""Where arteries enter the brain and where its great veins run, as smooth maps in MNI space.

Points were read off the ICBM 152 2009 template's own cisterns, sulci and midline (the optic
chiasm, the interpeduncular fossa, the tentorial edge), at which anatomy places the vessels: the
carotid termini beside the chiasm and the basilar tip in the interpeduncular cistern (Rhoton,
*Neurosurgery* 2002, 51 (4 Suppl): S53-S120; in MNI space Viviani, *Front. Neuroanat.* 2016, 10:
12); the sinuses along the midline and the tentorium, the vein of Galen below the splenium, the
internal cerebral veins in the roof of the third ventricle (Rhoton, ibid.: S159-S205; Scott & Farb,
*Neuroimaging Clin. N. Am.* 2003, 13: 1-12). Both maps are exactly symmetric.
Must not know the patient's images.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Points = list[tuple[float, float, float]]

#: Paths in MNI mm (x to the right, y forward, z up); those off the midline are mirrored.
_CAROTID: Points = [(11, -2, -28), (11, 4, -24), (12, 3, -16)]
_BASILAR: Points = [(0, -14, -30), (0, -11, -18)]
_SUPERIOR_SAGITTAL: Points = [
    (0, 68, -16), (0, 71, 2), (0, 69, 21), (0, 61, 38), (0, 48, 52), (0, 34, 61), (0, 20, 68),
    (0, 6, 74), (0, -9, 75), (0, -22, 79), (0, -38, 78), (0, -51, 73), (0, -65, 67),
    (0, -77, 56), (0, -86, 43), (0, -94, 29), (0, -101, 13), (0, -100, -3), (0, -90, -18),
]  # fmt: skip
_STRAIGHT: Points = [(0, -42, 7), (0, -50, 12), (0, -66, -2), (0, -82, -18), (0, -90, -18)]
_TRANSVERSE_SIGMOID: Points = [
    (0, -90, -18), (20, -90, -21), (40, -80, -22), (56, -66, -23), (59, -52, -28),
    (50, -44, -40), (42, -38, -52),
]  # fmt: skip
_INTERNAL_CEREBRAL: Points = [(2.5, -4, 14), (3, -20, 14), (3, -34, 10), (0, -42, 7)]
#: Radius in mm within which a prior is 1, and standard deviation of its fall beyond: anatomy
#: varies and normalisation errs by some millimetres.
_INFLOW_SHAPE = (1.5, 3.0)
_SINUS_SHAPE = (3.5, 2.5)
_DEEP_VEIN_SHAPE = (1.0, 1.5)
#: How far in mm the outer sinuses are moved at most to meet the outline of a given brain.
_SNAP = 12.0


def inflow_prior(shape: tuple[int, ...], affine: NDArray[np.floating]) -> NDArray[np.float32]:
    """Where arteries enter: both supraclinoid carotids with their termini, and the basilar tip.

    Parameters
    ----------
    shape : tuple of int
        Grid of the template, (X, Y, Z).
    affine : ndarray, (4, 4)
        Voxel indices to MNI mm.

    Returns
    -------
    ndarray, float32, (X, Y, Z)
        In [0, 1], exactly left-right symmetric: three blobs that do not meet above 0.5.
    """
    out = np.zeros(shape, np.float32)
    for path in (*pair(_CAROTID), _BASILAR):
        paint(out, affine, path, *_INFLOW_SHAPE)
    return out


def vein_prior(
    shape: tuple[int, ...],
    affine: NDArray[np.floating],
    brain_mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Where the dural sinuses and deep veins run.

    Parameters
    ----------
    shape : tuple of int
        Grid of the template, (X, Y, Z).
    affine : ndarray, (4, 4)
        Voxel indices to MNI mm.
    brain_mask : ndarray, bool, (X, Y, Z), optional
        The template's brain: the sinuses on the surface are then moved to its outline.

    Returns
    -------
    ndarray, float32, (X, Y, Z)
        In [0, 1], exactly left-right symmetric if the mask is.
    """
    outer = [_SUPERIOR_SAGITTAL, *pair(_TRANSVERSE_SIGMOID)]
    if brain_mask is not None:
        outer = _snap(outer, np.asarray(brain_mask) > 0, affine)
    out = np.zeros(shape, np.float32)
    for path in (*outer, _STRAIGHT):
        paint(out, affine, path, *_SINUS_SHAPE)
    for path in pair(_INTERNAL_CEREBRAL):
        paint(out, affine, path, *_DEEP_VEIN_SHAPE)
    return out


def pair(path: Points) -> tuple[Points, Points]:
    """Return a path and its left-right mirror image."""
    return path, [(-x, y, z) for x, y, z in path]


def paint(
    out: NDArray[np.float32],
    affine: NDArray[np.floating],
    path: Points,
    radius: float,
    sigma: float,
) -> None:
    """Raise `out` to a tube about `path`: 1 within `radius`, then a Gaussian fall."""
    inverse = np.linalg.inv(affine)
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    margin = radius + 4 * sigma
    for start, end in itertools.pairwise(path):
        ends = np.array([start, end], dtype=np.float64)
        corners = ends @ inverse[:3, :3].T + inverse[:3, 3]
        low = np.maximum(np.floor(corners.min(0) - margin / voxel), 0).astype(int)
        high = np.minimum(np.ceil(corners.max(0) + margin / voxel) + 1, out.shape).astype(int)
        if (low >= high).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        index = np.moveaxis(np.mgrid[box].astype(np.float64), 0, -1)
        points = index @ affine[:3, :3].T + affine[:3, 3] - ends[0]
        along = ends[1] - ends[0]
        share = np.clip(points @ along / (along @ along), 0, 1)
        distance = np.linalg.norm(points - share[..., None] * along, axis=-1)
        beyond = np.maximum(distance - radius, 0)
        tube = np.exp(-0.5 * (beyond / sigma) ** 2)
        tube[tube < np.exp(-8.0)] = 0
        out[box] = np.maximum(out[box], tube)


def _snap(
    paths: list[Points], brain: NDArray[np.bool_], affine: NDArray[np.floating]
) -> list[Points]:
    """Move each point to the nearest voxel just outside the brain, keeping its x.

    Keeping x leaves midline sinuses on the midline and mirrored ones mirrored.
    """
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    outside = distance_transform_edt(~brain, sampling=voxel)
    rim = np.argwhere((outside > 0) & (outside <= 1.5 * voxel.max()))
    rim_mm = rim @ affine[:3, :3].T + affine[:3, 3]
    moved: list[Points] = []
    for path in paths:
        points: Points = []
        for x, y, z in path:
            near = rim_mm[np.abs(rim_mm[:, 0] - x) <= voxel[0]]
            gaps = np.hypot(near[:, 1] - y, near[:, 2] - z)
            if gaps.size and gaps.min() <= _SNAP:
                y, z = near[gaps <= gaps.min() + 1e-6, 1:].mean(axis=0)
            points.append((x, float(y), float(z)))
        moved.append(points)
    return moved
