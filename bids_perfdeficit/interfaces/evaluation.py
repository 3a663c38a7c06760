"""The interface that compares a patient's maps with a reference map."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Bunch,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_perfdeficit import pipeline
from bids_perfdeficit.bids import sidecar_path
from bids_perfdeficit.interfaces.files import load_image, save_image


class ReferenceInput(BaseInterfaceInputSpec):
    """A prepared patient and its reference, as files."""

    preproc_ct = File(exists=True, mandatory=True, desc='derivatives, native grid')
    preproc_cta = File(exists=True, mandatory=True)
    brain_mask = File(exists=True, mandatory=True)
    template_xfm = File(exists=True, mandatory=True, desc='NCCT to template')
    template_inverse_xfm = File(exists=True, mandatory=True, desc='template to NCCT')
    reference = File(exists=True, mandatory=True, desc='Tmax, s')
    clot = traits.Str('', usedefault=True, desc='mask of the occlusion')
    space = traits.Str(mandatory=True, desc='template')
    device = traits.Str('cpu', usedefault=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='on which no result depends')
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc='for the scheduler')


def load_patient(inputs: ReferenceInput) -> pipeline.Prepared:
    """Return the patient whose files were given."""
    return pipeline.Prepared(
        load_image(inputs.preproc_ct),
        load_image(inputs.preproc_cta),
        load_image(inputs.brain_mask),
        Path(inputs.template_xfm),
        Path(inputs.template_inverse_xfm),
        inputs.space,
    )


class _EvaluateInput(ReferenceInput):
    toa = File(exists=True, mandatory=True)
    perfusion = File(exists=True, mandatory=True)
    hypoperfused = File(exists=True, mandatory=True, desc='its sidecar has the threshold')
    regions_metrics = File(exists=True, mandatory=True)


class _EvaluateOutput(TraitedSpec):
    reference_tmax = File(exists=True)
    agreement_metrics = File(exists=True)
    reference_metrics = File(exists=True)
    meta = traits.Dict(desc='for the sidecars')


class EvaluateMaps(SimpleInterface):
    """Measure the agreement of a patient's maps and of controls with a reference."""

    input_spec = _EvaluateInput
    output_spec = _EvaluateOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        inputs = self.inputs
        patient = load_patient(inputs)
        reference = pipeline.read_reference(Path(inputs.reference), patient.brain)
        facts = json.loads(sidecar_path(Path(inputs.hypoperfused)).read_text(encoding='utf-8'))
        regions = pd.read_csv(inputs.regions_metrics, sep='\t', na_values='n/a')
        found = pipeline.evaluate_patient(
            patient,
            load_image(inputs.toa),
            load_image(inputs.perfusion),
            load_image(inputs.hypoperfused),
            reference,
            threshold=facts.get('HypoperfusionThreshold'),
            found={
                str(key): value if pd.notna(value) else None
                for key, value in regions.iloc[0].items()
            },
            clot=Path(inputs.clot) if inputs.clot else None,
            device=inputs.device,
            threads=inputs.num_threads,
        )
        self._results['reference_tmax'] = save_image(
            reference.delay, runtime.cwd, 'reference_tmax.nii'
        )
        for key, frame in (
            ('agreement_metrics', found.maps),
            ('reference_metrics', pd.DataFrame([found.patient])),
        ):
            path = Path(runtime.cwd) / f'{key}.tsv'
            frame.to_csv(path, sep='\t', index=False, na_rep='n/a', float_format='%.5g')
            self._results[key] = str(path)
        self._results['meta'] = {'Notes': list(found.notes), 'Doubts': list(found.doubts)}
        return runtime
