"""From the scans as they came to prepared images and transforms."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from bids_perfdeficit.interfaces.ct import (
    ConformNCCT,
    ExtractBrain,
    RegisterCTA,
    RegisterTemplate,
)
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.workflows.outputs import connect_stage
from bids_perfdeficit.workflows.plan import Plan, uri

#: The images and transforms that every later step works from.
FIT_KEYS = (
    'preproc_ct',
    'brain_mask',
    'preproc_cta',
    'cta_xfm',
    'template_xfm',
    'template_inverse_xfm',
)


def init_ct_fit_wf(
    *,
    plan: Plan,
    settings: Settings,
    mem_gb: dict[str, float],
    name: str = 'ct_fit_wf',
) -> LiterateWorkflow:
    """Conform, extract the brain, and align the CTA and the template.

    Parameters
    ----------
    plan : Plan
        The scans, and what is done already.
    settings : Settings
        Of the run.
    mem_gb : dict
        GB of the steps ``conform``, ``cta`` and ``template``.

    Inputs
    ------
    ncct, cta
        The scans as they came.

    Outputs
    -------
    preproc_ct, brain_mask, preproc_cta, cta_xfm, template_xfm, template_inverse_xfm
        Files in the derivatives.
    """
    space = settings.processing.output_spaces[0]
    spacing = settings.processing.spacing
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = f"""\
Each non-contrast CT (NCCT) was read in Hounsfield units and resampled to an isotropic {spacing:g}
mm grid. The brain was extracted by thresholding, distance erosion and selection of the largest
piece. The CT angiogram (CTA) was aligned with the NCCT by a rigid transform that maximised
Mattes' mutual information (*ANTs*, @ants), and by a last rigid step on the edges of the skull. The
brain, clipped to 0-80 HU, was aligned with a CT contrast made from the tissue maps of the template
*{space}* by an affine and a symmetric diffeomorphic transform (SyN, @syn).
"""
    inputnode = pe.Node(niu.IdentityInterface(fields=['ncct', 'cta']), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=list(FIT_KEYS)), name='outputnode')

    conform = pe.Node(ConformNCCT(spacing=spacing), name='conform', mem_gb=mem_gb['conform'])
    conform_buffer = connect_stage(
        workflow, conform, stage='conform', outputs={'preproc_ct': 'out_file'},
        plan=plan, settings=settings, sources=[uri(plan.pair, 'ncct', settings)],
    )  # fmt: skip
    brain = pe.Node(ExtractBrain(), name='brain', mem_gb=mem_gb['conform'])
    brain_buffer = connect_stage(
        workflow, brain, stage='brain', outputs={'brain_mask': 'out_file'},
        plan=plan, settings=settings, sources=[uri(plan.pair, 'preproc_ct', settings)],
    )  # fmt: skip
    register_cta = pe.Node(
        RegisterCTA(seed=settings.processing.random_seed),
        name='register_cta',
        mem_gb=mem_gb['cta'],
    )
    cta_buffer = connect_stage(
        workflow, register_cta, stage='cta',
        outputs={'preproc_cta': 'out_file', 'cta_xfm': 'out_xfm'},
        plan=plan, settings=settings,
        sources=[uri(plan.pair, 'cta', settings), uri(plan.pair, 'preproc_ct', settings)],
    )  # fmt: skip
    register_template = pe.Node(
        RegisterTemplate(
            space=space,
            seed=settings.processing.random_seed,
            sloppy=settings.processing.sloppy,
        ),
        name='register_template',
        mem_gb=mem_gb['template'],
    )
    template_buffer = connect_stage(
        workflow, register_template, stage='template',
        outputs={'template_xfm': 'out_xfm', 'template_inverse_xfm': 'out_inverse_xfm'},
        plan=plan, settings=settings, sources=[uri(plan.pair, 'preproc_ct', settings)],
    )  # fmt: skip

    workflow.add_nodes([inputnode])
    # Nodes of finished stages are not in the graph, so that nothing is connected to them.
    if not plan.has('conform'):
        workflow.connect([(inputnode, conform, [('ncct', 'in_file')])])
    if not plan.has('brain'):
        workflow.connect([(conform_buffer, brain, [('preproc_ct', 'in_file')])])
    if not plan.has('cta'):
        workflow.connect([
            (inputnode, register_cta, [('cta', 'cta')]),
            (conform_buffer, register_cta, [('preproc_ct', 'ncct')]),
            (brain_buffer, register_cta, [('brain_mask', 'brain')]),
        ])  # fmt: skip
    if not plan.has('template'):
        workflow.connect([
            (conform_buffer, register_template, [('preproc_ct', 'ncct')]),
            (brain_buffer, register_template, [('brain_mask', 'brain')]),
        ])  # fmt: skip
    workflow.connect([
        (conform_buffer, outputnode, [('preproc_ct', 'preproc_ct')]),
        (brain_buffer, outputnode, [('brain_mask', 'brain_mask')]),
        (cta_buffer, outputnode, [('preproc_cta', 'preproc_cta'), ('cta_xfm', 'cta_xfm')]),
        (template_buffer, outputnode, [
            ('template_xfm', 'template_xfm'),
            ('template_inverse_xfm', 'template_inverse_xfm'),
        ]),
    ])  # fmt: skip
    return workflow
