"""The level calibrate: from pairs of scans and references to a site's own calibration.

Finds, plans, draws and judges as the level evaluate does; the refit to all participants follows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import sidecar, sidecar_path, write_json, write_tsv
from bids_perfdeficit.bids.files import remove_leftovers
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.cli.evaluate import EvaluateLevel
from bids_perfdeficit.cli.logbook import LOGGER, Logbook, Outcome
from bids_perfdeficit.cli.parser import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE
from bids_perfdeficit.cli.runner import explain
from bids_perfdeficit.errors import InputError, printable
from bids_perfdeficit.perfusion.refit import LEAST_PAIRS
from bids_perfdeficit.stages.lock import Lock
from bids_perfdeficit.stages.record import software
from bids_perfdeficit.stages.task import Task, Writer, examine, publish, recover, withdraw
from bids_perfdeficit.workflows.evaluation_plan import (
    CALIBRATION,
    VERSIONS,
    Case,
    evaluation_path,
    make_evaluation_plan,
)
from bids_perfdeficit.workflows.plan import file_uri

#: Version of the page: raised when its content changes while nothing that it shows does.
PAGE_VERSION = 1
#: What the lock of the refit is called, and its outcome.
_NAME, _REFIT = 'the calibration', 'calibration'
#: Keys of what the refit leaves at most; a page follows.
_TABLES = ('participants', 'metrics')


class CalibrateLevel(EvaluateLevel):
    """From scans and references to a calibration file, tables and a page."""

    units = 'calibrations'
    use = CALIBRATION
    shaping = ('processing', 'perfusion', 'evaluation')

    def find(self) -> Sequence[str]:
        self._plan = make_evaluation_plan(self.settings, self.use)
        self.cases = dict(self._plan.cases)
        usable = [case for case in self.cases.values() if not case.refusal]
        if len(usable) < LEAST_PAIRS:
            why = {n: case.refusal for n, case in self.cases.items() if case.refusal}
            known = {**why, **self._plan.unusable, **self._plan.left_out}
            reasons = '; '.join(f'{name}: {reason}' for name, reason in list(known.items())[:3])
            raise InputError(
                f'{len(usable)} participants have both maps and a reference, and a calibration '
                f'needs at least {LEAST_PAIRS}' + (f' ({reasons})' if reasons else ''),
                fix='add participants, or give --reference with a pattern whose files name them',
            )
        return self._plan.problems

    def methods(self) -> str:
        from bids_perfdeficit.workflows.calibration import METHODS

        return METHODS

    def _init_branch(self) -> Callable[..., Any]:
        from bids_perfdeficit.workflows.calibration import init_sample_wf

        return init_sample_wf

    def finish(self, book: Logbook) -> None:
        from bids_perfdeficit.reports.cohort import build_index

        lock = evaluation_path(self.settings, 'calibration_lock')
        try:
            with Lock(lock, _NAME):
                for folder in (lock.parent, self._tables['participants'].parent, self._figures):
                    remove_leftovers(folder, any_owner=True)
                recover(self.output_dir, lock.parent)
                book.add(self._refit(book))
            build_index(self.output_dir, {})  # it leads to the page
        except (InputError, OSError) as error:
            book.add(Outcome(_REFIT, 'failed', [explain(error)]))
        except Exception as error:
            LOGGER.exception('the calibration could not be made')
            book.add(Outcome(_REFIT, 'failed', [f'{error}; see run.log']))

    def code(self, outcomes: Sequence[Outcome], book: Logbook) -> int:
        failed = [outcome.name for outcome in outcomes if outcome.status == 'failed']
        if _REFIT in failed and len(self._used(book)) < LEAST_PAIRS:
            return EXIT_USAGE
        return EXIT_SOME_FAILED if failed else EXIT_OK

    @property
    def _tables(self) -> dict[str, Path]:
        return {name: evaluation_path(self.settings, f'calibration_{name}') for name in _TABLES}

    @property
    def _figures(self) -> Path:
        return evaluation_path(self.settings, 'calibration_figure', figure='x').parent

    @property
    def _file(self) -> Path:
        return evaluation_path(self.settings, 'calibration_file')

    def _used(self, book: Logbook) -> dict[str, Case]:
        """Return the participants of the refit: doubtful references only where asked for."""
        wanted = {'complete', 'doubtful'} if self.settings.group.include_doubtful else {'complete'}
        return {
            name: case
            for name, case in self.cases.items()
            if case.state.done and name in book.outcomes and book.outcomes[name].status in wanted
        }

    def _refit(self, book: Logbook) -> Outcome:
        """Refit, and write tables, file and page, unless they hold; return what became of it."""
        used = self._used(book)
        people = [self._person(outcome, used) for outcome in self._participants(book)]
        task = self._refit_task(used, people)
        page = self._page_task(task)
        if len(used) < LEAST_PAIRS:
            for gone in () if self.settings.outputs.reports_only else (page, task):
                withdraw(gone)
            return Outcome(
                _REFIT,
                'failed',
                [
                    f'{len(used)} participants could be used, and at least {LEAST_PAIRS} are '
                    'needed; correct the references that are named, or add participants.'
                ],
            )
        if not examine(task).done:
            if self.settings.outputs.reports_only:
                return Outcome(_REFIT, 'failed', ['is not made yet; run without --reports-only.'])
            withdraw(page)
            withdraw(task)
            self._write(task, used, people)
        if self.settings.outputs.reports_only or not examine(page).done:
            self._report_refit(page, used)
        return Outcome(_REFIT, 'complete', [self._said()])

    def _said(self) -> str:
        """Return what a user does with the result."""
        facts = read_facts(sidecar_path(self._tables['metrics']))
        if not self._file.is_file():
            reasons = '; '.join(map(str, facts.get('Reasons', {}).values()))
            return (
                'no file was written, because nothing got better when each participant was left '
                f'out ({reasons}); go on with the calibration that is shipped'
            )
        parts = facts.get('Reasons', {})
        taken = '; '.join(str(parts.get(part)) for part in facts.get('Refitted', []))
        return f'{taken}; use it with --calibration {printable(self._file)}'

    def _refit_task(self, used: Mapping[str, Case], people: Sequence[Mapping[str, Any]]) -> Task:
        return Task(
            'refit',
            VERSIONS['calibration'],
            self.output_dir,
            evaluation_path(self.settings, 'calibration_record', stage='refit'),
            {'people': list(people)},
            requires=tuple(case.task for case in used.values()),
        )

    def _person(self, outcome: Outcome, done: Mapping[str, Case]) -> dict[str, Any]:
        person = super()._person(outcome, done)
        if person['status'] == 'evaluated':
            person['status'] = 'used'
        elif outcome.status == 'doubtful':
            said = ' | '.join(outcome.reasons)
            person['reason'] = f'{said} (--include-doubtful uses it)'
        return person

    def _write(
        self, task: Task, used: Mapping[str, Case], people: Sequence[Mapping[str, Any]]
    ) -> None:
        from bids_perfdeficit import pipeline

        key = self.use.left[-1]
        samples = {
            name: pipeline.Sample.load(self._path(case, key)) for name, case in used.items()
        }
        with pipeline.one_thread():
            found = pipeline.refit_pairs(samples, space=self.settings.processing.output_spaces[0])
        compared = pipeline.compare_calibrations(found)
        table = (
            pd.DataFrame(people)
            .merge(pd.DataFrame(found.pairs), how='left', on='name')
            .drop(columns='name')
        )
        table['notes'] = table.pop('notes')
        sources = [file_uri(self._path(case, key), self.settings) for case in used.values()]
        common: dict[str, Any] = {
            'sources': sources,
            'RandomSeed': self.settings.processing.random_seed,
            'Refitted': [part for part, taken in found.taken.items() if taken],
            'Reasons': dict(found.reasons),
        }
        writers: dict[str, Writer] = {}
        for name, frame in (('participants', table), ('metrics', compared)):
            path = self._tables[name]
            writers[self._relative(sidecar_path(path))] = partial(
                write_json, sidecar(f'calibration_{name}', **common)
            )
            writers[self._relative(path)] = partial(write_tsv, frame)
        if found.is_better:
            content = pipeline.calibration_content(found, self._provenance(used), compared)
            writers[self._relative(self._file)] = partial(write_json, content)
        publish(task, writers)

    def _provenance(self, used: Mapping[str, Case]) -> dict[str, Any]:
        """Return what the calibration was made from, and by what."""
        participants = []
        for name, case in used.items():
            assert case.state.record is not None
            inputs = case.state.record.inputs
            uri = file_uri(case.reference, self.settings)
            participants.append({
                'Participant': name,
                'Reference': uri,
                'ReferenceSHA256': inputs[uri].sha256,
                'SamplesFingerprint': case.state.record.fingerprint,
            })  # fmt: skip
        return {
            'GeneratedBy': {'Name': 'bids_perfdeficit', 'Version': __version__},
            'Software': software(),
            'RandomSeed': self.settings.processing.random_seed,
            'Space': self.settings.processing.output_spaces[0],
            'PerfusionSettings': dataclasses.asdict(self.settings.perfusion),
            'N': len(used),
            'Participants': participants,
        }

    def _page_task(self, tables: Task) -> Task:
        return Task(
            'report',
            PAGE_VERSION,
            self.output_dir,
            evaluation_path(self.settings, 'calibration_record', stage='report'),
            {
                'settings': self.settings.to_toml(self.shaping),
                'self_contained': self.settings.outputs.self_contained_reports,
            },
            requires=(tables,),
        )

    def _report_refit(self, task: Task, used: Mapping[str, Case]) -> None:
        from bids_perfdeficit.reports.calibration import build_calibration_page
        from bids_perfdeficit.reports.comparison import ComparisonReport

        self._publish_page(
            task, used, lambda common: build_calibration_page(ComparisonReport(**common))
        )
