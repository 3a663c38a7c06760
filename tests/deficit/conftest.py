"""Small made cohorts: vascular-like maps at 8 mm with known substrates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from bids_perfdeficit.deficit import (
    DeficitSettings,
    Grid,
    Item,
    MapFlow,
    Prepared,
    fit_map_flow,
    prepare,
)

FAST = DeficitSettings(
    coarse_spacing=8.0,
    rank=40,
    radii=(10.0, 16.0),
    spacings=(8.0, 12.0),
    components=2,
    permutations=199,
    voxelwise_permutations=99,
    smoothing=(8.0, 14.0),
    vae_epochs=3,
    vae_batch=80,
    vae_latents=4,
    vae_spacing=24.0,
    simulations=32,
    network_steps=120,
)
ITEMS = (Item('5a', 5, '5b'), Item('5b', 5, '5a'), Item('9', 4), Item('1a', 4))


@dataclass(frozen=True)
class Cohort:
    grid: Grid
    maps: np.ndarray
    scores: np.ndarray
    items: tuple[Item, ...]
    substrates: dict[str, np.ndarray]
    prepared: Prepared


def sphere(grid: Grid, centre, radius: float) -> np.ndarray:
    return np.linalg.norm(grid.coordinates - centre, axis=1) <= radius


def brain_grid(spacing: float = 8.0) -> Grid:
    axes = [np.arange(-64, 65, spacing), np.arange(-96, 65, spacing), np.arange(-48, 65, spacing)]
    x, y, z = np.meshgrid(*axes, indexing='ij')
    mask = (x / 62) ** 2 + ((y + 16) / 82) ** 2 + ((z - 8) / 56) ** 2 <= 1
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -64, -96, -48
    return Grid(mask, affine)


def make_cohort(n: int, seed: int) -> Cohort:
    """Each patient has one blurred ill ROI; scores follow the share of the substrate in it."""
    rng = np.random.default_rng(seed)
    grid = brain_grid()
    xyz = grid.coordinates
    centres = xyz[rng.integers(len(xyz), size=n)] + rng.uniform(-4, 4, (n, 3))
    radius = rng.uniform(16, 40, n)
    distance = np.linalg.norm(xyz[None] - centres[:, None], axis=2)
    maps = rng.uniform(0.5, 1, (n, 1)) / (1 + np.exp((distance - radius[:, None]) / 4))
    maps += 0.1 + 0.03 * rng.standard_normal(maps.shape)
    maps = np.clip(maps, 0, 1).astype(np.float32)
    substrates = {
        '5a': sphere(grid, (36, -20, 36), 14),
        '5b': sphere(grid, (-36, -20, 36), 14),
        '9': sphere(grid, (-40, 8, 4), 14),
    }
    columns = []
    for item in ITEMS:
        share = maps[:, substrates[item.name]].mean(1) if item.name in substrates else (
            4 * maps.mean(1)
        )  # fmt: skip
        latent = 10 * share + rng.logistic(size=n)
        cuts = np.quantile(latent, np.linspace(0.6, 0.93, item.levels - 1))
        columns.append((latent[:, None] > cuts).sum(1))
    scores = np.stack(columns, 1).astype(float)
    return Cohort(grid, maps, scores, ITEMS, substrates, prepare(maps, grid, FAST))


@pytest.fixture(scope='session')
def cohort() -> Cohort:
    return make_cohort(240, 1)


@pytest.fixture(scope='session')
def fast() -> DeficitSettings:
    return FAST


@pytest.fixture(scope='session')
def flow(cohort) -> MapFlow:
    return fit_map_flow(cohort.prepared.measured, cohort.prepared.coarse, seed=0, steps=60)
