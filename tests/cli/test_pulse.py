"""A run that is silent for a while says what is at work; one that speaks is left to speak."""

from __future__ import annotations

import threading

from bids_perfdeficit.cli.logbook import Progress
from bids_perfdeficit.cli.pulse import SILENCE_S, Pulse


def test_silence_is_broken_and_ends_with_the_block():
    said, heard = [], threading.Event()

    def say(line: str) -> None:
        said.append(line)
        heard.set()

    with Pulse(say, lambda: 'at work', silence=0.01).beating():
        assert heard.wait(30)
    count = len(said)
    assert set(said) == {'at work'}
    assert not any(t.name.endswith('(beat)') for t in threading.enumerate())
    assert len(said) == count


def test_nothing_is_said_without_a_state_or_after_a_word():
    said, asked = [], threading.Event()

    def state() -> str:
        asked.set()
        return ''

    with Pulse(said.append, state, silence=0.01).beating():
        assert asked.wait(30)
    assert said == []
    assert SILENCE_S < 20


def test_the_longest_running_step_is_named():
    class Node:
        fullname, base_dir, name = 'wf.sub_01_wf.register_cta', None, 'register_cta'

    progress = Progress()
    assert progress._running() == ''
    progress.labels['sub_01_wf'] = 'sub-01'
    progress.total = 16
    progress(Node(), 'start')
    assert progress._running().startswith('sub-01: register_cta has run for 0 s (0 of 16 steps')
