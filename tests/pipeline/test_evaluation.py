"""Reading references: on which grid they lie, what is refused, and what is said of them."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit import pipeline
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.pipeline.evaluation import MAPS, MEASURES

SHAPE = (80, 90, 70)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = (-80, -100, -60)
X, Y, Z = nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1)).transpose(
    3, 0, 1, 2
)
BRAIN = (X / 65) ** 2 + ((Y + 10) / 80) ** 2 + (Z / 55) ** 2 < 1
#: A made Tmax: 1 to 5 s, with 8 to 11 s in a ball on the left.
DELAY = np.where(BRAIN, 3 + 2 * np.sin(X / 9) * np.cos(Y / 11), 0)
DELAY[BRAIN & ((X + 30) ** 2 + Y**2 + Z**2 < 25**2)] += 6


def image(values, affine=AFFINE) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(values, np.float32), affine)


@pytest.fixture
def read(tmp_path):
    """Return a function that writes values and reads them as a reference."""

    def write_and_read(values, affine=AFFINE):
        path = tmp_path / 'sub-01_tmax.nii.gz'
        nib.save(image(values, affine), path)
        return pipeline.read_reference(path, image(BRAIN))

    return write_and_read


def test_a_reference_on_the_grid_is_taken_as_it_is(read):
    found = read(DELAY)
    delay = found.delay.get_fdata()
    assert found.covered > 0.99
    assert found.notes == ()
    known = np.isfinite(delay)
    assert not (known & ~BRAIN).any()
    np.testing.assert_allclose(delay[known], DELAY[known], atol=1e-5)


def test_a_reference_on_another_grid_lies_in_the_same_place(read):
    # a slab of 5 mm slices, in another orientation
    slab = DELAY[::-1, :, 15:50:2]
    affine = AFFINE.copy()
    affine[:3, 0] *= -1
    affine[0, 3] = AFFINE[0, 3] + 2 * (SHAPE[0] - 1)
    affine[:3, 2] *= 2
    affine[2, 3] += 2 * 15
    found = read(slab, affine)
    delay = found.delay.get_fdata()
    known = np.isfinite(delay)
    assert 0.7 < found.covered < 0.9
    assert not known[..., :14].any()
    late = known & (delay > 6)
    assert X[late].mean() < -20
    assert np.corrcoef(delay[known], DELAY[known])[0, 1] > 0.97


def test_two_thick_slices_are_a_reference_too(read):
    affine = AFFINE.copy()
    affine[2, 2] = 10
    affine[2, 3] += 2 * 30
    found = read(DELAY[:, :, [30, 35]], affine)
    known = np.isfinite(found.delay.get_fdata())
    assert 0.2 < found.covered < 0.3
    assert Z[known].min() > -6
    assert Z[known].max() < 16


def test_single_zeros_are_delays_and_holes_are_not(read):
    values = DELAY.copy()
    truncated = BRAIN & (np.random.default_rng(1).random(SHAPE) < 0.05)
    values[truncated] = 0
    hole = (np.abs(X) < 8) & (np.abs(Y) < 16) & (np.abs(Z) < 16)
    values[hole] = 0
    found = read(values)
    known = np.isfinite(found.delay.get_fdata())
    assert known[truncated & ~hole].mean() > 0.9
    inner = (np.abs(X) < 4) & (np.abs(Y) < 10) & (np.abs(Z) < 10)
    assert not known[inner].any()
    assert 'exactly 0' in ' '.join(found.notes)


def test_artefacts_are_said(read):
    values = np.minimum(DELAY, 8.5)
    values[(Z > 56) & (X**2 + (Y + 10) ** 2 < 400)] = 8  # outside the brain, above it
    reported = ' '.join(read(values).notes)
    assert 'ends at 8.5 s' in reported
    assert 'outside the brain' in reported


OTHER_HEAD = AFFINE.copy()
OTHER_HEAD[:3, 3] += (70, 0, 0)
FAR = AFFINE.copy()
FAR[:3, 3] += (0, 0, 300)


@pytest.mark.parametrize(
    ('values', 'affine', 'reported'),
    [
        (np.full(SHAPE, 4.0), AFFINE, 'every voxel in the brain is 4'),
        (DELAY - 4 * BRAIN, AFFINE, r'is negative in \d+.\d% of the brain'),
        (DELAY * 1000, AFFINE, 'looks like milliseconds; divide it by 1000'),
        (DELAY * 23, AFFINE, 'looks like another unit'),
        (DELAY / 20, AFFINE, 'is normalised, or not Tmax'),
        ((DELAY > 6) * 1.0 + BRAIN, AFFINE, 'holds only the values 1, 2: it is a mask'),
        (np.stack([DELAY, DELAY], -1), AFFINE, '2 volumes instead of one'),
        (DELAY, OTHER_HEAD, 'of another patient, or not registered'),
        (DELAY, FAR, 'does not overlap the brain'),
        (np.zeros(SHAPE), AFFINE, 'does not overlap the brain: 0.0 mL'),
        (np.full(SHAPE, np.nan), AFFINE, 'does not overlap the brain: 0.0 mL'),
    ],
)
def test_what_is_not_tmax_of_this_patient_is_refused(read, values, affine, reported):
    with pytest.raises(InputError, match=reported):
        read(values, affine)


def test_a_file_that_is_cut_or_says_no_side_is_refused(read, tmp_path):
    read(DELAY)
    path = tmp_path / 'sub-01_tmax.nii.gz'
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match='truncated or damaged'):
        pipeline.read_reference(path, image(BRAIN))
    bare = image(DELAY)
    bare.set_sform(None, code=0)
    bare.set_qform(None, code=0)
    nib.save(bare, path)
    with pytest.raises(InputError, match='which side is left'):
        pipeline.read_reference(path, image(BRAIN))


def made_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of four patients; the computed map is .1 better than the others."""
    rows, patients = [], []
    for n in range(4):
        who = f'sub-{n}'
        for name in MAPS:
            value = 0.5 + 0.05 * n + (0.1 if name == 'computed' else 0)
            rows.append(
                {'participant_id': who, 'map': name, 'side': 'left'}
                | dict.fromkeys(MEASURES, value)
            )
        patients.append({
            'participant_id': who, 'found_ml': 10.0 * n, 'reference_ml': 10.0 * n + 2, 'dice': 0.5,
            'found_side': 'left', 'reference_side': ['left', 'right', 'neither', 'left'][n],
            'found_site': 'M1', 'reference_site': ['M1', 'ICA', None, None][n],
        })  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(patients)


def test_a_cohort_is_summarised_with_its_gain_over_each_control():
    table = pipeline.summarize_cohort(*made_tables(), seed=1).set_index(['map', 'measure'])
    assert table.loc[('computed', 'auc'), 'mean'] == pytest.approx(0.675)
    assert table.loc[('distance', 'auc'), 'gain'] == pytest.approx(0.1)
    assert table.loc[('distance', 'auc'), 'gain_low'] == pytest.approx(0.1)
    assert table.loc[('computed', 'bias'), 'mean'] == pytest.approx(-2)
    assert 0.9 < table.loc[('computed', 'concordance'), 'mean'] < 1
    assert tuple(table.loc[('computed', 'side'), ['n', 'mean']]) == pytest.approx((3, 2 / 3))
    assert tuple(table.loc[('computed', 'site'), ['n', 'mean']]) == pytest.approx((2, 1 / 2))


def test_one_patient_is_summarised_without_an_interval():
    maps, patients = made_tables()
    table = pipeline.summarize_cohort(maps[:6], patients[:1], seed=1)
    assert table['mean'].notna().any()
    assert table['low'].isna().all()
