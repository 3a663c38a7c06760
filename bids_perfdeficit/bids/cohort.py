"""Who is in a group analysis: participants with a map, their scores and covariates.

Finds maps by name among derivatives, matches them with a table of scores, and keeps account of
everyone who falls out on the way and why. Must not know what a map shows, nor any model: it reads
no voxels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from bids_perfdeficit.bids.filters import matches
from bids_perfdeficit.bids.listing import has_plain_name, list_images
from bids_perfdeficit.bids.nihss import ITEMS, TOTAL, highest_score
from bids_perfdeficit.bids.outputs import output_path
from bids_perfdeficit.bids.scales import Measure, fixed_measure, make_measure
from bids_perfdeficit.bids.scores import (
    Scores,
    iterate_tables,
    nihss_name,
    prepare_rows,
    read_scores,
    usual_direction,
)
from bids_perfdeficit.bids.tables import (
    CODES,
    MISSING,
    Table,
    count_cells,
    natural,
    read_numbers,
    shorten,
)
from bids_perfdeficit.bids.visits import choose_rows, order_sessions, session_key
from bids_perfdeficit.errors import InputError

#: The covariate that is measured on the maps and not looked up.
TOTAL_VOLUME = 'total_deficit_volume'
#: Entities of the lesion maps that users give.
LESION_LABEL = 'lesion'
LESION_SUFFIXES = ('mask', 'probseg')
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
    map : Path
        On the template.
    mask : Path, optional
        Brain mask on the grid of the map; maps that users give have none.
    """

    participant: str
    session: str
    map: Path
    mask: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The map, and its mask where there is one."""
        return (self.map,) if self.mask is None else (self.map, self.mask)


@dataclass(frozen=True)
class Cohort:
    """A group of participants.

    Parameters
    ----------
    entries : tuple of Entry
        Those who are in.
    scores : DataFrame
        One row an entry (participant labels), one column an item; as they were read, NaN where
        missing. `levels` is what models take.
    measures : tuple of Measure
        The levels of each column of `scores`.
    score_sessions : DataFrame
        Same shape as `scores`: the examination that each column is from, '' where the table names
        none.
    covariates : DataFrame
        Same rows, numbers; without `TOTAL_VOLUME`.
    with_volume : bool
        Whether `TOTAL_VOLUME` is also a covariate; it is then the last one.
    groups : tuple of str
        The group, e.g. the site, of each entry; none when folds need not keep any whole.
    dropped : mapping of str to str
        Participant to the reason why they are not in.
    notes : tuple of str
        What a user should know, a sentence each.
    source : Path, optional
        The table of scores.
    """

    entries: tuple[Entry, ...]
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    measures: tuple[Measure, ...] = ()
    score_sessions: pd.DataFrame = field(default_factory=pd.DataFrame)
    covariates: pd.DataFrame = field(default_factory=pd.DataFrame)
    with_volume: bool = False
    groups: tuple[str, ...] = ()
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

    @property
    def levels(self) -> pd.DataFrame:
        """`scores` as levels 0, 1, ... of each measure, higher is worse; NaN where missing."""
        known = {measure.name: measure for measure in self.measures}
        return pd.DataFrame(
            {
                name: known[name].level(self.scores[name]) if name in known else self.scores[name]
                for name in self.scores
            },
            index=self.scores.index,
        )

    def table(self) -> pd.DataFrame:
        """Return who is in, with every score and covariate as it was used.

        Returns
        -------
        DataFrame
            A row an entry: ``participant_id``, ``session_id`` of the map, ``score_session_id`` of
            the scores ('' where there is none), the scores as they were read, ``<name>_level``
            where models take another number, and the covariates (NaN where missing).
        """
        labels = list(self.participants)
        frame = pd.DataFrame(
            {
                'participant_id': [f'sub-{label}' for label in labels],
                'session_id': [entry.session for entry in self.entries],
                'score_session_id': self._examinations(),
            },
            index=labels,
        )
        levels = self.levels
        for name in self.scores:
            frame[name] = self.scores[name].reindex(labels)
        for name in self.scores:
            if not levels[name].equals(self.scores[name]):
                frame[f'{name}_level'] = levels[name].reindex(labels)
        for name in self.covariates:
            column = f'covariate_{name}' if name in frame else str(name)
            frame[column] = self.covariates[name].reindex(labels)
        return frame.reset_index(drop=True)

    def _examinations(self) -> list[str]:
        """Return the session of the scores of each entry; all of them where they differ."""
        if self.score_sessions.empty:
            return [''] * len(self.entries)
        rows = self.score_sessions.reindex(list(self.participants), fill_value='')
        return ['; '.join(dict.fromkeys(n for n in row if n)) for row in rows.to_numpy(str)]

    def without(self, reasons: Mapping[str, str]) -> Cohort:
        """Return the cohort without some participants, each with the reason."""
        kept = tuple(e for e in self.entries if e.participant not in reasons)
        labels = [e.participant for e in kept]
        return dataclasses.replace(
            self,
            entries=kept,
            scores=self.scores.loc[labels] if len(self.scores) else self.scores,
            score_sessions=self.score_sessions.loc[labels]
            if len(self.score_sessions)
            else self.score_sessions,
            covariates=self.covariates.loc[labels] if len(self.covariates) else self.covariates,
            groups=tuple(
                group
                for entry, group in zip(self.entries, self.groups, strict=bool(self.groups))
                if entry.participant not in reasons
            ),
            dropped={**self.dropped, **reasons},
        )


def find_cohort(
    roots: Sequence[Path],
    *,
    space: str,
    key: str = 'std_perfusion',
    given: Mapping[str, Any] | None = None,
    participants: Sequence[str] = (),
    session: str | None = None,
) -> Cohort:
    """Find the maps that an earlier participant level left, or that users give.

    Parameters
    ----------
    roots : sequence of Path
        Folders of derivatives; the first that has a participant's map wins.
    space : str
        Template.
    key : str
        ``std_perfusion``, ``std_asymmetry`` or ``std_hypoperfused`` of `data/io_spec.json`.
    given : mapping, optional
        Entities of the maps that users give, from `map_entities`; then `key` is not used.
    participants : sequence of str
        Who is wanted, with or without ``sub-``; all by default.
    session : str, optional
        Which session; by default the baseline or the earliest by name (see `visits`). A
        participant whose sessions have no order in time is left out.

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
    what = f'{_what(key)} in {space}' if given is None else _name_given(given)
    wanted = {label.removeprefix('sub-') for label in participants}
    dropped = {label: 'there are no derivatives' for label in wanted if label not in folders}
    entries, several = [], []
    for label in sorted(folders, key=natural):
        if wanted and label not in wanted:
            continue
        trouble: list[str] = []
        found = next(
            filter(
                None,
                (
                    list_entries(r, label, key, space)
                    if given is None
                    else _given_maps(r, label, given, trouble)
                    for r in folders[label]
                ),
            ),
            [],
        )
        if session is not None:
            wanted_key = session_key(session)
            exact = [e for e in found if e.session == session.removeprefix('ses-')]
            found = exact or [
                e for e in found if not e.session or session_key(e.session) == wanted_key
            ]
        if not found:
            dropped[label] = '; '.join(
                trouble or [f'there is no {what}' + (f' of session {session}' if session else '')]
            )
            continue
        sessions = list(dict.fromkeys(e.session for e in found))
        order = order_sessions(sessions) if len(sessions) > 1 else {}
        if order is None:
            dropped[label] = (
                f'there are maps of the sessions {shorten(sessions)}, whose order '
                'in time is unknown: choose one with --session-label'
            )
            continue
        chosen = min(found, key=lambda e: order.get(e.session, 0.0))
        rivals = [e.map.name for e in found if e.session == chosen.session]
        several += [f'{label} ({chosen.session})'] if len(found) > len(rivals) else []
        if len(rivals) > 1:
            dropped[label] = (
                f'there are several maps: {shorten(rivals)}; choose one with '
                '{"map": {...}} in --bids-filter-file'
            )
        elif chosen.mask is None or chosen.mask.is_file():
            entries.append(chosen)
        else:
            dropped[label] = f'{chosen.mask.name} is missing'
    if not entries:
        raise InputError(
            f'there is no {what}' + (f' ({_name_reason(dropped)})' if dropped else ''),
            fix='run the participant level first, or name its results with --derivatives'
            if given is None
            else 'name the folder that holds sub-*/ with --derivatives, and the maps '
            f'sub-<label>_space-{space}_label-{LESION_LABEL}_mask.nii.gz',
            path=roots[0],
        )
    notes = (
        [f'of several sessions the baseline or earliest is used: {shorten(several)}']
        if several
        else []
    )
    return Cohort(tuple(entries), dropped=dropped, notes=tuple(notes))


