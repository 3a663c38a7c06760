"""A patient's two scans: attenuation, contrast, the motion between them, and the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_perfdeficit.phantom.bolus import Bolus
from bids_perfdeficit.phantom.patient import make_patient
from bids_perfdeficit.phantom.settings import Occlusion, PersonSettings, ScannerSettings

M1 = Occlusion(site='M1', side='L', collaterals=0.3, onset_hours=4.0)
PERSON = PersonSettings(age=60, old_infarct=False)


def make(phase, **more):
    quiet = {'ncct_noise': 1.0, 'cta_noise': 1.0} | more
    return make_patient(
        7, M1, spacing=2.5, person=PERSON, scanner=ScannerSettings(phase=phase, peak=350, **quiet)
    )


@pytest.fixture(scope='module')
def early():
    return make(-4.0)


@pytest.fixture(scope='module')
def late():
    return make(10.0)


def data(image):
    return np.asarray(image.dataobj)


def test_the_ncct_has_the_hu_of_tissues(early):
    hu, brain = data(early.ncct).astype(float), data(early.truth.brain) > 0
    inside = ndimage.binary_erosion(brain, iterations=3)
    healthy = inside & (data(early.truth.flow) > 0.9) & (data(early.truth.artery) < 0.01)
    # Grey 37 to 41 and white 25 to 34 HU, CSF 0 to 15 (Phan et al., Stroke 2003; Bushberg).
    assert 25 < np.median(hu[healthy]) < 40
    low, high = np.percentile(hu[healthy], [5, 95])
    assert 0 < low < 32
    assert 33 < high < 45
    assert hu.min() < -950
    assert 900 < np.percentile(hu[hu > 300], 90) < 2000
    shell = ndimage.binary_dilation(brain, iterations=8) & ~brain
    assert ((hu[shell] > -130) & (hu[shell] < -50)).mean() > 0.02


def test_the_core_is_darker_in_the_ncct(early):
    hu, core = data(early.ncct).astype(float), data(early.truth.core) > 0
    assert core.sum() > 100
    mirror = core[::-1]  # the head is nearly symmetric about the middle of the grid
    mirror &= (data(early.truth.brain) > 0) & (data(early.truth.flow) > 0.9)
    fall = np.median(hu[mirror]) - np.median(hu[core])
    assert 1.5 < fall < 10


def test_truth_is_whole_and_on_the_grid_of_the_ncct(early):
    truth = early.truth
    for image in (truth.delay, truth.brain, truth.territory, truth.flow, truth.artery):
        assert image.shape == early.ncct.shape
        np.testing.assert_allclose(image.affine, early.ncct.affine)
    brain, delay = data(truth.brain) > 0, data(truth.delay)
    assert np.isfinite(delay).all()
    assert (delay[brain] > 0).all()
    assert (delay[~brain] == 0).all()
    assert (data(truth.territory)[brain] > 0).all()
    np.testing.assert_array_equal(data(truth.hypoperfused) > 0, brain & (delay > 6))
    ml = abs(np.linalg.det(early.ncct.affine[:3, :3])) / 1000
    assert truth.volumes['hypoperfused'] == pytest.approx((brain & (delay > 6)).sum() * ml)
    assert 60 < truth.volumes['hypoperfused'] < 330
    template = data(truth.brain_template) > 0
    assert (data(truth.delay_template)[template] > 0).all()


def test_left_is_left_in_the_images(early):
    where = np.argwhere(data(early.truth.hypoperfused) > 0)
    world = where @ early.ncct.affine[:3, :3].T + early.ncct.affine[:3, 3]
    middle = np.argwhere(data(early.truth.brain) > 0) @ early.ncct.affine[:3, :3].T
    middle = (middle + early.ncct.affine[:3, 3])[:, 0].mean()
    assert (world[:, 0] < middle).mean() > 0.98
    x = early.truth.delay_template.affine[0, 0] * np.arange(early.truth.delay_template.shape[0])
    x = x + early.truth.delay_template.affine[0, 3]
    delayed = (data(early.truth.delay_template) > 6).sum((1, 2))
    assert delayed[x < 0].sum() > 50 * max(delayed[x > 0].sum(), 1)


def test_ncct_to_cta_aligns_the_scans(early):
    def skull(image):
        return np.clip(data(image).astype(np.float32), 0, 1000)

    def match(matrix):
        move = np.linalg.inv(early.cta.affine) @ matrix @ early.ncct.affine
        moved = ndimage.affine_transform(
            skull(early.cta), move[:3, :3], move[:3, 3], output_shape=early.ncct.shape, order=1
        )
        half = early.ncct.shape[2] // 2  # the vault, where contrast matters least
        return np.corrcoef(moved[..., half:].ravel(), skull(early.ncct)[..., half:].ravel())[0, 1]

    true = early.truth.ncct_to_cta
    np.testing.assert_allclose(true[:3, :3] @ true[:3, :3].T, np.eye(3), atol=1e-8)
    assert match(true) > 0.95
    assert match(true) > match(np.eye(4)) + 0.02
    assert match(true) > match(np.linalg.inv(true)) + 0.02


def test_veins_fill_late_and_arteries_early(early, late):
    rise = [data(p.truth.enhancement) for p in (early, late)]
    vein = data(early.truth.vein) > 0
    artery = (data(early.truth.artery) > 0.8) & ~vein
    assert np.median(rise[0][artery]) > 2 * np.median(rise[0][vein])
    assert np.median(rise[1][vein]) > 1.5 * np.median(rise[1][artery])
    assert np.median(rise[0][artery]) > 200
    assert np.median(rise[1][vein]) > 150


def test_arteries_beyond_the_clot_are_dim_in_the_early_phase(early):
    rise = data(early.truth.enhancement)
    tree, affine = early.truth.tree, np.linalg.inv(early.ncct.affine)
    seen = []
    for side in 'LR':
        nodes = np.concatenate([tree.nodes(f'{name}-{side}') for name in ('M2sup', 'M2inf')])
        index = early.truth.points[nodes] @ affine[:3, :3].T + affine[:3, 3]
        seen.append(ndimage.map_coordinates(rise, index.T, order=1).mean())
    assert seen[0] < 0.75 * seen[1]


def test_a_patient_is_set_by_the_seed(early):
    again = make(-4.0)
    np.testing.assert_array_equal(data(again.ncct), data(early.ncct))
    np.testing.assert_array_equal(data(again.cta), data(early.cta))
    np.testing.assert_array_equal(data(again.truth.delay), data(early.truth.delay))


def test_thick_tilted_slices_without_motion():
    scanner = ScannerSettings(ncct_thickness=5.0, tilt=15.0, motion=False)
    patient = make_patient(7, M1, spacing=3.0, person=PERSON, scanner=scanner)
    affine = patient.ncct.affine
    np.testing.assert_allclose(affine[2, 2], 5.0)
    np.testing.assert_array_equal(patient.truth.ncct_to_cta, np.eye(4))
    assert affine[1, 2] == pytest.approx(5.0 * np.tan(np.deg2rad(15)))


@pytest.mark.parametrize('spacing', [0.1, 9.0])
def test_spacings_out_of_range_are_refused(spacing):
    with pytest.raises(ValueError, match='between'):
        make_patient(1, spacing=spacing)


def test_a_bolus_peaks_when_it_should_and_washes_out():
    blood = {p: Bolus(peak=300, phase=p).blood(np.zeros(1), np.full(1, 0.05))[0]
             for p in (-20.0, -5.0, 0.0, 6.0, 15.0)}  # fmt: skip
    assert blood[0] == pytest.approx(300, rel=0.02)
    assert blood[-20] < 1
    assert blood[-5] < blood[0] > blood[6] > blood[15] > 0.1 * blood[0]
    early = Bolus(peak=300, phase=-4.0)
    arrival = np.array([0.0, 2.0, 5.0, 9.0])
    enhancement = early.blood(arrival, 0.1 + 0.3 * arrival)
    assert (np.diff(enhancement) < 0).all()
    # Later than the peak, late blood is the brighter.
    assert (np.diff(Bolus(peak=300, phase=8.0).blood(arrival[:3], np.full(3, 0.1))) > 0).all()
    # Dispersion lowers a peak.
    spread = Bolus(peak=300, phase=0.0).blood(np.zeros(3), np.array([0.05, 2.0, 9.0]))
    assert (np.diff(spread) < 0).all()


@pytest.mark.parametrize('later', [(0.0,), (8.0, 8.0), (16.0, 8.0)])
def test_later_phases_must_come_later(later):
    with pytest.raises(ValueError, match='later is'):
        ScannerSettings(later=later)


def test_the_voltage_of_the_cta_brightens_contrast_bone_and_grey_matter():
    still = {'motion': False, 'phase': 0.0, 'peak': 300, 'ncct_noise': 0.0, 'cta_noise': 0.0}
    usual, low = (
        make_patient(
            7, spacing=3.0, person=PERSON, scanner=ScannerSettings(cta_kvp=voltage, **still)
        )
        for voltage in (120, 80)
    )
    np.testing.assert_array_equal(data(usual.ncct), data(low.ncct))
    before, after = (data(p.cta).astype(float) for p in (usual, low))
    bone = before > 900
    assert 1.15 < (after[bone] / before[bone]).mean() < 1.35
    vessel = (before > 200) & (before < 330)
    assert (after[vessel] / before[vessel]).mean() > 1.15
    # Grey matter against white by more, water as it was.
    middle = np.abs(before - 39) < 1
    white = (before > 27) & (before < 30)
    assert (
        after[middle].mean() - after[white].mean()
        > before[middle].mean() - before[white].mean() + 1.5
    )
    assert low.scan['cta_kvp'] == 80
    assert 'cta_kvp' not in usual.scan


def test_leukoaraiosis_is_dark_in_the_ncct_and_slow_but_no_deficit():
    still = ScannerSettings(motion=False, phase=0.0, peak=300, ncct_noise=0.0, cta_noise=0.0)
    none, some = (
        make_patient(
            7, spacing=3.0, scanner=still,
            person=PersonSettings(age=60, old_infarct=False, leukoaraiosis=extent),
        )
        for extent in (0.0, 1.0)
    )  # fmt: skip
    fall = data(none.ncct).astype(float) - data(some.ncct)
    slower = data(some.truth.delay) - data(none.truth.delay)
    dark = fall > 4
    assert dark.mean() > 0.002
    assert fall.min() > -2
    assert slower[dark].mean() > 0.3
    assert slower.min() > -0.1
    assert some.truth.volumes['hypoperfused'] < 1
    assert some.person['leukoaraiosis'] == 1.0


@pytest.mark.parametrize(('call', 'what'), [
    (lambda: ScannerSettings(cta_kvp=90), 'cta_kvp is 90'),
    (lambda: PersonSettings(stenosis=0.99), 'stenosis is 0.99'),
    (lambda: PersonSettings(stenosis_side='left'), "stenosis_side is 'left'"),
    (lambda: PersonSettings(leukoaraiosis=2), 'leukoaraiosis is 2'),
])  # fmt: skip
def test_a_person_or_scanner_that_cannot_be_is_refused(call, what):
    with pytest.raises(ValueError, match=what):
        call()
