"""The one exception that is written for the user: what is wrong, where, and how to mend it."""

from __future__ import annotations

from pathlib import Path


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
        return f'{where}{self.reason}; {self.fix}.'

    def __reduce__(self) -> tuple[object, ...]:
        # Nipype's MultiProc plugin pickles exceptions between processes.
        return (_rebuild, (self.reason, self.fix, self.path))


def _rebuild(reason: str, fix: str, path: str | None) -> InputError:
    return InputError(reason, fix=fix, path=path)
