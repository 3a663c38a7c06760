"""One stage of one unit of work: what shapes it, whether it is done, and how its results are kept.

A unit is a pair of scans, a cohort, or a model of a cohort. A task is planned from the options
and the files as they are now; `examine` compares it with the record of an earlier run; `publish`
writes new results and their record; `withdraw` removes results that no longer hold. The caller
that publishes or withdraws holds the lock of the unit (`lock.py`). Must not know what a stage
computes, nor Nipype.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_perfdeficit import __version__
from bids_perfdeficit.bids.files import write_json
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.stages.lock import Holder
from bids_perfdeficit.stages.record import (
    Input,
    Output,
    Record,
    Stamp,
    digest,
    plain,
    remove_files,
    software,
)

#: Ending of the note that lists the files of a stage while they are being replaced.
PENDING = '.pending'

Writer = Callable[[Path], object]


@dataclass(frozen=True)
class Task:
    """One stage of one unit of work.

    Parameters
    ----------
    stage : str
        Name.
    version : int
        Of the stage; raised whenever its results change.
    root : Path
        The dataset that results are written to.
    record : Path
        Where the record lies.
    options : mapping
        All options that shape the results.
    inputs : mapping of str to Path
        Files from outside this dataset's stages, by BIDS URI.
    requires : tuple of Task
        Stages whose results are read.
    outputs : tuple of str, optional
        The files that the stage leaves, relative to `root`, where they are known beforehand.
    app : str
        Version of the program.
    """

    stage: str
    version: int
    root: Path
    record: Path
    options: Mapping[str, Any]
    inputs: Mapping[str, Path] = field(default_factory=dict)
    requires: tuple[Task, ...] = ()
    outputs: tuple[str, ...] | None = None
    app: str = __version__

    @property
    def pending(self) -> Path:
        """Where the files are listed while they are being replaced."""
        return self.record.with_name(self.record.name + PENDING)

    @property
    def work_key(self) -> str:
        """Digest of all that shapes the results, of inputs by their stamps; names a folder."""
        stamps = {name: str(Stamp.of(path)) for name, path in self.inputs.items()}
        return digest(
            self.app, self.stage, self.version, self.options, stamps,
            [task.work_key for task in self.requires],
        )  # fmt: skip


@dataclass(frozen=True)
class State:
    """How a task stands.

    Parameters
    ----------
    done : bool
        Whether its results are there and hold.
    reason : str
        Why not, in a few words.
    record : Record, optional
        That of the results, when they hold; its stamps are those of now.
    refreshed : bool
        Whether stamps in the record on disk are older than those in `record`.
    """

    done: bool
    reason: str = ''
    record: Record | None = None
    refreshed: bool = False


def examine(task: Task, *, verify: bool = False, known: dict[Path, State] | None = None) -> State:
    """Compare a task with the record that an earlier run left.

    Parameters
    ----------
    task : Task
        As it would run now.
    verify : bool
        Hash every input and output, rather than relying on sizes and times.
    known : dict, optional
        States by record, which are used and added to; tasks share the stages before them.

    Returns
    -------
    State
        Done when version, options, inputs, the stages before it and outputs all agree.
    """
    known = {} if known is None else known
    if task.record not in known:
        known[task.record] = _examine(task, verify, known)
    return known[task.record]


def _examine(task: Task, verify: bool, known: dict[Path, State]) -> State:
    before = {one.stage: examine(one, verify=verify, known=known) for one in task.requires}
    record = Record.read(task.record)
    if record is None:
        return State(False, 'not made yet')
    if task.pending.exists():
        return State(False, 'interrupted')
    if (record.app, record.version) != (task.app, task.version) or record.stage != task.stage:
        return State(False, 'made by another version')
    options = plain(task.options)
    if record.options != options:
        return State(False, _changed(record.options, options))
    for name, state in before.items():
        if not state.done:
            return State(False, f'{name} is made again')
        assert state.record is not None
        if record.requires.get(name) != state.record.fingerprint:
            return State(False, f'{name} has changed')
    if set(record.requires) != set(before):
        return State(False, 'made from other stages')
    return _compare_files(task, record, verify)


def _compare_files(task: Task, record: Record, verify: bool) -> State:
    if set(record.inputs) != set(task.inputs):
        gone = sorted(set(record.inputs) ^ set(task.inputs))
        return State(False, f'made from other files ({_few(gone)})')
    inputs = {}
    for name, path in task.inputs.items():
        same = record.inputs[name].agrees(path, verify=verify)
        if same is None:
            return State(False, f'{name} has changed')
        inputs[name] = same
    if task.outputs is not None and set(task.outputs) != set(record.outputs):
        return State(False, 'leaves other files now')
    for name, output in record.outputs.items():
        if not output.agrees(task.root / name, verify=verify):
            return State(False, f'{name} is missing or damaged')
    refreshed = inputs != dict(record.inputs)
    return State(True, record=record.with_inputs(inputs), refreshed=refreshed)


def publish(
    task: Task,
    writers: Mapping[str, Writer],
    *,
    seen: Mapping[str, Stamp | None] | None = None,
    holder: Holder | None = None,
) -> Record:
    """Write the results of a task, and their record after all of them.

    A run that is killed at any point leaves either the record of the results that are there, or a
    list of the files that `recover` removes.

    Parameters
    ----------
    task : Task
        Whose results.
    writers : mapping of str to callable
        By path relative to the dataset, in the order of writing: each is called with the absolute
        path and writes the file in one step.
    seen : mapping of str to Stamp, optional
        Stamps of the inputs when the computation was planned.
    holder : Holder, optional
        The run that planned it, which must hold the lock of the unit still.

    Returns
    -------
    Record
        As it was written.

    Raises
    ------
    InputError
        When an input changed while the results were computed, a stage that is required has no
        record, or another run has taken the lock.
    """
    inputs = {
        name: _read_input(path, (seen or {}).get(name)) for name, path in task.inputs.items()
    }
    requires = {}
    for one in task.requires:
        before = Record.read(one.record)
        if before is None:
            raise InputError(
                f'the results of {one.stage}, which {task.stage} is made from, have no record',
                fix='run the same command again',
                path=one.record,
            )
        requires[one.stage] = before.fingerprint
    old = _listed(task)
    if holder is not None:
        holder.check()
    write_json({'Outputs': sorted({*old, *writers})}, task.pending)
    task.record.unlink(missing_ok=True)
    outputs = {}
    for name, write in writers.items():
        write(task.root / name)
        outputs[name] = Output.of(task.root / name)
    remove_files(task.root, sorted(old - set(writers)))
    record = Record(
        task.app,
        task.stage,
        task.version,
        plain(task.options),
        requires,
        inputs,
        outputs,
        software(),
    )
    record.write(task.record)
    task.pending.unlink(missing_ok=True)
    return record


def withdraw(task: Task) -> None:
    """Remove the results of a task that no longer hold, its record first."""
    names = _listed(task) | set(task.outputs or ())
    present = [name for name in names if (task.root / name).exists()]
    if not present and not task.record.exists() and not task.pending.exists():
        return
    write_json({'Outputs': sorted(names)}, task.pending)
    task.record.unlink(missing_ok=True)
    remove_files(task.root, sorted(names))
    task.pending.unlink(missing_ok=True)


def recover(root: Path, folder: Path) -> None:
    """Finish what a killed run began in a folder of records: remove files without a record.

    Parameters
    ----------
    root : Path
        The dataset.
    folder : Path
        Where its records lie.
    """
    for pending in sorted(folder.glob(f'*{PENDING}')):
        record = Record.read(pending.with_name(pending.name.removesuffix(PENDING)))
        kept = set() if record is None else set(record.outputs)
        remove_files(root, sorted(_read_pending(pending) - kept))
        pending.unlink(missing_ok=True)


def refresh(task: Task, state: State) -> None:
    """Write newer stamps of unchanged inputs, so that they are not hashed again."""
    if state.done and state.refreshed and state.record is not None:
        state.record.write(task.record)


def stray_records(folder: Path, tasks: Iterable[Task]) -> list[Path]:
    """Return the records in a folder that belong to none of the tasks."""
    known = {task.record for task in tasks}
    return [path for path in sorted(folder.glob('*_record.json')) if path not in known]


def find_unlisted(root: Path, folder: Path, files: Iterable[Path]) -> list[Path]:
    """Return the files that no record in a folder lists.

    Parameters
    ----------
    root : Path
        The dataset.
    folder : Path
        Where its records lie.
    files : iterable of Path
        Below `root`, named as results are. Whether those without a record still hold cannot be
        known: their record is lost.

    Returns
    -------
    list of Path
        In order.
    """
    listed: set[str] = set()
    for path in folder.glob('*_record.json'):
        record = Record.read(path)
        listed |= set() if record is None else set(record.outputs)
    for path in folder.glob(f'*{PENDING}'):
        listed |= _read_pending(path)
    return sorted(path for path in files if path.relative_to(root).as_posix() not in listed)


def _listed(task: Task) -> set[str]:
    """Return the files that an earlier run left or began to leave."""
    record = Record.read(task.record)
    return (set() if record is None else set(record.outputs)) | _read_pending(task.pending)


def _read_pending(path: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(path.read_text(encoding='utf-8'))['Outputs']}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _read_input(path: Path, seen: Stamp | None) -> Input:
    try:
        found = Input.of(path)
    except OSError as error:
        raise InputError(
            f'cannot be read any more ({error.strerror or error})',
            fix='keep the input as it is during the run, and run again',
            path=path,
        ) from error
    if seen is not None and found.stamp != seen:
        raise InputError(
            'was changed during the run',
            fix='keep the input as it is during the run, and run again',
            path=path,
        )
    return found


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    return f'other options ({_few(names)})'


def _few(names: list[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
