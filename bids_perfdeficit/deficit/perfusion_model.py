"""The generative model of perfusion maps, ``p(x | z) p(z)``, closed form.

Probabilistic principal components (Tipping & Bishop, J R Stat Soc B 1999): ``x = mean + loadings z
+ noise``. Its decoded map stands in for the measured one: noise goes, and voxels that were not
scanned are completed. New participants are drawn from `map_flow`. It knows no scores, so the
topology of perfusion and the dependence on scores stay apart. Must not know files or models of
scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Participants per block, which bounds the memory of intermediate tensors.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class PerfusionModel:
    """What maps of a cohort look like.

    Parameters
    ----------
    mean : (V,) array
    loadings : (V, rank) array
        Orthogonal columns; ``z`` is standard normal up to second moments.
    noise : float
        Standard deviation per voxel of what the latents leave unexplained.
    shrinkage : float
        Variance that noise has along a latent direction of this cohort. With fewer participants
        than voxels it is far above ``noise ** 2`` (Marchenko & Pastur 1967); the latents of new
        maps are shrunk by the same amount, so that they compare with the cohort's.
    """

    mean: NDArray[np.float32]
    loadings: NDArray[np.float32]
    noise: float
    shrinkage: float

    @property
    def rank(self) -> int:
        """Number of latent directions."""
        return int(self.loadings.shape[1])

    def latents(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the posterior mean of z for (N, V) maps; voxels that are NaN are left out."""
        loadings = torch.from_numpy(self.loadings)
        ridge = self.shrinkage * torch.eye(self.rank)
        full = torch.linalg.inv(loadings.T @ loadings + ridge)
        out = torch.empty(len(maps), self.rank)
        for start in range(0, len(maps), _BLOCK):
            block = torch.from_numpy(np.array(maps[start : start + _BLOCK], dtype=np.float32))
            seen = torch.isfinite(block)
            centred = torch.where(seen, block - torch.from_numpy(self.mean), 0.0)
            z = (centred @ loadings) @ full
            for i in torch.nonzero(~seen.all(1))[:, 0]:
                part = loadings[seen[i]]
                z[i] = torch.linalg.solve(part.T @ part + ridge, part.T @ centred[i, seen[i]])
            out[start : start + _BLOCK] = z
        return out.numpy()

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (N, V) maps that latents represent."""
        return latents @ self.loadings.T + self.mean

    def denoise(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the decoded map of each participant; missing voxels are completed."""
        return self.decode(self.latents(maps))

    def complete(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill voxels that are NaN with what the rest of the map predicts; the others stay."""
        missing = ~np.isfinite(maps)
        if not missing.any():
            return maps
        return np.where(missing, self.denoise(maps), maps)


def fit_perfusion_model(maps: NDArray[np.float32], rank: int) -> PerfusionModel:
    """Fit the generative model to (N, V) maps by maximum likelihood.

    Parameters
    ----------
    maps : (N, V) float32 array
        NaN where a voxel was not scanned; such voxels start at the mean and are completed once.
    rank : int
        Largest number of latent directions; at most half the participants are used.
    """
    missing = ~np.isfinite(maps)
    with np.errstate(invalid='ignore'):
        mean = np.nanmean(maps, 0) if missing.any() else maps.mean(0)
    mean = np.nan_to_num(mean).astype(np.float32)
    filled: NDArray[np.float32] = np.where(missing, mean, maps) if missing.any() else maps
    for _ in range(2 if missing.any() else 1):
        rank = max(1, min(rank, len(maps) // 2))
        centred = torch.from_numpy(np.ascontiguousarray(filled - mean))
        values, vectors = torch.linalg.eigh((centred @ centred.T).double() / len(maps))
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        floor = values[rank:].sum() / max(len(maps) - 1 - rank, 1)
        scale = torch.sqrt((values[:rank] - floor).clamp_min(1e-12))
        basis = centred.T.double() @ vectors[:, :rank]
        basis = basis / torch.linalg.vector_norm(basis, dim=0).clamp_min(1e-12)
        loadings = (basis * scale).float().numpy()
        model = PerfusionModel(
            mean,
            loadings,
            float(torch.sqrt(floor * len(maps) / maps.shape[1])),
            float(floor.clamp_min(1e-9)),
        )
        if missing.any():
            filled = model.complete(maps)
    return model


def as_tensors(model: PerfusionModel) -> dict[str, Tensor | float]:
    """Return the parameters for a checkpoint."""
    return {
        'mean': torch.from_numpy(model.mean),
        'loadings': torch.from_numpy(model.loadings),
        'noise': model.noise,
        'shrinkage': model.shrinkage,
    }
