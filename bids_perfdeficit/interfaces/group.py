"""Interfaces of the group level: from the participants' maps to deficit maps and predictions.

What a step leaves goes into a folder with a ``manifest.json`` that names each file's key in
`data/io_spec.json`, its entities and its part of the sidecar; `GroupSink` writes it out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    OutputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_perfdeficit import deficit
from bids_perfdeficit.bids import (
    copy_file,
    output_path,
    sidecar,
    sidecar_path,
    write_json,
    write_nifti,
)
from bids_perfdeficit.bids.cohort import TOTAL_VOLUME, contrast_label
from bids_perfdeficit.deficit import DeficitFit, DeficitSettings, Grid, Item, Prepared
from bids_perfdeficit.interfaces.ct import _load
from bids_perfdeficit.interfaces.stacking import (
    DEFICIT_THRESHOLD,
    make_lattice,
    resolution_label,
    stack,
)
from bids_perfdeficit.perfusion.regions import TERRITORY_LABELS, territories

#: What each map of a fit is called, with its units and meaning.
STATISTICS: Mapping[str, tuple[str, str]] = {
    'effect': ('effect', 'Strength of the dependence of the score on perfusion in the voxel'),
    'std': ('std', 'Posterior standard deviation of the effect'),
    'probability': ('prob', 'Probability that the voxel belongs to the substrate of the item'),
    'declared': ('threshold', 'Effect where the model declares the voxel, 0 elsewhere'),
}


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
        """Write the manifest itself; the last file announced carries the fingerprint."""
        path = self.folder / 'manifest.json'
        write_json({'files': self.files}, path)
        return str(path)


def _grid(path: str) -> Grid:
    image = _load(path)
    return Grid(np.asarray(image.dataobj) > 0, image.affine)


def _settings(inputs: Any) -> DeficitSettings:
    """Return the options of the deficit models; `sloppy` ones try out, and never decide."""
    quick: dict[str, Any] = {
        'permutations': 99, 'voxelwise_permutations': 99, 'iterations': 4, 'vae_epochs': 20,
        'rank': 50,
    }  # fmt: skip
    return DeficitSettings(
        device=inputs.device, seed=inputs.seed, **(quick if inputs.sloppy else {})
    )


def _prepared(path: str) -> Prepared:
    with open(path, 'rb') as stream:
        prepared = pickle.load(stream)  # noqa: S301 - a file of our own working directory
    assert isinstance(prepared, Prepared)
    return prepared


class Data:
    """The tables of a cohort, as `AssembleCohort` leaves them."""

    def __init__(self, path: str) -> None:
        with np.load(path) as content:
            self.participants = [str(p) for p in content['participants']]
            self.items = tuple(
                Item(**{**item, 'values': tuple(item['values'])})
                for item in json.loads(str(content['items']))
            )
            self.scores = content['scores']  #: as levels, which models take
            self._values = content['values']
            self.covariates = content['covariates']
            self.covariate_names = [str(name) for name in content['covariate_names']]

    def score(self, name: str) -> np.ndarray:
        """Return the scores of an item as they were read; NaN for one that the table has not."""
        names = [item.name for item in self.items]
        missing = np.full(len(self.participants), np.nan)
        return self._values[:, names.index(name)] if name in names else missing


class _StackInput(BaseInterfaceInputSpec):
    maps = traits.List(File(exists=True), mandatory=True)
    masks = traits.List(File(exists=True), mandatory=True)
    space = traits.Str(mandatory=True)
    resolution = traits.Float(mandatory=True, desc='mm')
    asymmetry = traits.Bool(False, usedefault=True)
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

    def _run_interface(self, runtime):
        folder = Path(runtime.cwd)
        grid = DeficitFit.load(self.inputs.params).grid if isdefined(self.inputs.params) else None
        result = stack(
            [Path(p) for p in self.inputs.maps],
            [Path(p) for p in self.inputs.masks],
            folder / 'maps.npy',
            lattice=make_lattice(self.inputs.space, self.inputs.resolution),
            asymmetry=self.inputs.asymmetry,
            min_coverage=self.inputs.min_coverage,
            grid=grid,
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
    device = traits.Str('cpu', usedefault=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class _PrepareOutput(TraitedSpec):
    prepared = File(exists=True)


class PrepareMaps(SimpleInterface):
    """Do what all models and folds share."""

    input_spec = _PrepareInput
    output_spec = _PrepareOutput

    def _run_interface(self, runtime):
        torch.set_num_threads(self.inputs.num_threads)
        maps = np.load(self.inputs.maps, mmap_mode='r')
        prepared = deficit.prepare(maps, _grid(self.inputs.mask), _settings(self.inputs))
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
    dropped = traits.Dict(desc='participant to reason')


class _AssembleOutput(TraitedSpec):
    data = File(exists=True, desc='scores and covariates, one row a row of the maps')
    manifest = File(exists=True)


class AssembleCohort(SimpleInterface):
    """Match scores and covariates with the maps that could be read."""

    input_spec = _AssembleInput
    output_spec = _AssembleOutput

    def _run_interface(self, runtime):
        inputs = self.inputs
        measures = pd.read_csv(inputs.measures, sep='\t', index_col='position')
        kept = measures.index.to_numpy()
        names = list(inputs.covariate_names)
        rows = pd.DataFrame(inputs.rows)
        covariates = np.array(inputs.covariates, float).reshape(len(rows), -1)[kept]
        if names and names[-1] == TOTAL_VOLUME:
            covariates = np.c_[covariates, measures[TOTAL_VOLUME]]
        path = Path(runtime.cwd) / 'data.npz'
        scores = np.array(inputs.scores, float).reshape(len(rows), -1)
        # when models are applied the table may have no scores
        values = rows.reindex(columns=[item['name'] for item in inputs.items])
        np.savez(
            path,
            participants=rows['participant_id'].str.removeprefix('sub-').to_numpy(str)[kept],
            items=np.array(json.dumps(inputs.items)),
            scores=scores[kept],
            values=values.to_numpy(float)[kept],
            covariates=covariates,
            covariate_names=np.array(names, dtype=str),
        )
        manifest = Manifest(runtime.cwd)
        mask = _load(inputs.mask)
        manifest.image('group_mask', np.asarray(mask.dataobj, np.uint8), mask.affine)
        manifest.image(
            'group_coverage',
            np.asarray(_load(inputs.coverage).dataobj, np.float32),
            mask.affine,
            {'DeficitThreshold': DEFICIT_THRESHOLD},
        )
        manifest.table('group_cohort', self._rows(measures), {'N': len(kept)})
        self._results['data'] = str(path)
        self._results['manifest'] = manifest.write()
        return runtime

    def _rows(self, measures: pd.DataFrame) -> pd.DataFrame:
        inputs = self.inputs
        rows = pd.DataFrame(inputs.rows)
        who = ['participant_id', 'session_id', 'score_session_id']
        frame = rows[who].assign(status='analysed', reason='')
        for position, reason in inputs.unreadable.items():
            frame.loc[int(position), ['status', 'reason']] = ['left out', reason]
        for name in measures.columns:
            frame[name] = measures[name].reindex(frame.index)
        for name in rows.columns.drop(who):
            frame[f'used_{name}' if name in frame else name] = rows[name]
        gone = pd.DataFrame(
            [
                {'participant_id': f'sub-{label}', 'status': 'left out', 'reason': reason}
                for label, reason in sorted(inputs.dropped.items())
            ]
        )
        frame = pd.concat([frame, gone], ignore_index=True)
        words = ['session_id', 'score_session_id', 'reason']
        frame[words] = frame[words].replace('', np.nan)
        return frame


class _ModelInput(BaseInterfaceInputSpec):
    prepared = File(exists=True, mandatory=True)
    data = File(exists=True, mandatory=True)
    model = traits.Str(mandatory=True)
    seed = traits.Int(mandatory=True)
    sloppy = traits.Bool(False, usedefault=True)
    device = traits.Str('cpu', usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc='for the scheduler')
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class _FitInput(_ModelInput):
    facts = traits.Dict(desc='for the sidecars')


class _ManifestOutput(TraitedSpec):
    manifest = File(exists=True)


class FitModel(SimpleInterface):
    """Fit one model to all items."""

    input_spec = _FitInput
    output_spec = _ManifestOutput
    #: Nipype keeps the folder of an unfinished node then, and with it the checkpoint of `vae`.
    _can_resume = True

    def _run_interface(self, runtime):
        torch.set_num_threads(self.inputs.num_threads)
        data, prepared = Data(self.inputs.data), _prepared(self.inputs.prepared)
        model = self.inputs.model
        fit = deficit.fit(
            prepared,
            data.scores,
            data.covariates,
            mask=prepared.grid,
            items=data.items,
            model=model,
            settings=_settings(self.inputs),
            checkpoint=Path(runtime.cwd) / 'checkpoint.pt',
        )
        manifest = Manifest(runtime.cwd)
        for k, item in enumerate(fit.items):
            if item.name in fit.skipped:
                continue
            for name, (label, meaning) in STATISTICS.items():
                values = fit.effect[k] * fit.declared[k] if name == 'declared' else (
                    getattr(fit, name)[k]
                )  # fmt: skip
                if np.isnan(values).all():  # `vae` has no probability
                    continue
                manifest.image(
                    'group_statmap',
                    fit.grid.embed(np.nan_to_num(values)).astype(np.float32),
                    fit.grid.affine,
                    {
                        'Description': f'{meaning}. Item {item.name}, model {model}',
                        'Cut': float(fit.cut[k]),
                        'Item': item.name,
                        'Model': model,
                    },
                    model=model,
                    contrast=contrast_label(item.name),
                    stat=label,
                )
        manifest.table('group_clusters', clusters_table(fit), model=model)
        manifest.table('group_summary', summary_table(fit, data, prepared), model=model)
        facts = {
            **self.inputs.facts,
            'Model': model,
            'Items': [item.name for item in fit.items],
            'Levels': [item.levels for item in fit.items],
            'Skipped': fit.skipped,
            'Covariates': data.covariate_names,
            'N': len(data.participants),
            'Device': self.inputs.device,
        }
        fit.save(manifest.add('group_params', 'params.pt', facts, model=model))
        self._results['manifest'] = manifest.write()
        return runtime


class _FoldInput(_ModelInput):
    folds = traits.Int(mandatory=True)
    fold = traits.Int(mandatory=True)


class _PartOutput(TraitedSpec):
    part = File(exists=True, desc='a piece, to be put together with the others')


class _Piece(SimpleInterface):
    """A piece of work that fits a model to part of the data."""

    output_spec = _PartOutput

    def _work(self, arguments: dict[str, Any]) -> object:
        raise NotImplementedError

    def _run_interface(self, runtime):
        torch.set_num_threads(self.inputs.num_threads)
        data = Data(self.inputs.data)
        part = self._work(
            {
                'prepared': _prepared(self.inputs.prepared),
                'scores': data.scores,
                'covariates': data.covariates,
                'items': data.items,
                'model': self.inputs.model,
                'settings': _settings(self.inputs),
            }
        )
        path = Path(runtime.cwd) / 'part.pkl'
        path.write_bytes(pickle.dumps(part, protocol=5))
        self._results['part'] = str(path)
        return runtime


class FitFold(_Piece):
    """Fit without one fold and predict it."""

    input_spec = _FoldInput

    def _work(self, arguments):
        return deficit.fit_fold(**arguments, folds=self.inputs.folds, fold=self.inputs.fold)


class _NumbersInput(_ModelInput):
    numbers = traits.List(traits.Int, mandatory=True, desc='of the shuffles or resamples')


class FitShuffled(_Piece):
    """Fit shuffled scores."""

    input_spec = _NumbersInput

    def _work(self, arguments):
        return deficit.null_calibration(**arguments, shuffles=self.inputs.numbers)


class FitResampled(_Piece):
    """Fit resampled cohorts."""

    input_spec = _NumbersInput

    def _work(self, arguments):
        return deficit.bootstrap(**arguments, draws=self.inputs.numbers)


class _MergeInput(BaseInterfaceInputSpec):
    parts = InputMultiObject(File(exists=True), mandatory=True)
    data = File(exists=True, mandatory=True)
    model = traits.Str(mandatory=True)
    mask = File(exists=True)


class _Merge(SimpleInterface):
    """Put pieces together."""

    input_spec = _MergeInput
    output_spec = _ManifestOutput

    def _parts(self) -> list[Any]:
        return [pickle.loads(Path(p).read_bytes()) for p in self.inputs.parts]  # noqa: S301


class MergeFolds(_Merge):
    """Measure held-out predictions."""

    def _run_interface(self, runtime):
        data, model = Data(self.inputs.data), self.inputs.model
        found = deficit.merge_folds(self._parts(), data.scores, items=data.items, model=model)
        manifest = Manifest(runtime.cwd)
        eta = np.where(np.isnan(found.probabilities[:, :, 0]), np.nan, 0.0)
        predictions = deficit.Predictions(found.items, found.probabilities, eta)
        manifest.table(
            'group_predictions',
            predictions_table(data, predictions, fold=found.folds),
            {'Model': model},
            model=model,
        )
        curves = {
            item.name: found.calibration(item.name).round(4).tolist()
            for item in found.items
            if item.name not in found.skipped
        }
        facts = {
            'Model': model,
            'Folds': int(found.folds.max()) + 1,
            'Skipped': found.skipped,
            'Calibration': curves,
        }
        metrics = pd.DataFrame([dataclasses.asdict(m) for m in found.metrics])
        manifest.table('group_metrics', metrics, facts, model=model)
        self._results['manifest'] = manifest.write()
        return runtime


class MergeShuffled(_Merge):
    """Count what is declared on shuffled scores."""

    def _run_interface(self, runtime):
        found = functools.reduce(operator.add, self._parts())
        with np.errstate(all='ignore'):
            table = pd.DataFrame(
                {
                    'item': [item.name for item in found.items],
                    'shuffles': np.isfinite(found.declared).sum(0),
                    'nothing_declared': found.share_clean,
                    'smallest_p': np.nanmin(found.p_value, axis=0, initial=1.0),
                }
            )
        manifest = Manifest(runtime.cwd)
        model = self.inputs.model
        manifest.table('group_null', table, {'Model': model}, model=model)
        self._results['manifest'] = manifest.write()
        return runtime


class MergeResampled(_Merge):
    """Count how often voxels are declared in resampled cohorts."""

    def _run_interface(self, runtime):
        found = functools.reduce(operator.add, self._parts())
        manifest, model = Manifest(runtime.cwd), self.inputs.model
        grid = _grid(self.inputs.mask)
        for k, item in enumerate(found.items):
            manifest.image(
                'group_statmap',
                grid.embed(found.share[k]).astype(np.float32),
                grid.affine,
                {
                    'Description': 'Share of resampled cohorts in which the model declares the '
                    f'voxel. Item {item.name}, model {model}',
                    'Item': item.name,
                    'Model': model,
                },
                model=model,
                contrast=contrast_label(item.name),
                stat='stability',
            )
        table = pd.DataFrame(
            {
                'item': [item.name for item in found.items],
                'resamples': found.draws,
                'highest_share': found.share.max(1),
                'ml_in_half': (found.share >= 0.5).sum(1) * grid.voxel_ml,
            }
        )
        manifest.table('group_stability', table, {'Model': model}, model=model)
        self._results['manifest'] = manifest.write()
        return runtime


class _ApplyInput(BaseInterfaceInputSpec):
    maps = File(exists=True, mandatory=True)
    data = File(exists=True, mandatory=True)
    params = File(exists=True, mandatory=True)


class ApplyModel(SimpleInterface):
    """Predict the scores of participants that a model was not fitted on."""

    input_spec = _ApplyInput
    output_spec = _ManifestOutput

    def _run_interface(self, runtime):
        data, fit = Data(self.inputs.data), DeficitFit.load(self.inputs.params)
        maps = np.load(self.inputs.maps, mmap_mode='r')
        predictions = fit.predict(maps, data.covariates)
        manifest = Manifest(runtime.cwd)
        manifest.table(
            'group_applied',
            predictions_table(data, predictions),
            {'Model': fit.model},
            model=fit.model,
        )
        self._results['manifest'] = manifest.write()
        return runtime


class _GroupSinkInput(BaseInterfaceInputSpec):
    base_directory = traits.Directory(mandatory=True, desc='OUTPUT_DIR')
    space = traits.Str(mandatory=True)
    resolution = traits.Float(mandatory=True)
    manifest = File(exists=True, mandatory=True)
    sources = traits.List(traits.Str, desc='BIDS URIs of what the outputs were made from')
    fingerprint = traits.Str(mandatory=True, desc='of the stage; see `workflows.group_plan`')


class _GroupSinkOutput(TraitedSpec):
    out_files = OutputMultiPath(File(exists=True), desc='in the order of the manifest')


class GroupSink(SimpleInterface):
    """Write what a step left under BIDS names, the file with the fingerprint last.

    Sidecars come before their files, so that whoever sees a file sees it whole; the fingerprint
    comes after all, so that an interrupted step is done again.
    """

    input_spec = _GroupSinkInput
    output_spec = _GroupSinkOutput
    _always_run = True

    def _run_interface(self, runtime):
        inputs, root = self.inputs, Path(self.inputs.base_directory)
        folder = Path(inputs.manifest).parent
        files = json.loads(Path(inputs.manifest).read_text(encoding='utf-8'))['files']
        common = {'space': inputs.space, 'res': resolution_label(inputs.resolution)}
        targets = [output_path(root, f['key'], **common, **f['entities']) for f in files]
        # The maps that all was made from are told once; the other files point there.
        origin = list(inputs.sources) if isdefined(inputs.sources) else []
        lead = f'bids::{targets[-1].relative_to(root).as_posix()}'
        for file, target in zip(files, targets, strict=True):
            meta = dict(file['meta'])
            if '_res-' in target.name:
                meta['Resolution'] = (
                    f'{inputs.space} at {inputs.resolution:g} mm isotropic, averaged from 2 mm'
                )
            if file is files[-1]:
                meta['Outputs'] = [t.relative_to(root).as_posix() for t in targets[:-1]]
                meta['Fingerprint'] = inputs.fingerprint
            write_json(
                sidecar(
                    file['key'],
                    sources=origin if file is files[-1] else [lead],
                    space=inputs.space,
                    **meta,
                ),
                sidecar_path(target),
            )
            source = folder / file['name']
            if target.name.endswith('.nii.gz'):
                write_nifti(_load(source), target)
            else:
                copy_file(source, target)
        self._results['out_files'] = [str(t) for t in targets]
        return runtime


def summary_table(fit: DeficitFit, data: Data, prepared: Prepared) -> pd.DataFrame:
    """Return what was found for each item, one row each."""
    resemblance = deficit.coverage_resemblance(fit, prepared)
    rows = []
    for k, item in enumerate(fit.items):
        score = data.scores[:, k][np.isfinite(data.scores[:, k])]
        row: dict[str, object] = {
            'item': item.name,
            'status': 'skipped' if item.name in fit.skipped else 'fitted',
            'reason': fit.skipped.get(item.name, ''),
            'scored': len(score),
            'with_deficit': int((score > 0).sum()),
        }
        if item.name not in fit.skipped:
            row |= {
                'p_value': fit.p_value[k],
                'cut': fit.cut[k],
                'declared_ml': float(fit.declared[k].sum() * fit.grid.voxel_ml),
                'coverage_resemblance': resemblance[k],
            }
        rows.append(row)
    return pd.DataFrame(rows).replace({'reason': {'': np.nan}})


def clusters_table(fit: DeficitFit) -> pd.DataFrame:
    """Return the declared clusters of all items, with the arterial territory of each peak."""
    names = {label: name for name, label in TERRITORY_LABELS.items()}
    labels = territories(fit.grid.mask.shape, fit.grid.affine)
    rows = []
    for k, item in enumerate(fit.items):
        if item.name in fit.skipped:
            continue
        for cluster in deficit.find_clusters(fit.effect[k], fit.declared[k], fit.grid):
            voxel = np.rint(
                nib.affines.apply_affine(np.linalg.inv(fit.grid.affine), cluster.peak_mm)
            ).astype(int)
            x = cluster.peak_mm[0]
            side = 'midline' if abs(x) < fit.grid.spacing[0] else 'left' if x < 0 else 'right'
            rows.append(
                {
                    'item': item.name,
                    'cluster': cluster.number,
                    'volume_ml': cluster.volume_ml,
                    **dict(zip('xyz', cluster.peak_mm, strict=True)),
                    'peak': cluster.peak_value,
                    'side': side,
                    'territory': names[int(labels[tuple(voxel)]) % 10],
                }
            )
    columns = ['item', 'cluster', 'volume_ml', 'x', 'y', 'z', 'peak', 'side', 'territory']
    return pd.DataFrame(rows, columns=columns)


def predictions_table(
    data: Data, predictions: deficit.Predictions, **more: np.ndarray
) -> pd.DataFrame:
    """Return one row per participant and item; `more` are columns of the participants."""
    levels = predictions.probabilities.shape[2]
    rows = []
    for k, item in enumerate(predictions.items):
        if np.isnan(predictions.eta[:, k]).all():
            continue
        p = predictions.probabilities[:, k]
        rows.append(
            pd.DataFrame(
                {
                    'participant_id': [f'sub-{label}' for label in data.participants],
                    'item': item.name,
                    **more,
                    'score': data.score(item.name),
                    'expected': predictions.expected[:, k],
                    'any_deficit': predictions.any_deficit[:, k],
                    **{
                        f'p_{level}': p[:, level] if level < item.levels else np.nan
                        for level in range(levels)
                    },
                }
            )
        )
    return pd.concat(rows, ignore_index=True)
