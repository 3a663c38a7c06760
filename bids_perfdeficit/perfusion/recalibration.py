"""A site's own calibration: what it holds, whether it can be used, and how it is used.

The last layer of the networks, the threshold of the probability and the finder's bias are
replaced; the rest stays as shipped, also the delay in seconds and the errors of delay and volumes.
`refit` finds the values. Standard library only, because options are checked before anything that
takes time is imported. Must not know files of users.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

#: What the file says that it is; the number is raised when its content changes its meaning.
FORMAT, FORMAT_VERSION = 'bids_perfdeficit site calibration', 1
#: Statistics of what the finder sees by the shipped probability.
_SEEN = ('class_mean', 'class_precision', 'distance_limit')


@cache
def _shipped_text() -> str:
    from bids_perfdeficit.data import load

    return load('perfusion_calibration.json').read_text(encoding='utf-8')


@cache
def calibration() -> dict[str, Any]:
    """Return the shipped weights, with their provenance."""
    return dict(json.loads(_shipped_text()))


@cache
def base_sha256() -> str:
    """Return the SHA-256 of the shipped weights, which a site's calibration is made for."""
    return hashlib.sha256(_shipped_text().encode()).hexdigest()


def join_calibration(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shipped weights with a site's own calibration in them.

    Parameters
    ----------
    content : mapping
        Of the file: ``Format``, ``FormatVersion``, ``BaseSHA256``, ``LastLayer`` (as `last_layer`
        returns it), ``Threshold``, ``OcclusionBias``, and ``OcclusionWithheld``
        (whether no likely occlusion may be reported).

    Returns
    -------
    dict
        As `calibration` returns it, and ``occlusion_withheld``.

    Raises
    ------
    ValueError
        In one clause: it is something else, was made for other weights, or is damaged.

    Examples
    --------
    >>> join_calibration({'Threshold': 0.5})
    Traceback (most recent call last):
    ...
    ValueError: is not a site calibration (it has no Format)
    """
    if content.get('Format') != FORMAT:
        found = repr(content['Format']) if 'Format' in content else 'no Format'
        raise ValueError(f'is not a site calibration (it has {found})')
    if content.get('FormatVersion') != FORMAT_VERSION:
        raise ValueError(
            f'has format version {content.get("FormatVersion")!r}, and this version of the app '
            f'reads {FORMAT_VERSION}'
        )
    if content.get('BaseSHA256') != base_sha256():
        raise ValueError('was made for the weights of another version of the app')
    shipped = calibration()
    layer = content.get('LastLayer')
    if not isinstance(layer, Mapping):
        raise ValueError('has no LastLayer')
    before = last_layer()
    wide = len(before['weight'][0])
    weight: Any = layer.get('weight')
    if not _is_list(weight, 2):
        raise ValueError('LastLayer.weight does not have 2 rows')
    weight = [_numbers(row, wide, 'LastLayer.weight') for row in weight]
    bias = _numbers(layer.get('bias'), 2, 'LastLayer.bias')
    moved = [new - old for new, old in zip(bias, before['bias'], strict=True)]
    (threshold,) = _numbers([content.get('Threshold')], 1, 'Threshold')
    if not 0 < threshold < 1:
        raise ValueError(f'Threshold is {threshold:g}, and it must lie between 0 and 1')
    odds = _numbers(content.get('OcclusionBias'), len(shipped['occlusion']['bias']),
                    'OcclusionBias')  # fmt: skip
    withheld = content.get('OcclusionWithheld')
    if not isinstance(withheld, bool):
        raise ValueError(f'OcclusionWithheld is {withheld!r}, and must be true or false')
    finder = {**shipped['occlusion'], 'bias': odds}
    if moved[1] or weight[1] != before['weight'][1]:
        # By another probability of hypoperfusion the finder sees other numbers.
        finder = {k: v for k, v in finder.items() if k not in _SEEN}
    return {
        **shipped,
        'occlusion_withheld': withheld,
        'members': _replace_last(shipped['members'], weight, moved),
        'threshold': threshold,
        'occlusion': finder,
    }


def last_layer() -> dict[str, list[Any]]:
    """Return the shipped last layer as a refit sees it: one layer on the units of all members.

    Returns
    -------
    dict
        ``weight``, (2, K H), of the K members one after the other, and ``bias``, (2,): lateness
        and log odds of hypoperfusion, means of the members.
    """
    lasts = [member['layers'][-1] for member in calibration()['members']]
    count = len(lasts)
    return {
        'weight': [[w / count for last in lasts for w in last['weight'][k]] for k in (0, 1)],
        'bias': [sum(last['bias'][k] for last in lasts) / count for k in (0, 1)],
    }


def _replace_last(
    members: Sequence[Mapping[str, Any]], weight: Sequence[Sequence[float]], moved: Sequence[float]
) -> list[dict[str, Any]]:
    """Return members whose mean is a layer on the units of all; the third output is kept."""
    count, out = len(members), []
    for k, member in enumerate(members):
        *inner, last = member['layers']
        units = len(last['weight'][0])
        own = [[count * w for w in row[k * units : (k + 1) * units]] for row in weight]
        bias = [old + new for old, new in zip(last['bias'], moved, strict=False)]
        new = {'weight': [*own, *last['weight'][2:]], 'bias': [*bias, *last['bias'][2:]]}
        out.append({**member, 'layers': [*inner, new]})
    return out


def _is_list(value: object, length: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length


def _numbers(value: Any, length: int, name: str) -> list[float]:
    if not _is_list(value, length):
        raise ValueError(f'{name} does not have {length} numbers')
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            raise ValueError(f'{name} holds {item!r}, which is not a finite number')
    return [float(item) for item in value]
