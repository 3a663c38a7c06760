"""The participant level: find, plan, run, and tell what became of each participant."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import (
    Discovery,
    discover,
    output_path,
    write_dataset_files,
    write_json,
    write_participants,
    write_text,
)
from bids_perfdeficit.cli.parser import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, print_problems
from bids_perfdeficit.cli.resources import (
    available_cores,
    available_memory_gb,
    resolve_device,
    share_threads,
)
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.workflows.plan import Plan, describe, make_plan

LOGGER = logging.getLogger('bids_perfdeficit')

#: Packages whose versions shape the results; recorded beside them.
VERSIONED = ('antspyx', 'nibabel', 'nilearn', 'nipype', 'numba', 'numpy', 'scipy', 'torch')


@dataclass
class Outcome:
    """What became of one pair of scans, or of a participant without one."""

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


def run_participants(settings: Settings) -> int:
    """Run the participant level and return the exit code."""
    filters = None
    if settings.inputs.bids_filter_file is not None:
        filters = json.loads(settings.inputs.bids_filter_file.read_text(encoding='utf-8'))
    found = discover(
        settings.inputs.bids_dir,
        participant_labels=settings.inputs.participant_label,
        session_labels=settings.inputs.session_label,
        filters=filters,
        database_dir=settings.inputs.bids_database_dir,
    )
    plans = [make_plan(pair, settings) for pair in found.pairs]
    if settings.outputs.dry_run:
        return _dry_run(found, plans, settings)
    if not plans:
        print_problems([str(problem) for problem in found.problems])
        return EXIT_USAGE
    if settings.outputs.boilerplate_only:
        print(_methods(plans, settings))
        return EXIT_OK
    return _Run(settings, found, plans).execute()


def _dry_run(found: Discovery, plans: Sequence[Plan], settings: Settings) -> int:
    for note in found.notes:
        print(f'note: {note}')
    print(describe(plans, settings))
    if found.problems:
        print_problems([str(problem) for problem in found.problems])
    return EXIT_OK if not found.problems else EXIT_SOME_FAILED if plans else EXIT_USAGE


def _methods(plans: Sequence[Plan], settings: Settings) -> str:
    from bids_perfdeficit.workflows.base import init_pair_wf

    fresh = Plan(plans[0].pair, {}, plans[0].fingerprints)
    return init_pair_wf(plan=fresh, settings=settings).visit_desc()


class _Run:
    """One run: its folder of logs, its workflow and its verdict."""

    def __init__(self, settings: Settings, found: Discovery, plans: Sequence[Plan]) -> None:
        self.settings, self.found, self.plans = settings, found, plans
        self.started = datetime.now(UTC)
        self.uuid = f'{self.started:%Y%m%d-%H%M%S}_{uuid.uuid4()}'
        self.output_dir = settings.inputs.output_dir.absolute()
        self.log_dir = self.output_dir / 'logs' / self.uuid

    def execute(self) -> int:
        settings = self.settings
        self.log_dir.mkdir(parents=True)
        write_text(settings.to_toml(), self.log_dir / 'settings.toml')
        self._start_logging()
        notes = write_dataset_files(
            self.output_dir, bids_dir=settings.inputs.bids_dir, version=__version__
        )
        for note in (*self.found.notes, *notes):
            LOGGER.info(note)
        for plan in self.plans:
            for note in plan.pair.notes:
                LOGGER.info('%s: %s', plan.pair.prefix, note)
        write_dataset_files(
            self.output_dir, bids_dir=settings.inputs.bids_dir, version=__version__
        )
        write_participants(
            self.output_dir,
            bids_dir=settings.inputs.bids_dir,
            participants=[plan.pair.participant for plan in self.plans],
        )
        self._write_status([], None)
        busy = [plan for plan in self.plans if self._has_work(plan)]
        ready, early = self._select(busy)
        seconds = self._compute(ready) if ready else {}
        outcomes = self._judge(early, seconds)
        self._report({plan.pair.prefix for plan in busy}, outcomes)
        code = EXIT_OK if all(o.status == 'complete' for o in outcomes) else EXIT_SOME_FAILED
        self._write_status(outcomes, code)
        for outcome in outcomes:
            print(outcome.line)
        done = sum(outcome.status == 'complete' for outcome in outcomes)
        print(f'{done} of {len(outcomes)} complete; logs in {self.log_dir}')
        return code

    def _has_work(self, plan: Plan) -> bool:
        page = output_path(
            self.output_dir,
            'report',
            participant=plan.pair.participant,
            session=plan.pair.session,
        )
        return (
            self.settings.outputs.reports_only
            or bool(plan.to_run(self.settings.processing.level))
            or not page.is_file()
        )

    def _select(self, busy: Sequence[Plan]) -> tuple[list[Plan], dict[str, str]]:
        """Split what can run from what fails at once, with the reason."""
        if not self.settings.outputs.reports_only:
            return list(busy), {}
        ready = [p for p in busy if not p.to_run(self.settings.processing.level)]
        early = {
            p.pair.prefix: 'its results are not complete, so that there is nothing to report; '
            'run without --reports-only.'
            for p in busy
            if p not in ready
        }
        return ready, early

    def _compute(self, plans: Sequence[Plan]) -> dict[str, float]:
        """Run the workflow; return the seconds that each pair's steps took."""
        resources = self.settings.resources
        nprocs = resources.nprocs or available_cores()
        threads = resources.omp_nthreads or share_threads(
            nprocs, len(plans), low_mem=resources.low_mem
        )
        for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS',
                     'NUMBA_NUM_THREADS', 'ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'):  # fmt: skip
            os.environ[name] = str(threads)
        device, choice = resolve_device(self.settings.processing.device)
        if choice:
            LOGGER.info(choice)

        from nipype import config as nipype_config

        nipype_config.update_config({
            'execution': {
                'crashdump_dir': str(self.log_dir),
                'crashfile_format': 'txt',
                'create_report': 'false',
                'stop_on_first_crash': str(resources.stop_on_first_crash).lower(),
                'hash_method': 'content',
                'remove_unnecessary_outputs': 'false',
                'check_version': 'false',
            },
            'logging': {'log_to_file': 'false'},
        })  # fmt: skip
        if resources.resource_monitor:
            nipype_config.enable_resource_monitor()
        self._quiet_nipype()

        from bids_perfdeficit.workflows.base import init_bids_perfdeficit_wf

        workflow = init_bids_perfdeficit_wf(
            plans=plans, settings=self.settings, device=device, omp_nthreads=threads
        )
        progress = _Progress(len(workflow.list_node_names()))
        plugin: dict[str, Any] = {
            'plugin': 'MultiProc',
            'plugin_args': {
                'n_procs': nprocs,
                'memory_gb': resources.mem or 0.95 * available_memory_gb(),
                'raise_insufficient': False,
                'status_callback': progress,
            },
        }
        if resources.use_plugin is not None:
            import yaml

            plugin = yaml.safe_load(resources.use_plugin.read_text(encoding='utf-8'))
        work_dir = resources.work_dir
        with tempfile.TemporaryDirectory(
            prefix='bids_perfdeficit-', ignore_cleanup_errors=True
        ) as temporary:
            workflow.base_dir = str((work_dir or Path(temporary)).absolute())
            Path(workflow.base_dir).mkdir(parents=True, exist_ok=True)
            if self.settings.outputs.write_graph:
                workflow.write_graph(
                    dotfilename=str(self.log_dir / 'graph.dot'), graph2use='colored', format='svg'
                )
            try:
                workflow.run(**plugin)
            except RuntimeError as error:
                # Nipype raises once all branches have ended; the crash files tell which failed.
                LOGGER.debug('the workflow ended with: %s', error)
            else:
                if resources.clean_workdir and work_dir is not None:
                    shutil.rmtree(Path(workflow.base_dir) / workflow.name, ignore_errors=True)
        write_text(workflow.visit_desc(), self.log_dir / 'methods.md')
        return progress.seconds

    def _judge(self, early: dict[str, str], seconds: dict[str, float]) -> list[Outcome]:
        """Tell from what lies on disk, and from the crash files, what became of everyone."""
        from bids_perfdeficit.workflows.base import workflow_name

        crashes = read_crashes(self.log_dir)
        outcomes = []
        for plan in self.plans:
            name = plan.pair.prefix
            reasons = crashes.get(workflow_name(plan.pair), [])
            if name in early:
                reasons = [early[name]]
            missing = make_plan(plan.pair, self.settings).to_run(self.settings.processing.level)
            if missing and not reasons:
                reasons = [
                    f'ended without {missing[0].name} and without an error; '
                    'memory may have run out: give more with --mem, or --low-mem.'
                ]
            outcomes.append(
                Outcome(
                    name,
                    'failed' if reasons else 'complete',
                    reasons,
                    seconds.get(workflow_name(plan.pair)),
                )
            )
        outcomes += [
            Outcome(f'sub-{p.participant}' if p.participant else 'dataset', 'failed', [str(p)])
            for p in self.found.problems
        ]
        return sorted(outcomes, key=lambda outcome: outcome.name)

    def _report(self, busy: Iterable[str], outcomes: Sequence[Outcome]) -> None:
        from bids_perfdeficit.reports import build_page

        by_name = {outcome.name: outcome for outcome in outcomes}
        methods = _methods(self.plans, self.settings)
        pages: dict[str, list[Plan]] = {}
        for plan in self.plans:
            pages.setdefault(plan.pair.participant, []).append(plan)
        wanted = set(busy)
        for plans in pages.values():
            if not wanted & {plan.pair.prefix for plan in plans}:
                continue
            for plan in plans:
                outcome = by_name[plan.pair.prefix]
                try:
                    build_page(
                        self.output_dir,
                        plan.pair,
                        space=self.settings.processing.output_spaces[0],
                        errors=outcome.reasons,
                        methods=methods,
                        settings=self.settings.to_toml(),
                        versions=_versions(),
                    )
                except Exception as error:  # one page must not take the others with it
                    LOGGER.exception('the report of %s could not be made', plan.pair.prefix)
                    outcome.status = 'failed'
                    outcome.reasons.append(f'the report could not be made: {error}')

    def _write_status(self, outcomes: Sequence[Outcome], code: int | None) -> None:
        finished = None if code is None else datetime.now(UTC).isoformat(timespec='seconds')
        write_json(
            {
                'run_uuid': self.uuid,
                'started': self.started.isoformat(timespec='seconds'),
                'finished': finished,
                'exit_code': code,
                'random_seed': self.settings.processing.random_seed,
                'versions': _versions(),
                'participants': {
                    o.name: {'status': o.status, 'reasons': o.reasons, 'seconds': o.seconds}
                    for o in outcomes
                },
            },
            self.log_dir / 'status.json',
        )

    def _start_logging(self) -> None:
        level = [logging.INFO, logging.INFO, logging.DEBUG][min(self.settings.outputs.verbose, 2)]
        LOGGER.setLevel(logging.DEBUG)
        LOGGER.handlers.clear()
        LOGGER.propagate = False
        to_file = logging.FileHandler(self.log_dir / 'run.log', encoding='utf-8')
        to_file.setLevel(logging.DEBUG)
        to_terminal = logging.StreamHandler(sys.stderr)
        to_terminal.setLevel(level)
        for handler in (to_file, to_terminal):
            handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
            LOGGER.addHandler(handler)

    def _quiet_nipype(self) -> None:
        level = [logging.CRITICAL, logging.INFO, logging.DEBUG][
            min(self.settings.outputs.verbose, 2)
        ]
        for name in ('nipype.workflow', 'nipype.utils', 'nipype.interface', 'nipype.filemanip'):
            logging.getLogger(name).setLevel(level)


