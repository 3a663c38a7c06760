"""What a run does when a signal asks it to end, and when it is killed.

Must not import anything that takes time.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

#: Seconds that a run has to unwind once it was asked to end; clusters give about thirty.
GRACE_S = 10.0
#: From Linux' prctl.h: the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1

#: The signals that came.
_came: list[int] = []


class Terminated(BaseException):
    """SIGTERM or SIGHUP asked the run to end: clusters, containers and closed terminals."""


def install_signal_handlers() -> None:
    """Make SIGTERM, SIGHUP and SIGINT end the run in order, and let no worker outlive it."""
    if threading.current_thread() is not threading.main_thread():
        return
    run = os.getpid()

    def end(number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() != run:  # a worker, which has this handler from the run
            os._exit(128 + number)
        _came.append(number)
        # At once: what unwinds after this may wait for their work.
        end_workers()
        # Raised in a destructor or a callback of C code it would be lost.
        last_resort = threading.Timer(GRACE_S, _leave, [number])
        last_resort.daemon = True
        last_resort.start()
        reraise_signal()
        raise AssertionError('unreachable')

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        # A run under nohup goes on when the terminal is closed.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    if sys.platform == 'linux':
        # A run that is killed outright cannot end its workers, which would wait for ever.
        libc = ctypes.CDLL(None)

        def in_worker() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
            # Where memory runs out, Linux should kill a step, and not the run, which reports it.
            with contextlib.suppress(OSError):
                Path('/proc/self/oom_score_adj').write_text('500')

        os.register_at_fork(after_in_child=in_worker)


def last_signal() -> int:
    """Return the signal that came last, SIGTERM when none came."""
    return _came[-1] if _came else signal.SIGTERM


def reraise_signal() -> None:
    """Raise again what a signal asked for; Nipype takes it for the failure of a step.

    Raises
    ------
    KeyboardInterrupt, Terminated
        When SIGINT, or SIGTERM or SIGHUP, came.
    """
    if _came:
        raise KeyboardInterrupt if _came[-1] == signal.SIGINT else Terminated


def print_end(number: int) -> None:
    """Print the last line of a run that a signal ended."""
    word = 'interrupted' if number == signal.SIGINT else 'terminated'
    print(
        f'bids_perfdeficit: {word}; run the same command again to go on',
        file=sys.stderr,
        flush=True,
    )


def end_workers() -> None:
    """Kill the processes that this one started."""
    import psutil

    # The pool logs every process that it loses, after the last line of the run.
    logging.getLogger('concurrent.futures').disabled = True
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _leave(number: int) -> None:
    print_end(number)
    os._exit(128 + number)
