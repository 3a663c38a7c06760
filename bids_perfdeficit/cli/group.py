"""The group level: what it finds, plans, computes and reports for a cohort and its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import (
    check_sides,
    resolution_label,
    write_dataset_files,
    write_phenotype,
)
from bids_perfdeficit.bids.listing import LISTED, shorten
from bids_perfdeficit.bids.outputs import find_outputs
from bids_perfdeficit.cli.logbook import LOGGER, Logbook, Outcome, read_crashes
from bids_perfdeficit.cli.parser import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE
from bids_perfdeficit.cli.runner import Level, Unit, Work
from bids_perfdeficit.errors import printable
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.stages.record import Record, digest
from bids_perfdeficit.stages.task import (
    Task,
    examine,
    find_unlisted,
    publish,
    recover,
    refresh,
    stray_records,
    withdraw,
)
from bids_perfdeficit.workflows.group_plan import (
    GroupPlan,
    describe_group,
    group_path,
    make_group_plan,
    name_maps,
)

#: Participants from which a map of one item begins to mean something.
FEW = 100
#: Version of the page: raised when its content changes while nothing that it shows does.
PAGE_VERSION = 3
#: Tables of the settings that shape the results of this level.
SHAPING = ('processing', 'group')
#: What the lock and the messages call the unit of this level.
_NAME = 'the group level'


class GroupLevel(Level):
    """From the maps of many participants and their scores to models, predictions and a page."""

    units = 'models'

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._plan: GroupPlan | None = None
        self._page_only = False

    @property
    def planned(self) -> GroupPlan:
        """The plan; `find` makes it."""
        assert self._plan is not None
        return self._plan

    def find(self) -> Sequence[str]:
        self._plan = make_group_plan(self.settings)
        return ()

    def is_empty(self) -> bool:
        return False  # a cohort that cannot be analysed is an error of `find`

    def describe(self) -> str:
        return '\n'.join(map(printable, describe_group(self.planned).splitlines()))

    def methods(self) -> str:
        from bids_perfdeficit.workflows.group import describe_methods

        return describe_methods(self.planned, self.settings)

    def begin(self, book: Logbook) -> None:
        plan = self.planned
        notes = write_dataset_files(
            self.output_dir,
            bids_dir=self.settings.inputs.bids_dir,
            version=__version__,
            relink=False,
        )
        for note in (*notes, *plan.cohort.notes):
            LOGGER.info(note)
        for line in _describe_dropped(plan.cohort.dropped):
            LOGGER.info(line)
        if plan.scores is not None and self.settings.group.apply is None:
            write_phenotype(plan.scores, self.output_dir)
        if not self._has_work():
            book.add(*self._outcomes(book))

    def _has_work(self) -> bool:
        plan = self.planned
        applied = self.settings.group.apply is not None
        return (
            plan.busy
            or self.settings.outputs.reports_only
            or bool(self._foreign() or self._unlisted())
            or not (applied or examine(self._page_task(plan.model_names, ())).done)
        )

    def batches(self) -> Iterator[list[Unit]]:
        if not self._has_work():
            for key, task in self.planned.tasks.items():
                refresh(task, self.planned.states[key])
            return
        lock = group_path(self.settings, 'group_lock')
        images = group_path(self.settings, 'group_mask').parent
        yield [Unit(_NAME, lock, (images, self._figures), lock.parent)]

    @property
    def _figures(self) -> Path:
        return group_path(
            self.settings, 'group_figure', model='x', contrast='x', figure='x'
        ).parent

    def _foreign(self) -> list[Path]:
        """Return records of models of another cohort, which must not stand beside this one's."""
        if self.settings.group.apply is not None:
            return []
        plan = self.planned
        cohort = plan.states['cohort', '']
        mark = cohort.record.fingerprint if cohort.record is not None else ''
        folder = group_path(self.settings, 'group_lock').parent
        page = self._page_task(plan.model_names, ())
        strays = [
            (path, Record.read(path))
            for path in stray_records(folder, [*plan.tasks.values(), page])
        ]
        return [
            path
            for path, record in strays
            if record is None or record.requires.get('cohort', mark) != mark
        ]

    def _unlisted(self) -> list[Path]:
        """Return results whose record is lost; those of other items would stay for good."""
        folder = group_path(self.settings, 'group_lock').parent
        images = group_path(self.settings, 'group_mask').parent
        files = find_outputs(self.output_dir, 'group', images)
        return find_unlisted(self.output_dir, folder, files)

    def plan(self, unit: Unit) -> str:
        recover(self.output_dir, unit.records)
        self._plan = self.planned.examined(verify=self.settings.outputs.verify)
        if self.settings.outputs.reports_only:
            return ''
        for path in self._unlisted():
            LOGGER.info('%s has no record and is removed', path)
            path.unlink()
        for task in self.planned.stale:
            withdraw(task)
        return ''

    def workflow(self, units: Sequence[Unit], *, device: str, threads: int) -> Work | None:
        if self.settings.outputs.reports_only or not self.planned.busy:
            return None
        from bids_perfdeficit.workflows.group import init_group_wf

        # The folder is that of these very options, inputs and versions: what another run left
        # in a working folder that was kept is never found.
        keys = [task.work_key for task in self.planned.tasks.values()]
        workflow = init_group_wf(
            plan=self.planned,
            settings=self.settings,
            device=device,
            omp_nthreads=threads,
            name=f'group_{digest(str(self.output_dir), keys)[:10]}_wf',
        )
        return Work(workflow, {f'{m}_wf': m for m in self.planned.model_names})

    def processes(self) -> int:
        return 1 if self.settings.resources.low_mem else super().processes()

    def threads(self, processes: int, units: int) -> int:
        return self.settings.resources.omp_nthreads or 1

    def judge(
        self, units: Sequence[Unit], book: Logbook, failed: Mapping[str, str]
    ) -> list[Outcome]:
        self._plan = self.planned.examined()
        if not self.settings.outputs.reports_only:
            self._remove_foreign()
        outcomes = self._outcomes(book)
        applied = self.settings.group.apply is not None
        if not applied and any(o.status == 'complete' for o in outcomes):
            self._report(outcomes)
        elif not applied:  # a page of results that are gone
            withdraw(self._page_task((), ()))
        return outcomes

    def _remove_foreign(self) -> None:
        for path in self._foreign():
            record = Record.read(path)
            if record is not None:
                LOGGER.info(
                    'results of another cohort or of other options are removed: %s',
                    ', '.join(sorted(record.outputs)) or record.stage,
                )
            withdraw(Task('', 0, self.output_dir, path, {}))

    def _outcomes(self, book: Logbook) -> list[Outcome]:
        """Decide from records and crash files what became of each model."""
        crashes = read_crashes(book.folder)
        outcomes = []
        for model in self.planned.model_names:
            missing = [*self.planned.to_run(), *self.planned.to_run(model)]
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
            seconds = book.progress.seconds.get(f'{model}_wf')
            outcomes.append(Outcome(model, status, list(reasons) if missing else [], seconds))
        outcomes += [
            Outcome(name, 'skipped', [reason]) for name, reason in self.planned.skipped.items()
        ]
        return outcomes

    def finish(self, book: Logbook) -> None:
        from bids_perfdeficit.reports.cohort import build_index

        if self.settings.group.apply is not None:
            return
        try:
            build_index(self.output_dir, {})  # of models; participants stand in the logs
        except Exception as error:
            LOGGER.exception('the page of all participants could not be made')
            book.add(Outcome('report', 'failed', [f'{error}; see run.log']))

    def code(self, outcomes: Sequence[Outcome], book: Logbook) -> int:
        if all(outcome.status != 'failed' for outcome in outcomes):
            return EXIT_OK
        # Nothing could be run for want of usable maps: that is bad input and not a failed model.
        # Sentences about defects of ours name their crash file.
        reasons = read_crashes(book.folder).get('cohort_wf', [])
        if reasons and not any('; see ' in reason for reason in reasons):
            return EXIT_USAGE
        return EXIT_SOME_FAILED

    def _facts(self) -> dict[str, object]:
        plan = self.planned
        return {
            'Template': self.settings.processing.output_spaces[0],
            'Resolution': f'{plan.resolution:g} mm',
            'Maps': f'computed {plan.map_kind}' if plan.given is None else name_maps(plan),
            'Covariates': ', '.join(plan.cohort.covariate_names) or 'none',
            'Scores': self._place(plan.cohort.source),
        }

    def _page_task(self, models: Sequence[str], errors: Sequence[str]) -> Task:
        """Return the page as a stage: what it shows, and where it lies."""
        plan, settings = self.planned, self.settings
        done = [
            task
            for (stage, model), task in plan.tasks.items()
            if model in ('', *models) and plan.states[stage, model].done
        ]
        return Task(
            'report',
            PAGE_VERSION,
            self.output_dir,
            group_path(settings, 'group_record', stage='report'),
            {
                'settings': settings.to_toml(SHAPING),
                'self_contained': settings.outputs.self_contained_reports,
                'models': list(models),
                'facts': self._facts(),
                'notes': list(plan.cohort.notes),
                'skipped': dict(plan.skipped),
                'errors': list(errors),
            },
            requires=tuple(done),
        )

    def _report(self, outcomes: list[Outcome]) -> None:
        from bids_perfdeficit.reports.group import GroupReport, build_group_page

        settings, plan = self.settings, self.planned
        models = tuple(o.name for o in outcomes if o.status == 'complete')
        errors = tuple(o.line for o in outcomes if o.status == 'failed')
        task = self._page_task(models, errors)
        software: dict[str, str] = {}
        marks: dict[str, str] = {}
        for (stage, model), state in plan.states.items():
            if state.record is not None:
                software |= dict(state.record.software)
                marks[f'{model} {stage}'.strip()] = state.record.fingerprint
        withdraw(task)
        for path in self._figures.glob('*'):  # of a page that was not finished
            path.unlink()
        try:
            page = build_group_page(
                GroupReport(
                    self.output_dir,
                    settings.processing.output_spaces[0],
                    resolution_label(plan.resolution),
                    models,
                    self._facts(),
                    warnings=self._warnings(),
                    errors=errors,
                    methods=self.methods(),
                    settings=settings.to_toml(SHAPING),
                    versions=software,
                    fingerprints=marks,
                    self_contained=settings.outputs.self_contained_reports,
                )
            )
            made = [*sorted(self._figures.glob('*.svg')), page]
            names = [path.relative_to(self.output_dir).as_posix() for path in made]
            publish(task, dict.fromkeys(names, _is_written))
        except Exception as error:
            LOGGER.exception('the report could not be made')
            outcomes.append(Outcome('report', 'failed', [f'{error}; see run.log']))

    def _place(self, path: Path | None) -> str:
        """Return where a table lies in its dataset; a page that is passed on needs no more."""
        if path is None:
            return 'n/a'
        roots = (self.settings.inputs.bids_dir, self.settings.inputs.output_dir)
        inside = (path.relative_to(root) for root in roots if path.is_relative_to(root))
        return next(inside, Path(path.name)).as_posix()

    def _warnings(self) -> tuple[str, ...]:
        """Return the doubts about scores and maps; whether sides are swapped comes first."""
        warnings = []
        plan = self.planned
        if plan.scores is not None:
            people = pd.read_csv(group_path(self.settings, 'group_cohort'), sep='\t')
            labels = people['participant_id'].str.removeprefix('sub-')
            sides = dict(zip(labels, people['side'], strict=True))
            if swapped := check_sides(plan.scores, sides):
                LOGGER.warning(swapped)
                warnings.append(f'{swapped}.')
        if len(plan.cohort.entries) < FEW:
            warnings.append(
                f'Only {len(plan.cohort.entries)} participants: maps of a group need '
                f'{FEW} or more, and what is declared here may not hold elsewhere.'
            )
        if self.settings.processing.sloppy:
            warnings.append('The run was --sloppy: for trying things out, never for results.')
        return (*warnings, *(f'{note}.' for note in plan.cohort.notes))


def _describe_dropped(dropped: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each participant who is left out, or one for many of the same reason."""
    by_reason: dict[str, list[str]] = {}
    for label, reason in dropped.items():
        by_reason.setdefault(reason, []).append(f'sub-{label}')
    for reason, names in by_reason.items():
        if len(names) > LISTED:
            yield f'{len(names)} participants left out: {reason}: {shorten(names)}'
        else:
            yield from (f'{name}: left out: {reason}' for name in names)


def _is_written(path: Any) -> None:
    """Keep a file that was written before it is recorded."""
