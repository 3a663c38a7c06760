"""The bill of materials names packages as registries know them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / 'scripts'


@pytest.fixture
def sbom(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import sbom

    yield sbom
    for name in ('sbom', 'test_image'):
        sys.modules.pop(name, None)


def answer(image, program, *words):
    """Answer as an image of Debian 12 does."""
    if program == 'cat':
        return 'PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\nVERSION_ID="12"\n'
    if program == 'dpkg-query':
        return 'tar\t1.34+dfsg-1\tamd64\nbase-files\t12.4\tamd64\n'
    done = subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, text=True
    )  # the same program on this environment
    return done.stdout


def test_a_bill_has_the_app_and_what_it_stands_on(sbom, monkeypatch):
    monkeypatch.setattr(sbom, 'ask', answer)
    bill = sbom.bill('some:image')
    assert bill == sbom.bill('some:image')
    json.dumps(bill)
    assert bill['metadata']['component']['name'] == 'bids_perfdeficit'
    parts = {one['bom-ref']: one for one in bill['components']}
    assert len(parts) == len(bill['components'])
    assert parts['operating-system']['version'] == '12'
    assert 'pkg:deb/debian/tar@1.34%2Bdfsg-1?arch=amd64&distro=debian-12' in parts
    (numpy,) = (one for one in parts.values() if one['name'] == 'numpy')
    assert numpy['purl'].startswith('pkg:pypi/numpy@')
    assert numpy['licenses']
