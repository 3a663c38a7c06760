"""A cohort without images: substrates where anatomy has them, scores that follow the side."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bids_perfdeficit import data
from bids_perfdeficit.phantom.cohort import make_cohort, template_mask
from bids_perfdeficit.phantom.scores import ITEMS, draw_scores, substrates

SCALE = json.loads(data.load('nihss.json').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def cohort():
    mix = {'M1': 0.7, 'none': 0.3}
    return make_cohort(3, 12, mix=mix, trees=1, flips=0.0, processes=1)


def one_sided(sign, count=60, late=12.0):
    """Delays of patients with one hemisphere late, in the voxels of the template's mask."""
    mask, affine = template_mask()
    x = affine[0, 3] + affine[0, 0] * np.argwhere(mask)[:, 0]
    delay = np.where(sign * x > 2, late, 1.0).astype(np.float32)
    return np.broadcast_to(delay, (count, len(delay))), mask


def test_every_item_of_the_scale_has_a_substrate_on_the_right_side():
    _, affine = template_mask()
    masks = substrates()
    assert list(masks) == [key[6:] for key in SCALE if key[6:] in ITEMS]
    assert len(masks) == 15
    for item, where in masks.items():
        x = affine[0, 3] + affine[0, 0] * np.nonzero(where)[0]
        volume = 0.008 * len(x)
        assert 1.0 < volume < 60.0, item
        # The left limbs (a) and neglect depend on the right hemisphere; language on the left.
        right = {'5a': 1.0, '6a': 1.0, '11': 1.0, '5b': 0.0, '6b': 0.0, '9': 0.0, '1b': 0.0,
                 '1c': 0.0}.get(item, 0.5)  # fmt: skip
        assert (x > 0).mean() == pytest.approx(right, abs=0.1), item
    assert np.array_equal(masks['5a'], masks['5b'][::-1])


def test_substrates_are_the_same_places_on_a_coarser_grid():
    coarse = substrates(spacing=4)
    for item, where in substrates().items():
        assert 64 * coarse[item].sum() == pytest.approx(8 * where.sum(), rel=0.3), item


def test_scores_follow_the_hemisphere():
    left, right = (draw_scores(*one_sided(sign), 1, flips=0.0) for sign in (-1, 1))
    for item in ('5b', '6b', '9', '1b', '1c'):
        assert left[f'nihss_{item}'].mean() > right[f'nihss_{item}'].mean() + 1, item
    for item in ('5a', '6a', '11'):
        assert right[f'nihss_{item}'].mean() > left[f'nihss_{item}'].mean() + 1, item


@pytest.mark.parametrize('links', ['mixed', 'threshold', 'saturating', 'synergistic'])
def test_scores_are_levels_of_the_scale_and_nought_in_health(links):
    sick = draw_scores(*one_sided(1), 1, links=links)
    for item, truth in ITEMS.items():
        levels = [int(k) for k in SCALE[f'nihss_{item}']['Levels'] if k.isdigit() and int(k) < 9]
        assert truth.levels == max(levels) + 1, item
        assert set(sick[f'nihss_{item}'].dropna()) <= set(levels), item
    well = draw_scores(*one_sided(1, late=1.0), 1, links=links, flips=0.0)
    assert well.sum(axis=1).mean() < 1


def test_a_tract_alone_weakens_the_arm():
    delay, mask = one_sided(1, late=1.0)
    delay, where = delay.copy(), np.argwhere(mask)
    _, affine = template_mask()
    xyz = where * affine[0, 0] + affine[:3, 3]
    delay[:, ((xyz - [24, -16, 8]) ** 2).sum(1) < 10**2] = 12.0
    scores = draw_scores(delay, mask, 1, flips=0.0)
    assert scores.nihss_5a.mean() > 2
    assert scores.nihss_5b.mean() < 0.2


def test_only_what_can_be_untestable_is_missing_and_flips_change_scores():
    delay, mask = one_sided(1, count=500)
    scores = draw_scores(delay[:500], mask, 2, flips=0.0)
    missing = set(scores.columns[scores.isna().any()])
    assert missing
    assert missing <= {f'nihss_{i}' for i in ('5a', '5b', '6a', '6b', '7', '10')}
    flipped = draw_scores(delay[:200], mask, 2, flips=1.0)
    assert flipped.nihss_5b.mean() == pytest.approx(2.0, abs=0.35)


def test_totals_by_site_are_like_those_of_registries():
    """Bhogal et al., Interv Neurol 2017: 15.7 with M1 occlusions, 11.8 with treated M2 ones."""
    mix = {'M1': 0.3, 'M2sup': 0.2, 'M2inf': 0.2, 'BA': 0.1, 'none': 0.2}
    cohort = make_cohort(5, 60, mix=mix, trees=3, flips=0.0, processes=1)
    total = cohort.scores.sum(axis=1).groupby(cohort.participants.site).mean()
    assert 11 < total['M1'] < 20
    assert 3 < total[['M2sup', 'M2inf']].mean() < 12
    assert 3 < total['BA'] < 15
    assert total['none'] < 2
    ill = cohort.participants.site != 'none'
    ever = (cohort.scores[ill] > 0).mean()
    # Weakness of the face is the commonest sign, ataxia and neglect are among the rarest.
    assert ever['nihss_4'] > 0.5
    assert ever['nihss_7'] < 0.3
    assert ever['nihss_11'] < 0.5


@pytest.mark.parametrize('wrong', [{'links': 'linear'}, {'flips': 1.5}])
def test_wrong_options_of_scores_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        draw_scores(*one_sided(1, count=2), 1, **wrong)


@pytest.mark.parametrize(('n', 'mix'), [(0, None), (4, {'M9': 1.0})])
def test_wrong_options_of_cohorts_are_refused(n, mix):
    with pytest.raises(ValueError, match=r'n is 0|M9'):
        make_cohort(1, n, mix=mix)


def test_each_patient_has_a_circulation_and_a_map_of_his_own(cohort):
    assert set(cohort.participants.site) == {'M1', 'none'}
    assert len({row.tobytes() for row in cohort.delay}) == 12
    assert np.isfinite(cohort.delay).all()
    assert cohort.perfusion.min() == 0
    assert cohort.perfusion.max() == 1
    # Rescaled between the 2nd and 98th percentile: that much lies at either end.
    assert (cohort.perfusion == 0).mean() == pytest.approx(0.02, abs=0.01)
    assert len(cohort.scores) == len(cohort.participants) == 12


def test_occlusions_are_late_on_their_side_in_truth_and_in_the_computed_map(cohort):
    x = cohort.affine[0, 3] + cohort.affine[0, 0] * np.argwhere(cohort.mask)[:, 0]
    people = cohort.participants
    for maps in (cohort.delay, cohort.perfusion):
        values = maps.astype(np.float32)
        lag = values[:, x < 0].mean(1) - values[:, x > 0].mean(1)
        assert (lag[(people.side == 'L')] > 0).all()
        assert (lag[(people.side == 'R')] < 0).all()
    assert people.hypoperfused_ml[people.site == 'none'].max() < 5
    assert people.hypoperfused_ml[people.site == 'M1'].median() > 30


def test_occlusions_raise_the_total(cohort):
    total = cohort.scores.fillna(0).sum(axis=1)
    m1 = cohort.participants.site == 'M1'
    assert total[~m1].median() <= 2
    # Quartiles of 8 to 24 cover the trials of thrombectomy (Goyal et al., Lancet 2016).
    assert 4 <= total[m1].median() <= 24
