"""Align the CTA with the NCCT, and the NCCT with a template, with ANTs.

Seeded and on one thread, so that a run can be repeated to the bit; the two registrations of a
patient can run side by side instead. ANTs splits its options at commas and brackets and expands
names with wildcards, so that it sees plain file names in its working folder only. Must not know
what is done with the aligned images.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# ITK reads it once, when its library is loaded; sums over several threads differ from run to run.
os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'] = '1'

import ants
import h5py
import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_perfdeficit.ct.conforming import conform, resample
from bids_perfdeficit.ct.reading import AIR_HU, CTVolume
from bids_perfdeficit.ct.refinement import refine_rigid
from bids_perfdeficit.ct.templates import Template, load_template
from bids_perfdeficit.ct.warping import (
    FLIP,
    all_points,
    carry,
    matrix_of,
    read_transform,
    sample,
    write_rigid,
)
from bids_perfdeficit.errors import InputError

#: HU in which NCCT and CTA look alike: air, soft tissue and bone, with contrast kept small.
HEAD_WINDOW = (-200.0, 1000.0)
#: HU in which brain tissues differ.
BRAIN_WINDOW = (0.0, 80.0)
#: mm by which the brain is smoothed before it is aligned with a template.
BRAIN_SMOOTH_MM = 0.5
#: mm around the brain in which the scans are compared: the skull, which moves with the brain, and
#: not the jaw and the neck, which do not.
SKULL_MARGIN_MM = 14.0
#: Correlation of the aligned scans in and around the brain, below which another start is tried,
#: and below which the user gets a note.
GOOD_CORRELATION, POOR_CORRELATION = 0.9, 0.75
#: Starts that are tried when the first is poor: degrees about x, y and z.
STARTS = ((25, 0, 0), (-25, 0, 0), (0, 0, 25), (0, 0, -25), (0, 25, 0), (0, -25, 0))
#: mm of the grid of the warp, and voxels around the template's brain in which it fades.
WARP_MM, WARP_MARGIN = 3.0, 4


@dataclass(frozen=True)
class RigidResult:
    """The CTA on the grid of the NCCT.

    Parameters
    ----------
    matrix : ndarray, (4, 4)
        RAS mm: carries a point of the NCCT to the same anatomy in the CTA.
    image : Nifti1Image
        CTA in HU on the grid of the NCCT, read in one interpolation; -1024 outside the scan.
    quality : dict of str to float
        ``Correlation`` in and around the brain, ``Rotation`` (degrees), ``Translation`` (mm), and
        ``Refinement`` and ``Residual`` (mm), as `Refinement.moved` and `Refinement.residual`.
    notes : tuple of str
        What makes it doubtful.
    provenance : mapping
        How the CTA was read: `CTVolume.provenance`, where the caller knows it.
    """

    matrix: np.ndarray
    image: nib.Nifti1Image
    quality: dict[str, float]
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TemplateTransform:
    """Transforms between NCCT and template, as ITK composite files.

    Parameters
    ----------
    forward, inverse : Path
        Resample images from the NCCT to the template, and back.
    quality : dict of str to float
        ``Correlation`` of the density with the template's, ``BrainDice`` of the masks.
    notes : tuple of str
        What makes it doubtful.
    """

    forward: Path
    inverse: Path
    quality: dict[str, float]
    notes: tuple[str, ...] = ()


def register_cta(
    ncct: nib.Nifti1Image,
    cta: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    *,
    seed: int,
    work_dir: Path | None = None,
) -> RigidResult:
    """Align the CTA with the NCCT by a rigid transform.

    The working directory of the process is changed while ANTs runs.

    Parameters
    ----------
    ncct : Nifti1Image
        Conformed: HU, (X, Y, Z), RAS, isotropic.
    cta : Nifti1Image
        As read: HU, any affine.
    brain : Nifti1Image
        Brain mask on the grid of the NCCT.
    seed : int
        Of ANTs.
    work_dir : Path, optional
        Where ANTs keeps files while it works; that of the system by default.

    Returns
    -------
    RigidResult

    Raises
    ------
    InputError
        When there is no head in the CTA, or the scans do not overlap.
    """
    spacing = float(ncct.header.get_zooms()[0])
    moving = conform(CTVolume(cta), spacing=max(spacing, 1.0)).image
    inside = np.asarray(brain.dataobj) > 0
    near = ndimage.distance_transform_edt(~inside) * spacing <= SKULL_MARGIN_MM
    fixed_values = np.clip(np.asarray(ncct.dataobj), *HEAD_WINDOW)
    fixed = to_ants(fixed_values, ncct.affine)
    mask = to_ants(near.astype(np.float32), ncct.affine)
    target = to_ants(np.clip(np.asarray(moving.dataobj), *HEAD_WINDOW), moving.affine)

    def quality(matrix: np.ndarray) -> float:
        aligned = np.clip(resample(moving, ncct.shape, matrix @ ncct.affine), *HEAD_WINDOW)
        return _correlation(fixed_values[near], aligned[near])

    matrix = _rigid(fixed, target, mask, seed, work_dir, None)
    best = quality(matrix)
    for angles in STARTS if best < GOOD_CORRELATION else ():
        start = _start(angles, ncct, inside, moving)
        other = _rigid(fixed, target, mask, seed, work_dir, start)
        if (score := quality(other)) > best:
            matrix, best = other, score
        if best >= GOOD_CORRELATION:
            break
    refined = refine_rigid(ncct, cta, brain, matrix)
    matrix = refined.matrix
    aligned = resample(cta, ncct.shape, matrix @ ncct.affine)
    if (aligned[inside] > AIR_HU).mean() < 0.2:
        raise InputError(
            'the CTA and the NCCT do not show the same part of the head',
            fix='check that both belong to this patient and cover the brain',
        )
    best = _correlation(fixed_values[near], np.clip(aligned[near], *HEAD_WINDOW))
    notes = []
    if best < POOR_CORRELATION:
        notes.append(
            f'the CTA may be misaligned with the NCCT (correlation {best:.2f}); look at the report'
        )
    cosine = np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)
    centre = ncct.affine @ np.append(np.argwhere(inside).mean(0), 1)
    return RigidResult(
        matrix,
        nib.Nifti1Image(aligned, ncct.affine),
        {
            'Correlation': best,
            'Rotation': float(np.degrees(np.arccos(cosine))),
            'Translation': float(np.linalg.norm((matrix @ centre - centre)[:3])),
            'Refinement': refined.moved,
            'Residual': refined.residual,
        },
        tuple(notes),
    )


def _rigid(
    fixed: Any,
    moving: Any,
    mask: Any,
    seed: int,
    work_dir: Path | None,
    start: np.ndarray | None,
) -> np.ndarray:
    """Return the RAS matrix that carries points of the fixed image to the moving one."""
    _make_deterministic(seed)
    options: dict[str, Any] = {}
    with _plain_names(None if work_dir is None else work_dir.absolute()):
        if start is not None:
            write_rigid(start, Path('start.txt'))
            options['initial_transform'] = ['start.txt']
        result = ants.registration(
            fixed=fixed,
            moving=moving,
            type_of_transform='Rigid',
            outprefix='rigid_',
            mask=mask,
            mask_all_stages=True,
            aff_metric='mattes',
            aff_random_sampling_rate=0.1,
            # A third level at 1 mm takes twice as long for a gain of 0.01 mm; fewer steps on the
            # second leave 2 mm where the first ends too early.
            aff_iterations=(200, 100),
            aff_shrink_factors=(4, 2) if fixed.spacing[0] < 1.5 else (2, 1),
            aff_smoothing_sigmas=(2, 1),
            singleprecision=False,
            **options,
        )
        transform = ants.read_transform(result['fwdtransforms'][0])
    return matrix_of(transform.parameters, transform.fixed_parameters)


@contextlib.contextmanager
def _plain_names(work_dir: Path | None) -> Iterator[None]:
    """Work in a new folder, which is removed with all in it, also after an error.

    Its path may hold any character; names in it are given to ANTs without the path.
    """
    with (
        tempfile.TemporaryDirectory(prefix='ants-', dir=work_dir) as folder,
        contextlib.chdir(folder),
    ):
        yield


def _make_deterministic(seed: int) -> None:
    """Seed ANTs; its one thread is set where it is imported."""
    ants.config.set_ants_deterministic(on=True, seed_value=seed)


def _start(
    angles: tuple[int, int, int],
    ncct: nib.Nifti1Image,
    inside: np.ndarray,
    moving: nib.Nifti1Image,
) -> np.ndarray:
    """Return a start that turns about the heads' centres."""
    from scipy.spatial.transform import Rotation

    here = (ncct.affine @ np.append(np.argwhere(inside).mean(0), 1))[:3]
    body = np.asarray(moving.dataobj) > -200
    there = (moving.affine @ np.append(np.argwhere(body).mean(0), 1))[:3]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('xyz', angles, degrees=True).as_matrix()
    matrix[:3, 3] = there - matrix[:3, :3] @ here
    return matrix


