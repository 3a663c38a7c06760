"""Interfaces of the group level: from the participants' maps to deficit maps and predictions.

What a step leaves goes into a folder with a ``manifest.json`` that names each file's key in
`data/io_spec.json`, its entities and its part of the sidecar; `derivatives.GroupSink` publishes
them.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Bunch,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_perfdeficit import pipeline
from bids_perfdeficit.bids import (
    write_json,
)
from bids_perfdeficit.deficit import DeficitFit, DeficitSettings, Grid, Item, Prepared
from bids_perfdeficit.interfaces.files import load_image
from bids_perfdeficit.pipeline import CohortData, GroupOutput


class Manifest:
    """What a step leaves, in its folder.

    Parameters
    ----------
    folder : path
        The node's working directory.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files: list[dict[str, Any]] = []

    def add(
        self, key: str, name: str, meta: Mapping[str, Any] | None = None, **entities: str
    ) -> Path:
        """Announce a file and return where to write it."""
        self.files.append(
            {'key': key, 'name': name, 'entities': entities, 'meta': dict(meta or {})}
        )
        return self.folder / name

    def table(
        self, key: str, frame: pd.DataFrame, meta: Mapping[str, Any] | None = None, **entities: str
    ) -> None:
        """Write a table."""
        path = self.add(key, f'{key}.tsv', meta, **entities)
        frame.to_csv(path, sep='\t', index=False, na_rep='n/a', float_format='%.6g')

    def image(
        self,
        key: str,
        values: np.ndarray,
        affine: np.ndarray,
        meta: Mapping[str, Any] | None = None,
        **entities: str,
    ) -> None:
        """Write an image."""
        name = '_'.join([key, *entities.values()]) + '.nii'
        image = nib.Nifti1Image(values, affine)
        image.header.set_xyzt_units('mm')
        nib.save(image, self.add(key, name, meta, **entities))

    def write(self) -> str:
        """Write the manifest itself and return its path."""
        path = self.folder / 'manifest.json'
        write_json({'files': self.files}, path)
        return str(path)


def _write(outputs: Iterable[GroupOutput], folder: str) -> str:
    """Write what a step leaves and return its manifest."""
    manifest = Manifest(folder)
    for output in outputs:
        content, facts, entities = output.content, output.facts, output.entities
        if isinstance(content, pd.DataFrame):
            manifest.table(output.key, content, facts, **entities)
        elif isinstance(content, DeficitFit):
            content.save(manifest.add(output.key, 'params.pt', facts, **entities))
        else:
            values = np.asanyarray(content.dataobj)
            manifest.image(output.key, values, content.affine, facts, **entities)
    return manifest.write()


def _grid(path: str) -> Grid:
    image = load_image(path)
    return Grid(np.asarray(image.dataobj) > 0, image.affine)


def _settings(inputs: Any) -> DeficitSettings:
    settings = DeficitSettings.for_run(
        seed=inputs.seed, device=inputs.device, sloppy=inputs.sloppy, as_given=inputs.as_given
    )
    return dataclasses.replace(settings, **getattr(inputs, 'options', {}))


def _prepared(path: str) -> Prepared:
    with open(path, 'rb') as stream:
        prepared = pickle.load(stream)  # noqa: S301 - a file of our own working directory
    assert isinstance(prepared, Prepared)
    return prepared


class _StackInput(BaseInterfaceInputSpec):
    maps = traits.List(File(exists=True), mandatory=True)
    masks = traits.List(File(exists=True), [], usedefault=True, desc='of computed maps')
    space = traits.Str(mandatory=True)
    resolution = traits.Float(mandatory=True, desc='mm')
    asymmetry = traits.Bool(False, usedefault=True)
    threshold = traits.Float(desc='above which maps that users give are affected')
    min_coverage = traits.Float(0.0, usedefault=True)
    params = File(exists=True, desc='of a fit whose mask is used')
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class _StackOutput(TraitedSpec):
    maps = File(exists=True, desc='(N, V) array')
    mask = File(exists=True)
    coverage = File(exists=True)
    measures = File(exists=True, desc='one row a map that is in')
    dropped = traits.Dict(desc='position to reason')


class StackMaps(SimpleInterface):
    """Lay all maps on one grid, in one file."""

    input_spec = _StackInput
    output_spec = _StackOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        folder = Path(runtime.cwd)
        params = self.inputs.params
        result = pipeline.stack_cohort(
            self.inputs.maps,
            self.inputs.masks,
            folder / 'maps.npy',
            space=self.inputs.space,
            resolution=self.inputs.resolution,
            asymmetry=self.inputs.asymmetry,
            threshold=self.inputs.threshold if isdefined(self.inputs.threshold) else None,
            min_coverage=self.inputs.min_coverage,
            fit=DeficitFit.load(params) if isdefined(params) else None,
            threads=self.inputs.num_threads,
        )
        affine = result.grid.affine
        for name, values in (
            ('mask', result.grid.mask.astype(np.uint8)),
            ('coverage', result.coverage),
        ):
            path = folder / f'{name}.nii'
            nib.save(nib.Nifti1Image(values, affine), path)
            self._results[name] = str(path)
        result.measures.to_csv(folder / 'measures.tsv', sep='\t', index_label='position')
        self._results['maps'] = str(folder / 'maps.npy')
        self._results['measures'] = str(folder / 'measures.tsv')
        self._results['dropped'] = {str(k): v for k, v in result.dropped.items()}
        return runtime


