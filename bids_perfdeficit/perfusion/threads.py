"""Independent pieces of work on several threads of one process.

A piece is computed on one thread from its beginning to its end: torch rounds vectorised functions
differently at the ends of each thread's share, and sums of BLAS depend on the number of threads,
so that a map would depend on the cores of the machine. With whole pieces it does not. Must not
know what the pieces compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar('T')
A = TypeVar('A')
B = TypeVar('B')


def run_all(pieces: Iterable[Callable[[], T]], threads: int = 1) -> list[T]:
    """Call functions without arguments, and return their results in order.

    Parameters
    ----------
    pieces : iterable of callable
        Independent of each other, in code that releases Python's lock: torch, numpy, scipy, or
        numba with ``nogil``. A piece may call this function again: its own pieces run on threads
        of their own, while it waits for them.
    threads : int
        How many run at once. One thread calls them in order, without starting any.

    Returns
    -------
    list
        The same for any number of threads.
    """
    pieces = list(pieces)
    if threads < 2 or len(pieces) < 2:
        return [piece() for piece in pieces]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return [future.result() for future in [pool.submit(piece) for piece in pieces]]


def run_both(one: Callable[[], A], other: Callable[[], B], threads: int = 1) -> tuple[A, B]:
    """Call two functions whose results are of different types, as `run_all` does."""
    return tuple(run_all([one, other], threads))  # type: ignore[return-value]
