"""What a fit gives: maps per item, a readout that predicts scores, and how to keep it.

Every model ends in the same readout, linear in the maps, under an ordinal likelihood; so one code
predicts, saves and loads for all of them. Must not know how a model was fitted.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bids_perfdeficit.deficit.grid import Grid
from bids_perfdeficit.deficit.map_flow import MapFlow
from bids_perfdeficit.deficit.ordinal import level_probabilities
from bids_perfdeficit.deficit.perfusion_model import PerfusionModel, as_tensors
from bids_perfdeficit.deficit.preparation import (
    channels,
    check_covariates,
    clean,
    coarse_maps,
    model_grid,
)
from bids_perfdeficit.deficit.settings import DeficitSettings
from bids_perfdeficit.errors import InputError

#: Raised when the meaning of a stored tensor changes.
_FORMAT = 3
#: Arrays of a fit; those that are None are not stored.
_ARRAYS = ('effect', 'std', 'probability', 'declared', 'cut', 'p_value', 'healthy')
#: What `torch.load` raises on files that are not what they should be.
UNREADABLE = (
    OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One ordinal score.

    Parameters
    ----------
    name : str
    levels : int
        Number of values it can take: 0 ... levels - 1.
    mirror : str, optional
        Name of the item that asks the same of the other side of the body.
    values : tuple of float
        What each level represents in the unit of the score; by default the level itself.
    """

    name: str
    levels: int
    mirror: str | None = None
    values: tuple[float, ...] = ()

    @property
    def scale(self) -> NDArray[np.float64]:
        """(levels,) value of each level, in the unit of the score."""
        return np.asarray(self.values or range(self.levels), dtype=float)


