"""Agreement of the computed perfusion map with the true delay of digital patients.

Each patient is made, saved, and taken through the app's own steps: conforming, brain, both
registrations, priors, sources, map. Spearman correlation with the true delay in the brain, the
same without what distance from the sources explains, the area under the curve for a delay above
6 s; beside the control (distance alone), the published recipe with and without its metric, and the
default with one step given by the truth (with the normalisation given, the priors are; the mirror
stays the app's own). Then the volume of hypoperfusion and its interval, the delay in seconds, the
site and side of the occlusion, and the sources: a voxel of them is wrong that has no artery within
3 mm. Scans later than 4 s after the arterial peak are reported apart, since they carry less of the
delay; `--phase` makes all scans so.

Seeds from 1000 on are held out: no weight was fitted on them.

With `--nuisances` the table of `nuisances.py` is printed instead: what errors of scanners and
movement cost, with and without what the app does against them.

Run: python benchmarks/perfusion.py [--patients 40] [--spacing 2] [--seed 1000] [--steps 10]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import nuisances
import numpy as np
import pandas as pd
import torch
from nibabel.processing import resample_from_to
from nuisances import CALLED
from scipy import ndimage

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.perfusion import PerfusionSettings
from bids_perfdeficit.perfusion.agreement import concordance, dice, measure_agreement, spearman
from bids_perfdeficit.perfusion.combination import Mirror
from bids_perfdeficit.perfusion.guards import TOLERANCE_ML
from bids_perfdeficit.perfusion.targets import LONGEST_S
from bids_perfdeficit.phantom.patient import HYPOPERFUSED, Patient, make_patient
from bids_perfdeficit.phantom.settings import Occlusion, PersonSettings, ScannerSettings

#: How often a site is drawn; large vessels as in thrombectomy registries, and open arteries.
SITES = {
    'none': 0.22, 'M1': 0.26, 'M2sup': 0.12, 'M2inf': 0.1, 'ICA': 0.14, 'A2': 0.05, 'P1': 0.03,
    'P2': 0.04, 'BA': 0.04,
}  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """What the map is computed from, (X, Y, Z) on the conformed grid."""

    ncct: nib.Nifti1Image
    cta: nib.Nifti1Image
    brain: np.ndarray
    priors: dict[str, np.ndarray]
    mirror: Mirror
    forward: Path
    sources: np.ndarray | None = None


def draw(
    seed: int,
    spacing: float,
    phase: float | None = None,
    site: str | None = None,
    person: PersonSettings | None = None,
    cta_kvp: int = 120,
) -> Patient:
    """Make one patient of a mix of occlusions, collaterals, phases and slice thicknesses."""
    rng = np.random.default_rng([seed, 77])
    drawn = str(rng.choice(list(SITES), p=list(SITES.values())))
    occlusion = Occlusion(
        site=drawn if site is None else site,
        side=str(rng.choice(['L', 'R'])),
        collaterals=float(rng.beta(2.5, 2.5)),
        position=float(rng.uniform(0, 0.7)),
        length=float(rng.uniform(5, 18)),
        onset_hours=float(rng.uniform(1, 10)),
    )
    thickness = float(rng.choice([spacing, 3.0, 5.0], p=[0.5, 0.25, 0.25]))
    scanner = ScannerSettings(ncct_thickness=max(thickness, spacing), phase=phase, cta_kvp=cta_kvp)
    return make_patient(seed, occlusion, spacing=spacing, scanner=scanner, person=person)


def array(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj, dtype=np.float32)


def template_priors(template: ct.Template) -> dict[str, np.ndarray]:
    shape, affine = template.brain_mask.shape, template.brain_mask.affine
    return {
        'inflow': perfusion.inflow_prior(shape, affine),
        'veins': perfusion.vein_prior(shape, affine),
        'white': array(template.white),
        'grey': array(template.grey),
    }


def process(patient: Patient, spacing: float, template: ct.Template, folder: Path) -> Scan:
    """Take a patient through the app's own steps; the folder must outlive the scan."""
    for name in ('ncct', 'cta'):
        nib.save(getattr(patient, name), folder / f'{name}.nii.gz')
    ncct = ct.conform(ct.read_ct(folder / 'ncct.nii.gz', role='NCCT'), spacing=spacing).image
    brain = ct.extract_brain(ncct).mask
    raw = ct.read_ct(folder / 'cta.nii.gz', role='CTA').image
    cta = ct.register_cta(ncct, raw, brain, seed=1).image
    warp = ct.register_template(ncct, brain, template, work_dir=folder, seed=1)
    affine = template.brain_mask.affine

    def to_patient(values: np.ndarray) -> np.ndarray:
        return array(ct.apply_transform(nib.Nifti1Image(values, affine), ncct, warp.inverse))

    def mirror(values: torch.Tensor) -> torch.Tensor:
        image = nib.Nifti1Image(np.ascontiguousarray(values.numpy().T), ncct.affine)
        there = array(ct.apply_transform(image, template.brain_mask, warp.forward))
        return torch.from_numpy(np.ascontiguousarray(to_patient(there[::-1].copy()).T))

    priors = {name: to_patient(values) for name, values in template_priors(template).items()}
    return Scan(ncct, cta, array(brain) > 0, priors, mirror, warp.forward)


