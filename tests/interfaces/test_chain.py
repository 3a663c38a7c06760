"""Each interface of the participant level once, in the order of the app, on a small head."""

from __future__ import annotations

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit import ct, perfusion
from bids_perfdeficit.bids import output_path, sidecar_path
from bids_perfdeficit.ct.quality import dice
from bids_perfdeficit.ct.templates import DEFAULT_SPACE
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.interfaces.ct import (
    ConformNCCT,
    ExtractBrain,
    RegisterCTA,
    RegisterTemplate,
    ToTemplate,
)
from bids_perfdeficit.interfaces.derivatives import DerivativesSink
from bids_perfdeficit.interfaces.perfusion import ComputePerfusion
from bids_perfdeficit.interfaces.quality import MeasureResults
from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.stages.record import Record
from bids_perfdeficit.stages.task import Task

SPACING = 3.0


@pytest.fixture(scope='module')
def chain(stroke_dataset, tmp_path_factory):
    """Run the interfaces one after the other; return their outputs by name."""
    cwd = tmp_path_factory.mktemp('chain')
    scans = stroke_dataset / 'sub-01' / 'ct'

    def run(interface):
        return interface.run(cwd=str(cwd)).outputs

    conform = run(ConformNCCT(in_file=scans / 'sub-01_ct.nii.gz', spacing=SPACING))
    brain = run(ExtractBrain(in_file=conform.out_file))
    shared = {'ncct': conform.out_file, 'brain': brain.out_file}
    cta = run(RegisterCTA(**shared, cta=scans / 'sub-01_cta.nii.gz', seed=3))
    template = run(RegisterTemplate(**shared, space=DEFAULT_SPACE, seed=3, sloppy=True))
    maps = run(
        ComputePerfusion(
            **shared,
            cta=cta.out_file,
            xfm=template.out_xfm,
            inverse_xfm=template.out_inverse_xfm,
            space=DEFAULT_SPACE,
            settings=PerfusionSettings(),
        )
    )
    standard = run(
        ToTemplate(
            **shared,
            cta=cta.out_file,
            toa=maps.toa,
            perfusion=maps.perfusion,
            hypoperfused=maps.hypoperfused,
            delay=maps.delay,
            delay_sd=maps.delay_sd,
            xfm=template.out_xfm,
            space=DEFAULT_SPACE,
        )
    )
    files = {
        'preproc_ct': conform.out_file,
        'brain_mask': brain.out_file,
        'preproc_cta': cta.out_file,
        'cta_xfm': cta.out_xfm,
        'template_xfm': template.out_xfm,
        'subtraction': maps.subtraction,
        'toa': maps.toa,
        'perfusion': maps.perfusion,
        'hypoperfused': maps.hypoperfused,
        'delay': maps.delay,
        'delay_sd': maps.delay_sd,
        'std_brain_mask': standard.std_brain_mask,
        'std_toa': standard.std_toa,
        'std_perfusion': standard.std_perfusion,
        'std_hypoperfused': standard.std_hypoperfused,
        'std_delay': standard.std_delay,
        'std_delay_sd': standard.std_delay_sd,
    }
    out = cwd / 'out'
    sink = DerivativesSink(
        keys=files,
        task=Task('all', 1, out, out / 'record.json', {}),
        participant='01',
        space=DEFAULT_SPACE,
        sources=['bids::sub-01/ct/sub-01_ct.nii.gz'],
        facts={'Sloppy': True},
        meta={**conform.meta, **maps.meta},
        **files,
    )
    (cwd / 'out').mkdir()
    return SimpleNamespace(
        conform=conform, brain=brain, cta=cta, template=template, maps=maps, standard=standard,
        sunk=run(sink), files=files, out=out, cwd=cwd,
    )  # fmt: skip


def read(path):
    return np.asarray(nib.load(path).dataobj)


def test_ncct_is_conformed(chain):
    image = nib.load(chain.conform.out_file)
    assert image.header.get_zooms() == (SPACING,) * 3
    assert image.header.get_xyzt_units()[0] == 'mm'
    assert len(chain.conform.meta['SourceSHA256']) == 64
    assert chain.conform.meta['CoverageComplete'] is True


def test_brain_is_extracted(chain):
    mask = read(chain.brain.out_file)
    assert set(np.unique(mask)) == {0, 1}
    assert chain.brain.meta['BrainVolume'] == pytest.approx(mask.sum() * SPACING**3 / 1000)


def test_cta_lies_on_the_ncct(chain):
    ncct, cta = (nib.load(p) for p in (chain.conform.out_file, chain.cta.out_file))
    assert cta.shape == ncct.shape
    assert np.array_equal(cta.affine, ncct.affine)
    assert chain.cta.meta['Registration']['Correlation'] > 0.9
    rotation = ct.read_rigid(chain.cta.out_xfm)[:3, :3]
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)


