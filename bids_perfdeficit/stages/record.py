"""What proves that a stage is done: the record that it leaves beside its results.

A file that exists proves nothing. It may be cut, belong to another scan, or be of other options.
A record names everything that shaped the results of a stage (version, options, inputs with their
hashes, the stages before it) and every file that the stage wrote, with its hash. It is written
last, so that a stage that was interrupted has none. Must not know what a stage computes, nor
Nipype.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from bids_perfdeficit import __version__
from bids_perfdeficit.bids.files import write_json

#: ns; a file that was modified so shortly before it was hashed may change again under the same
#: time stamp. Its hash is compared until the file is older than this. Coarse file systems have
#: time stamps of 2 s.
RACY_NS = 2_000_000_000
#: Packages whose versions shape the results; recorded beside them.
VERSIONED = ('antspyx', 'nibabel', 'nilearn', 'nipype', 'numba', 'numpy', 'scipy', 'torch')


@dataclass(frozen=True)
class Stamp:
    """What the file system reports of a file without reading it.

    Parameters
    ----------
    size : int
        Bytes.
    modified_ns, changed_ns : int
        Times of the last change of content and of inode, ns.
    """

    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """Return the stamp of a regular file, None for anything else."""
        try:
            found = path.stat()
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True)
class Input:
    """One input as it was when the stage read it.

    Parameters
    ----------
    stamp : Stamp
        Of the file.
    sha256 : str
        Of its content, hexadecimal.
    hashed_ns : int
        When it was hashed, ns.
    """

    stamp: Stamp
    sha256: str
    hashed_ns: int

    @classmethod
    def of(cls, path: Path) -> Input:
        """Hash a file.

        Raises
        ------
        OSError
            When it cannot be read.
        """
        hashed = time.time_ns()
        before = Stamp.of(path)
        digest = sha256(path)
        if before is None or before != Stamp.of(path):
            raise OSError(f'{path} changed while it was read')
        return cls(before, digest, hashed)

    def agrees(self, path: Path, *, verify: bool = False) -> Input | None:
        """Return the input as it is now if its content is the same, otherwise None.

        The content is hashed only where the stamp differs or cannot be relied on.
        """
        now = Stamp.of(path)
        if now is None or now.size != self.stamp.size:
            return None
        if now == self.stamp and now.modified_ns + RACY_NS < self.hashed_ns and not verify:
            return self
        try:
            again = Input.of(path)
        except OSError:
            return None
        return again if again.sha256 == self.sha256 else None


@dataclass(frozen=True)
class Output:
    """One file that a stage wrote.

    Parameters
    ----------
    size : int
        Bytes.
    sha256 : str
        Of its content, hexadecimal.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Output:
        """Hash a file."""
        return cls(path.stat().st_size, sha256(path))

    def agrees(self, path: Path, *, verify: bool = False) -> bool:
        """Return whether the file is there in its size and, if asked, with its content."""
        now = Stamp.of(path)
        return (
            now is not None
            and now.size == self.size
            and not (verify and sha256(path) != self.sha256)
        )


@dataclass(frozen=True)
class Record:
    """What shaped the results of a stage, and what they are.

    Parameters
    ----------
    app : str
        Version of the program.
    stage : str
        Name.
    version : int
        Version of the stage, raised whenever its results change.
    options : mapping
        The options that shaped the results, as JSON holds them.
    requires : mapping of str to str
        Fingerprints of the stages whose results were read, by name.
    inputs : mapping of str to Input
        By BIDS URI.
    outputs : mapping of str to Output
        By path relative to the dataset.
    software : mapping of str to str
        Versions of the packages that computed the results; not part of the fingerprint.
    """

    app: str
    stage: str
    version: int
    options: Mapping[str, Any]
    requires: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)
    outputs: Mapping[str, Output] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """One word for all of the content: equal for equal results of equal inputs."""
        return digest(
            self.app,
            self.stage,
            self.version,
            self.options,
            self.requires,
            {name: one.sha256 for name, one in self.inputs.items()},
            {name: one.sha256 for name, one in self.outputs.items()},
        )

    def with_inputs(self, inputs: Mapping[str, Input]) -> Record:
        """Return the record with newer stamps of the same content."""
        return replace(self, inputs=dict(inputs))

    def write(self, path: Path) -> None:
        """Write the record in one step."""
        write_json(
            {
                'Name': 'bids_perfdeficit',
                'Version': self.app,
                'Stage': self.stage,
                'StageVersion': self.version,
                'Fingerprint': self.fingerprint,
                'Software': self.software,
                'Options': self.options,
                'Requires': self.requires,
                'Inputs': {
                    name: {
                        'Size': one.stamp.size,
                        'ModifiedNs': one.stamp.modified_ns,
                        'ChangedNs': one.stamp.changed_ns,
                        'HashedNs': one.hashed_ns,
                        'SHA256': one.sha256,
                    }
                    for name, one in self.inputs.items()
                },
                'Outputs': {
                    name: {'Size': one.size, 'SHA256': one.sha256}
                    for name, one in self.outputs.items()
                },
            },
            path,
        )

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """Return the record of a file, None when there is none or it is damaged."""
        if Stamp.of(path) is None:
            return None
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
            record = cls(
                content['Version'],
                content['Stage'],
                content['StageVersion'],
                content['Options'],
                content['Requires'],
                {
                    name: Input(
                        Stamp(one['Size'], one['ModifiedNs'], one['ChangedNs']),
                        one['SHA256'],
                        one['HashedNs'],
                    )
                    for name, one in content['Inputs'].items()
                },
                {
                    name: Output(one['Size'], one['SHA256'])
                    for name, one in content['Outputs'].items()
                },
                content['Software'],
            )
            return record if record.fingerprint == content['Fingerprint'] else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


@functools.cache
def software() -> Mapping[str, str]:
    """Return the versions of this program and of the packages that shape its results."""
    return {'bids_perfdeficit': __version__} | {name: metadata.version(name) for name in VERSIONED}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal."""
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def digest(*facts: object) -> str:
    """Return 16 hexadecimal digits that represent values that JSON can hold."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they come back from JSON, so that they can be compared with a record."""
    content: dict[str, Any] = json.loads(json.dumps(options, sort_keys=True, default=str))
    return content


def remove_files(root: Path, names: Iterable[str]) -> None:
    """Remove files of a dataset by their relative paths; names that lead out of it are ignored."""
    for name in names:
        path = root / name
        if Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root)):
            path.unlink(missing_ok=True)
