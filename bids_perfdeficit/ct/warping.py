"""Carry points and images through the transforms that registration leaves.

A transform is read into arrays once, evaluated at the points that are needed, and composed with
others before anything is interpolated: an image is read once however many transforms lie between.
The files are those of ITK (composite HDF5 with affine transforms and displacement fields, or the
text of one affine transform); values agree with ITK's own linear resampling to rounding. Must not
know how a transform was found, or what the images show.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from scipy import ndimage

#: RAS to the LPS of ITK.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Points that are worked on at once: their coordinates stay in the cache of a core, and the shares
#: are the same for any number of threads.
_SHARE = 1 << 14


@dataclass(frozen=True)
class Field:
    """A displacement field.

    Parameters
    ----------
    vectors : ndarray of float32, (3, X, Y, Z)
        Displacement in RAS mm.
    to_voxel : ndarray, (4, 4)
        RAS mm to voxels of the field.
    """

    vectors: np.ndarray
    to_voxel: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Move points (3, N), in RAS mm; those outside the field stay."""
        moves = _read(self.vectors, _transform(self.to_voxel, points), 1, 0.0)
        return np.stack([p + m for p, m in zip(points, moves, strict=True)])


@dataclass(frozen=True)
class Transform:
    """A transform between two spaces.

    As in ITK, a transform with which an image is resampled from space A to space B carries points
    of B to A.

    Parameters
    ----------
    parts : tuple of ndarray (4, 4) or Field
        In the order in which they are applied to a point in RAS mm.
    """

    parts: tuple[np.ndarray | Field, ...]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Carry points (3, N), in RAS mm."""
        for part in self.parts:
            points = part(points) if isinstance(part, Field) else _transform(part, points)
        return points


def read_transform(path: Path) -> Transform:
    """Read an ITK transform.

    Parameters
    ----------
    path : Path
        ``.h5``: composite of affine transforms and displacement fields. Otherwise the text of one
        affine transform, as `write_rigid` leaves it.

    Returns
    -------
    Transform
        Of points from the space of the output image to that of the input image.

    Raises
    ------
    ValueError
        When the file holds another kind of transform.
    """
    if path.suffix != '.h5':
        return Transform((read_rigid(path),))
    parts: list[np.ndarray | Field] = []
    with h5py.File(path) as file:
        group = file['TransformGroup']
        # ITK applies the transform that was added last first.
        for name in sorted(group, key=int, reverse=True):
            kind = group[name]['TransformType'][0].decode().partition('_')[0]
            if kind == 'CompositeTransform':
                continue
            values = group[name]['TransformParameters'][()].astype(float)
            fixed = group[name]['TransformFixedParameters'][()].astype(float)
            if kind == 'DisplacementFieldTransform':
                parts.append(_field(values, fixed))
            elif kind == 'AffineTransform':
                parts.append(matrix_of(values, fixed))
            else:
                raise ValueError(f'{path} has a {kind}, which is not supported')
    return Transform(tuple(parts))


def matrix_of(parameters: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Return the RAS matrix (4, 4) of the 12 parameters of ITK's affine and its centre."""
    values, centre = np.asarray(parameters, dtype=float), np.asarray(fixed, dtype=float)
    lps = np.eye(4)
    lps[:3, :3] = values[:9].reshape(3, 3)
    lps[:3, 3] = values[9:12] + centre[:3] - lps[:3, :3] @ centre[:3]
    return np.asarray(FLIP @ lps @ FLIP)


def _field(values: np.ndarray, fixed: np.ndarray) -> Field:
    """Return the field of ITK's parameters: size, origin, spacing and direction come first."""
    size = tuple(int(n) for n in fixed[:3])
    grid = np.eye(4)
    grid[:3, :3] = fixed[9:18].reshape(3, 3) * fixed[6:9]
    grid[:3, 3] = fixed[3:6]
    vectors = np.ascontiguousarray(np.moveaxis(values.reshape(*size[::-1], 3), -1, 0).T)
    vectors = np.moveaxis(vectors, -1, 0) * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    return Field(np.ascontiguousarray(vectors, dtype=np.float32), np.linalg.inv(FLIP @ grid))


