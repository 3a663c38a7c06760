"""How many made faults the verdict catches, and how many good scans it flags.

Digital patients are scanned and prepared as the app does (reading, conforming, brain extraction,
registration, quality); then one scan or both are spoilt in a known way and prepared again. Flips,
swaps and missing slices are made in the arrays, while headers stay as they are. The table counts
complete, doubtful and failed; a refusal with a message counts as failed.

Run: python benchmarks/verdict.py [--good 40] [--each 4] [--spacing 3]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_perfdeficit import ct
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.phantom.patient import make_patient
from bids_perfdeficit.phantom.settings import Occlusion, ScannerSettings
from bids_perfdeficit.stages.verdict import Verdict, judge

SITES = ('M1', 'none', 'M2inf', 'ICA', 'P2', 'M2sup', 'A2', 'BA')
#: Slice thickness of the NCCT in turn, mm; None for the voxel size.
SLICES = (None, None, 5.0)

Image = nib.Nifti1Image
Pair = tuple[Image, Image]


def with_values(image: Image, values: np.ndarray) -> Image:
    """Return an image with other values on the same grid."""
    return Image(np.asarray(values, np.float32), image.affine)


def array(image: Image) -> np.ndarray:
    """Return the values."""
    return np.asarray(image.dataobj, dtype=np.float32)


def flip(image: Image, axis: int) -> Image:
    """Reverse the voxels along an axis and leave the header."""
    return with_values(image, np.flip(array(image), axis))


def noise(image: Image, seed: int = 0, hu: float = 5.0) -> Image:
    """Scan the same again: the values with other noise."""
    return with_values(
        image, array(image) + np.random.default_rng(seed).normal(0, hu, image.shape)
    )


def drop_slices(image: Image, share: float, mm: float) -> Image:
    """Leave out slices from a level on; the header stays."""
    values = array(image)
    at = int(values.shape[2] * share)
    count = max(2, round(mm / float(np.linalg.norm(image.affine[:3, 2]))))
    return with_values(image, np.concatenate([values[..., :at], values[..., at + count :]], 2))


def positions(image: Image) -> np.ndarray:
    """Return the RAS mm of all voxels, (X, Y, Z, 3)."""
    index = np.moveaxis(np.indices(image.shape), 0, -1)
    return np.asarray(index @ image.affine[:3, :3].T + image.affine[:3, 3])


def open_skull(image: Image, radius: float) -> Image:
    """Replace the skull on the right within a cylinder by soft tissue."""
    values, where = array(image).copy(), positions(image)
    head = where[values > -200]
    low, high = head.min(0), head.max(0)
    centre = (low[1] + high[1]) / 2 + 5, low[2] + 0.72 * (high[2] - low[2])
    hole = np.hypot(where[..., 1] - centre[0], where[..., 2] - centre[1]) < radius
    hole &= (where[..., 0] > (low[0] + high[0]) / 2 + 25) & (values > 100)
    values[hole] = np.random.default_rng(1).normal(40, 6, int(hole.sum()))
    return with_values(image, values)


def cut_right(image: Image, mm: float) -> Image:
    """Cut the outermost millimetres of the head off on one side, as a field of view does."""
    values = array(image)
    head = np.argwhere(values > -200)[:, 0]
    stop = int(head.max() - mm / float(np.linalg.norm(image.affine[:3, 0])))
    return Image(values[:stop], image.affine)


#: Name, what is expected of the verdict, and what is done to NCCT, CTA and another patient's CTA.
FAULTS: tuple[tuple[str, str, Callable[[Image, Image, Image], Pair]], ...] = (
    ('the NCCT twice', 'failed', lambda n, c, o: (n, n)),
    ('the CTA twice', 'failed', lambda n, c, o: (c, c)),
    ('a second NCCT as CTA', 'failed', lambda n, c, o: (n, noise(n))),
    ('swapped', 'failed', lambda n, c, o: (c, n)),
    ('CTA upside down', 'caught', lambda n, c, o: (n, flip(c, 2))),
    ('CTA back to front', 'caught', lambda n, c, o: (n, flip(c, 1))),
    ('CTA mirrored', 'caught', lambda n, c, o: (n, flip(c, 0))),
    ('NCCT mirrored', 'caught', lambda n, c, o: (flip(n, 0), c)),
    ('both upside down', 'caught', lambda n, c, o: (flip(n, 2), flip(c, 2))),
    ('CTA of another patient', 'caught', lambda n, c, o: (n, o)),
    ('NCCT without 30 mm', 'caught', lambda n, c, o: (drop_slices(n, 0.35, 30), c)),
    ('NCCT without 16 mm', 'caught', lambda n, c, o: (drop_slices(n, 0.6, 16), c)),
    ('CTA without 30 mm', 'caught', lambda n, c, o: (n, drop_slices(c, 0.6, 30))),
    ('NCCT cut by 45 mm on a side', 'caught', lambda n, c, o: (cut_right(n, 45), c)),
    ('skull open, 50 mm radius', 'any', lambda n, c, o: (open_skull(n, 50), open_skull(c, 50))),
    ('NCCT shifted by 1024', 'complete', lambda n, c, o: (with_values(n, array(n) + 1024), c)),
    ('CTA shifted by -1024', 'complete', lambda n, c, o: (n, with_values(c, array(c) - 1024))),
    ('NCCT twice as steep', 'complete', lambda n, c, o: (with_values(n, array(n) * 2), c)),
    ('CTA inverted', 'complete', lambda n, c, o: (n, with_values(c, -array(c)))),
    ('NCCT shifted by 500', 'caught', lambda n, c, o: (with_values(n, array(n) + 500), c)),
)  # fmt: skip


def prepare(pair: Pair, spacing: float, folder: Path, *, normalise: bool) -> Verdict:
    """Prepare two scans as the app does and judge them."""
    volumes = []
    for role, image in zip(('NCCT', 'CTA'), pair, strict=True):
        path = folder / f'{role}.nii'
        nib.save(Image(np.rint(array(image)).astype(np.int16), image.affine), path)
        try:
            volumes.append(ct.read_ct(path, role=role))
        except InputError as error:
            return Verdict('failed', (error.reason,))
    ncct, cta = volumes
    try:
        conformed = ct.conform(ncct, spacing=spacing)
        brain = ct.extract_brain(conformed.image, slice_mm=conformed.slice_mm).mask
        aligned = ct.register_cta(conformed.image, cta.image, brain, seed=1).image
        ct.check_pair(conformed.image, aligned, brain)
    except InputError as error:
        return Verdict('failed', (error.reason,))
    template = ct.load_template(spacing=2.0)
    std_brain, std_ncct = template.brain_mask, None
    if normalise:
        found = ct.register_template(
            conformed.image, brain, template, work_dir=folder, seed=1, sloppy=True
        )
        std_brain = ct.apply_transform(
            brain, template.brain_mask, found.forward, interpolation='nearest'
        )
        std_ncct = ct.apply_transform(
            conformed.image, template.brain_mask, found.forward, fill=-1000.0
        )
    metrics: dict[str, object] = dict(
        ct.measure_quality(
            conformed.image, aligned, brain,
            with_values(aligned, array(aligned) - array(conformed.image)),
            std_brain, template.brain_mask,
            std_ncct=std_ncct, template_density=template.pseudo_ct if normalise else None,
        )
    )  # fmt: skip
    if not normalise:
        metrics.pop('template_correlation')
    metrics |= ct.sidecar_metrics(ncct.provenance(), cta.provenance())
    metrics['coverage_missing'] = ', '.join(conformed.coverage.missing) or 'none'
    return judge(metrics)


def scan(seed: int, spacing: float) -> Pair:
    """Make a digital patient and scan it."""
    thickness = SLICES[seed % len(SLICES)]
    patient = make_patient(
        seed, Occlusion(site=SITES[seed % len(SITES)]), spacing=spacing,
        scanner=ScannerSettings(ncct_thickness=thickness, tilt=12.0 if seed % 8 == 2 else 0.0),
    )  # fmt: skip
    return patient.ncct, patient.cta


def main() -> None:
    """Print a line for each pair, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--good', type=int, default=40)
    parser.add_argument('--each', type=int, default=4)
    parser.add_argument('--spacing', type=float, default=3.0)
    arguments = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    pairs = [scan(2000 + k, arguments.spacing) for k in range(arguments.good)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def count(what: str, pair: Pair, *, normalise: bool) -> None:
            found = prepare(pair, arguments.spacing, folder, normalise=normalise)
            counts.setdefault(what, Counter())[found.status] += 1
            print(what, found.status, *found.reasons, sep='; ', flush=True)

        for k in range(arguments.each):
            ncct, cta = pairs[k]
            other = pairs[(k + 1) % len(pairs)][1]
            for what, _, spoil in FAULTS:
                count(what, spoil(ncct, cta, other), normalise=what.startswith('both'))
        for pair in pairs:
            count('good', pair, normalise=True)
    expected = {what: wanted for what, wanted, _ in FAULTS} | {'good': 'complete'}
    print('\n| scans | n | complete | doubtful | failed | wanted |\n|---|---|---|---|---|---|')
    for what, row in counts.items():
        cells = ' | '.join(str(row[s]) for s in ('complete', 'doubtful', 'failed'))
        print(f'| {what} | {row.total()} | {cells} | {expected[what]} |')


if __name__ == '__main__':
    main()
