"""The participant level: find, plan, run, and tell what became of each participant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import (
    Discovery,
    discover,
    output_path,
    write_dataset_files,
    write_participants,
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
from bids_perfdeficit.cli.parser import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, print_problems
from bids_perfdeficit.cli.resources import available_cores, resolve_device, share_threads
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.workflows.plan import Plan, describe, make_plan


def run_participants(settings: Settings) -> int:
    """Run the participant level and return the exit code."""
    filters = None
    if settings.inputs.bids_filter_file is not None:
        filters = json.loads(settings.inputs.bids_filter_file.read_text(encoding='utf-8'))
    found = discover(
        settings.inputs.bids_dir,
        participant_labels=settings.inputs.participant_label,
        session_labels=settings.inputs.session_label,
        filters=filters,
        database_dir=settings.inputs.bids_database_dir,
    )
    plans = [make_plan(pair, settings) for pair in found.pairs]
    if settings.outputs.dry_run:
        return _dry_run(found, plans, settings)
    if not plans:
        print_problems([str(problem) for problem in found.problems])
        return EXIT_USAGE
    if settings.outputs.boilerplate_only:
        print(_methods(plans, settings))
        return EXIT_OK
    return _Run(settings, found, plans).execute()


def _dry_run(found: Discovery, plans: Sequence[Plan], settings: Settings) -> int:
    for note in found.notes:
        print(f'note: {note}')
    print(describe(plans, settings))
    if found.problems:
        print_problems([str(problem) for problem in found.problems])
    return EXIT_OK if not found.problems else EXIT_SOME_FAILED if plans else EXIT_USAGE


def _methods(plans: Sequence[Plan], settings: Settings) -> str:
    from bids_perfdeficit.workflows.base import init_pair_wf

    fresh = Plan(plans[0].pair, {}, plans[0].fingerprints)
    return init_pair_wf(plan=fresh, settings=settings).visit_desc()


class _Run:
    """One run: its folder of logs, its workflow and its verdict."""

    def __init__(self, settings: Settings, found: Discovery, plans: Sequence[Plan]) -> None:
        self.settings, self.found, self.plans = settings, found, plans
        self.book = Logbook(settings)
        self.output_dir, self.log_dir = self.book.output_dir, self.book.folder

    def execute(self) -> int:
        settings = self.settings
        self.book.start()
        notes = write_dataset_files(
            self.output_dir, bids_dir=settings.inputs.bids_dir, version=__version__
        )
        for note in (*self.found.notes, *notes):
            LOGGER.info(note)
        for plan in self.plans:
            for note in plan.pair.notes:
                LOGGER.info('%s: %s', plan.pair.prefix, note)
        write_participants(
            self.output_dir,
            bids_dir=settings.inputs.bids_dir,
            participants=[plan.pair.participant for plan in self.plans],
        )
        self.book.write_status([], None)
        busy = [plan for plan in self.plans if self._has_work(plan)]
        ready, early = self._select(busy)
        seconds = self._compute(ready) if ready else {}
        outcomes = self._judge(early, seconds)
        self._report({plan.pair.prefix for plan in busy}, outcomes)
        write_index(self.output_dir, outcomes)
        code = EXIT_OK if all(o.status == 'complete' for o in outcomes) else EXIT_SOME_FAILED
        self.book.write_status(outcomes, code)
        for outcome in outcomes:
            print(outcome.line)
        done = sum(outcome.status == 'complete' for outcome in outcomes)
        print(f'{done} of {len(outcomes)} complete; logs in {self.log_dir}')
        return code

    def _has_work(self, plan: Plan) -> bool:
        from bids_perfdeficit.reports.words import is_page

        page = output_path(
            self.output_dir,
            'report',
            participant=plan.pair.participant,
            session=plan.pair.session,
        )
        return (
            self.settings.outputs.reports_only
            or bool(plan.to_run(self.settings.processing.level))
            or not is_page(page, self_contained=self.settings.outputs.self_contained_reports)
        )

    def _select(self, busy: Sequence[Plan]) -> tuple[list[Plan], dict[str, str]]:
        """Split what can run from what fails at once, with the reason."""
        if not self.settings.outputs.reports_only:
            return list(busy), {}
        ready = [p for p in busy if not p.to_run(self.settings.processing.level)]
        early = {
            p.pair.prefix: 'its results are not complete, so that there is nothing to report; '
            'run without --reports-only.'
            for p in busy
            if p not in ready
        }
        return ready, early

    def _compute(self, plans: Sequence[Plan]) -> dict[str, float]:
        """Run the workflow; return the seconds that each pair's steps took."""
        resources = self.settings.resources
        nprocs = resources.nprocs or available_cores()
        threads = resources.omp_nthreads or share_threads(
            nprocs, len(plans), low_mem=resources.low_mem
        )
        set_threads(threads)
        device, choice = resolve_device(self.settings.processing.device)
        if choice:
            LOGGER.info(choice)

        configure_nipype(self.settings, self.log_dir)

        from bids_perfdeficit.workflows.base import init_bids_perfdeficit_wf

        settings = replace(self.settings, resources=replace(resources, omp_nthreads=threads))
        workflow = init_bids_perfdeficit_wf(plans=plans, settings=settings, device=device)
        return self.book.run(workflow, nprocs=nprocs)

    def _judge(self, early: dict[str, str], seconds: dict[str, float]) -> list[Outcome]:
        """Tell from what lies on disk, and from the crash files, what became of everyone."""
        from bids_perfdeficit.workflows.base import workflow_name

        crashes = read_crashes(self.log_dir)
        outcomes = []
        for plan in self.plans:
            name = plan.pair.prefix
            reasons = crashes.get(workflow_name(plan.pair), [])
            if name in early:
                reasons = [early[name]]
            missing = make_plan(plan.pair, self.settings).to_run(self.settings.processing.level)
            if missing and not reasons:
                reasons = [
                    f'ended without {missing[0].name} and without an error; '
                    'memory may have run out: give more with --mem, or --low-mem.'
                ]
            outcomes.append(
                Outcome(
                    name,
                    'failed' if reasons else 'complete',
                    reasons,
                    seconds.get(workflow_name(plan.pair)),
                )
            )
        outcomes += [
            Outcome(f'sub-{p.participant}' if p.participant else 'dataset', 'failed', [str(p)])
            for p in self.found.problems
        ]
        return sorted(outcomes, key=lambda outcome: outcome.name)

    def _report(self, busy: Iterable[str], outcomes: Sequence[Outcome]) -> None:
        from bids_perfdeficit.reports import build_page

        by_name = {outcome.name: outcome for outcome in outcomes}
        methods = _methods(self.plans, self.settings)
        pages: dict[str, list[Plan]] = {}
        for plan in self.plans:
            pages.setdefault(plan.pair.participant, []).append(plan)
        wanted = set(busy)
        for plans in pages.values():
            if not wanted & {plan.pair.prefix for plan in plans}:
                continue
            for plan in plans:
                outcome = by_name[plan.pair.prefix]
                try:
                    build_page(
                        self.output_dir,
                        plan.pair,
                        space=self.settings.processing.output_spaces[0],
                        errors=outcome.reasons,
                        methods=methods,
                        settings=self.settings.to_toml(),
                        versions=versions(),
                        self_contained=self.settings.outputs.self_contained_reports,
                    )
                except Exception as error:  # one page must not take the others with it
                    LOGGER.exception('the report of %s could not be made', plan.pair.prefix)
                    outcome.status = 'failed'
                    outcome.reasons.append(f'the report could not be made: {error}')
