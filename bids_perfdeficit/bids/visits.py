"""Choose the examination that belongs to a map, where a table has several rows of a participant.

The session that was asked for goes first, then the session of the map, then time: words of visits,
dates, hours, numbered visits. The alphabet is not an order of time. Rows that nothing
distinguishes are refused: keeping only what they agree on would keep the unchanged patients
(informative missingness). Must not know what the scores mean.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bids_perfdeficit.bids.tables import MISSING, natural, plain_name, shorten, to_number
from bids_perfdeficit.errors import InputError

#: Names of columns of examinations, without case, digits and separators.
SESSION_COLUMNS = (
    'sessionid', 'session', 'ses', 'visit', 'visitid', 'visitname', 'timepoint', 'redcapeventname',
    'eventname', 'event', 'exam', 'examination', 'assessment', 'wave',
)  # fmt: skip
#: The same, where a number only gives the order in which rows were entered.
REPEAT_COLUMNS = ('redcaprepeatinstance', 'repeatinstance', 'instance', 'repeat')
_DATE_COLUMN = re.compile(
    r'date|datum|datetime|acqtime|examtime|visittime|assessmenttime|timefromonset|hoursfrom'
    r'|daysfrom|hoursafter|daysafter|hourssince|dayssince|^studyday$|^days?$|^hours?$'
)
_NOT_OF_EXAMINATION = re.compile(r'birth|dob|geburt|death|died|consent')

#: Hours of the units of time that names of visits hold.
_UNITS: dict[str, float] = {
    'h': 1, 'hr': 1, 'hrs': 1, 'hour': 1, 'hours': 1, 'std': 1,
    'd': 24, 'day': 24, 'days': 24, 'tag': 24, 'tage': 24,
    'w': 168, 'wk': 168, 'week': 168, 'weeks': 168, 'woche': 168, 'wochen': 168,
    'm': 730, 'mo': 730, 'mon': 730, 'month': 730, 'months': 730, 'monat': 730, 'monate': 730,
    'y': 8766, 'yr': 8766, 'year': 8766, 'years': 8766, 'jahr': 8766, 'jahre': 8766,
}  # fmt: skip
_UNIT = '|'.join(sorted(_UNITS, key=len, reverse=True))
_AMOUNT = re.compile(rf'([0-9]+) ?({_UNIT})\b')
_UNIT_FIRST = re.compile(rf'\b({_UNIT}) ?([0-9]+)')
#: Words of visits, the first that fits counts, and hours after arrival. Their order is certain,
#: their distance is not: only the earliest is looked for.
_WORDS: tuple[tuple[re.Pattern[str], float], ...] = (
    (re.compile(r'pre ?(stroke|morbid|event|admission)|before (the )?stroke'), np.inf),
    (re.compile(r'follow|\bfu\b|\bfup\b|outcome|\blate\b|chronic|nachsorge'), 2000.0),
    (re.compile(r'discharge|\bdc\b|entlass|\bexit\b'), 240.0),
    (re.compile(r'sub ?acute|post ?acute'), 168.0),
    (re.compile(r'\bpost'), 12.0),
    (re.compile(r'base|\bbl\b|admi|\badm\b|arriv|\bacute\b|hyperacute|screen|initial|^pre'
                r'|presentation|emergency|\ber\b|\bed\b|aufnahme|\bonset\b|^enrol|\bentry\b'),
     0.0),
)  # fmt: skip
_NUMBERED = re.compile(r'([a-z ]*?) ?([0-9]+)')
_DATE = re.compile(
    r'([0-9]{1,4})[-./]([0-9]{1,2})[-./]([0-9]{1,4})'
    r'(?:[T ]+([0-9]{1,2}):([0-9]{2})(?::[0-9]{2})?)?(?:\.[0-9]+)?(?:Z|[+-][0-9:]+)?'
)


def session_key(name: str) -> str:
    """Return a session's name as it is compared: no ``ses-``, case, separators, leading zeros."""
    text = re.sub(r'_arm_[0-9]+$', '', name.strip().lower()).removeprefix('ses-')
    text = re.sub(r'[\W_]+', '', text)
    return re.sub(r'(?<![0-9])0+(?=[0-9])', '', text)


