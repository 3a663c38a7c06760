"""Interfaces to the `ct` room."""

from __future__ import annotations

import hashlib
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


def _save(image: nib.Nifti1Image, runtime_dir: str, name: str) -> str:
    path = Path(runtime_dir) / name
    image.header.set_xyzt_units('mm')
    nib.save(image, path)
    return str(path)


def _sha256(path: str) -> str:
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def _load(path: str) -> nib.Nifti1Image:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


class _ConformInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='NCCT as it came')
    spacing = traits.Float(1.0, usedefault=True, desc='voxel size, mm')


class _ConformOutput(TraitedSpec):
    out_file = File(exists=True, desc='NCCT in HU, RAS, isotropic')
    meta = traits.Dict(desc='for the sidecar')


class ConformNCCT(SimpleInterface):
    """Read an NCCT, whatever its state, and lay it on an isotropic RAS grid."""

    input_spec = _ConformInput
    output_spec = _ConformOutput

    def _run_interface(self, runtime):
        volume = ct.read_ct(Path(self.inputs.in_file), role='NCCT')
        conformed = ct.conform(volume, spacing=self.inputs.spacing)
        self._results['out_file'] = _save(conformed.image, runtime.cwd, 'ncct.nii')
        self._results['meta'] = {
            'SourceSHA256': _sha256(self.inputs.in_file),
            'Notes': [*volume.notes, *conformed.notes],
            'CoverageComplete': conformed.coverage.complete,
            'CoverageMissing': list(conformed.coverage.missing),
        }
        return runtime


class _BrainInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc='conformed NCCT')


class _BrainOutput(TraitedSpec):
    out_file = File(exists=True, desc='brain mask')
    meta = traits.Dict(desc='for the sidecar')


class ExtractBrain(SimpleInterface):
    """Find the brain in a conformed NCCT."""

    input_spec = _BrainInput
    output_spec = _BrainOutput

    def _run_interface(self, runtime):
        brain = ct.extract_brain(_load(self.inputs.in_file))
        self._results['out_file'] = _save(brain.mask, runtime.cwd, 'brain.nii')
        self._results['meta'] = {'BrainVolume': brain.volume_ml, 'Notes': list(brain.notes)}
        return runtime


class _RegisterCTAInput(BaseInterfaceInputSpec):
    ncct = File(exists=True, mandatory=True, desc='conformed NCCT')
    brain = File(exists=True, mandatory=True, desc='brain mask')
    cta = File(exists=True, mandatory=True, desc='CTA as it came')
    seed = traits.Int(mandatory=True)


class _RegisterCTAOutput(TraitedSpec):
    out_file = File(exists=True, desc='CTA on the grid of the NCCT, HU')
    out_xfm = File(exists=True, desc='rigid transform in ITK form')
    meta = traits.Dict(desc='for the sidecar')


class RegisterCTA(SimpleInterface):
    """Align the CTA with the NCCT."""

    input_spec = _RegisterCTAInput
    output_spec = _RegisterCTAOutput

    def _run_interface(self, runtime):
        volume = ct.read_ct(Path(self.inputs.cta), role='CTA')
        result = ct.register_cta(
            _load(self.inputs.ncct),
            volume.image,
            _load(self.inputs.brain),
            seed=self.inputs.seed,
        )
        self._results['out_file'] = _save(result.image, runtime.cwd, 'cta.nii')
        xfm = Path(runtime.cwd) / 'cta_to_ncct.txt'
        ct.write_rigid(result.matrix, xfm)
        self._results['out_xfm'] = str(xfm)
        self._results['meta'] = {
            'SourceSHA256': _sha256(self.inputs.cta),
            'Registration': result.quality,
            'Notes': [*volume.notes, *result.notes],
        }
        return runtime


class _RegisterTemplateInput(BaseInterfaceInputSpec):
    ncct = File(exists=True, mandatory=True, desc='conformed NCCT')
    brain = File(exists=True, mandatory=True, desc='brain mask')
    space = traits.Str(mandatory=True, desc='template')
    seed = traits.Int(mandatory=True)
    sloppy = traits.Bool(False, usedefault=True)


