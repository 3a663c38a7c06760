"""Vesselness and its orientation, from the second derivatives of an image at several scales.

Torch throughout, one code path for every device. Filters run on whole boxes, one component at a
time; eigenvalues are taken in the mask only, so memory is bounded by the brain. Must not know
where vessels are expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from bids_perfdeficit.perfusion.threads import run_all

#: Standard deviations in mm: tubes of 0.7 to 4 mm radius, from M3 branches to the carotid.
SCALES = (1.0, 1.7, 2.9)
#: Response in HU at which vesselness is one half.
HALF = 40.0
#: A Gaussian kernel ends at this many standard deviations.
TRUNCATE = 4.0
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def smooth(image: Tensor, sigma: float, spacing: Sequence[float]) -> Tensor:
    """Separable Gaussian, with the border replicated.

    Parameters
    ----------
    image : Tensor, (Z, Y, X)
    sigma : float
        Standard deviation in mm.
    spacing : sequence of float
        mm along (z, y, x).

    Returns
    -------
    Tensor, float32, (Z, Y, X)
    """
    out = image.float()
    for axis in range(3):
        half = max(1, math.ceil(TRUNCATE * sigma / spacing[axis]))
        taps = [math.exp(-0.5 * (k * spacing[axis] / sigma) ** 2) for k in range(half + 1)]
        total = taps[0] + 2 * sum(taps[1:])
        border = [0] * 6
        border[2 * (2 - axis)] = border[2 * (2 - axis) + 1] = half
        wide = pad(out[None, None], border, mode='replicate')[0, 0]
        # A sum of shifted views: on the CPU several times faster than a one-channel conv3d.
        size = image.shape[axis]
        out = wide.narrow(axis, half, size) * (taps[0] / total)
        for k in range(1, half + 1):
            out.add_(wide.narrow(axis, half - k, size), alpha=taps[k] / total)
            out.add_(wide.narrow(axis, half + k, size), alpha=taps[k] / total)
    return out


def hessian(image: Tensor, sigma: float, spacing: Sequence[float], mask: Tensor) -> Tensor:
    """Scale-normalised second derivatives in the mask: (6, N) as zz, yy, xx, zy, zx, yx, in HU.

    Central differences of the smoothed image: they widen the Gaussian by a sixth of a voxel's
    variance, and cost one smoothing where six differentiated kernels cost six.
    """
    wide = pad(smooth(image, sigma, spacing)[None, None], (1,) * 6, mode='replicate')[0, 0]
    strides = (wide.shape[1] * wide.shape[2], wide.shape[2], 1)
    values = wide.reshape(-1)
    at = torch.nonzero(pad(mask, (1,) * 6).reshape(-1)).squeeze(1)
    centre = values[at]
    parts = []
    for i, j in _PAIRS:
        if i == j:
            second = values[at + strides[i]] + values[at - strides[i]] - 2 * centre
        else:
            up, across = strides[i] + strides[j], strides[i] - strides[j]
            second = values[at + up] + values[at - up] - values[at + across] - values[at - across]
            second /= 4
        parts.append(second * (sigma**2 / (spacing[i] * spacing[j])))
    return torch.stack(parts)


def eigenvalues(form: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues of symmetric (6, N) forms in ascending order, in closed form (Smith 1961)."""
    zz, yy, xx, zy, zx, yx = form
    mean = (zz + yy + xx) / 3
    a, b, c = zz - mean, yy - mean, xx - mean
    spread = ((a * a + b * b + c * c + 2 * (zy * zy + zx * zx + yx * yx)) / 6).sqrt()
    det = a * (b * c - yx * yx) - zy * (zy * c - yx * zx) + zx * (zy * yx - b * zx)
    ratio = (det / (2 * spread**3).clamp_min(1e-20)).clamp(-1, 1)
    angle = torch.acos(ratio) / 3
    high = mean + 2 * spread * torch.cos(angle)
    low = mean + 2 * spread * torch.cos(angle + 2 * math.pi / 3)
    return low, 3 * mean - low - high, high


