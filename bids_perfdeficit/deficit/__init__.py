"""The perfusion-deficit model: which brain regions each NIHSS item depends on.

Works on arrays of maps and a table of ordinal scores. Must not know images' files, BIDS, Nipype,
or how a perfusion map was computed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Public name -> submodule, none of which has a public name itself (importing a submodule sets it
#: as an attribute here). Loaded on first use, so that importing the package costs nothing.
_PUBLIC: dict[str, str] = {
    'Cluster': 'inference',
    'DeficitFit': 'result',
    'DeficitModel': 'models.base',
    'DeficitSettings': 'settings',
    'FoldPrediction': 'validation',
    'Grid': 'grid',
    'Drawing': 'models.base',
    'Item': 'result',
    'ItemMetrics': 'validation',
    'ModelFit': 'models.base',
    'NullCalibration': 'inference',
    'Offers': 'models.base',
    'PerfusionModel': 'perfusion_model',
    'Predictions': 'result',
    'Prepared': 'preparation',
    'Stability': 'inference',
    'Validation': 'validation',
    'bootstrap': 'inference',
    'coarse_maps': 'preparation',
    'coverage_resemblance': 'inference',
    'cross_validate': 'validation',
    'find_clusters': 'inference',
    'fit': 'fitting',
    'fit_fold': 'validation',
    'get_model': 'models',
    'merge_folds': 'validation',
    'model_names': 'models',
    'null_calibration': 'inference',
    'positive_asymmetry': 'preparation',
    'prepare': 'preparation',
    'register': 'models',
    'shuffle_scores': 'inference',
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f'{__name__}.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
