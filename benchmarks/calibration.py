"""What `calibrate` gains on a site whose physics the shipped weights have not seen.

Digital patients are drawn as in `perfusion.py`, with constants of the phantom changed: see
`PHYSICS`. `shipped` changes nothing, `development` was used to choose the strength of the priors,
`test` was not looked at before. The calibration is fitted to some patients, whose references are
the true delay with noise of 1 s and ends at 0 and 12 s, and measured on others against their true
delay, before and after. The registrations are given, as in `scripts/training_patients.py`, whose
functions measure the features; sources, brain and veins are the app's own.

Run: python benchmarks/calibration.py FOLDER [--physics test] [--pairs 10] [--others 20]
     [--seed 4000]; a second run in the same folder goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from evaluation import NOISE_S, TOP_S
from perfusion import draw
from scipy import ndimage

from bids_perfdeficit import ct, perfusion, pipeline
from bids_perfdeficit.perfusion.agreement import bootstrap_interval, concordance
from bids_perfdeficit.perfusion.occlusion import trunk_evidence
from bids_perfdeficit.perfusion.refit import Refit, measure_pair, shipped_weights
from bids_perfdeficit.phantom import flow, patient
from bids_perfdeficit.phantom.bolus import Bolus
from bids_perfdeficit.phantom.patient import Patient
from bids_perfdeficit.settings import DEFAULT_SPACE as SPACE

sys.path.insert(0, str(Path(__file__).parents[1] / 'scripts'))
import calibrate_perfusion
import training_patients as fit

#: Constants of `phantom.flow`, of the injection (`width`, s), and what is added to the CTA: noise
#: (HU) of a grain (mm).
PHYSICS: dict[str, dict[str, Any]] = {
    'shipped': {'flow': {}, 'width': 13.0, 'noise': (0.0, 6.0)},
    # Little blood in the tissue, of which white matter has more; a short injection.
    'development': {
        'flow': {'CBV_GREY': 3.4, 'CBV_WHITE': 2.2, 'MTT_GREY': 4.0, 'MTT_WHITE': 4.8},
        'width': 8.0,
        'noise': (0.7, 5.0),
    },
    # A long injection, slow passage through tissue, of which Tmax gains more, and grainy scans.
    'test': {
        'flow': {
            'CBV_GREY': 4.2, 'CBV_WHITE': 2.8, 'MTT_GREY': 4.6, 'MTT_WHITE': 6.6,
            'TMAX_SHARE': 0.45, 'AXIAL': 1.1,
        },
        'width': 22.0,
        'noise': (0.8, 7.0),
    },
}  # fmt: skip


@contextlib.contextmanager
def physics(name: str) -> Iterator[tuple[float, float]]:
    """Make patients of another physics; yields the noise that the CTA gets."""
    how = PHYSICS[name]
    with contextlib.ExitStack() as stack:
        for key, value in how['flow'].items():
            stack.enter_context(mock.patch.object(flow, key, value))
        stack.enter_context(
            mock.patch.object(patient, 'Bolus', partial(Bolus, width=how['width']))
        )
        yield how['noise']


def grainy(cta: nib.Nifti1Image, level: float, mm: float, seed: int) -> nib.Nifti1Image:
    """Add noise with a grain to the head."""
    if not level:
        return cta
    step = np.linalg.norm(cta.affine[:3, :3], axis=0)
    rng = np.random.default_rng([seed, 5])
    noise = ndimage.gaussian_filter(rng.standard_normal(cta.shape, dtype=np.float32), mm / step)
    values = np.asarray(cta.dataobj, np.float32)
    values = np.where(values > -900, values + level * noise / noise.std(), values)
    return nib.Nifti1Image(values.astype(np.float32), cta.affine)


def sample(seed: int, name: str, folder: Path) -> None:
    """Keep a sample of a patient."""
    target = folder / name / f'{seed}.npz'
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)

    def draw_other(seed: int) -> Patient:
        with physics(name) as noise:
            made = draw(seed, fit.SPACING)
        return replace(made, cta=grainy(made.cta, *noise, seed))

    with tempfile.TemporaryDirectory() as cache, mock.patch.object(fit, 'draw', draw_other):
        found = fit.recall(fit.measure(seed, Path(cache)))
    rng = np.random.default_rng([seed, 6])
    chosen = np.sort(rng.permutation(len(found['delay']))[: pipeline.SAMPLED])
    order = [found['names'].index(k) for k in perfusion.calibration()['features']]
    grid = ct.load_template(spacing=pipeline.TEMPLATE_MM).brain_mask
    mni = found['mni'].T[chosen].astype(float)
    there = np.rint(nib.affines.apply_affine(np.linalg.inv(grid.affine), mni)).astype(int)
    inside = ((there >= 0) & (there < grid.shape)).all(1)
    places = np.full(len(chosen), -1, np.int32)
    places[inside] = np.ravel_multi_index(tuple(there[inside].T), grid.shape)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = fit.LOW
    volume = len(found['delay']) * fit.SPACING**3 / 1000
    pipeline.Sample(
        found['features'][chosen][:, order].astype(np.float32),
        found['delay'][chosen].astype(np.float32),
        places,
        trunk_evidence(found['subtraction'].astype(float), affine),
        volume / len(chosen),
        calibrate_perfusion.outcome(found['site'], found['side']),
    ).save(target)


def as_measured(delay: np.ndarray, seed: int) -> np.ndarray:
    """Return a Tmax as software computes it: with noise, and with ends."""
    noise = np.random.default_rng([seed, 7]).normal(0, NOISE_S, delay.shape)
    return np.clip(delay + noise, 0, TOP_S).astype(np.float32)


def load(folder: Path, name: str, seeds: range, *, measured: bool) -> dict[str, pipeline.Sample]:
    """Return samples, with the Tmax that a site has or with the true delay."""
    found = {seed: pipeline.Sample.load(folder / name / f'{seed}.npz') for seed in seeds}
    return {
        f'sub-{seed}': replace(one, delay=as_measured(one.delay, seed)) if measured else one
        for seed, one in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--physics', choices=sorted(PHYSICS), default='test')
    parser.add_argument('--pairs', type=int, default=10)
    parser.add_argument('--others', type=int, default=20)
    parser.add_argument('--seed', type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    last = options.seed + options.pairs
    pairs, others = range(options.seed, last), range(last, last + options.others)
    for seed in (*pairs, *others):
        sample(seed, options.physics, options.folder)
        print(seed, file=sys.stderr, flush=True)
    found = pipeline.refit_pairs(
        load(options.folder, options.physics, pairs, measured=True), space=SPACE
    )
    print(f'### Physics {options.physics}: {len(pairs)} pairs, each left out in turn\n')
    print(left_out(found))
    if others:
        print(f'\n### {len(others)} others, against the true delay\n')
        print(on_others(found, load(options.folder, options.physics, others, measured=False)))


def left_out(found: Refit) -> str:
    """Return the comparison that decides, in Markdown."""
    lines = ['| measure | n | shipped | refitted | better in |', '|---' * 5 + '|']
    for row in pipeline.compare_calibrations(found).to_dict('records'):
        better = '' if pd.isna(row['better']) else f'{row["better"]}'
        lines.append(
            f'| {row["measure"]} | {row["n"]} | {row["before"]:.3f} | {row["after"]:.3f} | '
            f'{better} |'
        )
    lines += ['', *(f'- {part}: {"taken" if found.taken[part] else "kept as shipped"} ({why})'
                    for part, why in found.reasons.items())]  # fmt: skip
    lines.append(f'- threshold {found.weights.threshold:g}')
    return '\n'.join(lines)


def on_others(found: Refit, samples: dict[str, pipeline.Sample]) -> str:
    """Return what patients that had no part in it gain, in Markdown."""
    pairs = pipeline.make_pairs(samples, space=SPACE)
    tables = [
        pd.DataFrame([measure_pair(pair, weights) for pair in pairs]).astype(float)
        for weights in (shipped_weights(), found.weights, found.every)
    ]
    lines = [
        '| measure | n | shipped | as written | change (95 % interval) | all parts |',
        '|---' * 6 + '|',
    ]
    for measure in pipeline.COMPARED:
        one, two, every = (table[measure].to_numpy() for table in tables)
        known = np.isfinite(one)
        change = (two - one)[known]
        low, high = bootstrap_interval(change, seed=1)
        lines.append(
            f'| {measure} | {known.sum()} | {one[known].mean():.3f} | {two[known].mean():.3f} | '
            f'{change.mean():+.3f} ({low:+.3f} to {high:+.3f}) | {every[known].mean():.3f} |'
        )
    volumes = [concordance(t['found_ml'], t['reference_ml']) for t in tables]
    lines.append(
        f'| concordance of volumes | {len(pairs)} | {volumes[0]:.3f} | {volumes[1]:.3f} | '
        f'{volumes[1] - volumes[0]:+.3f} | {volumes[2]:.3f} |'
    )
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
