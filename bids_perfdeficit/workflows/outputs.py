"""Where results leave the workflow, and how results of an earlier run enter it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_perfdeficit.bids import output_path
from bids_perfdeficit.interfaces.derivatives import DerivativesSink
from bids_perfdeficit.interfaces.reports import DrawFigures
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.stages.lock import Holder
from bids_perfdeficit.workflows.plan import STAGES, Plan, stages_of, uri

#: GB of a step that only moves files.
SMALL_GB = 0.4


def connect_stage(
    workflow: pe.Workflow,
    node: pe.Node,
    *,
    stage: str,
    outputs: Mapping[str, str],
    plan: Plan,
    settings: Settings,
    sources: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> pe.Node:
    """Write what a node computes, and offer it as a buffer that reads the file on disk.

    When the results of an earlier run hold, the buffer is set to them and the node stays out of
    the graph: a second run is a no-op, and what follows sees no difference.

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
    facts : mapping, optional
        Options that the sidecars name.

    Returns
    -------
    Node
        An identity with the stage's keys.
    """
    definition = next(s for s in stages_of(settings) if s.name == stage)
    buffer = pe.Node(niu.IdentityInterface(fields=list(definition.keys)), name=f'{stage}_buffer')
    if plan.has(stage):
        buffer.inputs.trait_set(**{key: str(plan.existing[key]) for key in definition.keys})
        workflow.add_nodes([buffer])
        return buffer
    pair, root = plan.pair, plan.tasks[stage].root
    lock = output_path(root, 'lock', participant=pair.participant, session=pair.session)
    sink = pe.Node(
        DerivativesSink(
            keys=definition.keys,
            task=plan.tasks[stage],
            seen=dict(plan.seen),
            holder=Holder.current(lock),
            participant=pair.participant,
            session=pair.session,
            space=settings.processing.output_spaces[0],
            sources=list(sources),
            facts={'Sloppy': settings.processing.sloppy, **(facts or {})},
        ),
        name=f'ds_{stage}',
        mem_gb=SMALL_GB,
    )
    links = [(output, key) for key, output in outputs.items()]
    if 'meta' in node.interface.output_spec().get():
        links.append(('meta', 'meta'))
    workflow.connect([
        (node, sink, links),
        (sink, buffer, [(key, key) for key in definition.keys]),
    ])  # fmt: skip
    return buffer


def init_figures_wf(
    *, plan: Plan, settings: Settings, mem_gb: float = 2.0, name: str = 'figures_wf'
) -> pe.Workflow:
    """Draw the participant's figures from the derivatives.

    Inputs
    ------
    Every output key of the stages before it.

    Outputs
    -------
    The figures of the level: SVG files in the derivatives.
    """
    workflow = pe.Workflow(name=name)
    level = [stage.name for stage in stages_of(settings)]
    keys = [key for stage in STAGES if stage.name in level for key in stage.keys]
    drawn = next(stage.keys for stage in stages_of(settings) if stage.name == 'figures')
    inputnode = pe.Node(niu.IdentityInterface(fields=keys), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=list(drawn)), name='outputnode')
    draw = pe.Node(
        DrawFigures(keys=keys, figures=drawn, space=settings.processing.output_spaces[0]),
        name='draw',
        mem_gb=mem_gb,
    )
    figures_buffer = connect_stage(
        workflow, draw, stage='figures', outputs={key: key for key in drawn},
        plan=plan, settings=settings, sources=[uri(plan.pair, 'preproc_ct', settings)],
    )  # fmt: skip
    workflow.add_nodes([inputnode])
    if not plan.has('figures'):
        workflow.connect([(inputnode, draw, [(key, key) for key in keys])])
    workflow.connect([(figures_buffer, outputnode, [(key, key) for key in drawn])])
    return workflow
