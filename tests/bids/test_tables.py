"""One reader for all tables: every dialect gives the same cells, or a refusal that names it."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import os
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bids_perfdeficit.bids import ITEMS, read_scores
from bids_perfdeficit.bids.nihss import highest_score
from bids_perfdeficit.bids.tables import (
    natural,
    read_numbers,
    read_table,
    to_code,
    to_number,
)
from bids_perfdeficit.errors import InputError

PLAIN = 'participant_id,nihss_1a,nihss_9\nsub-01,0,3\nsub-02,1,2\n'


@pytest.fixture
def file(tmp_path):
    """Return a function that writes bytes or text and returns the path."""

    def write(content: str | bytes, name: str = 'scores.csv', encoding: str = 'utf-8') -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def cells(path: Path) -> dict[str, list[str]]:
    return {name: list(column) for name, column in read_table(path).cells.items()}


WANTED = {'participant_id': ['sub-01', 'sub-02'], 'nihss_1a': ['0', '1'], 'nihss_9': ['3', '2']}


@pytest.mark.parametrize(
    'text',
    [
        PLAIN,
        PLAIN.replace(',', '\t'),
        PLAIN.replace(',', ';'),
        PLAIN.replace(',', '|'),
        PLAIN.replace(',', ' '),
        PLAIN.replace(',', ', '),
        PLAIN.replace('\n', '\r\n'),
        PLAIN.replace('\n', '\r'),
        PLAIN.replace('\n', '\n\n'),
        PLAIN.replace('\n', '\n,,\n'),
        PLAIN.replace('\n', ',,\n'),
        PLAIN + ',,\n\n,,\n',
        'sep=,\n' + PLAIN,
        '"sep=;"\n' + PLAIN.replace(',', ';'),
        'SEP=;\n' + PLAIN.replace(',', ';'),
        'Stroke registry 2024\n\n' + PLAIN,
        'Stroke registry, exported on 2024-01-02 by me\nn = 2\n' + PLAIN,
        ';;\nRegistry;;\n' + PLAIN.replace(',', ';'),
        'participant_id,nihss_1a,nihss_9\n"1",sub-01,0,3\n"2",sub-02,1,2\n',
        'participant_id nihss_1a nihss_9\n"17" "sub-01" 0 3\n"23" "sub-02" 1 2\n',
        '"",participant_id,nihss_1a,nihss_9\n"1",sub-01,0,3\n"2",sub-02,1,2\n',
        ',participant_id,nihss_1a,nihss_9\n0,sub-01,0,3\n1,sub-02,1,2\n',
        'Unnamed: 0,participant_id,nihss_1a,nihss_9\n0,sub-01,0,3\n1,sub-02,1,2\n',
        '"",nihss_1a,nihss_9\nsub-01,0,3\nsub-02,1,2\n',
        'nihss_1a nihss_9\n"sub-01" 0 3\n"sub-02" 1 2\n',
        '"participant_id","nihss_1a","nihss_9"\n"sub-01","0","3"\n"sub-02","1","2"\n',
        'participant_id,nihss_1a,nihss_9\n="sub-01",="0",="3"\n"=""sub-02""",1,2\n',
        "participant_id,nihss_1a,nihss_9\n'sub-01','0','3'\n'sub-02,'1,2\n",
        'participant_id,nihss_1a,nihss_9,nihss_9\nsub-01,0,3,3\nsub-02,1,2,2\n',
        PLAIN + 'participant_id,nihss_1a,nihss_9\n',
        PLAIN.replace('0,3', '\u00a00\u00a0,\u200b3\x1b'),
    ],
)
def test_the_same_table_is_read_from_every_dialect(file, text):
    assert cells(file(text)) == WANTED


@pytest.mark.parametrize(
    'encoding',
    ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'cp1252', 'latin-1'],
)
def test_the_same_table_is_read_from_every_encoding(file, encoding):
    text = PLAIN.replace('nihss_9', 'Größe')
    assert list(cells(file(text, encoding=encoding))) == ['participant_id', 'nihss_1a', 'Größe']


def test_a_big_endian_mark_is_understood(file):
    path = file(codecs.BOM_UTF16_BE + PLAIN.encode('utf-16-be'))
    assert cells(path) == WANTED


