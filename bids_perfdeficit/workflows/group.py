"""The group level: stack and prepare once, then fit, validate and test each model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import resolution_label
from bids_perfdeficit.bids.cohort import LESION_LABEL
from bids_perfdeficit.bids.scales import MOST_LEVELS
from bids_perfdeficit.deficit import get_model
from bids_perfdeficit.deficit.settings import (
    AFFECTED_SHARE,
    DEFICIT_THRESHOLD,
    LEAST_AFFECTED,
    VOLUME_THRESHOLD,
)
from bids_perfdeficit.interfaces.derivatives import GroupSink
from bids_perfdeficit.interfaces.group import (
    ApplyModel,
    AssembleCohort,
    FitFold,
    FitModel,
    FitResampled,
    FitShuffled,
    MergeFolds,
    MergeResampled,
    MergeShuffled,
    PrepareMaps,
    StackMaps,
)
from bids_perfdeficit.settings import MapKind, Settings
from bids_perfdeficit.stages.lock import Holder
from bids_perfdeficit.workflows.group_plan import (
    GroupPlan,
    group_path,
    model_options,
    name_maps,
)
from bids_perfdeficit.workflows.outputs import SMALL_GB

#: GB that Python with torch takes before it holds a map.
BASE_GB = 0.6
#: mL of a template's brain, of which the voxels of a map are counted.
BRAIN_ML = 1900.0


def init_group_wf(
    *,
    plan: GroupPlan,
    settings: Settings,
    device: str = 'cpu',
    omp_nthreads: int = 1,
    name: str = 'group_wf',
) -> LiterateWorkflow:
    """Build what is still to be done at the group level.

    Parameters
    ----------
    plan : GroupPlan
        Who is in, and what is done already.
    settings : Settings
        Of the run.
    device : str
        Where tensors are computed: ``cpu`` or ``cuda:N``.
    omp_nthreads : int
        Threads of one step.

    Returns
    -------
    LiterateWorkflow
        Without a working directory; the caller sets ``base_dir``.
    """
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = describe_methods(plan, settings)
    if not plan.busy:
        return workflow
    cohort_wf = init_cohort_wf(
        plan=plan, settings=settings, device=device, omp_nthreads=omp_nthreads
    )
    workflow.add_nodes([cohort_wf])
    for model in plan.model_names:
        if not plan.to_run(model):
            continue
        if plan.models:
            model_wf = init_apply_wf(model=model, plan=plan, settings=settings)
            fields = ['maps', 'data']
        else:
            model_wf = init_model_wf(
                model=model, plan=plan, settings=settings, device=device,
                omp_nthreads=omp_nthreads,
            )  # fmt: skip
            fields = ['prepared', 'data', 'mask']
        workflow.connect([
            (cohort_wf, model_wf, [(f'outputnode.{f}', f'inputnode.{f}') for f in fields]),
        ])  # fmt: skip
    return workflow


def init_cohort_wf(
    *,
    plan: GroupPlan,
    settings: Settings,
    device: str = 'cpu',
    omp_nthreads: int = 1,
    name: str = 'cohort_wf',
) -> LiterateWorkflow:
    """Stack the maps and match them with the scores.

    Outputs
    -------
    maps
        (N, V) array of the maps.
    mask
        The voxels that they are on.
    prepared
        What all models work from (not when models are applied).
    data
        Scores and covariates.
    """
    cohort, options = plan.cohort, settings.group
    workflow = LiterateWorkflow(name=name)
    outputnode = pe.Node(
        niu.IdentityInterface(fields=['maps', 'mask', 'prepared', 'data']), name='outputnode'
    )
    mem_gb = estimate_memory(plan)
    stack = pe.Node(
        StackMaps(
            maps=[str(e.map.absolute()) for e in cohort.entries],
            masks=[str(e.mask.absolute()) for e in cohort.entries if e.mask is not None],
            space=settings.processing.output_spaces[0],
            resolution=options.resolution,
            asymmetry=options.map_kind is MapKind.ASYMMETRY,
            min_coverage=options.least_coverage,
            num_threads=omp_nthreads,
        ),
        name='stack',
        mem_gb=mem_gb['stack'],
        n_procs=omp_nthreads,
    )
    if options.map_kind.is_given:
        stack.inputs.threshold = options.map_threshold
    if plan.models:
        stack.inputs.params = str(next(iter(plan.models.values())).absolute())
    assemble = pe.Node(
        AssembleCohort(
            rows=cohort.table().to_dict('records'),
            items=[dataclasses.asdict(item) for item in plan.items],
            scores=_rows(cohort.levels, len(cohort.entries), len(plan.items)),
            covariates=_rows(cohort.covariates, len(cohort.entries), 0),
            covariate_names=list(cohort.covariate_names),
            groups=list(cohort.groups),
            dropped=dict(cohort.dropped),
            facts=describe_cohort(plan, settings),
        ),
        name='assemble',
        mem_gb=SMALL_GB,
    )
    workflow.connect([
        (stack, assemble, [
            ('measures', 'measures'),
            ('mask', 'mask'),
            ('coverage', 'coverage'),
            ('dropped', 'unreadable'),
        ]),
        (stack, outputnode, [('maps', 'maps'), ('mask', 'mask')]),
        (assemble, outputnode, [('data', 'data')]),
    ])  # fmt: skip
    if plan.models:
        return workflow
    prepare = pe.Node(
        PrepareMaps(
            seed=settings.processing.random_seed,
            sloppy=settings.processing.sloppy,
            as_given=options.map_kind.is_given,
            device=device,
            num_threads=omp_nthreads,
        ),
        name='prepare',
        mem_gb=mem_gb['prepare'],
        n_procs=omp_nthreads,
    )
    workflow.connect([
        (stack, prepare, [('maps', 'maps'), ('mask', 'mask')]),
        (prepare, outputnode, [('prepared', 'prepared')]),
    ])  # fmt: skip
    if plan.to_run():
        sources = [_uri(e.map, settings) for e in cohort.entries]
        ds_cohort = _sink('cohort', '', plan, settings, sources)
        workflow.connect([(assemble, ds_cohort, [('manifest', 'manifest')])])
    return workflow


def init_model_wf(
    *,
    model: str,
    plan: GroupPlan,
    settings: Settings,
    device: str = 'cpu',
    omp_nthreads: int = 1,
    name: str | None = None,
) -> LiterateWorkflow:
    """Fit one model, and find out how far to trust it.

    Inputs
    ------
    prepared, data, mask
        As from `init_cohort_wf`.
    """
    workflow = LiterateWorkflow(name=name or f'{model}_wf')
    inputnode = pe.Node(
        niu.IdentityInterface(fields=['prepared', 'data', 'mask']), name='inputnode'
    )
    mem_gb = estimate_memory(plan)
    common = {
        'model': model,
        'seed': settings.processing.random_seed,
        'sloppy': settings.processing.sloppy,
        'as_given': settings.group.map_kind.is_given,
        'options': model_options(model, settings),
        'device': device,
        'use_gpu': device != 'cpu',
        'num_threads': omp_nthreads,
    }
    cohort_uri = _uri(group_path(settings, 'group_cohort'), settings)
    stages = plan.to_run(model)
    if 'fit' in stages:
        fit = pe.Node(FitModel(**common), name='fit', mem_gb=mem_gb['fit'], n_procs=omp_nthreads)
        ds_fit = _sink('fit', model, plan, settings, [cohort_uri])
        workflow.connect([
            (inputnode, fit, [('prepared', 'prepared'), ('data', 'data')]),
            (fit, ds_fit, [('manifest', 'manifest')]),
        ])  # fmt: skip
    group = settings.group
    pieces = {
        'validation': (FitFold(folds=group.folds, **common), 'fold',
                       list(range(group.folds * group.fold_repeats)), MergeFolds),
        'null': (FitShuffled(**common), 'numbers', _pieces(group.permutations), MergeShuffled),
        'stability': (FitResampled(**common), 'numbers', _pieces(group.bootstraps),
                      MergeResampled),
    }  # fmt: skip
    for stage, (interface, field, values, merger) in pieces.items():
        if stage not in stages:
            continue
        part = pe.MapNode(
            interface,
            iterfield=[field],
            name=stage,
            mem_gb=mem_gb['fold'],
            n_procs=omp_nthreads,
        )
        part.inputs.trait_set(**{field: values})
        merge = pe.Node(merger(model=model), name=f'merge_{stage}', mem_gb=BASE_GB)
        sink = _sink(stage, model, plan, settings, [cohort_uri])
        workflow.connect([
            (inputnode, part, [('prepared', 'prepared'), ('data', 'data')]),
            (inputnode, merge, [('data', 'data'), ('mask', 'mask')]),
            (part, merge, [('part', 'parts')]),
            (merge, sink, [('manifest', 'manifest')]),
        ])  # fmt: skip
    return workflow


def init_apply_wf(
    *, model: str, plan: GroupPlan, settings: Settings, name: str | None = None
) -> LiterateWorkflow:
    """Predict the scores of new participants.

    Inputs
    ------
    maps, data
        As from `init_cohort_wf`.
    """
    workflow = LiterateWorkflow(name=name or f'{model}_wf')
    inputnode = pe.Node(niu.IdentityInterface(fields=['maps', 'data']), name='inputnode')
    apply = pe.Node(
        ApplyModel(params=str(plan.models[model].absolute())),
        name='apply',
        mem_gb=estimate_memory(plan)['prepare'],
    )
    sources = [_uri(e.map, settings) for e in plan.cohort.entries]
    ds_apply = _sink('apply', model, plan, settings, sources)
    workflow.connect([
        (inputnode, apply, [('maps', 'maps'), ('data', 'data')]),
        (apply, ds_apply, [('manifest', 'manifest')]),
    ])  # fmt: skip
    return workflow


def describe_cohort(plan: GroupPlan, settings: Settings) -> dict[str, object]:
    """Return what the sidecars of all outputs say of maps, voxels and options."""
    return {
        'Space': settings.processing.output_spaces[0],
        'VoxelSize': plan.resolution,
        'MapKind': str(plan.map_kind),
        **(
            {'DeficitThreshold': DEFICIT_THRESHOLD, 'VolumeThreshold': VOLUME_THRESHOLD}
            if plan.given is None
            else {
                'MapEntities': dict(plan.given),
                'MapThreshold': settings.group.map_threshold,
                'MinimumParticipants': LEAST_AFFECTED,
            }
        ),
        'MinimumCoverage': settings.group.least_coverage,
        'CovariateColumns': list(settings.group.covariates),
        'RandomSeed': settings.processing.random_seed,
        'Sloppy': settings.processing.sloppy,
    }


def estimate_memory(plan: GroupPlan) -> dict[str, float]:
    """Return the GB that each step takes, from the number of participants and voxels.

    Maps are float32. Stacked ones stay on disk; models hold a few copies at 4 mm, or coarser.
    """
    count, items = len(plan.cohort.entries), max(len(plan.items), 1)
    voxels = BRAIN_ML * 1000 / plan.resolution**3
    coarse = count * BRAIN_ML * 1000 / max(plan.resolution, 4.0) ** 3 * 4 / 1e9
    maps = items * voxels * 4 * 5 / 1e9
    return {
        # maps that users give are read at their own resolution
        'stack': BASE_GB + (0.5 if plan.given else 0.2) + count * 200 * 8 / 1e9,
        'prepare': BASE_GB + 6 * coarse,
        # `deep` holds its channels, a draw of the maps and summaries of simulated items besides
        'fit': BASE_GB + 0.5 + 18 * coarse + maps,
        'fold': BASE_GB + 12 * coarse,
        'figures': BASE_GB + 0.5,
    }


def describe_methods(plan: GroupPlan, settings: Settings) -> str:
    """Return the methods text for the options chosen, with citations as ``[@key]``."""
    options, space = settings.group, settings.processing.output_spaces[0]
    cohort = plan.cohort
    maps = {
        MapKind.PERFUSION: 'computed perfusion maps (0 to 1, higher is later)',
        MapKind.ASYMMETRY: 'the positive left-right asymmetry of computed perfusion maps',
        MapKind.HYPOPERFUSED: 'maps of the probability of hypoperfusion (a delay above 6 s)',
        MapKind.LESION: f'{name_maps(plan)} on any grid',
    }[plan.map_kind]
    covariates = ', '.join(cohort.covariate_names)
    text = f"""\
