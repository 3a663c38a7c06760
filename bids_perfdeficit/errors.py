"""The one exception that is written for the user: what is wrong, where, and how to fix it.

Also makes foreign text safe to print. Must not know what the text is about.
"""

from __future__ import annotations

import errno
from pathlib import Path


def printable(text: object) -> str:
    r"""Return text on one line that a terminal displays and does not obey.

    Names of files and values of tables are written by others. A line break in one can forge a
    line of the report, an escape sequence can clear the screen, and bytes that are not UTF-8
    cannot be printed at all. Whatever is not printable (control and format characters, line
    separators, surrogates) is replaced by its escape sequence of Python, for example ``\n``;
    bytes that Python could not decode appear as bytes, for example ``\xe9``.

    Parameters
    ----------
    text : object
        A string, or what `str` makes one of, for example a path.

    Returns
    -------
    str
        `text` itself when all of it can be printed.
    """
    text = str(text)
    if text.isprintable():
        return text
    return ''.join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    if '\udc80' <= char <= '\udcff':  # a byte, as os.fsdecode keeps it
        return f'\\x{ord(char) - 0xDC00:02x}'
    return char.encode('unicode_escape').decode('ascii')


#: What a user can fix and a run cannot, by the number of an error of the system: not a defect of
#: the program.
SURROUNDINGS = {
    errno.ENOSPC: 'free some space',
    errno.EDQUOT: 'free some space within your quota',
    errno.EFBIG: 'raise the limit of the size of files (ulimit -f)',
    errno.EROFS: 'bind it read-write or give another folder',
    errno.EACCES: 'make it readable and writable to you',
    errno.EPERM: 'make it readable and writable to you',
}


class InputError(ValueError):
    """A problem in the user's data or options that no code of ours can repair.

    Parameters
    ----------
    reason : str
        What is wrong, in one clause without a full stop.
    fix : str
        What the user can do about it, in one clause without a full stop.
    path : str or Path, optional
        The file at fault.
    """

    def __init__(self, reason: str, *, fix: str, path: str | Path | None = None) -> None:
        self.reason = reason
        self.fix = fix
        self.path = None if path is None else str(path)
        super().__init__(reason, fix, self.path)

    def __str__(self) -> str:
        where = f'{self.path}: ' if self.path else ''
        return printable(f'{where}{self.reason}; {self.fix}.')

    def __reduce__(self) -> tuple[object, ...]:
        # Nipype's MultiProc plugin pickles exceptions between processes.
        return (_rebuild, (self.reason, self.fix, self.path))


def _rebuild(reason: str, fix: str, path: str | None) -> InputError:
    return InputError(reason, fix=fix, path=path)
