"""The level evaluate: what it finds, plans, computes and reports for maps with a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import (
    output_path,
    sidecar,
    sidecar_path,
    write_dataset_files,
    write_json,
    write_tsv,
)
from bids_perfdeficit.bids.files import remove_leftovers
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.bids.listing import natural
from bids_perfdeficit.cli.logbook import LOGGER, Logbook, Outcome, read_crashes
from bids_perfdeficit.cli.parser import EXIT_OK, EXIT_SOME_FAILED
from bids_perfdeficit.cli.runner import Level, Unit, Work, explain
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.stages.lock import Lock
from bids_perfdeficit.stages.task import (
    Task,
    Writer,
    examine,
    publish,
    recover,
    refresh,
    withdraw,
)
from bids_perfdeficit.workflows.evaluation_plan import (
    EVALUATION,
    Case,
    EvaluationPlan,
    cohort_task,
    describe_evaluation,
    evaluation_path,
    make_evaluation_plan,
)
from bids_perfdeficit.workflows.plan import file_uri, path_of

#: Participants in one workflow; see `participant.BATCH`.
BATCH = 48
#: Version of the page: raised when its content changes while nothing that it shows does.
PAGE_VERSION = 1
#: Why a page cannot be made of a participant.
_NOTHING = (
    'its evaluation is not complete, so that there is nothing to report; run without '
    '--reports-only.'
)
#: What the lock of tables and page is called.
_NAME = 'the evaluation'


class EvaluateLevel(Level):
    """From computed maps and references to measures of agreement, tables and a page."""

    # Not "participants": what became of those is the word of the participant level.
    units = 'evaluations'
    #: What is done with each participant.
    use = EVALUATION
    #: Tables of the settings that shape the results.
    shaping: tuple[str, ...] = ('processing', 'evaluation')

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._plan: EvaluationPlan | None = None
        self.cases: dict[str, Case] = {}

    @property
    def planned(self) -> EvaluationPlan:
        """The plan; `find` makes it."""
        assert self._plan is not None
        return self._plan

    def find(self) -> Sequence[str]:
        self._plan = make_evaluation_plan(self.settings, self.use)
        self.cases = dict(self._plan.cases)
        if self.is_empty() and not self._plan.problems:
            reasons = '; '.join(f'{n}: {why}' for n, why in list(self._plan.left_out.items())[:3])
            raise InputError(
                f'no participant with a perfusion map has a reference ({reasons})',
                fix='give --reference with a pattern whose files name the participants',
            )
        return self._plan.problems

    def is_empty(self) -> bool:
        return all(case.refusal for case in self.cases.values())

    def describe(self) -> str:
        return describe_evaluation(self.planned)

    def methods(self) -> str:
        from bids_perfdeficit.workflows.evaluation import METHODS

        return METHODS

    def begin(self, book: Logbook) -> None:
        notes = write_dataset_files(
            self.output_dir,
            bids_dir=self.settings.inputs.bids_dir,
            version=__version__,
            relink=False,
        )
        for note in (*notes, *self.planned.notes):
            LOGGER.info(note)
        book.add(*(Outcome(n, 'failed', [why]) for n, why in self.planned.unusable.items()))
        book.add(*(Outcome(n, 'skipped', [why]) for n, why in self.planned.left_out.items()))
        for case in self.cases.values():
            if not self._has_work(case):
                refresh(case.task, case.state)
                book.add(self._judged(case))
            elif self.settings.outputs.reports_only:
                book.add(Outcome(case.name, 'failed', [case.refusal or _NOTHING]))

    @staticmethod
    def _has_work(case: Case) -> bool:
        return bool(case.refusal) or not case.state.done

    def batches(self) -> Iterator[list[Unit]]:
        busy = [case for case in self.cases.values() if self._has_work(case)]
        if self.settings.outputs.reports_only:
            busy = []
        for start in range(0, len(busy), BATCH):
            yield [self._unit(case) for case in busy[start : start + BATCH]]

    def _unit(self, case: Case) -> Unit:
        pair = case.pair
        lock = output_path(
            self.output_dir, 'lock', participant=pair.participant, session=pair.session
        )
        return Unit(case.name, lock, (case.files['preproc_ct'].parent,), lock.parent, case)

    def plan(self, unit: Unit) -> str:
        recover(self.output_dir, unit.records)
        case = unit.content.examined(verify=self.settings.outputs.verify)
        self.cases[unit.name] = case
        if case.refusal or not case.state.done:
            withdraw(case.task)
        return str(case.refusal)

    def workflow(self, units: Sequence[Unit], *, device: str, threads: int) -> Work | None:
        from bids_perfdeficit.workflows.evaluation import branch_name, init_comparison_wf

        cases = [self.cases[unit.name] for unit in units]
        cases = [case for case in cases if not case.state.done]
        if not cases:
            return None
        labels = {branch_name(case): case.name for case in cases}
        work = init_comparison_wf(
            cases=cases,
            settings=self.settings,
            device=device,
            omp_nthreads=threads,
            init_branch=self._init_branch(),
            methods=self.methods(),
            name=f'{self.use.name}_wf',
        )
        return Work(work, labels, fresh=tuple(labels))

    def _init_branch(self) -> Callable[..., Any]:
        """Return what builds the branch of a participant."""
        from bids_perfdeficit.workflows.evaluation import init_case_wf

        return init_case_wf

    def judge(
        self, units: Sequence[Unit], book: Logbook, failed: Mapping[str, str]
    ) -> list[Outcome]:
        from bids_perfdeficit.workflows.evaluation import branch_name

        crashes = read_crashes(book.folder)
        outcomes = []
        for unit in units:
            branch = branch_name(self.cases[unit.name])
            case = self.cases[unit.name] = self.cases[unit.name].examined()
            reasons = [failed[unit.name]] if unit.name in failed else crashes.get(branch, [])
            if not case.state.done and not reasons:
                reasons = [
                    f'ended without a result of the {self.use.name} and without an error; memory '
                    'may have run out: give more with --mem, or --low-mem.'
                ]
            outcome = (
                Outcome(unit.name, 'failed', list(reasons)) if reasons else self._judged(case)
            )
            outcome.seconds = book.progress.seconds.get(branch)
            outcomes.append(outcome)
        return outcomes

    def _judged(self, case: Case) -> Outcome:
        """Return the verdict on an evaluation that is done."""
        doubts = list(map(str, self._sidecar(case).get('Doubts', [])))
        return Outcome(case.name, 'doubtful' if doubts else 'complete', doubts)

    def _sidecar(self, case: Case) -> dict[str, Any]:
        return read_facts(sidecar_path(self._path(case, self.use.left[-1])))

    def _path(self, case: Case, key: str) -> Path:
        space = self.settings.processing.output_spaces[0]
        return path_of(self.output_dir, case.pair, key, space)

    def finish(self, book: Logbook) -> None:
        from bids_perfdeficit.reports.cohort import build_index

        lock = evaluation_path(self.settings, 'evaluation_lock')
        try:
            with Lock(lock, _NAME):
                for folder in (lock.parent, self._tables['participants'].parent, self._figures):
                    remove_leftovers(folder, any_owner=True)
                recover(self.output_dir, lock.parent)
                self._write_tables(book)
            build_index(self.output_dir, {})  # it leads to the page
        except (InputError, OSError) as error:
            book.add(Outcome('report', 'failed', [explain(error)]))
        except Exception as error:
            LOGGER.exception('the tables or the page could not be made')
            book.add(Outcome('report', 'failed', [f'{error}; see run.log']))

    def code(self, outcomes: Sequence[Outcome], book: Logbook) -> int:
        failed = any(outcome.status == 'failed' for outcome in outcomes)
        return EXIT_SOME_FAILED if failed else EXIT_OK

    @property
    def _tables(self) -> dict[str, Path]:
        return {
            name: evaluation_path(self.settings, f'evaluation_{name}')
            for name in ('participants', 'metrics')
        }

    @property
    def _figures(self) -> Path:
        return evaluation_path(self.settings, 'evaluation_figure', figure='x').parent

    def _write_tables(self, book: Logbook) -> None:
        """Write the tables of the cohort and the page, unless they hold."""
        from bids_perfdeficit import pipeline

        done = {name: case for name, case in self.cases.items() if case.state.done}
        people = [self._person(outcome, done) for outcome in self._participants(book)]
        plan = EvaluationPlan(done, {}, {})
        task = cohort_task(plan, people, self.settings)
        page = self._page_task(task)
        if not done:
            for gone in () if self.settings.outputs.reports_only else (page, task):
                withdraw(gone)
            return
        if not examine(task).done:
            withdraw(page)
            maps, measured = self._read(done)
            summary = pipeline.summarize_cohort(
                *(table.rename(columns={'name': 'participant_id'}) for table in (maps, measured)),
                seed=self.settings.processing.random_seed,
            )
            computed = maps[maps['map'] == 'computed'].drop(columns=['map', 'side'])
            table = (
                pd.DataFrame(people)
                .merge(computed, how='left', on='name')
                .merge(measured, how='left', on='name')
                .drop(columns='name')
            )
            notes = table.pop('notes')
            table['notes'] = notes
            self._publish(task, {'participants': table, 'metrics': summary}, done)
        if self.settings.outputs.reports_only or not examine(page).done:
            self._report(page, done, people)

    @staticmethod
    def _participants(book: Logbook) -> list[Outcome]:
        names = sorted((n for n in book.outcomes if n.startswith('sub-')), key=natural)
        return [book.outcomes[name] for name in names]

    def _person(self, outcome: Outcome, done: Mapping[str, Case]) -> dict[str, Any]:
        """Return what the table says of a participant before anything is measured."""
        participant, _, session = outcome.name.partition('_')
        case = done.get(outcome.name)
        status = 'failed' if outcome.status == 'failed' else 'left out'
        facts = {} if case is None else self._sidecar(case)
        return {
            'name': outcome.name,
            'participant_id': participant,
            'session_id': session or None,
            'status': 'evaluated' if case is not None else status,
            'reason': None if case is not None else ' | '.join(outcome.reasons),
            'reference': None if case is None else file_uri(case.reference, self.settings),
            'notes': ' | '.join([*facts.get('Doubts', []), *facts.get('Notes', [])]) or None,
        }

    def _read(self, done: Mapping[str, Case]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the tables of all participants below each other."""
        frames: dict[str, list[pd.DataFrame]] = {'agreement_metrics': [], 'reference_metrics': []}
        for name, case in done.items():
            for key, kept in frames.items():
                # Only n/a is missing: "none" is a site.
                frame = pd.read_csv(
                    self._path(case, key), sep='\t', na_values=['n/a'], keep_default_na=False
                )
                frame.insert(0, 'name', name)  # two sessions are two measurements
                kept.append(frame)
        maps, measured = (pd.concat(kept, ignore_index=True) for kept in frames.values())
        return maps, measured

    def _publish(
        self, task: Task, tables: Mapping[str, pd.DataFrame], done: Mapping[str, Case]
    ) -> None:
        sources = [
            file_uri(self._path(case, key), self.settings)
            for case in done.values()
            for key in ('agreement_metrics', 'reference_metrics')
        ]
        writers: dict[str, Writer] = {}
        for name, table in tables.items():
            path = self._tables[name]
            content = sidecar(
                f'evaluation_{name}',
                sources=sources,
                space=self.settings.processing.output_spaces[0],
                RandomSeed=self.settings.processing.random_seed,
            )
            writers[self._relative(sidecar_path(path))] = partial(write_json, content)
            writers[self._relative(path)] = partial(write_tsv, table)
        publish(task, writers)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.output_dir).as_posix()

    def _page_task(self, tables: Task) -> Task:
        """Return the page as a stage: what it shows, and where it lies."""
        return Task(
            'report',
            PAGE_VERSION,
            self.output_dir,
            evaluation_path(self.settings, 'evaluation_record', stage='report'),
            {
                'settings': self.settings.to_toml(self.shaping),
                'self_contained': self.settings.outputs.self_contained_reports,
            },
            requires=(tables,),
        )

    def _report(
        self, task: Task, done: Mapping[str, Case], people: Sequence[Mapping[str, Any]]
    ) -> None:
        from bids_perfdeficit.reports.evaluation import EvaluationReport, build_evaluation_page

        def build(common: Mapping[str, Any]) -> Path:
            return build_evaluation_page(
                EvaluationReport(
                    space=self.settings.processing.output_spaces[0],
                    pairs=tuple(case.pair for case in done.values()),
                    **common,
                )
            )

        self._publish_page(task, done, build)

    def _publish_page(
        self, task: Task, done: Mapping[str, Case], build: Callable[[Mapping[str, Any]], Path]
    ) -> None:
        """Draw a page anew and record it; `build` is given what all such pages need."""
        software: dict[str, str] = {}
        marks: dict[str, str] = {}
        for name, case in done.items():
            if case.state.record is not None:
                software |= dict(case.state.record.software)
                marks[name] = case.state.record.fingerprint
        withdraw(task)
        for path in self._figures.glob('*'):  # of a page that was not finished
            path.unlink()
        page = build({
            'output_dir': self.output_dir,
            'methods': self.methods(),
            'settings': self.settings.to_toml(self.shaping),
            'versions': software,
            'fingerprints': marks,
            'self_contained': self.settings.outputs.self_contained_reports,
        })  # fmt: skip
        made = [*sorted(self._figures.glob('*.svg')), page]
        publish(task, dict.fromkeys(map(self._relative, made), _keep_written))


def _keep_written(path: Any) -> None:
    """Keep a file that was written before it is recorded."""
