"""Settings survive TOML, and tell what is wrong with a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_perfdeficit.settings import (
    InputSettings,
    Level,
    OutputSettings,
    ProcessingSettings,
    ResourceSettings,
    Settings,
    option_fields,
)

LABEL = st.text('abcXYZ019', min_size=1, max_size=5)


@given(
    labels=st.lists(LABEL, max_size=3),
    seed=st.integers(0, 2**31 - 1),
    level=st.sampled_from(list(Level)),
    mem=st.just(0.0) | st.floats(1, 1e4),
    work_dir=st.none() | LABEL.map(Path),
    sloppy=st.booleans(),
)
def test_a_run_survives_the_round_trip_through_toml(labels, seed, level, mem, work_dir, sloppy):
    settings = Settings(
        inputs=InputSettings(bids_dir=Path('in'), participant_label=tuple(labels)),
        processing=ProcessingSettings(level=level, random_seed=seed, sloppy=sloppy),
        resources=ResourceSettings(mem=mem, work_dir=work_dir),
        outputs=OutputSettings(verbose=2),
    )
    assert Settings.from_toml(settings.to_toml()) == settings


def test_every_problem_of_a_file_is_told_at_once():
    text = '[processing]\nlevel = "maximal"\nrandom_seed = "x"\ncolour = 1\n[inputz]\n'
    with pytest.raises(ValueError) as caught:
        Settings.from_toml(text)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert any("'maximal' is not one of minimal, full" in line for line in lines)
    assert any('processing.colour is not an option' in line for line in lines)
    assert any('inputz is not an option' in line for line in lines)


def test_text_that_is_no_toml_is_told():
    with pytest.raises(ValueError, match='not valid TOML'):
        Settings.from_toml('[processing')


def test_a_number_may_not_stand_for_yes_and_no():
    with pytest.raises(ValueError, match=r'processing\.sloppy: 1 is neither true nor false'):
        Settings.from_toml('[processing]\nsloppy = 1\n')


def test_a_fraction_may_not_stand_for_a_count():
    with pytest.raises(ValueError, match=r'2\.5 is not a whole number'):
        Settings.from_toml('[resources]\nnprocs = 2.5\n')


def test_no_two_tables_share_a_key_so_that_an_option_names_one_place():
    keys = [key for _, key in option_fields()]
    assert len(keys) == len(set(keys))


def test_settings_cannot_be_changed_under_a_run():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().processing.sloppy = True  # type: ignore[misc]


def test_sloppy_runs_are_coarse():
    assert ProcessingSettings(sloppy=True).spacing > ProcessingSettings().spacing == 1.0


@pytest.mark.parametrize(
    ('text', 'reported'),
    [
        ('[perfusion]\nfloor = -1.0', ['perfusion.floor -1: must be 0.0001 to 1']),
        ('[perfusion]\nfloor = nan\nbone = inf', ['perfusion.floor nan', 'perfusion.bone inf']),
        ('[resources]\nmem = 0.5\nnprocs = -1', ['resources.nprocs -1', 'resources.mem 0.5']),
        ('[group]\nfolds = 1\n[outputs]\nverbose = -1', ['group.folds 1', 'outputs.verbose -1']),
        ('[resources]\nnprocs = inf', ['resources.nprocs: inf is not a whole number']),
        ('[resources]\nmem = 1e999', ['resources.mem inf']),
        (f'[resources]\nmem = 1{"0" * 400}', ['resources.mem: ']),
        (f'[resources]\nnprocs = 1{"0" * 5000}', ['not valid TOML']),
        (f'x = {"[" * 100_000}', ['not valid TOML: nested too deeply']),
        ('[resources]\nwork_dir = "a\\u0000b"', ['holds control characters']),
        ('[resources]\nwork_dir = "a\\nb"', ['holds control characters']),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_table(text, reported):
    with pytest.raises(ValueError) as caught:
        Settings.from_toml(text)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(reported)
    assert all(piece in line for piece, line in zip(reported, lines, strict=True)), lines
