"""Print the Boutiques descriptor of the app, for CBRAIN, VIP and other platforms.

    python scripts/boutiques_descriptor.py > boutiques.json

It is generated from the parser, so that it cannot fall behind. ``--image`` names the container.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from typing import Any

from bids_perfdeficit import __version__
from bids_perfdeficit.cli.parser import (
    EXIT_INTERNAL,
    EXIT_SOME_FAILED,
    EXIT_USAGE,
    build_parser,
)

#: Which options hold a path that the platform must bring into the container, and which a number;
#: the parser takes all values as text and checks them itself.
FILES = frozenset({'FILE', 'DIR'})
#: By metavar, whether it is whole.
NUMBERS = {'N': True, 'GB': False, 'MM': False, 'SHARE': False, 'VALUE': False}
#: Of platforms that let users choose resources, this app asks for what `docs/containers.rst` says.
RESOURCES = {'cpu-cores': 2, 'ram': 8, 'walltime-estimate': 1800}


def describe(image: str) -> dict[str, Any]:
    """Return the descriptor."""
    parser = build_parser()
    inputs, words = [], []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            continue
        if action.help is argparse.SUPPRESS:  # options of other BIDS Apps
            continue
        entry = _input(action)
        inputs.append(entry)
        words.append(entry['value-key'])
    return {
        'name': 'bids_perfdeficit',
        'description': re.sub(r'\s+', ' ', parser.description or ''),
        'author': 'The bids_perfdeficit developers',
        'tool-version': __version__,
        'schema-version': '0.5',
        'command-line': f'bids_perfdeficit {" ".join(words)}',
        'container-image': {'type': 'docker', 'image': image, 'container-opts': []},
        'inputs': inputs,
        'output-files': [
            {
                'id': 'output_folder',
                'name': 'Derivatives',
                'description': 'BIDS derivatives, reports, and logs/<run>/status.json',
                'path-template': '[OUTPUT_DIR]',
            }
        ],
        'suggested-resources': RESOURCES,
        'error-codes': [
            {'code': code, 'description': meaning}
            for code, meaning in (
                (EXIT_SOME_FAILED, 'Some participants failed; the others are complete.'),
                (EXIT_USAGE, 'Bad usage or input, or a full disk; each problem has its remedy.'),
                (EXIT_INTERNAL, 'Internal error.'),
                (128 + signal.SIGINT, 'Interrupted; the same command continues.'),
                (128 + signal.SIGTERM, 'Terminated; the same command continues.'),
            )
        ],
        'tags': {'domain': ['neuroinformatics', 'medical imaging', 'stroke'], 'bids-app': True},
    }


def _input(action: argparse.Action) -> dict[str, Any]:
    metavar = str(action.metavar or '')
    choices = re.fullmatch(r'\{(.+)\}', metavar)
    entry: dict[str, Any] = {
        'id': action.dest,
        'name': action.dest,
        'description': re.sub(r'\s+', ' ', action.help or ''),
        'optional': bool(action.option_strings),
        'value-key': f'[{action.dest.upper()}]',
    }
    if action.option_strings:
        entry['command-line-flag'] = next(o for o in action.option_strings if o[:2] == '--')
    if action.nargs == 0:
        return entry | {'type': 'Flag'}
    if action.nargs == '+':
        entry['list'] = True
    if action.dest == 'output_dir':
        return entry | {'type': 'String'}  # it need not exist before
    if metavar in FILES or action.dest == 'bids_dir':
        return entry | {'type': 'File'}
    if metavar in NUMBERS:
        return entry | {'type': 'Number', 'integer': NUMBERS[metavar], 'minimum': 0}
    entry['type'] = 'String'
    if choices and 'N' not in choices[1].split(':'):
        entry['value-choices'] = choices[1].split(',')
    return entry


def main() -> int:
    """Print the descriptor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--image', default=f'bids_perfdeficit:{__version__}')
    print(json.dumps(describe(parser.parse_args().image), indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())
