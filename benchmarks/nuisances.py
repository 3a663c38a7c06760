"""What scanners and movement do to the map: errors added to the CTA of finished digital patients.

`perfusion.py --nuisances` runs it. Each patient is made, prepared by the app (conforming, brain,
both registrations) and then computed once per nuisance, from the CTA on its own grid with the
nuisance added, by two variants: `now`, the whole app, and `without`, the same without the
reference field, the last rigid step after a misregistration, and the guards. Every third patient
has open arteries. Seeds from 2000 on,
and 1000 to 1011, were used to choose constants; those from 1012 on were not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage
from scipy.spatial.transform import Rotation
from sklearn.metrics import roc_auc_score

from bids_perfdeficit import ct, perfusion, pipeline
from bids_perfdeficit.perfusion import PerfusionSettings
from bids_perfdeficit.perfusion.agreement import spearman
from bids_perfdeficit.phantom.patient import HYPOPERFUSED, Patient

#: mm and degrees of the misregistration that the last step has to find, mm of movement within the
#: scan, mm of a thick CTA.
MOVE_MM, TURN_DEGREES, MOTION_MM, THICK_MM = 1.5, 1.0, 1.5, 5.0
#: mL of a deficit from which its AUC and the order inside it are measured.
LEAST_ML = 0.4
#: Noise of the phantom's CTA in 1 mm of brain, HU (`ScannerSettings.cta_noise`).
NOISE_HU = 11.0


@dataclass(frozen=True)
class Case:
    """A prepared patient and what is known of it; the CTA is on its own grid."""

    patient: Patient
    prepared: pipeline.Prepared
    cta: nib.Nifti1Image
    start: np.ndarray
    there: np.ndarray
    delay: np.ndarray
    known: np.ndarray


Change = Callable[[nib.Nifti1Image, Case, np.random.Generator], nib.Nifti1Image]


def _places(cta: nib.Nifti1Image, case: Case) -> list[np.ndarray]:
    """From -1 to 1 over the brain, along x, y and z, at every voxel of the CTA."""
    mask = np.asarray(case.prepared.brain.dataobj) > 0
    points = nib.affines.apply_affine(case.prepared.brain.affine, np.argwhere(mask))
    points = nib.affines.apply_affine(case.start, points)
    low, high = points.min(0), points.max(0)
    index = np.indices(cta.shape, dtype=np.float32)
    mm = (
        np.einsum('ij,jxyz->ixyz', cta.affine[:3, :3], index)
        + cta.affine[:3, 3][:, None, None, None]
    )
    return [(mm[k] - (low[k] + high[k]) / 2) / ((high[k] - low[k]) / 2) for k in range(3)]


def _add(cta: nib.Nifti1Image, field: np.ndarray | float) -> nib.Nifti1Image:
    values = np.asarray(cta.dataobj, dtype=np.float32)
    return nib.Nifti1Image(np.where(values > -900, values + field, values), cta.affine)


def offset(level: float) -> Change:
    return lambda cta, case, rng: _add(cta, level * rng.choice([-1, 1]))


def shading(axis: int, level: float) -> Change:
    return lambda cta, case, rng: _add(cta, level * rng.choice([-1, 1]) * _places(cta, case)[axis])


def cupping(level: float) -> Change:
    """From the middle of the head to its side."""

    def change(cta: nib.Nifti1Image, case: Case, rng: np.random.Generator) -> nib.Nifti1Image:
        x, y, _ = _places(cta, case)
        return _add(cta, level * rng.choice([-1, 1]) * (np.minimum(x * x + y * y, 1.5) - 0.5))

    return change


def structure(level: float, mm: float) -> Change:
    def change(cta: nib.Nifti1Image, case: Case, rng: np.random.Generator) -> nib.Nifti1Image:
        step = np.linalg.norm(cta.affine[:3, :3], axis=0)
        noise = ndimage.gaussian_filter(
            rng.standard_normal(cta.shape, dtype=np.float32), mm / step
        )
        return _add(cta, level * noise / noise.std())

    return change


def white_noise(times: float) -> Change:
    """Noise of a CTA that is so many times as noisy in all."""

    def change(cta: nib.Nifti1Image, case: Case, rng: np.random.Generator) -> nib.Nifti1Image:
        step = np.linalg.norm(cta.affine[:3, :3], axis=0)
        level = NOISE_HU * np.sqrt((times**2 - 1) / (step[2] * max(step[0], 1.0)))
        return _add(cta, level * rng.standard_normal(cta.shape, dtype=np.float32))

    return change


def gain(times: float) -> Change:
    """Contrast of another dose or voltage: what the CTA has beyond the NCCT, times a factor."""

    def change(cta: nib.Nifti1Image, case: Case, rng: np.random.Generator) -> nib.Nifti1Image:
        back = np.linalg.inv(case.start)
        plain = ct.resample(case.prepared.ncct, cta.shape, back @ cta.affine)
        values = np.asarray(cta.dataobj, dtype=np.float32)
        soft = (plain > -50) & (plain < 130)
        return _add(cta, (times - 1) * np.where(soft, values - plain, 0))

    return change


def thick(mm: float) -> Change:
    def change(cta: nib.Nifti1Image, case: Case, rng: np.random.Generator) -> nib.Nifti1Image:
        factor = max(1, round(mm / float(np.linalg.norm(cta.affine[:3, 2]))))
        count = cta.shape[2] // factor
        values = np.asarray(cta.dataobj, dtype=np.float32)[..., : count * factor]
        values = values.reshape(*cta.shape[:2], count, factor).mean(3)
        affine = cta.affine @ np.diag([1, 1, factor, 1.0])
        affine[:3, 3] += cta.affine[:3, 2] * (factor - 1) / 2
        return nib.Nifti1Image(values, affine)

    return change


def motion(mm: float) -> Change:
    """The head moves sideways while the scanner passes from its base to its top."""

    def change(cta: nib.Nifti1Image, case: Case, rng: np.random.Generator) -> nib.Nifti1Image:
        z = _places(cta, case)[2][0, 0]
        values = np.asarray(cta.dataobj, dtype=np.float32)
        step = np.linalg.norm(cta.affine[:3, :3], axis=0)
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)]) / step[:2]
        moved = [
            ndimage.shift(values[..., k], mm * np.clip(z[k], -1, 1) * direction, order=1,
                          mode='nearest')
            for k in range(cta.shape[2])
        ]  # fmt: skip
        return nib.Nifti1Image(np.stack(moved, -1), cta.affine)

    return change


def unchanged(cta: nib.Nifti1Image, case: Case, rng: np.random.Generator) -> nib.Nifti1Image:
    return cta


#: In the order of what they were seen to cost, so that an interrupted run has the worst of them.
NUISANCES: dict[str, Change] = {
    'clean': unchanged,
    'shading 2 HU, left-right': shading(0, 2.0),
    'misregistration 1.5 mm, 1 degree': unchanged,
    'shading 1 HU, left-right': shading(0, 1.0),
    'shading 2 HU, front-back': shading(1, 2.0),
    'noise of 10 mm, 1 HU': structure(1.0, 10.0),
    'CTA of 5 mm': thick(THICK_MM),
    'shading 2 HU, top-base': shading(2, 2.0),
    'cupping 2 HU': cupping(2.0),
    'motion within the scan, 1.5 mm': motion(MOTION_MM),
    'offset 2 HU': offset(2.0),
    'contrast x 0.6': gain(0.6),
    'contrast x 1.3': gain(1.3),
    'double noise': white_noise(2.0),
}
#: What each nuisance may cost in Spearman's correlation and in AUC of the probability.
MAY_COST = {
    name: (0.015, 0.02) if name.startswith(('offset', 'contrast'))
    else (0.06, 0.04) if name.startswith('noise of') else (0.03, 0.02)
    for name in NUISANCES
}  # fmt: skip


def prepare(patient: Patient, spacing: float, folder: Path) -> Case:
    """Take a patient through the app's own steps; the folder must outlive the case."""
    for name in ('ncct', 'cta'):
        nib.save(getattr(patient, name), folder / f'{name}.nii.gz')
    conformed = pipeline.conform_ncct(folder / 'ncct.nii.gz', spacing=spacing)
    brain = ct.extract_brain(conformed.image, slice_mm=conformed.slice_mm).mask
    cta = ct.read_ct(folder / 'cta.nii.gz', role='CTA').image
    rigid = ct.register_cta(conformed.image, cta, brain, seed=1)
    warp = pipeline.align_template(conformed.image, brain, work_dir=folder)
    prepared = pipeline.Prepared(conformed.image, rigid.image, brain, warp.forward, warp.inverse)
    template = ct.load_template(spacing=pipeline.TEMPLATE_MM)
    truth = patient.truth
    return Case(
        patient, prepared, cta, rigid.matrix,
        ct.carry(ct.read_transform(warp.forward), ct.all_points(template.brain_mask)),
        np.asarray(resample_from_to(truth.delay, conformed.image, order=1).dataobj),
        np.asarray(resample_from_to(truth.brain, conformed.image, order=0).dataobj) > 0,
    )  # fmt: skip


