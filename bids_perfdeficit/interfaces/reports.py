"""The interface that draws a participant's figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    Bunch,
    DynamicTraitedSpec,
    File,
    SimpleInterface,
    traits,
)
from nipype.interfaces.io import add_traits

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.bids import sidecar_path
from bids_perfdeficit.interfaces.files import load_image

#: s at the ends of the scale of the delay, in all patients.
DELAY_RANGE = (0.0, 12.0)


class _DrawInput(DynamicTraitedSpec):
    space = traits.Str(mandatory=True)


class DrawFigures(SimpleInterface):
    """Draw what there is to see in a participant's derivatives.

    Parameters
    ----------
    keys : sequence of str
        Output keys, each an input.
    figures : sequence of str
        Keys of the figures to draw, each an output.
    """

    input_spec = _DrawInput
    output_spec = DynamicTraitedSpec

    def __init__(
        self, keys: Sequence[str] = (), figures: Sequence[str] = (), **inputs: Any
    ) -> None:
        self._keys, self._figures = tuple(keys), tuple(figures)
        super().__init__()
        add_traits(self.inputs, self._keys, trait_type=File(exists=True))
        self.inputs.trait_set(**inputs)

    def _outputs(self) -> Any:
        return add_traits(super()._outputs(), self._figures)

    def _run_interface(self, runtime: Bunch) -> Bunch:
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

        def target(name: str) -> Path:
            return Path(runtime.cwd) / f'{name}.svg'

        drawn = {
            'figure_brain': figures.draw_brain_outline(ncct, brain, target('brain')),
            'figure_stroke': figures.draw_narrow_window(ncct, brain, target('stroke')),
            'figure_registration': figures.draw_flicker(
                ncct,
                load_image(files['preproc_cta']),
                target('registration'),
                contour=brain,
            ),
            'figure_normalization': figures.draw_flicker(
                ncct,
                t1,
                target('normalization'),
                labels=('NCCT', self.inputs.space),
                windows=(figures.STROKE_WINDOW, None),
                contour=outline,
            ),
        }
        if 'perfusion' in files:
            drawn |= self._draw_results(files, ncct, brain, template, target)
        self._results |= {key: str(drawn[key]) for key in self._figures}
        return runtime

    def _draw_results(
        self,
        files: Mapping[str, Path],
        ncct: nib.Nifti1Image,
        brain: nib.Nifti1Image,
        template: ct.Template,
        target: Callable[[str], Path],
    ) -> dict[str, Path]:
        from bids_perfdeficit.reports import figures
        from bids_perfdeficit.reports.page import describe_volumes, read_rows
        from bids_perfdeficit.reports.viewer import write_patient_view

        facts = json.loads(sidecar_path(files['perfusion']).read_text(encoding='utf-8'))
        subtraction = load_image(files['subtraction'])
        probability = load_image(files['hypoperfused'])
        arrival, rescaled = load_image(files['toa']), load_image(files['perfusion'])
        delay = load_image(files['delay'])
        # 0.5 where the volumes of the regional table end.
        stated = json.loads(sidecar_path(files['hypoperfused']).read_text(encoding='utf-8'))
        shipped = perfusion.calibration()['threshold']
        threshold = float(stated.get('HypoperfusionThreshold', shipped))
        late = nib.Nifti1Image(
            np.asarray(probability.dataobj, np.float32) * (0.5 / threshold), probability.affine
        )
        (whole, *_) = read_rows(files['regions_metrics'])
        site, called = self._site(whole, files['template_xfm'])
        longest = float(np.asarray(arrival.dataobj, np.float32).max()) or 1.0
        return {
            'figure_hypoperfused': figures.draw_map_mosaic(
                probability,
                brain,
                ncct,
                target('hypoperfused'),
                label='Probability of hypoperfusion (delay above 6 s)',
                ends=('improbable', 'probable'),
                limits=(0.0, 1.0),
                contour=late,
                outlined=f'white line: threshold, {threshold:.2f}',
                note=describe_volumes(whole),
                cmap='inferno',
                clear=0.25,
            ),
            'figure_delay': figures.draw_map_mosaic(
                delay,
                brain,
                ncct,
                target('delay'),
                label='Computed delay',
                units='s',
                ends=('early', 'late (12 s or more)'),
                limits=DELAY_RANGE,
                contour=late,
                outlined='white line: hypoperfused',
                cmap='inferno',
                clear=0.5,
            ),
            'figure_thumbnail': figures.draw_thumbnail(
                probability, brain, ncct, late, target('thumbnail')
            ),
            'figure_slabs': figures.draw_slabs(
                subtraction, brain, target('slabs'), site=site, called=called
            ),
            'figure_rotation': figures.draw_rotation(subtraction, brain, target('rotation')),
            'viewer': write_patient_view(
                ncct,
                load_image(files['preproc_cta']),
                brain,
                [
                    ('hypoperfused', 'Probability of hypoperfusion', probability, 1.0),
                    ('delay', 'Delay, s', delay, DELAY_RANGE[1]),
                    ('perfusion', 'Perfusion, rescaled within this brain', rescaled, 1.0),
                    ('arrival', 'Arrival (no unit)', arrival, longest),
                ],
                late,
                target('viewer').with_suffix('.js'),
            ),
            'figure_sources': figures.draw_subtraction_mip(
                subtraction,
                facts.get('InflowPoints', []),
                brain,
                target('sources'),
            ),
            'figure_arrival': figures.draw_map_mosaic(
                arrival,
                brain,
                ncct,
                target('arrival'),
                label='Computed arrival',
                units='no unit',
            ),
            'figure_perfusion': figures.draw_map_mosaic(
                rescaled,
                brain,
                ncct,
                target('perfusion'),
                label='Computed perfusion, rescaled within this brain from 0 to 1',
                ends=('earlier', 'later (worse)'),
                limits=(0.0, 1.0),
                contour=late,
                outlined='white line: hypoperfused',
            ),
            'figure_asymmetry': figures.draw_asymmetry(
                load_image(files['std_asymmetry']),
                template.t1,
                target('asymmetry'),
                limit=1.0,  # one scale for all patients
            ),
        }

    @staticmethod
    def _site(whole: Mapping[str, Any], forward: Path) -> tuple[np.ndarray, str]:
        """Return the course of the artery that is reported to be occluded, and its name."""
        site, side = str(whole.get('occlusion_site')), str(whole.get('occlusion_side'))
        course = perfusion.site_course(site, side)
        if not len(course):
            return course, ''
        # Points go the other way than images: from the template to the patient.
        points = ct.carry(ct.read_transform(forward), course.T.copy()).T
        name = f'{side} {site}' if side in ('left', 'right') else site
        return points, f'expected course of the reported site, {name}'
