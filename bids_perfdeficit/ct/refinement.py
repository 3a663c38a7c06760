"""The last rigid step between NCCT and CTA: Gauss-Newton on the edges of the skull.

Mutual information over the whole head can end a millimetre off, which shows up as contrast along
every edge. The skull has the steepest edges of both scans and no contrast. What each part of the
skull would still ask for, by itself, is the residual: it grows with motion within a scan, which no
rigid transform undoes. Must not know how the start was found.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

#: HU between which edges are compared: from soft tissue to cortical bone. Air would bring in the
#: skin and the head rest, which move on their own.
WINDOW = (0.0, 1000.0)
#: mm around the brain in which the skull lies; mm of the brain's rim that are used too.
REACH_MM, RIM_MM = 14.0, 2.0
#: Standard deviation in mm of the smoothing before edges are compared: noise has none left, and
#: slices of different thickness look alike.
SMOOTH_MM = 1.0
#: HU per mm from which a voxel is on an edge, and how many of them are used at most.
EDGE_HU, MOST_POINTS = 60.0, 60_000
#: Fewest points on edges with which a step is taken, and in a part of the skull that is counted.
FEWEST, FEWEST_PART = 2_000, 200
#: Steps at most, and mm of a step below which the search ends.
STEPS, SMALL_MM = 8, 0.005
#: mm by which the start may be improved: beyond, edges match their neighbours.
FARTHEST_MM = 4.0


@dataclass(frozen=True)
class Refinement:
    """A rigid transform after its last step.

    Parameters
    ----------
    matrix : ndarray, (4, 4)
        RAS mm: carries a point of the NCCT to the same anatomy in the CTA. The start where the
        step was not an improvement.
    moved : float
        mm by which the step moved the skull, root mean square.
    residual : float
        mm by which parts of the skull are still displaced, root mean square over up to eight
        parts; NaN where too few edges were found.
    """

    matrix: np.ndarray
    moved: float
    residual: float


def refine_rigid(
    ncct: nib.Nifti1Image, cta: nib.Nifti1Image, brain: nib.Nifti1Image, start: np.ndarray
) -> Refinement:
    """Improve a rigid transform on the edges of the skull.

    Parameters
    ----------
    ncct : Nifti1Image
        HU, (X, Y, Z), isotropic.
    cta : Nifti1Image
        HU, any affine.
    brain : Nifti1Image
        Brain mask on the grid of the NCCT.
    start : ndarray, (4, 4)
        RAS mm: carries a point of the NCCT to about the same anatomy in the CTA.

    Returns
    -------
    Refinement
    """
    points, values, slopes = _edges(ncct, brain)
    if len(points) < FEWEST:
        return Refinement(start, 0.0, float('nan'))
    moving = _smooth(cta)
    to_voxel = np.linalg.inv(cta.affine)
    centre = points.mean(0)
    from_centre = points - centre

    def difference(matrix: np.ndarray) -> np.ndarray:
        there = to_voxel @ matrix
        index = points @ there[:3, :3].T + there[:3, 3]
        found = ndimage.map_coordinates(moving, index.T, order=1, cval=np.nan)
        return np.asarray(found - values)

    # A small move of the point, by its turn and its shift: rows of the linear problem.
    rows = np.concatenate([np.cross(from_centre, slopes), slopes], 1)
    matrix, best = start, difference(start)
    cost = _cost(best)
    for _ in range(STEPS):
        step = _solve(rows, best)
        move = np.eye(4)
        move[:3, :3] = Rotation.from_rotvec(step[:3]).as_matrix()
        move[:3, 3] = step[3:] + centre - move[:3, :3] @ centre
        trial = matrix @ move
        found = difference(trial)
        if (new := _cost(found)) >= cost or _distance(trial, start, points) > FARTHEST_MM:
            break
        size = _distance(trial, matrix, points)
        matrix, best, cost = trial, found, new
        if size < SMALL_MM:
            break
    return Refinement(
        matrix, _distance(matrix, start, points), _residual(slopes, best, from_centre)
    )


def _edges(
    ncct: nib.Nifti1Image, brain: nib.Nifti1Image
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points on the skull's edges, RAS mm (N, 3), their HU (N,) and slopes (N, 3)."""
    spacing = np.asarray(ncct.header.get_zooms()[:3], dtype=float)
    inside = np.asarray(brain.dataobj) > 0
    (box,) = ndimage.find_objects(inside.astype(np.uint8))
    margin = np.ceil(REACH_MM / spacing).astype(int) + 1
    around = tuple(
        slice(max(s.start - m, 0), min(s.stop + m, n))
        for s, m, n in zip(box, margin, inside.shape, strict=True)
    )
    inside = inside[around]
    near = ndimage.distance_transform_edt(~inside, sampling=spacing) <= REACH_MM
    near &= ndimage.distance_transform_edt(inside, sampling=spacing) <= RIM_MM
    affine = ncct.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in around]
    values = np.clip(np.asarray(ncct.dataobj, dtype=np.float32)[around], *WINDOW)
    values = ndimage.gaussian_filter(values, SMOOTH_MM / spacing)
    slopes = np.stack(np.gradient(values, *spacing), -1)
    steep = near & ((slopes**2).sum(-1) > EDGE_HU**2)
    index = np.argwhere(steep)
    index = index[:: max(1, len(index) // MOST_POINTS)]
    place = tuple(index.T)
    turn = affine[:3, :3] / spacing
    return (
        index @ affine[:3, :3].T + affine[:3, 3],
        values[place].astype(float),
        slopes[place] @ turn.T,
    )


def _smooth(cta: nib.Nifti1Image) -> np.ndarray:
    spacing = np.linalg.norm(cta.affine[:3, :3], axis=0)
    values = np.clip(np.asarray(cta.dataobj, dtype=np.float32), *WINDOW)
    return np.asarray(ndimage.gaussian_filter(values, SMOOTH_MM / spacing, truncate=3.0))


def _scale(difference: np.ndarray) -> float:
    return max(float(1.4826 * np.nanmedian(np.abs(difference))), 1.0)


def _cost(difference: np.ndarray) -> float:
    """Return a mean that outliers hardly count in: a vein beside bone, a filling, the jaw."""
    known = difference[np.isfinite(difference)]
    return float(np.mean(np.minimum(np.abs(known), 300.0))) if known.size else np.inf


def _solve(rows: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Return the step that takes most of a difference away, with Cauchy's weights."""
    known = np.isfinite(difference)
    weight = 1 / (1 + (difference[known] / (2 * _scale(difference))) ** 2)
    part = rows[known]
    form = (part * weight[:, None]).T @ part
    form[np.diag_indices_from(form)] *= 1 + 1e-6
    return np.linalg.solve(form, -(part * weight[:, None]).T @ difference[known])


def _distance(one: np.ndarray, other: np.ndarray, points: np.ndarray) -> float:
    off = (one - other)[:3]
    return float(np.sqrt(np.mean(np.sum((points @ off[:, :3].T + off[:, 3]) ** 2, 1))))


def _residual(slopes: np.ndarray, difference: np.ndarray, from_centre: np.ndarray) -> float:
    """Return the shift, mm, that parts of the skull would ask for by themselves."""
    part = (from_centre > 0) @ [1, 2, 4]
    shifts = []
    for k in range(8):
        mine = (part == k) & np.isfinite(difference)
        if mine.sum() >= FEWEST_PART:
            shifts.append(_solve(slopes[mine], difference[mine]))
    if not shifts:
        return float('nan')
    return float(np.sqrt(np.mean(np.sum(np.square(shifts), 1))))
