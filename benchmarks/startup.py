"""How long `--help` and `--version` take, beside starting Python and importing the heavy parts.

Run: python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

REPEATS = 7
COMMANDS = {
    'python -c pass': ['-c', 'pass'],
    'bids_perfdeficit --help': ['-m', 'bids_perfdeficit.cli.run', '--help'],
    'bids_perfdeficit --version': ['-m', 'bids_perfdeficit.cli.run', '--version'],
    'import torch, ants, nipype': ['-c', 'import torch, ants, nipype.pipeline.engine'],
}


def main() -> None:
    """Print the table."""
    print('| what | median s | spread s | target |\n|---|---|---|---|')
    for name, arguments in COMMANDS.items():
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        target = '< 1' if '--' in name else ''
        print(
            f'| `{name}` | {statistics.median(times):.2f} '
            f'| {min(times):.2f} to {max(times):.2f} | {target} |'
        )


if __name__ == '__main__':
    main()
