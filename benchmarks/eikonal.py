"""The eikonal solver against scikit-fmm and SimpleITK: error, time and order of convergence.

Prints markdown tables. Errors: against analytic arrivals in a box (constant speed, linear speed,
constant metric), and in a heterogeneous medium against the solution on a five times finer grid.
Times: the template's brain with a vessel-like speed, solvers taking turns in one run.

Usage: python benchmarks/eikonal.py [--repeats 3] [--spacing 2 1 0.7] [--device cpu]
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import SimpleITK
import skfmm
import torch
from nilearn.datasets import load_mni152_brain_mask
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from bids_perfdeficit.perfusion import solve_eikonal


def ours(speed, source, spacing, mask=None, metric=None):
    return solve_eikonal(
        torch.as_tensor(speed).to(DEVICE).float(),
        torch.tensor([source], device=DEVICE),
        (spacing,) * 3,
        mask=None if mask is None else torch.as_tensor(mask, device=DEVICE),
        metric=None if metric is None else metric.to(DEVICE),
    ).cpu()


def fmm(order):
    def run(speed, source, spacing, mask=None):
        phi = np.ones(speed.shape)
        phi[source] = -1e-6
        if mask is not None:
            phi = np.ma.MaskedArray(phi, ~mask)
        out = skfmm.travel_time(phi, np.asarray(speed, float), spacing, order=order)
        return torch.from_numpy(np.ma.filled(out, np.inf))

    return run


def itk(speed, source, spacing, mask=None):
    values = np.where(mask, speed, 0) if mask is not None else speed
    image = SimpleITK.GetImageFromArray(np.asarray(values, np.float32))
    image.SetSpacing((spacing,) * 3)
    march = SimpleITK.FastMarchingImageFilter()
    march.SetTrialPoints([[int(k) for k in source[::-1]]])
    march.SetInitialTrialValues([0.0])
    return torch.from_numpy(SimpleITK.GetArrayFromImage(march.Execute(image)))


def identity(shape):
    return torch.tensor([1.0, 1, 1, 0, 0, 0])[:, None, None, None].expand(6, *shape)


def with_metric(speed, source, spacing, mask=None):
    return ours(speed, source, spacing, mask, identity(speed.shape))


SOLVERS = {
    'this app': ours,
    'this app, with a metric (identity)': with_metric,
    'scikit-fmm, order 2': fmm(2),
    'scikit-fmm, order 1': fmm(1),
    'SimpleITK': itk,
}


def score(arrival, truth):
    """Mean and 95th percentile of the relative error, in percent."""
    away = truth > 0
    relative = ((arrival - truth).abs() / truth)[away].numpy() * 100
    return f'{relative.mean():.2f} / {np.quantile(relative, 0.95):.2f}'


def coordinates(side, spacing):
    n = 2 * round(side / 2 / spacing) + 1
    axis = (torch.arange(n, dtype=torch.float64) - n // 2) * spacing
    return torch.meshgrid(axis, axis, axis, indexing='ij'), (n // 2,) * 3


def analytic(spacings):
    print('\nRelative error in a box of 120 mm, mean / 95th percentile in percent\n')
    print('| solver | ' + ' | '.join(f'{k} at {h} mm' for k in CASES for h in spacings) + ' |')
    print('|---' * (1 + len(CASES) * len(spacings)) + '|')
    cells = {name: [] for name in SOLVERS}
    for case in CASES.values():
        for h in spacings:
            (z, y, x), centre = coordinates(120, h)
            speed, truth = case(z, y, x)
            for name, solver in SOLVERS.items():
                cells[name].append(score(solver(speed.numpy(), centre, h), truth))
    for name, row in cells.items():
        print(f'| {name} | ' + ' | '.join(row) + ' |')
    print('\nConstant metric (1 mm, ratio of speeds along the axes; mean / 95th percentile)\n')
    print('| ratio | this app |\n|---|---|')
    (z, y, x), centre = coordinates(80, 1.0)
    offsets = torch.stack([z, y, x], -1).numpy()
    for ratio in (1.5, 2.0, 3.0, 5.0):
        rows = []
        for seed in range(3):
            axes, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
            square = ratio**2
            form = axes @ np.diag([square ** (2 / 3)] + [square ** (-1 / 3)] * 2) @ axes.T
            length = np.einsum('...i,ij,...j', offsets, np.linalg.inv(form), offsets)
            index = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
            metric = torch.tensor([form[i, j] for i, j in index]).float()[:, None, None, None]
            arrival = ours(np.ones(z.shape), centre, 1.0, metric=metric.expand(6, *z.shape))
            rows.append(score(arrival, torch.from_numpy(np.sqrt(length))))
        print(f'| {ratio} | ' + ', '.join(rows) + ' |')


def _constant(z, y, x):
    return torch.ones_like(z), (z**2 + y**2 + x**2).sqrt()


def _linear(z, y, x):
    slope, base = 0.02, 2.0
    speed = base + slope * x
    truth = torch.acosh(1 + slope**2 * (z**2 + y**2 + x**2) / (2 * base * speed)) / slope
    return speed, truth


CASES = {'constant': _constant, 'linear': _linear}


def heterogeneous(seeds):
    print('\nHeterogeneous speed (log-normal, smooth over `s` voxels, sd of log `a`), against a')
    print('five times finer grid; mean relative error in percent over seeds (sd)\n')
    shapes = [(4, 0.5), (4, 1.0), (2, 0.5), (2, 1.0)]
    print('| solver | ' + ' | '.join(f's {s}, a {a}' for s, a in shapes) + ' |')
    print('|---' * (1 + len(shapes)) + '|')
    cells = {name: [] for name in SOLVERS}
    n, fine = 29, 5
    size = (n - 1) * fine + 1
    for smooth, amplitude in shapes:
        found = {name: [] for name in SOLVERS}
        for seed in range(seeds):
            field = gaussian_filter(np.random.default_rng(seed).standard_normal((n,) * 3), smooth)
            grid = np.mgrid[0:size, 0:size, 0:size] / fine
            field = map_coordinates(field / field.std(), grid, order=3, mode='nearest')
            speed = np.exp(amplitude * field)
            truth = ours(speed, (size // 2,) * 3, 1 / fine)[::fine, ::fine, ::fine]
            coarse = speed[::fine, ::fine, ::fine].copy()
            for name, solver in SOLVERS.items():
                arrival = solver(coarse, (n // 2,) * 3, 1.0)
                away = truth > 0
                found[name].append(float(((arrival - truth).abs() / truth)[away].mean()) * 100)
        for name, values in found.items():
            cells[name].append(f'{np.mean(values):.1f} ({np.std(values):.1f})')
    for name, row in cells.items():
        print(f'| {name} | ' + ' | '.join(row) + ' |')


def timing(spacings, repeats):
    print('\nWhole brain, vessel-like speed: seconds (median), and as a multiple of scikit-fmm\n')
    print('| solver | ' + ' | '.join(f'{h} mm' for h in spacings) + ' |')
    print('|---' * (1 + len(spacings)) + '|')
    cells = {name: [] for name in SOLVERS}
    voxels = []
    for h in spacings:
        mask = load_mni152_brain_mask(resolution=1).get_fdata() > 0
        mask = zoom(mask.astype(np.float32), 1 / h, order=1) > 0.5 if h != 1 else mask
        mask = np.ascontiguousarray(mask.T)
        box = tuple(slice(k.min(), k.max() + 1) for k in np.nonzero(mask))
        mask = np.ascontiguousarray(mask[box])
        field = gaussian_filter(np.random.default_rng(0).standard_normal(mask.shape), 2.0 / h)
        speed = np.clip(field / field.std() / 3, 0, 1) ** 2 + 0.01
        where = np.argwhere(mask)
        source = tuple(where[np.abs(where - where.mean(0)).sum(1).argmin()])
        seconds = {name: [] for name in SOLVERS}
        for solver in SOLVERS.values():
            if h == max(spacings):
                solver(speed, source, h, mask)  # compile
        for _ in range(repeats):
            for name, solver in SOLVERS.items():
                start = time.perf_counter()
                solver(speed, source, h, mask)
                seconds[name].append(time.perf_counter() - start)
        peer = np.median(seconds['scikit-fmm, order 2'])
        for name, values in seconds.items():
            cells[name].append(f'{np.median(values):.2f} ({np.median(values) / peer:.2f})')
        voxels.append(f'{mask.sum()} at {h} mm')
    for name, row in cells.items():
        print(f'| {name} | ' + ' | '.join(row) + ' |')
    print('\nVoxels: ' + ', '.join(voxels))
    print(f'Peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--spacing', type=float, nargs='+', default=[2.0, 1.0, 0.7])
    parser.add_argument('--device', default='cpu')
    options = parser.parse_args()
    DEVICE = options.device
    analytic([h for h in options.spacing if h >= 1])
    heterogeneous(options.seeds)
    timing(options.spacing, options.repeats)
