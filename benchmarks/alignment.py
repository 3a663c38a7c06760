"""Error of the CTA's alignment with the NCCT, over random turns, shifts and slice thicknesses.

The scans of a dataset (or of digital patients) are taken anew: the head of the CTA is turned by up
to 10 degrees about each axis and shifted by up to 15 mm along each, and both scans are cut into
slices of random thickness by averaging thin ones. The whole path is run: reading the grid,
conforming, brain extraction, registration. The error of a case is the mean over the brain.

A dataset has one participant and ``truth/cta_resample_voxel_affine_ct_to_cta.txt``: voxels of the
CTA to those of the NCCT, before the turns.

With ``--peer`` the same cases are aligned by SimpleITK as well, on one thread, with the levels,
the metric and the last step on the skull of the app: what would replace ANTs.

Run: python benchmarks/alignment.py [BIDS_DIR] [--cases 20] [--patients 2] [--spacing 1] [--peer]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_perfdeficit import ct
from bids_perfdeficit.ct.refinement import refine_rigid
from bids_perfdeficit.ct.registration import HEAD_WINDOW, SKULL_MARGIN_MM
from bids_perfdeficit.phantom.patient import make_patient
from bids_perfdeficit.phantom.settings import Occlusion
from bids_perfdeficit.phantom.warp import rigid

DEGREES, SHIFT_MM = 10.0, 15.0
NCCT_MM, CTA_MM = (1.0, 2.5, 5.0), (0.6, 5.0)


@dataclass(frozen=True)
class Pair:
    """Two scans, and the matrix that carries RAS mm of the first to the second."""

    name: str
    ncct: nib.Nifti1Image
    cta: nib.Nifti1Image
    truth: np.ndarray


def read_pair(root: Path) -> Pair:
    """Read the dataset's scans, repaired as the app does."""
    ncct, cta = (
        ct.read_ct(next(root.glob(f'sub-*/ct/*_{suffix}.nii.gz')), role=role).image
        for suffix, role in (('ct', 'NCCT'), ('cta', 'CTA'))
    )
    voxels = np.loadtxt(root / 'truth' / 'cta_resample_voxel_affine_ct_to_cta.txt')
    if voxels.shape == (3, 4):
        voxels = np.vstack([voxels, [0, 0, 0, 1]])
    return Pair(root.name, ncct, cta, cta.affine @ np.linalg.inv(ncct.affine @ voxels))


def make_pairs(patients: int, spacing: float) -> Iterator[Pair]:
    """Make digital patients."""
    for seed in range(patients):
        patient = make_patient(300 + seed, Occlusion(), spacing=spacing)
        scans = (nib.Nifti1Image(i.get_fdata(dtype=np.float32), i.affine)
                 for i in (patient.ncct, patient.cta))  # fmt: skip
        yield Pair(f'phantom {300 + seed}', *scans, patient.truth.ncct_to_cta)


def take(image: nib.Nifti1Image, motion: np.ndarray, thickness: float) -> nib.Nifti1Image:
    """Scan a moved head in slices: `motion` carries RAS mm of the image to those of the scan."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape])).reshape(3, -1)
    world = (motion @ image.affine)[:3] @ np.vstack([corners, np.ones(8)])
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    thin = max(1, round(thickness / sizes[2]))
    step = np.array([sizes[0], sizes[1], thickness / thin])
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = world.min(1)
    shape = np.ceil((world.max(1) - world.min(1)) / step).astype(int)
    shape[2] += -shape[2] % thin
    values = ct.resample(image, tuple(shape), np.linalg.inv(motion) @ affine)
    values = values.reshape(*shape[:2], -1, thin).mean(3)
    affine[2, 3] += step[2] * (thin - 1) / 2
    affine[2, 2] = thickness
    return nib.Nifti1Image(values, affine)


def errors(matrix: np.ndarray, truth: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return how far points (N, 3) lie from where they belong, mm."""
    off = (matrix - truth)[:3]
    return np.linalg.norm(points @ off[:, :3].T + off[:, 3], axis=1)