@dataclass(frozen=True, eq=False)
class Readout:
    """From maps and covariates to the probability of each level.

    ``eta = offset + sum over channels and voxels (weights * channel) + covariates @ gamma``.

    Parameters
    ----------
    weights : (K, channels, V coarse) array
        Channel 0 is the map, channel 1 (if any) its positive left-right asymmetry.
    cuts : (K, levels - 1) array
        Cut-points; +inf beyond an item's own levels.
    frequencies : (K, levels) array
        What a lapsed score is drawn from.
    lapse : float
    covariate_mean, covariate_scale : (C,) arrays
    gamma : (K, C) array
        Per standard deviation of a covariate.
    """

    weights: NDArray[np.float32]
    cuts: NDArray[np.float64]
    frequencies: NDArray[np.float64]
    lapse: float
    covariate_mean: NDArray[np.float64]
    covariate_scale: NDArray[np.float64]
    gamma: NDArray[np.float64]

    def eta(
        self, features: tuple[NDArray[np.float32], ...], covariates: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return (N, K) linear predictors from the channels' (N, V coarse) arrays."""
        total = standardise(covariates, self.covariate_mean, self.covariate_scale) @ self.gamma.T
        for channel, values in enumerate(features[: self.weights.shape[1]]):
            total = total + values @ self.weights[:, channel].T
        return np.asarray(total, dtype=float)

    def probabilities(self, eta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N, K, levels) probabilities, lapses included."""
        out = np.zeros((len(eta), *self.frequencies.shape))
        for k in range(eta.shape[1]):
            p = level_probabilities(torch.from_numpy(self.cuts[k]), torch.from_numpy(eta[:, k]))
            out[:, k] = (1 - self.lapse) * p.numpy() + self.lapse * self.frequencies[k]
        return out


def standardise(
    covariates: NDArray[np.float64], mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return covariates in standard deviations; a missing value counts as the mean."""
    return np.nan_to_num((covariates - mean) / scale, nan=0.0)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores that are predicted for participants.

    Parameters
    ----------
    items : tuple of Item
    probabilities : (N, K, levels) array
        NaN for items that were not fitted.
    eta : (N, K) array
        Linear predictor (log-odds).
    """

    items: tuple[Item, ...]
    probabilities: NDArray[np.float64]
    eta: NDArray[np.float64]

    @property
    def expected(self) -> NDArray[np.float64]:
        """(N, K) expected score, in its own unit."""
        return np.stack(
            [self.probabilities[:, k, : i.levels] @ i.scale for k, i in enumerate(self.items)], 1
        )

    @property
    def any_deficit(self) -> NDArray[np.float64]:
        """(N, K) probability of more than the lowest level."""
        return 1 - self.probabilities[:, :, 0]

    def draw(self, *, seed: int) -> NDArray[np.float64]:
        """Draw (N, K) scores from the predicted distribution, in their own units."""
        rng = np.random.default_rng(seed)
        level = (
            rng.random((*self.eta.shape, 1)) > np.cumsum(self.probabilities, 2)[:, :, :-1]
        ).sum(2)
        drawn = np.stack([i.scale[level[:, k]] for k, i in enumerate(self.items)], 1)
        return np.where(np.isnan(self.eta), np.nan, drawn)


@dataclass(frozen=True, eq=False)
class DeficitFit:
    """The result of `fit`. Arrays per item are (K, V) in the order of `items` and of `grid`.

    Parameters
    ----------
    model : str
    items : tuple of Item
        All that were asked for; those in `skipped` have NaN maps and nothing declared.
    grid, coarse : Grid
        Voxels of the maps, and those of the readout.
    effect : (K, V) float32 array
        `spatial`: expected log-odds that one whole unit of excess (`scale`) adds where the voxel
        is part of the substrate. Others: coefficient of the voxel.
    std : (K, V) float32 array
        Its posterior standard deviation (`voxelwise`: standard error).
    probability : (K, V) float32 array
        Posterior probability that the voxel belongs to the substrate (`voxelwise`: 1 - p,
        family-wise corrected).
    declared : (K, V) bool array
        The substrate by the model's own rule, which sees labels and never the truth.
    cut : (K,) array
        Threshold on `probability` (`ridge` and `vae`: on `effect`) behind `declared`; NaN where
        nothing is.
    p_value : (K,) array
        Family-wise p of the item as a whole from permutations; NaN where not asked for.
    readout : Readout
    settings : DeficitSettings
    skipped : dict of str to str
        Item name to the reason why it was not fitted.
    details : dict
        Plain numbers per item, e.g. the KL divergence of each component in nats.
    generative : PerfusionModel
        Of perfusion maps on `coarse`.
    healthy : (V coarse,) float32 array, optional
        The healthy pattern beyond which the readout takes maps; None where it takes them as
        they are.
    covariate_names : tuple of str
        Of the columns of the covariates, when they are known.
    """

    model: str
    items: tuple[Item, ...]
    grid: Grid
    coarse: Grid
    effect: NDArray[np.float32]
    std: NDArray[np.float32]
    probability: NDArray[np.float32]
    declared: NDArray[np.bool_]
    cut: NDArray[np.float64]
    p_value: NDArray[np.float64]
    readout: Readout
    settings: DeficitSettings
    generative: PerfusionModel
    healthy: NDArray[np.float32] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    covariate_names: tuple[str, ...] = ()

    def t(self, item: int) -> NDArray[np.float32]:
        """Return the (V,) t statistic of an item, 0 where there is none; see `Offers.t`."""
        effect, std = self.effect[item], self.std[item]
        return np.where(std > 0, effect / np.where(std > 0, std, 1), 0).astype(np.float32)

    def coarsen(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (N, V) maps averaged to the voxels of `coarse`; NaN where nothing was scanned."""
        return coarse_maps(maps, model_grid(self.grid, self.settings.coarse_spacing)[1])

    def complete(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill what was not scanned of maps with what the rest of them predicts.

        Parameters
        ----------
        maps : (N, V) array
            On the voxels of `grid`; NaN where not scanned.

        Returns
        -------
        (N, V) array
            As given where scanned; elsewhere the decoded map of the generative model (Tipping &
            Bishop, J R Stat Soc B 1999).
        """
        missing = ~np.isfinite(maps)
        out = np.array(maps, np.float32)
        rows = np.flatnonzero(missing.any(1))
        if rows.size:
            decoded = self.generative.denoise(self.coarsen(out[rows]))
            for row, values in zip(rows, decoded, strict=True):
                filled = self.coarse.resample_to(values, self.grid)
                out[row] = np.where(missing[row], filled, out[row])
        return out

    def predict(
        self, maps: NDArray[np.float32], covariates: NDArray[np.float64] | None = None
    ) -> Predictions:
        """Predict the scores of new participants.

        Parameters
        ----------
        maps : (N, V) array
            On the voxels of `grid`; NaN where not scanned.
        covariates : (N, C) array, optional
            The same columns as in the fit.

        Raises
        ------
        InputError
            If the number of voxels or covariates is not that of the fit.
        """
        if maps.ndim != 2 or maps.shape[1] != self.grid.n_voxels:
            raise InputError(
                f'maps have {maps.shape[-1]} voxels, the model {self.grid.n_voxels}',
                fix='give maps of the space and resolution that the model was fitted on',
            )
        coarse = clean(self.coarsen(maps), self.generative, self.settings)
        return self.predict_prepared(channels(coarse, self.coarse, self.healthy), covariates)

    def predict_prepared(
        self,
        features: tuple[NDArray[np.float32], ...],
        covariates: NDArray[np.float64] | None = None,
    ) -> Predictions:
        """Predict from channels that are there already (see `preparation.channels`)."""
        covariates = check_covariates(
            covariates, len(features[0]), expected=len(self.readout.covariate_mean)
        )
        eta = self.readout.eta(features, covariates)
        probabilities = self.readout.probabilities(eta)
        for k, item in enumerate(self.items):
            if item.name in self.skipped:
                eta[:, k] = np.nan
                probabilities[:, k] = np.nan
        return Predictions(self.items, probabilities, eta)

    def draw(
        self, flow: MapFlow, count: int, *, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Draw posterior-predictive participants at the mean of the covariates.

        Parameters
        ----------
        flow : MapFlow
            Fitted to maps on the voxels of `coarse`, such as `Prepared.measured`.
        count, seed : int

        Returns
        -------
        maps : (count, V coarse) array
            Perfusion maps on the voxels of `coarse`.
        scores : (count, K) array

        Raises
        ------
        InputError
            If the flow has another mask.
        """
        if not np.array_equal(flow.grid.mask, self.coarse.mask):
            raise InputError(
                f'the mask of the flow ({flow.grid.n_voxels} voxels) is not that of the model '
                f'({self.coarse.n_voxels} voxels)',
                fix='fit the flow to the maps that the model was fitted to (Prepared.measured)',
            )
        maps = flow.draw(count, seed=seed)
        cleaned = clean(maps, self.generative, self.settings)
        features = channels(cleaned, self.coarse, self.healthy)
        mean = np.tile(self.readout.covariate_mean, (count, 1))
        return maps, self.predict_prepared(features, mean).draw(seed=seed + 1)

    def save(self, path: str | Path) -> None:
        """Write everything as tensors and plain text, atomically."""
        target = Path(path)
        temporary = target.with_name(f'.{target.name}.{os.getpid()}')
        arrays = {
            name: torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
            for name in _ARRAYS
            if getattr(self, name) is not None
        }
        readout = {
            f.name: torch.as_tensor(getattr(self.readout, f.name))
            for f in dataclasses.fields(Readout)
        }
        plain = {
            'model': self.model,
            'items': [dataclasses.asdict(item) for item in self.items],
            'settings': dataclasses.asdict(self.settings),
            'skipped': self.skipped,
            'details': self.details,
            'covariate_names': list(self.covariate_names),
        }
        content = {
            'format': _FORMAT,
            'plain': json.dumps(plain),
            'arrays': arrays,
            'readout': readout,
            'generative': as_tensors(self.generative),
            'grids': [
                {'mask': torch.from_numpy(g.mask), 'affine': torch.from_numpy(g.affine)}
                for g in (self.grid, self.coarse)
            ],
        }
        torch.save(content, temporary)
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> DeficitFit:
        """Read a fit back; no code in the file is ever run (``weights_only=True``).

        Raises
        ------
        InputError
            If the file is not a fit, or has another format.
        """
        try:
            content = torch.load(path, map_location='cpu', weights_only=True)
            if content['format'] != _FORMAT:
                raise KeyError('format')
            plain = json.loads(content['plain'])
        except UNREADABLE as error:
            raise InputError(
                'no deficit model of this version can be read from it',
                fix='fit the group level again or name the params.pt file of a fit',
                path=path,
            ) from error
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in plain['settings'].items()
        }
        readout = {
            key: value.item() if value.ndim == 0 else value.numpy()
            for key, value in content['readout'].items()
        }
        generative: dict[str, Any] = {
            key: value.numpy() if isinstance(value, torch.Tensor) else value
            for key, value in content['generative'].items()
        }
        grid, coarse = (Grid(g['mask'].numpy(), g['affine'].numpy()) for g in content['grids'])
        return cls(
            model=plain['model'],
            items=tuple(
                Item(**{**item, 'values': tuple(item.get('values', ()))})
                for item in plain['items']
            ),
            grid=grid,
            coarse=coarse,
            readout=Readout(**readout),
            settings=DeficitSettings(**settings),
            generative=PerfusionModel(**generative),
            skipped=plain['skipped'],
            details=plain['details'],
            covariate_names=tuple(plain.get('covariate_names', ())),
            **{name: tensor.numpy() for name, tensor in content['arrays'].items()},
        )
