"""One cohort: from the maps and scores of many participants to a fit, and what is written of it.

Joins what the domain packages must not know of each other: maps on a template, scores of BIDS,
models, arterial territories, and what sidecars say. Must not know Nipype, the command line, or
where outputs lie.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bids_perfdeficit import ct, deficit
from bids_perfdeficit.bids import sidecar_path
from bids_perfdeficit.bids.cohort import TOTAL_VOLUME, contrast_label, item_levels, item_mirror
from bids_perfdeficit.data import load
from bids_perfdeficit.errors import InputError

if TYPE_CHECKING:
    from bids_perfdeficit.deficit import (
        DeficitFit,
        DeficitSettings,
        FoldPrediction,
        Grid,
        Item,
        Lattice,
        NullCalibration,
        Predictions,
        Prepared,
        Stability,
        Stack,
        Validation,
    )

# ------------------------------------------------------------------------------------------------
# One cohort: from the maps and scores of many participants to a fit, and what is written of it.
#
#   stack = stack_cohort(maps, masks, 'maps.npy', space='MNI152NLin2009aSym', resolution=4)
#   data = match_cohort(stack.measures, participants, items, scores)
#   prepared = prepare_cohort(stack.values, stack.grid, settings)
#   fit = fit_model(prepared, data, 'spatial', settings)
#   validation = validate_model(prepared, data, 'spatial', settings, folds=5)
#   predictions = apply_model(fit, other_stack.values, other_data)
# ------------------------------------------------------------------------------------------------

#: mm of the participants' maps on the template.
MAP_SPACING = 2.0
#: What sidecars say instead where users give the maps.
_GIVEN: Mapping[str, Mapping[str, Any]] = {
    'group_coverage': {
        'Description': 'Share of participants who are affected in each voxel: above MapThreshold '
        'in more than half of it'
    },
    'group_cohort': {
        TOTAL_VOLUME: {
            'Description': 'Volume above MapThreshold on the grid of the map; of a lesion map, '
            'the volume of the lesion',
            'Units': 'mL',
        },
        'side': {
            'Description': 'Mean of the map in the left minus that in the right hemisphere; above '
            '0 the left is more affected',
            'Units': 'arbitrary',
        },
    },
}
#: Column of the measures of a stack: the recipe that a map was computed by, as its sidecar says.
RECIPE = 'recipe'


@dataclass(frozen=True, eq=False)
class CohortData:
    """Scores and covariates of the participants whose maps were stacked, in the same order.

    Parameters
    ----------
    participants : tuple of str
        N labels, without ``sub-``.
    items : tuple of Item
    scores : (N, K) array
        As levels, which models take; NaN where missing or not known.
    covariates : (N, C) array
        C may be 0.
    covariate_names : tuple of str
    facts : mapping
        What the sidecar of each output says of how it was made, e.g. ``MapKind``.
    values : (N, K) array, optional
        The scores in their own units; by default the levels.
    groups : tuple of str, optional
        N names, e.g. of sites, that folds keep whole.
    """

    participants: tuple[str, ...]
    items: tuple[Item, ...]
    scores: NDArray[np.float64]
    covariates: NDArray[np.float64]
    covariate_names: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    values: NDArray[np.float64] | None = None
    groups: tuple[str, ...] | None = None

    @property
    def own_values(self) -> NDArray[np.float64]:
        """(N, K) scores in their own units."""
        return self.scores if self.values is None else self.values

    def save(self, path: Path) -> None:
        """Write everything to an ``.npz`` file."""
        plain = {
            'participants': self.participants,
            'items': [
                [item.name, item.levels, item.mirror, list(item.values)] for item in self.items
            ],
            'covariate_names': self.covariate_names,
            'facts': dict(self.facts),
            'groups': self.groups,
        }
        np.savez(
            path, plain=json.dumps(plain, default=str), scores=self.scores,
            covariates=self.covariates, values=self.own_values,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> CohortData:
        """Read back what `save` wrote."""
        with np.load(path) as content:
            plain = json.loads(str(content['plain']))
            return cls(
                tuple(plain['participants']),
                tuple(
                    deficit.Item(name, levels, mirror, tuple(values))
                    for name, levels, mirror, values in plain['items']
                ),
                content['scores'],
                content['covariates'],
                tuple(plain['covariate_names']),
                plain['facts'],
                content['values'],
                None if plain['groups'] is None else tuple(plain['groups']),
            )


@dataclass(frozen=True, eq=False)
class GroupOutput:
    """One file of the group level, before it has a place.

    Parameters
    ----------
    key : str
        Of ``data/io_spec.json``.
    content : DataFrame, Nifti1Image or DeficitFit
    facts : mapping
        For the sidecar, beside what the table of outputs says of the key.
    entities : mapping of str to str
        That the name needs: ``model``, ``contrast``, ``stat``.
    """

    key: str
    content: pd.DataFrame | nib.Nifti1Image | DeficitFit
    facts: Mapping[str, Any] = field(default_factory=dict)
    entities: Mapping[str, str] = field(default_factory=dict)


def make_lattice(space: str, resolution: float) -> Lattice:
    """Lay voxels of a size (mm, from 2) over the brain of a template.

    Raises
    ------
    InputError
        When the template is missing, or `resolution` is smaller than the voxels of the maps.
    """
    return deficit.make_lattice(_brain(space), resolution)


def check_grids(paths: Sequence[Path], space: str) -> dict[Path, str]:
    """Compare the headers of maps with a template.

    Returns
    -------
    dict of Path to str
        What is wrong with those that cannot be used.
    """
    return deficit.check_grids(paths, _brain(space), space)


def check_given(paths: Sequence[Path], space: str) -> dict[Path, str]:
    """Compare the headers of maps that users give with a template, on any grid of it.

    Returns
    -------
    dict of Path to str
        What is wrong with those that cannot be used.
    """
    return deficit.check_given(paths, _brain(space), space)


def stack_cohort(
    maps: Sequence[str | Path],
    masks: Sequence[str | Path],
    out: str | Path,
    *,
    space: str,
    resolution: float,
    asymmetry: bool = False,
    threshold: float | None = None,
    min_coverage: float = 0.0,
    fit: DeficitFit | None = None,
    threads: int = 1,
) -> Stack:
    """Read the maps of a cohort onto one grid, into one file.

    Parameters
    ----------
    maps, masks : sequence of path
        Map and brain mask of each participant, on the template at 2 mm. Maps that users give lie
        on any grid of the template and need no masks: the list may be empty.
    out : path
        ``.npy`` to write.
    space : str
        The template.
    resolution : float
        mm of the voxels that are analysed, from 2.
    asymmetry : bool
        Whether maps are signed asymmetries; their positive part is kept.
    threshold : float, optional
        Set for maps that users give: the value above which a voxel is affected, 0.5 for masks and
        probabilities of a lesion.
    min_coverage : float
        Least share of participants with a deficit in a voxel.
    fit : DeficitFit, optional
        A fit whose voxels are used.
    threads : int
        Files that are read at once.

    Returns
    -------
    Stack
        Its ``measures`` have a column ``recipe`` where the sidecars of the maps name one; maps
        that cannot be used are in ``dropped`` with the reason.

    Raises
    ------
    InputError
        When no map can be used, no voxel is covered, or the voxels of the fit are others.
    """
    files = [Path(path) for path in maps]
    stack = deficit.stack(
        files,
        [Path(path) for path in masks] or [None] * len(files),
        Path(out),
        lattice=make_lattice(space, resolution),
        asymmetry=asymmetry,
        threshold=threshold,
        min_coverage=min_coverage,
        grid=None if fit is None else fit.grid,
        mean=None if fit is None else fit.coarse.resample_to(fit.generative.mean, fit.grid),
        threads=threads,
    )
    recipes = [_read_recipe(files[position]) for position in stack.measures.index]
    if not any(recipes):
        return stack
    measures = stack.measures.copy()
    measures[RECIPE] = recipes
    return replace(stack, measures=measures)


def match_cohort(
    measures: pd.DataFrame,
    participants: Sequence[str],
    items: Sequence[str | Item],
    scores: ArrayLike,
    covariates: ArrayLike | None = None,
    *,
    values: ArrayLike | None = None,
    covariate_names: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    groups: Sequence[str] | None = None,
) -> CohortData:
    """Match scores and covariates with the maps that could be read.

    Parameters
    ----------
    measures : DataFrame
        Of the stack: one row a map, its position in `participants` as the index.
    participants : sequence of str
        Labels of all whose maps were given.
    items : sequence of str or Item
        NIHSS items by their names; other scores as items.
    scores : (all, K) array
        As levels.
    covariates : (all, C) array, optional
        Without the volume of the deficit, which `measures` has.
    values : (all, K) array, optional
        The scores in their own units, where those are not the levels.
    covariate_names : sequence of str
        A last one more than there are columns, ``total_deficit_volume``, adds the volume.
    facts : mapping, optional
        For the sidecars: what is known of how the maps were made and chosen.
    groups : sequence of str, optional
        One name for each participant, e.g. of the site, that folds keep whole.
    """
    kept = measures.index.to_numpy()
    count, names = len(participants), tuple(covariate_names)
    table = np.zeros((count, 0)) if covariates is None else np.asarray(covariates, float)
    table = table.reshape(count, -1)[kept]
    if names and names[-1] == TOTAL_VOLUME:
        table = np.c_[table, measures[TOTAL_VOLUME]]
    described = dict(facts or {})
    if RECIPE in measures:
        found = sorted({str(recipe) for recipe in measures[RECIPE].dropna()})
        described['Recipe'] = found[0] if len(found) == 1 else found
    return CohortData(
        tuple(str(participants[i]) for i in kept),
        tuple(
            deficit.Item(item, item_levels(item), item_mirror(item))
            if isinstance(item, str)
            else item
            for item in items
        ),
        np.asarray(scores, float).reshape(count, -1)[kept],
        table,
        names,
        described,
        None if values is None else np.asarray(values, float).reshape(count, -1)[kept],
        tuple(str(groups[i]) for i in kept) if groups else None,
    )


def cohort_table(
    measures: pd.DataFrame,
    rows: pd.DataFrame,
    *,
    unreadable: Mapping[int, str],
    dropped: Mapping[str, str],
) -> pd.DataFrame:
    """Return who is in and who is not, one row a participant.

    Parameters
    ----------
    measures : DataFrame
        As for `match_cohort`.
    rows : DataFrame
        From `bids.cohort.Cohort.table`: participants, sessions, and every score and covariate as
        it was used.
    unreadable : mapping of int to str
        Position of each map that could not be used, with the reason.
    dropped : mapping of str to str
        Participants who were left out before, with the reason.
    """
    who = ['participant_id', 'session_id', 'score_session_id']
    frame = rows[who].assign(status='analysed', reason='')
    for position, reason in unreadable.items():
        frame.loc[int(position), ['status', 'reason']] = ['left out', reason]
    for name in measures.columns:
        frame[name] = measures[name].reindex(frame.index)
    for name in rows.columns.drop(who):
        frame[f'used_{name}' if name in frame else name] = rows[name]
    gone = pd.DataFrame(
        [
            {'participant_id': f'sub-{label}', 'status': 'left out', 'reason': reason}
            for label, reason in sorted(dropped.items())
        ]
    )
    frame = pd.concat([frame, gone], ignore_index=True)
    words = ['session_id', 'score_session_id', 'reason']
    frame[words] = frame[words].replace('', np.nan)
    return frame


def cohort_outputs(
    data: CohortData, table: pd.DataFrame, mask: nib.Nifti1Image, coverage: nib.Nifti1Image
) -> Iterator[GroupOutput]:
    """Yield what is written of a cohort, the table last.

    Parameters
    ----------
    data : CohortData
    table : DataFrame
        From `cohort_table`.
    mask, coverage : Nifti1Image
        Of the stack.
    """
    facts = _without_seed(_facts(data))
    wording = _GIVEN if 'MapThreshold' in facts else {}
    yield GroupOutput('group_mask', mask, facts)
    yield GroupOutput('group_coverage', coverage, {**facts, **wording.get('group_coverage', {})})
    columns = _describe_items(data.items) | _describe_used(table, data)
    columns |= dict(wording.get('group_cohort', {}))
    if RECIPE in table:
        columns[RECIPE] = {'Description': 'Recipe that the map was computed by'}
    yield GroupOutput('group_cohort', table, facts | columns)


def prepare_cohort(maps: NDArray[np.float32], grid: Grid, settings: DeficitSettings) -> Prepared:
    """Do what all models and folds share; see `deficit.prepare`."""
    prepared: Prepared = deficit.prepare(maps, grid, settings)
    return prepared


def fit_model(
    prepared: Prepared,
    data: CohortData,
    model: str,
    settings: DeficitSettings,
    *,
    checkpoint: Path | None = None,
) -> DeficitFit:
    """Fit one model to all items; see `deficit.fit`."""
    fit = deficit.fit(
        prepared,
        data.scores,
        data.covariates,
        mask=prepared.grid,
        items=data.items,
        model=model,
        settings=settings,
        checkpoint=checkpoint,
    )
    return replace(fit, covariate_names=data.covariate_names)


def fit_outputs(fit: DeficitFit, data: CohortData, prepared: Prepared) -> Iterator[GroupOutput]:
    """Yield the maps and tables of a fit, and the fit itself last."""
    model = deficit.get_model(fit.model)
    facts = _facts(data, fit.model) | {'AdjustedForCovariates': model.offers.covariates}
    adjusted = deficit.adjust_holm(fit.p_value)
    for k, item in enumerate(fit.items):
        if item.name in fit.skipped:
            continue
        maps = {
            'effect': fit.effect[k],
            'std': fit.std[k],
            'prob': fit.probability[k],
            **({'t': fit.t(k)} if model.offers.t else {}),
            'threshold': fit.effect[k] * fit.declared[k],
        }
        if model.offers.membership:
            inside = deficit.credible_set(fit.probability[k]) & fit.declared[k].any()
            maps['credible'] = inside.astype(np.float32)
        for statistic, values in maps.items():
            if np.isnan(values).all():  # the model does not offer it
                continue
            meaning = model.describe(statistic)
            yield GroupOutput(
                'group_statmap',
                _image(fit.grid, np.nan_to_num(values)),
                facts
                | {
                    'Description': f'{meaning}. Item {item.name}, model {fit.model}',
                    'Item': item.name,
                    'Cut': _number(fit.cut[k]),
                    'PValue': _number(fit.p_value[k]),
                    'PValueHolm': _number(adjusted[k]),
                },
                {'model': fit.model, 'contrast': contrast_label(item.name), 'stat': statistic},
            )
    entities = {'model': fit.model}
    yield GroupOutput(
        'group_clusters', add_territories(deficit.clusters_table(fit), fit), facts, entities
    )
    summary = deficit.summary_table(fit, data.scores, prepared)
    yield GroupOutput('group_summary', summary, facts, entities)
    if model.offers.membership:
        yield GroupOutput('group_territories', territory_table(fit), facts, entities)
    details = {
        'Items': [item.name for item in fit.items],
        'Levels': [item.levels for item in fit.items],
        'Skipped': fit.skipped,
        'Device': fit.settings.device,
    }
    for detail in fit.details.values():
        if 'reliability' in detail:  # the same for all items
            details['Reliability'] = detail['reliability']
        if 'comparison' in detail:  # the same for all items
            details['SimulatedItems'] = {
                name: _number(value) for name, value in detail['comparison'].items()
            }
    yield GroupOutput('group_params', fit, facts | details, entities)


def add_territories(clusters: pd.DataFrame, fit: DeficitFit) -> pd.DataFrame:
    """Return a table of clusters with the arterial territory of each peak."""
    from bids_perfdeficit.perfusion.regions import TERRITORY_LABELS, territories

    names = {label: name for name, label in TERRITORY_LABELS.items()}
    labels = territories(fit.grid.mask.shape, fit.grid.affine)
    to_voxel = np.linalg.inv(fit.grid.affine)
    peaks = nib.affines.apply_affine(to_voxel, clusters[['x', 'y', 'z']].to_numpy(float))
    voxels = np.rint(peaks).astype(int)
    return clusters.assign(territory=[names[int(labels[tuple(v)]) % 10] for v in voxels])


def territory_table(fit: DeficitFit) -> pd.DataFrame:
    """Return where the substrate of each item is expected to lie, a row a territory and side.

    Of a model with a probability of membership; the most probable territory of an item first.
    """
    from bids_perfdeficit.perfusion.regions import TERRITORY_LABELS, territories

    labels = territories(fit.grid.mask.shape, fit.grid.affine)[fit.grid.mask]
    rows = []
    for k, item in enumerate(fit.items):
        if item.name in fit.skipped:
            continue
        probability = fit.probability[k].astype(float)
        whole = max(float(probability.sum()), 1e-12)
        found = []
        for name, label in TERRITORY_LABELS.items():
            for side, offset in (('left', 0), ('right', 10)):
                inside = labels == label + offset
                if inside.any():
                    held = float(probability[inside].sum())
                    found.append(
                        (item.name, side, name, held / whole, held * fit.grid.voxel_ml,
                         float(probability[inside].max()))
                    )  # fmt: skip
        rows += sorted(found, key=lambda row: -row[3])
    columns = ['item', 'side', 'territory', 'share', 'expected_ml', 'highest_probability']
    return pd.DataFrame(rows, columns=columns)


def validate_fold(
    prepared: Prepared,
    data: CohortData,
    model: str,
    settings: DeficitSettings,
    *,
    folds: int,
    fold: int,
) -> FoldPrediction:
    """Fit without one fold and predict it; see `deficit.fit_fold`.

    The regions of the baseline are the arterial territories of each side.
    """
    from bids_perfdeficit.perfusion.regions import territories

    coarse = prepared.coarse
    return deficit.fit_fold(
        **_problem(prepared, data, model, settings),
        folds=folds,
        fold=fold,
        regions=territories(coarse.mask.shape, coarse.affine)[coarse.mask],
        groups=data.groups,
    )


def merge_validation(parts: Sequence[FoldPrediction], data: CohortData, model: str) -> Validation:
    """Put the folds of one model together; see `deficit.merge_folds`."""
    return deficit.merge_folds(
        parts, data.scores, items=data.items, model=model, groups=data.groups
    )


def validate_model(
    prepared: Prepared,
    data: CohortData,
    model: str,
    settings: DeficitSettings,
    *,
    folds: int = 5,
    repeats: int = 1,
) -> Validation:
    """Predict every participant by a fit that has not seen them, `repeats` times."""
    parts = [
        validate_fold(prepared, data, model, settings, folds=folds, fold=fold)
        for fold in range(folds * repeats)
    ]
    return merge_validation(parts, data, model)


def validation_outputs(validation: Validation, data: CohortData) -> Iterator[GroupOutput]:
    """Yield held-out predictions, and how good they are last."""
    facts = _facts(data, validation.model) | {
        'Folds': int(validation.folds.max()) + 1,
        'FoldRepeats': validation.repeats,
        'FoldGroups': len(set(data.groups)) if data.groups else 0,
    }
    entities = {'model': validation.model}
    eta = np.full(validation.probabilities.shape[:2], np.nan)
    predictions = deficit.Predictions(validation.items, validation.probabilities, eta)
    table = deficit.predictions_table(
        _names(data), data.own_values, predictions, fold=validation.folds
    )  # fmt: skip
    yield GroupOutput(
        'group_predictions', table, facts | _describe_levels(table), entities
    )  # fmt: skip
    curves = {
        item.name: validation.calibration(item.name).round(4).tolist()
        for item in validation.items
        if item.name not in validation.skipped
    }
    details = {'Skipped': validation.skipped, 'Calibration': curves, 'GainOver': validation.bar}
    table = deficit.metrics_table(validation)
    yield GroupOutput('group_metrics', table, facts | details, entities)


def fit_shuffled(
    prepared: Prepared,
    data: CohortData,
    model: str,
    settings: DeficitSettings,
    *,
    numbers: Sequence[int],
) -> NullCalibration:
    """Fit shuffled scores; see `deficit.null_calibration`. Pieces are put together by ``+``."""
    return deficit.null_calibration(
        **_problem(prepared, data, model, settings), shuffles=numbers
    )  # fmt: skip


def null_outputs(
    parts: Sequence[NullCalibration], data: CohortData, model: str
) -> Iterator[GroupOutput]:
    """Yield what was declared on shuffled scores."""
    null = functools.reduce(operator.add, parts)
    facts = _facts(data, model) | {'Shuffles': len(null.shuffles)}
    yield GroupOutput('group_null', deficit.null_table(null), facts, {'model': model})


def fit_resampled(
    prepared: Prepared,
    data: CohortData,
    model: str,
    settings: DeficitSettings,
    *,
    numbers: Sequence[int],
) -> Stability:
    """Fit resampled cohorts; see `deficit.bootstrap`. Pieces are put together by ``+``."""
    return deficit.bootstrap(**_problem(prepared, data, model, settings), draws=numbers)


def stability_outputs(
    parts: Sequence[Stability], grid: Grid, data: CohortData, model: str
) -> Iterator[GroupOutput]:
    """Yield how often each voxel is declared in resampled cohorts, the table last."""
    stability = functools.reduce(operator.add, parts)
    facts = _facts(data, model) | {'Resamples': stability.draws}
    for item, share in zip(stability.items, stability.share, strict=True):
        yield GroupOutput(
            'group_statmap',
            _image(grid, share),
            facts
            | {
                'Description': 'Share of resampled cohorts in which the model declares the '
                f'voxel. Item {item.name}, model {model}',
                'Item': item.name,
            },
            {'model': model, 'contrast': contrast_label(item.name), 'stat': 'stability'},
        )
    yield GroupOutput(
        'group_stability', deficit.stability_table(stability, grid), facts, {'model': model}
    )


def apply_model(fit: DeficitFit, maps: NDArray[np.float32], data: CohortData) -> Predictions:
    """Predict the scores of participants that a model was not fitted on.

    Covariates are matched by name with those of the fit.

    Parameters
    ----------
    fit : DeficitFit
    maps : (N, V) array
        On the voxels of the fit.
    data : CohortData
        Of the same participants; scores are not used.

    Raises
    ------
    InputError
        When voxels, items or covariates are not those of the fit.
    """
    covariates = data.covariates
    if fit.covariate_names and fit.covariate_names != data.covariate_names:
        order = _match_names('covariates', fit.covariate_names, data.covariate_names)
        covariates = covariates[:, order]
    _find_items(fit.items, data)
    return fit.predict(maps, covariates)


def applied_outputs(
    predictions: Predictions, data: CohortData, model: str
) -> Iterator[GroupOutput]:
    """Yield the predictions of `apply_model`, beside the scores that are known."""
    order = _find_items(predictions.items, data)
    table = deficit.predictions_table(_names(data), data.own_values[:, order], predictions)
    facts = _without_seed(_facts(data, model)) | _describe_levels(table)
    yield GroupOutput('group_applied', table, facts, {'model': model})


def draw_cohort(
    fit: DeficitFit, maps: NDArray[np.float32], count: int, *, seed: int
) -> tuple[NDArray[np.float32], pd.DataFrame]:
    """Draw artificial participants: maps like those of a cohort, and scores that follow.

    Parameters
    ----------
    fit : DeficitFit
    maps : (N, V) array
        Of the cohort, on the voxels of the fit, in [0, 1]; NaN where not scanned.
    count, seed : int

    Returns
    -------
    drawn : (count, V coarse) array
        Maps in [0, 1] from a flow that is fitted to those given (`deficit.fit_map_flow`).
    scores : DataFrame
        One column an item, in its own unit, drawn from the model at the mean of the covariates;
        NaN for items that were not fitted.

    Raises
    ------
    InputError
        When the fit is of maps that users gave: the flow is of computed ones.
    """
    if fit.settings.as_given:
        raise InputError(
            'participants cannot be drawn from a model of maps that users gave',
            fix='give a model that was fitted to computed maps',
        )
    coarse = fit.generative.complete(fit.coarsen(maps))
    flow = deficit.fit_map_flow(np.clip(coarse, 0, 1), fit.coarse, seed=seed)
    drawn, scores = fit.draw(flow, count, seed=seed)
    return drawn, pd.DataFrame(scores, columns=[item.name for item in fit.items])


def on_template(
    values: NDArray[np.float32], grid: Grid, space: str
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return a map on some voxels as an image on the template at 2 mm, and its mask.

    Parameters
    ----------
    values : (V,) array
    grid : Grid
        Its voxels.
    space : str
        The template.

    Returns
    -------
    image, mask : Nifti1Image
        Inside the template's brain, where the voxels of the grid reach.
    """
    brain = _brain(space)
    target = deficit.Grid(np.asarray(brain.dataobj) > 0, brain.affine)
    index = (target.coordinates - grid.affine[:3, 3]) / np.diag(grid.affine[:3, :3])
    index = np.rint(index).astype(int)
    within = np.flatnonzero(((index >= 0) & (index < grid.mask.shape)).all(1))
    inside = np.zeros(target.n_voxels, bool)
    inside[within] = grid.mask[tuple(index[within].T)]
    found = np.where(inside, grid.resample_to(values, target), 0)
    mask = target.embed(inside).astype(np.uint8)
    return _image(target, found), nib.Nifti1Image(mask, brain.affine)