def given(step: str, scan: Scan, patient: Patient, template: ct.Template) -> Scan:
    """Return the scan with one step, or all of them, given by the truth."""
    truth, grid = patient.truth, scan.ncct
    parts = dict(scan.__dict__)
    if step in ('registration', 'all'):
        moved = ct.resample(patient.cta, grid.shape, truth.ncct_to_cta @ grid.affine)
        parts['cta'] = nib.Nifti1Image(moved, grid.affine)
    if step in ('brain', 'all'):
        parts['brain'] = array(resample_from_to(truth.brain, grid, order=0)) > 0
    if step in ('normalisation', 'all'):
        index = np.indices(grid.shape, dtype=np.float32).reshape(3, -1).T
        points = truth.warp.inverse(
            (index @ grid.affine[:3, :3].T + grid.affine[:3, 3]).astype(np.float32)
        )
        affine = np.linalg.inv(template.brain_mask.affine)
        where = (points @ affine[:3, :3].T + affine[:3, 3]).T.reshape(3, *grid.shape)
        parts['priors'] = {
            name: ndimage.map_coordinates(values, where, order=1)
            for name, values in template_priors(template).items()
        }
    if step in ('veins', 'all'):
        parts['priors'] = parts['priors'] | {
            'veins': array(resample_from_to(truth.vein, grid, order=1))
        }
    if step in ('sources', 'all'):
        # The last of the open carotids and of the basilar.
        start = np.zeros(grid.shape, bool)
        inverse = np.linalg.inv(grid.affine)
        for segment in ('ICA-L', 'ICA-R', 'BA'):
            points = truth.points[truth.tree.nodes(segment)[-3:]]
            index = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
            start[tuple(index.T)] = True
        parts['sources'] = start
    return Scan(**parts)


def compute(
    scan: Scan, settings: PerfusionSettings
) -> tuple[perfusion.Sources | torch.Tensor, perfusion.PerfusionMaps]:
    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values.T))

    step = tuple(float(s) for s in scan.ncct.header.get_zooms()[2::-1])
    ncct, cta, brain = tensor(array(scan.ncct)), tensor(array(scan.cta)), tensor(scan.brain)
    priors = {name: tensor(values) for name, values in scan.priors.items()}
    enhancement = perfusion.enhance(ncct, cta, brain, step, settings=settings)
    tissues = {k: priors[k] for k in ('veins', 'white', 'grey')}
    reference = perfusion.fit_reference(ncct, enhancement.subtraction, brain, step, **tissues)
    enhancement = reference.correct(enhancement)
    sources: perfusion.Sources | torch.Tensor = perfusion.find_sources(
        enhancement.subtraction, enhancement.vesselness, priors['inflow'], brain, step,
        settings=settings,
    )  # fmt: skip
    if scan.sources is not None:
        sources = tensor(scan.sources)
    return sources, perfusion.synthesize(
        ncct, cta, brain, sources, step, mirror=scan.mirror, enhancement=enhancement,
        shading=reference.left, residual=reference.residual, settings=settings, **tissues,
    )  # fmt: skip


def wrong_sources(found: perfusion.Sources, patient: Patient, grid: nib.Nifti1Image) -> float:
    """Share of the sources' voxels without an artery within 3 mm."""
    artery = array(resample_from_to(patient.truth.artery, grid, order=1)) > 0.1
    far = ndimage.distance_transform_edt(~artery, sampling=grid.header.get_zooms()) > 3
    mask = found.mask.numpy().T
    return float(far[mask].mean())


