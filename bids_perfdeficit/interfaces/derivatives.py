"""The interfaces that write into OUTPUT_DIR: each publishes one stage with its record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Bunch,
    DynamicTraitedSpec,
    File,
    OutputMultiPath,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)
from nipype.interfaces.io import add_traits

from bids_perfdeficit.bids import (
    copy_file,
    output_path,
    sidecar,
    sidecar_path,
    write_json,
    write_nifti,
)
from bids_perfdeficit.bids.outputs import has_sidecar
from bids_perfdeficit.stages.lock import Holder
from bids_perfdeficit.stages.task import Task, Writer, publish


class _SinkInput(DynamicTraitedSpec):
    task = traits.Instance(Task, mandatory=True, nohash=True, desc='the stage that is published')
    seen = traits.Dict(nohash=True, desc='stamps of its inputs when the run was planned')
    holder = traits.Instance(Holder, nohash=True, desc='the run, by the lock that it holds')
    participant = traits.Str(mandatory=True)
    session = traits.Either(None, traits.Str, default=None, usedefault=True)
    space = traits.Str(mandatory=True)
    sources = traits.List(traits.Str, desc='BIDS URIs of what the outputs were made from')
    facts = traits.Dict(desc='for the sidecars: the options that a reader must know')
    meta = traits.Dict(desc='for the sidecars: what the computation found')


class DerivativesSink(SimpleInterface):
    """Write the outputs of a stage under their BIDS names, each with its sidecar, then the record.

    Parameters
    ----------
    keys : sequence of str
        Keys of `data/io_spec.json`. Each is an input (the file to write) and an output (where it
        was written).
    """

    input_spec = _SinkInput
    output_spec = DynamicTraitedSpec
    _always_run = True

    def __init__(self, keys: Sequence[str] = (), **inputs: Any) -> None:
        self._keys = tuple(keys)
        super().__init__()
        add_traits(self.inputs, self._keys, trait_type=File(exists=True))
        self.inputs.trait_set(**inputs)

    def _outputs(self) -> Any:
        return add_traits(super()._outputs(), self._keys)

    def _run_interface(self, runtime: Bunch) -> Bunch:
        inputs, task = self.inputs, self.inputs.task
        more: dict[str, Any] = {}
        for given in (inputs.facts, inputs.meta):
            more |= dict(given) if isdefined(given) else {}
        sources = inputs.sources if isdefined(inputs.sources) else []
        writers: dict[str, Writer] = {}
        for key in self._keys:
            target = output_path(
                task.root,
                key,
                participant=inputs.participant,
                session=inputs.session,
                space=inputs.space,
            )
            if has_sidecar(key):
                content = sidecar(key, sources=sources, space=inputs.space, **more)
                writers[_relative(sidecar_path(target), task)] = partial(write_json, content)
            writers[_relative(target, task)] = write_file(Path(getattr(inputs, key)), target)
            self._results[key] = str(target)
        publish(
            task,
            writers,
            seen=inputs.seen if isdefined(inputs.seen) else None,
            holder=inputs.holder if isdefined(inputs.holder) else None,
        )
        return runtime


class _GroupSinkInput(BaseInterfaceInputSpec):
    task = traits.Instance(Task, mandatory=True, nohash=True, desc='the stage that is published')
    seen = traits.Dict(nohash=True, desc='stamps of its inputs when the run was planned')
    holder = traits.Instance(Holder, nohash=True, desc='the run, by the lock that it holds')
    space = traits.Str(mandatory=True)
    res = traits.Str(mandatory=True, desc='label of the resolution')
    resolution = traits.Float(mandatory=True, desc='mm')
    manifest = File(exists=True, mandatory=True)
    sources = traits.List(traits.Str, desc='BIDS URIs of what the outputs were made from')


class _GroupSinkOutput(TraitedSpec):
    out_files = OutputMultiPath(File(exists=True), desc='in the order of the manifest')


class GroupSink(SimpleInterface):
    """Write what a step of the group level left under BIDS names, then the record.

    The maps that everything was made from are listed in the sidecar of the last file; the others
    name that file as their source.
    """

    input_spec = _GroupSinkInput
    output_spec = _GroupSinkOutput
    _always_run = True

    def _run_interface(self, runtime: Bunch) -> Bunch:
        inputs, task = self.inputs, self.inputs.task
        folder = Path(inputs.manifest).parent
        files = json.loads(Path(inputs.manifest).read_text(encoding='utf-8'))['files']
        common = {'space': inputs.space, 'res': inputs.res}
        targets = [output_path(task.root, f['key'], **common, **f['entities']) for f in files]
        origin = list(inputs.sources) if isdefined(inputs.sources) else []
        lead = f'bids::{_relative(targets[-1], task)}'
        writers: dict[str, Writer] = {}
        for file, target in zip(files, targets, strict=True):
            meta = dict(file['meta'])
            if '_res-' in target.name:
                meta['Resolution'] = (
                    f'{inputs.space} at {inputs.resolution:g} mm isotropic, averaged from 2 mm'
                )
            sources = origin if file is files[-1] else [lead]
            content = sidecar(file['key'], sources=sources, space=inputs.space, **meta)
            writers[_relative(sidecar_path(target), task)] = partial(write_json, content)
            writers[_relative(target, task)] = write_file(folder / file['name'], target)
        publish(
            task,
            writers,
            seen=inputs.seen if isdefined(inputs.seen) else None,
            holder=inputs.holder if isdefined(inputs.holder) else None,
        )
        self._results['out_files'] = [str(t) for t in targets]
        return runtime


def write_file(source: Path, target: Path) -> Writer:
    """Return what writes a file of a working folder under its name in OUTPUT_DIR."""
    if not target.name.endswith('.nii.gz'):
        return partial(copy_file, source)

    def write(path: Path) -> object:
        image = nib.load(source)
        assert isinstance(image, nib.Nifti1Image)
        return write_nifti(image, path)

    return write


def _relative(path: Path, task: Task) -> str:
    return path.relative_to(task.root).as_posix()
