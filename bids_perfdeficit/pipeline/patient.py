"""One patient: from two scans to maps and measurements.

`prepare`, `compute_maps`, `to_template` and `measure` follow each other; each takes what the ones
before it returned. `carry_images` and `measure_images` are the last two for images that lie on
disk one by one. Images are nibabel images, (X, Y, Z) in RAS order, on the grid of the conformed
NCCT unless they are named otherwise. ITK, torch and BLAS work on one thread each, because their
results depend on the number of threads; `threads` are those of independent pieces of work, on
which results do not depend. Must not know BIDS names, Nipype, settings files or reports.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage, sparse
from threadpoolctl import threadpool_limits

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.ct.templates import DEFAULT_SPACE
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.perfusion.settings import PerfusionSettings

if TYPE_CHECKING:
    import torch

#: mm of the grid on which maps are compared between patients.
TEMPLATE_MM = 2.0
#: Errors under which the site of an occlusion must hold: HU of shading at the edge of the brain
#: from side to side, and mm of movement between the scans. Half of what was seen to invent one.
SHADING_HU, SHIFT_MM = 1.0, 1.0
#: Step in s in which delays are stored: exact in float32, and half the size when compressed.
DELAY_STEP = 1 / 128
#: Share of the brain that a later phase of the CTA must show, and its least correlation with the
#: NCCT in and around the brain: it is an extra, so that a poor one is left out.
PHASE_COVERAGE, PHASE_CORRELATION = 0.95, 0.75
#: HU of the CTA that mean that there is no data; HU by which two phases differ at least: the
#: noise of two scans is ten times that.
_NO_DATA, _SAME_HU = -1000.0, 0.5
#: Note on a number of the patient that lies outside those that the calibration was fitted on.
_UNUSUAL = {
    name: f'{what} is unlike any that the perfusion map was calibrated on: do not use the map; no '
    'occlusion is reported'
    for name, what in (
        ('tissue', 'the contrast of the brain tissue over that of the arteries'),
        ('venous', 'the contrast of the sinuses over that of the arteries'),
        ('sharpness', 'the contrast of small vessels over that of the arteries'),
        ('residual', 'the noise of the subtraction over the contrast of the brain tissue'),
    )
}
#: Note on a scan that was taken too late after the arterial peak.
_LATE = (
    'the contrast of the sinuses over that of the carotid termini shows that the CTA was scanned '
    'late, when delayed tissue is hardly seen: do not rely on the maps; no occlusion is reported'
)


@dataclass(frozen=True)
class Prepared:
    """A patient's scans on one grid, and the transforms to a template.

    Parameters
    ----------
    ncct, cta : Nifti1Image
        HU, float32, isotropic.
    brain : Nifti1Image
        Brain mask, uint8.
    forward, inverse : Path
        ITK transforms of images from the NCCT to the template, and back.
    space : str
        Name of the template.
    missing : tuple of str
        Parts of the head that the NCCT does not show: ``'vertex'``, ``'skull base'``.
    quality : dict of str to dict of str to float
        Of the ``cta`` and the ``template`` registration.
    notes : tuple of str
        What makes the preparation doubtful, a sentence each.
    provenance : tuple of two mappings
        How NCCT and CTA were read: `ct.CTVolume.provenance`.
    later : mapping of str to Nifti1Image
        Later phases of the CTA by name, as `cta`, in the order of acquisition; one or two.
    """

    ncct: nib.Nifti1Image
    cta: nib.Nifti1Image
    brain: nib.Nifti1Image
    forward: Path
    inverse: Path
    space: str = DEFAULT_SPACE
    missing: tuple[str, ...] = ()
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: tuple[Mapping[str, Any], Mapping[str, Any]] = field(default=({}, {}))
    later: Mapping[str, nib.Nifti1Image] = field(default_factory=dict)


@dataclass(frozen=True)
class AlignedPhase:
    """A later phase of the CTA, or why it is not used.

    Parameters
    ----------
    name : str
        Of the file.
    image : Nifti1Image or None
        HU on the grid of the NCCT; None when it is left out.
    reason : str
        Why it is left out, in one clause; empty otherwise.
    quality, provenance : mapping
        As in `ct.RigidResult`.
    notes : tuple of str
        What makes it doubtful, a sentence each.
    """

    name: str
    image: nib.Nifti1Image | None = None
    reason: str = ''
    quality: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inflow:
    """Where the front of contrast starts.

    Parameters
    ----------
    method : str
        ``'prior'`` or ``'fallback'``; see `perfusion.Sources`.
    points : list of list of float
        RAS mm of the voxels.
    unusual : tuple of str
    is_late : bool
        From `perfusion.is_late`.
    """

    method: str = 'n/a'
    points: list[list[float]] = field(default_factory=list)
    unusual: tuple[str, ...] = ()
    is_late: bool = False


@dataclass(frozen=True)
class Trust:
    """What was checked of a map beside the map.

    Parameters
    ----------
    shading : dict of str to float
        Quality metrics of the reference field, HU: ``shading_x``, ``shading_y``, ``shading_z`` (at
        the edge of the brain, to the right, forward and upward, in which the CTA is brighter than
        contrast makes it), each with ``_error``; ``shading_offset``; ``shading_applied``, the
        largest that was taken away; ``shading_residual``. NaN where there was too little tissue.
    others : tuple of perfusion.ReadOut
        Likely occlusions of the scans with an error added, up to the first that disagrees.
    member_ml : tuple of tuples of two float
        Hypoperfused mL on the left and on the right by each network alone.
    """

    shading: dict[str, float] = field(default_factory=dict)
    others: tuple[perfusion.ReadOut, ...] = ()
    member_ml: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Maps:
    """What is computed of a patient; float32 images on the grid of the NCCT.

    Parameters
    ----------
    subtraction : Nifti1Image
        CTA - NCCT in HU, less the shading between them; 0 in bone and away from the brain.
    vessel : Nifti1Image
        Vesselness in [0, 1).
    toa : Nifti1Image
        Arrival of contrast in mm per unit of speed; 0 outside the brain.
    perfusion : Nifti1Image
        In [0, 1], higher is later; 0 outside the brain.
    hypoperfused : Nifti1Image
        Probability of a delay of more than 6 s; 0 outside the brain.
    delay, delay_sd : Nifti1Image
        Expected delay in s, from 0 to 12 or more, and its standard deviation; 0 outside the brain.
    inflow : Inflow
        Where the front started.
    notes : tuple of str
        What makes the maps doubtful, a sentence each.
    trust : Trust
        What was checked of them.
    controls : mapping of str to Nifti1Image
        With `diagnostics` of `compute_maps`: the ``distance`` from the inflow in mm, and the maps
        of `perfusion.PerfusionMaps.features`, by name. Empty otherwise.
    numbers : mapping of str to float
        Likewise those of the features that are one number of the whole patient.
    later : tuple of str
        The later phases of the CTA that were used, by name.
    """

    subtraction: nib.Nifti1Image
    vessel: nib.Nifti1Image
    toa: nib.Nifti1Image
    perfusion: nib.Nifti1Image
    hypoperfused: nib.Nifti1Image
    delay: nib.Nifti1Image
    delay_sd: nib.Nifti1Image
    inflow: Inflow
    notes: tuple[str, ...] = ()
    trust: Trust = field(default_factory=Trust)
    controls: Mapping[str, nib.Nifti1Image] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    later: tuple[str, ...] = ()


@dataclass(frozen=True)
class StandardMaps:
    """A patient's images on the template's grid of `TEMPLATE_MM`.

    Parameters
    ----------
    ncct, cta : Nifti1Image
        HU, float32; -1000 outside the scans.
    brain : Nifti1Image
        uint8: where both the patient and the template have brain. The maps are 0 elsewhere.
    toa, perfusion, hypoperfused, delay, delay_sd : Nifti1Image
        As in `Maps`, float32.
    asymmetry : Nifti1Image
        Perfusion minus its left-right mirror image, float32; 0 where the mirrored position is not
        in the brain.
    """

    ncct: nib.Nifti1Image
    cta: nib.Nifti1Image
    brain: nib.Nifti1Image
    toa: nib.Nifti1Image
    perfusion: nib.Nifti1Image
    hypoperfused: nib.Nifti1Image
    asymmetry: nib.Nifti1Image
    delay: nib.Nifti1Image
    delay_sd: nib.Nifti1Image


@dataclass(frozen=True)
class Measurements:
    """Numbers of a patient.

    Parameters
    ----------
    quality : DataFrame
        One row; columns of `ct.measure_quality`, and of coverage, inflow and arrival.
    regions : DataFrame
        A row per region; columns of `perfusion.measure_regions`. The first row also has the
        volume of the whole brain, intervals of volumes, and the likely occlusion, or why none is
        reported: the calibration does not hold, or a guard.
    """

    quality: pd.DataFrame
    regions: pd.DataFrame


def prepare(
    ncct: Path,
    cta: Path,
    *,
    work_dir: Path,
    later: Sequence[Path] = (),
    spacing: float = 1.0,
    space: str = DEFAULT_SPACE,
    seed: int = 1,
    sloppy: bool = False,
) -> Prepared:
    """Bring two scans onto one grid, find the brain, and align it with a template.

    Parameters
    ----------
    ncct, cta : Path
        The scans as they came, NIfTI in HU.
    work_dir : Path
        Where the transforms are written.
    later : sequence of Path
        Later phases of the CTA, one or two in the order of acquisition; one that cannot be used
        is left out with a note.
    spacing : float
        mm of the grid.
    space : str
        Template: the default or one in TEMPLATEFLOW_HOME.
    seed : int
        Of the registrations.
    sloppy : bool
        Fewer iterations, for trials.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        When a scan cannot be read or shows no head, the scans do not show the same part of it, or
        the template is missing.
    """
    conformed = conform_ncct(ncct, spacing=spacing)
    brain = ct.extract_brain(conformed.image, slice_mm=conformed.slice_mm)
    rigid = align_cta(cta, conformed.image, brain.mask, seed=seed, work_dir=work_dir)
    warp = align_template(
        conformed.image, brain.mask, work_dir=work_dir, space=space, seed=seed, sloppy=sloppy
    )
    phases = align_phases(later, conformed.image, brain.mask, seed=seed, work_dir=work_dir)
    return Prepared(
        conformed.image,
        rigid.image,
        brain.mask,
        warp.forward,
        warp.inverse,
        space,
        conformed.coverage.missing,
        {'cta': rigid.quality, 'template': warp.quality},
        (
            *conformed.notes, *brain.notes, *rigid.notes, *warp.notes,
            *(note for phase in phases for note in phase.notes),
        ),
        (conformed.provenance, rigid.provenance),
        {phase.name: phase.image for phase in phases if phase.image is not None},
    )  # fmt: skip


def conform_ncct(path: Path, *, spacing: float = 1.0) -> ct.Conformed:
    """Read an NCCT and resample it to an isotropic RAS grid of `spacing` mm around the head.

    See `ct.read_ct` and `ct.conform`, whose notes and errors are joined.
    """
    volume = ct.read_ct(path, role='NCCT')
    conformed = ct.conform(volume, spacing=spacing)
    return replace(conformed, notes=(*volume.notes, *conformed.notes))


def align_cta(
    path: Path,
    ncct: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    *,
    seed: int = 1,
    work_dir: Path | None = None,
) -> ct.RigidResult:
    """Read a CTA and align it with a conformed NCCT.

    See `ct.read_ct` and `ct.register_cta`, whose notes and errors are joined.

    Raises
    ------
    InputError
        Also when the two scans are not an NCCT and a CTA of one head; see `ct.check_pair`.
    """
    volume = ct.read_ct(path, role='CTA')
    with one_thread():
        result = ct.register_cta(ncct, volume.image, brain, seed=seed, work_dir=work_dir)
    try:
        ct.check_pair(ncct, result.image, brain)
    except InputError as error:
        raise InputError(error.reason, fix=error.fix, path=path) from None
    return replace(result, notes=(*volume.notes, *result.notes), provenance=volume.provenance())


def align_phases(
    paths: Sequence[Path],
    ncct: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    *,
    seed: int = 1,
    work_dir: Path | None = None,
) -> tuple[AlignedPhase, ...]:
    """Align later phases of a CTA with a conformed NCCT, as `align_cta` aligns the first.

    Parameters
    ----------
    paths : sequence of Path
        In the order of acquisition.
    ncct, brain : Nifti1Image
        As in `Prepared`.
    seed, work_dir
        As for `align_cta`.

    Returns
    -------
    tuple of AlignedPhase
        In the same order. One that cannot be read, does not show the brain, or cannot be aligned
        has no image: the patient is computed without it.
    """
    return tuple(_align_phase(path, ncct, brain, seed, work_dir) for path in paths)


def _align_phase(
    path: Path, ncct: nib.Nifti1Image, brain: nib.Nifti1Image, seed: int, work_dir: Path | None
) -> AlignedPhase:
    try:
        found = align_cta(path, ncct, brain, seed=seed, work_dir=work_dir)
    except InputError as error:
        return _left_out(path.name, error.reason)
    except RuntimeError as error:  # of ANTs
        return _left_out(path.name, f'cannot be aligned ({str(error).splitlines()[0]})')
    covered = ct.measure_pair(ncct, found.image, brain)['cta_coverage']
    correlation = found.quality['Correlation']
    reason = ''
    if covered < PHASE_COVERAGE:
        reason = f'shows {100 * covered:.0f} % of the brain'
    elif correlation < PHASE_CORRELATION:
        reason = f'could not be aligned (correlation with the NCCT {correlation:.2f})'
    if reason:
        return replace(_left_out(path.name, reason), quality=found.quality)
    notes = tuple(f'{path.name}: {note}' for note in found.notes)
    return AlignedPhase(path.name, found.image, '', found.quality, found.provenance, notes)


def _left_out(name: str, reason: str) -> AlignedPhase:
    note = f'the later phase {name} of the CTA is left out: {reason}'
    return AlignedPhase(name, reason=reason, notes=(note,))


def align_template(
    ncct: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    *,
    work_dir: Path,
    space: str = DEFAULT_SPACE,
    seed: int = 1,
    sloppy: bool = False,
) -> ct.TemplateTransform:
    """Align a conformed NCCT with a template by its name; see `ct.register_template`."""
    template = ct.load_template(space, spacing=TEMPLATE_MM)
    with one_thread():
        return ct.register_template(
            ncct, brain, template, work_dir=work_dir, seed=seed, sloppy=sloppy
        )


def compute_maps(
    patient: Prepared,
    *,
    settings: PerfusionSettings | None = None,
    fitted: Mapping[str, Any] | None = None,
    device: str = 'cpu',
    threads: int = 1,
    check: bool = True,
    diagnostics: bool = False,
) -> Maps:
    """Compute arrival and perfusion of a prepared patient.

    Parameters
    ----------
    patient : Prepared
        Scans, brain and transforms.
    settings : PerfusionSettings, optional
        How the maps are computed.
    fitted : mapping, optional
        Calibration of a site (`perfusion.join_calibration`); the shipped one by default.
    device : str
        Of torch: ``'cpu'`` or ``'cuda:N'``.
    threads : int
        Threads on the CPU; the maps do not depend on them.
    check : bool
        Whether the likely occlusion is found again with errors added to the scans, so that
        `measure` can withhold one that does not hold.
    diagnostics : bool
        Return also `Maps.controls`, which the maps themselves do not need.

    Returns
    -------
    Maps

    Raises
    ------
    ValueError
        When the brain is empty.
    """
    # Loaded here, because not all who import this module compute maps; before `one_thread`, which
    # holds only what is loaded.
    import torch  # noqa: F401

    with one_thread():
        return _compute_maps(
            patient, settings or PerfusionSettings(), fitted, device, threads, check, diagnostics
        )


@dataclass(frozen=True)
class _Frame:
    """A patient's images as tensors, with what the template says of their positions."""

    ncct: torch.Tensor
    cta: torch.Tensor
    brain: torch.Tensor
    inside: torch.Tensor
    spacing: tuple[float, float, float]
    veins: torch.Tensor
    inflow: torch.Tensor
    white: torch.Tensor
    grey: torch.Tensor
    mirror: perfusion.Mirror
    right: torch.Tensor
    later: Mapping[str, torch.Tensor]