def finding(
    maps: perfusion.PerfusionMaps, scan: Scan, patient: Patient, template: ct.Template,
    delay: np.ndarray, truth: np.ndarray,
) -> dict[str, object]:  # fmt: skip
    """Volume of hypoperfusion, site and side, beside the true ones."""
    affine = scan.ncct.affine

    def carry(values: torch.Tensor) -> np.ndarray:
        image = nib.Nifti1Image(np.ascontiguousarray(values.numpy().T), affine)
        return array(ct.apply_transform(image, template.brain_mask, scan.forward))

    brain = nib.Nifti1Image(scan.brain.astype(np.float32), affine)
    inside = array(ct.apply_transform(brain, template.brain_mask, scan.forward)) > 0.5
    inside &= array(template.brain_mask) > 0
    found = perfusion.find_occlusion(
        perfusion.evidence(
            carry(maps.hypoperfused), carry(maps.subtraction), inside, template.brain_mask.affine
        )
    )
    late_found = perfusion.calibration()['threshold'] < maps.hypoperfused.numpy().T
    late = (delay > HYPOPERFUSED) & truth
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    volume = voxel * np.count_nonzero(late_found)
    low, high = perfusion.volume_interval(volume, (voxel * maps.member_voxels.sum(1)).tolist())
    inside = scan.brain & truth
    seconds, spread = (k.numpy().T[inside] for k in (maps.delay, maps.delay_sd))
    true = delay[inside].clip(0, LONGEST_S)
    return {
        'found volume': volume,
        'true volume': voxel * np.count_nonzero(late),
        'low volume': low,
        'high volume': high,
        'delay error': np.abs(seconds - true).mean(),
        'delay bias': (seconds - true).mean(),
        'delay covered': (np.abs(seconds - true) < 1.645 * spread).mean(),
        'dice': np.nan_to_num(dice(late_found, late)),
        'reported site': found.site,
        'reported side': found.side,
        'confidence': found.confidence,
    }


def score(
    values: torch.Tensor, control: torch.Tensor, delay: np.ndarray, inside: np.ndarray
) -> dict[str, float]:
    """Agreement of one map with the true delay, where both are known."""
    x, d = (k.numpy().T[inside] for k in (values, control))
    found = measure_agreement(x, delay[inside], d)
    return {'rho': found.spearman, 'partial': found.partial, 'auc': found.auc}


def measure(
    make: Callable[[], Patient],
    spacing: float,
    template: ct.Template,
    *,
    steps: bool,
    published: bool = True,
) -> dict[str, object]:
    """Return one patient's row: who it is, and ``<map>.<measure>``."""
    begin = time.process_time()
    patient = make()
    made = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        scan = process(patient, spacing, template, Path(folder))
        ready = time.process_time()
        sources, maps = compute(scan, PerfusionSettings())
        results = {'default': maps}
        done = time.process_time()
        seconds = {'default': done - ready}
        recipes = {
            'published': PerfusionSettings(recipe='published'),
            'published, isotropic': PerfusionSettings(recipe='published', arrival='isotropic'),
        }
        for name, how in recipes.items() if published else ():
            begun = time.process_time()
            results[name] = compute(scan, how)[1]
            seconds[name] = time.process_time() - begun
        if steps:
            for step in ('registration', 'normalisation', 'brain', 'veins', 'sources', 'all'):
                results[f'{step} given'] = compute(
                    given(step, scan, patient, template), PerfusionSettings()
                )[1]
        delay = array(resample_from_to(patient.truth.delay, scan.ncct, order=1))
        truth = array(resample_from_to(patient.truth.brain, scan.ncct, order=0)) > 0
        reported = finding(maps, scan, patient, template, delay, truth)
    inside = scan.brain & truth
    row: dict[str, object] = {
        'seed': patient.seed,
        'site': patient.occlusion.site,
        'side': patient.occlusion.side,
        'phase': patient.scan['phase'],
        'thickness': patient.scan['ncct_thickness'],
        'volume': patient.truth.volumes['hypoperfused'],
        'seconds made': made - begin,
        'seconds': done - made,
        'wrong sources': wrong_sources(sources, patient, scan.ncct),
        **reported,
    }
    late = inside & (delay > HYPOPERFUSED)
    if late.sum() > 50:
        row['within'] = spearman(maps.perfusion.numpy().T[late], delay[late])
    row |= {f'seconds.{name}': value for name, value in seconds.items()}
    graded = score(maps.hypoperfused, maps.distance, delay, inside)
    row['probability.auc'] = graded['auc']
    for name, found in results.items():
        row |= {
            f'{name}.{key}': value
            for key, value in score(found.perfusion, found.distance, delay, inside).items()
        }
    control = score(maps.distance, maps.distance, delay, inside)
    row |= {'distance.rho': control['rho'], 'distance.auc': control['auc']}
    return row


