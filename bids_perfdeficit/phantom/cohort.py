"""A cohort of digital patients in the template space, without images.

Every patient has an occlusion and collaterals of his own in one of many grown trees; the physics
is that of `flow`. Beside the true delay each has the map that an imaging pipeline would have
computed: later is higher, noisy, a little misaligned, rescaled per patient. Must not know files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from bids_perfdeficit.phantom.anatomy import load_head
from bids_perfdeficit.phantom.arteries import grow
from bids_perfdeficit.phantom.flow import feed, simulate, tissue_state
from bids_perfdeficit.phantom.patient import HYPOPERFUSED, _template_grid
from bids_perfdeficit.phantom.scores import draw_scores
from bids_perfdeficit.phantom.settings import MIDLINE_SITES, OCCLUSION_SITES, Occlusion

#: Share of each site in patients with suspected stroke who get a CTA for it: of the proximal
#: ones after Jansen et al., BMJ 2018 (MR CLEAN Registry), with medium vessels and the posterior
#: circulation after Lakomkin et al., J Neurointerv Surg 2019, and some without an occlusion.
PREVALENCE: dict[str, float] = {
    'none': 0.12, 'ICA': 0.14, 'M1': 0.34, 'M2sup': 0.12, 'M2inf': 0.10, 'A2': 0.04, 'P1': 0.03,
    'P2': 0.05, 'BA': 0.06,
}  # fmt: skip
#: A patient's head against the template, linear.
_HEAD_SIZE = 0.925
#: Standard deviations of the noise of a computed map, as a share of its spread, and the mm of its
#: grain: of the image's noise, and of what vessels and tissue mislead by.
_GRAIN = ((0.20, 4.0), (0.25, 12.0))
#: Degrees, share and mm by which a normalised brain is turned, scaled and shifted at random.
_TURN, _SCALE, _SHIFT = 1.0, 0.015, 1.0
#: How much later, in s, a computed map has the vertex than the base: fronts travel upwards.
_RISE = 1.5


@dataclass(frozen=True, eq=False)
class Cohort:
    """Patients with maps and scores.

    Attributes
    ----------
    participants : DataFrame
        ``participant_id``, ``age``, ``sex`` and, of the truth, ``site``, ``side``,
        ``collaterals``, ``onset_hours``, ``hypoperfused_ml``.
    scores : DataFrame
        ``nihss_<item>`` in the same rows; NaN where untestable.
    delay, perfusion : float16 arrays, (N, V)
        True delay in s, and the computed map in [0, 1]; in the voxels of `mask`.
    mask : bool array, (X, Y, Z)
    affine : (4, 4) array
        Of the 2 mm grid of MNI152NLin2009aSym.
    """

    participants: pd.DataFrame
    scores: pd.DataFrame
    delay: NDArray[np.float16]
    perfusion: NDArray[np.float16]
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]


def make_cohort(
    seed: int,
    n: int,
    *,
    mix: Mapping[str, float] | None = None,
    trees: int = 40,
    links: str = 'mixed',
    flips: float = 0.05,
    processes: int = 2,
    report: Callable[[str], None] | None = None,
) -> Cohort:
    """Make a cohort.

    Parameters
    ----------
    seed : int
        The same seed gives the same cohort, whatever the number of processes.
    n : int
        Patients.
    mix : mapping of str to float, optional
        Shares of the sites of `settings.OCCLUSION_SITES`; `PREVALENCE` by default.
    trees : int
        Arterial trees that are grown; patients share them n / trees at a time, on either side.
    links, flips
        See `scores.draw_scores`.
    processes : int
        That work at once.
    report : callable, optional
        Is given a line of progress now and then.

    Returns
    -------
    Cohort

    Raises
    ------
    ValueError
        For fewer than one patient, an unknown site or an unknown link.
    """
    if n < 1:
        raise ValueError(f'n is {n}; it must be 1 or more')
    mix = dict(PREVALENCE if mix is None else mix)
    if unknown := sorted(set(mix) - set(OCCLUSION_SITES)):
        raise ValueError(f'no such site: {", ".join(unknown)}; there are {OCCLUSION_SITES}')
    rng = np.random.default_rng([seed, 606])
    share = np.array(list(mix.values()), float)
    sites = rng.choice(list(mix), n, p=share / share.sum())
    table = pd.DataFrame({
        'participant_id': [f'sub-c{i + 1:04d}' for i in range(n)],
        'age': np.clip(np.rint(rng.normal(71, 13, n)), 19, 99).astype(int),
        'sex': rng.choice(['F', 'M'], n),
        'site': sites,
        'side': np.where(np.isin(sites, MIDLINE_SITES), 'n/a', rng.choice(['L', 'R'], n)),
        'collaterals': rng.beta(3.0, 2.2, n).round(3),
        'onset_hours': np.clip(rng.gamma(2.0, 1.8, n), 0.5, 24).round(1),
    })  # fmt: skip
    positions = rng.uniform(0.05, 0.6, n)
    owner = np.arange(n) % min(trees, n)
    mask, affine = template_mask()
    delay = np.empty((n, int(mask.sum())), np.float16)
    perfusion = np.empty_like(delay)
    jobs = []
    for tree in range(min(trees, n)):
        rows = np.flatnonzero(owner == tree)
        occlusions = [
            Occlusion(
                site=str(table.site[i]),
                side='L' if table.side[i] == 'n/a' else str(table.side[i]),
                collaterals=float(table.collaterals[i]),
                position=float(positions[i]),
                onset_hours=float(table.onset_hours[i]),
            )
            for i in rows
        ]
        jobs.append((rows, seed, tree, occlusions))
    done, begun = 0, time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context('spawn')) as pool:
        for rows, late, computed in pool.map(_of_one_tree, jobs):
            delay[rows], perfusion[rows] = late, computed
            done += len(rows)
            if report is not None:
                minutes = (time.monotonic() - begun) / done * (n - done) / 60
                left = f', about {minutes:.0f} min left' if minutes >= 1 else ''
                report(f'{done} of {n} patients of the cohort{left}')
    table['hypoperfused_ml'] = ((delay > HYPOPERFUSED).sum(1) * 0.008 * _HEAD_SIZE**3).round(1)
    scores = draw_scores(delay, mask, seed, links=links, flips=flips)
    return Cohort(table, scores, delay, perfusion, mask, affine)


def template_mask() -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the voxels of the 2 mm template that the phantom's brain has, and the affine."""
    affine, shape = _template_grid()
    inside = _from_head(load_head(2.0).brain, shape, affine).astype(bool)
    return inside, np.asarray(affine, float)


