"""Options of the phantom: the occlusion, the person and the scanner. Standard library only.

Must not know how any of it is computed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

#: Segments that can be occluded, and 'none' for a person whose arteries are all open.
OCCLUSION_SITES = ('none', 'ICA', 'M1', 'M2sup', 'M2inf', 'A2', 'P1', 'P2', 'BA')
#: Sites without a side.
MIDLINE_SITES = ('none', 'BA')
#: How contrast reaches the tissue; see `phantom.physics`.
PHYSICS = ('network', 'dispersion', 'filling')
#: Tube voltages, kV, with the contrast of iodine and that of grey against white matter over those
#: at 120 kV. Iodine after Bae, Radiology 2010; grey and white at 100 kV after Nakamura et al., Adv
#: Comput Tomogr 2019 (8.66 against 7.08 HU), the others along the curve of iodine.
VOLTAGES = {80: (1.6, 1.6), 100: (1.25, 1.22), 120: (1.0, 1.0), 140: (0.85, 0.87)}


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """One arterial occlusion and how well the tissue beyond it is supplied from elsewhere.

    Parameters
    ----------
    site : str
        One of `OCCLUSION_SITES`. 'ICA' is the carotid terminus with the first millimetres of M1
        and A1 (carotid T); 'BA' the basilar's last millimetres with the first of both P1. Neither
        uses `position`.
    side : {'L', 'R'}
        The person's left or right. Without meaning for 'none' and 'BA'.
    collaterals : float
        Grade of the leptomeningeal collaterals, 0 (hardly any) to 1 (excellent).
    position : float
        Where along the segment the clot begins, 0 (origin) to 1 (end).
    length : float
        Length of the clot, mm. Intracranial thrombi are mostly 5 to 20 mm long (Riedel et al.,
        Stroke 2011).
    onset_hours : float
        Time from onset to the scan, h.
    """

    site: str = 'M1'
    side: str = 'L'
    collaterals: float = 0.5
    position: float = 0.3
    length: float = 10.0
    onset_hours: float = 3.0

    def __post_init__(self) -> None:
        if self.site not in OCCLUSION_SITES:
            raise ValueError(f'site is {self.site!r}; it must be one of {OCCLUSION_SITES}')
        if self.side not in ('L', 'R'):
            raise ValueError(f"side is {self.side!r}; it must be 'L' or 'R'")
        for name in ('collaterals', 'position'):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f'{name} is {getattr(self, name)}; it must lie between 0 and 1')
        if self.length <= 0 or self.onset_hours < 0:
            raise ValueError('the length of a clot and the hours from onset cannot be negative')


@dataclass(frozen=True, kw_only=True)
class ScanErrors:
    """What makes a CTA differ from the NCCT beside contrast. All 0 by default.

    Parameters
    ----------
    offset : float
        HU on all of the head: scanners are calibrated to some 4 HU of water (American College of
        Radiology, CT accreditation: 0 +- 5 HU).
    shading : tuple of three float
        HU at the edges of the head to the right, front and top, its middle being 0; the other
        edges have the opposite.
    cupping : float
        HU by which the rim of the head is brighter than its middle.
    patches, patches_mm : float
        Standard deviation, HU, of noise that is correlated over so many mm (Gaussian).
    noise : float
        Standard deviation, HU, of white noise that is added in voxels of 1 mm.
    gain : float
        What the contrast of the scan is multiplied by: another voltage or concentration.
    movement : float
        mm by which the head has moved sideways when the scanner reaches its top; half of it to
        either side.
    """

    offset: float = 0.0
    shading: tuple[float, float, float] = (0.0, 0.0, 0.0)
    cupping: float = 0.0
    patches: float = 0.0
    patches_mm: float = 10.0
    noise: float = 0.0
    gain: float = 1.0
    movement: float = 0.0

    def __post_init__(self) -> None:
        for name in ('patches', 'noise', 'gain'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} is {getattr(self, name)}; it cannot be negative')
        if self.patches_mm <= 0:
            raise ValueError(f'patches_mm is {self.patches_mm}; it must be above 0')


@dataclass(frozen=True, kw_only=True)
class ScannerSettings:
    """How the two scans are taken.

    Parameters
    ----------
    ncct_thickness, cta_thickness : float or None
        Slice thickness and distance, mm; None for the in-plane spacing.
    tilt : float
        Gantry tilt of the NCCT, degrees. The affine of the image carries the shear.
    ncct_noise, cta_noise : float
        Standard deviation of the noise in 1 mm of brain, HU. It falls with the square root of
        the slice's thickness.
    psf : float
        Full width at half maximum of the in-plane point spread, mm.
    phase : float or None
        Moment of the CTA after the arterial peak at the skull base, s: -3 is early arterial,
        2 peak arterial, 6 equilibrium, 12 late venous. None draws one.
    motion : bool
        Whether the head moves between the scans.
    peak : float or None
        Enhancement of the carotid at its peak, HU. None draws one.
    later : tuple of float
        Further phases of the CTA, s after the first: multi-phase CTA takes two, 8 s apart (Menon
        et al., Radiology 2015).
    cta_kvp : int
        Tube voltage of the CTA, one of `VOLTAGES`, kV; the NCCT has 120. At a lower one contrast
        and bone are brighter, and so is grey matter against white, which the subtraction then
        holds.
    errors : ScanErrors
        Of the CTA.
    """

    ncct_thickness: float | None = None
    cta_thickness: float | None = None
    tilt: float = 0.0
    ncct_noise: float = 6.0
    cta_noise: float = 11.0
    psf: float = 0.8
    phase: float | None = None
    motion: bool = True
    peak: float | None = None
    later: tuple[float, ...] = ()
    cta_kvp: int = 120
    errors: ScanErrors = ScanErrors()

    def __post_init__(self) -> None:
        if self.cta_kvp not in VOLTAGES:
            raise ValueError(f'cta_kvp is {self.cta_kvp}; it must be one of {tuple(VOLTAGES)}')
        if any(b <= a for a, b in itertools.pairwise((0.0, *self.later))):
            raise ValueError(f'later is {self.later}; it must rise from more than 0 s')
        for name in ('ncct_thickness', 'cta_thickness'):
            value = getattr(self, name)
            if value is not None and not 0.3 <= value <= 10.0:
                raise ValueError(f'{name} is {value}; it must lie between 0.3 and 10 mm')
        if not -30.0 <= self.tilt <= 30.0:
            raise ValueError(f'tilt is {self.tilt}; it must lie between -30 and 30 degrees')


@dataclass(frozen=True, kw_only=True)
class PersonSettings:
    """Who is scanned. None draws a value.

    Parameters
    ----------
    age : float or None
        Years; sets the atrophy and how often arteries are calcified.
    head_size : float or None
        Linear scale of the head against the template, about 0.93.
    warp_mm : float
        Standard deviation of the smooth deformation of the template, mm.
    old_infarct : bool or None
        Whether there is an old infarct.
    physics : str
        One of `PHYSICS`.
    stenosis : float
        Share of the diameter of one carotid that an old stenosis takes.
    stenosis_side : str
        ``'L'`` or ``'R'``.
    leukoaraiosis : float or None
        Extent of the disease of periventricular white matter, from 0 to 1. None draws none but
        the slight paling that comes with age.
    """

    age: float | None = None
    head_size: float | None = None
    warp_mm: float = 3.0
    old_infarct: bool | None = None
    physics: str = 'network'
    stenosis: float = 0.0
    stenosis_side: str = 'L'
    leukoaraiosis: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.stenosis <= 0.95:
            raise ValueError(f'stenosis is {self.stenosis}; it must lie between 0 and 0.95')
        if self.stenosis_side not in ('L', 'R'):
            raise ValueError(f"stenosis_side is {self.stenosis_side!r}; it must be 'L' or 'R'")
        if self.leukoaraiosis is not None and not 0 <= self.leukoaraiosis <= 1:
            raise ValueError(f'leukoaraiosis is {self.leukoaraiosis}; it must lie in 0 to 1')
        if self.physics not in PHYSICS:
            raise ValueError(f'physics is {self.physics!r}; it must be one of {PHYSICS}')
