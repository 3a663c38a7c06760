"""What the maps say per side and region, for readers who do not program.

Arterial territories and ASPECTS regions are drawn from coordinates, so that nothing has to be
downloaded. Must not know files or registration.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from bids_perfdeficit.perfusion.priors import vein_prior

#: Labels of `territories`; the left side has the label as here, the right side 10 more.
TERRITORY_LABELS = {'ACA': 1, 'MCA': 2, 'PCA': 3, 'VB': 4}
#: Labels of `aspects_regions`, likewise, by the names that ASPECTS has for them.
ASPECTS_LABELS = {
    'caudate': 1, 'lentiform': 2, 'internal capsule': 3, 'insula': 4,
    'M1': 5, 'M2': 6, 'M3': 7, 'M4': 8, 'M5': 9, 'M6': 10,
}  # fmt: skip
#: Offset of the right side's labels.
_RIGHT = {'territory': 10, 'aspects': 20}
#: Deep regions of the right side: centre and half axes, MNI mm.
_DEEP = {
    'insula': ((38, 2, 2), (6, 18, 13)),
    'internal capsule': ((20, -6, 9), (5, 15, 10)),
    'lentiform': ((25, 1, 1), (8, 14, 8)),
    'caudate': ((13, 14, 9), (6, 10, 10)),
}
#: HU of contrast from which a voxel of 2 mm counts as a filled vessel: tissue enhances by at most
#: 10 HU, and the noise of the subtraction is below 15 HU at this size.
VESSEL_HU = 50.0
#: mm from the midline within which a vessel counts half for each side: those of both sides run
#: there, closer together than the template and a patient agree.
MIDLINE_MM = 5.0
#: Height in MNI mm of the border between the ganglionic and the supraganglionic level, and the
#: borders of the cortical regions on each from front to back.
_LEVEL, _GANGLIONIC, _ABOVE = 22.0, (12.0, -26.0), (4.0, -32.0)


def _positions(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """MNI mm of every voxel, (3, X, Y, Z)."""
    index = np.indices(shape, dtype=np.float32).reshape(3, -1)
    return np.asarray((affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape))


def territories(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Draw the arterial territories in MNI space.

    The borders are planes and curved surfaces through the mean borders of the territory maps of
    Tatu et al., *Neurology* 1998 and 2012, and Kim et al., *J Stroke* 2019: the anterior cerebral
    artery has the medial 15 mm to the parieto-occipital sulcus and a rim that widens upward, the
    posterior cerebral artery what is behind and below the parieto-occipital and the collateral
    sulcus and the thalamus, the vertebrobasilar arteries what is below the tentorium, the middle
    cerebral artery the rest. They are approximate by nature: healthy borders differ by
    centimetres between people.

    Parameters
    ----------
    shape : tuple of int
        (X, Y, Z).
    affine : ndarray, (4, 4)
        Voxel to MNI mm, RAS.

    Returns
    -------
    ndarray of uint8, (X, Y, Z)
        `TERRITORY_LABELS`, plus 10 on the right. No voxel is 0; mask it with the brain.
    """
    x, y, z = _positions(shape, affine)
    lateral = np.abs(x)
    # The rim of the anterior territory along the hemispheric border: from 14 mm below the corpus
    # callosum to some 28 mm at the vertex, and narrower towards the back.
    rim = np.clip(14 + 0.28 * (z - 20), 12, 28) * np.clip(1 - (-30 - y) / 60, 0.5, 1)
    anterior = (lateral < rim) & (z > -18) & (y > -58) & ((z > 18) | (y > 16))
    posterior = (y < -58 - 0.30 * (z - 10) - 0.10 * (lateral - 30)) & (z < 45)
    inferior_temporal = (z < -10 - 0.15 * (y + 30)) & (y < -22) & (lateral > 12)
    thalamus = (lateral < 20) & (y < -4) & (y > -36) & (z > -8) & (z < 18)
    # The tentorium rises from the transverse sinus at the back to its notch above the vermis.
    tent = np.where(y < -30, -12 + 0.25 * (-lateral + 10) + 0.15 * (y + 60), -18)
    below = (z < tent) & (y < -16) & (y > -110) & (lateral < 60)
    stem = (lateral < 18) & (z < -8) & (y < -10) & (y > -45)
    labels = np.full(shape, TERRITORY_LABELS['MCA'], dtype=np.uint8)
    labels[anterior] = TERRITORY_LABELS['ACA']
    labels[posterior | inferior_temporal | thalamus] = TERRITORY_LABELS['PCA']
    labels[below | stem] = TERRITORY_LABELS['VB']
    return labels + np.where(x > 0, 10, 0).astype(np.uint8)


