"""Vesselness filters side by side: which one finds arteries best?

Prints a markdown table over made vessels (tubes of 0.5 to 3 mm radius and 60 to 300 HU with noise,
a residue of bone at the rim, tubes interrupted over 1 mm) and, where the hybrid scan is at hand,
over its real vessels. The losers live here and not in the app.

Usage: python benchmarks/vesselness.py [--seeds 5] [--noise 15]
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from skimage.filters import sato
from sklearn.metrics import average_precision_score, roc_auc_score

from bids_perfdeficit.perfusion import subtract, vesselness
from bids_perfdeficit.perfusion.vessels import SCALES, eigenvalues, hessian

UNIT = (1.0, 1.0, 1.0)


def by_scale(measure):
    def run(image, mask):
        best = torch.zeros(int(mask.sum()))
        for sigma in SCALES:
            best = torch.maximum(best, measure(*eigenvalues(hessian(image, sigma, UNIT, mask))))
        return fill(best, mask)

    return run


def fill(values, mask):
    out = torch.zeros(mask.shape)
    out[mask] = values
    return out


def middle(low, mid, high):
    """Sato as scikit-image and VTrails' comparison use it: the weaker of the two curvatures."""
    return (-mid).clamp_min(0)


def geometric(low, mid, high):
    return (low.clamp(max=0) * mid.clamp(max=0)).sqrt()


def frangi(low, mid, high):
    """Frangi et al. 1998 with alpha = beta = 0.5 and c of half the largest norm."""
    values = torch.stack([low, mid, high])
    order = values.abs().argsort(dim=0)
    one, two, three = values.gather(0, order)
    plate = (two.abs() / three.abs().clamp_min(1e-6)) ** 2
    blob = one**2 / (two * three).abs().clamp_min(1e-6)
    norm = (values**2).sum(0)
    out = (1 - torch.exp(-plate / 0.5)) * torch.exp(-blob / 0.5)
    out = out * (1 - torch.exp(-norm / (2 * norm.max() / 4)))
    return torch.where((two < 0) & (three < 0), out, 0.0)


def jerman(low, mid, high, tau=0.75):
    """Jerman et al. 2016, tau 0.75."""
    three = -low
    two = -mid
    cut = tau * three.max()
    regular = torch.where((three > 0) & (three <= cut), cut, three)
    out = two**2 * (regular - two) * (3 / (two + regular).clamp_min(1e-6)) ** 3
    out = torch.where(two >= regular / 2, 1.0, out)
    return torch.where((two <= 0) | (regular <= 0), 0.0, out).clamp(0, 1)


def flux(image, mask):
    """Optimally oriented flux (Law & Chung 2008): sphere of radius r, smoothed by 0.7 mm."""
    shape = image.shape
    axes = [torch.fft.fftfreq(n) for n in shape[:2]] + [torch.fft.rfftfreq(shape[2])]
    u = torch.meshgrid(*axes, indexing='ij')
    norm = sum(k**2 for k in u).sqrt().clamp_min(1e-6)
    spectrum = torch.fft.rfftn(image)
    best = torch.zeros(int(mask.sum()))
    for radius in (1.0, 1.5, 2.2, 3.0):
        # Spherical Bessel j1 over the sphere's area: the flux through a unit of surface.
        phase = 2 * math.pi * norm * radius
        bessel = torch.sin(phase) / phase**2 - torch.cos(phase) / phase
        kernel = bessel / norm * torch.exp(-2 * (math.pi * norm * 0.7) ** 2) / radius**0
        parts = []
        for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
            parts.append(torch.fft.irfftn(-spectrum * kernel * u[i] * u[j] / norm * 6, s=shape))
        low, mid, _ = eigenvalues(torch.stack([p[mask] for p in parts]))
        best = torch.maximum(best, geometric(low, mid, None))
    return fill(best, mask)


FILTERS = {
    'this app': lambda image, mask: vesselness(image, UNIT, mask=mask),
    'weaker curvature (Sato)': by_scale(middle),
    'Frangi': by_scale(frangi),
    'Jerman': by_scale(jerman),
    'oriented flux': flux,
    'scikit-image sato': lambda image, mask: torch.from_numpy(
        sato(image.numpy(), sigmas=SCALES, black_ridges=False)
    ),
    'the subtraction itself': lambda image, mask: image,
}