Results were computed with *bids_perfdeficit* {__version__}, which is based on *Nipype* [@nipype],
after the design of computed perfusion-deficit mapping [@deficit].

For {len(cohort.entries)} participants {maps} in *{space}* were averaged to {plan.resolution:g} mm.
"""
    if plan.models:
        return text + (
            f'The scores were predicted by models ({", ".join(plan.models)}) that had been fitted '
            'on other participants; nothing was fitted again.\n\n'
        )
    cut = [measure.name for measure in cohort.measures if measure.grouped]
    grouped = f' ({", ".join(cut)} cut into at most {MOST_LEVELS} levels)' if cut else ''
    text += f"""\
{_describe_voxels(plan, settings)} Each of
{len(plan.items) - len(plan.skipped)} scores was ordinal{grouped}; untestable and missing ones were
left out{f', and {covariates} were covariates' if covariates else ''}.

"""
    given = plan.given is not None
    for model in plan.model_names:
        text += f'{get_model(model).describe_methods(as_given=given)}\n'
        if own := model_options(model, settings):
            options_set = ', '.join(f'{name} = {value:g}' for name, value in own.items())
            text += f'Its options were {options_set}.\n\n'
    folding = f', repeated {options.fold_repeats} times' if options.fold_repeats > 1 else ''
    if options.fold_groups:
        folding += f', in which no fold split a group ({options.fold_groups})'
    if options.folds:
        text += f"""\
