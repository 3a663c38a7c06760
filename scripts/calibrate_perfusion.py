"""Fit the network behind the perfusion map, and the finder of occlusions, on digital patients.

The registrations are given, brain, sources and veins are the app's own. The network learns two
things of each voxel: the rank of its true delay plus a share of its seconds (the rank alone would
order healthy tissue and neglect the deficit, the seconds alone the reverse), and whether it is
hypoperfused. What the finder of occlusions sees, and the threshold of hypoperfusion, come from
networks that were fitted on other patients. Some patients more are scanned late. The benchmark's
seeds are others. Prints the accuracy in patients that were left out.

Run: python scripts/calibrate_perfusion.py --cache DIR [--patients 120] [--late 24]
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage
from scipy.optimize import minimize
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.data import load
from bids_perfdeficit.perfusion.combination import combine
from bids_perfdeficit.perfusion.occlusion import (
    MIDLINE,
    OPEN,
    OUTCOMES,
    SIDED,
    evidence,
    log_odds,
)
from bids_perfdeficit.phantom.patient import HYPOPERFUSED, Patient, make_patient
from bids_perfdeficit.phantom.settings import Occlusion, ScannerSettings

SPACING = 2.0
SITES = (
    'none', 'ICA', 'M1', 'M2sup', 'M2inf', 'A2', 'P2', 'BA', 'M1', 'M1', 'M2sup', 'M2inf',
)  # fmt: skip
#: Seeds from here on are scanned late, between so many seconds after the arterial peak.
LATE_SEED, LATE_PHASE = 500, (3.0, 7.0)
#: Seeds of more patients with open arteries: from here, every so many.
OPEN_SEED = 600
#: Delay beyond which seconds count no more, and seconds that weigh as much as all ranks.
LATEST, SECONDS = 12.0, 12.0
#: Units of the hidden layers, passes, voxels a patient and a step, learning rate, decay of the
#: weights, noise on the features, share of the second output in the loss, its steepness per s.
HIDDEN, PASSES, VOXELS, STEP = (24, 12), 8, 3000, 1024
RATE, DECAY, JITTER, SHARE, STEEP = 6e-3, 1e-3, 0.05, 0.3, 1.5
#: Folds of patients; without a common divisor with `SITES`, or whole sites would be left out.
FOLDS = 5
#: Grid of the template space, mm and voxels.
LOW, SHAPE = np.array([-98, -134, -72.0]), (99, 117, 95)
#: What each site of the phantom is called by the finder.
CALLED = {
    'none': 'none', 'ICA': 'ICA', 'M1': 'M1', 'M2sup': 'M2', 'M2inf': 'M2', 'A2': 'ACA',
    'P1': 'PCA', 'P2': 'PCA', 'BA': 'BA',
}  # fmt: skip
#: Penalty on the finder's weights.
PENALTY = 0.01
#: Weight of those with open arteries in the finder: alarms at the healthy cost trust.
OPEN_WEIGHT = 1.5


def draw(seed: int) -> Patient:
    rng = np.random.default_rng(seed)
    side = 'LR'[rng.integers(2)]
    thickness = [None, None, 3.0, 5.0][rng.integers(4)]
    occlusion = Occlusion(
        site=SITES[seed % len(SITES)],
        side=side,
        collaterals=float(rng.beta(3, 2.2)),
        position=float(rng.uniform(0, 0.6)),
        onset_hours=float(rng.uniform(1, 6)),
    )
    scanner = ScannerSettings(ncct_thickness=thickness)
    if LATE_SEED <= seed < OPEN_SEED:
        phase = float(np.random.default_rng([seed, 9]).uniform(*LATE_PHASE))
        scanner = replace(scanner, phase=phase)
    return make_patient(seed, occlusion, spacing=SPACING, scanner=scanner)


def patient_images(
    seed: int, cache: Path, make: Callable[[int], Patient] = draw
) -> dict[str, Any]:
    """Make a patient; return images, priors, truth and MNI coordinates on the conformed grid."""
    stored = cache / f'{seed}.npz'
    if stored.is_file():
        with np.load(stored) as found:
            images = {
                k: found[k].astype(np.float32) if found[k].dtype == np.float16 else found[k]
                for k in found.files
            }
        return images | json.loads(str(images.pop('meta')))
    template = ct.load_template('MNI152NLin2009aSym', spacing=2.0)
    patient = make(seed)
    truth = patient.truth
    with tempfile.TemporaryDirectory() as folder:

        def read(image: nib.Nifti1Image, role: str) -> ct.CTVolume:
            path = Path(folder, 'scan.nii.gz')
            nib.save(image, path)
            return ct.read_ct(path, role=role)

        ncct = ct.conform(read(patient.ncct, 'NCCT'), spacing=SPACING).image
        scans = {'cta': (patient.cta, truth.ncct_to_cta)}
        pairs = zip(patient.later, truth.ncct_to_later, strict=True)
        scans |= {f'cta_{number}': pair for number, pair in enumerate(pairs, 2)}
        ctas = {
            name: ct.resample(read(image, 'CTA').image, ncct.shape, motion @ ncct.affine)
            for name, (image, motion) in scans.items()
        }
        brain = ct.extract_brain(ncct).mask
    index = np.indices(ncct.shape).reshape(3, -1).T
    places = truth.warp.inverse(nib.affines.apply_affine(ncct.affine, index).astype(np.float32))
    mni = places.T.reshape(3, *ncct.shape)
    shape, affine = template.brain_mask.shape, template.brain_mask.affine
    where = np.moveaxis(
        nib.affines.apply_affine(np.linalg.inv(affine), np.moveaxis(mni, 0, -1)), -1, 0
    )
    priors = {
        'inflow': perfusion.inflow_prior(shape, affine),
        'veins': perfusion.vein_prior(shape, affine),
        'white': template.white.get_fdata(dtype=np.float32),
        'grey': template.grey.get_fdata(dtype=np.float32),
    }

    def known(image: nib.Nifti1Image, order: int) -> np.ndarray:
        return np.asarray(resample_from_to(image, ncct, order=order).dataobj)

    images = {
        'ncct': np.asarray(ncct.dataobj, dtype=np.float32),
        **ctas,
        'brain': np.asarray(brain.dataobj) > 0,
        'mni': mni,
        'delay': known(truth.delay, 1),
        'tbrain': known(truth.brain, 0) > 0,
        **{name: ndimage.map_coordinates(k, where, order=1) for name, k in priors.items()},
    }
    meta = {
        'site': patient.occlusion.site,
        'side': patient.occlusion.side,
        'phase': float(patient.scan['phase']),
    }
    small = {k: v.astype(np.float16) if v.dtype.kind == 'f' else v for k, v in images.items()}
    np.savez(stored, **small, meta=json.dumps(meta))
    return patient_images(seed, cache, make)  # as a later run will find them, rounded


def to_template(values: np.ndarray, inside: np.ndarray, mni: np.ndarray) -> np.ndarray:
    """Carry values to the 2 mm grid of the template."""
    index = np.rint((mni[:, inside].T - LOW) / 2).astype(int)
    kept = ((index >= 0) & (index < SHAPE)).all(1)
    total, count = np.zeros(SHAPE), np.zeros(SHAPE)
    np.add.at(total, tuple(index[kept].T), values[inside][kept])
    np.add.at(count, tuple(index[kept].T), 1)
    total, count = (ndimage.gaussian_filter(k, 0.7) for k in (total, count))
    level = total / np.maximum(count, 0.05)
    nearest = ndimage.distance_transform_edt(
        count <= 0.05, return_distances=False, return_indices=True
    )
    return np.asarray(level[tuple(nearest)], np.float32)


def mirrored(values: np.ndarray, inside: np.ndarray, mni: np.ndarray) -> np.ndarray:
    """Carry values to their mirrored position, by way of the template's grid."""
    out = np.zeros_like(values)
    there = (mni[:, inside].T * [-1, 1, 1] - LOW) / 2
    level = to_template(values, inside, mni)
    out[inside] = ndimage.map_coordinates(level, there.T, order=1, mode='nearest')
    return out


