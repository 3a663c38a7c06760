"""Map one patient from Python, without BIDS and without Nipype.

A digital patient stands in for your own scans: replace `ncct_path` and `cta_path` by them.

Run: python examples/map_one_patient.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bids_perfdeficit import ct, perfusion, phantom


def as_tensor(image: nib.Nifti1Image) -> torch.Tensor:
    """Images are (X, Y, Z), the perfusion room works on (Z, Y, X)."""
    return torch.from_numpy(np.ascontiguousarray(image.get_fdata(dtype=np.float32).T))


def main(folder: Path) -> None:
    # 1. Two scans.
    occlusion = phantom.Occlusion(site='M1', side='L', collaterals=0.4)
    patient = phantom.make_patient(7, occlusion, spacing=2.0)
    ncct_path, cta_path = folder / 'ncct.nii.gz', folder / 'cta.nii.gz'
    nib.save(patient.ncct, ncct_path)
    nib.save(patient.cta, cta_path)

    # 2. Prepare them: RAS and isotropic, the brain, the CTA on the NCCT, the way to the template.
    ncct = ct.conform(ct.read_ct(ncct_path, role='NCCT'), spacing=2.0).image
    brain = ct.extract_brain(ncct).mask
    cta = ct.register_cta(ncct, ct.read_ct(cta_path, role='CTA').image, brain, seed=1).image
    template = ct.load_template('MNI152NLin2009aSym', spacing=2.0)
    warp = ct.register_template(ncct, brain, template, work_dir=folder, seed=1)

    # 3. What anatomy knows beforehand, carried to the patient.
    shape, affine = template.brain_mask.shape, template.brain_mask.affine

    def to_patient(values: np.ndarray) -> torch.Tensor:
        return as_tensor(ct.apply_transform(nib.Nifti1Image(values, affine), ncct, warp.inverse))

    def to_template(values: torch.Tensor) -> np.ndarray:
        image = nib.Nifti1Image(np.ascontiguousarray(values.numpy().T), ncct.affine)
        there = ct.apply_transform(image, template.brain_mask, warp.forward)
        return there.get_fdata(dtype=np.float32)

    # 4. The maps.
    spacing = tuple(float(s) for s in ncct.header.get_zooms()[2::-1])
    scans, inside = (as_tensor(ncct), as_tensor(cta)), as_tensor(brain) > 0
    subtraction = perfusion.subtract(*scans, inside, spacing)
    vessels = perfusion.vesselness(subtraction, spacing)
    sources = perfusion.find_sources(
        subtraction, vessels, to_patient(perfusion.inflow_prior(shape, affine)), inside, spacing
    )
    maps = perfusion.synthesize(
        *scans, inside, sources, spacing,
        veins=to_patient(perfusion.vein_prior(shape, affine)),
        white=to_patient(template.white.get_fdata(dtype=np.float32)),
        grey=to_patient(template.grey.get_fdata(dtype=np.float32)),
        mirror=lambda values: to_patient(to_template(values)[::-1].copy()),
    )  # fmt: skip

    # 5. What they say.
    threshold = perfusion.calibration()['threshold']
    voxel_ml = float(np.prod(spacing)) / 1000
    found = float((maps.hypoperfused > threshold).sum()) * voxel_ml
    told = perfusion.find_occlusion(
        perfusion.evidence(
            to_template(maps.hypoperfused),
            to_template(maps.subtraction),
            template.brain_mask.get_fdata() > 0,
            affine,
        )
    )
    print(f'hypoperfused: {found:.0f} mL (true: {patient.truth.volumes["hypoperfused"]:.0f} mL)')
    print(f'likely occlusion: {told.site}, {told.side} ({told.confidence:.0%})')
    out = folder / 'perfusion.nii.gz'
    nib.save(nib.Nifti1Image(maps.perfusion.numpy().T, ncct.affine), out)
    print(f'map: {out}')


if __name__ == '__main__':
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        main(Path(tempfile.mkdtemp()))
