"""Read JSON files that users and scanners wrote, without trusting them.

A file may be a pipe that never ends, too large, not JSON at all, or nested so deeply that the
parser fails. Each is one sentence here. Standard library only. Must not know what is read.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from bids_perfdeficit.errors import InputError

#: Bytes. Sidecars have some 10 kB; those that hold a whole DICOM header some 100 kB.
LARGEST = 4_000_000

#: What is not a file, by the test of `stat`.
_KINDS = (
    (stat.S_ISDIR, 'a folder'),
    (stat.S_ISFIFO, 'a pipe'),
    (stat.S_ISSOCK, 'a socket'),
    (stat.S_ISCHR, 'a device'),
    (stat.S_ISBLK, 'a device'),
)


def describe_kind(mode: int) -> str | None:
    """Say what an entry of a file system is that is not a regular file.

    Parameters
    ----------
    mode : int
        ``st_mode`` of `os.stat`.

    Returns
    -------
    str or None
        With its article, for example ``'a pipe'``; None for a regular file.
    """
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), 'not a file')


def read_text(path: Path, largest: int = LARGEST) -> str:
    """Return the text of a regular file in UTF-8, with or without a byte order mark.

    Parameters
    ----------
    path : Path
        Anything; only a regular file is opened.
    largest : int
        Bytes.

    Raises
    ------
    InputError
        When it is not a file, cannot be read, is too large or is not UTF-8.
    """
    try:
        status = os.stat(path)
        kind = describe_kind(status.st_mode)
        if kind is not None:
            raise InputError(f'is {kind}', fix='give a file', path=path)
        if status.st_size > largest:
            raise InputError(
                f'has {status.st_size} bytes, and at most {largest} are read',
                fix='give the right file, or shorten it',
                path=path,
            )
        return path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputError(
            f'is not UTF-8 text (byte {error.start})', fix='save it as UTF-8', path=path
        ) from error
    except OSError as error:
        raise InputError(
            f'cannot be read ({error.strerror})', fix='give a file that is there', path=path
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Parameters
    ----------
    path : Path
        Anything; only a regular file is opened.

    Raises
    ------
    InputError
        When it cannot be read, is not JSON, is nested too deeply, or holds no object.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise InputError('is nested too deeply', fix='correct the file', path=path) from error
    except ValueError as error:
        raise InputError(
            f'is not valid JSON ({error})', fix='correct the file', path=path
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            'holds no JSON object', fix='begin it with { and end it with }', path=path
        )
    return content


def read_facts(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds, empty where there is none or it is damaged."""
    try:
        return read_json(path)
    except InputError:
        return {}
