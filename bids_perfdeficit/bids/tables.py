"""Read the tables that sites bring: scores, participants and covariates go through one reader.

Excel, SPSS, R, REDCap and text editors write the same table in many dialects. The reader finds the
encoding, the delimiter and the header, and returns every cell as text with the number of its row.
What it cannot read with certainty it refuses, with the likely cause. Must not know what a column
means (except the one that names participants), nor any scale.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_perfdeficit.errors import InputError

#: Spellings of a missing value, in lower case. `n/a` is the one of BIDS.
MISSING = frozenset({
    '', 'n/a', 'na', 'n.a.', '<na>', '#n/a', 'nan', 'none', 'null', '#null!', '#value!', 'nil',
    '.', '-', '--', '?', 'missing', 'unknown', 'unk', 'nd', 'n.d.', 'not done', 'not recorded',
    'not available', 'not assessed',
})  # fmt: skip

#: Names of the column that identifies participants, without case, digits and separators.
ID_COLUMNS = (
    'participantid', 'participant', 'subjectid', 'subject', 'subid', 'sub', 'subj', 'subjid',
    'usubjid', 'subjectlabel', 'subjectno', 'subjectnumber', 'participantlabel', 'participantno',
    'participantnumber', 'patientid', 'patient', 'pat', 'patid', 'patientno', 'patientnumber',
    'patientenid', 'patientennummer', 'recordid', 'record', 'caseid', 'case', 'casenumber',
    'studyid', 'studynumber', 'bidsid', 'mrn', 'pid', 'id',
)  # fmt: skip

#: Bytes. A table of 100,000 participants with 100 columns has about 40 MB.
LARGEST = 256 * 2**20
#: Records among which the header is looked for; titles of exports take a few lines.
SEARCHED = 40
#: Names that a message lists before "and N more".
LISTED = 8
#: Characters of a name or cell that a message shows.
LONGEST = 60

#: What files begin with that carry the name of a table, and what to do with them.
_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b'PK\x03\x04', 'is an Excel workbook (or another zipped file)',
     'open it and save the sheet as CSV (UTF-8)'),
    (b'\xd0\xcf\x11\xe0', 'is an Excel workbook', 'open it and save the sheet as CSV (UTF-8)'),
    (b'\x1f\x8b', 'is compressed with gzip', 'decompress it'),
    (b'$FL', 'is an SPSS file', 'export it as CSV'),
    (b'<stata_dta>', 'is a Stata file', 'export it as CSV'),
    (b'%PDF', 'is a PDF', 'export the table as CSV'),
    (b'SQLite', 'is a database', 'export the table as CSV'),
    (b'version https://git-lfs', 'is a pointer of git-lfs, not the table', 'run git lfs pull'),
    (b'/annex/objects', 'is a pointer of git-annex, not the table', 'run datalad get'),
    (b'../.git/annex', 'is a pointer of git-annex, not the table', 'run datalad get'),
    (b'{', 'holds JSON', 'give a table with a header and one row per participant'),
    (b'<', 'holds HTML or XML', 'export the table as CSV (some registries name HTML .xls)'),
)  # fmt: skip

_MARKS = (
    (codecs.BOM_UTF8, 'utf-8-sig'),
    (codecs.BOM_UTF32_LE, 'utf-32'),
    (codecs.BOM_UTF32_BE, 'utf-32'),
    (codecs.BOM_UTF16_LE, 'utf-16'),
    (codecs.BOM_UTF16_BE, 'utf-16'),
)
#: Control and formatting characters: invisible in an editor, harmful in a terminal.
_INVISIBLE = re.compile(
    '[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]'
)
_BLANKS = {ord(blank): ' ' for blank in '\u00a0\u2007\u2009\u202f'}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[;,\t]*', re.I)
_DELIMITERS = ('\t', ';', ',', '|', ' ')
#: How Excel writes text that must stay text: ="007".
_FORMULA = re.compile(r'="(.*)"')
_UNNAMED = re.compile(r'(Unnamed: \d+(_level_\d+)?|\.\.\.\d+)?')
_DECIMAL = re.compile(r'[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+-]?[0-9]{1,3})?')
_THOUSANDS = re.compile(r'[+-]?[0-9]{1,3}(?:,[0-9]{3})+')
_LABELLED = re.compile(
    r'[(\[]?([0-9]+)(?:[.,]0+)?[)\]]?'
    r'(?:\s*[-–—:=.,;/]+\s*([^\s0-9].*)|(?:\s+|(?<=[)\]]))(\(?[^\W\d_].*))',
    re.S,
)
_CODE_LAST = re.compile(
    r'[^\W\d_][^()\[\]=:]*(?:[(\[]\s*([0-9]+)\s*[)\]]|[=:]\s*([0-9]+))'
    r'|(?:level|grade|grad|score|stufe|code)\s*([0-9]+)',
    re.I,
)
_MISSING_LABEL = re.compile(
    r'\b(missing|unknown|n/?a|not (recorded|done|available|assessed|applicable|tested|known))\b',
    re.I,
)
#: Text after a number that makes it no label of the number: "2 or 3", "1 of 4".
_RANGE = re.compile(r'(or|to|of|and|und|oder|bis|von)\b\s*[0-9]', re.I)


@dataclass(frozen=True)
class Table:
    """A table as text.

    Parameters
    ----------
    cells : DataFrame
        Stripped text, ``''`` where empty. The index holds the number of the row in the file.
    path : Path
        The file.
    who : str, optional
        The column that identifies participants.
    notes : tuple of str
        What was recognised or left out on the way, a sentence each.
    sidecar : mapping
        The JSON file beside the table: a description by column; empty without one.
    """

    cells: pd.DataFrame
    path: Path
    who: str | None = None
    notes: tuple[str, ...] = ()
    sidecar: Mapping[str, Any] = field(default_factory=dict)

    def levels(self, column: str) -> dict[str, str]:
        """Return code and label of each level that the sidecar lists for a column."""
        described = self.sidecar.get(column)
        listed = described.get('Levels') if isinstance(described, Mapping) else None
        if not isinstance(listed, Mapping):
            return {}
        texts = {str(code).strip(): _label(label) for code, label in listed.items()}
        return {code: label for code, label in texts.items() if code}


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a delimited table of participants.

    Parameters
    ----------
    path : path
        Tabs, commas, semicolons, bars or blanks; UTF-8, UTF-16 or Windows-1252.

    Raises
    ------
    InputError
        When the file is none, or cannot be read with certainty; with the likely cause.
    """
    path = Path(path)
    data = read_regular_file(path)
    notes: list[str] = []
    text = _decode(data, path, notes)
    separator, text = _separator_line(text)
    records, header_at = _split(text, separator, path)
    if header_at:
        notes.append(f'{path.name}: {header_at} row(s) above the header are skipped')
    (_, header), body = records[header_at], records[header_at + 1 :]
    header, body = _drop_repeated_headers(header, body, path, notes)
    if not body:
        raise InputError('has no rows', fix='give a header and one row per participant', path=path)
    header, body = _align(header, body, path)
    cells = pd.DataFrame(
        [row for _, row in body], columns=range(len(header)), index=[n for n, _ in body],
        dtype=object,
    )  # fmt: skip
    cells = _name_columns(cells, header, path, notes)
    return Table(cells, path, find_column(cells, ID_COLUMNS), tuple(notes), read_sidecar(path))


