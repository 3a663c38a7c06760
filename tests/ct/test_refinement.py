"""The last rigid step finds what a registration left, and says what no rigid step can undo."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_perfdeficit import ct
from tests.ct.heads import brain_points, floats
from tests.ct.test_registration import misalignment, rigid


@pytest.mark.parametrize(
    ('degrees', 'shift'),
    [((0, 0, 0), (0, 0, 0)), ((0, 0, 0), (1.5, 0, 0)), ((0.6, -0.6, 0.5), (-0.8, 0.9, 0.9))],
    ids=['aligned', 'shifted', 'turned and shifted'],
)
def test_what_a_registration_left_is_found_to_a_tenth_of_a_millimetre(
    patient, conformed, brain, degrees, shift
):
    true = patient.truth.ncct_to_cta
    start = true @ rigid(degrees, shift)
    found = ct.refine_rigid(conformed, floats(patient.cta), brain, start)
    points = brain_points(patient.truth.brain)
    assert misalignment(found.matrix, true, points).mean() < 0.1
    assert found.residual < 0.3
    assert found.moved == pytest.approx(misalignment(start, true, points).mean(), abs=0.5)


def test_movement_within_a_scan_is_left_and_measured(patient, conformed, brain):
    cta = floats(patient.cta)
    values = np.asarray(cta.dataobj)
    mm = cta.header.get_zooms()[0]
    bent = np.stack(
        [
            ndimage.shift(values[..., k], (3.0 * (k / values.shape[2] - 0.5) / mm * 2, 0), order=1,
                          mode='nearest')
            for k in range(values.shape[2])
        ],
        -1,
    )  # fmt: skip
    found = ct.refine_rigid(
        conformed, nib.Nifti1Image(bent, cta.affine), brain, patient.truth.ncct_to_cta
    )
    still = ct.refine_rigid(conformed, cta, brain, patient.truth.ncct_to_cta)
    assert found.residual > 2 * still.residual
    assert found.residual > 0.3


def test_without_edges_the_start_is_kept(conformed, brain):
    flat = nib.Nifti1Image(np.zeros(conformed.shape, np.float32), conformed.affine)
    start = rigid((1, 2, 3), (4, 5, 6))
    found = ct.refine_rigid(flat, flat, brain, start)
    assert np.array_equal(found.matrix, start)
    assert math.isnan(found.residual)
    assert found.moved == 0
    # Edges that the other scan does not have are no reason to move either.
    kept = ct.refine_rigid(conformed, flat, brain, np.eye(4))
    assert np.linalg.norm((kept.matrix - np.eye(4))[:3, 3]) <= 4.0
