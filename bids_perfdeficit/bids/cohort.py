"""Who is in a group analysis: participants with a map, their scores and covariates.

Finds maps by name among derivatives, matches them with a table of scores, and keeps account of
everyone who falls out on the way and why. Must not know what a map shows, nor any model: it reads
no voxels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from bids_perfdeficit.bids.nihss import (
    BASELINE,
    ID_COLUMNS,
    ITEMS,
    MISSING,
    Scores,
    _clean_ids,
    _find_column,
    _highest,
    _match_participants,
    _natural,
    _read_table,
    _shorten,
    read_scores,
)
from bids_perfdeficit.bids.outputs import output_path
from bids_perfdeficit.errors import InputError

#: The covariate that is measured on the maps and not looked up.
TOTAL_VOLUME = 'total_deficit_volume'
#: Most values that a covariate of words may have.
_MOST_WORDS = 5
#: Items that ask the same of the two sides of the body.
_MIRRORS = {
    'nihss_5a': 'nihss_5b', 'nihss_5b': 'nihss_5a', 'nihss_6a': 'nihss_6b', 'nihss_6b': 'nihss_6a',
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One participant's map.

    Parameters
    ----------
    participant, session : str
        Labels; no session is ''.
    map, mask : Path
        Perfusion (or asymmetry) and brain mask on the template, one grid.
    """

    participant: str
    session: str
    map: Path
    mask: Path


@dataclass(frozen=True)
class Cohort:
    """A group of participants.

    Parameters
    ----------
    entries : tuple of Entry
        Those who are in.
    scores : DataFrame
        One row an entry (participant labels), one column an item; NaN where missing.
    covariates : DataFrame
        Same rows, numbers; without `TOTAL_VOLUME`.
    with_volume : bool
        Whether `TOTAL_VOLUME` is a covariate as well: the last one.
    dropped : mapping of str to str
        Participant to the reason why they are not in.
    notes : tuple of str
        What a user should know, a sentence each.
    source : Path, optional
        The table of scores.
    """

    entries: tuple[Entry, ...]
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    covariates: pd.DataFrame = field(default_factory=pd.DataFrame)
    with_volume: bool = False
    dropped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: Path | None = None

    @property
    def participants(self) -> tuple[str, ...]:
        """Labels, in the order of everything else."""
        return tuple(entry.participant for entry in self.entries)

    @property
    def covariate_names(self) -> tuple[str, ...]:
        """Names of all covariates in the order that models have them."""
        return (*self.covariates.columns, *((TOTAL_VOLUME,) if self.with_volume else ()))

    def without(self, reasons: Mapping[str, str]) -> Cohort:
        """Return the cohort without some participants, each with the reason."""
        kept = tuple(e for e in self.entries if e.participant not in reasons)
        labels = [e.participant for e in kept]
        return dataclasses.replace(
            self,
            entries=kept,
            scores=self.scores.loc[labels] if len(self.scores) else self.scores,
            covariates=self.covariates.loc[labels] if len(self.covariates) else self.covariates,
            dropped={**self.dropped, **reasons},
        )


def find_cohort(
    roots: Sequence[Path],
    *,
    space: str,
    key: str = 'std_perfusion',
    participants: Sequence[str] = (),
    session: str | None = None,
) -> Cohort:
    """Find the maps that an earlier participant level left.

    Parameters
    ----------
    roots : sequence of Path
        Folders of derivatives; the first that has a participant's map wins.
    space : str
        Template.
    key : str
        ``std_perfusion``, ``std_asymmetry`` or ``std_hypoperfused`` of `data/io_spec.json`.
    participants : sequence of str
        Who is wanted, with or without ``sub-``; all by default.
    session : str, optional
        Which session; by default the one whose name says baseline, otherwise the first.

    Raises
    ------
    InputError
        When there is no map at all.
    """
    folders: dict[str, list[Path]] = {}
    for root in roots:
        for folder in sorted(root.glob('sub-*')):
            if folder.is_dir():
                folders.setdefault(folder.name.removeprefix('sub-'), []).append(root)
    wanted = {label.removeprefix('sub-') for label in participants}
    dropped = {label: 'there are no derivatives' for label in wanted if label not in folders}
    entries, several = [], []
    for label in sorted(folders, key=_natural):
        if wanted and label not in wanted:
            continue
        found = next(filter(None, (_sessions(r, label, key, space) for r in folders[label])), [])
        if session is not None:
            found = [e for e in found if e.session in ('', session.removeprefix('ses-'))]
        if not found:
            dropped[label] = f'there is no {_what(key)} in {space}' + (
                f' of session {session}' if session else ''
            )
            continue
        chosen = min(found, key=lambda e: (not BASELINE.search(e.session), _natural(e.session)))
        several += [f'{label} ({chosen.session})'] if len(found) > 1 else []
        if chosen.mask.is_file():
            entries.append(chosen)
        else:
            dropped[label] = f'{chosen.mask.name} is missing'
    if not entries:
        raise InputError(
            f'there is no {_what(key)} in {space}' + (f' ({_tell(dropped)})' if dropped else ''),
            fix='run the participant level first, or name its results with --derivatives',
            path=roots[0],
        )
    notes = (
        [f'of several sessions the baseline or first one is used: {_shorten(several)}']
        if several
        else []
    )
    return Cohort(tuple(entries), dropped=dropped, notes=tuple(notes))