def _compute_maps(
    patient: Prepared,
    settings: PerfusionSettings,
    fitted: Mapping[str, Any] | None,
    device: str,
    threads: int,
    check: bool,
    diagnostics: bool,
) -> Maps:
    import torch

    from bids_perfdeficit.perfusion.threads import run_both

    affine = patient.ncct.affine
    # On a GPU the pieces of work run one after the other in any case.
    pieces = threads if device == 'cpu' else 1

    def image(values: torch.Tensor) -> nib.Nifti1Image:
        # Arrival is infinite outside the brain; images hold 0 there.
        finite = torch.nan_to_num(values.to('cpu', torch.float32), posinf=0.0)
        return nib.Nifti1Image(finite.numpy().T, affine)

    def seconds(values: torch.Tensor) -> nib.Nifti1Image:
        return image((values / DELAY_STEP).round() * DELAY_STEP)

    frame = _frame(patient, settings, device, threads)
    enhancement, reference = _enhance(frame, frame.cta, settings, pieces)
    sources = _find_sources(frame, enhancement, settings)
    later, notes = _enhance_later(frame, settings, pieces)
    subtraction = image(enhancement.subtraction)
    there = _template_points(patient.forward, patient.space, threads)
    late = perfusion.is_late(*_measure_phase(patient, subtraction, there, threads), fitted)

    def synthesize() -> perfusion.PerfusionMaps:
        return _synthesize(
            frame, enhancement, sources, list(later.values()), settings, pieces, fitted,
            diagnostics, reference,
        )  # fmt: skip

    def read_again() -> tuple[perfusion.ReadOut, ...]:
        if late or not check:
            return ()
        return _read_again(patient, there, reference, settings, fitted, device, threads)

    # Side by side: much of either is one piece of work that a single core does.
    maps, others = run_both(synthesize, read_again, pieces)
    controls = {name: values for name, values in maps.features.items() if values.ndim}
    if maps.distance is not None:
        controls['distance'] = maps.distance
    points = torch.nonzero(sources.mask).flip(1).cpu().numpy()
    points = np.round(nib.affines.apply_affine(affine, points), 1).tolist()
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return Maps(
        subtraction,
        image(maps.vesselness),
        image(maps.arrival),
        image(maps.perfusion),
        image(maps.hypoperfused),
        seconds(maps.delay),
        seconds(maps.delay_sd),
        Inflow(sources.method, points, maps.unusual, late),
        (
            *sources.notes,
            *(_UNUSUAL[name] for name in maps.unusual),
            *([_LATE] if late else []),
            *notes,
        ),
        Trust(
            {} if reference is None else _shading(reference),
            () if maps.unusual else others,
            tuple((left, right) for left, right in (maps.member_voxels * voxel_ml).tolist()),
        ),
        {name: image(values) for name, values in controls.items()},
        {name: float(values) for name, values in maps.features.items() if not values.ndim},
        tuple(later),
    )


