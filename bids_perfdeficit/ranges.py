"""Ranges of options, stated where the option is declared and checked wherever it is set.

A frozen dataclass declares its numbers with `ranged` and calls `check_ranges` when it is made.
The command line, a settings file and a notebook thus refuse the same values in the same words.
Standard library only. Must not know any option.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """The values that a number may have.

    Parameters
    ----------
    low, high : float
        The least and the largest value.
    above, below : bool
        Whether `low` and `high` themselves are excluded.
    zero : str
        What 0 means, for an option that may also be 0; empty where 0 has no such meaning.
    unit : str
        Of the value, for example ``'mm'``.
    why : str
        The reason for the limits, in one clause.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    zero: str = ''
    unit: str = ''
    why: str = ''

    def __contains__(self, value: object) -> bool:
        """Return whether a value lies in the range; NaN never does."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.zero and value == 0:
            return True
        over = self.low < value if self.above else self.low <= value
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        """Return the rule as a clause, for example ``must be 0 (automatic) or 1 to 9 GB``."""
        unit = f' {self.unit}' if self.unit else ''
        low = f'above {self.low:.15g}' if self.above else f'{self.low:.15g}'
        high = f'below {self.high:.15g}' if self.below else f'{self.high:.15g}'
        joint = ' and ' if self.above and self.below else ' to '
        if self.above and not self.below:
            joint = ' and at most '
        zero = f'0 ({self.zero}) or ' if self.zero else ''
        why = f' ({self.why})' if self.why else ''
        return f'must be {zero}{low}{joint}{high}{unit}{why}'


class RangeError(ValueError):
    """Values outside their ranges.

    Parameters
    ----------
    problems : dict of str to str
        From the name of each option at fault to a clause about its value.
    """

    def __init__(self, problems: dict[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__('; '.join(f'{name} {clause}' for name, clause in problems.items()))

    def __reduce__(self) -> tuple[object, ...]:
        # Nipype's MultiProc plugin pickles exceptions between processes.
        return (RangeError, (self.problems,))


def ranged(default: Any, low: float, high: float, **more: Any) -> Any:
    """Return a field of a dataclass with a default and a `Range`.

    Parameters
    ----------
    default : number or tuple of numbers
        Of a tuple, every element must lie in the range.
    low, high : float
        Limits.
    **more
        The other parameters of `Range`.

    Returns
    -------
    dataclasses.Field
        For the body of a dataclass.
    """
    return dataclasses.field(default=default, metadata={'range': Range(low, high, **more)})


def find_problems(options: Any) -> dict[str, str]:
    """Return the options of a dataclass whose value lies outside its range.

    Parameters
    ----------
    options : dataclass instance
        Its fields may have a `Range` (see `ranged`).

    Returns
    -------
    dict of str to str
        From the field's name to a clause, for example ``{'mem': '0.1: must be ...'}``.
    """
    problems = {}
    for field in dataclasses.fields(options):
        allowed = field.metadata.get('range')
        value = getattr(options, field.name)
        if allowed is None or value is None:  # None is decided later
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if number not in allowed:
                problems[field.name] = f'{_write(number)}: {allowed}'
                break
    return problems


def check_ranges(options: Any) -> None:
    """Raise `RangeError` with every option of a dataclass that lies outside its range."""
    problems = find_problems(options)
    if problems:
        raise RangeError(problems)


def _write(value: object) -> str:
    """Return a value as the user wrote it, shortened where it is very long."""
    if isinstance(value, int) and abs(value) >= 10**15:  # Python refuses to print 4301 digits
        return 'a number beyond 1e15' if value > 0 else 'a number below -1e15'
    text = f'{value:.15g}' if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f'{text[:40]}...'
