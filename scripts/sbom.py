"""Print what an image holds, as a CycloneDX 1.5 bill of materials.

    python scripts/sbom.py [IMAGE] > bids_perfdeficit.cdx.json

Packages of Debian and of Python, with versions and licences as they state them themselves. The
image is asked, so that the list is that of what ships, whatever the lock says. Dates and
identifiers are left out: the same image gives the same text. Uses docker where there is a daemon,
else podman with runc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Any
from urllib.parse import quote

from test_image import engine

#: Runs in the image, which has no pip: one line of JSON for each package.
LIST_PYTHON = """
import json
from importlib.metadata import distributions
for one in distributions():
    about = one.metadata
    print(json.dumps({
        'name': about['Name'], 'version': one.version,
        'licence': about.get('License-Expression') or (about.get('License') or '').split('\\n')[0],
    }))
"""
LIST_DEBIAN = r'${Package}\t${Version}\t${Architecture}\n'


def ask(image: str, program: str, *words: str) -> str:
    """Return what a program in the image prints."""
    command = [*engine(), '--rm', '--network', 'none', '--read-only', '--entrypoint', program]
    return subprocess.run(
        [*command, image, *words], check=True, capture_output=True, text=True
    ).stdout


def python_packages(lines: str) -> list[dict[str, Any]]:
    """Return the components of Python from the lines of `LIST_PYTHON`."""
    found = []
    for line in lines.splitlines():
        one = json.loads(line)
        name = one['name'].lower().replace('_', '-')
        component = {
            'type': 'library',
            'bom-ref': f'pkg:pypi/{quote(name)}@{quote(one["version"])}',
            'name': one['name'],
            'version': one['version'],
            'purl': f'pkg:pypi/{quote(name)}@{quote(one["version"])}',
        }
        if one['licence']:
            component['licenses'] = [{'license': {'name': one['licence']}}]
        found.append(component)
    return found


def debian_packages(lines: str, release: dict[str, str]) -> list[dict[str, Any]]:
    """Return the components of Debian from the lines of dpkg-query."""
    found = []
    for line in lines.splitlines():
        name, version, architecture = line.split('\t')
        purl = (
            f'pkg:deb/debian/{quote(name)}@{quote(version)}'
            f'?arch={architecture}&distro=debian-{release["VERSION_ID"]}'
        )
        found.append(
            {'type': 'library', 'bom-ref': purl, 'name': name, 'version': version, 'purl': purl}
        )
    return found


def bill(image: str) -> dict[str, Any]:
    """Return the bill of materials of an image."""
    release = dict(
        line.replace('"', '').split('=', 1)
        for line in ask(image, 'cat', '/etc/os-release').splitlines()
        if '=' in line
    )
    python = python_packages(ask(image, 'python', '-c', LIST_PYTHON))
    debian = debian_packages(ask(image, 'dpkg-query', '-W', '-f', LIST_DEBIAN), release)
    app = next(one for one in python if one['name'] == 'bids_perfdeficit')
    system = {
        'type': 'operating-system',
        'bom-ref': 'operating-system',
        'name': release['ID'],
        'version': release['VERSION_ID'],
    }
    parts = sorted((one for one in python if one is not app), key=lambda one: one['bom-ref'])
    return {
        'bomFormat': 'CycloneDX',
        'specVersion': '1.5',
        'version': 1,
        'metadata': {'component': {**app, 'type': 'container'}},
        'components': [system, *parts, *sorted(debian, key=lambda one: one['bom-ref'])],
    }


def main() -> None:
    """Print the bill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('image', nargs='?', default='bids_perfdeficit:latest')
    print(json.dumps(bill(parser.parse_args().image), indent=2))


if __name__ == '__main__':
    main()
