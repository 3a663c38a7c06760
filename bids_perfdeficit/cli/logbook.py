"""What both levels keep of a run, and how they run a workflow.

A run has a folder in ``logs/`` with its settings, its log, its status, its methods text and a
file for every failed step. The status grows while the run goes on, so that a run that is killed
has reported what it finished. Must not know what a workflow computes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import write_json, write_text
from bids_perfdeficit.bids.files import owner_is_gone, owner_tag
from bids_perfdeficit.cli.pulse import Pulse
from bids_perfdeficit.cli.resources import available_memory_gb
from bids_perfdeficit.errors import InputError, printable
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.stages.record import software

LOGGER = logging.getLogger('bids_perfdeficit')

#: s between two updates of the status that only say that something runs.
STATUS_S = 2.0
#: How the names of temporary working folders begin.
TEMPORARY_FOLDER = 'bids_perfdeficit-'

#: Modules of the participant level that take seconds to import.
PRELOAD = (
    'bids_perfdeficit.ct.registration', 'bids_perfdeficit.perfusion.synthesis', 'nilearn.datasets',
)  # fmt: skip
#: Levels of the log on the terminal and of Nipype's, by how often ``-v`` was given.
_OURS = (logging.INFO, logging.INFO, logging.DEBUG)
_NIPYPES = (logging.CRITICAL, logging.INFO, logging.DEBUG)


@dataclass
class Outcome:
    """What became of one unit of work: a pair of scans, or an item of a model."""

    name: str
    status: str  #: 'complete', 'doubtful', 'failed', 'skipped', or, during the run, 'running'
    reasons: list[str] = field(default_factory=list)
    seconds: float | None = None

    @property
    def line(self) -> str:
        """The one line that platforms and people read."""
        return printable(
            f'{self.name}: {self.status}'
            + (f': {" | ".join(self.reasons)}' if self.reasons else '')
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
        self.outcomes: dict[str, Outcome] = {}
        self.progress = Progress(units, note=self._note)
        self._written = 0.0

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
            handler.setFormatter(_Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
            LOGGER.addHandler(handler)
        self.write_status()

    def add(self, *outcomes: Outcome) -> None:
        """Note outcomes, replacing what was known of the same units, and write the status."""
        self.outcomes |= {outcome.name: outcome for outcome in outcomes}
        self.write_status()

    def _note(self, unit: str, status: str) -> None:
        """Note that a unit runs, or that its steps have ended."""
        self.outcomes[unit] = Outcome(unit, status)
        if time.monotonic() - self._written > STATUS_S or status != 'running':
            self.write_status()

    def write_status(self, code: int | None = None) -> None:
        """Write how the run stands, for programs; the code is None until it has ended."""
        self._written = time.monotonic()
        finished = None if code is None else datetime.now(UTC).isoformat(timespec='seconds')
        write_json(
            {
                'run_uuid': self.uuid,
                'started': self.started.isoformat(timespec='seconds'),
                'finished': finished,
                'exit_code': code,
                'random_seed': self.settings.processing.random_seed,
                'versions': software(),
                self.units: {
                    o.name: {'status': o.status, 'reasons': o.reasons, 'seconds': o.seconds}
                    for o in self.outcomes.values()
                },
            },
            self.folder / 'status.json',
        )

    def run(
        self,
        workflow: Any,
        *,
        nprocs: int,
        labels: Mapping[str, str] | None = None,
        fresh: Sequence[str] = (),
    ) -> dict[str, float]:
        """Run a workflow to its end, whatever fails in it.

        Parameters
        ----------
        workflow : LiterateWorkflow
            Its methods text is written to ``methods.md``.
        nprocs : int
            Processes at once.
        labels : mapping of str to str, optional
            Names of the units by the branches of the workflow.
        fresh : sequence of str
            Branches whose working folders are emptied before the run.

        Returns
        -------
        dict of str to float
            Seconds that the steps of each branch took.
        """
        from bids_perfdeficit.cli.pool import Pool  # late: it imports Nipype's engine

        resources = self.settings.resources
        progress = self.progress
        progress.labels |= labels or {}
        if resources.use_plugin is not None:
            plugin = _load_plugin(resources.use_plugin, progress)
        else:
            plugin = Pool({
                'n_procs': nprocs,
                'memory_gb': resources.mem or 0.95 * available_memory_gb(),
                'raise_insufficient': False,
                'status_callback': progress,
                'preload': () if self.units == 'models' else PRELOAD,
            })  # fmt: skip
        # The dictionary and not the parser of Nipype's configuration: that one interprets "%".
        workflow.config['execution']['crashdump_dir'] = str(self.folder)
        with self._working_folder() as folder:
            workflow.base_dir = str(folder)
            for name in fresh:
                shutil.rmtree(folder / workflow.name / name, ignore_errors=True)
            if self.settings.outputs.write_graph:
                self._write_graph(workflow)
            try:
                with progress.pulse.beating():
                    workflow.run(plugin=progress.watch(plugin))
            except RuntimeError as error:
                # Nipype raises once all branches have ended; the crash files name which failed.
                LOGGER.debug('the workflow ended with: %s', error)
            else:
                if resources.clean_workdir:
                    shutil.rmtree(folder / workflow.name, ignore_errors=True)
                    with contextlib.suppress(OSError):  # other runs work there
                        folder.rmdir()
        write_text(workflow.visit_desc(), self.folder / 'methods.md')
        return progress.seconds

    @contextlib.contextmanager
    def _working_folder(self) -> Iterator[Path]:
        """Yield where steps work: a folder of this version, or a temporary one."""
        kept = self.settings.resources.work_dir
        if kept is not None:
            version = re.sub(r'[^A-Za-z0-9.]', '_', __version__)
            folder = kept.absolute() / f'perfdeficit-{version}'
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
        remove_old_folders(Path(tempfile.gettempdir()))
        with tempfile.TemporaryDirectory(
            prefix=f'{TEMPORARY_FOLDER}{owner_tag()}.', ignore_cleanup_errors=True
        ) as temporary:
            yield Path(temporary)

    def _write_graph(self, workflow: Any) -> None:
        path = self.folder / 'graph.dot'
        try:
            workflow.write_graph(dotfilename=str(path), graph2use='colored', format='svg')
        except OSError:
            if shutil.which('dot') is not None:
                raise
            LOGGER.warning('--write-graph: no Graphviz (dot) is here to draw %s', path)


class _Formatter(logging.Formatter):
    """Keeps control characters in names of files off the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return '\n'.join(map(printable, super().format(record).split('\n')))


