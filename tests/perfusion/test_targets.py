"""What the networks are fitted to."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bids_perfdeficit.perfusion.targets import LONGEST_S, hypoperfusion, lateness

DELAYS = arrays(float, st.integers(2, 40), elements=st.floats(0, 60))


@given(DELAYS)
def test_lateness_has_the_order_of_the_delay(delay):
    late = lateness(delay)
    for a, b in zip(*np.triu_indices(len(delay), 1), strict=True):
        assert np.sign(late[a] - late[b]) == np.sign(delay[a] - delay[b])


def test_seconds_beyond_the_longest_count_no_more_but_their_order_does():
    late = lateness(np.array([0.0, LONGEST_S, LONGEST_S + 10]))
    np.testing.assert_allclose(np.diff(late), [1 / 3 + LONGEST_S / 8, 1 / 3])


def test_hypoperfusion_is_even_odds_at_six_seconds():
    assert hypoperfusion(np.array([6.0])) == 0.5
    np.testing.assert_allclose(hypoperfusion(np.array([4.0, 8.0])).sum(), 1)
