"""The workflow of comparisons with references: a branch for each participant, which fails alone.

The level evaluate measures agreement in each branch; the level calibrate draws voxels there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import output_path
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.interfaces.derivatives import DerivativesSink
from bids_perfdeficit.interfaces.evaluation import EvaluateMaps
from bids_perfdeficit.nifti import open_nifti
from bids_perfdeficit.perfusion.agreement import DEFICIT_S
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.stages.lock import Holder
from bids_perfdeficit.stages.record import digest
from bids_perfdeficit.workflows.base import estimate_memory
from bids_perfdeficit.workflows.evaluation_plan import Case
from bids_perfdeficit.workflows.outputs import SMALL_GB
from bids_perfdeficit.workflows.plan import file_uri

#: What was compared and how, with citations as ``[@key]``.
METHODS = f"""\
Computed maps were compared with maps of Tmax from CT perfusion by *bids_perfdeficit*
{__version__}, which is based on *Nipype* [@nipype].

Each reference was resampled linearly to the grid of the non-contrast CT. Over the voxels of the
brain for which it has a value, the agreement with Tmax was measured by Spearman's rank
correlation, plain, partial (without the distance from the arterial inflow) and inside the deficit
(Tmax above {DEFICIT_S:g} s [@olivot]); by the area under the ROC curve for the deficit; and by the
Dice coefficient of the deficit and as many of the map's highest voxels. The same was measured for
four controls: the distance from the inflow, the asymmetry of the tissue's enhancement, the arrival
by the published recipe [@perfusion; @vtrails], and the mean of the ranks of arrival, of missing
enhancement and of its asymmetry, for which nothing was fitted. Volumes above the threshold of the
probability of hypoperfusion were compared with those above {DEFICIT_S:g} s of Tmax by Lin's
concordance correlation coefficient [@lin] and limits of agreement [@blandaltman]. Intervals are
95 % percentile intervals over 2,000 resamples of the participants. The site of an occlusion was
compared with the artery whose course is nearest to the mask of the occlusion, where there is one.

"""


def branch_name(case: Case) -> str:
    """Return the name of a participant's branch, and so of its working folder."""
    readable = re.sub(r'[^A-Za-z0-9]', '_', case.name)
    return f'{readable}_{digest(case.name, case.task.work_key, str(case.task.root))[:10]}_wf'


def init_comparison_wf(
    *,
    cases: Sequence[Case],
    settings: Settings,
    device: str = 'cpu',
    omp_nthreads: int = 1,
    init_branch: Callable[..., LiterateWorkflow],
    methods: str,
    name: str,
) -> LiterateWorkflow:
    """Build what is made of participants and their references, a branch for each.

    Parameters
    ----------
    cases : sequence of Case
        Participants with a reference.
    settings : Settings
        Of the run.
    device : str
        Where tensors are computed.
    omp_nthreads : int
        Threads of one step.
    init_branch : callable
        Builds the branch of a participant, for example `init_case_wf`.
    methods : str
        Methods text of it, with citations as ``[@key]``.

    Returns
    -------
    LiterateWorkflow
        Without a working directory; the caller sets ``base_dir``.
    """
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = methods
    workflow.add_nodes([
        init_branch(
            case=case, settings=settings, device=device, omp_nthreads=omp_nthreads,
            name=branch_name(case),
        )
        for case in cases
    ])  # fmt: skip
    return workflow


def init_case_wf(
    *, case: Case, settings: Settings, device: str, omp_nthreads: int, name: str = 'case_wf'
) -> LiterateWorkflow:
    """Build the evaluation of one participant."""
    workflow = LiterateWorkflow(name=name)
    space = settings.processing.output_spaces[0]
    evaluate = pe.Node(
        EvaluateMaps(
            **{key: str(path) for key, path in case.files.items()},
            reference=str(case.reference),
            clot=str(case.clot or ''),
            space=space,
            device=device,
            num_threads=omp_nthreads,
            use_gpu=device != 'cpu',
        ),
        name='evaluate',
        mem_gb=estimate_memory(case.pair, map_spacing(case))['perfusion'],
        n_procs=omp_nthreads,
    )
    sink = make_case_sink(case, settings)
    workflow.connect([(evaluate, sink, [(key, key) for key in (*case.use.left, 'meta')])])
    return workflow


def make_case_sink(case: Case, settings: Settings) -> pe.Node:
    """Return the node that publishes what was made of a participant and its reference."""
    pair = case.pair
    lock = output_path(case.task.root, 'lock', participant=pair.participant, session=pair.session)
    sources = [case.reference, *([case.clot] if case.clot else []), *case.files.values()]
    return pe.Node(
        DerivativesSink(
            keys=case.use.left,
            task=case.task,
            seen=dict(case.seen),
            holder=Holder.current(lock),
            participant=pair.participant,
            session=pair.session,
            space=settings.processing.output_spaces[0],
            sources=[file_uri(path, settings) for path in sources],
        ),
        name=f'ds_{case.use.name}',
        mem_gb=SMALL_GB,
    )


def map_spacing(case: Case) -> float:
    """Return the mm of the maps' voxels; what cannot be read is reported by the step."""
    try:
        return float(open_nifti(case.files['brain_mask']).header.get_zooms()[0])
    except InputError:
        return 1.0
