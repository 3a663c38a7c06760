"""GP-ridge: a linear map under a Gaussian-smooth prior, in closed form.

``y = X w + noise, w ~ N(0, s G G')`` with G a Gaussian smoothing: ridge regression on smoothed
maps, whose width and strength the evidence chooses (Rasmussen & Williams, Gaussian Processes for
Machine Learning, 2006, eq. 5.8). Fitted on the maps and on their positive asymmetry; the reported
map is the geometric mean of the two, which keeps what both agree on. Scores are treated as
numbers; an ordinal head makes probabilities of the leave-one-out predictions. Must not know other
models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.models.base import DeficitModel, Drawing, ModelFit
from bids_perfdeficit.deficit.null import NullModel, exceeding, fit_null, measure_volume
from bids_perfdeficit.deficit.ordinal import fit_head
from bids_perfdeficit.deficit.preparation import Prepared, positive_asymmetry
from bids_perfdeficit.deficit.result import Item, standardise
from bids_perfdeficit.deficit.rules import exceedance
from bids_perfdeficit.deficit.settings import DeficitSettings
from bids_perfdeficit.deficit.smoothing import smooth_maps

#: Ratios of signal to noise variance (per mean eigenvalue) that the evidence chooses from.
_SIGNAL_RATIOS = np.exp(np.arange(-6.0, 4.1, 0.5))
#: Share of the map's maximum at which it is cut, once the item passes its test. The best of the
#: rules tried that see labels only (benchmarks/RESULTS.md).
_SHARE_OF_MAXIMUM = 0.6
#: Information that the test adds to that of each voxel, in medians; as in `spatial`.
_STEADY = 3.0


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A cohort's channels after smoothing, and the participants' inner products."""

    maps: list[list[NDArray[np.float32]]]  #: [channel][width] (N, V coarse)
    kernels: list[list[Tensor]]  #: [channel][width] (N, N) double


def smooth(prepared: Prepared, settings: DeficitSettings) -> Smoothed:
    """Smooth the measured maps and their positive asymmetry by each width of the prior.

    Maps that are used as they are given have no second channel.
    """
    grid = prepared.coarse
    channels = [prepared.measured]
    if not settings.as_given:
        channels.append(positive_asymmetry(prepared.measured, grid))
    maps: list[list[NDArray[np.float32]]] = []
    kernels: list[list[Tensor]] = []
    for values in channels:
        maps.append([smooth_maps(values, grid, width) for width in settings.smoothing])
        kernels.append([])
        for m in maps[-1]:
            t = torch.from_numpy(m).to(settings.device)
            kernels[-1].append((t @ t.T).double())
    return Smoothed(maps, kernels)


@dataclass(frozen=True, eq=False)
class _Posterior:
    dual: Tensor  #: (N seen,) so that w = G G' X' dual
    leave_one_out: Tensor
    precision: Tensor  #: (N seen, N seen) of the projected data
    width: int
    signal: float  #: prior variance in units of the noise's
    noise: float


def _solve(kernels: list[Tensor], rows: Tensor, y: Tensor, design: Tensor) -> _Posterior:
    """Choose width and strength by evidence after projecting out intercept and covariates."""
    basis = torch.linalg.qr(design)[0]
    n_free = len(y) - basis.shape[1]
    y = y - basis @ (basis.T @ y)
    best: tuple[float, int, float, Tensor] | None = None
    for index, kernel in enumerate(kernels):
        k = kernel[rows][:, rows]
        k = k - basis @ (basis.T @ k)
        k = k - (k @ basis) @ basis.T
        # single precision is enough to choose by, and takes half the time; what is chosen is
        # solved in double
        values, vectors = torch.linalg.eigh(k.float())
        values = values.double().clamp_min(0)
        power = (vectors.double().T @ y) ** 2
        for ratio in _SIGNAL_RATIOS:
            signal = float(ratio / values.mean().clamp_min(1e-12))
            total = 1 + signal * values
            noise = (power / total).sum() / n_free
            evidence = float(-0.5 * n_free * torch.log(noise) - 0.5 * torch.log(total).sum())
            if best is None or evidence > best[0]:
                best = (evidence, index, signal, k)
    assert best is not None
    _, index, signal, k = best
    # within the space that is free of the nuisance
    identity = torch.eye(len(y), dtype=k.dtype, device=k.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(identity + signal * k))
    inverse = inverse - basis @ basis.T
    dual = inverse @ y
    noise = float((y @ dual) / n_free)
    loo = y - dual / torch.diagonal(inverse).clamp_min(1e-9)
    return _Posterior(signal * dual, loo, signal * inverse, index, signal, noise)


