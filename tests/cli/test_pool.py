"""A worker that is killed, as by Linux when memory runs out, neither hangs nor hides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from bids_perfdeficit.cli import signals
from bids_perfdeficit.cli.logbook import Logbook, _load_plugin, configure_nipype, read_crashes
from bids_perfdeficit.cli.pool import Pool, use_plugin
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.settings import Settings


def die(x):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def die_in_company(x):
    """Stand in for a step that finds no memory beside another."""
    import os
    import signal
    from pathlib import Path

    mark = Path(x)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return str(mark)


def disk_is_full(node, updatehash, task):
    raise OSError(28, 'No space left on device')


def told_to_end(x):
    import signal

    from bids_perfdeficit.cli import signals

    signals._came.append(signal.SIGTERM)
    signals.reraise_signal()


def fail(x):
    raise ValueError(x)


def sleep(x):
    import time

    time.sleep(1)
    return x


def is_imported(x):
    import sys
    import time

    time.sleep(1)  # so that each worker has one
    return x in sys.modules


def step(function, name, **inputs):
    node = pe.Node(
        niu.Function(function=function, input_names=['x'], output_names=['y']), name=name
    )
    node.inputs.trait_set(**inputs)
    return node


@pytest.fixture
def workflow(tmp_path):
    branches = pe.Workflow('run', base_dir=str(tmp_path / 'work'))
    branches.config['execution'] = {
        'crashfile_format': 'txt',
        'crashdump_dir': str(tmp_path),
        'poll_sleep_duration': '0.2',
        'create_report': 'false',
    }
    good = pe.Workflow('good_wf')
    good.connect(step(sleep, 'first', x='here'), 'y', step(sleep, 'second'), 'x')
    branches.add_nodes([good])
    return branches


def results(tmp_path, branch):
    return sorted(p.parent.name for p in (tmp_path / 'work/run' / branch).glob('*/result_*.pklz'))


def test_a_step_that_is_killed_alone_is_named_and_the_others_complete(workflow, tmp_path):
    bad = pe.Workflow('bad_wf')
    bad.connect(step(die, 'greedy', x='here'), 'y', step(sleep, 'after'), 'x')
    workflow.add_nodes([bad])
    with pytest.raises(RuntimeError):
        workflow.run(plugin=Pool({'n_procs': 2}))
    assert results(tmp_path, 'good_wf') == ['first', 'second']
    assert results(tmp_path, 'bad_wf') == []
    ((sentence,),) = read_crashes(tmp_path).values()
    assert sentence.startswith('greedy failed: ')
    assert 'memory' in sentence


def test_a_step_that_was_killed_in_company_is_repeated_alone(workflow, tmp_path):
    bad = pe.Workflow('bad_wf')
    bad.add_nodes([step(die_in_company, 'greedy', x=str(tmp_path / 'mark'))])
    workflow.add_nodes([bad])
    workflow.run(plugin=Pool({'n_procs': 2}))
    assert results(tmp_path, 'good_wf') == ['first', 'second']
    assert results(tmp_path, 'bad_wf') == ['greedy']
    assert read_crashes(tmp_path) == {}


def test_both_workers_of_a_branch_import_what_is_to_be_preloaded(workflow, tmp_path):
    branch = pe.Workflow('run', base_dir=str(tmp_path / 'work'))
    branch.config['execution'] = workflow.config['execution']
    second = step(sleep, 'second')
    branch.connect(step(sleep, 'first', x='tabnanny'), 'y', second, 'x')
    for name in ('one', 'other'):
        branch.connect(second, 'y', step(is_imported, name), 'x')
    ran = branch.run(plugin=Pool({'n_procs': 2, 'preload': ('tabnanny',)}))
    found = {n.name: n.result.outputs.y for n in ran.nodes() if n.name in ('one', 'other')}
    assert found == {'one': True, 'other': True}


def test_a_job_of_a_cluster_without_a_result_fails_its_step_by_name(workflow, tmp_path):
    """Nipype 1.11 fails over the crash file here, and takes the whole run along."""
    node = workflow.get_node('good_wf.first')
    node.config = workflow.config
    reported = 'OSError: Job id (46) finished or terminated, but results file does not exist'
    use_plugin('SLURM', {})._report_crash(node, result={'result': None, 'traceback': reported})
    ((sentence,),) = read_crashes(tmp_path).values()
    assert sentence.startswith('first failed: its job ended without a result')


@pytest.mark.parametrize(
    'content', ['plugin: SLRUM', 'plugin_args: {}', 'SLURM', '- plugin: SLURM', ': : :', '']
)
def test_a_plugin_that_cannot_be_had_is_an_error_with_its_file(content, tmp_path):
    path = tmp_path / 'plugin.yml'
    path.write_text(content)
    with pytest.raises(InputError, match='--use-plugin') as caught:
        _load_plugin(path, None)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('good', [True, False])
def test_the_working_folder_is_emptied_after_a_good_run_only(good, tmp_path):
    """What failed is needed to go on; what others keep there is not ours."""
    work = tmp_path / 'work'
    work.mkdir()
    (work / 'theirs').touch()
    settings = Settings()
    settings = replace(
        settings,
        inputs=replace(settings.inputs, output_dir=tmp_path / 'out'),
        resources=replace(settings.resources, work_dir=work, clean_workdir=True),
    )
    book = Logbook(settings)
    book.start()
    configure_nipype(settings)
    workflow = LiterateWorkflow(name='run')
    workflow.add_nodes([step(sleep if good else fail, 'only', x='here')])
    book.run(workflow, nprocs=1)
    assert bool(list(work.glob('perfdeficit-*/run'))) is not good
    assert (work / 'theirs').exists()
    assert bool(read_crashes(book.folder)) is not good


def test_a_graph_that_cannot_be_drawn_stops_nothing(tmp_path, monkeypatch):
    """Graphviz is not in the image, and seldom on clusters."""
    monkeypatch.setenv('PATH', str(tmp_path))
    settings = Settings()
    settings = replace(
        settings,
        inputs=replace(settings.inputs, output_dir=tmp_path / 'out'),
        outputs=replace(settings.outputs, write_graph=True),
    )
    book = Logbook(settings)
    book.start()
    configure_nipype(settings)
    workflow = LiterateWorkflow(name='run')
    workflow.add_nodes([step(sleep, 'only', x='here')])
    book.run(workflow, nprocs=1)
    assert not read_crashes(book.folder)
    assert (book.folder / 'graph.dot').is_file()
    assert 'Graphviz' in (book.folder / 'run.log').read_text()


def test_a_failure_that_cannot_be_kept_is_no_killed_worker(workflow, tmp_path, monkeypatch):
    """On a full disk not even the error of a step can be written; the cause must be reported."""
    from bids_perfdeficit.cli import pool

    monkeypatch.setattr(pool, 'run_node', disk_is_full)
    with pytest.raises(RuntimeError):
        workflow.run(plugin=Pool({'n_procs': 2}))
    reported = [sentence for reasons in read_crashes(tmp_path).values() for sentence in reasons]
    assert len(reported) == 1
    assert reported[0].startswith(
        'first failed: OSError: [Errno 28] No space left on device; see '
    )


def test_a_step_of_the_run_itself_that_is_told_to_end_has_not_failed(
    workflow, tmp_path, monkeypatch
):
    """Nipype keeps what is raised in a step, whatever it is, for a failure of that step."""
    monkeypatch.setattr(signals, '_came', [])
    node = step(told_to_end, 'within', x='here')
    node.run_without_submitting = True
    workflow.add_nodes([node])
    with pytest.raises(signals.Terminated):
        workflow.run(plugin=Pool({'n_procs': 2}))
    assert list(tmp_path.glob('crash-*.txt')) == []
