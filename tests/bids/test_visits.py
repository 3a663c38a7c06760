"""Which examination belongs to a map: the session, then time, never the alphabet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bids_perfdeficit.bids.visits import choose_rows, order_sessions, session_key, visit_hours
from bids_perfdeficit.errors import InputError


def choose(rows: list[dict[str, str]], **options):
    """Return the score of each participant, its examination and the notes."""
    frame = pd.DataFrame(rows, dtype=object).fillna('')
    frame.index = range(2, len(frame) + 2)
    notes: list[str] = []
    found, seen = choose_rows(frame, 'id', ['score'], path=Path('t.tsv'), notes=notes, **options)
    return found.set_index('id')['score'].to_dict(), seen.to_dict(), notes


def rows(column: str, names: list[str]) -> list[dict[str, str]]:
    return [{'id': 'a', column: name, 'score': str(n)} for n, name in enumerate(names)]


@pytest.mark.parametrize(
    ('column', 'names', 'wanted'),
    [
        ('session_id', ['followup', 'baseline'], '1'),
        ('session_id', ['24h', 'admission', 'day90'], '1'),
        ('session_id', ['discharge', 'day1'], '1'),
        ('session_id', ['acute', 'chronic'], '0'),
        ('session_id', ['subacute', 'acute'], '1'),
        ('session_id', ['ses-10', 'ses-2'], '1'),
        ('visit', ['Visit 2', 'Visit 1'], '1'),
        ('visit', ['V10', 'V9'], '1'),
        ('visit', ['month3', 'week1'], '1'),
        ('visit', ['90d', '24 hours', 'hour 2'], '2'),
        ('visit', ['post', 'pre'], '1'),
        ('visit', ['zzz', 'baseline'], '1'),
        ('visit', ['pre-stroke', 'admission'], '1'),
        ('redcap_event_name', ['discharge_arm_1', 'baseline_arm_1'], '1'),
        ('redcap_event_name', ['90d_followup_arm_2', '24h_arm_2'], '1'),
        ('exam_date', ['2024-03-02', '2024-03-01'], '1'),
        ('exam_date', ['02.01.2024', '28.12.2023'], '1'),
        ('exam_date', ['13/02/2024', '05/01/2024'], '1'),
        ('exam_date', ['2024-03-01 14:00', '2024-03-01 09:30'], '1'),
        ('hours_from_onset', ['26.5', '3'], '1'),
        ('acq_time_from_onset', ['26,5', '2,5'], '1'),
        ('days_from_onset', ['90', '0'], '1'),
        ('redcap_repeat_instance', ['2', '1'], '1'),
        ('nihss_date', ['n/a', '2024-01-01'], None),
        ('visit', ['alpha', 'beta'], None),
        ('visit', ['stroke_unit_arm_1', 'ward_arm_1'], None),
        ('visit', ['24h', 'ward'], None),
        ('exam_date', ['03/02/2024', '02/03/2024'], None),
        ('rater', ['ab', 'cd'], None),
    ],
)
def test_the_earliest_examination_is_used_or_the_choice_is_left_to_the_user(column, names, wanted):
    if wanted is None:
        with pytest.raises(InputError) as caught:
            choose(rows(column, names))
        assert '--session-label' in caught.value.fix
        assert 'a (rows 2, 3)' in caught.value.reason
        return
    scores, seen, notes = choose(rows(column, names))
    assert scores == {'a': wanted}
    assert any('of several sessions' in note for note in notes)
    if column in ('session_id', 'visit', 'redcap_event_name', 'exam_date'):
        assert seen['a'] == names[int(wanted)].removeprefix('ses-')


@pytest.mark.parametrize('blank', ['', 'n/a', '-9', '999'])
def test_rows_without_a_score_go_first(blank):
    scores, seen, _ = choose(
        [
            {'id': 'a', 'visit': 'baseline', 'score': blank},
            {'id': 'a', 'visit': 'stroke unit', 'score': '3'},
            {'id': 'b', 'visit': 'baseline', 'score': blank},
        ]
    )
    assert scores == {'a': '3', 'b': blank}  # b stays, to be reported
    assert seen['a'] == 'stroke unit'


def test_the_session_of_the_map_goes_before_time():
    table = [
        {'id': p, 'session_id': s, 'score': f'{p}{s}'} for p in 'ab' for s in ('01', '02', '03')
    ]
    maps = {'a': '2', 'b': '03'}
    scores, seen, _ = choose(table, map_sessions=maps)
    assert scores == {'a': 'a02', 'b': 'b03'}
    assert seen == {'a': '02', 'b': '03'}


def test_who_has_no_row_of_the_session_of_the_map_is_left_out():
    table = [
        {'id': 'a', 'session_id': '01', 'score': '1'},
        {'id': 'b', 'session_id': '02', 'score': '2'},
    ]
    scores, _, notes = choose(table, map_sessions={'a': '01', 'b': '01'})
    assert scores == {'a': '1'}
    assert any('for b; left out' in note for note in notes)


def test_sessions_of_other_names_than_those_of_the_maps_are_ordered_by_time():
    table = [
        {'id': 'a', 'visit': 'day90', 'score': '1'},
        {'id': 'a', 'visit': 'baseline', 'score': '2'},
    ]
    assert choose(table, map_sessions={'a': '01'})[0] == {'a': '2'}


@pytest.mark.parametrize('named', ['day90', 'ses-day90', 'Day 90', 'day_90'])
def test_the_session_that_was_asked_for_is_used_whatever_the_map_has(named):
    table = [
        {'id': 'a', 'visit': 'day90', 'score': '1'},
        {'id': 'a', 'visit': 'baseline', 'score': '2'},
    ]
    assert choose(table, session=named, map_sessions={'a': 'baseline'})[0] == {'a': '1'}


def test_a_session_that_the_table_has_not_is_refused_with_those_it_has():
    with pytest.raises(InputError, match=r'no row of session 05 \(the table has 01, 02\)'):
        choose([{'id': 'a', 'session_id': s, 'score': '1'} for s in ('01', '02')], session='05')


def test_rows_that_agree_are_one_examination_and_complete_each_other():
    table = pd.DataFrame(
        {'id': ['a', 'a'], 'x': ['1', ''], 'y': ['', '2'], 'visit': ['base', 'base']},
        index=[2, 3],
    )
    notes: list[str] = []
    found, _ = choose_rows(table, 'id', ['x', 'y'], path=Path('t'), notes=notes)
    assert found[['x', 'y']].to_numpy().tolist() == [['1', '2']]
    assert notes == ['rows that are there twice and agree are counted once: a']


def test_different_examinations_that_agree_are_not_refused():
    assert choose(rows('rater', ['x', 'y'])[:1] * 2)[0] == {'a': '0'}
    same = [{'id': 'a', 'rater': r, 'score': s} for r, s in (('x', '2'), ('y', '2.0'))]
    assert choose(same)[0] == {'a': '2'}


def test_what_changed_is_never_dropped():
    """Two examinations of 40: kept are all or none, not those who stayed the same."""
    table = [{'id': str(n), 'score': str(n % 3)} for n in range(40)]
    better = [{'id': str(n), 'score': str(max(0, n % 3 - 1))} for n in range(40)]
    with pytest.raises(InputError, match='26 participant') as caught:
        choose(table + better)
    assert 'session' in str(caught.value)


@pytest.mark.parametrize(
    ('a', 'b', 'same'),
    [('ses-01', '1', True), ('Day_1', 'day 01', True), ('baseline_arm_1', 'Baseline', True),
     ('day1', 'day10', False), ('1', '10', False)],
)  # fmt: skip
def test_names_of_one_session(a, b, same):
    assert (session_key(a) == session_key(b)) is same


def test_order_of_sessions_of_maps():
    assert order_sessions(['b', 'a']) is None
    order = order_sessions(['02', '10', '1'])
    assert sorted(order, key=order.__getitem__) == ['1', '02', '10']
    assert visit_hours('²') is None
    assert order_sessions(['9' * 5000, '1']) is not None


def test_a_total_of_0_on_an_empty_form_is_no_examination():
    table = pd.DataFrame(
        {'id': ['a', 'a', 'b'], 'visit': ['baseline', 'ward', 'baseline'],
         'x': ['', '2', ''], 'total': ['0', '2', '7']},
        dtype=object,
    )  # fmt: skip
    found, seen = choose_rows(
        table, 'id', ['x', 'total'], path=Path('t'), notes=[], summary='total'
    )
    assert found.set_index('id')['total'].to_dict() == {'a': '2', 'b': '7'}
    assert seen['a'] == 'ward'
