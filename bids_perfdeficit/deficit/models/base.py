"""What a deficit model is: its name, what it offers, its words and its fit.

All models end in the same readout, linear in the maps, under an ordinal likelihood (see `result`).
So folds, shuffled scores, resampled cohorts, files, predictions and the page need nothing of a
model but this class. Must not know any particular model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bids_perfdeficit.deficit.preparation import Prepared
from bids_perfdeficit.deficit.result import Item, Readout
from bids_perfdeficit.deficit.rules import covariate_scales, usable_items
from bids_perfdeficit.deficit.settings import DeficitSettings

#: What the maps of a fit are unless their model says otherwise, by ``stat-`` entity.
STATISTICS: Mapping[str, str] = {
    'effect': 'Strength of the dependence of the score on the map in the voxel',
    'std': 'Posterior standard deviation of the effect',
    'prob': 'Posterior probability that the voxel belongs to the substrate of the item',
    't': 't statistic of the effect, which is adjusted for the covariates',
    'threshold': 'Effect where the model declares the voxel, 0 elsewhere',
    'credible': 'Smallest set of voxels that is expected to hold 90 % of the substrate; empty '
    'where nothing is declared',
}
#: What a model computes from maps alone.
Shared = TypeVar('Shared')


@dataclass(frozen=True)
class Offers:
    """What a model has beside its effect.

    Parameters
    ----------
    probability : bool
        Whether each voxel has a probability; without one there is no ``stat-prob`` map.
    membership : bool
        Whether that is the probability that the voxel belongs to the substrate. Then expected
        errors, volumes and credible sets follow from it.
    test : bool
        Whether each item has a p-value.
    covariates : bool
        Whether the effect is adjusted for covariates.
    t : bool
        Whether effect over standard error is a t statistic: it is written as ``stat-t``, and peaks
        of clusters are its maxima.
    """

    probability: bool = True
    membership: bool = False
    test: bool = True
    covariates: bool = True
    t: bool = False


@dataclass(frozen=True)
class Drawing:
    """How the map of a model is shown on the page.

    Parameters
    ----------
    statistic : {'prob', 'effect'}
        The map that is drawn; a probability is drawn from 0 to 1.
    meaning : str
        What its values are, as a noun phrase with the unit. ``{more}`` represents a higher value
        of the participants' maps, for example "later perfusion".
    ends : (str, str)
        What low and high values mean.
    colour, mark : str
        Of the model in plots of its predictions (Matplotlib).
    """

    statistic: str
    meaning: str
    ends: tuple[str, str]
    colour: str = '#56B4E9'
    mark: str = 'P'


@dataclass(frozen=True, eq=False)
class ModelFit:
    """What a model finds; `fit` puts it into a `DeficitFit`. Arrays are filled in by the model.

    Parameters
    ----------
    usable : tuple of int
        Indices of the items that can be fitted; the arrays of the others are not touched.
    skipped : dict of str to str
        Names of the others, with the reason.
    effect, std, probability : (K, V) float32 array
        As in `DeficitFit`, NaN at first; (K, 0) when no maps are asked for.
    declared : (K, V) bool array
        Nowhere at first.
    cut, p_value : (K,) array
        NaN at first.
    readout : Readout
        Its `weights` and `gamma` are 0, its `cuts` infinite and its `frequencies` 0 at first.
    kl : (K,) array
        Largest KL divergence of a part of the model from its prior, in nats; NaN at first.
    healthy : (V coarse,) array, optional
        As in `DeficitFit`.
    details : dict of str to mapping
        Item name to plain numbers, for people; it is stored as JSON.
    """

    usable: tuple[int, ...]
    skipped: dict[str, str]
    effect: NDArray[np.float32]
    std: NDArray[np.float32]
    probability: NDArray[np.float32]
    declared: NDArray[np.bool_]
    cut: NDArray[np.float64]
    p_value: NDArray[np.float64]
    readout: Readout
    kl: NDArray[np.float64]
    healthy: NDArray[np.float32] | None = None
    details: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def blank(
        cls,
        prepared: Prepared,
        scores: NDArray[np.float64],
        covariates: NDArray[np.float64],
        items: tuple[Item, ...],
        settings: DeficitSettings,
        *,
        channels: int = 1,
        healthy: NDArray[np.float32] | None = None,
        maps: bool = True,
    ) -> ModelFit:
        """Return a fit in which nothing has been found yet.

        Parameters
        ----------
        prepared, scores, covariates, items, settings
            As the model was given them.
        channels : int
            Of `Prepared.features` that the readout uses.
        healthy : array, optional
            See `DeficitFit`.
        maps : bool
            False leaves out the maps on the fine grid.
        """
        count, levels = len(items), max(item.levels for item in items)
        shape = (count, prepared.grid.n_voxels if maps else 0)
        usable, skipped = usable_items(scores, items, settings)
        mean, scale = covariate_scales(covariates)
        return cls(
            tuple(usable),
            skipped,
            effect=np.full(shape, np.nan, np.float32),
            std=np.full(shape, np.nan, np.float32),
            probability=np.full(shape, np.nan, np.float32),
            declared=np.zeros(shape, bool),
            cut=np.full(count, np.nan),
            p_value=np.full(count, np.nan),
            readout=Readout(
                weights=np.zeros((count, channels, prepared.coarse.n_voxels), np.float32),
                cuts=np.full((count, levels - 1), np.inf),
                frequencies=np.zeros((count, levels)),
                lapse=settings.lapse,
                covariate_mean=mean,
                covariate_scale=scale,
                gamma=np.zeros((count, covariates.shape[1])),
            ),
            kl=np.full(count, np.nan),
            healthy=healthy,
        )


class DeficitModel(ABC, Generic[Shared]):
    """A model of the dependence of scores on perfusion maps.

    Subclasses set the class variables and write `fit`, and `share` where several fits of one
    cohort can share work.

    Attributes
    ----------
    name : str
        Lower-case letters and digits; part of file names.
    offers : Offers
    drawing : Drawing
    statistics : mapping of str to str
        What the maps ``effect``, ``std``, ``prob``, ``t``, ``threshold`` and ``credible`` are,
        for their sidecars; those left out are as in `STATISTICS`.
    methods : str
        A paragraph for the methods text, with citations as ``[@key]`` of
        ``data/boilerplate.bib``.
    methods_given : str
        The same for maps that are used as users give them; `methods` where it is empty.
    options : tuple of str
        Fields of `DeficitSettings` that concern this model alone and that users may set, by the
        same names, among the options of the group level.
    """

    name: ClassVar[str]
    offers: ClassVar[Offers] = Offers()
    drawing: ClassVar[Drawing]
    statistics: ClassVar[Mapping[str, str]] = {}
    methods: ClassVar[str]
    methods_given: ClassVar[str] = ''
    options: ClassVar[tuple[str, ...]] = ()

    def describe_methods(self, *, as_given: bool = False) -> str:
        """Return the paragraph for the methods text."""
        return (as_given and self.methods_given) or self.methods

    def describe(self, statistic: str) -> str:
        """Return what the map ``stat-<statistic>`` is, as a noun phrase for its sidecar."""
        return self.statistics.get(statistic, STATISTICS[statistic])

    def share(self, prepared: Prepared, settings: DeficitSettings) -> Shared | None:
        """Return what depends on maps alone, for the argument `shared` of `fit`.

        Parameters
        ----------
        prepared : Prepared
        settings : DeficitSettings
        """
        del prepared, settings
        return None

    @abstractmethod
    def fit(
        self,
        prepared: Prepared,
        scores: NDArray[np.float64],
        covariates: NDArray[np.float64],
        items: tuple[Item, ...],
        settings: DeficitSettings,
        *,
        shared: Shared | None = None,
        maps: bool = True,
        checkpoint: Path | None = None,
    ) -> ModelFit:
        """Fit all items.

        Parameters
        ----------
        prepared : Prepared
            Maps of N participants.
        scores : (N, K) array
            Checked; NaN where missing.
        covariates : (N, C) array
            C may be 0; NaN counts as the mean.
        items : tuple of Item
        settings : DeficitSettings
        shared : optional
            Of the same cohort and settings, from `share`; computed here when it is not given.
        maps : bool
            False leaves out the maps on the fine grid: cross-validation needs predictions only.
        checkpoint : Path, optional
            Where long training keeps its state, and from where it goes on.

        Returns
        -------
        ModelFit
            Start from `ModelFit.blank`.
        """
