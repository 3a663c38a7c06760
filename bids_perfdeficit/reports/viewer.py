"""Volumes for the viewer of a page: three planes, a background, and a map over it.

The viewer is `data/reports/viewer.js`; what it shows stands in the page, so that it works from a
folder, by mail and offline. Must not know what the maps mean.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from nibabel.spatialimages import SpatialImage

from bids_perfdeficit.bids import write_text
from bids_perfdeficit.reports.words import SCRIPT

#: mm of the voxels that a patient's viewer has: finer ones would make each page several MB.
VIEWER_MM = 2.0
#: Grey levels of a patient's NCCT and CTA; more would be noise that does not compress.
_LEVELS, _CTA_LEVELS = 127, 63


def pack_volume(image: SpatialImage, scale: float, *, offset: float = 0.0) -> dict[str, Any]:
    """Return a volume in RAS: bytes, x fastest, compressed.

    Parameters
    ----------
    image : SpatialImage
        (X, Y, Z), axes along the axes of space.
    scale, offset : float
        A byte is ``(value - offset) * scale``; an infinite scale makes a mask of it.

    Returns
    -------
    dict
        ``shape``, ``origin`` and ``spacing`` in mm, and ``data`` in base 64.
    """
    values = np.nan_to_num(np.asarray(image.dataobj, np.float32))
    if np.isinf(scale):
        values, scale, offset = (values != 0).astype(np.float32), 1.0, 0.0
    small = np.clip(np.round((values - offset) * scale), 0, 255).astype(np.uint8)
    return {
        'shape': list(image.shape),
        'origin': [float(v) for v in image.affine[:3, 3]],
        'spacing': [float(v) for v in np.diag(image.affine)[:3]],
        'data': base64.b64encode(gzip.compress(small.tobytes(order='F'), 6, mtime=0)).decode(
            'ascii'
        ),
    }


def describe_view(
    volumes: Mapping[str, Mapping[str, Any]],
    grounds: Sequence[tuple[str, str, float, float]],
    maps: Sequence[Mapping[str, Any]],
    *,
    inside: str,
    sides: bool,
) -> dict[str, Any]:
    """Return what the viewer reads.

    Parameters
    ----------
    volumes : mapping of str to dict
        Backgrounds, from `pack_volume`, all on one grid.
    grounds : sequence of (title, volume, low, high)
        Each a volume and the bytes that are black and white.
    maps : sequence of dict
        From `pack_volume`, with ``id``, ``title``, ``max`` (the value of byte 255),
        ``declared`` (the data of a mask on the same grid) and, if need be, ``start`` (mm).
    inside : str
        What is said of a voxel in the mask.
    sides : bool
        Whether x = 0 is the midline, so that a side can be named.
    """
    ramp = colormaps['inferno'](np.linspace(0.25, 1, 256))[:, :3]
    return {
        'volumes': dict(volumes),
        'grounds': [
            {'title': title, 'volume': volume, 'low': low, 'high': high}
            for title, volume, low, high in grounds
        ],
        'maps': list(maps),
        'colours': np.round(255 * ramp).astype(int).ravel().tolist(),
        'inside': inside,
        'sides': sides,
    }


def write_patient_view(
    ncct: SpatialImage,
    cta: SpatialImage,
    brain: SpatialImage,
    maps: Sequence[tuple[str, str, SpatialImage, float]],
    late: SpatialImage,
    out: Path,
) -> Path:
    """Write the view of one patient as a script, which a page can load from any folder.

    Browsers read no JSON beside a page that was opened from a disk.

    Parameters
    ----------
    ncct, cta : SpatialImage
        HU.
    brain : SpatialImage
        Mask; the view is cropped to it, and maps are 0 outside.
    maps : sequence of (id, title, image, highest value)
    late : SpatialImage
        0.5 at the border of what is outlined.
    out : Path
        Script to write; see `words.read_view`.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If the grids differ.
    """
    images = [ncct, cta, brain, late, *(image for _, _, image, _ in maps)]
    if any(i.shape != ncct.shape or not np.allclose(i.affine, ncct.affine) for i in images):
        raise ValueError('the images of a view must share a grid')
    mask = np.asarray(brain.dataobj) > 0
    factor = max(1, round(VIEWER_MM / float(nib.affines.voxel_sizes(ncct.affine)[0])))
    margin = max(1, round(6 / factor / float(nib.affines.voxel_sizes(ncct.affine)[0]))) * factor
    box = _box(mask, margin, factor)

    def shrink(image: SpatialImage, inside: np.ndarray | None = None) -> nib.Nifti1Image:
        values = np.asarray(image.dataobj, np.float32)[box]
        values = values if inside is None else np.where(inside, values, 0)
        split = values.reshape([k for n in values.shape for k in (n // factor, factor)])
        affine = ncct.affine @ np.diag([factor, factor, factor, 1.0])
        first = np.array([b.start for b in box]) + (factor - 1) / 2
        affine[:3, 3] = nib.affines.apply_affine(ncct.affine, first)
        return nib.as_closest_canonical(nib.Nifti1Image(split.mean((1, 3, 5)), affine))

    kept = mask[box]
    outline = shrink(late, kept)
    declared = nib.Nifti1Image(
        (np.asarray(outline.dataobj) >= 0.5).astype(np.float32), outline.affine
    )
    packed = []
    for name, title, image, top in maps:
        small = shrink(image, kept)
        packed.append(
            {'id': name, 'title': title, 'max': top, 'start': _middle(outline)}
            | pack_volume(small, 255 / top)
            | {'declared': pack_volume(declared, np.inf)['data']}
        )
    view = describe_view(
        {
            'ncct': pack_volume(shrink(ncct), _LEVELS / 80),
            'cta': pack_volume(shrink(cta), _CTA_LEVELS / 240, offset=-20.0),
        },
        [
            ('NCCT, 0 to 80 HU', 'ncct', 0, _LEVELS),
            ('NCCT, 20 to 50 HU', 'ncct', _LEVELS * 20 / 80, _LEVELS * 50 / 80),
            ('CTA, −20 to 220 HU', 'cta', 0, _CTA_LEVELS),
        ],
        packed,
        inside='above the threshold',
        sides=False,
    )
    return write_text(f'{SCRIPT}{json.dumps(view)};\n', out)


def _box(mask: np.ndarray, margin: int, factor: int) -> tuple[slice, ...]:
    """Return the box around a mask, each side a multiple of a factor."""
    spans = []
    for axis, size in enumerate(mask.shape):
        used = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, size)
        low, high = max(low - margin, 0), min(high + margin, size)
        spans.append(slice(low, low + (high - low) // factor * factor))
    return tuple(spans)


def _middle(outline: SpatialImage) -> list[float]:
    """Return a voxel deep in what is outlined, else the middle of the volume; mm."""
    from scipy import ndimage

    inside = np.asarray(outline.dataobj) >= 0.5
    voxel = (
        np.unravel_index(ndimage.distance_transform_edt(inside).argmax(), inside.shape)
        if inside.any()
        else (np.array(inside.shape) - 1) / 2
    )
    return [float(v) for v in nib.affines.apply_affine(outline.affine, voxel)]