def measure(seed: int, cache: Path) -> dict[str, Any]:
    """Return the features, (V, F), the truth and the MNI coordinates of one patient."""
    torch.set_num_threads(1)
    images = patient_images(seed, cache)
    names = ('ncct', 'cta', 'brain', 'inflow', 'veins', 'white', 'grey')
    data = {k: torch.from_numpy(np.ascontiguousarray(images[k].T)) for k in names}
    step = (SPACING,) * 3
    level = perfusion.subtract(data['ncct'], data['cta'], data['brain'], step)
    sources = perfusion.find_sources(
        level, perfusion.vesselness(level, step), data['inflow'], data['brain'], step
    )

    def mirror(values: torch.Tensor) -> torch.Tensor:
        there = mirrored(values.numpy().T, images['brain'], images['mni'])
        return torch.from_numpy(np.ascontiguousarray(there.T.astype(np.float32)))

    found = perfusion.synthesize(
        data['ncct'], data['cta'], data['brain'], sources, step, veins=data['veins'],
        white=data['white'], grey=data['grey'], mirror=mirror,
    ).features  # fmt: skip
    inside = images['brain'] & images['tbrain']
    table = [
        values.numpy().T[inside] if values.ndim else np.full(inside.sum(), float(values))
        for values in found.values()
    ]
    wide = level.numpy().T
    return {
        'names': list(found),
        'features': np.stack(table, 1).astype(np.float16),
        'delay': images['delay'][inside],
        'mni': images['mni'][:, inside].astype(np.float16),
        'subtraction': to_template(wide, images['brain'] | (wide != 0), images['mni']),
        **{k: str(images[k]) if k != 'phase' else float(images[k]) for k in
           ('site', 'side', 'phase')},
    }  # fmt: skip


