"""Run the image as users do: no network, read-only root, an id that owns nothing, read-only data.

    python scripts/test_image.py [IMAGE] [--phantom DIR]

Makes a small phantom (or takes DIR), runs both levels in the container, and checks exit codes,
outputs and who owns them. Uses docker where there is a daemon, else podman with runc. Runs in an
environment that has the app, whose own run the container's images are compared with.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

USER = '12345:12345'
#: Images and transforms that the participant level writes, at the least.
FEWEST = 12
APP = Path(sys.executable).with_name('bids_perfdeficit')


def engine() -> list[str]:
    """Return the words that start a container engine.

    Raises
    ------
    SystemExit
        With 69 when there is none.
    """
    docker = shutil.which('docker')
    if (
        docker
        and not subprocess.run([docker, 'info'], capture_output=True, check=False).returncode
    ):
        return [docker, 'run']
    if shutil.which('podman') and shutil.which('runc'):
        limits = ['--ulimit', 'nofile=4096:8192', '--ulimit', 'nproc=8192:8192']
        return ['podman', '--runtime', 'runc', '--cgroup-manager', 'cgroupfs', 'run', *limits]
    print('neither a docker daemon nor podman with runc was found', file=sys.stderr)
    raise SystemExit(69)


def checksums(root: Path) -> dict[str, str]:
    """Return the checksum of every image and transform."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob('sub-*/**/*'))
        if path.name.endswith(('.nii.gz', '.h5', '.txt'))
    }


def main() -> int:
    """Check the image and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('image', nargs='?', default='bids_perfdeficit:latest')
    parser.add_argument('--phantom', type=Path, help='a dataset of bids_perfdeficit-phantom')
    options = parser.parse_args()
    aside = Path(tempfile.mkdtemp(prefix='image-test-'))
    data = options.phantom
    if data is None:
        data = aside / 'data'
        made = [APP.with_name('bids_perfdeficit-phantom'), data, '--participants', '1']
        subprocess.run([*made, '--cohort', '40', '--spacing', '2', '--seed', '1'], check=True)
    out = aside / 'out'
    out.mkdir()
    out.chmod(0o777)
    aside.chmod(0o755)
    start = engine()
    fence = ['--rm', '--network', 'none', '--read-only', '--tmpfs', '/tmp', '-u', USER]  # noqa: S108
    mounts = ['-v', f'{data.absolute()}:/data:ro', '-v', f'{out}:/out']
    failures: list[str] = []

    def run(*words: str, expect: int = 0) -> str:
        begun = time.monotonic()
        done = subprocess.run(
            [*start, *fence, *mounts, options.image, *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        good = done.returncode == expect
        print(
            f'{"ok  " if good else "FAIL"} {time.monotonic() - begun:6.1f} s  exit '
            f'{done.returncode} (expected {expect})  {" ".join(words)}', flush=True,
        )  # fmt: skip
        if not good:
            failures.append(' '.join(words))
            print(done.stdout[-2000:], done.stderr[-4000:], sep='\n', file=sys.stderr)
        return done.stdout + done.stderr

    cohort = '/data/derivatives/bids_perfdeficit-cohort'
    group = ['--model', 'ridge', '--folds', '2', '--permutations', '0', '--bootstraps', '0']
    run('--help')
    run('--version')
    run('/data', '/out', 'nonsense', expect=2)
    run('/data', '/out', 'participant', '--sloppy', '--participant-label', '01')
    run(cohort, '/out', 'group', '-d', cohort, '--sloppy', *group)
    truth = 'derivatives/phantom-truth/*/*_desc-delay.nii.gz'
    run('/data', '/out', 'evaluate', '--include-doubtful', '--reference', truth)
    run('/data', '/out', 'calibrate', '--reference', truth, expect=2)  # too few participants
    for name in ('sub-01.html', 'group.html', 'evaluation.html'):
        if not (out / name).is_file():
            failures.append(f'{name} was not written')
    bare = aside / 'bare'
    subprocess.run(
        [APP, data, bare, 'participant', '--sloppy', '--participant-label', '01'],
        check=True, capture_output=True,
    )  # fmt: skip
    theirs, ours = checksums(out), checksums(bare)
    different = sorted(k for k in ours if theirs.get(k) != ours[k])
    print(f'{len(ours) - len(different)} of {len(ours)} files are equal to those of a bare run')
    failures += different
    if len(ours) < FEWEST:
        failures.append(f'a bare run writes {len(ours)} images and transforms, not {FEWEST}')
    owners = {path.stat().st_uid for path in out.rglob('*')}
    if owners != {int(USER.split(':')[0])}:
        failures.append(f'files belong to {sorted(owners)}')
    shutil.rmtree(aside, ignore_errors=True)
    for failure in failures:
        print(f'failed: {failure}', file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.exit(main())
