"""Close the skull where it is open: craniectomy, burr holes, a field of view that cuts a side.

From a point inside the brain the inner table is sought in all directions. Where there is none, its
distance follows from the bone around the opening, over an ellipsoid that fits the rest of the
skull. Must not know what lies inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

#: HU from which a smoothed voxel belongs to the body.
BODY_HU = -200.0
#: mL of the smallest piece of bone that belongs to the skull: a bone flap is larger, calcified
#: plexus, pineal gland and coils are smaller.
MIN_BONE_ML = 2.0
#: Degrees between the directions, and the lowest of them: below lie the foramen magnum and the
#: neck, where the brain ends without bone.
STEP_DEGREES, LOWEST_DEGREES = 4.0, -60.0
#: Degrees above which the skull is close to an ellipsoid; the base below is not.
VAULT_DEGREES = -15.0
#: mm from the centre to the farthest bone of any head.
REACH_MM = 135.0
#: Half axes of an average inner table, mm: what the ellipsoid is held to where there is no bone.
AVERAGE_MM = np.array([66.0, 83.0, 68.0])
#: Weight of the average in the fit: one standard deviation from it weighs as much as a misfit of
#: this share of the radius in all directions.
AVERAGE_WEIGHT = 0.04
#: mm from the inner table within which a voxel is not certainly inside.
INSIDE_MM = 4.0
#: Degrees of elevation below which there are orbits and sinuses behind thin bone, and the share of
#: the ellipsoid's radius that is certainly within the skull there.
BASE_DEGREES, BASE_SHARE = 0.0, 0.5
#: Share of the ellipsoid's radius by which bone of the vault may be nearer or farther.
NEARER, FARTHER = 0.72, 1.22


@dataclass(frozen=True)
class Closure:
    """What lies outside a skull, also where it is open.

    Parameters
    ----------
    outside : ndarray of bool, (X, Y, Z)
        Voxels beyond the inner table in the directions in which no bone was found.
    open_ : ndarray of bool, (X, Y, Z)
        Voxels in those directions, at any distance.
    inside : ndarray of bool, (X, Y, Z)
        Voxels that are certainly within the skull: nothing but them lies before the inner table.
    opening_cm2 : float
        Area of the openings of the vault.
    """

    outside: np.ndarray
    open_: np.ndarray
    inside: np.ndarray
    opening_cm2: float


def close_skull(smooth: np.ndarray, bone: np.ndarray, mm: float) -> Closure:
    """Find what lies outside the skull in the directions in which it is open.

    Parameters
    ----------
    smooth : ndarray, (X, Y, Z)
        HU, RAS, of isotropic voxels.
    bone : ndarray of bool
        Where there is bone.
    mm : float
        Voxel size.
    """
    skull = _large_pieces(bone, mm)
    elevation, azimuth, directions = _directions()
    vault = np.broadcast_to(
        elevation[:, None] >= np.radians(VAULT_DEGREES), (len(elevation), len(azimuth))
    )
    centre = _deepest(smooth, skull, mm)
    start = np.zeros(vault.shape)
    for _ in range(3):  # from the first centre, which may lie off the middle, to the ellipsoid's
        distance = _inner_table(skull, centre, directions, mm)
        centre = centre + _fit(distance, directions, vault)[0] / mm
    for _ in range(2):
        # Within the vault, bone far from the ellipsoid is a calcified falx, a coil or a catheter.
        distance = _inner_table(skull, centre, directions, mm, start)
        ratio = distance / _fit(distance, directions, vault, fixed=True)[1]
        known = np.where(_off_rims(vault & (ratio > NEARER) & (ratio < FARTHER)), distance, np.inf)
        ellipsoid = _fit(known, directions, vault, fixed=True)[1]
        start = np.where(vault, NEARER * ellipsoid, 0)
    ratio = distance / ellipsoid
    found = np.isfinite(distance) & ~(vault & ((ratio > FARTHER) | (ratio < NEARER)))
    inner = _off_rims(found) & (ratio > NEARER) & (ratio < FARTHER)
    if found.mean() < 0.2:
        nothing = np.zeros(bone.shape, bool)
        return Closure(nothing, nothing, nothing, 0.0)
    smooth_ratio = np.exp(_interpolate(np.log(np.where(inner, ratio, 1)), inner))
    filled = np.where(inner, distance, smooth_ratio * ellipsoid)
    # The base has ridges, which say nothing of the fossae between them.
    filled = np.where(vault, filled, np.maximum(filled, ellipsoid))
    around = ndimage.binary_dilation(
        np.pad(~found, ((0, 0), (1, 1)), mode='wrap'), np.ones((3, 3))
    )[:, 1:-1]
    offset = [(np.arange(n) - c) * mm for n, c in zip(bone.shape, centre, strict=True)]
    x, y, z = np.meshgrid(*offset, indexing='ij', sparse=True)
    flat = np.hypot(x, y)
    row = (np.arctan2(z, flat) - elevation[0]) / np.radians(STEP_DEGREES)
    column = (np.arctan2(y, x) % (2 * np.pi)) / np.radians(STEP_DEGREES)
    high = row > -0.5  # above the foramen magnum
    row = np.clip(np.rint(row), 0, len(elevation) - 1).astype(int)
    column = np.rint(column).astype(int) % len(azimuth)
    radius = np.sqrt(flat**2 + z**2)
    open_ = high & around[row, column]
    outside = open_ & (radius > filled[row, column]) & ~bone
    # The nearest of neighbouring directions, so that a ray through a foramen does not count.
    nearest = np.minimum(np.where(found, distance, filled), filled)
    nearest = ndimage.minimum_filter(np.pad(nearest, ((0, 0), (1, 1)), mode='wrap'), 3)[:, 1:-1]
    # Behind thin bone below lie orbits and sinuses.
    thin = np.broadcast_to(elevation[:, None] < np.radians(BASE_DEGREES), vault.shape)
    nearest = np.where(thin, np.minimum(nearest, BASE_SHARE * ellipsoid), nearest)
    inside = high & (radius < nearest[row, column] - INSIDE_MM)
    cell = filled**2 * np.cos(elevation)[:, None] * np.radians(STEP_DEGREES) ** 2
    return Closure(outside, open_, inside, float(cell[~found & vault].sum() / 100))


def _off_rims(found: np.ndarray) -> np.ndarray:
    """Leave out the rims of openings, where a ray meets the diploe or the outer table."""
    missing = np.pad(~found, ((0, 0), (4, 4)), mode='wrap')
    large = ndimage.binary_opening(missing, np.ones((3, 3)))
    large = ndimage.binary_dilation(large, np.ones((3, 3)), 2)
    return np.asarray(found & ~large[:, 4:-4])


def _large_pieces(bone: np.ndarray, mm: float) -> np.ndarray:
    labels, count = ndimage.label(bone, np.ones((3, 3, 3)))
    if not count:
        return bone
    sizes = np.bincount(labels.flat)
    sizes[0] = 0
    return np.asarray((sizes * mm**3 / 1000 >= MIN_BONE_ML)[labels])


def _deepest(smooth: np.ndarray, skull: np.ndarray, mm: float) -> np.ndarray:
    """Return the voxel of the body that is farthest from bone and air: the middle of the brain."""
    step = max(1, round(4.0 / mm))
    soft = (smooth > BODY_HU) & ~skull
    # A coarse voxel with any bone is bone, so that thin tables do not vanish.
    padded = np.pad(soft, [(0, -n % step) for n in soft.shape])
    x, y, z = (n // step for n in padded.shape)
    coarse = padded.reshape(x, step, y, step, z, step).all((1, 3, 5))
    depth = ndimage.distance_transform_edt(np.pad(coarse, 1))[1:-1, 1:-1, 1:-1]
    deepest = np.unravel_index(np.argmax(depth), depth.shape)
    return np.asarray((np.array(deepest) + 0.5) * step - 0.5)


def _directions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return elevations, azimuths, and unit vectors (E, A, 3)."""
    elevation = np.radians(np.arange(LOWEST_DEGREES, 90.0, STEP_DEGREES))
    azimuth = np.radians(np.arange(0.0, 360.0, STEP_DEGREES))
    e, a = np.meshgrid(elevation, azimuth, indexing='ij')
    return (
        elevation,
        azimuth,
        np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], -1),
    )