def visit_hours(name: str) -> float | None:
    """Return the hours after arrival that a visit's name gives; None when it gives none.

    Examples
    --------
    >>> visit_hours('baseline_arm_1'), visit_hours('day1'), visit_hours('24h')
    (0.0, 24.0, 24.0)
    >>> visit_hours('stroke_unit_arm_1') is None
    True
    """
    text = re.sub(r'_arm_[0-9]+$', '', name.strip().lower()).removeprefix('ses-')
    text = ' '.join(re.sub(r'[\W_]+', ' ', text).split())
    if found := _AMOUNT.search(text):
        return _hours(found[1], found[2])
    if found := _UNIT_FIRST.search(text):
        return _hours(found[2], found[1])
    return next((hours for word, hours in _WORDS if word.search(text)), None)


def order_sessions(names: Sequence[str]) -> dict[str, float] | None:
    """Return a time by session, or None when the names do not show which was first.

    Only the earliest is certain: a name that says nothing is later than a baseline.
    """
    distinct = list(dict.fromkeys(names))
    times = {name: visit_hours(name) for name in distinct}
    known = [t for t in times.values() if t is not None]
    if known and (len(known) == len(times) or min(known) == 0):
        return {name: np.inf if t is None else t for name, t in times.items()}
    dates = _dates(distinct)
    if len(dates) == 1 and all(t is not None for t in dates[0].values()):
        return {name: float(t) for name, t in dates[0].items() if t is not None}
    numbered = {name: _NUMBERED.fullmatch(_words(name)) for name in distinct}
    stems = {found[1] for found in numbered.values() if found}
    if len(stems) == 1 and all(numbered.values()):
        ordered = sorted({f[2].lstrip('0') for f in numbered.values() if f}, key=natural)
        return {n: float(ordered.index(f[2].lstrip('0'))) for n, f in numbered.items() if f}
    return None


def choose_rows(
    rows: pd.DataFrame,
    who: str,
    columns: Sequence[str],
    *,
    path: Path,
    notes: list[str],
    session: str | None = None,
    map_sessions: Mapping[str, str] | None = None,
    what: str = 'score',
    summary: str | None = None,
) -> tuple[pd.DataFrame, pd.Series]:
    """Keep one examination per participant.

    Parameters
    ----------
    rows : DataFrame
        Text; the index holds row numbers.
    who : str
        Column of participants.
    columns : sequence of str
        Those that hold what is looked for. Rows without any of it are left out first.
    path : Path
        The table, for messages.
    notes : list of str
        What was chosen is added.
    session : str, optional
        The one that was asked for.
    map_sessions : mapping of str to str, optional
        Session of each participant's map.
    what : str
        What the columns hold, for messages.
    summary : str, optional
        One of `columns` that is computed from the others: forms fill in a 0 where nothing was
        examined, so that it makes a row an examination only where no row has anything else.

    Returns
    -------
    rows : DataFrame
        One per participant; who has no row with a value keeps one without.
    examinations : Series
        Name (or date) of each one's examination by participant, ``''`` where the table has none.

    Raises
    ------
    InputError
        When a participant has several examinations that differ and nothing distinguishes them.
    """
    keys = [c for c in rows.columns if c != who and plain_name(c) in SESSION_COLUMNS]
    dates = [
        c for c in rows.columns
        if c not in (who, *columns, *keys) and _DATE_COLUMN.search(plain_name(c))
        and not _NOT_OF_EXAMINATION.search(plain_name(c))
    ]  # fmt: skip
    dates.sort(key=lambda c: not re.search('nihss|exam|visit|assess', plain_name(c)))
    repeats = [c for c in rows.columns if plain_name(c) in REPEAT_COLUMNS]
    cells = ~rows[list(columns)].apply(lambda c: c.str.lower().isin(_BLANK))
    filled = cells.any(axis=1)
    if summary is not None and len(columns) > 1:
        primary = cells.drop(columns=summary).any(axis=1)
        filled = primary | (filled & ~rows[who].isin(set(rows[who][primary])))
    people = list(rows[who].unique())
    kept = rows[filled]
    if session is not None:
        kept = _of_session(kept, who, keys, session, path, notes)
    elif keys and map_sessions:
        kept = _of_maps(kept, who, keys, map_sessions, notes)
    chosen: list[int] = []
    choices: dict[str, list[str]] = {}
    positions = kept.groupby(who, sort=False).indices
    orders = {c: _column_times(kept[c]) for c in (*keys, *dates, *repeats)}
    unclear: list[str] = []
    merged: dict[int, dict[str, str]] = {}
    same: list[str] = []
    for name in people:
        at = np.asarray(positions.get(name, []), int)
        if not len(at):
            continue
        many = len(at) > 1 and _differ(kept, at, [*keys, *dates])
        by = ''
        for column, times in orders.items():
            first = _earliest(times, at)
            if len(first) < len(at):
                at, by = first, by or column
        if len(at) > 1:
            agreed = _agreed(kept, at, columns)
            if agreed is None:
                lines = shorten(kept.index[at])
                unclear.append(f'{name} (rows {lines})')
                continue
            merged[int(at[0])] = agreed
            if not many:
                same.append(str(name))
        chosen.append(int(at[0]))
        if many or by:
            column = by or next(iter(keys), '')
            cell = kept.iloc[at[0]][column] if column else ''
            choices.setdefault(cell.removeprefix('ses-'), []).append(str(name))
    if unclear:
        _refuse(unclear, kept, keys, path, what)
    if same:
        notes.append(f'rows that are there twice and agree are counted once: {shorten(same)}')
    _note_choices(choices, notes, what)
    result = kept.iloc[chosen].copy()
    for position, values in merged.items():
        row = result.index[chosen.index(position)]
        for column, value in values.items():
            result.loc[row, column] = value
    names = result[keys].agg(lambda r: next((c for c in r if c), ''), axis=1) if keys else (
        result[dates[0]] if dates else pd.Series('', index=result.index)
    )  # fmt: skip
    examinations = pd.Series(
        [str(n).removeprefix('ses-') for n in names], index=list(result[who]), dtype=object
    )
    # those without any value stay, so that they are reported as such
    blank = rows[~filled & ~rows[who].isin(set(rows[who][filled]))].drop_duplicates(who)
    return pd.concat([result, blank]), examinations.reindex(
        [*result[who], *blank[who]], fill_value=''
    )


