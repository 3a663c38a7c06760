"""A head in the template space: tissue fractions, skull, scalp and face, in HU.

The brain comes from the ICBM 152 2009a symmetric maps that nilearn ships (Fonov et al.,
NeuroImage 2011). The rest of the head is built around it from distances and simple solids, with
thicknesses and attenuations of anatomy and CT texts. Knows nothing of vessels, flow or scanners.

Coordinates are millimetres of the template, RAS: +x is the person's right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: HU of unenhanced tissues at 120 kV (Bushberg et al., The Essential Physics of Medical Imaging;
#: Phan et al., Stroke 2003 for grey and white matter).
HU = {
    'air': -1000.0,
    'fat': -90.0,
    'csf': 5.0,
    'white': 28.0,
    'grey': 37.0,
    'blood': 42.0,
    'dura': 55.0,
    'muscle': 58.0,
    'skin': 45.0,
    'diploe': 450.0,
    'table': 1150.0,
    'petrous': 1500.0,
    'vitreous': 8.0,
    'clot': 66.0,
    'calcium': 550.0,
}
#: Corners of the head's grid, mm. It holds the neck below the skull base, where the arteries
#: enter the field of view of a CTA.
LOWER = np.array([-98.0, -132.0, -112.0])
UPPER = np.array([98.0, 108.0, 104.0])


@dataclass(frozen=True)
class Head:
    """The head on a grid of the template space. Arrays have shape (X, Y, Z).

    Attributes
    ----------
    affine : (4, 4) array
        Voxel to template mm.
    grey, white : float32 arrays
        Fractions of the voxel, 0 to 1.
    brain : bool array
        The template's brain mask with its CSF.
    ventricles : float32 array
        Fraction of ventricular CSF.
    depth : float32 array
        Signed distance from the surface of the tissue (ventricles filled), mm: negative inside.
        The pial surface, with the larger fissures and sulci, is its zero level.
    outside : float32 array
        Distance from the brain mask, mm, 0 inside.
    shell : float32 array
        HU of everything outside the brain mask.
    """

    affine: NDArray[np.float64]
    grey: Array
    white: Array
    brain: Mask
    ventricles: Array
    depth: Array
    outside: Array
    shell: Array

    def index(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Voxel indices, (3, ...), of template points, (..., 3) mm."""
        spacing = self.affine[0, 0]
        return np.moveaxis((np.asarray(points) - self.affine[:3, 3]) / spacing, -1, 0)

    def coordinates(self) -> NDArray[np.float32]:
        """Template mm of each voxel, (3, X, Y, Z) as three broadcastable axes' grid."""
        axes = [
            (self.affine[a, 3] + self.affine[0, 0] * np.arange(n)).astype(np.float32)
            for a, n in enumerate(self.brain.shape)
        ]
        return np.stack(np.meshgrid(*axes, indexing='ij'))


def _on_grid(image, affine: NDArray[np.float64], shape: tuple[int, ...]) -> Array:  # type: ignore[no-untyped-def]
    """Return a template map on the head's grid: by the block mean where the grid is coarser."""
    data = np.asarray(image.dataobj, np.float32)
    step = affine[0, 0] / image.affine[0, 0]
    if step > 1.2:
        data = ndimage.gaussian_filter(data, 0.35 * step)
    matrix = np.linalg.inv(image.affine) @ affine
    return ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1
    ).astype(np.float32)


def _ramp(inside: NDArray[np.floating], width: float) -> Array:
    """Soft membership of a signed distance (positive inside), with an edge of `width` mm."""
    return np.clip(inside / width + 0.5, 0, 1).astype(np.float32)