def _shading(reference: perfusion.ReferenceField) -> dict[str, float]:
    found = {'shading_offset': reference.offset, 'shading_residual': reference.residual}
    for axis, slope, error in zip('xyz', reference.slopes, reference.errors, strict=True):
        found |= {f'shading_{axis}': slope, f'shading_{axis}_error': error}
    known = np.isfinite(reference.slopes).all()
    return found | {
        'shading_applied': max(abs(v) for v in reference.applied) if known else float('nan')
    }


def _frame(patient: Prepared, settings: PerfusionSettings, device: str, threads: int) -> _Frame:
    """Bring a patient's images, priors and mirror onto a device."""
    import torch

    from bids_perfdeficit.perfusion.threads import run_both

    affine, shape = patient.ncct.affine, patient.ncct.shape
    sizes = patient.ncct.header.get_zooms()
    spacing = (float(sizes[2]), float(sizes[1]), float(sizes[0]))

    def tensor(values: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values.T)).to(device, dtype)

    ncct, cta = (tensor(i.get_fdata(dtype=np.float32)) for i in (patient.ncct, patient.cta))
    inside = np.asarray(patient.brain.dataobj) > 0
    brain = tensor(inside, torch.bool)
    grown = perfusion.domain(ncct, brain, spacing, settings)

    box = _bounds(grown.cpu().numpy().T)
    here = _points(affine, box)
    (priors, mirrored, right), nearest = run_both(
        partial(_anatomy, patient, here, inside[box], threads),
        partial(_nearest, inside[box]),
        threads,
    )
    veins, inflow, white, grey = (tensor(_filled(values, shape, box)) for values in priors)

    there = np.zeros(shape, bool)
    there[box] = right.reshape(there[box].shape)

    # Brains are not symmetric: a mirrored position beyond the rim has the value of the rim, as in
    # the calibration, and not the 0 that lies outside.
    places = nib.affines.apply_affine(np.linalg.inv(affine), mirrored.T).T
    places -= np.array([[k.start] for k in box])
    across = _interpolation(places, inside[box].shape, nearest)

    def mirror(values: torch.Tensor) -> torch.Tensor:
        out = np.zeros(shape, np.float32)
        out[inside] = across @ values.cpu().numpy().T[box].ravel()
        return tensor(out)

    later = {}
    for name, scan in patient.later.items():
        values = tensor(np.asarray(scan.dataobj, dtype=np.float32))
        # Where a phase ends there is no change.
        later[name] = values.where(values > _NO_DATA, cta)
    return _Frame(
        ncct, cta, brain, grown, spacing, veins, inflow, white, grey, mirror,
        tensor(there, torch.bool), later,
    )  # fmt: skip


