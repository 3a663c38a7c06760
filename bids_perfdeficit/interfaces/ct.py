"""Interfaces that prepare a patient's scans and carry results to the template."""

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

from bids_perfdeficit import ct, pipeline
from bids_perfdeficit.bids import sidecar_path
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.interfaces.files import hash_file, known_numbers, load_image, save_image


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

    def _run_interface(self, runtime: Bunch) -> Bunch:
        conformed = pipeline.conform_ncct(Path(self.inputs.in_file), spacing=self.inputs.spacing)
        self._results['out_file'] = save_image(conformed.image, runtime.cwd, 'ncct.nii')
        self._results['meta'] = {
            'SourceSHA256': hash_file(self.inputs.in_file),
            'SliceThickness': round(conformed.slice_mm, 3),
            **conformed.provenance,
            'Notes': list(conformed.notes),
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

    def _run_interface(self, runtime: Bunch) -> Bunch:
        # An image without a sidecar was not conformed by this app: its slices are as it shows.
        thickness = read_facts(sidecar_path(Path(self.inputs.in_file))).get('SliceThickness')
        brain = ct.extract_brain(load_image(self.inputs.in_file), slice_mm=float(thickness or 0.0))
        self._results['out_file'] = save_image(brain.mask, runtime.cwd, 'brain.nii')
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

    def _run_interface(self, runtime: Bunch) -> Bunch:
        result = pipeline.align_cta(
            Path(self.inputs.cta),
            load_image(self.inputs.ncct),
            load_image(self.inputs.brain),
            seed=self.inputs.seed,
            work_dir=Path(runtime.cwd),
        )
        self._results['out_file'] = save_image(result.image, runtime.cwd, 'cta.nii')
        xfm = Path(runtime.cwd) / 'cta_to_ncct.txt'
        ct.write_rigid(result.matrix, xfm)
        self._results['out_xfm'] = str(xfm)
        self._results['meta'] = {
            'SourceSHA256': hash_file(self.inputs.cta),
            **result.provenance,
            'Registration': known_numbers(result.quality),
            'Notes': list(result.notes),
        }
        return runtime


class _AlignPhasesInput(BaseInterfaceInputSpec):
    ncct = File(exists=True, mandatory=True, desc='conformed NCCT')
    brain = File(exists=True, mandatory=True, desc='brain mask')
    phases = traits.List(
        File(), mandatory=True, desc='later phases of the CTA as they came, in order'
    )
    seed = traits.Int(mandatory=True)


class _AlignPhasesOutput(TraitedSpec):
    out_files = traits.List(File(exists=True), desc='those that can be used, on the NCCT grid, HU')
    names = traits.List(traits.Str, desc='of their files')
    meta = traits.List(traits.Dict, desc='a description of each phase, for the sidecars')


class AlignPhases(SimpleInterface):
    """Align the later phases of the CTA with the NCCT; one that cannot be used is left out."""

    input_spec = _AlignPhasesInput
    output_spec = _AlignPhasesOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        paths = [Path(path) for path in self.inputs.phases]
        found = pipeline.align_phases(
            paths,
            load_image(self.inputs.ncct),
            load_image(self.inputs.brain),
            seed=self.inputs.seed,
            work_dir=Path(runtime.cwd),
        )
        used = [
            (number, phase) for number, phase in enumerate(found, 2) if phase.image is not None
        ]
        self._results['out_files'] = [
            save_image(phase.image, runtime.cwd, f'phase{number}.nii')
            for number, phase in used
            if phase.image is not None
        ]
        self._results['names'] = [phase.name for _, phase in used]
        self._results['meta'] = [
            {
                'File': phase.name,
                'SourceSHA256': hash_file(path) if path.is_file() else None,
                **phase.provenance,
                'Registration': known_numbers(phase.quality),
                'LeftOut': phase.reason,
                'Notes': list(phase.notes),
            }
            for path, phase in zip(paths, found, strict=True)
        ]
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

    def _run_interface(self, runtime: Bunch) -> Bunch:
        result = pipeline.align_template(
            load_image(self.inputs.ncct),
            load_image(self.inputs.brain),
            work_dir=Path(runtime.cwd),
            space=self.inputs.space,
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
    delay = File(exists=True, mandatory=True)
    delay_sd = File(exists=True, mandatory=True)
    xfm = File(exists=True, mandatory=True, desc='NCCT to template')
    space = traits.Str(mandatory=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='on which no image depends')


class _ToTemplateOutput(TraitedSpec):
    std_preproc_ct = File(exists=True)
    std_preproc_cta = File(exists=True)
    std_brain_mask = File(exists=True)
    std_toa = File(exists=True)
    std_perfusion = File(exists=True)
    std_asymmetry = File(exists=True)
    std_hypoperfused = File(exists=True)
    std_delay = File(exists=True)
    std_delay_sd = File(exists=True)


class ToTemplate(SimpleInterface):
    """Carry the patient's images to the template's grid."""

    input_spec = _ToTemplateInput
    output_spec = _ToTemplateOutput

    def _run_interface(self, runtime: Bunch) -> Bunch:
        names = (
            'ncct', 'cta', 'brain', 'toa', 'perfusion', 'hypoperfused', 'delay', 'delay_sd',
        )  # fmt: skip
        maps = pipeline.carry_images(
            *(load_image(getattr(self.inputs, name)) for name in names),
            forward=Path(self.inputs.xfm),
            space=self.inputs.space,
            threads=self.inputs.num_threads,
        )
        for key, image in (
            ('std_preproc_ct', maps.ncct),
            ('std_preproc_cta', maps.cta),
            ('std_brain_mask', maps.brain),
            ('std_toa', maps.toa),
            ('std_perfusion', maps.perfusion),
            ('std_asymmetry', maps.asymmetry),
            ('std_hypoperfused', maps.hypoperfused),
            ('std_delay', maps.delay),
            ('std_delay_sd', maps.delay_sd),
        ):
            self._results[key] = save_image(image, runtime.cwd, f'{key}.nii')
        return runtime
