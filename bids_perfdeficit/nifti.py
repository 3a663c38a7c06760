"""Open and read a NIfTI file whatever its state: an image, or one error for the user.

Every way in which a file can be broken ends in an `InputError` with the file, what is wrong and
what to do: not a regular file (a folder, a pipe, a device, a loop of links), no permission,
another format, a damaged or cut gzip stream, a wrong datatype code, a header that claims more
voxels than the file or the memory can hold. Nothing is opened that could block, and no memory is
taken for voxels that cannot be there. Must not know what an image shows, nor any name of BIDS.
"""

from __future__ import annotations

import gzip
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import psutil
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import DTypeLike, NDArray

from bids_perfdeficit.errors import InputError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

#: What nibabel, gzip and NumPy raise on files that are not what they should be. `InputError` is a
#: `ValueError`, and is re-raised as it is.
UNREADABLE = (
    OSError,  # includes gzip.BadGzipFile
    EOFError,
    ValueError,  # includes UnicodeDecodeError
    OverflowError,
    MemoryError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    HeaderDataError,
    ImageDataError,
    WrapStructError,
)
#: Bytes that one byte of a deflate stream can expand to at most (RFC 1951: 258 bytes for 2 bits).
_LARGEST_EXPANSION = 1032
#: Bytes that are read at once where nothing is kept of them.
_CHUNK = 1 << 20
#: First bytes of a gzip stream.
_GZIP_MAGIC = b'\x1f\x8b'

_AGAIN = 'copy or convert the file again'


def open_nifti(path: str | os.PathLike[str]) -> Nifti1Image:
    """Open a NIfTI file and check its header; the voxels stay on disk.

    Parameters
    ----------
    path : path
        ``.nii`` or ``.nii.gz``, NIfTI-1 or NIfTI-2.

    Returns
    -------
    Nifti1Image
        With an array proxy; `read_nifti` reads the voxels.

    Raises
    ------
    InputError
        When it is not a regular file, cannot be read, is not NIfTI, or its header claims more
        voxels than the file can hold.
    """
    path = Path(path)
    size = _file_size(path)
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            kind = type(image).__name__
            raise InputError(f'is not NIfTI but {kind}', fix=_AGAIN, path=path)
        proxy: Any = image.dataobj
        dtype, offset = image.get_data_dtype(), int(proxy.offset)
        shape = tuple(int(n) for n in image.shape)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f'cannot be read as NIfTI ({_told(error)})', fix=_AGAIN, path=path) from (
            error
        )
    if min(shape, default=0) < 1:
        raise InputError(f'has no voxels (shape {_by(shape)})', fix=_AGAIN, path=path)
    claimed = offset + _count(shape) * dtype.itemsize
    if claimed > size * (_LARGEST_EXPANSION if _is_gzip(path) else 1):
        raise InputError(
            f'is truncated or damaged (its header claims {_by(shape)} voxels, which is more than '
            f'its {size} bytes can hold)',
            fix=_AGAIN,
            path=path,
        )
    return image


def read_nifti(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = np.float32,
    memory: float | None = None,
) -> tuple[Nifti1Image, NDArray]:
    """Read a NIfTI file whole.

    Parameters
    ----------
    path : path
        As for `open_nifti`.
    dtype : dtype
        Of the values, after slope and intercept of the header were applied.
    memory : float, optional
        Bytes that may be taken; the default is what the machine has free now.

    Returns
    -------
    image : Nifti1Image
        Header and affine, as from `open_nifti`.
    values : ndarray
        In the order and shape of the file.

    Raises
    ------
    InputError
        As `open_nifti`; when there are colours or complex numbers instead of values; when the
        voxels need more than `memory`; when the stream of voxels is cut or damaged, also if only
        its checksum shows it.
    """
    path = Path(path)
    image = open_nifti(path)
    kind = image.get_data_dtype()
    if kind.names is not None or kind.kind not in 'iuf':
        raise InputError(
            f'holds {kind} instead of numbers (colour or complex)',
            fix='give the original series, not a screenshot or reconstruction',
            path=path,
        )
    # as stored, scaled in double precision at worst, and as returned
    needed = _count(image.shape) * (kind.itemsize + 8 + np.dtype(dtype).itemsize)
    free = psutil.virtual_memory().available if memory is None else memory
    if needed > free:
        raise InputError(
            f'claims {_by(image.shape)} voxels, which need {needed / 1e9:.1f} GB of memory '
            f'({free / 1e9:.1f} are free)',
            fix='give more memory, or check the header of the file',
            path=path,
        )
    try:
        whole = image
        if _is_gzip(path):
            proxy: Any = image.dataobj
            blob = _decompress(path, int(proxy.offset) + _count(image.shape) * kind.itemsize)
            whole = type(image).from_bytes(blob)
        return image, np.asarray(whole.dataobj, dtype=dtype)
    except UNREADABLE as error:
        raise InputError(f'is truncated or damaged ({_told(error)})', fix=_AGAIN, path=path) from (
            error
        )


