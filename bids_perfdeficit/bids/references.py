"""Find reference maps of CT perfusion and masks of occlusions, and whose they are.

A reference is found by its name alone: a pattern that users give, or the names of ISLES'24. It
belongs to the participant and session that its name, or a folder above it, has. Reads headers and
hashes of files, never voxels. Must not know what a map shows.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_perfdeficit.bids.cohort import Entry
from bids_perfdeficit.bids.listing import NIFTI, RAW_FOLDERS, natural, shorten
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.nifti import open_nifti

#: Names of Tmax maps below a folder: ISLES'24 and what most perfusion software is exported as.
TMAX = '**/*[tT][mM][aA][xX].nii*'
#: Where they lie in ISLES'24 and most other datasets, relative to the dataset.
DEFAULT_PATTERN = f'derivatives/{TMAX}'
#: Masks of the occlusion beside a reference: ``*_space-ncct_lvo-msk.nii.gz`` in ISLES'24.
_CLOT = '*[lL][vV][oO]*.nii*'
#: Copies of references that an evaluation leaves, also in an OUTPUT_DIR of another run.
_OURS = '_desc-reference_tmax.nii.gz'
#: mm by which the positions of two grids may differ that are one.
_SAME_MM = 1e-2


@dataclass(frozen=True)
class ReferenceFile:
    """A map that may be a reference.

    Parameters
    ----------
    path : Path
    participant : str
        Label of its name, else of the folder it lies in.
    session : str
        Likewise; '' where there is none.
    """

    path: Path
    participant: str
    session: str


def find_references(
    bids_dir: Path, patterns: Sequence[str] = (), *, output_dir: Path | None = None
) -> tuple[list[ReferenceFile], tuple[str, ...]]:
    """Find reference maps.

    Parameters
    ----------
    bids_dir : Path
        The dataset, or ``raw_data`` in it.
    patterns : sequence of str
        Files, folders or patterns with ``*``, ``?``, ``[...]`` and ``**``; absolute, or relative
        to the dataset or to the current folder. By default the maps of Tmax in ``derivatives``.
    output_dir : Path, optional
        A folder in which nothing is a reference.

    Returns
    -------
    files : list of ReferenceFile
        In natural order.
    notes : tuple of str
        What was left out, a sentence each.

    Raises
    ------
    InputError
        When there is none.
    """
    bases = [bids_dir]
    if bids_dir.name in RAW_FOLDERS:
        bases.append(bids_dir.parent)
    paths: list[Path] = []
    for pattern in patterns or (DEFAULT_PATTERN,):
        paths += _expand(pattern, [*bases, Path.cwd()] if patterns else bases)
    files, nameless = [], []
    for path in sorted(dict.fromkeys(paths), key=lambda path: natural(str(path))):
        if output_dir is not None and path.is_relative_to(output_dir):
            continue
        if path.name.endswith(_OURS):
            continue
        participant, session = (_label(path, prefix) for prefix in ('sub', 'ses'))
        if participant:
            files.append(ReferenceFile(path, participant, session))
        else:
            nameless.append(path.name)
    if not files:
        asked = ' '.join(patterns) or DEFAULT_PATTERN
        why = f'{len(nameless)} files match, and none names a participant (sub-...)'
        raise InputError(
            f'no reference map was found by {asked}' + (f': {why}' if nameless else ''),
            fix='give --reference with a quoted pattern, for example '
            "'derivatives/*/*/perfusion-maps/*_tmax.nii.gz'",
            path=bids_dir,
        )
    notes = [f'{len(nameless)} references name no participant: {shorten(nameless)}']
    return files, tuple(notes if nameless else ())


def _expand(pattern: str, bases: Iterable[Path]) -> list[Path]:
    """Return the NIfTI files that a pattern matches, in the first folder where any does."""
    for base in bases:
        whole = str(base / pattern)
        found = [Path(whole)] if Path(whole).exists() else []
        found = found or [Path(match) for match in glob.glob(whole, recursive=True)]
        files = []
        for path in found:
            inside = path.glob(TMAX) if path.is_dir() else (path,)
            files += [p.absolute() for p in inside if p.name.endswith(NIFTI) and p.is_file()]
        if files:
            return files
    return []


def _label(path: Path, prefix: str) -> str:
    """Return a label from the name of a file, else from the nearest folder that has one."""
    for part in (path.name, *reversed(path.parts[:-1])):
        if match := re.match(rf'(?:.*_)?{prefix}-([A-Za-z0-9+]+)', part):
            return match.group(1)
    return ''


def match_references(
    entries: Sequence[Entry], files: Sequence[ReferenceFile]
) -> tuple[dict[tuple[str, str], Path], dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """Give each participant and session the one reference of its name.

    Parameters
    ----------
    entries : sequence of Entry
        Whose maps were computed.
    files : sequence of ReferenceFile
        As found.

    Returns
    -------
    matched : dict of (str, str) to Path
        By participant and session.
    absent : dict of (str, str) to str
        Why others have none, in a clause for each.
    several : dict of (str, str) to str
        Those that have more than one, with a sentence for each.
    """
    matched: dict[tuple[str, str], Path] = {}
    absent: dict[tuple[str, str], str] = {}
    several: dict[tuple[str, str], str] = {}
    for entry in entries:
        key = entry.participant, entry.session
        own = [file for file in files if file.participant == entry.participant]
        alone = sum(other.participant == entry.participant for other in entries) == 1
        same = [file for file in own if _same_session(file.session, entry.session)]
        bare = [file for file in own if not file.session or (not entry.session and alone)]
        chosen = same or bare
        if len(chosen) == 1:
            matched[key] = chosen[0].path
        elif chosen:
            names = shorten(file.path.name for file in chosen)
            several[key] = f'{len(chosen)} references match ({names}): narrow --reference to one.'
        elif own:
            sessions = shorten(f'ses-{file.session}' for file in own)
            absent[key] = f'its references are of other sessions ({sessions})'
        else:
            absent[key] = 'there is no reference'
    return matched, absent, several


def _same_session(one: str, other: str) -> bool:
    if one.isascii() and one.isdigit() and other.isascii() and other.isdigit():
        return int(one) == int(other)
    return one == other


def find_clot(reference: Path) -> Path | None:
    """Return the mask of the occlusion that lies beside a reference, or in the folder above."""
    participant = _label(reference, 'sub')
    for folder in (reference.parent, reference.parent.parent):
        found = sorted(
            path
            for path in folder.glob(_CLOT)
            if path.name.endswith(NIFTI) and _label(path, 'sub') == participant
        )
        if found:
            return found[0]
    return None


def find_copies(files: Mapping[str, Path]) -> dict[str, str]:
    """Find files with the same content.

    Parameters
    ----------
    files : mapping of str to Path
        By the name of whose they are.

    Returns
    -------
    dict of str to str
        By the same name, a sentence for each file that others are equal to.
    """
    groups: dict[object, list[str]] = {}
    for size, names in _group(files, lambda path: path.stat().st_size).items():
        if len(names) > 1:
            for content, same in _group({n: files[n] for n in names}, _hash).items():
                groups[size, content] = same
    reasons = {}
    for names in groups.values():
        for name in names if len(names) > 1 else ():
            others = shorten(other for other in names if other != name)
            reasons[name] = (
                f'{files[name]}: is the same file as the reference of {others}; '
                'give each patient its own map.'
            )
    return reasons


def _group(files: Mapping[str, Path], key: Callable[[Path], object]) -> dict[object, list[str]]:
    found: dict[object, list[str]] = {}
    for name, path in files.items():
        try:
            found.setdefault(key(path), []).append(name)
        except OSError:  # reported when it is read
            continue
    return found


def _hash(path: Path) -> str:
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def find_strangers(references: Mapping[str, Path], scans: Mapping[str, Path]) -> dict[str, str]:
    """Find references on the grid of another patient's NCCT and not of their own.

    Parameters
    ----------
    references, scans : mapping of str to Path
        References, and the NCCTs as they were read, by the name of whose they are.

    Returns
    -------
    dict of str to str
        By the same name, a sentence for each that is another patient's.
    """
    grids = {name: grid for name, path in scans.items() if (grid := _grid(path)) is not None}
    reasons = {}
    for name, path in references.items():
        grid = _grid(path)
        if grid is None or name not in grids or _same_grid(grid, grids[name]):
            continue
        others = [n for n, other in grids.items() if n != name and _same_grid(grid, other)]
        if others:
            reasons[name] = (
                f'{path}: has the grid of the NCCT of {shorten(others)} and not of {name}; '
                'give the map of this patient.'
            )
    return reasons


def _grid(path: Path) -> tuple[tuple[int, ...], np.ndarray] | None:
    try:
        image = open_nifti(path)
    except InputError:
        return None
    return tuple(int(n) for n in image.shape[:3]), np.asarray(image.affine, float)


def _same_grid(
    one: tuple[tuple[int, ...], np.ndarray], other: tuple[tuple[int, ...], np.ndarray]
) -> bool:
    if one[0] != other[0]:
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in one[0]], [1])).reshape(4, -1)
    return bool(np.abs((one[1] - other[1]) @ corners).max() < _SAME_MM)
