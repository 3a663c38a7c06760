"""What people say of the results of participants after looking at their pages.

``ratings.tsv`` is written by people, with the page of all participants or by hand, and lies in the
folder of the derivatives. Must not know how a verdict is computed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bids_perfdeficit.bids.nihss import MISSING
from bids_perfdeficit.bids.scores import prepare_rows
from bids_perfdeficit.bids.tables import find_column, read_table
from bids_perfdeficit.bids.visits import SESSION_COLUMNS
from bids_perfdeficit.errors import InputError

#: Name of the file, in the folder of the derivatives.
RATINGS = 'ratings.tsv'
#: What a person can say.
VALUES = ('pass', 'doubt', 'fail')


@dataclass(frozen=True)
class Rating:
    """One person's judgement of one participant.

    Parameters
    ----------
    value : {'pass', 'doubt', 'fail'}
    remark : str
        May be empty.
    """

    value: str
    remark: str = ''


def read_ratings(root: Path) -> dict[tuple[str, str], Rating]:
    """Read the ratings of a folder of derivatives.

    Parameters
    ----------
    root : Path
        Folder, which need not have ratings.

    Returns
    -------
    dict of (str, str) to Rating
        By participant and session, without ``sub-`` and ``ses-``; the session is '' where the
        table names none. Rows without a rating are left out.

    Raises
    ------
    InputError
        When the table cannot be read, lacks a column, has another value, or rates one
        participant in two ways.
    """
    path = root / RATINGS
    if not os.path.lexists(path):
        return {}
    table = read_table(path)
    rows = prepare_rows(table, None, [])
    column = find_column(rows, ('rating',))
    if column is None:
        raise InputError(
            'has no column "rating"', fix=f'add one with {", ".join(VALUES)} or n/a', path=path
        )
    remark, session = find_column(rows, ('remark',)), find_column(rows, SESSION_COLUMNS)
    found: dict[tuple[str, str], Rating] = {}
    for row in rows.to_dict('records'):
        value = str(row[column]).strip().lower()
        if value in MISSING:
            continue
        who = str(row[table.who])
        when = str(row[session]).removeprefix('ses-') if session else ''
        key = who, '' if when.lower() in MISSING else when
        if value not in VALUES:
            raise InputError(
                f'sub-{who} has the rating {value!r}',
                fix=f'give {", ".join(VALUES)} or n/a',
                path=path,
            )
        said = '' if remark is None else str(row[remark]).strip()
        rating = Rating(value, '' if said.lower() in MISSING else said)
        if found.get(key, rating).value != value:
            raise InputError(
                f'sub-{who} is rated {found[key].value!r} and {value!r}',
                fix='keep one row for each participant and session',
                path=path,
            )
        found.setdefault(key, rating)
    return found


def find_rating(
    ratings: dict[tuple[str, str], Rating], participant: str, session: str
) -> Rating | None:
    """Return the rating of a session, else that of the participant as a whole."""
    return ratings.get((participant, session)) or ratings.get((participant, ''))
