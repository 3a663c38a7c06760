"""What the group level may expect of every model, also of one that somebody adds."""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bids_perfdeficit import deficit
from bids_perfdeficit.deficit import get_model, model_names
from bids_perfdeficit.deficit.models import unregister
from bids_perfdeficit.deficit.models.base import STATISTICS
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.settings import Settings

ROOT = Path(__file__).parents[2]


def load_toy():
    """Return the model of ``examples/toy_model.py``, which docs/howto.rst shows."""
    name = 'toy_model'
    spec = importlib.util.spec_from_file_location(name, ROOT / 'examples' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.MeanDifference()


@pytest.fixture(scope='module', autouse=True)
def toy():
    model = load_toy()
    deficit.register(model)
    yield model
    unregister(model.name)


@pytest.fixture(scope='module', params=[*model_names(), 'difference'])
def model(request):
    return get_model(request.param)


@pytest.fixture(scope='module')
def problem(cohort, fast):
    scores = cohort.scores.copy()
    scores[:, 3] = 0  # cannot be fitted
    scores[::9, 1] = np.nan
    return cohort.prepared, scores, np.ones((240, 1)), cohort.items, fast


@pytest.fixture(scope='module')
def found(model, problem):
    return model.fit(*problem)


def test_a_model_has_its_words(model):
    assert re.fullmatch('[a-z][a-z0-9]*', model.name)
    assert model.drawing.statistic in ('prob', 'effect')
    assert model.drawing.statistic == 'effect' or model.offers.probability
    assert model.methods.startswith(f'*{model.name}*: ')
    assert model.methods.endswith('.\n')
    assert set(model.statistics) <= set(STATISTICS)
    assert all(model.describe(s) for s in STATISTICS)


def test_marks_of_models_differ():
    from bids_perfdeficit.reports.group_figures import predictor_marks

    marks = predictor_marks()
    assert set(model_names()) < set(marks)
    assert len({mark for _, mark in marks.values()}) == len(marks)
    assert len({colour for colour, _ in marks.values()}) == len(marks)


def test_a_fit_has_what_the_model_offers(model, found, cohort, problem):
    fitted, shape = [0, 1, 2], (4, cohort.grid.n_voxels)
    assert found.usable == (0, 1, 2)
    assert list(found.skipped) == ['1a']
    for name in ('effect', 'std', 'probability', 'declared'):
        assert getattr(found, name).shape == shape, name
    assert np.isfinite(found.effect[fitted]).all()
    assert np.isfinite(found.probability[fitted]).all() == model.offers.probability
    assert np.isfinite(found.p_value[fitted]).all() == model.offers.test
    assert np.isnan(found.effect[3]).all()
    assert not found.declared[3].any()
    assert np.isfinite(found.cut[found.declared.any(1)]).all()
    if model.offers.probability:
        assert found.probability[fitted].min() >= 0
        assert found.probability[fitted].max() <= 1


def test_predictions_alone_are_those_of_the_whole_fit(model, found, problem):
    alone = model.fit(*problem, maps=False)
    assert alone.effect.shape == (4, 0)
    np.testing.assert_allclose(alone.readout.weights, found.readout.weights, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(alone.readout.cuts, found.readout.cuts, rtol=1e-6)


def test_shared_work_changes_nothing(model, found, problem):
    shared = model.share(problem[0], problem[-1])
    again = model.fit(*problem, shared=shared)
    np.testing.assert_array_equal(again.effect, found.effect)
    np.testing.assert_array_equal(again.declared, found.declared)


def test_a_fit_can_be_sent_between_processes(found):
    back = pickle.loads(pickle.dumps(found))  # noqa: S301
    np.testing.assert_array_equal(back.effect, found.effect)


def test_all_of_the_group_level_takes_a_model_by_its_name(toy, cohort, fast, tmp_path):
    arguments = {'items': cohort.items, 'model': toy.name, 'settings': fast}
    fit = deficit.fit(cohort.prepared, cohort.scores, mask=cohort.grid, **arguments)
    fit.save(tmp_path / 'params.pt')
    assert deficit.DeficitFit.load(tmp_path / 'params.pt').model == toy.name
    truth = cohort.substrates['9']
    assert fit.effect[2, truth].mean() > 2 * fit.effect[2].mean()
    held_out = deficit.cross_validate(cohort.prepared, cohort.scores, folds=2, **arguments)
    assert held_out.of('9').auc > 0.6
    null = deficit.null_calibration(cohort.prepared, cohort.scores, shuffles=[0], **arguments)
    assert np.isnan(null.kl).all()
    stability = deficit.bootstrap(cohort.prepared, cohort.scores, draws=[0], **arguments)
    assert stability.count.any()


def test_names_are_those_of_the_command_line(toy):
    assert Settings.from_toml('[group]\nmodel = ["difference"]').group.model == ('difference',)
    names = 'spatial, deep, vae, ridge, voxelwise, difference'
    with pytest.raises(ValueError, match=f'not one of {names}'):
        Settings.from_toml('[group]\nmodel = ["forest"]')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('ridge', 'already'),
        ('my_model', 'letters and digits'),
        ('Mine', 'lower-case'),
        ('', 'cannot be the name'),
    ],
)
def test_a_name_that_cannot_be_is_refused(toy, monkeypatch, name, message):
    monkeypatch.setattr(type(toy), 'name', name)
    with pytest.raises(InputError, match=message):
        deficit.register(toy)
    assert name not in set(model_names()) - {'ridge'}


def test_names_cost_no_import_of_the_models():
    code = (
        'import sys; from bids_perfdeficit.cli.parser import build_parser; build_parser(); '
        "print({'torch', 'numpy', 'nibabel'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'


def test_no_module_but_the_registry_knows_a_model_by_name():
    """A model that is added must need no other file."""
    known = {ROOT / 'bids_perfdeficit' / name for name in (
        'deficit/models/__init__.py', 'settings.py', 'cli/parser.py', 'cli/demo.py',
    )}  # fmt: skip
    names = '|'.join(n for n in model_names() if n != 'difference')
    for path in (ROOT / 'bids_perfdeficit').rglob('*.py'):
        text = path.read_text()
        if path in known or path.parent.name == 'models':
            continue
        found = re.findall(rf"[=!]= '(?:{names})'|'(?:ridge|vae|voxelwise)'", text)
        assert found == [], path