@lru_cache(maxsize=2)
def load_head(spacing: float = 1.0) -> Head:
    """Build the template's head on a grid of `spacing` mm.

    Returns
    -------
    Head
        Kept for the process, because every patient starts from it.
    """
    from nilearn.datasets import (
        load_mni152_brain_mask,
        load_mni152_gm_template,
        load_mni152_wm_template,
    )

    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = LOWER
    shape = tuple(int(n) for n in np.rint((UPPER - LOWER) / spacing) + 1)
    brain_part = _on_grid(load_mni152_brain_mask(resolution=1), affine, shape)
    grey = _on_grid(load_mni152_gm_template(resolution=1), affine, shape)
    white = _on_grid(load_mni152_wm_template(resolution=1), affine, shape)
    brain = brain_part > 0.5
    # The averaged maps are blurred: a person's sulci are darker and the cortex is greyer.
    csf = np.clip(1 - grey - white, 0, 1)
    power = [np.power(p, 1.6) for p in (grey, white, csf)]
    total = sum(power) + 1e-6
    grey, white = (np.asarray(p / total * brain, np.float32) for p in power[:2])

    head = Head(affine, grey, white, brain, grey, grey, grey, grey)
    x, y, z = head.coordinates()
    ventricles = _ventricles(np.where(brain, 1 - grey - white, 0), x, y, z, spacing)
    tissue = ndimage.gaussian_filter(grey + white + ventricles, 0.7 / spacing) > 0.5
    depth = (
        ndimage.distance_transform_edt(~tissue, sampling=spacing)
        - ndimage.distance_transform_edt(tissue, sampling=spacing)
    ).astype(np.float32)
    outside = ndimage.distance_transform_edt(~brain, sampling=spacing).astype(np.float32)
    outside = np.where(brain, 0, ndimage.gaussian_filter(outside, 0.8 / spacing))
    shell = _shell(outside, brain, x, y, z, spacing)
    return Head(affine, grey, white, brain, ventricles, depth, outside, shell)


def _ventricles(csf: Array, x: Array, y: Array, z: Array, spacing: float) -> Array:
    """CSF of the lateral, third and fourth ventricles, found within boxes around them."""
    lateral = (np.abs(x) < 36) & (y > -58) & (y < 40) & (z > -6) & (z < 34)
    lateral &= np.abs(x) > 1.5
    # Behind the splenium the box would hold the quadrigeminal and interhemispheric cisterns.
    lateral &= ~((np.abs(x) < 10) & (y < -30)) & ~((np.abs(x) > 30) & (y > -25))
    lateral &= ~((np.abs(x) < 14) & (y < -38)) & ~((z < 3) & (y < -30) & (np.abs(x) < 18))
    lateral &= ~((z < 2) & (y > -25)) & ~((np.abs(x) > 24) & (z < 12) & (y > -25))
    third = (np.abs(x) < 4) & (y > -30) & (y < 2) & (z > -12) & (z < 8)
    fourth = (np.abs(x) < 10) & (y > -52) & (y < -33) & (z > -46) & (z < -20)
    region = ndimage.gaussian_filter((lateral | third | fourth).astype(np.float32), 1.0 / spacing)
    return np.asarray(csf * region, np.float32)


