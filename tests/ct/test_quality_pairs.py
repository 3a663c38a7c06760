"""What shows that two aligned scans are not an NCCT and a CTA of one head."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_perfdeficit import ct
from bids_perfdeficit.errors import InputError
from tests.ct.heads import floats


@pytest.fixture(scope='module')
def pair(patient, conformed):
    """Return NCCT and CTA of a digital patient on one grid, by the true alignment."""
    matrix = patient.truth.ncct_to_cta
    cta = ct.resample(floats(patient.cta), conformed.shape, matrix @ conformed.affine)
    return conformed, nib.Nifti1Image(cta, conformed.affine)


def noise(image, hu=6.0):
    values = np.asarray(image.dataobj) + np.random.default_rng(3).normal(0, hu, image.shape)
    return nib.Nifti1Image(values.astype(np.float32), image.affine)


def flip(image, axis):
    return nib.Nifti1Image(np.flip(np.asarray(image.dataobj), axis).copy(), image.affine)


def roll(image, mm):
    step = round(mm / image.affine[2, 2])
    values = np.roll(np.asarray(image.dataobj), step, 2)
    values[..., :step] = -1024
    return nib.Nifti1Image(values, image.affine)


def test_a_good_pair_passes(pair, brain):
    ct.check_pair(*pair, brain)
    found = ct.measure_pair(*pair, brain)
    assert found['cta_coverage'] == 1
    assert found['identical_share'] < 0.3
    assert found['arterial_contrast'] > 20
    assert found['swapped_contrast'] < -20
    assert found['scan_correlation'] > 0.95


SPOILT = {
    'the same twice': (lambda n, c: (n, n), 'same data'),
    'the same, rounded otherwise': (lambda n, c: (n, noise(n, 0.3)), 'same data'),
    'the CTA twice': (lambda n, c: (c, c), 'same data'),
    'a second NCCT': (lambda n, c: (n, noise(n)), 'no contrast'),
    'swapped': (lambda n, c: (c, n), 'swapped'),
    'swapped and noisy': (lambda n, c: (noise(c), noise(n)), 'swapped'),
    'another part': (lambda n, c: (n, roll(c, 110)), 'same part'),
    'upside down': (lambda n, c: (n, flip(c, 2)), 'fit|swapped'),
    'back to front': (lambda n, c: (n, flip(c, 1)), 'fit|swapped'),
    'misaligned': (lambda n, c: (n, roll(c, 24)), 'fit|swapped'),
}


@pytest.mark.parametrize('how', SPOILT)
def test_a_spoilt_pair_is_refused_with_its_reason(pair, brain, how):
    spoil, said = SPOILT[how]
    with pytest.raises(InputError, match=said) as caught:
        ct.check_pair(*spoil(*pair), brain)
    assert caught.value.fix


def measure(ncct, cta, brain):
    template = ct.load_template(spacing=2.0).brain_mask
    difference = np.asarray(cta.dataobj) - np.asarray(ncct.dataobj)
    return ct.measure_quality(
        ncct, cta, brain, nib.Nifti1Image(difference, ncct.affine), template, template
    )


def test_a_mirrored_scan_shows_in_what_is_asymmetric(pair, brain):
    ncct, cta = pair
    good = measure(ncct, cta, brain)
    assert good['side_agreement'] > 0.6
    assert good['brain_balance'] > 0.93
    assert good['brain_open'] < 25
    assert 25 < good['brain_mean'] < 40
    assert np.isnan(good['template_correlation'])
    # About the middle of the brain, as registration would align the mirrored scan.
    middle = np.argwhere(np.asarray(brain.dataobj) > 0)[:, 0].mean()
    values = np.asarray(cta.dataobj)
    index = np.clip(np.rint(2 * middle - np.arange(values.shape[0])), 0, values.shape[0] - 1)
    mirrored = nib.Nifti1Image(values[index.astype(int)], cta.affine)
    assert measure(ncct, mirrored, brain)['side_agreement'] < 0


def test_half_a_mask_shows_in_the_balance(pair, brain):
    mask = np.array(brain.dataobj)
    mask[: mask.shape[0] // 2 - 3] = 0
    half = nib.Nifti1Image(mask, brain.affine)
    assert measure(*pair, half)['brain_balance'] < 0.6


def test_a_cut_head_shows_as_open_surface(pair, brain):
    ncct, cta = pair
    values = np.array(ncct.dataobj)
    stop = int(np.argwhere(np.asarray(brain.dataobj))[:, 0].max() - 15 / ncct.affine[0, 0])
    values[stop:] = -1024
    mask = np.array(brain.dataobj)
    mask[stop:] = 0
    cut = [nib.Nifti1Image(v, ncct.affine) for v in (values, mask)]
    assert measure(cut[0], cta, cut[1])['brain_open'] > 25


#: The scale in a sidecar, but for its shift.
HU_READ = {'HUSlope': 1, 'HUScaleKnown': True}


@pytest.mark.parametrize(
    ('ncct', 'cta', 'expected'),
    [
        ({}, {}, {}),
        (
            {
                'SliceJump': 1.1,
                'SlicesRepeated': 0,
                'HUSlope': 1,
                'HUShift': 0,
                'HUScaleKnown': True,
            },
            {
                'SliceJump': 2.0,
                'SlicesRepeated': 2,
                'HUSlope': 1,
                'HUShift': 1024,
                'HUScaleKnown': True,
            },
            {'slice_jump': 2.0, 'slices_repeated': 2, 'hu_scale': 'corrected'},
        ),
        ({'HUSlope': 1, 'HUShift': 500.0, 'HUScaleKnown': False}, {}, {'hu_scale': 'estimated'}),
        ({'AffineDifference': 0.2}, {'AffineDifference': 2.5}, {'affine_difference': 2.5}),
    ],
)
def test_the_worse_of_both_sidecars_counts(ncct, cta, expected):
    assert ct.sidecar_metrics(ncct, cta) == expected
