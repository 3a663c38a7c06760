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
        `default`: the speed follows the level of contrast. `published`: the speed follows the
        vesselness of VTrails (Moriconi et al., TMI 2018), as in Tangwiriyasakul et al. 2026.
    window : tuple of float
        Range of the subtraction CTA - NCCT in HU; its upper end has level 1.
    exponent : float
        Power `p` of the speed `F = level ** p + floor`.
    floor : float
        Speed of tissue without contrast, as a share of that of a full vessel.
    denoise : float
        Standard deviation in mm of the Gaussian that the subtraction is smoothed by before it
        becomes a speed. Parenchymal noise is rectified by the window and would carry the front.
    vein_suppression : float
        Share of the level that is taken away where the vein prior is 1.
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
    denoise: float = 0.7
    vein_suppression: float = 1.0
    dilation: float = 4.0
    bone: float = 130.0
