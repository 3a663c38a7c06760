"""What the benchmarks of the deficit models rest on: no shared code, no shared seeds."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

FOLDER = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in ('families', 'measures', 'peers'):
        sys.modules.pop(name, None)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


@pytest.mark.parametrize(
    ('script', 'allowed'),
    [
        ('families.py', {'bids_perfdeficit.phantom'}),
        ('measures.py', set()),
        ('peers.py', set()),
    ],
)
def test_what_makes_and_judges_cohorts_shares_no_code_with_the_models(script, allowed):
    own = {name for name in imports_of(FOLDER / script) if name.startswith('bids_perfdeficit')}
    assert own == allowed


def test_development_and_held_out_cohorts_differ():
    from families import seeds_of

    for family in ('made', 'phantom', 'shapes', 'lesions'):
        development, held_out = (seeds_of(name, family) for name in ('development', 'held_out'))
        assert len(development) == len(held_out) == 5
        assert not set(development) & set(held_out)


def test_shapes_are_one_sided_where_they_should_be_and_of_their_sizes():
    from families import brain, draw_shapes

    space = brain(6.0)
    shapes = {shape.name: shape for shape in draw_shapes(space, np.random.default_rng(3))}
    assert len(shapes) == 8
    for name, shape in shapes.items():
        x = space.coordinates[shape.whole, 0]
        assert len(x), name
        one_sided = (x >= -6).all() or (x <= 6).all()
        assert one_sided == (name != 'bilateral'), name
    assert 15 < shapes['large'].whole.sum() * space.voxel_ml < 45
    assert len(shapes['tract-1'].pieces) == 6


def test_drives_follow_their_links():
    from families import Shape

    first, second = np.eye(4, dtype=bool)[:2]
    maps = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1.0]])
    drives = {link: Shape('x', (first, second), link).drive(maps) for link in
              ('hill', 'disconnection', 'and', 'either', 'early')}  # fmt: skip
    for link, drive in drives.items():
        assert drive[2] == 0, link
        assert drive[1] > 0.9, link
    assert drives['and'][0] == 0
    for link in ('disconnection', 'either'):
        assert drives[link][0] == drives[link][1]
    assert 0 < drives['hill'][0] < drives['hill'][1]


def test_bins_count_every_voxel_once():
    from measures import BINS, count_bins

    rng = np.random.default_rng(1)
    p = np.r_[0, 1, rng.random(500)]
    truth = rng.random(502) < p
    bins = np.array(count_bins(p, truth))
    assert len(bins) == len(BINS) - 1
    np.testing.assert_allclose(bins.sum(0), [502, p.sum(), truth.sum()])


def test_the_smallest_set_is_the_credible_set():
    from measures import smallest_set

    from bids_perfdeficit.deficit.rules import credible_set

    p = np.random.default_rng(0).beta(0.2, 3, 500)
    np.testing.assert_array_equal(smallest_set(p, 0.9), credible_set(p))


def test_brunner_munzel_is_that_of_scipy():
    from peers import Peers, brunner_munzel

    rng = np.random.default_rng(2)
    maps = (rng.random((60, 5)) < 0.4).astype(float)
    score = np.rint(2 * maps[:, 0] + rng.normal(size=60))
    peers = Peers(maps, np.ones((5, 1, 1), bool), given=True)
    effect, declared = brunner_munzel(peers, np.arange(60), score)
    design = np.c_[np.ones(60), peers.volume]
    rest = score - design @ np.linalg.lstsq(design, score, rcond=None)[0]
    for voxel in range(5):
        inside = maps[:, voxel] > 0
        # scipy's statistic is that of the first sample against the second, with this sign
        wanted = stats.brunnermunzel(rest[~inside], rest[inside]).statistic
        assert effect[voxel] == pytest.approx(max(wanted, 0), rel=1e-6)
    assert declared[0]
