"""The priors are where anatomy is, and symmetric."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_perfdeficit.perfusion import inflow_prior, vein_prior

#: A symmetric 2 mm grid about MNI space.
SHAPE = (99, 117, 95)
AFFINE = np.array([[2.0, 0, 0, -98], [0, 2, 0, -134], [0, 0, 2, -72], [0, 0, 0, 1]])


def at(prior, x, y, z):
    index = np.linalg.solve(AFFINE, [x, y, z, 1])[:3]
    return float(ndimage.map_coordinates(prior, index[:, None], order=1)[0])


@pytest.mark.parametrize('prior', [inflow_prior, vein_prior])
def test_a_prior_is_symmetric_and_bounded(prior):
    out = prior(SHAPE, AFFINE)
    assert out.dtype == np.float32
    assert out.min() == 0
    assert out.max() == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(out, out[::-1], atol=1e-6)


def test_inflow_is_beside_the_chiasm_and_before_the_midbrain_in_three_pieces():
    out = inflow_prior(SHAPE, AFFINE)
    _labels, count = ndimage.label(out > 0.5)
    assert count == 3
    assert at(out, 12, 3, -18) > 0.8
    assert at(out, -12, 3, -18) > 0.8
    assert at(out, 0, -12, -20) > 0.8
    assert at(out, 0, 3, -17) < 0.5  # the chiasm itself
    assert at(out, 45, -20, 10) == 0


def test_veins_are_on_the_midline_and_the_tentorium_and_not_on_the_inflow():
    out = vein_prior(SHAPE, AFFINE)
    assert at(out, 0, -38, 78) > 0.9
    assert at(out, 50, -71, -22) > 0.6
    assert at(out, 0, -43, 8) > 0.8
    assert at(out, 40, 5, 0) == 0  # the Sylvian fissure
    assert (out * inflow_prior(SHAPE, AFFINE)).max() < 0.05


def test_the_sinuses_follow_the_outline_of_a_given_brain():
    index = np.indices(SHAPE).reshape(3, -1)
    x, y, z = (AFFINE[:3, :3] @ index + AFFINE[:3, 3:]).reshape(3, *SHAPE)
    brain = (x / 68) ** 2 + ((y + 17) / 86) ** 2 + ((z - 5) / 68) ** 2 < 1
    out = vein_prior(SHAPE, AFFINE, brain)
    # The vertex of this brain is at z = 73; of the template's midline at 77.
    assert at(out, 0, -17, 74) > 0.9
    np.testing.assert_allclose(out, out[::-1], atol=1e-6)
