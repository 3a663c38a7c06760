"""Choose among the series of one examination by what their names and sidecars say.

The words that count stand in ``data/series_words.tsv``, the order in which they count in
`CRITERIA`. Sidecars are read only where names do not decide. What still ties is not settled by
the alphabet: one file is taken, and the choice is reported as a doubt. Must not read an image.
"""

from __future__ import annotations

import csv
import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bids_perfdeficit.bids.jsonfile import read_json
from bids_perfdeficit.bids.listing import ImageFile, natural, shorten
from bids_perfdeficit.data import load
from bids_perfdeficit.errors import InputError, printable

#: The two images a patient must have, with the name that BEP024 gives them and their key in a
#: filter file.
ROLES: dict[str, tuple[str, str]] = {'ncct': ('NCCT', 'ct'), 'cta': ('CTA', 'cta')}

#: What decides, the most important first: what cannot serve at all, then the moment of the scan,
#: then how it was reconstructed. Each is a criterion of ``data/series_words.tsv``.
CRITERIA = (
    'purpose',
    'values',
    'contrast',
    'phase',
    'body',
    'quality',
    'time',
    'kernel',
    'slices',
)

#: A series that is the best there is and yet has a word of these is doubtful.
GRAVE = {
    'purpose': 'is not a diagnostic series',
    'values': 'is computed from other images or does not hold plain CT values',
    'contrast': 'contradicts what it is taken for',
    'phase': 'is not of the arterial phase',
    'body': 'shows another part of the body',
}

#: ``ce-`` entities that say that there was none.
NO_CONTRAST = frozenset({'none', 'no', 'non', 'without', 'native', 'nc', '0', 'false'})

#: Words of the phase that may also mean when a patient was scanned, and so do not prove contrast.
AMBIGUOUS = frozenset({'early', 'peak', 'late', 'latephase', 'delay', 'delayed', 'del'})

#: Values of spectral CT that exist only with contrast.
NEEDS_CONTRAST = re.compile(r'iodine|jod|dsa|subtr|bonesub|^sub$')

#: Entities whose labels are words; the others are numbers, or are read by themselves (``ce-``).
WORDED = ('acquisition', 'reconstruction', 'description', 'direction', 'part', 'sample')

#: Siemens kernels (B30f, H60s, Hr40, J45) from this sharpness are for bone or lung.
SHARP_KERNEL = 50

#: mm. Slices that differ by less count as equally thick.
SAME_THICKNESS = 0.05

#: Hours. Two scans of one session lie closer together; if not, one time is past midnight.
ONE_SESSION = 12

_UNKNOWN, _BEST, _WORST = 1, 0, 2
_SIDECAR_TEXTS = ('SeriesDescription', 'ProtocolName', 'ImageType', 'ConvolutionKernel')


@dataclass(frozen=True)
class Reading:
    """What a name or a description says.

    Parameters
    ----------
    said : mapping
        From (criterion, ``'first'``, ``'last'``, ``'with'``, ``'without'`` or ``'leave out'``) to
        the words that say so.
    thickness : float or None
        mm, where the text names it.
    """

    said: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    thickness: float | None = None

    def words(self, criterion: str, *ranks: str) -> tuple[str, ...]:
        """Return the words of a criterion, of all its ranks unless some are named."""
        return tuple(
            word
            for (name, rank), words in self.said.items()
            if name == criterion and (not ranks or rank in ranks)
            for word in words
        )


@dataclass(frozen=True)
class Choice:
    """The file that was taken for a role.

    Parameters
    ----------
    file : ImageFile
        The one.
    notes : tuple of str
        Among which files it was chosen, and why.
    doubts : tuple of str
        Why it may be the wrong one.
    tied : bool
        Whether nothing distinguishes it from another one.
    """

    file: ImageFile
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    tied: bool = False