class _RegisterTemplateOutput(TraitedSpec):
    out_xfm = File(exists=True, desc='NCCT to template')
    out_inverse_xfm = File(exists=True, desc='template to NCCT')
    meta = traits.Dict(desc='for the sidecar')


class RegisterTemplate(SimpleInterface):
    """Align the NCCT with the template."""

    input_spec = _RegisterTemplateInput
    output_spec = _RegisterTemplateOutput

    def _run_interface(self, runtime):
        result = ct.register_template(
            _load(self.inputs.ncct),
            _load(self.inputs.brain),
            ct.load_template(self.inputs.space, spacing=2.0),
            work_dir=Path(runtime.cwd),
            seed=self.inputs.seed,
            sloppy=self.inputs.sloppy,
        )
        self._results['out_xfm'] = str(result.forward)
        self._results['out_inverse_xfm'] = str(result.inverse)
        self._results['meta'] = {'Registration': result.quality, 'Notes': list(result.notes)}
        return runtime


class _ToTemplateInput(BaseInterfaceInputSpec):
    ncct = File(exists=True, mandatory=True)
    cta = File(exists=True, mandatory=True)
    brain = File(exists=True, mandatory=True)
    toa = File(exists=True, mandatory=True)
    perfusion = File(exists=True, mandatory=True)
    hypoperfused = File(exists=True, mandatory=True)
    xfm = File(exists=True, mandatory=True, desc='NCCT to template')
    space = traits.Str(mandatory=True)


class _ToTemplateOutput(TraitedSpec):
    std_preproc_ct = File(exists=True)
    std_preproc_cta = File(exists=True)
    std_brain_mask = File(exists=True)
    std_toa = File(exists=True)
    std_perfusion = File(exists=True)
    std_asymmetry = File(exists=True)
    std_hypoperfused = File(exists=True)


class ToTemplate(SimpleInterface):
    """Carry the patient's images to the template's 2 mm grid."""

    input_spec = _ToTemplateInput
    output_spec = _ToTemplateOutput

    #: Output, input, interpolation and value outside the field of view.
    _IMAGES = (
        ('std_preproc_ct', 'ncct', 'linear', -1000.0),
        ('std_preproc_cta', 'cta', 'linear', -1000.0),
        ('std_brain_mask', 'brain', 'nearest', 0.0),
        ('std_toa', 'toa', 'linear', 0.0),
        ('std_perfusion', 'perfusion', 'linear', 0.0),
        ('std_hypoperfused', 'hypoperfused', 'linear', 0.0),
    )

    def _run_interface(self, runtime):
        template = ct.load_template(self.inputs.space, spacing=2.0)
        images = {
            key: ct.apply_transform(
                _load(getattr(self.inputs, name)),
                template.brain_mask,
                Path(self.inputs.xfm),
                interpolation=interpolation,
                fill=fill,
            )
            for key, name, interpolation, fill in self._IMAGES
        }
        inside = np.asarray(images['std_brain_mask'].dataobj) > 0
        inside &= np.asarray(template.brain_mask.dataobj) > 0
        for key in ('std_toa', 'std_perfusion', 'std_hypoperfused'):
            values = np.where(inside, images[key].get_fdata(dtype=np.float32), 0)
            images[key] = nib.Nifti1Image(values.astype(np.float32), template.brain_mask.affine)
        images['std_brain_mask'] = nib.Nifti1Image(
            inside.astype(np.uint8), template.brain_mask.affine
        )
        values = torch.from_numpy(images['std_perfusion'].get_fdata(dtype=np.float32).T.copy())
        difference = perfusion.asymmetry(values).numpy().T
        images['std_asymmetry'] = nib.Nifti1Image(
            np.where(inside & inside[::-1], difference, 0).astype(np.float32),
            template.brain_mask.affine,
        )
        for key, image in images.items():
            self._results[key] = _save(image, runtime.cwd, f'{key}.nii')
        return runtime
