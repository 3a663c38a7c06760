"""Regions, their volumes, and which artery is reported to be occluded."""

from __future__ import annotations

import numpy as np
import pytest

from bids_perfdeficit.perfusion import (
    aspects_regions,
    calibration,
    evidence,
    find_occlusion,
    is_late,
    measure_regions,
    nearest_site,
    territories,
)
from bids_perfdeficit.perfusion.occlusion import (
    MIDLINE,
    OUTCOMES,
    SIDED,
    log_odds,
    squared_distance,
    trunk_evidence,
)
from bids_perfdeficit.perfusion.regions import ASPECTS_LABELS, TERRITORY_LABELS

SHAPE = (99, 117, 95)
AFFINE = np.array([[2, 0, 0, -98], [0, 2, 0, -134], [0, 0, 2, -72], [0, 0, 0, 1.0]])
X, Y, Z = (
    AFFINE[a, 3] + 2 * np.arange(n).reshape([-1 if a == b else 1 for b in range(3)])
    for a, n in enumerate(SHAPE)
)
BRAIN = ((X / 70) ** 2 + ((Y + 18) / 88) ** 2 + ((Z - 8) / 66) ** 2) <= 1


@pytest.mark.parametrize(
    ('draw', 'offset'), [(territories, 10), (aspects_regions, 20)], ids=['arteries', 'aspects']
)
def test_regions_mirror_each_other(draw, offset):
    labels = draw(SHAPE, AFFINE)
    left, right = labels[:49], labels[:49:-1]
    assert np.array_equal(np.where(left > 0, left + offset, 0), right)


def test_aspects_regions_lie_where_readers_look_for_them():
    labels = aspects_regions(SHAPE, AFFINE)
    centres = {
        name: (np.argwhere((labels == k) & BRAIN) * 2 + AFFINE[:3, 3]).mean(0)
        for name, k in ASPECTS_LABELS.items()
    }
    assert all(centre[0] < 0 for centre in centres.values())  # the left is where x is negative
    depth = [abs(centres[n][0]) for n in ('caudate', 'internal capsule', 'lentiform', 'insula')]
    assert depth == sorted(depth)
    for level in (('M1', 'M2', 'M3'), ('M4', 'M5', 'M6')):
        front_to_back = [centres[n][1] for n in level]
        assert front_to_back == sorted(front_to_back, reverse=True)
    for low, high in (('M1', 'M4'), ('M2', 'M5'), ('M3', 'M6')):
        assert centres[high][2] > centres[low][2] + 20


def test_volumes_are_the_patient_s_own():
    late = np.zeros(SHAPE, np.float32)
    late[territories(SHAPE, AFFINE) == TERRITORY_LABELS['MCA'] + 10] = 0.9  # on the right
    flat = np.zeros(SHAPE, np.float32)
    table = measure_regions(
        flat, late, late, BRAIN, AFFINE, threshold=0.5, scale=0.8
    ).set_index('region')  # fmt: skip
    there = BRAIN & (late > 0)
    assert table.hypoperfused_right['MCA'] == pytest.approx(0.8 * 0.008 * there.sum())
    assert table.hypoperfused_right['hemisphere'] == table.hypoperfused_right['MCA']
    assert (table.hypoperfused_left == 0).all()
    assert table.asymmetry['MCA'] == pytest.approx(-0.9)
    parts = table.loc[['M1', 'M2', 'M3', 'M4', 'M5', 'M6']].hypoperfused_right.sum()
    assert 0.5 < parts / table.hypoperfused_right['MCA'] < 1


@pytest.mark.parametrize(
    ('x', 'shares'), [(-3, (0.5, 0.5)), (3, (0.5, 0.5)), (-9, (1, 0)), (9, (0, 1))]
)
def test_a_vessel_near_the_midline_counts_half_for_each_side(x, shares):
    contrast = np.zeros(SHAPE, np.float32)
    there = (np.abs(X - x) <= 1) & (np.abs(Y - 30) < 8) & (np.abs(Z - 20) < 8)
    contrast[there & (territories(SHAPE, AFFINE) % 10 == TERRITORY_LABELS['ACA'])] = 120
    flat = np.zeros(SHAPE, np.float32)
    row = measure_regions(
        flat, flat, flat, BRAIN, AFFINE, threshold=0.5, contrast=contrast
    ).set_index('region').loc['ACA']  # fmt: skip
    filled = 0.008 * (contrast > 0).sum()
    assert filled > 0
    assert (row.vessels_left, row.vessels_right) == pytest.approx(
        (shares[0] * filled, shares[1] * filled)
    )


def patient(side: int, *, filled: bool = True) -> np.ndarray:
    """Evidence with a late MCA territory on a side (-1 left, 1 right, 0 none)."""
    late = np.full(SHAPE, 0.02, np.float32)
    contrast = np.full(SHAPE, 150.0, np.float32)
    if side:
        label = TERRITORY_LABELS['MCA'] + (10 if side > 0 else 0)
        late[territories(SHAPE, AFFINE) == label] = 0.9
        if not filled:
            contrast[(X * side > 15) & (np.abs(Y) < 40) & (np.abs(Z) < 30)] = 0
    found = evidence(late, contrast, BRAIN, AFFINE)
    # Thin trunks are less bright than the carotid in every patient.
    trunks = trunk_evidence(contrast, AFFINE).shape[1]
    usual = np.asarray(calibration()['occlusion']['centre'])[-trunks:]
    found[:, -trunks:] += usual
    return found


