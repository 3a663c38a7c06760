"""Interfaces to the `perfusion` room."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.interfaces.ct import _load, _save
from bids_perfdeficit.perfusion.settings import PerfusionSettings

#: What a reader is told of numbers that the calibration has not met.
_UNUSUAL = {
    name: f'the contrast of the {what} over that of the arteries is unlike any that the perfusion '
    'map was calibrated on: do not trust it; no occlusion is told'
    for name, what in (('tissue', 'brain tissue'), ('venous', 'sinuses'))
}


class _ComputeInput(BaseInterfaceInputSpec):
    ncct = File(exists=True, mandatory=True, desc='conformed NCCT')
    cta = File(exists=True, mandatory=True, desc='CTA on the grid of the NCCT')
    brain = File(exists=True, mandatory=True, desc='brain mask')
    xfm = File(exists=True, mandatory=True, desc='NCCT to template')
    inverse_xfm = File(exists=True, mandatory=True, desc='template to NCCT')
    space = traits.Str(mandatory=True, desc='template')
    settings = traits.Instance(PerfusionSettings, mandatory=True)
    device = traits.Str('cpu', usedefault=True)
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

    def _run_interface(self, runtime):
        # One, for vectorised functions round otherwise at the ends of each thread's share, and a
        # map would depend on the number of cores.
        torch.set_num_threads(1)
        settings = self.inputs.settings
        ncct = _load(self.inputs.ncct)
        spacing = tuple(float(s) for s in ncct.header.get_zooms()[2::-1])

        def tensor(image: nib.Nifti1Image, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            values = np.ascontiguousarray(np.asarray(image.dataobj).T)  # (X, Y, Z) to (Z, Y, X)
            return torch.as_tensor(values).to(self.inputs.device, dtype)

        def image(values: torch.Tensor) -> nib.Nifti1Image:
            # Arrival is infinite outside the brain; images hold 0 there.
            finite = torch.nan_to_num(values.to('cpu', torch.float32), posinf=0.0)
            array = np.ascontiguousarray(finite.numpy().T)
            return nib.Nifti1Image(array, ncct.affine)

        template = ct.load_template(self.inputs.space, spacing=2.0)
        shape, affine = template.brain_mask.shape, template.brain_mask.affine

        def to_patient(values: np.ndarray) -> torch.Tensor:
            return tensor(
                ct.apply_transform(
                    nib.Nifti1Image(values, affine), ncct, Path(self.inputs.inverse_xfm)
                )
            )

        def mirror(values: torch.Tensor) -> torch.Tensor:
            there = ct.apply_transform(image(values), template.brain_mask, Path(self.inputs.xfm))
            return to_patient(np.asarray(there.dataobj, dtype=np.float32)[::-1].copy())

        veins = to_patient(perfusion.vein_prior(shape, affine))
        ct_hu, cta_hu = tensor(ncct), tensor(_load(self.inputs.cta))
        brain = tensor(_load(self.inputs.brain), torch.bool)
        subtraction = perfusion.subtract(ct_hu, cta_hu, brain, spacing, settings=settings)
        vesselness = perfusion.vesselness(subtraction, spacing)
        sources = perfusion.find_sources(
            subtraction,
            vesselness,
            to_patient(perfusion.inflow_prior(shape, affine)),
            brain,
            spacing,
            settings=settings,
        )
        maps = perfusion.synthesize(
            ct_hu,
            cta_hu,
            brain,
            sources,
            spacing,
            veins=veins,
            white=to_patient(template.white.get_fdata(dtype=np.float32)),
            grey=to_patient(template.grey.get_fdata(dtype=np.float32)),
            mirror=mirror,
            settings=settings,
        )
        for key, values in (
            ('subtraction', maps.subtraction),
            ('vessel', maps.vesselness),
            ('toa', maps.arrival),
            ('perfusion', maps.perfusion),
            ('hypoperfused', maps.hypoperfused),
        ):
            self._results[key] = _save(image(values), runtime.cwd, f'{key}.nii')
        points = torch.nonzero(sources.mask).flip(1).cpu().numpy()
        self._results['meta'] = {
            'InflowMethod': sources.method,
            'InflowPoints': np.round(nib.affines.apply_affine(ncct.affine, points), 1).tolist(),
            'Unusual': list(maps.unusual),
            'Notes': [*sources.notes, *(_UNUSUAL[name] for name in maps.unusual)],
            'Device': self.inputs.device,
        }
        return runtime
