"""Read NIHSS item scores as sites write them, and tell every doubt once.

Facts about the scale (items, ranges, which can be untestable, LOINC codes) come from
``data/nihss.json``. Item 5a is the LEFT arm, 5b the right, 6a the LEFT leg, 6b the right; some
sites swap the letters, so that a side word in a column's name wins over its letter. Must not know
maps or models.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_perfdeficit.bids.files import write_json, write_tsv
from bids_perfdeficit.data import load
from bids_perfdeficit.errors import InputError

#: The 15 items, as `data/nihss.json` and the columns of `Scores.table` call them.
ITEMS: tuple[str, ...] = (
    'nihss_1a', 'nihss_1b', 'nihss_1c', 'nihss_2', 'nihss_3', 'nihss_4', 'nihss_5a', 'nihss_5b',
    'nihss_6a', 'nihss_6b', 'nihss_7', 'nihss_8', 'nihss_9', 'nihss_10', 'nihss_11',
)  # fmt: skip
TOTAL = 'nihss_total'

#: Highest total that the scale can give.
MAXIMUM_TOTAL = 42

#: Codes of "not recorded", in lower case.
MISSING = frozenset({'', 'n/a', 'na', 'nan', 'none', 'null', '.', '-', '?', 'missing', 'unknown'})

#: Codes of "could not be tested", in lower case. No item reaches 9.
UNTESTABLE = frozenset(
    {'un', 'ut', 'nt', 'x', 'untestable', 'not testable', '9', '99', '-9', '999'}
)

#: Names of the column that says who, without case and separators.
ID_COLUMNS = (
    'participantid', 'participant', 'subjectid', 'subject', 'sub', 'patientid', 'patient',
    'recordid', 'id',
)  # fmt: skip
SESSION_COLUMNS = ('sessionid', 'session', 'ses', 'visit', 'timepoint', 'redcapeventname')

#: Session names that mean the examination on arrival.
BASELINE = re.compile(r'base|^bl$|admi|arriv|acute|screen|^pre', re.I)

#: Names that are listed before "and N more".
LISTED = 8

_NUMBER = re.compile(r'[+-]?\d+(?:[.,]0*)?')
_LOINC = re.compile(r'(?<!\d)(\d{5})[-_. ]?(\d)(?!\d)')
_MARK = re.compile(r'nihss|nih[\s_.-]*stroke[\s_.-]*scale|nihstroke|(?<![a-z])nih(?![a-z])', re.I)

#: Words of column names, and the item (or the limb) that they stand for.
_TOPICS: dict[str, str] = {
    'consciousness': '1a', 'vigilance': '1a', 'alertness': '1a', 'loc': '1a',
    'questions': '1b', 'question': '1b', 'orientation': '1b',
    'commands': '1c', 'command': '1c',
    'gaze': '2', 'oculomotor': '2',
    'visual': '3', 'vision': '3', 'hemianopia': '3', 'hemianopsia': '3',
    'facial': '4', 'face': '4',
    'arm': '5', 'upper': '5',
    'leg': '6', 'lower': '6',
    'ataxia': '7',
    'sensory': '8', 'sensation': '8', 'sensibility': '8',
    'language': '9', 'aphasia': '9',
    'dysarthria': '10', 'articulation': '10',
    'extinction': '11', 'inattention': '11', 'neglect': '11',
}  # fmt: skip
_SIDES = {'left': 'a', 'right': 'b', 'lt': 'a', 'rt': 'b', 'l': 'a', 'r': 'b'}
#: Words that leave open which item it is, such as `of` in "level of consciousness".
_FILLERS = frozenset({
    'item', 'items', 'score', 'scores', 'value', 'q', 'level', 'of', 'the', 'and', 'best',
    'motor', 'fields', 'field', 'palsy', 'paresis', 'limb', 'extremity', 'movements', 'movement',
    'month', 'age', 'drift', 'weakness', 'loss', 'function', 'baseline', 'admission', 'adm', 'bl',
    'acute', 'arrival', 'initial', 'at', 'on',
})  # fmt: skip
_TOTALS = frozenset({'total', 'sum', 'tot'})
_WORD = re.compile(
    '|'.join(
        word if len(word) > 2 else rf'(?<![a-z]){word}(?![a-z])'
        for word in sorted({*_TOPICS, *_SIDES, *_FILLERS, *_TOTALS}, key=lambda w: (-len(w), w))
    )
    + r'|[a-z]+|\d+'
)


@dataclass(frozen=True)
class Scores:
    """NIHSS scores of a cohort.

    Parameters
    ----------
    table : DataFrame
        Participants (labels without ``sub-``, the index) by the 15 `ITEMS`; float64, NaN for
        what is missing or untestable.
    total : Series
        Same index. The sum of the items when each was scored or declared untestable, otherwise
        the total that the table gives, otherwise NaN.
    notes : tuple of str
        Each value that was dropped or is doubtful, once, with the reason.
    source : Path
        The file.
    """

    table: pd.DataFrame
    total: pd.Series
    notes: tuple[str, ...]
    source: Path


def read_scores(
    source: str | os.PathLike[str],
    *,
    participants: Sequence[str] | None = None,
    session: str | None = None,
) -> Scores:
    """Read NIHSS scores.

    Parameters
    ----------
    source : path
        A BIDS dataset (``phenotype/nihss.tsv`` or, without it, ``participants.tsv``), or a table
        with tabs, commas or semicolons.
    participants : sequence of str, optional
        Who is wanted, with or without ``sub-``. Others are dropped and told. Numbers match with
        or without leading zeros where that is unambiguous.
    session : str, optional
        Which examination, where the table has several; by default the one whose name says
        baseline, otherwise the first by name.

    Returns
    -------
    Scores
        Rows in natural order of the table.

    Raises
    ------
    InputError
        When there is no table, no column of participants or of scores, or nobody is left.
    """
    path, is_nihss = _find_table(Path(source))
    raw = _read_table(path)
    notes: list[str] = []
    who = _find_column(raw, ID_COLUMNS)
    if who is None:
        raise InputError(
            f'no column says who ({_shorten(raw.columns)})',
            fix='name one participant_id',
            path=path,
        )
    columns = _find_items(raw.columns.drop(who), is_nihss, notes)
    if not columns:
        raise InputError(
            'no column holds an NIHSS item or total',
            fix=f'name the columns {ITEMS[0]}, {ITEMS[1]} and so on',
            path=path,
        )
    raw = raw.assign(**{who: _clean_ids(raw[who])})
    raw = _drop_anonymous(raw, who, notes)
    if participants is not None:
        raw = _match_participants(raw, who, participants, notes)
    raw = _pick_session(raw, who, session, notes)
    raw = _merge_duplicates(raw, who, list(columns), notes)
    if raw.empty:
        raise InputError(
            'scores of none of the participants are left'
            + (f' ({"; ".join(notes)})' if notes else ''),
            fix='check that participant_id and the session name those of the images',
            path=path,
        )
    raw = raw.set_index(who)
    raw.index.name = 'participant'

    table = pd.DataFrame(np.nan, index=raw.index, columns=list(ITEMS))
    untestable = pd.DataFrame(False, index=raw.index, columns=list(ITEMS))
    given = pd.Series(np.nan, index=raw.index, name=TOTAL)
    for column, item in columns.items():
        values, could_not = _read_values(raw[column], item, notes)
        if item == TOTAL:
            given = values.rename(TOTAL)
        else:
            table[item], untestable[item] = values, could_not
    absent = [item for item in ITEMS if item not in columns.values()]
    if absent:
        notes.append(f'the table has no column for {_shorten(absent)}')
    total = _check_total(table, untestable, given, notes)
    return Scores(table, total, tuple(notes), path)


def check_sides(scores: Scores, asymmetry: Mapping[str, float]) -> str | None:
    """Tell when left and right limbs seem to be swapped over the cohort.

    The left limbs depend on the right hemisphere: where the left hemisphere is later, the right
    limbs are weaker.

    Parameters
    ----------
    scores : Scores
        Of the cohort.
    asymmetry : mapping of str to float
        Mean perfusion of the left minus the right hemisphere, by participant; higher is later.

    Returns
    -------
    str or None
        A warning when the two go together significantly (Spearman, p < 0.01) in the wrong sense.
    """
    from scipy.stats import spearmanr

    side = pd.Series(dict(asymmetry), dtype=float).reindex(scores.table.index)
    left = scores.table[['nihss_5a', 'nihss_6a']].sum(axis=1, min_count=1)
    right = scores.table[['nihss_5b', 'nihss_6b']].sum(axis=1, min_count=1)
    known = pd.DataFrame({'limbs': left - right, 'side': side}).dropna()
    if len(known) < 10 or known['limbs'].nunique() < 2 or known['side'].nunique() < 2:
        return None
    rho, p = spearmanr(known['limbs'], known['side'])
    if rho <= 0 or p >= 0.01:
        return None
    return (
        f'the left limbs are weaker where the LEFT hemisphere is later (rho {rho:.2f}, '
        f'{len(known)} participants): the table seems to swap a and b (5a and 6a are the left '
        'limbs), or the images are flipped'
    )


def write_phenotype(scores: Scores, out_dir: str | os.PathLike[str]) -> Path:
    """Write ``phenotype/nihss.tsv`` with its sidecar.

    Parameters
    ----------
    scores : Scores
        What to write: items and total, ``n/a`` for missing.
    out_dir : path
        OUTPUT_DIR.

    Returns
    -------
    Path
        The table.
    """
    path = Path(out_dir, 'phenotype', 'nihss.tsv')
    frame = scores.table.assign(**{TOTAL: scores.total}).astype('Int64')
    frame.insert(0, 'participant_id', [f'sub-{label}' for label in frame.index])
    keep = {'MeasurementToolMetadata', 'participant_id', TOTAL, *ITEMS}
    write_json({k: v for k, v in _scale().items() if k in keep}, path.with_suffix('.json'))
    return write_tsv(frame, path)


def parse_column(name: str, *, marked: bool = False) -> tuple[str, str] | None:
    """Tell which item a column holds.

    Parameters
    ----------
    name : str
        As the table has it: ``nihss_1a``, ``NIHSS 5a``, ``item1a``, ``motor_arm_left``,
        ``70190-4``.
    marked : bool
        Whether the name must say NIHSS (or be a LOINC code), as in a table of other things too.

    Returns
    -------
    tuple of str, optional
        The item (of `ITEMS`, or ``nihss_total``) and a remark, empty unless the letter and the
        side word contradict each other. None for what is not understood wholly: a word that has
        no meaning here (``treatment_arm``, ``nihss_1a_24h``) makes it another thing.
    """
    if found := _LOINC.search(name):
        item = _loinc().get(f'{found[1]}-{found[2]}')
        if item:
            return item, ''
    text = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name).strip()
    bare = _MARK.sub(' ', text)
    if marked and bare == text:
        return None
    words = _WORD.findall(bare.lower())
    code, letter, topics, sides, total = '', '', set(), set(), False
    for word in words:
        if word.isdigit():
            if code or not 1 <= int(word) <= 11:
                return None
            code = str(int(word))
        elif word in 'abc' and code and not letter:
            letter = word
        elif word in _TOTALS:
            total = True
        elif word in _TOPICS:
            topics.add(_TOPICS[word])
        elif word in _SIDES:
            sides.add(_SIDES[word])
        elif word not in _FILLERS:
            return None
    if '1a' in topics and topics & {'1b', '1c'}:
        topics.discard('1a')  # "LOC questions"
    if len(topics) > 1 or len(sides) > 1:
        return None
    topic = next(iter(topics), '')
    if not code and not topic:
        is_total = total or (bare != text and not sides)
        return (TOTAL, '') if is_total else None
    if total or (topic and code and not topic.startswith(code)):
        return None
    number, side = code or topic.rstrip('abc'), next(iter(sides), '')
    suffix = letter or topic[len(number) :]
    remark = ''
    if side and number in ('5', '6'):
        if letter and letter != side:
            remark = 'the side word wins over the letter'
        suffix = side
    elif side:
        return None
    item = f'nihss_{number}{suffix}'
    return (item, remark) if item in ITEMS else None


def _find_table(source: Path) -> tuple[Path, bool]:
    """Return the table, and whether it is about the NIHSS alone."""
    if source.is_dir():
        for name, is_nihss in (('phenotype/nihss.tsv', True), ('participants.tsv', False)):
            if (source / name).is_file():
                return source / name, is_nihss
        raise InputError(
            'has neither phenotype/nihss.tsv nor participants.tsv',
            fix='add one, or name a table with --scores',
            path=source,
        )
    if not source.is_file():
        raise InputError('no such file', fix='give a table with NIHSS scores', path=source)
    return source, source.name != 'participants.tsv'


def _read_table(path: Path) -> pd.DataFrame:
    """Read a delimited table as text."""
    data = path.read_bytes()
    if b'\0' in data[:1000]:
        raise InputError('is not a text table', fix='save it as TSV or CSV', path=path)
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError:
        text = data.decode('cp1252', errors='replace')
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        raise InputError('has no rows', fix='give a header and one row a participant', path=path)
    delimiter = max('\t,;', key=lines[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    header, *body = rows
    ragged = [i for i, row in enumerate(body, start=2) if len(row) != len(header)]
    if ragged:
        raise InputError(
            f'row {ragged[0]} has {len(body[ragged[0] - 2])} cells, the header {len(header)}'
            + (f', and {len(ragged) - 1} more rows differ' if len(ragged) > 1 else ''),
            fix='give every row as many cells as the header',
            path=path,
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(
            f'has more than one column {_shorten(twice)}', fix='rename or remove one', path=path
        )
    return pd.DataFrame(body, columns=header, dtype=object)


def _find_column(raw: pd.DataFrame, names: Iterable[str]) -> str | None:
    plain = {re.sub(r'[^a-z]', '', str(column).lower()): str(column) for column in raw.columns}
    return next((plain[name] for name in names if name in plain), None)


def _find_items(columns: Iterable[str], is_nihss: bool, notes: list[str]) -> dict[str, str]:
    """Return item by column; one column an item."""
    found: dict[str, str] = {}
    unclear = []
    for column in columns:
        parsed = parse_column(column, marked=not is_nihss)
        if parsed is None:
            if _MARK.search(column):
                unclear.append(column)
            continue
        item, remark = parsed
        if remark:
            notes.append(f'column {column!r} is read as {item}: {remark}')
        rival = next((c for c, i in found.items() if i == item), None)
        if rival is None:
            found[column] = item
        elif BASELINE.search(column) and not BASELINE.search(rival):
            notes.append(f'columns {rival!r} and {column!r} both hold {item}; the second is used')
            del found[rival]
            found[column] = item
        else:
            notes.append(f'columns {rival!r} and {column!r} both hold {item}; the first is used')
    if unclear:
        notes.append(f'columns that are not understood and left out: {_shorten(unclear)}')
    return dict(sorted(found.items(), key=lambda pair: [*ITEMS, TOTAL].index(pair[1])))


def _clean_ids(ids: pd.Series) -> pd.Series:
    text = ids.astype(str).str.strip().str.removeprefix('sub-')
    return text.str.replace(r'^(\d+)\.0$', r'\1', regex=True)


def _drop_anonymous(raw: pd.DataFrame, who: str, notes: list[str]) -> pd.DataFrame:
    nobody = raw[who].str.lower().isin(MISSING)
    if nobody.any():
        notes.append(f'{int(nobody.sum())} row(s) without a participant are left out')
    return raw[~nobody]


def _match_participants(
    raw: pd.DataFrame, who: str, participants: Sequence[str], notes: list[str]
) -> pd.DataFrame:
    """Keep the rows of known participants, under the labels that the images have."""
    labels = [label.removeprefix('sub-') for label in participants]
    short: dict[str, list[str]] = {}
    for label in labels:
        short.setdefault(label.lstrip('0'), []).append(label)
    names: dict[str, str] = {}
    for name in raw[who].unique():
        fitting = short.get(name.lstrip('0'), [])
        if name in labels:
            names[name] = name
        elif len(fitting) == 1 and fitting[0] not in set(raw[who]):
            names[name] = fitting[0]
    padded = [f'{a} as {b}' for a, b in names.items() if a != b]
    if padded:
        notes.append(f'participants matched without leading zeros: {_shorten(padded)}')
    unknown = [name for name in raw[who].unique() if name not in names]
    if unknown:
        notes.append(
            f'{len(unknown)} participant(s) of the table have no images and are left out: '
            f'{_shorten(unknown)}'
        )
    without = [label for label in labels if label not in names.values()]
    if without:
        notes.append(f'{len(without)} participant(s) have no row of scores: {_shorten(without)}')
    kept = raw[raw[who].isin(list(names))]
    return kept.assign(**{who: kept[who].map(names)})


def _pick_session(
    raw: pd.DataFrame, who: str, session: str | None, notes: list[str]
) -> pd.DataFrame:
    """Keep one examination a participant."""
    column = _find_column(raw, SESSION_COLUMNS)
    if column is None:
        if session is not None:
            notes.append(f'the table names no sessions; its rows are taken for {session}')
        return raw
    names = raw[column].str.removeprefix('ses-')
    if session is not None:
        kept = raw[names == session.removeprefix('ses-')]
        lost = [w for w in raw[who].unique() if w not in set(kept[who])]
        if lost:
            notes.append(f'no row of session {session} for {_shorten(lost)}; left out')
        return kept

    def rank(name: str) -> tuple[bool, Any]:
        return not BASELINE.search(name), _natural(name)

    first = names.groupby(raw[who]).transform(lambda group: min(group, key=rank))
    used = sorted(first.unique(), key=_natural)
    if len(names.unique()) > 1:
        notes.append(f'of several sessions the first or baseline one is used: {_shorten(used)}')
    return raw[names == first]


def _merge_duplicates(
    raw: pd.DataFrame, who: str, columns: list[str], notes: list[str]
) -> pd.DataFrame:
    """Make one row a participant: what rows agree on is kept, what they contradict is dropped."""
    twice = raw[who].duplicated(keep=False)
    if not twice.any():
        return raw
    merged = raw.drop_duplicates(who).copy()
    same = []
    for name, rows in raw[twice].groupby(who, sort=False):
        contradicted = []
        for column in columns:
            said = {v for v in rows[column] if v.lower() not in MISSING}
            value = next(iter(said)) if len(said) == 1 else ''
            merged.loc[merged[who] == name, column] = value
            if len(said) > 1:
                contradicted.append(f'{column} ({" or ".join(sorted(said))})')
        if contradicted:
            notes.append(
                f'{len(rows)} rows of {name} contradict each other; missing: '
                f'{_shorten(contradicted)}'
            )
        else:
            same.append(str(name))
    if same:
        notes.append(f'rows that are there twice and agree are counted once: {_shorten(same)}')
    return merged


def _read_values(cells: pd.Series, item: str, notes: list[str]) -> tuple[pd.Series, pd.Series]:
    """Return numbers, and which were untestable; tell of what is dropped."""
    text = cells.str.strip().str.lower()
    highest = _highest(item)
    codes = UNTESTABLE if item != TOTAL else UNTESTABLE - {'9'}
    untestable = text.isin(codes)
    is_number = text.map(lambda cell: bool(_NUMBER.fullmatch(cell)))
    numbers = pd.Series(np.nan, index=cells.index)
    readable = is_number & ~untestable
    numbers[readable] = text[readable].str.replace(',', '.').astype(float)
    outside = readable & ~numbers.between(0, highest)
    nonsense = ~is_number & ~untestable & ~text.isin(MISSING)
    numbers[outside] = np.nan
    allowed = 'UN' in _scale()[item].get('Levels', {})
    for wrong, reason in (
        (untestable, 'untestable' if allowed else 'a code of untestable, which it cannot be'),
        (outside, f'outside 0 to {highest}'),
        (nonsense, 'not a whole number'),
    ):
        if wrong.any():
            listed = _shorten(f'{who} ({cells[who]})' for who in cells.index[wrong])
            notes.append(f'{item}: {reason}, taken as missing: {listed}')
    return numbers, untestable & allowed


def _check_total(
    table: pd.DataFrame, untestable: pd.DataFrame, given: pd.Series, notes: list[str]
) -> pd.Series:
    """Return the totals, and tell where table and items disagree."""
    summed = table.sum(axis=1).where((table.notna() | untestable).all(axis=1))
    differs = summed.notna() & given.notna() & (summed != given)
    if differs.any():
        listed = _shorten(
            f'{who} ({given[who]:.0f}, items {summed[who]:.0f})' for who in table.index[differs]
        )
        notes.append(f'the total is not the sum of the items; the sum is used: {listed}')
    low = summed.isna() & (table.sum(axis=1) > given)
    if low.any():
        notes.append(
            'the total is less than the items that are there; taken as missing: '
            f'{_shorten(table.index[low])}'
        )
    return summed.fillna(given.mask(low)).rename(TOTAL)


def _highest(item: str) -> int:
    if item == TOTAL:
        return MAXIMUM_TOTAL
    return max(int(level) for level in _scale()[item]['Levels'] if level.isdigit())


@functools.cache
def _scale() -> Mapping[str, Mapping[str, Any]]:
    scale: dict[str, dict[str, Any]] = json.loads(load('nihss.json').read_text(encoding='utf-8'))
    return scale


@functools.cache
def _loinc() -> Mapping[str, str]:
    return {_scale()[item]['TermURL'].rpartition('/')[2]: item for item in (*ITEMS, TOTAL)}


def _shorten(names: Iterable[object]) -> str:
    listed = [str(name) for name in names]
    more = len(listed) - LISTED
    return ', '.join(listed[:LISTED]) + (f' and {more} more' if more > 0 else '')


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r'\d+|\D+', text)
    return [(0, int(p), p) if p.isdigit() else (1, 0, p) for p in parts]