def classify(entities: Mapping[str, str], free: str = '') -> str | None:
    """Return which role a file has by its name.

    Parameters
    ----------
    entities : mapping
        Pybids' names and values, as ``data/bids_config.json`` reads them.
    free : str
        Parts of the name that belong to no entity.

    Returns
    -------
    str or None
        ``'ncct'``, ``'cta'``, ``'contrast'`` for CT with contrast that is not called an
        angiogram, ``'other'`` for other CT (perfusion, venography), None for what
        is not CT by its name.
    """
    suffix = entities.get('suffix', '').lower()
    if suffix in ('ctp', 'ctv', 'ctac'):
        return 'other'
    if suffix not in ('ct', 'ncct', 'cta'):
        return None
    acquisition = entities.get('acquisition', '')
    said = read_words(name_text(entities, free))
    if said.words('perfusion') or re.search(r'ctp|perf', acquisition, re.I):
        return 'other'
    agent = entities.get('ceagent')
    given = agent is not None and agent.lower() not in NO_CONTRAST
    if suffix == 'cta':
        return 'cta'
    if suffix == 'ncct':
        return None if given else 'ncct'
    angiogram = set(said.words('phase', 'first')) - AMBIGUOUS
    if given or angiogram or re.match(r'cta|angio|art(?![ei]fact)', acquisition, re.I):
        return 'cta'
    if agent is not None or said.words('contrast', 'without'):
        return 'ncct'
    phases = set(said.words('phase', 'last')) - AMBIGUOUS
    computed = any(NEEDS_CONTRAST.search(word) for word in said.words('values'))
    return 'contrast' if said.words('contrast', 'with') or phases or computed else 'ncct'


def choose(role: str, files: Sequence[ImageFile], *, vouched: bool = False) -> Choice:
    """Take one of several files for a role.

    Names decide first, by `CRITERIA` and then by slice thickness; where names tie, sidecars do by
    the same criteria, then thickness and time; then the number of the run, then the name with
    fewer entities. Among dcm2niix's copies of the series that is taken, the one whose gantry tilt
    and slice distance were corrected comes first, crops last.

    Parameters
    ----------
    role : str
        A key of `ROLES`.
    files : sequence of ImageFile
        At least one.
    vouched : bool
        Whether the user named it in a filter file, so that its name gives no reason for doubt.

    Returns
    -------
    Choice
        With a doubt when nothing distinguishes the best ones, or when the best is a poor one.
    """
    copies: dict[str, list[ImageFile]] = {}
    for file in sorted(files, key=lambda f: (natural(f.series), _rank_copy(f))):
        copies.setdefault(file.series, []).append(file)
    # Copies of equal standing ("a" and "b") may be different series that dcm2niix could not name.
    candidates = [
        _Candidate(role, file)
        for group in copies.values()
        for file in group
        if _rank_copy(file)[:2] == _rank_copy(group[0])[:2]
    ]
    tied, why, notes = _narrow(role, candidates)
    best, *rivals = tied
    others = [c.name for c in candidates if c not in tied]
    worse = [f for f in copies[best.file.series] if _rank_copy(f)[:2] != _rank_copy(best.file)[:2]]
    doubts = [] if vouched else best.doubts()
    what = ROLES[role][0]
    if rivals:
        doubts.append(
            f'{len(tied)} files could be the {what} and nothing distinguishes them: took '
            f'{best.name}, not {shorten(c.name for c in rivals)}; look at them, and choose with '
            '--bids-filter-file'
        )
    elif others:
        notes.append(
            f'{len(others) + 1} files could be the {what}: took {best.name}, because {why}, not '
            f'{shorten(others)}; choose another with --bids-filter-file'
        )
    if worse:
        notes.append(
            f'{len(worse) + 1} copies of the {what}: took {best.name}, because '
            f'{_why_copy(best.file, worse[0])}, not {shorten(f.path.name for f in worse)}; '
            'choose another with --bids-filter-file'
        )
    if 'roi' in best.file.copy.lower():
        notes.append(f'the {what} {best.name} is a crop made by dcm2niix; add the whole image')
    return Choice(best.file, tuple(notes), tuple(doubts), bool(rivals))


def is_poor(role: str, file: ImageFile) -> bool:
    """Return whether a file's name speaks against its role, by a criterion of `GRAVE`."""
    return bool(_Candidate(role, file).doubts())


