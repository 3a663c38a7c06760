"""The group level: find who is in, run what is missing, and tell what became of each model."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import (
    check_sides,
    resolution_label,
    write_dataset_files,
    write_phenotype,
)
from bids_perfdeficit.cli.logbook import (
    LOGGER,
    Logbook,
    Outcome,
    configure_nipype,
    read_crashes,
    set_threads,
    versions,
    write_index,
)
from bids_perfdeficit.cli.parser import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE
from bids_perfdeficit.cli.resources import available_cores, resolve_device
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.workflows.group_plan import (
    GroupPlan,
    describe_group,
    group_path,
    make_group_plan,
)

#: Participants from which a map of one item begins to mean something.
FEW = 100


def run_group(settings: Settings) -> int:
    """Run the group level and return the exit code.

    Raises
    ------
    InputError
        When there is nothing that can be run.
    """
    plan = make_group_plan(settings)
    if settings.outputs.dry_run:
        print(describe_group(plan))
        return EXIT_OK
    if settings.outputs.boilerplate_only:
        from bids_perfdeficit.workflows.group import describe_methods

        print(describe_methods(plan, settings))
        return EXIT_OK
    return _Run(settings, plan).execute()


class _Run:
    """One run: its folder of logs, its workflow and its verdict."""

    def __init__(self, settings: Settings, plan: GroupPlan) -> None:
        self.settings, self.plan = settings, plan
        self.book = Logbook(settings, units='models')

    def execute(self) -> int:
        from bids_perfdeficit.reports.words import is_page

        settings, plan = self.settings, self.plan
        self.book.start()
        notes = write_dataset_files(
            self.book.output_dir, bids_dir=settings.inputs.bids_dir, version=__version__
        )
        for note in (*notes, *plan.cohort.notes):
            LOGGER.info(note)
        for label, reason in plan.cohort.dropped.items():
            LOGGER.info('sub-%s: left out: %s', label, reason)
        if plan.scores is not None and settings.group.apply is None:
            write_phenotype(plan.scores, self.book.output_dir)
        self.book.write_status([], None)
        page = group_path(settings, 'group_report')
        applied = settings.group.apply is not None
        alone = settings.outputs.self_contained_reports
        there = applied or is_page(page, self_contained=alone)
        stale = plan.busy or settings.outputs.reports_only or not there
        seconds = {}
        if plan.busy and not settings.outputs.reports_only:
            seconds = self._compute()
        outcomes = self._judge(seconds)
        if stale and not applied and any(o.status == 'complete' for o in outcomes):
            self._report(outcomes)
            # Of models; what became of participants stands in the logs.
            write_index(self.book.output_dir, outcomes, ours=False)
        code = self._code(outcomes)
        self.book.write_status(outcomes, code)
        for outcome in outcomes:
            print(outcome.line)
        if not stale:
            print('everything is there already; nothing was done')
        print(f'logs in {self.book.folder}')
        return code

    def _compute(self) -> dict[str, float]:
        """Run the workflow; return the seconds that each model's steps took."""
        resources = self.settings.resources
        nprocs = 1 if resources.low_mem else resources.nprocs or available_cores()
        threads = resources.omp_nthreads or 1
        set_threads(threads)
        device, choice = resolve_device(self.settings.processing.device)
        if choice:
            LOGGER.info(choice)
        configure_nipype(self.settings, self.book.folder)

        from bids_perfdeficit.workflows.group import init_group_wf

        workflow = init_group_wf(
            plan=self.plan, settings=self.settings, device=device, omp_nthreads=threads
        )
        return self.book.run(workflow, nprocs=nprocs)

    def _judge(self, seconds: dict[str, float]) -> list[Outcome]:
        """Tell from what lies on disk, and from the crash files, what became of each model."""
        crashes = read_crashes(self.book.folder)
        now = make_group_plan(self.settings)
        outcomes = []
        for model in self.plan.model_names:
            missing = now.to_run(model)
            reasons = crashes.get(f'{model}_wf', [])
            if missing and not reasons:
                reasons = crashes.get('cohort_wf', []) or [
                    'its results are not complete, so that there is nothing to report; '
                    'run without --reports-only.'
                    if self.settings.outputs.reports_only
                    else f'ended without {missing[0]} and without an error; '
                    'memory may have run out: give more with --mem, or fewer processes.'
                ]
            status = 'failed' if missing else 'complete'
            outcomes.append(
                Outcome(model, status, reasons if missing else [], seconds.get(f'{model}_wf'))
            )
        outcomes += [
            Outcome(name, 'skipped', [reason]) for name, reason in self.plan.skipped.items()
        ]
        return outcomes

    def _report(self, outcomes: list[Outcome]) -> None:
        from bids_perfdeficit.reports.group import GroupReport, build_group_page
        from bids_perfdeficit.workflows.group import describe_methods

        settings, plan = self.settings, self.plan
        facts = {
            'Template': settings.processing.output_spaces[0],
            'Resolution': f'{plan.resolution:g} mm',
            'Maps': f'computed {plan.map_kind}',
            'Covariates': ', '.join(plan.cohort.covariate_names) or 'none',
            'Scores': self._place(plan.cohort.source),
        }
        try:
            build_group_page(
                GroupReport(
                    self.book.output_dir,
                    settings.processing.output_spaces[0],
                    resolution_label(plan.resolution),
                    tuple(o.name for o in outcomes if o.status == 'complete'),
                    facts,
                    warnings=self._warnings(),
                    errors=tuple(o.line for o in outcomes if o.status == 'failed'),
                    methods=describe_methods(plan, settings),
                    settings=settings.to_toml(),
                    versions=versions(),
                    self_contained=settings.outputs.self_contained_reports,
                )
            )
        except Exception as error:
            LOGGER.exception('the report could not be made')
            outcomes.append(Outcome('report', 'failed', [f'{error}; see run.log']))

    def _place(self, path: Path | None) -> str:
        """Tell where a table lies in its dataset; a page that is passed on needs no more."""
        if path is None:
            return 'n/a'
        roots = (self.settings.inputs.bids_dir, self.settings.inputs.output_dir)
        inside = (path.relative_to(root) for root in roots if path.is_relative_to(root))
        return next(inside, Path(path.name)).as_posix()

    def _warnings(self) -> tuple[str, ...]:
        """Return the doubts about scores and maps; whether sides are swapped comes first."""
        told = []
        if self.plan.scores is not None:
            people = pd.read_csv(group_path(self.settings, 'group_cohort'), sep='\t')
            labels = people['participant_id'].str.removeprefix('sub-')
            sides = dict(zip(labels, people['side'], strict=True))
            if swapped := check_sides(self.plan.scores, sides):
                LOGGER.warning(swapped)
                told.append(f'{swapped}.')
        if len(self.plan.cohort.entries) < FEW:
            told.append(
                f'Only {len(self.plan.cohort.entries)} participants: maps of a group need '
                f'{FEW} or more, and what is declared here may not hold elsewhere.'
            )
        if self.settings.processing.sloppy:
            told.append('The run was --sloppy: for trying things out, never for results.')
        return (*told, *(f'{note}.' for note in self.plan.cohort.notes))

    def _code(self, outcomes: list[Outcome]) -> int:
        failed = [o for o in outcomes if o.status == 'failed']
        if not failed:
            return EXIT_OK
        # Nothing could be run for want of usable maps: that is bad input and no failed model.
        # Sentences about defects of ours name their crash file.
        reasons = read_crashes(self.book.folder).get('cohort_wf', [])
        if reasons and not any('; see ' in reason for reason in reasons):
            return EXIT_USAGE
        return EXIT_SOME_FAILED