class _PrepareInput(BaseInterfaceInputSpec):
    maps = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True)
    seed = traits.Int(mandatory=True)
    sloppy = traits.Bool(False, usedefault=True)
    as_given = traits.Bool(False, usedefault=True)
    device = traits.Str('cpu', usedefault=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class _PrepareOutput(TraitedSpec):
    prepared = File(exists=True)


class PrepareMaps(SimpleInterface):
    """Do what all models and folds share."""

    input_spec = _PrepareInput
    output_spec = _PrepareOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        torch.set_num_threads(self.inputs.num_threads)
        maps = np.load(self.inputs.maps, mmap_mode='r')
        grid = _grid(self.inputs.mask)
        prepared = pipeline.prepare_cohort(maps, grid, _settings(self.inputs))
        path = Path(runtime.cwd) / 'prepared.pkl'
        with path.open('wb') as stream:
            pickle.dump(prepared, stream, protocol=5)
        self._results['prepared'] = str(path)
        return runtime


class _AssembleInput(BaseInterfaceInputSpec):
    measures = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True)
    coverage = File(exists=True, mandatory=True)
    unreadable = traits.Dict(desc='position to reason')
    rows = traits.List(
        traits.Dict, mandatory=True, desc='of `Cohort.table`, one per position: what was used'
    )
    items = traits.List(traits.Dict, mandatory=True, desc='fields of `deficit.Item`')
    scores = traits.List(traits.List(traits.Float), mandatory=True, desc='as levels')
    covariates = traits.List(traits.List(traits.Float), mandatory=True)
    covariate_names = traits.List(traits.Str, mandatory=True, desc='the volume is the last')
    groups = traits.List(traits.Str, desc='name for each position, that folds keep whole')
    dropped = traits.Dict(desc='participant to reason')
    facts = traits.Dict(
        {}, usedefault=True, desc='for the sidecars of all that is made of the cohort'
    )


class _AssembleOutput(TraitedSpec):
    data = File(exists=True, desc='scores and covariates, one row a row of the maps')
    manifest = File(exists=True)


class AssembleCohort(SimpleInterface):
    """Match scores and covariates with the maps that could be read."""

    input_spec = _AssembleInput
    output_spec = _AssembleOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        inputs = self.inputs
        measures = pd.read_csv(inputs.measures, sep='\t', index_col='position')
        rows = pd.DataFrame(inputs.rows)
        items = [Item(**{**item, 'values': tuple(item['values'])}) for item in inputs.items]
        data = pipeline.match_cohort(
            measures,
            rows['participant_id'].str.removeprefix('sub-').tolist(),
            items,
            inputs.scores,
            inputs.covariates,
            # When models are applied the table may have no scores.
            values=rows.reindex(columns=[item.name for item in items]),
            covariate_names=inputs.covariate_names,
            facts=inputs.facts,
            groups=inputs.groups or None,
        )
        table = pipeline.cohort_table(
            measures,
            rows,
            unreadable={int(position): why for position, why in inputs.unreadable.items()},
            dropped=inputs.dropped,
        )
        path = Path(runtime.cwd) / 'data.npz'
        data.save(path)
        images = load_image(inputs.mask), load_image(inputs.coverage)
        self._results['data'] = str(path)
        self._results['manifest'] = _write(
            pipeline.cohort_outputs(data, table, *images), runtime.cwd
        )
        return runtime


class _ModelInput(BaseInterfaceInputSpec):
    prepared = File(exists=True, mandatory=True)
    data = File(exists=True, mandatory=True)
    model = traits.Str(mandatory=True)
    seed = traits.Int(mandatory=True)
    sloppy = traits.Bool(False, usedefault=True)
    as_given = traits.Bool(False, usedefault=True)
    options = traits.Dict({}, usedefault=True, desc='of this model alone')
    device = traits.Str('cpu', usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc='for the scheduler')
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class _FitInput(_ModelInput):
    facts = traits.Dict({}, usedefault=True, desc='for the sidecars, beside those of the data')


class _ManifestOutput(TraitedSpec):
    manifest = File(exists=True)