def find_affine(image: Nifti1Image, path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Return the affine of an image that says which side is left.

    Parameters
    ----------
    image : Nifti1Image
    path : path
        For the messages.

    Returns
    -------
    (4, 4) array
        Voxel index to RAS mm, of the sform where it is set, otherwise of the qform.

    Raises
    ------
    InputError
        When neither sform nor qform is set, they name different sides, or the affine is not one.
    """
    header: Any = image.header
    path = Path(path)
    fix = 'write it again from the original with a known orientation'
    coded = {'sform': int(header['sform_code']) > 0, 'qform': int(header['qform_code']) > 0}
    if not any(coded.values()):
        raise InputError(
            'does not say which side is left (the codes of sform and qform are 0)',
            fix=fix,
            path=path,
        )
    found: dict[str, NDArray[np.float64]] = {}
    for name in (name for name, known in coded.items() if known):
        try:
            affine = np.asarray(getattr(header, f'get_{name}')(), dtype=float)
            axes = nib.aff2axcodes(affine)
        except UNREADABLE as error:
            raise InputError(f'has an unusable {name} ({_told(error)})', fix=fix, path=path) from (
                error
            )
        if not np.isfinite(affine).all() or None in axes or not np.linalg.det(affine[:3, :3]):
            raise InputError(f'has an unusable {name}', fix=fix, path=path)
        found[name] = affine
    sides = {name: ''.join(map(str, nib.aff2axcodes(affine))) for name, affine in found.items()}
    if len(set(sides.values())) > 1:
        raise InputError(
            f'has a sform and a qform that name different sides ({sides["sform"]} and '
            f'{sides["qform"]})',
            fix=fix,
            path=path,
        )
    return next(iter(found.values()))


def _file_size(path: Path) -> int:
    """Return the size in bytes of a file that can be opened without blocking.

    Raises
    ------
    InputError
        When it is not a regular file or cannot be opened.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise InputError('is not a regular file', fix='give a NIfTI file', path=path)
        with path.open('rb'):
            pass
    except FileNotFoundError:
        raise InputError('does not exist', fix='check the path', path=path) from None
    except PermissionError:
        raise InputError('may not be read', fix='change its permissions', path=path) from None
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a loop of links; a name with a zero byte
        raise InputError(f'cannot be opened ({_told(error)})', fix=_AGAIN, path=path) from error
    return found.st_size


def _decompress(path: Path, count: int) -> bytes:
    """Return the first bytes of a gzip stream after it was read to its end.

    The checksum stands there: without it, damage that still decodes would pass as voxels.
    """
    with gzip.open(path) as stream:
        found = stream.read(count)
        while stream.read(_CHUNK):
            pass
    return found


def _is_gzip(path: Path) -> bool:
    with path.open('rb') as stream:
        return stream.read(2) == _GZIP_MAGIC


def _count(shape: tuple[int, ...]) -> int:
    """Return the number of voxels; in Python's integers, which do not overflow."""
    count = 1
    for n in shape:
        count *= int(n)
    return count


def _told(error: BaseException) -> str:
    """Return an exception's message on one line, or its name when it has none."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, gzip.BadGzipFile):
        return error.strerror
    return ' '.join(str(error).split()) or type(error).__name__


def _by(shape: tuple[int, ...]) -> str:
    return ' x '.join(map(str, shape))
