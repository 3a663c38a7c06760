"""The parser for the usage page, with the values of its options.

The command line checks values itself, to report all problems at once; argparse learns them here
alone, so that the page lists them.
"""

from __future__ import annotations

import argparse

from bids_perfdeficit.cli.parser import build_parser


def build_documented_parser() -> argparse.ArgumentParser:
    """Return the parser; an option that takes one of some words has them as choices."""
    parser = build_parser()
    for action in parser._actions:
        metavar = action.metavar if isinstance(action.metavar, str) else ''
        if metavar.startswith('{'):
            action.choices = metavar.strip('{}').split(',')
        elif metavar and action.option_strings and action.help != argparse.SUPPRESS:
            several = ' ...' if action.nargs == '+' else ''
            action.help = f'{metavar}{several}: {action.help}'
    return parser