def fit_network(patients: list[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Return the network's part of the calibration."""
    rng = np.random.default_rng(seed)
    inputs, late, delays = [], [], []
    for patient in patients:
        chosen = rng.permutation(len(patient['delay']))[:VOXELS]
        delay = patient['delay']
        inputs.append(patient['features'][chosen].astype(np.float32))
        late.append((rankdata(delay) / len(delay) + np.clip(delay, 0, LATEST) / SECONDS)[chosen])
        delays.append(delay[chosen])
    x = torch.from_numpy(np.concatenate(inputs))
    target = torch.from_numpy(np.concatenate(late).astype(np.float32))
    affected = torch.sigmoid(STEEP * (torch.from_numpy(np.concatenate(delays)) - HYPOPERFUSED))
    centre, scale = x.mean(0), x.std(0) + 1e-6
    x = (x - centre) / scale
    torch.manual_seed(seed)
    sizes = (x.shape[1], *HIDDEN)
    layers: list[torch.nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], 2))
    rule = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
    steps = len(x) // STEP
    pace = torch.optim.lr_scheduler.OneCycleLR(rule, RATE, total_steps=PASSES * steps)
    for _ in range(PASSES):
        for part in torch.randperm(len(x))[: steps * STEP].reshape(-1, STEP):
            out = net(x[part] + JITTER * torch.randn(STEP, x.shape[1]))
            loss = (out[:, 0] - target[part]).square().mean()
            loss += SHARE * torch.nn.functional.binary_cross_entropy_with_logits(
                out[:, 1], affected[part]
            )
            rule.zero_grad()
            loss.backward()
            rule.step()
            pace.step()

    def rounded(values: torch.Tensor) -> list[Any]:
        return list(np.round(values.detach().numpy().astype(float), 4).tolist())

    return {
        'features': patients[0]['names'],
        'centre': rounded(centre),
        'scale': rounded(scale),
        'layers': [
            {'weight': rounded(layer.weight), 'bias': rounded(layer.bias)}
            for layer in net
            if isinstance(layer, torch.nn.Linear)
        ],
    }


