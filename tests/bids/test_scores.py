"""Scores of any kind: how columns are numbered, totals, other scales, ISLES'24 as released."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest

from bids_perfdeficit.bids import ITEMS, read_scores
from bids_perfdeficit.bids.nihss import TOTAL, highest_score, parse_column
from bids_perfdeficit.bids.scores import nihss_name
from bids_perfdeficit.bids.tables import read_numbers, read_table
from bids_perfdeficit.errors import InputError


def truth(count: int = 30, seed: int = 0) -> pd.DataFrame:
    """Return scores that reach the ends of each item's range."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {item: rng.integers(0, highest_score(item) + 1, count) for item in ITEMS},
        index=[f'{n:02d}' for n in range(count)],
    )
    table.iloc[0] = [highest_score(item) for item in ITEMS]
    return table


def save(table: pd.DataFrame, path: Path, **more: object) -> Path:
    table.assign(**more).to_csv(path, index_label='participant_id')
    return path


def numbered(pattern: str, start: int = 1) -> dict[str, str]:
    return {item: pattern.format(n) for n, item in enumerate(ITEMS, start)}


@pytest.mark.parametrize('pattern', ['NIHSS{}', 'nihss_{:02d}', 'X{}', 'item {}', '{}', 'Q{}'])
@pytest.mark.parametrize('start', [0, 1])
def test_items_numbered_through_are_read_in_the_order_of_the_form(tmp_path, pattern, start):
    table = truth()
    path = save(table.rename(columns=numbered(pattern, start)), tmp_path / 'a.csv')
    scores = read_scores(path)
    np.testing.assert_array_equal(scores.table, table)
    assert any('numbered through' in note for note in scores.notes)


@pytest.mark.parametrize(
    'names',
    [
        numbered('NIHSS{}') | {'nihss_11': 'NIHSS16'},  # one is missing
        dict(zip(ITEMS[::-1], numbered('NIHSS{}').values(), strict=True)),  # ranges do not fit
        {i: f'nihss_{i.removeprefix("nihss_").rstrip("abc")}' for i in ITEMS if i[-1] not in 'bc'},
        {i: f'NIHSS{n}' for n, i in enumerate(ITEMS[:13], 1)},
        {i: f'NIHSS{n}' for n, i in enumerate(ITEMS[:3], 1)},  # visits 1 to 3?
        {'nihss_2': 'nihss_2', 'nihss_3': 'nihss_3', 'nihss_5a': 'nihss_12'},
        {'nihss_1a': 'nihss_1a', 'nihss_1b': 'nihss_1b', 'nihss_2': 'nihss_2',
         'nihss_5a': 'nihss_5', 'nihss_6a': 'nihss_6', 'nihss_7': 'nihss_7'},
    ],
)  # fmt: skip
def test_another_numbering_is_refused(tmp_path, names):
    path = save(truth()[list(names)].rename(columns=names), tmp_path / 'a.csv')
    with pytest.raises(InputError, match='numbered in another way') as caught:
        read_scores(path)
    assert 'nihss_5a (left arm)' in caught.value.fix


def test_a_sum_beside_its_parts_is_no_other_numbering(tmp_path):
    table = truth()
    path = save(table, tmp_path / 'a.csv', nihss_1=1, nihss_5=2, nihss_6=3, nihss_12=0)
    scores = read_scores(path)
    np.testing.assert_array_equal(scores.table, table)
    assert any('not understood' in note for note in scores.notes)


def test_many_values_out_of_range_are_another_item(tmp_path):
    table = truth()
    path = save(table.assign(nihss_7=table['nihss_5a']), tmp_path / 'a.csv')
    with pytest.raises(InputError, match=r"column 'nihss_7': \d+ of 30 values are outside 0 to 2"):
        read_scores(path)


def test_words_of_a_column_win_over_its_number():
    assert parse_column('nihss_8_motor_arm_right') == (
        'nihss_5b', 'the words win over the number',
    )  # fmt: skip
    assert parse_column('nihss_5a_language') is None


def test_a_column_that_is_there_twice_under_names_of_r_or_pandas(tmp_path):
    table = truth()
    same = read_scores(save(table.assign(**{'nihss_9.1': table['nihss_9']}), tmp_path / 'a.csv'))
    np.testing.assert_array_equal(same.table, table)
    with pytest.raises(InputError, match=r"'nihss_9' and 'nihss_9\.1'"):
        read_scores(save(table.assign(**{'nihss_9.1': 0}), tmp_path / 'b.csv'))


def test_two_columns_of_one_item_that_differ_are_refused(tmp_path):
    with pytest.raises(InputError, match="'nihss_9' and 'NIHSS language' both hold nihss_9"):
        read_scores(save(truth().assign(**{'NIHSS language': 0}), tmp_path / 'a.csv'))


