"""Head CT geometry: reading, conforming, brain extraction and registration.

Knows Hounsfield units, affines and templates. Must not know BIDS names, Nipype, perfusion or
scores. Images are nibabel images with (X, Y, Z) arrays; the conformed ones are in RAS order.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Public name -> submodule. Loaded on first use, so that importing the room costs nothing.
_PUBLIC: dict[str, str] = {
    'Brain': 'brain',
    'extract_brain': 'brain',
    'Conformed': 'conforming',
    'Coverage': 'conforming',
    'conform': 'conforming',
    'resample': 'conforming',
    'check_pair': 'quality',
    'measure_pair': 'quality',
    'measure_quality': 'quality',
    'sidecar_metrics': 'quality',
    'CTVolume': 'reading',
    'Geometry': 'reading',
    'Scale': 'hounsfield',
    'read_ct': 'reading',
    'RigidResult': 'registration',
    'TemplateTransform': 'registration',
    'apply_transform': 'registration',
    'read_rigid': 'registration',
    'register_cta': 'registration',
    'register_template': 'registration',
    'write_rigid': 'registration',
    'Template': 'templates',
    'load_template': 'templates',
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f'{__name__}.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
