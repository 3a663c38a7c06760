"""What every model must do: find what is there, declare nothing where nothing is, be kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_perfdeficit import deficit
from bids_perfdeficit.deficit import DeficitFit, Item, fit, prepare
from bids_perfdeficit.deficit.models import vae
from bids_perfdeficit.deficit.preparation import channels
from bids_perfdeficit.errors import InputError

MODELS = ('spatial', 'deep', 'ridge', 'voxelwise', 'vae')


@pytest.fixture(scope='module')
def fits(cohort, fast) -> dict[str, DeficitFit]:
    return {
        model: fit(
            cohort.prepared, cohort.scores, mask=cohort.grid, items=cohort.items,
            model=model, settings=fast,
        )
        for model in MODELS
    }  # fmt: skip


def overlap(cohort, found: DeficitFit) -> dict[str, float]:
    out = {}
    for name, truth in cohort.substrates.items():
        k = [i.name for i in found.items].index(name)
        declared = found.declared[k]
        out[name] = 2 * (declared & truth).sum() / max(declared.sum() + truth.sum(), 1)
    return out


@pytest.mark.parametrize(('model', 'least'), [('spatial', 0.4), ('ridge', 0.25)])
def test_substrates_are_found(cohort, fits, model, least):
    found = overlap(cohort, fits[model])
    assert min(found.values()) > least, found


def test_substrates_rank_high_in_every_linear_map(cohort, fits):
    for model in ('spatial', 'ridge', 'voxelwise'):
        for name, truth in cohort.substrates.items():
            k = [i.name for i in fits[model].items].index(name)
            effect = fits[model].effect[k]
            rank = effect.argsort().argsort() / len(effect)
            assert rank[truth].mean() > 0.9, (model, name)


def test_spatial_leaves_an_item_that_follows_volume_to_its_null_component(fits):
    spatial = fits['spatial']
    assert not spatial.declared[3].any()
    detail = spatial.details['1a']
    assert detail['components'] == []
    assert max(detail['kl']) == 0
    assert detail['null_component'][0] > 0.5


def test_spatial_components_carry_information_on_signal(fits):
    for name in ('5a', '5b', '9'):
        assert max(fits['spatial'].details[name]['kl']) > 0.5


def test_sides_are_kept_apart(cohort, fits):
    xyz = cohort.grid.coordinates
    for model in ('spatial', 'ridge'):
        declared = fits[model].declared
        assert xyz[declared[0], 0].mean() > 10, 'the left arm depends on the right hemisphere'
        assert xyz[declared[1], 0].mean() < -10


@pytest.mark.parametrize('model', MODELS)
def test_same_seed_same_fit(cohort, fits, fast, model):
    again = fit(
        cohort.prepared, cohort.scores, mask=cohort.grid, items=cohort.items,
        model=model, settings=fast,
    )  # fmt: skip
    for name in ('effect', 'std', 'probability', 'declared', 'cut', 'p_value'):
        np.testing.assert_array_equal(getattr(again, name), getattr(fits[model], name), name)


@pytest.mark.parametrize('model', MODELS)
def test_save_and_load_keep_everything(cohort, fits, flow, tmp_path, model):
    found = replace(fits[model], skipped={'1a': 'for the test'})
    found.save(tmp_path / 'params.pt')
    back = DeficitFit.load(tmp_path / 'params.pt')
    for name in ('effect', 'std', 'probability', 'declared', 'cut', 'p_value'):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name), name)
    assert back.items == found.items
    assert back.settings == found.settings
    assert back.details == found.details
    one, two = (f.predict(cohort.maps[:5]) for f in (found, back))
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-6)
    assert np.isnan(two.eta[:, 3]).all()
    np.testing.assert_array_equal(found.draw(flow, 3, seed=1)[1], back.draw(flow, 3, seed=1)[1])
    assert [p.name for p in tmp_path.iterdir()] == ['params.pt']


@pytest.mark.parametrize('model', MODELS)
def test_predictions_are_probabilities_and_rise_with_the_score(cohort, fits, model):
    predictions = fits[model].predict(cohort.maps)
    np.testing.assert_allclose(predictions.probabilities.sum(2), 1, atol=1e-6)
    if model != 'vae':  # three epochs teach it nothing
        for k in range(3):
            assert np.corrcoef(predictions.expected[:, k], cohort.scores[:, k])[0, 1] > 0.3


def test_predict_agrees_with_what_was_prepared(cohort, fits):
    spatial, prepared = fits['spatial'], cohort.prepared
    direct = spatial.predict(cohort.maps).eta
    features = channels(prepared.features[0], prepared.coarse, spatial.healthy)
    shared = spatial.predict_prepared(features).eta
    np.testing.assert_allclose(direct, shared, atol=1e-3)


def test_spatial_and_ridge_probabilities_are_calibrated_on_average(cohort, fits):
    """Frequencies of the levels that are predicted are those that were seen."""
    for model in ('spatial', 'ridge', 'voxelwise'):
        predicted = fits[model].predict(cohort.maps).probabilities.mean(0)
        for k, item in enumerate(cohort.items):
            seen = [(cohort.scores[:, k] == level).mean() for level in range(item.levels)]
            np.testing.assert_allclose(predicted[k, : item.levels], seen, atol=0.05)


@pytest.mark.parametrize('model', ['spatial', 'ridge', 'voxelwise'])
def test_missing_scores_are_left_out(cohort, fast, model):
    """A row without any score changes a fit only through the generative model of maps."""
    scores = cohort.scores[:, 2:3].copy()
    scores[::7] = np.nan
    seen = np.isfinite(scores[:, 0])
    items = (Item('9', 4),)
    with_rows = fit(cohort.prepared, scores, mask=cohort.grid, items=items, model=model,
                    settings=replace(fast, permutations=0))  # fmt: skip
    part = replace(
        cohort.prepared,
        measured=cohort.prepared.measured[seen],
        features=tuple(f[seen] for f in cohort.prepared.features),
    )
    without = fit(part, scores[seen], mask=cohort.grid, items=items, model=model,
                  settings=replace(fast, permutations=0))  # fmt: skip
    corr = np.corrcoef(with_rows.effect[0], without.effect[0])[0, 1]
    assert corr > 0.999


def test_a_covariate_that_explains_the_score_takes_it_over(cohort, fast):
    covariate = cohort.scores[:, 2:3] + 0.01 * np.random.default_rng(0).normal(size=(240, 1))
    items = (Item('9', 4),)
    found = fit(cohort.prepared, cohort.scores[:, 2:3], covariate, mask=cohort.grid,
                items=items, settings=fast)  # fmt: skip
    assert not found.declared.any()
    assert found.readout.gamma[0, 0] > 1


def test_maps_not_scanned_in_part_are_completed(cohort, fast):
    maps = cohort.maps.copy()
    low = cohort.grid.coordinates[:, 2] < -20
    maps[::3, low] = np.nan
    prepared = prepare(maps, cohort.grid, fast)
    assert np.isfinite(prepared.measured).all()
    error = (prepared.measured - cohort.prepared.measured)[::3][:, low]
    spread = cohort.prepared.measured[::3][:, low].std()
    assert np.sqrt((error**2).mean()) < spread


def test_vae_training_goes_on_to_the_same_result(cohort, fast, tmp_path):
    one = (cohort.items[2],)
    arguments = {'mask': cohort.grid, 'items': one, 'model': 'vae'}
    scores = cohort.scores[:, 2:3]
    straight = fit(cohort.prepared, scores, **arguments, settings=fast)
    fit(cohort.prepared, scores, **arguments, settings=replace(fast, vae_epochs=1),
        checkpoint=tmp_path / 'state.pt')  # fmt: skip
    resumed = fit(cohort.prepared, scores, **arguments, settings=fast,
                  checkpoint=tmp_path / 'state.pt')  # fmt: skip
    np.testing.assert_array_equal(straight.effect, resumed.effect)
    assert len(resumed.details['9']['curve']) == 3


def test_vae_ignores_a_checkpoint_of_other_data(cohort, fast, tmp_path, caplog):
    one = (cohort.items[2],)
    path = tmp_path / 'state.pt'
    arguments = {'mask': cohort.grid, 'items': one, 'model': 'vae', 'settings': fast}
    straight = fit(cohort.prepared, cohort.scores[:, 2:3], **arguments)
    fit(cohort.prepared, cohort.scores[::-1, 2:3], **arguments, checkpoint=path)
    again = fit(cohort.prepared, cohort.scores[:, 2:3], **arguments, checkpoint=path)
    np.testing.assert_array_equal(straight.effect, again.effect)
    assert 'anew' in caplog.text
    path.write_bytes(b'no checkpoint')
    fit(cohort.prepared, cohort.scores[:, 2:3], **arguments, checkpoint=path)
    assert 'cannot be read' in caplog.text


def test_vae_reports_its_latents(fits):
    detail = fits['vae'].details['5a']
    assert detail['kl_substrate'] >= 0
    assert detail['kl_reconstruction'] >= 0
    assert 0.905 <= detail['quantile'] <= 0.995
    assert all(np.isfinite(row).all() and len(row) == 6 for row in detail['curve'])


def test_vae_trains_on_nine_tenths_and_watches_and_calibrates_on_a_twentieth_each(
    cohort, fast, monkeypatch
):
    seen = []

    def train(maps, scores, *rest):
        seen.extend([*(len(part) for part in maps), *(len(part) for part in scores)])
        substrate = maps[0][:, 0].mean(0)
        return substrate, substrate, {}

    def best_quantile(x, y, substrate):
        seen.extend([len(x), len(y)])
        return 0.95

    monkeypatch.setattr(vae, '_train', train)
    monkeypatch.setattr(vae, '_best_quantile', best_quantile)
    fit(cohort.prepared, cohort.scores[:, 2:3], mask=cohort.grid, items=cohort.items[2:3],
        model='vae', settings=fast)  # fmt: skip
    assert seen == [216, 12, 216, 12, 12, 12]  # of 240


def test_vae_clamps_its_log_variances():
    model = vae.PublishedVAE((8, 8, 8), 2, 4).eval()
    torch.nn.init.constant_(model.log_variance.bias, 1e4)
    x, y, coordinates = torch.zeros(2, 1, 8, 8, 8), torch.zeros(2), torch.zeros(1, 3, 8, 8, 8)
    mean, log_variance = model.encode(x, y, coordinates)
    assert float(log_variance.detach().max()) == 10
    assert torch.isfinite(vae.divergence(mean, log_variance)).all()


def test_public_names_are_not_hidden_by_submodules():
    import bids_perfdeficit.deficit.preparation  # noqa: F401

    for name in deficit.__all__:
        value = getattr(deficit, name)
        assert callable(value), name


# --- bad input


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'scores': np.zeros((240, 4))}, 'no item can be fitted (5a: only 0 participants have a'),
        ({'scores': np.full((240, 4), 2.0)}, 'free of a deficit'),
        ({'scores': np.full((240, 4), np.nan)}, 'no participant has a score'),
        (
            {'scores': np.full((240, 4), 7.0)},
            'item 5a has the score 7, which is not one of 0 to 4',
        ),
        ({'scores': np.full((240, 4), 0.5)}, 'has the score 0.5'),
        ({'scores': np.zeros((239, 4))}, '239 rows of scores for 240 maps'),
        ({'scores': np.zeros((240, 3))}, 'do not fit 4 items'),
        ({'model': 'magic'}, "'magic' is not a deficit model; choose from spatial, deep, vae"),
        ({'covariates': np.zeros((3, 1))}, 'do not fit 240 participants'),
        ({'items': (Item('5a', 5),) * 4}, 'two items have the same name'),
    ],
)
def test_bad_input_is_told_in_one_message(cohort, fast, change, message):
    arguments = {
        'maps': cohort.prepared, 'scores': cohort.scores, 'mask': cohort.grid,
        'items': cohort.items, 'settings': fast, **change,
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        fit(**arguments)
    assert message in str(caught.value)


def test_three_patients_are_too_few(cohort, fast):
    with pytest.raises(InputError, match='3 participants have both a map and scores'):
        fit(cohort.maps[:3], cohort.scores[:3], mask=cohort.grid, items=cohort.items,
            settings=fast)  # fmt: skip


def test_maps_of_another_mask_are_refused(cohort, fast, fits):
    with pytest.raises(InputError, match='do not fit a mask'):
        prepare(cohort.maps[:, 1:], cohort.grid, fast)
    with pytest.raises(InputError, match='space and resolution'):
        fits['spatial'].predict(cohort.maps[:, 1:])
    with pytest.raises(InputError, match='1 covariates were given'):
        fits['spatial'].predict(cohort.maps, np.zeros((240, 1)))


@pytest.mark.parametrize('model', ['spatial', 'ridge', 'voxelwise'])
def test_items_that_cannot_be_fitted_are_skipped_and_the_others_finish(cohort, fast, model):
    scores = cohort.scores.copy()
    scores[:, 0] = 0
    scores[10:, 3] = np.nan
    found = fit(cohort.prepared, scores, mask=cohort.grid, items=cohort.items, model=model,
                settings=fast)  # fmt: skip
    assert found.skipped['5a'] == 'only 0 participants have a deficit; 5 are needed'
    assert found.skipped['1a'] == 'only 10 participants have a score; 20 are needed'
    assert np.isnan(found.effect[0]).all()
    assert np.isnan(found.predict(cohort.maps[:2]).probabilities[:, 0]).all()
    assert np.isfinite(found.effect[2]).all()


def test_a_file_that_is_no_model_is_told(tmp_path):
    path = tmp_path / 'params.pt'
    path.write_bytes(b'nothing')
    with pytest.raises(InputError, match=r'params.pt: no deficit model of this version'):
        DeficitFit.load(path)


def test_scores_are_drawn_for_maps_of_the_same_mask_only(fits, flow):
    maps, scores = fits['spatial'].draw(flow, 5, seed=1)
    assert maps.shape == (5, flow.grid.n_voxels)
    assert scores.shape == (5, 4)
    masks = {
        'another size': np.ones((2, 2, 2), bool),
        'as many voxels': np.roll(flow.grid.mask, 1, 2),
    }
    assert not np.array_equal(masks['as many voxels'], flow.grid.mask)
    for mask in masks.values():
        other = replace(flow, grid=replace(flow.grid, mask=mask))
        with pytest.raises(InputError, match='the mask of the flow'):
            fits['spatial'].draw(other, 5, seed=1)