def test_contradicting_totals_are_reported_with_their_number(tmp_path):
    table = truth()
    total = table.sum(axis=1)
    total.iloc[1:5] += 3
    notes = read_scores(save(table, tmp_path / 'a.csv', nihss_total=total)).notes
    assert any('not the sum of the items in 4 of 30 participants' in note for note in notes)


@pytest.mark.parametrize(
    ('name', 'meant'),
    [('5a', 'nihss_5a'), ('nihss_05a', 'nihss_5a'), ('NIHSS 11', 'nihss_11'), ('total', TOTAL),
     ('nihss', TOTAL), ('nihss_total', TOTAL), ('5', None), ('12', None), ('mrs', None),
     ('²', None)],
)  # fmt: skip
def test_names_of_items(name, meant):
    assert nihss_name(name) == meant


def other(path: Path, text: str, name: str = 'x.csv') -> Path:
    (path / name).write_text(text)
    return path / name


def test_any_column_is_a_score(tmp_path):
    path = other(
        tmp_path,
        'id,NIHSS,mRS 90,volume,grip\n1,3,2,10.5,7\n2,40,6,"11,5",8\n3,,9,n/a,9\n'
        '4,1,4 - severe,0,x\n',
    )
    scores = read_scores(path, items=['nihss_total', 'mrs', 'volume', 'grip'])
    np.testing.assert_array_equal(scores.total, [3, 40, np.nan, 1])
    np.testing.assert_array_equal(scores.others['mrs'], [2, 6, np.nan, 4])
    np.testing.assert_array_equal(scores.others['volume'], [10.5, 11.5, np.nan, 0])
    assert scores.scales['mrs'] == (0, 1, 2, 3, 4, 5, 6)
    notes = ' '.join(scores.notes)
    assert 'mrs: outside 0 to 6, taken as missing: 3 (9)' in notes or '9 (1)' in notes
    assert 'grip: not a number, taken as missing: 4 (x)' in notes


def test_a_name_that_may_be_several_columns_is_refused(tmp_path):
    path = other(tmp_path, 'id,mRS at admission,mRS 3 months\n1,3,2\n')
    with pytest.raises(InputError, match='may be any of the columns'):
        read_scores(path, items=['mrs'])
    found = read_scores(path, items=['mRS 3 months', 'mrs_at_admission'])
    assert found.others.to_numpy().tolist() == [[2, 3]]


def test_levels_come_from_the_sidecar(tmp_path):
    path = other(tmp_path, 'id,aphasia_type\n1,none\n2,Severe\n3,7\n4,1\n')
    levels = {'0': 'None', '1': 'mild', '2': {'Description': 'severe'}, '7': 'not assessed'}
    other(tmp_path, json.dumps({'aphasia_type': {'Levels': levels}}), 'x.json')
    scores = read_scores(path, items=['aphasia_type'])
    np.testing.assert_array_equal(scores.others['aphasia_type'], [np.nan, 2, np.nan, 1])
    assert scores.scales['aphasia_type'] == (0, 1, 2)


def test_words_are_no_score(tmp_path):
    with pytest.raises(InputError, match='words rather than numbers'):
        read_scores(other(tmp_path, 'id,sex\n1,f\n2,m\n'), items=['sex'])


def test_a_score_of_another_table_of_the_dataset_is_found(tmp_path):
    (tmp_path / 'phenotype').mkdir()
    save(truth(3), tmp_path / 'phenotype/x.csv').rename(tmp_path / 'phenotype/nihss.tsv')
    other(tmp_path, 'participant_id\tmrs\n00\t1\n02\t5\n', 'participants.tsv')
    other(tmp_path / 'phenotype', 'participant_id\tmoca\n01\t20\n', 'moca.tsv')
    scores = read_scores(tmp_path, items=['nihss_9', 'mrs', 'moca'])
    np.testing.assert_array_equal(scores.others['mrs'], [1, np.nan, 5])
    np.testing.assert_array_equal(scores.others['moca'], [np.nan, 20, np.nan])
    assert scores.table['nihss_9'].notna().all()


def test_scores_that_are_measured_at_different_visits_are_each_found(tmp_path):
    path = other(
        tmp_path,
        'id,visit,nihss_9,mrs\n1,baseline,3,\n1,day90,0,2\n2,baseline,1,\n2,day90,1,4\n',
    )
    scores = read_scores(path, items=['nihss_9', 'mrs'])
    assert scores.table['nihss_9'].tolist() == [3, 1]
    assert scores.others['mrs'].tolist() == [2, 4]
    assert scores.session_of('nihss_9').tolist() == ['baseline', 'baseline']
    assert scores.session_of('mrs').tolist() == ['day90', 'day90']


def test_a_wide_table_of_another_visit_is_refused(tmp_path):
    path = other(tmp_path, 'id,nihss_9_baseline\n1,3\n')
    assert read_scores(path).table['nihss_9'].tolist() == [3]
    with pytest.raises(InputError, match='another examination than session day90'):
        read_scores(path, session='day90')


