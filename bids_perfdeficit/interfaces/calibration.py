"""The interface that draws voxels of a patient for a calibration."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import (
    Bunch,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_perfdeficit import pipeline
from bids_perfdeficit.interfaces.evaluation import ReferenceInput, load_patient
from bids_perfdeficit.perfusion.settings import PerfusionSettings


class _SampleInput(ReferenceInput):
    settings = traits.Instance(PerfusionSettings, mandatory=True)
    seed = traits.Int(1, usedefault=True)


class _SampleOutput(TraitedSpec):
    calibration_samples = File(exists=True)
    meta = traits.Dict(desc='for the sidecar')


class SamplePair(SimpleInterface):
    """Draw voxels with the features of the network and the delay of the reference."""

    input_spec = _SampleInput
    output_spec = _SampleOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        inputs = self.inputs
        patient = load_patient(inputs)
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