def vesselness(
    subtraction: Tensor,
    spacing: Sequence[float],
    *,
    mask: Tensor | None = None,
    scales: Sequence[float] = SCALES,
    threads: int = 1,
) -> Tensor:
    """How much a voxel looks like the inside of a bright tube.

    The geometric mean of the two strongest curvatures across a tube, as in Sato et al. (*Med.
    Image Anal.* 1998) with gamma = 1, largest over the scales; its HU are turned into [0, 1) by
    `r / (r + HALF)`, so that a value means the same in every patient.

    Parameters
    ----------
    subtraction : Tensor, (Z, Y, X)
        CTA - NCCT in HU.
    spacing : sequence of float
        mm along (z, y, x).
    mask : Tensor, bool, (Z, Y, X), optional
        Where it is wanted; 0 elsewhere. By default where the subtraction is not 0.
    scales : sequence of float
        Standard deviations in mm.
    threads : int
        Scales that are computed at once; the result is the same.

    Returns
    -------
    Tensor, float32, (Z, Y, X)
    """
    inside = subtraction != 0 if mask is None else mask

    def respond(sigma: float) -> Tensor:
        low, middle, _ = eigenvalues(hessian(subtraction, sigma, spacing, inside))
        return (low.clamp(max=0) * middle.clamp(max=0)).sqrt()

    responses = run_all([partial(respond, sigma) for sigma in scales], threads)
    best = torch.stack(responses).amax(0)
    out = torch.zeros_like(subtraction, dtype=torch.float32)
    out[inside] = best / (best + HALF)
    return out


def orientation_metric(
    subtraction: Tensor,
    vessels: Tensor,
    spacing: Sequence[float],
    *,
    mask: Tensor,
    ratio: float = 3.0,
    share: float = 0.1,
    scales: Sequence[float] = SCALES,
) -> Tensor:
    """Return the tensor field `D` of VTrails: unit determinant, long axis along the vessel.

    Parameters
    ----------
    subtraction : Tensor, (Z, Y, X)
        CTA - NCCT in HU.
    vessels : Tensor, (Z, Y, X)
        Their vesselness.
    spacing : sequence of float
        mm along (z, y, x).
    mask : Tensor, bool, (Z, Y, X)
        The domain, of whose voxels the top `share` by vesselness are oriented.
    ratio : float
        How many times faster a front runs along the strongest vessel than across it.
    share : float
        Share of voxels that are oriented; the rest is isotropic (Moriconi et al., TMI 2018).
    scales : sequence of float
        Standard deviations in mm.

    Returns
    -------
    Tensor, float32, (6, Z, Y, X)
        `zz, yy, xx, zy, zx, yx`; the identity outside the oriented voxels.
    """
    inside = vessels[mask]
    count = max(1, int(share * inside.numel()))
    cut = torch.topk(inside, count).values[-1]
    oriented = mask & (vessels >= cut) & (vessels > 0)
    out = torch.zeros((6, *subtraction.shape), device=subtraction.device)
    out[:3] = 1
    if not bool(oriented.any()):
        return out
    form = None
    best = torch.zeros(int(oriented.sum()), device=subtraction.device)
    for sigma in scales:
        here = hessian(subtraction, sigma, spacing, oriented)
        low, middle, _ = eigenvalues(here)
        response = (low.clamp(max=0) * middle.clamp(max=0)).sqrt()
        form = here if form is None else torch.where(response > best, here, form)
        best = torch.maximum(best, response)
    assert form is not None
    along = _top_eigenvector(form)
    top = vessels[oriented]
    weight = ((top - cut) / (top.max() - cut).clamp_min(1e-6)).clamp(0, 1)
    squared = 1 + weight * (ratio**2 - 1)  # ratio of the two eigenvalues of D
    across = squared ** (-1 / 3)
    extra = squared ** (2 / 3) - across
    for k, (i, j) in enumerate(_PAIRS):
        out[k][oriented] = extra * along[:, i] * along[:, j] + (across if i == j else 0)
    return out


def _top_eigenvector(form: Tensor) -> Tensor:
    """Return the unit eigenvectors (N, 3) of the largest eigenvalue: a bright tube's axis."""
    zz, yy, xx, zy, zx, yx = form
    rows = torch.stack([zz, zy, zx, zy, yy, yx, zx, yx, xx], dim=-1).reshape(-1, 3, 3)
    return torch.linalg.eigh(rows).eigenvectors[:, :, 2]
