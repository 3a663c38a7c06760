"""From the template to one person's head: a smooth diffeomorphism, then an affine.

The displacement is the exponential of a stationary velocity field (Arsigny et al., MICCAI 2006),
so its inverse is the exponential of the negated field. Knows nothing of tissues or vessels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_perfdeficit.phantom.anatomy import LOWER, UPPER

Floats = NDArray[np.floating]
#: Spacing of the displacement grid, mm.
COARSE = 6.0


@dataclass(frozen=True)
class Warp:
    """A head's shape and pose.

    Attributes
    ----------
    affine : (4, 4) array
        From deformed template mm to patient mm.
    displacement, inverse_displacement : (3, X, Y, Z) float32 arrays
        In mm on the coarse grid that starts at `anatomy.LOWER`.
    """

    affine: NDArray[np.float64]
    displacement: NDArray[np.float32]
    inverse_displacement: NDArray[np.float32]

    def forward(self, points: Floats) -> Floats:
        """Template points (..., 3) mm to patient mm."""
        moved = points + _sample(self.displacement, points)
        return np.asarray(moved @ self.affine[:3, :3].T + self.affine[:3, 3])

    def inverse(self, points: Floats) -> Floats:
        """Patient points (..., 3) mm to template mm."""
        back = np.linalg.inv(self.affine)
        moved = points @ back[:3, :3].T.astype(points.dtype) + back[:3, 3].astype(points.dtype)
        return np.asarray(moved + _sample(self.inverse_displacement, moved))


def _sample(field: NDArray[np.float32], points: Floats) -> Floats:
    index = np.moveaxis((points - LOWER.astype(points.dtype)) / COARSE, -1, 0)
    out = [
        ndimage.map_coordinates(f, index, order=1, mode='nearest', output=points.dtype)
        for f in field
    ]
    return np.stack(out, -1)


def _exponential(velocity: NDArray[np.float32], steps: int = 6) -> NDArray[np.float32]:
    shape = velocity.shape[1:]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing='ij')).astype(np.float32)
    field = velocity / 2**steps
    for _ in range(steps):
        index = grid + field / COARSE
        field = field + np.stack(
            [ndimage.map_coordinates(f, index, order=1, mode='nearest') for f in field]
        )
    return field


def rigid(angles: Floats, shift: Floats, centre: Floats) -> NDArray[np.float64]:
    """Return a 4 x 4 rigid transform: turns about x, y, z (degrees) at `centre`, then a shift."""
    cx, cy, cz = np.cos(np.deg2rad(angles))
    sx, sy, sz = np.sin(np.deg2rad(angles))
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    out = np.eye(4)
    out[:3, :3] = rz @ ry @ rx
    out[:3, 3] = centre - out[:3, :3] @ centre + shift
    return out


def make_warp(
    rng: np.random.Generator, *, size: float, sd: float, ventricle_growth: float
) -> Warp:
    """Draw a head.

    Parameters
    ----------
    rng : numpy Generator
    size : float
        Linear scale against the template.
    sd : float
        Standard deviation of the displacement, mm.
    ventricle_growth : float
        How far the walls of the lateral ventricles stand outwards, mm (atrophy).
    """
    shape = tuple(int(n) for n in np.ceil((UPPER - LOWER) / COARSE) + 1)
    velocity = np.empty((3, *shape), np.float32)
    for axis in range(3):
        noise = ndimage.gaussian_filter(rng.standard_normal(shape), 20.0 / COARSE, mode='wrap')
        velocity[axis] = noise / noise.std() * sd
    # The bodies of the lateral ventricles as two soft rods that push their surroundings away.
    axes = [LOWER[a] + COARSE * np.arange(n) for a, n in enumerate(shape)]
    x, y, z = np.meshgrid(*axes, indexing='ij')
    for side in (-1, 1):
        away = np.stack([x - side * 13, np.where(np.abs(y + 8) > 30, (y + 8) * 0.3, 0), z - 14])
        reach = np.sqrt((away**2).sum(0)) + 1e-3
        velocity += (ventricle_growth * away / reach * np.exp(-(((reach - 8) / 16) ** 2))).astype(
            np.float32
        )
    scales = size * (1 + 0.02 * rng.standard_normal(3))
    pose = rigid(rng.normal(0, [5, 3, 5]), rng.normal(0, [3, 6, 8]), np.array([0.0, -15, 0]))
    affine = pose @ np.diag([*scales, 1.0])
    return Warp(affine, _exponential(velocity), _exponential(-velocity))
