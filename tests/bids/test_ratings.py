"""Ratings by people are read like any table, and what is not a rating is refused with its row."""

from __future__ import annotations

import pytest

from bids_perfdeficit.bids.ratings import RATINGS, Rating, find_rating, read_ratings
from bids_perfdeficit.errors import InputError

HEAD = 'participant_id\tsession_id\trating\tremark\n'


def test_a_rating_of_a_session_goes_before_that_of_the_participant(tmp_path):
    (tmp_path / RATINGS).write_text(
        HEAD + 'sub-01\tn/a\tPass\tn/a\nsub-01\tses-b\tfail\tmoved, twice\nsub-02\tn/a\tn/a\tx\n'
    )
    found = read_ratings(tmp_path)
    assert find_rating(found, '01', 'a') == Rating('pass')
    assert find_rating(found, '01', 'b') == Rating('fail', 'moved, twice')
    assert find_rating(found, '02', '') is None
    assert read_ratings(tmp_path / 'elsewhere') == {}


def test_excel_and_names_with_a_session_are_read_too(tmp_path):
    text = 'participant_id;rating;remark\n01_ses-b;doubt;noisy\n02;fail;\n'
    (tmp_path / RATINGS).write_text(text, encoding='utf-16')
    found = read_ratings(tmp_path)
    assert found == {('01', 'b'): Rating('doubt', 'noisy'), ('02', ''): Rating('fail')}


@pytest.mark.parametrize(
    ('rows', 'said'),
    [
        ('sub-01\tn/a\tgood\t\nsub-02\tn/a\tpass\t\n', "sub-01 has the rating 'good'"),
        ('sub-01\tn/a\tpass\t\nsub-01\tn/a\tfail\t\n', "sub-01 is rated 'pass' and 'fail'"),
    ],
)
def test_what_is_no_rating_is_refused(tmp_path, rows, said):
    (tmp_path / RATINGS).write_text(HEAD + rows)
    with pytest.raises(InputError, match=said):
        read_ratings(tmp_path)


def test_a_table_without_ratings_is_refused(tmp_path):
    (tmp_path / RATINGS).write_text('participant_id\tremark\nsub-01\tx\nsub-02\ty\n')
    with pytest.raises(InputError, match='no column "rating"'):
        read_ratings(tmp_path)
