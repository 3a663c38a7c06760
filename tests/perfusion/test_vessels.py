"""Vesselness and orientation on tubes, plates and blobs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bids_perfdeficit.perfusion import orientation_metric, solve_eikonal, vesselness
from bids_perfdeficit.perfusion.vessels import eigenvalues, hessian, smooth

UNIT = (1.0, 1.0, 1.0)


def mesh(n=48):
    axis = torch.arange(n, dtype=torch.float32) - n // 2
    return torch.meshgrid(axis, axis, axis, indexing='ij')


def tube(direction, radius=1.5, height=200.0, n=48):
    z, y, x = mesh(n)
    way = torch.tensor(direction) / torch.tensor(direction).norm()
    along = z * way[0] + y * way[1] + x * way[2]
    away = (z**2 + y**2 + x**2 - along**2).clamp_min(0).sqrt()
    return height * torch.sigmoid(4 * (radius - away)), away


def test_smoothing_widens_a_gaussian_by_the_sum_of_variances():
    z, y, x = mesh()
    image = torch.exp(-(z**2 + y**2 + x**2) / (2 * 3.0**2))
    out = smooth(image, 2.0, UNIT)
    wide = 3.0**2 + 2.0**2
    truth = (9 / wide) ** 1.5 * torch.exp(-(z**2 + y**2 + x**2) / (2 * wide))
    assert (out - truth).abs().max() < 2e-3


def test_second_derivatives_of_a_quadratic_are_exact_in_mm():
    spacing = (2.0, 1.0, 0.5)
    z, y, x = (k * h for k, h in zip(mesh(40), spacing, strict=True))
    image = 1.5 * z**2 - 0.5 * y**2 + 0.25 * x**2 + 2 * z * y - z * x + 0.5 * y * x
    centre = torch.zeros_like(image, dtype=torch.bool)
    centre[20, 20, 20] = True
    found = hessian(image, 1.0, spacing, centre)[:, 0]
    torch.testing.assert_close(
        found, torch.tensor([3.0, -1, 0.5, 2, -1, 0.5]), rtol=1e-3, atol=1e-3
    )


def test_eigenvalues_agree_with_lapack():
    random = np.random.default_rng(0)
    forms = random.standard_normal((200, 3, 3))
    forms = forms + forms.transpose(0, 2, 1)
    packed = np.stack(
        [forms[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
    )
    found = torch.stack(eigenvalues(torch.from_numpy(packed))).numpy().T
    np.testing.assert_allclose(found, np.linalg.eigvalsh(forms), atol=1e-6)


@pytest.mark.parametrize('direction', [(1.0, 0, 0), (0.0, 1, 0), (0.3, -0.5, 1.0)])
def test_a_tube_answers_at_its_axis_whatever_its_direction(direction):
    image, away = tube(direction)
    out = vesselness(image, UNIT)
    inner = (slice(10, -10),) * 3
    assert out[inner][away[inner] < 0.7].min() > 0.5
    assert out[inner][away[inner] > 6].max() < 0.05
    assert float(out.min()) >= 0
    assert float(out.max()) < 1


def test_a_plate_and_a_dark_tube_answer_little():
    image, away = tube((1.0, 0, 0))
    _, y, _ = mesh()
    inner = (slice(10, -10),) * 3
    plate = 200 * torch.sigmoid(4 * (1.5 - y.abs()))
    best = vesselness(image, UNIT)[inner].max()
    assert vesselness(plate, UNIT)[inner].max() < 0.2 * best
    assert vesselness(-image, UNIT)[inner][away[inner] < 1].max() < 0.2 * best


def test_a_tube_is_found_in_the_noise_of_a_subtraction():
    image, away = tube((0.2, 1.0, 0.4), radius=1.0, height=120.0)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)) * 15
    out = vesselness(image + noise, UNIT)
    assert roc_auc_score((away < 1).numpy().ravel(), out.numpy().ravel()) > 0.97


def test_the_metric_has_unit_determinant_and_its_long_axis_along_the_tube():
    direction = (0.3, -0.5, 1.0)
    image, _away = tube(direction)
    mask = torch.ones_like(image, dtype=torch.bool)
    vessels = vesselness(image, UNIT)
    metric = orientation_metric(image, vessels, UNIT, mask=mask)
    zz, yy, xx, zy, zx, yx = metric
    det = zz * (yy * xx - yx**2) - zy * (zy * xx - yx * zx) + zx * (zy * yx - yy * zx)
    torch.testing.assert_close(det, torch.ones_like(det), atol=1e-4, rtol=1e-4)
    isotropic = (
        (metric - metric.new_tensor([1, 1, 1, 0, 0, 0])[:, None, None, None]).abs() < 1e-6
    ).all(0)
    assert isotropic.float().mean() >= 0.9
    at = metric[:, 24, 24, 24].numpy()
    form = np.array([[at[0], at[3], at[4]], [at[3], at[1], at[5]], [at[4], at[5], at[2]]])
    values, axes = np.linalg.eigh(form)
    way = np.array(direction) / np.linalg.norm(direction)
    assert abs(axes[:, 2] @ way) > 0.99
    assert values[2] / values[1] > 4  # a ratio of speeds of more than two


def test_a_front_runs_faster_along_a_tube_than_across_it():
    image, _away = tube((0.0, 0, 1.0), radius=2.0)
    mask = torch.ones_like(image, dtype=torch.bool)
    metric = orientation_metric(image, vesselness(image, UNIT), UNIT, mask=mask)
    arrival = solve_eikonal(
        torch.ones_like(image), torch.tensor([[24, 24, 24]]), UNIT, metric=metric
    )
    assert arrival[24, 24, 34] < 0.6 * 10
    assert arrival[24, 34, 24] > 9