#: Spellings of "nothing here", among them the numeric codes: a row with only -9 is not an
#: examination.
_BLANK = MISSING | {'-9', '-99', '-999', '999', '-9999', '9999', '-9.0', '-99.0', '-999.0'}


def _of_session(
    rows: pd.DataFrame, who: str, keys: list[str], session: str, path: Path, notes: list[str]
) -> pd.DataFrame:
    if not keys:
        notes.append(f'the table names no sessions; its rows are taken for {session}')
        return rows
    wanted = session.strip().removeprefix('ses-')
    exact = rows[keys].apply(lambda c: c.str.removeprefix('ses-') == wanted).any(axis=1)
    if not exact.any():
        exact = rows[keys].apply(lambda c: c.map(session_key) == session_key(session)).any(axis=1)
    if not exact.any():
        there = [n for c in keys for n in dict.fromkeys(rows[c]) if n]
        raise InputError(
            f'no row of session {session}'
            + (f' (the table has {shorten(there)})' if there else ''),
            fix='name one that is there with --session-label',
            path=path,
        )
    kept = rows[exact]
    lost = [w for w in rows[who].unique() if w not in set(kept[who])]
    if lost:
        notes.append(f'no row of session {session} for {shorten(lost)}; left out')
    return kept


def _of_maps(
    rows: pd.DataFrame, who: str, keys: list[str], sessions: Mapping[str, str], notes: list[str]
) -> pd.DataFrame:
    """Keep rows of the session that each map has, where the table has sessions of that name."""
    own = rows[who].map(lambda name: session_key(sessions.get(name, '')))
    names = rows[keys].apply(lambda c: c.map(session_key))
    there = set(names.to_numpy().ravel())
    known = own.isin(there - {''})
    if not known.any():
        return rows
    fits = names.eq(own, axis=0).any(axis=1)
    kept = rows[~known | fits]
    lost = [w for w in rows[who].unique() if w not in set(kept[who])]
    notes.append('the examination of the session of each map is used')
    if lost:
        notes.append(f'no row of the session of the map for {shorten(lost)}; left out')
    return kept


