"""Let anything happen to a dataset and its results, and compare each run with a clean one.

A history replaces scans under their names, edits the table of scores, changes options, raises
the version of a stage, deletes, cuts and empties outputs, kills a run at a random moment, starts
two runs at once, and runs. After every run that ends well OUTPUT_DIR must hold what a clean run
with the inputs and options of that moment leaves, byte for byte. Logs, and the times of this
machine in the records, are left out. Clean runs are made once for each state.

Run: python benchmarks/histories.py PHANTOM [--histories 200] [--seed 1] [--jobs 2] [--keep FOLDER]
PHANTOM is a folder of `bids_perfdeficit-phantom --participants 2 --cohort 24 --spacing 4`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import pandas as pd

#: Runs the app with stages of other versions, which only another release has.
RUN = """
import dataclasses, json, os, sys
from bids_perfdeficit.workflows import group_plan, plan
raised = json.loads(os.environ.get('RAISED', '{}'))
plan.STAGES = tuple(
    dataclasses.replace(s, version=raised.get(s.name, s.version)) for s in plan.STAGES)
group_plan.VERSIONS = {**group_plan.VERSIONS, **{k: v for k, v in raised.items()
                                                 if k in group_plan.VERSIONS}}
from bids_perfdeficit.cli.run import main
sys.exit(main(sys.argv[1:]))
"""
#: Seconds after which a run is taken for one that hangs.
HANGS_S = 900
STAGES = {'participant': ['metrics'], 'group': ['fit']}
OPTIONS = {
    'participant': [
        [], ['--random-seed', '3'], ['--self-contained-reports'],
    ],
    'group': [
        ['--items', '5a', '9'], ['--items', '9', '5a'], ['--items', '5a'],
        ['--items', '5a', '9', '--map-kind', 'asymmetry'], ['--items', '5a', '9', '--folds', '2'],
        ['--items', '5a', '9', '--covariates', 'total_deficit_volume'],
    ],
}  # fmt: skip


@dataclass
class World:
    """A dataset, its results, and what the next run is asked."""

    level: str
    data: Path
    root: Path
    plugin: Path | None = None
    options: int = 0
    raised: dict[str, int] = field(default_factory=dict)
    scans: dict[str, str] = field(default_factory=lambda: {'ct': '01', 'cta': '01'})
    edits: int = 0

    @property
    def raw(self) -> Path:
        return self.root / 'raw'

    @property
    def out(self) -> Path:
        return self.root / 'out'

    def prepare(self) -> None:
        """Lay out the dataset as it is now; files that are right stay as they are."""
        if self.level == 'participant':
            folder = self.raw / 'sub-01' / 'ct'
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.data / 'dataset_description.json', self.raw)
            for kind, source in self.scans.items():
                content = (self.data / f'sub-{source}/ct/sub-{source}_{kind}.nii.gz').read_bytes()
                path = folder / f'sub-01_{kind}.nii.gz'
                if not path.exists() or path.read_bytes() != content:
                    path.write_bytes(content)
            return
        self.raw.mkdir(parents=True, exist_ok=True)
        table = pd.read_csv(self.cohort / 'phenotype/nihss.tsv', sep='\t', dtype=str)
        for number in range(self.edits):
            row = (7 * number) % len(table)
            table.loc[row, 'nihss_9'] = '2' if table.loc[row, 'nihss_9'] == '0' else '0'
        table.to_csv(self.raw / 'participants.tsv', sep='\t', index=False, na_rep='n/a')

    @property
    def cohort(self) -> Path:
        return self.data / 'derivatives' / 'bids_perfdeficit-cohort'

    def command(self, out: Path, *more: str) -> list[str]:
        words = [sys.executable, '-c', RUN, str(self.raw), str(out), self.level, '--sloppy',
                 '--nprocs', '1', '--omp-nthreads', '1']  # fmt: skip
        if self.plugin and '-w' in more:
            words += ['--use-plugin', str(self.plugin)]
        if self.level == 'group':
            words += ['-d', str(self.cohort), '--model', 'ridge', '--resolution', '8']
            if '--folds' not in OPTIONS['group'][self.options]:
                words += ['--folds', '0']
        return [*words, *OPTIONS[self.level][self.options], *more]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, 'RAISED': json.dumps(self.raised)}

    def state(self) -> str:
        """Return a word for the inputs and options as they are now."""
        facts = [self.level, self.options, sorted(self.raised.items())]
        facts += [sorted(self.scans.items()) if self.level == 'participant' else self.edits]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def tree(out: Path, raw: Path) -> dict[str, str]:
    """Return the hash of each file; of records without the times of this machine.

    Where the dataset lies is left out: a clean run serves all histories that reach its state.
    """
    found = {}
    for path in sorted(out.rglob('*')):
        name = path.relative_to(out).as_posix()
        if not path.is_file() or name.startswith('logs/'):
            continue
        content = path.read_bytes().replace(raw.as_uri().encode(), b'RAW')
        if name.endswith('_record.json'):
            record = json.loads(content)
            for one in record['Inputs'].values():
                for key in ('ModifiedNs', 'ChangedNs', 'HashedNs'):
                    del one[key]
            content = json.dumps(record).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


class Clean:
    """Clean runs, each made once.

    Parameters
    ----------
    folder : Path
        Where they, and the histories, are made.
    keep : Path or None
        Where files that differ are kept, beside those of the clean run.
    """

    def __init__(self, folder: Path, keep: Path | None = None) -> None:
        self.folder, self.keep, self._known, self._lock = folder, keep, {}, Lock()
        self._making: dict[str, Lock] = {}

    def of(self, world: World) -> dict[str, str]:
        """Return what a clean run leaves."""
        state = world.state()
        with self._lock:
            making = self._making.setdefault(state, Lock())
        with making:
            if state not in self._known:
                out = self.folder / state
                done = subprocess.run(
                    world.command(out), env=world.environment, capture_output=True, text=True,
                    timeout=HANGS_S, check=False,
                )  # fmt: skip
                if done.returncode:
                    raise RuntimeError(f'a clean run failed: {done.stdout}{done.stderr[-2000:]}')
                self._known[state] = tree(out, world.raw)
            return self._known[state]

    def differing(self, world: World) -> list[str]:
        """Return the files that are not what a clean run leaves, and keep them if asked to."""
        want, have = self.of(world), tree(world.out, world.raw)
        names = [name for name in sorted({*want, *have}) if want.get(name) != have.get(name)]
        clean = self.folder / world.state()
        for name in names if self.keep else []:
            for kind, out in (('clean', clean), ('history', world.out)):
                target = self.keep / world.root.name / kind / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if (out / name).exists():
                    shutil.copy(out / name, target)
        return [f'{name} {compare(clean / name, world.out / name)}' for name in names]


def compare(clean: Path, history: Path) -> str:
    """Return in words how a file of a history differs from that of a clean run."""
    if not history.exists():
        return 'is missing'
    if not clean.exists():
        return 'should not be there'
    pair = [clean.read_bytes(), history.read_bytes()]
    words = 'differs'
    if clean.suffix == '.gz':
        words, pair = 'differs (unpacked)', [gzip.decompress(content) for content in pair]
        if pair[0] == pair[1]:
            return 'holds the same, packed otherwise'
    places = [i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b]
    if not places:
        return f'{words}: {len(pair[1])} bytes, clean {len(pair[0])}'
    around = [content[max(places[0] - 20, 0) : places[0] + 40] for content in pair]
    return (
        f'{words}: {len(places)} of {len(pair[0])} bytes, from {places[0]} to {places[-1]}: '
        f'{around[1]!r}, clean {around[0]!r}'
    )


def run(world: World, chance: random.Random) -> int:
    """Run to the end; return the exit code."""
    more = ['-w', str(world.root / 'work')] if chance.random() < 0.5 else []
    done = subprocess.run(
        world.command(world.out, *more), env=world.environment, capture_output=True, text=True,
        timeout=HANGS_S, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stdout[-800:], done.stderr[-1500:], file=sys.stderr)
    return done.returncode


def kill(world: World, chance: random.Random, seconds: float) -> None:
    """Start a run and kill it with all its processes at a random moment."""
    more = ['-w', str(world.root / 'work')] if chance.random() < 0.5 else []
    process = subprocess.Popen(
        world.command(world.out, *more), env=world.environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        process.wait(chance.uniform(0.2, 1.0) * seconds)
    except subprocess.TimeoutExpired:
        if chance.random() < 0.3:
            process.send_signal(chance.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGINT]))
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def two(world: World) -> None:
    """Start two runs at once; each ends well or says that the other is at work."""
    runs = [
        subprocess.Popen(
            world.command(world.out), env=world.environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for one in runs:
        said, _ = one.communicate(timeout=HANGS_S)
        if one.returncode and 'another run works on' not in said:
            raise RuntimeError(f'one of two runs failed: {said[-1500:]}')


def damage(world: World, chance: random.Random) -> str:
    """Delete, cut or empty an output."""
    paths = [
        p
        for p in sorted(world.out.rglob('*'))
        if p.is_file() and not p.relative_to(world.out).as_posix().startswith('logs/')
    ]
    paths = [p for p in paths if p.name != 'README.md' and 'participants.json' not in p.name]
    if not paths:
        return 'nothing'
    path, how = chance.choice(paths), chance.choice(['delete', 'cut', 'empty'])
    if how == 'delete':
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if how == 'cut' else b'')
    return f'{how} {path.name}'


def live(
    level: str, data: Path, seed: int, clean: Clean, counts: Counter, plugin: Path | None = None
) -> list[str]:
    """Live through one history; return what differs from clean runs."""
    chance = random.Random(seed)
    root = Path(tempfile.mkdtemp(prefix=f'history-{level}-', dir=clean.folder))
    world, reported, wrong = World(level, data, root, plugin), [], []
    seconds = {'participant': 30.0, 'group': 15.0}[level] * (4 if plugin else 1)
    try:
        world.prepare()
        for _ in range(chance.randint(2, 5)):
            move = chance.choice(
                ['input', 'option', 'raise', 'damage', 'damage', 'kill', 'kill', 'two', 'run']
            )
            counts[move] += 1
            reported.append(move)
            if move == 'input' and level == 'participant':
                kind = chance.choice(['ct', 'cta'])
                world.scans[kind] = '02' if world.scans[kind] == '01' else '01'
            elif move == 'input':
                world.edits = chance.randint(0, 1)
            elif move == 'option':
                world.options = chance.randrange(len(OPTIONS[level]))
            elif move == 'raise':
                world.raised = {chance.choice(STAGES[level]): 2} if not world.raised else {}
            elif move == 'damage':
                reported[-1] = damage(world, chance)
            world.prepare()
            if move == 'kill':
                kill(world, chance, seconds)
            elif move == 'two':
                two(world)
            elif move == 'run':
                wrong += check(world, chance, clean)
        wrong += check(world, chance, clean)
        return [f'seed {seed} ({", ".join(reported)}): {one}' for one in wrong]
    except Exception as error:
        return [f'seed {seed} ({", ".join(reported)}): {type(error).__name__}: {error}']
    finally:
        shutil.rmtree(root, ignore_errors=True)


def check(world: World, chance: random.Random, clean: Clean) -> list[str]:
    """Run, and compare with a clean run."""
    code = run(world, chance)
    if code:
        return [f'exit code {code}']
    return clean.differing(world)


def main() -> None:
    """Print a table, and each history that differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('phantom', type=Path)
    parser.add_argument('--histories', type=int, default=200, help='of both levels together')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--levels', nargs='+', default=['participant', 'group'])
    parser.add_argument('--use-plugin', type=Path, help='for the runs with a working folder')
    parser.add_argument('--keep', type=Path, help='folder for the files that differ')
    options = parser.parse_args()
    data = options.phantom.absolute()
    print('| level | histories | differ | moves | minutes |')
    print('|---|---|---|---|---|')
    failed = []
    with tempfile.TemporaryDirectory(prefix='histories-') as folder:
        clean = Clean(Path(folder), options.keep)
        for level in options.levels:
            counts: Counter = Counter()
            begun = time.monotonic()
            number = options.histories // len(options.levels)
            seeds = range(options.seed * 10000, options.seed * 10000 + number)
            with ThreadPoolExecutor(options.jobs) as pool:
                found = list(pool.map(lambda s, n=level, c=counts: live(
                    n, data, s, clean, c, options.use_plugin), seeds))  # fmt: skip
            wrong = [lines for lines in found if lines]
            failed += [line for lines in wrong for line in lines]
            moves = ', '.join(f'{count} {move}' for move, count in sorted(counts.items()))
            minutes = (time.monotonic() - begun) / 60
            print(f'| {level} | {number} | {len(wrong)} | {moves} | {minutes:.0f} |', flush=True)
    for line in failed:
        print(line)
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
