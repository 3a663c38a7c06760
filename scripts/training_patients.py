"""Digital patients for fitting the perfusion map: made, disturbed and measured, in a cache.

The registrations are given, with an error; brain, sources, shading and features are the app's own.
Each patient has one of three physics (`phantom.physics`), so that the weights do not learn one,
and is measured as made and, several times, with what scanners and bodies do to a scan
(`draw_errors`). The benchmarks' seeds are others. Must not know what is fitted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.perfusion.surroundings import NAMES as AROUND
from bids_perfdeficit.phantom.disturbance import disturb
from bids_perfdeficit.phantom.patient import Patient, make_patient
from bids_perfdeficit.phantom.settings import (
    PHYSICS,
    VOLTAGES,
    Occlusion,
    PersonSettings,
    ScanErrors,
    ScannerSettings,
)

SPACING = 2.0
SITES = (
    'none', 'ICA', 'M1', 'M2sup', 'M2inf', 'A2', 'P2', 'BA', 'M1', 'M1', 'M2sup', 'M2inf',
)  # fmt: skip
#: Seeds from here on are scanned late, between so many seconds after the arterial peak.
LATE_SEED, LATE_PHASE = 500, (3.0, 7.0)
#: Seeds of more patients with open arteries: from here, every so many.
OPEN_SEED = 600
#: Seeds from here on have a body or a scan of another kind: leukoaraiosis, a carotid stenosis, a
#: tube voltage of the CTA.
BODY_SEED = 900
#: mm, standard deviation of what registration of the CTA, and the normalisation, may leave.
REGISTRATION_MM, NORMALISATION_MM = 0.3, 1.5
#: Grid of the template space, mm and voxels.
LOW, SHAPE = np.array([-98, -134, -72.0]), (99, 117, 95)


def draw(seed: int) -> Patient:
    rng = np.random.default_rng(seed)
    side = 'LR'[rng.integers(2)]
    thickness = [None, None, 3.0, 5.0][rng.integers(4)]
    occlusion = Occlusion(
        site=SITES[seed % len(SITES)],
        side=side,
        collaterals=float(rng.beta(3, 2.2)),
        position=float(rng.uniform(0, 0.6)),
        onset_hours=float(rng.uniform(1, 6)),
    )
    scanner = ScannerSettings(ncct_thickness=thickness)
    if LATE_SEED <= seed < OPEN_SEED:
        phase = float(np.random.default_rng([seed, 9]).uniform(*LATE_PHASE))
        scanner = replace(scanner, phase=phase)
    person = PersonSettings(physics=PHYSICS[seed // len(SITES) % len(PHYSICS)])
    if seed >= BODY_SEED:
        other = np.random.default_rng([seed, 11])
        scanner = replace(scanner, cta_kvp=int(other.choice(list(VOLTAGES))))
        person = replace(
            person,
            leukoaraiosis=float(other.uniform()),
            stenosis=float(other.uniform(0.4, 0.9)) if other.random() < 0.6 else 0.0,
            stenosis_side='LR'[other.integers(2)],
        )
    return make_patient(seed, occlusion, spacing=SPACING, scanner=scanner, person=person)


def patient_images(
    seed: int, cache: Path, make: Callable[[int], Patient] = draw
) -> dict[str, Any]:
    """Make a patient; return images, priors, truth and MNI coordinates on the conformed grid."""
    stored = cache / f'{seed}.npz'
    if stored.is_file():
        with np.load(stored) as found:
            images = {
                k: found[k].astype(np.float32) if found[k].dtype == np.float16 else found[k]
                for k in found.files
            }
        return images | json.loads(str(images.pop('meta')))
    template = ct.load_template('MNI152NLin2009aSym', spacing=2.0)
    patient = make(seed)
    truth = patient.truth
    with tempfile.TemporaryDirectory() as folder:

        def read(image: nib.Nifti1Image, role: str) -> ct.CTVolume:
            path = Path(folder, 'scan.nii.gz')
            nib.save(image, path)
            return ct.read_ct(path, role=role)

        ncct = ct.conform(read(patient.ncct, 'NCCT'), spacing=SPACING).image
        scans = {'cta': (patient.cta, truth.ncct_to_cta)}
        pairs = zip(patient.later, truth.ncct_to_later, strict=True)
        scans |= {f'cta_{number}': pair for number, pair in enumerate(pairs, 2)}
        ctas = {
            name: ct.resample(read(image, 'CTA').image, ncct.shape, motion @ ncct.affine)
            for name, (image, motion) in scans.items()
        }
        brain = ct.extract_brain(ncct).mask
    index = np.indices(ncct.shape).reshape(3, -1).T
    places = truth.warp.inverse(nib.affines.apply_affine(ncct.affine, index).astype(np.float32))
    mni = places.T.reshape(3, *ncct.shape)
    shape, affine = template.brain_mask.shape, template.brain_mask.affine
    where = np.moveaxis(
        nib.affines.apply_affine(np.linalg.inv(affine), np.moveaxis(mni, 0, -1)), -1, 0
    )
    priors = {
        'inflow': perfusion.inflow_prior(shape, affine),
        'veins': perfusion.vein_prior(shape, affine),
        'white': template.white.get_fdata(dtype=np.float32),
        'grey': template.grey.get_fdata(dtype=np.float32),
    }

    def known(image: nib.Nifti1Image, order: int) -> np.ndarray:
        return np.asarray(resample_from_to(image, ncct, order=order).dataobj)

    images = {
        'ncct': np.asarray(ncct.dataobj, dtype=np.float32),
        **ctas,
        'brain': np.asarray(brain.dataobj) > 0,
        'mni': mni,
        'delay': known(truth.delay, 1),
        'tbrain': known(truth.brain, 0) > 0,
        **{name: ndimage.map_coordinates(k, where, order=1) for name, k in priors.items()},
    }
    meta = {
        'site': patient.occlusion.site,
        'side': patient.occlusion.side,
        'phase': float(patient.scan['phase']),
        'physics': str(patient.person['physics']),
    }
    small = {k: v.astype(np.float16) if v.dtype.kind == 'f' else v for k, v in images.items()}
    np.savez(stored, **small, meta=json.dumps(meta))
    return patient_images(seed, cache, make)  # as a later run will find them, rounded


@dataclass(frozen=True)
class Across:
    """The way of one patient's voxels to their mirrored positions, by the template's grid."""

    inside: np.ndarray
    index: np.ndarray
    count: np.ndarray
    nearest: tuple[np.ndarray, ...]
    there: np.ndarray
    blur: float = 0.7

    @classmethod
    def of(cls, inside: np.ndarray, mni: np.ndarray, blur: float = 0.7) -> Across:
        """`blur`: standard deviation, in voxels, by which maps in the template are smoothed."""
        places = (mni[:, inside].T - LOW) / 2
        rounded = np.rint(places).astype(int)
        kept = ((rounded >= 0) & (rounded < SHAPE)).all(1)
        index = np.full(len(places), -1)
        index[kept] = np.ravel_multi_index(tuple(rounded[kept].T), SHAPE)
        count = np.bincount(index[kept], minlength=int(np.prod(SHAPE))).reshape(SHAPE)
        count = ndimage.gaussian_filter(count.astype(float), blur)
        nearest = ndimage.distance_transform_edt(
            count <= 0.05, return_distances=False, return_indices=True
        )
        there = (mni[:, inside].T * [-1, 1, 1] - LOW) / 2
        return cls(inside, index, count, tuple(nearest), there, blur)

    def to_template(self, values: np.ndarray) -> np.ndarray:
        """Carry values of the voxels inside, (V,), to the 2 mm grid of the template."""
        kept = self.index >= 0
        total = np.bincount(self.index[kept], values[kept], int(np.prod(SHAPE))).reshape(SHAPE)
        level = ndimage.gaussian_filter(total, self.blur) / np.maximum(self.count, 0.05)
        return np.asarray(level[self.nearest], np.float32)

    def mirror(self, values: torch.Tensor) -> torch.Tensor:
        """Carry a map, (Z, Y, X), to its mirrored position."""
        level = self.to_template(values.numpy().T[self.inside])
        out = np.zeros(self.inside.shape, np.float32)
        out[self.inside] = ndimage.map_coordinates(level, self.there.T, order=1, mode='nearest')
        return torch.from_numpy(np.ascontiguousarray(out.T))


def draw_errors(rng: np.random.Generator) -> tuple[ScanErrors, float]:
    """Draw what a scanner and a patient do to a CTA; also mm of its slices, 0 for thin ones."""

    def sometimes(share: float, value: float) -> float:
        return value if rng.random() < share else 0.0

    slope = [sometimes(0.6, rng.normal(0, sd)) for sd in (1.2, 1.2, 1.0)]
    errors = ScanErrors(
        offset=rng.normal(0, 2.0),
        shading=(slope[0], slope[1], slope[2]),
        cupping=sometimes(0.5, rng.normal(0, 1.3)),
        patches=sometimes(0.5, abs(rng.normal(0, 0.8))),
        patches_mm=rng.uniform(5, 15),
        noise=sometimes(0.5, rng.uniform(0, 20)),
        gain=rng.uniform(0.6, 1.3) if rng.random() < 0.5 else 1.0,
        movement=sometimes(0.3, rng.uniform(0, 2)),
    )
    return errors, sometimes(0.3, float(rng.choice([3.0, 5.0])))


def thicken(values: np.ndarray, mm: float, rng: np.random.Generator) -> np.ndarray:
    """Average a CTA over slices of so many mm, and interpolate between them."""
    count = values.shape[2]
    wide = mm / SPACING
    starts = np.arange(rng.uniform(0, wide), count - wide, wide)
    total = np.cumsum(np.pad(values, [(0, 0), (0, 0), (1, 0)]), 2, dtype=np.float64)

    def until(edge: np.ndarray) -> np.ndarray:
        low = np.floor(edge).astype(int)
        return total[..., low] + (edge - low) * values[..., np.minimum(low, count - 1)]

    slabs = (until(starts + wide) - until(starts)) / wide
    middle = starts + wide / 2 - 0.5
    where = np.interp(np.arange(count), middle, np.arange(len(middle)))
    low = np.clip(np.floor(where).astype(int), 0, len(middle) - 2)
    share = where - low
    return np.asarray(slabs[..., low] * (1 - share) + slabs[..., low + 1] * share, np.float32)


def astray(images: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return priors and positions as a normalisation that errs by a mm or two finds them."""
    shape = images['brain'].shape
    coarse = rng.standard_normal((3, 8, 8, 8))
    shift = [
        ndimage.zoom(ndimage.gaussian_filter(k, 1), np.array(shape) / 8, order=1) for k in coarse
    ]
    moves = np.stack([s * NORMALISATION_MM / s.std() / SPACING for s in shift])
    where = np.indices(shape, dtype=np.float32) + moves.astype(np.float32)

    def carried(values: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(values, where, order=1, mode='nearest')

    moved = {k: carried(images[k]) for k in ('veins', 'white', 'grey', 'inflow')}
    return images | moved | {'mni': np.stack([carried(k) for k in images['mni']])}


def with_errors(images: dict[str, Any], seed: int, variant: int) -> dict[str, Any]:
    """Return a patient's images with errors of the scan, the registration and normalisation."""
    rng = np.random.default_rng([seed, variant, 606])
    errors, thick = draw_errors(rng)
    cta, ncct = images['cta'], images['ncct']
    cta = cta + (errors.gain - 1) * np.where(ncct > -500, cta - ncct, 0)
    if rng.random() < 0.3:
        shift = rng.normal(0, REGISTRATION_MM / SPACING, 3)
        cta = ndimage.shift(cta, shift, order=1, mode='nearest')
    places = np.argwhere(images['brain'])
    edges = np.stack([places.min(0), places.max(0)]) * SPACING
    cta = disturb(cta, np.diag([SPACING] * 3 + [1.0]), edges, errors, rng)
    images = images | {'cta': thicken(cta, thick, rng) if thick else cta}
    return astray(images, rng) if rng.random() < 0.6 else images


def phase_contrast(level: np.ndarray, mni: np.ndarray) -> tuple[float, float]:
    """Return the HU of arteries and sinuses in the template, nearly as the app measures them."""
    affine = np.diag([SPACING] * 3 + [1.0])
    affine[:3, 3] = LOW
    # Of the whole grid: the subtraction is 0 beside the brain, in the app too.
    everywhere = np.ones(level.shape, bool)
    sharp = Across.of(everywhere, mni, blur=0.0).to_template(level[everywhere])
    return perfusion.measure_phase(sharp.astype(float), affine)


def measure(seed: int, cache: Path, variant: int = 0) -> Path:
    """Write the features, (V, F), the truth and the MNI coordinates of one patient to the cache.

    Variant 0 is the scan as it was made; the others are disturbed.
    """
    path = cache / f'{seed}-{variant}.npz'
    if path.is_file():
        return path
    torch.set_num_threads(1)
    images = patient_images(seed, cache)
    delay, known = images['delay'], images['brain'] & images['tbrain']
    meta = {k: images[k] for k in ('site', 'side', 'phase', 'physics')}
    if variant:
        images = with_errors(images, seed, variant)
    names = ('ncct', 'cta', 'brain', 'inflow', 'veins', 'white', 'grey')
    data = {k: torch.from_numpy(np.ascontiguousarray(images[k].T)) for k in names}
    step = (SPACING,) * 3
    priors = {k: data[k] for k in ('veins', 'white', 'grey')}
    plain = perfusion.enhance(data['ncct'], data['cta'], data['brain'], step)
    reference = perfusion.fit_reference(
        data['ncct'], plain.subtraction, data['brain'], step, **priors
    )
    found = reference.correct(plain)
    level = found.subtraction
    sources = perfusion.find_sources(level, found.vesselness, data['inflow'], data['brain'], step)
    across = Across.of(images['brain'], images['mni'])
    features = perfusion.synthesize(
        data['ncct'], data['cta'], data['brain'], sources, step, mirror=across.mirror,
        enhancement=found, shading=reference.left, residual=reference.residual, **priors,
    ).features  # fmt: skip
    features = {name: values for name, values in features.items() if name not in AROUND}
    table = [
        values.numpy().T[known] if values.ndim else np.full(known.sum(), float(values))
        for values in features.values()
    ]
    wide = level.numpy().T
    grown = Across.of(images['brain'] | (wide != 0), images['mni'])
    np.savez(
        path,
        names=list(features),
        features=np.stack(table, 1).astype(np.float16),
        delay=delay[known].astype(np.float16),
        mni=images['mni'][:, known].astype(np.float16),
        subtraction=grown.to_template(wide[grown.inside]).astype(np.float16),
        phase_contrast=phase_contrast(wide, images['mni']),
        meta=json.dumps(meta),
    )
    return path


def recall(path: Path) -> dict[str, Any]:
    """Read what `measure` wrote."""
    with np.load(path) as found:
        patient = {k: found[k] for k in found.files}
    patient['names'] = [str(k) for k in patient['names']]
    seed, variant = path.stem.split('-')
    meta = json.loads(str(patient.pop('meta')))
    return patient | meta | {'seed': int(seed), 'variant': int(variant)}


def where_known(path: Path) -> np.ndarray:
    """Return where the voxels of a scan lie on its grid, (X, Y, Z)."""
    with np.load(path.with_name(f'{path.stem.split("-")[0]}.npz')) as found:
        return np.asarray(found['brain'] & found['tbrain'])
