"""The NIH Stroke Scale: which column holds which item, and what a cell of it means.

Facts about the scale (items, ranges, which can be untestable, LOINC codes) come from
``data/nihss.json``. Item 5a is the LEFT arm, 5b the right, 6a the LEFT leg, 6b the right; some
sites swap the letters, so that a side word in a column's name wins over its letter. Must not know
how tables are read, nor maps or models.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_perfdeficit.bids.tables import (
    MISSING,
    count_cells,
    shorten,
    to_code,
    to_number,
)
from bids_perfdeficit.bids.visits import visit_hours
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

#: Words for "could not be tested", in lower case.
UNTESTABLE = frozenset({'un', 'ut', 'nt', 'x', 'untestable', 'not testable', 'unable to test'})
#: The same as numbers: no item reaches 9.
UNTESTABLE_CODES = frozenset({9.0, 99.0})
#: Codes of "not recorded".
MISSING_CODES = frozenset(
    {8.0, 88.0, 888.0, 777.0, 999.0, 9999.0, -8.0, -9.0, -77.0, -88.0, -99.0, -999.0, -9999.0}
)

#: Share of an item's scores, and their number, from which wrong values mean that the column holds
#: another item, or writes scores in a way that is not understood.
_WRONG_SHARE, _WRONG_NUMBER = 0.1, 3

_WHOLE = re.compile(r'[+-]?[0-9]+(?:[.,]0*)?')
_LOINC = re.compile(r'(?<![0-9])([0-9]{5})[-_. ]?([0-9])(?![0-9])')
_MARK = re.compile(r'nihss|nih[\s_.-]*stroke[\s_.-]*scale|nihstroke|(?<![a-z])nih(?![a-z])', re.I)

#: Words of column names, and the item (or the limb) that they name.
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
    + r'|[a-z]+|[0-9]+|[^\W_]+'
)


def parse_column(name: str, *, marked: bool = False) -> tuple[str, str] | None:
    """Return the item that a column holds.

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
        The item (of `ITEMS`, or ``nihss_total``) and a remark, empty unless words of the name
        contradict its number or letter (the words win). None for what is not understood wholly: a
        word that has no meaning here (``treatment_arm``, ``nihss_1a_24h``) makes it another thing.
    """
    if found := _LOINC.search(name):
        item = _loinc().get(f'{found[1]}-{found[2]}')
        if item:
            return item, ''
    text = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name).strip()
    text = re.sub(r'^[X@][._]?(?=[0-9])', '', text)  # R and SPSS: no name begins with a digit
    bare = _MARK.sub(' ', text)
    if marked and bare == text:
        return None
    words = _WORD.findall(bare.lower())
    code, letter, topics, sides, total = '', '', set(), set(), False
    for word in words:
        if word[0] in '0123456789':
            if code or len(word) > 2 or not 1 <= int(word) <= 11:
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
    if total:
        return None
    remark = ''
    if topic and code and not topic.startswith(code):
        if letter:
            return None
        code, remark = '', 'the words win over the number'
    number, side = code or topic.rstrip('abc'), next(iter(sides), '')
    suffix = letter or topic[len(number) :]
    if side and number in ('5', '6'):
        if letter and letter != side:
            remark = 'the side word wins over the letter'
        suffix = side
    elif side:
        return None
    item = f'nihss_{number}{suffix}'
    return (item, remark) if item in ITEMS else None


def assign_items(
    cells: pd.DataFrame, *, marked: bool, notes: list[str], path: Path
) -> dict[str, str]:
    """Return the item (or total) by column; one column per item.

    Parameters
    ----------
    cells : DataFrame
        Text, without the column of participants.
    marked : bool
        As for `parse_column`.
    notes : list of str
        What is doubtful is added.
    path : Path
        The table.

    Raises
    ------
    InputError
        When the columns are numbered in another way than the scale, or two columns hold an item
        with different values.
    """
    translated = _translate_numbers(cells, marked, notes, path)
    found: dict[str, str] = {}
    unclear = []
    for column in cells.columns:
        if column in translated:
            parsed: tuple[str, str] | None = (translated[column], '')
        else:
            parsed = parse_column(column, marked=marked)
        if parsed is None:
            _check_copy(cells, column, found, path)
            if _MARK.search(column):
                unclear.append(column)
            continue
        item, remark = parsed
        if remark:
            notes.append(f'column {column!r} is read as {item}: {remark}')
        rival = next((c for c, i in found.items() if i == item), None)
        if rival is None:
            found[column] = item
            continue
        kept = _settle(cells, rival, column, item, notes, path)
        if kept == column:
            del found[rival]
            found[column] = item
    if unclear:
        notes.append(f'columns that are not understood and left out: {shorten(unclear)}')
    return dict(sorted(found.items(), key=lambda pair: [*ITEMS, TOTAL].index(pair[1])))


def _settle(
    cells: pd.DataFrame, first: str, second: str, item: str, notes: list[str], path: Path
) -> str:
    """Return which of two columns of an item is used."""
    if cells[first].equals(cells[second]):
        notes.append(f'columns {first!r} and {second!r} both hold {item} and agree')
        return first
    marks = [bool(_MARK.search(c) or _LOINC.search(c)) for c in (first, second)]
    if marks[0] != marks[1]:
        which = 'first' if marks[0] else 'second'
        notes.append(f'columns {first!r} and {second!r} both hold {item}; the {which} is used')
        return first if marks[0] else second
    at_baseline = [visit_hours(re.sub('nihss', ' ', c, flags=re.I)) == 0 for c in (first, second)]
    if at_baseline[0] == at_baseline[1]:
        raise InputError(
            f'columns {first!r} and {second!r} both hold {item}, and they differ',
            fix='rename or remove one',
            path=path,
        )
    which = 'first' if at_baseline[0] else 'second'
    notes.append(
        f'columns {first!r} and {second!r} both hold {item}; the {which} is used, at baseline'
    )
    return first if at_baseline[0] else second


def _check_copy(cells: pd.DataFrame, column: str, found: Mapping[str, str], path: Path) -> None:
    """Refuse a column that pandas or R renamed because its name was there before."""
    base = re.fullmatch(r'(.+)\.[0-9]{1,2}', column)
    if base and base[1] in found and not cells[base[1]].equals(cells[column]):
        raise InputError(
            f'columns {base[1]!r} and {column!r} hold the same item twice, and they differ',
            fix='rename or remove one',
            path=path,
        )


def _translate_numbers(
    cells: pd.DataFrame, marked: bool, notes: list[str], path: Path
) -> dict[str, str]:
    """Return items by column where columns are numbered without the letters of the scale.

    The scale has 1a to 1c, 5a to 6b, and nothing above 11: a 1, 5, 6, 12 or more without a letter
    means that items are numbered in another way, where 7 is not ataxia.
    """
    groups: dict[str, dict[int, str]] = {}
    lettered: set[str] = set()
    for column in cells.columns:
        bare = _bare_number(column, marked)
        if bare is not None:
            groups.setdefault(bare[0], {}).setdefault(bare[1], column)
        elif parsed := parse_column(column, marked=marked):
            lettered.add(parsed[0])
    translated: dict[str, str] = {}
    for numbered in groups.values():
        numbers = sorted(numbered)
        strange = [
            n for n in numbers
            if (n in (0, 1, 5, 6) and not {f'nihss_{n}a', f'nihss_{n}b'} <= lettered)
            or (n > 11 and 'nihss_1a' not in lettered)
        ]  # fmt: skip
        usable = [n for n in numbers if n in (2, 3, 4, 7, 8, 9, 10, 11)]
        if not strange or not usable:
            continue
        own = dict(zip((numbered[n] for n in numbers), ITEMS, strict=False))
        consecutive = len(numbers) == len(ITEMS) == numbers[-1] - numbers[0] + 1
        wrong = [c for c, item in own.items() if _count_outside(cells[c], item)]
        if consecutive and numbers[0] <= 1 and not wrong and not lettered - {TOTAL}:
            translated |= own
            notes.append(
                f'columns {numbered[numbers[0]]!r} to {numbered[numbers[-1]]!r} are numbered '
                'through and were read in the order of the form: 1a, 1b, 1c, 2 to 4, 5a to 6b, '
                '7 to 11'
            )
            continue
        raise InputError(
            f'columns are numbered in another way than the NIHSS ({shorten(numbered.values())}'
            f': {", ".join(str(n) for n in strange)} without a letter)'
            + (f'; values of {shorten(wrong)} do not fit its order' if consecutive else ''),
            fix='name the columns nihss_1a, nihss_1b, nihss_1c, nihss_2 ... nihss_5a (left arm), '
            'nihss_5b, nihss_6a (left leg), nihss_6b ... nihss_11',
            path=path,
        )
    return translated


def _bare_number(column: str, marked: bool) -> tuple[str, int] | None:
    """Return stem and number of a column whose name says nothing else."""
    text = re.sub(r'^[X@][._]?(?=[0-9])', '', column.strip())
    bare = _MARK.sub(' ', text)
    if (marked and bare == text) or _LOINC.search(column):
        return None
    words = _WORD.findall(bare.lower())
    numbers = [w for w in words if w[0] in '0123456789' and len(w) < 4]
    if len(numbers) != 1 or any(w not in _FILLERS for w in words if w not in numbers):
        return None
    return re.sub('[0-9]+', '#', text.lower()), int(numbers[0])


def read_item(
    cells: pd.Series,
    item: str,
    notes: list[str],
    *,
    path: Path,
    levels: Mapping[str, str] | None = None,
    needed: bool = True,
) -> tuple[pd.Series, pd.Series]:
    """Read the scores of one item, or the total.

    Parameters
    ----------
    cells : Series
        Text; the index names participants.
    item : str
        Of `ITEMS`, or `TOTAL`.
    notes : list of str
        What is taken for missing is added, once for each reason.
    path : Path
        The table.
    levels : mapping of str to str, optional
        Labels by code, from a sidecar.
    needed : bool
        False takes text for missing however much of it there is.

    Returns
    -------
    scores : Series
        NaN where missing.
    untestable : Series
        Where the examiner could not test the item; such a score counts nothing in the total.

    Raises
    ------
    InputError
        When so many values are outside the range of the item that the column holds another one,
        or so many are text that a way of writing scores is not understood.
    """
    highest = highest_score(item)
    text, numbers = _numbers(cells, item, levels)
    codes = UNTESTABLE_CODES if item != TOTAL else UNTESTABLE_CODES - {9.0}
    untestable = text.isin(UNTESTABLE) | text.str.match(r'(un|ut|nt)\b(?!\w)') | (
        numbers.isin(codes) & (numbers > highest)
    )  # fmt: skip
    absent = text.isin(MISSING) | (numbers.isin(MISSING_CODES) & ~numbers.between(0, highest))
    readable = numbers.notna() & ~untestable & ~absent
    outside = readable & ~numbers.between(0, highest)
    nonsense = numbers.isna() & ~untestable & ~absent
    if _many(outside, readable):
        raise InputError(
            f'column {cells.name!r}: {int(outside.sum())} of {int(readable.sum())} values are '
            f'outside 0 to {highest} of {item} ({count_cells(cells[outside])})',
            fix='check how the columns are numbered, and name them nihss_1a, nihss_1b and so on',
            path=path,
        )
    if needed and _many(nonsense, ~absent):
        raise InputError(
            f'column {cells.name!r}: {int(nonsense.sum())} of {int((~absent).sum())} scores are '
            f'not whole numbers ({count_cells(cells[nonsense])})',
            fix=f'write {item} as 0 to {highest}, or leave the column out with --items',
            path=path,
        )
    allowed = 'UN' in read_scale()[item].get('Levels', {})
    for wrong, reason in (
        (untestable, 'untestable' if allowed else 'a code of untestable, which it cannot be'),
        (outside, f'outside 0 to {highest}'),
        (nonsense, 'not a whole number'),
    ):
        if wrong.any():
            listed = shorten(f'{who} ({cells[who]})' for who in cells.index[wrong])
            notes.append(f'{item}: {reason}, taken as missing: {listed}')
    stated = absent & (text != 'n/a')
    if stated.any():
        notes.append(f'{item}: taken as missing: {count_cells(cells[stated])}')
    return numbers.where(readable & ~outside), untestable & allowed


def _numbers(
    cells: pd.Series, item: str, levels: Mapping[str, str] | None = None
) -> tuple[pd.Series, pd.Series]:
    """Return the cells in lower case, and the whole numbers that they hold."""
    own = {k: v for k, v in read_scale()[item].get('Levels', {}).items() if k.isdecimal()}
    labels = {label.lower(): code for code, label in {**own, **(levels or {})}.items()}
    text = cells.astype(str).str.strip().str.lower()
    codes = text.map(lambda cell: to_code(cell, labels))
    numbers = codes.map(lambda code: to_number(code) if _WHOLE.fullmatch(code) else np.nan)
    return text, numbers.astype(float)


def _many(wrong: pd.Series, known: pd.Series) -> bool:
    """Return whether so many cells are wrong that to drop them would be to choose patients."""
    return int(wrong.sum()) >= _WRONG_NUMBER and wrong.sum() > _WRONG_SHARE * known.sum()


def _count_outside(cells: pd.Series, item: str) -> int:
    """Return how many values an item cannot have, codes of missing left aside."""
    _, numbers = _numbers(cells, item)
    codes = UNTESTABLE_CODES | MISSING_CODES
    known = numbers[numbers.notna() & ~numbers.isin(codes)]
    return int((~known.between(0, highest_score(item))).sum())


def check_total(
    table: pd.DataFrame, untestable: pd.DataFrame, given: pd.Series, notes: list[str]
) -> pd.Series:
    """Return the totals, and report where table and items disagree.

    Parameters
    ----------
    table, untestable : DataFrame
        Scores of the items, and where they could not be tested.
    given : Series
        Totals of the table.
    notes : list of str
        Contradictions are added.
    """
    summed = table.sum(axis=1).where((table.notna() | untestable).all(axis=1))
    both = summed.notna() & given.notna()
    differs = both & (summed != given)
    if differs.any():
        listed = shorten(
            f'{who} ({given[who]:.0f}, items {summed[who]:.0f})' for who in table.index[differs]
        )
        share = f'{int(differs.sum())} of {int(both.sum())} participants'
        notes.append(
            f'the total is not the sum of the items in {share}; the sum is used: {listed}'
        )
    low = summed.isna() & (table.sum(axis=1) > given)
    if low.any():
        notes.append(
            'the total is less than the items that are there; taken as missing: '
            f'{shorten(table.index[low])}'
        )
    return summed.fillna(given.mask(low)).rename(TOTAL)


def highest_score(item: str) -> int:
    """Return the highest score of an item, or of the total."""
    if item == TOTAL:
        return MAXIMUM_TOTAL
    return max(int(level) for level in read_scale()[item]['Levels'] if level.isdecimal())


@functools.cache
def read_scale() -> Mapping[str, Mapping[str, Any]]:
    """Return `data/nihss.json`: the description of each item."""
    scale: dict[str, dict[str, Any]] = json.loads(load('nihss.json').read_text(encoding='utf-8'))
    return scale


@functools.cache
def _loinc() -> Mapping[str, str]:
    return {read_scale()[item]['TermURL'].rpartition('/')[2]: item for item in (*ITEMS, TOTAL)}
