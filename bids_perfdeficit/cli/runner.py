"""One run, the same for both levels: find, plan, compute, judge, report.

What differs between the levels are the hooks of `Level`. Results are published by the steps
themselves (`stages.task`); a run decides what is stale, removes it, has it made again, and reports
what became of each unit. Must not know what a stage computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_perfdeficit.bids.files import remove_leftovers
from bids_perfdeficit.cli.logbook import (
    LOGGER,
    Logbook,
    Outcome,
    configure_nipype,
    set_threads,
)
from bids_perfdeficit.cli.parser import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, print_problems
from bids_perfdeficit.cli.resources import available_cores, resolve_device, share_threads
from bids_perfdeficit.errors import SURROUNDINGS, InputError, printable
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.stages.lock import Lock


@dataclass
class Unit:
    """What is planned, locked and judged as one: a pair of scans, or a group.

    Parameters
    ----------
    name : str
        For the user.
    lock : Path
        Held while the unit is worked on.
    folders : tuple of Path
        Where its results lie; what killed runs left there is removed.
    records : Path
        Folder of its records.
    content : object
        What the level knows it by.
    """

    name: str
    lock: Path
    folders: tuple[Path, ...]
    records: Path
    content: Any = None


@dataclass
class Work:
    """A workflow and the names of the units in its branches.

    Parameters
    ----------
    workflow : LiterateWorkflow
        Without a working folder.
    labels : mapping of str to str
        Unit by branch.
    fresh : tuple of str
        Branches whose working folders are emptied before the run.
    """

    workflow: Any
    labels: Mapping[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()


class Level(ABC):
    """What differs between the levels of analysis."""

    #: What the units are called in ``status.json``.
    units: str

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.output_dir = settings.inputs.output_dir.absolute()

    @abstractmethod
    def find(self) -> Sequence[str]:
        """Find the inputs and compare them with earlier results; write nothing.

        Returns
        -------
        sequence of str
            Problems, each of which costs a participant.

        Raises
        ------
        InputError
            When nothing can be run.
        """

    @abstractmethod
    def is_empty(self) -> bool:
        """Return whether nothing can be run."""

    @abstractmethod
    def describe(self) -> str:
        """Return the lines of a dry run."""

    @abstractmethod
    def methods(self) -> str:
        """Return the methods text."""

    @abstractmethod
    def begin(self, book: Logbook) -> None:
        """Write the files of the dataset, and note what is known before anything is computed."""

    @abstractmethod
    def batches(self) -> Iterator[list[Unit]]:
        """Yield the units that have something to do, as many as are worked on at a time."""

    @abstractmethod
    def plan(self, unit: Unit) -> str:
        """Plan a unit again, its lock being held, and remove what no longer holds.

        Returns
        -------
        str
            Why it cannot be run; empty otherwise.
        """

    @abstractmethod
    def workflow(self, units: Sequence[Unit], *, device: str, threads: int) -> Work | None:
        """Return what computes the units; None when nothing is to be computed."""

    @abstractmethod
    def judge(
        self, units: Sequence[Unit], book: Logbook, failed: Mapping[str, str]
    ) -> list[Outcome]:
        """Decide what became of the units and write their pages."""

    @abstractmethod
    def finish(self, book: Logbook) -> None:
        """Write what is about all units."""

    @abstractmethod
    def code(self, outcomes: Sequence[Outcome], book: Logbook) -> int:
        """Return the exit code."""

    def processes(self) -> int:
        """Return how many processes may run at once."""
        return self.settings.resources.nprocs or available_cores()

    def threads(self, processes: int, units: int) -> int:
        """Return the threads of one step: the cores that other units leave."""
        resources = self.settings.resources
        return resources.omp_nthreads or share_threads(processes, units, low_mem=resources.low_mem)


def run_level(level: Level) -> int:
    """Run a level from its inputs to the exit code.

    Raises
    ------
    InputError
        When nothing can be run.
    """
    settings = level.settings
    problems = level.find()
    if settings.outputs.dry_run:
        print(level.describe())
        if problems:
            print_problems(problems)
        return EXIT_OK if not problems else EXIT_USAGE if level.is_empty() else EXIT_SOME_FAILED
    if level.is_empty():
        print_problems(problems)
        return EXIT_USAGE
    if settings.outputs.boilerplate_only:
        print(level.methods())
        return EXIT_OK
    return _execute(level)


def _execute(level: Level) -> int:
    book = Logbook(level.settings, units=level.units)
    book.start()
    # Those of the dataset: two runs may be at work in it.
    for folder in (level.output_dir, level.output_dir / 'phenotype'):
        remove_leftovers(folder)
    level.begin(book)
    computed = False
    for units in level.batches():
        computed = True
        with ExitStack() as stack:
            _work(level, book, units, stack)
    if computed:
        from bids_perfdeficit.reports.citation import write_citation  # late: it imports Jinja

        write_citation(level.methods(), level.output_dir / 'logs')
    level.finish(book)
    outcomes = sorted(book.outcomes.values(), key=lambda outcome: outcome.name)
    code = level.code(outcomes, book)
    book.write_status(code)
    for outcome in outcomes:
        print(outcome.line)
    if not computed:
        print('everything is there already; nothing was done')
    counts = Counter(outcome.status for outcome in outcomes)
    judged = sum(counts[status] for status in ('complete', 'doubtful', 'failed'))
    doubtful = f', {counts["doubtful"]} doubtful' if counts['doubtful'] else ''
    print(f'{counts["complete"]} of {judged} complete{doubtful}; logs in {printable(book.folder)}')
    return code


def explain(error: Exception) -> str:
    """Return what is wrong with a unit's files, and what to do, as a sentence."""
    if isinstance(error, OSError):
        fix = SURROUNDINGS.get(error.errno or 0, 'make it readable and writable to you')
        return (
            f'{error.filename or "OUTPUT_DIR"}: {error.strerror or error}; '
            f'{fix}, and run the same command again.'
        )
    return str(error)


def _work(level: Level, book: Logbook, units: Sequence[Unit], stack: ExitStack) -> None:
    """Lock, plan, compute and judge a batch of units."""
    settings = level.settings
    failed: dict[str, str] = {}
    ready: list[Unit] = []
    for unit in units:
        try:
            stack.enter_context(Lock(unit.lock, unit.name))
            for folder in (*unit.folders, unit.records):
                remove_leftovers(folder, any_owner=True)
            reason = level.plan(unit)
        except (InputError, OSError) as error:
            # Another run answers for its results, or its folder cannot be written: no page, no
            # verdict, nothing removed.
            book.add(Outcome(unit.name, 'failed', [explain(error)]))
            continue
        if reason:
            failed[unit.name] = reason
        ready.append(unit)
    runnable = [unit for unit in ready if unit.name not in failed]
    if runnable:
        processes = level.processes()
        threads = level.threads(processes, len(runnable))
        set_threads(threads)
        device, choice = resolve_device(settings.processing.device)
        if choice:
            LOGGER.info(choice)
        configure_nipype(settings)
        work = level.workflow(runnable, device=device, threads=threads)
        if work is not None:
            book.run(work.workflow, nprocs=processes, labels=work.labels, fresh=work.fresh)
    book.add(*level.judge(ready, book, failed))
