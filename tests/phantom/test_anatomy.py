"""The head and the arteries against sizes and attenuations that anatomy and CT texts give."""

from __future__ import annotations

import numpy as np
import pytest

from bids_perfdeficit.phantom.anatomy import load_head
from bids_perfdeficit.phantom.arteries import TERRITORIES, grow, territory_of

#: Linear size of a person's head against the template.
SIZE = 0.925


@pytest.fixture(scope='module')
def head():
    return load_head(2.0)


@pytest.fixture(scope='module')
def tree(head):
    return grow(head, 3)


def length(tree, name):
    line = tree.points[tree.nodes(name)]
    return np.linalg.norm(np.diff(line, axis=0), axis=1).sum() * SIZE


def test_the_head_has_a_brain_a_skull_a_scalp_and_air(head):
    ml = 0.008 * SIZE**3
    assert 1100 < head.brain.sum() * ml < 1700
    assert 10 < head.ventricles.sum() * ml < 60
    assert 0.8 < head.grey.sum() / head.white.sum() < 2.2
    # Out of the brain at the level of the ventricles: bone, then fat, then air.
    i, j, k = np.rint(head.index(np.array([0.0, -20.0, 20.0]))).astype(int)
    ray = head.shell[:, j, k]
    outer = ray[np.flatnonzero(head.brain[:, j, k])[-1] + 1 :]
    bone = int(np.argmax(outer))
    assert outer[bone] > 700
    assert outer[bone:].min() <= -1000
    assert ((outer[bone:] < -40) & (outer[bone:] > -130)).any()
    assert head.brain[i, j, k]


@pytest.mark.parametrize(
    # Osborn, Diagnostic Cerebral Angiography; Krabbe-Hartkamp et al., Radiology 1998 (diameters
    # by MR angiography); Gibo et al., J Neurosurg 1981; Tanriover et al., Neurosurgery 2003.
    ('name', 'lengths', 'radii'),
    [
        ('ICA', (90, 140), (1.7, 2.6)),
        ('M1', (14, 30), (1.1, 1.7)),
        ('M2sup', (20, 50), (0.6, 1.3)),
        ('M2inf', (20, 50), (0.6, 1.3)),
        ('A1', (10, 18), (0.8, 1.4)),
        ('BA', (25, 45), (1.4, 2.2)),
        ('P2', (25, 55), (0.7, 1.4)),
        ('VA', (60, 100), (1.0, 2.2)),
    ],
)
def test_trunks_have_the_lengths_and_radii_of_anatomy_texts(tree, name, lengths, radii):
    for one in (name,) if name == 'BA' else (f'{name}-L', f'{name}-R'):
        assert lengths[0] < length(tree, one) < lengths[1]
        assert radii[0] < np.median(tree.radius[tree.nodes(one)]) < radii[1]


def test_the_tree_is_a_tree_that_narrows_and_feeds_every_territory(tree):
    child = np.flatnonzero(tree.parent >= 0)
    assert (tree.parent[child] < child).all()
    assert (tree.parent < 0).sum() == 4
    grown = child[tree.kind[child] > 0]
    assert (tree.radius[grown] <= tree.radius[tree.parent[grown]] * 1.05).mean() > 0.99
    fed = set(tree.territory[tree.terminals].tolist())
    assert fed == set(range(1, 2 * len(TERRITORIES) + 1))


def test_blood_volume_and_flow_are_a_brains(tree):
    child = np.flatnonzero(tree.parent >= 0)
    edges = np.linalg.norm(tree.points[child] - tree.points[tree.parent[child]], axis=1) * SIZE
    volume = (np.pi * tree.radius[child] ** 2 * edges).sum() / 1000
    # Arteries hold a fifth to a quarter of a blood volume of 50 to 60 mL; those that an
    # angiogram shows hold 5 to 20 mL (Wright et al., NeuroImage 2013).
    assert 5 < volume < 20
    # 717 +- 123 mL/min (Zarrinkoob et al., J Cereb Blood Flow Metab 2015).
    assert 500 < tree.demand.sum() * 0.06 < 950


def test_middle_cerebral_territory_is_the_largest(head, tree):
    share = np.bincount(tree.territory, tree.demand, minlength=2 * len(TERRITORIES) + 1)
    share /= share.sum()
    middle, anterior, posterior = share[3:7].sum(), share[1:3].sum(), share[7:9].sum()
    assert 0.35 < middle < 0.60
    assert 0.10 < anterior < middle
    assert 0.08 < posterior < middle


@pytest.mark.parametrize(
    # Tatu et al., Neurology 1998.
    ('place', 'name'),
    [
        ((4, 38, -22), 'ACA'),  # straight gyrus
        ((6, 10, 60), 'ACA'),  # supplementary motor area
        ((48, 10, 22), 'MCA superior'),  # inferior frontal gyrus
        ((40, -22, 54), 'MCA superior'),  # hand knob
        ((58, -30, 6), 'MCA inferior'),  # superior temporal gyrus
        ((46, -62, 32), 'MCA inferior'),  # angular gyrus
        ((8, -80, 6), 'PCA'),  # calcarine cortex
        ((26, 4, 2), 'lenticulostriate'),  # putamen
        ((10, -20, 8), 'thalamoperforating'),  # thalamus
        ((5, -24, -32), 'basilar perforating'),  # pons
        ((14, -64, -50), 'PICA'),  # lower cerebellum
    ],
)
def test_landmarks_lie_in_their_territory(place, name):
    x, y, z = place
    for side, sign in enumerate((-1, 1)):
        label = territory_of(np.array([[sign * x, y, z]], float))[0]
        assert label == 2 * TERRITORIES.index(name) + 1 + side


def test_left_lies_left(tree):
    for name in ('ICA', 'M1', 'P2'):
        assert tree.points[tree.nodes(f'{name}-L')][:, 0].mean() < 0
        assert tree.points[tree.nodes(f'{name}-R')][:, 0].mean() > 0
    pial = (tree.kind == 1) & (tree.territory > 0)
    on_left = tree.territory[pial] % 2 == 1
    assert ((tree.points[pial, 0] < 0) == on_left).mean() > 0.95


def test_trees_are_set_by_their_seed(head, tree):
    again = grow(head, 3)
    np.testing.assert_array_equal(again.points, tree.points)
    np.testing.assert_array_equal(again.radius, tree.radius)
    other = grow(head, 4)
    assert other.points.shape != tree.points.shape or (other.points != tree.points).any()