def register_template(
    ncct: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    template: Template,
    *,
    work_dir: Path,
    seed: int,
    sloppy: bool = False,
) -> TemplateTransform:
    """Align the NCCT with a template: affine, then SyN, like with like.

    The brain alone is registered, in a window where tissues differ, to the template's pseudo-CT by
    Mattes' mutual information, which leaves a lesion its size where correlation metrics shrink it.
    The options are the best of those in ``benchmarks/normalization.py``. The working directory of
    the process is changed while ANTs runs.

    Parameters
    ----------
    ncct, brain : Nifti1Image
        Conformed, and its mask.
    template : Template
        Of 2 mm.
    work_dir : Path
        Where the transforms are written, as ``template_Composite.h5`` and
        ``template_InverseComposite.h5``.
    seed : int
        Of ANTs.
    sloppy : bool
        Fewer iterations.

    Returns
    -------
    TemplateTransform
    """
    spacing = float(ncct.header.get_zooms()[0])
    inside = np.asarray(brain.dataobj) > 0
    values = np.where(inside, np.clip(np.asarray(ncct.dataobj), *BRAIN_WINDOW), 0)
    step = max(1, round(2.0 / spacing))
    # Little smoothing, for sulci guide the warp; half the width of a coarse voxel where it is one.
    sigma = np.hypot(BRAIN_SMOOTH_MM / spacing, np.sqrt((step**2 - 1) / 12))
    values = ndimage.gaussian_filter(values.astype(np.float32), sigma)
    coarse_affine = ncct.affine @ np.diag([step, step, step, 1.0])
    moving = to_ants(values[::step, ::step, ::step], coarse_affine)
    fixed = _around_brain(template)
    _make_deterministic(seed)
    work_dir = work_dir.absolute()
    with _plain_names(work_dir):
        # Two calls, for 'SyN' does not take the iterations of its affine.
        affine = ants.registration(
            fixed=fixed,
            moving=moving,
            type_of_transform='Affine',
            outprefix='affine_',
            aff_metric='mattes',
            aff_iterations=(500, 200, 100, 10) if not sloppy else (200, 100, 20, 0),
        )
        ants.registration(
            fixed=fixed,
            moving=moving,
            type_of_transform='SyNOnly',
            initial_transform=affine['fwdtransforms'][0],
            outprefix='template_',
            syn_metric='mattes',
            # Long steps in a stiff field: with short ones the search ends where the noise is
            # matched.
            grad_step=1.0,
            flow_sigma=5,
            total_sigma=0.5,
            reg_iterations=(20, 40) if not sloppy else (20, 5),
            write_composite_transform=True,
        )
        forward, inverse = (
            _without_times(Path(f'template_{kind}.h5'), work_dir)
            for kind in ('Composite', 'InverseComposite')
        )
    points = carry(read_transform(forward), all_points(template.pseudo_ct))
    (density,) = sample([nib.Nifti1Image(values, ncct.affine)], points)
    (mask,) = sample([brain], points, order=0)
    density, mask = (found.reshape(template.pseudo_ct.shape) for found in (density, mask))
    target = np.asarray(template.brain_mask.dataobj) > 0
    overlap = float(2 * (target & (mask > 0)).sum() / max(target.sum() + (mask > 0).sum(), 1))
    correlation = _correlation(np.asarray(template.pseudo_ct.dataobj)[target], density[target])
    notes = []
    if overlap < 0.9:
        notes.append(
            f'the normalisation may have failed (overlap with the template {overlap:.2f}); '
            'look at the report'
        )
    return TemplateTransform(
        forward, inverse, {'Correlation': correlation, 'BrainDice': overlap}, tuple(notes)
    )


