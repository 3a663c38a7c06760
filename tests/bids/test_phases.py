"""Later phases of a CTA are taken when it is certain that they follow it, and not otherwise."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from bids_perfdeficit.bids import ScanPair, discover


@pytest.fixture
def find(tmp_path: Path):
    """Return a function that makes files with times, in s after the first, and finds the pair."""

    def build(*names: str, texts=(), filters=None, later=True, **times: float) -> ScanPair:
        folder = tmp_path / 'bids/sub-01/ct'
        folder.mkdir(parents=True)
        described = dict(texts)
        for name in ('ct', *names):
            path = folder / f'sub-01_{name}.nii.gz'
            path.write_bytes(b'\x1f\x8b')
            content = {}
            if (key := name.replace('-', '')) in times:
                moment = datetime.datetime(2024, 1, 31, 10) + datetime.timedelta(
                    seconds=times[key]
                )
                content['AcquisitionDateTime'] = moment.isoformat()
            if name in described:
                content['SeriesDescription'] = described[name]
            if content:
                path.with_name(f'sub-01_{name}.json').write_text(json.dumps(content))
        (pair,) = discover(tmp_path / 'bids', filters=filters, later_phases=later).pairs
        return pair

    return build


def taken(pair: ScanPair) -> list[str]:
    """Return the first and the later phases, without participant and extension."""
    return [
        path.name.removeprefix('sub-01_').removesuffix('.nii.gz')
        for path in (pair.cta, *pair.later)
    ]


#: File names, times by name without hyphens, and the phases that are used.
CERTAIN = [
    # numbers in the names
    (['cta', 'acq-phase2_cta'], {}, ['cta', 'acq-phase2_cta']),
    (['acq-phase1_cta', 'acq-phase2_cta', 'acq-phase3_cta'], {},
     ['acq-phase1_cta', 'acq-phase2_cta', 'acq-phase3_cta']),
    (['acq-ph3_cta', 'acq-ph2_cta', 'acq-ph1_cta'], {},
     ['acq-ph1_cta', 'acq-ph2_cta', 'acq-ph3_cta']),
    (['cta', 'desc-phase2_cta'], {}, ['cta', 'desc-phase2_cta']),
    (['acq-mctaPhase1_cta', 'acq-mctaPhase2_cta'], {},
     ['acq-mctaPhase1_cta', 'acq-mctaPhase2_cta']),
    # a word that names a phase
    (['acq-arterial_cta', 'acq-venous_cta'], {'acqarterial_cta': 0, 'acqvenous_cta': 8},
     ['acq-arterial_cta', 'acq-venous_cta']),
    (['cta', 'acq-peakvenous_cta', 'acq-latevenous_cta'], {},
     ['cta', 'acq-peakvenous_cta', 'acq-latevenous_cta']),
    (['acq-arterial_cta', 'acq-venous_ct'], {'acqarterial_cta': 0, 'acqvenous_ct': 8},
     ['acq-arterial_cta', 'acq-venous_ct']),
    # times, also without any word
    (['run-1_cta', 'run-2_cta', 'run-3_cta'], {'run1_cta': 0, 'run2_cta': 8, 'run3_cta': 16},
     ['run-1_cta', 'run-2_cta', 'run-3_cta']),
    (['acq-early_cta', 'acq-late_cta'], {'acqearly_cta': 0, 'acqlate_cta': 16},
     ['acq-early_cta', 'acq-late_cta']),
    (['cta', 'acq-delayed_cta'], {'cta': 0, 'acqdelayed_cta': 16}, ['cta', 'acq-delayed_cta']),
    # of reconstructions of one phase the better one
    (['cta', 'acq-phase2_rec-soft_cta', 'acq-phase2_rec-bone_cta'], {},
     ['cta', 'acq-phase2_rec-soft_cta']),
    # what is not certain does not take the rest with it
    (['cta', 'acq-phase2_cta', 'acq-venous_cta'], {}, ['cta', 'acq-phase2_cta']),
    # two are enough
    (['cta', 'acq-phase2_cta', 'acq-phase3_cta', 'acq-phase4_cta'], {},
     ['cta', 'acq-phase2_cta', 'acq-phase3_cta']),
]  # fmt: skip


@pytest.mark.parametrize(('names', 'times', 'want'), CERTAIN)
def test_phases_that_are_certain_are_taken_in_order(find, names, times, want):
    pair = find(*names, **times)
    assert taken(pair) == want
    assert any('taken as later phase' in note for note in pair.notes)
    assert not pair.doubts


#: The same where only the first is used, and a piece of the note that says why; empty without.
UNCERTAIN = [
    (['run-1_cta', 'run-2_cta'], {}, ''),
    (['cta', 'acq-b_cta'], {}, ''),
    (['acq-early_cta', 'acq-late_cta'], {}, 'nothing says how long after the CTA'),
    (['cta', 'acq-venous_cta'], {}, 'nothing says'),
    (['cta', 'acq-phase2_cta'], {'cta': 0, 'acqphase2_cta': 30}, '30 s after the CTA'),
    (['cta', 'acq-delayed_cta'], {'cta': 0}, 'nothing says'),
    (['cta', 'acq-venous_cta'], {'cta': 0, 'acqvenous_cta': 90}, '90 s after the CTA'),
    (['cta', 'acq-phase2_cta'], {'cta': 60, 'acqphase2_cta': 0}, 'before the CTA'),
    (['cta', 'acq-phase2_cta'], {'cta': 0, 'acqphase2_cta': 1}, 'at the same time'),
    (['run-1_cta', 'run-2_cta'], {'run1_cta': 0, 'run2_cta': 86_400 / 2}, ''),
    (['cta', 'acq-phase2_cta', 'acq-phase3_cta'],
     {'cta': 0, 'acqphase2_cta': 16, 'acqphase3_cta': 8}, 'contradict each other'),
    (['cta', 'acq-phase2_cta', 'acq-peakvenous_cta'], {}, 'the order of'),
    (['cta', 'acq-phase2_rec-a_cta', 'acq-phase2_rec-b_cta'], {}, 'nothing distinguishes them'),
    (['acq-phase2_cta', 'acq-phase3_cta'],
     {'acqphase2_cta': 0, 'acqphase3_cta': 8}, 'not of the arterial phase itself'),
    (['cta', 'acq-phase2_rec-mip_cta'], {}, ''),
    (['cta', 'acq-phase2neck_cta'], {}, ''),
    (['cta', 'acq-phase2followup_cta'], {}, ''),
]  # fmt: skip


@pytest.mark.parametrize(('names', 'times', 'piece'), UNCERTAIN)
def test_what_is_not_certain_is_left_out_and_said(find, names, times, piece):
    pair = find(*names, **times)
    assert taken(pair) == names[:1]
    assert not any('taken as later phase' in note for note in pair.notes)
    if piece:
        assert any(piece in note for note in pair.notes), pair.notes


def test_the_description_in_the_sidecar_names_the_phase(find):
    texts = {'run-1_cta': 'CTA head phase 1', 'run-2_cta': 'CTA head phase 2'}
    assert taken(find('run-1_cta', 'run-2_cta', texts=texts)) == ['run-1_cta', 'run-2_cta']


def test_a_filter_and_the_option_leave_later_phases_out(find, tmp_path):
    names = ('cta', 'acq-phase2_cta')
    assert taken(find(*names, filters={'cta': {'acquisition': None}})) == ['cta']
    (pair,) = discover(tmp_path / 'bids', later_phases=False).pairs
    assert taken(pair) == ['cta']
    assert not any('phase' in note and 'later' in note for note in pair.notes)


def test_a_phase_that_is_not_there_is_left_out_and_not_the_patient(find, tmp_path):
    find('cta', 'acq-phase2_cta', 'acq-phase3_cta')
    path = tmp_path / 'bids/sub-01/ct/sub-01_acq-phase2_cta.nii.gz'
    path.write_bytes(b'/annex/objects/SHA256E-s1--0.nii.gz\n')
    (pair,) = discover(tmp_path / 'bids').pairs
    assert taken(pair) == ['cta', 'acq-phase3_cta']
    assert any('datalad get' in note for note in pair.notes)
