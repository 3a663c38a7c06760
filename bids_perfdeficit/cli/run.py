"""The run: from the command line to an exit code that tells the truth."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bids_perfdeficit.cli.parser import (
    EXIT_INTERNAL,
    EXIT_USAGE,
    UsageError,
    parse_settings,
    print_problems,
)
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.settings import AnalysisLevel

#: What a run cannot mend and its user can: no defect of ours, so no trace back and no code 70.
_SURROUNDINGS = {
    errno.ENOSPC: 'free some space',
    errno.EDQUOT: 'free some space within your quota',
    errno.EROFS: 'bind it read-write or give another folder',
    errno.EACCES: 'make it readable and writable to you',
    errno.EPERM: 'make it readable and writable to you',
}
#: From Linux' prctl.h: the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


#: Seconds that a run has to unwind once it was told to end; clusters give about thirty.
GRACE_S = 10.0


class Terminated(BaseException):
    """The run was told to end, as clusters and container engines do before they kill."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app and return its exit code."""
    try:
        _heed_signals()
        settings = _absolute(parse_settings(argv))
        # Late: what follows imports pybids, Nipype and more, which takes seconds.
        if settings.inputs.analysis_level is AnalysisLevel.GROUP:
            from bids_perfdeficit.cli.group import run_group

            return run_group(settings)
        from bids_perfdeficit.cli.participant import run_participants

        return run_participants(settings)
    except UsageError as error:
        print_problems(error.problems)
        return EXIT_USAGE
    except InputError as error:
        print_problems([str(error)])
        return EXIT_USAGE
    except (KeyboardInterrupt, Terminated) as error:
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        _tell_end(number)
        return 128 + number
    except OSError as error:
        if error.errno not in _SURROUNDINGS:
            return _internal(error)
        _end_workers()
        print(
            f'bids_perfdeficit: {error.strerror}: {error.filename or "OUTPUT_DIR"}; '
            f'{_SURROUNDINGS[error.errno]} and run the same command again to go on',
            file=sys.stderr,
        )
        return EXIT_USAGE
    except Exception as error:
        return _internal(error)


def _absolute(table: Any) -> Any:
    """Return settings with their paths made absolute: steps run in folders of their own."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if isinstance(value, Path):
            values[field.name] = value.absolute()
        elif isinstance(value, tuple) and any(isinstance(item, Path) for item in value):
            values[field.name] = tuple(item.absolute() for item in value)
        elif dataclasses.is_dataclass(value):
            values[field.name] = _absolute(value)
    return dataclasses.replace(table, **values)


def _internal(error: Exception) -> int:
    traceback.print_exception(error)
    print(
        f'bids_perfdeficit: internal error ({type(error).__name__}: {error}); '
        'please report it with the lines above',
        file=sys.stderr,
    )
    return EXIT_INTERNAL


def _heed_signals() -> None:
    """Make SIGTERM and SIGINT end the run in order, and let no worker outlive it."""
    if threading.current_thread() is not threading.main_thread():
        return
    run = os.getpid()

    def end(number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() != run:  # a worker, which has this handler from the run
            os._exit(128 + number)
        # At once: what unwinds after this may wait for their work.
        _end_workers()
        # Raised in a destructor or a callback of C code it would be lost.
        last_resort = threading.Timer(GRACE_S, _leave, [number])
        last_resort.daemon = True
        last_resort.start()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if sys.platform == 'linux':
        # A run that is killed outright cannot end its workers, which would wait for ever.
        libc = ctypes.CDLL(None)

        def in_worker() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
            # Where memory runs out, Linux shall take a step and leave the run to tell of it.
            with contextlib.suppress(OSError):
                Path('/proc/self/oom_score_adj').write_text('500')

        os.register_at_fork(after_in_child=in_worker)


def _tell_end(number: int) -> None:
    word = 'interrupted' if number == signal.SIGINT else 'terminated'
    print(
        f'bids_perfdeficit: {word}; run the same command again to go on',
        file=sys.stderr,
        flush=True,
    )


def _leave(number: int) -> None:
    _tell_end(number)
    os._exit(128 + number)


def _end_workers() -> None:
    """Kill the processes that this one started."""
    import psutil

    # The pool tells of every process that it loses, and would have the last word.
    logging.getLogger('concurrent.futures').disabled = True
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


if __name__ == '__main__':
    sys.exit(main())
