"""Where results leave the workflow, and how results of an earlier run enter it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_perfdeficit.interfaces.derivatives import DerivativesSink
from bids_perfdeficit.interfaces.reports import DrawFigures
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.workflows.plan import STAGES, Plan, path_of, stages_of

#: GB of a step that only moves files.
SMALL_GB = 0.3


def connect_stage(
    workflow: pe.Workflow,
    node: pe.Node,
    *,
    stage: str,
    outputs: Mapping[str, str],
    plan: Plan,
    settings: Settings,
    sources: Sequence[str],
) -> pe.Node:
    """Write what a node computes, and offer it as a buffer that reads the file on disk.

    When an earlier run left the stage's files, the buffer is set to them and the node stays out
    of the graph: a second run is a no-op, and what follows cannot tell the difference.

    Parameters
    ----------
    workflow : Workflow
        To which sink and buffer are added.
    node : Node
        That computes the stage, its own inputs not yet connected.
    stage : str
        Name in `plan.STAGES`.
    outputs : mapping of str to str
        From output keys to the node's outputs.
    plan, settings
        Of the pair and the run.
    sources : sequence of str
        BIDS URIs that the sidecars name.

    Returns
    -------
    Node
        An identity with the stage's keys.
    """
    definition = next(s for s in STAGES if s.name == stage)
    buffer = pe.Node(niu.IdentityInterface(fields=list(definition.keys)), name=f'{stage}_buffer')
    if plan.has(definition):
        buffer.inputs.trait_set(**{key: str(plan.existing[key]) for key in definition.keys})
        workflow.add_nodes([buffer])
        return buffer
    sink = pe.Node(
        DerivativesSink(
            keys=definition.keys,
            base_directory=str(settings.inputs.output_dir.absolute()),
            participant=plan.pair.participant,
            session=plan.pair.session,
            space=settings.processing.output_spaces[0],
            sources=list(sources),
            fingerprint=plan.fingerprints[stage],
        ),
        name=f'ds_{stage}',
        mem_gb=SMALL_GB,
        run_without_submitting=True,
    )
    links = [(output, key) for key, output in outputs.items()]
    if 'meta' in node.interface.output_spec().get():
        links.append(('meta', 'meta'))
    workflow.connect([
        (node, sink, links),
        (sink, buffer, [(key, key) for key in definition.keys]),
    ])  # fmt: skip
    return buffer


def uri(plan: Plan, key: str, settings: Settings) -> str:
    """Return the BIDS URI of a derivative or, for ``ncct`` and ``cta``, of a raw image."""
    if key in ('ncct', 'cta'):
        path = getattr(plan.pair, key).absolute()
        root = settings.inputs.bids_dir.absolute()
        return f'bids:raw:{path.relative_to(root).as_posix()}'
    root = settings.inputs.output_dir
    path = path_of(root, plan.pair, key, settings.processing.output_spaces[0])
    return f'bids::{path.relative_to(root).as_posix()}'


def init_figures_wf(
    *, plan: Plan, settings: Settings, mem_gb: float = 2.0, name: str = 'figures_wf'
) -> pe.Workflow:
    """Draw the participant's figures from the derivatives.

    Inputs
    ------
    Every output key of the participant level that is there.

    Outputs
    -------
    figures
        Paths of the SVG files.
    """
    workflow = pe.Workflow(name=name)
    keys = [key for s in stages_of(settings.processing.level) for key in s.keys]
    inputnode = pe.Node(niu.IdentityInterface(fields=keys), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=['figures']), name='outputnode')
    draw = pe.Node(
        DrawFigures(
            keys=keys,
            base_directory=str(settings.inputs.output_dir.absolute()),
            participant=plan.pair.participant,
            session=plan.pair.session,
            space=settings.processing.output_spaces[0],
        ),
        name='draw',
        mem_gb=mem_gb,
    )
    workflow.connect([
        (inputnode, draw, [(key, key) for key in keys]),
        (draw, outputnode, [('figures', 'figures')]),
    ])  # fmt: skip
    return workflow
