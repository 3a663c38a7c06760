"""Decide from its quality metrics whether a participant is complete, doubtful or failed.

The limits stand in one table, ``data/reports/quality.yml``, each with its reason and where it was
measured. Must not know how a metric was measured, nor what is done with the verdict.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from bids_perfdeficit.data import load

#: Values of a table that mean that a number could not be measured.
_MISSING = ('', 'n/a', 'nan')

Status = Literal['complete', 'doubtful', 'failed']


@dataclass(frozen=True)
class Verdict:
    """What became of a participant.

    Parameters
    ----------
    status : str
        ``'complete'``, ``'doubtful'`` (computed, and needs a look) or ``'failed'`` (must not be
        used).
    reasons : tuple of str
        A clause each, without a full stop; those of a failure first. Empty when complete.
    """

    status: Status
    reasons: tuple[str, ...] = ()


@functools.cache
def limits() -> dict[str, dict[str, Any]]:
    """Return the table of limits: metric to its entry."""
    return dict(yaml.safe_load(load('reports/quality.yml').read_text(encoding='utf-8')))


def judge(metrics: Mapping[str, object]) -> Verdict:
    """Judge a participant.

    Parameters
    ----------
    metrics : mapping of str to number or str
        A row of ``desc-qc_metrics.tsv``, numbers as numbers or as they stand in the file. Metrics
        without limits are ignored; a limited metric that is absent from the mapping is not judged,
        one that could not be measured (``n/a``) is a doubt.

    Returns
    -------
    Verdict

    Examples
    --------
    >>> judge({'brain_volume': 1350.0, 'hu_scale': 'as stored'}).status
    'complete'
    >>> judge({'scan_correlation': 0.39})
    Verdict(status='failed', reasons=('NCCT and CTA do not fit each other after registration \
(scan_correlation 0.39)',))
    """
    failures, doubts = [], []
    for name, entry in limits().items():
        if name not in metrics or 'reason' not in entry:
            continue
        value = metrics[name]
        reason = f'{entry["reason"]} ({name} {_short(value)})'
        if _fails(value, entry):
            failures.append(reason)
        elif _is_doubtful(value, entry):
            doubts.append(reason)
    status: Status = 'failed' if failures else 'doubtful' if doubts else 'complete'
    return Verdict(status, (*failures, *doubts))


def _fails(value: object, entry: Mapping[str, Any]) -> bool:
    if str(value) in entry.get('fail_values', ()):
        return True
    number = _number(value)
    return number is not None and not (
        entry.get('fail_minimum', -math.inf) <= number <= entry.get('fail_maximum', math.inf)
    )


def _is_doubtful(value: object, entry: Mapping[str, Any]) -> bool:
    if 'expected' in entry:
        expected = entry['expected']
        return str(value) not in (expected if isinstance(expected, list) else [expected])
    if not {'minimum', 'maximum', 'fail_minimum', 'fail_maximum'} & set(entry):
        return False
    number = _number(value)
    return number is None or not (
        entry.get('minimum', -math.inf) <= number <= entry.get('maximum', math.inf)
    )


def _number(value: object) -> float | None:
    """Return a value as a finite number; None for what could not be measured."""
    if value is None or str(value).strip().lower() in _MISSING:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _short(value: object) -> str:
    number = _number(value)
    return str(value) if number is None else f'{number:.3g}'
