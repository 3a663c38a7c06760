"""The interface that computes a patient's maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Bunch,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_perfdeficit import perfusion, pipeline
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
    later = traits.List(File(exists=True), desc='later phases on the grid of the NCCT, in order')
    later_names = traits.List(traits.Str, desc='of their files')
    later_meta = traits.List(traits.Dict, desc='of all later phases, also of those left out')
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
    delay = File(exists=True)
    delay_sd = File(exists=True)
    meta = traits.Dict(desc='for the sidecars')


class ComputePerfusion(SimpleInterface):
    """Compute arrival, perfusion, hypoperfusion and delay from NCCT and CTA."""

    input_spec = _ComputeInput
    output_spec = _ComputeOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        given = isdefined(self.inputs.later_meta)
        files, names, phases = (
            list(value) if given else []
            for value in (self.inputs.later, self.inputs.later_names, self.inputs.later_meta)
        )
        patient = pipeline.Prepared(
            load_image(self.inputs.ncct),
            load_image(self.inputs.cta),
            load_image(self.inputs.brain),
            Path(self.inputs.xfm),
            Path(self.inputs.inverse_xfm),
            self.inputs.space,
            later=dict(zip(names, map(load_image, files), strict=True)),
        )
        maps = pipeline.compute_maps(
            patient,
            settings=self.inputs.settings,
            fitted=dict(self.inputs.fitted) if isdefined(self.inputs.fitted) else None,
            device=self.inputs.device,
            threads=self.inputs.num_threads,
        )
        for key in (
            'subtraction', 'vessel', 'toa', 'perfusion', 'hypoperfused', 'delay', 'delay_sd',
        ):  # fmt: skip
            self._results[key] = save_image(getattr(maps, key), runtime.cwd, f'{key}.nii')
        self._results['meta'] = {
            'InflowMethod': maps.inflow.method,
            'InflowPoints': maps.inflow.points,
            'Unusual': list(maps.inflow.unusual),
            'LateScan': maps.inflow.is_late,
            'Shading': known_numbers(maps.trust.shading),
            'OtherReadOuts': [dataclasses.asdict(other) for other in maps.trust.others],
            'VolumesOfMembers': [list(sides) for sides in maps.trust.member_ml],
            'Notes': [*maps.notes, *(note for phase in phases for note in phase['Notes'])],
            'Device': self.inputs.device,
        }
        if given:
            self._results['meta'] |= {
                'PhasesUsed': 1 + len(maps.later),
                'LaterPhases': [
                    {**_without(phase, 'Notes'), 'Used': phase['File'] in maps.later}
                    for phase in phases
                ],
                'PhaseFusionSHA256': perfusion.fusion_sha256(),
            }
        return runtime


def _without(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != name}
