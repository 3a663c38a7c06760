"""Transforms are evaluated as ITK evaluates them, at points and in images."""

from __future__ import annotations

import ants
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_perfdeficit import ct
from bids_perfdeficit.ct.registration import to_ants
from bids_perfdeficit.ct.warping import Field, Transform, matrix_of

LPS = np.array([-1.0, -1.0, 1.0])
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
AFFINE[:3, 3] = (-40, -50, -30)
SHAPE = (27, 33, 21)


@pytest.fixture(scope='module')
def composite(tmp_path_factory):
    """A composite as ANTs writes it: an affine, and a warp of some millimetres."""
    rng = np.random.default_rng(2)
    image = nib.Nifti1Image(rng.random(SHAPE, dtype=np.float32), AFFINE)
    grid = to_ants(np.zeros(SHAPE), AFFINE)
    steps = np.stack(np.meshgrid(*(np.linspace(0, 5, n) for n in SHAPE), indexing='ij'), -1)
    field = ants.from_numpy(
        (4 * np.sin(steps + np.arange(3))).astype(np.float32),
        origin=grid.origin, spacing=grid.spacing, direction=grid.direction, has_components=True,
    )  # fmt: skip
    affine = ants.create_ants_transform(
        transform_type='AffineTransform', dimension=3,
        matrix=np.array([[1.05, 0.1, 0], [-0.08, 0.95, 0.02], [0, 0.03, 1.1]]),
        translation=(3.0, -2.0, 5.0), center=(10.0, 4.0, -6.0),
    )  # fmt: skip
    return image, field, affine


def test_field_moves_points_as_itk_does(composite):
    """Inside the field between voxels, at its rim, and outside, where points stay."""
    _, field, affine = composite
    vectors = np.moveaxis(field.numpy() * LPS, -1, 0)
    ours = Transform((
        matrix_of(affine.parameters, affine.fixed_parameters),
        Field(np.ascontiguousarray(vectors), np.linalg.inv(AFFINE)),
    ))  # fmt: skip
    points = np.random.default_rng(1).uniform(-60, 60, (3, 500))
    theirs = ants.transform_from_displacement_field(field)
    for point, found in zip(points.T, ours(points).T, strict=True):
        there = affine.apply_to_point(tuple(point * LPS))
        assert np.allclose(np.array(theirs.apply_to_point(there)) * LPS, found, atol=1e-4)


def test_template_transforms_are_read_as_ants_reads_them(patient, conformed, brain, tmp_path):
    template = ct.load_template(spacing=2.0)
    warp = ct.register_template(conformed, brain, template, work_dir=tmp_path, seed=1, sloppy=True)
    for path in (warp.forward, warp.inverse):
        points = np.random.default_rng(1).uniform(-90, 90, (3, 300))
        frame = pd.DataFrame(points.T * LPS, columns=['x', 'y', 'z'])
        theirs = ants.apply_transforms_to_points(3, frame, [str(path)])
        found = ct.read_transform(path)(points)
        np.testing.assert_allclose(found.T, np.asarray(theirs[['x', 'y', 'z']]) * LPS, atol=1e-3)
    for image, grid, path, how, ants_how in (
        (conformed, template.t1, warp.forward, 'linear', 'linear'),
        (brain, template.t1, warp.forward, 'nearest', 'nearestNeighbor'),
        (template.white, conformed, warp.inverse, 'linear', 'linear'),
    ):
        theirs = ants.apply_transforms(
            to_ants(np.zeros(grid.shape), grid.affine),
            to_ants(np.asarray(image.dataobj), image.affine),
            [str(path)], interpolator=ants_how, defaultvalue=3.0,
        ).numpy()  # fmt: skip
        found = ct.apply_transform(image, grid, path, interpolation=how, fill=3.0)
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(found.dataobj), theirs, atol=1e-5 * scale)


@given(st.integers(1, 5), st.integers(0, 100_000))
@settings(max_examples=15, deadline=None)
def test_values_do_not_depend_on_threads(threads, count):
    rng = np.random.default_rng(count)
    image = nib.Nifti1Image(rng.random(SHAPE, dtype=np.float32), AFFINE)
    points = rng.uniform(-70, 70, (3, count))
    turn = Transform((np.linalg.inv(AFFINE), AFFINE))
    one = ct.sample([image, image], ct.carry(turn, points))
    other = ct.sample([image, image], ct.carry(turn, points, threads=threads), threads=threads)
    for a, b in zip(one, other, strict=True):
        assert a.tobytes() == b.tobytes()


def test_parts_follow_each_other():
    scale, shift = np.diag([2.0, 2.0, 2.0, 1.0]), np.eye(4)
    shift[:3, 3] = 1, 2, 3
    points = np.arange(12.0).reshape(3, 4)
    moved = points + shift[:3, 3:]
    np.testing.assert_allclose(Transform((shift, scale))(points), moved * 2)
    np.testing.assert_allclose(Transform((scale, shift))(points), points * 2 + shift[:3, 3:])


def test_an_unknown_kind_of_transform_is_refused(tmp_path):
    import h5py

    path = tmp_path / 'spline.h5'
    with h5py.File(path, 'w') as file:
        group = file.create_group('TransformGroup/0')
        group['TransformType'] = [b'BSplineTransform_double_3_3']
        group['TransformParameters'] = np.zeros(3)
        group['TransformFixedParameters'] = np.zeros(3)
    with pytest.raises(ValueError, match='BSplineTransform'):
        ct.read_transform(path)
