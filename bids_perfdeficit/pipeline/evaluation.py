"""One patient's computed maps against a reference map of CT perfusion (Tmax).

`read_reference` reads and checks the reference, and brings it onto the grid of the NCCT;
`evaluate_patient` measures the agreement of the computed maps and of the controls with it;
`summarize_cohort` joins the patients. Must not know BIDS names, Nipype, settings files or reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.perfusion import agreement
from bids_perfdeficit.perfusion.agreement import DEFICIT_S
from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.pipeline.patient import Prepared, compute_maps

#: The maps that are measured, in the order of tables: the computed ones, then the controls.
MAPS: Mapping[str, str] = {
    'computed': 'computed perfusion',
    'probability': 'probability of hypoperfusion',
    'blend': 'unlearned blend',
    'published': 'published recipe',
    'asymmetry': 'asymmetry of enhancement',
    'distance': 'distance from the inflow',
}
#: Measures of `agreement.Agreement`, in the order of tables.
MEASURES: Mapping[str, str] = {
    'spearman': 'Spearman',
    'partial': 'Partial Spearman',
    'spearman_deficit': 'Spearman in the deficit',
    'auc': 'AUC',
    'dice_matched': 'Dice at equal volume',
}
#: s that Tmax cannot exceed: acquisitions of CT perfusion end before.
LONGEST_S = 120.0
#: Highest value of a map that is normalised, or a mask.
_NORMALISED = 1.0
#: Different values that masks and classes have at most.
_FEW_VALUES = 5
#: Share of the brain with negative values that interpolation may leave.
_FEW_NEGATIVE = 0.001
#: mm over which voxels without a value count as known: single zeros between values are delays of
#: 0, larger holes are cerebrospinal fluid and what the perfusion software left out.
_HOLE_MM = 3.0
#: mm about the brain in which values neither speak against a fit nor are artefacts.
_RIM_MM = 5.0
#: mL of the brain that a reference must cover.
_LEAST_ML = 10.0
#: A reference of this patient either has most of its values in the brain, or gives most of the
#: brain a value: shares below which it is refused, and below which it is doubtful.
_FITS, _FITS_WELL = 0.7, 0.95
#: mL that a deficit must have before ranks inside it and detection are measured.
LEAST_DEFICIT_ML = 1.0
#: mm from the course of an artery beyond which a clot's site is not known.
_FAR_MM = 15.0


@dataclass(frozen=True)
class Reference:
    """A reference on the grid of the NCCT.

    Parameters
    ----------
    delay : Nifti1Image
        Tmax in s, float32; NaN where it is not known or outside the brain.
    artefacts : Artefacts
        What in it cannot be tissue's delay.
    covered : float
        Share of the brain where it is known.
    notes : tuple of str
        What a reader must know of it, a sentence each.
    doubts : tuple of str
        Why it may not be this patient's, a sentence each.
    """

    delay: nib.Nifti1Image
    artefacts: agreement.Artefacts
    covered: float
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """How one patient's maps agree with the reference.

    Parameters
    ----------
    maps : DataFrame
        A row for each of `MAPS`: ``map``, the columns of `MEASURES`, and ``side``, the later side
        by as many of its highest voxels as the reference's deficit has.
    patient : dict of str to object
        Volumes (mL), their overlap, sides, sites, coverage and artefacts; None where not known.
    notes : tuple of str
        What a reader must know, a sentence each.
    doubts : tuple of str
        Those of the reference.
    """

    maps: pd.DataFrame
    patient: dict[str, object]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def read_reference(path: Path, brain: nib.Nifti1Image) -> Reference:
    """Read a map of Tmax and bring it onto the grid of the brain mask.

    Parameters
    ----------
    path : Path
        NIfTI file, Tmax in s, on any grid that is registered to the NCCT. Not known where it is
        not finite, and where it is 0 in holes wider than 6 mm.
    brain : Nifti1Image
        Brain mask on the grid of the NCCT.

    Returns
    -------
    Reference

    Raises
    ------
    InputError
        When it cannot be read, is not one volume, is not Tmax in seconds, or does not lie on the
        patient's brain.
    """
    image = ct.read_map(path, role='reference')
    points = ct.all_points(brain)
    inside = np.asarray(brain.dataobj) > 0
    near, linear = (
        ct.sample([image], points, order=order, fill=np.nan)[0].reshape(inside.shape)
        for order in (0, 1)
    )
    voxel_ml = _voxel_ml(brain)
    seen = np.isfinite(near)
    values = near[inside & seen]
    if np.count_nonzero(values) * voxel_ml < _LEAST_ML:
        raise InputError(
            'does not overlap the brain: '
            f'{np.count_nonzero(values) * voxel_ml:.1f} mL of it have a value',
            fix='give a Tmax map of this patient that is registered to the NCCT',
            path=path,
        )
    _check_unit(values, path)
    support = _close(seen & (np.nan_to_num(near) > 0), brain)
    sizes = nib.affines.voxel_sizes(brain.affine)
    rim = ndimage.distance_transform_edt(~inside, sampling=sizes) <= _RIM_MM
    doubts = _check_fit(support, inside, rim, path)
    levels = support.any((0, 1))
    found = agreement.find_artefacts(near, inside & levels, voxel_ml, away=~rim)
    known = inside & support & np.isfinite(linear)
    delay = np.where(known, np.maximum(np.nan_to_num(linear), 0), np.float32(np.nan))
    return Reference(
        nib.Nifti1Image(delay.astype(np.float32), brain.affine),
        found,
        float(known.sum() / inside.sum()),
        agreement.describe_artefacts(found),
        doubts,
    )


def _voxel_ml(image: nib.Nifti1Image) -> float:
    return abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000


def _check_unit(values: np.ndarray, path: Path) -> None:
    """Refuse what is not Tmax in seconds, by its values in the brain (N,)."""
    fix = 'give Tmax in seconds, as the perfusion software computed it'
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if low == values.max():
        raise InputError(f'every voxel in the brain is {low:g}', fix=fix, path=path)
    negative = float((values < 0).mean())
    if negative > _FEW_NEGATIVE:
        raise InputError(
            f'is negative in {negative:.1%} of the brain (down to {low:.3g})', fix=fix, path=path
        )
    if len(different := np.unique(values)) <= _FEW_VALUES:
        raise InputError(
            f'holds only the values {", ".join(f"{v:g}" for v in different)}: it is a mask or '
            'classes',
            fix=fix,
            path=path,
        )
    if high > LONGEST_S:
        unit = 'milliseconds' if high > 10 * LONGEST_S else 'another unit, or a picture'
        raise InputError(
            f'reaches {high:.0f}, while Tmax in seconds stays below {LONGEST_S:g}: it looks like '
            f'{unit}',
            fix='divide it by 1000' if high > 10 * LONGEST_S else fix,
            path=path,
        )
    if high <= _NORMALISED:
        raise InputError(
            f'stays below {_NORMALISED:g}: it is normalised, or not Tmax', fix=fix, path=path
        )


def _close(mask: np.ndarray, image: nib.Nifti1Image) -> np.ndarray:
    """Fill holes and gaps of up to twice `_HOLE_MM`."""
    sizes = nib.affines.voxel_sizes(image.affine)
    box = _box(mask, [int(np.ceil(_HOLE_MM / s)) + 1 for s in sizes])
    grown = ndimage.distance_transform_edt(~mask[box], sampling=sizes) <= _HOLE_MM
    out = np.zeros_like(mask)
    out[box] = ndimage.distance_transform_edt(grown, sampling=sizes) > _HOLE_MM
    return out | mask


def _box(mask: np.ndarray, margin: list[int]) -> tuple[slice, ...]:
    (found,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(
        slice(max(0, s.start - m), s.stop + m) for s, m in zip(found, margin, strict=True)
    )


def _check_fit(
    support: np.ndarray, brain: np.ndarray, rim: np.ndarray, path: Path
) -> tuple[str, ...]:
    """Compare where the reference has values with the brain, in the slices that it covers."""
    inside = float((support & rim).sum() / support.sum())
    here = brain & support.any((0, 1))
    filled = float((support & here).sum() / here.sum())
    shares = (
        f'{inside:.0%} of its values lie in the brain, and {filled:.0%} of the brain has one, in '
        'the slices that it covers'
    )
    best = max(inside, filled)
    if best < _FITS:
        raise InputError(
            f'does not fit the brain ({shares}): it is of another patient, or not registered',
            fix='give a Tmax map of this patient that is registered to the NCCT',
            path=path,
        )
    if best < _FITS_WELL:
        return (f'the reference fits the brain poorly ({shares}): check its registration',)
    return ()


def evaluate_patient(
    patient: Prepared,
    toa: nib.Nifti1Image,
    perfusion_map: nib.Nifti1Image,
    hypoperfused: nib.Nifti1Image,
    reference: Reference,
    *,
    threshold: float | None = None,
    found: Mapping[str, object] | None = None,
    clot: Path | None = None,
    device: str = 'cpu',
    threads: int = 1,
) -> Evaluation:
    """Measure the agreement of a patient's maps with a reference, beside that of controls.

    The controls are computed from the prepared scans: the distance from the inflow, the published
    recipe, the asymmetry of the tissue's enhancement, and the mean of three ranks (arrival,
    missing enhancement, its asymmetry), for which nothing was fitted.

    Parameters
    ----------
    patient : Prepared
        Scans, brain and transforms.
    toa, perfusion_map, hypoperfused : Nifti1Image
        As in `Maps`, on the grid of the NCCT.
    reference : Reference
        On the same grid.
    threshold : float, optional
        Probability above which a voxel is hypoperfused; that of the calibration by default.
    found : mapping, optional
        ``occlusion_site`` and ``occlusion_side`` as they were reported.
    clot : Path, optional
        Mask of the occlusion, on any registered grid; an empty one means that there is none.
    device, threads
        As for `compute_maps`.

    Returns
    -------
    Evaluation

    Raises
    ------
    InputError
        When the mask of the occlusion cannot be read.
    """
    delay_map = np.asarray(reference.delay.dataobj)
    inside = np.isfinite(delay_map) & (np.asarray(patient.brain.dataobj) > 0)
    delay = delay_map[inside].astype(float)
    voxel_ml = _voxel_ml(patient.brain)
    values = _all_maps(patient, toa, perfusion_map, hypoperfused, inside, device, threads)
    to_template = ct.read_transform(patient.inverse)
    points = ct.grid_points(patient.brain.affine, np.argwhere(inside).T.astype(float))
    left = ct.carry(to_template, points, threads=threads)[0] < 0

    def volumes(mask: np.ndarray) -> tuple[float, float]:
        return (
            voxel_ml * np.count_nonzero(mask & left),
            voxel_ml * np.count_nonzero(mask & ~left),
        )

    late = delay > DEFICIT_S
    least = max(agreement.LEAST_VOXELS, round(LEAST_DEFICIT_ML / voxel_ml))
    enough = late.sum() >= least
    rows = []
    for name, given in values.items():
        measured = agreement.measure_agreement(given, delay, values['distance'], least=least)
        row: dict[str, object] = {'map': name, **asdict(measured)}
        if name == 'distance':
            row['partial'] = np.nan  # nothing is left of it
        chosen = agreement.highest(given, int(late.sum()))
        row['side'] = agreement.later_side(*volumes(chosen)) if enough else None
        rows.append(row)
    if threshold is None:
        threshold = float(perfusion.calibration()['threshold'])
    affected = values['probability'] > threshold
    site, side, notes = read_site(clot, to_template)
    known = found or {}
    measures: dict[str, object] = {
        'covered': reference.covered,
        'found_ml': sum(volumes(affected)),
        'reference_ml': sum(volumes(late)),
        'dice': agreement.dice(affected, late) if enough else np.nan,
        'found_side': agreement.later_side(*volumes(affected)),
        'reference_side': agreement.later_side(*volumes(late)),
        'found_site': known.get('occlusion_site'),
        'found_site_side': known.get('occlusion_side'),
        'reference_site': site,
        'reference_site_side': side,
        **asdict(reference.artefacts),
    }
    return Evaluation(pd.DataFrame(rows), measures, (*reference.notes, *notes), reference.doubts)


def _all_maps(
    patient: Prepared,
    toa: nib.Nifti1Image,
    perfusion_map: nib.Nifti1Image,
    hypoperfused: nib.Nifti1Image,
    inside: np.ndarray,
    device: str,
    threads: int,
) -> dict[str, np.ndarray]:
    """Return the values (N,) of `MAPS` where the reference is known, higher is later."""
    again = compute_maps(
        patient, settings=PerfusionSettings(recipe='published'), device=device, threads=threads,
        check=False, diagnostics=True,
    )  # fmt: skip

    def read(image: nib.Nifti1Image) -> np.ndarray:
        return np.asarray(image.dataobj, dtype=np.float32)[inside]

    arrival, asymmetry = read(toa), read(again.controls['asymmetry'])
    blend = agreement.unlearned_blend([arrival, read(again.controls['near']), asymmetry])
    found = {
        'computed': read(perfusion_map),
        'probability': read(hypoperfused),
        'blend': blend,
        'published': read(again.perfusion),
        'asymmetry': asymmetry,
        'distance': read(again.controls['distance']),
    }
    return {name: found[name] for name in MAPS}


def read_site(
    clot: Path | None, to_template: ct.Transform
) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Return site and side of an occlusion's mask, None where they are not known."""
    if clot is None:
        return None, None, ()
    image = ct.read_map(clot, role='mask of the occlusion')
    voxels = np.argwhere(np.asarray(image.dataobj) > 0)
    if not len(voxels):
        return 'none', 'n/a', ()
    points = ct.carry(to_template, ct.grid_points(image.affine, voxels.T.astype(float)))
    site, side, away = perfusion.nearest_site(points.T)
    if away > _FAR_MM:
        return None, None, (
            f'the mask of the occlusion lies {away:.0f} mm from the nearest of the arteries that '
            'are reported, so that its site is not compared',
        )  # fmt: skip
    return site, side, ()


