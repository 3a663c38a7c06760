"""Fetch templates from TemplateFlow into TEMPLATEFLOW_HOME, for use without a network later.

    TEMPLATEFLOW_HOME=/opt/templateflow python fetch_templates.py MNI152NLin2009cAsym

Of each template it takes the files that the app reads: T1-weighted image, brain mask, grey and
white matter, at 1 mm. What was fetched is listed in ``fetched.json`` there, with checksums. The
default template needs none of this. Runs without the app.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

#: What the app asks of a template.
QUERIES = (
    {'suffix': 'T1w', 'desc': None},
    {'suffix': 'mask', 'desc': 'brain'},
    {'suffix': 'probseg', 'label': 'GM'},
    {'suffix': 'probseg', 'label': 'WM'},
)


def main() -> int:
    """Fetch, list, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('templates', nargs='*', metavar='TEMPLATE')
    parser.add_argument(
        '--if-reachable',
        action='store_true',
        help='succeed without the templates when TemplateFlow cannot be reached',
    )
    options = parser.parse_args()
    if not os.environ.get('TEMPLATEFLOW_HOME'):
        parser.error('TEMPLATEFLOW_HOME is not set; set it to the folder to fill')
    home = Path(os.environ['TEMPLATEFLOW_HOME']).absolute()
    home.mkdir(parents=True, exist_ok=True)
    listing = home / 'fetched.json'
    # TemplateFlow lays out thousands of empty files in a home that is empty, and niworkflows
    # indexes them at each start. One file keeps it from that; the layout goes to a folder aside.
    listing.touch()
    fetched: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as aside:
        for template in options.templates:
            try:
                paths = _fetch(template, Path(aside))
            except OSError as error:  # requests' errors are
                print(f'{template}: TemplateFlow cannot be reached ({type(error).__name__})')
                if not options.if_reachable:
                    return 1
                break
            for path in paths:
                name = path.relative_to(aside)
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, home / name)
                fetched[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    listing.write_text(json.dumps(fetched, indent=2) + '\n', encoding='utf-8')
    print(f'{len(fetched)} files in {home}')
    return 0


def _fetch(template: str, root: Path) -> list[Path]:
    from templateflow.client import TemplateFlowClient  # late: it looks at TEMPLATEFLOW_HOME

    client = TemplateFlowClient(root=root, autoupdate=False)
    paths: list[Path] = []
    for query in QUERIES:
        found = client.get(template, resolution=1, extension='.nii.gz', raise_empty=True, **query)
        paths += found if isinstance(found, list) else [found]
    return paths


if __name__ == '__main__':
    sys.exit(main())
