"""The network that turns summary maps into probabilities, and its calibration.

A perceptron that is applied to the summaries of each voxel, which hold those of its surroundings.
It is trained by maximum likelihood on voxels of simulated items. Must not know maps or scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional

#: Units of each of the two hidden layers, share of them that is dropped in training, and voxels
#: of a step.
_UNITS, _DROPPED, _BATCH = 64, 0.1, 4096
#: Step size at the start (it falls to 0 along a cosine) and weight decay of AdamW.
_RATE, _DECAY = 3e-3, 1e-3
#: Probabilities are kept this far from 0 and 1 where logits are taken.
_TINY = 1e-6
#: Standard deviations at which summaries are cut off.
_MOST = 6.0


class Network(nn.Module):
    """Logit of membership of a voxel, from its F summaries.

    Parameters
    ----------
    features : int
        F.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer('centre', torch.zeros(features))
        self.register_buffer('spread', torch.ones(features))
        self.layers = nn.Sequential(
            nn.Linear(features, _UNITS), nn.GELU(), nn.Dropout(_DROPPED),
            nn.Linear(_UNITS, _UNITS), nn.GELU(), nn.Dropout(_DROPPED),
            nn.Linear(_UNITS, 1),
        )  # fmt: skip

    def forward(self, summaries: Tensor) -> Tensor:
        """Return (n,) logits of (n, F) summaries."""
        standard = (summaries - self.centre) / self.spread
        return self.layers(standard.clamp(-_MOST, _MOST))[:, 0]


def train(
    summaries: Tensor, members: Tensor, weights: Tensor, *, steps: int, seed: int
) -> Network:
    """Train a network.

    Parameters
    ----------
    summaries : (n, F) Tensor
        Of voxels of many items.
    members : (n,) Tensor
        1 where the voxel belongs to the substrate, 0 elsewhere.
    weights : (n,) Tensor
        Voxels that each represents.
    steps, seed : int
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(summaries.shape[1])
        network.centre.copy_(summaries.mean(0))
        network.spread.copy_(summaries.std(0).clamp_min(1e-3))
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        scale = weights.mean()
        network.train()
        for _ in range(steps):
            rows = torch.randint(len(summaries), (_BATCH,), generator=generator)
            loss = functional.binary_cross_entropy_with_logits(
                network(summaries[rows]), members[rows], weight=weights[rows] / scale
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def logit(probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return log odds, of probabilities that are kept a little from 0 and 1."""
    p = np.clip(np.asarray(probability, float), _TINY, 1 - _TINY)
    return np.log(p) - np.log1p(-p)


@dataclass(frozen=True)
class Calibration:
    """Slope and offset of log odds under which probabilities are those that were seen.

    Platt scaling (Platt, Advances in Large Margin Classifiers, 1999).
    """

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, probability: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return calibrated probabilities."""
        value = self.slope * logit(probability) + self.offset
        return (1 / (1 + np.exp(-value))).astype(np.float32)

    @classmethod
    def fit(cls, probability: NDArray[np.floating], members: NDArray[np.bool_]) -> Calibration:
        """Fit slope and offset to voxels whose membership is known.

        >>> seen = np.random.default_rng(0).random(20000) < 0.3
        >>> found = Calibration.fit(np.full(20000, 0.5), seen)
        >>> bool(abs(found(np.array([0.5]))[0] - 0.3) < 0.02)
        True
        """
        value, known = logit(probability), np.asarray(members, float)

        def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            eta = parameters[0] * value + parameters[1]
            error = 1 / (1 + np.exp(-eta)) - known
            gradient = np.array([(error * value).mean(), error.mean()])
            return float((np.logaddexp(0, eta) - known * eta).mean()), gradient

        found = minimize(
            loss, [1.0, 0.0], jac=True, method='L-BFGS-B', bounds=[(0.05, 5), (-9, 9)]
        )
        return cls(float(found.x[0]), float(found.x[1]))
