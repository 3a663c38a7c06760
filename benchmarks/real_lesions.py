"""Real lesions: through the command as a user runs it, with known substrates, and real scores.

``run`` makes BIDS trees of masks (links), of 131 lesions with a simulated score of known origin
and of 1,000 acute strokes with NIHSS total and mRS, with a shuffled copy of each score, runs
``bids_perfdeficit ... group --map-kind lesion`` on both and reports Dice, what was declared on
shuffled scores and outside the coverage, time and memory. ``substrates`` draws substrates of every
shape and scores on the 1,000 strokes (family ``lesions`` of `families.py`), and takes the 131 with
their own score and a shuffled one (``lesymap``); models and peers are those of `deficit.py`, whose
``table`` summarises the lines. ``predict`` compares held-out NIHSS total and mRS of the strokes
that have them: models, support vectors, a forest, age and volume, on the same patients and folds.
``treatments`` compares maps as they are given with maps that are denoised, and with all that is
done to computed maps, on the 131. ``coverage`` counts how much of the brain is left by the minimum
coverage.

DATA holds ``lesymap/`` and ``soop/`` (LESYMAP; Stroke Outcome Optimization Project, ds004889).

Run: python benchmarks/real_lesions.py {run,substrates,predict,treatments,coverage} DATA [...]
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
import torch
from deficit import numbers, run_models, table
from families import (
    Cohort,
    ItemSpec,
    Lesions,
    Space,
    lesion_cohort,
    read_lesions,
    seeds_of,
    template_brain,
)
from scipy import sparse, stats
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from bids_perfdeficit import deficit, pipeline
from bids_perfdeficit.bids import output_path
from bids_perfdeficit.bids.scales import make_measure
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


# --- known substrates


def read_strokes(data: Path, work: Path) -> Lesions:
    """Read the 1,000 strokes at 2 mm and on the grid of the group level; kept in `work`."""
    paths = sorted((data / 'soop/lesions').glob('*.nii.gz'))
    lattice = make_lattice(DEFAULT_SPACE, 4.0)
    fine = template_brain()
    stored = work / 'strokes.npz'
    if not stored.exists():
        stacked = deficit.stack(
            paths, [None] * len(paths), work / 'maps.npy', lattice=lattice, threshold=0.5
        )
        if stacked.dropped:
            raise RuntimeError(f'{len(stacked.dropped)} masks cannot be used')
        maps = np.zeros((len(paths), lattice.grid.n_voxels), np.float32)
        maps[:, stacked.grid.mask[lattice.grid.mask]] = stacked.values
        np.save(work / 'strokes.npy', maps)
        sparse.save_npz(stored, read_lesions(paths, fine))
    coarse = Space(lattice.grid.mask, lattice.grid.affine)
    if not np.array_equal(lattice.fine.mask, fine.mask):
        raise RuntimeError('the template of the scores is not that of the maps')
    return Lesions(
        fine, sparse.load_npz(stored), coarse, np.load(work / 'strokes.npy'), lattice.weights
    )


def cohort_131(data: Path, work: Path) -> Cohort:
    """Return the 131 with their score at deciles and a shuffled copy."""
    masks, scores = read_131(data)
    lattice = make_lattice(DEFAULT_SPACE, 4.0)
    stacked = deficit.stack(
        masks, [None] * len(masks), work / 'maps-131.npy', lattice=lattice, threshold=0.5,
        min_coverage=COVERAGE,
    )  # fmt: skip
    cuts = np.quantile(-scores, np.linspace(0, 1, 11)[1:-1])
    levels = np.searchsorted(cuts, -scores).astype(float)
    shuffled = np.random.default_rng(7).permutation(levels)
    truth = truth_on(data, lattice.grid)[lattice.grid.mask]
    return Cohort(
        Space(stacked.grid.mask, stacked.grid.affine), np.asarray(stacked.values),
        np.stack([levels, shuffled], 1), (ItemSpec('score', 10), ItemSpec('shuffled', 10)),
        {'score': truth}, given=True, truth_space=Space(lattice.grid.mask, lattice.grid.affine),
    )  # fmt: skip


def substrates(arguments: argparse.Namespace, work: Path) -> None:
    """Fit models and peers to scores of known origin and append a line for each item."""
    settings = DeficitSettings(as_given=True)
    own = [(None, None)] if arguments.own else []
    seeds = arguments.seeds or seeds_of(arguments.set, 'lesions')[: arguments.cohorts]
    wanted = own or [(n, seed) for n in arguments.n for seed in seeds]
    lesions = None if arguments.own else read_strokes(arguments.data, work)
    with Path(arguments.out).open('a') as stream:
        for n, seed in wanted:
            if lesions is None:
                cohort = cohort_131(arguments.data, work)
                common = {'family': 'lesymap', 'link': 'own', 'n': 131, 'seed': 0, 'set': 'real'}
            else:
                cohort = lesion_cohort(lesions, n, seed)
                common = {'family': 'lesions', 'link': 'shapes', 'n': n, 'seed': seed}
                common['set'] = 'named' if arguments.seeds else arguments.set
            rows = run_models(cohort, arguments.models, settings, 0, common)
            stream.writelines(json.dumps(row) + '\n' for row in rows)
            stream.flush()
    table(argparse.Namespace(files=[arguments.out]))


# --- held-out prediction of real scores


#: Regions of the arterial atlas of the strokes' authors, besides the background.
ATLAS = 'soop/ArterialAtlas136.nii.gz'


def _atlas(data: Path, grid: Grid) -> np.ndarray:
    """Return the label of the atlas nearest to each voxel of a grid."""
    image = nib.load(data / ATLAS)
    index = np.linalg.solve(
        image.affine, np.c_[grid.coordinates, np.ones(grid.n_voxels)].T
    )[:3].T  # fmt: skip
    index = np.clip(np.rint(index).astype(int), 0, np.array(image.shape[:3]) - 1)
    return np.asarray(image.dataobj)[tuple(index.T)].astype(int)


def _learners(seed: int) -> dict[str, tuple[str, object]]:
    """Return the features and the estimator of each predictor that is not a deficit model."""
    support = GridSearchCV(
        make_pipeline(StandardScaler(), SVR(epsilon=0.2)),
        {'svr__C': [0.3, 1, 3, 10], 'svr__gamma': [0.003, 0.01, 0.03]}, cv=3,
    )  # fmt: skip
    trees = RandomForestRegressor(
        500, max_features=0.33, min_samples_leaf=5, random_state=seed, n_jobs=1
    )
    line = make_pipeline(StandardScaler(), LinearRegression())
    return {
        'volume': ('volume', line), 'age and sex': ('person', line),
        'age, sex and volume': ('person+volume', line),
        'support vectors': ('person+volume+components', support),
        'forest': ('person+volume+regions', trees),
    }  # fmt: skip


def _fit_learner(
    estimator, parts: list[str], blocks: dict[str, np.ndarray], y: np.ndarray,
    train: np.ndarray, test: np.ndarray, seed: int,
) -> np.ndarray:  # fmt: skip
    features = []
    for part in parts:
        block = blocks['maps' if part == 'components' else part]
        if part == 'components':  # learned on the training part alone
            pca = PCA(40, random_state=seed).fit(block[train])
            block = pca.transform(block)
        features.append(block)
    x = np.concatenate(features, 1)
    # a square root brings the long tail of the total nearer to its middle
    fitted = estimator.fit(x[train], np.sqrt(y[train]))
    return np.clip(fitted.predict(x[test]), 0, None) ** 2


def _interval(r: float, n: int, folds: int) -> tuple[float, float]:
    """Return the 95 % interval of a held-out r; see `deficit.validation.corrected_interval`."""
    half = 1.96 * np.sqrt((1 + folds / (folds - 1)) / (n - 3))
    return tuple(np.tanh(np.arctanh(r) + sign * half) for sign in (-1, 1))


def predict(arguments: argparse.Namespace, work: Path) -> None:
    """Predict NIHSS total and mRS of the strokes, the same folds for everyone."""
    data, folds, repeats = arguments.data, arguments.folds, arguments.repeats
    people = pd.read_csv(data / 'soop/participants.tsv', sep='\t', dtype=str, na_filter=False)
    people = people.set_index('participant_id')
    paths = {p.name.split('_')[0]: p for p in sorted((data / 'soop/lesions').glob('*.nii.gz'))}
    settings = DeficitSettings(as_given=True)
    lattice = make_lattice(DEFAULT_SPACE, 4.0)
    print('| score, n | predictor | r | 95 % | rank r | mean error | r less age, sex and volume |')
    print('|---|---|---|---|---|---|---|')
    for name in arguments.scores:
        values = pd.to_numeric(people[name], errors='coerce').reindex(list(paths)).dropna()
        measure = make_measure(name, values)
        item = Item(name, measure.levels, None, measure.values)
        levels = measure.level(values).to_numpy()
        stacked = deficit.stack(
            [paths[i] for i in values.index], [None] * len(values), work / f'{name}.npy',
            lattice=lattice, threshold=0.5, min_coverage=COVERAGE,
        )  # fmt: skip
        if len(stacked.measures) != len(values):
            raise RuntimeError('masks were dropped')
        maps, volume = np.asarray(stacked.values), stacked.measures['total_deficit_volume']
        own = people.loc[values.index]
        age = pd.to_numeric(own['age'].str.rstrip('+'), errors='coerce')
        person = np.c_[age.fillna(age.mean()), age.isna(), own['sex'] == 'F', own['sex'] == 'n/a']
        person = person[:, person.std(0) > 0].astype(float)
        covariates = np.c_[person, volume]
        region = _atlas(data, stacked.grid)
        blocks = {
            'person': person, 'maps': maps, 'volume': np.log1p(volume.to_numpy())[:, None],
            'regions': np.stack([maps[:, region == r].mean(1) for r in np.unique(region)], 1),
        }  # fmt: skip
        prepared = deficit.prepare(maps, stacked.grid, settings)
        cohort = pipeline.match_cohort(
            stacked.measures, list(values.index), [item], levels[:, None], covariates,
            values=values.to_numpy()[:, None],
        )  # fmt: skip
        y, expected, assignments = values.to_numpy(), {}, []
        for model in arguments.models:
            parts = [
                pipeline.validate_fold(prepared, cohort, model, settings, folds=folds, fold=f)
                for f in range(folds * repeats)
            ]
            merged = pipeline.merge_validation(parts, cohort, model)
            expected[model] = merged.probabilities[:, 0, : item.levels] @ item.scale
            expected['territories'] = (
                merged.baselines['territories'][:, 0, : item.levels] @ item.scale
            )
            assignments = [(part.repeat, part.rows) for part in parts]
        for predictor, (blocks_of, estimator) in _learners(settings.seed).items():
            sums = np.zeros(len(y))
            for _, test in assignments:
                train = np.setdiff1d(np.arange(len(y)), test)
                sums[test] += _fit_learner(
                    estimator, blocks_of.split('+'), blocks, y, train, test, settings.seed
                )
            expected[predictor] = sums / repeats
        rng = np.random.default_rng(0)
        drawn = rng.integers(len(y), size=(2000, len(y)))
        base = expected['age, sex and volume']
        for predictor, guess in expected.items():
            r = float(np.corrcoef(guess, y)[0, 1])
            low, high = _interval(r, len(y), folds)
            gaps = [np.corrcoef(guess[d], y[d])[0, 1] - np.corrcoef(base[d], y[d])[0, 1]
                    for d in drawn]  # fmt: skip
            gap = r - float(np.corrcoef(base, y)[0, 1])
            half = 1.96 * np.std(gaps) * np.sqrt(1 + folds / (folds - 1))
            print(
                f'| {name}, {len(y)} | {predictor} | {r:.3f} | {low:.3f} to {high:.3f} '
                f'| {stats.spearmanr(guess, y)[0]:.3f} | {np.abs(guess - y).mean():.2f} '
                f'| {gap:+.3f} ({gap - half:+.3f} to {gap + half:+.3f}) |', flush=True,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('run', 'substrates', 'predict', 'treatments', 'coverage'))
    parser.add_argument('data', type=Path)
    parser.add_argument('--work', type=Path, help='a folder to keep (default: a temporary one)')
    parser.add_argument('--models', nargs='+', default=list(MODELS))
    parser.add_argument('--set', default='development', choices=('development', 'held_out'))
    parser.add_argument('--cohorts', type=int, default=5, help='of the seeds of the set')
    parser.add_argument('--seeds', type=numbers, help='seeds as 100-104, instead of a set')
    parser.add_argument('--n', type=int, nargs='+', default=[300])
    parser.add_argument('--own', action='store_true', help='substrates: the 131 and their score')
    parser.add_argument('--scores', nargs='+', default=['nihss', 'gs_rankin_6isdeath'])
    parser.add_argument('--folds', type=int, default=5)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--out', default='real_lesions.jsonl')
    arguments = parser.parse_args()
    arguments.data = arguments.data.absolute()
    torch.set_num_threads(1)
    work = arguments.work or Path(tempfile.mkdtemp(prefix='real-lesions-'))
    work.mkdir(exist_ok=True)
    try:
        if arguments.what in ('substrates', 'predict'):
            {'substrates': substrates, 'predict': predict}[arguments.what](arguments, work)
        else:
            {'run': run, 'treatments': treatments, 'coverage': coverage}[arguments.what](
                arguments.data, work
            )
    finally:
        if arguments.work is None:
            shutil.rmtree(work)


if __name__ == '__main__':
    main()
