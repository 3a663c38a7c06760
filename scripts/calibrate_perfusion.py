"""Fit the networks behind the perfusion map, and the finder of occlusions, on digital patients.

Several small networks, each with its own weights on the patients (a Bayesian bootstrap), learn
three things of each voxel: its lateness (`perfusion.targets`), whether it is hypoperfused, and its
delay in seconds. They see what a first network of the same kind found around the voxel; for each
patient that is one that was fitted on others. The patients of `training_patients` have three
physics and are scanned as made and disturbed. What the finder of occlusions sees, the threshold of
hypoperfusion and all errors come from networks that were fitted on other patients.

Prints the accuracy in patients that were left out, and, with each physics left out in turn, that
in patients whose physics the networks never saw; nothing is chosen on those.

Run: python scripts/calibrate_perfusion.py --cache DIR [--patients 180] [--late 24] [--open 36]
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import binary_closing, find_objects
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from scipy.stats import norm
from sklearn.covariance import LedoitWolf
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss, softplus
from training_patients import (
    BODY_SEED,
    LATE_SEED,
    LOW,
    OPEN_SEED,
    SHAPE,
    SITES,
    SPACING,
    Across,
    measure,
    recall,
    where_known,
)

from bids_perfdeficit.data import load
from bids_perfdeficit.perfusion import inflow_prior
from bids_perfdeficit.perfusion.agreement import concordance, correlations, roc_area, spearman
from bids_perfdeficit.perfusion.combination import combine, hidden_units
from bids_perfdeficit.perfusion.occlusion import (
    MIDLINE,
    OPEN,
    OUTCOMES,
    SIDED,
    evidence,
    log_odds,
    phase_ratio,
    squared_distance,
)
from bids_perfdeficit.perfusion.surroundings import surroundings
from bids_perfdeficit.perfusion.targets import LONGEST_S, hypoperfusion, lateness
from bids_perfdeficit.perfusion.volumes import volume_interval
from bids_perfdeficit.phantom.patient import HYPOPERFUSED
from bids_perfdeficit.phantom.settings import PHYSICS

#: Scans of each patient: as made, and disturbed.
VARIANTS = 4
#: Networks, units of their hidden layers, passes, voxels a step, learning rate, decay of the
#: weights, noise on the features.
MEMBERS, HIDDEN, PASSES, STEP = 3, (48, 24), 8, 2048
RATE, DECAY, JITTER = 6e-3, 1e-3, 0.05
#: Voxels of a scan; those of them with a delay of more than `LATE_S`, which only the delay in
#: seconds is fitted to: its order there is worst.
VOXELS, LATE_VOXELS, LATE_S = 3000, 600, 4.0
#: Share of the second and third output in the loss; s that count 1 in the third.
SHARE, DELAY_SHARE, DELAY_S = 0.4, 0.15, 3.0
#: Networks of the first look, whose outputs around a voxel the others see.
FIRST = 1
#: Folds of patients; without a common divisor with `SITES`, or whole sites would be left out.
FOLDS = 5
#: What each site of the phantom is called by the finder.
CALLED = {
    'none': 'none', 'ICA': 'ICA', 'M1': 'M1', 'M2sup': 'M2', 'M2inf': 'M2', 'A2': 'ACA',
    'P1': 'PCA', 'P2': 'PCA', 'BA': 'BA',
}  # fmt: skip
SIDES = {'L': 'left', 'R': 'right'}
#: Penalty on the finder's weights.
PENALTY = 0.001
#: Weights in the finder of open arteries, since alarms at the healthy cost trust, and of scans as
#: they were made: the disturbed ones outnumber them, and most scans are good.
OPEN_WEIGHT, MADE_WEIGHT = 1.8, 4.0
#: Thresholds of the probability that are tried.
THRESHOLDS = np.arange(0.2, 0.81, 0.025)
#: mL that are added to a volume before its logarithm is taken; level of its interval.
FLOOR_ML, LEVEL = 20.0, 0.9
#: Edges of the bins of computed delay, s, in which its error is measured.
DELAY_EDGES = (0.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
#: Share of patients whose evidence is as far from its class as the guard's limit, at most; phase,
#: s after the peak, from which a scan is late, and share of earlier ones that may be called so.
FAR_SHARE, LATE_FROM, EARLY_SHARE = 0.01, 3.0, 0.02

Fitted = dict[str, Any]
Scan = dict[str, Any]


def sample(scan: Scan) -> Scan:
    """Draw the voxels that are fitted; `everywhere` is 0 in those for the delay in seconds."""
    rng = np.random.default_rng([scan['seed'], scan['variant']])
    delay = scan['delay'].astype(np.float32)
    chosen = rng.permutation(len(delay))[:VOXELS]
    ill = rng.permutation(np.flatnonzero(delay > LATE_S))[:LATE_VOXELS]
    rows = np.concatenate([chosen, ill])
    kept = ('names', 'seed', 'variant', 'site', 'side', 'phase', 'physics', 'phase_contrast')
    return {
        **{k: scan[k] for k in kept},
        'features': scan['features'][rows],
        'late': lateness(delay)[rows],
        'delay': delay[rows],
        'everywhere': np.repeat(np.float32([1, 0]), [len(chosen), len(ill)]),
    }


def fit_networks(samples: list[Scan], members: int = MEMBERS, seed: int = 0) -> Fitted:
    """Return the networks' part of the calibration; all members are fitted at once."""
    data = {
        k: torch.from_numpy(np.concatenate([s[k] for s in samples]).astype(np.float32))
        for k in ('features', 'late', 'delay', 'everywhere')
    }
    patients = {s: k for k, s in enumerate(sorted({s['seed'] for s in samples}))}
    whose = torch.tensor([patients[s['seed']] for s in samples])
    whose = whose.repeat_interleave(torch.tensor([len(s['delay']) for s in samples]))
    x = data['features'].nan_to_num(0.0)
    centre, scale = x.mean(0), x.std(0) + 1e-6
    x = (x - centre) / scale
    affected = torch.from_numpy(hypoperfusion(data['delay'].numpy()))
    seconds = data['delay'].clamp(0, LONGEST_S)
    torch.manual_seed(seed)
    trust = torch.distributions.Exponential(1.0).sample((members, len(patients)))
    trust = trust / trust.mean(1, keepdim=True)
    sizes = (x.shape[1], *HIDDEN, 3)
    weights, biases = [], []
    for wide, narrow in itertools.pairwise(sizes):
        bound = wide**-0.5
        weights.append(((torch.rand(members, wide, narrow) * 2 - 1) * bound).requires_grad_())
        biases.append(((torch.rand(members, 1, narrow) * 2 - 1) * bound).requires_grad_())
    rule = torch.optim.AdamW([*weights, *biases], RATE, weight_decay=DECAY)
    steps = len(x) // STEP
    pace = torch.optim.lr_scheduler.OneCycleLR(rule, RATE, total_steps=PASSES * steps)
    for _ in range(PASSES):
        for part in torch.randperm(len(x))[: steps * STEP].reshape(-1, STEP):
            out = x[part] + JITTER * torch.randn(STEP, x.shape[1])
            out = out.expand(members, -1, -1)
            for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                out = torch.baddbmm(bias, out, weight)
                out = out.tanh() if k < len(HIDDEN) else out
            own = trust[:, whose[part]]
            wide_own = own * data['everywhere'][part]
            hit = affected[part].expand(members, -1)
            loss = (wide_own * (out[..., 0] - data['late'][part]).square()).mean()
            loss += SHARE * binary_cross_entropy_with_logits(out[..., 1], hit, wide_own)
            loss += DELAY_SHARE * (own * smooth_l1_loss(
                softplus(out[..., 2]) / DELAY_S, (seconds[part] / DELAY_S).expand(members, -1),
                reduction='none',
            )).mean()  # fmt: skip
            rule.zero_grad()
            (loss * members).backward()
            rule.step()
            pace.step()

    def rounded(values: torch.Tensor) -> list[Any]:
        return list(np.round(values.detach().numpy().astype(float), 4).tolist())

    return {
        'features': samples[0]['names'],
        'centre': rounded(centre),
        'scale': rounded(scale),
        'members': [
            {
                'layers': [
                    {'weight': rounded(w[k].T), 'bias': rounded(b[k, 0])}
                    for w, b in zip(weights, biases, strict=True)
                ]
            }
            for k in range(members)
        ],
    }


