"""The registry of deficit models: their names, and their objects on first use.

A model is a file of this package and a line of `_REGISTRY`, or an object that is handed to
`register`. Importing this module takes no time, so that the command line can offer the names.
Must not know what a model does; that is in its own module, behind `base.DeficitModel`.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, NewType

from bids_perfdeficit.errors import InputError

if TYPE_CHECKING:
    from bids_perfdeficit.deficit.models.base import DeficitModel

#: The name of a registered model, as users give it.
ModelName = NewType('ModelName', str)

#: Name -> ``module:class`` of this package, or the model itself; the default first.
_REGISTRY: dict[str, str | DeficitModel] = {
    'spatial': 'spatial:Spatial',
    'deep': 'deep:Deep',
    'vae': 'vae:PublishedVAEModel',
    'ridge': 'ridge:Ridge',
    'voxelwise': 'voxelwise:Voxelwise',
}


def model_names() -> tuple[str, ...]:
    """Return the names of all models, the default first."""
    return tuple(_REGISTRY)


def get_model(name: str) -> DeficitModel:
    """Return a model; its module is imported on first use.

    Raises
    ------
    InputError
        If no model has this name.
    """
    if name not in _REGISTRY:
        raise InputError(
            f'{name!r} is not a deficit model', fix=f'choose from {", ".join(model_names())}'
        )
    found = _REGISTRY[name]
    if isinstance(found, str):
        module, _, attribute = found.partition(':')
        model: DeficitModel = getattr(import_module(f'{__name__}.{module}'), attribute)()
        _REGISTRY[name] = found = model
    return found


def register(model: DeficitModel) -> None:
    """Offer a model under its name, in this process and in those that it forks.

    Parameters
    ----------
    model : DeficitModel

    Raises
    ------
    InputError
        If the name is taken, or is not made of lower-case letters and digits: it becomes part of
        file names (``model-<name>``).
    """
    if not re.fullmatch('[a-z][a-z0-9]*', model.name):
        raise InputError(
            f'{model.name!r} cannot be the name of a model',
            fix='use lower-case letters and digits, a letter first',
        )
    if model.name in _REGISTRY:
        raise InputError(
            f'there is a model named {model.name!r} already', fix='give it another name'
        )
    _REGISTRY[model.name] = model


def unregister(name: str) -> None:
    """Remove a model that `register` added."""
    _REGISTRY.pop(name)
