"""The interface that measures a patient's results and their quality."""

from __future__ import annotations

import json
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

from bids_perfdeficit import ct, perfusion, pipeline
from bids_perfdeficit.bids import sidecar_path
from bids_perfdeficit.interfaces.files import load_image


class _MeasureInput(BaseInterfaceInputSpec):
    ncct = File(exists=True, mandatory=True, desc='derivatives, native grid')
    cta = File(exists=True, mandatory=True)
    brain = File(exists=True, mandatory=True)
    subtraction = File(exists=True, mandatory=True)
    perfusion = File(exists=True, mandatory=True, desc='its sidecar describes the inflow')
    hypoperfused = File(exists=True, mandatory=True)
    std_brain_mask = File(exists=True, mandatory=True, desc='derivatives, template grid')
    std_toa = File(exists=True, mandatory=True)
    std_perfusion = File(exists=True, mandatory=True)
    std_hypoperfused = File(exists=True, mandatory=True)
    xfm = File(exists=True, mandatory=True, desc='NCCT to template')
    space = traits.Str(mandatory=True)
    fitted = traits.Dict(desc="weights with a site's own calibration; the shipped ones without")


class _MeasureOutput(TraitedSpec):
    qc_metrics = File(exists=True)
    regions_metrics = File(exists=True)


class MeasureResults(SimpleInterface):
    """Write one row of quality metrics, and a row for each region."""

    input_spec = _MeasureInput
    output_spec = _MeasureOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        names = (
            'ncct', 'cta', 'brain', 'subtraction', 'hypoperfused',
            'std_brain_mask', 'std_toa', 'std_perfusion', 'std_hypoperfused',
        )  # fmt: skip
        ncct, cta, inflow = (
            json.loads(sidecar_path(Path(path)).read_text(encoding='utf-8'))
            for path in (self.inputs.ncct, self.inputs.cta, self.inputs.perfusion)
        )
        found = pipeline.measure_images(
            *(load_image(getattr(self.inputs, name)) for name in names),
            forward=Path(self.inputs.xfm),
            space=self.inputs.space,
            inflow=pipeline.Inflow(
                inflow.get('InflowMethod', 'n/a'),
                inflow.get('InflowPoints', []),
                tuple(inflow.get('Unusual', ())),
                bool(inflow.get('LateScan', False)),
            ),
            missing=ncct.get('CoverageMissing', ()),
            found=ct.sidecar_metrics(ncct, cta),
            trust=pipeline.Trust(
                inflow.get('Shading', {}),
                tuple(perfusion.ReadOut(**other) for other in inflow.get('OtherReadOuts', ())),
                tuple((left, right) for left, right in inflow.get('VolumesOfMembers', ())),
            ),
            fitted=dict(self.inputs.fitted) if isdefined(self.inputs.fitted) else None,
        )
        for key, frame in (('qc_metrics', found.quality), ('regions_metrics', found.regions)):
            path = Path(runtime.cwd) / f'{key}.tsv'
            frame.to_csv(path, sep='\t', index=False, na_rep='n/a', float_format='%.5g')
            self._results[key] = str(path)
        return runtime
