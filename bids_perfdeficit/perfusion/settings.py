"""The options of computed perfusion. Standard library only; must not know where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PerfusionSettings:
    """How a perfusion map is computed.

    Parameters
    ----------
    arrival : {'isotropic', 'anisotropic'}
        Whether fronts run faster along a vessel than across it.
    recipe : {'default', 'published'}
        `published`: the arrival of VTrails (Moriconi et al., TMI 2018), as in Tangwiriyasakul et
        al. 2026. `default`: that arrival without veins, joined with the tissue's own
        enhancement and other signs by a network that was fitted on digital patients.
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

    arrival: Literal['isotropic', 'anisotropic'] = 'isotropic'
    recipe: Literal['default', 'published'] = 'default'
    window: tuple[float, float] = (0.0, 300.0)
    exponent: float = 2.0
    floor: float = 0.01
    vein_suppression: float = 1.0
    dilation: float = 4.0
    bone: float = 130.0
