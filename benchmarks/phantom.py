"""What the phantom costs: time and peak memory of one patient and of a cohort.

Prints a markdown table with the aims beside what was measured. Each case runs in a process of
its own, so that its peak memory is its own; that of a cohort adds the largest of its workers for
each of them.

Usage: python benchmarks/phantom.py [--cohort 1000] [--spacing 1] [--processes 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

_PATIENT = """
from bids_perfdeficit.phantom.patient import make_patient
from bids_perfdeficit.phantom.settings import Occlusion
make_patient(1, Occlusion(site='M1', side='L'), spacing={spacing})
"""
_COHORT = """
from bids_perfdeficit.phantom.cohort import make_cohort
make_cohort(1, {n}, processes={processes})
"""
_MEASURE = """
import json, resource, time
if __name__ == '__main__':
    begin = time.perf_counter()
    {body}
    own, child = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = own.ru_maxrss + {processes} * child.ru_maxrss
    busy = own.ru_utime + own.ru_stime + child.ru_utime + child.ru_stime
    print(json.dumps([time.perf_counter() - begin, busy, peak / 2**20]))
"""


def measure(body: str, processes: int) -> list[float]:
    """Return wall seconds, CPU seconds and GiB of a piece of code in a new process."""
    code = _MEASURE.format(body=body.strip().replace('\n', '\n    '), processes=processes)
    run = subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.PIPE)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--cohort', type=int, default=1000, help='0 leaves the cohort out')
    parser.add_argument('--spacing', type=float, default=1.0)
    parser.add_argument('--processes', type=int, default=2)
    options = parser.parse_args()
    cases = [(f'one patient, {options.spacing:g} mm', _PATIENT.format(spacing=options.spacing), 0,
              '60 s, 3 GiB')]  # fmt: skip
    if options.cohort:
        body = _COHORT.format(n=options.cohort, processes=options.processes)
        cases.append((f'cohort of {options.cohort}, 2 mm', body, options.processes,
                      '600 s, 4 GiB for 1000'))  # fmt: skip
    print('| case | wall s | CPU s | peak GiB | aim |\n|---|---|---|---|---|')
    for name, body, processes, aim in cases:
        wall, busy, peak = measure(body, processes)
        print(f'| {name} | {wall:.0f} | {busy:.0f} | {peak:.2f} | {aim} |', flush=True)


if __name__ == '__main__':
    main()