def test_the_layout_of_a_table_that_has_no_columns_of_scores_is_named(tmp_path):
    table = truth(4).rename(index=lambda label: f'p{label}')
    path = tmp_path / 'a.csv'
    table.T.to_csv(path, index_label='ID')
    with pytest.raises(InputError, match='participants are its columns: transpose it'):
        read_scores(path, participants=list(table.index))
    long = table.melt(ignore_index=False, var_name='what', value_name='score')
    long.to_csv(path, index_label='ID')
    with pytest.raises(InputError, match="column 'what' names items: give one column per item"):
        read_scores(path)


def test_ids_in_names_of_bids_carry_their_session(tmp_path):
    path = other(tmp_path, 'participant_id,nihss_9\nsub-01_ses-02,1\nsub-01_ses-01,2\n')
    assert read_scores(path).table['nihss_9'].tolist() == [2]


@pytest.mark.parametrize(
    ('there', 'label'),
    [('7', '007'), ('7.0', '007'), ('SUB-007', '007'), ('stroke7', 'stroke0007'),
     ('ISLES-07', 'ISLES07'), ('p7', 'P007')],
)  # fmt: skip
def test_names_of_participants_are_found_again(tmp_path, there, label):
    path = other(tmp_path, f'participant_id,nihss_9\n{there},2\nx,1\n')
    assert read_scores(path, participants=[label, '11']).table.index.tolist() == [label]


def test_two_names_that_fit_one_participant_are_not_guessed(tmp_path):
    path = other(tmp_path, 'participant_id,nihss_9\n7,2\n07,1\n8,1\n')
    scores = read_scores(path, participants=['007', '008'])
    assert scores.table.index.tolist() == ['008']
    assert any('no images' in note and '7, 07' in note for note in scores.notes)


# ISLES'24 as released: a workbook per patient and session.


def book(path: Path, row: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    workbook = openpyxl.Workbook()
    workbook.active.append(list(row))
    workbook.active.append(list(row.values()))
    workbook.save(path)


@pytest.fixture
def isles(tmp_path):
    for n in range(1, 5):
        label = f'sub-stroke{n:04d}'
        folder = tmp_path / 'phenotype' / label
        admission = {'Age': 60 + n, 'Sex': 'F', 'NIHSS at admission': float(3 * n),
                     'mRS at admission': n % 6, 'Onset to door': '01:30'}  # fmt: skip
        book(folder / 'ses-01' / f'{label}_ses-01_demographic_baseline.xlsx', admission)
        outcome = {'mRS 3 months': None if n == 2 else n}
        book(folder / 'ses-02' / f'{label}_ses-02_outcome.xlsx', outcome)
    return tmp_path


@pytest.mark.parametrize('inside', ['', 'phenotype'])
def test_isles24_is_read_as_released(isles, inside):
    labels = [f'stroke{n:04d}' for n in range(1, 5)]
    scores = read_scores(
        isles / inside,
        participants=labels,
        items=['nihss_total', 'mRS at admission', 'mRS 3 months'],
        map_sessions=dict.fromkeys(labels, '01'),
    )
    assert scores.total.tolist() == [3, 6, 9, 12]
    np.testing.assert_array_equal(scores.others['mRS 3 months'], [1, np.nan, 3, 4])
    assert scores.others['mRS at admission'].tolist() == [1, 2, 3, 4]


def test_a_damaged_workbook_costs_its_patient_alone(isles):
    next(isles.glob('phenotype/sub-stroke0003/ses-01/*.xlsx')).write_bytes(b'PK\x03\x04 cut')
    scores = read_scores(isles, items=['nihss_total'])
    assert scores.total.notna().tolist() == [True, True, False, True]
    assert any('sub-stroke0003_ses-01' in note and 'left out' in note for note in scores.notes)


def test_workbooks_of_which_none_can_be_read_are_refused(isles):
    for path in isles.glob('phenotype/*/*/*.xlsx'):
        path.write_bytes(b'')
    with pytest.raises(InputError, match='none of 8 workbooks can be read'):
        read_scores(isles)


def test_the_table_of_soop_is_read_as_it_is(shared_data):
    path = shared_data / 'lesions/soop/participants.tsv'
    scores = read_scores(path, items=['nihss_total', 'gs_rankin_6isdeath'])
    assert len(scores.total) == 1000
    assert scores.total.notna().sum() == 647
    assert scores.others['gs_rankin_6isdeath'].notna().sum() == 430
    assert scores.scales['gs_rankin_6isdeath'] == (0, 1, 2, 3, 4, 5, 6)
    table = read_table(path)
    assert not table.notes
    ages = read_numbers(table.cells['age'], name='age')
    assert ages.notes == ('taken as the bound: 89+ (30)',)
    assert (ages.values.notna().sum(), ages.values.max()) == (647, 89)
