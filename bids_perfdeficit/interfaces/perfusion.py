"""The interface that computes a patient's maps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Bunch,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_perfdeficit import pipeline
from bids_perfdeficit.interfaces.files import known_numbers, load_image, save_image
from bids_perfdeficit.perfusion.settings import PerfusionSettings


class _ComputeInput(BaseInterfaceInputSpec):
    ncct = File(exists=True, mandatory=True, desc='conformed NCCT')
    cta = File(exists=True, mandatory=True, desc='CTA on the grid of the NCCT')
    brain = File(exists=True, mandatory=True, desc='brain mask')
    xfm = File(exists=True, mandatory=True, desc='NCCT to template')
    inverse_xfm = File(exists=True, mandatory=True, desc='template to NCCT')
    space = traits.Str(mandatory=True, desc='template')
    settings = traits.Instance(PerfusionSettings, mandatory=True)
    fitted = traits.Dict(desc="weights with a site's own calibration; the shipped ones without")
    device = traits.Str('cpu', usedefault=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='on which no map depends')
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc='for the scheduler')


class _ComputeOutput(TraitedSpec):
    subtraction = File(exists=True)
    vessel = File(exists=True)
    toa = File(exists=True)
    perfusion = File(exists=True)
    hypoperfused = File(exists=True)
    meta = traits.Dict(desc='for the sidecars')


class ComputePerfusion(SimpleInterface):
    """Compute arrival and perfusion from NCCT and CTA."""

    input_spec = _ComputeInput
    output_spec = _ComputeOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        patient = pipeline.Prepared(
            load_image(self.inputs.ncct),
            load_image(self.inputs.cta),
            load_image(self.inputs.brain),
            Path(self.inputs.xfm),
            Path(self.inputs.inverse_xfm),
            self.inputs.space,
        )
        maps = pipeline.compute_maps(
            patient,
            settings=self.inputs.settings,
            fitted=dict(self.inputs.fitted) if isdefined(self.inputs.fitted) else None,
            device=self.inputs.device,
            threads=self.inputs.num_threads,
        )
        for key in ('subtraction', 'vessel', 'toa', 'perfusion', 'hypoperfused'):
            self._results[key] = save_image(getattr(maps, key), runtime.cwd, f'{key}.nii')
        self._results['meta'] = {
            'InflowMethod': maps.inflow.method,
            'InflowPoints': maps.inflow.points,
            'Unusual': list(maps.inflow.unusual),
            'Shading': known_numbers(maps.trust.shading),
            'OtherReadOuts': [dataclasses.asdict(other) for other in maps.trust.others],
            'Notes': list(maps.notes),
            'Device': self.inputs.device,
        }
        return runtime