class _Candidate:
    """A series that could serve, and what is known of it."""

    def __init__(self, role: str, file: ImageFile) -> None:
        self.role, self.file, self.name = role, file, file.path.name
        self.reading = read_words(name_text(file.entities, file.free))
        self.ranks = {c: self.rank(c, self.reading) for c in CRITERIA}

    def doubts(self) -> list[str]:
        """Say why the file may be wrong although it is the best there is."""
        what, kind = ROLES[self.role][0], classify(self.file.entities, self.file.free)
        if self.role == 'cta' and kind == 'contrast':
            reason = 'has contrast by its name and is not called an angiogram'
            return [f'the {what} {self.name} {reason}; look at it, and rename it if it is one']
        return [
            f'the {what} {self.name} {reason}, by its name '
            f'({", ".join(self.reading.words(criterion, "last", "with", "without"))})'
            for criterion, reason in GRAVE.items()
            if self.ranks[criterion] == _WORST and self.reading.words(criterion)
        ]

    def rank(self, criterion: str, reading: Reading) -> int:
        """Return 0 when a text speaks for the series, 2 when it speaks against it, else 1."""
        first, last = reading.words(criterion, 'first'), reading.words(criterion, 'last')
        if criterion == 'contrast':
            right, wrong = ('without', 'with') if self.role == 'ncct' else ('with', 'without')
            if reading.words('contrast', wrong):
                return _WORST
            if self.role == 'cta' and reading is self.reading:
                return self._rank_suffix()
            return _BEST if reading.words('contrast', right) else _UNKNOWN
        if first and last:  # "head and neck" shows the head, "early venous" is venous
            return _UNKNOWN if criterion == 'body' else _WORST
        return _BEST if first else _WORST if last else _UNKNOWN

    def _rank_suffix(self) -> int:
        kind = classify(self.file.entities, self.file.free)
        suffix = self.file.entities.get('suffix', '').lower()
        return _BEST if suffix == 'cta' else _WORST if kind == 'contrast' else _UNKNOWN


def _narrow(
    role: str, candidates: Sequence[_Candidate]
) -> tuple[list[_Candidate], str, list[str]]:
    """Return those between which nothing decides, best first, what decided, and notes."""
    tied, why = list(candidates), ''
    notes: list[str] = []
    for criterion in CRITERIA:
        tied, why = _keep(tied, _ranker(criterion, None), why, _say_words(criterion))
    tied, why = _thinnest(tied, lambda c: c.reading.thickness, why, 'its name')
    if len(tied) > 1:
        tied, why = _ask_sidecars(tied, why, notes)
    tied, why = _keep(tied, lambda c: int(c.file.entities.get('run', 0)), why, _first_run)
    tied, why = _keep(tied, lambda c: int(c.file.entities.get('chunk', 0)), why, _first_run)
    tied, why = _keep(tied, lambda c: len(c.file.entities), why, lambda *_: 'its name is plain')
    return tied, why, notes


def _keep(
    tied: list[_Candidate],
    key: Callable[[_Candidate], Any],
    why: str,
    say: Callable[[_Candidate, Sequence[_Candidate]], str],
) -> tuple[list[_Candidate], str]:
    """Keep the candidates with the least key, and say why when that leaves some out."""
    if len(tied) < 2:
        return tied, why
    least = min(key(c) for c in tied)
    kept = [c for c in tied if key(c) == least]
    left = [c for c in tied if key(c) != least]
    return kept, say(kept[0], left) if left else why


def _ranker(criterion: str, readings: Mapping[int, Reading] | None) -> Callable[[_Candidate], int]:
    """Return the key by which a criterion ranks, of the names or of other readings."""
    if readings is None:
        return lambda candidate: candidate.ranks[criterion]
    return lambda candidate: candidate.rank(criterion, readings[id(candidate)])


