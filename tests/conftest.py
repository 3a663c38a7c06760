"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get('PERFDEFICIT_SHARED', Path(__file__).resolve().parents[2] / 'shared'))


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Return the folder of real scans that are tried on but never shipped."""
    data = SHARED / 'data'
    if not data.is_dir():
        raise pytest.skip.Exception(
            'real scans are not at hand; set PERFDEFICIT_SHARED to their folder'
        )
    return data