def _moved(case: Case, rng: np.random.Generator) -> np.ndarray:
    """Return the start, off by a shift and a turn about the brain's centre."""
    mask = np.asarray(case.prepared.brain.dataobj) > 0
    centre = nib.affines.apply_affine(case.prepared.brain.affine, np.argwhere(mask).mean(0))
    shift, axis = (v / np.linalg.norm(v) for v in rng.standard_normal((2, 3)))
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec(np.radians(TURN_DEGREES) * axis).as_matrix()
    move[:3, 3] = MOVE_MM * shift + centre - move[:3, :3] @ centre
    return np.asarray(case.start @ move)


def compute(case: Case, name: str, variant: str, seed: int) -> dict[str, object]:
    """Return one row: the map of a patient with a nuisance, against the truth."""
    rng = np.random.default_rng([seed, list(NUISANCES).index(name)])
    cta = NUISANCES[name](case.cta, case, rng)
    grid = case.prepared.ncct
    start = _moved(case, rng) if name.startswith('misregistration') else case.start
    residual = float('nan')
    if variant == 'now':
        refined = ct.refine_rigid(grid, cta, case.prepared.brain, start)
        start, residual = refined.matrix, refined.residual
    aligned = nib.Nifti1Image(ct.resample(cta, grid.shape, start @ grid.affine), grid.affine)
    patient = replace(case.prepared, cta=aligned)
    settings = PerfusionSettings(reference_field='fitted' if variant == 'now' else 'none')
    maps = pipeline.compute_maps(patient, settings=settings, check=variant == 'now')
    inside = (np.asarray(patient.brain.dataobj) > 0) & case.known
    delay = case.delay[inside]
    late = delay > HYPOPERFUSED
    values, probability = (
        np.asarray(image.dataobj)[inside] for image in (maps.perfusion, maps.hypoperfused)
    )
    voxel = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
    enough = voxel * int(late.sum()) > LEAST_ML
    found, sides, (arteries, sinuses) = _read_out(case, maps, voxel)
    reason = perfusion.withhold(found, sides, maps.trust.others) if variant == 'now' else ''
    if maps.inflow.unusual:
        reason = 'unusual contrast'
    elif maps.inflow.is_late:
        reason = 'late scan'
    return {
        'seed': seed,
        'nuisance': name,
        'variant': variant,
        'site': case.patient.occlusion.site,
        'side': {'L': 'left', 'R': 'right'}[case.patient.occlusion.side],
        'phase': case.patient.scan['phase'],
        'thickness': case.patient.scan['ncct_thickness'],
        'rho': spearman(values, delay),
        'auc': float(roc_auc_score(late, probability)) if enough else np.nan,
        'within': spearman(values[late], delay[late]) if enough else np.nan,
        'ml': sum(sides),
        'left': sides[0],
        'right': sides[1],
        'true ml': voxel * int(late.sum()),
        'found site': found.site,
        'found side': found.side,
        'confidence': found.confidence,
        'reason': reason,
        'others': [f'{o.condition}: {o.side} {o.site}' for o in maps.trust.others],
        'residual': residual,
        'arteries': arteries,
        'sinuses': sinuses,
        **maps.trust.shading,
    }