def aspects_regions(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Draw the ten regions of ASPECTS in MNI space.

    The regions are those of Barber et al., *Lancet* 2000: caudate, lentiform nucleus, internal
    capsule and insula as ellipsoids about their centres in the ICBM 152 template, and within the
    territory of the middle cerebral artery its anterior, lateral and posterior cortex with the
    white matter below on the ganglionic level (M1 to M3) and above it (M4 to M6).

    Parameters
    ----------
    shape : tuple of int
        (X, Y, Z).
    affine : ndarray, (4, 4)
        Voxel to MNI mm, RAS.

    Returns
    -------
    ndarray of uint8, (X, Y, Z)
        `ASPECTS_LABELS`, plus 20 on the right; 0 elsewhere. Mask it with the brain.
    """
    x, y, z = _positions(shape, affine)
    lateral = np.abs(x)
    out = np.zeros(shape, dtype=np.uint8)
    middle = territories(shape, affine) % _RIGHT['territory'] == TERRITORY_LABELS['MCA']
    middle &= lateral > 12
    for names, level, (front, back) in (
        (('M1', 'M2', 'M3'), (z <= _LEVEL) & (z > -20), _GANGLIONIC),
        (('M4', 'M5', 'M6'), z > _LEVEL, _ABOVE),
    ):
        parts = (y > front, (y <= front) & (y > back), y <= back)
        for name, part in zip(names, parts, strict=True):
            out[middle & level & part] = ASPECTS_LABELS[name]
    # Later ones lie within earlier ones' outlines: the capsule between caudate and lentiform.
    for name, (centre, half) in _DEEP.items():
        away = sum(
            ((axis - c) / h) ** 2 for axis, c, h in zip((lateral, y, z), centre, half, strict=True)
        )
        out[away <= 1] = ASPECTS_LABELS[name]
    out[(out > 0) & (x > 0)] += _RIGHT['aspects']
    return out


def both_sides(
    shape: tuple[int, int, int], affine: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the left and the right of every territory, then of every ASPECTS region.

    Parameters
    ----------
    shape : tuple of int
        (X, Y, Z).
    affine : ndarray, (4, 4)
        Voxel to MNI mm, RAS.

    Returns
    -------
    dict of str to (ndarray of bool, ndarray of bool), (X, Y, Z)
        Kept for the next call, and therefore read-only.
    """
    return dict(_both_sides(shape, tuple(np.asarray(affine, float).ravel())))


@lru_cache(maxsize=2)
def _both_sides(
    shape: tuple[int, int, int], flat: tuple[float, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    affine = np.reshape(flat, (4, 4))

    def fixed(mask: np.ndarray) -> np.ndarray:
        mask.flags.writeable = False
        return mask

    return {
        name: (fixed(labels == k), fixed(labels == k + offset))
        for labels, names, offset in (
            (territories(shape, affine), TERRITORY_LABELS, _RIGHT['territory']),
            (aspects_regions(shape, affine), ASPECTS_LABELS, _RIGHT['aspects']),
        )
        for name, k in names.items()
    }


def measure_regions(
    arrival: np.ndarray,
    perfusion: np.ndarray,
    hypoperfused: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
    *,
    threshold: float,
    scale: float = 1.0,
    contrast: np.ndarray | None = None,
) -> pd.DataFrame:
    """Measure both sides of the brain, of every territory and of every ASPECTS region.

    Parameters
    ----------
    arrival, perfusion, hypoperfused : ndarray, (X, Y, Z)
        In template space; the last is the probability of hypoperfusion.
    brain : ndarray of bool, (X, Y, Z)
        Where they hold.
    affine : ndarray, (4, 4)
        Voxel to MNI mm, RAS.
    threshold : float
        Probability above which a voxel counts as hypoperfused.
    scale : float
        A volume of the patient over that of the template: volumes are the patient's own.
    contrast : ndarray, (X, Y, Z), optional
        CTA minus NCCT, HU: then the filled vessels are measured too.

    Returns
    -------
    DataFrame
        A row per region: ``region``, ``voxels_left``, ``voxels_right``, mean ``arrival_left``,
        ``arrival_right``, mean ``perfusion_left``, ``perfusion_right``, ``asymmetry`` (left
        minus right perfusion: positive means that the left is later), the hypoperfused volume
        in mL, ``hypoperfused_left`` and ``hypoperfused_right``, and the mL of filled vessels,
        ``vessels_left`` and ``vessels_right``; those within `MIDLINE_MM` of the midline count half
        for each side.
    """
    parts = both_sides(brain.shape, affine)
    left, right = (
        np.logical_or.reduce([parts[name][side] for name in TERRITORY_LABELS]) for side in (0, 1)
    )
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    late = hypoperfused > threshold
    vessels = None if contrast is None else _find_vessels(contrast, brain, affine)
    middle = np.abs(_positions(brain.shape, affine)[0]) < MIDLINE_MM
    rows = []
    for name, halves in {'hemisphere': (left, right), **parts}.items():
        row: dict[str, object] = {'region': name}
        for side, half in zip(('left', 'right'), halves, strict=True):
            inside = brain & half
            row[f'voxels_{side}'] = int(inside.sum())
            for measure, values in (('arrival', arrival), ('perfusion', perfusion)):
                row[f'{measure}_{side}'] = float(values[inside].mean()) if inside.any() else np.nan
            row[f'hypoperfused_{side}'] = scale * voxel_ml * int((late & inside).sum())
            if vessels is not None:
                shared = vessels & middle & (halves[0] | halves[1])
                own = int((vessels & ~middle & half).sum()) + int(shared.sum()) / 2
                row[f'vessels_{side}'] = voxel_ml * own
        row['asymmetry'] = row['perfusion_left'] - row['perfusion_right']  # type: ignore[operator]
        rows.append(row)
    columns = ['region', 'voxels_left', 'voxels_right', 'arrival_left', 'arrival_right']
    columns += ['perfusion_left', 'perfusion_right', 'asymmetry']
    columns += ['hypoperfused_left', 'hypoperfused_right']
    columns += [] if vessels is None else ['vessels_left', 'vessels_right']
    return pd.DataFrame(rows, columns=columns)


def _find_vessels(contrast: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return where a vessel is filled, without the great veins; (X, Y, Z) bool."""
    veins = vein_prior(brain.shape, affine)
    return np.asarray(brain & (contrast > VESSEL_HU) & (veins < 0.5))
