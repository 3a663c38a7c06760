"""One interface for all models. Must not know what a model does inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.models import get_model
from bids_perfdeficit.deficit.models.base import ModelFit
from bids_perfdeficit.deficit.preparation import (
    Prepared,
    check_covariates,
    find_covered,
    prepare,
)
from bids_perfdeficit.deficit.result import DeficitFit, Item
from bids_perfdeficit.deficit.settings import DeficitSettings
from bids_perfdeficit.errors import InputError


def fit(
    maps: NDArray[np.float32] | Prepared,
    scores: NDArray[np.float64],
    covariates: NDArray[np.float64] | None = None,
    *,
    mask: Grid,
    items: Sequence[Item],
    model: str = 'spatial',
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
    model : str
        The name of a registered model; see `model_names`.
    settings : DeficitSettings, optional
    checkpoint : path, optional
        Where long training keeps its state, and goes on from when the file is there.

    Returns
    -------
    DeficitFit

    Raises
    ------
    InputError
        If there is no such model, shapes do not agree, a score lies outside its range, there are
        fewer than 10 participants or no item can be fitted. Single items that cannot be fitted
        are in ``skipped``.
    """
    settings = settings or DeficitSettings()
    items = tuple(items)
    own = get_model(model)
    scores = check_scores(scores, items)
    prepared = maps if isinstance(maps, Prepared) else prepare(maps, mask, settings)
    if len(scores) != prepared.n_participants:
        raise InputError(
            f'{len(scores)} rows of scores for {prepared.n_participants} maps',
            fix='give one row per map, in the same order',
        )
    covariates = check_covariates(covariates, len(scores))
    found = own.fit(
        prepared, scores, covariates, items, settings,
        checkpoint=None if checkpoint is None else Path(checkpoint),
    )  # fmt: skip
    confine(found, prepared, scores, settings)
    result = as_fit(model, prepared, items, settings, found)
    if len(result.skipped) == len(items):
        first = next(iter(result.skipped.items()))
        raise InputError(
            f'no item can be fitted ({first[0]}: {first[1]})',
            fix='check the table of scores against the maps that there are',
        )
    return result


def confine(
    found: ModelFit, prepared: Prepared, scores: NDArray[np.float64], settings: DeficitSettings
) -> None:
    """Empty the maps of each item where too few of those who have its score are affected.

    See `preparation.find_covered`. Arrays are changed in place.
    """
    if not settings.as_given or not found.effect.shape[1]:
        return
    for k in found.usable:
        scored = np.flatnonzero(np.isfinite(scores[:, k]))
        covered = find_covered(prepared, scored, settings).astype(float)
        inside = prepared.coarse.resample_to(covered, prepared.grid) >= 0.5
        for values in (found.effect, found.std, found.probability):
            values[k] *= inside  # a map that the model does not offer stays NaN
        found.declared[k] &= inside


def as_fit(
    model: str,
    prepared: Prepared,
    items: tuple[Item, ...],
    settings: DeficitSettings,
    found: ModelFit,
) -> DeficitFit:
    """Return what a model found, beside what all fits have."""
    return DeficitFit(
        model=model,
        items=items,
        grid=prepared.grid,
        coarse=prepared.coarse,
        effect=found.effect,
        std=found.std,
        probability=found.probability,
        declared=found.declared,
        cut=found.cut,
        p_value=found.p_value,
        readout=found.readout,
        settings=settings,
        generative=prepared.generative,
        healthy=found.healthy,
        skipped=found.skipped,
        details=dict(found.details),
    )


def check_scores(scores: NDArray[np.float64], items: tuple[Item, ...]) -> NDArray[np.float64]:
    """Return scores as floats.

    Raises
    ------
    InputError
        If a column is missing, or a score is not a whole number in its item's range.
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
                f'which is not one of 0 to {item.levels - 1}',
                fix='correct it, or mark it as missing (n/a)',
            )
    return np.where(np.isfinite(scores), scores, np.nan)
