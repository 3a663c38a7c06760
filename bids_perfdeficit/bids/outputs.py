"""Name what is written, and say in sidecars what it is.

Names and facts stand in one table, ``data/io_spec.json``. Each entry has a ``path`` with fields in
braces, the least ``level`` that makes it (``minimal``, ``full``, or ``dataset`` and ``group`` for
files that belong to no participant), the ``sidecar`` of what can have one, and the ``reference``
whose grid it shares. Must not write, nor know how a file is made.
"""

from __future__ import annotations

import functools
import json
import os
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_perfdeficit.data import load

if TYPE_CHECKING:
    from bids_perfdeficit.bids.discovery import ScanPair

#: Levels of the participant level, each with all before it.
LEVELS = ('minimal', 'full')

_SIDECAR = '_json'


def output_keys(level: str = 'full') -> tuple[str, ...]:
    """Return the keys of what a level makes for each pair of scans, without sidecars.

    Parameters
    ----------
    level : str
        ``'minimal'``, ``'full'`` (with all of minimal), ``'dataset'`` or ``'group'``.

    Returns
    -------
    tuple of str
        In the order of the table.

    Raises
    ------
    ValueError
        For another level.
    """
    known = {entry['level'] for entry in _table().values()}
    if level not in known:
        raise ValueError(f'no level {level!r}; there are {", ".join(sorted(known))}')
    wanted = LEVELS[: LEVELS.index(level) + 1] if level in LEVELS else (level,)
    return tuple(key for key, entry in _table().items() if entry['level'] in wanted)


def output_path(
    root: str | os.PathLike[str],
    key: str,
    *,
    participant: str | None = None,
    session: str | None = None,
    space: str | None = None,
    **entities: str,
) -> Path:
    """Return where an output lies.

    Parameters
    ----------
    root : path
        OUTPUT_DIR.
    key : str
        Of ``data/io_spec.json``; with ``_json`` appended, the sidecar.
    participant, session, space : str, optional
        Labels without ``sub-``, ``ses-`` and ``space-``. Those that the name lacks are ignored.
    **entities : str
        What the name of a group output needs: ``model``, ``contrast``, ``stat``.

    Returns
    -------
    Path
        Below `root`; nothing is created.

    Raises
    ------
    ValueError
        For an unknown key or a missing label; it lists what there is.

    Examples
    --------
    >>> output_path('out', 'brain_mask', participant='01').as_posix()
    'out/sub-01/ct/sub-01_desc-brain_mask.nii.gz'
    """
    pattern = _entry(key.removesuffix(_SIDECAR))['path']
    fields = dict(entities)
    if participant is not None:
        subject = f'sub-{participant}'
        tail = f'ses-{session}' if session else ''
        fields['subject'] = subject
        fields['prefix'] = f'{subject}_{tail}' if tail else subject
        fields['folder'] = f'{subject}/{tail}' if tail else subject
    if space is not None:
        fields['space'] = space
    needed = {name for _, name, _, _ in string.Formatter().parse(pattern) if name}
    if missing := needed - set(fields):
        names = {'participant' if m in ('subject', 'prefix', 'folder') else m for m in missing}
        raise ValueError(f'the name of {key!r} needs {", ".join(sorted(names))}')
    path = Path(root, pattern.format_map(fields))
    if key.endswith(_SIDECAR):
        if 'sidecar' not in _entry(key.removesuffix(_SIDECAR)):
            raise ValueError(f'{key.removesuffix(_SIDECAR)!r} has no sidecar')
        path = sidecar_path(path)
    return path


def find_outputs(root: str | os.PathLike[str], level: str, folder: Path) -> list[Path]:
    """Return the files in a folder that are named as outputs of a level, sidecars among them.

    Parameters
    ----------
    root : path
        OUTPUT_DIR.
    level : str
        As in `output_keys`.
    folder : Path
        Below `root`.

    Returns
    -------
    list of Path
        In order; none where there is no folder.
    """
    patterns = [_name_pattern(key) for key in output_keys(level)]
    patterns += [_name_pattern(key, sidecar=True) for key in output_keys(level)]
    return sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if any(p.fullmatch(path.relative_to(root).as_posix()) for p in patterns)
    )


