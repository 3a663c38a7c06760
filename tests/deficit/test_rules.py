"""Which items can be fitted."""

from __future__ import annotations

import numpy as np
import pytest

from bids_perfdeficit.deficit import DeficitSettings, Item
from bids_perfdeficit.deficit.rules import usable_items


@pytest.mark.parametrize(
    ('counts', 'reason'),
    [
        ((20, 20, 0, 0), ''),
        ((1, 20, 20, 5), ''),  # nearly all have a deficit, but of another degree
        ((0, 20, 20, 0), ''),
        ((36, 4, 0, 0), 'only 4 participants have a deficit'),
        ((4, 36, 0, 0), 'only 4 participants are free of a deficit'),
        ((2, 2, 36, 0), 'only 2 participants are free of a deficit'),
        ((0, 0, 0, 40), 'only 0 participants are free of a deficit'),
        ((5, 5, 5, 4), 'only 19 participants have a score'),
        ((0, 0, 0, 0), 'no participant has a score'),
    ],
)
def test_an_item_is_fitted_where_some_level_divides_the_cohort(counts, reason):
    score = np.repeat([0.0, 1.0, 2.0, 3.0, np.nan], [*counts, 3])
    usable, skipped = usable_items(score[:, None], (Item('x', 4),), DeficitSettings())
    assert usable == ([] if reason else [0])
    assert skipped.get('x', '').startswith(reason)
