"""Error of the normalisation on digital patients whose shape is known, for several recipes.

For each recipe: the distance between where it carries points of the template's brain and where
they lie in the patient; the overlap of the patient's hypoperfused region, carried to the template,
with the region as it was made there; the change of that region's volume by the free warp against
the affine alone. Seconds are of CPU time; ANTs runs on one thread.

``shipped`` is `ct.register_template`, the others are built from the same prepared images.

Run: python benchmarks/normalization.py [--patients 4] [--spacing 2] [--recipes shipped affine ...]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import ants
import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from bids_perfdeficit import ct
from bids_perfdeficit.ct import registration
from bids_perfdeficit.ct.quality import dice
from bids_perfdeficit.phantom.patient import HYPOPERFUSED, Patient, make_patient
from bids_perfdeficit.phantom.settings import Occlusion

LPS = np.array([-1.0, -1.0, 1.0])
SITES = ('M1', 'M2sup', 'M2inf', 'ICA')
AFFINE: dict[str, Any] = {'aff_metric': 'mattes', 'aff_iterations': (500, 200, 100, 10)}


def brain_image(
    ncct: nib.Nifti1Image, brain: nib.Nifti1Image, *, high: float = 80.0, sigma: float = 0.5
) -> nib.Nifti1Image:
    """Return the brain alone, in a window and smoothed by `sigma` mm."""
    inside = np.asarray(brain.dataobj) > 0
    values = np.where(inside, np.clip(np.asarray(ncct.dataobj), 0, high), 0).astype(np.float32)
    return nib.Nifti1Image(
        ndimage.gaussian_filter(values, sigma / ncct.header.get_zooms()[0]), ncct.affine
    )


#: Name -> options of the moving image, the template's mm, and options of SyN after an affine.
RECIPES: dict[str, tuple[dict[str, float], float, dict[str, Any] | None]] = {
    'affine': ({}, 2.0, None),
    'short steps, smoothed 1 mm': ({'sigma': 1.0}, 2.0, {'reg_iterations': (60, 40, 20)}),
    'CC, short steps': (
        {}, 2.0, {'reg_iterations': (60, 40, 0), 'syn_metric': 'CC', 'syn_sampling': 2},
    ),
    'stiff, long steps, 2 mm': (
        {}, 2.0, {'reg_iterations': (20, 20, 10), 'flow_sigma': 9, 'grad_step': 1.0},
    ),
    'as shipped, total 0': (
        {}, 3.0, {'reg_iterations': (20, 40), 'flow_sigma': 5, 'grad_step': 1.0},
    ),
    'as shipped, smoothed 1 mm': (
        {'sigma': 1.0}, 3.0,
        {'reg_iterations': (20, 40), 'flow_sigma': 5, 'grad_step': 1.0, 'total_sigma': 0.5},
    ),
    'as shipped, window 0-60': (
        {'high': 60.0}, 3.0,
        {'reg_iterations': (20, 40), 'flow_sigma': 5, 'grad_step': 1.0, 'total_sigma': 0.5},
    ),
}  # fmt: skip


def run_recipe(
    name: str, ncct: nib.Nifti1Image, brain: nib.Nifti1Image, template: ct.Template, folder: Path
) -> list[str]:
    """Return the transforms of a recipe, as ANTs lists them."""
    if name == 'shipped':
        found = ct.register_template(ncct, brain, template, work_dir=folder, seed=1)
        return [str(found.forward)]
    preparation, spacing, options = RECIPES[name]
    target = ct.load_template(template.name, spacing=spacing).pseudo_ct
    moving = brain_image(ncct, brain, **preparation)
    images = {
        key: registration.to_ants(np.asarray(image.dataobj), image.affine)
        for key, image in (('fixed', target), ('moving', moving))
    }
    ants.config.set_ants_deterministic(on=True, seed_value=1)
    affine = ants.registration(
        **images, type_of_transform='Affine', outprefix=str(folder / 'affine_'), **AFFINE
    )['fwdtransforms']
    if options is None:
        return list(affine)
    result = ants.registration(
        **images, type_of_transform='SyNOnly', initial_transform=affine[0],
        outprefix=str(folder / 'warp_'), **{'syn_metric': 'mattes', **options},
    )  # fmt: skip
    return list(result['fwdtransforms'])


def to_patient(points: np.ndarray, transforms: list[str]) -> np.ndarray:
    """Carry RAS points of the template to the patient."""
    frame = pd.DataFrame(points * LPS, columns=['x', 'y', 'z'])
    moved = ants.apply_transforms_to_points(3, frame, transforms)
    return np.asarray(moved[['x', 'y', 'z']]) * LPS


def carry(mask: nib.Nifti1Image, template: ct.Template, transforms: list[str]) -> np.ndarray:
    """Carry a mask of the patient to the template."""
    fixed, moving = (
        registration.to_ants(np.asarray(image.dataobj), image.affine)
        for image in (template.pseudo_ct, mask)
    )
    return ants.apply_transforms(fixed, moving, transforms).numpy() > 0.5


def measure(
    name: str, patient: Patient, ncct: nib.Nifti1Image, brain: nib.Nifti1Image,
    template: ct.Template, points: np.ndarray,
) -> dict[str, float]:  # fmt: skip
    """Run a recipe on a patient."""
    lesion = ct.resample(
        patient.truth.delay_template, template.pseudo_ct.shape, template.pseudo_ct.affine
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        transforms = run_recipe(name, ncct, brain, template, Path(folder))
        seconds = time.process_time() - start
        errors = np.linalg.norm(
            to_patient(points, transforms) - patient.truth.warp.forward(points), axis=1
        )
        carried = carry(patient.truth.hypoperfused, template, transforms)
    true = lesion > HYPOPERFUSED
    return {
        'mean': float(errors.mean()),
        '95 %': float(np.percentile(errors, 95)),
        'dice': dice(carried, true),
        'volume': float(carried.sum() / true.sum()),
        'seconds': seconds,
    }


def main() -> None:
    """Print a line for each run, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--patients', type=int, default=4)
    parser.add_argument('--first-seed', type=int, default=200)
    parser.add_argument('--spacing', type=float, default=2.0)
    parser.add_argument('--recipes', nargs='+', default=['affine', 'shipped'])
    arguments = parser.parse_args()
    template = ct.load_template(spacing=2.0)
    mask = template.brain_mask
    points = np.argwhere(np.asarray(mask.dataobj) > 0)[::20] @ mask.affine[:3, :3]
    points = points + mask.affine[:3, 3]
    rows = []
    for number in range(arguments.patients):
        seed = arguments.first_seed + number
        site = Occlusion(site=SITES[number % len(SITES)], collaterals=0.3)
        patient = make_patient(seed, site, spacing=arguments.spacing)
        image = nib.Nifti1Image(patient.ncct.get_fdata(dtype=np.float32), patient.ncct.affine)
        ncct = ct.conform(ct.CTVolume(image), spacing=arguments.spacing).image
        brain = ct.extract_brain(ncct).mask
        for name in arguments.recipes:
            found = measure(name, patient, ncct, brain, template, points)
            rows.append({'recipe': name, 'seed': seed, **found})
            print(name, seed, {k: round(v, 3) for k, v in found.items()}, flush=True)
    table = pd.DataFrame(rows).groupby('recipe', sort=False)
    means, worst = table.mean(), table['mean'].max()
    print(f'\n{arguments.patients} patients at {arguments.spacing:g} mm')
    print('| recipe | mean error, mm | worst patient | 95th percentile | lesion Dice '
          '| lesion volume / true | CPU s |\n|---|---|---|---|---|---|---|')  # fmt: skip
    for name, row in means.iterrows():
        print(
            f'| {name} | {row["mean"]:.2f} | {worst[name]:.2f} | {row["95 %"]:.2f} '
            f'| {row["dice"]:.3f} | {row["volume"]:.2f} | {row["seconds"]:.0f} |'
        )


if __name__ == '__main__':
    main()
