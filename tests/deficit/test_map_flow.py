"""The distribution of a cohort's maps: an orthonormal transform, a density, and draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from bids_perfdeficit.deficit import MapFlow, fit_map_flow
from bids_perfdeficit.deficit.map_flow import split_mask, uncensor
from bids_perfdeficit.errors import InputError


def test_splits_are_an_orthonormal_transform_that_can_be_undone(cohort):
    splits, maps = split_mask(cohort.grid), cohort.maps[:4].astype(np.float32)
    values, found, energy = maps, [], 0
    for split in splits:
        values, details = split.analyse(values)
        found.append(details)
        energy = energy + (details.astype(float) ** 2).sum(1)
    assert values.shape == (4, 1)
    np.testing.assert_allclose(values[:, 0], maps.mean(1), rtol=1e-5)
    assert sum(d.shape[1] for d in found) + 1 == cohort.grid.n_voxels
    energy = energy + cohort.grid.n_voxels * values[:, 0].astype(float) ** 2
    np.testing.assert_allclose(energy, (maps.astype(float) ** 2).sum(1), rtol=1e-5)
    for split, details in zip(splits[::-1], found[::-1], strict=True):
        values = split.synthesise(values, details)
    np.testing.assert_allclose(values, maps, atol=1e-5)


def test_neighbours_share_a_face_and_have_the_other_colour(cohort):
    for split in split_mask(cohort.grid):
        for k, near in enumerate(split.faces):
            assert (split.second[near[near >= 0]] != split.second[k]).all()
            away = split.centres[near[near >= 0]] - split.centres[k]
            assert (np.abs(away).max(1) > 0).all()


def test_white_noise_has_nearly_the_density_that_it_has(cohort):
    rng = np.random.default_rng(0)
    maps = (0.5 + 0.05 * rng.standard_normal((250, cohort.grid.n_voxels))).astype(np.float32)
    flow = fit_map_flow(maps[:200], cohort.grid, seed=1, steps=60)
    known = stats.norm(0.5, 0.05).logpdf(maps[200:]).sum(1)
    found = flow.log_likelihood(maps[200:])
    assert found.mean() < known.mean() + 3 * known.std() / np.sqrt(50), 'none is above the truth'
    assert found.mean() == pytest.approx(known.mean(), rel=0.03)
    assert flow.draw(50, seed=2).std() == pytest.approx(0.05, rel=0.1)


def test_maps_of_the_cohort_are_likelier_than_the_same_with_places_exchanged(cohort, flow):
    maps = cohort.prepared.measured[:10]
    moved = maps[:, np.random.default_rng(3).permutation(maps.shape[1])]
    assert (flow.log_likelihood(maps) > flow.log_likelihood(moved) + 100).all()


def test_draws_are_seeded_and_have_the_moments_of_the_cohort(cohort, flow):
    drawn, maps = flow.draw(300, seed=1), cohort.prepared.measured
    np.testing.assert_array_equal(drawn, flow.draw(300, seed=1))
    assert (drawn != flow.draw(300, seed=2)).any()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    both = (maps + maps[:, cohort.prepared.coarse.mirror]) / 2
    assert np.abs(drawn.mean(0) - both.mean(0)).mean() < 0.05
    assert drawn.std() == pytest.approx(maps.std(), rel=0.25)


def test_tensors_restore_the_flow_without_running_code(flow, tmp_path):
    torch.save(flow.as_tensors(), tmp_path / 'flow.pt')
    back = MapFlow.from_tensors(torch.load(tmp_path / 'flow.pt', weights_only=True))
    np.testing.assert_array_equal(back.draw(3, seed=5), flow.draw(3, seed=5))


def test_values_at_the_bounds_are_continued_and_no_others():
    maps = np.array([[0, 0.2, 1, 0.9]], np.float32)
    found = uncensor(maps, 0.1, seed=0)
    assert found[0, 0] < 0
    assert found[0, 2] > 1
    np.testing.assert_array_equal(found[0, [1, 3]], maps[0, [1, 3]])
    np.testing.assert_array_equal(np.clip(found, 0, 1), maps)
    with pytest.raises(InputError, match='as they were measured'):
        uncensor(found, 0.1, seed=0)
