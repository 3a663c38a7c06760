"""A number outside its range is refused, wherever it is set, and all are named at once."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.ranges import Range, RangeError, check_ranges, ranged
from bids_perfdeficit.settings import (
    GroupSettings,
    OutputSettings,
    ProcessingSettings,
    ResourceSettings,
    Settings,
    option_fields,
)

NUMBERS = st.one_of(st.floats(), st.integers())


@dataclasses.dataclass(frozen=True)
class Options:
    share: float = ranged(0.5, 0, 1, above=True, why='a share')
    count: int = ranged(0, 2, 9, zero='automatic', unit='GB')
    window: tuple[float, float] = ranged((0.0, 1.0), -5, 5)
    free: str = 'x'

    def __post_init__(self) -> None:
        check_ranges(self)


@given(NUMBERS)
def test_a_value_is_accepted_exactly_when_it_lies_in_the_range(value):
    assert (value in Range(0, 1)) == (0 <= value <= 1)
    assert (value in Range(0, 1, above=True, below=True)) == (0 < value < 1)
    assert (value in Range(2, 9, zero='none')) == (value == 0 or 2 <= value <= 9)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, None, 'x', True, [1], 10**400])
def test_what_is_not_a_finite_number_is_never_accepted(value):
    assert value not in Range(-1e300, 1e300)


def test_all_problems_are_named_with_their_range():
    with pytest.raises(RangeError) as caught:
        Options(share=0.0, count=1, window=(0.0, math.nan))
    assert caught.value.problems == {
        'share': '0: must be above 0 and at most 1 (a share)',
        'count': '1: must be 0 (automatic) or 2 to 9 GB',
        'window': 'nan: must be -5 to 5',
    }
    assert copy.copy(caught.value).problems == caught.value.problems  # as pickling does


@pytest.mark.parametrize(
    ('made', 'values'),
    [
        (PerfusionSettings, {'floor': -1.0}),
        (PerfusionSettings, {'floor': 0.0}),
        (PerfusionSettings, {'exponent': 0}),
        (PerfusionSettings, {'window': (300.0, 0.0)}),
        (PerfusionSettings, {'window': (math.nan, 0.0)}),
        (PerfusionSettings, {'vein_suppression': 1.1}),
        (PerfusionSettings, {'dilation': -1}),
        (PerfusionSettings, {'bone': 0}),
        (GroupSettings, {'folds': 1}),
        (GroupSettings, {'resolution': 0}),
        (GroupSettings, {'min_coverage': 1.0}),
        (ResourceSettings, {'mem': 0.5}),
        (ResourceSettings, {'nprocs': -1}),
        (ProcessingSettings, {'random_seed': 2**31}),
        (OutputSettings, {'verbose': -1}),
    ],
)
def test_a_notebook_refuses_what_the_command_line_refuses(made, values):
    with pytest.raises(RangeError) as caught:
        made(**values)
    assert set(caught.value.problems) == set(values)


def test_every_number_of_the_settings_has_a_range():
    tables = {field.name: field for field in dataclasses.fields(Settings)}
    default = Settings()
    for table, key in option_fields():
        value = getattr(getattr(default, table), key)
        field = next(f for f in dataclasses.fields(getattr(default, table)) if f.name == key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert 'range' in field.metadata, f'{table}.{key}'
    assert tables
