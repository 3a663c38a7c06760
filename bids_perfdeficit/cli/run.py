"""The run: from the command line to an exit code that says what happened."""

from __future__ import annotations

import dataclasses
import io
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_perfdeficit.cli import signals
from bids_perfdeficit.cli.parser import (
    EXIT_INTERNAL,
    EXIT_OK,
    EXIT_USAGE,
    UsageError,
    parse_settings,
    print_problems,
)
from bids_perfdeficit.errors import SURROUNDINGS, InputError
from bids_perfdeficit.settings import AnalysisLevel, Settings

if TYPE_CHECKING:
    from bids_perfdeficit.cli.runner import Level


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app and return its exit code."""
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    try:
        signals.install_signal_handlers()
        settings = _absolute(parse_settings(argv))
        # Late: what follows imports pybids, Nipype and more, which takes seconds.
        from bids_perfdeficit.cli.runner import run_level

        code = run_level(_level(settings))
        if code != EXIT_OK:
            signals.reraise_signal()
        return code
    except UsageError as error:
        print_problems(error.problems, error.hint)
        return EXIT_USAGE
    except InputError as error:
        print_problems([str(error)])
        return EXIT_USAGE
    except (KeyboardInterrupt, signals.Terminated) as error:
        number = signals.last_signal()
        if isinstance(error, KeyboardInterrupt):
            number = signal.SIGINT
        signals.print_end(number)
        return 128 + number
    except OSError as error:
        if error.errno not in SURROUNDINGS:
            return _internal(error)
        signals.end_workers()
        print(
            f'bids_perfdeficit: {error.strerror}: {error.filename or "OUTPUT_DIR"}; '
            f'{SURROUNDINGS[error.errno]} and run the same command again to go on',
            file=sys.stderr,
        )
        return EXIT_USAGE
    except Exception as error:
        return _internal(error)


def _level(settings: Settings) -> Level:
    """Return the hooks of the level that was asked for; each imports what it needs alone."""
    if settings.inputs.analysis_level is AnalysisLevel.GROUP:
        from bids_perfdeficit.cli.group import GroupLevel

        return GroupLevel(settings)
    if settings.inputs.analysis_level is AnalysisLevel.EVALUATE:
        from bids_perfdeficit.cli.evaluate import EvaluateLevel

        return EvaluateLevel(settings)
    if settings.inputs.analysis_level is AnalysisLevel.CALIBRATE:
        from bids_perfdeficit.cli.calibrate import CalibrateLevel

        return CalibrateLevel(settings)
    from bids_perfdeficit.cli.participant import ParticipantLevel

    return ParticipantLevel(settings)


def _absolute(table: Any) -> Any:
    """Return settings with their paths made absolute: steps run in folders of their own."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if isinstance(value, Path):
            values[field.name] = value.absolute()
        elif isinstance(value, tuple) and any(isinstance(item, Path) for item in value):
            values[field.name] = tuple(item.absolute() for item in value)
        elif dataclasses.is_dataclass(value):
            values[field.name] = _absolute(value)
    return dataclasses.replace(table, **values)


def _internal(error: Exception) -> int:
    traceback.print_exception(error)
    print(
        f'bids_perfdeficit: internal error ({type(error).__name__}: {error}); '
        'please report it with the lines above',
        file=sys.stderr,
    )
    return EXIT_INTERNAL


if __name__ == '__main__':
    sys.exit(main())
