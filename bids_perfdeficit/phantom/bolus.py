"""The contrast bolus: enhancement of blood and tissue at the moment of the scan.

Knows nothing of anatomy or images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

#: Step of the curves, s; dispersion times for which they are tabulated, s.
_STEP = 0.25
_DISPERSION = np.array([0.05, 0.3, 0.6, 1.0, 1.5, 2.2, 3.2, 4.5, 6.5, 9.0, 13.0, 20.0, 28.0])
_TIMES = np.arange(-10.0, 80.0, _STEP)


@dataclass(frozen=True)
class Bolus:
    """One injection and the moment at which it is scanned.

    Parameters
    ----------
    peak : float
        Enhancement of the carotid at its peak, HU.
    phase : float
        Moment of the scan after the arterial peak at the reference artery, s.
    width : float
        Duration of the injection, s. 60 to 80 mL at 4 to 5 mL/s are usual for a CTA.
    """

    peak: float
    phase: float
    width: float = 13.0

    def _table(self) -> Floats:
        """Concentration, (dispersion, time), relative to the undispersed peak."""
        # The injection through heart and lungs: a box, a gamma variate (Bae, Radiology 2010),
        # and a tail of recirculation.
        gamma_time = np.arange(0, 40, _STEP)
        # Its width makes arteries and veins equally bright about 4 s after the peak.
        gamma = gamma_time**2 * np.exp(-gamma_time / 2.0)
        box = ((_TIMES >= 0) & (self.width > _TIMES)).astype(float)
        curve = np.convolve(box, gamma / gamma.sum())[: len(_TIMES)]
        curve += 0.3 * (1 - np.exp(-np.clip(_TIMES - 4, 0, None) / 20))
        curve /= curve.max()
        rows = []
        for tau in _DISPERSION:
            kernel = np.exp(-np.arange(0, 6 * tau + _STEP, _STEP) / tau)
            rows.append(np.convolve(curve, kernel / kernel.sum())[: len(_TIMES)])
        return np.array(rows)

    @property
    def time_to_peak(self) -> float:
        """Time from the first contrast at the reference artery to its peak, s."""
        return float(_TIMES[int(np.argmax(self._table()[0]))])

    def blood(self, arrival: Floats, dispersion: Floats) -> Floats:
        """Enhancement, HU, of blood that arrives `arrival` s late, smeared by `dispersion` s."""
        table = self._table()
        peak_time = _TIMES[int(np.argmax(table[0]))]
        when = np.clip(peak_time + self.phase - np.asarray(arrival), _TIMES[0], _TIMES[-1])
        column = (when - _TIMES[0]) / _STEP
        row = np.interp(dispersion, _DISPERSION, np.arange(len(_DISPERSION)))
        from scipy.ndimage import map_coordinates

        shape = np.shape(arrival)
        found = map_coordinates(
            table, [np.ravel(np.broadcast_to(row, shape)), np.ravel(column)], order=1,
            mode='nearest',
        )  # fmt: skip
        return np.asarray(self.peak * found.reshape(shape))
