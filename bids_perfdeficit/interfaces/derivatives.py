"""The one interface that writes into OUTPUT_DIR."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
from nipype.interfaces.base import (
    DynamicTraitedSpec,
    File,
    SimpleInterface,
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


class _SinkInput(DynamicTraitedSpec):
    base_directory = traits.Directory(mandatory=True, desc='OUTPUT_DIR')
    participant = traits.Str(mandatory=True)
    session = traits.Either(None, traits.Str, default=None, usedefault=True)
    space = traits.Str(mandatory=True)
    sources = traits.List(traits.Str, desc='BIDS URIs of what the outputs were made from')
    meta = traits.Dict(desc='more for the sidecars')
    fingerprint = traits.Str(desc='of the stage; see `workflows.plan`')


class DerivativesSink(SimpleInterface):
    """Write outputs under their BIDS names, each with its sidecar.

    A file takes its place in one step, and after its sidecar, so that whoever sees it sees it
    whole.

    Parameters
    ----------
    keys : sequence of str
        Keys of `data/io_spec.json`. Each is an input (the file to write) and an output (where it
        was written).
    """

    input_spec = _SinkInput
    output_spec = DynamicTraitedSpec
    _always_run = True

    def __init__(self, keys=(), **inputs):
        self._keys = tuple(keys)
        super().__init__()
        add_traits(self.inputs, self._keys, trait_type=File(exists=True))
        self.inputs.trait_set(**inputs)

    def _outputs(self):
        return add_traits(super()._outputs(), self._keys)

    def _run_interface(self, runtime):
        extra = dict(self.inputs.meta) if isdefined(self.inputs.meta) else {}
        if isdefined(self.inputs.fingerprint):
            extra['Fingerprint'] = self.inputs.fingerprint
        sources = self.inputs.sources if isdefined(self.inputs.sources) else []
        for key in self._keys:
            source = Path(getattr(self.inputs, key))
            target = output_path(
                Path(self.inputs.base_directory),
                key,
                participant=self.inputs.participant,
                session=self.inputs.session,
                space=self.inputs.space,
            )
            write_json(
                sidecar(key, sources=sources, space=self.inputs.space, **extra),
                sidecar_path(target),
            )
            if target.name.endswith('.nii.gz'):
                image = nib.load(source)
                assert isinstance(image, nib.Nifti1Image)
                write_nifti(image, target)
            else:
                copy_file(source, target)
            self._results[key] = str(target)
        return runtime