def _column_times(cells: pd.Series) -> list[np.ndarray]:
    """Return times by row, NaN where unknown; several where a date can be read in two ways."""
    names = [c for c in dict.fromkeys(cells) if c.lower() not in MISSING]
    by_number = {name: to_number(name) for name in names}
    if names and all(np.isfinite(number) for number in by_number.values()):
        return [cells.map(by_number).to_numpy(float)]
    dates = [d for d in _dates(names) if any(t is not None for t in d.values())]
    if dates:
        return [cells.map(d).to_numpy(float) for d in dates]
    order = order_sessions(names) if names else None
    if order is None:
        times = {name: visit_hours(name) for name in names}
        order = {name: np.nan if t is None else t for name, t in times.items()}
    return [cells.map(order).to_numpy(float)]


def _earliest(readings: list[np.ndarray], at: np.ndarray) -> np.ndarray:
    """Return the rows that are certainly the earliest; all when that is not certain."""
    found: np.ndarray | None = None
    for times in readings:
        own = times[at]
        known = own[~np.isnan(own)]
        if not len(known) or (len(known) < len(own) and known.min() != 0):
            return at
        first = at[own == known.min()]
        if found is not None and not np.array_equal(first, found):
            return at
        found = first
    return at if found is None else found


def _differ(rows: pd.DataFrame, at: np.ndarray, columns: list[str]) -> bool:
    return any(rows[c].iloc[at].nunique() > 1 for c in columns)


def _agreed(rows: pd.DataFrame, at: np.ndarray, columns: Sequence[str]) -> dict[str, str] | None:
    """Return the values of rows that do not contradict each other, otherwise None."""
    values = {}
    for column in columns:
        cells = [c for c in rows[column].iloc[at] if c.lower() not in MISSING]
        numbers = pd.to_numeric(pd.Series(cells, dtype=object), errors='coerce')
        distinct = numbers if numbers.notna().all() else pd.Series(cells, dtype=object)
        if distinct.nunique() > 1:
            return None
        values[column] = cells[0] if cells else ''
    return values


def _refuse(
    unclear: list[str], rows: pd.DataFrame, keys: list[str], path: Path, what: str
) -> None:
    there = [n for c in keys for n in dict.fromkeys(rows[c]) if n]
    raise InputError(
        f'{len(unclear)} participant(s) have several examinations with different {what}s, and '
        + (
            f'the sessions ({shorten(there)}) do not show which was first'
            if there
            else 'no column distinguishes them'
        )
        + f': {shorten(unclear)}',
        fix='choose one with --session-label'
        if there
        else 'add a session_id column and choose with --session-label, or keep one row per '
        'participant',
        path=path,
    )


def _note_choices(choices: dict[str, list[str]], notes: list[str], what: str) -> None:
    if not choices:
        return
    usual = max(choices, key=lambda c: len(choices[c]))
    listed = sorted(choices, key=lambda c: (-len(choices[c]), natural(c)))
    text = shorten(
        f'{cell or "unnamed"} ({len(choices[cell])}'
        + (f': {shorten(choices[cell])}' if cell != usual and len(choices[cell]) < 4 else '')
        + ')'
        for cell in listed
    )
    notes.append(f'of several sessions the baseline or earliest with a {what} is used: {text}')


def _hours(amount: str, unit: str) -> float:
    return float(amount[:9]) * _UNITS[unit]


def _words(name: str) -> str:
    text = re.sub(r'_arm_[0-9]+$', '', name.strip().lower()).removeprefix('ses-')
    return ' '.join(re.sub(r'[\W_]+', ' ', text).split())


def _dates(names: Sequence[str]) -> list[dict[str, float | None]]:
    """Return the readings of dates (day first, month first) that fit all names."""
    found = {name: _DATE.fullmatch(name.strip()) for name in names}
    if not any(found.values()):
        return []
    readings = []
    for day_first in (True, False):
        reading: dict[str, float | None] = {}
        fits = True
        for name, match in found.items():
            reading[name] = None
            if match is None:
                continue
            year, month, day = match[1], match[2], match[3]
            if len(year) < 4:
                year, month, day = (day, month, year) if day_first else (day, year, month)
            if len(year) == 2:
                year = f'20{year}'
            try:
                time = datetime.datetime(
                    int(year), int(month), int(day), int(match[4] or 0), int(match[5] or 0)
                )
            except ValueError:
                fits = False
                break
            reading[name] = (time - datetime.datetime(1900, 1, 1)).total_seconds() / 3600
        if fits and reading not in readings:
            readings.append(reading)
    return readings
