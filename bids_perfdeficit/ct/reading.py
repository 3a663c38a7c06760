"""Read a head CT in whatever state it comes, into Hounsfield units.

Repairs what can be repaired and says so; what cannot is told in one sentence. Must not resample:
the voxels stay where the scanner, or the converter, put them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_perfdeficit.errors import InputError

#: HU of air, and of whatever padding lies below it.
AIR_HU = -1024.0
#: HU above which there is only metal; beyond it interpolation would draw streaks.
METAL_HU = 3071.0
#: Fewest voxels along an axis that make a head.
MIN_VOXELS = 8
#: mm; voxel sizes outside it are metres, micrometres or nonsense.
VOXEL_MM = (0.1, 15.0)
#: mm; a head is no smaller and no larger than this along any axis, table and padding included.
FIELD_MM = (60.0, 2200.0)
#: Unsigned CT is shifted by this much, so that air is at zero.
OFFSET_HU = 1024.0


@dataclass(frozen=True)
class CTVolume:
    """A CT as it lies in its file, in Hounsfield units.

    Parameters
    ----------
    image : Nifti1Image
        float32 HU, (X, Y, Z), with the affine of the file; it may be oblique or sheared.
    notes : tuple of str
        What was repaired, a sentence each.
    """

    image: nib.Nifti1Image
    notes: tuple[str, ...] = ()


def read_ct(path: str | Path, *, role: str = 'NCCT') -> CTVolume:
    """Read a head CT.

    Parameters
    ----------
    path : path
        NIfTI file.
    role : str
        What it should be, for the messages.

    Returns
    -------
    CTVolume
        In HU, air at -1024.

    Raises
    ------
    InputError
        When the file is damaged, no volume, or not in Hounsfield units.
    """
    path = Path(path)
    values, affine = _load(path)
    notes: list[str] = []
    if not np.isfinite(values).all():
        values = np.nan_to_num(values, nan=AIR_HU, posinf=METAL_HU, neginf=AIR_HU)
        notes.append(f'{role}: voxels without a number were taken as air')
    if values.min() == values.max():
        raise InputError(
            f'every voxel of the {role} is {values.flat[0]:g}',
            fix='export the scan again',
            path=path,
        )
    if _is_shifted(values):
        values -= OFFSET_HU
        notes.append(f'{role}: values were shifted by +1024 and were shifted back')
    if values.min() < AIR_HU:
        notes.append(f'{role}: padding of {values.min():g} was set to {AIR_HU:g} HU')
    np.clip(values, AIR_HU, METAL_HU, out=values)
    _check_hounsfield(values, path, role)
    return CTVolume(nib.Nifti1Image(values, affine), tuple(notes))


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 values (X, Y, Z) and the affine."""
    again = 'copy or convert the file again'
    try:
        image: Any = nib.load(path)
        shape = image.shape
        kind = image.get_data_dtype()
    except FileNotFoundError:
        raise InputError('no such file', fix='check the path', path=path) from None
    except (OSError, EOFError, zlib.error, ValueError, nib.filebasedimages.ImageFileError) as e:
        raise InputError(f'cannot be read as NIfTI ({e})', fix=again, path=path) from e
    if kind.names is not None or kind.kind not in 'iuf':
        raise InputError(
            f'holds {kind} instead of numbers (colour or complex)',
            fix='give the original series, not a screenshot or reconstruction',
            path=path,
        )
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        what = f'{shape[3]} volumes' if len(shape) > 3 else f'{len(shape)} dimensions'
        raise InputError(
            f'has {what} instead of one volume, like a CT perfusion or multi-phase series',
            fix='give a single volume',
            path=path,
        )
    if min(shape) < MIN_VOXELS:
        raise InputError(
            f'has only {" x ".join(map(str, shape))} voxels; it looks like a scout',
            fix='give the axial series',
            path=path,
        )
    affine = _check_affine(np.asarray(image.affine, dtype=float), shape, path)
    try:
        values = np.array(np.asanyarray(image.dataobj), dtype=np.float32).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f'is truncated or damaged ({error})', fix=again, path=path) from error
    return values, affine


def _check_affine(affine: np.ndarray, shape: tuple[int, ...], path: Path) -> np.ndarray:
    fix = 'convert the scan again from DICOM with dcm2niix'
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError('has no usable affine', fix=fix, path=path)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    extent = sizes * shape
    if sizes.min() < VOXEL_MM[0] or sizes.max() > VOXEL_MM[1]:
        raise InputError(
            f'has voxels of {" x ".join(f"{s:.3g}" for s in sizes)} mm', fix=fix, path=path
        )
    if extent.min() < FIELD_MM[0] / 2 or extent.max() > FIELD_MM[1]:
        raise InputError(
            f'spans {" x ".join(f"{e:.0f}" for e in extent)} mm, which is no head',
            fix=fix,
            path=path,
        )
    return affine


def _is_shifted(values: np.ndarray) -> bool:
    """Tell whether air is at 0 and soft tissue near 1064, as in unsigned exports."""
    sample = values[::2, ::2, ::2]
    if np.percentile(sample, 1) < -50:
        return False
    tissue = np.mean((sample > 974) & (sample < 1154))
    # Between air (at 24, like soft tissue unshifted) and fat there is little in a head; MRI has.
    between = np.mean((sample > 350) & (sample < 850))
    return bool(tissue > 0.03 and tissue > between)


def _check_hounsfield(values: np.ndarray, path: Path, role: str) -> None:
    """Tell MRI and other scales from CT, where air, soft tissue and bone have their HU."""
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