Prediction was validated in {options.folds}-fold cross-validation{folding}, with everything fitted
on the training part, and compared with ordinal regressions on the mean deficit of each arterial
territory and side, of each hemisphere and of the brain, and with the frequency of each score.
Intervals allow for the training data that folds share [@correctedintervals].

"""
    if options.permutations:
        text += f"""\
Every model was fitted to {options.permutations} cohorts with shuffled scores [after
@freedmanlane], to count how often something is declared where there is nothing.

"""
    if options.bootstraps:
        text += f"""\
Stability was measured over {options.bootstraps} resamples of 63 % of the participants
[@subsampling].

"""
    return text


def _describe_voxels(plan: GroupPlan, settings: Settings) -> str:
    """Return which voxels were analysed, and what was done with the maps."""
    least = settings.group.least_coverage
    if plan.given is None:
        return f"""\
Voxels were analysed in which at least {least:.1%} of the participants had a deficit
(later than the mirrored voxel by more than {DEFICIT_THRESHOLD:g}) and half had been scanned. Maps
were completed and denoised by probabilistic principal components [@ppca]."""
    lesions = plan.given.get('label') == LESION_LABEL
    threshold = settings.group.map_threshold
    affected = 'lesioned' if lesions else f'affected (above {threshold:g})'
    scaled = (
        'Maps were used as they are'
        if threshold == AFFECTED_SHARE
        else f'Maps were divided by {2 * threshold:g} and cut at 1'
    )
    return f"""\
