"""One run for both levels: what stops one unit stops no other."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bids_perfdeficit.cli.logbook import Outcome
from bids_perfdeficit.cli.runner import Level, Unit, run_level
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.stages.lock import Lock


class Toy(Level):
    """Three units, of which one may be refused when it is planned."""

    units = 'participants'

    def __init__(self, settings, error=None):
        super().__init__(settings)
        self.error, self.seen = error, []

    def find(self):
        return ()

    def is_empty(self):
        return False

    def describe(self):
        return 'three'

    def methods(self):
        return 'methods'

    def begin(self, book):
        pass

    def batches(self):
        names = ['one', 'two', 'three']
        folder = self.output_dir / 'records'
        yield [Unit(name, folder / f'.{name}.lock', (), folder) for name in names]

    def plan(self, unit):
        if unit.name == 'two' and self.error is not None:
            raise self.error
        return 'refused' if unit.name == 'three' else ''

    def workflow(self, units, *, device, threads):
        self.seen = [unit.name for unit in units]

    def judge(self, units, book, failed):
        return [
            Outcome(
                u.name, 'failed' if u.name in failed else 'complete', [*failed.get(u.name, '')]
            )
            for u in units
        ]

    def finish(self, book):
        pass

    def code(self, outcomes, book):
        return int(any(o.status == 'failed' for o in outcomes))

    def threads(self, processes, units):
        return 1


@pytest.fixture
def settings(tmp_path):
    made = Settings()
    return replace(made, inputs=replace(made.inputs, output_dir=tmp_path / 'out'))


@pytest.mark.parametrize(
    'error',
    [None, PermissionError(13, 'Permission denied', '/out/sub-two'), OSError(5, 'I/O error')],
)
def test_a_unit_whose_files_cannot_be_written_fails_alone(settings, capsys, error):
    level = Toy(settings, error)
    assert run_level(level) == 1
    lines = capsys.readouterr().out.splitlines()
    assert 'one: complete' in lines
    assert level.seen == (['one', 'two'] if error is None else ['one'])
    reported = next(line for line in lines if line.startswith('two: '))
    assert (reported == 'two: complete') == (error is None)
    assert error is None or error.strerror in reported


def test_a_unit_that_another_run_works_on_is_named_and_left_alone(settings, capsys):
    path = settings.inputs.output_dir / 'records' / '.one.lock'
    with Lock(path, 'one'):
        level = Toy(settings)
        assert run_level(level) == 1
    assert level.seen == ['two']
    assert 'one: failed: ' in (said := capsys.readouterr().out)
    assert 'another run works on one' in said


def test_the_status_holds_every_unit(settings):
    run_level(Toy(settings))
    (path,) = settings.inputs.output_dir.glob('logs/*/status.json')
    reported = json.loads(path.read_text())
    assert reported['exit_code'] == 1
    assert {n: p['status'] for n, p in reported['participants'].items()} == {
        'one': 'complete', 'two': 'complete', 'three': 'failed',
    }  # fmt: skip
