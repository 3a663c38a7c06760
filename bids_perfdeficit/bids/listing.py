"""List the image files of a BIDS dataset, whatever else lies in it.

Everything that a file system can hold is expected: pipes, devices, links that lead nowhere or in
a circle, folders that cannot be read, names that are not UTF-8, files where folders belong. Only
folders are opened here, no file. Pybids reads the entities of names, by
``data/bids_config.json``. Its index is not used: it opens whatever is called
``dataset_description.json`` or ``layout_config.json`` (a pipe blocks it), follows links in
circles, and fails as a whole on one name that is not UTF-8. Must not know which image is which.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_perfdeficit.data import load
from bids_perfdeficit.errors import printable

#: Folders that hold the raw images of a study: ISLES'24 as released, and the BIDS convention.
RAW_FOLDERS = ('raw_data', 'rawdata')

#: Folders of a subject or session in which CT files are looked for; None is the folder itself.
CT_FOLDERS = frozenset({None, 'ct', 'anat'})

#: Extensions of the images that are read.
NIFTI = ('.nii', '.nii.gz')

#: Folders of other modalities. They never hold head CT.
OTHER_FOLDERS = frozenset({
    'beh', 'dwi', 'eeg', 'emg', 'fmap', 'func', 'ieeg', 'meg', 'micr', 'motion', 'mrs', 'nirs',
    'perf', 'pet',
})  # fmt: skip

#: Files that are not images: sidecars, tables, pages. Half of a dataset's files are.
NO_IMAGE = re.compile(
    r'\.(?:json|tsv|tsv\.gz|csv|txt|bval|bvec|mat|html|svg|png|jpe?g|pdf|md|log|edf|fif)$', re.I
)

#: Folders below a subject that are descended into: ses-x/ct/series/..., and no further.
DEPTH = 5

#: Entries of one participant that are read. More is another data set behind a link, or a folder
#: of DICOM files (10 CT series have some 5,000); reading on could take hours.
ENTRIES = 100_000

#: Labels of participants and sessions, as BIDS has them.
LABEL = re.compile(r'[a-zA-Z0-9+]+')

#: Characters of ``sub-<label>_ses-<label>``. File systems allow 255 in a name, and names of
#: outputs append up to 80 (``_space-<template>_res-2_desc-hypoperfused_probseg.nii.gz``).
LONGEST_PREFIX = 150

#: Names that are listed before "and N more".
LISTED = 8


@dataclass(frozen=True)
class Problem:
    """Why a participant, a session or a request cannot be served, and what to do.

    Parameters
    ----------
    reason, fix : str
        One clause each, without a full stop.
    participant, session : str, optional
        Labels without ``sub-`` and ``ses-``; None for the dataset. What is not printable in them
        is escaped, so that both can be used as they are.
    path : Path, optional
        The file at fault.
    """

    reason: str
    fix: str
    participant: str | None = None
    session: str | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        for name in ('participant', 'session'):
            label = getattr(self, name)
            if label is not None:
                object.__setattr__(self, name, printable(label))

    def __str__(self) -> str:
        known = self.participant is not None
        who = f'{make_prefix(self.participant, self.session)}: ' if known else ''
        where = f'{self.path}: ' if self.path else ''
        return printable(f'{who}{where}{self.reason}; {self.fix}.')


@dataclass(frozen=True)
class ImageFile:
    """An entry of a participant's folder that is called like an image.

    Parameters
    ----------
    path : Path
        As it was found; links are not resolved. It may be a folder or a pipe.
    participant : str
        Label of the folder it lies in.
    session : str or None
        Label of the session's folder, else that of its name.
    folder : str or None
        Folders between subject or session and file; None when there are none.
    entities : mapping
        Of its name, with ``suffix`` and ``extension``.
    copy : str
        What dcm2niix appended to the suffix, for example ``_Tilt_Eq_1``.
    free : str
        Parts of the name that belong to no entity, joined by ``_``.
    """

    path: Path
    participant: str
    session: str | None
    folder: str | None
    entities: Mapping[str, str]
    copy: str = ''
    free: str = ''

    @property
    def is_nifti(self) -> bool:
        """Whether its extension is one of `NIFTI`."""
        return self.entities.get('extension') in NIFTI

    @property
    def in_ct_folder(self) -> bool:
        """Whether it lies in one of `CT_FOLDERS`."""
        return (self.folder and self.folder.lower()) in CT_FOLDERS

    @property
    def bare_name(self) -> str:
        """The name without participant and session, which may contain anything."""
        return re.sub(r'^sub-[^_.]*_?(?:ses-[^_.]*_?)?', '', self.path.name)

    @property
    def series(self) -> str:
        """What the copies that dcm2niix makes of one series have in common."""
        stem = self.path.name.removesuffix(self.entities.get('extension', ''))
        return f'{self.folder or ""}/{stem.removesuffix(self.copy) if self.copy else stem}'


@dataclass
class Participants:
    """The folders ``sub-*`` of a dataset.

    Parameters
    ----------
    labels : set of str
        Of the folders that can be searched.
    problems : list of Problem
        One for each ``sub-*`` that cannot.
    flat : list of str
        NIfTI files that lie directly in the dataset's folder, in natural order.
    """

    labels: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    flat: list[str] = field(default_factory=list)


def list_participants(root: Path) -> Participants:
    """Find the participants of a dataset.

    Parameters
    ----------
    root : Path
        A folder.

    Returns
    -------
    Participants
        With every entry ``sub-*`` in either its labels or its problems.

    Raises
    ------
    OSError
        When `root` cannot be read.
    """
    found = Participants()
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: natural(entry.name)):
            folder, why = _is_folder(entry)
            if not folder and entry.name.endswith(NIFTI) and not entry.name.startswith('.'):
                found.flat.append(entry.name)
            if not entry.name.startswith('sub-'):
                continue
            label, path = entry.name[4:], Path(entry.path)
            if folder:
                trouble = _check_label(label, path)
                if trouble is None:
                    found.labels.add(label)
                else:
                    found.problems.append(trouble)
            elif why:
                found.problems.append(
                    Problem(why, 'replace it by the folder of that participant', label, None, path)
                )
            elif LABEL.fullmatch(label):  # sub-01.html and the like are not participants
                found.problems.append(
                    Problem(
                        'is not a folder',
                        f'put the images into a folder sub-{label}/ct, or remove it',
                        label,
                        None,
                        path,
                    )
                )
    return found


def list_images(
    root: Path, participant: str, *, containing: str = ''
) -> tuple[list[ImageFile], list[Problem]]:
    """Find the image files of one participant.

    Parameters
    ----------
    root : Path
        The dataset.
    participant : str
        Label of a folder.
    containing : str
        Only files whose names hold this; reading the entities of a name takes 0.3 ms.

    Returns
    -------
    files : list of ImageFile
        In natural order of their paths. Whatever has no name of a table or text is an image here.
    problems : list of Problem
        Folders that could not be read, and too many files.
    """
    base = root / f'sub-{participant}'
    walk = _Walk(root, participant)
    files = [
        _make_image(path, path.relative_to(base).parts, participant)
        for path in walk.visit(base)
        if containing in path.name
    ]
    return sorted(files, key=lambda file: natural(str(file.path))), walk.problems


class _Walk:
    """One participant's folders, each visited at most once on the way down to it."""

    def __init__(self, root: Path, participant: str) -> None:
        self.participant = participant
        self.problems: list[Problem] = []
        self.left = ENTRIES
        # A link to the dataset or to a folder above it would list all others as this one's.
        self.above = {_identify(folder) for folder in (root, *root.parents)} - {None}

    def visit(self, folder: Path, above: frozenset[object] = frozenset()) -> Iterator[Path]:
        own = _identify(folder)
        if own is None or own in above or own in self.above:
            return
        above |= {own}
        subfolders = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if self.left <= 0:
                        break
                    self.left -= 1
                    if entry.name.startswith('.'):
                        continue
                    is_folder, _ = _is_folder(entry)
                    # A folder with the name of an image is reported as such once it is chosen.
                    if is_folder and not entry.name.endswith(NIFTI):
                        subfolders.append(entry.name)
                    elif not NO_IMAGE.search(entry.name):
                        yield Path(entry.path)
        except OSError as error:
            self.problems.append(
                Problem(
                    f'this folder cannot be read ({error.strerror})',
                    'make it readable to you, or remove it',
                    self.participant,
                    None,
                    folder,
                )
            )
            return
        if self.left <= 0:
            if self.left == 0:
                self.left = -1  # said once
                self.problems.append(
                    Problem(
                        f'its folder holds more than {ENTRIES} files and folders',
                        'keep only NIfTI files and sidecars there; what links lead to counts',
                        self.participant,
                    )
                )
            return
        if len(above) > DEPTH:
            return
        for name in sorted(subfolders, key=natural):
            if name not in OTHER_FOLDERS:
                yield from self.visit(folder / name, above)