class FitModel(SimpleInterface):
    """Fit one model to all items."""

    input_spec = _FitInput
    output_spec = _ManifestOutput
    #: Nipype keeps the folder of an unfinished node then, and with it the checkpoint of `vae`.
    _can_resume = True

    def _run_interface(self, runtime: Bunch) -> Bunch:
        torch.set_num_threads(self.inputs.num_threads)
        prepared = _prepared(self.inputs.prepared)
        data = CohortData.load(self.inputs.data)
        data = dataclasses.replace(data, facts={**data.facts, **self.inputs.facts})
        fit = pipeline.fit_model(
            prepared,
            data,
            self.inputs.model,
            _settings(self.inputs),
            checkpoint=Path(runtime.cwd) / 'checkpoint.pt',
        )
        outputs = pipeline.fit_outputs(fit, data, prepared)
        self._results['manifest'] = _write(outputs, runtime.cwd)
        return runtime


class _FoldInput(_ModelInput):
    folds = traits.Int(mandatory=True)
    fold = traits.Int(mandatory=True, desc='from 0; those from `folds` on are repetitions')


class _PartOutput(TraitedSpec):
    part = File(exists=True, desc='a piece, to be put together with the others')


class _Piece(SimpleInterface):
    """A piece of work that fits a model to part of the data."""

    output_spec = _PartOutput

    def _work(self, *problem: Any) -> object:
        """Do the work for maps, data, model and settings."""
        raise NotImplementedError

    def _run_interface(self, runtime: Bunch) -> Bunch:
        torch.set_num_threads(self.inputs.num_threads)
        part = self._work(
            _prepared(self.inputs.prepared),
            CohortData.load(self.inputs.data),
            self.inputs.model,
            _settings(self.inputs),
        )
        path = Path(runtime.cwd) / 'part.pkl'
        path.write_bytes(pickle.dumps(part, protocol=5))
        self._results['part'] = str(path)
        return runtime


class FitFold(_Piece):
    """Fit without one fold and predict it."""

    input_spec = _FoldInput

    def _work(self, *problem: Any) -> object:
        return pipeline.validate_fold(*problem, folds=self.inputs.folds, fold=self.inputs.fold)


class _NumbersInput(_ModelInput):
    numbers = traits.List(traits.Int, mandatory=True, desc='of the shuffles or resamples')


class FitShuffled(_Piece):
    """Fit shuffled scores."""

    input_spec = _NumbersInput

    def _work(self, *problem: Any) -> object:
        return pipeline.fit_shuffled(*problem, numbers=self.inputs.numbers)


class FitResampled(_Piece):
    """Fit resampled cohorts."""

    input_spec = _NumbersInput

    def _work(self, *problem: Any) -> object:
        return pipeline.fit_resampled(*problem, numbers=self.inputs.numbers)


class _MergeInput(BaseInterfaceInputSpec):
    parts = InputMultiObject(File(exists=True), mandatory=True)
    data = File(exists=True, mandatory=True)
    model = traits.Str(mandatory=True)
    mask = File(exists=True)


class _Merge(SimpleInterface):
    """Put pieces together."""

    input_spec = _MergeInput
    output_spec = _ManifestOutput

    def _merge(self, parts: list[Any], data: CohortData) -> Iterable[GroupOutput]:
        raise NotImplementedError

    def _run_interface(self, runtime: Bunch) -> Bunch:
        parts = [pickle.loads(Path(p).read_bytes()) for p in self.inputs.parts]  # noqa: S301
        outputs = self._merge(parts, CohortData.load(self.inputs.data))
        self._results['manifest'] = _write(outputs, runtime.cwd)
        return runtime


class MergeFolds(_Merge):
    """Measure held-out predictions."""

    def _merge(self, parts: list[Any], data: CohortData) -> Iterable[GroupOutput]:
        found = pipeline.merge_validation(parts, data, self.inputs.model)
        return pipeline.validation_outputs(found, data)


class MergeShuffled(_Merge):
    """Count what is declared on shuffled scores."""

    def _merge(self, parts: list[Any], data: CohortData) -> Iterable[GroupOutput]:
        return pipeline.null_outputs(parts, data, self.inputs.model)


class MergeResampled(_Merge):
    """Count how often voxels are declared in resampled cohorts."""

    def _merge(self, parts: list[Any], data: CohortData) -> Iterable[GroupOutput]:
        grid = _grid(self.inputs.mask)
        return pipeline.stability_outputs(parts, grid, data, self.inputs.model)


class _ApplyInput(BaseInterfaceInputSpec):
    maps = File(exists=True, mandatory=True)
    data = File(exists=True, mandatory=True)
    params = File(exists=True, mandatory=True)


class ApplyModel(SimpleInterface):
    """Predict the scores of participants that a model was not fitted on."""

    input_spec = _ApplyInput
    output_spec = _ManifestOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        data, fit = CohortData.load(self.inputs.data), DeficitFit.load(self.inputs.params)
        maps = np.load(self.inputs.maps, mmap_mode='r')
        predictions = pipeline.apply_model(fit, maps, data)
        outputs = pipeline.applied_outputs(predictions, data, fit.model)
        self._results['manifest'] = _write(outputs, runtime.cwd)
        return runtime
