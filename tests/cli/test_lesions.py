"""Lesion maps of users through the command line: a tree of masks, a table, a page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import output_path
from bids_perfdeficit.cli.run import main
from bids_perfdeficit.settings import DEFAULT_SPACE

COUNT = 60
RES = '8'
QUICK = ('--resolution', RES, '--sloppy', '--folds', '2', '--model', 'spatial', 'ridge',
         'voxelwise')  # fmt: skip
#: RAS mm of what the scores depend on.
PLACE, RADIUS = np.array([-40.0, -16.0, 24.0]), 16.0


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name('bids_perfdeficit')
    return subprocess.run(
        [script, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )


def path(out: Path, key: str, **entities: str) -> Path:
    return output_path(out, key, space=DEFAULT_SPACE, res=RES, **entities)


def mask_path(root: Path, label: str, end: str = 'label-lesion_mask.nii.gz') -> Path:
    name = f'sub-{label}_space-{DEFAULT_SPACE}_{end}'
    return root / 'derivatives/lesions' / f'sub-{label}' / 'anat' / name


def make_lesions(root: Path, count: int, seed: int = 3, prefix: str = '') -> Path:
    """Write masks of the left hemisphere at 3 mm, x flipped, and a table as registries have it."""
    rng = np.random.default_rng(seed)
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = 78, -111, -72
    shape = (53, 63, 54)
    xyz = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    there = ((xyz - PLACE) ** 2).sum(-1) < RADIUS**2
    rows = []
    for number in range(count):
        label = f'{prefix}{number + 1:03d}'
        centre = np.array([rng.uniform(-55, -25), rng.uniform(-60, 30), rng.uniform(0, 50)])
        volume = ((xyz - centre) ** 2).sum(-1) < rng.uniform(15, 35) ** 2
        file = mask_path(root, label)
        file.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume.astype(np.uint8), affine), file)
        total = 20 * volume[there].mean() + rng.uniform(0, 4)
        rows.append({
            'participant_id': f'sub-{label}',
            'age': '89+' if number % 9 == 0 else str(rng.integers(40, 88)),
            'nihss': 'n/a' if number % 11 == 0 else f'{np.rint(total):.1f}',
            'mrs90': str(rng.integers(0, 7)),
        })  # fmt: skip
    pd.DataFrame(rows).to_csv(root / 'participants.tsv', sep='\t', index=False)
    (root / 'dataset_description.json').write_text(
        json.dumps({'Name': 'Lesions', 'BIDSVersion': '1.10.0'})
    )
    return root


@pytest.fixture(scope='module')
def dataset(tmp_path_factory) -> Path:
    """Return masks of which three are of no use."""
    root = make_lesions(tmp_path_factory.mktemp('lesions') / 'raw', COUNT)
    for label, spoil in (
        ('002', lambda v: v * 0),
        ('003', lambda v: np.stack([v, v], -1)),
        ('004', lambda v: -v.astype(np.int16)),
    ):
        file = mask_path(root, label)
        image = nib.load(file)
        nib.save(nib.Nifti1Image(spoil(np.asarray(image.dataobj)), image.affine), file)
    return root


def command(dataset: Path, out: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    return run(
        dataset, out, 'group', '--map-kind', 'lesion', '-d', dataset / 'derivatives/lesions',
        *QUICK, '--items', 'nihss', 'mrs90', '--covariates', 'age', 'total_deficit_volume', *more,
    )  # fmt: skip


@pytest.fixture(scope='module')
def finished(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp('group') / 'out'
    done = command(dataset, out, '--permutations', '2', '--bootstraps', '2')
    assert done.returncode == 0, done.stderr
    return out, done


def test_bad_masks_cost_their_participants_alone(finished):
    out, done = finished
    assert 'age: taken as the bound: 89+' in done.stderr
    people = pd.read_csv(path(out, 'group_cohort'), sep='\t').set_index('participant_id')
    left_out = people[people['status'] == 'left out']['reason']
    assert set(left_out.index) == {'sub-002', 'sub-003', 'sub-004'}
    assert 'is empty' in left_out['sub-002']
    assert '2 volumes instead of one' in left_out['sub-003']
    assert 'negative values' in left_out['sub-004']
    assert 'nihss_total' in people


def test_volumes_are_those_of_the_masks(dataset, finished):
    people = pd.read_csv(path(finished[0], 'group_cohort'), sep='\t').set_index('participant_id')
    for label in ('005', '020'):
        voxels = np.asarray(nib.load(mask_path(dataset, label)).dataobj).sum()
        assert people.loc[f'sub-{label}', 'total_deficit_volume'] == pytest.approx(
            voxels * 0.027, rel=1e-5
        )


def test_nothing_is_said_where_too_few_are_lesioned(finished):
    out, _ = finished
    mask = nib.load(path(out, 'group_mask'))
    inside = np.asarray(mask.dataobj) > 0
    coverage = np.asarray(nib.load(path(out, 'group_coverage')).dataobj)
    assert coverage[inside].min() * (COUNT - 3) >= 5 - 1e-3
    x = mask.affine[0, 0] * np.argwhere(inside)[:, 0] + mask.affine[0, 3]
    assert x.max() < 8, 'all lesions are on the left'
    maps = sorted(path(out, 'group_mask').parent.glob('*_statmap.nii.gz'))
    assert {re.search(r'stat-(\w+)_statmap', m.name)[1] for m in maps} == {
        'effect', 'std', 'prob', 'threshold', 'credible', 't', 'stability',
    }  # fmt: skip
    for file in maps:
        values = np.asarray(nib.load(file).dataobj)
        assert not values[~inside].any(), file.name


@pytest.mark.parametrize('model', ['spatial', 'ridge', 'voxelwise'])
def test_the_place_is_found_and_the_random_score_declares_nothing(finished, model):
    out, _ = finished
    summary = pd.read_csv(path(out, 'group_summary', model=model), sep='\t').set_index('item')
    assert summary.loc['mrs90', 'declared_ml'] == 0
    if model == 'ridge':  # its test has little power in so few
        return
    assert summary.loc['nihss_total', 'declared_ml'] > 0
    clusters = pd.read_csv(path(out, 'group_clusters', model=model), sep='\t')
    peak = clusters.loc[clusters['peak'].idxmax(), ['x', 'y', 'z']].to_numpy(float)
    assert np.linalg.norm(peak - PLACE) < 20


def test_sidecars_say_what_the_maps_are(finished):
    out, _ = finished
    for key, entities in (
        ('group_coverage', {}),
        ('group_cohort', {}),
        ('group_statmap', {'model': 'voxelwise', 'contrast': 'nihsstotal', 'stat': 't'}),
        ('group_params', {'model': 'ridge'}),
    ):
        reported = json.loads(path(out, f'{key}_json', **entities).read_text())
        assert reported['MapKind'] == 'lesion', key
        assert reported['MapEntities'] == {
            'space': DEFAULT_SPACE, 'label': 'lesion', 'suffix': ['mask', 'probseg'],
        }  # fmt: skip
        assert reported['MapThreshold'] == 0.5
        assert reported['MinimumParticipants'] == 5
        assert reported['MinimumCoverage'] == 0.01
        assert 'DeficitThreshold' not in reported
        assert 'mirror' not in json.dumps(reported)
    cohort = json.loads(path(out, 'group_cohort_json').read_text())
    assert 'the volume of the lesion' in cohort['total_deficit_volume']['Description']


def test_masks_are_recorded_by_their_hashes(dataset, finished):
    record = path(finished[0], 'group_record', stage='cohort').read_text()
    assert mask_path(dataset, '005').relative_to(dataset).as_posix() in record
    assert 'SHA256' in record


def test_the_page_speaks_of_lesions(finished):
    page = (finished[0] / 'group.html').read_text()
    text = re.sub(r'<script.*?</script>|<style.*?</style>', '', page, flags=re.S)
    assert 'Lesion-deficit maps of the group' in text
    assert 'Share of participants with a lesion in each voxel' in text
    assert 'lesion maps on any grid' in text
    assert 'Peak t' in text
    assert 'The outline is the group mask: lesioned in at least 5 participants' in text
    assert 'white line: declared; dark: not analysed' in ''.join(
        figure.read_text()
        for figure in path(
            finished[0], 'group_figure', model='x', contrast='x', figure='x'
        ).parent.glob('*_desc-map_statmap.svg')
    )
    for word in ('perfusion map', 'later perfusion', 'mean perfusion', ' ill ', 'healthy tissue i',
                 'positive asymmetry', 'computed perfusion maps'):  # fmt: skip
        assert word not in text, word


def test_a_second_run_does_nothing_and_a_changed_mask_is_read_again(dataset, finished, tmp_path):
    out, _ = finished
    more = ('--permutations', '2', '--bootstraps', '2')
    assert 'nothing was done' in command(dataset, out, *more).stdout
    reported = command(dataset, out, *more, '--min-coverage', '0.2', '--dry-run').stdout
    assert 'fit (' in reported
    reported = command(dataset, out, *more, '--map-threshold', '0.4', '--dry-run').stdout
    assert 'fit (' in reported
    file = mask_path(dataset, '005')
    held = file.read_bytes()
    try:
        file.write_bytes(mask_path(dataset, '006').read_bytes())
        assert 'fit (' in command(dataset, out, *more, '--dry-run').stdout
    finally:
        file.write_bytes(held)


def test_a_model_of_lesions_predicts_new_ones(finished, tmp_path, capsys):
    new = make_lesions(tmp_path / 'new', 6, seed=8, prefix='new')
    common = [
        new, tmp_path / 'out', 'group', '-d', new / 'derivatives/lesions', '--resolution', RES,
        '--apply', finished[0],
    ]  # fmt: skip
    done = run(*common, '--map-kind', 'lesion')
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(path(tmp_path / 'out', 'group_applied', model='spatial'), sep='\t')
    assert set(table['participant_id']) == {f'sub-new{n:03d}' for n in range(1, 7)}
    for options, piece in (
        (('--map-kind', 'lesion', '--map-threshold', '2'), 'give --map-threshold 0.5'),
        ((), 'give --map-kind lesion'),
    ):
        code = main([str(a) for a in (*common, *options)])
        assert code == 2
        assert piece in capsys.readouterr().err


def test_a_filter_file_chooses_maps_of_another_unit(tmp_path):
    raw = make_lesions(tmp_path / 'raw', 30)
    for number in range(30):
        file = mask_path(raw, f'{number + 1:03d}')
        image = nib.load(file)
        values = np.asarray(image.dataobj) * 9.0 + 1.0
        end = 'Tmax.nii.gz'
        nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine),
                 mask_path(raw, f'{number + 1:03d}', end))  # fmt: skip
    (tmp_path / 'filter.json').write_text('{"map": {"suffix": "Tmax"}, "ncct": {"run": 1}}')
    common = [
        raw, tmp_path / 'out', 'group', '--map-kind', 'lesion', '-d', raw / 'derivatives/lesions',
        '--bids-filter-file', tmp_path / 'filter.json', '--items', 'nihss', '--resolution', RES,
        '--sloppy', '--folds', '0', '--model', 'ridge',
    ]  # fmt: skip
    wrong = run(*common)
    assert wrong.returncode == 2
    assert '--map-threshold of such maps' in wrong.stdout + wrong.stderr
    done = run(*common, '--map-threshold', '6')
    assert done.returncode == 0, done.stderr
    reported = json.loads(path(tmp_path / 'out', 'group_cohort_json').read_text())
    assert reported['MapEntities'] == {'space': DEFAULT_SPACE, 'suffix': 'Tmax'}
    assert reported['MapThreshold'] == 6
    page = (tmp_path / 'out/group.html').read_text()
    assert 'given maps (suffix Tmax)' in page
    assert 'lesioned' not in page


@pytest.mark.parametrize(
    ('options', 'piece'),
    [
        (('--map-kind', 'lesions'), "'lesions' is not one of perfusion, asymmetry, hypoperfused"),
        (('--map-threshold', '6'), 'is for maps of your own'),
        (('--map-kind', 'lesion', '--map-threshold', '0'), 'must be above 0'),
        (('--map-kind', 'lesion'), 'name the folder that holds sub-*/ with --derivatives'),
    ],
)
def test_wrong_options_are_refused_with_what_to_do(dataset, tmp_path, capsys, options, piece):
    code = main([str(a) for a in (dataset, tmp_path / 'out', 'group', *options)])
    assert code == 2
    assert piece in capsys.readouterr().err
