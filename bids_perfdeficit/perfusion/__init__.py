"""Computed perfusion: from NCCT, CTA and a brain mask to the arrival of contrast.

Works on torch tensors in (Z, Y, X) order with the spacing in mm in that same order, so that it
runs in a notebook and on any device. Must not know files, BIDS, templates on disk, or Nipype.

The one exception to the order are `inflow_prior` and `vein_prior`: they are made on a template's
own grid, from its shape and affine, as (X, Y, Z) arrays, because they are warped as images.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Public name -> submodule. Loaded on first use, so that importing the room costs nothing.
_PUBLIC: dict[str, str] = {
    'Enhancement': 'synthesis',
    'OcclusionFinding': 'occlusion',
    'PerfusionMaps': 'synthesis',
    'PerfusionSettings': 'settings',
    'Sources': 'sources',
    'aspects_regions': 'regions',
    'asymmetry': 'synthesis',
    'calibration': 'combination',
    'enhance': 'synthesis',
    'evidence': 'occlusion',
    'find_occlusion': 'occlusion',
    'find_sources': 'sources',
    'inflow_prior': 'priors',
    'measure_regions': 'regions',
    'orientation_metric': 'vessels',
    'solve_eikonal': 'eikonal',
    'subtract': 'synthesis',
    'synthesize': 'synthesis',
    'territories': 'regions',
    'vein_prior': 'priors',
    'vesselness': 'vessels',
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f'{__name__}.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
