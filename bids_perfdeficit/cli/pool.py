"""Nipype's ways to run steps, corrected where they fail when the process of a step is killed.

On this machine: where memory runs out, Linux kills a worker. Python's pool then breaks and takes
all that ran in it along, and Nipype's plugin never hears of it: the run hangs without a word. This
one repeats what was lost, one step at a time in a new pool, so that a step for which only its
neighbours left no memory gets through, and that which dies alone is known by name.

On a cluster: Nipype fails over its own crash file when a job ends without a result, and takes all
other participants along. Must not know what steps compute.
"""

from __future__ import annotations

import gc
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

from nipype.pipeline import plugins
from nipype.pipeline.plugins.base import SGELikeBatchManagerBase
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from bids_perfdeficit.cli import signals

#: How the cause is written in a crash file, and found there again.
KILLED = 'WorkerKilled'
LOST_JOB = (
    'its job ended without a result; it was killed, or ran out of memory or time: '
    "see squeue's or sacct's word on it, and give jobs more in the file of --use-plugin"
)
LOST_WORKER = (
    'its process was killed, also when it ran alone; most likely memory ran out, or the space of '
    'the working folder: give the job or container more'
)


def _preload(names: Sequence[str]) -> None:
    for name in names:
        import_module(name)


class Pool(MultiProcPlugin):
    """Run the steps of a workflow in processes; takes the arguments of its base.

    ``preload`` names modules: one worker imports them while another runs the first step of the
    first branch, on which the others wait, and a second does beside the second step: the steps of
    one branch run in two. More would take memory for nothing where there is one branch.
    """

    pool: ProcessPoolExecutor
    #: Whether a second worker is still to import what is to be preloaded.
    _cold = False

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        # Nipype collects garbage at each look at its steps: what is imported now never is any.
        gc.collect()
        gc.freeze()
        if self.processors > 1 and self.plugin_args.get('preload'):
            self.pool.submit(_preload, self.plugin_args['preload'])
            self._cold = True
        self._steps: dict[int, tuple[Any, bool]] = {}
        # Filled by the thread that watches the pool, emptied by that of the run.
        self._lost: deque[tuple[int, ProcessPoolExecutor]] = deque()
        self._queue: deque[int] = deque()
        self._alone: int | None = None

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        self._steps[self._taskid] = node, updatehash
        self._start(self._taskid)
        if self._cold and self._taskid > 1:
            self._cold = False
            with suppress(RuntimeError):  # it broke a moment ago
                self.pool.submit(_preload, self.plugin_args['preload'])
        return self._taskid

    def _start(self, task: int) -> None:
        pool = self.pool
        try:
            node, updatehash = self._steps[task]
            future = pool.submit(run_node, node, updatehash, task)
        except RuntimeError:  # it broke a moment ago
            self._lost.append((task, pool))
            return
        self._task_obj[task] = future
        future.add_done_callback(partial(self._ended, task, pool))

    def _ended(self, task: int, pool: ProcessPoolExecutor, future: Future) -> None:
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or isinstance(error, BrokenExecutor):
            self._lost.append((task, pool))
        elif error is not None:  # not even the failure could be kept, as when the disk is full
            lines = traceback.format_exception(error)
            self._taskresult[task] = {'result': None, 'traceback': lines, 'taskid': task}
        else:
            self._taskresult[task] = future.result()

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        self._tend()
        return self._taskresult.get(taskid)

    def _clear_task(self, taskid: int) -> None:
        self._task_obj.pop(taskid, None)
        self._steps.pop(taskid, None)

    def _tend(self) -> None:
        """Take note of what was lost, and start what waits to run alone."""
        while self._lost:
            task, pool = self._lost.popleft()
            if pool is self.pool:
                pool.shutdown(wait=False)
                self.pool = ProcessPoolExecutor(
                    self.processors, initializer=process_initializer, initargs=(self._cwd,)
                )
            if task == self._alone:
                self._taskresult[task] = {
                    'result': None,
                    'traceback': [f'{KILLED}: {LOST_WORKER}\n'],
                    'taskid': task,
                }
            else:
                self._queue.append(task)
        if self._alone in self._taskresult or self._alone not in self._steps:
            self._alone = None
        if self._alone is None and self._queue:
            self._alone = self._queue.popleft()
            self._start(self._alone)

    def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> str:
        signals.reraise_signal()  # the step did not fail, it was asked to end
        return super()._report_crash(node, result=result)

    def _check_resources(self, running_tasks: Any) -> tuple[float, int, int]:
        if self._lost or self._queue or self._alone is not None:
            return 0.0, 0, 0  # nothing new beside a step that is to run alone
        return super()._check_resources(running_tasks)


def use_plugin(name: str, plugin_args: dict[str, Any]) -> Any:
    """Return a plugin of Nipype by its name, those for clusters corrected.

    Raises
    ------
    ValueError
        When there is none of that name.
    """
    base: Any = getattr(plugins, f'{name}Plugin', None)
    if base is None:
        known = sorted(n.removesuffix('Plugin') for n in dir(plugins) if n.endswith('Plugin'))
        raise ValueError(f'{name} is not a plugin of Nipype; available are {", ".join(known)}')
    if not issubclass(base, SGELikeBatchManagerBase):
        return base(plugin_args=plugin_args)

    class Cluster(base):
        def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> str:
            signals.reraise_signal()
            trace = (result or {}).get('traceback')
            if isinstance(trace, str):  # Nipype 1.11 adds a list to it
                lines = [f'{line}\n' for line in trace.splitlines()]
                if 'results file does not exist' in trace:
                    lines.append(f'{KILLED}: {LOST_JOB}\n')
                result = {**(result or {}), 'traceback': lines}
            return super()._report_crash(node, result=result)

    return Cluster(plugin_args=plugin_args)
