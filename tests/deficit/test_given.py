"""Maps that users give: models use them as they are, and say nothing where nobody is lesioned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_perfdeficit import deficit
from bids_perfdeficit.deficit import DeficitFit, Grid, Item, model_names, prepare
from bids_perfdeficit.deficit.dictionary import build_dictionary
from bids_perfdeficit.deficit.preparation import find_covered
from bids_perfdeficit.deficit.settings import LEAST_AFFECTED
from bids_perfdeficit.errors import InputError
from tests.deficit.conftest import FAST, brain_grid, sphere

GIVEN = replace(FAST, as_given=True)
ITEMS = (Item('5b', 5, '5a'), Item('5a', 5, '5b'))
COUNT = 120


@pytest.fixture(scope='module')
def lesions():
    """Lesions of the left hemisphere on the voxels that five or more share, and their scores."""
    rng = np.random.default_rng(4)
    whole = brain_grid()
    xyz = whole.coordinates
    left = xyz[xyz[:, 0] < -16]
    centres = left[rng.integers(len(left), size=COUNT)]
    radius = rng.uniform(12, 30, COUNT)
    maps = np.linalg.norm(xyz[None] - centres[:, None], axis=2) <= radius[:, None]
    maps &= xyz[:, 0] < -4
    covered = maps.sum(0) >= LEAST_AFFECTED
    grid = Grid(whole.embed(covered) > 0, whole.affine)
    maps = maps[:, covered].astype(np.float32)
    substrate = sphere(grid, (-36, -20, 36), 14)
    latent = 6 * maps[:, substrate].mean(1) + rng.logistic(size=COUNT)
    cuts = np.quantile(latent, [0.5, 0.65, 0.8, 0.9])
    arm = (latent[:, None] > cuts).sum(1).astype(float)
    other = rng.permutation(arm)  # the left arm depends on the hemisphere that nobody has lesioned
    return grid, maps, np.c_[arm, other], substrate


@pytest.fixture(scope='module')
def prepared(lesions):
    grid, maps, _, _ = lesions
    return prepare(maps, grid, GIVEN)


def test_maps_are_neither_denoised_nor_compared_with_the_other_side(prepared, lesions):
    np.testing.assert_array_equal(prepared.features[0], lesions[1])
    assert len(prepared.features) == 1


def test_what_was_not_scanned_is_filled_and_nothing_else_changes(lesions):
    grid, maps, _, _ = lesions
    holes = maps.copy()
    holes[:3, :5] = np.nan
    found = prepare(holes, grid, GIVEN)
    np.testing.assert_array_equal(found.features[0][3:], maps[3:])
    assert np.isfinite(found.measured).all()
    assert 0 <= found.measured[:3, :5].min() <= found.measured[:3, :5].max() <= 1
    assert np.isnan(found.scanned(np.arange(3))[:, :5]).all()


@pytest.mark.parametrize('model', model_names())
def test_every_model_fits_one_sided_lesions_and_predicts(lesions, prepared, model, tmp_path):
    grid, maps, scores, substrate = lesions
    fit = deficit.fit(prepared, scores, None, mask=grid, items=ITEMS, model=model, settings=GIVEN)
    if model != 'vae':
        assert np.nanmax(fit.effect[0][substrate]) == pytest.approx(
            np.nanmax(fit.effect[0]), rel=0.5
        )
        assert fit.declared[0].any()
        assert not fit.declared[1].any()
    assert fit.healthy is None
    fit.save(tmp_path / 'params.pt')
    back = DeficitFit.load(tmp_path / 'params.pt')
    assert back.settings.as_given
    np.testing.assert_allclose(
        back.predict(maps).eta, fit.predict_prepared(prepared.features).eta, atol=1e-5
    )
    fold = deficit.fit_fold(
        prepared, scores, items=ITEMS, model=model, settings=GIVEN, folds=3, fold=1
    )
    assert np.isfinite(fold.probabilities).all()


def test_a_ball_whose_mirror_image_lies_outside_stands_alone(lesions):
    grid = lesions[0]
    found = build_dictionary(grid, FAST.radii, FAST.spacings, paired=False)
    assert found.alone.any()
    np.testing.assert_array_equal(found.mirror[found.mirror], np.arange(len(found.radii)))
    pairs = ~found.alone
    np.testing.assert_allclose(
        found.centres[found.mirror[pairs]], found.centres[pairs] * [-1, 1, 1], atol=1e-9
    )
    whole = build_dictionary(brain_grid(), FAST.radii, FAST.spacings)
    assert not whole.alone.any()


def test_a_place_of_two_balls_needs_both_of_them(lesions, prepared):
    from bids_perfdeficit.deficit.models.spatial import lay_out

    candidates = lay_out(prepared, GIVEN)
    n_spheres = len(candidates.dictionary.radii)
    assert candidates.healthy is None
    assert candidates.n_channels == 1
    prior = candidates.log_prior.exp().numpy()
    assert (prior[n_spheres:][candidates.dictionary.alone] == 0).all()
    assert (prior[:n_spheres] > 0).all()


def test_too_little_coverage_for_any_sphere_is_an_error():
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    with pytest.raises(InputError, match='no space for a region'):
        build_dictionary(Grid(mask, np.diag([2.0, 2, 2, 1])), (5.0,), (4.0,), paired=False)


@pytest.mark.parametrize('model', ['spatial', 'ridge', 'voxelwise'])
def test_an_item_that_few_have_says_nothing_where_few_of_them_are_lesioned(
    lesions, prepared, model
):
    grid, maps, scores, substrate = lesions
    some = scores.copy()
    strong = np.flatnonzero(maps[:, substrate].any(1))
    some[strong[LEAST_AFFECTED - 2 :], 0] = np.nan  # of the lesioned hardly anyone has a score
    seen = np.flatnonzero(np.isfinite(some[:, 0]))
    covered = find_covered(prepared, seen, GIVEN)
    assert 0 < covered.sum() < grid.n_voxels
    assert not covered[substrate].any()
    fit = deficit.fit(prepared, some, None, mask=grid, items=ITEMS, model=model, settings=GIVEN)
    for values in (fit.effect, fit.std, fit.probability, fit.declared):
        assert not values[0][~covered].any()
    assert find_covered(prepared, seen, FAST).all(), 'computed maps have values everywhere'


def test_stability_and_shuffles_stay_where_the_coverage_is(lesions, prepared):
    grid, _, scores, _ = lesions
    problem = {'items': ITEMS, 'model': 'ridge', 'settings': GIVEN}
    null = deficit.null_calibration(prepared, scores, shuffles=[0, 1], **problem)
    assert null.declared.shape == (2, 2)
    stability = deficit.bootstrap(prepared, scores, draws=[0, 1], **problem)
    assert stability.share.shape == (2, grid.n_voxels)


def ordinary_least_squares(y, x, covariates):
    """Return slope, standard error and t of one predictor beside others, by the textbook."""
    design = np.c_[x, np.ones(len(y)), covariates]
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ y
    rest = y - design @ beta
    error = np.sqrt(rest @ rest / (len(y) - design.shape[1]) * inverse[0, 0])
    return beta[0], error, beta[0] / error


def test_the_slope_of_voxelwise_is_adjusted_as_its_t(lesions, prepared):
    grid, maps, scores, _ = lesions
    rng = np.random.default_rng(0)
    covariates = np.c_[maps.mean(1) + 0.01 * rng.standard_normal(COUNT), rng.normal(size=COUNT)]
    fit = deficit.fit(
        prepared, scores, covariates, mask=grid, items=ITEMS, model='voxelwise', settings=GIVEN
    )
    for voxel in (0, 7, 100, int(np.argmax(fit.effect[0]))):
        slope, error, t = ordinary_least_squares(scores[:, 0], maps[:, voxel], covariates)
        assert fit.effect[0, voxel] == pytest.approx(slope, rel=1e-3)
        assert fit.std[0, voxel] == pytest.approx(error, rel=1e-2)
        assert fit.t(0)[voxel] == pytest.approx(t, rel=1e-2)
    twice = np.c_[covariates, covariates[:, 0]]  # says the same once more
    again = deficit.fit(
        prepared, scores, twice, mask=grid, items=ITEMS, model='voxelwise', settings=GIVEN
    )
    np.testing.assert_allclose(again.effect, fit.effect, atol=1e-4)


def test_peaks_of_voxelwise_are_those_of_t_and_not_of_the_slope(lesions, prepared):
    grid, _, scores, _ = lesions
    fit = deficit.fit(
        prepared, scores, None, mask=grid, items=ITEMS, model='voxelwise', settings=GIVEN
    )
    table = deficit.clusters_table(fit)
    inside = np.where(fit.declared[0], fit.t(0), -np.inf)
    assert table['peak'].max() == pytest.approx(inside.max())
    peak = table.loc[table['peak'].idxmax(), ['x', 'y', 'z']].to_numpy(float)
    np.testing.assert_allclose(peak, grid.coordinates[inside.argmax()], atol=0.1)


def test_where_there_is_no_other_side_the_items_of_a_pair_say_nothing_of_each_other(lesions):
    whole, maps, scores, _ = lesions
    lateral = whole.coordinates[:, 0] < -20
    grid = Grid(whole.embed(lateral) > 0, whole.affine)
    assert build_dictionary(grid, FAST.radii, FAST.spacings, paired=False).alone.all()
    prepared = prepare(maps[:, lateral], grid, GIVEN)
    pair, apart = (
        deficit.fit(prepared, scores, mask=grid, items=items, settings=GIVEN)
        for items in (ITEMS, [replace(item, mirror=None) for item in ITEMS])
    )
    assert pair.probability[0].max() > 0.1
    np.testing.assert_allclose(pair.probability, apart.probability, atol=1e-4)
    np.testing.assert_allclose(pair.effect, apart.effect, atol=1e-3)
    evidence = [
        [fit.details[item.name]['log_evidence'] for item in ITEMS] for fit in (pair, apart)
    ]
    np.testing.assert_allclose(*evidence, atol=2e-3)