def _nearest(inside: np.ndarray) -> np.ndarray:
    """Return the flat index of the voxel inside that is nearest to each."""
    found = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return np.ravel_multi_index(found, inside.shape).astype(np.int32).ravel()


def _interpolation(
    places: np.ndarray, shape: Sequence[int], nearest: np.ndarray
) -> sparse.csr_array:
    """Return the matrix that reads a flat map of a grid at N places, linearly; (N, voxels).

    `places`, (3, N), are voxel coordinates, beyond the grid those of its border; a voxel that
    is outside of the brain has the value of its `nearest`.
    """
    count = places.shape[1]
    low = np.empty((3, count), np.int32)
    share = np.empty((3, count), np.float32)
    for axis, size in enumerate(shape):
        place = np.clip(places[axis], 0, size - 1)
        low[axis] = np.minimum(place, size - 2)
        share[axis] = place - low[axis]
    index = np.empty((count, 2, 2, 2), np.int32)
    weight = np.empty((count, 2, 2, 2), np.float32)
    first = np.ravel_multi_index(tuple(low), tuple(shape)).astype(np.int32)
    for corner in np.ndindex(2, 2, 2):
        index[(slice(None), *corner)] = first + np.ravel_multi_index(corner, tuple(shape))
        x, y, z = (part if far else 1 - part for part, far in zip(share, corner, strict=True))
        weight[(slice(None), *corner)] = x * y * z
    return sparse.csr_array(
        (weight.ravel(), nearest[index.ravel()], np.arange(0, 8 * count + 1, 8, dtype=np.int32)),
        shape=(count, math.prod(shape)),
    )


