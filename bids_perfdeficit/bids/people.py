"""What the tables of a dataset say of its participants, for the reader of their pages.

Uses the readers of scores and covariates, so that codes of missing values and names of columns are
understood alike everywhere. Must not decide anything: pages do without what cannot be read.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bids_perfdeficit.bids.scores import prepare_rows, read_scores
from bids_perfdeficit.bids.tables import find_column, read_numbers, read_table
from bids_perfdeficit.errors import InputError


def read_people(bids_dir: Path, labels: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return age and NIHSS of participants, as text.

    Parameters
    ----------
    bids_dir : Path
        With ``participants.tsv`` and ``phenotype/nihss.tsv``, or one, or none of them.
    labels : sequence of str
        Participants, without ``sub-``.

    Returns
    -------
    dict of str to dict of str to str
        By label: ``Age`` (years) and ``NIHSS`` (the total of the earliest examination), each only
        where it is known.
    """
    found: dict[str, dict[str, str]] = {label: {} for label in labels}
    for name, values in (('Age', _ages(bids_dir, labels)), ('NIHSS', _totals(bids_dir, labels))):
        for label, value in values.dropna().items():
            if str(label) in found:
                found[str(label)][name] = f'{value:g}'
    return found


def _ages(bids_dir: Path, labels: Sequence[str]) -> pd.Series:
    with contextlib.suppress(InputError, ValueError, OSError):
        table = read_table(bids_dir / 'participants.tsv')
        rows = prepare_rows(table, labels, [])
        column = find_column(rows, ('age', 'age_years', 'age_at_scan'))
        if column is not None and table.who is not None:
            cells = rows.drop_duplicates(table.who).set_index(table.who)[column]
            return read_numbers(cells, name='age').values
    return pd.Series(dtype=float)


def _totals(bids_dir: Path, labels: Sequence[str]) -> pd.Series:
    log = logging.getLogger('bids_perfdeficit')
    for name in ('phenotype/nihss.tsv', 'participants.tsv'):
        path = bids_dir / name
        if path.is_file():
            with contextlib.suppress(InputError, OSError):
                return read_scores(path, participants=labels).total
            log.debug('%s holds no NIHSS for the pages', path)
    return pd.Series(dtype=float)
