"""Later phases are joined by known weights, and one phase is what it was."""

from __future__ import annotations

import pytest
import torch

from bids_perfdeficit.perfusion import phases
from bids_perfdeficit.perfusion.combination import CHANGING
from bids_perfdeficit.perfusion.phase_weights import fusion_sha256, phase_fusion
from bids_perfdeficit.perfusion.recalibration import base_sha256

SHAPE = (3, 4, 5)


@pytest.fixture
def brain() -> torch.Tensor:
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[1:, 1:, 1:] = True
    return inside


@pytest.fixture
def first(brain) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.arange(brain.numel(), dtype=torch.float32).reshape(SHAPE)
    return torch.where(brain, values, 0), torch.where(brain, values / 100, 0)


def weights(count: int, **given: object) -> dict:
    """Return weights of a fusion of so many phases that are 0 where they are not given."""
    size = len(CHANGING) * (count - 1)
    return {
        'fusions': {str(count): {'map': [0.0] * size, 'odds': [0.0] * size, 'bias': 0.0} | given}
    }


def change(brain: torch.Tensor, **given: float) -> dict[str, torch.Tensor]:
    return {name: torch.where(brain, given.get(name, 0.0), 0.0) for name in CHANGING}


def test_without_weights_both_maps_are_those_of_the_first_phase(brain, first):
    late, probability = phases.fuse(*first, [change(brain, level=1.0)], brain, weights(2))
    assert torch.equal(late, first[0])
    torch.testing.assert_close(probability, first[1])


@pytest.mark.parametrize('count', [2, 3])
def test_each_change_has_its_own_weight(brain, first, count):
    picked = [0.0] * len(CHANGING) * (count - 1)
    picked[len(CHANGING) * (count - 2) + CHANGING.index('vessels')] = 2.0
    fixed = weights(count, map=picked, odds=picked, bias=-0.25)
    nothing, moved = change(brain), change(brain, vessels=0.5, level=9.0)
    late, probability = phases.fuse(*first, [*[nothing] * (count - 2), moved], brain, fixed)
    torch.testing.assert_close(late[brain], first[0][brain] + 1.0)
    torch.testing.assert_close(probability[brain].logit(), first[1][brain].logit() + 0.75)
    for values in (late, probability):
        assert not values[~brain].any()


def test_certain_voxels_of_the_first_phase_can_still_change(brain, first):
    fixed = weights(2, odds=[-10.0] + [0.0] * 5)
    sure = torch.where(brain, 1.0, 0.0)
    _, probability = phases.fuse(first[0], sure, [change(brain, level=1.0)], brain, fixed)
    torch.testing.assert_close(
        probability[brain], torch.full_like(first[1][brain], -2.0).sigmoid()
    )


def test_a_feature_that_is_missing_or_not_a_number_counts_as_no_change(brain, first):
    fixed = weights(2, map=[1.0] * 6, odds=[1.0] * 6)
    spoilt = {'level': torch.where(brain, torch.nan, 0.0)}
    late, probability = phases.fuse(*first, [spoilt], brain, fixed)
    assert torch.equal(late, first[0])
    torch.testing.assert_close(probability, first[1])


def test_changes_are_later_less_first():
    first = {name: torch.full(SHAPE, 1.0) for name in CHANGING}
    later = {name: torch.full(SHAPE, float(k)) for k, name in enumerate(CHANGING)}
    found = phases.changes(first | {'arrival': torch.zeros(SHAPE)}, later)
    assert [float(found[name].mean()) for name in CHANGING] == [-1, 0, 1, 2, 3, 4]
    assert list(phases.changes({'level': first['level']}, later)) == ['level']


@pytest.mark.parametrize('count', [0, 3])
def test_none_and_too_many_are_refused(brain, first, count):
    with pytest.raises(ValueError, match=f'{count} later phases'):
        phases.fuse(*first, [change(brain)] * count, brain)


def test_the_shipped_weights_fit_the_shipped_network():
    shipped = phase_fusion()
    assert shipped['provenance']['BaseSHA256'] == base_sha256()
    assert len(fusion_sha256()) == 64
    for count in ('2', '3'):
        for name in ('map', 'odds'):
            assert len(shipped['fusions'][count][name]) == len(CHANGING) * (int(count) - 1)
