"""The interface that draws voxels of a patient for a calibration."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Bunch,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_perfdeficit import pipeline
from bids_perfdeficit.interfaces.files import load_image
from bids_perfdeficit.perfusion.settings import PerfusionSettings


class _SampleInput(BaseInterfaceInputSpec):
    preproc_ct = File(exists=True, mandatory=True, desc='derivatives, native grid')
    preproc_cta = File(exists=True, mandatory=True)
    brain_mask = File(exists=True, mandatory=True)
    template_xfm = File(exists=True, mandatory=True, desc='NCCT to template')
    template_inverse_xfm = File(exists=True, mandatory=True, desc='template to NCCT')
    reference = File(exists=True, mandatory=True, desc='Tmax, s')
    clot = traits.Str('', usedefault=True, desc='mask of the occlusion')
    space = traits.Str(mandatory=True, desc='template')
    settings = traits.Instance(PerfusionSettings, mandatory=True)
    seed = traits.Int(1, usedefault=True)
    device = traits.Str('cpu', usedefault=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='on which no result depends')
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc='for the scheduler')


class _SampleOutput(TraitedSpec):
    calibration_samples = File(exists=True)
    meta = traits.Dict(desc='for the sidecar')


class SamplePair(SimpleInterface):
    """Draw voxels with the features of the network and the delay of the reference."""

    input_spec = _SampleInput
    output_spec = _SampleOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        inputs = self.inputs
        patient = pipeline.Prepared(
            load_image(inputs.preproc_ct),
            load_image(inputs.preproc_cta),
            load_image(inputs.brain_mask),
            Path(inputs.template_xfm),
            Path(inputs.template_inverse_xfm),
            inputs.space,
        )
        found = pipeline.sample_pair(
            patient,
            pipeline.read_reference(Path(inputs.reference), patient.brain),
            settings=inputs.settings,
            clot=Path(inputs.clot) if inputs.clot else None,
            seed=inputs.seed,
            device=inputs.device,
            threads=inputs.num_threads,
        )
        path = Path(runtime.cwd) / 'calibration_samples.npz'
        found.save(path)
        self._results['calibration_samples'] = str(path)
        self._results['meta'] = {
            'Voxels': len(found.delay),
            'VoxelVolume': found.voxel_ml,
            'Notes': list(found.notes),
            'Doubts': list(found.doubts),
        }
        return runtime