class _Progress:
    """Nipype's status callback: tells each finished step, and adds up the time."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.seconds: dict[str, float] = {}
        self._started: dict[str, datetime] = {}

    def __call__(self, node: Any, status: str) -> None:
        name, now = node.fullname, datetime.now(UTC)
        if status == 'start':
            self._started[name] = now
            return
        self.done += 1
        took = (now - self._started.pop(name, now)).total_seconds()
        branch = name.split('.')[1] if '.' in name else name
        self.seconds[branch] = round(self.seconds.get(branch, 0.0) + took, 1)
        if took < 0.5 and status == 'end':
            return  # moving files is no news
        verb = 'failed' if status == 'exception' else 'done'
        LOGGER.info(
            '%s: %s %s in %.0f s (step %d of %d)',
            branch.removesuffix('_wf').replace('_', '-', 1), node.name, verb, took,
            self.done, self.total,
        )  # fmt: skip


def read_crashes(log_dir: Path) -> dict[str, list[str]]:
    """Return, by the branch of the workflow, one sentence per crash file."""
    crashes: dict[str, list[str]] = {}
    for path in sorted(log_dir.glob('crash-*.txt')):
        text = path.read_text(encoding='utf-8', errors='replace')
        node = re.search(r'^Node: (\S+)', text, re.M)
        parts = node.group(1).split('.') if node else []
        branch = parts[1] if len(parts) > 1 else ''
        told = re.findall(r'bids_perfdeficit\.errors\.InputError: (.+)', text)
        if told:
            sentence = told[-1].strip()
        else:
            last = [line.strip() for line in text.splitlines() if line.strip()][-1]
            step = parts[-1] if parts else 'a step'
            sentence = f'{step} failed: {last}; see {path}'
        if sentence not in crashes.setdefault(branch, []):
            crashes[branch].append(sentence)
    return crashes


def _versions() -> dict[str, str]:
    return {'bids_perfdeficit': __version__} | {name: metadata.version(name) for name in VERSIONED}