def _say_sidecars(
    criterion: str, readings: Mapping[int, Reading]
) -> Callable[[_Candidate, Sequence[_Candidate]], str]:
    def say(best: _Candidate, others: Sequence[_Candidate]) -> str:
        right = readings[id(best)].words(criterion, 'first', 'with', 'without')
        wrong = [word for c in others for word in readings[id(c)].words(criterion)]
        if right:
            return f'its sidecar says {", ".join(right)}'
        return f'the sidecars of others say {", ".join(dict.fromkeys(wrong))}'

    return say


def _say_words(criterion: str) -> Callable[[_Candidate, Sequence[_Candidate]], str]:
    def say(best: _Candidate, others: Sequence[_Candidate]) -> str:
        right = best.reading.words(criterion, 'first', 'with', 'without')
        if right:
            return f'its name says {", ".join(right)}'
        wrong = [
            word for c in others for word in c.reading.words(criterion, 'last', 'with', 'without')
        ]
        if wrong:
            plural = len(others) > 1
            return (
                f'the name{"s" if plural else ""} of the other{"s" if plural else ""} '
                f'say{"" if plural else "s"} {", ".join(dict.fromkeys(wrong))}'
            )
        return f'its name says best that it is the {ROLES[best.role][0]}'

    return say


def _first_run(best: _Candidate, others: Sequence[_Candidate]) -> str:
    return 'it is the first run'


def _thinnest(
    tied: list[_Candidate],
    thickness: Callable[[_Candidate], float | None],
    why: str,
    where: str,
) -> tuple[list[_Candidate], str]:
    known = {id(c): thickness(c) for c in tied}
    values = [value for value in known.values() if value is not None]
    if len(values) < len(tied):
        return tied, why
    least = min(values)
    return _keep(
        tied,
        lambda c: (known[id(c)] or 0) > least + SAME_THICKNESS,
        why,
        lambda *_: f'its slices are the thinnest by {where} ({least:g} mm)',
    )


def _ask_sidecars(
    tied: list[_Candidate], why: str, notes: list[str]
) -> tuple[list[_Candidate], str]:
    """Narrow by what the JSON sidecars say; what cannot be read says nothing."""
    readings: dict[int, Reading] = {}
    times: dict[int, datetime | None] = {}
    for candidate in tied:
        content: dict[str, Any] = {}
        try:
            content = read_sidecar(candidate.file.path)
        except InputError as error:
            if os.path.lexists(sidecar_of(candidate.file.path)):
                notes.append(f'the sidecar of {candidate.name} is ignored: {error.reason}')
        readings[id(candidate)], times[id(candidate)] = (
            describe_sidecar(content),
            read_time(content),
        )
    for criterion in CRITERIA:
        tied, why = _keep(
            tied, _ranker(criterion, readings), why, _say_sidecars(criterion, readings)
        )
    tied, why = _thinnest(tied, lambda c: readings[id(c)].thickness, why, 'its sidecar')
    known = [times[id(c)] for c in tied]
    if len(tied) > 1 and all(known):
        first, last = min(filter(None, known)), max(filter(None, known))
        if (last - first).total_seconds() < 3600 * ONE_SESSION:
            return _keep(
                tied, lambda c: times[id(c)], why, lambda *_: 'it was acquired first (sidecars)'
            )
    return tied, why


def sidecar_text(content: Mapping[str, Any]) -> str:
    """Return the texts of a sidecar that describe the series."""
    return ' | '.join(_words_of(content.get(key)) for key in _SIDECAR_TEXTS)


def describe_sidecar(content: Mapping[str, Any]) -> Reading:
    """Return what a sidecar says."""
    reading = read_words(sidecar_text(content))
    agent = _words_of(content.get('ContrastBolusAgent')).strip()
    said = dict(reading.said)
    if agent and agent.lower() not in NO_CONTRAST:
        said['contrast', 'with'] = (*said.get(('contrast', 'with'), ()), agent)
    return Reading(said, _number(content.get('SliceThickness')))


