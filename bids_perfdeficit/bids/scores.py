"""Scores of a cohort: NIHSS items and total, and any other column that is asked for by name.

Puts together what `tables`, `visits` and `nihss` know: one reader, one examination per
participant, one meaning per column. Must not know maps or models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from bids_perfdeficit.bids.files import write_json, write_tsv
from bids_perfdeficit.bids.nihss import (
    ITEMS,
    TOTAL,
    assign_items,
    check_total,
    parse_column,
    read_item,
    read_scale,
)
from bids_perfdeficit.bids.tables import (
    MISSING,
    Table,
    find_column,
    missing_labels,
    plain_name,
    read_numbers,
    read_table,
    read_workbooks,
    shorten,
    to_number,
)
from bids_perfdeficit.bids.visits import SESSION_COLUMNS, choose_rows, session_key, visit_hours
from bids_perfdeficit.errors import InputError

#: The modified Rankin scale: 0 (no symptoms) to 6 (dead).
MRS = 'mrs'
MRS_SCALE: tuple[float, ...] = (0, 1, 2, 3, 4, 5, 6)
_MRS_NAME = re.compile(r'mrs|rankin')
#: Scales on which a higher score is better.
_BETTER = re.compile(r'barthel|moca|mmse|glasgow|gcs|fuglmeyer|eq5d|aspects|independence')
_ITEM_NAME = re.compile(r'(?:nihss)?[\s_-]*(\d{1,2}[abc]?|total|sum)', re.I | re.A)
#: Workbooks with one patient each, as ISLES'24 is released.
_WORKBOOKS = '*/ses-*/*.xlsx'


@dataclass(frozen=True)
class Scores:
    """Scores of a cohort.

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
    others : DataFrame
        Same index. Columns that were asked for and are not of the NIHSS, float64.
    sessions : DataFrame
        Same index. The examination behind the scores, as the table names it: ``nihss`` and a
        column for each of `others`; ``''`` where the table names none.
    scales : mapping of str to tuple of float
        All values that one of `others` can take, where that is known.
    """

    table: pd.DataFrame
    total: pd.Series
    notes: tuple[str, ...]
    source: Path
    others: pd.DataFrame = field(default_factory=pd.DataFrame)
    sessions: pd.DataFrame = field(default_factory=pd.DataFrame)
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def column(self, name: str) -> pd.Series:
        """Return the scores of one name: an item, ``nihss_total`` or one of `others`."""
        if name == TOTAL:
            return self.total
        return self.table[name] if name in self.table else self.others[name]

    def session_of(self, name: str) -> pd.Series:
        """Return the examination behind the scores of one name, by participant."""
        key = 'nihss' if name in (*ITEMS, TOTAL) else name
        if key in self.sessions:
            return self.sessions[key]
        return pd.Series('', index=self.table.index, dtype=object)


@dataclass(frozen=True)
class _Part:
    """What one table holds of what is looked for."""

    items: dict[str, str]  #: NIHSS item or total by column
    named: dict[str, str]  #: column by name that was asked for


def read_scores(
    source: str | os.PathLike[str],
    *,
    participants: Sequence[str] | None = None,
    session: str | None = None,
    map_sessions: Mapping[str, str] | None = None,
    items: Sequence[str] = (),
    required: bool = True,
) -> Scores:
    """Read scores.

    Parameters
    ----------
    source : path
        A BIDS dataset (``phenotype/nihss.tsv``, ``participants.tsv``, or the workbooks of
        ISLES'24 in ``phenotype/sub-*/ses-*/``), a folder of such workbooks, or a table.
    participants : sequence of str, optional
        Who is wanted, with or without ``sub-``. Others are dropped and reported. Names match
        without leading zeros, case and separators where that is unambiguous.
    session : str, optional
        Which examination, where the table has several.
    map_sessions : mapping of str to str, optional
        Session of each participant's map, which is preferred; otherwise the earliest examination
        in time is taken (see `visits`).
    items : sequence of str
        Names that are looked for: items and total of the NIHSS, ``mrs``, or any column. Those
        that are not of the NIHSS are returned in `Scores.others` under the name given here.
    required : bool
        False returns names that no table has as missing.

    Returns
    -------
    Scores
        Rows in the order of the table.

    Raises
    ------
    InputError
        When there is no table, no column of participants or of scores, no participant is left, or
        it is not certain which row or column is meant.
    """
    tables, is_nihss = _find_tables(Path(source), items)
    notes: list[str] = []
    main = tables[0]
    wanted = list(dict.fromkeys(items))
    scores: Scores | None = None
    for table in tables:
        marked = not (is_nihss and table is main)
        part = _find_columns(table, wanted, marked, notes, with_items=table is main)
        if table is not main and not part.named:
            continue
        wanted = [name for name in wanted if name not in part.named]
        found = _read_part(
            table, part, participants, session, map_sessions, notes,
            main=table is main, wanted=[nihss_name(name) or name for name in items],
        )  # fmt: skip
        scores = found if scores is None else _join(scores, found)
    assert scores is not None
    unknown = [name for name in wanted if nihss_name(name) is None]
    if not required:
        scores.others[unknown] = np.nan
    elif unknown:
        there = [c for t in tables for c in t.cells.columns if c != t.who]
        raise InputError(
            f'{unknown[0]!r} is neither an item of the NIHSS nor a column of the table '
            f'(columns: {shorten(there)})',
            fix='name one that is there, 1a to 11, nihss_total or mrs',
            path=main.path,
        )
    return Scores(
        scores.table, scores.total, tuple(dict.fromkeys(notes)), main.path, scores.others,
        scores.sessions, scores.scales,
    )  # fmt: skip


def nihss_name(name: str) -> str | None:
    """Return the item or total that a name means by its number; None for other names.

    Examples
    --------
    >>> nihss_name('5a'), nihss_name('NIHSS total'), nihss_name('mrs')
    ('nihss_5a', 'nihss_total', None)
    """
    found = _ITEM_NAME.fullmatch(name.strip())
    if not found:
        return TOTAL if plain_name(name) in ('nihss', 'nihsstotal') else None
    code = found[1].lower()
    if code in ('total', 'sum'):
        return TOTAL
    item = f'nihss_{code.lstrip("0")}'
    return item if item in ITEMS else None


def usual_direction(name: str) -> bool | None:
    """Return whether a higher score is better on a well-known scale; None for other names."""
    if nihss_name(name) or _MRS_NAME.search(plain_name(name)):
        return False
    return True if _BETTER.search(re.sub(r'[\W_]', '', name.lower())) else None


def check_sides(scores: Scores, asymmetry: Mapping[str, float]) -> str | None:
    """Return a warning when left and right limbs seem to be swapped over the cohort.

    The left limbs depend on the right hemisphere: where the left hemisphere is later, the right
    limbs are weaker.

    Parameters
    ----------
    scores : Scores
        Of the cohort.
    asymmetry : mapping of str to float
        Mean of the map in the left minus the right hemisphere, by participant; higher is worse.

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
        f'the left limbs are weaker where the LEFT hemisphere is more affected (rho {rho:.2f}, '
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
    write_json({k: v for k, v in read_scale().items() if k in keep}, path.with_suffix('.json'))
    return write_tsv(frame, path)


def clean_ids(ids: pd.Series) -> pd.Series:
    """Return labels without ``sub-``, and without the ``.0`` that spreadsheets add to numbers."""
    text = ids.astype(str).str.strip().str.replace(r'^sub-', '', regex=True, case=False)
    return text.str.replace(r'^([0-9]+)\.0$', r'\1', regex=True)


def match_participants(
    raw: pd.DataFrame, who: str, participants: Sequence[str], notes: list[str]
) -> pd.DataFrame:
    """Keep the rows of known participants, under the labels that the images have.

    Parameters
    ----------
    raw : DataFrame
        Rows of text; `who` holds cleaned names (see `clean_ids`).
    who : str
        Column of participants.
    participants : sequence of str
        Labels, with or without ``sub-``.
    notes : list of str
        Who was matched without leading zeros, is unknown, or has no row is added.
    """
    labels = [label.removeprefix('sub-') for label in participants]
    short: dict[str, list[str]] = {}
    for label in labels:
        short.setdefault(_bare_id(label), []).append(label)
    there = list(dict.fromkeys(raw[who]))
    rivals: dict[str, list[str]] = {}
    for name in there:
        rivals.setdefault(_bare_id(name), []).append(name)
    names: dict[str, str] = {}
    known = set(labels)
    for name in there:
        fitting = short.get(_bare_id(name), [])
        if name in known:
            names[name] = name
        elif len(fitting) == 1 and len(rivals[_bare_id(name)]) == 1:
            names[name] = fitting[0]
    padded = [f'{a} as {b}' for a, b in names.items() if a != b]
    if padded:
        notes.append(
            f'participants matched without leading zeros, case or separators: {shorten(padded)}'
        )
    unknown = [name for name in there if name not in names]
    if unknown:
        notes.append(
            f'{len(unknown)} participant(s) of the table have no images and are left out: '
            f'{shorten(unknown)}'
        )
    without = [label for label in labels if label not in set(names.values())]
    if without:
        notes.append(f'{len(without)} participant(s) have no row of scores: {shorten(without)}')
    kept = raw[raw[who].isin(list(names))]
    return kept.assign(**{who: kept[who].map(names)})


def prepare_rows(
    table: Table, participants: Sequence[str] | None, notes: list[str]
) -> pd.DataFrame:
    """Return the rows of the participants that are wanted, with cleaned names.

    Parameters
    ----------
    table : Table
    participants : sequence of str, optional
    notes : list of str
        Those of the table, and who was left out, are added.

    Raises
    ------
    InputError
        When no column names participants.
    """
    notes += table.notes
    raw, who = table.cells, table.who
    if who is None:
        raise InputError(
            f'no column identifies participants ({shorten(raw.columns)})',
            fix='name one participant_id',
            path=table.path,
        )
    raw = raw.assign(**{who: clean_ids(raw[who])})
    entities = raw[who].str.extract(r'^([A-Za-z0-9+]+)_ses-([A-Za-z0-9+]+)')
    if entities[0].notna().any() and find_column(raw, SESSION_COLUMNS) is None:
        raw[who] = entities[0].fillna(raw[who])
        raw['session_id'] = entities[1].fillna('')
    unnamed = raw[who].str.lower().isin(MISSING)
    if unnamed.any():
        notes.append(f'{int(unnamed.sum())} row(s) without a participant are left out')
    raw = raw[~unnamed]
    return raw if participants is None else match_participants(raw, who, participants, notes)


def _bare_id(name: str) -> str:
    """Return a name as it is compared when it is not there literally."""
    text = re.sub(r'[^a-z0-9]', '', name.lower())
    return re.sub(r'(?<![0-9])0+(?=[0-9])', '', text.removeprefix('sub')) or text


def iterate_tables(source: Path) -> Iterator[Table]:
    """Read the tables of a file or dataset one after the other.

    Parameters
    ----------
    source : Path
        A table, or a dataset: ``participants.tsv``, ``phenotype/*.tsv``, then workbooks.

    Raises
    ------
    InputError
        When the next table cannot be read.
    """
    if not source.is_dir():
        if source.exists():
            yield read_table(source)
        return
    for path in (source / 'participants.tsv', *sorted(source.glob('phenotype/*.tsv'))):
        if path.exists():
            yield read_table(path)
    if books := _find_workbooks(source):
        yield read_workbooks(books)


def table_files(source: Path) -> list[Path]:
    """Return every file that scores and covariates of a table or dataset may be read from.

    Parameters
    ----------
    source : Path
        As for `read_scores`.
    """
    tables = [source]
    if source.is_dir():
        tables = [source / 'participants.tsv', *sorted(source.glob('phenotype/*.tsv'))]
    files = [path for table in tables for path in (table, table.with_suffix('.json'))]
    return [*(path for path in files if path.is_file()), *_find_workbooks(source)]


def _find_workbooks(source: Path) -> list[Path]:
    return sorted(source.glob(f'phenotype/sub-{_WORKBOOKS}')) or sorted(
        source.glob(f'sub-{_WORKBOOKS}')
    )


def _find_tables(source: Path, items: Sequence[str]) -> tuple[list[Table], bool]:
    """Return the tables of a source, the main one first, and whether that is about the NIHSS."""
    if not source.is_dir():
        table = read_table(source)
        return [table], source.name != 'participants.tsv'
    main, people = source / 'phenotype' / 'nihss.tsv', source / 'participants.tsv'
    books = _find_workbooks(source)
    others = [p for p in sorted(source.glob('phenotype/*.tsv')) if p != main]
    paths = [p for p in (main, people) if p.is_file()]
    if main.is_file() or (people.is_file() and not books):
        tables = [read_table(paths[0])]
        # other tables are read only for a name that the main one does not have
        if any(nihss_name(n) is None and _column_of(tables[0], n) is None for n in items):
            tables += [read_table(p) for p in (*paths[1:], *others)]
        return tables, main.is_file()
    if books:
        return [read_workbooks(books), *([read_table(people)] if people.is_file() else [])], True
    raise InputError(
        'has neither phenotype/nihss.tsv nor participants.tsv'
        if source.exists()
        else 'no such file',
        fix='add one, or name a table with --scores',
        path=source,
    )


def _column_of(table: Table, name: str) -> str | None:
    """Return the column of a table that a name means.

    Raises
    ------
    InputError
        When several columns may be meant.
    """
    columns = [c for c in table.cells.columns if c != table.who]
    if name in columns:
        return name
    alike = [c for c in columns if _plain(c) == _plain(name)]
    if not alike and _plain(name) in ('mrs', 'rankin', 'modifiedrankin', 'modifiedrankinscale'):
        alike = [c for c in columns if _MRS_NAME.search(plain_name(c))]
        alike = [c for c in alike if not _DATE.search(plain_name(c))]
    if len(alike) > 1:
        raise InputError(
            f'{name!r} may be any of the columns {shorten(alike)}',
            fix='give the name of the column to --items',
            path=table.path,
        )
    return alike[0] if alike else None


_DATE = re.compile(r'date|datum|by$|complete$')


def _plain(name: str) -> str:
    return re.sub(r'[\W_]+', '', name.lower())


def _find_columns(
    table: Table, wanted: Sequence[str], marked: bool, notes: list[str], *, with_items: bool
) -> _Part:
    cells = table.cells.drop(columns=[c for c in (table.who,) if c is not None])
    named: dict[str, str] = {}
    for name in wanted:
        column = None if nihss_name(name) else _column_of(table, name)
        parsed = parse_column(column, marked=marked) if column else None
        if column and (parsed is None or parsed[0] not in (*ITEMS, TOTAL)):
            named[name] = column
    items = {}
    if with_items:
        rest = cells.drop(columns=list(dict.fromkeys(named.values())))
        items = assign_items(rest, marked=marked, notes=notes, path=table.path)
    return _Part(items, named)


def _read_part(
    table: Table,
    part: _Part,
    participants: Sequence[str] | None,
    session: str | None,
    map_sessions: Mapping[str, str] | None,
    notes: list[str],
    *,
    main: bool,
    wanted: Sequence[str],
) -> Scores:
    if main and not part.items and not part.named:
        prepare_rows(table, participants, [])
        raise InputError(
            f'no column holds an NIHSS item or total ({shorten(table.cells.columns)})'
            + _likely_layout(table, participants),
            fix=f'name the columns {ITEMS[0]}, {ITEMS[1]} and so on, or a column with --items',
            path=table.path,
        )
    own: list[str] = []
    raw = prepare_rows(table, participants, own)
    notes += own if main else [n for n in own if 'no row of scores' not in n]
    who = table.who
    assert who is not None
    if raw.empty:
        raise InputError(
            'scores of none of the participants are left'
            + (f' ({"; ".join(notes)})' if notes else ''),
            fix='check that participant_id names the participants as the images do',
            path=table.path,
        )
    if session is not None:
        part = _of_session_columns(part, raw, session)
    index = pd.Index(list(dict.fromkeys(raw[who])), name='participant')
    scores = pd.DataFrame(np.nan, index=index, columns=list(ITEMS))
    untestable = pd.DataFrame(False, index=index, columns=list(ITEMS))
    given = pd.Series(np.nan, index=index, name=TOTAL)
    sessions = pd.DataFrame('', index=index, columns=['nihss', *part.named], dtype=object)
    others = pd.DataFrame(index=index, columns=list(part.named), dtype=float)
    scales: dict[str, tuple[float, ...]] = {}
    if part.items:
        summary = next((c for c, item in part.items.items() if item == TOTAL), None)
        rows, seen = choose_rows(
            raw, who, list(part.items), notes=notes, summary=summary,
            path=table.path, session=session, map_sessions=map_sessions,
        )  # fmt: skip
        rows = rows.set_index(who)
        sessions.loc[seen.index, 'nihss'] = seen
        for column, item in part.items.items():
            values, could_not = read_item(
                rows[column], item, notes, path=table.path, levels=table.levels(column),
                needed=not wanted or item in wanted,
            )  # fmt: skip
            if item == TOTAL:
                given.loc[values.index] = values
            else:
                scores.loc[values.index, item] = values
                untestable.loc[could_not.index, item] = could_not
    for name, column in part.named.items():
        rows, seen = choose_rows(
            raw, who, [column], notes=notes,
            path=table.path, session=session, map_sessions=map_sessions,
        )  # fmt: skip
        sessions.loc[seen.index, name] = seen
        values, scales[name] = _read_other(rows.set_index(who)[column], name, table, notes)
        others.loc[values.index, name] = values
    if part.items and main:
        absent = [item for item in ITEMS if item not in part.items.values()]
        if absent:
            notes.append(f'the table has no column for {shorten(absent)}')
    total = check_total(scores, untestable, given, notes)
    return Scores(scores, total, (), table.path, others, sessions, scales)


def _likely_layout(table: Table, participants: Sequence[str] | None) -> str:
    """Return the likely reason why a table has no columns of scores."""
    columns = [str(c) for c in table.cells.columns if c != table.who]
    labels = {_bare_id(label) for label in participants or ()}
    if len({_bare_id(c) for c in columns} & labels) > 1:
        return '; participants are its columns: transpose it'
    items = [c for c in columns if any(parse_column(v) for v in table.cells[c].unique()[:20])]
    if items:
        return f'; column {items[0]!r} names items: give one column per item'
    return ''


def _of_session_columns(part: _Part, raw: pd.DataFrame, session: str) -> _Part:
    """Refuse columns of another visit where a wide table carries the visit in their names."""
    if find_column(raw, SESSION_COLUMNS) is not None:
        return part
    wanted = visit_hours(session)
    for column in part.items:
        hours = visit_hours(re.sub('nihss', ' ', column, flags=re.I))
        words = session_key(column)
        if hours is not None and hours != wanted and not words.endswith(session_key(session)):
            raise InputError(
                f'column {column!r} is of another examination than session {session}',
                fix='give a table with a session_id column and one row per examination',
            )
    return part


def _read_other(
    cells: pd.Series, name: str, table: Table, notes: list[str]
) -> tuple[pd.Series, tuple[float, ...]]:
    """Return the scores of a column that is not of the NIHSS, and all values of its scale."""
    column = str(cells.name)
    levels = table.levels(column)
    absent = missing_labels(levels)
    numbers = [to_number(code) for code in levels if code not in absent]
    scale = tuple(sorted(n for n in numbers if np.isfinite(n)))
    if not scale and _MRS_NAME.search(plain_name(column)):
        scale = MRS_SCALE
    try:
        found = read_numbers(cells, name=column, levels=levels)
    except ValueError as error:
        raise InputError(
            f'column {column!r}: {error}', fix='write numbers without thousands', path=table.path
        ) from error
    notes += [f'{name}: {note}' for note in found.notes]
    values, wrong = found.values, found.wrong
    if wrong.any():
        listed = shorten(f'{who} ({cells[who]})' for who in cells.index[wrong])
        notes.append(f'{name}: not a number, taken as missing: {listed}')
        if wrong.sum() > values.notna().sum():
            raise InputError(
                f'column {column!r} holds words rather than numbers: {listed}',
                fix='write numbers, or describe the levels in the JSON file beside the table',
                path=table.path,
            )
    if scale:
        outside = values.notna() & ~values.between(min(scale), max(scale))
        if outside.any():
            listed = shorten(f'{who} ({cells[who]})' for who in cells.index[outside])
            notes.append(
                f'{name}: outside {min(scale):g} to {max(scale):g}, taken as missing: {listed}'
            )
            if outside.sum() >= 3 and outside.sum() > 0.1 * values.notna().sum():
                raise InputError(
                    f'column {column!r}: {int(outside.sum())} values are outside '
                    f'{min(scale):g} to {max(scale):g}: {listed}',
                    fix='check that the column holds this score',
                    path=table.path,
                )
            values = values.mask(outside)
    return values, scale


def _join(first: Scores, second: Scores) -> Scores:
    """Add the columns of another table."""
    index = first.table.index
    return Scores(
        first.table,
        first.total,
        (),
        first.source,
        first.others.join(second.others.reindex(index)),
        first.sessions.join(second.sessions.drop(columns='nihss').reindex(index, fill_value='')),
        {**first.scales, **second.scales},
    )
