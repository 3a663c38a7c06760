"""The perfusion-deficit model: which brain regions each NIHSS item depends on.

Works on maps of a template, as files or arrays, and a table of ordinal scores. Must not know BIDS,
Nipype, where a template comes from, or how a perfusion map was computed.
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
    'Drawing': 'models.base',
    'FoldPrediction': 'validation',
    'Grid': 'grid',
    'Item': 'result',
    'ItemMetrics': 'validation',
    'Lattice': 'stacking',
    'ModelFit': 'models.base',
    'NullCalibration': 'inference',
    'Offers': 'models.base',
    'PerfusionModel': 'perfusion_model',
    'Predictions': 'result',
    'Prepared': 'preparation',
    'Stability': 'inference',
    'Stack': 'stacking',
    'Validation': 'validation',
    'bootstrap': 'inference',
    'check_grids': 'stacking',
    'clusters_table': 'tables',
    'coarse_maps': 'preparation',
    'coverage_resemblance': 'inference',
    'cross_validate': 'validation',
    'find_clusters': 'inference',
    'fit': 'fitting',
    'fit_fold': 'validation',
    'get_model': 'models',
    'make_lattice': 'stacking',
    'merge_folds': 'validation',
    'metrics_table': 'tables',
    'model_names': 'models',
    'null_calibration': 'inference',
    'null_table': 'tables',
    'positive_asymmetry': 'preparation',
    'predictions_table': 'tables',
    'prepare': 'preparation',
    'register': 'models',
    'shuffle_scores': 'inference',
    'stability_table': 'tables',
    'stack': 'stacking',
    'summary_table': 'tables',
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f'{__name__}.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
