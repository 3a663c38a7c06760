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
def first(brain) -> torch.Tensor:
    values = torch.arange(brain.numel(), dtype=torch.float32).reshape(SHAPE)
    return torch.where(brain, values, 0)


def weights(count: int, **given: float) -> dict:
    """Return weights of a fusion of so many phases that are 0 but for those of the last."""
    last = [given.get(name, 0.0) for name in CHANGING]
    return {'weights': {str(count): [0.0] * len(CHANGING) * (count - 2) + last}}


def change(brain: torch.Tensor, **given: float) -> dict[str, torch.Tensor]:
    return {name: torch.where(brain, given.get(name, 0.0), 0.0) for name in CHANGING}


def test_without_weights_the_map_is_that_of_the_first_phase(brain, first):
    late = phases.fuse(first, [change(brain, level=1.0)], brain, weights(2))
    assert torch.equal(late, first)


@pytest.mark.parametrize('count', [2, 3])
def test_each_change_has_its_own_weight(brain, first, count):
    nothing, moved = change(brain), change(brain, vessels=0.5, level=9.0)
    later = [*[nothing] * (count - 2), moved]
    late = phases.fuse(first, later, brain, weights(count, vessels=2.0))
    torch.testing.assert_close(late[brain], first[brain] + 1.0)
    assert not late[~brain].any()
    late = phases.fuse(
        first, [moved, *[nothing] * (count - 2)], brain, weights(count, vessels=2.0)
    )
    torch.testing.assert_close(late[brain], first[brain] + float(count == 2))


def test_a_feature_that_is_missing_or_not_a_number_counts_as_no_change(brain, first):
    spoilt = {'level': torch.where(brain, torch.nan, 0.0)}
    fixed = weights(2, **dict.fromkeys(CHANGING, 1.0))
    assert torch.equal(phases.fuse(first, [spoilt], brain, fixed), first)


def test_changes_are_later_less_first():
    first = {name: torch.full(SHAPE, 1.0) for name in CHANGING}
    later = {name: torch.full(SHAPE, float(k)) for k, name in enumerate(CHANGING)}
    found = phases.changes(first | {'arrival': torch.zeros(SHAPE)}, later)
    assert [float(found[name].mean()) for name in CHANGING] == [-1, 0, 1, 2, 3, 4]
    assert list(phases.changes({'level': first['level']}, later)) == ['level']


@pytest.mark.parametrize('count', [0, 3])
def test_none_and_too_many_are_refused(brain, first, count):
    with pytest.raises(ValueError, match=f'{count} later phases'):
        phases.fuse(first, [change(brain)] * count, brain)


def test_the_shipped_weights_fit_the_shipped_network():
    shipped = phase_fusion()
    assert shipped['provenance']['BaseSHA256'] == base_sha256()
    assert len(fusion_sha256()) == 64
    for count in (2, 3):
        assert len(shipped['weights'][str(count)]) == len(CHANGING) * (count - 1)
