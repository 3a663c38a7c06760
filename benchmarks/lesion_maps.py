"""Real lesions through the group level, as a user runs it, and what is done to binary maps.

``run`` makes BIDS trees of masks (links), of 131 lesions with a simulated score of known origin
and of 1,000 acute strokes with NIHSS total and mRS, with a shuffled copy of each score, runs
``bids_perfdeficit ... group --map-kind lesion`` on both and reports Dice, what was declared on
shuffled scores and outside the coverage, time and memory. ``treatments`` compares maps as they are
given with maps that are denoised, and with all that is done to computed maps, on the 131.
``coverage`` counts how much of the brain is left by the minimum coverage.

DATA holds ``lesymap/`` and ``soop/`` (LESYMAP; Stroke Outcome Optimization Project, ds004889).

Run: python benchmarks/lesion_maps.py {run,treatments,coverage} DATA [--work DIR]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd

from bids_perfdeficit import deficit
from bids_perfdeficit.bids import output_path
from bids_perfdeficit.deficit import DeficitSettings, Grid, Item, preparation
from bids_perfdeficit.deficit.stacking import _lay_over
from bids_perfdeficit.pipeline import make_lattice
from bids_perfdeficit.settings import DEFAULT_SPACE

#: Label of the parcel that the score of the 131 was simulated from.
PARCEL = 101
#: Participants that both the command and the comparison ask for in a voxel.
COVERAGE = 0.01
MODELS = ('spatial', 'ridge', 'voxelwise')


def make_tree(root: Path, masks: dict[str, Path], table: pd.DataFrame, names: list[str]) -> None:
    """Link masks into a dataset and write its table, with a shuffled copy of some scores."""
    rng = np.random.default_rng(7)
    for label, mask in masks.items():
        name = f'sub-{label}_space-{DEFAULT_SPACE}_label-lesion_mask.nii.gz'
        link = root / 'lesions' / f'sub-{label}' / 'anat' / name
        link.parent.mkdir(parents=True)
        link.symlink_to(mask)
    for name in names:
        known = np.flatnonzero(table[name] != 'n/a')
        shuffled = table[name].copy()
        shuffled.iloc[known] = table[name].iloc[rng.permutation(known)].to_numpy()
        table[f'shuffled_{name}'] = shuffled
    table.to_csv(root / 'participants.tsv', sep='\t', index=False)
    description = {'Name': root.name, 'BIDSVersion': '1.10.0'}
    (root / 'dataset_description.json').write_text(json.dumps(description))


def read_131(data: Path) -> tuple[list[Path], np.ndarray]:
    """Return masks and scores in the same order."""
    masks = sorted((data / 'lesymap/lesions').glob('*.nii.gz'))
    return masks, np.loadtxt(data / 'lesymap/behavior/behavior.txt')


def truth_on(data: Path, grid: Grid) -> np.ndarray:
    """Return the voxels of a volume that are mostly the parcel."""
    image = nib.load(data / 'lesymap/template/Parcellation_403areas.nii.gz')
    laid = _lay_over(image, Path('parcels'), grid)
    parcel = (np.asarray(image.dataobj) == PARCEL).astype(np.float32)
    return np.nan_to_num(laid.average(parcel)) >= 0.5


def overlap(declared: np.ndarray, truth: np.ndarray) -> str:
    """Return Dice and the share of false discoveries."""
    both = (declared & truth).sum()
    dice = 2 * both / max(declared.sum() + truth.sum(), 1)
    return f'{dice:.2f} | {1 - both / max(declared.sum(), 1):.2f}'


def command(root: Path, out: Path, *options: str) -> str:
    """Run the group level and return seconds and memory."""
    script = Path(sys.executable).with_name('bids_perfdeficit')
    start = time.monotonic()
    subprocess.run(
        [script, root, out, 'group', '--map-kind', 'lesion', '-d', root / 'lesions',
         '--model', *MODELS, '--nprocs', '2', '--omp-nthreads', '1', *options],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return f'{time.monotonic() - start:.0f} s | {peak:.1f}'


def report(name: str, out: Path, cost: str, data: Path | None = None) -> Iterator[str]:
    """Yield a row for each model and score of a run."""

    def path(key: str, **entities: str) -> Path:
        return output_path(out, key, space=DEFAULT_SPACE, res='4', **entities)

    mask = nib.load(path('group_mask'))
    inside = np.asarray(mask.dataobj) > 0
    people = pd.read_csv(path('group_cohort'), sep='\t')
    n = int((people['status'] == 'analysed').sum())
    for model in MODELS:
        summary = pd.read_csv(path('group_summary', model=model), sep='\t')
        metrics = pd.read_csv(path('group_metrics', model=model), sep='\t')
        for row in summary.itertuples():
            contrast = row.item.replace('_', '')
            entities = {'model': model, 'contrast': contrast}
            maps = path('group_statmap', **entities, stat='*')
            values = {m: np.asarray(nib.load(m).dataobj) for m in maps.parent.glob(maps.name)}
            stray = sum(int((v[~inside] != 0).sum()) for v in values.values())
            declared = values[path('group_statmap', **entities, stat='threshold')] != 0
            found = '| '
            if data is not None and row.item == 'score':
                grid = Grid(np.ones(mask.shape, bool), mask.affine)
                found = overlap(declared, truth_on(data, grid))
            own = metrics[(metrics['item'] == row.item) & (metrics['predictor'] == model)]
            predicted = pd.read_csv(path('group_predictions', model=model), sep='\t')
            predicted = predicted[predicted['item'] == row.item].dropna(subset='score')
            r = np.corrcoef(predicted['expected'], predicted['score'])[0, 1]
            yield (
                f'| {name}, {n} | {model} | {row.item} | {row.declared_ml:.1f} '
                f'| {row.p_value:.3f} | {found} | {stray} | {own["gain"].iloc[0]:+.3f} '
                f'| {r:.2f} | {cost} |'
            )


def run(data: Path, work: Path) -> None:
    """Run the command on both cohorts."""
    print(
        '| cohort, n | model | score | declared mL | p | Dice | FDR | voxels outside coverage '
        '| gain over volume | held-out r | all models | GiB |'
    )
    print('|---|---|---|---|---|---|---|---|---|---|---|---|')
    masks, scores = read_131(data)
    labels = [f'{n + 1:03d}' for n in range(len(masks))]
    table = pd.DataFrame({'participant_id': [f'sub-{n}' for n in labels], 'score': scores})
    root, out = work / 'lesymap', work / 'lesymap-out'
    make_tree(root, dict(zip(labels, masks, strict=True)), table, ['score'])
    names = ['score', 'shuffled_score']
    cost = command(root, out, '--items', *names, '--higher-is-better', *names)
    print(*report('131 lesions', out, cost, data), sep='\n', flush=True)
    table = pd.read_csv(data / 'soop/participants.tsv', sep='\t', dtype=str, na_filter=False)
    found = {
        p.name.split('_')[0].removeprefix('sub-'): p
        for p in sorted((data / 'soop/lesions').glob('*.nii.gz'))
    }
    root, out = work / 'soop', work / 'soop-out'
    make_tree(root, found, table, ['nihss', 'gs_rankin_6isdeath'])
    cost = command(
        root, out, '--items', 'nihss', 'shuffled_nihss', 'gs_rankin_6isdeath',
        'shuffled_gs_rankin_6isdeath', '--covariates', 'age', 'sex',
    )  # fmt: skip
    print(*report('acute strokes', out, cost), sep='\n')


def treatments(data: Path, work: Path) -> None:
    """Compare what may be done to binary maps."""
    masks, scores = read_131(data)
    lattice = make_lattice(DEFAULT_SPACE, 4.0)
    stacked = deficit.stack(
        masks, [None] * len(masks), work / 'maps.npy', lattice=lattice, threshold=0.5,
        min_coverage=COVERAGE,
    )  # fmt: skip
    cuts = np.quantile(-scores, np.linspace(0, 1, 11)[1:-1])
    levels = np.searchsorted(cuts, -scores)[:, None].astype(float)
    truth = truth_on(data, lattice.grid)
    both = Grid((stacked.grid.mask | stacked.grid.mask[::-1]) & lattice.grid.mask,
                lattice.grid.affine)  # fmt: skip
    volumes = np.zeros((len(masks), *both.mask.shape), np.float32)
    volumes[:, stacked.grid.mask] = stacked.values
    given = DeficitSettings(as_given=True)
    print('| maps | model | Dice | FDR |\n|---|---|---|---|')
    for name, grid, maps, settings, clean in (
        ('as they are', stacked.grid, stacked.values, given, preparation.clean),
        ('denoised', stacked.grid, stacked.values, given, lambda m, g, _: g.denoise(m)),
        ('as computed maps, both sides', both, volumes[:, both.mask], DeficitSettings(),
         preparation.clean),
    ):  # fmt: skip
        with mock.patch.object(preparation, 'clean', clean):
            prepared = deficit.prepare(np.asarray(maps), grid, settings)
        for model in ('spatial', 'ridge'):
            fit = deficit.fit(
                prepared, levels, mask=grid, items=[Item('score', 10)], model=model,
                settings=settings,
            )  # fmt: skip
            declared = grid.embed(fit.declared[0]) > 0
            print(f'| {name} | {model} | {overlap(declared, truth)} |', flush=True)


def coverage(data: Path, work: Path) -> None:
    """Count the voxels that enough participants have lesioned."""
    lattice = make_lattice(DEFAULT_SPACE, 4.0)
    print(
        '| cohort, n | 1 | 5 | 1 % | 2 % | 5 % | most in a voxel |\n|---|---|---|---|---|---|---|'
    )
    for name in ('lesymap', 'soop'):
        masks = sorted((data / name / 'lesions').glob('*.nii.gz'))
        stacked = deficit.stack(
            masks, [None] * len(masks), work / 'maps.npy', lattice=lattice, threshold=0.5
        )
        n = len(stacked.measures)
        count = stacked.coverage[lattice.grid.mask] * n
        shares = [
            f'{(count >= k - 1e-3).mean():.0%}' for k in (1, 5, *np.array([1, 2, 5]) * n / 100)
        ]
        print(f'| {name}, {n} | {" | ".join(shares)} | {count.max() / n:.0%} |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('run', 'treatments', 'coverage'))
    parser.add_argument('data', type=Path)
    parser.add_argument('--work', type=Path, help='an empty folder (default: a temporary one)')
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix='lesion-maps-'))
    try:
        {'run': run, 'treatments': treatments, 'coverage': coverage}[arguments.what](
            arguments.data.absolute(), work
        )
    finally:
        if arguments.work is None:
            shutil.rmtree(work)


if __name__ == '__main__':
    main()