def _enhance(
    frame: _Frame, cta: torch.Tensor, settings: PerfusionSettings, threads: int
) -> tuple[perfusion.Enhancement, perfusion.ReferenceField | None]:
    """Subtract one phase, and take the shading away from it."""
    enhancement = perfusion.enhance(
        frame.ncct, cta, frame.brain, frame.spacing, inside=frame.inside, settings=settings,
        threads=threads,
    )  # fmt: skip
    if settings.reference_field != 'fitted':
        return enhancement, None
    reference = perfusion.fit_reference(
        frame.ncct, enhancement.subtraction, frame.brain, frame.spacing,
        veins=frame.veins, white=frame.white, grey=frame.grey, threads=threads,
    )  # fmt: skip
    return reference.correct(enhancement), reference


def _enhance_later(
    frame: _Frame,
    settings: PerfusionSettings,
    threads: int,
) -> tuple[dict[str, perfusion.Enhancement], list[str]]:
    """Return the later phases that can be used, without their shading, and notes."""
    used: dict[str, perfusion.Enhancement] = {}
    notes = []
    for name, cta in frame.later.items():
        if float((cta - frame.cta)[frame.brain].abs().mean()) < _SAME_HU:
            notes.append(_left_out(name, 'holds the same data as the first phase').notes[0])
            continue
        used[name], _ = _enhance(frame, cta, settings, threads)
    return used, notes


def _find_sources(
    frame: _Frame, enhancement: perfusion.Enhancement, settings: PerfusionSettings
) -> perfusion.Sources:
    return perfusion.find_sources(
        enhancement.subtraction, enhancement.vesselness, frame.inflow, frame.brain, frame.spacing,
        settings=settings,
    )  # fmt: skip


def _synthesize(
    frame: _Frame,
    enhancement: perfusion.Enhancement,
    sources: perfusion.Sources,
    later: Sequence[perfusion.Enhancement],
    settings: PerfusionSettings,
    threads: int,
    fitted: Mapping[str, Any] | None = None,
    diagnostics: bool = False,
    reference: perfusion.ReferenceField | None = None,
) -> perfusion.PerfusionMaps:
    return perfusion.synthesize(
        frame.ncct,
        frame.cta,
        frame.brain,
        sources,
        frame.spacing,
        veins=frame.veins,
        white=frame.white,
        grey=frame.grey,
        mirror=frame.mirror,
        right=frame.right,
        enhancement=enhancement,
        later=later,
        shading=None if reference is None else reference.left,
        residual=None if reference is None else reference.residual,
        settings=settings,
        fitted=fitted,
        diagnostics=diagnostics,
        threads=threads,
    )


def _template_points(forward: Path, space: str, threads: int) -> np.ndarray:
    """Return where the voxels of the template at `TEMPLATE_MM` lie in the patient, (3, N)."""
    grid = ct.load_template(space, spacing=TEMPLATE_MM).brain_mask
    return ct.carry(ct.read_transform(forward), ct.all_points(grid), threads=threads)


def _measure_phase(
    patient: Prepared, subtraction: nib.Nifti1Image, there: np.ndarray, threads: int
) -> tuple[float, float]:
    """Return the HU of arteries and sinuses, which show the phase of the CTA."""
    grid = ct.load_template(patient.space, spacing=TEMPLATE_MM).brain_mask
    (level,) = ct.sample([subtraction], there, threads=threads)
    return perfusion.measure_phase(level.reshape(grid.shape), grid.affine)