def grid_points(affine: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return where voxels (3, N) of a grid lie, in RAS mm, (3, N)."""
    return _transform(affine, voxels)


def sample(
    images: Sequence[nib.Nifti1Image],
    points: np.ndarray,
    *,
    order: int = 1,
    fill: float = 0.0,
    threads: int = 1,
) -> list[np.ndarray]:
    """Read images on one grid at points.

    Parameters
    ----------
    images : sequence of Nifti1Image
        (X, Y, Z), on one grid.
    points : ndarray, (3, N)
        RAS mm.
    order : int
        0 nearest, 1 linear.
    fill : float
        Value outside the images: farther than half a voxel from their outermost voxels.
    threads : int
        Threads; the values do not depend on them.

    Returns
    -------
    list of ndarray of float32, (N,)
    """
    to_voxel = np.linalg.inv(images[0].affine)
    volumes = [np.asarray(image.dataobj, dtype=np.float32) for image in images]
    out = [np.empty(points.shape[1], np.float32) for _ in images]

    def read(start: int) -> None:
        share = slice(start, start + _SHARE)
        at = _transform(to_voxel, points[:, share])
        for values, found in zip(out, _read(volumes, at, order, fill), strict=True):
            values[share] = found

    _for_each(read, range(0, points.shape[1], _SHARE), threads)
    return out


def carry(transform: Transform, points: np.ndarray, *, threads: int = 1) -> np.ndarray:
    """Carry points (3, N) through a transform on several threads; the result is the same."""
    out = np.empty_like(points)

    def move(start: int) -> None:
        share = slice(start, start + _SHARE)
        out[:, share] = transform(points[:, share])

    _for_each(move, range(0, points.shape[1], _SHARE), threads)
    return out


def _for_each(function: Callable[[int], None], items: range, threads: int) -> None:
    if threads < 2 or len(items) < 2:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, items))


def apply_transform(
    image: nib.Nifti1Image,
    reference: nib.Nifti1Image,
    transform: Transform | Path,
    *,
    interpolation: str = 'linear',
    fill: float = 0.0,
    threads: int = 1,
) -> nib.Nifti1Image:
    """Resample an image through a transform.

    Parameters
    ----------
    image, reference : Nifti1Image
        What to resample, and the grid to have.
    transform : Transform or Path
        ITK transform from the image to the reference.
    interpolation : str
        ``'linear'`` or ``'nearest'``.
    fill : float
        Outside the image.
    threads : int
        Threads; the values do not depend on them.

    Returns
    -------
    Nifti1Image
        float32 for linear, else of the image's type.
    """
    if isinstance(transform, Path):
        transform = read_transform(transform)
    points = carry(transform, all_points(reference), threads=threads)
    order = {'linear': 1, 'nearest': 0}[interpolation]
    (moved,) = sample([image], points, order=order, fill=fill, threads=threads)
    dtype = image.get_data_dtype() if order == 0 else np.float32
    return nib.Nifti1Image(moved.reshape(reference.shape).astype(dtype), reference.affine)


def all_points(image: nib.Nifti1Image) -> np.ndarray:
    """Return where all voxels of an image lie, in RAS mm, (3, X * Y * Z)."""
    return _transform(image.affine, np.indices(image.shape, dtype=float).reshape(3, -1))


def _transform(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    # Written out: a product of matrices would go to BLAS, whose sums depend on its threads.
    out = np.empty_like(points)
    for values, row in zip(out, affine[:3], strict=True):
        np.multiply(points[0], row[0], out=values)
        for axis in (1, 2):
            if row[axis]:
                values += row[axis] * points[axis]
        values += row[3]
    return out


def _read(
    volumes: Sequence[np.ndarray] | np.ndarray, at: np.ndarray, order: int, fill: float
) -> list[np.ndarray]:
    """Interpolate at voxel coordinates; ITK's images reach half a voxel beyond their centres."""
    last = np.array(volumes[0].shape, dtype=float)[:, None] - 0.5
    outside = ~((at >= -0.5) & (at < last)).all(0)
    found = []
    for volume in volumes:
        values = ndimage.map_coordinates(
            volume, at, order=order, mode='nearest', output=np.float32
        )
        values[outside] = fill
        found.append(values)
    return found


def write_rigid(matrix: np.ndarray, path: Path) -> None:
    """Write a matrix that carries RAS points of the fixed to the moving image, as ITK text."""
    lps = FLIP @ matrix @ FLIP
    numbers = ' '.join(f'{v:.12g}' for v in (*lps[:3, :3].flat, *lps[:3, 3]))
    path.write_text(
        '#Insight Transform File V1.0\n#Transform 0\n'
        f'Transform: AffineTransform_double_3_3\nParameters: {numbers}\nFixedParameters: 0 0 0\n',
        encoding='ascii',
    )


def read_rigid(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the text of one rigid or affine ITK transform into the matrix of `write_rigid`."""
    lines = Path(path).read_text(encoding='ascii').splitlines()
    found = dict(line.split(':', 1) for line in lines if ':' in line)
    values, centre = (
        np.array(found[key].split(), dtype=float) for key in ('Parameters', 'FixedParameters')
    )
    return matrix_of(values, centre)
