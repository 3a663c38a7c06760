"""Spherical regions of interest (ROIs) of several sizes, of which a substrate can consist.

An ROI's feature is the mean of a map over it: the share of the ROI that is hypoperfused, free of
grid and field size. Must not know scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.errors import InputError

#: A spherical ROI with less of its volume inside the mask no longer represents its size.
_LEAST_INSIDE = 0.5
#: mm by which the centres of a mirrored pair may differ.
_SAME_PLACE = 1e-3


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Spherical ROIs inside a mask.

    Parameters
    ----------
    centres : (P, 3) array
        RAS mm.
    radii : (P,) array
        mm.
    log_prior : (P,) array
        Log probability of each: sizes alike, and positions alike for each size.
    mirror : (P,) array
        Index of each ROI's left-right mirror image (an involution); its own where it is alone.
    alone : (P,) bool array
        Whether a spherical ROI's mirror image lies outside the mask.
    members : (V coarse, P) sparse matrix
        1 where a voxel is in a spherical ROI, on the grid the dictionary was made for.
    """

    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    log_prior: NDArray[np.float64]
    mirror: NDArray[np.intp]
    alone: NDArray[np.bool_]
    members: sparse.csc_matrix

    @property
    def averaging(self) -> sparse.csc_matrix:
        """(V coarse, P) `members` with columns that add up to 1."""
        size = np.asarray(self.members.sum(0)).ravel()
        return (self.members @ sparse.diags_array(1 / size)).astype(np.float32)


def build_dictionary(
    grid: Grid, radii: Sequence[float], spacings: Sequence[float], *, paired: bool = True
) -> Dictionary:
    """Lay spherical ROIs over a mask on lattices that are symmetric about the midline.

    Parameters
    ----------
    grid : Grid
    radii, spacings : sequence of float
        mm: sizes, and for each the distance between neighbouring centres.
    paired : bool
        Whether the mask is symmetric but for its edge, so that ROIs are there in pairs; in the
        mask of one-sided lesions many are alone.

    Raises
    ------
    InputError
        When the mask has no space for a spherical ROI.
    """
    xyz = grid.coordinates
    tree = cKDTree(xyz)
    low, high = xyz.min(0), xyz.max(0)
    reach = np.abs(xyz[:, 0]).max()
    all_centres: list[NDArray[np.float64]] = []
    all_radii: list[NDArray[np.float64]] = []
    all_priors: list[NDArray[np.float64]] = []
    columns: list[Any] = []
    for radius, spacing in zip(radii, spacings, strict=True):
        half = np.floor(reach / spacing) * spacing
        axes = [
            np.arange(-half, half + spacing / 2, spacing),
            np.arange(low[1], high[1] + spacing / 2, spacing),
            np.arange(low[2], high[2] + spacing / 2, spacing),
        ]
        centres = np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3)
        members = tree.query_ball_point(centres, radius)
        whole = 4 / 3 * np.pi * radius**3 / (1000 * grid.voxel_ml)
        size = np.array([len(m) for m in members])
        lattice = (size >= max(1.0, _LEAST_INSIDE * whole)).reshape([len(a) for a in axes])
        keep = lattice.ravel()
        if paired:  # both of a mirrored pair or none, whatever the mask's own asymmetry
            keep = (lattice | lattice[::-1]).ravel() & (size > 0)
            keep &= keep.reshape(lattice.shape)[::-1].ravel()
        if not keep.any():
            continue
        all_centres.append(centres[keep])
        all_radii.append(np.full(keep.sum(), float(radius)))
        all_priors.append(np.full(keep.sum(), -np.log(keep.sum())))
        columns.extend(members[i] for i in np.flatnonzero(keep))
    if not all_centres:
        raise InputError(
            f'the group mask has no space for a region ({grid.n_voxels * grid.voxel_ml:.1f} mL)',
            fix='lower --min-coverage, give more participants, or choose another --model',
        )
    centres, sizes = np.concatenate(all_centres), np.concatenate(all_radii)
    starts = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
    members = sparse.csc_matrix(
        (np.ones(starts[-1], np.float32), np.concatenate(columns).astype(np.int64), starts),
        shape=(grid.n_voxels, len(centres)),
    )
    finder = cKDTree(np.c_[centres, 1000 * sizes])
    distance, mirror = finder.query(np.c_[centres * [-1, 1, 1], 1000 * sizes])
    alone = distance > _SAME_PLACE
    mirror[alone] = np.flatnonzero(alone)
    prior = np.concatenate(all_priors) - np.log(len(all_priors))
    return Dictionary(centres, sizes, prior, mirror, alone, members)


def membership(
    grid: Grid, centres: NDArray[np.float64], radii: NDArray[np.float64]
) -> sparse.csc_matrix:
    """Return the (V, P) matrix that is 1 where a voxel of any grid lies in a spherical ROI.

    A spherical ROI that is smaller than the voxels takes the voxel nearest to its centre.
    """
    tree = cKDTree(grid.coordinates)
    columns = tree.query_ball_point(centres, radii) if len(centres) else []
    columns = [
        c if len(c) else [int(tree.query(centre)[1])]
        for c, centre in zip(columns, centres, strict=True)
    ]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in columns])]).astype(np.int64)
    rows = np.concatenate([*columns, []]).astype(np.int64)
    return sparse.csc_matrix(
        (np.ones(len(rows), np.float32), rows, starts), shape=(grid.n_voxels, len(centres))
    )
