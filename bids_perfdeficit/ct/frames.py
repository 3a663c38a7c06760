"""Read a series of CT perfusion, and take the movement of the head out of it.

Each frame is aligned rigidly with the mean of the first ones on the edges of the skull, which
contrast does not change. Must not know what is done with the series.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_perfdeficit.ct.conforming import resample
from bids_perfdeficit.ct.reading import AIR_HU, MAX_GB, METAL_HU, MIN_VOXELS, SLAB_MM, find_sides
from bids_perfdeficit.ct.refinement import refine_rigid
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.nifti import read_nifti

#: Frames that a deconvolution needs at least.
FEWEST_FRAMES = 10
#: Frames whose mean is the place to which all others are brought.
FIRST = 3
#: mm by which a frame is off before it is resampled: resampling blurs.
STILL_MM = 0.1


@dataclass(frozen=True)
class Series:
    """A series without movement.

    Parameters
    ----------
    values : ndarray, (X, Y, Z, T), float32
        HU.
    affine : ndarray, (4, 4)
        Voxel to RAS mm.
    moved : ndarray, (T,)
        mm by which each frame was brought back; NaN where too few edges were found.
    """

    values: np.ndarray
    affine: np.ndarray
    moved: np.ndarray

    def image(self, values: np.ndarray) -> nib.Nifti1Image:
        """Return values (X, Y, Z) on the grid of the series."""
        return nib.Nifti1Image(np.asarray(values, np.float32), self.affine)


def read_series(path: Path, *, max_gb: float = MAX_GB) -> Series:
    """Read a series of CT perfusion.

    Parameters
    ----------
    path : Path
        NIfTI file with four dimensions, HU.
    max_gb : float
        GB of memory that reading may take.

    Returns
    -------
    Series
        As stored, within the range of CT; nothing is moved.

    Raises
    ------
    InputError
        When the file is damaged, has too few frames or slices, or does not say which side is
        left.
    """
    image, values = read_nifti(path, memory=max_gb * 1e9)
    if values.ndim != 4 or values.shape[3] < FEWEST_FRAMES:
        frames = values.shape[3] if values.ndim == 4 else 1
        raise InputError(
            f'has {frames} frames, and CT perfusion at least {FEWEST_FRAMES}',
            fix='give the series with all its frames in the fourth dimension',
            path=path,
        )
    if min(values.shape[:2]) < MIN_VOXELS or values.shape[2] < 2:
        raise InputError(
            f'has only {" x ".join(map(str, values.shape[:3]))} voxels',
            fix='give the axial series',
            path=path,
        )
    affine, _, _ = find_sides(image, values.shape[:3], path, 'CT perfusion', least_mm=SLAB_MM)
    values = np.clip(np.nan_to_num(np.asarray(values, np.float32)), AIR_HU, METAL_HU)
    return Series(values, affine, np.zeros(values.shape[3]))


def first_frames(series: Series) -> np.ndarray:
    """Return the mean of the first frames, (X, Y, Z), HU."""
    return np.asarray(series.values[..., :FIRST].mean(-1))


def align_frames(series: Series, brain: nib.Nifti1Image) -> Series:
    """Bring each frame to the place of the first ones.

    Parameters
    ----------
    series : Series
        As read.
    brain : Nifti1Image
        Brain mask on its grid.

    Returns
    -------
    Series
        On the same grid.
    """
    fixed = series.image(first_frames(series))
    out = np.empty_like(series.values)
    moved = np.zeros(series.values.shape[3])
    for k in range(len(moved)):
        frame = series.image(series.values[..., k])
        found = refine_rigid(fixed, frame, brain, np.eye(4))
        moved[k] = found.moved if np.isfinite(found.residual) else np.nan
        still = not moved[k] > STILL_MM
        out[..., k] = (
            series.values[..., k]
            if still
            else resample(frame, fixed.shape, found.matrix @ fixed.affine)
        )
    return Series(out, series.affine, moved)
