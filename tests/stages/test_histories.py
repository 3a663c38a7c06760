"""Whatever happened before, a run leaves what a clean run would leave.

The stages are toys of a few bytes, so that thousands of histories take seconds: two inputs, a
stage on one of them, a stage on that and the other input, and one at the end that leaves as many
files as an option says. A history edits inputs and options, raises versions, deletes, cuts and
empties outputs, kills runs at any operation on files, starts one run within another, and runs.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bids_perfdeficit.bids.files import remove_leftovers, write_bytes
from bids_perfdeficit.stages.lock import Busy, Lock
from bids_perfdeficit.stages.task import (
    Task,
    examine,
    find_unlisted,
    publish,
    recover,
    withdraw,
)


class Killed(BaseException):
    """The process ended here."""


@dataclass
class World:
    """Inputs, options and versions as they are now."""

    folder: Path
    sharpen: int = 1
    files: int = 2
    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys('abc', 1))
    app: str = '1.0'
    level: str = 'full'

    @property
    def out(self) -> Path:
        return self.folder / 'out'

    def tasks(self, out: Path) -> dict[str, Task]:
        common = {'root': out, 'app': self.app}
        records = out / 'records'
        a = Task(
            'a', self.versions['a'], record=records / 'a_record.json',
            options={'sharpen': self.sharpen}, inputs={'one': self.folder / 'one'},
            outputs=('a.txt', 'a.json'), **common,
        )  # fmt: skip
        b = Task(
            'b', self.versions['b'], record=records / 'b_record.json', options={},
            inputs={'two': self.folder / 'two'}, requires=(a,), outputs=('b.txt',), **common,
        )  # fmt: skip
        c = Task(
            'c', self.versions['c'], record=records / 'c_record.json',
            options={'files': self.files}, requires=(a, b), **common,
        )  # fmt: skip
        return {'a': a, 'b': b, 'c': c}

    def compute(self, name: str, out: Path) -> dict[str, bytes]:
        """Return what a stage leaves; it reads from disk what the stages before it left."""
        if name == 'a':
            text = (self.folder / 'one').read_bytes() * self.sharpen
            return {'a.txt': text + str(self.versions['a']).encode(), 'a.json': b'{}'}
        if name == 'b':
            return {'b.txt': (self.folder / 'two').read_bytes() + (out / 'a.txt').read_bytes()}
        text = (out / 'b.txt').read_bytes() + (out / 'a.json').read_bytes()
        return {f'deep/c{n}.txt': text + bytes([n]) for n in range(self.files)}


def run(world: World, out: Path) -> None:
    """Do what the app does: lock, finish what was interrupted, remove what is stale, compute."""
    with Lock(out / 'records' / '.lock', 'the toy', patience=0):
        for folder in (out, out / 'deep', out / 'records'):
            remove_leftovers(folder, any_owner=True)
        recover(out, out / 'records')
        for path in find_unlisted(out, out / 'records', (out / 'deep').glob('*')):
            path.unlink()
        tasks = world.tasks(out)
        known: dict = {}
        for task in tasks.values():
            if not examine(task, known=known).done:
                withdraw(task)
        for name, task in tasks.items():
            if examine(task).done:
                continue
            made = world.compute(name, out)
            publish(task, {n: lambda path, c=content: write_bytes(c, path)
                           for n, content in made.items()})  # fmt: skip


@contextmanager
def killed_after(count: int) -> Iterator[None]:
    """End the process, as SIGKILL does, before the operation on files of that number."""
    real = {'replace': os.replace, 'unlink': Path.unlink}
    left = [count]

    def step(name):
        def call(*args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real[name](*args, **kwargs)

        return call

    patch = pytest.MonkeyPatch()
    patch.setattr(os, 'replace', step('replace'))
    patch.setattr(Path, 'unlink', step('unlink'))
    try:
        yield
    finally:
        patch.undo()


def state(out: Path) -> dict[str, object]:
    """Return every file: outputs as bytes, records without the times of this machine."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob('*')):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or path.name == '.lock':
            continue
        found[name] = path.read_bytes()
        if path.name.endswith('_record.json'):
            content = json.loads(path.read_text())
            for one in content['Inputs'].values():
                for key in ('ModifiedNs', 'ChangedNs', 'HashedNs'):
                    del one[key]
            found[name] = content
    return found