def sidecar_of(path: Path) -> Path:
    """Return the JSON file beside an image."""
    return path.with_name(re.sub(r'\.nii(?:\.gz)?$', '', path.name) + '.json')


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the sidecar of an image; raise InputError when there is none that can be read."""
    return read_json(sidecar_of(path))


def read_time(content: Mapping[str, Any]) -> datetime | None:
    """Return when a scan was acquired, by its sidecar.

    Parameters
    ----------
    content : mapping
        ``AcquisitionDateTime``, or ``AcquisitionTime`` with or without ``AcquisitionDate``, as
        dcm2niix and others write them.

    Returns
    -------
    datetime or None
        Of the year 1900 where no date is known; None when there is no time.
    """
    whole = re.sub(r'\D', '', str(content.get('AcquisitionDateTime', '')).split('.')[0])
    date = re.sub(r'\D', '', str(content.get('AcquisitionDate', ''))) or '19000101'
    clock = re.sub(r'\D', '', str(content.get('AcquisitionTime', '')).split('.')[0])
    for text in (whole, date + clock if clock else ''):
        try:
            return datetime.strptime(text[:14], '%Y%m%d%H%M%S')
        except ValueError:
            continue
    return None


def read_words(text: str) -> Reading:
    """Return what the words of a name or a description say.

    A word counts when it stands alone, when a run of letters consists of known words
    (``thinbone``), when capitals set it off (``fooBone``), or, from five letters, anywhere
    (``xcontrasty``). Times (``24h``), phases (``phase2``), energies (``40keV``), thicknesses
    (``0p6mm``) and Siemens kernels (``H60s``) are read as numbers.

    Parameters
    ----------
    text : str
        Labels of entities, or a free text such as SeriesDescription.

    Returns
    -------
    Reading
        Empty when nothing is understood.
    """
    said: dict[tuple[str, str], list[str]] = {}
    text = _NEGATED.sub(lambda m: _add(said, ('contrast', 'without'), m.group(0)), text)
    thickness = None
    for token in re.findall(r'\+?[^\W_]+(?:\+[^\W_]*|-(?=\W|$))?', text):
        match = re.fullmatch(r'.*?([0-9]+(?:p[0-9]+)?)mm.*', token.lower())
        if match:
            thickness = _millimetres(match.group(1))
        for word in _split(token, said):
            _add(said, _dictionary()[word], word)
    return Reading({key: tuple(dict.fromkeys(words)) for key, words in said.items()}, thickness)


#: Words of two characters that may be part of a longer one.
_SHORT = frozenset({'3d', '4d', 'ct'})

#: "w/o contrast" and its kind, in descriptions: two words that mean the opposite of the second.
_NEGATED = re.compile(
    r'\b(?:non|no|not|without|w/?o|ohne|sans|sin|senza|pre)[\W_]*(?:i\.?v\.?[\W_]*)?'
    r'(?:contrast\w*|kontrast\w*|km|injection|enhanced)\b',
    re.I,
)


def _add(said: dict[tuple[str, str], list[str]], key: tuple[str, str], word: str) -> str:
    if key[0] != 'neutral':
        said.setdefault(key, []).append(printable(word))
    return ' '


def _split(token: str, said: dict[tuple[str, str], list[str]]) -> list[str]:
    """Return the known words of one run of letters and digits."""
    lower = token.lower()
    whole = _segment(lower)
    if whole:
        return list(whole)
    for pattern, judge in _NUMBERED:
        for match in pattern.finditer(lower):
            key = judge(int(match.group(1)[:6]))
            if key is not None:
                _add(said, key, match.group(0))
        lower = pattern.sub(' ', lower)
    words: list[str] = []
    spaced = lower if lower != token.lower() else token
    for piece in re.findall(r'[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+[a-z]\b', spaced):
        words += _segment(piece.lower())
    if words:
        return words
    for word in _long_words():
        if word in lower:
            words.append(word)
            lower = lower.replace(word, ' ')
    return words


@functools.lru_cache(maxsize=4096)
def _segment(text: str) -> tuple[str, ...]:
    """Return the fewest known words that make up a text, all of it, or nothing.

    A single word may be short; of several each has three letters, or is one of `_SHORT`.
    """
    known = _dictionary()
    if text in known:
        return (text,)
    if len(text) > 60:  # not a label, and the search below grows with the square of its length
        return ()
    best: dict[int, tuple[str, ...]] = {0: ()}
    for end in range(2, len(text) + 1):
        options = [
            (*best[start], text[start:end])
            for start in range(end - 1)
            if start in best
            and text[start:end] in known
            and (end - start > 2 or text[start:end] in _SHORT)
        ]
        if options:
            best[end] = min(options, key=len)
    return best.get(len(text), ())


def _phase(number: int) -> tuple[str, str]:
    return ('phase', 'first' if number <= 1 else 'last')


def _when(number: int) -> tuple[str, str]:
    return ('time', 'last' if number else 'first')


#: Words with a number in them, and what the number makes of them.
_NUMBERED: tuple[tuple[re.Pattern[str], Callable[[int], tuple[str, str] | None]], ...] = (
    (re.compile(r'([0-9]+)(?:p[0-9]+)?mm'), lambda _: None),
    (re.compile(r'([0-9]+)kev'), lambda _: ('values', 'last')),
    (re.compile(r'(?:phase|ph)0*([0-9]+)'), _phase),
    (re.compile(r'([0-9]+)(?:hours|hour|hrs|hr|h)(?![a-z])'), _when),
    (re.compile(r'([0-9]+)(?:days|day|weeks|week|wk|months|month|mo)(?![a-z])'), _when),
    (re.compile(r'(?<![a-z])([0-9]{2,}|[05-9])d(?![a-z])'), _when),
    (re.compile(r'(?<![a-z])(?:day|hour|week|month)0*([0-9]+)'), _when),
    (
        re.compile(r'(?<![a-z])[bhjuq][a-z]?([0-9]{2})[a-z]?(?![a-z0-9])'),
        lambda n: ('kernel', 'last' if n >= SHARP_KERNEL else 'first'),
    ),
)


@functools.cache
def _dictionary() -> dict[str, tuple[str, str]]:
    with load('series_words.tsv').open(encoding='utf-8', newline='') as stream:
        return {
            word: (row['criterion'], row['rank'])
            for row in csv.DictReader(stream, delimiter='\t')
            for word in row['words'].split()
        }


@functools.cache
def _long_words() -> tuple[str, ...]:
    return tuple(sorted((w for w in _dictionary() if len(w) >= 5), key=lambda w: (-len(w), w)))


def name_text(entities: Mapping[str, str], free: str = '') -> str:
    """Return the parts of a name that are words."""
    return ' '.join(filter(None, (*(entities.get(name) for name in WORDED), free)))


def _words_of(value: Any) -> str:
    """Return a value of a sidecar as text, whatever it is; long ones are cut."""
    values: Iterable[Any] = value if isinstance(value, list) else [value]
    return ' '.join(str(item) for item in values if isinstance(item, str | int | float))[:1000]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 < number < 100 else None


def _millimetres(text: str) -> float | None:
    """Return ``0p6``, ``06`` (both 0.6) or ``5`` as a number."""
    if text.startswith('0') and 'p' not in text and len(text) > 1:
        text = f'0p{text[1:]}'
    return _number(text.replace('p', '.'))


def _rank_copy(file: ImageFile) -> tuple[Any, ...]:
    """Sort key among dcm2niix's copies of one series: kind, extension; then only the letter."""
    copy = file.copy.lower()
    kinds = (
        ('roi' in copy, 5),
        ('tilt' in copy and 'eq' in copy, 0),
        ('tilt' in copy, 1),
        ('eq' in copy, 2),
        (not copy, 3),
    )
    rank = next((rank for found, rank in kinds if found), 4)
    return rank, file.entities.get('extension') != '.nii.gz', natural(copy), str(file.path)


def _why_copy(file: ImageFile, worse: ImageFile) -> str:
    best, other = _rank_copy(file), _rank_copy(worse)
    if best[0] == other[0]:
        return 'it is compressed'
    if best[0] < 3:
        return 'dcm2niix has corrected its gantry tilt or slice spacing'
    return 'it is the original' if best[0] == 3 else 'the others are crops'