def align_by_simpleitk(
    ncct: nib.Nifti1Image, cta: nib.Nifti1Image, brain: nib.Nifti1Image, seed: int
) -> np.ndarray:
    """Return the matrix that carries RAS mm of the NCCT to the CTA."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    moving = ct.conform(
        ct.CTVolume(cta), spacing=max(float(ncct.header.get_zooms()[0]), 1.0)
    ).image
    inside = np.asarray(brain.dataobj) > 0
    spacing = float(ncct.header.get_zooms()[0])
    near = ndimage.distance_transform_edt(~inside) * spacing <= SKULL_MARGIN_MM
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])

    def image(values: np.ndarray, affine: np.ndarray) -> SimpleITK.Image:
        lps = flip @ affine
        sizes = np.linalg.norm(lps[:3, :3], axis=0)
        made = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T))
        made.SetSpacing(sizes.tolist())
        made.SetOrigin(lps[:3, 3].tolist())
        made.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
        return made

    fixed, target = (
        image(
            # from 0 on, so that moments are those of a mass
            np.clip(np.asarray(one.dataobj, np.float32), *HEAD_WINDOW) - HEAD_WINDOW[0],
            one.affine,
        )
        for one in (ncct, moving)
    )
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, seed + 1)
    method.SetMetricFixedMask(image(near.astype(np.uint8), ncct.affine))
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 200, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2] if spacing < 1.5 else [2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    start = SimpleITK.CenteredTransformInitializer(
        fixed, target, SimpleITK.Euler3DTransform(),
        SimpleITK.CenteredTransformInitializerFilter.MOMENTS,
    )  # fmt: skip
    method.SetInitialTransform(start, inPlace=False)
    found = SimpleITK.Euler3DTransform(
        SimpleITK.CompositeTransform(method.Execute(fixed, target)).GetBackTransform()
    )
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(found.GetMatrix(), (3, 3))
    lps[:3, 3] = found.TransformPoint((0.0, 0.0, 0.0))
    return refine_rigid(ncct, cta, brain, flip @ lps @ flip).matrix


def main() -> None:
    """Print a line for each case, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bids_dir', type=Path, nargs='?')
    parser.add_argument('--cases', type=int, default=20)
    parser.add_argument('--patients', type=int, default=2)
    parser.add_argument('--spacing', type=float, default=1.0)
    parser.add_argument('--peer', action='store_true', help='align by SimpleITK as well')
    arguments = parser.parse_args()
    pairs = (
        [read_pair(arguments.bids_dir)]
        if arguments.bids_dir
        else list(make_pairs(arguments.patients, arguments.spacing))
    )
    rng = np.random.default_rng(7)
    prepared: dict[tuple[str, float], tuple] = {}
    results, peers = [], []
    for case in range(arguments.cases + 1):
        pair = pairs[case % len(pairs)]
        thick, thin = float(rng.choice(NCCT_MM)), float(rng.uniform(*CTA_MM))
        angles = rng.uniform(-DEGREES, DEGREES, 3)
        shift = rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
        if case == 0:  # as it came
            thick, cta, motion = 0.0, pair.cta, np.eye(4)
        else:
            centre = (pair.cta.affine @ [*(np.array(pair.cta.shape) / 2), 1])[:3]
            motion = rigid(angles, shift, centre)
            cta = take(pair.cta, motion, thin)
        if (pair.name, thick) not in prepared:
            scan = take(pair.ncct, np.eye(4), thick) if thick else pair.ncct
            conformed = ct.conform(ct.CTVolume(scan), spacing=arguments.spacing).image
            brain = ct.extract_brain(conformed).mask
            inner = ndimage.binary_erosion(np.asarray(brain.dataobj) > 0)
            points = np.argwhere(inner)[::50] @ conformed.affine[:3, :3] + conformed.affine[:3, 3]
            prepared[pair.name, thick] = (conformed, brain, points)
        conformed, brain, points = prepared[pair.name, thick]
        truth = motion @ pair.truth
        start = time.process_time()
        result = ct.register_cta(conformed, cta, brain, seed=case)
        seconds = time.process_time() - start
        error = errors(result.matrix, truth, points)
        results.append((error.mean(), error.max(), seconds))
        if arguments.peer:
            start = time.process_time()
            other = errors(align_by_simpleitk(conformed, cta, brain, case), truth, points)
            peers.append((other.mean(), other.max(), time.process_time() - start))
        print(
            f'{pair.name}, NCCT {thick or "as is"} CTA {thin:.1f} mm, {np.round(angles, 1)} '
            f'degrees, {np.round(shift, 1)} mm: error {error.mean():.2f} '
            f'(at most {error.max():.2f}) mm, correlation {result.quality["Correlation"]:.3f}, '
            f'{seconds:.0f} s'
            if case
            else f'{pair.name}, as it came: error {error.mean():.2f} mm, {seconds:.0f} s',
            flush=True,
        )
    print('\n| what | median | mean | worst | target |\n|---|---|---|---|---|')
    for name, rows in (('', results), (' (SimpleITK)', peers)):
        if not rows:
            continue
        mean, worst, seconds = np.array(rows[1:]).T
        for what, column, target in (
            (f'error in the brain, mm, {len(mean)} cases', mean, 'mean < 0.5, none > 1.5'),
            ('largest error in any voxel of the brain, mm', worst, ''),
            ('CPU seconds', seconds, ''),
        ):
            print(
                f'| {what}{name} | {np.median(column):.2f} | {column.mean():.2f} '
                f'| {column.max():.2f} | {target} |'
            )
        print(f'| error as it came, mm{name} | | {rows[0][0]:.2f} | | < 0.5 |')


if __name__ == '__main__':
    main()
