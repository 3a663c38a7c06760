"""Find each patient's non-contrast CT (NCCT) and CT angiogram (CTA).

BIDS has no CT datatype yet, so that names in the wild vary. Which name means what is decided
here and in ``data/bids_config.json`` and nowhere else. Pybids makes the index, without metadata,
and is asked once; the rest is grouping. Whatever is missing, ambiguous or not understood is told
in words. Must not read an image.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_perfdeficit.data import load
from bids_perfdeficit.errors import InputError

#: The two images a patient must have, with the name that BEP024 gives them and their key in a
#: filter file.
ROLES: dict[str, tuple[str, str]] = {'ncct': ('NCCT', 'ct'), 'cta': ('CTA', 'cta')}

#: Folders of a subject or session in which CT files are looked for; None is the folder itself.
CT_FOLDERS = frozenset({None, 'ct', 'anat'})

#: Folders that hold the raw images of a study: ISLES'24 as released, and the BIDS convention.
RAW_FOLDERS = ('raw_data', 'rawdata')

#: What pybids leaves out, as paths relative to the dataset. Half of a dataset's files are
#: sidecars, and folders of other modalities never hold head CT: without them indexing takes
#: less than half the time.
IGNORED = (
    r'/\.',
    r'^/(?!sub-)',
    r'^/sub-[^/]+/(?:ses-[^/]+/)?'
    r'(?:beh|dwi|eeg|emg|fmap|func|ieeg|meg|micr|motion|mrs|nirs|perf|pet)(?:/|$)',
    r'\.(?:json|tsv|tsv\.gz|csv|txt|bval|bvec|mat|html|svg|png|jpe?g|pdf|md|log|edf|fif)$',
)

#: CT with contrast by its ``acq-`` entity, as the field writes it where ``ce-`` is missing.
ANGIOGRAPHY = re.compile(r'cta|angio|art', re.I)

#: ``ce-`` entities that say that there was none.
NO_CONTRAST = frozenset({'none', 'no', 'non', 'without', 'native', 'nc'})

#: CT files that are neither: perfusion series.
PERFUSION = re.compile(r'ctp|perf', re.I)

#: Words in entities of images that are worse starting points: projections and scouts, kernels
#: for bone and lung, later contrast phases, other body parts, thick or reformatted slices.
SECOND_CHOICE = re.compile(
    r'mip|vrt|scout|topo|locali|bolus|monitor|bone|sharp|lung|ven|late|delay|phase[2-9]|neck|'
    r'chest|body|thick|coronal|sagittal|^cor$|^sag$',
    re.I,
)

#: A NIfTI file whose name hints at CT without being one of the names that are understood.
LOOKS_LIKE_CT = re.compile(r'CT(?!P)|(?:^|[_.-])(?i:ncct|nect|cect|ct|angio)(?![a-z]*p)')

#: How pybids calls its index.
DATABASE = 'layout_index.sqlite'

#: A file below this size may be a pointer of git-annex or git-lfs rather than an image.
POINTER_BYTES = 1024

#: Names that are listed before "and N more".
LISTED = 8

_LABEL = re.compile(r'[a-zA-Z0-9+]+')
_NIFTI = ('.nii', '.nii.gz')


@dataclass(frozen=True)
class ScanPair:
    """The two images of one examination.

    Parameters
    ----------
    participant : str
        Label without ``sub-``.
    session : str or None
        Label without ``ses-``.
    ncct, cta : Path
        The images; both are there and are not empty.
    notes : tuple of str
        What was chosen among several files, and why.
    """

    participant: str
    session: str | None
    ncct: Path
    cta: Path
    notes: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """``sub-01`` or ``sub-01_ses-x``, with which file names begin."""
        return _prefix(self.participant, self.session)

    @property
    def folder(self) -> str:
        """``sub-01`` or ``sub-01/ses-x``."""
        return self.prefix.replace('_', '/')


@dataclass(frozen=True)
class Problem:
    """Why a participant, a session or a request cannot be served, and what to do.

    Parameters
    ----------
    reason, fix : str
        One clause each, without a full stop.
    participant, session : str, optional
        Labels without ``sub-`` and ``ses-``; None for the dataset.
    path : Path, optional
        The file at fault.
    """

    reason: str
    fix: str
    participant: str | None = None
    session: str | None = None
    path: Path | None = None

    def __str__(self) -> str:
        who = f'{_prefix(self.participant, self.session)}: ' if self.participant else ''
        where = f'{self.path}: ' if self.path else ''
        return f'{who}{where}{self.reason}; {self.fix}.'


@dataclass(frozen=True)
class Discovery:
    """What a dataset holds.

    Parameters
    ----------
    pairs : tuple of ScanPair
        In natural order of participant and session.
    problems : tuple of Problem
        Each costs a participant, a session or a request.
    notes : tuple of str
        What is worth knowing and costs nothing.
    """

    pairs: tuple[ScanPair, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _File:
    """An image file of the index.

    ``entities`` are those of its name, ``copy`` is what dcm2niix appended to it.
    """

    path: Path
    participant: str
    session: str | None
    folder: str | None
    entities: Mapping[str, str]
    copy: str

    @property
    def is_nifti(self) -> bool:
        return self.entities.get('extension') in _NIFTI

    @property
    def in_ct_folder(self) -> bool:
        return (self.folder and self.folder.lower()) in CT_FOLDERS


def discover(
    bids_dir: str | os.PathLike[str],
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    filters: Mapping[str, Mapping[str, Any]] | None = None,
    database_dir: str | os.PathLike[str] | None = None,
) -> Discovery:
    """Find the NCCT and the CTA of every participant and session.

    Parameters
    ----------
    bids_dir : path
        A BIDS dataset, ISLES'24's ``raw_data``, or the folder that holds it.
    participant_labels, session_labels : sequence of str
        What is wanted, with or without ``sub-`` and ``ses-``; everything when empty.
    filters : mapping, optional
        fMRIPrep's filter file: ``{'ncct': {entity: value}, 'cta': {...}}`` with pybids' names of
        entities. A value is a label, a list of labels, None for "without this entity" or ``'*'``
        for "with any". Without ``suffix`` a filter narrows what the rules accept; with ``suffix``
        it replaces them.
    database_dir : path, optional
        Where pybids keeps its index: read when there is one, written otherwise.

    Returns
    -------
    Discovery
        In natural order, whatever order the file system has.

    Raises
    ------
    InputError
        When there is no such folder, no participant in it, a filter that names no entity, or an
        index of another dataset.
    """
    root, notes = _find_root(Path(bids_dir).absolute())
    filters = _check_filters(filters or {})
    participants = _list_participants(root)
    database = None if database_dir is None else Path(database_dir).absolute()
    if database is not None and _has_database(database):
        notes.append(f'the index is read from {database}; remove it if files have changed since')
    files = _index(root, database)
    problems: list[Problem] = []

    wanted = [label.removeprefix('sub-') for label in participant_labels]
    problems += _unknown_labels(wanted, participants, 'participant', 'sub-')
    if wanted:
        participants &= set(wanted)
        files = [f for f in files if f.participant in participants]
    sessions = {f.session for f in files if f.session}
    wanted_sessions = [label.removeprefix('ses-') for label in session_labels]
    problems += _unknown_labels(wanted_sessions, sessions, 'session', 'ses-')
    if wanted_sessions:
        files = [f for f in files if f.session in wanted_sessions]

    by_participant: dict[str, list[_File]] = {name: [] for name in participants}
    for file in files:
        by_participant.setdefault(file.participant, []).append(file)

    pairs: list[ScanPair] = []
    stray: list[_File] = []
    for participant in sorted(by_participant, key=_natural):
        own = by_participant[participant]
        if wanted_sessions and not own:
            if participant in wanted and not set(wanted_sessions) - sessions:
                asked = ', '.join(f'ses-{label}' for label in wanted_sessions)
                reason, fix = f'has no {asked}', 'ask for a session that it has'
                problems.append(Problem(reason, fix, participant))
            continue
        found = _Participant(root, participant, own, filters, bool(wanted_sessions))
        found.survey()
        pairs += found.pairs
        problems += found.problems
        notes += found.notes
        if found.pairs:
            stray += found.stray
    if stray:
        notes.append(
            f'{len(stray)} file(s) look like CT in a name or folder that is not understood, and '
            f'are left out: {_shorten(f.path.relative_to(root).as_posix() for f in stray)}'
        )
    return Discovery(tuple(pairs), tuple(problems), tuple(notes))


class _Participant:
    """The pairs, problems and notes of one participant."""

    def __init__(
        self,
        root: Path,
        label: str,
        files: Sequence[_File],
        filters: Mapping[str, Mapping[str, Any]],
        sessions_requested: bool,
    ) -> None:
        self.root, self.label, self.files, self.filters = root, label, files, filters
        self.sessions_requested = sessions_requested
        self.pairs: list[ScanPair] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.stray: list[_File] = []

    def survey(self) -> None:
        """Go through the sessions."""
        label, files = self.label, self.files
        if not _LABEL.fullmatch(label):
            self._tell(
                f'the label {label!r} holds other characters than letters and digits',
                f'rename sub-{label} and its files',
            )
            return
        incomplete: list[Problem] = []
        seen: dict[str, list[str]] = {role: [] for role in ROLES}
        for session in sorted({f.session for f in files}, key=lambda s: _natural(s or '')):
            here = [f for f in files if f.session == session]
            chosen, notes = self._choose(session, here)
            strays = [f for f in here if f not in chosen.values() and self._is_stray(f)]
            self.stray += strays
            if len(chosen) == len(ROLES) and chosen['ncct'] is chosen['cta']:
                self._tell(
                    f'the filters take {chosen["cta"].path.name} for NCCT and CTA alike',
                    'tell them apart in the --bids-filter-file',
                    session,
                )
            elif len(chosen) == len(ROLES):
                self._add_pair(session, chosen, notes)
            elif chosen or strays:
                for role in chosen:
                    seen[role].append(_prefix(label, session))
                incomplete.append(self._incomplete(session, chosen, strays, seen))
        if (self.pairs or self.problems) and not self.sessions_requested:
            # A follow-up with an NCCT alone is clinical routine, not an error.
            self.notes += [f'left out: {problem}' for problem in incomplete]
        elif incomplete:
            self.problems += incomplete
        elif not self.pairs and not self.problems:
            self._tell_of_nothing()

    def _tell_of_nothing(self) -> None:
        expected = f'{self._expected(None, "ncct")} and {self._expected(None, "cta")}'
        if any(f.path.suffix.lower() in ('.dcm', '.ima') for f in self.files):
            self._tell('DICOM files only', f'convert them with dcm2niix to {expected}')
        elif self.files:
            self._tell('no NCCT and no CTA', f'expected, for example, {expected}')
        else:
            self._tell(
                f'no images in sub-{self.label}, or its folder cannot be read',
                f'expected, for example, {expected}',
            )

    def _tell(self, reason: str, fix: str, session: str | None = None) -> None:
        self.problems.append(Problem(reason, fix, self.label, session))

    def _choose(
        self, session: str | None, files: Sequence[_File]
    ) -> tuple[dict[str, _File], list[str]]:
        """Return the best file of each role, and what was chosen among."""
        candidates: dict[str, list[_File]] = {role: [] for role in ROLES}
        explicit = [role for role in ROLES if 'suffix' in self.filters.get(role, {})]
        for file in files:
            if not file.is_nifti or self._misplaced(file):
                continue
            roles = [r for r in explicit if _matches(file, self.filters[r])]
            if not roles and file.in_ct_folder:
                role = classify(file.entities)
                if (
                    role in candidates
                    and role not in explicit
                    and _matches(file, self.filters.get(role, {}))
                ):
                    roles = [role]
            for role in roles:
                candidates[role].append(file)
        chosen: dict[str, _File] = {}
        notes: list[str] = []
        for role, found in candidates.items():
            if not found:
                continue
            best, *others = sorted(found, key=_preference)
            chosen[role] = best
            if others:
                notes.append(_tell_choice(role, best, others))
            if 'roi' in best.copy.lower():
                notes.append(
                    f'the {ROLES[role][0]} {best.path.name} is a crop made by dcm2niix; '
                    'add the whole image'
                )
        letters = {f.copy.lower() for f in files if f.entities.get('suffix', '').lower() == 'ct'}
        cta = chosen.get('cta')
        if cta and 'b' in letters and cta.entities['suffix'] == 'cta' and not cta.copy:
            notes.append(
                f'{cta.path.name} may be the "a" copy that dcm2niix made of a CT, because a "b" '
                'copy is there too; look at it, and rename it if so'
            )
        return chosen, notes

    def _misplaced(self, file: _File) -> bool:
        """Tell whether the name belongs to another participant or session than the folder."""
        name = file.entities.get('subject')
        session = file.entities.get('session')
        return (name is not None and name != self.label) or (
            session is not None and session != file.session
        )

    def _is_stray(self, file: _File) -> bool:
        """Tell whether a file looks like CT and is not understood."""
        role = classify(file.entities)
        if role == 'other':
            return False
        if role is not None:
            return not file.in_ct_folder or not file.is_nifti or self._misplaced(file)
        return bool(LOOKS_LIKE_CT.search(_bare(file)))

    def _add_pair(
        self, session: str | None, chosen: Mapping[str, _File], notes: Sequence[str]
    ) -> None:
        unusable = []
        for role, file in chosen.items():
            problem = check_content(file.path, self.root, ROLES[role][0])
            if problem is not None:
                unusable.append(Problem(*problem, self.label, session, file.path))
        self.problems += unusable
        if not unusable:
            self.pairs.append(
                ScanPair(
                    self.label,
                    session,
                    ncct=chosen['ncct'].path,
                    cta=chosen['cta'].path,
                    notes=tuple(notes),
                )
            )

    def _incomplete(
        self,
        session: str | None,
        chosen: Mapping[str, _File],
        strays: Sequence[_File],
        seen: Mapping[str, Sequence[str]],
    ) -> Problem:
        missing = [role for role in ROLES if role not in chosen]
        reason = ' and '.join(f'no {ROLES[role][0]}' for role in missing)
        fix = ' and '.join(f'add {self._expected(session, role)}' for role in missing)
        elsewhere = [
            f'the {ROLES[role][0]} of {prefix}'
            for role in missing
            for prefix in seen[role]
            if prefix != _prefix(self.label, session)
        ]
        filtered = [ROLES[role][0] for role in missing if self.filters.get(role)]
        if strays:
            names = _shorten(f.path.relative_to(self.root).as_posix() for f in strays)
            reason += f', but {names} {"look" if len(strays) > 1 else "looks"} like CT'
            fix = (
                f'rename {"them" if len(strays) > 1 else "it"} '
                f'(expected {self._expected(session, missing[0])}), or say with '
                f'--bids-filter-file which is the {ROLES[missing[0]][0]}'
            )
        elif filtered:
            fix = f'correct the filter of the {" and ".join(filtered)}, or {fix}'
        elif elsewhere:
            fix += f' ({" and ".join(elsewhere)} must be in the same session)'
        return Problem(reason, fix, self.label, session)

    def _expected(self, session: str | None, role: str) -> str:
        prefix = _prefix(self.label, session)
        return f'{prefix.replace("_", "/")}/ct/{prefix}_{ROLES[role][1]}.nii.gz'


def classify(entities: Mapping[str, str]) -> str | None:
    """Tell which role a file has by its name.

    Parameters
    ----------
    entities : mapping
        Pybids' names and values, as ``data/bids_config.json`` reads them.

    Returns
    -------
    str or None
        ``'ncct'``, ``'cta'``, ``'other'`` for CT that is neither (perfusion, venography), None
        for what is not CT by its name.
    """
    suffix = entities.get('suffix', '').lower()
    acquisition = entities.get('acquisition', '')
    if suffix in ('ctp', 'ctv', 'ctac'):
        return 'other'
    if suffix not in ('ct', 'ncct', 'cta'):
        return None
    if PERFUSION.search(acquisition):
        return 'other'
    contrast = entities.get('ceagent', 'none').lower() not in NO_CONTRAST
    if suffix == 'cta' or (suffix == 'ct' and (contrast or ANGIOGRAPHY.match(acquisition))):
        return 'cta'
    return None if contrast else 'ncct'


def check_content(path: Path, root: Path, role: str) -> tuple[str, str] | None:
    """Tell why a file holds no image, without reading more than its first bytes.

    Parameters
    ----------
    path, root : Path
        The file, and the dataset it is in.
    role : str
        How the image is called in the message.

    Returns
    -------
    tuple of str, optional
        Reason and fix.
    """
    line = f'cd {shlex.quote(str(root))} && '
    relative = shlex.quote(os.path.relpath(path, root))
    try:
        size = path.stat().st_size
        head = b''
        if size < POINTER_BYTES:
            with path.open('rb') as stream:
                head = stream.read(POINTER_BYTES)
    except FileNotFoundError:
        target = os.readlink(path) if path.is_symlink() else ''
        if 'annex' in target:
            return (
                f'the content of the {role} is not here (a git-annex link)',
                f'run: {line}datalad get {relative}',
            )
        if target:
            return (
                f'the {role} is a link to {target}, which does not exist',
                'bind that folder into the container too, or replace the link by the file',
            )
        return (f'the {role} is in the index but not on disk', 'remove the --bids-database-dir')
    except OSError as error:
        return (f'the {role} cannot be read ({error.strerror})', 'give yourself the right to read')
    if size == 0:
        return (f'the {role} is empty (0 bytes)', 'copy it anew from its source')
    if head.startswith(b'/annex/objects/'):
        return (
            f'the content of the {role} is not here (a git-annex pointer)',
            f'run: {line}datalad get {relative}',
        )
    if head.startswith(b'version https://git-lfs'):
        return (
            f'the content of the {role} is not here (a git-lfs pointer)',
            f'run: {line}git lfs pull --include {relative}',
        )
    return None


def _find_root(bids_dir: Path) -> tuple[Path, list[str]]:
    """Return the folder that holds the participants."""
    if not bids_dir.is_dir():
        raise InputError('no such folder', fix='give the folder of a BIDS dataset', path=bids_dir)
    if bids_dir.name.startswith('sub-') and not _has_participants(bids_dir):
        raise InputError(
            'is the folder of one participant',
            fix=f'give {bids_dir.parent} with --participant-label {bids_dir.name[4:]}',
            path=bids_dir,
        )
    notes = []
    root = bids_dir
    if not _has_participants(root):
        for name in RAW_FOLDERS:
            if _has_participants(bids_dir / name):
                root = bids_dir / name
                notes.append(f'the participants are taken from {name}/')
                break
        else:
            raise InputError(
                'holds no participant (no folder sub-*)',
                fix='give the folder that holds the folders sub-*',
                path=bids_dir,
            )
    if not (root / 'dataset_description.json').is_file():
        notes.append(f'{root} has no dataset_description.json; it is read as BIDS all the same')
    return root, notes


def _has_participants(folder: Path) -> bool:
    return folder.is_dir() and bool(_list_participants(folder))


def _list_participants(root: Path) -> set[str]:
    with os.scandir(root) as entries:
        return {e.name[4:] for e in entries if e.name.startswith('sub-') and e.is_dir()}


def _index(root: Path, database_dir: Path | None) -> list[_File]:
    """Return the image files of all participants, as pybids finds them."""
    if database_dir is None:
        return _query(root, None)
    if _has_database(database_dir):
        return _query(root, database_dir)
    # The index is built aside and put in place by one rename, so that jobs that start at the
    # same time never read half an index.
    try:
        database_dir.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix='.index-', dir=database_dir.parent))
    except OSError as error:
        raise InputError(
            f'the index cannot be written ({error.strerror})',
            fix='give --bids-database-dir a folder of your own',
            path=database_dir,
        ) from error
    try:
        aside.chmod(0o755)
        files = _query(root, aside)
        try:
            aside.rename(database_dir)
        except OSError:
            if not _has_database(database_dir):  # a folder with other things in it
                (aside / DATABASE).replace(database_dir / DATABASE)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return files


def _has_database(folder: Path) -> bool:
    return (folder / DATABASE).is_file()


def _query(root: Path, database_dir: Path | None) -> list[_File]:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer
    from bids.layout.models import Tag
    from sqlalchemy.exc import SQLAlchemyError

    config = json.loads(load('bids_config.json').read_text(encoding='utf-8'))
    fix = 'give another --bids-database-dir, or remove this folder'
    try:
        layout = BIDSLayout(
            root,
            validate=False,
            config=[str(load('bids_config.json'))],
            database_path=database_dir,
            indexer=BIDSLayoutIndexer(
                validate=False,
                index_metadata=False,
                ignore=[re.compile(pattern) for pattern in IGNORED],
            ),
        )
    except (ValueError, SQLAlchemyError) as error:
        if database_dir is None:
            raise
        # Pybids believes the database rather than its arguments, even a root that is gone.
        raise InputError(
            f'holds no index of this dataset ({error})', fix=fix, path=database_dir
        ) from error
    if Path(layout.root) != root or set(layout.config) != {config['name']}:
        raise InputError(
            f'holds the index of {layout.root}, made by another program or version'
            if Path(layout.root) == root
            else f'holds the index of another dataset, {layout.root}',
            fix=fix,
            path=database_dir,
        )
    # One query for the columns: asking pybids' file objects for their entities costs one query
    # each, more than the indexing itself.
    tags: dict[str, dict[str, str]] = {}
    for name, entity, value in layout.session.query(Tag.file_path, Tag.entity_name, Tag._value):
        tags.setdefault(name, {})[entity] = str(value)
    layout.session.close()
    base = len(str(root)) + 1
    return [_to_file(Path(name), name[base:], tags[name]) for name in sorted(tags, key=_natural)]


def _to_file(path: Path, relative: str, entities: dict[str, str]) -> _File:
    subject, *folders, _ = relative.replace('\\', '/').split('/')
    session = entities.get('session')
    if folders and folders[0].startswith('ses-'):
        session = folders.pop(0)[4:]
    copy = entities.pop('copy', '')
    return _File(path, subject[4:], session, '/'.join(folders) or None, entities, copy)


def _check_filters(filters: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    entities = _entity_names()
    for role, wanted in filters.items():
        if role not in ROLES:
            raise InputError(
                f'the filter file has no use for {role!r}',
                fix=f'its keys are {" and ".join(ROLES)}',
            )
        if not isinstance(wanted, Mapping):
            raise InputError(
                f'the filter of {role} is not a table of entities',
                fix='write, for example, {"cta": {"acquisition": "arterial"}}',
            )
        for name in wanted:
            if name not in entities:
                close = difflib.get_close_matches(name, entities, n=1, cutoff=0.3)
                raise InputError(
                    f'the filter of {role} names {name!r}, which is no entity',
                    fix=(f'perhaps {close[0]!r} is meant; ' if close else '')
                    + f'the entities are {", ".join(entities)}',
                )
    return {role: dict(wanted) for role, wanted in filters.items()}


@functools.cache
def _entity_names() -> tuple[str, ...]:
    config = json.loads(load('bids_config.json').read_text(encoding='utf-8'))
    return tuple(e['name'] for e in config['entities'] if e['name'] not in ('subject', 'copy'))


def _matches(file: _File, wanted: Mapping[str, Any]) -> bool:
    """Tell whether a file has the entities that a filter asks for."""
    for name, value in wanted.items():
        own = file.session if name == 'session' else file.entities.get(name)
        allowed = value if isinstance(value, list) else [value]
        if not any(_equal(name, own, one) for one in allowed):
            return False
    return True


def _equal(name: str, own: str | None, wanted: Any) -> bool:
    if wanted is None or wanted == 'Query.NONE':
        return own is None
    if own is None:
        return False
    if wanted in ('*', 'Query.ANY', 'Query.REQUIRED'):
        return True
    text = str(wanted)
    if name == 'extension':
        text = f'.{text.lstrip(".")}'
    elif name == 'session':
        text = text.removeprefix('ses-')
    if own.isdigit() and text.isdigit() and name != 'session':
        return int(own) == int(text)
    return own == text


def _preference(file: _File) -> tuple[object, ...]:
    """Sort key: the file to take comes first.

    First the series: no word of `SECOND_CHOICE`, thin slices, the first run, fewer entities. Then
    among dcm2niix's copies of one series: resliced for gantry tilt and for equal spacing, before
    the bare file, before crops (`ROI`).
    """
    words = [v for k, v in file.entities.items() if k not in ('subject', 'session', 'extension')]
    copy = file.copy.lower()
    if 'roi' in copy:
        rank = 5
    elif 'tilt' in copy and 'eq' in copy:
        rank = 0
    elif 'tilt' in copy:
        rank = 1
    elif 'eq' in copy:
        rank = 2
    else:
        rank = 4 if copy else 3
    return (
        any(SECOND_CHOICE.search(word) for word in words),
        not any(re.match('thin', word, re.I) for word in words),
        int(file.entities.get('run', 0)),
        int(file.entities.get('chunk', 0)),
        len(file.entities),
        _natural(_series(file)),
        rank,
        _natural(copy),
        file.entities.get('extension') != '.nii.gz',
        str(file.path),
    )


def _bare(file: _File) -> str:
    """Return the name without participant and session, which may contain anything."""
    return re.sub(r'^sub-[^_.]*_?(?:ses-[^_.]*_?)?', '', file.path.name)


def _series(file: _File) -> str:
    """Return what the copies of one series have in common."""
    extension = file.entities.get('extension', '')
    stem = file.path.name.removesuffix(extension)
    return f'{file.folder or ""}/{stem.removesuffix(file.copy) if file.copy else stem}'


def _tell_choice(role: str, best: _File, others: Sequence[_File]) -> str:
    """Say which file was taken of several, and why."""
    rank = _preference(best)
    series = {_series(f) for f in others} | {_series(best)}
    rivals = [f for f in others if _series(f) != _series(best)] or list(others)
    other = _preference(rivals[0])
    if len(series) == 1:
        why = (
            'dcm2niix has corrected its gantry tilt or slice spacing'
            if rank[6] in (0, 1, 2)
            else 'it is the original'
        )
        if rank[6:8] == other[6:8]:
            why = 'both have one name'
    elif rank[0] != other[0]:
        why = 'the name of the other says that it is less suitable'
        if len(rivals) > 1:
            why = 'the names of the others say that they are less suitable'
    elif rank[1] != other[1]:
        why = 'its slices are thin'
    elif rank[2] != other[2]:
        why = 'it is the first run'
    else:
        why = 'it comes first by name'
    return (
        f'{len(others) + 1} files could be the {ROLES[role][0]}: took {best.path.name}, because '
        f'{why}, not {_shorten(f.path.name for f in others)}; '
        'choose another with --bids-filter-file'
    )


def _unknown_labels(
    wanted: Iterable[str], known: Iterable[str], kind: str, prefix: str
) -> list[Problem]:
    known = sorted(known, key=_natural)
    problems = []
    for label in dict.fromkeys(wanted):
        if label in known:
            continue
        close = difflib.get_close_matches(label, known, n=3)
        listed = _shorten([*close, *(k for k in known if k not in close)])
        problems.append(
            Problem(
                f'{kind} {prefix}{label} is not in the dataset',
                f'there {"is" if len(known) == 1 else "are"} {listed}'
                if known
                else f'there is no {kind} in it',
            )
        )
    return problems


def _prefix(participant: str | None, session: str | None) -> str:
    return f'sub-{participant}' + (f'_ses-{session}' if session else '')


def _shorten(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - LISTED
    if more <= 0:
        return ', '.join(listed)
    return f'{", ".join(listed[:LISTED])} and {more} more'


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which ``sub-2`` comes before ``sub-10``."""
    parts = re.findall(r'\d+|\D+', text)
    return tuple((0, int(p), p) if p.isdigit() else (1, 0, p) for p in parts)
