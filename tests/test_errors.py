"""What is printed is one line that a terminal displays and does not obey."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_perfdeficit.errors import InputError, printable


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('plain', 'plain'),
        ('Müller, 患者', 'Müller, 患者'),
        ('a\nb', r'a\nb'),
        ('a\r\tb', r'a\r\tb'),
        ('\x1b[2J', r'\x1b[2J'),
        ('\x9b31m', r'\x9b31m'),
        ('caf\udce9', r'caf\xe9'),
        ('\ud800', r'\ud800'),
        ('\u202eb', r'\u202eb'),
        ('a\u2028b', r'a\u2028b'),
        ('a\u200bb', r'a\u200bb'),
        (Path('x/y'), 'x/y'),
    ],
)
def test_what_cannot_be_printed_is_escaped(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_any_text_becomes_one_line_that_can_be_encoded(text):
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert shown == text or not text.isprintable()
    assert printable(shown) == shown


def test_an_input_error_is_one_line_and_survives_pickling():
    error = InputError('holds\n"x"', fix='remove \x1b', path='a\udce9/b')
    assert str(error) == r'a\xe9/b: holds\n"x"; remove \x1b.'
    assert str(copy.copy(error)) == str(error)  # by the same way as pickling
    assert error.path == 'a\udce9/b'
