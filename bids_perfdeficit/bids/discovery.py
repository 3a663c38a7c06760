"""Find each patient's non-contrast CT (NCCT) and CT angiogram (CTA).

BIDS has no CT datatype yet, so that names in the wild vary. `listing` finds the files, `series`
decides which name means what and which of several files is taken, and this module groups them by
participant and session and says what is missing. One bad thing costs one participant. Must not
read an image.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_perfdeficit.bids.filters import check_filters, matches
from bids_perfdeficit.bids.jsonfile import describe_kind
from bids_perfdeficit.bids.listing import (
    LONGEST_PREFIX,
    RAW_FOLDERS,
    ImageFile,
    Participants,
    Problem,
    check_label,
    has_plain_name,
    list_images,
    list_participants,
    make_prefix,
    natural,
    parse_name,
    shorten,
)
from bids_perfdeficit.bids.phases import Phases, find_phases
from bids_perfdeficit.bids.series import (
    ROLES,
    Choice,
    choose,
    classify,
    is_poor,
    read_sidecar,
    read_time,
)
from bids_perfdeficit.errors import InputError, printable

#: A NIfTI file whose name hints at CT without being one of the names that are understood.
LOOKS_LIKE_CT = re.compile(r'CT(?!P)|(?:^|[_.-])(?i:ncct|nect|cect|ct|angio)(?![a-z]*p)')

#: Entities of a filter that do not name a series, and so do not vouch for it.
UNSPECIFIC = frozenset({'datatype', 'session', 'extension'})

#: A file below this size may be a pointer of git-annex or git-lfs rather than an image.
POINTER_BYTES = 1024


@dataclass(frozen=True)
class ScanPair:
    """The two images of one examination.

    Parameters
    ----------
    participant : str
        Label without ``sub-``.
    session : str or None
        Label without ``ses-``; of the NCCT, when the CTA lies in another session.
    ncct, cta : Path
        The images; both are there and are not empty.
    notes : tuple of str
        What was chosen among several files, and why.
    doubts : tuple of str
        Why one of them may be the wrong file. A pair with doubts needs a look.
    later : tuple of Path
        Later phases of the CTA, in the order of acquisition; two at most.
    """

    participant: str
    session: str | None
    ncct: Path
    cta: Path
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    later: tuple[Path, ...] = ()

    @property
    def prefix(self) -> str:
        """``sub-01`` or ``sub-01_ses-x``, with which file names begin."""
        return make_prefix(self.participant, self.session)

    @property
    def folder(self) -> str:
        """``sub-01`` or ``sub-01/ses-x``."""
        return self.prefix.replace('_', '/')


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


def discover(
    bids_dir: str | os.PathLike[str],
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    filters: Mapping[str, Any] | None = None,
    pair_sessions: bool = False,
    later_phases: bool = True,
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
    pair_sessions : bool
        Whether an NCCT and a CTA that lie in different sessions are paired, when nothing says
        that they are of different days.
    later_phases : bool
        Whether later phases of the CTA are looked for.

    Returns
    -------
    Discovery
        In natural order, whatever order the file system has.

    Raises
    ------
    InputError
        When there is no such folder, no participant in it, or a filter that names no entity.
    """
    root, listed, notes = _find_root(Path(bids_dir).absolute())
    filters, about_filters = check_filters(filters or {})
    notes += about_filters
    wanted = [label.removeprefix('sub-') for label in participant_labels]
    spoilt = [p for p in listed.problems if not wanted or p.participant in wanted]
    known = listed.labels | {p.participant for p in spoilt if p.participant is not None}
    known |= {label for name in listed.flat if (label := parse_name(name).get('subject'))}
    problems = [*spoilt, *_unknown_labels(wanted, known, 'participant', 'sub-')]
    participants = listed.labels & set(wanted) if wanted else listed.labels
    notes += _describe_collisions(participants)

    found: dict[str, list[ImageFile]] = {}
    for label in sorted(participants, key=natural):
        files, unread = list_images(root, label)
        problems += unread
        if files or not unread:
            found[label] = files
    sessions = {f.session for files in found.values() for f in files if f.session}
    wanted_sessions = [label.removeprefix('ses-') for label in session_labels]
    problems += _unknown_labels(wanted_sessions, sessions, 'session', 'ses-')

    pairs: list[ScanPair] = []
    stray: list[ImageFile] = []
    for label, files in found.items():
        if wanted_sessions:
            files = [f for f in files if f.session in wanted_sessions]
            if not files:
                if label in wanted and not set(wanted_sessions) - sessions:
                    asked = ', '.join(f'ses-{session}' for session in wanted_sessions)
                    reason, fix = f'has no {asked}', 'ask for a session that it has'
                    problems.append(Problem(reason, fix, label))
                continue
        one = _Participant(
            root,
            label,
            files,
            filters,
            requested=bool(wanted_sessions),
            across=pair_sessions,
            later_phases=later_phases,
        )
        one.survey()
        pairs += one.pairs
        problems += one.problems
        notes += one.notes
        if one.pairs:
            stray += one.stray
    if stray:
        notes.append(
            f'{len(stray)} file(s) look like CT in a name or folder that is not understood, and '
            f'are left out: {shorten(f.path.relative_to(root).as_posix() for f in stray)}'
        )
    more = _judge_flat(listed.flat, set(found), wanted)
    problems += more[0]
    notes += more[1]
    return Discovery(tuple(pairs), tuple(problems), tuple(printable(note) for note in notes))


