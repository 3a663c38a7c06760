"""A digital stroke patient and cohort whose vessels, delays and scores are all known.

Its physics is flow along a grown vascular tree. It must never import the algorithms of `ct`,
`perfusion` or `deficit` that it is there to test.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Public name -> submodule. Loaded on first use, so that importing the room costs nothing.
_PUBLIC: dict[str, str] = {
    'Cohort': 'cohort',
    'Occlusion': 'settings',
    'Patient': 'patient',
    'PersonSettings': 'settings',
    'ScannerSettings': 'settings',
    'draw_scores': 'scores',
    'make_cohort': 'cohort',
    'make_patient': 'patient',
    'substrates': 'scores',
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f'{__name__}.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
