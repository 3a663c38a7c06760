"""Ordinal likelihood: cumulative logit with a lapse rate, its derivatives and its cut-points.

``P(y <= k) = sigmoid(cut_k - eta)`` (McCullagh, J R Stat Soc B 1980), mixed with the levels' own
frequencies by the lapse rate. Must not know where `eta` comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Smallest probability that is divided by or logged.
_TINY = 1e-9
#: Largest step of a cut-point in one Newton update.
_LARGEST_STEP = 1.0


@dataclass(frozen=True)
class Curvature:
    """Log-likelihood of each score, its slope in `eta` and the expected information."""

    log_likelihood: Tensor
    slope: Tensor
    information: Tensor
    trust: Tensor  #: probability that the score is not a lapse


def level_probabilities(cuts: Tensor, eta: Tensor) -> Tensor:
    """Return (N, levels) probabilities without lapses; infinite cut-points give empty levels."""
    below = torch.sigmoid(cuts[None, :] - eta[:, None])
    zero, one = torch.zeros_like(eta)[:, None], torch.ones_like(eta)[:, None]
    return torch.diff(torch.cat([zero, below, one], 1), dim=1).clamp_min(0)


def starting_cuts(frequencies: Tensor) -> Tensor:
    """Return the cut-points that give each level its frequency at ``eta = 0``."""
    return torch.logit(torch.cumsum(frequencies, 0)[:-1].clamp(1e-4, 1 - 1e-4))


def curvature(
    cuts: Tensor, eta: Tensor, level: Tensor, lapse: float, frequencies: Tensor
) -> Curvature:
    """Differentiate the log-likelihood.

    Parameters
    ----------
    cuts : (levels - 1,) Tensor
        Increasing.
    eta : (N,) Tensor
    level : (N,) integer Tensor
        Scores as 0 ... levels - 1.
    lapse : float
    frequencies : (levels,) Tensor
        What a lapsed score is drawn from.
    """
    below = torch.sigmoid(cuts[None, :] - eta[:, None])
    zero, one = torch.zeros_like(eta)[:, None], torch.ones_like(eta)[:, None]
    edges = torch.cat([zero, below, one], 1)
    density = edges * (1 - edges)
    probability = torch.diff(edges, dim=1).clamp_min(_TINY)
    slopes = -torch.diff(density, dim=1) / probability
    information = (slopes**2 * probability).sum(1)
    p = probability.gather(1, level[:, None])[:, 0]
    mixed = (1 - lapse) * p + lapse * frequencies[level]
    trust = (1 - lapse) * p / mixed
    slope = slopes.gather(1, level[:, None])[:, 0]
    return Curvature(torch.log(mixed), slope * trust, information * trust, trust)


def update_cuts(
    cuts: Tensor, eta: Tensor, level: Tensor, trust: Tensor, *, steps: int = 2
) -> Tensor:
    """Move the cut-points towards their maximum likelihood by Fisher scoring."""
    n_cuts = len(cuts)
    for _ in range(steps):
        below = torch.sigmoid(cuts[None, :] - eta[:, None])
        density = below * (1 - below)
        probability = level_probabilities(cuts, eta).clamp_min(_TINY)
        weight = trust / probability.gather(1, level[:, None])[:, 0]
        gradient = torch.stack(
            [
                (
                    weight * density[:, k] * ((level == k).double() - (level == k + 1).double())
                ).sum()
                for k in range(n_cuts)
            ]
        )
        hessian = torch.diag(
            (trust[:, None] * density**2 * (1 / probability[:, :-1] + 1 / probability[:, 1:])).sum(
                0
            )
            + 1e-3
        )
        for k in range(n_cuts - 1):
            cross = -(trust * density[:, k] * density[:, k + 1] / probability[:, k + 1]).sum()
            hessian[k, k + 1] = hessian[k + 1, k] = cross
        step = torch.linalg.solve(hessian, gradient).clamp(-_LARGEST_STEP, _LARGEST_STEP)
        cuts = torch.cummax(cuts + step, 0).values
        cuts = cuts + 1e-4 * torch.arange(n_cuts, dtype=cuts.dtype, device=cuts.device)
    return cuts


def fit_head(
    eta: Tensor, level: Tensor, n_levels: int, lapse: float, *, iterations: int = 50
) -> tuple[float, Tensor, Tensor]:
    """Calibrate any continuous predictor: slope, cut-points and level frequencies.

    Returns
    -------
    slope : float
        Never negative: a predictor that points the wrong way is switched off.
    cuts, frequencies : Tensor
        Slope and cut-points belong to ``slope * eta``.
    """
    frequencies = level_frequencies(level, n_levels)
    cuts = starting_cuts(frequencies)
    scale = eta.std().clamp_min(1e-12)
    centred = (eta - eta.mean()) / scale
    slope = torch.zeros((), dtype=eta.dtype, device=eta.device)
    for _ in range(iterations):
        c = curvature(cuts, slope * centred, level, lapse, frequencies)
        step = (c.slope * centred).sum() / ((c.information * centred**2).sum() + 1e-2)
        slope = (slope + step.clamp(-1, 1)).clamp_min(0)
        cuts = update_cuts(cuts, slope * centred, level, c.trust, steps=1)
    shift = slope * eta.mean() / scale
    return float(slope / scale), cuts + shift, frequencies


def fit_linear(
    design: Tensor,
    level: Tensor,
    n_levels: int,
    lapse: float,
    *,
    precision: float = 0.1,
    iterations: int = 30,
) -> tuple[Tensor, Tensor, Tensor]:
    """Regress an ordinal score on a few standardised columns.

    Parameters
    ----------
    design : (N, C) double Tensor
        Without an intercept; C may be 0.
    level : (N,) integer Tensor
    n_levels : int
    lapse : float
    precision : float
        Of the coefficients' normal prior.

    Returns
    -------
    gamma, cuts, frequencies : Tensor
        (C,), (levels - 1,), (levels,).
    """
    frequencies = level_frequencies(level, n_levels)
    cuts = starting_cuts(frequencies)
    gamma = torch.zeros(design.shape[1], dtype=design.dtype, device=design.device)
    ridge = precision * torch.eye(len(gamma), dtype=design.dtype, device=design.device)
    for _ in range(iterations):
        c = curvature(cuts, design @ gamma, level, lapse, frequencies)
        if len(gamma):
            hessian = (design.T * c.information) @ design + ridge
            step = torch.linalg.solve(hessian, design.T @ c.slope - precision * gamma)
            gamma = gamma + step.clamp(-_LARGEST_STEP, _LARGEST_STEP)
        cuts = update_cuts(cuts, design @ gamma, level, c.trust, steps=1)
    return gamma, cuts, frequencies


def level_frequencies(level: Tensor, n_levels: int) -> Tensor:
    """Return how often each level occurs; half an observation is added to each."""
    count = torch.bincount(level, minlength=n_levels).double() + 0.5
    return count / count.sum()
