"""What is seen around a voxel: averages within the brain, and what describes the deficit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bids_perfdeficit.perfusion.combination import Combined
from bids_perfdeficit.perfusion.surroundings import AROUND_MM, NAMES, surroundings

SPACING = (2.0, 2.0, 2.0)


@pytest.fixture
def brain() -> torch.Tensor:
    z, y, x = np.indices((40, 44, 42)) * 2.0
    return torch.from_numpy((z - 40) ** 2 + (y - 44) ** 2 + (x - 42) ** 2 < 36**2)


def estimate(brain: torch.Tensor, probability: torch.Tensor, seconds: float) -> Combined:
    inside = brain.float()
    none = torch.zeros((1, 2), dtype=torch.int64)
    return Combined(
        0.7 * inside, probability * inside, seconds * inside, torch.zeros_like(inside), none
    )


def test_an_even_estimate_is_its_own_average_up_to_the_edge_of_the_brain(brain):
    found = surroundings(estimate(brain, torch.full(brain.shape, 0.2), 3.0), brain, SPACING)
    assert tuple(found) == NAMES
    for mm in AROUND_MM:
        for name, value in (('late', 0.7), ('probability', 0.2), ('delay', math.log(4))):
            torch.testing.assert_close(
                found[f'{name}_around_{mm}'][brain], torch.full((int(brain.sum()),), value),
                atol=2e-3, rtol=0,
            )  # fmt: skip
    assert found['estimated_odds'][brain].unique().item() == pytest.approx(math.log(0.25), 1e-4)
    assert float(found['deficit_share']) == pytest.approx(math.sqrt(0.2), 1e-3)
    # below .3 nothing is a deficit
    assert float(found['deficit_delay']) == 0


def test_depth_in_a_deficit_shows_and_wider_averages_see_it_from_further_away(brain):
    z, y, x = torch.meshgrid(*(torch.arange(n) * 2.0 for n in brain.shape), indexing='ij')
    away = ((z - 40) ** 2 + (y - 44) ** 2 + (x - 26) ** 2).sqrt()
    probability = (away < 14).float()
    found = surroundings(estimate(brain, probability, 8.0), brain, SPACING)
    near = found['probability_around_12']
    order = [float(near[20, 22, int(k)]) for k in (13, 17, 20, 24)]
    assert order == sorted(order, reverse=True)
    far = (away > 30) & (away < 34) & brain
    level = [float(found[f'probability_around_{mm}'][far].mean()) for mm in AROUND_MM]
    assert level[0] < level[1] < level[2]
    assert float(found['deficit_peak']) == float(near[brain].max())
    assert float(found['deficit_delay']) == pytest.approx(math.log(9), 1e-4)
    torch.testing.assert_close(
        found['deficit_share'] ** 2, probability[brain].mean(), atol=1e-5, rtol=0
    )


def test_a_certain_estimate_has_finite_odds(brain):
    found = surroundings(estimate(brain, torch.ones(brain.shape), 12.0), brain, SPACING)
    assert found['estimated_odds'].isfinite().all()
    assert 12 < float(found['estimated_odds'].max()) <= 13


def test_threads_change_nothing(brain):
    made = estimate(brain, torch.rand(brain.shape), 4.0)
    one, two = (surroundings(made, brain, SPACING, threads=n) for n in (1, 2))
    for name, values in one.items():
        assert torch.equal(values, two[name]), name