def _shell(outside: Array, brain: Mask, x: Array, y: Array, z: Array, spacing: float) -> Array:
    """HU outside the brain: dura and CSF, three-layered skull, scalp, face, neck and air."""
    rng = np.random.default_rng(2009)
    side = np.abs(x)
    texture = ndimage.gaussian_filter(
        rng.standard_normal(brain.shape, dtype=np.float32), 2.0 / spacing
    )
    texture /= texture.std()
    # Vault 6 to 7 mm, thicker at the occiput and forehead, thin at the temples (Lillie et al.,
    # J Neurotrauma 2016).
    thickness = 6.5 + 2.5 * _ramp(-y - 85, 20) + 1.5 * _ramp(y - 55, 15)
    thickness -= 2.5 * _ramp(side - 58, 10) * _ramp(20 - z, 20) * _ramp(y + 40, 20)
    inner = 1.5
    depth = outside - inner
    share = np.clip(depth / thickness, 0, 1)
    # The middle half of the bone is diploe.
    diploe = _ramp(share - 0.28, 0.15) * _ramp(0.72 - share, 0.15)
    bone = HU['table'] + (HU['diploe'] + 120 * texture - HU['table']) * diploe
    petrous = np.exp(
        -(((side - 38) / 17) ** 2 + ((y + 28 - 0.35 * (38 - side)) / 9) ** 2)
        - ((z + 42) / 10) ** 2
    )
    bone = np.maximum(bone, HU['petrous'] * _ramp(petrous - 0.45, 0.25))

    # Contour of the head: the scalp, the face and the neck.
    scalp = 5.5 + 6 * _ramp(side - 52, 12) * _ramp(15 - z, 20) * _ramp(y + 35, 20)
    contour = thickness + inner + scalp - outside
    face = 1 - np.sqrt((side / 62) ** 2 + ((y - 38) / 56) ** 2 + ((z + 62) / 66) ** 2)
    neck = 62 - np.sqrt(side**2 + (0.95 * (y + 22)) ** 2)
    # A face and a neck end at the chin's and the vault's height.
    neck = np.minimum(neck, -45 - z)
    contour = np.maximum(contour, np.maximum(face * 55, neck))
    skin = np.clip(contour, 0, 20)
    soft = np.where(skin < 2.0, HU['skin'], HU['fat']).astype(np.float32)
    low = _ramp(-z - 18, 12) * _ramp(outside - inner - thickness - 1, 2)
    temporal = _ramp(scalp - 8, 3) * _ramp(skin - 3, 2)
    muscle = np.maximum(np.maximum(low * _ramp(skin - 5, 2), temporal), 0)
    stripes = 0.5 + 0.5 * np.tanh(3 * texture + 1.2)
    soft = soft + (HU['muscle'] - soft) * muscle * stripes
    result = np.where(depth < 0, HU['csf'] + 8, soft).astype(np.float32)
    result += (bone - result) * _ramp(np.minimum(depth, thickness - depth), 1.2) * (outside > 0)

    # Foramen magnum, canal and cord go on below the brain mask, inside a vertebral ring.
    stem_y = -48.0 - 0.12 * np.clip(-72 - z, 0, 60)
    radial = np.sqrt(x**2 + (y - stem_y) ** 2)
    below = _ramp(-60 - z, 4) * ~brain
    ring = _ramp(radial - 12, 1.5) * _ramp(21 - radial, 1.5) * _ramp(-82 - z, 3)
    ring *= 0.75 + 0.25 * np.sin(z / 3)
    result += (900 + 80 * texture - result) * ring * ~brain
    result += (HU['csf'] - result) * _ramp(14.5 - radial, 1.5) * below
    result += (HU['grey'] - 3 - result) * _ramp(6.5 - radial, 1.2) * below * (z < -71)

    def solid(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> Array:
        distance = np.sqrt(((side - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
        return _ramp((1 - distance) * min(rx, ry, rz), 1.2) * ~brain

    # Orbit: a bony cone of fat with the globe, its lens, the optic nerve and the muscles.
    orbit, rim = solid(31, 60, -39, 18, 24, 17), solid(31, 58, -39, 20, 25, 19)
    result += (HU['table'] - 200 - result) * np.clip(rim - orbit, 0, 1) * _ramp(74 - y, 3)
    result += (HU['fat'] - result) * orbit
    axis = np.sqrt((side - (31 - 0.45 * (70 - y))) ** 2 + (z + 38) ** 2)
    result += (35 - result) * orbit * _ramp(2.3 - axis, 1.0) * _ramp(72 - y, 1)
    ring = _ramp(1.6 - np.abs(axis - 8 * _ramp(y - 45, 40)), 1) * _ramp(68 - y, 1)
    result += (HU['muscle'] - result) * orbit * ring * (texture > -0.3)
    result += (HU['dura'] - result) * solid(31, 72, -38, 12.5, 12.5, 12.5)
    result += (HU['vitreous'] - result) * solid(31, 72, -38, 11.3, 11.3, 11.3)
    result += (90 - result) * solid(31, 81, -38, 4.5, 2, 4.5)
    # Paranasal sinuses, nasal cavity, pharynx and mastoid cells, each with a thin wall of bone.
    for cx, cy, cz, rx, ry, rz in (
        (27.0, 58.0, -72.0, 13.0, 16.0, 14.0),
        (6.0, 50.0, -40.0, 7.0, 19.0, 9.0),
        (6.0, 20.0, -46.0, 8.0, 10.0, 9.0),
        (8.0, 82.0, -14.0, 9.0, 4.0, 11.0),
        (6.0, 62.0, -68.0, 6.0, 30.0, 14.0),
    ):
        wall = solid(cx, cy, cz, rx + 1.5, ry + 1.5, rz + 1.5)
        room = solid(cx, cy, cz, rx, ry, rz)
        result += (600 - result) * np.clip(wall - room, 0, 1) * (contour > 2)
        result += (HU['air'] - result) * room * (contour > 2)
    result += (HU['air'] - result) * solid(0, 12, -88, 11, 7, 34) * (contour > 2)
    cells = solid(50, -44, -48, 9, 13, 13) * (texture > 0.1)
    result += (HU['air'] * 0.8 - result) * cells * (outside > 2.5)
    canal = solid(52, -24, -46, 16, 3.5, 3.5)
    result += (HU['air'] - result) * canal
    result += (HU['air'] - result) * _ramp(-contour, 1.5)
    return np.where(brain, HU['csf'], result).astype(np.float32)