def _brain(space: str) -> nib.Nifti1Image:
    return ct.load_template(space, spacing=MAP_SPACING).brain_mask


def _read_recipe(path: Path) -> str | None:
    """Return the recipe that the sidecar of a map names, if it does."""
    try:
        content = json.loads(sidecar_path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return None
    found = content.get('Recipe') if isinstance(content, dict) else None
    if not isinstance(found, str):
        return None
    site = content.get('CalibrationSHA256')
    return f'{found}, calibration {site[:12]}' if isinstance(site, str) else found


def _problem(
    prepared: Prepared, data: CohortData, model: str, settings: DeficitSettings
) -> dict[str, Any]:
    return {
        'prepared': prepared,
        'scores': data.scores,
        'covariates': data.covariates,
        'items': data.items,
        'model': model,
        'settings': settings,
    }


def _facts(data: CohortData, model: str | None = None) -> dict[str, Any]:
    """Return what every sidecar of a cohort says, with the model where there is one."""
    facts = {**data.facts, 'N': len(data.participants), 'Covariates': list(data.covariate_names)}
    return facts if model is None else facts | {'Model': model}


def _without_seed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts for what has nothing random in it: another seed leaves it as it is."""
    return {name: value for name, value in facts.items() if name != 'RandomSeed'}


def _image(grid: Grid, values: NDArray) -> nib.Nifti1Image:
    return nib.Nifti1Image(grid.embed(values).astype(np.float32), grid.affine)


def _number(value: float) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def _names(data: CohortData) -> list[str]:
    return [f'sub-{label}' for label in data.participants]


def _match_names(what: str, wanted: Sequence[str], given: Sequence[str]) -> list[int]:
    """Return the position in `given` of each name in `wanted`.

    Raises
    ------
    InputError
        When they are not the same names, or one of them is there twice.
    """
    if sorted(wanted) != sorted(given) or len(set(given)) != len(given):
        raise InputError(
            f'the {what} are {", ".join(given) or "none"}; '
            f'the model has {", ".join(wanted) or "none"}',
            fix=f'give the {what} of the model',
        )
    return [list(given).index(name) for name in wanted]


def _find_items(items: Sequence[Item], data: CohortData) -> list[int]:
    """Return the position of each item among those of the data, which may have more."""
    wanted = [item.name for item in items]
    given = [item.name for item in data.items if item.name in wanted]
    _match_names('items', wanted, given)
    every = [item.name for item in data.items]
    return [every.index(name) for name in wanted]


def _describe_items(items: Sequence[Item]) -> dict[str, Any]:
    """Return the description of a column of scores for each item."""
    scale = json.loads(load('nihss.json').read_text(encoding='utf-8'))
    columns = {}
    for item in items:
        known = scale.get(item.name, {'Description': f'Score of {item.name}'})
        columns[item.name] = {key: value for key, value in known.items() if key != 'LongName'}
        if 'Levels' in known:
            columns[item.name]['Levels'] = {
                level: text for level, text in known['Levels'].items() if level.isdigit()
            }
    return columns


def _describe_used(table: pd.DataFrame, data: CohortData) -> dict[str, Any]:
    """Return the description of the levels that models took, and of covariates."""
    columns = {
        f'{item.name}_level': {
            'Description': f'Level of {item.name} that the models take, from 0, the mildest'
        }
        for item in data.items
    }
    for name in data.covariate_names:
        for column in (name, f'covariate_{name}', f'used_{name}'):
            columns[column] = {'Description': f'Covariate {name} as it was used'}
    return {column: entry for column, entry in columns.items() if column in table}


def _describe_levels(table: pd.DataFrame) -> dict[str, Any]:
    """Return the description of the columns ``p_0``, ``p_1`` and so on of a table."""
    return {
        name: {'Description': f'Predicted probability of a score of {name[2:]}'}
        for name in table.columns
        if name.startswith('p_')
    }
