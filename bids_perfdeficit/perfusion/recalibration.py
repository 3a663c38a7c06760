"""A site's own calibration: what it holds, whether it can be used, and how it is used.

The last layer of the network, the threshold of the probability and the finder's bias are replaced;
the rest stays as shipped. `refit` finds the values. Standard library only, because options are
checked before anything that takes time is imported. Must not know files of users.
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
        Of the file: ``Format``, ``FormatVersion``, ``BaseSHA256``, ``LastLayer`` (``weight``,
        (2, H), and ``bias``, (2,)), ``Threshold``, ``OcclusionBias``, and ``OcclusionWithheld``
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
    layers = list(shipped['layers'])
    layer = content.get('LastLayer')
    if not isinstance(layer, Mapping):
        raise ValueError('has no LastLayer')
    wide = len(layers[-1]['weight'][0])
    weight: Any = layer.get('weight')
    if not _is_list(weight, 2):
        raise ValueError('LastLayer.weight does not have 2 rows')
    weight = [_numbers(row, wide, 'LastLayer.weight') for row in weight]
    layers[-1] = {'weight': weight, 'bias': _numbers(layer.get('bias'), 2, 'LastLayer.bias')}
    (threshold,) = _numbers([content.get('Threshold')], 1, 'Threshold')
    if not 0 < threshold < 1:
        raise ValueError(f'Threshold is {threshold:g}, and it must lie between 0 and 1')
    bias = _numbers(content.get('OcclusionBias'), len(shipped['occlusion']['bias']),
                    'OcclusionBias')  # fmt: skip
    withheld = content.get('OcclusionWithheld')
    if not isinstance(withheld, bool):
        raise ValueError(f'OcclusionWithheld is {withheld!r}, and must be true or false')
    return {
        **shipped,
        'occlusion_withheld': withheld,
        'layers': layers,
        'threshold': threshold,
        'occlusion': {**shipped['occlusion'], 'bias': bias},
    }


def _is_list(value: object, length: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length


def _numbers(value: Any, length: int, name: str) -> list[float]:
    if not _is_list(value, length):
        raise ValueError(f'{name} does not have {length} numbers')
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            raise ValueError(f'{name} holds {item!r}, which is not a finite number')
    return [float(item) for item in value]
