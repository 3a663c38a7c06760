"""From prepared images to the computed perfusion map, in the patient and in the template."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from bids_perfdeficit.interfaces.ct import AlignPhases, ToTemplate
from bids_perfdeficit.interfaces.perfusion import ComputePerfusion
from bids_perfdeficit.interfaces.quality import MeasureResults
from bids_perfdeficit.perfusion import calibration
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.stages.record import sha256
from bids_perfdeficit.workflows.normalization import FIT_KEYS
from bids_perfdeficit.workflows.outputs import connect_stage
from bids_perfdeficit.workflows.plan import STAGES, Plan, file_uri, read_calibration, uri

NATIVE_KEYS = next(s.keys for s in STAGES if s.name == 'perfusion')
STANDARD_KEYS = next(s.keys for s in STAGES if s.name == 'standard')
METRIC_KEYS = next(s.keys for s in STAGES if s.name == 'metrics')


def init_perfusion_wf(
    *,
    plan: Plan,
    settings: Settings,
    device: str,
    mem_gb: dict[str, float],
    name: str = 'perfusion_wf',
) -> LiterateWorkflow:
    """Compute arrival and perfusion, carry them to the template, and measure them.

    Parameters
    ----------
    plan : Plan
        The scans, and what is done already.
    settings : Settings
        Of the run.
    device : str
        Where tensors are computed: ``cpu`` or ``cuda:N``.
    mem_gb : dict
        GB of the steps ``perfusion``, ``standard`` and, with later phases of the CTA, ``phases``.

    Inputs
    ------
    preproc_ct, brain_mask, preproc_cta, cta_xfm, template_xfm, template_inverse_xfm
        Files in the derivatives.

    Outputs
    -------
    The keys of the stages ``perfusion``, ``standard`` and ``metrics``: files in the derivatives.
    """
    space = settings.processing.output_spaces[0]
    how = settings.perfusion
    threads = settings.resources.omp_nthreads or 1
    blend = 'The perfusion map is the arrival. '
    if how.recipe == 'default':
        blend = (
            'The perfusion map joins the arrival, the enhancement of tissue and vessels, the '
            'density and kind of the tissue, and their differences from the other hemisphere, '
            'by small neural networks fitted on digital patients. '
        )
    shading = ''
    if how.reference_field == 'fitted':
        shading = (
            'The shading between the scans, three slopes, was fitted together with the '
            'enhancement of tissue, and slopes beyond what an occlusion may cause were taken '
            'away. '
        )
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = f"""\
The NCCT was subtracted from the CTA. {shading}The contrast arrival time was computed by solving
the {'isotropic' if how.metric == 'isotropic' else 'anisotropic (Riemannian)'} eikonal equation
from the arterial inflow at the skull base [after @vtrails; @perfusion], with a speed given by the
vesselness of the subtraction to the power {how.exponent:g} plus {how.floor:g}. {blend}It was
rescaled to [0, 1] between its 2nd and 98th percentile in the brain; higher values are later. Its
asymmetry is its difference from its left-right mirror image in *{space}*. From the same features
came the expected delay in seconds with its standard deviation, and the probability of
hypoperfusion, a delay of more than 6 s. The 90 % interval of a hypoperfused volume joins the
errors in digital patients and the disagreement of the networks. From the probability and the
filling of the arterial trunks came the likely site of an occlusion, which was reported where it
held under a shading of 1 HU and a shift of 1 mm.
"""
    later = plan.pair.later
    if later:
        workflow.__desc__ += (
            'Where later phases of the CTA were given, each was aligned with the NCCT and '
            'subtracted like the first, and the changes of the enhancement of tissue and vessels '
            'from the first phase to the later ones were added to the perfusion map with weights '
            'fitted on digital patients [after @multiphase]. Arrival, probability and likely '
            'occlusion are those of the first phase.\n'
        )
    fitted = read_calibration(settings)
    facts = {
        'Recipe': how.recipe,
        'ReferenceField': how.reference_field,
        'Arrival': how.metric,
        'HypoperfusionThreshold': (fitted or calibration())['threshold'],
    }
    own = {} if fitted is None else {'fitted': fitted}
    site = settings.processing.calibration
    if site is not None:
        facts['CalibrationSHA256'] = sha256(site)
        workflow.__desc__ += (
            'The last layer of the networks, the threshold of the probability and the bias of the '
            'likely occlusion were refitted to pairs of scans and maps of Tmax of this site '
            f'(calibration file {site.name}, SHA-256 {facts["CalibrationSHA256"][:12]}). The '
            'delay in seconds and the errors of volumes are those of the shipped calibration.\n'
        )
    inputnode = pe.Node(niu.IdentityInterface(fields=list(FIT_KEYS)), name='inputnode')
    outputnode = pe.Node(
        niu.IdentityInterface(fields=[*NATIVE_KEYS, *STANDARD_KEYS, *METRIC_KEYS]),
        name='outputnode',
    )

    compute = pe.Node(
        ComputePerfusion(
            space=space,
            settings=how,
            device=device,
            num_threads=threads,
            use_gpu=device != 'cpu',
            **own,
        ),
        name='compute',
        mem_gb=mem_gb['perfusion'],
    )
    perfusion_buffer = connect_stage(
        workflow, compute, stage='perfusion', outputs={key: key for key in NATIVE_KEYS},
        plan=plan, settings=settings, facts=facts,
        sources=[
            uri(plan.pair, 'preproc_ct', settings), uri(plan.pair, 'preproc_cta', settings),
            uri(plan.pair, 'brain_mask', settings), *(file_uri(p, settings) for p in later),
        ],
    )  # fmt: skip
    to_template = pe.Node(
        ToTemplate(space=space, num_threads=threads),
        name='to_template',
        mem_gb=mem_gb['standard'],
    )
    standard_buffer = connect_stage(
        workflow, to_template, stage='standard', outputs={key: key for key in STANDARD_KEYS},
        plan=plan, settings=settings, facts=facts,
        sources=[
            uri(plan.pair, key, settings)
            for key in (
                'preproc_ct', 'preproc_cta', 'perfusion', 'toa', 'hypoperfused', 'delay',
                'delay_sd', 'template_xfm',
            )
        ],
    )  # fmt: skip
    measure = pe.Node(
        MeasureResults(space=space, **own), name='measure', mem_gb=mem_gb['standard']
    )
    metrics_buffer = connect_stage(
        workflow, measure, stage='metrics', outputs={key: key for key in METRIC_KEYS},
        plan=plan, settings=settings, facts=facts,
        sources=[uri(plan.pair, key, settings) for key in ('perfusion', 'std_perfusion')],
    )  # fmt: skip

    workflow.add_nodes([inputnode])
    if not plan.has('perfusion'):
        workflow.connect([
            (inputnode, compute, [
                ('preproc_ct', 'ncct'),
                ('preproc_cta', 'cta'),
                ('brain_mask', 'brain'),
                ('template_xfm', 'xfm'),
                ('template_inverse_xfm', 'inverse_xfm'),
            ]),
        ])  # fmt: skip
    if later and not plan.has('perfusion'):
        align_phases = pe.Node(
            AlignPhases(
                phases=[str(path.absolute()) for path in later],
                seed=settings.processing.random_seed,
            ),
            name='align_phases',
            mem_gb=mem_gb['phases'],
        )
        workflow.connect([
            (inputnode, align_phases, [('preproc_ct', 'ncct'), ('brain_mask', 'brain')]),
            (align_phases, compute, [
                ('out_files', 'later'),
                ('names', 'later_names'),
                ('meta', 'later_meta'),
            ]),
        ])  # fmt: skip
    if not plan.has('standard'):
        workflow.connect([
            (inputnode, to_template, [
                ('preproc_ct', 'ncct'),
                ('preproc_cta', 'cta'),
                ('brain_mask', 'brain'),
                ('template_xfm', 'xfm'),
            ]),
            (perfusion_buffer, to_template, [
                ('toa', 'toa'),
                ('perfusion', 'perfusion'),
                ('hypoperfused', 'hypoperfused'),
                ('delay', 'delay'),
                ('delay_sd', 'delay_sd'),
            ]),
        ])  # fmt: skip
    if not plan.has('metrics'):
        workflow.connect([
            (inputnode, measure, [
                ('preproc_ct', 'ncct'),
                ('preproc_cta', 'cta'),
                ('brain_mask', 'brain'),
                ('template_xfm', 'xfm'),
            ]),
            (perfusion_buffer, measure, [
                ('subtraction', 'subtraction'),
                ('perfusion', 'perfusion'),
                ('hypoperfused', 'hypoperfused'),
            ]),
            (standard_buffer, measure, [
                ('std_brain_mask', 'std_brain_mask'),
                ('std_toa', 'std_toa'),
                ('std_perfusion', 'std_perfusion'),
                ('std_hypoperfused', 'std_hypoperfused'),
            ]),
        ])  # fmt: skip
    workflow.connect([
        (perfusion_buffer, outputnode, [(key, key) for key in NATIVE_KEYS]),
        (standard_buffer, outputnode, [(key, key) for key in STANDARD_KEYS]),
        (metrics_buffer, outputnode, [(key, key) for key in METRIC_KEYS]),
    ])  # fmt: skip
    return workflow
