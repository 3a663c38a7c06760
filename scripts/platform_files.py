"""Write what platforms need to run this version of the app, and lists to name it.

    python scripts/platform_files.py FOLDER --image docker.io/OWNER/bids_perfdeficit:VERSION

The templates beside this script hold what is decided by hand; version, image and the Boutiques
descriptor are filled in, so that they cannot fall behind.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from boutiques_descriptor import describe

from bids_perfdeficit import __version__

TEMPLATES = Path(__file__).parent / 'platforms'


def fill(text: str, image: str) -> str:
    """Return a template with this version and the name of its image."""
    label = re.sub('[^0-9A-Za-z]+', '-', __version__)  # part of a file name of BABS
    return (
        text.replace('@VERSION@', __version__)
        .replace('@IMAGE@', image)
        .replace('@LABEL@', label)
        .replace('@REPOSITORY@', image.removeprefix('docker.io/').partition(':')[0])
    )


def write(folder: Path, image: str) -> list[Path]:
    """Write all files, and return them."""
    written = []
    for template in sorted(p for p in TEMPLATES.rglob('*') if p.is_file()):
        relative = template.relative_to(TEMPLATES)
        if relative.parts[0] == 'nipoppy':
            relative = Path(f'nipoppy/bids_perfdeficit-{__version__}', *relative.parts[1:])
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(fill(template.read_text(), image))
        target.chmod(template.stat().st_mode)
        written.append(target)
    descriptor = folder / f'nipoppy/bids_perfdeficit-{__version__}/descriptor.json'
    descriptor.write_text(json.dumps(describe(image), indent=2) + '\n')
    return [*written, descriptor]


def main() -> None:
    """Write the files and print their names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--image', default=f'bids_perfdeficit:{__version__}')
    arguments = parser.parse_args()
    for path in write(arguments.folder, arguments.image):
        print(path)


if __name__ == '__main__':
    main()
