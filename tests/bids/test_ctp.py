"""Finding series of CT perfusion and the times of their frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_perfdeficit.bids.ctp import find_ctp, frame_times
from bids_perfdeficit.errors import InputError


def put(root: Path, name: str, facts: dict | None = None) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'x')
    if facts is not None:
        path.with_name(path.name.removesuffix('.nii.gz') + '.json').write_text(json.dumps(facts))
    return path


def test_series_are_found_in_bids_and_in_isles(tmp_path):
    put(tmp_path, 'a/sub-02/ct/sub-02_ctp.nii.gz')
    put(tmp_path, 'a/sub-10/ses-1/ct/sub-10_ses-1_ctp.nii.gz')
    put(tmp_path, 'a/sub-10/ses-1/ct/sub-10_ses-1_cta.nii.gz')
    files, problems = find_ctp(tmp_path / 'a')
    assert [f.prefix for f in files] == ['sub-02', 'sub-10_ses-1']
    assert not problems
    put(tmp_path, 'b/raw_data/sub-stroke0001/ses-01/sub-stroke0001_ses-01_ctp.nii.gz')
    (file,), _ = find_ctp(tmp_path / 'b')
    assert (file.participant, file.session) == ('stroke0001', '01')
    files, problems = find_ctp(tmp_path / 'a', ['sub-02', '77'])
    assert [f.participant for f in files] == ['02']
    assert 'is not in the dataset' in str(problems[0])


def test_two_series_cost_their_participant_and_none_is_an_error(tmp_path):
    put(tmp_path, 'sub-01/ct/sub-01_run-1_ctp.nii.gz')
    put(tmp_path, 'sub-01/ct/sub-01_run-2_ctp.nii.gz')
    files, problems = find_ctp(tmp_path)
    assert not files
    assert '2 series of CT perfusion' in str(problems[0])
    put(tmp_path, 'other/sub-01/ct/sub-01_cta.nii.gz')
    with pytest.raises(InputError, match='holds no series of CT perfusion'):
        find_ctp(tmp_path / 'other')


def test_times_are_those_of_the_sidecar(tmp_path):
    path = put(tmp_path, 'sub-01_ctp.nii.gz', {'VolumeTiming': [3, 4.5, 7, 10]})
    assert frame_times(path, 4) == (0, 1.5, 4, 7)
    path = put(tmp_path, 'sub-02_ctp.nii.gz', {'RepetitionTime': 2})
    assert frame_times(path, 3, 9.0) == (0, 2, 4)
    assert frame_times(put(tmp_path, 'sub-03_ctp.nii.gz'), 3, 1.5) == (0, 1.5, 3)


@pytest.mark.parametrize(
    ('facts', 'told'),
    [
        ({}, 'the times of the frames are not known'),
        ({'RepetitionTime': 'x'}, 'the times of the frames are not known'),
        ({'VolumeTiming': [0, 1, 'x']}, 'not a list of numbers'),
        ({'VolumeTiming': [0, 1]}, 'has 2 times, and the series 3 frames'),
        ({'VolumeTiming': [0, 1500, 3000]}, 'steps of 1500 to 1500'),
        ({'FrameTimesStart': [0, 2, 1]}, 'steps of -1 to 2'),
    ],
)
def test_what_cannot_be_times_is_refused(tmp_path, facts, told):
    with pytest.raises(InputError, match=told):
        frame_times(put(tmp_path, 'sub-01_ctp.nii.gz', facts), 3)