class Ridge(DeficitModel[Smoothed]):
    """Ridge regression on smoothed maps and on their smoothed positive asymmetry."""

    name = 'ridge'
    drawing = Drawing(
        'effect',
        'coefficient (no unit), how much the score rises with {more}',
        ('none', 'strong'),
        '#D55E00',
        's',
    )
    statistics: ClassVar[Mapping[str, str]] = {
        'effect': 'Coefficient of the voxel, the geometric mean of those of map and asymmetry',
        'std': 'Posterior standard deviation of the coefficient of the map',
        'prob': 'Posterior probability that the coefficient of the map is above 0',
    }
    methods = """\
*ridge*: linear regression under a Gaussian-smooth prior whose width and strength maximise the
evidence [@gpml], on maps and on their positive asymmetry; the map is the geometric mean of both.
An item was declared when the voxel of the smoothed maps that its score follows most exceeded
those of 99 % of scores that were drawn, by shuffled quantile residuals [@quantileresiduals;
@freedmanlane], from an ordinal regression on natural splines of the volume of the deficit and of
covariates.
"""
    methods_given = """\
*ridge*: linear regression under a Gaussian-smooth prior whose width and strength maximise the
evidence [@gpml]. An item was declared when the voxel of the smoothed maps that its score follows
most exceeded those of 99 % of scores that were drawn, by shuffled quantile residuals
[@quantileresiduals; @freedmanlane], from an ordinal regression on natural splines of the mean of
the map and of covariates.
"""

    def share(self, prepared: Prepared, settings: DeficitSettings) -> Smoothed:
        """Return the smoothed maps; see `smooth`."""
        return smooth(prepared, settings)

    def fit(
        self,
        prepared: Prepared,
        scores: NDArray[np.float64],
        covariates: NDArray[np.float64],
        items: tuple[Item, ...],
        settings: DeficitSettings,
        *,
        shared: Smoothed | None = None,
        maps: bool = True,
        checkpoint: Path | None = None,
    ) -> ModelFit:
        """Fit all items in closed form."""
        del checkpoint
        smoothed = smooth(prepared, settings) if shared is None else shared
        coarse, grid = prepared.coarse, prepared.grid
        n_channels = len(smoothed.maps)
        found = ModelFit.blank(
            prepared, scores, covariates, items, settings, channels=n_channels, maps=maps
        )
        readout = found.readout
        standard = standardise(covariates, readout.covariate_mean, readout.covariate_scale)
        design = torch.from_numpy(np.c_[np.ones(len(scores)), standard]).to(settings.device)
        volume = measure_volume(prepared)
        for k in found.usable:
            own = items[k].levels
            seen = np.flatnonzero(np.isfinite(scores[:, k]))
            rows = torch.from_numpy(seen).to(settings.device)
            score = torch.from_numpy(scores[seen, k]).to(settings.device)
            y = (score - score.mean()) / score.std()
            coefficients, posteriors = [], []
            for channel in range(n_channels):
                posterior = _solve(smoothed.kernels[channel], rows, y, design[rows])
                dual = np.zeros(len(scores), np.float32)  # those without a score do not count
                dual[seen] = posterior.dual.float().cpu().numpy()
                together = dual @ smoothed.maps[channel][posterior.width]
                width = settings.smoothing[posterior.width]
                coefficients.append(smooth_maps(together[None], coarse, width)[0])
                posteriors.append(posterior)
            both = np.sqrt(np.clip(coefficients[0], 0, None) * np.clip(coefficients[-1], 0, None))
            # prediction: the mean of the two ridges and the covariates, under an ordinal head
            loo = (posteriors[0].leave_one_out + posteriors[-1].leave_one_out) / 2
            nuisance = torch.linalg.lstsq(design[rows], (y - loo)[:, None]).solution[:, 0]
            slope, c, f = fit_head(
                loo + design[rows] @ nuisance, score.long(), own, settings.lapse
            )
            readout.weights[k] = slope * np.stack(coefficients) / n_channels
            readout.gamma[k] = slope * nuisance[1:].cpu().numpy()
            # the head was fitted on projected maps: put back what the projection took
            raw = sum(
                prepared.features[channel] @ coefficients[channel] / n_channels
                for channel in range(n_channels)
            )
            shift = torch.from_numpy(np.asarray(raw, float)[seen]).to(design) - (y - (y - loo))
            offset = torch.linalg.lstsq(design[rows], shift[:, None]).solution[:, 0]
            readout.cuts[k, : own - 1] = (c + slope * (offset[0] - nuisance[0])).cpu().numpy()
            readout.gamma[k] -= slope * offset[1:].cpu().numpy()
            readout.frequencies[k, :own] = f.cpu().numpy()
            found.details[items[k].name] = {
                'smoothing_mm': [settings.smoothing[p.width] for p in posteriors],
                'signal_to_noise': [p.signal for p in posteriors],
            }
            if settings.permutations:
                null = fit_null(scores[:, k], volume, covariates, levels=own, lapse=settings.lapse)
                found.p_value[k] = _test(null, smoothed, settings, settings.seed + k)
            if not maps:
                continue
            sd = _deviation(
                smoothed.maps[0][posteriors[0].width][seen],
                posteriors[0],
                coarse,
                settings.smoothing[posteriors[0].width],
            )
            found.effect[k] = coarse.resample_to(both, grid)
            found.std[k] = coarse.resample_to(sd, grid)
            z = torch.from_numpy(coefficients[0] / np.maximum(sd, 1e-12))
            found.probability[k] = coarse.resample_to(torch.special.ndtr(z).numpy(), grid)
            if settings.permutations and found.p_value[k] <= settings.alpha:
                found.cut[k] = _SHARE_OF_MAXIMUM * found.effect[k].max()
                found.declared[k] = exceedance(found.effect[k], found.cut[k])
        return found


