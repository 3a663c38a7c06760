"""Read a head CT in any state into Hounsfield units.

Corrects what can be corrected and records it; what cannot is one error for the user. The voxels
stay where the scanner, or the converter, put them: nothing is resampled here. Must not know what
is done with the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_perfdeficit.ct.hounsfield import Scale, blocks, measure_scale
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.nifti import read_nifti

#: HU of air, and of any padding below it.
AIR_HU = -1024.0
#: HU above which there is only metal; beyond it interpolation would draw streaks.
METAL_HU = 3071.0
#: Fewest voxels along an axis that make a head.
MIN_VOXELS = 8
#: mm; voxel sizes outside it are metres, micrometres or nonsense.
VOXEL_MM = (0.1, 15.0)
#: mm; a head is no smaller and no larger than this along any axis, table and padding included.
FIELD_MM = (60.0, 2200.0)
#: mm; CT perfusion of older scanners covers two slices of 10 mm, and no map is thinner than one.
SLAB_MM = 4.0
#: GB (10^9 bytes) that reading one scan may take: 600 million voxels of int16, twice the largest
#: head and neck CTA (512 x 512 x 1000).
MAX_GB = 8.0
#: HU between which a constant block is unscanned: a defaced face, a mask, a padded border.
#: Below lie air and padding, above saturated metal.
BLOCK_HU = (-850.0, 2500.0)
#: Share of the middle of an image that is constant when the image has no noise.
NOISELESS_SHARE = 0.2
#: mL of one constant value that are taken as unscanned; noise leaves no mL of head constant.
MIN_BLOCK_ML = 4.0
#: Cosine between an axis of sform and the same axis of qform, below which they name other sides.
SAME_AXIS = 0.7
#: Degrees of shear that a qform cannot hold: a gantry tilt stands in the sform alone.
SHEAR_DEGREES = 0.5
#: mm above and below a slice with which its change to the next slice is compared.
JUMP_MM = 20.0


@dataclass(frozen=True)
class Geometry:
    """Where the position of the voxels was read from.

    Parameters
    ----------
    source : str
        ``'sform'`` or ``'qform'``.
    code : int
        NIfTI code of that transform: 1 scanner, 2 aligned, 3 Talairach, 4 MNI.
    difference : float
        Largest distance between the positions by sform and by qform, in voxels (of the largest
        voxel size); 0 when only one of them is set. A gantry tilt, which no qform can hold, does
        not count.
    """

    source: str
    code: int
    difference: float = 0.0


@dataclass(frozen=True)
class CTVolume:
    """A CT as it lies in its file, in Hounsfield units.

    Parameters
    ----------
    image : Nifti1Image
        float32 HU, (X, Y, Z), with the affine of the file; it may be oblique or sheared.
    notes : tuple of str
        What was corrected, a sentence each.
    geometry : Geometry, optional
        Where the affine was read from; None for an image that was not read from a file.
    scale : Scale, optional
        On which scale the values were stored; None when the peaks were not found.
    slice_jump : float
        Largest change between neighbouring slices over the largest of those near it (no unit).
        Where slices are missing it is high; 1 and below are usual.
    slices_repeated : int
        Slices that hold the same values as the one before.
    unscanned_ml : float
        mL of constant blocks that were taken as unscanned.
    """

    image: nib.Nifti1Image
    notes: tuple[str, ...] = ()
    geometry: Geometry | None = None
    scale: Scale | None = None
    slice_jump: float = 0.0
    slices_repeated: int = 0
    unscanned_ml: float = 0.0

    def provenance(self) -> dict[str, Any]:
        """Return what was read and corrected, with the keys of a sidecar."""
        found: dict[str, Any] = {
            'SliceJump': round(self.slice_jump, 3),
            'SlicesRepeated': self.slices_repeated,
            'UnscannedBlocks': round(self.unscanned_ml, 1),
        }
        if self.geometry is not None:
            found |= {
                'AffineSource': self.geometry.source,
                'AffineCode': self.geometry.code,
                'AffineDifference': round(self.geometry.difference, 3),
            }
        if self.scale is not None:
            found |= {
                'HUSlope': self.scale.slope,
                'HUShift': self.scale.shift,
                'HUScaleKnown': self.scale.known,
            }
        return found


def read_ct(path: str | Path, *, role: str = 'NCCT', max_gb: float = MAX_GB) -> CTVolume:
    """Read a head CT.

    Parameters
    ----------
    path : path
        NIfTI file.
    role : str
        What it should be, for the messages.
    max_gb : float
        GB of memory that reading may take.

    Returns
    -------
    CTVolume
        In HU, air at -1024 or above.

    Raises
    ------
    InputError
        When the file is damaged, is not one volume, does not say which side is left, or is not a
        head CT in Hounsfield units or on a scale that can be corrected.
    """
    path = Path(path)
    image, values = read_nifti(path, memory=max_gb * 1e9)
    values = _one_volume(np.array(values, dtype=np.float32), path)
    affine, geometry, notes = find_sides(image, values.shape, path, role)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    finite = np.isfinite(values)
    without, infinite = ~finite, values == np.inf
    without &= ~infinite
    if not finite.all():
        some = values[finite] if finite.any() else np.zeros(1)
        values = np.nan_to_num(values, nan=some.min(), posinf=some.max(), neginf=some.min())
        notes.append(f'{role}: voxels without a number were taken as air')
    if values.min() == values.max():
        raise InputError(
            f'every voxel of the {role} is {values.flat[0]:g}',
            fix='export the scan again',
            path=path,
        )
    if values.min() >= 0 and values.max() > 2**16 - 2**12:
        values[values > 2**15 - 1] -= 2**16
        notes.append(f'{role}: values were signed numbers read as unsigned, which was undone')
    mean, flat = blocks(values, sizes)
    scale = measure_scale(mean, flat)
    if scale is not None and not scale.is_hounsfield:
        values = _rescale(values, scale, path)
        mean, flat = blocks(values, sizes)
        remark = (
            '' if scale.known else '; no converter is known to do this, so look at the densities'
        )
        notes.append(f'{role}: values were {scale.describe()} HU and were shifted back{remark}')
    values[without], values[infinite] = AIR_HU, METAL_HU
    if values.min() < AIR_HU:
        notes.append(f'{role}: padding of {values.min():g} was set to {AIR_HU:g} HU')
    np.clip(values, AIR_HU, METAL_HU, out=values)
    unscanned = _blank_blocks(values, mean, flat, float(sizes.prod()))
    if unscanned:
        notes.append(
            f'{role}: {unscanned:.0f} mL of constant values were taken as not scanned, such as a '
            'face that was removed'
        )
    _check_hounsfield(values, path, role)
    jump, repeated = _compare_slices(values, affine)
    if repeated:
        notes.append(f'{role}: {repeated} slices repeat the one before')
    if jump > 1.4:
        notes.append(f'{role}: two neighbouring slices differ as if slices between were missing')
    return CTVolume(
        nib.Nifti1Image(values, affine), tuple(notes), geometry, scale, jump, repeated, unscanned
    )


def read_map(
    path: str | Path, *, role: str = 'reference', max_gb: float = MAX_GB
) -> nib.Nifti1Image:
    """Read one volume that is not a CT, such as a map of CT perfusion, with its place in the head.

    Parameters
    ----------
    path : path
        NIfTI file.
    role : str
        What it should be, for the messages.
    max_gb : float
        GB of memory that reading may take.

    Returns
    -------
    Nifti1Image
        float32, (X, Y, Z), as stored.

    Raises
    ------
    InputError
        When the file is damaged, is not one volume, or does not say which side is left.
    """
    path = Path(path)
    image, values = read_nifti(path, memory=max_gb * 1e9)
    values = _one_volume(np.asarray(values, dtype=np.float32), path, least=1)
    affine, _, _ = find_sides(image, values.shape, path, role, least_mm=SLAB_MM)
    return nib.Nifti1Image(values, affine)


def _one_volume(values: np.ndarray, path: Path, *, least: int = MIN_VOXELS) -> np.ndarray:
    """Drop trailing axes of one voxel."""
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        what = f'{values.shape[3]} volumes' if values.ndim > 3 else f'{values.ndim} dimensions'
        raise InputError(
            f'has {what} instead of one volume, like a CT perfusion or multi-phase series',
            fix='give a single volume',
            path=path,
        )
    if min(values.shape) < least:
        raise InputError(
            f'has only {" x ".join(map(str, values.shape))} voxels; it looks like a scout',
            fix='give the axial series',
            path=path,
        )
    return values


def find_sides(
    image: nib.Nifti1Image,
    shape: tuple[int, ...],
    path: Path,
    role: str,
    *,
    least_mm: float = FIELD_MM[0] / 2,
) -> tuple[np.ndarray, Geometry, list[str]]:
    """Return the affine, where it was read from, and notes."""
    header: Any = image.header
    codes = int(header['sform_code']), int(header['qform_code'])
    if codes == (0, 0):
        raise InputError(
            f'the {role} does not say which side is left (the codes of sform and qform are 0)',
            fix='convert the scan again from DICOM with dcm2niix; or, where the orientation is '
            'known for certain, set the affine and a code above 0 (nibabel: image.set_sform, '
            'FSL: fslorient -setsform and -setsformcode 1)',
            path=path,
        )
    sform = np.asarray(header.get_sform(), dtype=float)
    try:
        qform = np.asarray(header.get_qform(), dtype=float)
    except (ValueError, nib.spatialimages.HeaderDataError):  # a quaternion longer than 1
        qform = np.full((4, 4), np.nan)
    notes: list[str] = []
    if codes[0] and (codes[1] == 0 or _is_usable(sform)):
        affine, geometry = sform, Geometry('sform', codes[0])
    else:
        affine, geometry = qform, Geometry('qform', codes[1])
        if codes[0]:
            notes.append(f'{role}: the sform cannot be used; the qform was used')
    affine = _check_affine(affine, shape, path, least_mm)
    if geometry.source == 'qform' or not codes[1] or not _is_usable(qform):
        return affine, geometry, notes
    axes, other = (m[:3, :3] / np.linalg.norm(m[:3, :3], axis=0) for m in (sform, qform))
    cosines = (axes * other).sum(0)
    if cosines.min() < SAME_AXIS:
        one, two = (''.join(nib.aff2axcodes(m)) for m in (sform, qform))
        raise InputError(
            f'sform and qform of the {role} name different sides (the voxel axes point to {one} '
            f'by the sform and to {two} by the qform)',
            fix='convert the scan again from DICOM with dcm2niix; or, where one of the two is '
            'known to be right, set the code of the other to 0',
            path=path,
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    shears = np.abs(axes.T @ axes - np.eye(3)).max() > np.sin(np.radians(SHEAR_DEGREES))

    def distance(one: np.ndarray, points: np.ndarray) -> float:
        off = (one - qform)[:3, :3] @ points + (one - qform)[:3, 3:]
        return float(np.linalg.norm(off, axis=0).max())

    most = distance(sform, corners)
    if shears:
        # No qform holds a shear. Converters write that of the slices (dcm2niix), in which their
        # stack alone differs, or that of the closest rotation (nibabel).
        slices = corners * [[1], [1], [0]]
        closest = sform.copy()
        left, _, right = np.linalg.svd(axes)
        closest[:3, :3] = left @ right * np.linalg.norm(sform[:3, :3], axis=0)
        most = min(distance(sform, slices), distance(closest, corners))
    difference = most / float(np.linalg.norm(affine[:3, :3], axis=0).max())
    if most > 0.01:
        notes.append(f'{role}: sform and qform differ by up to {most:.2g} mm; the sform was used')
    return affine, Geometry('sform', codes[0], difference), notes


def _is_usable(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9)


def _rescale(values: np.ndarray, scale: Scale, path: Path) -> np.ndarray:
    """Return Hounsfield units, or refuse a slope that no converter is known to leave."""
    if not scale.slope_known:
        raise InputError(
            f'does not look like a head CT in Hounsfield units: if its peaks at {scale.air:.4g} '
            f'and {scale.tissue:.4g} are air and soft tissue, values were {scale.describe()}',
            fix='give the scan as the scanner reconstructed it, with the skull, and with the '
            'slope and intercept of its DICOM files',
            path=path,
        )
    values -= np.float32(scale.shift)
    values /= np.float32(scale.slope)
    return values


def _blank_blocks(
    values: np.ndarray, mean: np.ndarray, flat: np.ndarray, voxel_mm3: float
) -> float:
    """Set constant blocks to air; return their mL.

    Noise never leaves a part of the head constant; tools that remove faces and masks do. Where
    the middle of the head is constant too, the image has no noise, and nothing can be concluded.
    """
    low, high = BLOCK_HU
    constant = mean[flat & (mean > low) & (mean < high)]
    box = tuple(slice(n // 4, -(n // 4) or None) for n in mean.shape)
    if not len(constant) or np.mean(flat[box] & (mean[box] > low)) > NOISELESS_SHARE:
        return 0.0
    found, counts = np.unique(constant, return_counts=True)
    block_ml = values.size * voxel_mm3 / 1000 / mean.size
    total = 0.0
    for value in found[counts * block_ml >= MIN_BLOCK_ML]:
        # All voxels of this value, but for the few that noise gives it as well.
        same = values == value
        alike = same[1:-1] & same[:-2] & same[2:]
        same[1:-1] &= same[:-2] | same[2:]
        if alike.any():
            values[same] = AIR_HU
            total += float(same.sum()) * voxel_mm3 / 1000
    return total


def _compare_slices(values: np.ndarray, affine: np.ndarray) -> tuple[float, int]:
    """Return the largest jump between slices, and how many repeat the one before."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axis = int(np.abs(axes[2]).argmax())
    stack = np.moveaxis(values, axis, 2)
    sizes = np.delete(np.linalg.norm(affine[:3, :3], axis=0), axis)
    across = np.maximum(1, np.rint(4.0 / sizes)).astype(int)
    x, y = (n // s for n, s in zip(stack.shape[:2], across, strict=True))
    stack = stack[: x * across[0], : y * across[1]]
    mean = stack.reshape(x, across[0], y, across[1], -1).mean((1, 3), dtype=np.float32)
    np.clip(mean, AIR_HU, 1000, out=mean)
    change = np.abs(np.diff(mean, axis=2)).mean((0, 1))
    near = max(2, round(JUMP_MM / float(np.linalg.norm(affine[:3, axis]))))
    # The ends, where shoulders or the vertex come and go, have neighbours on one side only.
    jumps = [
        change[k] / max(change[k - near : k].max(), change[k + 1 : k + 1 + near].max(), 1e-3)
        for k in range(near, len(change) - near)
    ]
    head = (mean > -200).mean((0, 1)) > 0.05
    repeated = int(np.sum((change == 0) & head[1:]))
    return float(max(jumps, default=0.0)), repeated


def _check_affine(
    affine: np.ndarray, shape: tuple[int, ...], path: Path, least_mm: float
) -> np.ndarray:
    fix = 'convert the scan again from DICOM with dcm2niix'
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError('has no usable affine', fix=fix, path=path)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    extent = sizes * shape
    if sizes.min() < VOXEL_MM[0] or sizes.max() > VOXEL_MM[1]:
        raise InputError(
            f'has voxels of {" x ".join(f"{s:.3g}" for s in sizes)} mm', fix=fix, path=path
        )
    if extent.min() < least_mm or extent.max() > FIELD_MM[1]:
        raise InputError(
            f'spans {" x ".join(f"{e:.0f}" for e in extent)} mm, which is not the size of a head',
            fix=fix,
            path=path,
        )
    return affine


def _check_hounsfield(values: np.ndarray, path: Path, role: str) -> None:
    """Distinguish MRI and other scales from CT, where air, soft tissue and bone have their HU."""
    sample = values[::2, ::2, ::2]
    air = np.mean(sample < -700)
    tissue = np.mean((sample > -20) & (sample < 100))
    bone = np.mean((sample > 300) & (sample < 2500))
    if air < 0.01 or tissue < 0.02 or bone < 0.002:
        raise InputError(
            f'does not look like a head CT in Hounsfield units (of its voxels {air:.0%} are air, '
            f'{tissue:.0%} soft tissue, {bone:.1%} bone)',
            fix=f'give the {role} as the scanner reconstructed it, with the skull',
            path=path,
        )
