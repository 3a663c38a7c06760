"""The options of computed perfusion, with their ranges.

Standard library only. Must not know where the options come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bids_perfdeficit.ranges import RangeError, find_problems, ranged


@dataclass(frozen=True)
class PerfusionSettings:
    """How a perfusion map is computed.

    Parameters
    ----------
    arrival : {'auto', 'isotropic', 'anisotropic'}
        Whether fronts run faster along a vessel than across it. `auto`: as the recipe has it,
        which is anisotropic for `published` and isotropic for `default`.
    recipe : {'default', 'published'}
        `published`: the arrival of VTrails (Moriconi et al., TMI 2018), as in Tangwiriyasakul et
        al. 2026. `default`: arrival without veins, joined with the tissue's own enhancement and
        other features by a network that was fitted on digital patients.
    reference_field : {'fitted', 'none'}
        `fitted`: shading between the scans is estimated together with the enhancement and taken
        away from the subtraction. `none`: it stays.
    window : tuple of float
        Range of the subtraction CTA - NCCT in HU.
    exponent : float
        Power `p` of the speed `F = vesselness ** p + floor`.
    floor : float
        Speed of tissue without contrast, as a share of that of a full vessel.
    vein_suppression : float
        Share of the vesselness that is taken away where the vein prior is 1.
    dilation : float
        mm by which the brain is grown for the front to follow arteries on its surface.
    bone : float
        HU of the NCCT from which a voxel outside the brain is bone, where no front runs.
    """

    arrival: Literal['auto', 'isotropic', 'anisotropic'] = 'auto'
    recipe: Literal['default', 'published'] = 'default'
    reference_field: Literal['fitted', 'none'] = 'fitted'
    window: tuple[float, float] = ranged((0.0, 300.0), -1000, 3000, unit='HU')
    exponent: float = ranged(2.0, 0, 10, above=True)
    # With 0 no front would reach tissue without contrast; at 1 vessels would not matter.
    floor: float = ranged(0.01, 0.0001, 1, why='a share of the speed in a full vessel')
    vein_suppression: float = ranged(1.0, 0, 1)
    # Beyond 20 mm the front would run through the scalp.
    dilation: float = ranged(4.0, 0, 20, unit='mm')
    # Below 80 HU fresh blood would count as bone.
    bone: float = ranged(130.0, 80, 1000, unit='HU')

    def __post_init__(self) -> None:
        problems = find_problems(self)
        if 'window' not in problems and not self.window[0] < self.window[1]:
            problems['window'] = f'{list(self.window)}: the second value must be the larger one'
        if problems:
            raise RangeError(problems)

    @property
    def metric(self) -> Literal['isotropic', 'anisotropic']:
        """The metric of the arrival: `arrival`, or that of the recipe where it is ``'auto'``."""
        if self.arrival != 'auto':
            return self.arrival
        return 'anisotropic' if self.recipe == 'published' else 'isotropic'
