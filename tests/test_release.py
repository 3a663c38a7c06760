"""What names the version itself agrees: the changelog, the citation and the package."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from bids_perfdeficit import __version__

ROOT = Path(__file__).parents[1]


def newest() -> tuple[str, str]:
    """Return the version and the date of the first section of the changelog."""
    found = re.search(r'^(\d+\.\d+\.\d+) \((.+)\)\n-+$', (ROOT / 'CHANGES.rst').read_text(), re.M)
    assert found
    return found[1], found[2]


def test_the_citation_names_the_version_of_the_changelog():
    version, date = newest()
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == citation['preferred-citation']['version'] == version
    assert ('date-released' in citation) == (date != 'unreleased')


def test_the_package_is_that_version_or_on_the_way_to_it():
    version, date = newest()
    released = re.match(r'\d+\.\d+\.\d+', __version__)
    assert released
    if 'dev' in __version__:
        assert released[0] == version or date != 'unreleased'
    else:
        assert __version__ == version
