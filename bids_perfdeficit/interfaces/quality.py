"""The interface that measures a patient's results and their quality."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.bids import sidecar_path
from bids_perfdeficit.interfaces.ct import _load


class _MeasureInput(BaseInterfaceInputSpec):
    ncct = File(exists=True, mandatory=True, desc='derivatives, native grid')
    cta = File(exists=True, mandatory=True)
    brain = File(exists=True, mandatory=True)
    subtraction = File(exists=True, mandatory=True)
    perfusion = File(exists=True, mandatory=True, desc='its sidecar tells of the inflow')
    std_brain_mask = File(exists=True, mandatory=True, desc='derivatives, template grid')
    std_toa = File(exists=True, mandatory=True)
    std_perfusion = File(exists=True, mandatory=True)
    space = traits.Str(mandatory=True)


class _MeasureOutput(TraitedSpec):
    qc_metrics = File(exists=True)
    regions_metrics = File(exists=True)


class MeasureResults(SimpleInterface):
    """Write one row of quality metrics, and a row for each region."""

    input_spec = _MeasureInput
    output_spec = _MeasureOutput

    def _run_interface(self, runtime):
        template = ct.load_template(self.inputs.space, spacing=2.0)
        std_brain = _load(self.inputs.std_brain_mask)
        regions = perfusion.measure_regions(
            _load(self.inputs.std_toa).get_fdata(dtype=np.float32),
            _load(self.inputs.std_perfusion).get_fdata(dtype=np.float32),
            np.asarray(std_brain.dataobj) > 0,
            perfusion.territories(std_brain.shape, std_brain.affine),
        )
        quality: dict[str, object] = dict(
            ct.measure_quality(
                _load(self.inputs.ncct),
                _load(self.inputs.cta),
                _load(self.inputs.brain),
                _load(self.inputs.subtraction),
                std_brain,
                template.brain_mask,
            )
        )
        coverage, inflow = (
            json.loads(sidecar_path(Path(path)).read_text(encoding='utf-8'))
            for path in (self.inputs.ncct, self.inputs.perfusion)
        )
        hemisphere = regions.set_index('region').loc['hemisphere']
        quality |= {
            'coverage_missing': ', '.join(coverage.get('CoverageMissing', [])) or 'none',
            'inflow_method': inflow.get('InflowMethod', 'n/a'),
            'inflow_voxels': len(inflow.get('InflowPoints', [])),
            'arrival_left': hemisphere['arrival_left'],
            'arrival_right': hemisphere['arrival_right'],
        }
        for key, frame in (
            ('qc_metrics', pd.DataFrame([quality])),
            ('regions_metrics', regions),
        ):
            path = Path(runtime.cwd) / f'{key}.tsv'
            frame.to_csv(path, sep='\t', index=False, na_rep='n/a', float_format='%.5g')
            self._results[key] = str(path)
        return runtime
