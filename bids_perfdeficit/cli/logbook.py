"""What both levels keep of a run, and how they run a workflow.

A run has a folder in ``logs/`` with its settings, its log, its verdict, its methods text and a
file for every failed step. Must not know what a workflow computes.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import write_json, write_text
from bids_perfdeficit.cli.resources import available_memory_gb
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.settings import Settings

LOGGER = logging.getLogger('bids_perfdeficit')

#: Packages whose versions shape the results; recorded beside them.
VERSIONED = ('antspyx', 'nibabel', 'nilearn', 'nipype', 'numba', 'numpy', 'scipy', 'torch')

#: Modules of the participant level that take seconds to import.
PRELOAD = ('bids_perfdeficit.ct.registration', 'bids_perfdeficit.perfusion.synthesis')
#: Levels of the log on the terminal and of Nipype's, by how often ``-v`` was given.
_OURS = (logging.INFO, logging.INFO, logging.DEBUG)
_NIPYPES = (logging.CRITICAL, logging.INFO, logging.DEBUG)


@dataclass
class Outcome:
    """What became of one unit of work: a pair of scans, or an item of a model."""

    name: str
    status: str  #: 'complete', 'failed' or 'skipped'
    reasons: list[str] = field(default_factory=list)
    seconds: float | None = None

    @property
    def line(self) -> str:
        """The one line that platforms and people read."""
        return f'{self.name}: {self.status}' + (
            f': {" | ".join(self.reasons)}' if self.reasons else ''
        )


class Logbook:
    """The folder of logs of one run.

    Parameters
    ----------
    settings : Settings
        Of the run. Nothing is written before `start`.
    units : str
        What the outcomes in ``status.json`` are called.
    """

    def __init__(self, settings: Settings, units: str = 'participants') -> None:
        self.settings, self.units = settings, units
        self.started = datetime.now(UTC)
        self.uuid = f'{self.started:%Y%m%d-%H%M%S}_{uuid.uuid4()}'
        self.output_dir = settings.inputs.output_dir.absolute()
        self.folder = self.output_dir / 'logs' / self.uuid

    def start(self) -> None:
        """Create the folder, write the settings and begin to log."""
        self.folder.mkdir(parents=True)
        write_text(self.settings.to_toml(), self.folder / 'settings.toml')
        LOGGER.setLevel(logging.DEBUG)
        LOGGER.handlers.clear()
        LOGGER.propagate = False
        to_file = logging.FileHandler(self.folder / 'run.log', encoding='utf-8')
        to_file.setLevel(logging.DEBUG)
        to_terminal = logging.StreamHandler(sys.stderr)
        to_terminal.setLevel(_OURS[min(self.settings.outputs.verbose, 2)])
        for handler in (to_file, to_terminal):
            handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
            LOGGER.addHandler(handler)

    def write_status(self, outcomes: Sequence[Outcome], code: int | None) -> None:
        """Tell programs how the run stands; the code is None until it has ended."""
        finished = None if code is None else datetime.now(UTC).isoformat(timespec='seconds')
        write_json(
            {
                'run_uuid': self.uuid,
                'started': self.started.isoformat(timespec='seconds'),
                'finished': finished,
                'exit_code': code,
                'random_seed': self.settings.processing.random_seed,
                'versions': versions(),
                self.units: {
                    o.name: {'status': o.status, 'reasons': o.reasons, 'seconds': o.seconds}
                    for o in outcomes
                },
            },
            self.folder / 'status.json',
        )

    def run(self, workflow: Any, *, nprocs: int) -> dict[str, float]:
        """Run a workflow to its end, whatever fails in it.

        Parameters
        ----------
        workflow : LiterateWorkflow
            Its methods text is written to ``methods.md``.
        nprocs : int
            Processes at once.

        Returns
        -------
        dict of str to float
            Seconds that the steps of each branch took.
        """
        from bids_perfdeficit.cli.pool import Pool  # late: it imports Nipype's engine

        resources = self.settings.resources
        progress = Progress(self.units)
        if resources.use_plugin is not None:
            plugin = _load_plugin(resources.use_plugin, progress)
        else:
            plugin = Pool({
                'n_procs': nprocs,
                'memory_gb': resources.mem or 0.95 * available_memory_gb(),
                'raise_insufficient': False,
                'status_callback': progress,
                'preload': PRELOAD if self.units == 'participants' else (),
            })  # fmt: skip
        work_dir = resources.work_dir
        with tempfile.TemporaryDirectory(
            prefix='bids_perfdeficit-', ignore_cleanup_errors=True
        ) as temporary:
            workflow.base_dir = str((work_dir or Path(temporary)).absolute())
            Path(workflow.base_dir).mkdir(parents=True, exist_ok=True)
            if self.settings.outputs.write_graph:
                self._write_graph(workflow)
            try:
                workflow.run(plugin=progress.watch(plugin))
            except RuntimeError as error:
                # Nipype raises once all branches have ended; the crash files tell which failed.
                LOGGER.debug('the workflow ended with: %s', error)
            else:
                if resources.clean_workdir and work_dir is not None:
                    shutil.rmtree(Path(workflow.base_dir) / workflow.name, ignore_errors=True)
        write_text(workflow.visit_desc(), self.folder / 'methods.md')
        return progress.seconds

    def _write_graph(self, workflow: Any) -> None:
        path = self.folder / 'graph.dot'
        try:
            workflow.write_graph(dotfilename=str(path), graph2use='colored', format='svg')
        except OSError:
            if shutil.which('dot') is not None:
                raise
            LOGGER.warning('--write-graph: no Graphviz (dot) is here to draw %s', path)


def _load_plugin(path: Path, progress: Progress) -> Any:
    """Return the plugin of Nipype that a file asks for."""
    import yaml

    from bids_perfdeficit.cli.pool import use_plugin

    try:
        asked = yaml.safe_load(path.read_text(encoding='utf-8'))
        plugin_args = {'status_callback': progress, **(asked.get('plugin_args') or {})}
        # Nipype names its jobs by it, and an environment that was cleaned lacks it.
        os.environ.setdefault('LOGNAME', f'uid{os.getuid()}')
        return use_plugin(asked['plugin'], plugin_args)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'--use-plugin: {error}',
            fix='give "plugin:" with the name of a plugin of Nipype and "plugin_args:" with its '
            'arguments',
            path=path,
        ) from error


def set_threads(threads: int) -> None:
    """Tell all libraries how many threads one step has; before they are imported."""
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS',
                 'NUMBA_NUM_THREADS'):  # fmt: skip
        os.environ[name] = str(threads)
    # Before any worker loads ITK, which then keeps to it; see `ct.registration`.
    os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'] = '1'


def configure_nipype(settings: Settings, log_dir: Path) -> None:
    """Make Nipype write its crash files to the logs, and hold its tongue."""
    from nipype import config as nipype_config

    nipype_config.update_config({
        'execution': {
            'crashdump_dir': str(log_dir),
            'crashfile_format': 'txt',
            'create_report': 'false',
            'stop_on_first_crash': str(settings.resources.stop_on_first_crash).lower(),
            'hash_method': 'content',
            # Seconds until a finished step is noticed: with Nipype's 2 the steps of one patient
            # wait for 12 s.
            'poll_sleep_duration': '0.2',
            # Of jobs of a cluster: how long a shared file system may take to show a result.
            'job_finished_timeout': '30',
            'remove_unnecessary_outputs': 'false',
            'check_version': 'false',
        },
        'logging': {'log_to_file': 'false'},
    })  # fmt: skip
    if settings.resources.resource_monitor:
        nipype_config.enable_resource_monitor()
    level = _NIPYPES[min(settings.outputs.verbose, 2)]
    for name in ('nipype.workflow', 'nipype.utils', 'nipype.interface', 'nipype.filemanip'):
        logging.getLogger(name).setLevel(level)


class Progress:
    """Nipype's status callback: tells each finished step and, of participants, each finished one,
    with the time left, and adds up the time.

    Parameters
    ----------
    units : str
        What the branches of the workflow are; those of 'participants' are counted.
    """

    def __init__(self, units: str = 'participants') -> None:
        self.units = units
        self.total = self.done = 0
        self.seconds: dict[str, float] = {}
        self._begun = time.monotonic()
        self._started: dict[str, datetime] = {}
        self._graph: Any = ()
        self._splits = False
        self._lost: set[str] = set()
        #: Steps of each branch that are still to be told of.
        self._open: dict[str, int] = {}
        self._failed: set[str] = set()

    def watch(self, plugin: Any) -> Any:
        """Return a plugin that tells which steps it is given, of which some may never be run."""
        from nipype.pipeline.plugins.base import DistributedPluginBase

        run = plugin.run
        self._splits = isinstance(plugin, DistributedPluginBase)

        def told(graph: Any, *args: Any, **kwargs: Any) -> Any:
            self.expect(graph)
            return run(graph, *args, **kwargs)

        plugin.run = told
        return plugin

    def expect(self, graph: Any) -> None:
        """Count the steps of a workflow as Nipype runs it, in which no identity is left."""
        self._graph = graph
        for node in graph:
            self._change(node, self._reports(node))

    def __call__(self, node: Any, status: str) -> None:
        """Take note of a step that starts (``start``), ends (``end``) or fails (``exception``)."""
        name, now = node.fullname, datetime.now(UTC)
        if name in self._lost:  # some plugins tell of what they leave out
            return
        if status == 'start':
            self._started[name] = now
            return
        self.done += 1
        took = (now - self._started.pop(name, now)).total_seconds()
        branch, step = _place(node)
        self.seconds[branch] = round(self.seconds.get(branch, 0.0) + took, 1)
        self._open[branch] = self._open.get(branch, 0) - 1
        if status == 'exception':
            self._failed.add(branch)
            self._lose(node, branch, step)
        called = re.sub(r'(?<![a-z])(sub|ses)_', r'\1-', branch.removesuffix('_wf'))
        if took >= 0.5 or status == 'exception':  # moving files is no news
            verb = 'failed' if status == 'exception' else 'done'
            LOGGER.info(
                '%s: %s %s in %.0f s (step %d of %d%s)',
                called, step, verb, took, self.done, self.total, self._left(),
            )  # fmt: skip
        if self.units == 'participants' and self._open[branch] == 0:
            ended = sum(not count for count in self._open.values())
            verb = 'failed' if branch in self._failed else 'done'
            LOGGER.info(
                '%s: %s, %d of %d participants%s',
                called, verb, ended, len(self._open), self._left(),
            )  # fmt: skip

    def _lose(self, node: Any, branch: str, step: str) -> None:
        """Expect no word any more of what waits for a step that failed."""
        import networkx

        if node not in self._graph:  # a piece; the step that waits for all pieces is lost too
            whole = step.rpartition(' ')[0]
            node = next(n for n in self._graph if n.name == whole and _place(n)[0] == branch)
            self._forget(node, 1)
        for follower in networkx.descendants(self._graph, node):
            self._forget(follower, self._reports(follower))

    def _reports(self, node: Any) -> int:
        """Return how often Nipype tells of a step: once, and once of each piece of it."""
        pieces = len(getattr(node.inputs, node.iterfield[0])) if hasattr(node, 'iterfield') else 0
        return 1 + (pieces if self._splits and pieces > 1 else 0)

    def _forget(self, node: Any, reports: int) -> None:
        if node.fullname not in self._lost:
            self._lost.add(node.fullname)
            self._change(node, -reports)

    def _change(self, node: Any, reports: int) -> None:
        self.total += reports
        branch = _place(node)[0]
        self._open[branch] = self._open.get(branch, 0) + reports

    def _left(self) -> str:
        """Tell the time left once enough steps have been seen to tell it by."""
        if self.done < 3 or self.done >= self.total:
            return ''
        seconds = (time.monotonic() - self._begun) / self.done * (self.total - self.done)
        return f', about {seconds / 60:.0f} min left' if seconds >= 60 else ', under 1 min left'


def _place(node: Any) -> tuple[str, str]:
    """Return the branch and the name of a step.

    A piece of a step that was split knows its place only by its folder,
    ``<workflow>/<branch>/<step>/mapflow``.
    """
    parts = node.fullname.split('.')
    folder = Path(node.base_dir or '').parts
    if len(folder) > 3 and folder[-1] == 'mapflow':
        number = re.sub(r'\D', '', node.name.removeprefix(f'_{folder[-2]}'))
        return folder[-3], f'{folder[-2]} {int(number) + 1}'
    return (parts[1] if len(parts) > 1 else node.name), node.name


def read_crashes(log_dir: Path) -> dict[str, list[str]]:
    """Return, by the branch of the workflow, one sentence per crash file."""
    crashes: dict[str, list[str]] = {}
    for path in sorted(log_dir.glob('crash-*.txt')):
        text = path.read_text(encoding='utf-8', errors='replace')
        text = text.split('\n\nWhen creating this crashfile,')[0]  # Nipype's, and no cause
        node = re.search(r'^Node: (\S+)', text, re.M)
        parts = node.group(1).split('.') if node else []
        branch = parts[1] if len(parts) > 1 else ''
        told = re.findall(r'bids_perfdeficit\.errors\.InputError: (.+)', text)
        killed = re.findall(r'^WorkerKilled: (.+)', text, re.M)
        if told:
            sentence = told[-1].strip()
        else:
            last = killed or [line.strip() for line in text.splitlines() if line.strip()]
            step = parts[-1] if parts else 'a step'
            sentence = f'{step} failed: {last[-1]}; see {path}'
        if sentence not in crashes.setdefault(branch, []):
            crashes[branch].append(sentence)
    return crashes


def write_index(output_dir: Path, outcomes: list[Outcome], *, ours: bool = True) -> None:
    """Write the page of all participants; say so among the outcomes when that fails.

    Parameters
    ----------
    output_dir : Path
        OUTPUT_DIR.
    outcomes : list of Outcome
        Of this run.
    ours : bool
        Whether they are about participants.
    """
    from bids_perfdeficit.reports.cohort import build_index

    try:
        build_index(output_dir, {o.name: (o.status, o.reasons) for o in outcomes if ours})
    except Exception as error:
        LOGGER.exception('the page of all participants could not be made')
        outcomes.append(Outcome('report', 'failed', [f'{error}; see run.log']))


def versions() -> dict[str, str]:
    """Return the versions of what shapes the results."""
    return {'bids_perfdeficit': __version__} | {name: metadata.version(name) for name in VERSIONED}