def test_cells_keep_delimiters_and_lose_line_ends_inside_quotation_marks(file):
    path = file('participant_id,remark,nihss_9\nsub-01,"a, b\nand ""c""",3\nsub-02,,2\n')
    found = read_table(path)
    assert found.cells['remark'].tolist() == ['a, b and "c"', '']
    assert found.cells.index.tolist() == [2, 4]  # as an editor counts them


@pytest.mark.parametrize(
    ('content', 'reported', 'fix'),
    [
        (b'', 'has no rows', 'one row per participant'),
        (b'\n\n  \n', 'has no rows', 'one row per participant'),
        (b'participant_id,nihss_9\n', 'has no rows', 'one row per participant'),
        (b'PK\x03\x04rest', 'Excel workbook', 'save the sheet as CSV'),
        (b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 'Excel workbook', 'save the sheet as CSV'),
        (b'\x1f\x8b\x08', 'compressed', 'decompress'),
        (b'$FL2@(#)', 'SPSS', 'export it as CSV'),
        (b'<html><table>', 'HTML', 'export the table as CSV'),
        (b'{"a": 1}', 'JSON', 'a header'),
        (b'../.git/annex/objects/x/y', 'git-annex', 'datalad get'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'git-lfs', 'git lfs pull'),
        (PLAIN.encode() + b'\0\0\0', 'NUL', 'UTF-8'),
        (b'\xff\xfep\0a', 'damaged or cut', 'UTF-8'),
        (b'participant_id,nihss_9\nsub-01,3\nsub-02,2,1\nsub-03,1\n',
         'row 3 has 3 cells, the header 2 (does a cell hold the delimiter', 'as many cells'),
        (b'participant_id,nihss_9\nsub-01,1\nsub-02,1,5\n', 'row 3 has 3 cells', 'as many cells'),
        (b'participant_id,nihss_9\nsub-01,1,x\nsub-02,1,y\n', 'row 2 has 3 cells', 'as many'),
        (b'participant_id,nihss_9\nsub-01,1\nExported by me\n',
         'row 3 has 1 cells, the header 2 (is it a remark outside the table?)', 'as many cells'),
        (b'participant_id,nihss_9\nsub-01,"1\nsub-02,2\nsub-03,3\n',
         'row 2 cannot be read', 'close the quotation mark'),
        (b'participant_id,nihss_9,nihss_9\nsub-01,1,2\n',
         'more than one column nihss_9 (columns 2 and 3), and they differ', 'rename or remove'),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_the_likely_cause(file, content, reported, fix):
    path = file(content)
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert reported in caught.value.reason
    assert fix in caught.value.fix
    assert caught.value.path == str(path)


def test_an_excess_cell_that_is_empty_does_no_harm(file):
    assert cells(file(PLAIN.replace('0,3', '0,3,'))) == WANTED


@pytest.mark.parametrize('kind', ['folder', 'fifo', 'loop', 'device', 'gone'])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / 'scores.tsv'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'loop':
        path.symlink_to(path)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    caught: list[BaseException] = []

    def read() -> None:
        try:
            read_table(path)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(caught[0], InputError)


def test_no_control_character_reaches_a_message(file):
    path = file('participant_id,nihss_9\nsub-\x1b[31m01,\x1b[2J7\nsub-02,1\n')
    found = read_table(path)
    assert not any('\x1b' in cell for cell in found.cells.to_numpy().ravel())
    assert any('control character' in note for note in found.notes)
    assert '\x1b' not in ''.join(read_scores(path).notes)


def test_what_was_left_out_is_reported(file):
    path = file('Title\n\nparticipant_id,nihss_9,nihss_9,,x\nsub-01,1,1,left,2\n')
    notes = ' '.join(read_table(path).notes)
    assert '1 row(s) above the header' in notes
    assert 'nihss_9 is there twice and counts once' in notes
    assert 'column 4 has no name' in notes


@pytest.mark.parametrize(
    ('text', 'number'),
    [('3', 3), ('3.0', 3), ('3,5', 3.5), ('-2', -2), ('.5', 0.5), ('1e2', 100), (' 4 ', 4)],
)
def test_numbers(text, number):
    assert to_number(text) == number


@pytest.mark.parametrize('text', ['²', '①', '１', '٣', '3²', '1 2', '', 'x', '0x1', 'inf', 'nan'])
def test_digits_that_are_none_are_no_numbers(text):
    assert np.isnan(to_number(text))


@pytest.mark.parametrize(
    'text',
    ['2 - Partial', '2: Partial', '2=Partial', '2 = Partial', '(2) Partial', '2) Partial',
     '2. Partial', '2, Partial', '2 Partial', '[2] Partial', '2 – holds 90 (or 45) degrees',
     '2 - "no" effort', '2: (holds)', 'Level 2', 'grade 2',
     'Partial (2)', 'Partial = 2', 'Partial [2]', '2.0 - Partial', '2 - Ödem'],
)  # fmt: skip
def test_labelled_levels_give_their_number(text):
    assert to_code(text) == '2'


@pytest.mark.parametrize(
    'text', ['2 or 3', '2 of 4', '1-2', '1.5', 'Partial', '2?', 'a2', '2a', '2/?', '2 - 3']
)
def test_other_text_is_no_labelled_level(text):
    assert to_code(text) == text


@pytest.mark.parametrize(
    ('column', 'numbers', 'reported'),
    [
        (['70', '-9', '65'], [70, np.nan, 65], '-9 (1)'),
        (['70', '999', '999', '65'], [70, np.nan, np.nan, 65], '999 (2)'),
        (['70', '99', '65'], [70, np.nan, 65], '99 (1)'),
        (['97', '99', '65'], [97, 99, 65], ''),
        (['0', '1', '9', '1'], [0, 1, np.nan, 1], '9 (1)'),
        (['0', '7', '9', '8'], [0, 7, 9, 8], ''),
        (['-9', '-3', '4'], [-9, -3, 4], ''),
        (['7.25', '99', '80.5'], [7.25, 99, 80.5], ''),
        (['70', '', 'NA', 'n/a'], [70, np.nan, np.nan, np.nan], 'blank (1), NA (1)'),
        (
            ['70', '89+', '>89', '≥ 90', '90 or older'],
            [70, 89, 89, 90, 90],
            'taken as the bound: 89+ (1), >89 (1), ≥ 90 (1), 90 or older (1)',
        ),
        (['70,5', '60,25'], [70.5, 60.25], ''),
        (['1,234.5', '1,000'], [1234.5, 1000], ''),
        (['1,234,567'], [1234567], ''),
    ],
)
def test_codes_of_missing_values_and_bounds(column, numbers, reported):
    found = read_numbers(pd.Series(column, dtype=object), name='x')
    np.testing.assert_array_equal(found.values, numbers)
    assert reported in ' '.join(found.notes)
    assert bool(reported) == bool(found.notes)
    assert not found.wrong.any()


def test_ages_outside_a_life_are_missing():
    found = read_numbers(pd.Series(['70', '170', '-3']), name='age_years')
    assert found.values.tolist()[0] == 70
    assert found.values.isna().sum() == 2


def test_a_sidecar_says_which_codes_are_missing():
    found = read_numbers(
        pd.Series(['1', '2', '5', 'severe']), levels={'5': 'Not recorded', '3': 'Severe'}
    )
    np.testing.assert_array_equal(found.values, [1, 2, np.nan, 3])


def test_a_comma_that_may_be_either_is_refused():
    with pytest.raises(ValueError, match=r"'1,234' may be 1\.234 or 1234"):
        read_numbers(pd.Series(['1,234', '2,345']))


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_two_names_can_be_sorted(a, b):
    assert sorted([a, b], key=natural) in ([a, b], [b, a])


def test_very_long_numbers_are_sorted_too():
    assert natural('9' * 5000) > natural('10')
    assert sorted(['10', '2', '²'], key=natural) == ['2', '10', '²']


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_table_or_an_input_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('bytes') / 'scores.tsv'
    path.write_bytes(data)
    with contextlib.suppress(InputError):  # anything else is a failure
        read_table(path)


# One table of scores, written in random dialects.

LABELS = ['01', '02', '07', '10', '33', '100']


@st.composite
def dialects(draw):
    """Return the choices of a site's export."""
    return {
        'encoding': draw(st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])),
        'delimiter': draw(st.sampled_from(['\t', ',', ';', '|'])),
        'newline': draw(st.sampled_from(['\n', '\r\n', '\r'])),
        'header': draw(st.sampled_from(['nihss_1a', 'NIHSS 1a', 'X1a', '1a', 'item_1a', 'NIHSS.1a',
                                        'words', 'loinc', 'numbered'])),
        'label': draw(st.sampled_from(['', ' - level', ': level', '=level', ' (level)'])),
        'decimal': draw(st.sampled_from(['', '.0', ',0'])),
        'titles': draw(st.integers(0, 3)),
        'separator_line': draw(st.booleans()),
        'row_names': draw(st.sampled_from(['none', 'shorter header', 'empty header'])),
        'trailing': draw(st.integers(0, 3)),
        'blank_rows': draw(st.booleans()),
        'missing': draw(st.sampled_from(['n/a', '', 'NA', '-9', '999', '.', 'missing'])),
        'untestable': draw(st.sampled_from(['UN', '9', '99', 'un'])),
        'ids': draw(st.sampled_from(['sub-', '', 'number', 'float'])),
        'quoting': draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        'id_name': draw(st.sampled_from(['participant_id', 'Subject ID', 'record_id', 'ID',
                                         'Patient'])),
        'twice': draw(st.booleans()),
        'umlaut': draw(st.booleans()),
    }  # fmt: skip


