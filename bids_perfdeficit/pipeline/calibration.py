"""From pairs of scans and references to a site's own calibration.

`sample_pair` takes voxels of one patient with the features of the network and the delay of the
reference, `refit_pairs` joins the patients, `calibration_content` is what the file holds. Must not
know BIDS names, Nipype, settings files or reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.perfusion.agreement import concordance
from bids_perfdeficit.perfusion.occlusion import OUTCOMES, trunk_evidence
from bids_perfdeficit.perfusion.recalibration import FORMAT, FORMAT_VERSION
from bids_perfdeficit.perfusion.refit import PARTS, Pair, Refit, refit
from bids_perfdeficit.perfusion.regions import both_sides
from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.pipeline.evaluation import Reference, read_site
from bids_perfdeficit.pipeline.patient import TEMPLATE_MM, Prepared, compute_maps

#: Voxels of a patient that are kept, drawn at random: a deficit of 10 mL in a brain of 1,300 mL
#: has 150 of them.
SAMPLED = 20_000
#: Measures of a pair, in the order of tables.
COMPARED: Mapping[str, str] = {
    'spearman': 'Spearman of the map',
    'spearman_deficit': 'Spearman in the deficit',
    'auc': 'AUC of the probability',
    'error_ml': 'Error of the volume, mL',
    'dice': 'Dice',
    'log_loss': 'Log loss of the probability',
    'occlusion_score': 'Log score of the occlusion',
    'occlusion_right': 'Occlusion right',
}


@dataclass(frozen=True)
class Sample:
    """Voxels of one patient.

    Parameters
    ----------
    features : ndarray, (V, F), float32
        In the order of the calibration's; not a number where there is none.
    delay : ndarray, (V,), float32
        Tmax of the reference, s.
    places : ndarray, (V,), int32
        Voxel of the template's grid of `TEMPLATE_MM`, in the order of C; -1 outside.
    trunks : ndarray, (2, T)
        From `perfusion.occlusion.trunk_evidence`.
    voxel_ml : float
        Volume that a row represents, mL.
    outcome : int
        Place of the true occlusion in `perfusion.occlusion.OUTCOMES`; -1 where it is not known.
    notes, doubts : tuple of str
        Of the reference and the mask of the occlusion, a sentence each.
    """

    features: np.ndarray
    delay: np.ndarray
    places: np.ndarray
    trunks: np.ndarray
    voxel_ml: float
    outcome: int
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write all but the sentences."""
        np.savez_compressed(
            path, features=self.features, delay=self.delay, places=self.places,
            trunks=self.trunks, voxel_ml=self.voxel_ml, outcome=self.outcome,
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Sample:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            return cls(
                found['features'], found['delay'], found['places'], found['trunks'],
                float(found['voxel_ml']), int(found['outcome']),
            )  # fmt: skip


def sample_pair(
    patient: Prepared,
    reference: Reference,
    *,
    settings: PerfusionSettings | None = None,
    clot: Path | None = None,
    seed: int = 1,
    device: str = 'cpu',
    threads: int = 1,
) -> Sample:
    """Draw voxels of a patient in which the reference is known.

    Parameters
    ----------
    patient : Prepared
        Scans, brain and transforms.
    reference : Reference
        On the grid of the NCCT.
    settings : PerfusionSettings, optional
        How the maps are computed that the calibration is for.
    clot : Path, optional
        Mask of the occlusion, on any registered grid; an empty one means that there is none.
    seed : int
        Of the drawing.
    device, threads
        As for `compute_maps`.

    Returns
    -------
    Sample

    Raises
    ------
    InputError
        When the mask of the occlusion cannot be read.
    """
    maps = compute_maps(
        patient, settings=settings, device=device, threads=threads, check=False, diagnostics=True
    )
    delay = np.asarray(reference.delay.dataobj)
    known = np.flatnonzero(np.isfinite(delay) & (np.asarray(patient.brain.dataobj) > 0))
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(known)[:SAMPLED])
    names = perfusion.calibration()['features']
    features = np.full((len(chosen), len(names)), np.nan, np.float32)
    for k, name in enumerate(names):
        if name in maps.controls:
            features[:, k] = np.asarray(maps.controls[name].dataobj).ravel()[chosen]
        elif name in maps.numbers:
            features[:, k] = maps.numbers[name]
    template = ct.load_template(patient.space, spacing=TEMPLATE_MM)
    grid = template.brain_mask
    filled = ct.apply_transform(maps.subtraction, grid, patient.forward)
    to_template = ct.read_transform(patient.inverse)
    site, side, notes = read_site(clot, to_template)
    outcome = OUTCOMES.index((site, side)) if (site, side) in OUTCOMES else -1
    index = np.stack(np.unravel_index(chosen, delay.shape)).astype(float)
    points = ct.carry(to_template, ct.grid_points(patient.brain.affine, index), threads=threads)
    there = np.rint(ct.grid_points(np.linalg.inv(grid.affine), points)).astype(int)
    inside = ((there >= 0) & (there < np.array(grid.shape)[:, None])).all(0)
    places = np.full(len(chosen), -1, np.int32)
    places[inside] = np.ravel_multi_index(tuple(there[:, inside]), grid.shape)
    voxel = abs(float(np.linalg.det(patient.brain.affine[:3, :3]))) / 1000
    return Sample(
        features, delay.ravel()[chosen].astype(np.float32), places,
        trunk_evidence(np.asarray(filled.dataobj), grid.affine),
        voxel * len(known) / max(len(chosen), 1), outcome,
        (*reference.notes, *notes), reference.doubts,
    )  # fmt: skip


