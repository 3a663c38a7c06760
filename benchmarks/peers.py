"""What lesion mappers use, on the data that the models are given, for the benchmarks alone.

``bm``: Brunner-Munzel per voxel, false-discovery rate 5 % (LESYMAP's default for masks). ``svr``:
SVR-LSM (Zhang et al., Human Brain Mapping 2014): RBF support vectors of lesions divided by the
root of their volume, back-projected, against shuffled scores, 5 %. ``sccan``: sparse canonical
correlation of antspyx, the sparseness by cross-validation, cut at .1 of the maximum as in LESYMAP
(Pustina et al., Neuropsychologia 2018). ``elasticnet`` and ``forest``: on supervoxels (Ward
clusters of the maps); the net declares coefficients above 0, the forest importances above those of
all shuffled supervoxels (Kursa & Rudnicki, J Stat Softw 2010). For computed maps all see the
positive left-right asymmetry. ``bm`` adjusts the score for the root of the volume, net and forest
have it as a feature. None has a probability. Must not know the truth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.cluster import FeatureAgglomeration
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction.image import grid_to_graph
from sklearn.linear_model import ElasticNetCV
from sklearn.model_selection import KFold
from sklearn.svm import SVR

#: Share of a voxel above which it is affected: of lesions, and of the asymmetry of computed maps.
AFFECTED = {True: 0.5, False: 0.2}
#: Fewest participants who are affected in a voxel; of Brunner and Munzel's test, which finds too
#: much with fewer than ten on either side (Medina et al., Neuropsychologia 2010).
_FEWEST, _FEWEST_RANKED = 5, 10
#: Shuffles of SVR-LSM; p is that of a normal with their mean and standard deviation.
_SHUFFLES = 100
#: mL of a supervoxel, about.
_SUPERVOXEL_ML = 2.5
_SPARSENESS = (0.02, 0.1, 0.3)
_ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Peers:
    """One cohort's maps as the peers see them.

    Parameters
    ----------
    maps : (N, V) float array
        On the voxels of `mask`, 0 or more.
    mask : (X, Y, Z) bool array
    given : bool
        Whether they are lesions; else positive asymmetries.
    seed : int
    """

    maps: np.ndarray
    mask: np.ndarray
    given: bool
    seed: int = 0

    @functools.cached_property
    def affected(self) -> np.ndarray:
        return self.maps > AFFECTED[self.given]

    @functools.cached_property
    def volume(self) -> np.ndarray:
        """(N,) root of the volume, standardised."""
        root = np.sqrt(self.maps.sum(1))
        return (root - root.mean()) / max(root.std(), 1e-9)

    @functools.cached_property
    def normed(self) -> np.ndarray:
        """Lesions divided by the root of their volume."""
        norm = np.linalg.norm(self.maps, axis=1, keepdims=True)
        return self.maps / np.maximum(norm, 1e-6)

    @functools.cached_property
    def supervoxels(self) -> tuple[np.ndarray, np.ndarray]:
        """(V,) label of each voxel and (N, S) means."""
        voxels = self.maps.shape[1]
        count = int(np.clip(voxels * 0.064 / _SUPERVOXEL_ML, 20, 600))
        parts = min(20, *self.maps.shape)
        reduced = PCA(parts, random_state=self.seed).fit_transform(self.maps.T).T
        graph = grid_to_graph(*self.mask.shape, mask=self.mask)
        count = min(count, voxels)
        label = FeatureAgglomeration(count, connectivity=graph).fit(reduced).labels_
        sizes = np.bincount(label)
        one_hot = np.zeros((voxels, len(sizes)), np.float32)
        one_hot[np.arange(voxels), label] = 1 / sizes[label]
        return label, self.maps @ one_hot

    def fit(self, name: str, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return effect and declaration (V,) of a peer; NaN scores are left out."""
        seen = np.isfinite(score)
        return PEERS[name](self, np.flatnonzero(seen), score[seen].astype(float))


def _discoveries(p: np.ndarray) -> np.ndarray:
    """Return what Benjamini and Hochberg declare."""
    return stats.false_discovery_control(p) <= _ALPHA if len(p) else np.zeros(0, bool)


def brunner_munzel(peers: Peers, rows: np.ndarray, score: np.ndarray):
    """Compare the adjusted scores of affected and unaffected participants in each voxel."""
    design = np.c_[np.ones(len(rows)), peers.volume[rows]]
    rest = score - design @ np.linalg.lstsq(design, score, rcond=None)[0]
    _, level, counts = np.unique(rest.round(9), return_inverse=True, return_counts=True)
    overall = np.cumsum(counts) - (counts - 1) / 2  # midranks
    z, p = np.zeros(peers.maps.shape[1]), np.ones(peers.maps.shape[1])
    inside = peers.affected[rows]
    number = inside.sum(0)
    tested = np.flatnonzero(np.minimum(number, len(rows) - number) >= _FEWEST_RANKED)
    for start in range(0, len(tested), 2048):
        voxels = tested[start : start + 2048]
        own = np.zeros((len(counts), len(voxels)))
        np.add.at(own, level, inside[:, voxels].astype(float))
        z[voxels], p[voxels] = _compare(own, counts[:, None] - own, overall[:, None])
    declared = np.zeros(len(p), bool)
    declared[tested] = _discoveries(p[tested])
    return np.maximum(z, 0), declared


