"""Map one patient from Python, without BIDS and without Nipype.

A digital patient stands in for your own scans: replace `ncct` and `cta` by them.

Run: python examples/map_one_patient.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nibabel as nib

from bids_perfdeficit import phantom, pipeline

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
ncct, cta = folder / 'ncct.nii.gz', folder / 'cta.nii.gz'
occlusion = phantom.Occlusion(site='M1', side='L', collaterals=0.4)
made = phantom.make_patient(7, occlusion, spacing=2.0)
nib.save(made.ncct, ncct)
nib.save(made.cta, cta)

patient = pipeline.prepare(ncct, cta, work_dir=folder, spacing=2.0)
maps = pipeline.compute_maps(patient)
standard = pipeline.to_template(patient, maps)
whole = pipeline.measure(patient, maps, standard).regions.iloc[0]

volume = whole.hypoperfused_left + whole.hypoperfused_right
print(f'hypoperfused: {volume:.0f} mL (true: {made.truth.volumes["hypoperfused"]:.0f} mL)')
print(f'likely occlusion: {whole.occlusion_site}, {whole.occlusion_side} '
      f'({whole.occlusion_confidence:.0%})')  # fmt: skip
nib.save(maps.perfusion, folder / 'perfusion.nii.gz')
print(f'map: {folder / "perfusion.nii.gz"}')