def _read_out(
    case: Case, maps: pipeline.Maps, voxel: float
) -> tuple[perfusion.OcclusionFinding, tuple[float, float], tuple[float, float]]:
    """Return the likely occlusion, hypoperfused mL of both sides, HU of arteries and sinuses."""
    template = ct.load_template(spacing=pipeline.TEMPLATE_MM).brain_mask
    shape, affine = template.shape, template.affine
    (mask,) = ct.sample([case.prepared.brain], case.there, order=0)
    brain = (mask.reshape(shape) > 0) & (np.asarray(template.dataobj) > 0)
    probability, level = (
        values.reshape(shape)
        for values in ct.sample([maps.hypoperfused, maps.subtraction], case.there)
    )
    found = perfusion.find_occlusion(
        perfusion.evidence(np.where(brain, probability, 0), level, brain, affine)
    )
    late = brain & (probability > perfusion.calibration()['threshold'])
    own = np.asarray(case.prepared.brain.dataobj) > 0
    scale = voxel * own.sum() / max(int(brain.sum()), 1)
    right = affine[0, 0] * np.arange(shape[0]) + affine[0, 3] > 0
    volumes = (scale * int(late[~right].sum()), scale * int(late[right].sum()))
    return found, volumes, perfusion.measure_phase(level, affine)


