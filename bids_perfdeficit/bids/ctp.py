"""Find series of CT perfusion, and the time of each of their frames.

A series has the suffix ``ctp`` and lies where other CT lies. Its sidecar has the time of each
frame. Must not read an image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.bids.listing import (
    RAW_FOLDERS,
    Problem,
    has_plain_name,
    list_images,
    list_participants,
    make_prefix,
    natural,
    shorten,
)
from bids_perfdeficit.bids.series import sidecar_of
from bids_perfdeficit.errors import InputError

#: s; a frame takes longer than a turn of the gantry, and no series pauses for longer.
_SHORTEST_S, _LONGEST_S = 0.2, 30.0


@dataclass(frozen=True)
class CtpFile:
    """A series of CT perfusion.

    Parameters
    ----------
    path : Path
    participant : str
        Label.
    session : str or None
        Label.
    """

    path: Path
    participant: str
    session: str | None

    @property
    def prefix(self) -> str:
        """``sub-01`` or ``sub-01_ses-x``."""
        return make_prefix(self.participant, self.session)


def find_ctp(
    bids_dir: Path, participant_labels: Sequence[str] = ()
) -> tuple[list[CtpFile], list[Problem]]:
    """Find the series of CT perfusion of a dataset: one for each participant and session.

    Parameters
    ----------
    bids_dir : Path
        A BIDS dataset, ISLES'24's ``raw_data``, or the folder that holds it.
    participant_labels : sequence of str
        Who is wanted, with or without ``sub-``; everybody when empty.

    Returns
    -------
    files : list of CtpFile
        In natural order.
    problems : list of Problem
        Participants whose series cannot be distinguished, or who are not there.

    Raises
    ------
    InputError
        When there is no series.
    """
    root = bids_dir
    if not bids_dir.is_dir():
        raise InputError('no such folder', fix='give the folder of a BIDS dataset', path=bids_dir)
    labels = list_participants(root).labels
    for name in RAW_FOLDERS if not labels else ():
        if (bids_dir / name).is_dir():
            root = bids_dir / name
            labels = list_participants(root).labels
            break
    wanted = {label.removeprefix('sub-') for label in participant_labels}
    problems = [
        Problem('is not in the dataset', 'check the label', label)
        for label in sorted(wanted - labels, key=natural)
    ]
    files: list[CtpFile] = []
    for label in sorted(labels & wanted if wanted else labels, key=natural):
        found, unread = list_images(root, label, containing='ctp')
        problems += unread
        series = [
            f
            for f in found
            if f.is_nifti and f.entities.get('suffix', '').lower() == 'ctp'
            and has_plain_name(f.path) and f.entities.get('subject') in (None, label)
        ]  # fmt: skip
        for session in sorted({f.session for f in series}, key=lambda s: natural(s or '')):
            own = [f for f in series if f.session == session]
            if len(own) > 1:
                problems.append(
                    Problem(
                        f'{len(own)} series of CT perfusion ({shorten(f.path.name for f in own)})',
                        'keep the one to use in the dataset',
                        label,
                        session,
                    )
                )
                continue
            files.append(CtpFile(own[0].path, label, session))
    if not files and not problems:
        raise InputError(
            'holds no series of CT perfusion',
            fix='expected, for example, sub-01/ct/sub-01_ctp.nii.gz with four dimensions',
            path=root,
        )
    return files, problems


def frame_times(path: Path, frames: int, spacing: float = 0.0) -> tuple[float, ...]:
    """Return the time of each frame of a series.

    Parameters
    ----------
    path : Path
        The series; its sidecar has ``VolumeTiming`` or ``FrameTimesStart`` (s of each frame) or
        ``RepetitionTime`` (s from frame to frame).
    frames : int
        How many there are.
    spacing : float
        s from frame to frame by the header of the image, which counts where the sidecar says
        nothing; 0 where it says nothing either.

    Returns
    -------
    tuple of float
        s, the first 0.

    Raises
    ------
    InputError
        When they are not known, or are not seconds.
    """
    facts = read_facts(sidecar_of(path))
    where = sidecar_of(path)
    for key in ('VolumeTiming', 'FrameTimesStart'):
        if key in facts:
            return _check(_numbers(facts, key, where), frames, key, where)
    step = facts.get('RepetitionTime', spacing)
    if isinstance(step, bool) or not isinstance(step, int | float) or not step > 0:
        raise InputError(
            'the times of the frames are not known',
            fix='give VolumeTiming in the sidecar: the s of each frame',
            path=where,
        )
    key = 'RepetitionTime' if 'RepetitionTime' in facts else 'the header'
    return _check([float(step) * k for k in range(frames)], frames, key, where)


def _numbers(facts: Mapping[str, Any], key: str, where: Path) -> list[float]:
    values = facts[key]
    if not isinstance(values, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    ):
        raise InputError(f'{key} is not a list of numbers', fix='give s of each frame', path=where)
    return [float(value) for value in values]


def _check(times: Sequence[float], frames: int, key: str, where: Path) -> tuple[float, ...]:
    if len(times) != frames:
        raise InputError(
            f'{key} has {len(times)} times, and the series {frames} frames',
            fix='give s of each frame',
            path=where,
        )
    steps = [b - a for a, b in itertools.pairwise(times)] or [0.0]
    if min(steps) < _SHORTEST_S or max(steps) > _LONGEST_S:
        raise InputError(
            f'{key} has steps of {min(steps):g} to {max(steps):g}, and frames of CT perfusion are '
            f'{_SHORTEST_S:g} to {_LONGEST_S:g} s apart',
            fix='give s (not ms), ascending',
            path=where,
        )
    return tuple(time - times[0] for time in times)