def remove_old_folders(root: Path) -> None:
    """Remove the temporary working folders of runs of this user that were killed."""
    for folder in root.glob(f'{TEMPORARY_FOLDER}*'):
        tag = folder.name.removeprefix(TEMPORARY_FOLDER).partition('.')[0]
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and owner_is_gone(tag):
                shutil.rmtree(folder, ignore_errors=True)


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
    """Set for all libraries how many threads one step has, before they are imported."""
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS',
                 'NUMBA_NUM_THREADS'):  # fmt: skip
        os.environ[name] = str(threads)
    # Before any worker loads ITK, which then keeps to it; see `ct.registration`.
    os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'] = '1'


def configure_nipype(settings: Settings) -> None:
    """Make Nipype write crash files that people can read, and nothing to the terminal."""
    from nipype import config as nipype_config

    nipype_config.update_config({
        'execution': {
            'crashfile_format': 'txt',
            'create_report': 'false',
            'stop_on_first_crash': str(settings.resources.stop_on_first_crash).lower(),
            'hash_method': 'content',
            # Of jobs of a cluster: how long a shared file system may take to show a result.
            'job_finished_timeout': '30',
            'remove_unnecessary_outputs': 'false',
            'check_version': 'false',
            # s; steps are short. A queue of a cluster is asked less often.
            'poll_sleep_duration': '2' if settings.resources.use_plugin else '0.1',
        },
        'logging': {'log_to_file': 'false'},
    })  # fmt: skip
    if settings.resources.resource_monitor:
        nipype_config.enable_resource_monitor()
    level = _NIPYPES[min(settings.outputs.verbose, 2)]
    for name in ('nipype.workflow', 'nipype.utils', 'nipype.interface', 'nipype.filemanip'):
        logging.getLogger(name).setLevel(level)


