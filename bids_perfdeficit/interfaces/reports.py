"""The interface that draws a participant's figures."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    DynamicTraitedSpec,
    File,
    OutputMultiPath,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from nipype.interfaces.io import add_traits

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.bids import output_path, sidecar_path
from bids_perfdeficit.interfaces.files import load_image


class _DrawInput(DynamicTraitedSpec):
    base_directory = traits.Directory(mandatory=True, desc='OUTPUT_DIR')
    participant = traits.Str(mandatory=True)
    session = traits.Either(None, traits.Str, default=None, usedefault=True)
    space = traits.Str(mandatory=True)


class _DrawOutput(TraitedSpec):
    figures = OutputMultiPath(File(exists=True), desc='SVG files')


class DrawFigures(SimpleInterface):
    """Draw what there is to see in a participant's derivatives.

    Parameters
    ----------
    keys : sequence of str
        Output keys, each an input.
    """

    input_spec = _DrawInput
    output_spec = _DrawOutput
    _always_run = True

    def __init__(self, keys=(), **inputs):
        self._keys = tuple(keys)
        super().__init__()
        add_traits(self.inputs, self._keys, trait_type=File(exists=True))
        self.inputs.trait_set(**inputs)

    def _target(self, name: str) -> Path:
        return output_path(
            Path(self.inputs.base_directory),
            f'figure_{name}',
            participant=self.inputs.participant,
            session=self.inputs.session,
        )

    def _run_interface(self, runtime):
        # Here: only the process that draws waits for its import.
        from bids_perfdeficit.reports import figures

        files = {key: Path(getattr(self.inputs, key)) for key in self._keys}
        ncct, brain = load_image(files['preproc_ct']), load_image(files['brain_mask'])
        template = ct.load_template(self.inputs.space, spacing=2.0)
        points = ct.carry(ct.read_transform(files['template_inverse_xfm']), ct.all_points(ncct))
        t1, outline = (
            nib.Nifti1Image(values.reshape(ncct.shape), ncct.affine)
            for values in (
                *ct.sample([template.t1], points),
                *ct.sample([template.brain_mask], points, order=0),
            )
        )
        drawn = [
            figures.draw_brain_outline(ncct, brain, self._target('brain')),
            figures.draw_flicker(
                ncct,
                load_image(files['preproc_cta']),
                self._target('registration'),
                contour=brain,
            ),
            figures.draw_flicker(
                ncct,
                t1,
                self._target('normalization'),
                labels=('NCCT', self.inputs.space),
                windows=(figures.STROKE_WINDOW, None),
                contour=outline,
            ),
        ]
        if 'perfusion' in files:
            drawn += self._draw_results(files, ncct, brain, template)
        self._results['figures'] = [str(path) for path in drawn]
        return runtime

    def _draw_results(self, files, ncct, brain, template) -> list[Path]:
        from bids_perfdeficit.reports import figures

        facts = json.loads(sidecar_path(files['perfusion']).read_text(encoding='utf-8'))
        late = load_image(files['hypoperfused'])
        # 0.5 where the volumes of the regional table end.
        level = 0.5 / perfusion.calibration()['threshold']
        late = nib.Nifti1Image(np.asarray(late.dataobj, np.float32) * level, late.affine)
        return [
            figures.draw_subtraction_mip(
                load_image(files['subtraction']),
                facts.get('InflowPoints', []),
                brain,
                self._target('sources'),
            ),
            figures.draw_map_mosaic(
                load_image(files['toa']),
                brain,
                ncct,
                self._target('arrival'),
                label='Computed arrival',
                units='no unit',
            ),
            figures.draw_map_mosaic(
                load_image(files['perfusion']),
                brain,
                ncct,
                self._target('perfusion'),
                label='Computed perfusion, rescaled within this brain from 0 to 1',
                ends=('earlier', 'later (worse)'),
                limits=(0.0, 1.0),
                contour=late,
                outlined='white line: hypoperfused',
            ),
            figures.draw_asymmetry(
                load_image(files['std_asymmetry']),
                template.t1,
                self._target('asymmetry'),
                limit=1.0,  # one scale for all patients
            ),
        ]
