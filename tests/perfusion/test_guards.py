"""A site is reported only on the later side, and only where small errors leave it the answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bids_perfdeficit.perfusion import OcclusionFinding, ReadOut, holds, withhold


def finding(site, side):
    occluded = 0.1 if site == 'none' else 0.95
    return OcclusionFinding(site, side, 0.9, occluded, 'M2', 'left', 0.05)


@pytest.mark.parametrize(('occluded', 'reported'), [(0.49, True), (0.5, True), (0.65, False)])
def test_open_arteries_are_reported_only_where_they_are_likelier_than_not(occluded, reported):
    found = replace(finding('none', 'n/a'), confidence=1 - occluded, occluded=occluded)
    reason = withhold(found, (0.0, 0.0))
    assert (reason == '') is reported
    assert reported or 'all sites together are likelier' in reason


@pytest.mark.parametrize('volumes', [(0.0, 12.0), (3.0, 564.0)])
def test_a_side_that_is_not_the_later_one_is_never_named(volumes):
    assert 'right side is the later one' in withhold(finding('M2', 'left'), volumes)
    assert 'left side is the later one' in withhold(finding('ICA', 'right'), volumes[::-1])
    assert withhold(finding('M2', 'right'), volumes) == ''


@pytest.mark.parametrize(('site', 'side'), [('ACA', 'right'), ('BA', 'n/a')])
def test_an_occlusion_without_late_tissue_is_not_reported(site, side):
    assert 'no tissue is hypoperfused' in withhold(finding(site, side), (0.9, 0.4))
    assert withhold(finding(site, side), (0.0, 1.0)) == ''


def test_the_basilar_has_no_side_and_open_arteries_nothing_to_withhold():
    assert withhold(finding('BA', 'n/a'), (0.0, 50.0)) == ''
    changed = [ReadOut('a shading of +1 HU', 'M1', 'left')]
    assert withhold(finding('none', 'n/a'), (0.0, 50.0), changed) == ''


def test_a_site_that_a_small_error_changes_is_withheld_with_the_error_as_reason():
    same = ReadOut('a grid of 2 mm', 'PCA', 'left')
    other = ReadOut('a shift of 1 mm', 'none', 'n/a')
    assert withhold(finding('PCA', 'left'), (20.0, 0.0), [same]) == ''
    reason = withhold(finding('PCA', 'left'), (20.0, 0.0), [same, other])
    assert reason == 'left PCA does not hold under a shift of 1 mm (no occlusion then)'


def test_neighbouring_sites_of_one_side_agree_and_others_do_not():
    assert holds('M1', 'left', ReadOut('', 'ICA', 'left'))
    assert holds('M2', 'left', ReadOut('', 'M1', 'left'))
    assert not holds('M2', 'left', ReadOut('', 'ICA', 'left'))
    assert not holds('M1', 'left', ReadOut('', 'M1', 'right'))
    assert holds('BA', 'n/a', ReadOut('', 'PCA', 'left'))
    assert not holds('M1', 'left', ReadOut('', 'none', 'n/a'))
    assert not holds('BA', 'n/a', ReadOut('', 'none', 'n/a'))


@pytest.mark.parametrize(
    ('site', 'side', 'name'), [('M1', 'left', 'left M1'), ('none', 'n/a', 'no occlusion')]
)
def test_what_looks_unlike_its_class_is_withheld_whatever_it_is(site, side, name):
    usual = replace(finding(site, side), distance=59.9, distance_limit=60.0)
    assert withhold(usual, (20.0, 0.0)) == ''
    reason = withhold(replace(usual, distance=60.1), (20.0, 0.0))
    assert reason == (
        f'{name} was found, but the regions and trunks are unlike those of digital patients '
        'with it'
    )


def test_without_statistics_of_the_classes_that_guard_is_off():
    assert withhold(finding('M1', 'left'), (20.0, 0.0)) == ''
    limited = replace(finding('M1', 'left'), distance_limit=60.0)
    assert withhold(limited, (20.0, 0.0)) == ''