def summarize_cohort(maps: pd.DataFrame, patients: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Join the evaluations of several patients.

    Parameters
    ----------
    maps : DataFrame
        `Evaluation.maps` of all patients below each other, with ``participant_id``.
    patients : DataFrame
        `Evaluation.patient` of all, a row each.
    seed : int
        Of the resampling.

    Returns
    -------
    DataFrame
        A row for each of `MAPS` and measure: ``map``, ``measure``, ``n``, ``mean``, ``sd``,
        ``median``, ``low`` and ``high`` (95 % interval of the mean over resampled patients), and
        ``gain``, ``gain_low``, ``gain_high``: by how much the computed map is higher in the same
        patients. Then rows of map ``computed`` for what is measured once: ``dice``, the
        agreement of volumes (``concordance``, ``bias``, ``limit_low``, ``limit_high`` in mL,
        ``volume_ratio``, the median of found over reference), and the shares of patients in whom
        ``side`` and ``site`` are right.
    """
    rows: list[dict[str, object]] = []
    wide = {
        name: maps[maps['map'] == name].set_index('participant_id')
        for name in MAPS
        if (maps['map'] == name).any()
    }
    for measure in MEASURES:
        for name, own in wide.items():
            values = own[measure].dropna()
            row = _describe(name, measure, values.to_numpy(float), seed)
            if name != 'computed' and 'computed' in wide:
                gain = (wide['computed'][measure] - own[measure]).dropna().to_numpy(float)
                low, high = agreement.bootstrap_interval(gain, seed=seed)
                row |= {
                    'gain': gain.mean() if len(gain) else np.nan,
                    'gain_low': low,
                    'gain_high': high,
                }
            rows.append(row)
    for name, own in wide.items():
        sided = patients.set_index('participant_id')['reference_side'].reindex(own.index)
        right = _right(own['side'], sided, ('left', 'right'))
        rows.append(_describe(name, 'side_matched', right, seed))
    rows += _summarize_patients(patients, seed)
    return pd.DataFrame(rows)


def _summarize_patients(patients: pd.DataFrame, seed: int) -> list[dict[str, object]]:
    found, true = (patients[k].to_numpy(float) for k in ('found_ml', 'reference_ml'))
    deficit = patients[true >= LEAST_DEFICIT_ML]
    rows = [_describe('computed', 'dice', deficit['dice'].dropna().to_numpy(float), seed)]
    bias, low, high = agreement.limits_of_agreement(found, true)
    some = true >= LEAST_DEFICIT_ML
    for measure, value, count in (
        ('concordance', agreement.concordance(found, true), len(true)),
        ('bias', bias, len(true)),
        ('limit_low', low, len(true)),
        ('limit_high', high, len(true)),
        ('volume_ratio', float(np.median(found[some] / true[some])) if some.any() else np.nan,
         int(some.sum())),
    ):  # fmt: skip
        rows.append({'map': 'computed', 'measure': measure, 'n': count, 'mean': value})
    sides = _right(patients['found_side'], patients['reference_side'], ('left', 'right'))
    rows.append(_describe('computed', 'side', sides, seed))
    sites = _right(patients['found_site'], patients['reference_site'], _sites())
    rows.append(_describe('computed', 'site', sites, seed))
    return rows


def _sites() -> tuple[str, ...]:
    """Return the sites that can be compared."""
    from bids_perfdeficit.perfusion.occlusion import MIDLINE, SIDED

    return (*SIDED, *MIDLINE)


def _right(found: pd.Series, true: pd.Series, known: tuple[str, ...]) -> np.ndarray:
    """Return 1 where both agree and 0 where not, of those whose truth is known."""
    kept = true.isin(known) & found.notna()
    return (found[kept] == true[kept]).to_numpy(float)


def _describe(name: str, measure: str, values: np.ndarray, seed: int) -> dict[str, object]:
    low, high = agreement.bootstrap_interval(values, seed=seed)
    return {
        'map': name,
        'measure': measure,
        'n': len(values),
        'mean': float(values.mean()) if len(values) else np.nan,
        'sd': float(values.std(ddof=1)) if len(values) > 1 else np.nan,
        'median': float(np.median(values)) if len(values) else np.nan,
        'low': low,
        'high': high,
    }