def clean(world: World) -> dict[str, object]:
    out = world.folder / 'clean'
    shutil.rmtree(out, ignore_errors=True)
    run(world, out)
    return state(out)


def act(world: World, move: tuple) -> None:
    """Let one thing happen."""
    kind, *rest = move
    outputs = sorted(p for p in world.out.rglob('*') if p.is_file()) if world.out.exists() else []
    if kind == 'edit':
        (world.folder / rest[0]).write_bytes(rest[1])
    elif kind == 'replace':  # under the same name, size and time
        path = world.folder / rest[0]
        before = path.stat()
        path.write_bytes(path.read_bytes()[::-1])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif kind == 'option':
        setattr(world, rest[0], rest[1])
    elif kind == 'version':
        world.versions = world.versions | {rest[0]: rest[1]}
    elif kind == 'app':
        world.app = rest[0]
    elif kind in ('delete', 'cut', 'empty') and outputs:
        path = outputs[rest[0] % len(outputs)]
        if kind == 'delete':
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] if kind == 'cut' else b'')
    elif kind == 'kill':
        try:
            with killed_after(rest[0]):
                run(world, world.out)
        except Killed:
            from bids_perfdeficit.stages import lock

            lock._held.clear()
    elif kind == 'run':
        run(world, world.out)
    elif kind == 'two':
        within(world)


def within(world: World) -> None:
    """Start a second run while the first computes: it is refused, and the first is not harmed."""
    real = World.compute
    refused = []

    def compute(self, name, out):
        if out == world.out:
            try:
                World.compute = real
                run(replace(self, sharpen=9, versions=dict(self.versions)), out)
            except Busy as error:
                refused.append(error)
            finally:
                World.compute = compute
        return real(self, name, out)

    World.compute = compute
    try:
        run(world, world.out)
    finally:
        World.compute = real
    assert all('another run' in str(error) for error in refused)


MOVES = st.one_of(
    st.tuples(st.just('edit'), st.sampled_from(['one', 'two']), st.binary(max_size=4)),
    st.tuples(st.just('replace'), st.sampled_from(['one', 'two'])),
    st.tuples(st.just('option'), st.just('sharpen'), st.integers(1, 3)),
    st.tuples(st.just('option'), st.just('files'), st.integers(0, 4)),
    st.tuples(st.just('version'), st.sampled_from('abc'), st.integers(1, 3)),
    st.tuples(st.just('app'), st.sampled_from(['1.0', '1.1'])),
    st.tuples(st.sampled_from(['delete', 'cut', 'empty']), st.integers(0, 20)),
    st.tuples(st.just('kill'), st.integers(0, 25)),
    st.tuples(st.just('run')),
    st.tuples(st.just('two')),
)


def follow(moves: list[tuple]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / 'one').write_bytes(b'xy')
        (folder / 'two').write_bytes(b'uv')
        world = World(folder)
        for move in moves:
            act(world, move)
            if move[0] in ('run', 'two'):
                assert state(world.out) == clean(world)
        run(world, world.out)
        assert state(world.out) == clean(world)
    finally:
        shutil.rmtree(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@example([('run',), ('replace', 'one'), ('run',)])
@example([('run',), ('option', 'files', 4), ('kill', 9), ('option', 'files', 0), ('run',)])
@example([('run',), ('option', 'files', 0), ('delete', 0), ('delete', 6)])
@given(st.lists(MOVES, max_size=14))
def test_a_run_leaves_what_a_clean_run_leaves(moves):
    follow(moves)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(MOVES, min_size=4, max_size=30))
def test_a_run_leaves_what_a_clean_run_leaves_after_long_histories(moves):
    follow(moves)


@pytest.mark.parametrize('count', range(26))
def test_a_run_killed_before_any_operation_is_finished_by_the_next(count, tmp_path):
    (tmp_path / 'one').write_bytes(b'xy')
    (tmp_path / 'two').write_bytes(b'uv')
    world = World(tmp_path)
    run(world, world.out)
    world.sharpen, world.files = 2, 3
    act(world, ('kill', count))
    run(world, world.out)
    assert state(world.out) == clean(world)
