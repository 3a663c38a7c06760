"""From a series of CT perfusion to a pair of scans and a reference.

`split_series` gives the two scans that the participant level starts from, and the Tmax that the
levels evaluate and calibrate compare with, all on the grid of the series. Must not know BIDS
names, Nipype, settings files or reports.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_perfdeficit import ct
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.perfusion.deconvolution import (
    Timing,
    compute_tmax,
    find_arterial_input,
    time_frames,
)
from bids_perfdeficit.pipeline.patient import conform_ncct

#: mm of the grid on which the brain is found.
_BRAIN_MM = 2.0
#: HU before contrast that are brain or vessels, and those that are tissue.
_SOFT, _TISSUE = (-20.0, 130.0), (10.0, 70.0)
#: Standard deviation in mm of the smoothing before deconvolution. With 3 mm noise of white matter
#: made four times the volume above 6 s in a digital patient, with 5 mm 1.7 times.
_SMOOTH_MM = 5.0
#: HU by which tissue must enhance for its Tmax to be known.
_LEAST_HU = 1.0
#: Frames about the arterial peak whose mean is the CTA.
_ABOUT_PEAK = 1
#: mm of movement beyond which a series is doubtful: frames are long, and contrast blurs with them.
_MUCH_MM = 3.0


@dataclass(frozen=True)
class SplitSeries:
    """What a series of CT perfusion gives; images on its grid.

    Parameters
    ----------
    ncct, cta : Nifti1Image
        HU, float32: the mean before contrast, and the arterial peak or the maximum over time.
    tmax : Nifti1Image
        s, float32; 0 where it is not known.
    arterial : ndarray, (T,)
        Arterial input, HU.
    timing : Timing
        Which frames were used.
    moved : ndarray, (T,)
        mm by which each frame was brought back; NaN where too few edges were found.
    notes : tuple of str
        What a reader must know, a sentence each.
    """

    ncct: nib.Nifti1Image
    cta: nib.Nifti1Image
    tmax: nib.Nifti1Image
    arterial: np.ndarray
    timing: Timing
    moved: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def largest_movement(self) -> float:
        """The largest of `moved`, mm; 0 where none is known."""
        return _largest(self.moved)


def _largest(moved: np.ndarray) -> float:
    return float(np.nanmax(moved)) if np.isfinite(moved).any() else 0.0


def split_series(
    path: Path,
    times: Sequence[float],
    *,
    angiogram: Literal['peak', 'maximum'] = 'peak',
    motion: bool = True,
) -> SplitSeries:
    """Make an NCCT, a CTA and a map of Tmax from a series of CT perfusion.

    Parameters
    ----------
    path : Path
        NIfTI file, (X, Y, Z, T), HU.
    times : sequence of float
        s of each frame.
    angiogram : {'peak', 'maximum'}
        The mean of the frames about the arterial peak, or the maximum over time (temporal
        maximum-intensity projection), which fills vessels that fill late.
    motion : bool
        Whether frames are aligned with the first ones.

    Returns
    -------
    SplitSeries

    Raises
    ------
    InputError
        When it cannot be read, its frames and times do not agree, no brain is found, or contrast
        is not there, too early or cut off.
    """
    series = ct.read_series(path)
    seconds = np.asarray(times, float)
    if len(seconds) != series.values.shape[3] or (np.diff(seconds) <= 0).any():
        raise InputError(
            f'has {series.values.shape[3]} frames and {len(seconds)} times that must ascend',
            fix='correct VolumeTiming in its sidecar: the s of each frame',
            path=path,
        )
    brain = _find_brain(series, path)
    if motion:
        series = ct.align_frames(series, series.image(brain))
    values = series.values
    first = values[..., : max(1, len(seconds) // 10)].mean(-1)
    # Beside bone, movement that is left looks like contrast.
    bone = ndimage.binary_dilation(first >= _SOFT[1])
    vessels = ndimage.binary_dilation(brain) & (first > _SOFT[0]) & ~bone
    try:
        arterial = find_arterial_input(values[vessels].T.astype(float), seconds)
        timing = time_frames(arterial)
    except ValueError as error:
        raise InputError(
            str(error), fix='give the whole series, from before contrast on', path=path
        ) from None
    ncct = values[..., list(timing.before)].mean(-1)
    if angiogram == 'peak':
        low, high = max(timing.peak - _ABOUT_PEAK, 0), timing.peak + _ABOUT_PEAK + 1
        cta = values[..., low:high].mean(-1)
    else:
        cta = values.max(-1)
    tmax = _deconvolve(series, ncct, brain, arterial - arterial[list(timing.before)].mean(),
                       seconds)  # fmt: skip
    notes = []
    if (most := _largest(series.moved)) > _MUCH_MM:
        notes.append(f'the head moved by up to {most:.1f} mm during the series')
    if len(timing.before) < 3:
        notes.append(
            f'only {len(timing.before)} frames lie before contrast, so that the NCCT is noisy'
        )
    return SplitSeries(
        series.image(ncct), series.image(cta), series.image(tmax), arterial, timing,
        series.moved, tuple(notes),
    )  # fmt: skip


def _find_brain(series: ct.Series, path: Path) -> np.ndarray:
    """Return a brain mask on the grid of a series."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'first.nii.gz')
        nib.save(series.image(ct.first_frames(series)), file)
        try:
            conformed = conform_ncct(file, spacing=_BRAIN_MM)
            brain = ct.extract_brain(conformed.image, slice_mm=conformed.slice_mm).mask
        except InputError as error:
            raise InputError(error.reason, fix=error.fix, path=path) from None
    grid = series.image(np.zeros(series.values.shape[:3]))
    (found,) = ct.sample([brain], ct.all_points(grid), order=0)
    return np.asarray(found.reshape(grid.shape) > 0)


def _deconvolve(
    series: ct.Series,
    plain: np.ndarray,
    brain: np.ndarray,
    arterial: np.ndarray,
    times: np.ndarray,
) -> np.ndarray:
    """Return Tmax in the tissue of the brain, 0 elsewhere."""
    tissue = brain & (plain > _TISSUE[0]) & (plain < _TISSUE[1])
    sizes = nib.affines.voxel_sizes(series.affine)
    sigma = [_SMOOTH_MM / h for h in sizes]
    # A normalised convolution, so that vessels and bone do not bleed into tissue.
    rise = series.values - plain[..., None]
    soft = tissue & (rise.max(-1) < 0.3 * arterial.max())
    share = np.maximum(ndimage.gaussian_filter(soft.astype(np.float32), sigma), 1e-3)
    curves = np.empty((len(times), int(tissue.sum())))
    for k in range(len(times)):
        level = ndimage.gaussian_filter(np.where(soft, rise[..., k], 0), sigma) / share
        curves[k] = level[tissue]
    known = curves.max(0) > _LEAST_HU
    out = np.zeros(brain.shape, np.float32)
    found = np.zeros(len(known), np.float32)
    if known.any():
        # At 0 tissue would count as not known.
        found[known] = np.maximum(compute_tmax(curves[:, known], arterial, times), 0.01)
    out[tissue] = found
    return out