@functools.cache
def _name_pattern(key: str, sidecar: bool = False) -> re.Pattern[str]:
    """Return what the path of an output, or of its sidecar, looks like with any labels."""
    pattern = _entry(key)['path']
    if sidecar:
        pattern = sidecar_path(Path(pattern)).as_posix()
    pieces = string.Formatter().parse(pattern)
    return re.compile(
        ''.join(re.escape(text) + ('[^/]+' if name else '') for text, name, _, _ in pieces)
    )


def resolution_label(resolution: float) -> str:
    """Return a resolution in mm as the label of ``res-``: 2.5 is ``2p5``."""
    return f'{resolution:g}'.replace('.', 'p')


def sidecar_path(path: Path) -> Path:
    """Return the JSON that belongs to a file."""
    return path.with_name(path.name.removesuffix('.gz').rpartition('.')[0] + '.json')


def has_sidecar(key: str) -> bool:
    """Return whether an output has a sidecar."""
    return 'sidecar' in _entry(key)


def participant_outputs(
    root: str | os.PathLike[str], pair: ScanPair, *, space: str, level: str = 'full'
) -> dict[str, Path]:
    """Return every file that a level leaves for one pair of scans.

    Parameters
    ----------
    root : path
        OUTPUT_DIR.
    pair : ScanPair
        Whose files.
    space : str
        Template of the standard-space maps.
    level : str
        ``'minimal'`` or ``'full'``.

    Returns
    -------
    dict of str to Path
        By key; sidecars under the key with ``_json`` appended.
    """
    paths = {}
    for key in output_keys(level):
        for name in (key, key + _SIDECAR) if 'sidecar' in _entry(key) else (key,):
            paths[name] = output_path(
                root, name, participant=pair.participant, session=pair.session, space=space
            )
    return paths


def sidecar(
    key: str, *, sources: Iterable[str] = (), space: str | None = None, **more: Any
) -> dict[str, Any]:
    """Return what the sidecar of an output says.

    Parameters
    ----------
    key : str
        Of ``data/io_spec.json``.
    sources : iterable of str
        BIDS URIs of the files it was made from. When the output shares the grid of one of them,
        that one becomes the ``SpatialReference``.
    space : str, optional
        Template, named in the ``Resolution`` of what lies on it.
    **more
        Anything else, which takes precedence.

    Returns
    -------
    dict
        In the order of writing.

    Raises
    ------
    ValueError
        For an unknown key, or one without a sidecar.
    """
    entry = _entry(key)
    if 'sidecar' not in entry:
        raise ValueError(f'{key!r} has no sidecar')
    content: dict[str, Any] = dict(entry['sidecar'])
    if space is not None and 'Resolution' in content:
        content['Resolution'] = content['Resolution'].replace('the template', space)
    sources = list(sources)
    if sources:
        content['Sources'] = sources
    if reference := entry.get('reference'):
        ending = '_' + _entry(reference)['path'].partition('}_')[2]
        for source in sources:
            if source.endswith(ending) and 'space-' not in source:
                content['SpatialReference'] = source
    return content | more


@functools.cache
def read_spec() -> Mapping[str, Any]:
    """Return the table, ``data/io_spec.json``."""
    spec: dict[str, Any] = json.loads(load('io_spec.json').read_text(encoding='utf-8'))
    return spec


def _table() -> Mapping[str, Mapping[str, Any]]:
    table: Mapping[str, Mapping[str, Any]] = read_spec()['outputs']
    return table


def _entry(key: str) -> Mapping[str, Any]:
    try:
        return _table()[key]
    except KeyError:
        raise ValueError(f'no output {key!r}; there are {", ".join(_table())}') from None
