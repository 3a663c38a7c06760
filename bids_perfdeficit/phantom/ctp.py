"""A series of CT perfusion of a digital patient: the same flow, followed by a second injection.

Each frame is the patient's NCCT, plus the contrast that the patient's own arteries, veins and
tissue hold at that moment, at the true delays. What software for CT perfusion makes of it is not
known here: tissue is filled by the bolus through its own transit, and nothing is convolved with a
measured input. Must not know files.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_perfdeficit.phantom.anatomy import load_head
from bids_perfdeficit.phantom.bolus import Bolus
from bids_perfdeficit.phantom.flow import feed, tissue_state
from bids_perfdeficit.phantom.patient import (
    Patient,
    artery_tubes,
    fill,
    scan_corners,
    to_image,
    vein_tubes,
)
from bids_perfdeficit.phantom.render import Tubes, draw_tubes
from bids_perfdeficit.phantom.scanner import make_grid, sample
from bids_perfdeficit.phantom.warp import rigid

Floats = NDArray[np.floating]

#: s after the injection at which contrast reaches the open carotid; share of the CTA's peak that
#: the smaller injection reaches, and its duration, s (40 mL at 5 mL/s).
LAG_S, SHARE, WIDTH_S = 8.0, 0.7, 8.0
#: Voxels over which noise has a grain, in the plane.
_GRAIN = 0.7


@dataclass(frozen=True)
class CtpSeries:
    """A series of CT perfusion.

    Attributes
    ----------
    image : nibabel image
        int16 HU, (X, Y, Z, T), in the NCCT's mm.
    times : (T,) float array
        s of each frame after the injection.
    motion : (T, 4, 4) float array
        Rigid: mm of the first frame to mm of each.
    """

    image: nib.Nifti1Image
    times: NDArray[np.float64]
    motion: NDArray[np.float64]


def make_ctp(
    patient: Patient,
    *,
    spacing: float = 2.0,
    thickness: float = 5.0,
    interval: float = 1.5,
    duration: float = 60.0,
    noise: float = 12.0,
    motion_mm: float = 0.5,
) -> CtpSeries:
    """Scan a digital patient by CT perfusion.

    Parameters
    ----------
    patient : Patient
        From `make_patient`.
    spacing, thickness : float
        Of the voxels, mm: in the plane, and of the slices. The whole head is covered.
    interval, duration : float
        Time between frames, and of the series, s.
    noise : float
        Standard deviation in 1 mm of brain, HU; in a voxel it falls with the root of its volume.
    motion_mm : float
        Standard deviation of the head's shift, mm, and of its turn, degrees, at the end of the
        series: it drifts.

    Returns
    -------
    CtpSeries
    """
    truth, seed = patient.truth, patient.seed
    rng = np.random.default_rng([seed, 606])
    coarse = load_head(2.0)
    where = coarse.affine[:3, 3] + np.argwhere(coarse.brain) * coarse.affine[0, 0]
    state = tissue_state(
        truth.circulation, feed(truth.tree, where), coarse.grey[coarse.brain],
        coarse.white[coarse.brain],
    )  # fmt: skip
    grid = make_grid(scan_corners(truth.warp, lowest=-82.0), spacing, thickness)

    def volume(values: Floats) -> NDArray[np.float32]:
        out = np.zeros(coarse.brain.shape, np.float32)
        out[coarse.brain] = values
        return fill(out, coarse.brain)

    inside, arrival, transit, blood = sample(
        grid, truth.warp.inverse, coarse,
        [coarse.brain.astype(np.float32), *map(volume, (state.arrival, state.mtt, state.cbv))],
        [0.0, 0.0, 4.0, 0.0],
    )  # fmt: skip
    brain = inside > 0.5
    base = _resample(patient.ncct, grid.affine, grid.shape)
    scar = _resample(truth.old_infarct, grid.affine, grid.shape) > 0.5

    times: NDArray[np.float64] = np.arange(0.0, duration, interval, dtype=np.float64)
    peak = SHARE * float(patient.scan['peak'])  # type: ignore[arg-type]
    first = Bolus(peak=peak, phase=0.0, width=WIDTH_S)

    def at(time: float) -> Bolus:
        return Bolus(peak=peak, phase=time - LAG_S - first.time_to_peak, width=WIDTH_S)

    def tubes(time: float) -> list[Tubes]:
        bolus = at(time)
        return [
            artery_tubes(truth.tree, truth.circulation, truth.points, bolus)[1],
            vein_tubes(coarse, seed, truth.warp, where, state, bolus)[1],
        ]

    plain = tubes(-100.0)
    places = []
    for one in plain:
        # Which tube each voxel lies in does not change with time.
        numbered = Tubes(one.start, one.end, one.radius, np.arange(len(one.radius), dtype=float))
        share, number = draw_tubes(grid.shape, grid.affine, numbered)
        places.append((share, number.astype(int)))

    sd = noise / np.sqrt(spacing**2 * thickness)
    drift = rng.standard_normal((2, 3)) * motion_mm
    corners = nib.affines.apply_affine(grid.affine, [[0, 0, 0], np.array(grid.shape) - 1])
    frames = np.empty((*grid.shape, len(times)), np.int16)
    motion = np.empty((len(times), 4, 4))
    for k, time in enumerate(map(float, times)):
        rise = np.zeros(grid.shape, np.float32)
        contrast = at(time).blood(arrival[brain], np.maximum(transit[brain], 0.05))
        # The same share of blood as in the CTA.
        rise[brain] = 0.55 * blood[brain] / 100 * 1.04 * contrast
        rise[scar] *= 0.2
        for (share, number), now, before in zip(places, tubes(time), plain, strict=True):
            level = (now.value - before.value)[number]
            rise += np.where(share > 0, share * (level - rise), 0)
        frame = base + rise
        part = k / max(len(times) - 1, 1)
        motion[k] = rigid(drift[0] * part, drift[1] * part, corners.mean(0))
        if motion_mm and k:
            frame = _move(frame, grid.affine, motion[k])
        grain = ndimage.gaussian_filter(
            rng.standard_normal(grid.shape, dtype=np.float32), (_GRAIN, _GRAIN, 0)
        )
        frames[..., k] = np.rint(np.clip(frame + sd * grain / grain.std(), -1024, 3071))
    image = to_image(frames, grid)
    image.header.set_zooms((*image.header.get_zooms()[:3], interval))
    return CtpSeries(image, times, motion)


def _resample(image: nib.Nifti1Image, affine: Floats, shape: tuple[int, ...]) -> Floats:
    """Average an image over the voxels of another grid, in the same mm."""
    there = np.linalg.inv(image.affine) @ affine
    ratio = np.linalg.norm(there[:3, :3], axis=0)
    values = np.asarray(image.dataobj, np.float32)
    values = ndimage.gaussian_filter(values, np.maximum(ratio - 1, 0) * 0.4)
    return np.asarray(
        ndimage.affine_transform(
            values, there[:3, :3], there[:3, 3], output_shape=shape, order=1, mode='nearest'
        )
    )


def _move(frame: Floats, affine: Floats, motion: Floats) -> Floats:
    """Show a frame after the head has moved."""
    there = np.linalg.inv(affine) @ np.linalg.inv(motion) @ affine
    return np.asarray(
        ndimage.affine_transform(frame, there[:3, :3], there[:3, 3], order=1, mode='nearest')
    )