def add_scores(
    cohort: Cohort,
    source: Path,
    *,
    items: Sequence[str] = (),
    session: str | None = None,
    required: bool = True,
) -> tuple[Cohort, Scores]:
    """Match a cohort with a table of scores; participants without a score fall out.

    Parameters
    ----------
    cohort : Cohort
        With entries.
    source : Path
        As for `read_scores`.
    items : sequence of str
        Which, such as ``5a`` or ``nihss_5a``; by default all that have a score. Those that were
        named stay without a score, so that they are told to be skipped.
    session : str, optional
        Which examination.
    required : bool
        False keeps participants and items without a score.

    Returns
    -------
    Cohort
    Scores
        The table as it was read, for `check_sides`.

    Raises
    ------
    InputError
        When the table or an item's name is of no use, or nobody has a score of any item.
    """
    names = [_item(name) for name in items]
    scores = read_scores(source, participants=cohort.participants, session=session)
    table = scores.table[list(dict.fromkeys(names)) or list(ITEMS)]
    empty = [item for item in table if required and not table[item].notna().any()]
    if table.empty or len(empty) == len(table.columns):
        raise InputError(
            f'no participant with a map has a score of {_shorten(empty)}',
            fix='check the columns of the table, or name other --items',
            path=scores.source,
        )
    if not names:  # the notes of the table tell of them
        table = table.drop(columns=empty)
    table = table.reindex(list(cohort.participants))
    known = set(scores.table.index)
    dropped = {
        label: 'there is no score of any item'
        if label in known
        else f'there is no row in {scores.source.name}'
        for label in table.index[table.isna().all(axis=1)]
        if required
    }
    cohort = dataclasses.replace(
        cohort,
        scores=table,
        notes=(*cohort.notes, *(n for n in scores.notes if _concerns(n, names))),
        source=scores.source,
    )
    return cohort.without(dropped), scores


def add_covariates(
    cohort: Cohort,
    names: Sequence[str],
    sources: Sequence[Path],
    *,
    expected: Sequence[str] = (),
) -> Cohort:
    """Look covariates up.

    A column of numbers is taken as it is, what is no number in it is missing. A column of up to
    five different words gives one 0/1 column for each but the first.

    Parameters
    ----------
    cohort : Cohort
        With scores.
    names : sequence of str
        Columns, or `TOTAL_VOLUME`.
    sources : sequence of Path
        Tables to look in, in this order.
    expected : sequence of str
        The columns of an earlier cohort, which words are matched with.

    Raises
    ------
    InputError
        When a column is in none of the tables, or holds nothing to adjust for.
    """
    labels = list(cohort.participants)
    tables = [
        (path, _by_participant(path, labels)) for path in dict.fromkeys(sources) if path.is_file()
    ]
    columns: dict[str, pd.Series] = {}
    notes = list(cohort.notes)
    for name in dict.fromkeys(n for n in names if n != TOTAL_VOLUME):
        path, table = next(((p, t) for p, t in tables if name in t), (None, None))
        if path is None or table is None:
            there = [str(c) for _, t in tables for c in t.columns]
            raise InputError(
                f'covariate {name!r} is in no table'
                + (f' (columns: {_shorten(there)})' if there else ''),
                fix=f'name one that is there, or {TOTAL_VOLUME}',
                path=sources[0] if sources else None,
            )
        columns |= _numbers(name, table[name], path, notes, expected)
    return dataclasses.replace(
        cohort,
        covariates=pd.DataFrame(columns, index=pd.Index(labels)),
        with_volume=TOTAL_VOLUME in names,
        notes=tuple(notes),
    )