WORDS = ['LOC', 'LOC questions', 'LOC commands', 'Best gaze', 'Visual fields', 'Facial palsy',
         'Motor arm left', 'Motor arm right', 'Motor leg left', 'Motor leg right', 'Limb ataxia',
         'Sensory', 'Best language', 'Dysarthria', 'Extinction']  # fmt: skip
LOINC = ['70184-7', '70185-4', '70186-2', '70187-0', '70188-8', '70189-6', '70190-4', '70967-5',
         '70191-2', '70968-3', '70192-0', '70193-8', '70194-6', '70195-3', '70196-1']  # fmt: skip


def write_dialect(path: Path, scores: pd.DataFrame, how: dict) -> None:
    codes = [item.removeprefix('nihss_') for item in ITEMS]
    names = {
        'words': WORDS,
        'loinc': LOINC,
        'numbered': [f'NIHSS{n}' for n in range(1, 16)],
    }.get(how['header'], [how['header'].replace('1a', code) for code in codes])
    rows = []
    for label, row in scores.iterrows():
        cells = [
            {'sub-': f'sub-{label}', '': label, 'number': str(int(label)),
             'float': f'{int(label)}.0'}[how['ids']]
        ]  # fmt: skip
        for item in ITEMS:
            value = row[item]
            if isinstance(value, str):
                cells.append(how['untestable'] if value == 'UN' else how['missing'])
            else:
                number = f'{value}{how["decimal"] if not how["label"] else ""}'
                cells.append(f'{number}{how["label"]}')
        rows.append(cells)
    header = [how['id_name'], *names]
    if how['umlaut']:
        header, rows = [*header, 'Größe'], [[*row, 'ä'] for row in rows]
    if how['twice']:
        header, rows = [*header, names[3]], [[*row, row[4]] for row in rows]
    if how['row_names'] != 'none':
        rows = [[str(n), *row] for n, row in enumerate(rows, 1)]
        header = header if how['row_names'] == 'shorter header' else ['', *header]
    else:
        header = [*header, *[''] * how['trailing']]
        rows = [[*row, *[''] * how['trailing']] for row in rows]
    text = io.StringIO()
    if how['separator_line']:
        text.write(f'sep={how["delimiter"]}\n')
    text.write('Registry of strokes\n' * how['titles'])
    writer = csv.writer(
        text, delimiter=how['delimiter'], quoting=how['quoting'], lineterminator='\n'
    )
    for row in [header, *rows]:
        writer.writerow(row)
        if how['blank_rows']:
            text.write('\n')
    path.write_bytes(text.getvalue().replace('\n', how['newline']).encode(how['encoding']))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(how=dialects(), seed=st.integers(0, 10_000))
def test_scores_come_back_from_any_dialect(tmp_path_factory, how, seed):
    rng = np.random.default_rng(seed)
    scores = pd.DataFrame(index=LABELS, columns=list(ITEMS), dtype=object)
    for item in ITEMS:
        other = ['UN', 'n/a'] if item in ('nihss_5a', 'nihss_7') else ['n/a']
        for label in LABELS:
            level = int(rng.integers(0, highest_score(item) + 1))
            scores.loc[label, item] = rng.choice(other) if rng.random() < 0.2 else level
    path = tmp_path_factory.mktemp('dialect') / 'export.csv'
    write_dialect(path, scores, how)
    found = read_scores(path, participants=LABELS)
    want = scores.map(lambda v: np.nan if isinstance(v, str) else float(v)).astype(float)
    pd.testing.assert_frame_equal(found.table, want, check_names=False)
