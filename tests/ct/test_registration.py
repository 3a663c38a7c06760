"""Known turns, shifts and warps are recovered, and transforms mean the same to ANTs as to us."""

from __future__ import annotations

import ants
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bids_perfdeficit import ct
from bids_perfdeficit.ct.quality import dice
from bids_perfdeficit.errors import InputError
from tests.ct.heads import AFFINE, SHAPE, brain_points, floats, scan_head, take

LPS = np.array([-1.0, -1.0, 1.0])
#: mm; largest mean error of the normalisation in the brain.
MOST_MM = 2.0


def rigid(degrees, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('xyz', degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def misalignment(found, true, points):
    """Return the distances between where two matrices carry points, mm."""
    off = (found - true)[:3]
    return np.linalg.norm(points @ off[:, :3].T + off[:, 3], axis=1)


@pytest.mark.parametrize(
    ('degrees', 'shift', 'thickness'),
    [((0, 0, 0), (0, 0, 0), 2.0), ((9, -7, 10), (14, -12, 15), 4.0)],
    ids=['as it came', 'turned, thick slices'],
)
def test_cta_is_aligned(patient, conformed, brain, degrees, shift, thickness):
    motion = rigid(degrees, shift)
    cta = take(floats(patient.cta), motion, thickness)
    result = ct.register_cta(conformed, cta, brain, seed=1)
    true = motion @ patient.truth.ncct_to_cta
    error = misalignment(result.matrix, true, brain_points(patient.truth.brain))
    assert error.mean() < 0.5
    assert result.notes == ()
    assert result.quality['Correlation'] > 0.9
    angle = np.degrees(np.arccos((np.trace(true[:3, :3]) - 1) / 2))
    assert abs(result.quality['Rotation'] - angle) < 0.5
    # The image is the CTA read through the matrix, on the grid of the NCCT.
    assert result.image.shape == conformed.shape
    assert np.allclose(result.image.affine, conformed.affine)
    bone = [np.asarray(i.dataobj) > 300 for i in (conformed, result.image)]
    assert dice(*bone) > (0.85 if thickness < 3 else 0.75)


def test_cta_of_another_part_is_told(patient, conformed, brain):
    values = floats(patient.cta)
    # The jaw and neck alone: no brain that could lie on the brain.
    low = nib.Nifti1Image(np.asarray(values.dataobj)[..., :14], values.affine)
    with pytest.raises(InputError, match='head'):
        ct.register_cta(conformed, low, brain, seed=1)


def test_registering_twice_gives_the_same_bytes(patient, conformed, brain, tmp_path):
    template = ct.load_template(spacing=2.0)
    runs = []
    for name in ('a', 'b'):
        folder = tmp_path / name
        folder.mkdir()
        rigid_found = ct.register_cta(conformed, floats(patient.cta), brain, seed=5)
        found = ct.register_template(
            conformed, brain, template, work_dir=folder, seed=5, sloppy=True
        )
        # HDF5 may hold times; what the transforms do to an image must not differ.
        moved = [
            np.asarray(ct.apply_transform(image, reference, path).dataobj).tobytes()
            for image, reference, path in (
                (conformed, template.t1, found.forward),
                (template.t1, conformed, found.inverse),
            )
        ]
        runs.append([rigid_found.matrix.tobytes(), *moved])
    assert runs[0] == runs[1]


@pytest.fixture(scope='module')
def normalised(patient, conformed, brain, tmp_path_factory):
    """Return the transforms of the full recipe."""
    return ct.register_template(
        conformed,
        brain,
        ct.load_template(spacing=2.0),
        work_dir=tmp_path_factory.mktemp('template'),
        seed=1,
    )


def test_template_is_aligned(patient, normalised):
    points = brain_points(ct.load_template(spacing=2.0).brain_mask)
    frame = pd.DataFrame(points * LPS, columns=['x', 'y', 'z'])
    moved = ants.apply_transforms_to_points(3, frame, [str(normalised.forward)])
    found = np.asarray(moved[['x', 'y', 'z']]) * LPS
    error = np.linalg.norm(found - patient.truth.warp.forward(points), axis=1)
    assert error.mean() < MOST_MM
    assert normalised.notes == ()
    assert normalised.quality['BrainDice'] > 0.95


def test_lesion_keeps_its_size(patient, normalised):
    template = ct.load_template(spacing=2.0).brain_mask
    delay = ct.resample(patient.truth.delay_template, template.shape, template.affine)
    carried = ct.apply_transform(
        patient.truth.hypoperfused, template, normalised.forward, interpolation='nearest'
    )
    lesion = np.asarray(carried.dataobj) > 0
    assert dice(lesion, delay > 6) > 0.85
    assert 0.9 < lesion.sum() / (delay > 6).sum() < 1.1


def test_inverse_undoes_forward(conformed, brain, normalised):
    template = ct.load_template(spacing=2.0).brain_mask
    there = ct.apply_transform(brain, template, normalised.forward, interpolation='nearest')
    back = ct.apply_transform(there, conformed, normalised.inverse, interpolation='nearest')
    assert there.get_data_dtype() == np.uint8
    assert dice(np.asarray(back.dataobj) > 0, np.asarray(brain.dataobj) > 0) > 0.97


angle = st.floats(-60, 60)
shift = st.floats(-200, 200)


@given(degrees=st.tuples(angle, angle, angle), shift=st.tuples(shift, shift, shift))
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
def test_rigid_file_is_read_as_written(tmp_path, degrees, shift):
    matrix = rigid(degrees, shift)
    path = tmp_path / 'xfm.txt'
    ct.write_rigid(matrix, path)
    assert np.allclose(ct.read_rigid(path), matrix, atol=1e-8)


def test_rigid_file_means_the_same_to_ants(tmp_path):
    fixed = floats(scan_head(AFFINE, SHAPE))
    matrix = rigid((10, -5, 20), (8, -12, 5))
    path = tmp_path / 'xfm.txt'
    ct.write_rigid(matrix, path)
    # Of the moved head, what lies in the fixed image at p lies at matrix @ p.
    moving = floats(scan_head(np.linalg.inv(matrix) @ AFFINE, SHAPE))
    moving = nib.Nifti1Image(moving.dataobj, AFFINE)
    seen = ct.apply_transform(moving, fixed, path, fill=-1000.0)
    inner = (slice(12, -12), slice(15, -15), slice(14, -14))
    difference = np.abs(np.asarray(seen.dataobj) - np.asarray(fixed.dataobj))[inner]
    ours = ct.resample(moving, fixed.shape, matrix @ fixed.affine)
    unmoved = np.abs(np.asarray(moving.dataobj) - np.asarray(fixed.dataobj))[inner]
    assert difference.mean() < 30 < unmoved.mean() / 2
    assert np.abs(np.asarray(seen.dataobj) - ours)[inner].max() < 0.5
    point = pd.DataFrame(np.array([[20.0, -30, 40]]) * LPS, columns=['x', 'y', 'z'])
    carried = ants.apply_transforms_to_points(3, point, [str(path)])
    assert np.allclose(
        np.asarray(carried[['x', 'y', 'z']])[0] * LPS, (matrix @ [20, -30, 40, 1])[:3], atol=1e-4
    )