def item_levels(item: str) -> int:
    """Return how many values an item can take."""
    return _highest(item) + 1


def item_mirror(item: str) -> str | None:
    """Return the item that asks the same of the other side."""
    return _MIRRORS.get(item)


def contrast_label(item: str) -> str:
    """Return an item as a BIDS label: letters and digits only."""
    return re.sub(r'[^A-Za-z0-9]', '', item)


def _sessions(root: Path, label: str, key: str, space: str) -> list[Entry]:
    folder = root / f'sub-{label}'
    sessions = [None, *(p.name.removeprefix('ses-') for p in sorted(folder.glob('ses-*')))]
    entries = []
    for session in sessions:
        paths = [
            output_path(root, k, participant=label, session=session, space=space)
            for k in (key, 'std_brain_mask')
        ]
        if paths[0].is_file():
            entries.append(Entry(label, session or '', *paths))
    return entries


def _what(key: str) -> str:
    return {
        'std_perfusion': 'perfusion map',
        'std_asymmetry': 'asymmetry map',
        'std_hypoperfused': 'map of hypoperfusion',
    }[key]


def _tell(dropped: Mapping[str, str]) -> str:
    return _shorten(f'sub-{label}: {reason}' for label, reason in sorted(dropped.items()))


def _item(name: str) -> str:
    item = 'nihss_' + name.lower().removeprefix('nihss').lstrip('_- ')
    if item not in ITEMS:
        raise InputError(
            f'{name!r} is no item of the NIHSS',
            fix=f'choose from {", ".join(i.removeprefix("nihss_") for i in ITEMS)}',
            path='--items',
        )
    return item


def _concerns(note: str, names: Sequence[str]) -> bool:
    """Tell whether a note is about an item that was asked for, or about none."""
    told = set(re.findall(r'nihss_\d+[abc]?', note))
    return not names or not told or bool(told & set(names))


def _by_participant(path: Path, labels: list[str]) -> pd.DataFrame:
    """Read a table as text, one row for each label; the first of several rows counts."""
    raw = _read_table(path)
    who = _find_column(raw, ID_COLUMNS)
    if who is None:
        return pd.DataFrame()
    raw = raw.assign(**{who: _clean_ids(raw[who])})
    raw = _match_participants(raw, who, labels, [])
    return raw.drop_duplicates(who).set_index(who).reindex(labels).fillna('')


def _numbers(
    name: str, cells: pd.Series, path: Path, notes: list[str], expected: Sequence[str]
) -> dict[str, pd.Series]:
    text = cells.str.strip()
    missing = text.str.lower().isin(MISSING)
    numbers = pd.to_numeric(text.str.replace(',', '.').where(~missing), errors='coerce')
    finite = numbers.notna() & np.isfinite(numbers)
    wrong = ~missing & ~finite
    words = sorted(set(text[~missing]))
    columns: dict[str, pd.Series]
    if expected and name not in expected:
        known = [e.removeprefix(f'{name}_') for e in expected if e.startswith(f'{name}_')]
        return {f'{name}_{w}': (text == w).astype(float).where(~missing) for w in known}
    if expected or finite.sum() > wrong.sum():
        columns = {name: numbers.where(finite)}
        if wrong.any():
            listed = _shorten(f'{who} ({text[who]})' for who in text.index[wrong])
            notes.append(f'covariate {name}: not a number, taken as missing: {listed}')
    elif len(words) <= _MOST_WORDS:
        columns = {
            f'{name}_{word}': (text == word).astype(float).where(~missing) for word in words[1:]
        }
    else:
        raise InputError(
            f'covariate {name!r} is neither a number nor one of up to {_MOST_WORDS} words: '
            f'{_shorten(words)}',
            fix='write numbers, or choose another covariate',
            path=path,
        )
    if not expected and not any(column.nunique() > 1 for column in columns.values()):
        raise InputError(
            f'covariate {name!r} has the same value for all participants, or none',
            fix='leave it out',
            path=path,
        )
    if missing.any():
        notes.append(
            f'covariate {name}: missing for {int(missing.sum())}, taken as the mean: '
            f'{_shorten(text.index[missing])}'
        )
    return columns
