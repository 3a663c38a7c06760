"""Score tables as sites write them; every trap of the scale reported once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bids_perfdeficit.bids import ITEMS, Scores, check_sides, read_scores, write_phenotype
from bids_perfdeficit.bids.nihss import TOTAL, parse_column
from bids_perfdeficit.errors import InputError

HIGHEST = dict(zip(ITEMS, (3, 2, 2, 2, 3, 3, 4, 4, 4, 4, 2, 2, 3, 2, 2), strict=True))


@pytest.fixture
def table(tmp_path: Path):
    """Return a function that writes a table: a base row of zeros, changed per row."""

    def write(*rows: dict[str, object], name: str = 'scores.tsv', **all_rows: object) -> Path:
        base = {'participant_id': 'sub-01'} | dict.fromkeys(ITEMS, '0') | all_rows
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame([base | row for row in rows]).to_csv(path, sep='\t', index=False)
        return path

    return write


@pytest.mark.parametrize(
    ('name', 'item'),
    [
        ('nihss_1a', '1a'),
        ('NIHSS 1a', '1a'),
        ('NIHSS1b', '1b'),
        ('nihss_01c', '1c'),
        ('item1a', '1a'),
        ('item_1_a', '1a'),
        ('1a', '1a'),
        ('10', '10'),
        ('NIHSS_LOC', '1a'),
        ('Level of consciousness', '1a'),
        ('LOC questions', '1b'),
        ('nihss_1b_loc_questions', '1b'),
        ('1b. LOC questions (month, age)', '1b'),
        ('LOCcommands', '1c'),
        ('nihss_2_gaze', '2'),
        ('BestGaze', '2'),
        ('visual_fields', '3'),
        ('facial_palsy', '4'),
        ('nihss_5a', '5a'),
        ('motor_arm_left', '5a'),
        ('motor_left_arm', '5a'),
        ('nihss_left_arm', '5a'),
        ('NIHSS_ArmRight', '5b'),
        ('5b. Motor arm, right', '5b'),
        ('nihss_5_r', '5b'),
        ('nihss_leg_l', '6a'),
        ('nihss_6b_leg_right', '6b'),
        ('Limb ataxia', '7'),
        ('nihss_7', '7'),
        ('sensory', '8'),
        ('best_language', '9'),
        ('nihss_9_aphasia', '9'),
        ('dysarthria', '10'),
        ('nihss_11_extinction', '11'),
        ('Extinction and inattention (neglect)', '11'),
        ('70184-7', '1a'),
        ('loinc_70967-5', '5b'),
        ('LOINC 70190-4', '5a'),
        ('nihss_1a_baseline', '1a'),
    ],
)
def test_column_name_is_understood(name, item):
    assert parse_column(name) == (f'nihss_{item}', '')


@pytest.mark.parametrize('name', ['nihss', 'NIHSS total', 'nihss_baseline', 'total', '72089-6',
                                  'NIHSS at admission', 'nihss_sum'])  # fmt: skip
def test_total_is_understood(name):
    assert parse_column(name) == (TOTAL, '')


@pytest.mark.parametrize(
    'name',
    ['age', 'treatment_arm', 'native_language', 'nihss_1a_24h', 'nihss_12', 'nihss_5', 'arm',
     'nihss_arm', 'mrs_90d', 'nihss_discharge', 'group', 'nihss_5a_left_right', 'nihss_2_arm',
     'nihss_7a', 'handedness_left', 'score_12', 'acq_time_from_onset', 'comment'],
)  # fmt: skip
def test_other_columns_are_left_alone(name):
    assert parse_column(name) is None


@pytest.mark.parametrize('name', ['1a', 'item_2', 'language', 'total', 'sensory'])
def test_in_participants_tsv_a_column_must_say_nihss(name):
    assert parse_column(name) is not None
    assert parse_column(name, marked=True) is None
    assert parse_column(f'nihss_{name}', marked=True) is not None


@pytest.mark.parametrize(
    ('name', 'item'), [('nihss_5a_right_arm', '5b'), ('nihss_6b_left', '6a'), ('5b_l', '5a')]
)
def test_side_word_wins_over_the_letter_and_this_is_reported(name, item):
    found, remark = parse_column(name)
    assert found == f'nihss_{item}'
    assert 'side word' in remark


@pytest.mark.parametrize(
    'cell', ['n/a', '', 'NaN', 'NA', 'missing', '-9', '-99', '999', '-999', '88', '.', '#NULL!']
)
def test_what_is_taken_for_missing_is_reported_once_per_column(table, cell):
    path = table({'nihss_9': cell}, {'participant_id': '02', 'nihss_9': cell})
    scores = read_scores(path)
    assert scores.table['nihss_9'].isna().all()
    assert scores.total.isna().all()
    # n/a is the spelling of BIDS: nothing was guessed
    reported = () if cell == 'n/a' else (f'nihss_9: taken as missing: {cell or "blank"} (2)',)
    assert scores.notes == reported


@pytest.mark.parametrize('cell', ['UN', 'un', '9', '99', 'untestable'])
def test_untestable_is_missing_and_counts_nothing_in_the_total(table, cell):
    scores = read_scores(table({'nihss_5a': cell, 'nihss_2': '2'}))
    assert np.isnan(scores.table.loc['01', 'nihss_5a'])
    assert scores.total['01'] == 2
    assert scores.notes == (f'nihss_5a: untestable, taken as missing: 01 ({cell})',)


def test_code_nine_where_nothing_can_be_untestable_is_doubted(table):
    scores = read_scores(table({'nihss_2': '9'}))
    assert np.isnan(scores.table.loc['01', 'nihss_2'])
    assert np.isnan(scores.total['01'])
    assert 'which it cannot be' in scores.notes[0]


@pytest.mark.parametrize('item', ITEMS)
def test_range_of_each_item(table, item):
    assert read_scores(table({item: str(HIGHEST[item])})).table.loc['01', item] == HIGHEST[item]
    for wrong in (HIGHEST[item] + 1, -2):
        scores = read_scores(table({item: str(wrong)}))
        assert np.isnan(scores.table.loc['01', item])
        assert scores.notes == (
            f'{item}: outside 0 to {HIGHEST[item]}, taken as missing: 01 ({wrong})',
        )


@pytest.mark.parametrize('cell', ['1.5', 'two', '2 or 3', '1;2', '²', '①', '１', '3?'])
def test_a_little_text_among_numbers_is_missing_and_much_is_refused(table, cell):
    rows = [{'participant_id': f'sub-{n:02d}', 'nihss_4': '1'} for n in range(20)]
    few = [{'participant_id': p, 'nihss_4': cell} for p in ('sub-20', 'sub-21')]
    scores = read_scores(table(*rows, *few))
    assert scores.table['nihss_4'].isna().sum() == 2
    assert scores.notes == (
        f'nihss_4: not a whole number, taken as missing: 20 ({cell}), 21 ({cell})',
    )
    many = [{'participant_id': f'sub-{n:02d}', 'nihss_4': cell} for n in range(20, 24)]
    with pytest.raises(InputError, match='4 of 24 scores are not whole numbers') as caught:
        read_scores(table(*rows, *many))
    assert '--items' in caught.value.fix
    assert read_scores(table(*rows, *many), items=['nihss_9']).table['nihss_9'].notna().all()


def test_whole_numbers_with_a_point_are_numbers(table):
    assert read_scores(table({'nihss_4': '2.0', 'nihss_2': '1,0'})).total['01'] == 3


def test_total_against_sum(table):
    path = table(
        {'participant_id': '01', 'nihss_1a': '2', TOTAL: '2'},
        {'participant_id': '02', 'nihss_1a': '2', TOTAL: '7'},
        {'participant_id': '03', 'nihss_1a': 'n/a', 'nihss_2': '1', TOTAL: '7'},
        {'participant_id': '04', 'nihss_1a': 'n/a', 'nihss_2': '1', TOTAL: '0'},
        {'participant_id': '05', TOTAL: '43'},
        {'participant_id': '06', 'nihss_1a': 'n/a', TOTAL: '9'},
    )
    scores = read_scores(path)
    np.testing.assert_array_equal(scores.total, [2, 2, 7, np.nan, 0, 9])
    assert any('the sum is used: 02 (7, items 2)' in note for note in scores.notes)
    assert any('less than the items that are there' in n and ': 04' in n for n in scores.notes)
    assert any('outside 0 to 42' in n and '05 (43)' in n for n in scores.notes)
    assert len(scores.notes) == 3


def test_totals_alone_are_read(tmp_path):
    path = tmp_path / 'isles.csv'
    path.write_text('patient_id;NIHSS\nstroke0001;12\nstroke0002;3\n')
    scores = read_scores(path)
    assert scores.total.to_dict() == {'stroke0001': 12, 'stroke0002': 3}
    assert scores.table.isna().all(axis=None)
    assert 'no column for nihss_1a' in scores.notes[0]


def test_rows_that_are_there_twice(table):
    path = table(
        {'participant_id': '01', 'nihss_2': 'n/a'},
        {'participant_id': '02'},
        {'participant_id': '01', 'nihss_2': '1'},
        {'participant_id': '02'},
    )
    scores = read_scores(path)
    assert scores.table.index.tolist() == ['01', '02']
    assert scores.table['nihss_2'].tolist() == [1, 0]
    assert scores.notes == ('rows that are there twice and agree are counted once: 01, 02',)


def test_unknown_and_missing_participants_are_told(table):
    path = table(
        {'participant_id': 'sub-01'}, {'participant_id': 'sub-09'}, {'participant_id': ''}
    )
    scores = read_scores(path, participants=['sub-01', '02'])
    assert scores.table.index.tolist() == ['01']
    assert [note[:1] for note in scores.notes] == ['1', '1', '1']
    assert 'without a participant' in scores.notes[0]
    assert scores.notes[1].endswith(': 09')
    assert scores.notes[2].endswith(': 02')


def test_leading_zeros_lost_by_a_spreadsheet_are_found_again(table):
    path = table({'participant_id': '7'}, {'participant_id': '8.0'})
    scores = read_scores(path, participants=['007', '008', '011'])
    assert scores.table.index.tolist() == ['007', '008']
    assert '7 as 007, 8 as 008' in scores.notes[0]


def test_leading_zeros_are_not_guessed_when_ambiguous(table):
    with pytest.raises(InputError, match='none of the participants'):
        read_scores(table({'participant_id': '7'}), participants=['07', '007'])


@pytest.mark.parametrize(
    ('sessions', 'used'),
    [(('followup', 'baseline'), 1), (('2', '10'), 0), (('ses-24h', 'ses-Admission'), 1)],
)
def test_baseline_session_is_the_default(table, sessions, used):
    rows = [{'session_id': s, 'nihss_1a': str(i)} for i, s in enumerate(sessions)]
    scores = read_scores(table(*rows))
    assert scores.table.loc['01', 'nihss_1a'] == used
    assert 'of several sessions' in scores.notes[0]
    other = read_scores(table(*rows), session=sessions[1 - used])
    assert other.table.loc['01', 'nihss_1a'] == 1 - used


def test_baseline_column_wins_over_another_of_the_same_item(table):
    scores = read_scores(table({'nihss_1a_baseline': '2'}))
    assert scores.table.loc['01', 'nihss_1a'] == 2
    assert 'both hold nihss_1a' in scores.notes[0]


def test_phenotype_goes_before_participants(table, tmp_path):
    table({'nihss_1a': '1', 'arm': '3', 'language': '2'}, name='participants.tsv')
    assert read_scores(tmp_path).table.loc['01', 'nihss_1a'] == 1
    table({'nihss_1a': '2'}, name='phenotype/nihss.tsv')
    assert read_scores(tmp_path).table.loc['01', 'nihss_1a'] == 2


def test_columns_that_say_nihss_and_are_not_understood_are_told(table):
    assert read_scores(table({'nihss_1a_24h': '1', 'age': '70'})).notes == (
        'columns that are not understood and left out: nihss_1a_24h',
    )


@pytest.mark.parametrize(
    ('content', 'reported'),
    [
        (b'', 'no rows'),
        (b'participant_id\tnihss_1a\n', 'no rows'),
        (b'name\tnihss_1a\nx\t1\n', 'no column identifies participants'),
        (b'participant_id\tage\n01\t1\n', 'no column holds an NIHSS item'),
        (b'participant_id\tnihss_1a\n01\t1\n02\n', 'row 3 has 1 cells'),
        (
            b'participant_id\tnihss_1a\tnihss_1a\n01\t1\t2\n',
            'more than one column nihss_1a (columns 2 and 3)',
        ),
        (b'\1\2\0\0\0', 'not a text table'),
    ],
)
def test_unreadable_table_is_an_input_error(tmp_path, content, reported):
    path = tmp_path / 'scores.tsv'
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_scores(path)
    assert reported in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_table_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match='neither phenotype'):
        read_scores(tmp_path)
    with pytest.raises(InputError, match='no such file'):
        read_scores(tmp_path / 'x.tsv')


def test_spreadsheet_export_with_byte_order_mark_and_umlauts(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_bytes('\ufeffparticipant_id,nihss_1a,Größe\n01,1,x\n'.encode())
    assert read_scores(path).table.loc['01', 'nihss_1a'] == 1
    path.write_bytes('participant_id;nihss_1a;Größe\n01;2;x\n'.encode('cp1252'))
    assert read_scores(path).table.loc['01', 'nihss_1a'] == 2


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(*(st.one_of(st.none(), st.integers(0, HIGHEST[item])) for item in ITEMS)),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read_again(tmp_path, rows):
    index = pd.Index([f'{n:03d}' for n in range(len(rows))], name='participant')
    values = pd.DataFrame(rows, index=index, columns=list(ITEMS), dtype=float)
    total = values.sum(axis=1).where(values.notna().all(axis=1)).rename(TOTAL)
    path = write_phenotype(Scores(values, total, (), tmp_path), tmp_path)
    back = read_scores(tmp_path)
    assert back.source == path
    assert not back.notes
    pd.testing.assert_frame_equal(back.table, values)
    pd.testing.assert_series_equal(back.total, total)


def test_sidecar_describes_every_column_and_nothing_else(tmp_path, table):
    path = write_phenotype(read_scores(table({})), tmp_path)
    sidecar = json.loads(path.with_suffix('.json').read_text())
    columns = path.read_text().splitlines()[0].split('\t')
    assert set(sidecar) - {'MeasurementToolMetadata'} == set(columns)


@pytest.mark.parametrize('seed', range(5))
def test_swapped_sides_are_noticed_and_right_ones_are_not(seed):
    rng = np.random.default_rng(seed)
    asymmetry = rng.normal(size=60)  # above 0: the left hemisphere is later
    index = [f'{n:02d}' for n in range(60)]
    values = pd.DataFrame(0.0, index=index, columns=list(ITEMS))
    values['nihss_5b'] = np.clip(np.round(2 * asymmetry + rng.normal(size=60)), 0, 4)
    values['nihss_5a'] = np.clip(np.round(-2 * asymmetry + rng.normal(size=60)), 0, 4)
    total = values.sum(axis=1)
    by_name = dict(zip(index, asymmetry, strict=True))
    assert check_sides(Scores(values, total, (), Path()), by_name) is None
    swapped = values.rename(columns={'nihss_5a': 'nihss_5b', 'nihss_5b': 'nihss_5a'})
    warning = check_sides(Scores(swapped, total, (), Path()), by_name)
    assert 'swap a and b' in warning
    few = {name: by_name[name] for name in index[:5]}
    assert check_sides(Scores(swapped, total, (), Path()), few) is None
