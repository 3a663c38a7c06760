"""What the level evaluate finds on digital patients laid out as ISLES'24 is released.

Patients are drawn as in `perfusion.py`, and go through the commands that users type. Each is
compared twice: with the true delay, for which the figures must be those of `perfusion.py`, and
with a Tmax as software for CT perfusion computes it from that delay: with noise, cut off at 0 and
12 s, in slices of 5 mm of a slab, with islands of late values in and outside the brain. The mask
of the occlusion is that of the clot's arteries. Then each reference is given to each other
patient.

Run: python benchmarks/evaluation.py FOLDER [--patients 8] [--seed 1000] [--spacing 2]
     [--names new] [--sloppy]; a second run in the same folder goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from perfusion import draw
from scipy import ndimage

from bids_perfdeficit.bids import output_path
from bids_perfdeficit.bids.references import find_strangers
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.phantom.patient import Patient
from bids_perfdeficit.pipeline import MAPS, MEASURES, read_reference

#: Names of participants and sessions in the releases.
NAMES = {'old': ('sub-stroke{:04d}', 'ses-01'), 'new': ('sub-strokecase{:04d}', 'ses-0001')}
#: s of noise of the made Tmax, with a grain of 2 mm; s at which it ends.
NOISE_S, TOP_S = 1.0, 12.0
#: mm of the slab that CT perfusion covers, and of its slices; radius of the clot in mm.
SLAB_MM, SLICE_MM, CLOT_MM = 100.0, 5.0, 2.5


def made_tmax(patient: Patient, seed: int) -> nib.Nifti1Image:
    """Return what software would compute: see the head of this file."""
    rng = np.random.default_rng([seed, 99])
    truth = patient.truth.delay
    sizes = np.array(truth.header.get_zooms()[:3], float)
    delay = np.asarray(truth.dataobj, np.float32)
    brain = np.asarray(patient.truth.brain.dataobj) > 0
    noise = ndimage.gaussian_filter(rng.standard_normal(delay.shape), 2.0 / sizes)
    values = delay + NOISE_S * noise / noise.std()
    rim = ndimage.binary_dilation(brain, iterations=4) & ~brain
    for where, count in ((rim, 6), (brain, 6)):  # islands of 6 mm
        for place in rng.permutation(np.argwhere(where))[:count]:
            away = np.linalg.norm((np.moveaxis(np.indices(delay.shape), 0, -1) - place) * sizes,
                                  axis=-1)  # fmt: skip
            values[(away < 3) & (brain | rim)] = 10
            brain |= (away < 3) & rim
    values = np.where(brain, np.clip(values, 0, TOP_S), 0)
    step = max(1, round(SLICE_MM / sizes[2]))
    where = np.flatnonzero(brain.any((0, 1)))
    last = where[-1] - int(10 / sizes[2])
    first = max(int(last - SLAB_MM / sizes[2]), where[0])
    affine = truth.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (first + (step - 1) / 2)
    affine[:3, 2] *= step
    count = (last - first) // step
    slab = values[:, :, first : first + count * step]
    slab = slab.reshape(*slab.shape[:2], count, step).mean(-1)
    return nib.Nifti1Image(slab.astype(np.float32), affine)


def clot(patient: Patient) -> nib.Nifti1Image:
    """Return the mask of the occlusion; empty where no artery is occluded."""
    truth = patient.truth
    nodes = truth.points[truth.circulation.blocked]
    grid = truth.delay
    mask = np.zeros(grid.shape, np.uint8)
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    places = nib.affines.apply_affine(grid.affine, index)
    for node in nodes:
        mask[np.linalg.norm(places - node, axis=-1) < max(CLOT_MM, 0.9 * grid.affine[2, 2])] = 1
    return nib.Nifti1Image(mask, grid.affine)


def write(root: Path, number: int, seed: int, spacing: float, names: tuple[str, str]) -> None:
    """Write a patient as the release has it, and the truth beside it."""
    sub, ses = names[0].format(number), names[1]
    prefix = f'{sub}_{ses}'
    raw = root / 'raw_data' / sub / ses
    if raw.is_dir():
        return
    patient = draw(seed, spacing)
    maps = root / 'derivatives' / sub / ses / 'perfusion-maps'
    for folder in (raw, maps, root / 'truth'):
        folder.mkdir(parents=True, exist_ok=True)
    nib.save(patient.truth.delay, root / 'truth' / f'{prefix}_delay.nii.gz')
    nib.save(made_tmax(patient, seed), maps / f'{prefix}_space-ncct_tmax.nii.gz')
    mask = clot(patient)
    nib.save(mask, maps.parent / f'{prefix}_space-ncct_lvo-msk.nii.gz')
    nib.save(mask, root / 'truth' / f'{prefix}_lvo-msk.nii.gz')
    nib.save(patient.cta, raw / f'{prefix}_cta.nii.gz')
    nib.save(patient.ncct, raw / f'{prefix}_ncct.nii.gz')


def run(*words: str | Path) -> None:
    script = Path(sys.executable).with_name('bids_perfdeficit')
    code = subprocess.run([script, *map(str, words)], check=False).returncode
    if code not in (0, 1):
        raise SystemExit(code)


def summary(out: Path) -> str:
    """Return the tables of an evaluation, in Markdown."""
    table = pd.read_csv(output_path(out, 'evaluation_metrics'), sep='\t', na_values='n/a')
    table = table.set_index(['map', 'measure'])

    def reported(name: str, measure: str) -> str:
        row = table.loc[(name, measure)]
        if not row['n']:
            return ''
        return f'{row["mean"]:.3f}' + (f' ({row["sd"]:.3f})' if np.isfinite(row['sd']) else '')

    lines = [f'| map | {" | ".join(MEASURES.values())} | side |', '|---' * 7 + '|']
    for name, title in MAPS.items():
        cells = [reported(name, m) for m in (*MEASURES, 'side_matched')]
        lines.append(f'| {title} | {" | ".join(cells)} |')
    lines += ['', '| volumes, side and site | |', '|---|---|']
    for measure in ('concordance', 'bias', 'limit_low', 'limit_high', 'volume_ratio', 'dice',
                    'side', 'site'):  # fmt: skip
        count = int(table.loc[('computed', measure), 'n'])
        lines.append(f'| {measure} ({count}) | {reported("computed", measure)} |')
    people = pd.read_csv(output_path(out, 'evaluation_participants'), sep='\t', na_values='n/a')
    covered = people['covered']
    lines += [
        '',
        f'Covered: {covered.min():.2f} to {covered.max():.2f} of the brain. Notes on '
        f'{people["notes"].notna().sum()} of {len(people)} references.',
    ]
    return '\n'.join(lines)


def exchange(root: Path, out: Path) -> str:
    """Return what becomes of references that were given to each other patient, in Markdown."""
    scans = {p.parent.parent.name: p for p in root.glob('raw_data/*/*/*_ncct.nii.gz')}
    brains = {p.name.split('_')[0]: p for p in out.glob('sub-*/*/ct/*_desc-brain_mask.nii.gz')}
    maps = {p.name.split('_')[0]: p for p in (root / 'truth').glob('*_delay.nii.gz')}
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for name, brain in brains.items():
        image = nib.load(brain)
        for other, path in maps.items():
            found = counts[name == other]
            found['all'] += 1
            found['another grid'] += bool(find_strangers({name: path}, scans))
            try:
                found['doubtful'] += bool(read_reference(path, image).doubts)
            except InputError:
                found['refused'] += 1
    lines = ['| reference | pairs | refused by the grid | refused by the fit | doubtful by it |',
             '|---|---|---|---|---|']  # fmt: skip
    for own, title in ((True, 'own'), (False, "another patient's")):
        c = counts[own]
        lines.append(
            f'| {title} | {c["all"]} | {c["another grid"]} | {c["refused"]} | {c["doubtful"]} |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--patients', type=int, default=8)
    parser.add_argument('--seed', type=int, default=1000, help='of the first patient')
    parser.add_argument('--spacing', type=float, default=2.0, help='mm')
    parser.add_argument('--names', choices=sorted(NAMES), default='new')
    parser.add_argument('--sloppy', action='store_true')
    options = parser.parse_args()
    root = options.folder
    for k in range(options.patients):
        write(root, k + 1, options.seed + k, options.spacing, NAMES[options.names])
    out = root / 'derivatives' / 'perfdeficit'
    run(root, out, 'participant', *(['--sloppy'] if options.sloppy else []))
    for title, words in (
        ('The true delay', ('--reference', root / 'truth' / '*_delay.nii.gz')),
        ('A made Tmax', ()),
    ):
        run(root, out, 'evaluate', '--include-doubtful', *words)
        print(f'\n### {title}\n\n{summary(out)}\n')
    print(f'\n### References of other patients\n\n{exchange(root, out)}')


if __name__ == '__main__':
    main()
