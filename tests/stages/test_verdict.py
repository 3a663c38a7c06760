"""One verdict from one table: failed, doubtful or complete, with its reasons."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_perfdeficit.stages.verdict import judge, limits

#: A participant without a doubt: values that digital patients and real heads have.
GOOD: dict[str, object] = {
    'brain_volume': 1400.0, 'brain_balance': 0.98, 'brain_open': 5.0, 'brain_mean': 32.0,
    'hu_scale': 'as stored', 'affine_difference': 0.0, 'slice_jump': 1.1, 'slices_repeated': 0,
    'coverage_missing': 'none', 'cta_coverage': 1.0, 'identical_share': 0.1,
    'swapped_contrast': -80.0, 'arterial_contrast': 100.0, 'scan_correlation': 0.97,
    'side_agreement': 0.9, 'skull_dice': 0.93, 'template_dice': 0.97,
    'template_correlation': 0.7, 'enhancement': 4.0, 'subtraction_noise': 12.0,
    'vessel_contrast': 160.0, 'inflow_method': 'prior', 'inflow_voxels': 30,
    'arrival_left': 100.0, 'arrival_right': 90.0, 'unusual_contrast': 'none', 'late_scan': 'no',
    'registration_residual': 0.08, 'shading_applied': 0.0, 'shading_x': 0.3,
    'shading_x_error': 0.4, 'shading_y': -0.3, 'shading_y_error': 0.2, 'shading_z': 0.4,
    'shading_z_error': 0.2, 'shading_offset': 0.0, 'shading_residual': 2.0,
    'artery_contrast': 240.0, 'sinus_contrast': 110.0,
}  # fmt: skip


def test_a_good_participant_is_complete_without_a_word():
    found = judge(GOOD)
    assert (found.status, found.reasons) == ('complete', ())


def test_the_table_limits_every_metric_that_the_example_names():
    assert set(GOOD) == set(limits())


@pytest.mark.parametrize(
    ('metric', 'value', 'status', 'said'),
    [
        ('identical_share', 0.99, 'failed', 'same data'),
        ('unusual_contrast', 'venous', 'doubtful', 'unlike any'),
        ('late_scan', 'yes', 'doubtful', 'too late after'),
        ('registration_residual', 0.7, 'doubtful', 'moved'),
        ('shading_applied', 1.6, 'doubtful', 'shading'),
        ('swapped_contrast', 76.0, 'failed', 'swapped'),
        ('arterial_contrast', 3.0, 'failed', 'no contrast'),
        ('arterial_contrast', 20.0, 'doubtful', 'no contrast'),
        ('cta_coverage', 0.2, 'failed', 'same part'),
        ('cta_coverage', 0.8, 'doubtful', 'same part'),
        ('scan_correlation', 0.39, 'failed', 'do not fit'),
        ('scan_correlation', 0.75, 'doubtful', 'do not fit'),
        ('side_agreement', -0.86, 'failed', 'opposite sides'),
        ('brain_volume', 300.0, 'failed', 'volume'),
        ('brain_volume', 3000.0, 'failed', 'volume'),
        ('brain_volume', 800.0, 'doubtful', 'volume'),
        ('brain_balance', 0.4, 'failed', 'hemisphere'),
        ('brain_balance', 0.8, 'doubtful', 'hemisphere'),
        ('slice_jump', 3.0, 'doubtful', 'slices'),
        ('slices_repeated', 4, 'doubtful', 'repeat'),
        ('hu_scale', 'estimated', 'doubtful', 'offset'),
        ('hu_scale', 'corrected', 'complete', ''),
        ('affine_difference', 2.0, 'doubtful', 'sform'),
        ('coverage_missing', 'vertex', 'doubtful', 'not scanned'),
        ('inflow_voxels', 0, 'failed', 'no inflow'),
        ('inflow_method', 'fallback', 'doubtful', 'artery'),
    ],
)
def test_each_fault_has_its_verdict_and_its_reason(metric, value, status, said):
    found = judge(GOOD | {metric: value})
    assert found.status == status
    assert len(found.reasons) == (status != 'complete')
    assert said in ''.join(found.reasons)


@pytest.mark.parametrize('value', [None, 'n/a', math.nan, ''])
def test_what_could_not_be_measured_is_a_doubt(value):
    assert judge(GOOD | {'scan_correlation': value}).status == 'doubtful'


def test_columns_of_other_versions_are_not_judged():
    assert judge({}).status == 'complete'
    assert judge(GOOD | {'something_new': -1}).status == 'complete'


def test_failures_come_before_doubts():
    found = judge(GOOD | {'brain_volume': 800.0, 'scan_correlation': 0.1})
    assert found.status == 'failed'
    assert 'fit' in found.reasons[0]
    assert 'volume' in found.reasons[1]


@given(st.sampled_from(sorted(k for k, v in GOOD.items() if isinstance(v, float))),
       st.floats(allow_nan=False, allow_infinity=False))  # fmt: skip
def test_numbers_and_their_text_are_judged_alike(metric, value):
    as_number, as_text = (judge(GOOD | {metric: v}) for v in (value, repr(value)))
    assert as_number == as_text


@given(st.data())
def test_a_limit_that_fails_lies_beyond_the_one_that_doubts(data):
    """Walking away from the usual, complete never follows doubtful, nor doubtful failed."""
    order = ('complete', 'doubtful', 'failed')
    limited = sorted(
        k
        for k, e in limits().items()
        if {'minimum', 'maximum', 'fail_minimum', 'fail_maximum'} & set(e)
    )
    metric = data.draw(st.sampled_from(limited))
    start = float(GOOD[metric])  # type: ignore[arg-type]
    step = data.draw(st.sampled_from([-1, 1])) * data.draw(st.floats(0.01, 500))
    ranks = [order.index(judge({metric: start + k * step}).status) for k in range(30)]
    assert ranks == sorted(ranks)


def test_each_limit_has_a_reason_a_remedy_and_a_source():
    for name, entry in limits().items():
        limited = {'minimum', 'maximum', 'expected', 'fail_minimum', 'fail_maximum'} & set(entry)
        if limited:
            assert {'reason', 'fix', 'measured', 'meaning'} <= set(entry), name
