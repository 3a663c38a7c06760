"""The run: from the command line to an exit code that tells the truth."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from bids_perfdeficit.cli.parser import (
    EXIT_INTERNAL,
    EXIT_USAGE,
    UsageError,
    parse_settings,
    print_problems,
)
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.settings import AnalysisLevel


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app and return its exit code."""
    try:
        settings = parse_settings(argv)
        # Late: what follows imports pybids, Nipype and more, which takes seconds.
        if settings.inputs.analysis_level is AnalysisLevel.GROUP:
            from bids_perfdeficit.cli.group import run_group

            return run_group(settings)
        from bids_perfdeficit.cli.participant import run_participants

        return run_participants(settings)
    except UsageError as error:
        print_problems(error.problems)
        return EXIT_USAGE
    except InputError as error:
        print_problems([str(error)])
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(
            'bids_perfdeficit: interrupted; run the same command again to go on', file=sys.stderr
        )
        return 130
    except Exception as error:
        traceback.print_exc()
        print(
            f'bids_perfdeficit: internal error ({type(error).__name__}: {error}); '
            'please report it with the lines above',
            file=sys.stderr,
        )
        return EXIT_INTERNAL


if __name__ == '__main__':
    sys.exit(main())