class _Participant:
    """The pairs, problems and notes of one participant."""

    def __init__(
        self,
        root: Path,
        label: str,
        files: Sequence[ImageFile],
        filters: Mapping[str, Mapping[str, Any]],
        *,
        requested: bool,
        across: bool,
        later_phases: bool,
    ) -> None:
        self.root, self.label, self.files, self.filters = root, label, files, filters
        self.requested, self.across, self.later_phases = requested, across, later_phases
        self._phases: dict[Path, Phases] = {}
        self.pairs: list[ScanPair] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.stray: list[ImageFile] = []
        self._elsewhere: dict[str, list[Path]] | None = None

    def survey(self) -> None:
        """Go through the sessions."""
        halves: dict[str | None, dict[str, Choice]] = {}
        strays: dict[str | None, list[ImageFile]] = {}
        for session in sorted({f.session for f in self.files}, key=lambda s: natural(s or '')):
            here = [f for f in self.files if f.session == session]
            if session is not None and self._has_bad_label(session, here):
                continue
            chosen = self._choose(here)
            taken = [choice.file for choice in chosen.values()]
            strays[session] = [f for f in here if f not in taken and self._is_stray(f)]
            self.stray += strays[session]
            if len(chosen) == len(ROLES) and chosen['ncct'].file is chosen['cta'].file:
                self._report(
                    f'the filters take {taken[0].path.name} for NCCT and CTA alike',
                    'distinguish them in the --bids-filter-file',
                    session,
                )
            elif len(chosen) == len(ROLES):
                self._add_pair(session, chosen)
            elif chosen or strays[session]:
                halves[session] = chosen
        if self.across:
            self._pair_across(halves)
        incomplete = [
            self._describe_gap(session, chosen, strays[session], halves)
            for session, chosen in halves.items()
        ]
        if (self.pairs or self.problems) and not self.requested:
            # A follow-up with an NCCT alone is clinical routine, not an error.
            self.notes += [f'left out: {problem}' for problem in incomplete]
        elif incomplete:
            self.problems += incomplete
        elif not self.pairs and not self.problems:
            self._report_nothing()

    def _has_bad_label(self, session: str, files: Sequence[ImageFile]) -> bool:
        """Return whether a session cannot be used for its label; say so if it holds CT."""
        why = check_label(session)
        length = len(make_prefix(self.label, session))
        if why is None and length > LONGEST_PREFIX:
            why = f'makes names of outputs too long ({length} characters with the participant)'
        if why is None:
            return False
        if any(classify(f.entities, f.free) or LOOKS_LIKE_CT.search(f.bare_name) for f in files):
            self._report(
                f'the label of the session {why}',
                f'rename ses-{printable(session)} and its files',
            )
        return True

    def _report_nothing(self) -> None:
        expected = f'{self._expected(None, "ncct")} and {self._expected(None, "cta")}'
        if any(f.path.suffix.lower() in ('.dcm', '.ima') for f in self.files):
            self._report('DICOM files only', f'convert them with dcm2niix to {expected}')
        elif self.files:
            self._report('no NCCT and no CTA', f'expected, for example, {expected}')
        else:
            self._report(f'no images in sub-{self.label}', f'expected, for example, {expected}')

    def _report(self, reason: str, fix: str, session: str | None = None) -> None:
        self.problems.append(Problem(reason, fix, self.label, session))

    def _choose(self, files: Sequence[ImageFile]) -> dict[str, Choice]:
        """Return the best file of each role."""
        candidates: dict[str, list[ImageFile]] = {role: [] for role in ROLES}
        enhanced: list[ImageFile] = []
        explicit = [role for role in ROLES if 'suffix' in self.filters.get(role, {})]
        for file in files:
            if not file.is_nifti or self._is_misplaced(file) or not has_plain_name(file.path):
                continue
            roles = [r for r in explicit if matches(file, self.filters[r])]
            if not roles and file.in_ct_folder:
                role = classify(file.entities, file.free)
                if role == 'contrast':
                    enhanced.append(file)
                if (
                    role in candidates
                    and role not in explicit
                    and matches(file, self.filters.get(role, {}))
                ):
                    roles = [role]
            for role in roles:
                candidates[role].append(file)
        if 'cta' not in explicit and all(is_poor('cta', file) for file in candidates['cta']):
            wanted = self.filters.get('cta', {})
            candidates['cta'] += [file for file in enhanced if matches(file, wanted)]
        chosen = {
            role: choose(role, found, vouched=bool(set(self.filters.get(role, {})) - UNSPECIFIC))
            for role, found in candidates.items()
            if found
        }
        if self.later_phases and 'cta' in chosen:
            wanted = {} if 'cta' in explicit else self.filters.get('cta', {})
            more = [f for f in enhanced if 'cta' not in explicit and matches(f, wanted)]
            first = chosen['cta'].file
            self._phases[first.path] = find_phases(
                first, [*candidates['cta'], *(f for f in more if f not in candidates['cta'])]
            )
        letters = {f.copy.lower() for f in files if f.entities.get('suffix', '').lower() == 'ct'}
        if 'cta' in chosen and 'b' in letters:
            choice = chosen['cta']
            if choice.file.entities['suffix'] == 'cta' and not choice.file.copy:
                doubt = (
                    f'{choice.file.path.name} may be the "a" copy that dcm2niix made of a CT, '
                    'because a "b" copy is there too; look at it, and rename it if so'
                )
                chosen['cta'] = Choice(choice.file, choice.notes, (*choice.doubts, doubt))
        return chosen

    def _is_misplaced(self, file: ImageFile) -> bool:
        """Return whether the name belongs to another participant or session than the folder."""
        name = file.entities.get('subject')
        session = file.entities.get('session')
        return (name is not None and name != self.label) or (
            session is not None and session != file.session
        )

    def _is_stray(self, file: ImageFile) -> bool:
        """Return whether a file looks like CT and is not understood."""
        role = classify(file.entities, file.free)
        if role in ('other', 'contrast'):
            return False
        if role is not None:
            usable = file.in_ct_folder and file.is_nifti and has_plain_name(file.path)
            return not usable or self._is_misplaced(file)
        return bool(LOOKS_LIKE_CT.search(file.bare_name))

    def _add_pair(
        self, session: str | None, chosen: Mapping[str, Choice], doubts: Sequence[str] = ()
    ) -> None:
        unusable = []
        for role, choice in chosen.items():
            problem = check_content(choice.file.path, self.root, ROLES[role][0])
            if problem is not None:
                unusable.append(Problem(*problem, self.label, session, choice.file.path))
        self.problems += unusable
        if unusable:
            return
        notes = [note for choice in chosen.values() for note in choice.notes]
        phases = self._phases.get(chosen['cta'].file.path, Phases())
        notes += phases.notes
        later = []
        for file in phases.files:
            problem = check_content(file.path, self.root, 'later phase of the CTA')
            if problem is None:
                later.append(file.path)
            else:
                notes.append(f'{file.path.name} is left out: {problem[0]}; {problem[1]}')
        doubts = [doubt for choice in chosen.values() for doubt in choice.doubts] + list(doubts)
        self.pairs.append(
            ScanPair(
                self.label,
                session,
                ncct=chosen['ncct'].file.path,
                cta=chosen['cta'].file.path,
                notes=tuple(printable(note) for note in notes),
                doubts=tuple(printable(doubt) for doubt in doubts),
                later=tuple(later),
            )
        )

    def _pair_across(self, halves: dict[str | None, dict[str, Choice]]) -> None:
        """Pair the NCCT of one session with the CTA of another one of the same day.

        An NCCT is paired with the one CTA that is known to be of its day; if no day is known,
        with the only one there is, which is a doubt. Pairs leave `halves`.
        """
        nccts = {s: c['ncct'] for s, c in halves.items() if set(c) == {'ncct'}}
        ctas = {s: c['cta'] for s, c in halves.items() if set(c) == {'cta'}}
        days = {s: self._read_day(s, c.file) for s, c in (*nccts.items(), *ctas.items())}
        for session, ncct in nccts.items():
            day = days[session]
            same = [s for s in ctas if day is not None and days[s] == day]
            rivals = [s for s in nccts if day is not None and days[s] == day]
            doubts = []
            if len(same) != 1 or len(rivals) != 1:
                unknown = [s for s in ctas if day is None or days[s] is None]
                if self.pairs or same or not len(nccts) == len(ctas) == len(unknown) == 1:
                    continue
                same = unknown
                doubts = [
                    f'the NCCT is of {make_prefix(self.label, session)} and the CTA of '
                    f'{make_prefix(self.label, same[0])}, and nothing says that they are of one '
                    'day; look at their dates'
                ]
            self._add_pair(session, {'ncct': ncct, 'cta': ctas[same[0]]}, doubts)
            if not doubts:
                self.notes.append(
                    f'the NCCT of {make_prefix(self.label, session)} and the CTA of '
                    f'{make_prefix(self.label, same[0])} are of one day and are paired'
                )
            halves.pop(session), halves.pop(same[0])

    def _read_day(self, session: str | None, file: ImageFile) -> str | None:
        """Return the day of a scan as YYYYMMDD, from the session's label or the sidecar."""
        match = re.match(r'(?:19|20)[0-9]{6}(?![0-9])|(?:19|20)[0-9]{6}(?=[0-9]{4,6}$)',
                         session or '')  # fmt: skip
        if match:
            return match.group(0)
        try:
            time = read_time(read_sidecar(file.path))
        except InputError:
            return None
        # Dates that were removed to protect the patient are those of 1900 or thereabouts.
        return f'{time:%Y%m%d}' if time is not None and time.year > 1925 else None

    def _describe_gap(
        self,
        session: str | None,
        chosen: Mapping[str, Choice],
        strays: Sequence[ImageFile],
        halves: Mapping[str | None, Mapping[str, Choice]],
    ) -> Problem:
        missing = [role for role in ROLES if role not in chosen]
        reason = ' and '.join(f'no {ROLES[role][0]}' for role in missing)
        fix = ' and '.join(f'add {self._expected(session, role)}' for role in missing)
        elsewhere = [
            f'the {ROLES[role][0]} of {make_prefix(self.label, other)}'
            for role in missing
            for other, half in halves.items()
            if other != session and role in half
        ]
        filtered = [ROLES[role][0] for role in missing if self.filters.get(role)]
        derived = [path for role in missing for path in self._find_derived(session, role)]
        if strays:
            names = shorten(f.path.relative_to(self.root).as_posix() for f in strays)
            reason += f', but {names} {"look" if len(strays) > 1 else "looks"} like CT'
            fix = (
                f'rename {"them" if len(strays) > 1 else "it"} '
                f'(expected {self._expected(session, missing[0])}), or say with '
                f'--bids-filter-file which is the {ROLES[missing[0]][0]}'
            )
        elif filtered:
            fix = f'correct the filter of the {" and ".join(filtered)}, or {fix}'
        elif elsewhere:
            fix += (
                f' ({" and ".join(elsewhere)} must be in the same session; if both are of one '
                'day, --pair-sessions pairs them)'
            )
        elif derived:
            target = self.root / self._expected(session, missing[0])
            source = os.path.relpath(derived[0], target.parent)
            reason += f', but {derived[0]} could be one'
            fix = (
                'if it is unprocessed, link it into the dataset: '
                f'mkdir -p {shlex.quote(str(target.parent))} && '
                f'ln -s {shlex.quote(source)} {shlex.quote(str(target))}'
            )
        return Problem(reason, fix, self.label, session)

    def _find_derived(self, session: str | None, role: str) -> list[Path]:
        """Return images of a role in the dataset's ``derivatives`` folder."""
        if self._elsewhere is None:
            self._elsewhere = {role: [] for role in ROLES}
            for path in _search_derivatives(self.root, self.label):
                kind = classify(parse_name(path.name))
                if kind in self._elsewhere:
                    self._elsewhere[kind].append(path)
        found = self._elsewhere[role]
        return [p for p in found if session is None or f'ses-{session}' in str(p)]

    def _expected(self, session: str | None, role: str) -> str:
        prefix = make_prefix(self.label, session)
        return f'{prefix.replace("_", "/")}/ct/{prefix}_{ROLES[role][1]}.nii.gz'