def _read_again(
    patient: Prepared,
    there: np.ndarray,
    reference: perfusion.ReferenceField | None,
    settings: PerfusionSettings,
    fitted: Mapping[str, Any] | None,
    device: str,
    threads: int,
) -> tuple[perfusion.ReadOut, ...]:
    """Find the likely occlusion again on a coarse grid, with errors added to the CTA.

    Ends with the first read-out that disagrees with that of the scans as they are: one is enough.
    The first is of the scans as they are, since the coarse grid is a change too. Later phases have
    no part in it. `there` is from `_template_points`.
    """
    from bids_perfdeficit.perfusion.threads import run_all

    coarse = _coarse(patient)
    frame = _frame(coarse, settings, device, threads)
    pieces = threads if device == 'cpu' else 1
    x, y, z = (0.0, 0.0, 0.0) if reference is None else reference.applied
    if reference is not None:
        reference = reference.on(frame.brain)
    template = ct.load_template(patient.space, spacing=TEMPLATE_MM)
    (mask,) = ct.sample([coarse.brain], there, order=0)
    brain = (mask.reshape(template.brain_mask.shape) > 0) & (
        np.asarray(template.brain_mask.dataobj) > 0
    )

    def find(slopes: Sequence[float], shift: Sequence[float]) -> perfusion.OcclusionFinding:
        cta = frame.cta - perfusion.plane(frame.brain, slopes)
        if any(shift):
            moved = ndimage.shift(
                cta.cpu().numpy(), np.divide(shift, frame.spacing), order=1, mode='nearest'
            )
            cta = cta.new_tensor(moved)
        enhancement = perfusion.enhance(
            frame.ncct, cta, frame.brain, frame.spacing, inside=frame.inside, settings=settings
        )
        sources = _find_sources(frame, enhancement, settings)
        maps = _synthesize(
            frame, enhancement, sources, [], settings, 1, fitted, reference=reference
        )
        images = [
            nib.Nifti1Image(values.cpu().numpy().T, coarse.ncct.affine)
            for values in (maps.hypoperfused, maps.subtraction)
        ]
        probability, level = (values.reshape(brain.shape) for values in ct.sample(images, there))
        return perfusion.find_occlusion(
            perfusion.evidence(
                np.where(brain, probability, 0), level, brain, template.brain_mask.affine
            ),
            fitted,
        )

    def look(
        name: str, slopes: Sequence[float], shift: Sequence[float] = (0.0, 0.0, 0.0)
    ) -> perfusion.ReadOut:
        finding = find(slopes, shift)
        return perfusion.ReadOut(name, finding.site, finding.side)

    first = look(f'a grid of {TEMPLATE_MM:g} mm', (x, y, z))
    found = [first]
    changes = [
        partial(look, f'a shading of +{SHADING_HU:g} HU', (x - SHADING_HU, y, z)),
        partial(look, f'a shading of -{SHADING_HU:g} HU', (x + SHADING_HU, y, z)),
        partial(look, f'a shift of {SHIFT_MM:g} mm', (x, y, z), (SHIFT_MM / 3**0.5,) * 3),
        partial(look, f'a shift of -{SHIFT_MM:g} mm', (x, y, z), (-SHIFT_MM / 3**0.5,) * 3),
    ]
    # As many at once as there are threads, and none after one that disagrees.
    while changes and first.site != 'none':
        part, changes = changes[:pieces], changes[pieces:]
        for read in run_all(part, pieces):
            found.append(read)
            if not perfusion.holds(first.site, first.side, read):
                return tuple(found)
    return tuple(found)


def _coarse(patient: Prepared) -> Prepared:
    """Average a patient's images over blocks of about `TEMPLATE_MM`."""
    import torch
    from torch.nn.functional import avg_pool3d

    factor = max(1, round(TEMPLATE_MM / float(patient.ncct.header.get_zooms()[0])))
    if factor == 1:
        return patient
    affine = patient.ncct.affine @ np.diag([factor, factor, factor, 1.0])
    affine[:3, 3] += patient.ncct.affine[:3, :3] @ np.full(3, (factor - 1) / 2)

    def average(image: nib.Nifti1Image) -> np.ndarray:
        values = torch.tensor(image.get_fdata(dtype=np.float32))
        return np.asarray(avg_pool3d(values[None, None], factor)[0, 0].numpy())

    ncct, cta, brain = (average(i) for i in (patient.ncct, patient.cta, patient.brain))
    return replace(
        patient,
        ncct=nib.Nifti1Image(ncct, affine),
        cta=nib.Nifti1Image(cta, affine),
        brain=nib.Nifti1Image((brain >= 0.5).astype(np.uint8), affine),
        later={},
    )


