"""The null of an item's test: volume in a curve, draws that vary as scores do, and its level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_perfdeficit.deficit import Item, get_model
from bids_perfdeficit.deficit.null import curves, exceeding, fit_null


@pytest.fixture(scope='module')
def volume(cohort):
    return cohort.maps.mean(1)[:, None]


def make_score(drive, rng):
    latent = drive + rng.logistic(size=len(drive))
    return (latent[:, None] > np.quantile(latent, [0.6, 0.8, 0.9])).sum(1).astype(float)


def test_curves_are_orthogonal_and_follow_what_a_line_cannot(volume):
    basis = curves(volume.astype(float), 4)
    assert basis.shape == (240, 4)
    np.testing.assert_allclose(basis.T @ basis / 240, np.eye(4), atol=1e-9)
    bent = np.minimum(volume[:, 0], np.median(volume))
    rest = bent - bent.mean() - basis @ (basis.T @ (bent - bent.mean())) / 240
    line = curves(volume.astype(float), 1)
    assert line.shape == (240, 1)
    kept = bent - bent.mean() - line @ (line.T @ (bent - bent.mean())) / 240
    assert rest.var() < 0.1 * kept.var()


def test_constant_and_missing_columns_add_nothing_and_indicators_have_no_curve(volume):
    site = np.arange(240.0) % 3
    missing = np.full(240, np.nan)
    assert curves(np.c_[np.ones(240), missing], 4).shape == (240, 0)
    assert curves(np.c_[site, volume], 4).shape == (240, 5)
    partly = np.where(np.arange(240) < 20, np.nan, volume[:, 0])
    assert np.isfinite(curves(partly[:, None], 4)).all()


def test_residuals_are_free_of_the_null_and_of_those_without_a_score(volume):
    rng = np.random.default_rng(0)
    score = make_score(20 * volume[:, 0], rng)
    score[:30] = np.nan
    null = fit_null(score, volume, np.zeros((240, 0)), levels=4, lapse=0.03)
    found = null.residuals(50, seed=1)
    assert not found[:, :30].any()
    assert (found @ null.design).abs().max() < 0.05 * found.abs().sum(1).min()
    torch.testing.assert_close(found, null.residuals(50, seed=1))
    assert not torch.equal(found[1:], null.residuals(50, seed=2)[1:])


def test_draws_have_the_variance_of_the_information(volume):
    rng = np.random.default_rng(0)
    score = make_score(25 * volume[:, 0], rng)
    null = fit_null(score, volume, np.zeros((240, 0)), levels=4, lapse=0.03)
    # a feature of the few with the largest deficits, whose scores vary most
    feature = torch.from_numpy(
        (volume[:, 0] > np.quantile(volume, 0.8)) * rng.random(240)
    ).float()[:, None]
    drawn = (null.residuals(2000, seed=0).float() @ feature)[1:, 0]
    assert drawn.var() == pytest.approx(float(null.information(feature)[0]), rel=0.15)
    shuffled = torch.stack(
        [null.residuals(0, seed=0)[0, torch.randperm(240)] for _ in range(2000)]
    )
    shuffled -= (shuffled @ null.design) @ (null.inverse @ (null.design.T * null.weight))
    assert (shuffled.float() @ feature)[:, 0].var() < 0.85 * drawn.var()


def test_an_age_that_acts_in_a_curve_is_part_of_the_null(volume):
    rng = np.random.default_rng(3)
    age = rng.uniform(40, 90, 240)
    score = make_score(4 * (np.abs(age - 65) > 15), rng)
    null = fit_null(score, volume, age[:, None], levels=4, lapse=0.03)
    expected = (1 - null.cumulative[:, 0]).numpy()
    assert expected[np.abs(age - 65) > 18].mean() > 2 * expected[np.abs(age - 65) < 12].mean()


def test_few_deficits_have_a_line(volume):
    score = np.zeros(240)
    score[:20] = 1
    assert fit_null(score, volume, np.zeros((240, 0)), levels=2, lapse=0.03).design.shape[1] == 2


def test_p_counts_the_observed_statistic_among_the_draws():
    assert exceeding(torch.tensor([3.0, 1.0, 2.0, 0.0])) == 0.25
    assert exceeding(torch.tensor([1.0, 1.0, 2.0, 0.0])) == 0.75


@pytest.mark.parametrize('model', ['spatial', 'ridge'])
@pytest.mark.parametrize('form', ['saturating', 'threshold', 'linear'])
def test_scores_that_follow_volume_alone_have_no_region(cohort, fast, volume, model, form):
    """Of 40 cohorts 2 are expected at .05; 7 or more have a probability of .003."""
    v = (volume[:, 0] - volume.min()) / np.ptp(volume)
    drive = {
        'linear': 10 * v,
        'saturating': 8 * (1 - np.exp(-8 * v)),
        'threshold': 5.0 * (v > np.median(v)),
    }[form]
    rng = np.random.default_rng(11)
    scores = np.stack([make_score(drive, rng) for _ in range(40)], 1)
    items = tuple(Item(f'x{k}', 4) for k in range(40))
    found = get_model(model).fit(
        cohort.prepared, scores, np.zeros((240, 0)), items, replace(fast, iterations=0),
        maps=False,
    )  # fmt: skip
    assert (found.p_value <= 0.05).sum() < 7


@pytest.mark.parametrize('model', ['spatial', 'ridge'])
def test_a_region_is_found(cohort, fast, model):
    found = get_model(model).fit(
        cohort.prepared, cohort.scores, np.zeros((240, 0)), cohort.items,
        replace(fast, iterations=0), maps=False,
    )  # fmt: skip
    assert (found.p_value[:3] <= 0.01).all()