def _search_derivatives(root: Path, label: str) -> Iterator[Path]:
    """Yield the NIfTI files of one participant in ``derivatives`` beside or in a dataset."""
    bases = [root / 'derivatives']
    if root.name in RAW_FOLDERS:
        bases.append(root.parent / 'derivatives')
    for base in bases:
        for folder in itertools.chain([base], _list_folders(base)):
            if (folder / f'sub-{label}').is_dir():
                for file in list_images(folder, label)[0]:
                    if file.is_nifti and has_plain_name(file.path):
                        yield file.path


def _list_folders(folder: Path) -> list[Path]:
    try:
        return sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: natural(p.name))
    except OSError:
        return []


def check_content(path: Path, root: Path, role: str) -> tuple[str, str] | None:
    """Return why a file holds no image, without reading more than its first bytes.

    Parameters
    ----------
    path, root : Path
        The file, and the dataset it is in. Only a regular file is opened.
    role : str
        How the image is called in the message.

    Returns
    -------
    tuple of str, optional
        Reason and fix.
    """
    line = f'cd {shlex.quote(str(root))} && '
    relative = shlex.quote(os.path.relpath(path, root))
    head = b''
    try:
        status = path.stat()
        kind = describe_kind(status.st_mode)
        if kind is not None:
            return (f'the {role} is {kind}, not a file', 'replace it by the image')
        with path.open('rb') as stream:
            if status.st_size < POINTER_BYTES:
                head = stream.read(POINTER_BYTES)
    except FileNotFoundError:
        target = os.readlink(path) if path.is_symlink() else ''
        if 'annex' in target:
            return (
                f'the content of the {role} is not here (a git-annex link)',
                f'run: {line}datalad get {relative}',
            )
        return (
            f'the {role} is a link to {target}, which does not exist'
            if target
            else f'the {role} has vanished since the dataset was searched',
            'bind that folder into the container too, or replace the link by the file'
            if target
            else 'run again when nothing else changes the dataset',
        )
    except PermissionError as error:
        return (f'the {role} cannot be read ({error.strerror})', 'make it readable to you')
    except OSError as error:
        return (f'the {role} cannot be read ({error.strerror})', 'replace it by the image')
    if status.st_size == 0:
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