def apply(fitted: Fitted, scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the networks on a scan: all outputs of all members, (K, V) each."""
    order = [scan['names'].index(name) for name in fitted['features']]
    units = hidden_units(torch.from_numpy(scan['features'][:, order].astype(np.float32)), fitted)
    last = [member['layers'][-1] for member in fitted['members']]
    found = [
        own @ torch.tensor(layer['weight']).T + torch.tensor(layer['bias'])
        for own, layer in zip(units.chunk(len(last), 1), last, strict=True)
    ]
    late, odds, delay = np.moveaxis(torch.stack(found).numpy(), -1, 0)
    return late, odds, np.logaddexp(0, delay)


def see(scan: Scan, affected: np.ndarray) -> np.ndarray:
    """What the finder of occlusions sees of a scan."""
    mni = scan['mni'].astype(np.float32)
    across = Across.of(np.ones(len(affected), bool), mni)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = LOW
    index = across.index[across.index >= 0]
    brain = np.zeros(SHAPE, bool)
    brain.ravel()[index] = True
    return evidence(
        across.to_template(affected), scan['subtraction'].astype(float),
        binary_closing(brain), affine,
    )  # fmt: skip


@cache
def _inflow() -> cKDTree:
    """Where contrast enters the brain, MNI mm."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = LOW
    core = inflow_prior(SHAPE, affine) > 0.5
    return cKDTree(np.argwhere(core) * 2.0 + LOW)


def _above(odds: np.ndarray) -> np.ndarray:
    """Return how many voxels lie above each of `THRESHOLDS`."""
    edges = np.log(THRESHOLDS / (1 - THRESHOLDS))
    below = np.bincount(np.searchsorted(edges, odds), minlength=len(edges) + 1).cumsum()
    return np.asarray(len(odds) - below[:-1])


def judge(scan: Scan, fitted: Fitted, *, look: bool = True) -> dict[str, Any]:
    """Return a row of measures of one scan, with what the finder sees of it as ``seen``."""
    delay = scan['delay'].astype(float)
    outputs = apply(fitted, scan)
    late, odds, seconds = (k.mean(0) for k in outputs)
    probability = 1 / (1 + np.exp(-odds))
    true = delay > HYPOPERFUSED
    enough = true.sum() > 50
    ml = SPACING**3 / 1000
    above, above_true = _above(odds), _above(odds[true])
    away = _inflow().query(scan['mni'].astype(np.float32).T)[0]
    rho, partial_rho = correlations(late, delay, away)
    bins = np.digitize(seconds, DELAY_EDGES[1:-1])
    error = delay.clip(0, LONGEST_S) - seconds
    between = outputs[2].std(0)
    count = np.bincount(bins, minlength=len(DELAY_EDGES) - 1)
    square = np.bincount(bins, error**2 - between**2, minlength=len(DELAY_EDGES) - 1)
    return {
        **{k: scan[k] for k in ('seed', 'variant', 'site', 'side', 'phase', 'physics')},
        'rho': rho,
        'partial': partial_rho,
        'auc': roc_area(late, true) if enough else np.nan,
        'probability auc': roc_area(odds, true) if enough else np.nan,
        'within': spearman(late[true], delay[true]) if enough else np.nan,
        'delay within': spearman(seconds[true], delay[true]) if enough else np.nan,
        'delay rho': spearman(seconds, delay),
        'delay error': float(np.abs(error).mean()),
        'true ml': true.sum() * ml,
        'mls': above * ml,
        'dices': 2 * above_true / np.maximum(above + true.sum(), 1),
        'member mls': [_above(k) * ml for k in outputs[1]],
        'bins': (count, square),
        'seen': see(scan, probability) if look else None,
    }


def choose_threshold(rows: pd.DataFrame) -> int:
    """Return the index in `THRESHOLDS` with the best concordance and Dice together."""
    mls, dices = np.stack(rows['mls']), np.stack(rows['dices'])
    large = (rows['true ml'] > 20).to_numpy()
    merit = [
        concordance(mls[:, k], rows['true ml']) + float(np.nanmedian(dices[large, k]))
        for k in range(len(THRESHOLDS))
    ]
    return int(np.argmax(merit))


def fit_interval(rows: pd.DataFrame, k: int) -> float:
    """Return the standard deviation of the logarithm of a volume that gives `LEVEL` coverage."""
    z = norm.ppf(0.5 + LEVEL / 2)
    true = np.log(rows['true ml'] + FLOOR_ML)
    found = np.log(np.stack(rows['mls'])[:, k] + FLOOR_ML)
    each = np.stack([np.array(m)[:, k] for m in rows['member mls']])
    between = np.log(each + FLOOR_ML).std(1)
    off = np.abs(true - found) / z
    # The least a with off <= sqrt(a^2 + s^2) in `LEVEL` of the scans.
    need = np.sqrt(np.clip(off**2 - between**2, 0, None))
    return float(np.quantile(need, LEVEL))


def covered(rows: pd.DataFrame, k: int, spread: float) -> np.ndarray:
    """Whether the interval holds the true volume."""
    fitted = {'volume_interval': {'log_sd': spread, 'floor_ml': FLOOR_ML, 'level': LEVEL}}
    ends = np.array([
        volume_interval(ml[k], [each[k] for each in members], fitted)
        for ml, members in zip(rows['mls'], rows['member mls'], strict=True)
    ])  # fmt: skip
    return rows['true ml'].between(*ends.T).to_numpy()


def report(rows: pd.DataFrame, k: int, spread: float) -> str:
    """Return a table of measures, as made and disturbed, early and late."""
    lines = [
        '| scans | n | Spearman, partial | AUC | AUC of the probability '
        '| inside the deficit: map, delay '
        '| delay: mean error, s | volumes: concordance, median ratio | 90 % interval holds '
        '| Dice over 20 mL | open: mean mL |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    early = rows['phase'] < LATE_FROM
    for name, part in (
        ('early, as made', rows[early & (rows['variant'] == 0)]),
        ('early, disturbed', rows[early & (rows['variant'] > 0)]),
        ('late, as made', rows[~early & (rows['variant'] == 0)]),
        ('late, disturbed', rows[~early & (rows['variant'] > 0)]),
    ):
        if len(part) < 3:
            continue
        ml, true = np.stack(part['mls'])[:, k], part['true ml'].to_numpy()
        large = true > 20
        ratio = float(np.median(ml[large] / true[large])) if large.any() else np.nan
        open_ml = ml[part['site'] == 'none']
        lines.append(
            f'| {name} | {len(part)} | {part["rho"].mean():.3f}, '
            f'{part["partial"].mean():.3f} | {part["auc"].mean():.3f} '
            f'| {part["probability auc"].mean():.3f} '
            f'| {part["within"].mean():.2f}, {part["delay within"].mean():.2f} '
            f'| {part["delay error"].mean():.2f} | {concordance(ml, true):.3f}, {ratio:.2f} '
            f'| {covered(part, k, spread).mean():.2f} '
            f'| {np.nanmedian(np.stack(part["dices"])[large, k]):.3f} '
            f'| {open_ml.mean() if len(open_ml) else np.nan:.1f} |'
        )
    return '\n'.join(lines)


def fit_finder(seen: np.ndarray, outcomes: np.ndarray, trust: np.ndarray) -> Fitted:
    """Fit the finder of occlusions.

    Parameters
    ----------
    seen : ndarray, (N, 2, F)
    outcomes : int array, (N,)
        Index in `OUTCOMES`.
    trust : ndarray, (N,)
        Weight of each scan.
    """
    # Every patient counts twice, once as his own mirror image.
    sided = len(SIDED)
    swapped = np.where(outcomes < 2 * sided, (outcomes + sided) % (2 * sided), outcomes)
    seen = np.concatenate([seen, seen[:, ::-1]])
    outcomes = np.concatenate([outcomes, swapped])
    trust = np.concatenate([trust, trust]) * np.where(outcomes == OPEN, OPEN_WEIGHT, 1.0)
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
    weight = torch.from_numpy(trust / trust.sum())

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(theta, requires_grad=True)
        weights, bias = free[rows:].reshape(rows, columns), free[:rows]
        odds = torch.cat([
            here @ weights[:sided].T + bias[:sided],
            there @ weights[:sided].T + bias[:sided],
            (here + there) / 2 @ weights[sided:].T + bias[sided:],
        ], 1)  # fmt: skip
        value = weight @ torch.nn.functional.cross_entropy(odds, truth, reduction='none')
        value = value + PENALTY * weights.square().sum() / 2
        value.backward()
        return float(value.detach()), free.grad.numpy()

    best = minimize(loss, np.zeros(rows + rows * columns), jac=True, method='L-BFGS-B').x
    return {k: np.round(v, 4).tolist() for k, v in unpack(best).items()}


def outcome(site: str, side: str) -> int:
    """Return the index in `OUTCOMES` of what the phantom has."""
    called = CALLED[site]
    return OUTCOMES.index((called, 'n/a' if called in MIDLINE else SIDES[side]))


def class_distance(seen: np.ndarray, outcomes: np.ndarray, finder: Fitted) -> Fitted:
    """Return mean and precision of the evidence of each class, (C, 2 F) and (2 F, 2 F).

    Every scan counts twice, once as its own mirror image. Shrunken covariance, pooled (Ledoit &
    Wolf, J Multivar Anal 2004).
    """
    z = (seen - finder['centre']) / finder['scale']
    sided = len(SIDED)
    swapped = np.where(outcomes < 2 * sided, (outcomes + sided) % (2 * sided), outcomes)
    z = np.concatenate([z, z[:, ::-1]]).reshape(2 * len(z), -1)
    labels = np.concatenate([outcomes, swapped])
    means = np.stack([z[labels == c].mean(0) for c in range(len(OUTCOMES))])
    shrunk = LedoitWolf(assume_centered=True).fit(z - means[labels])
    return {'class_mean': means, 'class_precision': shrunk.precision_}


def look_again(path: Path, first: Fitted, folder: Path) -> None:
    """Write what lies around each voxel in the estimate of a first network."""
    scan = recall(path)
    known = where_known(path)
    (box,) = find_objects(known.astype(np.uint8))
    brain = torch.from_numpy(known[box])
    found = {}
    for name, values in zip(scan['names'], scan['features'].T, strict=True):
        grid = np.zeros(brain.shape, np.float32)
        grid[brain.numpy()] = values
        found[name] = torch.from_numpy(grid)
    # Tensors are (Z, Y, X) in the app; on an isotropic grid the order of the axes is the same.
    around = surroundings(combine(found, brain, first), brain, (SPACING,) * 3)
    columns = [
        values[brain] if values.ndim else values.expand(int(brain.sum()))
        for values in around.values()
    ]
    np.savez(
        folder / path.name, names=list(around),
        features=torch.stack(columns, 1).numpy().astype(np.float16),
    )  # fmt: skip


def recall_surrounded(path: Path, folder: Path) -> Scan:
    """Read a scan with what a first network found around its voxels."""
    scan = recall(path)
    with np.load(folder / path.name) as found:
        scan['names'] = [*scan['names'], *(str(k) for k in found['names'])]
        scan['features'] = np.concatenate([scan['features'], found['features']], 1)
    return scan


def sample_surrounded(path: Path, folder: Path) -> Scan:
    return sample(recall_surrounded(path, folder))


def judge_surrounded(path: Path, folder: Path, fitted: Fitted, look: bool) -> dict[str, Any]:
    return judge(recall_surrounded(path, folder), fitted, look=look)


@dataclass(frozen=True)
class Bench:
    """All scans, and the processes that work on them.

    Parameters
    ----------
    paths : list of Path
    samples : dict of Path to dict
        From `sample`, with the features of the scan alone.
    pool : ProcessPoolExecutor
    """

    paths: list[Path]
    samples: dict[Path, Scan]
    pool: ProcessPoolExecutor

    def spread(self, work: Callable[..., Any], paths: list[Path], **given: Any) -> list[Any]:
        """Call a function of a path and given values on all paths."""
        return list(self.pool.map(partial(work, **given), paths, chunksize=VARIANTS))

    def fold(self, path: Path) -> int:
        """Return the fold of a patient."""
        return self._folds[self.samples[path]['seed']]

    @cached_property
    def _folds(self) -> dict[int, int]:
        seeds = sorted({s['seed'] for s in self.samples.values()})
        return {s: k % FOLDS for k, s in enumerate(seeds)}

    def look(self, paths: list[Path], folder: Path) -> Fitted:
        """Write for each scan what first networks of other patients found; return one of all."""
        folder.mkdir(exist_ok=True)
        for k in range(FOLDS):
            own = [p for p in paths if self.fold(p) == k]
            others = [self.samples[p] for p in paths if self.fold(p) != k]
            self.spread(look_again, own, first=fit_networks(others, FIRST), folder=folder)
        return fit_networks([self.samples[p] for p in paths], FIRST)


def cross_validate(bench: Bench, folder: Path) -> pd.DataFrame:
    """Judge every scan by networks that were fitted on other patients."""
    samples = bench.spread(sample_surrounded, bench.paths, folder=folder)
    rows = []
    for k in range(FOLDS):
        fold = [bench.fold(path) == k for path in bench.paths]
        fitted = fit_networks([s for s, own in zip(samples, fold, strict=True) if not own])
        own = [p for p in bench.paths if bench.fold(p) == k]
        found = bench.spread(judge_surrounded, own, folder=folder, fitted=fitted, look=True)
        rows += [row | {'fold': k} for row in found]
        print(f'fold {k + 1} of {FOLDS}', flush=True)
    return pd.DataFrame(rows)


def _trust(rows: pd.DataFrame) -> np.ndarray:
    early = (rows['phase'] < LATE_FROM).to_numpy()
    return np.where((rows['variant'] == 0).to_numpy(), MADE_WEIGHT, 1.0) * early


def find_sites(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the outcome that is reported of each scan by a finder fitted on other patients.

    Also the squared distance of its evidence from that outcome.
    """
    seen, outcomes = np.stack(rows['seen']), rows['outcome'].to_numpy()
    trust = _trust(rows)
    reported, distance = np.empty(len(rows), int), np.empty(len(rows))
    for k in range(FOLDS):
        own = (rows['fold'] == k).to_numpy()
        finder = fit_finder(seen[~own], outcomes[~own], trust[~own])
        finder |= class_distance(seen[~own], outcomes[~own], finder)
        reported[own] = [int(log_odds(s, finder).argmax()) for s in seen[own]]
        distance[own] = [
            squared_distance(s, k, finder) for s, k in zip(seen[own], reported[own], strict=True)
        ]
    return reported, distance


def describe_sites(rows: pd.DataFrame, reported: np.ndarray) -> str:
    outcomes, sided = rows['outcome'].to_numpy(), len(SIDED)
    early = (rows['phase'] < LATE_FROM).to_numpy()
    made = (rows['variant'] == 0).to_numpy()
    lines = [
        '| scans | n | site and side right | side right | false alarms |',
        '|---|---|---|---|---|',
    ]
    for name, part in (
        ('early, as made', early & made), ('early, disturbed', early & ~made),
        ('late', ~early),
    ):  # fmt: skip
        shut, lateral = part & (outcomes != OPEN), part & (outcomes < 2 * sided)
        side = (reported < 2 * sided) & (reported // sided == outcomes // sided)
        open_ones = part & (outcomes == OPEN)
        lines.append(
            f'| {name} | {part.sum()} | {np.mean(reported[shut] == outcomes[shut]):.2f} '
            f'| {side[lateral].mean():.2f} '
            f'| {np.sum(reported[open_ones] != OPEN)} of {open_ones.sum()} |'
        )
    return '\n'.join(lines)


def leave_physics_out(bench: Bench, folder: Path) -> None:
    """Print the accuracy in patients of each physics by networks that saw the others only."""
    for physics in PHYSICS:
        own = [p for p in bench.paths if bench.samples[p]['physics'] == physics]
        others = [p for p in bench.paths if p not in own]
        first = bench.look(others, folder)
        bench.spread(look_again, own, first=first, folder=folder)
        samples = bench.spread(sample_surrounded, others, folder=folder)
        # Threshold and interval come from patients of the other physics, left out.
        half = set(sorted({bench.samples[p]['seed'] for p in others})[::2])
        kept = [p for p in others if bench.samples[p]['seed'] in half]
        fitted = fit_networks([s for s in samples if s['seed'] not in half])
        known = pd.DataFrame(
            bench.spread(judge_surrounded, kept, folder=folder, fitted=fitted, look=False)
        )
        k = choose_threshold(known[known['phase'] < LATE_FROM])
        spread = fit_interval(known[known['phase'] < LATE_FROM], k)
        fitted = fit_networks(samples)
        rows = pd.DataFrame(
            bench.spread(judge_surrounded, own, folder=folder, fitted=fitted, look=False)
        )
        print(f'\n{physics} left out (threshold {THRESHOLDS[k]:.3f}, spread {spread:.2f})\n')
        print(report(rows, k, spread), flush=True)


def fit_late(scans: list[Scan]) -> dict[str, float]:
    """Return the limit of `perfusion.is_late` that `EARLY_SHARE` of early scans exceed."""
    ratio = np.array([phase_ratio(*s['phase_contrast']) for s in scans])
    late = np.array([s['phase'] >= LATE_FROM for s in scans])
    made = np.array([s['variant'] == 0 for s in scans])
    limit = float(np.quantile(ratio[~late], 1 - EARLY_SHARE))
    for name, part in (('as made', made), ('disturbed', ~made)):
        print(f'late scans recognised, {name}: {np.mean(ratio[late & part] > limit):.2f}; '
              f'early ones: {np.mean(ratio[~late & part] > limit):.2f}')  # fmt: skip
    return {'limit': round(limit, 3)}


def sample_alone(path: Path) -> Scan:
    return sample(recall(path))


def calibrate(bench: Bench, options: argparse.Namespace) -> None:
    """Fit everything, and write it."""
    folder = options.cache / 'around'
    first = bench.look(bench.paths, folder)
    rows = cross_validate(bench, folder)
    rows['outcome'] = [
        outcome(site, side) for site, side in zip(rows.site, rows.side, strict=True)
    ]
    early = rows['phase'] < LATE_FROM
    best = choose_threshold(rows[early])
    spread = fit_interval(rows[early], best)
    print(f'\nLeft out; threshold {THRESHOLDS[best]:.3f}, spread of volumes {spread:.3f}\n')
    print(report(rows, best, spread))
    for physics in PHYSICS:
        print(f'\n{physics}\n\n{report(rows[rows.physics == physics], best, spread)}')
    reported, distance = find_sites(rows)
    print(f'\n{describe_sites(rows, reported)}', flush=True)
    confusion = pd.crosstab(rows.site[early], [OUTCOMES[k][0] for k in reported[early.to_numpy()]])
    print(f'\n{confusion.to_string()}\n')
    final = fit_networks(bench.spread(sample_surrounded, bench.paths, folder=folder))
    final['first'] = first
    seen, outcomes = np.stack(rows['seen']), rows['outcome'].to_numpy()
    finder = fit_finder(seen, outcomes, _trust(rows))
    finder |= class_distance(seen, outcomes, finder)
    finder['distance_limit'] = float(np.quantile(distance[reported == outcomes], 1 - FAR_SHARE))
    counts, squares = (sum(b[k] for b in rows.loc[early, 'bins']) for k in (0, 1))
    final['threshold'] = round(float(THRESHOLDS[best]), 3)
    final['volume_interval'] = {
        'log_sd': round(spread, 4), 'floor_ml': FLOOR_ML, 'level': LEVEL
    }  # fmt: skip
    final['delay_spread'] = {
        'edges': list(DELAY_EDGES),
        'sd': np.sqrt(np.maximum(squares / np.maximum(counts, 1), 0.01)).round(3).tolist(),
    }
    final['late_scan'] = fit_late(list(bench.samples.values()))
    final['occlusion'] = {k: np.round(np.asarray(v, float), 4).tolist() for k, v in finder.items()}
    final['provenance'] = {
        'Script': 'scripts/calibrate_perfusion.py',
        'Date': datetime.datetime.now(datetime.UTC).date().isoformat(),
        'Patients': options.patients,
        'FirstSeed': options.seed,
        'LatePatients': options.late,
        'OpenPatients': options.open,
        'BodyPatients': options.bodies,
        'ScansOfEach': VARIANTS,
        'Physics': list(PHYSICS),
        'Spacing': SPACING,
        'Targets': 'rank of the true delay plus its seconds (to 12 s) over 8; delay above 6 s; '
        'delay in s',
    }
    path = load('perfusion_calibration.json')
    path.write_text(json.dumps(final) + '\n', encoding='utf-8')
    if not options.no_physics:
        leave_physics_out(bench, options.cache / 'around_physics')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cache', type=Path, required=True, help='for the patients made')
    parser.add_argument('--patients', type=int, default=180)
    parser.add_argument('--late', type=int, default=24, help='patients scanned late')
    parser.add_argument('--open', type=int, default=36, help='more with open arteries')
    parser.add_argument('--bodies', type=int, default=24, help='more of other bodies and voltages')
    parser.add_argument('--seed', type=int, default=300, help='of the first patient')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--no-physics', action='store_true', help='leave no physics out')
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    seeds = [*range(options.seed, options.seed + options.patients)]
    seeds += range(LATE_SEED, LATE_SEED + options.late)
    seeds += range(OPEN_SEED, OPEN_SEED + options.open * len(SITES), len(SITES))
    seeds += range(BODY_SEED, BODY_SEED + options.bodies)
    jobs = [(s, options.cache, v) for s in seeds for v in range(VARIANTS)]
    with ProcessPoolExecutor(options.processes, mp_context=get_context('spawn')) as pool:
        paths = list(pool.map(measure, *zip(*jobs, strict=True), chunksize=VARIANTS))
        bench = Bench(paths, dict(zip(paths, pool.map(sample_alone, paths), strict=True)), pool)
        calibrate(bench, options)


if __name__ == '__main__':
    main()
