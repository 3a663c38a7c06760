"""The smallest deficit model: the mean map of those with a deficit minus that of the others.

It is an example of the interface and not a method to be used.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bids_perfdeficit.deficit import (
    DeficitModel,
    DeficitSettings,
    Drawing,
    Item,
    ModelFit,
    Offers,
    Prepared,
)
from bids_perfdeficit.deficit.ordinal import fit_head
from bids_perfdeficit.deficit.rules import exceedance


class MeanDifference(DeficitModel[None]):
    """How much later perfusion is in participants with a deficit, voxel by voxel."""

    name = 'difference'
    offers = Offers(probability=False, test=False, covariates=False)
    drawing = Drawing('effect', 'difference of mean perfusion (no unit)', ('none', 'large'))
    statistics: ClassVar[dict[str, str]] = {
        'effect': 'Mean of participants with a deficit minus that of the others'
    }
    methods = """\
*difference*: the difference of the mean maps of participants with and without a deficit, for each
item. Half of its maximum was declared.
"""

    def fit(
        self,
        prepared: Prepared,
        scores: NDArray[np.float64],
        covariates: NDArray[np.float64],
        items: tuple[Item, ...],
        settings: DeficitSettings,
        *,
        shared: None = None,
        maps: bool = True,
        checkpoint: Path | None = None,
    ) -> ModelFit:
        """Fit all items, one after the other."""
        found = ModelFit.blank(prepared, scores, covariates, items, settings, maps=maps)
        readout = found.readout
        for k in found.usable:
            own = items[k].levels
            seen = np.flatnonzero(np.isfinite(scores[:, k]))
            score, measured = scores[seen, k], prepared.measured[seen]
            with_deficit, without = measured[score > 0], measured[score == 0]
            difference = with_deficit.mean(0) - without.mean(0)
            # What predicts: a weighted mean of the denoised map, calibrated to the levels.
            readout.weights[k, 0] = difference / np.abs(difference).sum()
            eta = prepared.features[0][seen] @ readout.weights[k, 0]
            slope, cuts, frequencies = fit_head(
                torch.from_numpy(eta.astype(float)),
                torch.from_numpy(score.astype(np.int64)),
                own,
                settings.lapse,
            )
            readout.weights[k] *= slope
            readout.cuts[k, : own - 1] = cuts.numpy()
            readout.frequencies[k, :own] = frequencies.numpy()
            if maps:  # on the voxels of the cohort, which may be finer than those of the model
                error = np.sqrt(
                    with_deficit.var(0) / len(with_deficit) + without.var(0) / len(without)
                )
                found.effect[k] = prepared.coarse.resample_to(difference, prepared.grid)
                found.std[k] = prepared.coarse.resample_to(error, prepared.grid)
                found.cut[k] = found.effect[k].max() / 2
                found.declared[k] = exceedance(found.effect[k], found.cut[k])
        return found
