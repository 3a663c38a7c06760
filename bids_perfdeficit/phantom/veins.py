"""Dural sinuses, deep and cortical veins of the template as tubes.

Courses follow Rhoton, Neurosurgery 2002 (51, suppl 1). Knows nothing of contrast or images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_perfdeficit.phantom.anatomy import Head
from bids_perfdeficit.phantom.arteries import _resample, _Surface, smooth_field

Floats = NDArray[np.float64]

_SAGITTAL = ((0, 74, 0), (0, 76, 14), (0, 73, 30), (0, 62, 50), (0, 40, 68), (0, 15, 80),
             (0, -15, 84), (0, -45, 79), (0, -70, 65), (0, -90, 44), (0, -104, 20),
             (0, -107, 0), (0, -105, -15))  # fmt: skip
_PAIRED: dict[str, tuple[tuple[tuple[float, float, float], ...], float, float]] = {
    'transverse': (((0, -105, -15), (16, -104, -20), (36, -92, -26), (52, -72, -30),
                    (60, -54, -34)), 3.2, 3.2),
    'sigmoid': (((60, -54, -34), (56, -44, -42), (46, -42, -54), (34, -38, -64),
                 (28, -28, -72), (30, -18, -90), (33, -12, -111)), 3.2, 4.2),
    'internal cerebral': (((3, 3, 8), (2.5, -14, 14), (2, -30, 13), (0, -42, 9)), 0.8, 1.1),
    'basal': (((14, -4, -18), (19, -18, -13), (18, -31, -6), (9, -41, 4), (0, -44, 8)), 0.7, 1.1),
    'superficial middle cerebral': (((60, -18, 12), (57, 4, 4), (46, 13, -12), (30, 12, -24),
                                     (18, 8, -32)), 0.8, 1.3),
    'Labbe': (((56, -14, 2), (66, -30, -4), (66, -46, -18), (60, -56, -32)), 0.8, 1.5),
}  # fmt: skip
_STRAIGHT = ((0, -42, 9), (0, -50, 9), (0, -70, -1), (0, -90, -11), (0, -105, -15))


@dataclass(frozen=True)
class Veins:
    """Segments of veins in template mm.

    Attributes
    ----------
    start, end : (S, 3) float arrays
    radius : (S,) float array
        mm.
    late : (S,) float array
        Seconds that blood needs from the tissue to this point of the vein.
    """

    start: Floats
    end: Floats
    radius: Floats
    late: Floats


def make_veins(head: Head, seed: int) -> Veins:
    """Draw one person's veins: sinuses, deep veins, six to nine cortical veins a side."""
    rng = np.random.default_rng([seed, 303])
    surface = _Surface(head)
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(head.outside, 1.0)))
    lines: list[tuple[Floats, float, float, float]] = []

    def on_dura(line: Floats) -> Floats:
        for _ in range(4):
            index = head.index(line)
            value = ndimage.map_coordinates(head.outside, index, order=1, mode='nearest')
            way = np.stack([ndimage.map_coordinates(g, index, order=1) for g in gradient], 1)
            way /= np.linalg.norm(way, axis=1, keepdims=True) + 1e-3
            line = line + way * np.clip(0.8 - value, -1, 1)[:, None]
        return line

    sagittal = _resample(np.array(_SAGITTAL, float), 2.5)
    sagittal[:, 0] += smooth_field(sagittal, rng, scale=30.0, sd=0.8)[:, 0]
    lines.append((sagittal, 1.3, 4.2, 2.0))
    lines.append((_resample(np.array(_STRAIGHT, float), 2.5), 1.8, 2.4, 2.0))
    dominant = rng.choice([-1, 1], p=[0.35, 0.65])
    for side in (-1, 1):
        for name, (points, thin, wide) in _PAIRED.items():
            line = _resample(np.array(points, float), 2.5)
            line += smooth_field(line, rng, scale=15.0, sd=1.0)
            if name == 'transverse':
                line = on_dura(line)
            line[:, 0] *= side
            scale = 1.0
            if name in ('transverse', 'sigmoid') and side != dominant:
                scale = float(rng.uniform(0.45, 0.9))
            late = {'transverse': 2.5, 'sigmoid': 3.0}.get(name, 1.0)
            lines.append((line, thin * scale, wide * scale, late))
        for y in np.linspace(55, -68, int(rng.integers(6, 10))) + rng.normal(0, 4, 1):
            up = rng.uniform(20, 45)
            lateral = np.array([[58.0, y + 6, up], [45, y + 2, up + 22], [24, y - 4, 74]])
            top = sagittal[
                np.argmin(np.abs(sagittal[:, 1] - (y + 4)) + 100 * (sagittal[:, 2] < 5))
            ]
            line = _resample(np.vstack([lateral, top]), 2.5)
            line += smooth_field(line, rng, scale=12.0, sd=2.5)
            line[:-1] = surface.project(line[:-1], height=1.4, times=24)[:]
            line = ndimage.gaussian_filter1d(line, 1.0, axis=0, mode='nearest')
            line[:, 0] = np.maximum(line[:, 0], 0.5) * side
            width = float(rng.uniform(0.7, 1.3))
            lines.append((line, 0.45 * width, 1.25 * width, 1.0))
    starts, ends, radii, lates = [], [], [], []
    for line, thin, wide, late in lines:
        starts.append(line[:-1])
        ends.append(line[1:])
        radii.append(np.linspace(thin, wide, len(line) - 1))
        lates.append(np.linspace(0.6 * late, late, len(line) - 1))
    return Veins(np.vstack(starts), np.vstack(ends), np.concatenate(radii), np.concatenate(lates))
