"""What a run does when it is told to end, and when it is killed.

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

#: Seconds that a run has to unwind once it was told to end; clusters give about thirty.
GRACE_S = 10.0
#: From Linux' prctl.h: the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1

#: The signals that came.
_came: list[int] = []


class Terminated(BaseException):
    """The run was told to end, as clusters and container engines do before they kill."""


def heed() -> None:
    """Make SIGTERM and SIGINT end the run in order, and let no worker outlive it."""
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
        insist()
        raise AssertionError('unreachable')

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


def insist() -> None:
    """Raise again what a signal asked for; Nipype takes it for the failure of a step.

    Raises
    ------
    KeyboardInterrupt, Terminated
        When SIGINT or SIGTERM came.
    """
    if _came:
        raise KeyboardInterrupt if _came[-1] == signal.SIGINT else Terminated


def tell(number: int) -> None:
    """Print the last line of a run that was told to end."""
    word = 'interrupted' if number == signal.SIGINT else 'terminated'
    print(
        f'bids_perfdeficit: {word}; run the same command again to go on',
        file=sys.stderr,
        flush=True,
    )


def end_workers() -> None:
    """Kill the processes that this one started."""
    import psutil

    # The pool tells of every process that it loses, and would have the last word.
    logging.getLogger('concurrent.futures').disabled = True
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _leave(number: int) -> None:
    tell(number)
    os._exit(128 + number)
