"""Kill runs at random moments, and take away what they need; count what is lost.

Runs of both levels get SIGTERM, SIGKILL, or SIGKILL with all their processes (as a cluster does)
at random moments. After each kill every file in OUTPUT_DIR is held against those of a run that
no other process disturbed, also those that were there before; then the run is repeated, to be
killed again or to complete. With ``--surroundings`` it is the machine that fails: a full disk, a
limit of the size of files, folders that cannot be written, memory that runs out, storage that is
slow or renames as network storage does (bindfs), a clock that is wrong (faketime), a scheduler
that ends the job. That needs a root user who may mount.

Run: python benchmarks/kills.py PHANTOM [--kills 60] [--seed 1] [--surroundings]
PHANTOM is a folder of `bids_perfdeficit-phantom --participants 1 --cohort 40 --spacing 4`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

#: Files that hold the time or the version of the run; only their end is looked at.
TIMED = {'.html': b'</html>', '.svg': b'</svg>'}
HOW = ('SIGTERM', 'SIGKILL', 'SIGKILL of all processes')
GRACE_S = 5.0  #: for processes to be gone after the run itself is
#: Of the level: less than its steps take, more than its imports.
MEMORY_MIB = {'participant': 600, 'group': 480}
#: Of the level: its options, cheap rather than good.
OPTIONS = {
    'participant': ['--sloppy', '--participant-label', '01'],
    'group': ['--sloppy', '--model', 'ridge', '--folds', '2', '--resolution', '8'],
}


def command(level: str, data: Path, out: Path, *more: str | Path) -> list[str]:
    """Return the command of a run."""
    words: list[str | Path] = [sys.executable, '-m', 'bids_perfdeficit.cli.run']
    if level == 'group':
        cohort = data / 'derivatives' / 'bids_perfdeficit-cohort'
        words += [cohort, out, level, '-d', cohort]
    else:
        words += [data, out, level]
    return [str(word) for word in (*words, *OPTIONS[level], *more)]


def tree(out: Path) -> dict[str, str]:
    """Return what each visible file holds, the logs left out."""
    held = {}
    for path in sorted(out.rglob('*')):
        name = path.relative_to(out)
        if not path.is_file() or name.parts[0] == 'logs' or path.name.startswith('.'):
            continue
        content = path.read_bytes()
        if path.name.endswith('_record.json'):
            content = without_times(content)
        end = TIMED.get(path.suffix)
        if end is None:
            held[str(name)] = hashlib.sha256(content).hexdigest()
        else:
            held[str(name)] = 'whole' if content.rstrip().endswith(end) else 'half'
    return held


def without_times(content: bytes) -> bytes:
    """Return a record without the times of this machine; and anything else as it is."""
    try:
        record = json.loads(content)
        for one in record['Inputs'].values():
            for key in ('ModifiedNs', 'ChangedNs', 'HashedNs'):
                del one[key]
    except (ValueError, KeyError, TypeError):
        return content
    return json.dumps(record).encode()


def broken_logs(out: Path) -> int:
    """Return how many status files are there that a program could not read."""
    count = 0
    for path in out.glob('logs/*/status.json'):
        try:
            json.loads(path.read_text())
        except ValueError:
            count += 1
    return count


def kill(words: list[str], seconds: float, how: str) -> tuple[bool, int, str, int]:
    """Start a run and kill it.

    Returns
    -------
    tuple
        Whether it was still alive, its exit code, its last line, and how many of its processes
        were left when the grace had passed.
    """
    with tempfile.TemporaryFile('w+') as errors:
        run = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(seconds)
        alive = run.poll() is None
        if alive and how == 'SIGTERM':
            run.terminate()
        elif alive and how == 'SIGKILL':
            run.kill()
        elif alive:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        deadline = time.monotonic() + GRACE_S
        while (left := _session(run.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            process.kill()
        errors.seek(0)
        last = [line for line in errors.read().splitlines() if line.strip()]
    return alive, run.returncode, last[-1] if last else '', len(left)


def _session(leader: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Level:
    """The kills of one level, and what came of them."""

    def __init__(self, level: str, data: Path, aside: Path, hows: list[str]) -> None:
        self.hows = hows
        self.level, self.data, self.aside = level, data, aside
        self.counts: dict[str, Counter[str]] = {how: Counter() for how in hows}
        self.reference = aside / f'{level}-reference'
        begun = time.monotonic()
        subprocess.run(command(level, data, self.reference), check=True, capture_output=True)
        self.seconds = time.monotonic() - begun
        self.whole = tree(self.reference)

    def chain(self, moments: random.Random, kills: int) -> int:
        """Kill one run, and its repetitions, up to a number of times; return how often."""
        out = self.aside / f'{self.level}-out'
        shutil.rmtree(out, ignore_errors=True)
        work = self.aside / f'{self.level}-work'
        shutil.rmtree(work, ignore_errors=True)
        more = ['-w', str(work)] if moments.random() < 0.5 else []
        words = command(self.level, self.data, out, *more)
        before: dict[str, str] = {}
        done: list[str] = []
        while len(done) < kills:
            how = moments.choice(self.hows)
            moment = moments.uniform(0.15, 0.9) * self.seconds
            alive, code, last, left = kill(words, moment, how)
            if not alive:
                break
            done.append(how)
            count = self.counts[how]
            now = tree(out) if out.exists() else {}
            count['kills'] += 1
            count['lost'] += len(set(before) - set(now))
            count['half'] += sum(self.whole.get(name) != value for name, value in now.items())
            count['half'] += broken_logs(out)
            count['left processes'] += left
            count['hidden'] += len(list(out.rglob('.*.part')))
            reported = code == 143 and 'terminated; run the same command again' in last
            right = reported if how == 'SIGTERM' else code == -signal.SIGKILL
            count['reported'] += right
            if not right:
                print(f'{how} after {moment:.1f} s: code {code}, {last!r}', file=sys.stderr)
            before = now
            if moments.random() < 0.3:
                break
        again = subprocess.run(words, capture_output=True, text=True, check=False)
        same = again.returncode == 0 and tree(out) == self.whole
        if not same:
            held = tree(out)
            print(again.stdout[-500:], again.stderr[-1500:], file=sys.stderr)
            print({k for k in self.whole.keys() | held if self.whole.get(k) != held.get(k)})
        for how in done:
            self.counts[how]['completed'] += same
        if done:
            self.counts[done[-1]]['reruns'] += 1
            self.counts[done[-1]]['left parts'] += len(list(out.rglob('.*.part')))
        return len(done)


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a disk in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a mounted disk."""
    subprocess.run(['mount', '-o', f'remount,{options}', folder], check=True)