def measure(
    patient: Patient, spacing: float, seed: int, variants: list[str]
) -> Iterator[dict[str, object]]:
    """Return the rows of one patient."""
    with tempfile.TemporaryDirectory() as folder:
        case = prepare(patient, spacing, Path(folder))
        for name in NUISANCES:
            for variant in variants:
                yield compute(case, name, variant, seed)


def summary(rows: pd.DataFrame) -> str:
    """Return the table, in Markdown: each nuisance by both variants, paired with clean."""
    lines = [
        '| nuisance (n) | variant | Spearman (fall; may) | AUC (fall; may) | inside '
        '| mean error, mL | open: mean (largest) mL | open: named | shut: named, right '
        '| against mL | doubtful |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for name in NUISANCES:
        for variant in ('without', 'now'):
            part = rows[(rows.nuisance == name) & (rows.variant == variant)].set_index('seed')
            if part.empty:
                continue
            clean = rows[(rows.nuisance == 'clean') & (rows.variant == variant)]
            clean = clean.set_index('seed').loc[part.index]
            fall = [(clean[k] - part[k]).mean() for k in ('rho', 'auc')]
            may = MAY_COST[name]
            named = (part['found site'] != 'none') & (part.reason == '')
            open_, shut = part.site == 'none', part.site != 'none'
            sided = named & part['found side'].isin(['left', 'right'])
            against = sided & np.where(
                part['found side'] == 'left',
                part.right > part.left + 1,
                part.left > part.right + 1,
            )
            right = (
                named
                & (part['found site'] == part.site.map(CALLED))
                & ((part['found side'] == part.side) | (part['found side'] == 'n/a'))
            )
            doubtful = (part.get('shading_applied', 0) > 1) | (part.residual > 0.5)
            lines.append(
                f'| {name} ({len(part)}) | {variant} | '
                f'{part.rho.mean():.3f} ({fall[0]:+.3f}; {may[0]}) | '
                f'{part.auc.mean():.3f} ({fall[1]:+.3f}; {may[1]}) | '
                f'{part.within.mean():.2f} | {(part.ml - part["true ml"]).abs().mean():.1f} | '
                f'{part.ml[open_].mean():.1f} ({part.ml[open_].max():.0f}) | '
                f'{named[open_].sum()} of {open_.sum()} | '
                f'{named[shut].sum()}, {right[shut].sum()} of {shut.sum()} | '
                f'{against.sum()} | {doubtful.sum() if variant == "now" else ""} |'
            )
    return '\n'.join(lines)


#: What each site of the phantom is called by the finder.
CALLED = {
    'ICA': 'ICA', 'M1': 'M1', 'M2sup': 'M2', 'M2inf': 'M2', 'A2': 'ACA', 'P1': 'PCA', 'P2': 'PCA',
    'BA': 'BA',
}  # fmt: skip


def run(options: argparse.Namespace, draw: Callable[..., Patient]) -> None:
    """Measure patients, add rows to a file, and print the table."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    if options.rows and options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    done = {row['seed'] for row in rows}
    for seed in range(options.seed, options.seed + options.patients):
        if seed in done:
            continue
        patient = draw(seed, options.spacing, site='none' if seed % 3 == 0 else None)
        for row in measure(patient, options.spacing, seed, options.variants):
            rows.append(row)
            if options.rows:
                with options.rows.open('a') as stream:
                    stream.write(json.dumps(row, default=float) + '\n')
    print(summary(pd.DataFrame(rows)))
