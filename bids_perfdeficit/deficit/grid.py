"""The voxels that maps and models live on: a mask, its affine and what follows from them.

Must not know scores or models. Voxels are counted in the order of ``volume[mask]`` (C order of an
(X, Y, Z) array in RAS millimetres).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from bids_perfdeficit.errors import InputError

#: mm by which a voxel's mirror image may miss a voxel's centre.
_MIRROR_TOLERANCE = 0.05
#: mm; spacings that differ by less are the same, as headers store them in single precision.
_SAME_SPACING = 1e-4


@dataclass(frozen=True, eq=False)
class Grid:
    """A set of voxels in space.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
    affine : (4, 4) array
        Voxel index to RAS mm; its axes must be those of the array (no rotation).

    Raises
    ------
    InputError
        If the mask is empty or the affine rotated.
    """

    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, 'mask', np.ascontiguousarray(self.mask, dtype=bool))
        object.__setattr__(self, 'affine', np.asarray(self.affine, dtype=float))
        if self.mask.ndim != 3 or not self.mask.any():
            raise InputError(
                'the group mask holds no voxels',
                fix='lower the minimum coverage or check the maps',
            )
        linear = self.affine[:3, :3]
        if np.abs(linear - np.diag(np.diag(linear))).max() > 1e-3 * np.abs(linear).max():
            raise InputError(
                'the group grid is rotated against its axes', fix='use maps in template space'
            )

    @property
    def n_voxels(self) -> int:
        """Number of voxels inside the mask."""
        return int(self.mask.sum())

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Voxel size along X, Y, Z in mm."""
        return np.abs(np.diag(self.affine[:3, :3]))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL."""
        return float(np.prod(self.spacing) / 1000)

    @cached_property
    def coordinates(self) -> NDArray[np.float64]:
        """(V, 3) RAS mm of the voxels' centres."""
        return np.argwhere(self.mask) @ self.affine[:3, :3].T + self.affine[:3, 3]

    @cached_property
    def mirror(self) -> NDArray[np.intp]:
        """(V,) index of each voxel's left-right mirror image, -1 where it is outside the mask.

        Raises
        ------
        InputError
            If no voxel's mirror image is a voxel: the grid is not symmetric about x = 0.
        """
        mirrored = self.coordinates * [-1, 1, 1]
        index = (mirrored - self.affine[:3, 3]) / np.diag(self.affine[:3, :3])
        whole = np.rint(index).astype(int)
        if (np.abs(index - whole) * self.spacing).max() > _MIRROR_TOLERANCE:
            raise InputError(
                'the grid is not symmetric about the midline, so that sides cannot be compared',
                fix='use a symmetric template such as MNI152NLin2009aSym',
            )
        inside = ((whole >= 0) & (whole < self.mask.shape)).all(1)
        number = np.full(self.mask.shape, -1)
        number[self.mask] = np.arange(self.n_voxels)
        result = np.full(self.n_voxels, -1)
        result[inside] = number[tuple(whole[inside].T)]
        return result

    def embed(self, values: NDArray, fill: float = 0.0) -> NDArray:
        """Put (V,) values back into an (X, Y, Z) volume."""
        volume = np.full(self.mask.shape, fill, dtype=np.result_type(values, np.float32))
        volume[self.mask] = values
        return volume

    def coarsen(
        self, spacing: float, *, tolerance: float = _SAME_SPACING
    ) -> tuple[Grid, sparse.csr_matrix]:
        """Return a grid of larger voxels, one column of them centred on the midline.

        Parameters
        ----------
        spacing : float
            mm. A grid that has this spacing (or a larger one) already is returned as it is.
        tolerance : float
            mm by which its voxels may be smaller and still count as that large.

        Returns
        -------
        coarse : Grid
        weights : (V, V coarse) sparse matrix
            Its columns add up to 1: ``maps @ weights`` averages over each coarse voxel.
        """
        if (self.spacing > spacing - tolerance).all():
            return self, sparse.identity(self.n_voxels, dtype=np.float32, format='csr')
        span = self.coordinates.min(0), self.coordinates.max(0)
        first = np.floor(span[0] / spacing - 0.5)
        last = np.ceil(span[1] / spacing + 0.5)
        # symmetric lattice: what there is on the left there is on the right
        last[0] = max(last[0], -first[0])
        first[0] = -last[0]
        shape = (last - first + 1).astype(int)
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = first * spacing
        # per axis: how much of each fine voxel lies within each coarse one, at most two of them
        fine = np.argwhere(self.mask)
        rows, columns, values = [], [], []
        axes = []
        for axis in range(3):
            centre = self.coordinates[:, axis]
            half = self.spacing[axis] / 2
            low = np.floor((centre - half - affine[axis, 3]) / spacing + 0.5 + 1e-6).astype(int)
            edge = (low + 0.5) * spacing + affine[axis, 3]
            share = np.clip((edge - (centre - half)) / (2 * half), 0, 1)
            axes.append(((low, share), (low + 1, 1 - share)))
        number = np.arange(len(fine))
        for ix, wx in axes[0]:
            for iy, wy in axes[1]:
                for iz, wz in axes[2]:
                    weight = wx * wy * wz
                    keep = weight > 1e-6
                    rows.append(number[keep])
                    columns.append(
                        np.ravel_multi_index((ix[keep], iy[keep], iz[keep]), tuple(shape))
                    )
                    values.append(weight[keep])
        row, column, value = (np.concatenate(part) for part in (rows, columns, values))
        total = np.bincount(column, weights=value, minlength=int(np.prod(shape)))
        # keep coarse voxels that are at least half brain
        kept = total * np.prod(self.spacing) >= 0.5 * spacing**3
        position = np.full(kept.shape, -1)
        position[kept] = np.arange(kept.sum())
        use = kept[column]
        weights = sparse.csr_matrix(
            (
                (value[use] / total[column[use]]).astype(np.float32),
                (row[use], position[column[use]]),
            ),
            shape=(self.n_voxels, int(kept.sum())),
        )
        return Grid(kept.reshape(tuple(shape)), affine), weights

    def resample_to(self, values: NDArray, target: Grid) -> NDArray[np.float32]:
        """Interpolate (V,) values linearly at another grid's voxels; the edge is extended."""
        if target is self:
            return np.asarray(values, dtype=np.float32)
        volume = self.embed(np.asarray(values, dtype=float))
        nearest = ndimage.distance_transform_edt(
            ~self.mask, return_distances=False, return_indices=True
        )
        volume = volume[tuple(nearest)]
        index = (target.coordinates - self.affine[:3, 3]) / np.diag(self.affine[:3, :3])
        return ndimage.map_coordinates(volume, index.T, order=1, mode='nearest').astype(np.float32)
