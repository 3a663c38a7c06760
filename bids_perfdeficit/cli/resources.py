"""What this process may use: cores, memory and GPU, within the limits of container or job."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

#: Peak memory of a participant, GB, and seconds on two quiet cores (`benchmarks/participant.py`):
#: of the 1 mm grid, on which most is computed, and of reading a scan, for each voxel as stored.
GRID_GB, READING_GB = 2.1, 16e-9
GRID_S, READING_S = 35.0, 0.2e-6

_CGROUP = Path('/sys/fs/cgroup')
_OWN = Path('/proc/self/cgroup')
#: One of them is there where Linux has a GPU that torch can use: NVIDIA's, in Windows, AMD's.
_GPUS = (Path('/dev/nvidiactl'), Path('/dev/dxg'), Path('/dev/kfd'))


def available_cores(cgroup: Path = _CGROUP, own: Path = _OWN) -> int:
    """Return how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    limits = [cores or 1]
    for folder in _groups(cgroup, own, 'cpu'):
        quota = _read(folder / 'cpu.max').split()  # control groups 2
        quota = quota or [_read(folder / f'cpu.cfs_{n}_us') for n in ('quota', 'period')]  # and 1
        if len(quota) == 2 and all(part.isdigit() for part in quota):
            limits.append(int(quota[0]) // int(quota[1]))
    return max(1, min(limits))


def available_memory_gb(
    cgroup: Path = _CGROUP, own: Path = _OWN, environ: Mapping[str, str] = os.environ
) -> float:
    """Return how much memory this process may use, in GB (1e9 bytes).

    That is the least of what the machine has, what any control group around this process allows,
    and what SLURM was asked for: not every cluster enforces that by control groups, and one that
    looks now and then kills just the same.
    """
    limits = [psutil.virtual_memory().total]
    for folder in _groups(cgroup, own, 'memory'):
        for name in ('memory.max', 'memory.limit_in_bytes'):  # control groups 2 and 1
            text = _read(folder / name)
            if text.isdigit():
                limits.append(int(text))
    per_cpu, cpus = environ.get('SLURM_MEM_PER_CPU', ''), environ.get('SLURM_CPUS_ON_NODE', '')
    if per_cpu.isdigit() and cpus.isdigit():
        limits.append(int(per_cpu) * int(cpus) * 2**20)
    per_node = environ.get('SLURM_MEM_PER_NODE', '')
    if per_node.isdigit() and int(per_node):  # 0 is all that the node has
        limits.append(int(per_node) * 2**20)
    return min(limits) / 1e9


def share_threads(nprocs: int, participants: int, *, low_mem: bool = False) -> int:
    """Return the threads of one step: cores are given to participants first, then to steps."""
    if low_mem or participants <= 1:
        return max(1, min(nprocs, 8))  # registration gains little from more
    return max(1, min(nprocs // participants, 8))


def estimate_job(voxels: int) -> tuple[int, int]:
    """Return what to ask a scheduler for, for one participant on two cores.

    Parameters
    ----------
    voxels : int
        Of the larger of the two scans, as stored.

    Returns
    -------
    gigabytes : int
        Memory: what a run takes, and half as much again.
    minutes : int
        Wall time: five times that of a quiet machine.
    """
    gigabytes = max(GRID_GB, 0.7 + voxels * READING_GB)
    minutes = (GRID_S + voxels * READING_S) / 60
    return math.ceil(1.5 * gigabytes), math.ceil(5 * minutes)


def resolve_device(device: str) -> tuple[str, str | None]:
    """Return the torch device and, when it was a choice, a sentence about it."""
    if device == 'cpu':
        return 'cpu', None
    if device == 'auto' and sys.platform == 'linux' and not any(p.exists() for p in _GPUS):
        return 'cpu', '--device auto: no GPU was found, computing on the CPU'
    import torch

    if device == 'auto':
        if torch.cuda.is_available():
            return 'cuda:0', f'--device auto: computing on {torch.cuda.get_device_name(0)}'
        return 'cpu', '--device auto: no GPU was found, computing on the CPU'
    return device, None


def _groups(cgroup: Path, own: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that this process is in, innermost first.

    A container sees its own group as the root. A job of a cluster, and Apptainer, see the whole
    tree, in which the limit is that of a group on the way to their own.
    """
    roots = {cgroup: '/', cgroup / controller: '/'}
    for line in _read(own).splitlines():
        _, controllers, path = line.split(':', 2)
        if not controllers:
            roots[cgroup] = path
        elif controller in controllers.split(','):
            roots[cgroup / controller] = path
    for root, path in roots.items():
        folder = root / path.lstrip('/')
        yield folder
        while folder != root and folder != folder.parent:
            folder = folder.parent
            yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding='ascii').strip()
    except OSError:
        return ''