def _from_head(
    volume: NDArray[np.generic], shape: tuple[int, ...], affine: NDArray[np.floating]
) -> NDArray[np.generic]:
    """Crop a volume of the head's 2 mm grid to the template's; both are on one lattice."""
    head = load_head(2.0)
    start = np.rint((affine[:3, 3] - head.affine[:3, 3]) / head.affine[0, 0]).astype(int)
    out = np.zeros(shape, volume.dtype)
    source, target = [], []
    for first, size, limit in zip(start, shape, volume.shape, strict=True):
        low, high = max(first, 0), min(first + size, limit)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    out[tuple(target)] = volume[tuple(source)]
    return out


def _of_one_tree(
    job: tuple[NDArray[np.int64], int, int, list[Occlusion]],
) -> tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.float16]]:
    """Simulate the patients that share a tree; return their rows, delays and computed maps."""
    rows, seed, number, occlusions = job
    head = load_head(2.0)
    tree = grow(head, int(np.random.default_rng([seed, 707, number]).integers(2**31)))
    feeding = feed(tree, head.affine[:3, 3] + np.argwhere(head.brain) * head.affine[0, 0])
    grey, white = head.grey[head.brain], head.white[head.brain]
    mask, affine = template_mask()
    late = np.empty((len(rows), int(mask.sum())), np.float16)
    computed = np.empty_like(late)
    volume = np.zeros(head.brain.shape, np.float32)
    for k, (row, occlusion) in enumerate(zip(rows, occlusions, strict=True)):
        rng = np.random.default_rng([seed, 808, int(row)])
        flow = simulate(tree, tree.points * _HEAD_SIZE, occlusion, seed=int(rng.integers(2**31)))
        volume[head.brain] = tissue_state(flow, feeding, grey, white).delay
        delay = np.asarray(_from_head(volume, mask.shape, affine), np.float32)
        late[k] = delay[mask]
        computed[k] = computed_map(delay, mask, affine, rng)[mask]
    return rows, late, computed


def computed_map(
    delay: NDArray[np.float32],
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return what a pipeline would have computed of a delay: [0, 1], higher is later.

    A compressive scale, since long delays are cut short by the end of the scan; a rise with the
    distance from the base; grain of two sizes; an error of the normalisation; and the rescaling
    between the 2nd and 98th percentile that the participant level has.
    """
    height = (affine[2, 3] + affine[2, 2] * np.arange(mask.shape[2]) + 30) / 100
    values = 8 * (1 - np.exp(-delay / 8)) + _RISE * np.clip(height, 0, 1)
    values = values.astype(np.float32)
    outer = values[mask].mean()
    values = np.where(mask, values, outer)
    spread = values[mask].std()
    for size, mm in _GRAIN:
        # Grain is made on a coarser grid; it has no detail below its own size.
        step = max(1, int(mm / 4))
        coarse = rng.standard_normal([-(-n // step) + 1 for n in mask.shape], dtype=np.float32)
        coarse = ndimage.gaussian_filter(coarse, mm / 2.0 / step)
        coarse *= size * spread / coarse.std()
        matrix = np.eye(3) / step
        values += ndimage.affine_transform(coarse, matrix, output_shape=mask.shape, order=1)
    turn = np.deg2rad(rng.normal(0, _TURN, 3))
    matrix = np.array([[1, -turn[2], turn[1]], [turn[2], 1, -turn[0]], [-turn[1], turn[0], 1]])
    matrix = matrix @ np.diag(1 + rng.normal(0, _SCALE, 3))
    centre = (np.array(mask.shape) - 1) / 2
    offset = centre - matrix @ centre + rng.normal(0, _SHIFT, 3) / affine[2, 2]
    values = ndimage.affine_transform(values, matrix, offset, order=1, mode='nearest')
    low, high = np.percentile(values[mask], [2, 98])
    scaled = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)
    return np.asarray(np.where(mask, scaled, 0), np.float32)