def _identify(folder: Path) -> tuple[int, int] | None:
    try:
        stat = folder.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry[str]) -> tuple[bool, str]:
    """Return whether an entry is a folder, and why a link is neither folder nor file."""
    try:
        if entry.is_dir():
            return True, ''
        if entry.is_symlink() and not os.path.exists(entry.path):
            return False, f'is a link to {os.readlink(entry.path)}, which leads nowhere'
    except OSError as error:  # a loop of links, a server that is gone
        return False, f'cannot be read ({error.strerror})'
    return False, ''


def _check_label(label: str, path: Path) -> Problem | None:
    """Say what is wrong with a participant's label."""
    why = check_label(label)
    if why is None and len(label) > LONGEST_PREFIX - 4:
        why = f'has {len(label)} characters, so that names of outputs would be too long'
    if why is None:
        return None
    return Problem(f'the label {why}', 'rename the folder and its files', label, None, path)


def check_label(label: str) -> str | None:
    """Say, in a clause without its subject, why a label is not one of BIDS.

    Parameters
    ----------
    label : str
        Without ``sub-`` or ``ses-``.

    Returns
    -------
    str or None
        None when it holds letters, digits and ``+`` of ASCII, and at least one.
    """
    if LABEL.fullmatch(label):
        return None
    if not label:
        return 'is empty'
    if _is_undecodable(label):
        return f"'{printable(label)}' is not valid UTF-8"
    return f"'{printable(label)}' holds other characters than the letters a to z and digits"


