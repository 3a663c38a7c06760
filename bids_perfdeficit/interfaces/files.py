"""Reading and writing of files that interfaces exchange in the working folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib


def load_image(path: str | Path) -> nib.Nifti1Image:
    """Open a NIfTI image; its voxels are read when they are asked for."""
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


def save_image(image: nib.Nifti1Image, folder: str | Path, name: str) -> str:
    """Write an image, in mm, into a folder and return its path."""
    path = Path(folder) / name
    image.header.set_xyzt_units('mm')
    nib.save(image, path)
    return str(path)


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def known_numbers(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Return numbers as JSON can hold them, in which there is no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