def _find_root(bids_dir: Path) -> tuple[Path, Participants, list[str]]:
    """Return the folder that holds the participants, and who they are."""
    if not bids_dir.is_dir():
        raise InputError('no such folder', fix='give the folder of a BIDS dataset', path=bids_dir)
    listed = _list(bids_dir)
    notes = []
    root = bids_dir
    if not listed.labels:
        name = bids_dir.name
        if name.startswith('sub-') and not listed.problems:
            raise InputError(
                'is the folder of one participant',
                fix=f'give {bids_dir.parent} with --participant-label {name[4:]}',
                path=bids_dir,
            )
        for name in RAW_FOLDERS:
            inside = _list(bids_dir / name) if (bids_dir / name).is_dir() else Participants()
            if inside.labels:
                root, listed = bids_dir / name, inside
                notes.append(f'the participants are taken from {name}/')
                break
        else:
            if not listed.problems:
                raise _nobody(bids_dir, listed.flat)
    if not (root / 'dataset_description.json').is_file():
        notes.append(f'{root} has no dataset_description.json; it is read as BIDS all the same')
    return root, listed, notes


def _list(folder: Path) -> Participants:
    try:
        return list_participants(folder)
    except OSError as error:
        raise InputError(
            f'cannot be read ({error.strerror})', fix='make it readable to you', path=folder
        ) from error


