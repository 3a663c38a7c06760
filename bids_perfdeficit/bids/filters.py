"""Filters by BIDS entities, as fMRIPrep's ``--bids-filter-file`` has them.

Standard library only, apart from the entities' names. Must not know how series are chosen.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_perfdeficit.bids.jsonfile import read_json
from bids_perfdeficit.bids.listing import ImageFile, entity_names
from bids_perfdeficit.errors import InputError, printable

#: What a filter can be for.
KEYS = ('ncct', 'cta', 'map')

#: Those that are for scans.
_SCANS = ('ncct', 'cta')

#: Keys that other BIDS Apps use. One file may serve several apps.
FOREIGN_KEYS = frozenset({
    't1w', 't2w', 't2star', 'flair', 'pd', 'pdw', 'angio', 't1map', 't2map', 'mp2rage',
    'inplanet2', 'roi', 'bold', 'sbref', 'fmap', 'dwi', 'asl', 'm0scan', 'perf', 'pet', 'meg',
    'eeg', 'ieeg', 'anat', 'func',
})  # fmt: skip

#: Values that mean "without this entity" and "with any".
ABSENT = ('Query.NONE',)
PRESENT = ('*', 'Query.ANY', 'Query.REQUIRED')


def read_filters(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read and check a filter file.

    Parameters
    ----------
    path : Path
        JSON.

    Returns
    -------
    filters : dict
        By the keys that are used here (see `KEYS`).
    notes : list of str
        About keys of other BIDS Apps, which are not used.

    Raises
    ------
    InputError
        When the file cannot be read, or with the first thing in it that is wrong.
    """
    try:
        return check_filters(read_json(path))
    except InputError as error:
        if error.path is not None:
            raise
        raise InputError(error.reason, fix=error.fix, path=path) from error


def check_filters(
    filters: Mapping[str, Any], keys: Sequence[str] = KEYS
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Check filters and leave out those of other BIDS Apps.

    Parameters
    ----------
    filters : mapping
        ``{'ncct': {entity: value}, 'cta': {...}, 'map': {...}}``.
    keys : sequence of str
        What a filter can be for.

    Returns
    -------
    filters : dict
        Those of `keys`.
    notes : list of str
        About the others. Where all of these that name a session name the same one, both scans are
        taken from it: BABS, which processes by session, selects the session in this way only.

    Raises
    ------
    InputError
        For a key that no BIDS App uses, an entity that does not exist, or a value that is neither
        a label nor a list of labels.
    """
    used: dict[str, dict[str, Any]] = {}
    foreign = []
    for key, wanted in filters.items():
        if key not in keys:
            if str(key).lower() in FOREIGN_KEYS:
                foreign.append(str(key))
                continue
            close = difflib.get_close_matches(str(key), keys, n=1)
            raise InputError(
                f'the filter file has an unknown key "{printable(key)}"',
                fix=(f'perhaps {close[0]!r} is meant; ' if close else '')
                + f'its keys are {", ".join(keys)}',
            )
        if not isinstance(wanted, Mapping):
            raise InputError(
                f'the filter of {key} is not a table of entities',
                fix='write, for example, {"cta": {"acquisition": "arterial"}}',
            )
        for name, value in wanted.items():
            _check_entity(key, name, value)
        used[key] = dict(wanted)
    notes = []
    if foreign:
        notes.append(
            f'the keys {", ".join(sorted(foreign))} of the filter file belong to other BIDS Apps '
            f'and are not used; the keys here are {", ".join(keys)}'
        )
        session = _common_session([filters[key] for key in foreign])
        scans = [key for key in _SCANS if key in keys]
        if session and not any('session' in used.get(key, {}) for key in scans):
            for key in scans:
                used.setdefault(key, {})['session'] = session
            notes[0] += f'; all of them name session {session}, which the scans are taken from'
    return used, notes


def _common_session(filters: Sequence[Any]) -> str | None:
    """Return the session that all filters which name one agree on."""
    named = {
        str(wanted['session']).removeprefix('ses-')
        for wanted in filters
        if isinstance(wanted, Mapping) and isinstance(wanted.get('session'), str | int)
    }
    return named.pop() if len(named) == 1 and not named & {*ABSENT, *PRESENT} else None


def _check_entity(key: str, name: str, value: Any) -> None:
    entities = entity_names()
    if name not in entities:
        # names of files have short forms: acq, desc, res
        close = [entity for entity in entities if name and entity.startswith(str(name))]
        close = close or difflib.get_close_matches(str(name), entities, n=1, cutoff=0.3)
        raise InputError(
            f'the filter of {key} names "{printable(name)}", which is not an entity',
            fix=(f'perhaps {close[0]!r} is meant; ' if close else '')
            + f'the entities are {", ".join(entities)}',
        )
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bool) or not isinstance(one, str | int | None):
            raise InputError(
                f'the filter of {key} has "{printable(one)}" as {name}',
                fix='give a label, a list of labels, null for "without" or "*" for "with any"',
            )


def matches(file: ImageFile, wanted: Mapping[str, Any]) -> bool:
    """Return whether a file has the entities that a filter asks for."""
    for name, value in wanted.items():
        own = file.entities.get(name)
        if name == 'session':
            own = file.session
        elif name == 'datatype':
            own = file.folder
        allowed = value if isinstance(value, list) else [value]
        if not any(_equal(name, own, one) for one in allowed):
            return False
    return True


def _equal(name: str, own: str | None, wanted: Any) -> bool:
    if wanted is None or wanted in ABSENT:
        return own is None
    if own is None:
        return False
    if wanted in PRESENT:
        return True
    text = str(wanted)
    if name == 'extension':
        text = f'.{text.lstrip(".")}'
    elif name == 'session':
        text = text.removeprefix('ses-')
    if name != 'session' and _is_number(own) and _is_number(text):
        return int(own) == int(text)
    return own == text


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