def apply(fitted: dict[str, Any], patient: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Run a network on a patient's features."""
    found = {
        name: torch.from_numpy(patient['features'][:, k].astype(np.float32))
        for k, name in enumerate(patient['names'])
    }
    brain = torch.ones(len(patient['delay']), dtype=torch.bool)
    late, affected = combine(found, brain, fitted)
    return late.numpy(), affected.numpy()


def see(patient: dict[str, Any], affected: np.ndarray) -> np.ndarray:
    """What the finder of occlusions sees of a patient."""
    inside = np.ones(len(affected), bool)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = LOW
    mni = patient['mni'].astype(np.float32)
    index = np.rint((mni.T - LOW) / 2).astype(int)
    kept = ((index >= 0) & (index < SHAPE)).all(1)
    brain = np.zeros(SHAPE, bool)
    brain[tuple(index[kept].T)] = True
    there = to_template(affected, inside, mni)
    return evidence(there, patient['subtraction'], ndimage.binary_closing(brain), affine)


def fit_finder(seen: np.ndarray, outcomes: np.ndarray) -> dict[str, Any]:
    """Fit the finder of occlusions.

    Parameters
    ----------
    seen : ndarray, (N, 2, F)
    outcomes : int array, (N,)
        Index in `OUTCOMES`.
    """
    # Every patient counts twice, once as his own mirror image.
    sided = len(SIDED)
    swapped = np.where(outcomes < 2 * sided, (outcomes + sided) % (2 * sided), outcomes)
    seen = np.concatenate([seen, seen[:, ::-1]])
    outcomes = np.concatenate([outcomes, swapped])
    centre, scale = seen.mean((0, 1)), seen.std((0, 1)) + 1e-3
    rows, columns = sided + len(MIDLINE), 2 * seen.shape[2]

    def unpack(theta: np.ndarray) -> dict[str, Any]:
        return {
            'centre': centre, 'scale': scale, 'weights': theta[rows:].reshape(rows, columns),
            'bias': theta[:rows],
        }  # fmt: skip

    z = torch.from_numpy((seen - centre) / scale)
    here = torch.cat([z[:, 0], z[:, 1]], 1)
    there = torch.cat([z[:, 1], z[:, 0]], 1)
    truth = torch.from_numpy(outcomes)
    weight = torch.ones(len(OUTCOMES), dtype=torch.float64)
    weight[OPEN] = OPEN_WEIGHT

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(theta, requires_grad=True)
        weights, bias = free[rows:].reshape(rows, columns), free[:rows]
        odds = torch.cat([
            here @ weights[:sided].T + bias[:sided],
            there @ weights[:sided].T + bias[:sided],
            (here + there) / 2 @ weights[sided:].T + bias[sided:],
        ], 1)  # fmt: skip
        value = torch.nn.functional.cross_entropy(odds, truth, weight=weight)
        value = value + PENALTY * weights.square().sum() / 2
        value.backward()
        return float(value.detach()), free.grad.numpy()

    best = minimize(loss, np.zeros(rows + rows * columns), jac=True, method='L-BFGS-B').x
    return {k: np.round(v, 4).tolist() for k, v in unpack(best).items()}


def outcome(patient: dict[str, Any]) -> int:
    site = CALLED[patient['site']]
    side = 'n/a' if site in MIDLINE else {'L': 'left', 'R': 'right'}[patient['side']]
    return OUTCOMES.index((site, side))


def concordance(x: np.ndarray, y: np.ndarray) -> float:
    """Lin's concordance correlation."""
    return float(
        2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cache', type=Path, required=True, help='for the patients made')
    parser.add_argument('--patients', type=int, default=120)
    parser.add_argument('--late', type=int, default=24, help='patients scanned late')
    parser.add_argument('--open', type=int, default=24, help='more with open arteries')
    parser.add_argument('--seed', type=int, default=300, help='of the first patient')
    parser.add_argument('--processes', type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    seeds = [*range(options.seed, options.seed + options.patients)]
    seeds += range(LATE_SEED, LATE_SEED + options.late)
    seeds += range(OPEN_SEED, OPEN_SEED + options.open * len(SITES), len(SITES))
    with ProcessPoolExecutor(options.processes, mp_context=get_context('spawn')) as pool:
        patients = list(pool.map(measure, seeds, [options.cache] * len(seeds)))

    count = len(patients)
    fold = np.arange(count) % FOLDS
    rows, seen, volumes = [], [], []
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for k in range(FOLDS):
        fitted = fit_network([p for p, f in zip(patients, fold, strict=True) if f != k])
        for i in np.flatnonzero(fold == k):
            late, affected = apply(fitted, patients[i])
            delay = patients[i]['delay']
            true = delay > HYPOPERFUSED
            rows.append((i, np.corrcoef(rankdata(late), rankdata(delay))[0, 1],
                         roc_auc_score(true, late) if true.sum() > 50 else np.nan,
                         roc_auc_score(true, affected) if true.sum() > 50
                         else np.nan))  # fmt: skip
            seen.append((i, see(patients[i], affected)))
            pairs.append((true, affected))
            volumes.append(true.sum() * SPACING**3 / 1000)
    table = np.array(sorted(rows))
    early = np.array([p['phase'] < 4 for p in patients])
    print('Left out: Spearman, AUC, AUC of the probability; < 4 s, later')
    print(np.nanmean(table[early, 1:], 0).round(3), np.nanmean(table[~early, 1:], 0).round(3))

    true_ml = np.array(volumes)
    best = (-np.inf, 0.5)
    for threshold in np.arange(0.2, 0.81, 0.025):
        found = np.array([(p > threshold).sum() for _, p in pairs]) * SPACING**3 / 1000
        dice = np.array([
            2 * (t & (p > threshold)).sum() / max(t.sum() + (p > threshold).sum(), 1)
            for t, p in pairs
        ])  # fmt: skip
        agreement = concordance(found, true_ml)
        large = float(np.median(dice[true_ml > 20]))
        print(f'threshold {threshold:.3f}: concordance {agreement:.3f}, Dice {large:.3f}')
        best = max(best, (agreement + large, float(threshold)))

    looked = np.array([k for _, k in sorted(seen, key=lambda pair: pair[0])])
    outcomes = np.array([outcome(p) for p in patients])
    reported = np.empty(count, int)
    for k in range(FOLDS):
        finder = fit_finder(looked[fold != k], outcomes[fold != k])
        for i in np.flatnonzero(fold == k):
            reported[i] = int(log_odds(looked[i], finder).argmax())
    sided = len(SIDED)
    for name, part in (('< 4 s', early), ('later', ~early)):
        ill_ = part & (outcomes != OPEN)
        lateral = part & (outcomes < 2 * sided)
        side = (reported[lateral] < 2 * sided) & (
            reported[lateral] // sided == outcomes[lateral] // sided
        )
        open_ones = part & (outcomes == OPEN)
        print(
            f'{name}: outcome right {np.mean(reported[ill_] == outcomes[ill_]):.2f}, side right '
            f'{side.mean():.2f}, false alarms {np.mean(reported[open_ones] != OPEN):.2f} of '
            f'{open_ones.sum()}'
        )
    confusion = np.zeros((len(CALLED), 2 * sided + 2), int)
    for p, t in zip(patients, reported, strict=True):
        confusion[list(CALLED).index(p['site']), t if t >= 2 * sided else t % sided] += 1
    print([*SIDED, *MIDLINE])
    for name, row in zip(CALLED, confusion, strict=True):
        print(name, row[:sided], row[2 * sided :])

    final = fit_network(patients)
    final['threshold'] = round(best[1], 3)
    final['occlusion'] = fit_finder(looked, outcomes)
    final['provenance'] = {
        'Script': 'scripts/calibrate_perfusion.py',
        'Date': datetime.datetime.now(datetime.UTC).date().isoformat(),
        'Patients': options.patients,
        'FirstSeed': options.seed,
        'LatePatients': options.late,
        'OpenPatients': options.open,
        'Spacing': SPACING,
        'Targets': 'rank of the true delay plus its seconds (to 12 s) over 12; delay above 6 s',
    }
    path = load('perfusion_calibration.json')
    path.write_text(json.dumps(final) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