def attempt(words: list[str], *, prefix: list[str] | None = None) -> tuple[int, str]:
    """Run; return the exit code and the line with the reason."""
    done = subprocess.run(
        [*(prefix or []), *words], capture_output=True, text=True, check=False, timeout=450
    )
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    reported = [line for line in lines if ': failed: ' in line or line.startswith('- ')]
    return done.returncode, (reported or lines or ['(nothing)'])[-1]


def full(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Let OUTPUT_DIR fill up while the run goes on."""
    with small_disk(aside / f'full-{level}', 'size=1m') as out:
        code, line = attempt(command(level, data, out))
        if 'half' in tree(out).values():
            return code, 'left a half file', -1
        remount(out, 'size=500m')
        return code, line, attempt(command(level, data, out))[0]


def full_at_once(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Give an OUTPUT_DIR without space for the first log."""
    with small_disk(aside / f'none-{level}', 'size=4k,nr_inodes=4') as out:
        code, line = attempt(command(level, data, out))
        remount(out, 'size=500m,nr_inodes=10000')
        return code, line, attempt(command(level, data, out))[0]


def full_work(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Let the working folder fill up."""
    with small_disk(aside / f'work-{level}', 'size=300k') as work:
        words = command(level, data, aside / f'work-{level}-out', '-w', work)
        code, line = attempt(words)
        remount(work, 'size=500m')
        return code, line, attempt(words)[0]


def read_only(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Give an OUTPUT_DIR that cannot be written."""
    with small_disk(aside / f'ro-{level}', 'size=500m') as out:
        remount(out, 'ro')
        code, line = attempt(command(level, data, out))
        remount(out, 'rw')
        return code, line, attempt(command(level, data, out))[0]


def read_only_inside(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Give an OUTPUT_DIR in which one folder cannot be written."""
    out = aside / f'inside-{level}'
    name = 'sub-01' if level == 'participant' else 'tpl-MNI152NLin2009aSym'
    with small_disk(out / name, 'size=500m') as inner:
        remount(inner, 'ro')
        code, line = attempt(command(level, data, out))
        remount(inner, 'rw')
        return code, line, attempt(command(level, data, out))[0]


def no_memory(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Give what importing takes and not what computing takes, by a control group (version 1)."""
    group = Path('/sys/fs/cgroup/memory/perfdeficit-kills')
    group.mkdir()
    try:
        (group / 'memory.limit_in_bytes').write_text(str(MEMORY_MIB[level] * 2**20))
        enter = ['sh', '-c', f'echo $$ > {group}/cgroup.procs; exec "$@"', 'sh']
        words = command(level, data, aside / f'memory-{level}')
        code, line = attempt(words, prefix=enter)
        return code, line, attempt(words)[0]
    finally:
        time.sleep(1)
        group.rmdir()


def quota(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Let no file grow over 20 kB, as a quota stops one in the middle."""
    out = aside / f'quota-{level}'
    limit = ['sh', '-c', 'ulimit -f 20; exec "$@"', 'sh']
    code, line = attempt(command(level, data, out), prefix=limit)
    if 'half' in tree(out).values():
        return code, 'left a half file', -1
    return code, line, attempt(command(level, data, out))[0]


@contextlib.contextmanager
def through(folder: Path, *options: str) -> Iterator[Path]:
    """Give a folder through bindfs.

    It renames an open file that is removed or replaced (``.fuse_hidden...``) as NFS does
    (``.nfs...``), so that a folder can refuse to be removed.
    """
    inner = folder.with_name(folder.name + '-inner')
    inner.mkdir()
    folder.mkdir()
    subprocess.run(['bindfs', *options, inner, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', folder], check=True)


def network(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Give results and working folder on storage that renames open files that are removed."""
    with through(aside / f'network-{level}') as folder:
        words = command(level, data, folder / 'out', '-w', folder / 'work')
        code, line = attempt(words)
        left = [path.name for path in folder.rglob('.fuse_hidden*')]
        return code, f'{line}; {len(left)} hidden files left', attempt(words)[0]


def slow(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Read and write 200 kB a second."""
    rate = ('--read-rate=200k', '--write-rate=200k')
    with through(aside / f'slow-{level}', *rate) as folder:
        words = command(level, data, folder / 'out', '-w', folder / 'work')
        code, line = attempt(words)
        return code, line, attempt(words)[0]


def wrong_clock(days: int, level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Run with a clock that is wrong by days, and again with the right one: all is kept."""
    out = aside / f'clock{days}-{level}'
    words = command(level, data, out)
    # Times of files as they are: only what the program reads from the clock is wrong.
    clock = ['env', 'NO_FAKE_STAT=1', 'faketime', '-m', '-f', f'{days:+d}d']
    code, line = attempt(words, prefix=clock)
    before = {path: path.stat().st_mtime_ns for path in results(out)}
    again = attempt(words)[0]
    changed = sum(path.stat().st_mtime_ns != before.get(path) for path in results(out))
    return code, f'{line}; {changed} of {len(before)} files written again', again


def results(out: Path) -> list[Path]:
    """Return images and tables: what only computing writes."""
    found = [path for path in out.rglob('*') if path.name.endswith(('.nii.gz', '.tsv', '.h5'))]
    return [path for path in found if path.relative_to(out).parts[0] not in {'logs'}]


def future_scan(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """Date every input a year ahead; the second run must make nothing anew."""
    copy, out = aside / f'future-data-{level}', aside / f'future-{level}'
    shutil.copytree(data, copy)
    ahead = time.time() + 365 * 86400
    for path in copy.rglob('*'):
        os.utime(path, (ahead, ahead))
    code, line = attempt(command(level, copy, out))
    before = {path: path.stat().st_mtime_ns for path in results(out)}
    again = attempt(command(level, copy, out))[0]
    changed = sum(path.stat().st_mtime_ns != before.get(path) for path in results(out))
    return code, f'{line}; {changed} of {len(before)} files written again', again


def time_limit(level: str, data: Path, aside: Path) -> tuple[int, str, int]:
    """End the run as SLURM does: SIGTERM to all processes, SIGKILL 30 s later."""
    out = aside / f'limit-{level}'
    words = command(level, data, out)
    with tempfile.TemporaryFile('w+') as errors:
        run = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        while (
            run.poll() is None and ' done in ' not in os.pread(errors.fileno(), 10**6, 0).decode()
        ):
            time.sleep(0.2)
        sent = time.monotonic()
        os.killpg(run.pid, signal.SIGTERM)
        try:
            run.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        seconds = time.monotonic() - sent
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    left = len(_session(run.pid))
    line = f'{lines[-1] if lines else "(nothing)"}; ended after {seconds:.1f} s, {left} left'
    return run.returncode, line, attempt(words)[0]


CASES = {
    'OUTPUT_DIR fills up': full,
    'OUTPUT_DIR is full from the start': full_at_once,
    'the working folder fills up': full_work,
    'OUTPUT_DIR is read-only': read_only,
    'a folder in OUTPUT_DIR is read-only': read_only_inside,
    'memory runs out': no_memory,
    'no file may grow over 20 kB': quota,
    'renames as on network storage': network,
    'storage of 200 kB a second': slow,
    'a clock that goes back 2 days': functools.partial(wrong_clock, 2),
    'a clock that was 400 days behind': functools.partial(wrong_clock, -400),
    'scans dated in the future': future_scan,
    'time limit of a scheduler': time_limit,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('phantom', type=Path)
    parser.add_argument('--kills', type=int, default=60)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--surroundings', action='store_true', help='only these')
    parser.add_argument('--how', nargs='+', default=list(HOW), choices=HOW)
    parser.add_argument('--case', default='', help='only those whose name holds this')
    parser.add_argument('--levels', nargs='+', default=['participant', 'group'])
    options = parser.parse_args()
    data = options.phantom.absolute()
    with tempfile.TemporaryDirectory(prefix='kills-') as folder:
        if options.surroundings:
            if os.geteuid() != 0:
                sys.exit('only root can mount a small disk')
            print('| what fails | level | exit code | line | exit code of the rerun |')
            print('|---|---|---|---|---|')
            for level in options.levels:
                for what, case in CASES.items():
                    if options.case not in what:
                        continue
                    code, line, fixed = case(level, data, Path(folder))
                    line = line.replace(folder, '').replace('|', '/')
                    print(f'| {what} | {level} | {code} | {line} | {fixed} |', flush=True)
            return
        moments = random.Random(options.seed)
        print(
            '| level, signal | kills | files lost | half files | processes left |'
            ' last line and code right | reruns that complete | hidden leftovers, after rerun |'
        )
        print('|---|---|---|---|---|---|---|---|')
        for level in options.levels:
            runs = Level(level, data, Path(folder), options.how)
            wanted, idle = options.kills // len(options.levels), 0
            while wanted > 0 and idle < 20:
                killed = runs.chain(moments, wanted)
                wanted, idle = wanted - killed, idle + (killed == 0)
            for how, c in runs.counts.items():
                print(
                    f'| {level}, {how} | {c["kills"]} | {c["lost"]} | {c["half"]} '
                    f'| {c["left processes"]} | {c["reported"]} of {c["kills"]} '
                    f'| {c["completed"]} of {c["kills"]} '
                    f'| {c["hidden"]}, {c["left parts"]} |',
                    flush=True,
                )
            print(f'undisturbed {level}: {runs.seconds:.0f} s', file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