def _inner_table(
    skull: np.ndarray,
    centre: np.ndarray,
    directions: np.ndarray,
    mm: float,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Return the distance to the first bone in each direction, mm; inf where there is none.

    Bone nearer than `start`, (E, A) mm, is passed over.
    """
    steps = np.arange(10.0, REACH_MM, mm / 2)
    points = centre + directions[..., None, :] * (steps / mm)[:, None]
    index = np.rint(points).astype(int)
    valid = ((index >= 0) & (index < skull.shape)).all(-1)
    index[~valid] = 0
    hit = skull[tuple(np.moveaxis(index, -1, 0))] & valid
    if start is not None:
        hit &= steps >= start[..., None]
    first = hit.argmax(-1)
    distance = np.where(hit.any(-1), steps[first], np.inf)
    # Rays that slip through a suture or a foramen see their neighbours' bone.
    wide = np.pad(distance, ((1, 1), (1, 1)), mode='wrap')
    wide[0], wide[-1] = wide[1], wide[-2]
    return np.asarray(ndimage.median_filter(wide, 3)[1:-1, 1:-1])


def _fit(
    distance: np.ndarray, directions: np.ndarray, vault: np.ndarray, *, fixed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Fit an ellipsoid to the vault.

    Parameters
    ----------
    distance : ndarray, (E, A)
        Of the inner table, mm; inf where there is none.
    directions : ndarray, (E, A, 3)
    vault : ndarray of bool, (E, A)
    fixed : bool
        Whether its centre is where the distances were taken from.

    Returns
    -------
    centre : ndarray, (3,)
        mm, from where the distances were taken.
    radii : ndarray, (E, A)
        Distances of its surface from its centre, mm.
    """
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    use = np.isfinite(distance) & vault
    area = np.sqrt(np.clip(1 - directions[..., 2] ** 2, 1e-3, 1))[use]
    points = directions[use] * distance[use][:, None]
    weight = np.sqrt(area / max(area.sum(), 1e-6))

    def shape(parameters: np.ndarray) -> np.ndarray:
        """Return the matrix that carries the ellipsoid, about its centre, to the unit sphere."""
        axes = AVERAGE_MM * np.exp(parameters[3] + parameters[4:7])
        turn = Rotation.from_rotvec(parameters[7:10]).as_matrix()
        return np.asarray(turn / axes[:, None])

    def misfit(parameters: np.ndarray) -> np.ndarray:
        radius = np.linalg.norm((points - parameters[:3] * 100) @ shape(parameters).T, axis=1)
        off = weight * np.tanh((radius - 1) / 0.25)  # bone of the face counts little
        spread = np.concatenate(
            [parameters[:2] / (1e-3 if fixed else 0.5), parameters[2:3] / (1e-3 if fixed else 0.2),
             parameters[3:4] / 0.15, parameters[4:7] / 0.08, parameters[7:10] / 0.2]
        )  # fmt: skip
        return np.concatenate([off, AVERAGE_WEIGHT * spread])

    found = np.zeros(10)
    if len(points) >= 50:
        most = np.array([0.35, 0.35, 0.3, 0.35, 0.25, 0.25, 0.25, 0.6, 0.6, 0.6])
        found = least_squares(misfit, found, bounds=(-most, most), max_nfev=40).x
    radii = 1 / np.linalg.norm(directions @ shape(found).T, axis=-1)
    return found[:3] * 100, np.asarray(radii)


def _interpolate(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Fill in what was not found by the smoothest surface through what was (Laplace)."""
    if found.all():
        return values
    result = np.where(found, values, values[found].mean())
    # From coarse to fine: large openings would need thousands of sweeps.
    for sigma in (8.0, 4.0, 2.0):
        mode = ('nearest', 'wrap')
        weight = ndimage.gaussian_filter(found.astype(float), sigma, mode=mode)
        total = ndimage.gaussian_filter(np.where(found, values, 0.0), sigma, mode=mode)
        near = ~found & (weight > 0.02)
        result[near] = total[near] / weight[near]
    for _ in range(300):
        wide = np.pad(result, ((1, 1), (0, 0)), mode='edge')
        mean = (wide[2:] + wide[:-2] + np.roll(result, 1, 1) + np.roll(result, -1, 1)) / 4
        mean[-1] = mean[-1].mean()  # around the pole all azimuths are neighbours
        result = np.where(found, values, mean)
    return result
