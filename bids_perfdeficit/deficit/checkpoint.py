"""Where long training keeps its state, and from where it goes on.

Must not know what is trained.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from bids_perfdeficit.deficit.result import UNREADABLE

_LOG = logging.getLogger('bids_perfdeficit.deficit')


class Checkpoint:
    """States of training by name, in one file; without a path nothing is kept.

    Parameters
    ----------
    path : path, optional
    fingerprint : str
        Of data and settings; states of another one are not used.
    """

    def __init__(self, path: str | Path | None, fingerprint: str) -> None:
        self._path = None if path is None else Path(path)
        self._fingerprint = fingerprint
        self._states: dict[str, dict[str, Any]] = {}
        if self._path is None or not self._path.is_file():
            return
        try:
            content = torch.load(self._path, map_location='cpu', weights_only=True)
            if content['fingerprint'] == fingerprint:
                self._states = content['states']
            else:
                _LOG.warning('%s is of other data or settings: training starts anew', self._path)
        except UNREADABLE as error:
            _LOG.warning('%s cannot be read (%s): training starts anew', self._path, error)

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a state, if there is one."""
        return self._states.get(name)

    def put(self, name: str, state: dict[str, Any]) -> None:
        """Keep a state; written under another name first, so that no half file is left."""
        if self._path is None:
            return
        self._states[name] = state
        temporary = self._path.with_name(f'.{self._path.name}.{os.getpid()}')
        torch.save({'fingerprint': self._fingerprint, 'states': self._states}, temporary)
        temporary.replace(self._path)
