"""One patient from two scans to numbers, as a notebook runs it; and the same by the interfaces."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from threadpoolctl import threadpool_info

from bids_perfdeficit import ct, perfusion, pipeline
from bids_perfdeficit.interfaces.ct import ToTemplate
from bids_perfdeficit.interfaces.perfusion import ComputePerfusion
from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.pipeline.patient import _coarse, _interpolation, _nearest
from bids_perfdeficit.stages.verdict import judge

SPACING = 3.0
#: Characters with a meaning in ANTs' options, in shells, in wildcards or in ConfigParser.
ODD = 'a, b [c] {d} \'e\' "f" $g %(h)s *ü;'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('work') / ODD
    path.mkdir()
    return path


@pytest.fixture(scope='module')
def patient(stroke_dataset, folder):
    scans = stroke_dataset / 'sub-01' / 'ct'
    return pipeline.prepare(
        scans / 'sub-01_ct.nii.gz',
        scans / 'sub-01_cta.nii.gz',
        work_dir=folder,
        spacing=SPACING,
        seed=3,
        sloppy=True,
    )


@pytest.fixture(scope='module')
def maps(patient):
    return pipeline.compute_maps(patient)


@pytest.fixture(scope='module')
def standard(patient, maps):
    return pipeline.to_template(patient, maps)


def values(image):
    return np.asarray(image.dataobj)


def save(image, path):
    nib.save(image, path)
    return path


def test_scans_are_prepared_in_a_folder_with_any_name(patient, folder):
    """Also a wildcard in the name must not lead ANTs to files of others."""
    assert patient.forward.parent == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        'template_Composite.h5', 'template_InverseComposite.h5',
    ]  # fmt: skip
    for image in (patient.ncct, patient.cta, patient.brain):
        assert image.shape == patient.ncct.shape
        assert np.array_equal(image.affine, patient.ncct.affine)
        assert image.header.get_zooms() == (SPACING,) * 3
    assert patient.quality['cta']['Correlation'] > 0.9
    assert patient.quality['template']['BrainDice'] > 0.9
    assert patient.missing == ()


def test_a_registration_that_fails_leaves_nothing_behind(patient, tmp_path, monkeypatch):
    def fail(**options):
        left = Path('rigid_0GenericAffine.mat')
        left.touch()
        assert left.absolute().is_relative_to(tmp_path)
        raise RuntimeError('ANTs failed')

    monkeypatch.setattr('ants.registration', fail)
    with pytest.raises(RuntimeError, match='ANTs failed'):
        ct.register_cta(patient.ncct, patient.cta, patient.brain, seed=1, work_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_maps_have_their_units_and_end_at_the_brain(patient, maps):
    brain = values(patient.brain) > 0
    for name in ('toa', 'perfusion', 'hypoperfused', 'delay', 'delay_sd'):
        found = values(getattr(maps, name))
        assert found.shape == brain.shape
        assert found.dtype == np.float32
        assert (found[~brain] == 0).all()
        assert np.isfinite(found).all()
    assert values(maps.toa)[brain].max() > 50  # mm per unit of speed, in a brain of 150 mm
    for name in ('perfusion', 'hypoperfused', 'vessel'):
        assert values(getattr(maps, name)).min() >= 0
        assert values(getattr(maps, name)).max() <= 1
    assert values(maps.delay).max() <= 12  # s
    assert values(maps.delay_sd)[brain].min() > 0
    assert values(maps.subtraction).max() > 100  # HU of an artery
    assert maps.inflow.method == 'prior'
    low = nib.affines.apply_affine(patient.ncct.affine, np.argwhere(brain)).min(0)
    assert len(maps.inflow.points)
    assert (np.array(maps.inflow.points)[:, 2] < low[2] + 60).all()  # at the base


@pytest.fixture(scope='module')
def brighter(patient):
    """Return a later phase in which the left of the brain has caught up by 8 HU."""
    inside = values(patient.brain) > 0
    left = np.zeros(inside.shape, bool)
    left[: inside.shape[0] // 2] = True
    cta = values(patient.cta) + np.where(inside & left, np.float32(8), np.float32(0))
    return nib.Nifti1Image(cta, patient.cta.affine)


def test_a_later_phase_changes_the_map_and_nothing_else(patient, maps, brighter):
    found = pipeline.compute_maps(replace(patient, later={'two': brighter}), check=False)
    assert found.later == ('two',)
    for name in ('subtraction', 'vessel', 'toa', 'hypoperfused', 'delay', 'delay_sd'):
        assert values(getattr(found, name)).tobytes() == values(getattr(maps, name)).tobytes()
    assert not np.array_equal(values(found.perfusion), values(maps.perfusion))
    assert values(found.perfusion).min() == 0
    assert values(found.perfusion).max() == 1
    assert (values(found.perfusion)[values(patient.brain) == 0] == 0).all()
    assert found.notes == maps.notes


def test_a_phase_that_is_the_same_scan_leaves_the_bytes_of_one_phase(patient, maps):
    found = pipeline.compute_maps(replace(patient, later={'copy': patient.cta}), check=False)
    assert found.later == ()
    for name in ('subtraction', 'vessel', 'toa', 'perfusion', 'hypoperfused'):
        assert values(getattr(found, name)).tobytes() == values(getattr(maps, name)).tobytes()
    assert 'copy of the CTA is left out: holds the same data' in found.notes[-1]


def test_where_a_later_phase_ends_nothing_changes(patient, maps, brighter):
    cut = values(brighter).copy()
    cut[: cut.shape[0] // 2] = -1024.0  # of all that is brighter nothing was scanned
    found = pipeline.compute_maps(
        replace(patient, later={'cut': nib.Nifti1Image(cut, patient.cta.affine)}), check=False
    )
    assert found.later == ()  # nothing differs where it shows anything
    assert values(found.perfusion).tobytes() == values(maps.perfusion).tobytes()


def test_later_phases_that_cannot_be_used_are_left_out_with_a_note(
    patient, stroke_dataset, tmp_path, monkeypatch
):
    damaged = tmp_path / 'damaged.nii.gz'
    damaged.write_bytes((stroke_dataset / 'sub-01/ct/sub-01_cta.nii.gz').read_bytes()[:20_000])
    (found,) = pipeline.align_phases([damaged], patient.ncct, patient.brain)
    assert found.image is None
    assert found.notes == (
        f'the later phase damaged.nii.gz of the CTA is left out: {found.reason}',
    )

    part = values(patient.cta).copy()
    part[..., : part.shape[2] // 2] = -1024.0
    given = {
        'good': (patient.cta, 0.95, ('a note.',)),
        'part': (nib.Nifti1Image(part, patient.cta.affine), 0.95, ()),
        'apart': (patient.cta, 0.5, ()),
    }

    def align(path, *arguments, **options):
        if path.name not in given:
            raise RuntimeError('ANTs failed\nat length')
        image, correlation, notes = given[path.name]
        return ct.RigidResult(np.eye(4), image, {'Correlation': correlation}, notes)

    monkeypatch.setattr('bids_perfdeficit.pipeline.patient.align_cta', align)
    paths = [Path(name) for name in (*given, 'failed')]
    aligned = {p.name: p for p in pipeline.align_phases(paths, patient.ncct, patient.brain)}
    assert [name for name, phase in aligned.items() if phase.image is not None] == ['good']
    assert aligned['good'].notes == ('good: a note.',)
    assert '% of the brain' in aligned['part'].reason
    assert 'correlation with the NCCT 0.50' in aligned['apart'].reason
    assert aligned['failed'].reason == 'cannot be aligned (ANTs failed)'


def test_maps_are_the_same_on_any_number_of_threads(patient, maps):
    before = torch.get_num_threads()
    other = pipeline.compute_maps(patient, threads=3)
    assert torch.get_num_threads() == before
    for name in ('subtraction', 'vessel', 'toa', 'perfusion', 'hypoperfused', 'delay'):
        assert values(getattr(other, name)).tobytes() == values(getattr(maps, name)).tobytes()
    assert other.trust == maps.trust
    again = pipeline.to_template(patient, maps, threads=3)
    once = pipeline.to_template(patient, maps)
    assert values(again.perfusion).tobytes() == values(once.perfusion).tobytes()


def test_libraries_are_held_to_one_thread_and_released():
    before = [pool['num_threads'] for pool in threadpool_info()]
    assert before
    with pipeline.one_thread():
        assert {pool['num_threads'] for pool in threadpool_info()} == {1}
        assert torch.get_num_threads() == 1
    assert [pool['num_threads'] for pool in threadpool_info()] == before


def test_mirror_of_a_patient_in_the_template_is_a_flip(patient, monkeypatch, tmp_path):
    """Scans that lie in the template and are symmetric have no asymmetry; a blob has its own."""
    template = ct.load_template(spacing=2.0)
    xfm = tmp_path / 'identity.txt'
    ct.write_rigid(np.eye(4), xfm)
    seen = {}

    def spy(*arguments, mirror, **options):
        seen['mirror'] = mirror
        raise StopIteration

    monkeypatch.setattr('bids_perfdeficit.perfusion.synthesize', spy)
    brain = template.brain_mask
    ncct = nib.Nifti1Image(values(template.pseudo_ct), brain.affine)
    cta = nib.Nifti1Image(values(template.pseudo_ct) + 200 * (values(brain) > 0), brain.affine)
    here = replace(patient, ncct=ncct, cta=cta, brain=brain, forward=xfm, inverse=xfm)
    with pytest.raises(StopIteration):
        pipeline.compute_maps(here)
    rng = np.random.default_rng(1)
    inside = values(brain) > 0
    noise = np.where(inside, rng.random(brain.shape), 0).astype(np.float32)
    found = seen['mirror'](torch.from_numpy(np.ascontiguousarray(noise.T))).numpy().T
    np.testing.assert_allclose(found, noise[::-1], atol=1e-5)


def test_mirror_beyond_the_rim_has_the_value_of_the_rim(patient, monkeypatch):
    seen = {}

    def spy(*arguments, mirror, **options):
        seen['mirror'] = mirror
        raise StopIteration

    monkeypatch.setattr('bids_perfdeficit.perfusion.synthesize', spy)
    with pytest.raises(StopIteration):
        pipeline.compute_maps(patient)
    brain = values(patient.brain) > 0
    one = torch.from_numpy(np.ascontiguousarray(brain.T.astype(np.float32)))
    np.testing.assert_allclose(seen['mirror'](one).numpy().T, brain, atol=1e-6)


def test_a_map_is_read_linearly_beside_voxels_and_beyond_the_grid():
    rng = np.random.default_rng(3)
    shape = (7, 9, 5)
    grid = rng.standard_normal(shape).astype(np.float32)
    places = rng.uniform(-2, np.array(shape) + 1, (200, 3)).T
    read = _interpolation(places, shape, np.arange(grid.size, dtype=np.int32)) @ grid.ravel()
    expected = ndimage.map_coordinates(grid, places, order=1, mode='nearest')
    np.testing.assert_allclose(read, expected, atol=1e-5)
    # What is outside of the brain is not read: its nearest voxel inside is.
    inside = np.zeros(shape, bool)
    inside[2:5, 3:7, 1:4] = True
    filled = np.where(inside, grid, np.nan)
    read = _interpolation(places, shape, _nearest(inside)) @ filled.ravel()
    assert np.isfinite(read).all()
    assert read.max() <= grid[inside].max() + 1e-6


def test_blocks_of_an_image_of_odd_size_are_averaged_where_they_lie(patient, monkeypatch):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-5.0, 3.0, 7.0)
    x = np.indices((9, 8, 7), dtype=np.float32)
    place = x[0] - 5.0  # RAS mm along x
    image = nib.Nifti1Image(place, affine)
    brain = nib.Nifti1Image((x[0] > 3).astype(np.uint8), affine)
    found = _coarse(replace(patient, ncct=image, cta=image, brain=brain))
    assert found.ncct.shape == (4, 4, 3)
    where = nib.affines.apply_affine(found.ncct.affine, np.argwhere(np.ones((4, 4, 3))))
    np.testing.assert_allclose(values(found.ncct).ravel(), where[:, 0])
    np.testing.assert_allclose(where[0], (-4.5, 3.5, 7.5))
    assert values(found.brain)[:, 0, 0].tolist() == [0, 0, 1, 1]


def test_template_maps_share_a_grid_and_a_mask(standard):
    template = ct.load_template(spacing=pipeline.TEMPLATE_MM)
    mask = values(standard.brain) > 0
    assert mask.mean() > 0.1
    assert not (mask & (values(template.brain_mask) == 0)).any()
    maps = ('toa', 'perfusion', 'hypoperfused', 'asymmetry', 'delay', 'delay_sd')
    for name in ('ncct', 'cta', *maps):
        image = getattr(standard, name)
        assert image.shape == mask.shape
        assert np.array_equal(image.affine, template.brain_mask.affine)
        if name not in ('ncct', 'cta'):
            assert (values(image)[~mask] == 0).all()
    assert values(standard.ncct)[0, 0, 0] == -1000  # outside the scan
    asymmetry = values(standard.asymmetry)
    assert np.array_equal(asymmetry, -asymmetry[::-1])
    both = mask & mask[::-1]
    late = values(standard.perfusion)
    assert np.allclose(asymmetry[both], (late - late[::-1])[both])


def test_results_are_measured(patient, maps, standard):
    found = pipeline.measure(patient, maps, standard)
    row = found.quality.iloc[0]
    volume = np.count_nonzero(values(patient.brain)) * SPACING**3 / 1000
    assert row.brain_volume == pytest.approx(volume)
    assert row.coverage_missing == 'none'
    assert row.inflow_method == 'prior'
    assert row.inflow_voxels == len(maps.inflow.points)
    hemisphere = found.regions.set_index('region').loc['hemisphere']
    assert row.arrival_left == hemisphere.arrival_left
    threshold = perfusion.calibration()['threshold']
    outlined = (values(maps.hypoperfused) > threshold) & (values(patient.brain) > 0)
    both = hemisphere.hypoperfused_left + hemisphere.hypoperfused_right
    assert both == pytest.approx(np.count_nonzero(outlined) * SPACING**3 / 1000, rel=0.01)
    for side in ('left', 'right'):
        low, high = (hemisphere[f'hypoperfused_{end}_{side}'] for end in ('low', 'high'))
        assert low <= hemisphere[f'hypoperfused_{side}'] <= high
        each = [sides[side == 'right'] for sides in maps.trust.member_ml]
        assert np.mean(each) == pytest.approx(hemisphere[f'hypoperfused_{side}'], rel=0.2, abs=3)
        assert hemisphere[f'vessels_{side}'] > 0
    assert hemisphere.volume_ml == pytest.approx(both)
    assert hemisphere.volume_low_ml < both < hemisphere.volume_high_ml
    assert found.regions.volume_high_ml[1:].isna().all()
    assert row.late_scan == 'no'
    assert row.artery_contrast > row.sinus_contrast > 0
    reported, withheld = (found.regions[f'occlusion_{k}'] for k in ('site', 'withheld'))
    assert pd.notna(reported[0]) != pd.notna(withheld[0])
    assert reported[1:].isna().all()
    assert withheld[1:].isna().all()
    for axis in 'xyz':
        assert abs(row[f'shading_{axis}']) < 2
        assert row[f'shading_{axis}_error'] > 0
    assert row.shading_applied >= 0
    assert row.registration_residual == patient.quality['cta']['Residual']


def test_no_occlusion_is_reported_where_the_calibration_does_not_hold(patient, maps, standard):
    doubtful = replace(maps, inflow=replace(maps.inflow, unusual=('venous',)))
    regions = pipeline.measure(patient, doubtful, standard).regions
    columns = [name for name in regions if name.startswith('occlusion')]
    assert len(columns) == 8
    assert regions[columns].drop(columns='occlusion_withheld').isna().all(axis=None)
    assert 'unlike any' in regions.occlusion_withheld[0]


def test_a_late_scan_is_refused_by_name(patient, standard):
    limit = ratio_of(patient) - 0.01
    fitted = perfusion.calibration() | {'late_scan': {'limit': limit}}
    late = pipeline.compute_maps(patient, fitted=fitted)
    assert late.inflow.is_late
    assert late.inflow.unusual == ()
    assert late.trust.others == ()  # nothing is to be checked
    assert any('scanned late' in note for note in late.notes)
    found = pipeline.measure(patient, late, standard, fitted=fitted)
    assert found.quality.late_scan[0] == 'yes'
    assert found.regions.occlusion_withheld[0] == 'the CTA was scanned late'
    assert pd.isna(found.regions.occlusion_site[0])
    verdict = judge(found.quality.iloc[0].to_dict())
    assert verdict.status == 'doubtful'
    assert any('too late after the arterial peak' in reason for reason in verdict.reasons)
    fitted['late_scan'] = {'limit': limit + 0.02}
    assert not pipeline.compute_maps(patient, fitted=fitted, check=False).inflow.is_late


def ratio_of(patient) -> float:
    """Return the logarithm of the contrast of the sinuses over that of the arteries."""
    image = pipeline.compute_maps(patient, check=False).subtraction
    grid = ct.load_template(patient.space, spacing=pipeline.TEMPLATE_MM).brain_mask
    there = ct.carry(ct.read_transform(patient.forward), ct.all_points(grid))
    (level,) = ct.sample([image], there)
    found = perfusion.measure_phase(level.reshape(grid.shape), grid.affine)
    return float(np.log(found[1] / found[0]))


def test_a_site_is_reported_only_if_it_holds_and_lies_on_the_later_side(
    patient, maps, standard, monkeypatch
):
    def found(site, side):
        return lambda measured, fitted=None: perfusion.OcclusionFinding(
            site, side, 0.9, 0.95, 'none', 'n/a', 0.05
        )

    def report(others=()):
        trust = replace(maps.trust, others=tuple(others))
        return pipeline.measure(patient, replace(maps, trust=trust), standard).regions.iloc[0]

    whole = report()
    volumes = {side: whole[f'hypoperfused_{side}'] for side in ('left', 'right')}
    later = max(volumes, key=volumes.get)
    earlier = min(volumes, key=volumes.get)
    assert volumes[later] > volumes[earlier] + 5  # mL; the patient has an occlusion
    monkeypatch.setattr('bids_perfdeficit.perfusion.find_occlusion', found('M1', earlier))
    row = report()
    assert pd.isna(row.occlusion_site)
    assert f'{later} side is the later one' in row.occlusion_withheld
    monkeypatch.setattr('bids_perfdeficit.perfusion.find_occlusion', found('M1', later))
    assert (report().occlusion_site, report().occlusion_side) == ('M1', later)
    assert report([perfusion.ReadOut('x', 'M1', later)]).occlusion_site == 'M1'
    row = report([perfusion.ReadOut('a shift of 1 mm', 'none', 'n/a')])
    assert pd.isna(row.occlusion_site)
    assert pd.isna(row.occlusion_confidence)
    assert 'a shift of 1 mm' in row.occlusion_withheld


def test_read_outs_end_with_the_first_that_disagrees(patient, monkeypatch):
    """One disagreement is enough, and each read-out costs time."""
    reported = iter([('M1', 'left'), ('ICA', 'left'), ('M2', 'right'), ('M1', 'left')])
    monkeypatch.setattr(
        'bids_perfdeficit.perfusion.find_occlusion',
        lambda measured, fitted=None: perfusion.OcclusionFinding(
            *next(reported), 0.9, 0.95, 'none', 'n/a', 0.05
        ),
    )
    others = pipeline.compute_maps(patient).trust.others
    assert [(o.site, o.side) for o in others] == [
        ('M1', 'left'), ('ICA', 'left'), ('M2', 'right'),
    ]  # fmt: skip
    assert [o.condition for o in others[1:]] == ['a shading of +1 HU', 'a shading of -1 HU']
    assert pipeline.compute_maps(patient, check=False).trust.others == ()


def test_shading_is_taken_away_once_and_only_if_asked(patient, maps):
    """A plane that is put into the CTA leaves the subtraction less than half of it."""
    from bids_perfdeficit.perfusion import plane

    brain = torch.from_numpy(np.ascontiguousarray(values(patient.brain).T > 0))
    tilt = plane(brain, (3.0, 0.0, 0.0)).numpy().T
    shaded = replace(patient, cta=nib.Nifti1Image(values(patient.cta) + tilt, patient.cta.affine))
    plain = PerfusionSettings(reference_field='none')
    kept = pipeline.compute_maps(shaded, settings=plain, check=False)
    fitted = pipeline.compute_maps(shaded, check=False)
    inside = (values(patient.brain) > 0) & (np.abs(values(maps.subtraction)) < 200)
    steps = [
        np.polyfit(tilt[inside], (values(m.subtraction) - values(maps.subtraction))[inside], 1)[0]
        for m in (kept, fitted)
    ]
    assert steps[0] > 0.6  # of the whole slope, less what was taken from the patient as it was
    assert abs(steps[1]) < 0.5 * steps[0]
    assert kept.trust.shading == {}
    assert fitted.trust.shading['shading_applied'] > 1


def test_interfaces_compute_the_same(patient, maps, standard, tmp_path):
    files = {
        name: save(getattr(patient, name), tmp_path / f'{name}.nii')
        for name in ('ncct', 'cta', 'brain')
    }
    computed = ComputePerfusion(
        **files, xfm=patient.forward, inverse_xfm=patient.inverse, space=patient.space,
        settings=PerfusionSettings(),
    ).run(cwd=str(tmp_path)).outputs  # fmt: skip
    for name in (
        'subtraction', 'vessel', 'toa', 'perfusion', 'hypoperfused', 'delay', 'delay_sd',
    ):  # fmt: skip
        assert np.array_equal(
            values(nib.load(getattr(computed, name))), values(getattr(maps, name))
        )
    assert computed.meta['InflowPoints'] == maps.inflow.points
    carried = ToTemplate(
        **files, toa=computed.toa, perfusion=computed.perfusion,
        hypoperfused=computed.hypoperfused, delay=computed.delay, delay_sd=computed.delay_sd,
        xfm=patient.forward, space=patient.space,
    ).run(cwd=str(tmp_path)).outputs  # fmt: skip
    for key, name in itertools.chain(
        [('std_preproc_ct', 'ncct'), ('std_preproc_cta', 'cta'), ('std_brain_mask', 'brain')],
        (
            (f'std_{name}', name)
            for name in ('toa', 'perfusion', 'hypoperfused', 'asymmetry', 'delay', 'delay_sd')
        ),
    ):
        assert np.array_equal(
            values(nib.load(getattr(carried, key))), values(getattr(standard, name))
        )