def summary(rows: pd.DataFrame) -> str:
    """Return the tables, in Markdown."""
    maps = [c.removesuffix('.rho') for c in rows.columns if c.endswith('.rho')]
    lines = ['| map | patients | Spearman | partial | AUC |', '|---|---|---|---|---|']
    for name in maps:
        cells = []
        for key in ('rho', 'partial', 'auc'):
            values = rows.get(f'{name}.{key}', pd.Series(dtype=float)).dropna()
            cells.append(f'{values.mean():.3f} ({values.std():.3f})' if len(values) > 1 else '')
        lines.append(f'| {name} | {rows[f"{name}.rho"].notna().sum()} | {" | ".join(cells)} |')
    for label, part in (('phase < 4 s', rows[rows.phase < 4]), ('later', rows[rows.phase >= 4])):
        cells = [f'{part[f"default.{key}"].mean():.3f}' for key in ('rho', 'partial', 'auc')]
        lines.append(f'| default, {label} | {len(part)} | {" | ".join(cells)} |')
    for name in (m for m in maps if m.endswith(' given')):
        change = [(rows[f'{name}.{k}'] - rows[f'default.{k}']).mean() for k in ('rho', 'auc')]
        lines.append(f'| {name} less default, paired | | {change[0]:+.3f} | | {change[1]:+.3f} |')
    large = rows[rows['true volume'] > 20]
    lines += ['', '| hypoperfusion, site and sources | |', '|---|---|']
    agreement = concordance(rows['found volume'], rows['true volume'])
    held = rows['true volume'].between(rows['low volume'], rows['high volume'])
    shut = rows[rows.site != 'none']
    lateral = shut[shut.site != 'BA']
    side = lateral['reported side'] == lateral.side.map({'L': 'left', 'R': 'right'})
    site = shut['reported site'] == shut.site.map(CALLED)
    open_ones = rows[rows.site == 'none']
    site_of_open = open_ones['reported site']
    named = (site_of_open != 'none') & (open_ones['found volume'] >= TOLERANCE_ML)
    for what, value in (
        ('AUC of the probability', f'{rows["probability.auc"].mean():.3f}'),
        ('AUC of the probability, deficits over 20 mL', f'{large["probability.auc"].mean():.3f}'),
        ('Spearman of the map inside the deficit', f'{rows["within"].mean():.3f}'),
        ('AUC of the map, deficits over 20 mL', f'{large["default.auc"].mean():.3f}'),
        ("Lin's concordance of volumes", f'{agreement:.3f}'),
        ('volumes inside their 90 % interval', f'{held.mean():.3f}'),
        ('mean absolute error of the delay, s', f'{rows["delay error"].mean():.2f}'),
        ('mean computed less true delay, s', f'{rows["delay bias"].mean():+.2f}'),
        ('delays within 1.645 SD', f'{rows["delay covered"].mean():.3f}'),
        (f'median Dice over 20 mL ({len(large)})', f'{large.dice.median():.3f}'),
        (f'side right ({len(lateral)})', f'{side.mean():.3f}'),
        (f'site right ({len(shut)})', f'{site.mean():.3f}'),
        ('side right over 20 mL', f'{side[lateral["true volume"] > 20].mean():.3f}'),
        ('site right over 20 mL', f'{site[shut["true volume"] > 20].mean():.3f}'),
        (f'false alarms ({len(open_ones)})', f'{(site_of_open != "none").mean():.3f}'),
        ('the same with 1 mL hypoperfused or more', f'{named.mean():.3f}'),
        ('wrong sources', f'{rows["wrong sources"].mean():.3f}'),
    ):  # fmt: skip
        lines.append(f'| {what} | {value} |')
    lines += ['', f'CPU seconds a patient: {rows.seconds.median():.0f}; of them the maps:']
    for name in (c for c in rows.columns if c.startswith('seconds.')):
        lines.append(f'{name.removeprefix("seconds.")} {rows[name].median():.1f}')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--patients', type=int, default=40)
    parser.add_argument('--spacing', type=float, default=2.0, help='mm')
    parser.add_argument('--seed', type=int, default=1000, help='of the first patient')
    parser.add_argument('--steps', type=int, default=10, help='patients with steps given')
    parser.add_argument('--phase', type=float, help='of all scans, s after the arterial peak')
    parser.add_argument('--rows', type=Path, help='JSON lines to which patients are added')
    parser.add_argument(
        '--nuisances', action='store_true', help='errors of scanners and movement instead'
    )
    parser.add_argument(
        '--variants',
        nargs='+',
        choices=('without', 'now'),
        default=['without', 'now'],
        help='of the nuisances',
    )
    options = parser.parse_args()
    if options.nuisances:
        nuisances.run(options, draw)
        return
    torch.set_num_threads(1)
    template = ct.load_template('MNI152NLin2009aSym', spacing=2.0)
    rows: list[dict[str, object]] = []
    if options.rows and options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    done = {row['seed'] for row in rows}
    for k in range(options.patients):
        if options.seed + k in done:
            continue
        make = partial(draw, options.seed + k, options.spacing, options.phase)
        row = measure(make, options.spacing, template, steps=k < options.steps)
        rows.append(row)
        if options.rows:
            with options.rows.open('a') as stream:
                stream.write(json.dumps(row, default=float) + '\n')
    print(summary(pd.DataFrame(rows)))


if __name__ == '__main__':
    main()
