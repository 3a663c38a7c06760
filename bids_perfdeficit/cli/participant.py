"""The participant level: what it finds, plans, computes and reports for each pair of scans."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import (
    Discovery,
    ScanPair,
    discover,
    output_path,
    write_dataset_files,
    write_json,
    write_participants,
)
from bids_perfdeficit.bids.files import remove_leftovers
from bids_perfdeficit.bids.jsonfile import read_facts, read_json
from bids_perfdeficit.bids.people import read_people
from bids_perfdeficit.bids.phases import TAKEN
from bids_perfdeficit.cli.logbook import LOGGER, Logbook, Outcome, read_crashes
from bids_perfdeficit.cli.parser import EXIT_OK, EXIT_SOME_FAILED
from bids_perfdeficit.cli.resources import available_memory_gb, estimate_job
from bids_perfdeficit.cli.runner import Level, Unit, Work, explain
from bids_perfdeficit.errors import InputError, printable
from bids_perfdeficit.nifti import open_nifti
from bids_perfdeficit.settings import CtaPhases, Settings
from bids_perfdeficit.stages.task import (
    State,
    Task,
    examine,
    publish,
    recover,
    refresh,
    withdraw,
)
from bids_perfdeficit.stages.verdict import judge
from bids_perfdeficit.workflows.plan import (
    Plan,
    describe,
    make_plan,
    path_of,
    record_path,
)

#: Pairs of scans in one workflow. Nipype's graph takes 2.5 MB a pair, and the lock of each pair a
#: file descriptor; starting a workflow costs about as much as a tenth of a patient.
BATCH = 48
#: The same on a cluster, where each step waits in a queue.
CLUSTER_BATCH = 400
#: Version of the page: raised when its content changes while nothing that it shows does.
PAGE_VERSION = 2
#: Tables of the settings that shape the results of this level.
SHAPING = ('processing', 'perfusion')
#: Bytes that reading takes for each voxel: as stored, as float32, and one copy.
READING_BYTES = 12


class ParticipantLevel(Level):
    """From two scans to maps, metrics and a page, for each pair of scans."""

    units = 'participants'

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.found = Discovery(())
        self.plans: dict[str, Plan] = {}
        self._busy: list[Plan] = []

    def find(self) -> Sequence[str]:
        inputs = self.settings.inputs
        filters = None
        if inputs.bids_filter_file is not None:
            filters = read_json(inputs.bids_filter_file)
        self.found = discover(
            inputs.bids_dir,
            participant_labels=inputs.participant_label,
            session_labels=inputs.session_label,
            filters=filters,
            pair_sessions=inputs.pair_sessions,
            later_phases=inputs.phases is CtaPhases.ALL,
        )
        self.found = replace(
            self.found, pairs=tuple(self._check_phases(pair) for pair in self.found.pairs)
        )
        plans = [make_plan(pair, self.settings) for pair in self.found.pairs]
        self.plans = {plan.pair.prefix: plan for plan in plans}
        self._busy = [plan for plan in plans if self._has_work(plan)]
        return [str(problem) for problem in self.found.problems]

    def is_empty(self) -> bool:
        return not self.plans

    def describe(self) -> str:
        notes = [printable(f'note: {note}') for note in self.found.notes]
        return '\n'.join([*notes, describe(list(self.plans.values())), *self._describe_jobs()])

    def _describe_jobs(self) -> list[str]:
        """Return the line that a script of a cluster reads: what each job is to ask for."""
        largest, where = 0, ''
        for plan in self.plans.values():
            if plan.refusal or not plan.to_run:
                continue
            for path in (plan.pair.ncct, plan.pair.cta, *plan.pair.later):
                with contextlib.suppress(InputError):  # the run itself reports it
                    shape = open_nifti(path).shape
                    if math.prod(map(int, shape)) > largest:
                        largest, where = math.prod(map(int, shape)), f'{path.name}, {_size(shape)}'
        if not largest:
            return []
        gigabytes, minutes = estimate_job(largest)
        return [
            f'a job for each participant: --cpus-per-task=2 --mem={gigabytes}G '
            f'--time={minutes // 60:02d}:{minutes % 60:02d}:00 (largest scan: {printable(where)})'
        ]

    def methods(self) -> str:
        from bids_perfdeficit.workflows.base import init_pair_wf

        pairs = [plan.pair for plan in self.plans.values()]
        # One with later phases describes what was done with them.
        pair = next((pair for pair in pairs if pair.later), pairs[0])
        # Of all stages, also of those that are taken from elsewhere now.
        alone = replace(self.settings, inputs=replace(self.settings.inputs, derivatives=()))
        tasks = make_plan(pair, alone).tasks
        fresh = Plan(pair, tasks, {name: State(False) for name in tasks}, {})
        return init_pair_wf(plan=fresh, settings=self.settings).visit_desc()

    def begin(self, book: Logbook) -> None:
        notes = write_dataset_files(
            self.output_dir, bids_dir=self.settings.inputs.bids_dir, version=__version__
        )
        for note in (*self.found.notes, *notes):
            LOGGER.info(note)
        for plan in self.plans.values():
            for note in (*plan.pair.notes, *plan.notes):
                LOGGER.info('%s: %s', plan.pair.prefix, note)
        self._write_participants()
        for problem in self.found.problems:
            name = f'sub-{problem.participant}' if problem.participant else 'dataset'
            reasons = [str(problem)]
            book.add(Outcome(name, 'failed', [*self._known(book, name), *reasons]))
            if problem.participant and (self.output_dir / name).is_dir():
                # What an earlier run left must not be taken for a result of these scans.
                failure = Outcome(name, 'failed', reasons)
                self._write_verdict(problem.participant, problem.session, failure)
        idle = [plan for plan in self.plans.values() if plan not in self._busy]
        for plan in idle:
            for name, task in plan.tasks.items():
                refresh(task, plan.states[name])
        book.add(*map(self._judged, idle))

    @staticmethod
    def _known(book: Logbook, name: str) -> list[str]:
        return book.outcomes[name].reasons if name in book.outcomes else []

    def batches(self) -> Iterator[list[Unit]]:
        size = BATCH if self.settings.resources.use_plugin is None else CLUSTER_BATCH
        for start in range(0, len(self._busy), size):
            yield [self._unit(plan) for plan in self._busy[start : start + size]]

    def _unit(self, plan: Plan) -> Unit:
        pair = plan.pair
        lock = output_path(
            self.output_dir, 'lock', participant=pair.participant, session=pair.session
        )
        images = self._path(pair, 'preproc_ct').parent
        return Unit(pair.prefix, lock, (images,), lock.parent, pair)

    def plan(self, unit: Unit) -> str:
        recover(self.output_dir, unit.records)
        # The sessions of a participant share this folder: another job may be writing there.
        remove_leftovers(self._path(unit.content, 'figure_brain').parent)
        plan = make_plan(unit.content, self.settings)
        self.plans[unit.name] = plan
        if reason := plan.refusal or self._check_headers(plan):
            for task in plan.stale:
                withdraw(task)
            return reason
        if self.settings.outputs.reports_only:
            if set(plan.to_run) - {'figures'}:
                return (
                    'its results are not complete, so that there is nothing to report; '
                    'run without --reports-only.'
                )
            withdraw(plan.tasks['figures'])
            self.plans[unit.name] = make_plan(unit.content, self.settings)
            return ''
        for task in plan.stale:
            withdraw(task)
        return ''

    def _check_headers(self, plan: Plan) -> str:
        """Return why a scan cannot be read at all; nothing of its voxels is read."""
        limit = self.settings.resources.mem or available_memory_gb()
        for path in (plan.pair.ncct, plan.pair.cta):
            if not plan.to_run:
                break
            if reason := _check_header(path, limit):
                return reason
        return ''

    def _check_phases(self, pair: ScanPair) -> ScanPair:
        """Leave out later phases of the CTA that cannot be used, with a note for each."""
        if not pair.later:
            return pair
        how = self.settings.perfusion.recipe
        if self.settings.processing.calibration is not None or how == 'published':
            why = (
                f'the recipe {how} uses one phase'
                if how == 'published'
                else '--calibration was refitted to first phases'
            )
            names = ', '.join(path.name for path in pair.later)
            note = f'later phases of the CTA are not used ({names}): {why}'
            kept = [n for n in pair.notes if not n.startswith(TAKEN)]
            return replace(pair, later=(), notes=(*kept, note))
        limit = self.settings.resources.mem or available_memory_gb()
        reasons = {path: _check_header(path, limit) for path in pair.later}
        notes = [
            f'the later phase {path.name} of the CTA is left out: {reason}'
            for path, reason in reasons.items()
            if reason
        ]
        later = tuple(path for path, reason in reasons.items() if not reason)
        return replace(pair, later=later, notes=(*pair.notes, *notes))

    def workflow(self, units: Sequence[Unit], *, device: str, threads: int) -> Work | None:
        from bids_perfdeficit.workflows.base import branch_name, init_bids_perfdeficit_wf

        plans = [self.plans[unit.name] for unit in units]
        plans = [plan for plan in plans if plan.to_run]
        if not plans:
            return None
        resources = replace(self.settings.resources, omp_nthreads=threads)
        settings = replace(self.settings, resources=resources)
        workflow = init_bids_perfdeficit_wf(plans=plans, settings=settings, device=device)
        labels = {branch_name(plan): plan.pair.prefix for plan in plans}
        return Work(workflow, labels, fresh=tuple(labels))

    def judge(
        self, units: Sequence[Unit], book: Logbook, failed: Mapping[str, str]
    ) -> list[Outcome]:
        from bids_perfdeficit.workflows.base import branch_name

        crashes = read_crashes(book.folder)
        outcomes = []
        for unit in units:
            branch = branch_name(self.plans[unit.name])
            plan = make_plan(unit.content, self.settings)
            self.plans[unit.name] = plan
            reasons = [failed[unit.name]] if unit.name in failed else crashes.get(branch, [])
            if plan.to_run and not reasons:
                reasons = [
                    f'ended without {plan.to_run[0]} and without an error; '
                    'memory may have run out: give more with --mem, or --low-mem.'
                ]
            outcome = (
                Outcome(unit.name, 'failed', list(reasons)) if reasons else self._judged(plan)
            )
            outcome.seconds = book.progress.seconds.get(branch)
            try:
                self._report(plan, outcome)
                self._write_verdict(plan.pair.participant, plan.pair.session, outcome)
            except OSError as error:
                outcome.status = 'failed'
                outcome.reasons.append(explain(error))
            outcomes.append(outcome)
        return outcomes

    def _judged(self, plan: Plan) -> Outcome:
        """Return the verdict on a participant whose stages are all done."""
        pair = plan.pair
        verdict = judge(_read_metrics(self._path(pair, 'qc_metrics')))
        doubts = [doubt.removesuffix('.') for doubt in pair.doubts]
        status = 'doubtful' if verdict.status == 'complete' and doubts else verdict.status
        return Outcome(pair.prefix, status, [*verdict.reasons, *doubts])

    def finish(self, book: Logbook) -> None:
        from bids_perfdeficit.reports.cohort import build_index

        self._write_participants()

        statuses = {o.name: (o.status, o.reasons) for o in book.outcomes.values()}
        try:
            build_index(self.output_dir, statuses)
        except Exception as error:
            LOGGER.exception('the page of all participants could not be made')
            book.add(Outcome('report', 'failed', [f'{error}; see run.log']))

    def code(self, outcomes: Sequence[Outcome], book: Logbook) -> int:
        failed = any(outcome.status == 'failed' for outcome in outcomes)
        return EXIT_SOME_FAILED if failed else EXIT_OK

    def _path(self, pair: ScanPair, key: str) -> Any:
        return path_of(self.output_dir, pair, key, self.settings.processing.output_spaces[0])

    def _has_work(self, plan: Plan) -> bool:
        if self.settings.outputs.reports_only or plan.refusal or plan.to_run:
            return True
        verdict = output_path(
            self.output_dir,
            'verdict',
            participant=plan.pair.participant,
            session=plan.pair.session,
        )
        outcome = self._judged(plan)
        return (
            any(task.record.exists() or task.pending.exists() for task in plan.others)
            or read_facts(verdict) != _facts(outcome)
            or not examine(self._page_task(plan, outcome)).done
        )

    def _page_task(self, plan: Plan, outcome: Outcome) -> Task:
        """Return the page as a stage: what it shows, and where it lies."""
        pair = plan.pair
        page = self._path(pair, 'report').relative_to(self.output_dir).as_posix()
        done = [task for name, task in plan.tasks.items() if plan.states[name].done]
        return Task(
            'report',
            PAGE_VERSION,
            self.output_dir,
            record_path(self.output_dir, pair, 'report'),
            {
                'settings': self.settings.to_toml(SHAPING),
                'self_contained': self.settings.outputs.self_contained_reports,
                'scans': [pair.ncct.name, pair.cta.name, *(path.name for path in pair.later)],
                'notes': [*pair.notes, *plan.notes],
                'person': self._people_once().get(pair.participant, {}),
                'status': outcome.status,
                'reasons': list(outcome.reasons),
            },
            requires=tuple(done),
            outputs=(page,),
        )

    def _report(self, plan: Plan, outcome: Outcome) -> None:
        """Write the page, and make its failure that of the participant."""
        from bids_perfdeficit.reports import build_page

        task = self._page_task(plan, outcome)

        def build(path: object) -> None:
            build_page(
                self.output_dir,
                plan.pair,
                space=self.settings.processing.output_spaces[0],
                verdict=outcome.status,
                errors=outcome.reasons if outcome.status == 'failed' else (),
                notes=list(plan.notes),
                reasons=outcome.reasons,
                person=self._people_once().get(plan.pair.participant),
                methods=self._methods_once(),
                settings=self.settings.to_toml(SHAPING),
                versions=plan.software,
                fingerprints=plan.fingerprints,
                self_contained=self.settings.outputs.self_contained_reports,
            )

        try:
            assert task.outputs is not None
            publish(task, {task.outputs[0]: build})
        except InputError as error:
            outcome.status = 'failed'
            outcome.reasons.append(str(error))
        except OSError:
            raise
        except Exception as error:  # one page must not take the others with it
            LOGGER.exception('the report of %s could not be made', plan.pair.prefix)
            outcome.status = 'failed'
            outcome.reasons.append(f'the report could not be made: {error}')

    def _people_once(self) -> dict[str, dict[str, str]]:
        """Return what the tables of BIDS_DIR say of the participants."""
        if not hasattr(self, '_people'):
            labels = [pair.participant for pair in self.found.pairs]
            self._people = read_people(self.settings.inputs.bids_dir, labels)
        return self._people

    def _methods_once(self) -> str:
        if not hasattr(self, '_methods'):
            self._methods = self.methods()
        return self._methods

    def _write_verdict(self, participant: str, session: str | None, outcome: Outcome) -> None:
        path = output_path(self.output_dir, 'verdict', participant=participant, session=session)
        write_json(_facts(outcome), path)

    def _write_participants(self) -> None:
        write_participants(
            self.output_dir,
            bids_dir=self.settings.inputs.bids_dir,
            participants=[plan.pair.participant for plan in self.plans.values()],
        )


def _size(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))


def _check_header(path: Path, limit: float) -> str:
    """Return why an image cannot be read within so many GB, by its header; empty if it can."""
    try:
        shape = open_nifti(path).shape
    except InputError as error:
        return str(error)
    needed = math.prod(map(int, shape)) * READING_BYTES / 1e9
    if needed <= limit:
        return ''
    return (
        f'{path}: claims {_size(shape)} voxels, which need {needed:.0f} GB to read '
        f'({limit:.1f} GB may be used); check the header, or give more with --mem.'
    )


def _facts(outcome: Outcome) -> dict[str, Any]:
    """Return what the file of a verdict holds."""
    return {'Status': outcome.status, 'Reasons': list(outcome.reasons)}


def _read_metrics(path: Path) -> dict[str, str]:
    """Return the one row of a table of quality metrics; empty where there is none."""
    try:
        with path.open(encoding='utf-8', newline='') as stream:
            return next(csv.DictReader(stream, delimiter='\t'), {})
    except OSError:
        return {}
