"""Draw the picture of the phantom's page: NCCT, CTA projections and true delay of one patient.

Usage: python scripts/phantom_picture.py [docs/_static/phantom.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use('Agg')
import matplotlib.pyplot as plt

from bids_perfdeficit.phantom.patient import Patient, make_patient
from bids_perfdeficit.phantom.settings import Occlusion, PersonSettings, ScannerSettings

#: Heights of the three slices in the brain, 0 at its base and 1 at the vertex.
_HEIGHTS = (0.38, 0.52, 0.72)


def draw(patient: Patient, path: Path) -> None:
    """Save the picture; the patient's right is on the left, as radiologists look at it."""
    ncct, delay = (np.asarray(i.dataobj) for i in (patient.ncct, patient.truth.delay))
    brain = np.asarray(patient.truth.brain.dataobj) > 0
    # Projections are drawn of what the contrast added: bone would hide the arteries.
    rise = np.asarray(patient.truth.enhancement.dataobj)
    slices = np.flatnonzero(brain.any((0, 1)))
    chosen = [int(slices[int(h * (len(slices) - 1))]) for h in _HEIGHTS]
    figure, axes = plt.subplots(3, 3, figsize=(7.5, 8.4), facecolor='black')
    for column, k in enumerate(chosen):
        for row in (0, 1):
            axes[row, column].imshow(
                ncct[::-1, :, k].T, cmap='gray', vmin=0, vmax=80, origin='lower'
            )
        shown = np.where(brain, delay, np.nan)[::-1, :, k].T
        colours = axes[1, column].imshow(
            shown, cmap='turbo', vmin=0, vmax=12, alpha=0.75, origin='lower'
        )
    for column, (axis, name) in enumerate(((1, 'front'), (0, 'side'), (2, 'top'))):
        view = rise.max(axis)
        view = view.T if axis == 0 else view[::-1].T
        axes[2, column].imshow(view, cmap='gray', vmin=20, vmax=320, origin='lower')
        axes[2, column].set_title(f'contrast, from the {name}', color='white', fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis in (*axes[:2].flat, axes[2, 0], axes[2, 2]):
        for x, side in ((0.02, 'R'), (0.94, 'L')):
            axis.text(x, 0.02, side, color='white', transform=axis.transAxes, fontsize=8)
    axes[0, 1].set_title('non-contrast CT, 0 to 80 HU', color='white', fontsize=8)
    axes[1, 1].set_title('true delay', color='white', fontsize=8)
    bar = figure.colorbar(colours, ax=axes, shrink=0.4, pad=0.02)
    bar.set_label('s', color='white')
    bar.ax.tick_params(colors='white')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=115, bbox_inches='tight', pil_kwargs={'optimize': True})
    plt.close(figure)


if __name__ == '__main__':
    draw(
        make_patient(
            21,
            Occlusion(site='M1', side='L', collaterals=0.35, position=0.2),
            scanner=ScannerSettings(phase=-1.0, peak=380),
            person=PersonSettings(age=68),
        ),
        Path(sys.argv[1] if len(sys.argv) > 1 else 'docs/_static/phantom.png'),
    )
