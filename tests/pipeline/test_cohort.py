"""One cohort in a notebook: results are those of the models, and every file says what it is."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit import pipeline
from bids_perfdeficit.bids import sidecar, sidecar_path
from bids_perfdeficit.bids.cohort import TOTAL_VOLUME
from bids_perfdeficit.ct import load_template
from bids_perfdeficit.deficit import DeficitFit, DeficitSettings, model_names
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.settings import DEFAULT_SPACE
from tests.deficit.conftest import FAST, make_cohort

NAMES = ('nihss_5a', 'nihss_5b', 'nihss_9', 'nihss_1a')
FACTS = {
    'Space': DEFAULT_SPACE, 'VoxelSize': 8.0, 'MapKind': 'perfusion', 'MinimumCoverage': 0.02,
    'DeficitThreshold': 0.2, 'RandomSeed': 1, 'Sloppy': False,
}  # fmt: skip
SETTINGS = replace(FAST, permutations=99, voxelwise_permutations=49)


@pytest.fixture(scope='module')
def made():
    return make_cohort(90, 3)


@pytest.fixture(scope='module')
def measures(made):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {TOTAL_VOLUME: rng.uniform(0, 99, 90), 'side': 0.1, 'recipe': 'default'}, index=range(90)
    )


@pytest.fixture(scope='module')
def data(made, measures):
    return pipeline.match_cohort(
        measures, [f'{n:03d}' for n in range(90)], NAMES, made.scores, np.ones((90, 1)),
        covariate_names=['age', TOTAL_VOLUME], facts=FACTS,
    )  # fmt: skip


@pytest.fixture(scope='module')
def fit(made, data):
    return pipeline.fit_model(made.prepared, data, 'ridge', SETTINGS)


@pytest.fixture(scope='module')
def outputs(made, data, measures, fit):
    image = nib.Nifti1Image(made.grid.mask.astype(np.uint8), made.grid.affine)
    rows = pd.DataFrame({'participant_id': [f'sub-{name}' for name in data.participants]})
    rows = rows.assign(
        session_id='', score_session_id='', **dict(zip(NAMES, made.scores.T, strict=True))
    )
    table = pipeline.cohort_table(
        measures, rows, unreadable={3: 'is damaged'}, dropped={'x': 'no map'}
    )
    problem = (made.prepared, data, 'ridge', SETTINGS)
    validation = pipeline.validate_model(*problem, folds=2)
    null = [pipeline.fit_shuffled(*problem, numbers=[n]) for n in (0, 1)]
    stability = [pipeline.fit_resampled(*problem, numbers=[n]) for n in (0, 1)]
    predictions = pipeline.apply_model(fit, made.maps, data)
    return [
        *pipeline.cohort_outputs(data, table, image, image),
        *pipeline.fit_outputs(fit, data, made.prepared),
        *pipeline.validation_outputs(validation, data),
        *pipeline.null_outputs(null, data, 'ridge'),
        *pipeline.stability_outputs(stability, made.grid, data, 'ridge'),
        *pipeline.applied_outputs(predictions, data, 'ridge'),
    ]


def told_of(output) -> dict:
    return sidecar(output.key, **output.facts)


def test_every_column_of_every_table_is_described(outputs):
    tables = [o for o in outputs if isinstance(o.content, pd.DataFrame)]
    assert {o.key for o in tables} == {
        f'group_{name}' for name in ('cohort', 'clusters', 'summary', 'predictions', 'metrics',
                                     'null', 'stability', 'applied')
    }  # fmt: skip
    for output in tables:
        reported = told_of(output)
        for column in output.content.columns:
            assert reported.get(column, {}).get('Description'), (output.key, column)
        described = {k for k, v in reported.items() if isinstance(v, dict) and 'Description' in v}
        assert described <= set(output.content.columns), output.key


def test_words_of_a_column_are_its_levels(outputs):
    for output in outputs:
        if not isinstance(output.content, pd.DataFrame):
            continue
        reported = told_of(output)
        for column in {'status', 'side', 'territory'} & set(output.content.columns):
            if 'Levels' in reported[column]:
                found = set(output.content[column].dropna())
                assert found <= set(reported[column]['Levels']), (output.key, column)


def test_columns_of_a_participant_are_described():
    from bids_perfdeficit.perfusion import measure_regions
    from bids_perfdeficit.reports.words import quality_limits

    zero = np.zeros((4, 4, 4), np.float32)
    affine = np.diag([20.0, 20, 20, 1])
    regions = measure_regions(zero, zero, zero, zero == 0, affine, threshold=0.5)
    for key, columns in (('regions_metrics', regions.columns), ('qc_metrics', quality_limits())):
        reported = sidecar(key)
        assert [c for c in columns if 'Description' not in reported.get(c, {})] == [], key


def test_every_file_says_how_it_was_made(outputs):
    for output in outputs:
        reported = told_of(output)
        wanted = {**FACTS, 'Recipe': 'default', 'N': 90}
        of_cohort = output.key in ('group_cohort', 'group_mask', 'group_coverage')
        if of_cohort or output.key == 'group_applied':  # nothing in it is random
            assert 'RandomSeed' not in reported
            del wanted['RandomSeed']
        for name, value in wanted.items():
            assert reported[name] == value, (output.key, name)
        if not of_cohort:
            assert reported['Model'] == output.entities['model'] == 'ridge'
        if output.key == 'group_statmap':
            assert reported['Item'].replace('_', '') == output.entities['contrast']
            if output.entities['stat'] != 'stability':
                assert {'Cut', 'PValue'} <= reported.keys()
        json.dumps(reported, allow_nan=False)


def test_a_fit_is_that_of_the_models_and_its_maps_are_named(outputs, fit):
    maps = {tuple(o.entities.values()): o for o in outputs if o.key == 'group_statmap'}
    effect = maps['ridge', 'nihss5a', 'effect']
    np.testing.assert_array_equal(np.asarray(effect.content.dataobj)[fit.grid.mask], fit.effect[0])
    assert effect.facts['Description'].startswith('Coefficient of the voxel')
    threshold = np.asarray(maps['ridge', 'nihss5a', 'threshold'].content.dataobj)
    np.testing.assert_array_equal(threshold[fit.grid.mask] != 0, fit.declared[0])
    (params,) = (o for o in outputs if o.key == 'group_params')
    assert isinstance(params.content, DeficitFit)
    assert params.facts['Items'] == list(NAMES)


@pytest.mark.parametrize('model', model_names())
def test_a_model_writes_the_maps_that_it_offers(made, data, model):
    from bids_perfdeficit.deficit import get_model

    one = replace(data, items=data.items[2:3], scores=data.scores[:, 2:3])
    fit = pipeline.fit_model(made.prepared, one, model, SETTINGS)
    found = list(pipeline.fit_outputs(fit, one, made.prepared))
    written = {o.entities['stat'] for o in found if o.key == 'group_statmap'}
    offers = get_model(model).offers
    assert ('prob' in written) == offers.probability
    assert ('credible' in written) == offers.membership
    assert np.isfinite(fit.p_value).all() == offers.test
    assert found[0].facts['AdjustedForCovariates'] == offers.covariates
    assert {'effect', 'threshold'} <= written
    tables = {o.key: o for o in found if isinstance(o.content, pd.DataFrame)}
    assert ('group_territories' in tables) == offers.membership
    row = tables['group_summary'].content.iloc[0]
    assert np.isfinite(row['expected_dice']) == (offers.membership and row['declared_ml'] > 0)


def test_territories_share_out_the_whole_substrate(made, data):
    fit = pipeline.fit_model(made.prepared, data, 'spatial', SETTINGS)
    found = list(pipeline.fit_outputs(fit, data, made.prepared))
    (output,) = (o for o in found if o.key == 'group_territories')
    table, told = output.content, told_of(output)
    assert {c for c in table.columns if 'Description' in told.get(c, {})} == set(table.columns)
    assert set(table['territory']) <= set(told['territory']['Levels'])
    shares = table.groupby('item')['share'].sum()
    np.testing.assert_allclose(shares.drop('nihss_1a'), 1)  # in which nothing is found
    first = table.drop_duplicates('item').set_index('item')
    assert first.loc['nihss_5a', 'side'] == 'right'
    assert first.loc['nihss_5b', 'side'] == 'left'
    summary = next(o for o in found if o.key == 'group_summary').content.set_index('item')
    whole = table.groupby('item')['expected_ml'].sum()
    declared = summary['declared_ml'] > 0
    np.testing.assert_allclose(summary['expected_ml'][declared], whole[summary.index][declared])


def test_data_are_kept_whole(data, tmp_path):
    data.save(tmp_path / 'data.npz')
    back = pipeline.CohortData.load(tmp_path / 'data.npz')
    assert back.participants == data.participants
    assert back.items == data.items
    assert back.covariate_names == data.covariate_names
    assert dict(back.facts) == dict(data.facts)
    np.testing.assert_array_equal(back.scores, data.scores)
    np.testing.assert_array_equal(back.covariates, data.covariates)


def test_scores_follow_the_maps_that_were_kept(made, measures):
    kept = measures.drop(index=[0, 5])
    data = pipeline.match_cohort(kept, [str(n) for n in range(90)], NAMES, made.scores)
    assert '0' not in data.participants
    assert data.participants[4] == '6'
    np.testing.assert_array_equal(data.scores[4], made.scores[6])
    assert data.covariates.shape == (88, 0)


def test_several_recipes_are_all_named(made, measures):
    mixed = measures.assign(recipe=['default', 'published'] * 45)
    data = pipeline.match_cohort(mixed, [str(n) for n in range(90)], NAMES, made.scores)
    assert data.facts['Recipe'] == ['default', 'published']


def test_models_are_applied_by_name_and_never_by_position(made, data, fit):
    straight = pipeline.apply_model(fit, made.maps, data)
    turned = replace(
        data, items=data.items[::-1], scores=data.scores[:, ::-1],
        covariates=data.covariates[:, ::-1], covariate_names=data.covariate_names[::-1],
    )  # fmt: skip
    found = pipeline.apply_model(fit, made.maps, turned)
    np.testing.assert_array_equal(found.eta, straight.eta)
    tables = [
        next(pipeline.applied_outputs(straight, given, 'ridge')).content
        for given in (data, turned)
    ]
    pd.testing.assert_frame_equal(*tables)
    for wrong in (
        replace(data, items=data.items[:3]),
        replace(data, covariate_names=('age', 'weight')),
    ):
        with pytest.raises(InputError, match='the model has'):
            pipeline.apply_model(fit, made.maps, wrong)


def test_recipes_are_read_from_the_sidecars_of_maps(tmp_path):
    brain = load_template(DEFAULT_SPACE, spacing=2.0).brain_mask
    inside = np.asarray(brain.dataobj) > 0
    maps, masks = [], []
    for number in range(3):
        path = tmp_path / f'sub-{number}_map.nii'
        values = np.where(inside, 0.3, 0).astype(np.float32)
        values[: 40 + number] *= 2
        nib.save(nib.Nifti1Image(values, brain.affine), path)
        maps.append(path)
        masks.append(tmp_path / f'sub-{number}_mask.nii')
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), brain.affine), masks[-1])
    arguments = {'space': DEFAULT_SPACE, 'resolution': 10.0}
    assert (
        'recipe'
        not in pipeline.stack_cohort(maps, masks, tmp_path / 'm.npy', **arguments).measures
    )
    sidecar_path(maps[0]).write_text('{"Recipe": "published"}')
    sidecar_path(maps[1]).write_text('not JSON')
    found = pipeline.stack_cohort(maps, masks, tmp_path / 'm.npy', **arguments).measures
    assert found['recipe'].fillna('').tolist() == ['published', '', '']


def test_a_sloppy_run_is_quick_and_nothing_else():
    plain, sloppy = (DeficitSettings.for_run(seed=7, sloppy=s) for s in (False, True))
    assert plain == DeficitSettings(seed=7)
    assert sloppy.permutations < plain.permutations
    assert sloppy.vae_epochs < plain.vae_epochs
    assert sloppy.alpha == plain.alpha
    assert 1 / (sloppy.permutations + 1) <= sloppy.alpha, 'the test can pass'


def test_lesions_are_stacked_without_masks_and_their_sidecars_speak_of_lesions(tmp_path):
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -90, -126, -72
    shape = (46, 55, 46)
    xyz = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    paths = []
    for number in range(12):
        inside = ((xyz - [-36, -20 + 2 * number, 20]) ** 2).sum(-1) < 20**2
        paths.append(tmp_path / f'sub-{number}_label-lesion_mask.nii.gz')
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), affine), paths[-1])
    assert pipeline.check_given(paths, DEFAULT_SPACE) == {}
    stacked = pipeline.stack_cohort(
        paths, [], tmp_path / 'm.npy', space=DEFAULT_SPACE, resolution=8.0, threshold=0.5
    )
    assert (stacked.grid.coordinates[:, 0] < 0).all()
    volume = 4 / 3 * np.pi * 2.0**3
    assert stacked.measures[TOTAL_VOLUME].to_numpy() == pytest.approx(volume, rel=0.05)
    facts = {'MapKind': 'lesion', 'MapThreshold': 0.5, 'MapEntities': {'label': 'lesion'}}
    labels = [f'{n}' for n in range(12)]
    data = pipeline.match_cohort(stacked.measures, labels, NAMES, np.zeros((12, 4)), facts=facts)
    rows = pd.DataFrame({'participant_id': [f'sub-{n}' for n in labels]})
    rows = rows.assign(session_id='', score_session_id='')
    table = pipeline.cohort_table(stacked.measures, rows, unreadable={}, dropped={})
    image = nib.Nifti1Image(stacked.coverage, stacked.grid.affine)
    reported = {o.key: told_of(o) for o in pipeline.cohort_outputs(data, table, image, image)}
    assert 'affected in each voxel' in reported['group_coverage']['Description']
    assert 'volume of the lesion' in reported['group_cohort'][TOTAL_VOLUME]['Description']
    assert reported['group_cohort'][TOTAL_VOLUME]['Units'] == 'mL'