def _deviation(
    part: NDArray[np.float32], posterior: _Posterior, grid: Grid, width: float
) -> NDArray[np.float32]:
    """Return the posterior sd of each coefficient, in the space before the last smoothing.

    ``s (I - s Xs' P Xs)`` has the diagonal that is used; smoothing then averages neighbouring
    coefficients that are nearly equal, and the sd of white noise under it is that of the prior.
    """
    t = torch.from_numpy(part).to(posterior.precision.device)
    reduction = ((posterior.precision.float() @ t) * t).sum(0).cpu().numpy()
    white = posterior.signal * posterior.noise * np.clip(1 - reduction, 1e-6, 1)
    sigma = width / float(grid.spacing.mean())
    averaging = 1 / (2 * np.sqrt(np.pi) * sigma) ** 3  # sum of squares of a Gaussian kernel
    return np.sqrt(white * min(averaging, 1.0)).astype(np.float32)


def _test(null: NullModel, smoothed: Smoothed, settings: DeficitSettings, seed: int) -> float:
    """Return the family-wise p of the voxel that a score follows most, in either channel.

    Maps smoothed by the narrowest width: a width chosen by the evidence would have to be chosen
    again for each draw.
    """
    residuals = null.residuals(settings.permutations, seed=seed).float().to(settings.device)
    strongest = torch.full((len(residuals),), -torch.inf, device=residuals.device)
    for maps, *_ in smoothed.maps:
        features = torch.from_numpy(maps).to(residuals.device)
        information = null.information(features)
        scale = (information + _STEADY * information.median()).rsqrt()
        strongest = torch.maximum(strongest, ((residuals @ features) * scale).amax(1))
    return exceeding(strongest)