def test_maps_are_made_in_the_brain(chain):
    mask = read(chain.brain.out_file) > 0
    for name in ('toa', 'perfusion', 'delay', 'delay_sd'):
        values = read(getattr(chain.maps, name))
        assert values.shape == mask.shape
        assert np.isfinite(values).all()
        assert (values[~mask] == 0).all()
        assert values[mask].std() > 0
    assert read(chain.maps.perfusion).min() >= 0
    assert read(chain.maps.perfusion).max() <= 1
    assert chain.maps.meta['InflowPoints']
    assert chain.maps.meta['Device'] == 'cpu'


def test_template_maps_share_a_grid_and_a_mask(chain):
    template = ct.load_template(DEFAULT_SPACE, spacing=2.0)
    mask = read(chain.standard.std_brain_mask) > 0
    assert dice(mask, np.asarray(template.brain_mask.dataobj) > 0) > 0.9
    for name in ('std_preproc_ct', 'std_preproc_cta', 'std_toa', 'std_perfusion', 'std_delay'):
        image = nib.load(getattr(chain.standard, name))
        assert image.shape == template.brain_mask.shape
        assert np.array_equal(image.affine, template.brain_mask.affine)
        assert np.isfinite(read(getattr(chain.standard, name))).all()
    assert (read(chain.standard.std_perfusion)[~mask] == 0).all()
    asymmetry = read(chain.standard.std_asymmetry)
    assert np.allclose(asymmetry, -asymmetry[::-1], atol=1e-5)


def test_outputs_have_their_names_and_sidecars(chain):
    for key, source in chain.files.items():
        path = output_path(chain.out, key, participant='01', session=None, space=DEFAULT_SPACE)
        assert getattr(chain.sunk, key) == str(path)
        facts = json.loads(sidecar_path(path).read_text())
        assert facts['Sloppy'] is True
        assert facts['Sources'] == ['bids::sub-01/ct/sub-01_ct.nii.gz']
        if path.name.endswith('.nii.gz'):
            assert np.array_equal(read(path), read(source))
            assert path.read_bytes()[4:8] == bytes(4), 'gzip carries a time'
    assert not list(chain.out.rglob('*.part'))
    recorded = Record.read(chain.out / 'record.json').outputs
    written = [p for p in chain.out.rglob('*') if p.is_file() and p.name != 'record.json']
    assert set(recorded) == {p.relative_to(chain.out).as_posix() for p in written}


def test_results_are_measured(chain):
    names = (
        'subtraction', 'perfusion', 'hypoperfused', 'std_brain_mask', 'std_toa', 'std_perfusion',
        'std_hypoperfused',
    )  # fmt: skip
    found = MeasureResults(
        ncct=chain.sunk.preproc_ct,
        cta=chain.sunk.preproc_cta,
        brain=chain.sunk.brain_mask,
        space=DEFAULT_SPACE,
        xfm=chain.sunk.template_xfm,
        **{name: getattr(chain.sunk, name) for name in names},
    ).run(cwd=str(chain.cwd))
    quality = pd.read_csv(found.outputs.qc_metrics, sep='\t')
    assert len(quality) == 1
    row = quality.iloc[0]
    assert row.brain_volume == pytest.approx(chain.brain.meta['BrainVolume'], rel=1e-3)
    assert row.skull_dice > 0.7
    assert min(row.arrival_left, row.arrival_right) > 0
    regions = pd.read_csv(found.outputs.regions_metrics, sep='\t')
    assert 'hemisphere' in set(regions.region)
    assert regions.occlusion_side.notna().sum() <= 1
    first, *others = regions.to_dict('records')
    both = first['hypoperfused_left'] + first['hypoperfused_right']
    assert first['volume_ml'] == pytest.approx(both, rel=1e-3)
    assert first['volume_low_ml'] < first['volume_ml'] < first['volume_high_ml']
    assert all(np.isnan(row['volume_high_ml']) for row in others)
    # by each network alone, as it was counted when the maps were made
    each = np.array(chain.maps.meta['VolumesOfMembers'])
    assert each.shape == (len(perfusion.calibration()['members']), 2)
    low, high = perfusion.volume_interval(first['volume_ml'], each.sum(1))
    assert (first['volume_low_ml'], first['volume_high_ml']) == pytest.approx(
        (low, high), rel=1e-3
    )
    voxels = read(chain.maps.hypoperfused) > perfusion.calibration()['threshold']
    assert each.sum(1).mean() == pytest.approx(voxels.sum() * SPACING**3 / 1000, rel=0.2)


def test_input_error_reaches_the_caller(stroke_dataset, tmp_path):
    image = nib.load(stroke_dataset / 'sub-01' / 'ct' / 'sub-01_ct.nii.gz')
    path = tmp_path / 'constant.nii'
    nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine), path)
    with pytest.raises(InputError, match='every voxel'):
        ConformNCCT(in_file=path).run(cwd=str(tmp_path))