def read_regular_file(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises
    ------
    InputError
        For a folder, FIFO or device (reading one may never end), and when reading fails.
    """
    fix = 'give a table as text (TSV or CSV)'
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = 'a folder' if stat.S_ISDIR(status.st_mode) else 'a FIFO, socket or device'
            raise InputError(f'is {kind}, not a file', fix=fix, path=path)
        if status.st_size > LARGEST:
            raise InputError(
                f'has {status.st_size / 2**20:.0f} MiB, more than any table of participants',
                fix=fix,
                path=path,
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError('no such file', fix=fix, path=path) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise InputError(f'cannot be read ({reason})', fix=fix, path=path) from error


def read_sidecar(path: Path) -> Mapping[str, Any]:
    """Return the JSON object beside a table; an empty one when there is none of use."""
    aside = path.with_suffix('.json')
    try:
        content = json.loads(read_regular_file(aside).decode('utf-8-sig'))
    except (InputError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_workbooks(paths: Sequence[Path]) -> Table:
    """Read a tree of Excel workbooks with one row each, as ISLES'24 is released.

    Parameters
    ----------
    paths : sequence of Path
        Workbooks below ``sub-<label>/[ses-<label>/]``, which gives the participant.

    Returns
    -------
    Table
        One row per participant. A column that several sessions hold with different values gets
        one column per session.

    Raises
    ------
    InputError
        When no workbook can be read.
    """
    rows: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for path in sorted(paths):
        label = next(p.name for p in path.parents if p.name.startswith('sub-'))
        session = next((p.name for p in path.parents if p.name.startswith('ses-')), '')
        row = rows.setdefault(label, {'participant_id': label})
        try:
            found = _read_workbook(path)
        except InputError as error:
            notes.append(f'{error.path}: {error.reason}; left out')
            continue
        for name, cell in found.items():
            if row.setdefault(name, cell) != cell:
                row[f'{name} ({session})'] = cell
    root = next(p.parent for p in sorted(paths)[0].parents if p.name.startswith('sub-'))
    cells = pd.DataFrame(list(rows.values()), dtype=object).fillna('')
    cells.index = pd.RangeIndex(1, len(cells) + 1)
    if cells.shape[1] < 2:
        raise InputError(
            f'none of {len(paths)} workbooks can be read ({"; ".join(notes[:2])})',
            fix='check that each holds a header and one row, or give one table with --scores',
            path=root,
        )
    return Table(cells, root, 'participant_id', tuple(notes))


def find_column(cells: pd.DataFrame, names: Iterable[str]) -> str | None:
    """Return the first column whose name, without case, digits and separators, is in `names`."""
    plain: dict[str, str] = {}
    for column in cells.columns:
        plain.setdefault(plain_name(str(column)), str(column))
    return next((plain[name] for name in names if name in plain), None)


def plain_name(text: str) -> str:
    """Return the lower-case ASCII letters of a name."""
    return re.sub(r'[^a-z]', '', text.lower())


def to_number(text: str) -> float:
    """Return a decimal number with a point or a comma; NaN for anything else.

    Only the digits 0 to 9 count: ``²`` and ``①`` are not numbers.
    """
    text = text.strip()
    return float(text.replace(',', '.')) if _DECIMAL.fullmatch(text) else np.nan


def to_code(text: str, labels: Mapping[str, str] | None = None) -> str:
    """Return the number of a labelled level, such as ``0 - Alert``; other text as it is.

    Parameters
    ----------
    text : str
        Also ``0: Alert``, ``0=Alert``, ``(0) Alert``, ``0 Alert``, ``Alert (0)``.
    labels : mapping of str to str, optional
        Code by label in lower case, for cells that hold the label alone.
    """
    text = text.strip()
    if labels and text.lower() in labels:
        return labels[text.lower()]
    found = _LABELLED.fullmatch(text)
    if found:
        label = found[2] or found[3]
        is_label = re.search(r'[^\W\d_]', label) and not _RANGE.match(label)
        return found[1] if is_label else text
    found = _CODE_LAST.fullmatch(text)
    return (found[1] or found[2] or found[3]) if found else text


def has_thousands(cells: Iterable[str]) -> bool:
    """Return whether commas in a column separate thousands.

    Raises
    ------
    ValueError
        When a comma may be either: ``1,234`` without another number that settles it.
    """
    commas = [c.strip() for c in cells if ',' in c]
    if not commas:
        return False
    if all(_THOUSANDS.fullmatch(c.partition('.')[0]) for c in commas):
        if any('.' in c or c.count(',') > 1 for c in commas):
            return True
        raise ValueError(f'{commas[0]!r} may be {commas[0].replace(",", ".")} or '
                         f'{commas[0].replace(",", "")}')  # fmt: skip
    return False


def missing_labels(levels: Mapping[str, str]) -> set[str]:
    """Return the codes whose label in a sidecar says that the value is missing."""
    return {code for code, label in levels.items() if _MISSING_LABEL.search(label)}


def shorten(names: Iterable[object]) -> str:
    """Return a list for a message: the first eight, and how many more there are."""
    listed = [str(name) for name in names]
    listed = [name if len(name) <= LONGEST else f'{name[:LONGEST]}...' for name in listed]
    more = len(listed) - LISTED
    return ', '.join(listed[:LISTED]) + (f' and {more} more' if more > 0 else '')


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts ``2`` before ``10``."""
    parts = re.findall(r'[0-9]+|[^0-9]+', text)
    digits = [p.lstrip('0') for p in parts]  # as text: int() has a limit of 4,300 digits
    return [
        (0, len(d), d) if p[0] in '0123456789' else (1, 0, p)
        for p, d in zip(parts, digits, strict=True)
    ]


def count_cells(cells: Iterable[str]) -> str:
    """Return distinct cells with their number, for a message."""
    counts = pd.Series(list(cells), dtype=object).value_counts()
    return shorten(f'{cell or "blank"} ({count})' for cell, count in counts.items())


def _label(label: object) -> str:
    if isinstance(label, Mapping):  # BIDS allows an object with a Description
        label = label.get('Description', '')
    return str(label).strip()


def _decode(data: bytes, path: Path, notes: list[str]) -> str:
    fix = 'save it as UTF-8 text (TSV or CSV)'
    for mark, name in _MARKS:
        if data.startswith(mark):
            try:
                text = data.decode(name)
            except UnicodeDecodeError as error:
                raise InputError(
                    f'begins as {name.removesuffix("-sig").upper()} and is damaged or cut',
                    fix=fix,
                    path=path,
                ) from error
            return _clean(text, path, notes)
    start = data.lstrip()[:32]
    for magic, what, remedy in _FORMATS:
        if start.startswith(magic):
            raise InputError(what, fix=remedy, path=path)
    if b'\0' in data:
        return _clean(_decode_utf16(data, path), path, notes)
    try:
        text = data.decode('utf-8')
    except UnicodeDecodeError:
        notes.append(f'{path.name}: is not UTF-8 and was read as Windows-1252')
        try:
            text = data.decode('cp1252')
        except UnicodeDecodeError:
            text = data.decode('latin-1')
    return _clean(text, path, notes)


def _decode_utf16(data: bytes, path: Path) -> str:
    """Decode UTF-16 without a byte order mark: every other byte of Latin text is NUL."""
    half = max(len(data) // 2, 1)
    even, odd = data[0::2].count(0) / half, data[1::2].count(0) / half
    name = 'utf-16-le' if odd > 0.5 > even else 'utf-16-be' if even > 0.5 > odd else ''
    try:
        if name:
            return data.decode(name)
    except UnicodeDecodeError:
        pass
    raise InputError(
        'is not a text table: it holds NUL bytes, so that it is binary, damaged or cut',
        fix='save it as UTF-8 text (TSV or CSV)',
        path=path,
    )


def _clean(text: str, path: Path, notes: list[str]) -> str:
    """Unify line ends and blanks, and remove what cannot be seen."""
    text = text.replace('\r\n', '\n').replace('\r', '\n').translate(_BLANKS)
    if '\0' in text:
        raise InputError(
            'holds NUL characters, so that it is binary, damaged or cut',
            fix='save it as UTF-8 text (TSV or CSV)',
            path=path,
        )
    text, count = _INVISIBLE.subn('', text)
    if count:
        notes.append(f'{path.name}: {count} control character(s) were removed')
    return text


def _separator_line(text: str) -> tuple[str | None, str]:
    """Take the ``sep=;`` line of Excel from the text."""
    first, _, rest = text.lstrip('\n').partition('\n')
    found = _SEPARATOR_LINE.fullmatch(first.rstrip(' ') or first)
    # the line stays as a blank one, so that the numbers of rows are those of the file
    return (found[1], '\n' * (text.index(first) + 1) + rest) if found else (None, text)


Records = list[tuple[int, list[str]]]


def _split(text: str, separator: str | None, path: Path) -> tuple[Records, int]:
    """Return the records under the delimiter that fits best, and which of them is the header."""
    best: tuple[tuple[bool, float, int], Records, int] | None = None
    broken: tuple[int, str] | None = None
    for delimiter in (separator,) if separator else _DELIMITERS:
        records, problem = _records(text, delimiter)
        if not records:
            continue
        at, has_id = _find_header(records)
        width = len(_trimmed(records[at][1]))
        if problem and has_id and width > 1:
            broken = problem
        body = records[at + 1 :]
        named = has_id or all(len(row) == width + 1 for _, row in body)  # by R
        if problem or (delimiter == ' ' and not named):
            continue
        fitting = [
            len(row) >= width and (len(row) == width + 1 or not any(row[width:]))
            for _, row in body
        ]
        regular = sum(fitting) / max(len(body), 1)
        key = (has_id and width > 1, regular if width > 1 else 0.0, width)
        if best is None or key > best[0]:
            best = key, records, at
    if broken is not None and (best is None or not best[0][0]):
        raise InputError(
            f'row {broken[0]} cannot be read ({broken[1]})',
            fix='close the quotation mark there, or double it where it is meant ("")',
            path=path,
        )
    if best is None:
        raise InputError('has no rows', fix='give a header and one row per participant', path=path)
    return best[1], best[2]


def _records(text: str, delimiter: str) -> tuple[Records, tuple[int, str] | None]:
    """Return the records that are not blank with the number of their first line."""
    reader = csv.reader(
        io.StringIO(text, newline=''), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    records: Records = []
    start = 1
    try:
        for row in reader:
            cells = [_tidy(cell) for cell in row]
            if any(cells):
                records.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        return records, (start, str(error))
    return records, None


def _tidy(cell: str) -> str:
    cell = ' '.join(cell.split())
    found = _FORMULA.fullmatch(cell)
    cell = found[1] if found else cell
    if len(cell) > 1 and cell[0] == cell[-1] == "'":
        return cell[1:-1].strip()
    return cell[1:] if cell[:1] == "'" and cell[1:2].isalnum() else cell


def _find_header(records: Records) -> tuple[int, bool]:
    """Return the first record that names a column of participants, else the first wide one."""
    for at, (_, row) in enumerate(records[:SEARCHED]):
        wide = len([cell for cell in row if cell]) > 1 or at == 0
        if wide and any(
            plain_name(cell) in ID_COLUMNS and not re.search(r'\d', cell) for cell in row
        ):
            return at, True
    first = next((i for i, (_, row) in enumerate(records[:SEARCHED]) if len(_trimmed(row)) > 1), 0)
    return first, False


def _trimmed(row: list[str]) -> list[str]:
    end = len(row)
    while end and not row[end - 1]:
        end -= 1
    return row[:end]


def _drop_repeated_headers(
    header: list[str], body: Records, path: Path, notes: list[str]
) -> tuple[list[str], Records]:
    kept = [(number, row) for number, row in body if row != header]
    if len(kept) < len(body):
        notes.append(f'{path.name}: the header is repeated {len(body) - len(kept)} time(s)')
    return header, kept


def _align(header: list[str], body: Records, path: Path) -> tuple[list[str], Records]:
    """Give all rows the width of the header.

    R writes names of rows without a name for their column: then every row is one cell longer.
    """
    if all(len(row) == len(header) + 1 for _, row in body) and _names_rows(header, body):
        header = ['', *header]
    width = len(header)
    while width > 1 and not header[width - 1] and not any(any(r[width - 1 :]) for _, r in body):
        width -= 1
    header = header[:width]
    ragged = [
        (number, row) for number, row in body if len(row) < width or any(row[width:])
    ]  # fmt: skip
    if ragged:
        number, row = ragged[0]
        short = len(_trimmed(row)) <= 1 and len(row) < width
        cause = (
            'is it a remark outside the table'
            if short and number == body[-1][0] and len(body) > 1
            else 'does a cell hold the delimiter without quotation marks'
            if len(row) > width
            else 'is it cut'
        )
        raise InputError(
            f'row {number} has {len(_trimmed(row)) if len(row) > width else len(row)} cells, '
            f'the header {width} ({cause}?)'
            + (f', and {len(ragged) - 1} more rows differ' if len(ragged) > 1 else ''),
            fix='give every row as many cells as the header',
            path=path,
        )
    return header, [(number, row[:width]) for number, row in body]


def _names_rows(header: list[str], body: Records) -> bool:
    """Return whether the first cells are names of rows, rather than the last ones without a name.

    Where the header begins with the column of participants, names of rows are those that R gives:
    numbers that increase, before cells that can be names of participants.
    """
    if plain_name(header[0]) not in ID_COLUMNS:
        return any(row[-1] for _, row in body)
    first = [row[0] for _, row in body]
    if not all(re.fullmatch('[0-9]{1,9}', cell) for cell in first):
        return False
    numbers = [int(cell) for cell in first]
    if any(b <= a for a, b in pairwise(numbers)):
        return False
    ids = [row[1] for _, row in body]
    if any(row[-1] for _, row in body):
        return len(set(ids)) == len(ids) or any(not cell.isdecimal() for cell in ids)
    return len(set(ids)) == len(ids) and any(not cell.isdecimal() for cell in ids)


def _are_numbers(cells: Sequence[str]) -> bool:
    """Return whether cells count rows, from 0 or 1."""
    return list(cells) in ([str(i + start) for i in range(len(cells))] for start in (0, 1))


def _name_columns(
    cells: pd.DataFrame, header: list[str], path: Path, notes: list[str]
) -> pd.DataFrame:
    """Drop columns without a name or content, and one of each pair of equal ones."""
    names = ['' if _UNNAMED.fullmatch(name) else name for name in header]
    has_id = any(plain_name(name) in ID_COLUMNS for name in names)
    kept: dict[str, int] = {}
    for at, name in enumerate(names):
        column = cells[at]
        if not name:
            if not column.str.len().any() or (at == 0 and has_id and _are_numbers(list(column))):
                continue
            if at == 0 and not has_id:
                kept['participant_id'] = at
                notes.append(
                    f'{path.name}: the first column has no name and is taken as participant_id'
                )
            else:
                notes.append(f'{path.name}: column {at + 1} has no name and is left out')
        elif name not in kept:
            kept[name] = at
        elif cells[kept[name]].equals(column):
            notes.append(f'{path.name}: column {name} is there twice and counts once')
        else:
            raise InputError(
                f'has more than one column {name} (columns {kept[name] + 1} and {at + 1}), '
                'and they differ',
                fix='rename or remove one',
                path=path,
            )
    found = cells[list(kept.values())]
    found.columns = pd.Index(list(kept))
    return found


def _read_workbook(path: Path) -> dict[str, str]:
    """Return the cells of a workbook's first sheet by column: a header and one row."""
    import openpyxl  # late: only such trees need it

    read_regular_file(path)
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            rows = [
                [_excel_text(value) for value in row]
                for row in book.worksheets[0].iter_rows(values_only=True)
            ]
        finally:
            book.close()
    except Exception as error:  # openpyxl raises whatever the damaged part provokes
        raise InputError(
            f'is not a workbook that can be read ({type(error).__name__})',
            fix='fetch it again',
            path=path,
        ) from error
    rows = [row for row in rows if any(row)]
    if len(rows) != 2:
        raise InputError(
            f'has {len(rows)} rows; a header and one row are expected', fix='check it', path=path
        )
    pairs = zip(*rows, strict=False)
    return {name: cell for name, cell in pairs if name}


def _excel_text(value: object) -> str:
    if value is None:
        return ''
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.date):
        return value.isoformat()
    return _INVISIBLE.sub('', ' '.join(str(value).split()))


#: Codes of a missing value below everything that is measured.
_LOW_CODES = frozenset({-7.0, -8.0, -9.0, -77.0, -88.0, -99.0, -777.0, -888.0, -999.0, -9999.0})
#: Codes of a missing value above everything that is measured, and the share of the code that the
#: highest true value may reach. A 99 needs a gap below it: some patients are 99 years old.
_HIGH_CODES: Mapping[float, float] = {
    9.0: 0.45, 99.0: 0.91, 777.0: 0.5, 888.0: 0.5, 999.0: 0.5, 9999.0: 0.5, 99999.0: 0.5,
}  # fmt: skip
#: All of them without their sign.
CODES = frozenset({*(abs(code) for code in _LOW_CODES), *_HIGH_CODES})
_YEARS = re.compile(r'([0-9]+(?:[.,][0-9]+)?) ?(?:years?|yrs?|y|y\.?o\.?|jahre?|ans)\.?', re.I)
_CAPPED = re.compile(
    r'[<>≤≥]=?\s*([0-9]+(?:[.,][0-9]+)?)|([0-9]+(?:[.,][0-9]+)?)\s*'
    r'(?:\+|(?:and|or|&) (?:older|over|above|more))'
)
#: Years; an age outside is an error of typing.
_OLDEST = 120.0


@dataclass(frozen=True)
class Numbers:
    """A column of numbers.

    Parameters
    ----------
    values : Series
        NaN where missing or no number.
    wrong : Series
        Whether a cell holds something that is neither a number nor missing.
    notes : tuple of str
        What was taken for missing or capped, without the name of the column.
    """

    values: pd.Series
    wrong: pd.Series
    notes: tuple[str, ...]


def read_numbers(
    cells: pd.Series, *, name: str = '', levels: Mapping[str, str] | None = None
) -> Numbers:
    """Read a column of numbers of any scale.

    Parameters
    ----------
    cells : Series
        Text; the index names participants.
    name : str
        Of the column; ages have a range.
    levels : mapping of str to str, optional
        Codes and labels from a sidecar; a label such as "missing" makes a code one.

    Raises
    ------
    ValueError
        When a comma may separate decimals or thousands.
    """
    levels = levels or {}
    notes: list[str] = []
    text = cells.astype(str).str.strip()
    absent = text.str.lower().isin(MISSING) | text.isin(missing_labels(levels))
    if has_thousands(text[~absent]):
        text = text.str.replace(',', '')
    capped = ~absent & text.map(lambda cell: bool(_CAPPED.fullmatch(cell)))
    bounds = text.map(_bound)
    by_label = {label.lower(): code for code, label in levels.items()}
    numbers = bounds.map(lambda cell: to_number(to_code(cell, by_label))).where(~absent)
    numbers = numbers.astype(float)
    codes = numbers.isin(_codes_of_missing(numbers))
    numbers = numbers.mask(codes)
    outside = pd.Series(False, index=cells.index)
    if re.match(r'age(?![a-z])', name.lower()):
        outside = numbers.notna() & ~numbers.between(0, _OLDEST)
        numbers = numbers.mask(outside)
    finite = np.isfinite(numbers)
    odd = absent & (text.str.lower() != 'n/a')
    if (odd | codes | outside).any():
        notes.append(f'taken as missing: {count_cells(text[odd | codes | outside])}')
    if capped.any():
        notes.append(f'taken as the bound: {count_cells(text[capped])}')
    wrong = ~absent & ~codes & ~outside & ~finite
    return Numbers(numbers.where(finite), wrong, tuple(notes))


def _bound(cell: str) -> str:
    """Return the number of ``89+`` or ``70 years``; other text as it is."""
    if years := _YEARS.fullmatch(cell):
        return years[1]
    found = _CAPPED.fullmatch(cell)
    return (found[1] or found[2]) if found else cell


def _codes_of_missing(numbers: pd.Series) -> set[float]:
    """Return the values of a column that are codes: far from all others."""
    values = numbers[np.isfinite(numbers)]
    low = set(values[values.isin(_LOW_CODES)])
    high = set(values[values.isin(list(_HIGH_CODES))])
    true = values[~values.isin(low | high)]
    whole = bool((true == np.rint(true)).all())
    if not len(true):
        return set()
    codes = low if true.min() >= 0 else set()
    for code in high:
        gap = float(true.max()) <= code * _HIGH_CODES[code]
        if gap and (whole or code > 100):
            codes.add(code)
    return codes