def has_plain_name(path: Path) -> bool:
    """Return whether a file's name is UTF-8 without control characters.

    Sidecars, logs and programs that are started cannot hold another.
    """
    return path.name.isprintable()


def _is_undecodable(text: str) -> bool:
    return any('\ud800' <= char <= '\udfff' for char in text)


def _make_image(path: Path, parts: tuple[str, ...], participant: str) -> ImageFile:
    *folders, name = parts
    entities = parse_name(name)
    session = entities.get('session')
    if folders and folders[0].startswith('ses-'):
        session = folders.pop(0)[4:]
    copy = entities.pop('copy', '')
    free = '_'.join(
        part for part in name.split('.')[0].split('_')[:-1] if not re.match(r'[a-z]+-', part)
    )
    return ImageFile(path, participant, session, '/'.join(folders) or None, entities, copy, free)


def parse_name(name: str) -> dict[str, str]:
    """Return the entities of a file's name, as pybids reads them by ``data/bids_config.json``."""
    from bids.layout import parse_file_entities  # late: it takes a second to import

    found = parse_file_entities(f'/{name}', config=[_config()])
    return {entity: str(value) for entity, value in found.items()}


@functools.cache
def _config() -> Any:
    from bids.layout import Config

    return Config.load(str(load('bids_config.json')))


@functools.cache
def _entities() -> tuple[str, ...]:
    content = json.loads(load('bids_config.json').read_text(encoding='utf-8'))
    return tuple(entity['name'] for entity in content['entities'])


def entity_names() -> tuple[str, ...]:
    """Return the entities by which a filter can choose, in the order of names."""
    names = (name for name in _entities() if name not in ('subject', 'copy'))
    return (*names, 'datatype')


def make_prefix(participant: str | None, session: str | None) -> str:
    """Return ``sub-01`` or ``sub-01_ses-x``, with which names of files begin."""
    return f'sub-{participant}' + (f'_ses-{session}' if session else '')


def shorten(names: Iterable[str]) -> str:
    """Return up to `LISTED` names as an enumeration, and how many more there are."""
    listed = list(names)
    more = len(listed) - LISTED
    if more <= 0:
        return ', '.join(listed)
    return f'{", ".join(listed[:LISTED])} and {more} more'


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key by which ``sub-2`` comes before ``sub-10``.

    Only the digits 0 to 9 count as digits: `str.isdigit` accepts characters, such as a
    superscript two, that `int` refuses.
    """
    parts = re.findall(r'[0-9]+|[^0-9]+', text)
    return tuple((0, int(p), p) if '0' <= p[0] <= '9' else (1, 0, p) for p in parts)