def made(seed, noise, n=96):
    """Curved tubes in noise. Returns image, vessel mask, gap mask, bone mask and domain."""
    random = np.random.default_rng(seed)
    fine = 2
    size = n * fine
    level = np.zeros((size,) * 3, np.float32)
    gaps = np.zeros((size,) * 3, bool)
    axis = np.arange(size)
    for _ in range(40):
        radius = random.uniform(0.5, 3.0) if random.random() < 0.3 else random.uniform(0.5, 1.2)
        height = random.uniform(60, 300)
        at = random.uniform(0.15, 0.85, 3) * n
        way = random.standard_normal(3)
        way /= np.linalg.norm(way)
        steps = int(random.uniform(40, 120))
        gap = random.integers(10, steps) if random.random() < 0.5 else -9
        for k in range(steps * 2):
            way += 0.06 * random.standard_normal(3)
            way /= np.linalg.norm(way)
            at = at + 0.5 * way
            if (at < 4).any() or (at > n - 5).any():
                break
            low = np.maximum(np.floor((at - radius) * fine), 0).astype(int)
            high = np.minimum(np.ceil((at + radius) * fine) + 1, size).astype(int)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            local = [axis[s] / fine - c for s, c in zip(box, at, strict=True)]
            square = sum(np.square(k) for k in np.ix_(*local))
            inside = square <= radius**2
            if abs(k - 2 * gap) <= 1:  # 1 mm without contrast
                gaps[box] |= inside
            else:
                level[box] = np.maximum(level[box], height * inside)
    coarse = level.reshape(n, fine, n, fine, n, fine).mean((1, 3, 5))
    gaps &= level == 0
    gap_mask = gaps.reshape(n, fine, n, fine, n, fine).mean((1, 3, 5)) > 0.3
    truth = coarse > 40
    image = gaussian_filter(coarse, 0.6)
    bone = np.zeros_like(truth)
    bone[:, :, n - 3] = True  # the rim of a sheet, as imperfect alignment leaves it
    image[bone] += 150
    image = image + noise * gaussian_filter(random.standard_normal(image.shape), 0.5) / 0.42
    domain = np.ones_like(truth)
    return (
        torch.from_numpy(image.astype(np.float32)),
        truth,
        gap_mask & ~truth,
        bone,
        torch.from_numpy(domain),
    )


def measure(response, truth, gap, bone):
    values = response.numpy()
    back = ~truth & ~bone & ~gap
    tissue = values[back]
    tube = np.median(values[truth])
    share = [values[gap].mean() / tube if gap.any() else np.nan, values[bone].mean() / tube]
    return [
        roc_auc_score(np.r_[np.ones(truth.sum()), np.zeros(back.sum())],
                      np.r_[values[truth], tissue]),
        average_precision_score((truth)[~bone], values[~bone]),
        *share,
        np.quantile(tissue, 0.99) / tube,
    ]  # fmt: skip


def hybrid():
    """Image, truth over 80 HU and brain of the semi-real scan, aligned by its truth."""
    root = Path(os.environ.get('PERFDEFICIT_SHARED', '../shared')) / 'data' / 'hybrid'
    if not root.is_dir():
        return None
    scans = root / 'sub-hybrid01' / 'ct'
    ncct, cta, brain, vessels = (
        np.asarray(nib.load(path).dataobj, np.float32)
        for path in (
            scans / 'sub-hybrid01_ct.nii.gz',
            scans / 'sub-hybrid01_cta.nii.gz',
            root / 'truth' / 'brainmask_in_ct_space.nii.gz',
            root / 'truth' / 'vessel_HU_in_ct_space.nii.gz',
        )
    )
    matrix = np.eye(4)
    rows = np.loadtxt(root / 'truth' / 'cta_resample_voxel_affine_ct_to_cta.txt')
    matrix[: len(rows)] = rows
    back = np.linalg.inv(matrix)
    cta = affine_transform(cta, back[:3, :3], back[:3, 3], order=1, cval=-1000.0)
    ncct, cta, brain, vessels = (
        torch.from_numpy(np.ascontiguousarray(a.T)) for a in (ncct, cta, brain, vessels)
    )
    brain = brain > 0
    return subtract(ncct, cta, brain, UNIT), (vessels > 80).numpy(), brain


def main(seeds, noise):
    data = [made(seed, noise) for seed in range(seeds)]
    real = hybrid()
    print(f'Made vessels: mean (sd) over {seeds} seeds, noise {noise} HU\n')
    print('| filter | AUC | average precision | in 1 mm gaps | on bone rim | noise, 99th '
          '| AUC hybrid | precision hybrid | s at 1 mm |')  # fmt: skip
    print('|---' * 9 + '|')
    for name, run in FILTERS.items():
        rows = [measure(run(image, domain), *truth) for image, *truth, domain in data]
        cells = [
            f'{m:.3f} ({s:.3f})'
            for m, s in zip(np.nanmean(rows, 0), np.nanstd(rows, 0), strict=True)
        ]
        if real is not None:
            image, truth, brain = real
            start = time.perf_counter()
            response = run(image, brain)[brain].numpy()
            seconds = time.perf_counter() - start
            inside = truth[brain.numpy()]
            cells.append(f'{roc_auc_score(inside, response):.3f}')
            cells.append(f'{average_precision_score(inside, response):.3f}')
            cells.append(f'{seconds:.1f}')
        print(f'| {name} | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--noise', type=float, default=15.0)
    options = parser.parse_args()
    main(options.seeds, options.noise)