def map_entities(space: str, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the entities that the maps that users give must have.

    Parameters
    ----------
    space : str
        Template.
    chosen : mapping, optional
        The ``map`` of a filter file (see `filters.read_filters`), which wins. A filter that names
        ``label``, ``description`` or another suffix than those of lesion maps is not about
        lesions, so that their label is not asked for.

    Examples
    --------
    >>> map_entities('MNI152NLin2009aSym', {'suffix': 'Tmax'})
    {'space': 'MNI152NLin2009aSym', 'suffix': 'Tmax'}
    """
    chosen = dict(chosen or {})
    suffix = chosen.get('suffix', list(LESION_SUFFIXES))
    suffixes = suffix if isinstance(suffix, list) else [suffix]
    lesions = set(suffixes) <= set(LESION_SUFFIXES) and not {'label', 'description'} & set(chosen)
    default = {'label': LESION_LABEL} if lesions else {}
    return {'space': space, **default, 'suffix': suffix} | chosen


def add_scores(
    cohort: Cohort,
    source: Path,
    *,
    items: Sequence[str] = (),
    session: str | None = None,
    required: bool = True,
    higher_is_better: Sequence[str] = (),
) -> tuple[Cohort, Scores]:
    """Match a cohort with a table of scores; participants without a score fall out.

    Parameters
    ----------
    cohort : Cohort
        With entries.
    source : Path
        As for `read_scores`.
    items : sequence of str
        Which: items of the NIHSS (``5a``, ``nihss_5a``), ``nihss_total``, ``mrs`` or any column.
        By default all NIHSS items that have a score, or the total where there are no items. Those
        that were named stay without a score, so that they are reported as skipped.
    session : str, optional
        Which examination.
    required : bool
        False keeps participants and items without a score.
    higher_is_better : sequence of str
        Names of `items` whose higher scores are better.

    Returns
    -------
    Cohort
    Scores
        The table as it was read, for `check_sides`.

    Raises
    ------
    InputError
        When the table or an item's name is of no use, or no participant has a score of any item.
    """
    names = list(dict.fromkeys(nihss_name(name) or name for name in items))
    scores = read_scores(
        source,
        participants=cohort.participants,
        session=session,
        map_sessions={e.participant: e.session for e in cohort.entries},
        items=names,
        required=required,
    )
    wanted = names or list(ITEMS)
    notes = [n for n in scores.notes if _concerns(n, names)]
    if not names and not scores.table.notna().any(axis=None) and scores.total.notna().any():
        wanted = [TOTAL]
        notes.append('the table has no items of the NIHSS; its total is used')
    table = pd.DataFrame({name: scores.column(name) for name in wanted})
    empty = [name for name in wanted if required and not table[name].notna().any()]
    if table.empty or len(empty) == len(wanted):
        doubts = [n for n in scores.notes if 'not a ' in n or 'untestable' in n]
        raise InputError(
            f'no participant with a map has a score of {shorten(empty)}'
            + (f' ({"; ".join(doubts[:2])})' if doubts else ''),
            fix='check the columns of the table, or name other --items',
            path=scores.source,
        )
    if not names:  # the notes of the table report them
        table = table.drop(columns=empty)
    labels = list(cohort.participants)
    sessions = pd.DataFrame({name: scores.session_of(str(name)) for name in table})
    table = table.reindex(labels)
    known = set(scores.table.index)
    dropped = {
        label: 'there is no score of any item'
        if label in known
        else f'there is no row in {scores.source.name}'
        for label in table.index[table.isna().all(axis=1)]
        if required
    }
    measures = _find_measures(table, scores, higher_is_better, notes)
    cohort = dataclasses.replace(
        cohort,
        scores=table,
        measures=measures,
        score_sessions=sessions.reindex(labels, fill_value=''),
        notes=(*cohort.notes, *notes),
        source=scores.source,
    )
    return cohort.without(dropped), scores


def _find_measures(
    table: pd.DataFrame, scores: Scores, higher_is_better: Sequence[str], notes: list[str]
) -> tuple[Measure, ...]:
    """Return the levels of each score."""
    better = {nihss_name(name) or name for name in higher_is_better}
    for name in better:
        if name not in table:
            raise InputError(
                f'{name!r} is not one of the scores ({shorten(table.columns)})',
                fix='name it in --items as well',
                path='--higher-is-better',
            )
        if usual_direction(name) is False:
            raise InputError(
                f'a higher {name} is worse', fix='leave it out', path='--higher-is-better'
            )
    labels: dict[str, str] = {}
    measures = []
    for name in map(str, table.columns):
        rival = labels.setdefault(contrast_label(name).lower(), name)
        if rival != name:
            raise InputError(
                f'the scores {rival!r} and {name!r} would give files of one name',
                fix='rename one of the columns',
                path=scores.source,
            )
        if name in ITEMS:
            measures.append(fixed_measure(name, item_levels(name)))
            continue
        if usual_direction(name) and name not in better:
            notes.append(
                f'{name}: taken as worse the higher it is; give --higher-is-better {name} if not'
            )
        scale = range(highest_score(TOTAL) + 1) if name == TOTAL else scores.scales.get(name, ())
        measure = make_measure(name, table[name], scale=scale, higher_is_better=name in better)
        measures.append(measure)
        if measure.grouped:
            notes.append(
                f'{name}: models take it as {measure.levels} levels, cut between its values so '
                'that each has participants enough'
            )
    return tuple(measures)


def add_covariates(
    cohort: Cohort,
    names: Sequence[str],
    sources: Sequence[Path],
    *,
    expected: Sequence[str] = (),
) -> Cohort:
    """Look covariates up.

    A column of numbers is taken as it is; codes of a missing value are recognised (see
    `tables.read_numbers`), and what is not a number is missing. A column of up to five different
    words gives one 0/1 column for each but the first. Of several rows the one of the map's
    session, or the earliest that has the covariate, is used (see `visits`). A column that some
    participants lack gets a second one, ``<name>_missing``, which is 1 for them: models take a
    missing value as the mean, and who has no value may differ.

    Parameters
    ----------
    cohort : Cohort
        With scores.
    names : sequence of str
        Columns, or `TOTAL_VOLUME`.
    sources : sequence of Path
        Tables and datasets to look in, in this order.
    expected : sequence of str
        The columns of an earlier cohort, which words are matched with.

    Raises
    ------
    InputError
        When a column is in none of the tables, or holds nothing to adjust for.
    """
    labels = list(cohort.participants)
    unread = (t for path in dict.fromkeys(sources) for t in iterate_tables(path))
    tables: list[Table] = []
    sessions = {e.participant: e.session for e in cohort.entries}
    columns: dict[str, pd.Series] = {}
    notes = list(cohort.notes)
    for name in dict.fromkeys(n for n in names if n != TOTAL_VOLUME):
        table = _find_column(
            name, unread, tables, f'covariate {name!r}', sources,
            fix=f'name one that is there, or {TOTAL_VOLUME}',
        )  # fmt: skip
        cells = _by_participant(table, name, labels, sessions, notes)
        columns |= _numbers(name, cells, table, notes, expected)
    return dataclasses.replace(
        cohort,
        covariates=pd.DataFrame(columns, index=pd.Index(labels)),
        with_volume=TOTAL_VOLUME in names,
        notes=tuple(notes),
    )


def add_groups(cohort: Cohort, name: str, sources: Sequence[Path], *, folds: int) -> Cohort:
    """Look up the group of each participant, such as the site, that folds keep whole.

    Those without a value form one group together, which a note reports.

    Parameters
    ----------
    cohort : Cohort
        With scores.
    name : str
        Of the column.
    sources : sequence of Path
        Tables and datasets to look in, in this order.
    folds : int
        Fewest groups.

    Raises
    ------
    InputError
        When the column is in none of the tables, or has fewer groups than there are folds.
    """
    labels = list(cohort.participants)
    notes = list(cohort.notes)
    unread = (t for path in dict.fromkeys(sources) for t in iterate_tables(path))
    table = _find_column(
        name, unread, [], f'--fold-groups {name!r}', sources, fix='name a column that is there'
    )
    sessions = {e.participant: e.session for e in cohort.entries}
    cells = _by_participant(table, name, labels, sessions, notes).str.strip()
    missing = cells.str.lower().isin(MISSING)
    groups = cells.where(~missing, 'n/a')
    if groups.nunique() < folds:
        raise InputError(
            f'--fold-groups {name!r} has {groups.nunique()} groups, which {folds} folds cannot '
            'keep whole',
            fix='use fewer --folds, or leave --fold-groups out',
            path=table.path,
        )
    if missing.any():
        notes.append(
            f'--fold-groups {name}: missing for {int(missing.sum())}, kept together as one group: '
            f'{shorten(cells.index[missing])}'
        )
    return dataclasses.replace(cohort, groups=tuple(groups), notes=tuple(notes))


def item_levels(item: str) -> int:
    """Return how many values an item of the NIHSS can take."""
    return highest_score(item) + 1


def item_mirror(item: str) -> str | None:
    """Return the item that asks the same of the other side."""
    return _MIRRORS.get(item)


def contrast_label(item: str) -> str:
    """Return the name of a score as a BIDS label: letters and digits only."""
    text = unicodedata.normalize('NFKD', item)
    label = re.sub(r'[^A-Za-z0-9]', '', text)
    # names without any such letter differ by their hashes
    return label or f'score{hashlib.sha256(item.encode()).hexdigest()[:8]}'


def list_entries(root: Path, label: str, key: str, space: str) -> list[Entry]:
    """Return the maps of all sessions of a participant; `key` as for `find_cohort`."""
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


def _given_maps(
    root: Path, label: str, wanted: Mapping[str, Any], trouble: list[str]
) -> list[Entry]:
    """Return the maps with the wanted entities that one participant has in a folder.

    Why there are none is added to `trouble`, where something else than their absence is known.
    """
    entities = {name: value for name, value in wanted.items() if name != 'space'}
    literal = wanted['suffix'] if isinstance(wanted.get('suffix'), str) else ''
    files, problems = list_images(root, label, containing='' if literal == '*' else literal)
    files = [
        f
        for f in files
        if f.is_nifti and f.in_ct_folder and has_plain_name(f.path) and matches(f, entities)
    ]
    own = [f for f in files if f.entities.get('subject') == label]
    trouble += [f'{f.path.name} names another participant' for f in files if f not in own]
    found = [f for f in own if matches(f, {'space': wanted['space']})]
    if own and not found:
        spaces = sorted({f.entities.get('space', 'no space-') for f in own})
        trouble.append(f'its map is in {shorten(spaces)} and not in {wanted["space"]}')
    if not found:
        trouble += [f'{problem.path or ""} {problem.reason}'.strip() for problem in problems]
    return [Entry(label, f.session or '', f.path) for f in found]


def _name_given(wanted: Mapping[str, Any]) -> str:
    """Return what the maps that users give are, as a noun phrase."""
    words = ', '.join(f'{name} {_describe_value(value)}' for name, value in wanted.items())
    return f'map with {words}'


def _describe_value(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ' or '.join('absent' if v is None else str(v) for v in values)


def _what(key: str) -> str:
    return {
        'std_perfusion': 'perfusion map',
        'std_asymmetry': 'asymmetry map',
        'std_hypoperfused': 'map of hypoperfusion',
    }[key]


def _name_reason(dropped: Mapping[str, str]) -> str:
    return shorten(f'sub-{label}: {reason}' for label, reason in sorted(dropped.items()))


def _concerns(note: str, names: Sequence[str]) -> bool:
    """Return whether a note is about a requested item, or about no item."""
    named = set(re.findall(r'nihss_\d+[abc]?', note))
    return not names or not named or bool(named & set(names))


def _find_column(
    name: str,
    unread: Iterator[Table],
    known: list[Table],
    what: str,
    sources: Sequence[Path],
    *,
    fix: str,
) -> Table:
    """Return the first table that holds a column; those that are read are added to `known`."""
    # tables are read only until one has the column: what lies behind it may be damaged
    table = next((t for t in chain(known, _keep(unread, known)) if _holds(t, name)), None)
    if table is None:
        there = [str(c) for t in known for c in t.cells.columns if c != t.who]
        raise InputError(
            f'{what} is in no table' + (f' (columns: {shorten(there)})' if there else ''),
            fix=fix,
            path=sources[0] if sources else None,
        )
    return table


def _keep(tables: Iterator[Table], kept: list[Table]) -> Iterator[Table]:
    for table in tables:
        kept.append(table)
        yield table


def _holds(table: Table, name: str) -> bool:
    return table.who is not None and name in table.cells and name != table.who


def _by_participant(
    table: Table,
    name: str,
    labels: list[str],
    sessions: Mapping[str, str],
    notes: list[str],
) -> pd.Series:
    """Return a column as text, one cell for each label."""
    own: list[str] = []
    raw = prepare_rows(table, labels, own)
    notes += [n for n in own if n in table.notes and n not in notes]
    assert table.who is not None
    rows, _ = choose_rows(
        raw, table.who, [name], path=table.path, notes=[], map_sessions=sessions, what='value'
    )
    return rows.set_index(table.who)[name].reindex(labels).fillna('')


def _numbers(
    name: str, cells: pd.Series, table: Table, notes: list[str], expected: Sequence[str]
) -> dict[str, pd.Series]:
    text, indicator = cells.str.strip(), f'{name}_missing'
    try:
        found = read_numbers(text, name=name, levels=table.levels(name))
    except ValueError as error:
        raise InputError(
            f'covariate {name!r}: {error}', fix='write numbers without thousands', path=table.path
        ) from error
    wrong, numbers = found.wrong, found.values
    absent = numbers.isna() & ~wrong
    # among words a number is a code of a missing value
    missing = text.str.lower().isin(MISSING) | (numbers.abs().isin(CODES) & bool(wrong.any()))
    words = sorted(set(text[~missing]))
    columns: dict[str, pd.Series]
    if expected and name not in expected:
        known = [e.removeprefix(f'{name}_') for e in expected if e.startswith(f'{name}_')]
        columns = {f'{name}_{w}': (text == w).astype(float).where(~missing) for w in known}
        if indicator in expected:
            columns[indicator] = missing.astype(float)
        return columns
    notes += [f'covariate {name}: {note}' for note in found.notes]
    if expected or numbers.notna().sum() > wrong.sum():
        columns = {name: numbers}
        if wrong.any():
            listed = shorten(f'{who} ({text[who]})' for who in text.index[wrong])
            notes.append(f'covariate {name}: not a number, taken as missing: {listed}')
    elif len(words) <= _MOST_WORDS:
        absent = missing
        columns = {
            f'{name}_{word}': (text == word).astype(float).where(~absent) for word in words[1:]
        }
        if numbers[absent].notna().any():
            codes = count_cells(text[absent & numbers.notna()])
            notes.append(f'covariate {name}: taken as missing: {codes}')
    else:
        raise InputError(
            f'covariate {name!r} is neither a number nor one of up to {_MOST_WORDS} words: '
            f'{shorten(words)}',
            fix='write numbers, or choose another covariate',
            path=table.path,
        )
    if not expected and not any(column.nunique() > 1 for column in columns.values()):
        raise InputError(
            f'covariate {name!r} has the same value for all participants, or none',
            fix='leave it out',
            path=table.path,
        )
    lacking = pd.concat(columns, axis=1).isna().any(axis=1)
    beside = ''
    if indicator in expected or (lacking.any() and not expected):
        columns[indicator], beside = lacking.astype(float), f' beside the indicator {indicator}'
    if absent.any():
        notes.append(
            f'covariate {name}: missing for {int(absent.sum())}, taken as the mean{beside}: '
            f'{shorten(text.index[absent])}'
        )
    return columns