def _nobody(bids_dir: Path, flat: Sequence[str]) -> InputError:
    if flat:
        label = parse_name(flat[0]).get('subject', '01')
        return InputError(
            f'holds images ({shorten(flat[:3])}) but no participant (no folder sub-*)',
            fix='move or link the images of each patient into a folder of its own, for example '
            f'sub-{label}/ct/sub-{label}_ct.nii.gz and sub-{label}/ct/sub-{label}_cta.nii.gz',
            path=bids_dir,
        )
    return InputError(
        'holds no participant (no folder sub-*)',
        fix='give the folder that holds the folders sub-*',
        path=bids_dir,
    )


def _judge_flat(
    flat: Sequence[str], found: set[str], wanted: Sequence[str]
) -> tuple[list[Problem], list[str]]:
    """Say how to use images that lie directly in the dataset's folder."""
    by_label: dict[str | None, list[str]] = {}
    for name in flat:
        by_label.setdefault(parse_name(name).get('subject'), []).append(name)
    problems, notes = [], []
    for label, names in by_label.items():
        lie = f'{shorten(names)} {"lies" if len(names) == 1 else "lie"} beside the folders sub-*'
        if label is None or label in found:
            notes.append(f'{lie} and {"is" if len(names) == 1 else "are"} not used')
        elif not wanted or label in wanted:
            problems.append(Problem(lie, f'move or link the images into sub-{label}/ct/', label))
    return problems, notes


def _describe_collisions(labels: Iterable[str]) -> list[str]:
    """Name labels that are one on a file system that ignores case."""
    groups: dict[str, list[str]] = {}
    for label in sorted(labels, key=natural):
        groups.setdefault(label.lower(), []).append(f'sub-{label}')
    return [
        f'{" and ".join(group)} differ in upper and lower case only; their outputs would '
        'overwrite each other in an OUTPUT_DIR on a file system that ignores case'
        for group in groups.values()
        if len(group) > 1
    ]


def _unknown_labels(
    wanted: Iterable[str], known: Iterable[str], kind: str, prefix: str
) -> list[Problem]:
    known = sorted(known, key=natural)
    problems = []
    for label in dict.fromkeys(wanted):
        if label in known:
            continue
        close = difflib.get_close_matches(label, known, n=3)
        listed = shorten([*close, *(k for k in known if k not in close)])
        problems.append(
            Problem(
                f'{kind} {prefix}{label} is not in the dataset',
                f'there {"is" if len(known) == 1 else "are"} {listed}'
                if known
                else f'there is no {kind} in it',
            )
        )
    return problems
