"""What a perfusion map says per side and arterial territory, for a reader who is no programmer.

The territories are drawn from coordinates, so that nothing has to be downloaded. Must not know
files or registration.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

#: Labels of `territories`; the left side has the label as here, the right side 10 more.
TERRITORY_LABELS = {'ACA': 1, 'MCA': 2, 'PCA': 3, 'VB': 4}


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
    index = np.indices(shape, dtype=np.float32).reshape(3, -1)
    x, y, z = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)
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


def measure_regions(
    arrival: np.ndarray, perfusion: np.ndarray, brain: np.ndarray, labels: np.ndarray
) -> pd.DataFrame:
    """Measure both sides of every territory, and of the whole brain.

    Parameters
    ----------
    arrival, perfusion : ndarray, (X, Y, Z)
        In template space; higher is later.
    brain : ndarray of bool, (X, Y, Z)
        Where they hold.
    labels : ndarray of uint8, (X, Y, Z)
        As from `territories`.

    Returns
    -------
    DataFrame
        A row per region: ``region``, ``voxels_left``, ``voxels_right``, mean ``arrival_left``,
        ``arrival_right``, mean ``perfusion_left``, ``perfusion_right`` and ``asymmetry`` (left
        minus right perfusion: positive means that the left is later).
    """
    rows = []
    for name, label in [('hemisphere', None), *TERRITORY_LABELS.items()]:
        row: dict[str, object] = {'region': name}
        for side, offset in (('left', 0), ('right', 10)):
            if label is None:
                inside = brain & ((labels > 10) == (offset == 10))
            else:
                inside = brain & (labels == label + offset)
            row[f'voxels_{side}'] = int(inside.sum())
            for measure, values in (('arrival', arrival), ('perfusion', perfusion)):
                row[f'{measure}_{side}'] = float(values[inside].mean()) if inside.any() else np.nan
        row['asymmetry'] = row['perfusion_left'] - row['perfusion_right']  # type: ignore[operator]
        rows.append(row)
    columns = ['region', 'voxels_left', 'voxels_right', 'arrival_left', 'arrival_right']
    columns += ['perfusion_left', 'perfusion_right', 'asymmetry']
    return pd.DataFrame(rows, columns=columns)