class Progress:
    """Nipype's status callback: logs each finished step and, of participants, each finished one,
    with the time left, and adds up the time.

    Parameters
    ----------
    units : str
        What the branches of the workflow are; all but 'models' are counted.
    note : callable, optional
        Called with the name of a unit and ``'running'``, ``'computed'`` or ``'failed'``.
    """

    def __init__(
        self, units: str = 'participants', note: Callable[[str, str], None] | None = None
    ) -> None:
        self.units, self._note = units, note
        self.total = self.done = 0
        #: Units that later workflows of the same run will bring.
        self.waiting = 0
        self.seconds: dict[str, float] = {}
        #: Names of the units by branch.
        self.labels: dict[str, str] = {}
        self._begun = time.monotonic()
        self._started: dict[str, datetime] = {}
        self._graph: Any = ()
        self._splits = False
        self._lost: set[str] = set()
        #: Steps of each branch whose end is still to come.
        self._open: dict[str, int] = {}
        self._failed: set[str] = set()
        self.pulse = Pulse(LOGGER.info, self._running)

    def watch(self, plugin: Any) -> Any:
        """Return a plugin that reports which steps it receives, of which some may never be run."""
        from nipype.pipeline.plugins.base import DistributedPluginBase

        run = plugin.run
        self._splits = isinstance(plugin, DistributedPluginBase)

        def observed(graph: Any, *args: Any, **kwargs: Any) -> Any:
            self.expect(graph)
            return run(graph, *args, **kwargs)

        plugin.run = observed
        return plugin

    def expect(self, graph: Any) -> None:
        """Count the steps of a workflow as Nipype runs it, in which no identity is left."""
        self._graph = graph
        for node in graph:
            self._change(node, self._reports(node))

    def __call__(self, node: Any, status: str) -> None:
        """Take note of a step that starts (``start``), ends (``end``) or fails (``exception``)."""
        name, now = node.fullname, datetime.now(UTC)
        if name in self._lost:  # some plugins report what they leave out
            return
        branch, step = _place(node)
        called = self.labels.get(
            branch, re.sub(r'(?<![a-z])(sub|ses)_', r'\1-', branch.removesuffix('_wf'))
        )
        note = self._note if branch in self.labels else None
        if status == 'start':
            self._started[name] = now
            if note is not None:
                note(called, 'running')
            return
        self.done += 1
        took = (now - self._started.pop(name, now)).total_seconds()
        self.seconds[branch] = round(self.seconds.get(branch, 0.0) + took, 1)
        self._open[branch] = self._open.get(branch, 0) - 1
        if status == 'exception':
            self._failed.add(branch)
            self._lose(node, branch, step)
        if note is not None and self._open[branch] == 0:
            note(called, 'failed' if branch in self._failed else 'computed')
        if took >= 0.5 or status == 'exception':  # moving files is not worth a line
            self.pulse.note()
            verb = 'failed' if status == 'exception' else 'done'
            LOGGER.info(
                '%s: %s %s in %.0f s (step %d of %d%s)',
                called, step, verb, took, self.done, self.total, self._left(),
            )  # fmt: skip
        if self.units != 'models' and self._open[branch] == 0:
            ended = sum(not count for count in self._open.values())
            verb = 'failed' if branch in self._failed else 'done'
            LOGGER.info(
                '%s: %s, %d of %d participants%s',
                called, verb, ended, len(self._open) + self.waiting, self._left(),
            )  # fmt: skip

    def _running(self) -> str:
        """Return which step has run longest, as a line; empty when none runs."""
        started = sorted(dict(self._started).items(), key=lambda item: item[1])
        if not started:
            return ''
        (name, since), *others = started
        parts = name.split('.')
        called = self.labels.get(parts[1] if len(parts) > 1 else name, '')
        seconds = (datetime.now(UTC) - since).total_seconds()
        more = f' and {len(others)} other steps' if others else ''
        return (
            f'{called + ": " if called else ""}{parts[-1]} has run for {seconds:.0f} s{more} '
            f'({self.done} of {self.total} steps done{self._left()})'
        )

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
        """Return how often Nipype reports a step: once, and once for each of its pieces."""
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
        """Report the time left once enough steps have ended to estimate it."""
        total = self.total * (1 + self.waiting / max(len(self._open), 1))
        if not self.done or self.done >= total:
            return ''
        seconds = (time.monotonic() - self._begun) / self.done * (total - self.done)
        return f', about {seconds / 60:.0f} min left' if seconds >= 60 else ', under 1 min left'


def _place(node: Any) -> tuple[str, str]:
    """Return the branch and the name of a step.

    A piece of a step that was split is identified only by its folder,
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
        sentences = re.findall(r'bids_perfdeficit\.errors\.InputError: (.+)', text)
        killed = re.findall(r'^WorkerKilled: (.+)', text, re.M)
        if sentences:
            sentence = sentences[-1].strip()
        else:
            last = killed or [line.strip() for line in text.splitlines() if line.strip()]
            step = parts[-1] if parts else 'a step'
            sentence = f'{step} failed: {last[-1]}; see {path}'
        if sentence not in crashes.setdefault(branch, []):
            crashes[branch].append(sentence)
    return crashes