def _anatomy(
    patient: Prepared, here: np.ndarray, inside: np.ndarray, threads: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Read the template's priors at points (3, N), the mirror points of the brain's, and the side.

    The mirror is one map of coordinates: patient to template, over its mid-plane, and back, so
    that a map is interpolated once, from the patient's own grid. The side is whether a point lies
    on the right.
    """
    template = ct.load_template(patient.space, spacing=TEMPLATE_MM)
    shape, affine = template.brain_mask.shape, template.brain_mask.affine
    made = [f(shape, affine) for f in (perfusion.vein_prior, perfusion.inflow_prior)]
    there = ct.carry(ct.read_transform(patient.inverse), here, threads=threads)
    priors = ct.sample(
        [*(nib.Nifti1Image(values, affine) for values in made), template.white, template.grey],
        there,
        threads=threads,
    )
    over = there[:, inside.ravel()] * np.array([[-1.0], [1.0], [1.0]])
    mirrored = ct.carry(ct.read_transform(patient.forward), over, threads=threads)
    return priors, mirrored, there[0] > 0


def _bounds(mask: np.ndarray) -> tuple[slice, ...]:
    spans = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        spans.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(spans)


def _points(affine: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """RAS mm of the voxels of a box, (3, N)."""
    return ct.grid_points(affine, np.mgrid[box].reshape(3, -1).astype(float))


def _filled(values: np.ndarray, shape: Sequence[int], box: tuple[slice, ...]) -> np.ndarray:
    out = np.zeros(tuple(shape), np.float32)
    out[box] = values.reshape(out[box].shape)
    return out


def to_template(patient: Prepared, maps: Maps, *, threads: int = 1) -> StandardMaps:
    """Carry a patient's images to the template; see `carry_images`."""
    return carry_images(
        patient.ncct, patient.cta, patient.brain, maps.toa, maps.perfusion, maps.hypoperfused,
        maps.delay, maps.delay_sd, forward=patient.forward, space=patient.space, threads=threads,
    )  # fmt: skip


def carry_images(
    ncct: nib.Nifti1Image,
    cta: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    toa: nib.Nifti1Image,
    perfusion_map: nib.Nifti1Image,
    hypoperfused: nib.Nifti1Image,
    delay: nib.Nifti1Image,
    delay_sd: nib.Nifti1Image,
    *,
    forward: Path,
    space: str = DEFAULT_SPACE,
    threads: int = 1,
) -> StandardMaps:
    """Resample images of a patient to the template's grid of `TEMPLATE_MM`.

    Parameters
    ----------
    ncct, cta, brain, toa, perfusion_map, hypoperfused, delay, delay_sd : Nifti1Image
        As in `Prepared` and `Maps`.
    forward : Path
        ITK transform of images from the NCCT to the template.
    space : str
        Name of the template.
    threads : int
        Threads; the images do not depend on them.

    Returns
    -------
    StandardMaps
    """
    grid = ct.load_template(space, spacing=TEMPLATE_MM).brain_mask
    points = _template_points(forward, space, threads)

    def read(images: list[nib.Nifti1Image], **options: Any) -> list[np.ndarray]:
        found = ct.sample(images, points, threads=threads, **options)
        return [values.reshape(grid.shape) for values in found]

    def image(values: np.ndarray) -> nib.Nifti1Image:
        return nib.Nifti1Image(values, grid.affine)

    scans = read([ncct, cta], fill=-1000.0)
    (mask,) = read([brain], order=0)
    inside = (mask > 0) & (np.asarray(grid.dataobj) > 0)
    arrival, late, probability, seconds, errors = (
        np.where(inside, values, np.float32(0))
        for values in read([toa, perfusion_map, hypoperfused, delay, delay_sd])
    )
    difference = late - late[::-1]
    return StandardMaps(
        image(scans[0]),
        image(scans[1]),
        image(inside.astype(np.uint8)),
        image(arrival),
        image(late),
        image(probability),
        image(np.where(inside & inside[::-1], difference, np.float32(0))),
        image(seconds),
        image(errors),
    )


def measure(
    patient: Prepared,
    maps: Maps,
    standard: StandardMaps,
    *,
    fitted: Mapping[str, Any] | None = None,
) -> Measurements:
    """Measure a patient's results and their quality; see `measure_images`."""
    return measure_images(
        patient.ncct, patient.cta, patient.brain, maps.subtraction, maps.hypoperfused,
        standard.brain, standard.toa, standard.perfusion, standard.hypoperfused,
        forward=patient.forward, space=patient.space, inflow=maps.inflow, missing=patient.missing,
        found=ct.sidecar_metrics(
            patient.provenance[0],
            {**patient.provenance[1], 'Registration': patient.quality.get('cta', {})},
        ),
        trust=maps.trust, fitted=fitted,
    )  # fmt: skip


def measure_images(
    ncct: nib.Nifti1Image,
    cta: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    subtraction: nib.Nifti1Image,
    hypoperfused: nib.Nifti1Image,
    std_brain: nib.Nifti1Image,
    std_toa: nib.Nifti1Image,
    std_perfusion: nib.Nifti1Image,
    std_hypoperfused: nib.Nifti1Image,
    *,
    forward: Path,
    space: str = DEFAULT_SPACE,
    inflow: Inflow | None = None,
    missing: Sequence[str] = (),
    found: Mapping[str, object] | None = None,
    trust: Trust | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Measurements:
    """Measure volumes, regions, the likely occlusion, and the quality of the scans.

    Parameters
    ----------
    ncct, cta, brain, subtraction, hypoperfused : Nifti1Image
        As in `Prepared` and `Maps`. Volumes of regions add up to that of `hypoperfused` above
        its threshold, which is what the page outlines.
    std_brain, std_toa, std_perfusion, std_hypoperfused : Nifti1Image
        As in `StandardMaps`.
    forward : Path
        ITK transform of images from the NCCT to the template.
    space : str
        Name of the template.
    inflow : Inflow, optional
        Where the front started.
    missing : sequence of str
        Parts of the head that the NCCT does not show.
    found : mapping, optional
        Metrics that were measured when the scans were read; see `ct.sidecar_metrics`.
    trust : Trust, optional
        What was checked of the maps when they were computed.
    fitted : mapping, optional
        Calibration that the maps were computed with; the shipped one by default.

    Returns
    -------
    Measurements
    """
    inflow, trust = inflow or Inflow(), trust or Trust()
    with one_thread():
        template = ct.load_template(space, spacing=TEMPLATE_MM)
        inside = np.asarray(std_brain.dataobj) > 0
        toa, late, probability = (
            i.get_fdata(dtype=np.float32) for i in (std_toa, std_perfusion, std_hypoperfused)
        )
        chosen = perfusion.calibration() if fitted is None else fitted
        threshold = float(chosen['threshold'])
        contrast = np.asarray(
            ct.apply_transform(subtraction, template.brain_mask, forward).dataobj
        )
        regions = perfusion.measure_regions(
            toa,
            late,
            probability,
            inside,
            std_brain.affine,
            threshold=threshold,
            scale=_scale(brain, std_brain, hypoperfused, probability * inside, threshold),
            contrast=contrast,
        )
        finding = perfusion.find_occlusion(
            perfusion.evidence(probability, contrast, inside, std_brain.affine), fitted
        )
        quality: dict[str, object] = dict(
            ct.measure_quality(
                ncct,
                cta,
                brain,
                subtraction,
                std_brain,
                template.brain_mask,
                std_ncct=ct.apply_transform(ncct, template.brain_mask, forward),
                template_density=template.pseudo_ct,
            )
        )
        quality |= found or {}
    hemisphere = regions.set_index('region').loc['hemisphere']
    site_withholds = fitted is not None and bool(fitted.get('occlusion_withheld'))
    reason = (
        'the contrast is unlike any that the perfusion map was calibrated on'
        if inflow.unusual
        else 'the CTA was scanned late'
        if inflow.is_late
        else "the site's own calibration was not made for it"
        if site_withholds
        else perfusion.withhold(
            finding,
            [float(hemisphere[f'hypoperfused_{side}']) for side in ('left', 'right')],  # type: ignore[arg-type]
            trust.others,
        )
    )
    # Of the whole brain: only the first row has them, and only if they can be trusted.
    for column, value in (
        ('occlusion_site', finding.site),
        ('occlusion_side', finding.side),
        ('occlusion_confidence', finding.confidence),
        ('occlusion_any', finding.occluded),
        ('occlusion_next_site', finding.next_site),
        ('occlusion_next_side', finding.next_side),
        ('occlusion_next_confidence', finding.next_confidence),
    ):
        known = None if reason else value
        regions[column] = pd.Series([known], dtype=object).reindex(regions.index)
    _add_intervals(regions, trust.member_ml, fitted)
    regions['occlusion_withheld'] = pd.Series([reason or None], dtype=object).reindex(
        regions.index
    )
    artery, sinus = perfusion.measure_phase(contrast, std_brain.affine)
    quality |= {'artery_contrast': artery, 'sinus_contrast': sinus}
    quality |= trust.shading
    quality |= {
        'coverage_missing': ', '.join(missing) or 'none',
        'inflow_method': inflow.method,
        'inflow_voxels': len(inflow.points),
        'unusual_contrast': ', '.join(inflow.unusual) or 'none',
        'late_scan': 'yes' if inflow.is_late else 'no',
        'arrival_left': hemisphere['arrival_left'],
        'arrival_right': hemisphere['arrival_right'],
    }
    return Measurements(pd.DataFrame([quality]), regions)


def _add_intervals(
    regions: pd.DataFrame,
    member_ml: Sequence[tuple[float, float]],
    fitted: Mapping[str, Any] | None,
) -> None:
    """Add the volume of the whole brain, and the intervals of it and of each side, in mL.

    Only the first row has them: how volumes of regions err has not been measured.
    """
    first = regions.index[0]
    sides = {side: float(regions.loc[first, f'hypoperfused_{side}']) for side in ('left', 'right')}
    parts = {
        side: (volume, [member[k] for member in member_ml])
        for k, (side, volume) in enumerate(sides.items())
    }
    whole = (sum(sides.values()), [sum(member) for member in member_ml])
    added: dict[str, float] = {}
    for side, (volume, each) in parts.items():
        low, high = perfusion.volume_interval(volume, each, fitted)
        added |= {f'hypoperfused_low_{side}': low, f'hypoperfused_high_{side}': high}
    low, high = perfusion.volume_interval(*whole, fitted)
    added |= {'volume_ml': whole[0], 'volume_low_ml': low, 'volume_high_ml': high}
    for column, value in added.items():
        regions[column] = pd.Series([value]).reindex(regions.index)


def _scale(
    brain: nib.Nifti1Image,
    std_brain: nib.Nifti1Image,
    hypoperfused: nib.Nifti1Image,
    std_hypoperfused: np.ndarray,
    threshold: float,
) -> float:
    """Return a patient's volume over that of the template: of the deficit, else of the brain.

    The first makes the volumes of the regions add up to that of the deficit on the patient's own
    grid, which the page outlines; interpolation and the warp would change it by some per cent.
    """
    mask = np.asarray(brain.dataobj) > 0
    own = np.asarray(hypoperfused.dataobj, np.float32)[mask] > threshold
    voxels = [abs(float(np.linalg.det(i.affine[:3, :3]))) for i in (brain, std_brain)]
    pairs = (
        (np.count_nonzero(own), np.count_nonzero(std_hypoperfused > threshold)),
        (np.count_nonzero(mask), np.count_nonzero(np.asarray(std_brain.dataobj))),
    )
    for here, there in pairs:
        if here and there:
            return here * voxels[0] / (there * voxels[1])
    return 1.0


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS, OpenMP and torch to one thread each, and restore what they had.

    Sums of BLAS depend on the number of threads, and so do vectorised functions of torch, which
    round otherwise at the ends of each thread's share: a map would depend on the cores.
    """
    with threadpool_limits(limits=1):
        if 'torch' not in sys.modules:
            yield
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
