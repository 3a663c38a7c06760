"""The workflow of a run: one branch per pair of scans, that fails or finishes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import ScanPair
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.nifti import open_nifti
from bids_perfdeficit.settings import Level, Settings
from bids_perfdeficit.stages.record import digest
from bids_perfdeficit.workflows.normalization import FIT_KEYS, init_ct_fit_wf
from bids_perfdeficit.workflows.outputs import init_figures_wf
from bids_perfdeficit.workflows.perfusion import (
    METRIC_KEYS,
    NATIVE_KEYS,
    STANDARD_KEYS,
    init_perfusion_wf,
)
from bids_perfdeficit.workflows.plan import Plan

#: GB that Python with torch and ANTs takes before it holds an image.
BASE_GB = 0.9
#: mm; a head and as much of the neck as the conformed image keeps.
HEAD_BOX_MM = (200.0, 240.0, 220.0)


def init_bids_perfdeficit_wf(
    *,
    plans: Sequence[Plan],
    settings: Settings,
    device: str = 'cpu',
    name: str = 'bids_perfdeficit_wf',
) -> LiterateWorkflow:
    """Build the participant level of all pairs of scans.

    Parameters
    ----------
    plans : sequence of Plan
        What is to be done for each pair.
    settings : Settings
        Of the run.
    device : str
        Where tensors are computed.

    Returns
    -------
    LiterateWorkflow
        Without a working directory; the caller sets ``base_dir``.
    """
    workflow = LiterateWorkflow(name=name)
    workflow.add_nodes([
        init_pair_wf(
            plan=plan,
            settings=settings,
            device=device,
            name=branch_name(plan),
        )
        for plan in plans
    ])  # fmt: skip
    return workflow


def branch_name(plan: Plan) -> str:
    """Return the name of a pair's branch, and so of its working folder.

    It holds the fingerprint of everything that shapes the results (version, options, stamps of
    the scans, OUTPUT_DIR): what code or scans of another time left is never found again, and two
    labels that differ in one character only have two names.
    """
    facts = [(task.work_key, str(task.root)) for task in plan.tasks.values()]
    readable = re.sub(r'[^A-Za-z0-9]', '_', plan.pair.prefix)
    return f'{readable}_{digest(plan.pair.prefix, facts)[:10]}_wf'


def init_pair_wf(
    *,
    plan: Plan,
    settings: Settings,
    device: str = 'cpu',
    name: str = 'pair_wf',
) -> LiterateWorkflow:
    """Build the participant level of one pair of scans."""
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = (
        f'Results were computed with *bids_perfdeficit* {__version__}, which is based on '
        '*Nipype* [@nipype].\n\n'
    )
    mem_gb = estimate_memory(plan.pair, settings.processing.spacing)
    inputnode = pe.Node(niu.IdentityInterface(fields=['ncct', 'cta']), name='inputnode')
    inputnode.inputs.ncct = str(plan.pair.ncct.absolute())
    inputnode.inputs.cta = str(plan.pair.cta.absolute())
    ct_fit_wf = init_ct_fit_wf(plan=plan, settings=settings, mem_gb=mem_gb)
    figures_wf = init_figures_wf(plan=plan, settings=settings, mem_gb=mem_gb['figures'])
    workflow.connect([
        (inputnode, ct_fit_wf, [('ncct', 'inputnode.ncct'), ('cta', 'inputnode.cta')]),
        (ct_fit_wf, figures_wf, [
            (f'outputnode.{key}', f'inputnode.{key}') for key in FIT_KEYS
        ]),
    ])  # fmt: skip
    if settings.processing.level is Level.FULL:
        perfusion_wf = init_perfusion_wf(
            plan=plan, settings=settings, device=device, mem_gb=mem_gb
        )
        workflow.connect([
            (ct_fit_wf, perfusion_wf, [
                (f'outputnode.{key}', f'inputnode.{key}') for key in FIT_KEYS
            ]),
            (perfusion_wf, figures_wf, [
                (f'outputnode.{key}', f'inputnode.{key}')
                for key in (*NATIVE_KEYS, *STANDARD_KEYS, *METRIC_KEYS)
            ]),
        ])  # fmt: skip
    return workflow


def estimate_memory(pair: ScanPair, spacing: float) -> dict[str, float]:
    """Return the GB that each step takes, from the headers of the scans.

    Images are float32 while worked on, and the steps hold the counted number of copies. A header
    that cannot be read is left to the reading step, which reports it.
    """

    def raw_gb(path: Path) -> float:
        try:
            return math.prod(map(int, open_nifti(path).shape)) * 4 / 1e9
        except InputError:
            return 0.1

    head = float(np.prod(HEAD_BOX_MM)) / spacing**3 * 4 / 1e9
    return {
        'conform': BASE_GB + 3 * raw_gb(pair.ncct) + 10 * head,
        'cta': BASE_GB + 3 * raw_gb(pair.cta) + 10 * head,
        'phases': BASE_GB + 3 * max(map(raw_gb, pair.later), default=0.0) + 12 * head,
        'template': BASE_GB + 12 * head,
        'perfusion': BASE_GB + (30 + 6 * len(pair.later)) * head,
        'standard': BASE_GB + 6 * head,
        'figures': BASE_GB + 10 * head,
    }
