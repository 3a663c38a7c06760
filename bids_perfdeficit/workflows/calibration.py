"""The branch of a participant of a calibration, and the methods text; see `evaluation`."""

from __future__ import annotations

from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from bids_perfdeficit import __version__
from bids_perfdeficit.interfaces.calibration import SamplePair
from bids_perfdeficit.perfusion.agreement import DEFICIT_S
from bids_perfdeficit.perfusion.refit import LEAST_PAIRS
from bids_perfdeficit.pipeline import SAMPLED
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.workflows.base import estimate_memory
from bids_perfdeficit.workflows.evaluation import make_case_sink, map_spacing
from bids_perfdeficit.workflows.evaluation_plan import Case

#: How a calibration was fitted, with citations as ``[@key]``.
METHODS = f"""\
The computed perfusion map was calibrated to maps of Tmax from CT perfusion by *bids_perfdeficit*
{__version__}, which is based on *Nipype* [@nipype].

Of each participant up to {SAMPLED:,} voxels of the brain were drawn at random in which the
reference has a value. The last layer of the networks that join the features was refitted to
them: the weights of the map by ridge regression on the rank of Tmax plus its seconds, and the
weights of the probability by logistic regression on Tmax above {DEFICIT_S:g} s [@olivot], both
with a Gaussian prior about the shipped weights, in which each participant counts as one
observation. The threshold of the probability was chosen for the least error of volumes. The bias
of the likely occlusion was refitted by logistic regression where at least {LEAST_PAIRS}
participants have a mask of the occlusion. Each participant was left out in turn, and each part of
the refit was taken only where the participants that were left out fared better with it, by more
than the standard error of the difference.

"""


def init_sample_wf(
    *, case: Case, settings: Settings, device: str, omp_nthreads: int, name: str = 'sample_wf'
) -> LiterateWorkflow:
    """Build the drawing of voxels of one participant."""
    workflow = LiterateWorkflow(name=name)
    sample = pe.Node(
        SamplePair(
            **{key: str(path) for key, path in case.files.items()},
            reference=str(case.reference),
            clot=str(case.clot or ''),
            space=settings.processing.output_spaces[0],
            settings=settings.perfusion,
            seed=settings.processing.random_seed,
            device=device,
            num_threads=omp_nthreads,
            use_gpu=device != 'cpu',
        ),
        name='sample',
        mem_gb=estimate_memory(case.pair, map_spacing(case))['perfusion'],
        n_procs=omp_nthreads,
    )
    sink = make_case_sink(case, settings)
    workflow.connect([(sample, sink, [(key, key) for key in (*case.use.left, 'meta')])])
    return workflow
