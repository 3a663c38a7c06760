"""The shipped weights by which later phases of a CTA are joined with the first.

Standard library only, because a plan names them before anything that takes time is imported. Must
not know how they are used.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any


@cache
def _shipped_text() -> str:
    from bids_perfdeficit.data import load

    return load('phase_fusion.json').read_text(encoding='utf-8')


@cache
def phase_fusion() -> dict[str, Any]:
    """Return the shipped weights, with their provenance."""
    return dict(json.loads(_shipped_text()))


@cache
def fusion_sha256() -> str:
    """Return the SHA-256 of the shipped weights, by which results name them."""
    return hashlib.sha256(_shipped_text().encode()).hexdigest()
