"""Find the later phases of a CTA among the files of one examination.

The phase that is used alone is chosen by `series`; here only files that are certain to follow it
are added: by the times in the sidecars, else by a number in the name (``acq-phase2``), else by a
word that only multi-phase CTA has. Whatever is not certain is left out, with a note where its
name or sidecar speaks of a phase. Must not read an image.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bids_perfdeficit.bids.listing import ImageFile, shorten
from bids_perfdeficit.bids.series import (
    Reading,
    choose,
    describe_sidecar,
    is_poor,
    name_text,
    read_sidecar,
    read_time,
    read_words,
    sidecar_text,
)
from bids_perfdeficit.errors import InputError, printable

#: How the note on phases that were taken begins; a run that cannot use them replaces it.
TAKEN = 'taken as later phase'
#: Later phases that are used at most.
MOST = 2
#: s. Series that begin closer together are reconstructions of one scan. The weights were fitted on
#: phases 8 and 16 s after the first; those at 20 and 40 s gained nothing (benchmarks/RESULTS.md).
LEAST_S, MOST_S = 2.0, 18.0
#: Words of a later phase, and their order. Without times only `OWN` count, the names that Menon et
#: al. give to the phases (Radiology 2015): a venous scan may be taken much later, and a late one
#: on another day.
ORDER = {
    **dict.fromkeys(('equilibrium', 'equilib', 'peakvenous'), 2),
    **dict.fromkeys(('ven', 'venous', 'venoes', 'portalvenous'), 3),
    **dict.fromkeys(('late', 'latephase', 'delay', 'delayed', 'del', 'latevenous'), 4),
}
#: Criteria by which a file cannot be a phase of this examination, whatever its moment.
_EXCLUDED = ('purpose', 'values', 'body', 'quality', 'time')
OWN = frozenset({'peakvenous', 'latevenous'})

_NUMBER = re.compile(r'(?:phase|ph)[\s_-]*0*([0-9]{1,2})(?![0-9])', re.I)


@dataclass(frozen=True)
class Phases:
    """The later phases of a CTA.

    Parameters
    ----------
    files : tuple of ImageFile
        In the order of acquisition, two at most.
    notes : tuple of str
        What was taken, by what order; and what was left out although it speaks of a phase.
    """

    files: tuple[ImageFile, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Moment:
    """What a file says of its moment."""

    file: ImageFile
    reading: Reading
    number: int | None
    word: int | None
    time: datetime | None
    doubtful_words: bool

    @property
    def name(self) -> str:
        return self.file.path.name

    @property
    def speaks(self) -> bool:
        """Whether name or sidecar speak of a later phase."""
        return self.word is not None or (self.number or 0) > 1


def find_phases(first: ImageFile, files: Sequence[ImageFile]) -> Phases:
    """Find the phases that follow the CTA.

    Parameters
    ----------
    first : ImageFile
        The phase that was chosen, which stays the first.
    files : sequence of ImageFile
        Those that are CT with contrast by their names, in the same session.

    Returns
    -------
    Phases
        Empty where nothing is certain.
    """
    others = [f for f in files if f.path != first.path and f.series != first.series]
    if not others:
        return Phases()
    start = _read(first)
    moments = [m for m in map(_read, others) if _fits(m.reading, start.reading)]
    notes: list[str] = []
    if start.speaks or is_poor('cta', first):
        spoken = [m.name for m in moments if m.speaks]
        if spoken:
            notes.append(
                f'no later phase of the CTA is used ({shorten(spoken)}): by its name the CTA '
                f'{first.path.name} is not of the arterial phase itself'
            )
        return Phases((), _printable(notes))
    certain = []
    for moment in moments:
        reason = _judge(moment, start)
        if reason is None:
            certain.append(moment)
        elif reason and moment.speaks:
            notes.append(f'{moment.name} is not used as a later phase of the CTA: {reason}')
    ordered, how, problem = _order(certain)
    if problem:
        notes.append(f'no later phase of the CTA is used: {problem}')
        return Phases((), _printable(notes))
    taken: list[ImageFile] = []
    said: list[str] = []
    for group in ordered:
        choice = choose('cta', [m.file for m in group])
        if choice.tied:
            names = shorten(m.name for m in group)
            notes.append(
                f'{names} are one later phase of the CTA and nothing distinguishes them: neither '
                'is used'
            )
            continue
        if len(taken) == MOST:
            notes.append(f'{choice.file.path.name} is not used: {MOST} later phases are enough')
            continue
        taken.append(choice.file)
        said.append(choice.file.path.name + _after(group[0], start))
    if taken:
        plural = 's' if len(taken) > 1 else ''
        notes.insert(0, f'{TAKEN}{plural} of the CTA, {how}: {", ".join(said)}')
    return Phases(tuple(taken), _printable(notes))


def _read(file: ImageFile) -> _Moment:
    content: dict[str, Any] = {}
    with contextlib.suppress(InputError):  # none, or one that `series` reports
        content = read_sidecar(file.path)
    text = name_text(file.entities, file.free)
    reading = read_words(text)
    words = reading.words('phase')
    number = _NUMBER.search(text)
    if not words and number is None:
        described = describe_sidecar(content)
        words, number = described.words('phase'), _NUMBER.search(sidecar_text(content))
    known = [word for word in words if word in ORDER]
    return _Moment(
        file,
        reading,
        int(number.group(1)) if number else None,
        max((ORDER[word] for word in known), default=None),
        read_time(content),
        bool(set(known) - OWN),
    )


def _fits(reading: Reading, first: Reading) -> bool:
    """Return whether a file may be of the examination of the first: only its moment differs."""
    return not reading.words('contrast', 'without') and all(
        not reading.words(name, 'last') or reading.words(name) == first.words(name)
        for name in _EXCLUDED
    )


def _judge(moment: _Moment, start: _Moment) -> str | None:
    """Return None for a later phase, else why it is none; empty where nothing needs be said."""
    if moment.time is not None and start.time is not None:
        after = (moment.time - start.time).total_seconds()
        if abs(after) < LEAST_S:
            return 'it was acquired at the same time, by the sidecars' if moment.speaks else ''
        if after < 0:
            return 'it was acquired before the CTA, by the sidecars'
        if after > MOST_S:
            return (
                f'it was acquired {after:.0f} s after the CTA, and phases up to {MOST_S:.0f} s '
                'after it are used'
            )
        return None
    if moment.number is not None and moment.number > (start.number or 1):
        return None
    if moment.word is not None and not moment.doubtful_words:
        return None
    return (
        'nothing says how long after the CTA it was acquired; name it acq-phase2 and the like, or '
        'give AcquisitionTime in the sidecars of both'
    )


def _order(moments: Sequence[_Moment]) -> tuple[list[list[_Moment]], str, str]:
    """Return groups of one phase in order, how they were ordered, and why they cannot be."""
    if not moments:
        return [], '', ''
    keys: dict[str, list[Any]] = {
        'by the times in their sidecars': [m.time for m in moments],
        'by the numbers in their names': [m.number for m in moments],
        'by the words in their names': [m.word for m in moments],
    }
    # A time without one of the first was not compared with it.
    complete = {how: k for how, k in keys.items() if all(v is not None for v in k)}
    if not complete:
        return [], '', f'the order of {shorten(m.name for m in moments)} is not known'
    how = next(iter(complete))
    pairs = sorted(zip(complete[how], moments, strict=True), key=lambda pair: pair[0])
    groups: list[list[_Moment]] = []
    last: Any = None
    for key, moment in pairs:
        apart = key != last
        if isinstance(key, datetime) and isinstance(last, datetime):
            apart = (key - last).total_seconds() >= LEAST_S
        if apart:
            groups.append([])
            last = key
        groups[-1].append(moment)
    for values in complete.values():
        rank = {id(m): value for m, value in zip(moments, values, strict=True)}
        ends = [(min(rank[id(m)] for m in g), max(rank[id(m)] for m in g)) for g in groups]
        if any(before[1] > after[0] for before, after in itertools.pairwise(ends)):
            names = shorten(m.name for m in moments)
            return (
                [],
                '',
                f'the names and sidecars of {names} contradict each other in their order',
            )
    if len(moments) == 1:
        how = how.replace('times in their sidecars', 'time in its sidecar').replace('their', 'its')
    return groups, how, ''


def _after(moment: _Moment, start: _Moment) -> str:
    if moment.time is None or start.time is None:
        return ''
    return f' ({(moment.time - start.time).total_seconds():.0f} s later)'


def _printable(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(printable(note) for note in notes)