Voxels were analysed that were {affected} in at least {LEAST_AFFECTED} and {least:.1%} of the
participants and that half of the maps hold, each hemisphere for itself. {scaled}: neither denoised
nor compared with healthy tissue or the other side."""


def _sink(
    stage: str, model: str, plan: GroupPlan, settings: Settings, sources: list[str]
) -> pe.Node:
    return pe.Node(
        GroupSink(
            task=plan.tasks[stage, model],
            seen=dict(plan.seen),
            holder=Holder.current(group_path(settings, 'group_lock')),
            space=settings.processing.output_spaces[0],
            res=resolution_label(plan.resolution),
            resolution=plan.resolution,
            sources=sources,
        ),
        name=f'ds_{stage}',
        mem_gb=SMALL_GB,
    )


def _pieces(count: int) -> list[list[int]]:
    """Deal numbers to steps: enough to spread, few enough to share what they read."""
    size = max(1, min(10, count // 8))
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]


def _uri(path: Path, settings: Settings) -> str:
    root = settings.inputs.output_dir.absolute()
    path = path.absolute()
    return f'bids::{path.relative_to(root).as_posix()}' if root in path.parents else path.as_uri()


def _rows(frame: pd.DataFrame, rows: int, columns: int) -> list[list[float]]:
    """Return a table as nested lists; one that is empty, as that many missing values."""
    if frame.empty:
        return [[float('nan')] * columns for _ in range(rows)]
    return [[float(v) for v in row] for row in frame.to_numpy(float)]