def _without_times(path: Path, folder: Path) -> Path:
    """Copy an HDF5 file without the times that the library puts on its objects."""
    target = folder / path.name
    with h5py.File(path) as old, h5py.File(target, 'w') as new:

        def copy(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                new.create_dataset(
                    name,
                    data=item[()],
                    dtype=item.dtype,
                    compression=item.compression,
                    track_times=False,
                )
            else:
                new.create_group(name)

        old.visititems(copy)
        for key, value in old.attrs.items():
            new.attrs[key] = value
    return target


def _around_brain(template: Template) -> Any:
    """Return the pseudo-CT, cropped and coarse: the warp is smooth, and fades outside."""
    coarse = load_template(template.name, spacing=WARP_MM)
    box = tuple(
        slice(max(s.start - WARP_MARGIN, 0), s.stop + WARP_MARGIN)
        for s in ndimage.find_objects(np.asarray(coarse.brain_mask.dataobj))[0]
    )
    affine = coarse.pseudo_ct.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    return to_ants(np.asarray(coarse.pseudo_ct.dataobj)[box], affine)


def to_ants(values: np.ndarray, affine: np.ndarray) -> Any:
    """Hand an RAS array to ANTs."""
    lps = FLIP @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return ants.from_numpy(
        np.asarray(values, dtype=np.float32),
        origin=tuple(float(v) for v in lps[:3, 3]),
        spacing=tuple(float(v) for v in spacing),
        direction=lps[:3, :3] / spacing,
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
