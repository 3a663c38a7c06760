"""The perfusion-deficit model: which brain regions each NIHSS item depends on.

Works on arrays of maps and a table of ordinal scores. Must not know images' files, BIDS, Nipype,
or how a perfusion map was computed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Public name -> submodule. Loaded on first use, so that importing the room costs nothing.
_PUBLIC: dict[str, str] = {
    'MODELS': 'settings',
    'Cluster': 'inference',
    'DeficitFit': 'result',
    'DeficitSettings': 'settings',
    'Grid': 'grid',
    'Item': 'result',
    'PerfusionModel': 'perfusion_model',
    'Predictions': 'result',
    'Prepared': 'prepare',
    'Validation': 'validation',
    'bootstrap': 'inference',
    'coverage_resemblance': 'inference',
    'cross_validate': 'validation',
    'find_clusters': 'inference',
    'fit': 'fit',
    'fit_fold': 'validation',
    'null_calibration': 'inference',
    'prepare': 'prepare',
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f'{__name__}.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
