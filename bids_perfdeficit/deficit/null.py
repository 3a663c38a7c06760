"""The null of an item's test: its score follows the volume of the deficit, and no region.

An ordinal regression on a natural spline of each measure of volume and of each covariate of
numbers. The scores that an observed score is compared with are drawn from it: randomised quantile
residuals (Dunn & Smyth, J Comput Graph Stat 1996) are shuffled, after Freedman & Lane (J Bus Econ
Stat 1983), and turned into scores again. Drawn scores thus vary where the fitted score is
uncertain, as observed ones do, and have as many scores that do not fit. Plain residuals vary alike
everywhere once they are shuffled, and find regions in scores that follow volume alone
(benchmarks/RESULTS.md). Must not know which statistic a model tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bids_perfdeficit.deficit.ordinal import curvature, fit_linear, level_probabilities
from bids_perfdeficit.deficit.preparation import Prepared, channels
from bids_perfdeficit.deficit.scale import healthy_pattern

#: Columns of each curve, at most, and participants on the smaller side of an item's most even
#: split for each of them: with fewer a curve follows single participants.
_MOST_COLUMNS, _PER_COLUMN = 3, 12
#: A column with fewer distinct values has no curve, e.g. an indicator of a site.
_LEAST_VALUES = 6
#: Quantiles of the outer knots; beyond them the curve is a line.
_OUTER = (0.05, 0.95)
#: Prior precision of the coefficients, per standard deviation: against complete separation.
_PRECISION = 0.1
#: Singular values under which a direction of the design repeats the others.
_REPEATED = 1e-3
#: Participants whose squared features are summed at once, which bounds memory.
_BLOCK = 256
#: Largest leverage that draws are corrected for.
_MOST_LEVERAGE = 0.9


@dataclass(frozen=True, eq=False)
class NullModel:
    """An ordinal score that follows volume and covariates, fitted to N participants.

    Parameters
    ----------
    design : (N, C) double Tensor
        Intercept and curves.
    level : (N,) integer Tensor
        The observed score; 0 where there is none.
    seen : (N,) bool Tensor
        Whether there is a score.
    cumulative : (N, levels) double Tensor
        Probability of each level or a lower one.
    slopes : (N, levels) double Tensor
        Derivative of the log-likelihood of each level by the linear predictor.
    weight : (N,) double Tensor
        Expected information on the linear predictor; 0 without a score.
    inverse : (C, C) double Tensor
        Of the information on the coefficients.
    """

    design: Tensor
    level: Tensor
    seen: Tensor
    cumulative: Tensor
    slopes: Tensor
    weight: Tensor
    inverse: Tensor

    def residuals(self, draws: int, *, seed: int) -> Tensor:
        """Return efficient scores: the observed one's in row 0, drawn ones' below.

        A row times a feature is the derivative of the log-likelihood by the feature's coefficient
        at 0, with the coefficients of the null adjusted (Cox & Hinkley, Theoretical Statistics,
        1974, section 9.3). The null was fitted to the observed score and so explains too much of
        it, most where a participant has leverage; drawn residuals are enlarged by that (as in
        MacKinnon & White, J Econometrics 1985).

        Parameters
        ----------
        draws, seed : int

        Returns
        -------
        (draws + 1, N) double Tensor
            0 without a score.
        """
        generator = torch.Generator().manual_seed(seed)
        n, levels = self.slopes.shape
        out = torch.empty(draws + 1, n, dtype=torch.double)
        out[0] = self.slopes.gather(1, self.level[:, None])[:, 0]
        seen = torch.nonzero(self.seen)[:, 0]
        ends = torch.cat([torch.zeros(n, 1, dtype=torch.double), self.cumulative], 1)
        low, high = (ends.gather(1, self.level[:, None] + end)[seen, 0] for end in (0, 1))
        quantile = torch.zeros(n, 1, dtype=torch.double)
        for row in range(1, draws + 1):
            own = low + (high - low) * torch.rand(
                len(seen), generator=generator, dtype=torch.double
            )
            quantile[seen, 0] = own[torch.randperm(len(seen), generator=generator)]
            level = (quantile >= self.cumulative).sum(1, keepdim=True).clamp_max(levels - 1)
            out[row] = self.slopes.gather(1, level)[:, 0]
        leverage = self.weight * ((self.design @ self.inverse) * self.design).sum(1)
        out[1:] /= torch.sqrt(1 - leverage.clamp(0, _MOST_LEVERAGE))
        out *= self.seen
        return out - (out @ self.design) @ (self.inverse @ (self.design.T * self.weight))

    def information(self, features: Tensor) -> Tensor:
        """Return the variance of each feature's efficient score under the null.

        Parameters
        ----------
        features : (N, P) float Tensor

        Returns
        -------
        (P,) float Tensor, above 0
        """
        weight, inverse = self.weight.to(features), self.inverse.to(features)
        cross = (self.design.T * self.weight).to(features) @ features
        square = torch.zeros(features.shape[1], device=features.device)
        for start in range(0, len(features), _BLOCK):
            part = slice(start, start + _BLOCK)
            square += weight[part] @ features[part].square()
        return (square - ((inverse @ cross) * cross).sum(0)).clamp_min(1e-4)


def measure_volume(prepared: Prepared) -> NDArray[np.float64]:
    """Return what the volume of a deficit may be, one row a participant.

    The mean over the brain of the map as it was measured, of what it has beyond the healthy
    pattern, and of the asymmetry of that: with one of them alone, scores that follow another are
    found to depend on a region (benchmarks/RESULTS.md).

    Parameters
    ----------
    prepared : Prepared
        Of N participants.

    Returns
    -------
    (N, 3) array
    """
    denoised, coarse = prepared.features[0], prepared.coarse
    beyond = channels(denoised, coarse, healthy_pattern(denoised, coarse))
    return np.stack([m.mean(1) for m in (prepared.measured, *beyond)], 1).astype(float)


def fit_null(
    score: NDArray[np.float64],
    measures: NDArray[np.float64],
    covariates: NDArray[np.float64],
    *,
    levels: int,
    lapse: float,
) -> NullModel:
    """Fit the null of an item.

    Parameters
    ----------
    score : (N,) array
        0 ... levels - 1; NaN where missing.
    measures : (N, M) array
        Of the volume of the deficit; see `measure_volume`.
    covariates : (N, C) array
        NaN where missing: the mean counts.
    levels : int
    lapse : float
        Share of scores that carry no information.
    """
    known = np.isfinite(score)
    counts = np.bincount(score[known].astype(int), minlength=levels)
    below = np.cumsum(counts)[:-1]
    fewest = int(np.minimum(below, known.sum() - below).max())
    columns = int(np.clip(fewest // _PER_COLUMN, 1, _MOST_COLUMNS))
    basis = torch.from_numpy(curves(np.c_[measures, covariates], columns))
    seen = torch.from_numpy(known)
    level = torch.from_numpy(np.where(known, score, 0).astype(np.int64))
    gamma, cuts, frequencies = fit_linear(
        basis[seen], level[seen], levels, lapse, precision=_PRECISION
    )
    eta = basis @ gamma
    chance = (1 - lapse) * level_probabilities(cuts, eta) + lapse * frequencies
    slopes = torch.stack(
        [
            curvature(cuts, eta, torch.full_like(level, own), lapse, frequencies).slope
            for own in range(levels)
        ],
        1,
    )
    weight = (slopes.square() * chance).sum(1) * seen
    design = torch.cat([torch.ones(len(eta), 1, dtype=torch.double), basis], 1)
    prior = torch.full((design.shape[1],), _PRECISION, dtype=torch.double)
    prior[0] = 1e-6
    inverse = torch.linalg.inv((design.T * weight) @ design + torch.diag(prior))
    return NullModel(design, level, seen, chance.cumsum(1), slopes, weight, inverse)


def exceeding(statistics: Tensor) -> float:
    """Return the p of the first of (draws + 1,) statistics: (1 + draws that reach it) / all."""
    return float((statistics >= statistics[0]).double().mean())


def curves(columns: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return natural cubic splines of columns (Hastie, Tibshirani & Friedman, section 5.2.1).

    Parameters
    ----------
    columns : (N, C) array
        NaN counts as the mean of the column.
    most : int
        Functions of each column, at most; 1 keeps the column alone.

    Returns
    -------
    (N, D) array
        Orthogonal, of mean 0 and standard deviation 1; D may be 0.
    """
    found: list[NDArray[np.float64]] = []
    for column in columns.T:
        known = np.isfinite(column)
        if not known.any() or np.ptp(column[known]) == 0:
            continue
        x = np.where(known, column, column[known].mean())
        x = (x - x.mean()) / x.std()
        found.append(x)
        knots = np.unique(np.quantile(x, np.linspace(*_OUTER, most + 1)))
        if len(np.unique(x)) >= _LEAST_VALUES and len(knots) > 2:
            found += _natural_spline(x, knots)
    if not found:
        return np.zeros((len(columns), 0))
    basis = np.stack(found, 1)
    basis -= basis.mean(0)
    basis /= np.maximum(np.linalg.norm(basis, axis=0), 1e-12)
    left, values, _ = np.linalg.svd(basis, full_matrices=False)
    return np.asarray(left[:, values > _REPEATED] * np.sqrt(len(columns)))


def _natural_spline(
    x: NDArray[np.float64], knots: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Return the functions of a natural spline beside the line, two fewer than knots."""
    beyond = np.maximum(x[:, None] - knots, 0) ** 3
    slope = (beyond[:, :-1] - beyond[:, -1:]) / (knots[-1] - knots[:-1])
    return list((slope[:, :-1] - slope[:, -1:]).T)
