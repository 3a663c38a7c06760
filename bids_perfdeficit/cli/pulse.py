"""A line at least every 20 s while something long runs, so that no run looks like a hang.

Must not know what runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: s after which a run that has said nothing says that it is at work.
SILENCE_S = 15.0


class Pulse:
    """Says what is at work when nothing else has been said for a while.

    Parameters
    ----------
    say : callable
        Called, from a thread of its own, with a line.
    state : callable
        Returns the line, empty when there is nothing to say.
    silence : float
        s without a word after which the line is said.
    """

    def __init__(
        self,
        say: Callable[[str], object],
        state: Callable[[], str],
        silence: float = SILENCE_S,
    ) -> None:
        self._say, self._state, self._silence = say, state, silence
        self._spoken = time.monotonic()

    def note(self) -> None:
        """Note that something else was said."""
        self._spoken = time.monotonic()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Speak when needed until the block ends."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._silence / 10):
                if time.monotonic() - self._spoken >= self._silence:
                    line = self._state()
                    self.note()
                    if line:
                        self._say(line)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
