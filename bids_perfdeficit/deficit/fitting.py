"""One interface for all models. Must not know what a model does inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.preparation import Prepared, check_covariates, prepare
from bids_perfdeficit.deficit.result import DeficitFit, Item
from bids_perfdeficit.deficit.settings import MODELS, DeficitSettings, Model
from bids_perfdeficit.errors import InputError


def fit(
    maps: NDArray[np.float32] | Prepared,
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64] | None = None,
    *,
    mask: Grid,
    items: Sequence[Item],
    model: Model = 'spatial',
    settings: DeficitSettings | None = None,
    checkpoint: str | Path | None = None,
) -> DeficitFit:
    """Infer the substrate of every item.

    Parameters
    ----------
    maps : (N, V) float32 array or Prepared
        Perfusion in [0, 1] on the voxels of `mask`, higher is worse, NaN where not scanned. May
        be memory-mapped. Give the result of `prepare` to share its work between fits.
    scores : (N, K) float array
        Ordinal scores 0 ... levels - 1, one column per item; NaN where untestable or missing.
    covariates : (N, C) float array, optional
        Nuisance, e.g. age or the total volume of the deficit. NaN counts as the mean.
    mask : Grid
    items : sequence of Item
    model : {'spatial', 'vae', 'ridge', 'voxelwise'}
    settings : DeficitSettings, optional
    checkpoint : path, optional
        Where long training (`vae`) keeps its state, and goes on from when the file is there.

    Returns
    -------
    DeficitFit

    Raises
    ------
    InputError
        If shapes do not agree, a score lies outside its range, a participant number is under 10
        or no item can be fitted. Single items that cannot be fitted are in ``skipped``.
    """
    settings = settings or DeficitSettings()
    items = tuple(items)
    if model not in MODELS:
        raise InputError(f'{model!r} is no deficit model', fix=f'choose from {", ".join(MODELS)}')
    scores = check_scores(scores, items)
    prepared = maps if isinstance(maps, Prepared) else prepare(maps, mask, settings)
    if len(scores) != prepared.n_participants:
        raise InputError(
            f'{len(scores)} rows of scores for {prepared.n_participants} maps',
            fix='give one row per map, in the same order',
        )
    covariates = check_covariates(covariates, len(scores))
    more = {'checkpoint': checkpoint} if model == 'vae' else {}
    parts = fitter(model)(prepared, scores, covariates, items, settings, **more)
    result = assemble(model, prepared, items, settings, parts)
    if len(result.skipped) == len(items):
        first = next(iter(result.skipped.items()))
        raise InputError(
            f'no item can be fitted ({first[0]}: {first[1]})',
            fix='check the table of scores against the maps that there are',
        )
    return result


def shared_work(model: Model, prepared: Prepared, settings: DeficitSettings) -> dict[str, Any]:
    """Return what a model computes from maps alone, as arguments that its fits can share."""
    if model == 'spatial':
        from bids_perfdeficit.deficit.spatial import lay_out

        return {'places': lay_out(prepared, settings)}
    if model == 'ridge':
        from bids_perfdeficit.deficit.ridge import smooth

        return {'smoothed': smooth(prepared, settings)}
    return {}


def fitter(model: Model) -> Callable[..., dict[str, Any]]:
    """Return a model's function; its module is imported only now."""
    module = import_module(f'bids_perfdeficit.deficit.{model}')
    function: Callable[..., dict[str, Any]] = getattr(module, f'fit_{model}')
    return function


def assemble(
    model: Model,
    prepared: Prepared,
    items: tuple[Item, ...],
    settings: DeficitSettings,
    parts: dict[str, Any],
) -> DeficitFit:
    """Put what a model found beside what all fits have."""
    return DeficitFit(
        model=model,
        items=items,
        grid=prepared.grid,
        coarse=prepared.coarse,
        settings=settings,
        generative=prepared.generative,
        **parts,
    )


def check_scores(scores: NDArray[np.float64], items: tuple[Item, ...]) -> NDArray[np.float64]:
    """Return scores as floats.

    Raises
    ------
    InputError
        If a column is missing, or a score is no whole number in its item's range.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or scores.shape[1] != len(items) or not items:
        raise InputError(
            f'scores of shape {scores.shape} do not fit {len(items)} items',
            fix='give one column per item',
        )
    names = [item.name for item in items]
    if len(set(names)) != len(names):
        raise InputError('two items have the same name', fix='name each item once')
    for k, item in enumerate(items):
        column = scores[:, k][np.isfinite(scores[:, k])]
        wrong = column[(column < 0) | (column >= item.levels) | (column != np.rint(column))]
        if len(wrong):
            raise InputError(
                f'item {item.name} has the score {wrong[0]:g}, '
                f'which is none of 0 to {item.levels - 1}',
                fix='correct it, or mark it as missing (n/a)',
            )
    return np.where(np.isfinite(scores), scores, np.nan)
