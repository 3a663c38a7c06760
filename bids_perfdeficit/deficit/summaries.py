"""Summary maps of an item: what a cohort's maps say about its score, voxel by voxel.

Scores become normal scores of their ranks, free of curves of the volume of the deficit and of
covariates. Of them and of the maps there are, in each voxel: correlations with several channels
at several widths, the posterior of a single spherical region, what is left of both once the
strongest region has been taken out, and ridge solutions of several strengths. All are products
with the same few arrays, so that a summary takes milliseconds and simulated items can be
summarised by the hundred. Must not know how scores came about or what is learned from summaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata
from torch import Tensor

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.null import curves, measure_volume
from bids_perfdeficit.deficit.preparation import Prepared, channels
from bids_perfdeficit.deficit.simulation import Shapes
from bids_perfdeficit.deficit.smoothing import Smoother

#: mm: standard deviations of the Gaussians that statistics are computed at.
_WIDTHS = (3.0, 6.0, 10.0)
#: Of them the one that single values are taken at, e.g. of the mirror image.
_MIDDLE = 1
#: Share of the median variance that is added to that of each voxel: else the strongest voxels are
#: those in which few participants have a deficit.
_STEADY = 0.2
#: Value of an affected voxel for the channel of a threshold, and the width of its bend.
_AFFECTED, _BEND = 0.35, 0.05
#: Largest number of directions of the maps that ridge solutions are made of, and their strengths:
#: prior variance of the signal in units of the noise's, per direction.
_RANK, _STRENGTHS = 200, (0.02, 0.2, 2.0)
#: Share of the variance of a score that one region may explain, at most.
_MOST = 0.95
#: Log posteriors are cut off here: what is this improbable is so for any cause.
_LOG_FLOOR = -12.0
#: Columns that the curve of each measure of volume has at most.
_CURVE = 3
#: Participants that are smoothed at once.
_BLOCK = 64
#: Items that are summarised at once.
_ITEMS = 16


@dataclass(frozen=True, eq=False)
class Summaries:
    """What summaries of any item of a cohort are made of.

    Parameters
    ----------
    grid : Grid
        Of V voxels.
    maps : tuple of (N, V) float32 arrays
        Channels: the deficit, what is deficient on both sides, where it is above a threshold;
        and, of computed maps, the asymmetry and the map as it was measured.
    deviations : (channels, widths, V) Tensor
        Standard deviation of each smoothed channel over participants, free of volume.
    volume : (N, D) array
        Curves of the volume of the deficit.
    scores, loadings : list of Tensor
        Of the first channels: (N, R) principal components of the maps smoothed by the middle
        width, and (R, V) what they are of the maps.
    constant : (V, F) Tensor
        Summaries that are the same for all items.
    smoothers : tuple of Smoother
        One a width.
    """

    grid: Grid
    maps: tuple[NDArray[np.float32], ...]
    deviations: Tensor
    volume: NDArray[np.float64]
    scores: list[Tensor]
    loadings: list[Tensor]
    constant: Tensor
    smoothers: tuple[Smoother, ...]

    @classmethod
    def build(cls, prepared: Prepared, healthy: NDArray[np.float32] | None) -> Summaries:
        """Compute what all items share.

        Parameters
        ----------
        prepared : Prepared
        healthy : (V,) array, optional
            The pattern beyond which maps are a deficit; None where they are one as they are.
        """
        grid = prepared.coarse
        mirror = np.where(grid.mirror >= 0, grid.mirror, np.arange(grid.n_voxels))
        if healthy is None:
            deficit = prepared.measured
            more: tuple[NDArray[np.float32], ...] = ()
            ridged = [deficit]
        else:
            deficit, asymmetry = channels(prepared.features[0], grid, healthy)
            more = (asymmetry, prepared.measured)
            ridged = [prepared.measured, asymmetry]
        either = np.maximum(deficit, deficit[:, mirror])
        beyond = (1 / (1 + np.exp((_AFFECTED - deficit) / _BEND))).astype(np.float32)
        maps = (deficit, either, beyond, *more)
        volume = curves(measure_volume(prepared), _CURVE)
        basis = torch.from_numpy(_basis(volume)).float()
        smoothers = tuple(Smoother(grid, width) for width in _WIDTHS)
        deviations = torch.stack(
            [torch.stack([_deviation(m, basis, smooth) for smooth in smoothers]) for m in maps]
        )
        scores, loadings = zip(
            *(_components(m, basis, smoothers[_MIDDLE]) for m in ridged), strict=True
        )
        own = deviations[:, _MIDDLE]
        x = np.abs(grid.coordinates[:, 0])
        constant = torch.stack(
            [
                *torch.log(own / own.median(1, keepdim=True).values),
                torch.from_numpy(Shapes(grid).depth / 30).float(),
                torch.from_numpy(x / 60).float(),
            ],
            1,
        )
        return cls(
            grid, maps, deviations, volume, list(scores), list(loadings), constant, smoothers
        )

    def residuals(
        self, scores: NDArray[np.float64], covariates: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Return (K, N) normal scores free of volume and covariates; 0 where missing.

        Parameters
        ----------
        scores : (N, K) array
        covariates : (N, C) array
            Standardised, without missing values.
        """
        basis = _basis(np.c_[self.volume, covariates])
        out = np.zeros((scores.shape[1], len(scores)), np.float32)
        for own, score in zip(out, scores.T, strict=True):
            seen = np.isfinite(score)
            rank = rankdata(score[seen])
            value = ndtri((rank - 0.5) / len(rank))
            part = np.linalg.qr(basis[seen])[0]
            value -= part @ (part.T @ value)
            own[seen] = value / max(float(value.std()), 1e-6)
        return out

    def summarise(
        self, scores: NDArray[np.float64], covariates: NDArray[np.float64]
    ) -> Iterator[Tensor]:
        """Yield the (V, F) summaries of each item.

        Parameters
        ----------
        scores : (N, K) array
            NaN where missing.
        covariates : (N, C) array
            Standardised, without missing values; C may be 0.
        """
        residuals = torch.from_numpy(self.residuals(scores, covariates))
        for start in range(0, len(residuals), _ITEMS):
            part = slice(start, start + _ITEMS)
            statistics = self._statistics(residuals[part])
            for k, own in enumerate(statistics):
                general = _describe(scores[:, start + k], own, len(_WIDTHS) * len(self.maps))
                yield torch.cat(
                    [own, self.constant, general.expand(self.grid.n_voxels, -1)], 1
                ).float()

    def _statistics(self, residuals: Tensor) -> Tensor:
        """Return (K, V, F) summaries that differ between voxels."""
        count = (residuals != 0).sum(1)
        first, marginal = self._correlate(residuals, count)
        deficit = first[:, :, 0]  # at each width
        # what is left once the strongest region has been taken out
        strongest = deficit[:, _MIDDLE].argmax(1)
        left = residuals - self._explained(residuals, strongest)
        second, conditional = self._correlate(left, count)
        features = [
            first.flatten(1, 2),
            marginal,
            second[:, _MIDDLE],
            conditional[:, :2],
            first[:, _MIDDLE][:, :, self._mirror],
            self._ridge(residuals),
        ]
        return torch.cat(features, 1).transpose(1, 2)

    @property
    def _mirror(self) -> NDArray[np.intp]:
        mirror = self.grid.mirror
        return np.where(mirror >= 0, mirror, np.arange(self.grid.n_voxels))

    def _correlate(self, residuals: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Return z statistics (K, widths, channels, V), and log posteriors of a single region."""
        raw = [residuals @ torch.from_numpy(m) for m in self.maps]
        z = torch.stack(
            [
                torch.stack(
                    [
                        smooth(gradient) / (sd[w] * count.sqrt()[:, None])
                        for gradient, sd in zip(raw, self.deviations, strict=True)
                    ],
                    1,
                )
                for w, smooth in enumerate(self.smoothers)
            ],
            1,
        )
        posteriors = []
        for channel in range(len(self.maps)):
            for w, smooth in enumerate(self.smoothers):
                explained = z[:, w, channel].clamp_min(0) ** 2 / count[:, None]
                evidence = -0.5 * count[:, None] * torch.log1p(-explained.clamp_max(_MOST))
                weight = torch.softmax(0.5 * evidence, 1)  # tempered, as in `spatial`
                painted = smooth(weight) * smooth.volume
                posteriors.append(torch.log(painted.clamp_min(1e-9)).clamp(_LOG_FLOOR, 0))
        return z, torch.stack(posteriors, 1)

    def _explained(self, residuals: Tensor, voxels: Tensor) -> Tensor:
        """Return what the smoothed deficit about one voxel of each item explains of residuals."""
        weights = torch.zeros(len(voxels), self.grid.n_voxels)
        weights[torch.arange(len(voxels)), voxels] = 1
        regressor = self.smoothers[_MIDDLE](weights) @ torch.from_numpy(self.maps[0]).T
        basis = torch.from_numpy(_basis(self.volume)).float()
        seen = residuals != 0
        regressor = (regressor - (regressor @ basis) @ basis.T) * seen
        slope = (regressor * residuals).sum(1) / (regressor**2).sum(1).clamp_min(1e-9)
        return slope[:, None] * regressor

    def _ridge(self, residuals: Tensor) -> Tensor:
        """Return (K, strengths * channels, V) ridge solutions, in their own deviations."""
        out = []
        seen = (residuals != 0).float()
        smooth = self.smoothers[_MIDDLE]
        for scores, loadings in zip(self.scores, self.loadings, strict=True):
            gram = torch.stack([(scores * own[:, None]).T @ scores for own in seen])
            cross = residuals @ scores
            identity = torch.eye(scores.shape[1])
            scale = float((scores**2).sum(0).mean())
            for strength in _STRENGTHS:
                solution = torch.linalg.solve(gram + identity * scale / (10 * strength), cross)
                effect = smooth(solution @ loadings)
                out.append(effect / effect.std(1, keepdim=True).clamp_min(1e-12))
        return torch.stack(out, 1)


def _basis(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return orthonormal columns that span an intercept and given columns."""
    left, values, _ = np.linalg.svd(np.c_[np.ones(len(columns)), columns], full_matrices=False)
    return np.asarray(left[:, values > 1e-6 * values[0]])


def _deviation(maps: NDArray[np.float32], basis: Tensor, smooth: Smoother) -> Tensor:
    """Return the (V,) standard deviation of smoothed maps, free of a basis, and steadied."""
    square = torch.zeros(maps.shape[1])
    cross = torch.zeros(basis.shape[1], maps.shape[1])
    for start in range(0, len(maps), _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = smooth(torch.from_numpy(maps[rows]))
        square += part.square().sum(0)
        cross += basis[rows].T @ part
    variance = (square - cross.square().sum(0)).clamp_min(0) / len(maps)
    return torch.sqrt(variance + _STEADY * variance.median() + 1e-12)


def _components(
    maps: NDArray[np.float32], basis: Tensor, smooth: Smoother
) -> tuple[Tensor, Tensor]:
    """Return principal components (N, R) of smoothed maps, and their loadings (R, V)."""
    smoothed = torch.cat(
        [smooth(torch.from_numpy(maps[s : s + _BLOCK])) for s in range(0, len(maps), _BLOCK)]
    )
    smoothed -= basis @ (basis.T @ smoothed)
    values, vectors = torch.linalg.eigh((smoothed @ smoothed.T).double())
    rank = min(_RANK, len(maps) // 2)
    values, vectors = values[-rank:].clamp_min(1e-9), vectors[:, -rank:]
    loadings = (vectors.T.float() @ smoothed) / values.sqrt()[:, None].float()
    return (vectors * values.sqrt()).float(), loadings


def _describe(score: NDArray[np.float64], statistics: Tensor, marginal: int) -> Tensor:
    """Return summaries of an item that are the same in all voxels."""
    seen = score[np.isfinite(score)]
    affected = float((seen > 0).mean())
    strongest = statistics[:, :marginal].amax(0) / 5
    return torch.cat(
        [
            torch.tensor(
                [np.log(len(seen) / 300), affected, len(np.unique(seen)) / 5], dtype=torch.float
            ),
            strongest,
        ]
    )