def refit_pairs(samples: Mapping[str, Sample], *, space: str) -> Refit:
    """Refit the calibration to the samples of a site; see `perfusion.refit.refit`.

    Parameters
    ----------
    samples : mapping of str to Sample
        By participant.
    space : str
        Template of the samples' places.

    Returns
    -------
    Refit
    """
    return refit(make_pairs(samples, space=space))


def make_pairs(samples: Mapping[str, Sample], *, space: str) -> list[Pair]:
    """Return samples with the regions of the template in which their voxels lie."""
    grid = ct.load_template(space, spacing=TEMPLATE_MM).brain_mask
    x, y, z = grid.shape
    halves = both_sides((x, y, z), grid.affine).values()
    regions = [[half[side].ravel() for half in halves] for side in (0, 1)]
    pairs = []
    for name, sample in samples.items():
        inside = sample.places >= 0
        pairs.append(
            Pair(
                name,
                sample.features,
                sample.delay,
                sample.voxel_ml,
                [[inside & mask[sample.places] for mask in half] for half in regions],
                sample.trunks,
                sample.outcome if sample.outcome >= 0 else None,
            )
        )
    return pairs


def compare_calibrations(found: Refit) -> pd.DataFrame:
    """Return the measures before and after, each pair left out.

    Parameters
    ----------
    found : Refit

    Returns
    -------
    DataFrame
        A row for each of `COMPARED`: ``measure``, ``n``, mean ``before`` and ``after``, ``change``
        (mean after minus before) and how many pairs got ``better``; then Lin's ``concordance`` of
        the volumes.
    """
    table = pd.DataFrame(found.pairs)
    rows: list[dict[str, object]] = []
    wide = {
        name: part.set_index('name').drop(columns='calibration').astype(float)
        for name, part in table.groupby('calibration')
    }
    before, after = wide['shipped'], wide['left out']
    for measure in COMPARED:
        known = before[measure].notna() & after[measure].notna()
        one, other = (part.loc[known, measure].to_numpy() for part in (before, after))
        sign = -1 if measure in ('error_ml', 'log_loss') else 1
        rows.append({
            'measure': measure,
            'n': int(known.sum()),
            'before': one.mean() if len(one) else np.nan,
            'after': other.mean() if len(one) else np.nan,
            'change': (other - one).mean() if len(one) else np.nan,
            'better': int((sign * (other - one) > 0).sum()),
        })  # fmt: skip
    volumes = [concordance(part['found_ml'], part['reference_ml']) for part in (before, after)]
    rows.append({
        'measure': 'concordance', 'n': len(before), 'before': volumes[0], 'after': volumes[1],
        'change': volumes[1] - volumes[0],
    })  # fmt: skip
    return pd.DataFrame(rows).astype({'better': 'Int64'})


def calibration_content(
    found: Refit, provenance: Mapping[str, Any], table: pd.DataFrame
) -> dict[str, Any]:
    """Return what the file of a site's calibration holds.

    Parameters
    ----------
    found : Refit
    provenance : mapping
        What it was made from, and by what.
    table : DataFrame
        From `compare_calibrations`.

    Returns
    -------
    dict
        Plain JSON; `perfusion.join_calibration` reads it.
    """
    weights = found.weights
    plain = table.astype(object).where(table.notna(), None)
    return {
        'Format': FORMAT,
        'FormatVersion': FORMAT_VERSION,
        'BaseSHA256': perfusion.base_sha256(),
        'LastLayer': {'weight': weights.weight.tolist(), 'bias': weights.bias.tolist()},
        'Threshold': weights.threshold,
        'OcclusionBias': weights.occlusion_bias.tolist(),
        'OcclusionWithheld': found.withholds_occlusion,
        'Refitted': [part for part in PARTS if found.taken[part]],
        'Kept': [part for part in PARTS if not found.taken[part]],
        'Reasons': dict(found.reasons),
        'LeftOneOut': [
            {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
            for row in plain.to_dict('records')
        ],
        'Provenance': dict(provenance),
    }
