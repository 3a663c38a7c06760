"""Figures and pages for people: what was found in a patient and in a cohort.

Draws from images and tables that are handed in; must not compute any of the results that it
shows. Every brain is shown as radiologists read CT: the patient's right is on the left of the
picture, anterior is up or, from the side, on the left; every row carries its marks.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Public name -> submodule. Loaded on first use, so that importing the room costs nothing.
_PUBLIC: dict[str, str] = {
    'draw_asymmetry': 'figures',
    'draw_brain_outline': 'figures',
    'draw_flicker': 'figures',
    'draw_map_mosaic': 'figures',
    'draw_subtraction_mip': 'figures',
    'FIGURES': 'participant',
    'build_page': 'page',
    'build_participant_report': 'participant',
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f'{__name__}.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
