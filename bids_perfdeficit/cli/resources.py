"""What this process may use: cores, memory and GPU, within the limits of container or job."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_CGROUP = Path('/sys/fs/cgroup')


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Return how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    limit = _read(cgroup / 'cpu.max').split()
    if len(limit) == 2 and limit[0].isdigit():
        cores = min(cores or 1, max(1, int(limit[0]) // int(limit[1])))
    return max(1, cores or 1)


def available_memory_gb(cgroup: Path = _CGROUP) -> float:
    """Return how much memory this process may use, in GB (1e9 bytes)."""
    limits = [psutil.virtual_memory().total]
    for name in ('memory.max', 'memory/memory.limit_in_bytes'):  # control groups 2 and 1
        text = _read(cgroup / name)
        if text.isdigit():
            limits.append(int(text))
    return min(limits) / 1e9


def share_threads(nprocs: int, participants: int, *, low_mem: bool = False) -> int:
    """Return the threads of one step: cores are given to participants first, then to steps."""
    if low_mem or participants <= 1:
        return max(1, min(nprocs, 8))  # registration gains little from more
    return max(1, min(nprocs // participants, 8))


def resolve_device(device: str) -> tuple[str, str | None]:
    """Return the torch device and, when it was a choice, a sentence about it."""
    if device == 'cpu':
        return 'cpu', None
    import torch

    if device == 'auto':
        if torch.cuda.is_available():
            return 'cuda:0', f'--device auto: computing on {torch.cuda.get_device_name(0)}'
        return 'cpu', '--device auto: no GPU was found, computing on the CPU'
    return device, None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding='ascii').strip()
    except OSError:
        return ''
