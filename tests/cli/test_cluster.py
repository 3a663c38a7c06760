"""Under Nipype's plugin for SLURM results are never stale either.

The commands of the scheduler are replaced by scripts that start a job at once, in a session of
its own, so that it outlives the run that submitted it, as on a cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.stages.record import Record
from tests.cli.test_stale import GROUP, SCRIPT, run, tree
from tests.cohorts import make_cohort

pytestmark = pytest.mark.slow

SBATCH = r"""#!/bin/bash
for script in "$@"; do :; done
out=/dev/null
while [ $# -gt 0 ]; do [ "$1" = -o ] && out="$2"; shift; done
setsid bash "$script" >"$out" 2>&1 </dev/null &
echo "$!" >>"$(dirname "$0")/jobs"
echo "Submitted batch job $!"
"""
SQUEUE = r"""#!/bin/bash
kill -0 "$2" 2>/dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
echo "$2 RUNNING"
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Path:
    """Return a file for --use-plugin, with the commands that it needs in PATH."""
    commands = tmp_path / 'commands'
    commands.mkdir()
    for name, text in (('sbatch', SBATCH), ('squeue', SQUEUE)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{commands}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('LOGNAME', 'user')
    path = tmp_path / 'plugin.yml'
    path.write_text('plugin: SLURM\nplugin_args: {}\n')
    return path


def submitted(plugin: Path) -> int:
    """Return the number of jobs so far."""
    jobs = plugin.parent / 'commands' / 'jobs'
    return len(jobs.read_text().splitlines()) if jobs.exists() else 0


def test_edited_scores_reach_the_jobs_of_a_group(plugin, tmp_path):
    cohort = make_cohort(tmp_path / 'cohort', 24)
    raw = tmp_path / 'raw'
    raw.mkdir()
    table = pd.read_csv(cohort.raw / 'phenotype/nihss.tsv', sep='\t')
    command = [raw, tmp_path / 'out', 'group', '-d', cohort.out, *GROUP, '--model', 'ridge']
    command += ['--items', '9', '--use-plugin', plugin]
    for edited in (table, table.assign(nihss_9=3 - table['nihss_9'])):
        edited.to_csv(raw / 'participants.tsv', sep='\t', index=False)
        run(*command)
    count = submitted(plugin)
    assert count > 2
    assert 'nothing was done' in run(*command)
    assert submitted(plugin) == count
    shutil.move(tmp_path / 'out', tmp_path / 'on the cluster')
    run(*command)
    assert tree(tmp_path / 'on the cluster') == tree(tmp_path / 'out')


def test_a_replaced_scan_and_a_killed_run_leave_what_a_clean_run_leaves(
    plugin, stroke_dataset, tmp_path
):
    raw, out = tmp_path / 'raw', tmp_path / 'out'
    shutil.copytree(stroke_dataset, raw)
    plain = [raw, out, 'participant', '--sloppy']
    first = [*plain, '--random-seed', '3', '--use-plugin', plugin, '-w', tmp_path / 'work']
    process = subprocess.Popen(
        [SCRIPT, *map(str, first)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    record = out / 'sub-01/records/sub-01_stage-brain_record.json'
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < 300 and not Record.read(record):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert Record.read(record) is not None
    cta = raw / 'sub-01/ct/sub-01_cta.nii.gz'
    image = nib.load(cta)
    values = np.asarray(image.dataobj).astype(np.int16)
    values[: values.shape[0] // 3] -= 2
    nib.save(nib.Nifti1Image(values, image.affine), cta)
    # its jobs may still be running, with another seed and the scan of before
    run(*plain, '--use-plugin', plugin, '-w', tmp_path / 'work')
    shutil.move(out, tmp_path / 'on the cluster')
    run(*plain)
    assert tree(tmp_path / 'on the cluster') == tree(out)
    assert json.loads(next(out.rglob('*stage-cta_record.json')).read_text())
