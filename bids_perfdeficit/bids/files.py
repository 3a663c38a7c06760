"""Write files so that no reader ever sees half of one.

Each function writes under a temporary name in the same folder and moves the file into place with
`os.replace`. What is written depends on the content alone (gzip without a time stamp or name),
so that equal results are equal bytes. Must not know what the files are for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import psutil

if TYPE_CHECKING:
    import nibabel as nib
    import pandas as pd

#: Of zlib. ISA-L is faster, but packs the same content in two ways once in thousands of files.
COMPRESSION = 1

#: Ending of a file while it is written.
TEMPORARY = '.part'


def write_nifti(image: nib.Nifti1Image, path: str | os.PathLike[str]) -> Path:
    """Write an image.

    Parameters
    ----------
    image : Nifti1Image
        Written with its own header and data type.
    path : path
        Ends in ``.nii`` or ``.nii.gz``.

    Returns
    -------
    Path
        `path`.
    """
    path = Path(path)

    def write(stream: IO[bytes]) -> None:
        if path.name.endswith('.gz'):
            with gzip.GzipFile('', 'wb', COMPRESSION, stream, mtime=0) as zipped:
                image.to_stream(zipped)
        else:
            image.to_stream(cast(io.IOBase, stream))

    return _write(path, write)


def write_bytes(content: bytes, path: str | os.PathLike[str]) -> Path:
    """Write bytes and return `path`."""
    return _write(Path(path), lambda stream: stream.write(content))


def write_text(text: str, path: str | os.PathLike[str]) -> Path:
    """Write text as UTF-8 with Unix line ends and return `path`."""
    return write_bytes(text.encode(), path)


def write_json(obj: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write a JSON object, keys in their order, and return `path`.

    Numbers of numpy become numbers, other objects (paths, enumerations) their text. Not-a-number
    and infinity, which JSON does not have, become null.
    """
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(text + '\n', path)


def write_tsv(frame: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write a table as BIDS has it (tabs, ``n/a`` for missing values) and return `path`.

    The index is not written. Floats keep six significant digits.
    """
    text = frame.to_csv(
        sep='\t', na_rep='n/a', index=False, float_format='%.6g', lineterminator='\n'
    )
    return write_text(text, path)


def copy_file(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> Path:
    """Copy a file's content and return `dst`."""

    def write(stream: IO[bytes]) -> None:
        with Path(src).open('rb') as source:
            shutil.copyfileobj(source, stream, 1 << 20)

    return _write(Path(dst), write)


def create_bytes(content: bytes, path: str | os.PathLike[str]) -> bool:
    """Write a file only if there is none, and return whether it was written.

    Of any number of processes that try at once exactly one writes.
    """
    path = Path(path)
    if path.exists():
        return False
    aside = write_bytes(content, path.with_name(_temporary_name(path)))
    try:
        os.link(aside, path)  # unlike a rename, this fails when the file is there
    except FileExistsError:
        return aside.stat().st_nlink > 1  # where the reply was lost, as in `_move`
    except OSError:  # a file system without links: the last of equal contents wins
        os.replace(aside, path)
        return True
    finally:
        aside.unlink(missing_ok=True)
    return True


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(_temporary_name(path))
    try:
        with aside.open('xb') as stream:
            write(stream)
        _move(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return path


def _move(aside: Path, path: Path) -> None:
    # NFS repeats a request whose reply was lost; the repetition does not find the file any more.
    moved = aside.stat()
    try:
        os.replace(aside, path)
    except FileNotFoundError:
        if not path.exists() or not os.path.samestat(moved, path.stat()):
            raise


def _temporary_name(path: Path) -> str:
    # A leading dot keeps it out of every index; no query asks for the extension.
    return f'.{path.name[:100]}.{owner_tag()}.{uuid.uuid4().hex}{TEMPORARY}'


def owner_tag() -> str:
    """Return a word for this process on this machine, for the names of temporary files."""
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f'{host}-{os.getpid()}-{process_start(os.getpid())}'


def owner_is_gone(tag: str) -> bool:
    """Return whether the process of a tag has ended; of other machines it is not known: False."""
    host, _, rest = tag.partition('-')
    number, _, start = rest.partition('-')
    if host != owner_tag().partition('-')[0] or not (number.isdecimal() and number.isascii()):
        return False
    return process_start(int(number)) != start


def process_start(number: int) -> str:
    """Return when a process started, as a word that no other process of its number has.

    Empty when there is no such process. Linux counts ticks since boot, which no change of the
    clock moves.
    """
    try:
        return (
            Path(f'/proc/{number}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()[19]
        )
    except (OSError, IndexError):
        pass
    try:
        return f'{psutil.Process(number).create_time():.0f}'
    except psutil.Error:
        return ''


def remove_leftovers(folder: Path, *, any_owner: bool = False) -> None:
    """Remove the temporary files that killed runs left in a folder.

    Parameters
    ----------
    folder : Path
        Without the folders in it.
    any_owner : bool
        Also files of processes that may be alive: where the caller holds the lock of the folder.
    """
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return
    for name in names:
        parts = name.split('.')
        if not (name.startswith('.') and name.endswith(TEMPORARY)) or len(parts) < 4:
            continue
        if any_owner or owner_is_gone(parts[-3]):
            (folder / name).unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, 'tolist'):  # numpy's arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if abs(value) < float('inf') else None
    if value is None or isinstance(value, (bool, int, str)):
        return getattr(value, 'value', value)
    return str(value)