def test_left_and_right_are_judged_alike():
    left, right = patient(-1), patient(1)
    np.testing.assert_allclose(left, right[::-1], atol=1e-6)
    one, other = (log_odds(k, calibration()['occlusion']) for k in (left, right))
    sided = len(SIDED)
    assert len(one) == len(OUTCOMES)
    np.testing.assert_allclose(one[:sided], other[sided : 2 * sided], atol=1e-5)
    np.testing.assert_allclose(one[-len(MIDLINE) :], other[-len(MIDLINE) :], atol=1e-5)


@pytest.mark.parametrize(('side', 'name'), [(-1, 'left'), (1, 'right')])
def test_a_late_territory_with_an_empty_trunk_is_an_occlusion_of_its_side(side, name):
    found = find_occlusion(patient(side, filled=False))
    assert found.side == name
    assert found.site in ('ICA', 'M1', 'M2')
    assert found.occluded > 0.9
    assert 1 / 12 < found.confidence <= 1


def test_open_arteries_are_told_as_such():
    found = find_occlusion(patient(0))
    assert (found.site, found.side) == ('none', 'n/a')
    assert found.occluded < find_occlusion(patient(1)).occluded


@pytest.mark.parametrize(
    ('centre', 'site', 'side'),
    [
        ((-22, 5, -16), 'M1', 'left'),
        ((12, 3, -21), 'ICA', 'right'),
        ((-40, -12, -1), 'M2', 'left'),
        ((4, 30, 3), 'ACA', 'right'),
        ((-16, -22, -15), 'PCA', 'left'),
        ((1, -15, -28), 'BA', 'n/a'),
    ],
)
def test_a_clot_is_named_by_the_artery_that_it_lies_in(centre, site, side):
    points = np.asarray(centre) + np.random.default_rng(1).normal(0, 1.0, (40, 3))
    assert nearest_site(points)[:2] == (site, side)
    assert nearest_site(points)[2] < 4


def test_the_distance_is_that_of_the_class_that_is_named():
    rng = np.random.default_rng(0)
    finder = calibration()['occlusion']
    wide = 2 * len(finder['centre'])
    root = rng.normal(size=(wide, wide))
    made = finder | {
        'class_mean': rng.normal(size=(len(OUTCOMES), wide)).tolist(),
        'class_precision': (root @ root.T / wide).tolist(),
    }
    # at the mean of a class it is 0, and grows with the square of the way from it
    for outcome in (0, len(SIDED), OUTCOMES.index(('none', 'n/a'))):
        standard = np.array(made['class_mean'][outcome])
        there = standard.reshape(2, -1) * made['scale'] + made['centre']
        assert squared_distance(there, outcome, made) == pytest.approx(0, abs=1e-9)
        step = rng.normal(size=there.shape)
        one, two = (
            squared_distance(there + k * step * made['scale'], outcome, made) for k in (1, 2)
        )
        assert one == pytest.approx(
            step.ravel() @ np.array(made['class_precision']) @ step.ravel()
        )
        assert two == pytest.approx(4 * one)
    assert np.isnan(squared_distance(there, 0, without_statistics()))


def test_a_finding_carries_its_distance_and_the_limit():
    measured = patient(1, filled=False)
    plain = find_occlusion(measured, {'occlusion': without_statistics()})
    assert np.isnan(plain.distance)
    assert plain.distance_limit == np.inf
    finder = without_statistics()
    wide = 2 * len(finder['centre'])
    centre, scale = (np.array(finder[k]) for k in ('centre', 'scale'))
    made = finder | {
        'class_mean': np.zeros((len(OUTCOMES), wide)), 'class_precision': np.eye(wide),
        'distance_limit': 7.0,
    }  # fmt: skip
    found = find_occlusion(measured, {'occlusion': made})
    assert found.distance == pytest.approx(np.square((measured - centre) / scale).sum())
    assert found.distance_limit == 7
    assert (found.site, found.side) == (plain.site, plain.side)


def without_statistics() -> dict:
    finder = calibration()['occlusion']
    return {k: finder[k] for k in ('centre', 'scale', 'weights', 'bias')}


@pytest.mark.parametrize(
    ('arteries', 'sinuses', 'late'),
    [
        (250.0, 100.0, False), (120.0, 253.0, True), (100.0, 100.0, False), (0.0, -3.0, False),
        (0.0, 250.0, False),  # the carotid termini were not scanned
    ],
)  # fmt: skip
def test_a_scan_is_late_where_sinuses_are_brighter_than_arteries(arteries, sinuses, late):
    assert is_late(arteries, sinuses, {'late_scan': {'limit': 0.1}}) is late
    assert is_late(arteries, sinuses, {}) is False  # the rule is off


def test_the_shipped_limit_of_late_scans_lies_between_early_and_late_ones():
    """Digital patients have .4 of the arteries' contrast in the sinuses early, .9 after 6 s."""
    assert not is_late(250.0, 0.4 * 250)
    assert is_late(250.0, 0.9 * 250)