def _compare(own: np.ndarray, other: np.ndarray, overall: np.ndarray):
    """Return Brunner and Munzel's statistic and its one-sided p; (levels, V) counts."""
    n1, n2 = own.sum(0), other.sum(0)
    mean, spread = [], []
    for part, n in ((own, n1), (other, n2)):
        within = np.cumsum(part, 0) - (part - 1) / 2
        average = (part * overall).sum(0) / n
        shift = overall - within - average + (n + 1) / 2
        mean.append(average)
        spread.append((part * shift**2).sum(0) / (n - 1))
    total = n1 + n2
    pooled = n1 * spread[0] + n2 * spread[1]
    statistic = n1 * n2 * (mean[0] - mean[1]) / (total * np.sqrt(np.maximum(pooled, 1e-12)))
    freedom = pooled**2 / np.maximum(
        (n1 * spread[0]) ** 2 / (n1 - 1) + (n2 * spread[1]) ** 2 / (n2 - 1), 1e-12
    )
    return statistic, stats.t.sf(statistic, np.maximum(freedom, 1))


def svr_lsm(peers: Peers, rows: np.ndarray, score: np.ndarray):
    """Back-project the support vectors of a radial kernel."""
    x = peers.normed[rows]
    square = (x**2).sum(1)
    kernel = np.exp(-5 * np.maximum(square[:, None] + square - 2 * (x @ x.T), 0))
    y = 100 * (score - score.min()) / max(np.ptp(score), 1e-9)

    def project(values: np.ndarray) -> np.ndarray:
        fitted = SVR(kernel='precomputed', C=30, epsilon=0.1, tol=0.1).fit(kernel, values)
        return (fitted.dual_coef_ @ x[fitted.support_]).ravel()

    rng = np.random.default_rng(peers.seed)
    found = project(y)
    drawn = np.stack([project(rng.permutation(y)) for _ in range(_SHUFFLES)])
    enough = peers.affected[rows].sum(0) >= _FEWEST
    deviation = drawn.std(0)
    z = np.where(deviation > 0, (found - drawn.mean(0)) / np.where(deviation > 0, deviation, 1), 0)
    declared = np.zeros(len(z), bool)
    declared[enough] = _discoveries(stats.norm.sf(z[enough]))
    return np.maximum(np.where(enough, z, 0), 0), declared


def sparse_correlation(peers: Peers, rows: np.ndarray, score: np.ndarray):
    """Find sparse weights, 0 or more, whose sum over the map correlates with the score."""
    x = peers.maps[rows]
    target = stats.rankdata(score)
    tried = []
    for sparseness in _SPARSENESS:
        held = np.zeros(len(rows))
        for train, test in KFold(3, shuffle=True, random_state=peers.seed).split(x):
            held[test] = x[test] @ _sparse_weights(x[train], target[train], peers, sparseness)
        tried.append(np.corrcoef(held, target)[0, 1] if held.std() > 0 else 0.0)
    best = int(np.argmax(tried))
    weights = _sparse_weights(x, target, peers, _SPARSENESS[best])
    # LESYMAP's rule: no map where the held-out correlation has p > .05
    r, n = max(tried[best], 0), len(rows)
    valid = stats.t.sf(r * np.sqrt((n - 2) / max(1 - r**2, 1e-9)), n - 2) <= _ALPHA
    return weights, (weights >= 0.1 * max(weights.max(), 1e-12)) & bool(valid)


def _sparse_weights(x: np.ndarray, target: np.ndarray, peers: Peers, sparseness: float):
    import ants

    mask = ants.from_numpy(peers.mask.astype(np.float32))
    found = ants.sparse_decom2(
        inmatrix=(x - x.mean(0), (target - target.mean())[:, None]), inmask=(mask, None),
        sparseness=(sparseness, -0.99), nvecs=1, its=5, cthresh=(0, 0), smooth=0.4, robust=0,
    )  # fmt: skip
    weights = np.asarray(found['eig1'], float)
    weights = weights.ravel() if weights.size == x.shape[1] else weights[:, 0]
    return weights if np.corrcoef(x @ weights, target)[0, 1] >= 0 else -weights


def elastic_net(peers: Peers, rows: np.ndarray, score: np.ndarray):
    """Fit a net with coefficients of 0 or more to supervoxels and volume."""
    label, means = peers.supervoxels
    x = np.c_[means, peers.volume[:, None]][rows]
    scale = np.maximum(x.std(0), 1e-6)
    fitted = ElasticNetCV(
        l1_ratio=(0.5, 0.9), positive=True, cv=5, alphas=20, max_iter=2000, tol=1e-3
    ).fit((x - x.mean(0)) / scale, score)
    effect = (fitted.coef_ / scale)[:-1][label]
    return effect, effect > 0


def forest(peers: Peers, rows: np.ndarray, score: np.ndarray):
    """Rank supervoxels by a forest's importance, against shuffled copies of them."""
    label, means = peers.supervoxels
    x = means[rows]
    rng = np.random.default_rng(peers.seed)
    shadows = rng.permuted(x, axis=0)
    fitted = RandomForestRegressor(
        200, max_features=0.33, min_samples_leaf=3, random_state=peers.seed, n_jobs=1
    ).fit(np.c_[x, shadows, peers.volume[rows, None]], score)
    own, other = fitted.feature_importances_[:-1].reshape(2, -1)
    centred = x - x.mean(0)
    rises = centred.T @ (score - score.mean()) > 0
    effect = np.where(rises, own, 0)
    return effect[label], (effect > other.max())[label]


PEERS: dict[str, Callable[[Peers, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    'bm': brunner_munzel,
    'svr': svr_lsm,
    'sccan': sparse_correlation,
    'elasticnet': elastic_net,
    'forest': forest,
}
