"""The lines that tell how far a run has come add up, whatever becomes of its steps."""

from __future__ import annotations

import logging
import re

import nipype.interfaces.utility as niu
import nipype.pipeline.engine as pe
import pytest

from bids_perfdeficit.cli.logbook import LOGGER, Progress
from bids_perfdeficit.cli.pool import Pool, use_plugin


def keep(x):
    return x


def fail(x):
    raise ValueError(x)


def step(function, name, **inputs):
    kind = {'iterfield': ['x']} if isinstance(inputs.get('x'), list) else {}
    node = (pe.MapNode if kind else pe.Node)(
        niu.Function(function=function, input_names=['x'], output_names=['y']), name=name, **kind
    )
    node.inputs.trait_set(**inputs)
    return node


def branch(name, first):
    """Two steps after the first, behind identities that Nipype takes out before it runs."""
    made = pe.Workflow(name)
    buffer = pe.Node(niu.IdentityInterface(fields=['x']), name='buffer')
    made.connect(first, 'y', buffer, 'x')
    made.connect(buffer, 'x', step(keep, 'second'), 'x')
    made.connect(made.get_node('second'), 'y', step(keep, 'third'), 'x')
    return made


@pytest.fixture
def workflow(tmp_path):
    run = pe.Workflow('run', base_dir=str(tmp_path / 'work'))
    run.config['execution'] = {
        'crashfile_format': 'txt', 'crashdump_dir': str(tmp_path),
        'poll_sleep_duration': '0.1', 'create_report': 'false',
    }  # fmt: skip
    run.add_nodes([
        branch('sub_01_wf', step(keep, 'first', x='here')),
        branch('sub_02_ses_a_wf', step(keep, 'pieces', x=['a', 'b', 'c'])),
        branch('sub_03_wf', step(fail, 'first', x='here')),
        branch('sub_04_wf', step(fail, 'pieces', x=['a', 'b'])),
    ])  # fmt: skip
    return run


@pytest.fixture
def reported(caplog, monkeypatch):
    """Return the messages of the app's log, once each whatever ran in this process before."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(LOGGER, 'handlers', [handler])
    monkeypatch.setattr(LOGGER, 'propagate', False)
    caplog.set_level('INFO', LOGGER.name)
    return messages


@pytest.mark.parametrize('plugin', [Pool, lambda args: use_plugin('Linear', args)])
def test_the_count_ends_where_it_said_it_would(workflow, reported, plugin):
    progress = Progress()
    with pytest.raises(RuntimeError):
        workflow.run(plugin=progress.watch(plugin({'n_procs': 1, 'status_callback': progress})))
    assert progress.done == progress.total > 0
    ended = [m for m in reported if re.search(r' \d of 4 participants', m)]
    assert [m.split(' of 4')[0][-1] for m in ended] == ['1', '2', '3', '4']
    assert {m.split(',')[0] for m in ended} == {
        'sub-01: done', 'sub-02_ses-a: done', 'sub-03: failed', 'sub-04: failed',
    }  # fmt: skip


def test_the_group_level_counts_no_participants(workflow, reported):
    progress = Progress('models')
    with pytest.raises(RuntimeError):
        workflow.run(plugin=progress.watch(Pool({'n_procs': 1, 'status_callback': progress})))
    assert progress.done == progress.total > 0
    assert reported
    assert not any('participants' in message for message in reported)
