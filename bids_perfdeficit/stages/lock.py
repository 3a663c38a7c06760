"""One run at a time works on a unit of work or in a working folder.

The kernel holds the lock and releases it when its owner ends, however it ends; the file
names the owner for people. Where a file system has no locks, the owner is looked for among the
processes of this machine instead. Must not know what is locked.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bids_perfdeficit.bids.files import process_start
from bids_perfdeficit.errors import InputError

#: s; workers of a run that was killed end within this time.
PATIENCE_S = 3.0
#: What file systems without locks answer.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
#: Locks that this process holds, and what their files say. The kernel grants a process its own
#: lock twice, and takes it away when the process closes the file after only reading it.
_held: dict[str, dict[str, Any]] = {}


class Busy(InputError):
    """Another run holds the lock."""


@dataclass(frozen=True)
class Holder:
    """The run that holds a lock, for those of its steps that are jobs of their own.

    Such jobs outlive a run that is killed. They may finish what they do until another run takes
    the lock; then no process owns what they would write.

    Parameters
    ----------
    path : Path
        The lock file.
    owner : mapping
        What it says while this run holds it.
    """

    path: Path
    owner: Mapping[str, Any]

    @classmethod
    def current(cls, path: Path) -> Holder | None:
        """Return this process as the holder, None if it does not hold the lock."""
        return cls(path, _held[str(path)]) if str(path) in _held else None

    def check(self) -> None:
        """See that no other run has taken the lock.

        Raises
        ------
        Busy
            When the run has ended or been replaced by another.
        """
        own = self.owner.get('process') == os.getpid() and str(self.path) in _held
        if (_held[str(self.path)] if own else _read(self.path)) != self.owner:
            raise Busy(
                f'the run that asked for these results ({_describe(dict(self.owner))}) has ended, '
                'and they were not written',
                fix='run the same command again',
                path=self.path,
            )


class Lock:
    """A lock on a file, held from `acquire` to `release` or the end of the process.

    Parameters
    ----------
    path : Path
        The lock file. Its folder is created.
    what : str
        What is locked, for the message: ``'sub-01'``.
    patience : float
        s to wait for an owner that ends.
    """

    def __init__(self, path: Path, what: str, *, patience: float = PATIENCE_S) -> None:
        self.path, self.what, self.patience = path, what, patience
        self._stream: IO[str] | None = None

    def acquire(self) -> Lock:
        """Take the lock.

        Raises
        ------
        Busy
            When another run holds it; the message names host, process and start.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + self.patience
        while not self._try():
            if time.monotonic() > until:
                raise Busy(
                    f'another run works on {self.what} ({_describe(_read(self.path))})',
                    fix='wait until it has ended, or end it; a lock whose owner is gone is '
                    'released by itself',
                    path=self.path,
                )
            time.sleep(0.1)
        return self

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._stream is None:
            return
        self.path.unlink(missing_ok=True)  # while it is held, so that no other owner loses his
        self._stream.close()
        self._stream = None
        _held.pop(str(self.path), None)

    def __enter__(self) -> Lock:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _try(self) -> bool:
        if str(self.path) in _held:
            return False
        stream = self.path.open('a+', encoding='utf-8')
        try:
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS or _alive(_read(self.path)):
                    stream.close()
                    return False
            # The owner before may have removed the file between opening and locking.
            if not os.path.exists(self.path) or not os.path.samestat(
                os.fstat(stream.fileno()), os.stat(self.path)
            ):
                stream.close()
                return False
            stream.truncate(0)
            owner = _owner()
            json.dump(owner, stream)
            stream.flush()
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        _held[str(self.path)] = owner
        return True


def _owner() -> dict[str, Any]:
    return {
        'host': socket.gethostname(),
        'process': os.getpid(),
        'started': process_start(os.getpid()),
        'since': datetime.now(UTC).isoformat(timespec='seconds'),
    }


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(content, dict):
            return content
    return {}


def _alive(owner: dict[str, Any]) -> bool:
    """Return whether a process still exists; on other machines this is not known: True."""
    if not owner:
        return False
    if owner.get('host') != socket.gethostname():
        return True
    number = owner.get('process')
    return isinstance(number, int) and process_start(number) == owner.get('started')


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return 'whose process is not known'
    return f'process {owner.get("process")} on {owner.get("host")}, since {owner.get("since")}'
