"""Physics that differ in mechanism: each late where the clot's artery led, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from bids_perfdeficit.phantom.anatomy import load_head
from bids_perfdeficit.phantom.arteries import grow
from bids_perfdeficit.phantom.flow import DISEASED_FLOW, feed, narrowing, slow_down
from bids_perfdeficit.phantom.physics import _passage, _tmax, circulate
from bids_perfdeficit.phantom.settings import PHYSICS, Occlusion, PersonSettings


@pytest.fixture(scope='module')
def person():
    head = load_head(2.0)
    tree = grow(head, 3)
    places = np.argwhere(head.brain)
    mm = head.affine[:3, 3] + 2.0 * places
    return head, tree, feed(tree, mm), mm


def run(person, physics, **occlusion):
    head, tree, feeding, _ = person
    return circulate(
        tree, tree.points * 0.925, Occlusion(**occlusion), feeding, head, seed=3, physics=physics
    )


@pytest.mark.parametrize('physics', PHYSICS)
def test_open_arteries_leave_nothing_late(person, physics):
    _, state = run(person, physics, site='none')
    assert (state.delay > 6).mean() < 0.005
    assert state.delay.min() > 0


@pytest.mark.parametrize('physics', PHYSICS)
def test_an_occlusion_is_late_on_its_side_and_more_without_collaterals(person, physics):
    left = person[3][:, 0] < 0
    volumes = []
    for collaterals in (0.1, 0.9):
        _, state = run(person, physics, site='M1', side='L', collaterals=collaterals)
        late = state.delay > 6
        assert late[~left].sum() < 0.02 * max(late.sum(), 1)
        volumes.append(late.sum() * 0.008)
        # What is late has less flow and a longer transit.
        if late.sum() > 500:
            assert state.flow[late].mean() < state.flow[~late].mean() - 0.2
            assert state.mtt[late].mean() > state.mtt[~late].mean() + 1
    assert volumes[0] > 60
    assert volumes[0] > volumes[1] + 15


@pytest.mark.parametrize('physics', PHYSICS)
def test_a_stenosis_delays_its_side_and_makes_no_deficit(person, physics):
    head, tree, feeding, mm = person
    states = [
        circulate(
            tree, tree.points * 0.925, Occlusion(site='none'), feeding, head, seed=3,
            physics=physics, kept=narrowing(tree, 'R', stenosis),
        )[1]
        for stenosis in (0.0, 0.7)
    ]  # fmt: skip
    extra = states[1].delay - states[0].delay
    front = mm[:, 1] > -20
    assert extra[front & (mm[:, 0] > 8)].mean() > extra[front & (mm[:, 0] < -8)].mean() + 0.05
    assert (states[1].delay > 6).mean() < 0.01


def test_a_stenosis_takes_a_centimetre_of_one_carotid(person):
    tree = person[1]
    kept = narrowing(tree, 'L', 0.6)
    narrow = np.flatnonzero(kept < 1)
    assert np.isin(narrow, tree.nodes('ICA-L')).all()
    assert kept[narrow] == pytest.approx(0.4)
    assert tree.nodes('ICA-L')[-1] in narrow
    assert np.ptp(tree.points[narrow], axis=0).max() <= 10
    assert (narrowing(tree, 'L', 0.0) == 1).all()


def test_diseased_white_matter_has_less_flow_at_the_same_blood_volume(person):
    _, state = run(person, 'network', site='none')
    share = np.zeros(len(state.delay))
    share[::2] = 1.0
    slow = slow_down(state, share)
    np.testing.assert_allclose(slow.flow[::2], DISEASED_FLOW * state.flow[::2], rtol=1e-5)
    # Central volume theorem: volume is flow times transit.
    np.testing.assert_allclose(slow.flow * slow.mtt, state.flow * state.mtt, rtol=1e-5)
    assert (slow.delay[::2] > state.delay[::2]).all()
    np.testing.assert_allclose(slow.delay[1::2], state.delay[1::2], rtol=1e-4)


def test_the_three_differ_in_more_than_scale(person):
    """Arteries make most of the delay in one, capillaries in another; the third has its order."""
    states = {p: run(person, p, site='M1', side='L', collaterals=0.2)[1] for p in PHYSICS}
    late = {p: s.delay > 6 for p, s in states.items()}
    arterial = {p: np.median(s.arrival[late[p]] / s.delay[late[p]]) for p, s in states.items()}
    assert arterial['dispersion'] < arterial['network'] - 0.15
    both = late['network'] & late['filling']
    assert both.sum() > 1000
    order = [states[p].delay[both].argsort().argsort() for p in ('network', 'filling')]
    assert np.corrcoef(order)[0, 1] < 0.5


def test_tmax_of_plain_curves():
    """Without dispersion to speak of, Tmax is the arrival; slow capillaries delay it."""
    zero = np.zeros(1)
    early = _tmax(np.array([6.0]), np.array([3.0]), zero)
    assert 4.5 < early[0] < 8
    assert _tmax(np.array([6.0]), np.array([16.0]), zero) > early + 1
    assert np.all(np.diff(_tmax(np.array([0, 2, 6, 12.0]), np.full(4, 4.0), np.zeros(4))) > 0)


def test_passage_through_a_slab_is_a_parabola():
    """Between two open planes u = z (L - z) / (2 D)."""
    shape, conduct, spacing = (12, 12, 21), 50.0, 2.0
    places = np.argwhere(np.ones(shape, bool))
    shut = (places[:, 2] > 0) & (places[:, 2] < 20)
    found = _passage(places, shape, shut, np.full(len(places), conduct), spacing)
    z = places[:, 2] * spacing
    true = z * (20 * spacing - z) / (2 * conduct)
    np.testing.assert_allclose(found[shut], true[shut], rtol=0.01)
    assert (found[~shut] == 0).all()


def test_nothing_passes_the_falx():
    """A whole side that is shut has no border but the falx, and ends at the ceiling."""
    shape = (20, 8, 8)
    places = np.argwhere(np.ones(shape, bool))
    shut = places[:, 0] < 10
    found = _passage(places, shape, shut, np.full(len(places), 50.0), 2.0)
    assert found[shut].min() > 20


@pytest.mark.parametrize('call', [
    lambda person: PersonSettings(physics='magic'),
    lambda person: run(person, 'magic', site='none'),
])  # fmt: skip
def test_an_unknown_physics_is_named(person, call):
    with pytest.raises(ValueError, match="physics is 'magic'; it must be one of"):
        call(person)
