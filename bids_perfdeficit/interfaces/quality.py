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
    std_hypoperfused = File(exists=True, mandatory=True)
    xfm = File(exists=True, mandatory=True, desc='NCCT to template')
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
        inside = np.asarray(std_brain.dataobj) > 0
        toa, late, hypoperfused = (
            _load(path).get_fdata(dtype=np.float32)
            for path in (
                self.inputs.std_toa, self.inputs.std_perfusion, self.inputs.std_hypoperfused,
            )
        )  # fmt: skip
        brain, subtraction = _load(self.inputs.brain), _load(self.inputs.subtraction)
        volumes = [
            np.count_nonzero(np.asarray(image.dataobj))
            * abs(float(np.linalg.det(image.affine[:3, :3])))
            for image in (brain, std_brain)
        ]
        regions = perfusion.measure_regions(
            toa,
            late,
            hypoperfused,
            inside,
            std_brain.affine,
            threshold=perfusion.calibration()['threshold'],
            scale=volumes[0] / max(volumes[1], 1.0),
        )
        filled = ct.apply_transform(subtraction, template.brain_mask, Path(self.inputs.xfm))
        finding = perfusion.find_occlusion(
            perfusion.evidence(
                hypoperfused,
                np.asarray(filled.dataobj, dtype=np.float32),
                inside,
                std_brain.affine,
            )
        )
        quality: dict[str, object] = dict(
            ct.measure_quality(
                _load(self.inputs.ncct),
                _load(self.inputs.cta),
                brain,
                subtraction,
                std_brain,
                template.brain_mask,
            )
        )
        coverage, inflow = (
            json.loads(sidecar_path(Path(path)).read_text(encoding='utf-8'))
            for path in (self.inputs.ncct, self.inputs.perfusion)
        )
        # Of the whole brain: only the first row has them, and only if the calibration holds.
        for column, value in (
            ('occlusion_site', finding.site),
            ('occlusion_side', finding.side),
            ('occlusion_confidence', finding.confidence),
            ('occlusion_any', finding.occluded),
            ('occlusion_next_site', finding.next_site),
            ('occlusion_next_side', finding.next_side),
            ('occlusion_next_confidence', finding.next_confidence),
        ):
            told = None if inflow.get('Unusual') else value
            regions[column] = pd.Series([told], dtype=object).reindex(regions.index)
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
