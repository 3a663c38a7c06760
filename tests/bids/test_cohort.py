"""Who is in a group analysis, and that everyone who is not is reported with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_perfdeficit.bids import output_path
from bids_perfdeficit.bids.cohort import (
    TOTAL_VOLUME,
    add_covariates,
    add_groups,
    add_scores,
    contrast_label,
    find_cohort,
    map_entities,
)
from bids_perfdeficit.errors import InputError

SPACE = 'MNI152NLin2009aSym'


def leave(root: Path, label: str, session: str | None = None, mask: bool = True) -> None:
    """Lay down the names of what the participant level leaves; nobody reads the voxels here."""
    for key in ('std_perfusion', *(('std_brain_mask',) if mask else ())):
        path = output_path(root, key, participant=label, session=session, space=SPACE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')


@pytest.fixture
def out(tmp_path):
    for number in range(1, 6):
        leave(tmp_path / 'out', f'{number:02d}')
    return tmp_path / 'out'


def write(path: Path, text: str) -> Path:
    path.write_text(text.replace(' ', '\t'))
    return path


def test_the_baseline_session_is_taken_and_the_choice_is_told(tmp_path):
    for session in ('24h', 'admission', 'week1'):
        leave(tmp_path, '01', session)
    cohort = find_cohort([tmp_path], space=SPACE)
    assert [e.session for e in cohort.entries] == ['admission']
    assert 'admission' in cohort.notes[0]
    other = find_cohort([tmp_path], space=SPACE, session='ses-24h')
    assert other.entries[0].map.name.startswith('sub-01_ses-24h')


def test_who_has_no_map_or_mask_or_is_unknown_is_left_out_with_the_reason(out):
    (out / 'sub-08').mkdir()
    leave(out, '09', mask=False)
    cohort = find_cohort([out], space=SPACE)
    assert len(cohort.entries) == 5
    assert 'no perfusion map' in cohort.dropped['08']
    assert 'brain_mask.nii.gz is missing' in cohort.dropped['09']
    some = find_cohort([out], space=SPACE, participants=['sub-02', '77'])
    assert some.participants == ('02',)
    assert 'no derivatives' in some.dropped['77']


def test_no_map_at_all_names_the_remedy(tmp_path):
    with pytest.raises(InputError, match='run the participant level first'):
        find_cohort([tmp_path], space=SPACE)


def test_the_first_folder_wins_over_the_second(out, tmp_path):
    leave(tmp_path / 'other', '01')
    leave(tmp_path / 'other', '66')
    cohort = find_cohort([tmp_path / 'other', out], space=SPACE)
    assert len(cohort.entries) == 6
    where = {e.participant: e.map for e in cohort.entries}
    assert tmp_path / 'other' in where['01'].parents
    assert out in where['02'].parents


def test_participants_without_scores_fall_out_and_strangers_are_told(out, tmp_path):
    table = write(
        tmp_path / 'nihss.tsv',
        'participant_id nihss_5a nihss_5b\nsub-01 0 2\nsub-02 n/a UN\nsub-99 1 1\nsub-03 two 1\n',
    )
    cohort, _ = add_scores(find_cohort([out], space=SPACE), table)
    assert cohort.participants == ('01', '03')
    assert list(cohort.scores.columns) == ['nihss_5a', 'nihss_5b']
    assert np.isnan(cohort.scores.loc['03', 'nihss_5a'])
    assert cohort.dropped['02'] == 'there is no score of any item'
    assert cohort.dropped['04'] == 'there is no row in nihss.tsv'
    notes = ' '.join(cohort.notes)
    assert 'have no images' in notes
    assert 'not a whole number' in notes
    kept, _ = add_scores(find_cohort([out], space=SPACE), table, required=False)
    assert len(kept.entries) == 5


@pytest.mark.parametrize(
    ('items', 'piece'),
    [
        (['12'], "'12' is neither an item"),
        (['9'], 'no participant with a map has a score of nihss_9'),
    ],
)
def test_items_that_are_no_items_or_have_no_scores_are_told(out, tmp_path, items, piece):
    table = write(tmp_path / 'nihss.tsv', 'participant_id nihss_5a\nsub-01 0\n')
    with pytest.raises(InputError, match=piece):
        add_scores(find_cohort([out], space=SPACE), table, items=items)


def test_a_named_item_without_a_column_stays_to_be_told_and_others_are_not_spoken_of(
    out, tmp_path
):
    table = write(
        tmp_path / 'nihss.tsv',
        'participant_id nihss_5a nihss_5b\nsub-01 UN 2\nsub-02 1 UN\n',
    )
    cohort, _ = add_scores(find_cohort([out], space=SPACE), table, items=['5b', '9'])
    assert list(cohort.scores.columns) == ['nihss_5b', 'nihss_9']
    assert cohort.scores['nihss_9'].isna().all()
    notes = ' '.join(cohort.notes)
    assert 'nihss_5b: untestable' in notes
    assert 'nihss_5a' not in notes
    every, _ = add_scores(find_cohort([out], space=SPACE), table)
    assert list(every.scores.columns) == ['nihss_5a', 'nihss_5b']
    assert 'nihss_5a: untestable' in ' '.join(every.notes)


@pytest.fixture
def scored(out, tmp_path):
    table = write(
        tmp_path / 'nihss.tsv',
        'participant_id nihss_5a\n' + ''.join(f'sub-0{n} {n % 3}\n' for n in range(1, 6)),
    )
    return add_scores(find_cohort([out], space=SPACE), table)[0]


def test_numbers_stay_and_words_become_columns(scored, tmp_path):
    table = write(
        tmp_path / 'participants.tsv',
        'participant_id age sex site\nsub-01 70 M a\nsub-02 old F b\nsub-03 50 F c\n'
        'sub-04 60 M a\nsub-05 n/a F b\n',
    )
    cohort = add_covariates(scored, ['age', 'sex', TOTAL_VOLUME, 'site'], [table])
    names = ('age', 'age_missing', 'sex_M', 'site_b', 'site_c', TOTAL_VOLUME)
    assert cohort.covariate_names == names
    assert cohort.covariates['age_missing'].tolist() == [0, 1, 0, 0, 1]
    assert cohort.covariates['sex_M'].tolist() == [1, 0, 0, 1, 0]
    assert cohort.covariates['age'].isna().tolist() == [False, True, False, False, True]
    assert any('02 (old)' in note for note in cohort.notes)
    reported = (
        'covariate age: missing for 1, taken as the mean beside the indicator age_missing: 05'
    )
    assert cohort.notes.count(reported) == 1


def test_words_of_new_participants_follow_the_earlier_ones(scored, tmp_path):
    table = write(
        tmp_path / 'participants.tsv',
        'participant_id sex\n' + ''.join(f'sub-0{n} M\n' for n in range(1, 6)),
    )
    cohort = add_covariates(scored, ['sex'], [table], expected=['sex_M'])
    assert cohort.covariates['sex_M'].tolist() == [1] * 5
    with pytest.raises(InputError, match='same value for all'):
        add_covariates(scored, ['sex'], [table])


@pytest.mark.parametrize(
    ('expected', 'names'),
    [
        (['age', 'age_missing', 'sex_M', 'sex_missing'],) * 2,
        (['age', 'sex_M'],) * 2,
    ],
)
def test_new_participants_have_the_indicators_of_the_earlier_ones(
    scored, tmp_path, expected, names
):
    table = write(
        tmp_path / 'participants.tsv',
        'participant_id age sex\nsub-01 70 M\nsub-02 n/a F\nsub-03 50 n/a\nsub-04 60 M\n'
        'sub-05 61 F\n',
    )
    cohort = add_covariates(scored, ['age', 'sex'], [table], expected=expected)
    assert list(cohort.covariate_names) == names
    if 'sex_missing' in names:
        assert cohort.covariates['age_missing'].tolist() == [0, 1, 0, 0, 0]
        assert cohort.covariates['sex_missing'].tolist() == [0, 0, 1, 0, 0]


def test_groups_that_folds_keep_whole(scored, tmp_path):
    table = write(
        tmp_path / 'participants.tsv',
        'participant_id site\nsub-01 a\nsub-02 b\nsub-03 a\nsub-04 b\nsub-05 n/a\n',
    )
    cohort = add_groups(scored, 'site', [table], folds=3)
    assert cohort.groups == ('a', 'b', 'a', 'b', 'n/a')
    assert any('missing for 1, kept together as one group: 05' in n for n in cohort.notes)
    assert cohort.without({'02': 'gone'}).groups == ('a', 'a', 'b', 'n/a')
    with pytest.raises(InputError, match="'site' has 3 groups, which 4 folds cannot keep whole"):
        add_groups(scored, 'site', [table], folds=4)
    with pytest.raises(InputError, match=r"--fold-groups 'centre' is in no table \(columns: site"):
        add_groups(scored, 'centre', [table], folds=2)


def test_a_covariate_that_no_table_has_is_told_with_those_there_are(scored, tmp_path):
    table = write(tmp_path / 'participants.tsv', 'participant_id age\nsub-01 70\n')
    with pytest.raises(InputError, match=r"'height' is in no table \(columns: age\)"):
        add_covariates(scored, ['height'], [table])
    with pytest.raises(InputError, match="'participant_id' is in no table"):
        add_covariates(scored, ['participant_id'], [table])


def test_free_text_is_no_covariate(tmp_path):
    for number in range(1, 8):
        leave(tmp_path / 'out', f'{number:02d}')
    table = write(
        tmp_path / 'scores.tsv',
        'participant_id nihss_5a free\n'
        + ''.join(f'sub-0{n} {n % 3} word{n}\n' for n in range(1, 8)),
    )
    cohort = add_scores(find_cohort([tmp_path / 'out'], space=SPACE), table)[0]
    with pytest.raises(InputError, match='neither a number nor one of up to 5 words'):
        add_covariates(cohort, ['free'], [table])


def test_labels_hold_letters_and_digits_only():
    assert contrast_label('nihss_5a') == 'nihss5a'


def test_the_table_of_the_cohort_holds_what_was_used(tmp_path):
    for number in range(1, 8):
        leave(tmp_path / 'out', f'{number:02d}', 'x' if number == 1 else None)
    (tmp_path / 'scores.csv').write_text(
        'id,visit,nihss_5a,grip,age\n'
        + ''.join(f'{n},base,{n % 3},{40.5 - n},{60 + n}\n' for n in range(1, 6))
        + '6,day1,0,n/a,999\n7,base,2,12,89+\n'
    )
    cohort, _ = add_scores(
        find_cohort([tmp_path / 'out'], space=SPACE),
        tmp_path / 'scores.csv',
        items=['5a', 'grip'],
        higher_is_better=['grip'],
    )
    table = add_covariates(cohort, ['age'], [tmp_path / 'scores.csv']).table()
    assert table['participant_id'].tolist() == [f'sub-0{n}' for n in range(1, 8)]
    assert table['session_id'].tolist() == ['x', *[''] * 6]
    assert table['score_session_id'].tolist() == [*['base'] * 5, 'day1', 'base']
    assert table['nihss_5a'].tolist() == [1, 2, 0, 1, 2, 0, 2]
    assert table['grip'].tolist()[:2] == [39.5, 38.5]
    assert np.isnan(table['grip'][5])
    assert table['grip_level'].dropna().is_monotonic_increasing
    np.testing.assert_array_equal(table['age'], [61, 62, 63, 64, 65, np.nan, 89])
    assert 'nihss_5a_level' not in table


@pytest.mark.parametrize(
    ('better', 'reported'),
    [(['9'], 'is not one of the scores'), (['5a'], 'a higher nihss_5a is worse')],
)
def test_higher_is_better_only_where_it_can_be(out, tmp_path, better, reported):
    table = write(tmp_path / 'nihss.tsv', 'participant_id nihss_5a\nsub-01 0\n')
    with pytest.raises(InputError, match=reported):
        add_scores(find_cohort([out], space=SPACE), table, items=['5a'], higher_is_better=better)


def test_the_usual_direction_of_a_well_known_scale_is_asked_for(out, tmp_path):
    rows = ''.join(f'sub-0{n} {n * 20}\n' for n in range(1, 6))
    table = write(tmp_path / 'x.tsv', f'participant_id barthel\n{rows}')
    cohort, _ = add_scores(find_cohort([out], space=SPACE), table, items=['barthel'])
    assert any('give --higher-is-better barthel' in note for note in cohort.notes)


def test_a_table_with_the_total_alone_is_analysed_by_it(out, tmp_path):
    rows = ''.join(f'sub-0{n} {n}\n' for n in range(1, 6))
    table = write(tmp_path / 'x.tsv', f'participant_id NIHSS\n{rows}')
    cohort, _ = add_scores(find_cohort([out], space=SPACE), table)
    assert list(cohort.scores) == ['nihss_total']
    assert any('its total is used' in note for note in cohort.notes)


def test_two_scores_whose_files_would_have_one_name_are_refused(out, tmp_path):
    path = tmp_path / 'x.csv'
    path.write_text('id,mRS 90,mRS_9-0\n1,2,3\n')
    with pytest.raises(InputError, match='would give files of one name'):
        add_scores(find_cohort([out], space=SPACE), path, items=['mRS 90', 'mRS_9-0'])


def test_maps_of_sessions_without_an_order_are_left_out_with_the_way_out(tmp_path):
    leave(tmp_path, '01', 'alpha')
    leave(tmp_path, '01', 'beta')
    leave(tmp_path, '02', 'alpha')
    cohort = find_cohort([tmp_path], space=SPACE)
    assert cohort.participants == ('02',)
    assert '--session-label' in cohort.dropped['01']
    assert find_cohort([tmp_path], space=SPACE, session='beta').participants == ('01',)


def test_scores_follow_the_session_of_the_map(tmp_path):
    for label in ('01', '02'):
        leave(tmp_path / 'out', label, 'day1')
    table = write(
        tmp_path / 'x.tsv',
        'participant_id session_id nihss_9\n'
        + ''.join(f'sub-{p} ses-{s} {n}\n' for p in ('01', '02') for s, n in
                  (('baseline', 3), ('day1', 1))),
    )  # fmt: skip
    cohort, _ = add_scores(find_cohort([tmp_path / 'out'], space=SPACE), table)
    assert cohort.scores['nihss_9'].tolist() == [1, 1]
    assert cohort.table()['score_session_id'].tolist() == ['day1', 'day1']


def test_folders_with_strange_names_are_sorted(tmp_path):
    for label in ('²', '10', '9' * 90):
        leave(tmp_path, label)
    assert len(find_cohort([tmp_path], space=SPACE).entries) == 3


@pytest.mark.parametrize('name', ['スコア', 'Größe', '²'])
def test_a_label_is_made_of_any_name(name):
    label = contrast_label(name)
    assert label
    assert label.isascii()
    assert label.isalnum()
    assert label != contrast_label('あ')


@pytest.mark.parametrize('code', ['-9', '9', '99', '999'])
def test_a_code_among_words_is_missing(scored, tmp_path, code):
    table = write(
        tmp_path / 'participants.tsv',
        'participant_id smoker\nsub-01 yes\nsub-02 no\n' + f'sub-03 {code}\nsub-04 yes\n',
    )
    cohort = add_covariates(scored, ['smoker'], [table])
    assert cohort.covariate_names == ('smoker_yes', 'smoker_missing')
    np.testing.assert_array_equal(cohort.covariates['smoker_yes'], [1, 0, np.nan, 1, np.nan])
    assert f'covariate smoker: taken as missing: {code} (1)' in cohort.notes


def test_covariates_are_looked_for_in_a_whole_dataset(scored, tmp_path):
    raw = tmp_path / 'raw'
    (raw / 'phenotype').mkdir(parents=True)
    write(raw / 'participants.tsv', 'participant_id age\nsub-01 70\nsub-02 71\n')
    write(raw / 'phenotype/history.tsv', 'participant_id mrs\n1 0\n2 3\n')
    (raw / 'phenotype/zz.tsv').write_bytes(b'PK\x03\x04')  # never reached
    cohort = add_covariates(scored, ['age', 'mrs'], [raw])
    assert cohort.covariates['mrs'].tolist()[:2] == [0, 3]


def test_the_covariate_of_the_session_of_the_map_is_used(tmp_path):
    for label in ('01', '02'):
        leave(tmp_path / 'out', label, '2')
    table = write(
        tmp_path / 'x.tsv',
        'participant_id session_id nihss_9 weight\n'
        'sub-01 1 0 70\nsub-01 2 1 80\nsub-02 1 0 71\nsub-02 2 1 81\n',
    )
    cohort, _ = add_scores(find_cohort([tmp_path / 'out'], space=SPACE), table)
    assert add_covariates(cohort, ['weight'], [table]).covariates['weight'].tolist() == [80, 81]


def give(root: Path, name: str, folder: str = 'anat') -> None:
    """Lay down the name of a lesion map."""
    label, _, rest = name.partition('_')
    session = rest.partition('_')[0] if rest.startswith('ses-') else ''
    path = root / label / session / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'x')


def find_given(root: Path, chosen=None, **more):
    return find_cohort([root], space=SPACE, given=map_entities(SPACE, chosen), **more)


def test_lesion_maps_are_found_by_name_and_nothing_else_is_needed(tmp_path):
    for name, folder in (
        (f'sub-01_space-{SPACE}_label-lesion_mask.nii.gz', 'anat'),
        (f'sub-02_space-{SPACE}_res-1_label-lesion_probseg.nii.gz', 'ct'),
        (f'sub-03_ses-a_space-{SPACE}_label-lesion_mask.nii', ''),
        (f'sub-04_space-{SPACE}_desc-brain_mask.nii.gz', 'anat'),
        ('sub-05_space-MNI152NLin6Asym_label-lesion_mask.nii.gz', 'anat'),
        ('sub-06_label-lesion_mask.nii.gz', 'anat'),
        (f'sub-07_space-{SPACE}_label-lesion_mask.nii.gz', 'anat'),
        (f'sub-07_space-{SPACE}_label-lesion_probseg.nii.gz', 'anat'),
        (f'sub-08_space-{SPACE}_label-lesion_mask.nii.gz', 'dwi'),
        (f'sub-09_space-{SPACE}_label-lesion_mask.json', 'anat'),
    ):
        give(tmp_path, name, folder)
    (tmp_path / 'sub-10/anat').mkdir(parents=True)
    give(tmp_path, f'sub-11_space-{SPACE}_label-lesion_mask.nii.gz')
    stray = tmp_path / 'sub-11/anat' / f'sub-11_space-{SPACE}_label-lesion_mask.nii.gz'
    stray.rename(stray.with_name(f'sub-12_space-{SPACE}_label-lesion_mask.nii.gz'))
    cohort = find_given(tmp_path)
    assert cohort.participants == ('01', '02', '03')
    assert all(e.mask is None and e.files == (e.map,) for e in cohort.entries)
    reasons = cohort.dropped
    assert reasons['05'] == f'its map is in MNI152NLin6Asym and not in {SPACE}'
    assert reasons['06'] == f'its map is in no space- and not in {SPACE}'
    assert 'there are several maps' in reasons['07']
    assert '{"map": {...}} in --bids-filter-file' in reasons['07']
    for label in ('04', '08', '09', '10'):
        assert reasons[label].startswith('there is no map with space'), label
    assert 'names another participant' in reasons['11']
    mask = find_given(tmp_path, {'suffix': 'mask'})
    assert '07' in mask.participants
    assert '04' not in mask.participants, 'a brain mask is no lesion'


def test_a_filter_chooses_other_maps(tmp_path):
    for number in range(3):
        give(tmp_path, f'sub-{number}_space-{SPACE}_label-lesion_mask.nii.gz')
        give(tmp_path, f'sub-{number}_space-{SPACE}_Tmax.nii.gz', 'ct')
        give(tmp_path, f'sub-{number}_space-{SPACE}_desc-disconnection_probseg.nii.gz')
        give(tmp_path, f'sub-{number}_space-other_label-lesion_mask.nii.gz')
    for chosen, end in (
        ({'suffix': 'Tmax'}, '_Tmax.nii.gz'),
        ({'description': 'disconnection'}, '_desc-disconnection_probseg.nii.gz'),
        ({'space': 'other'}, '_space-other_label-lesion_mask.nii.gz'),
        ({'datatype': 'ct', 'suffix': '*', 'label': None}, '_Tmax.nii.gz'),
    ):
        cohort = find_given(tmp_path, chosen)
        assert len(cohort.entries) == 3, chosen
        assert all(e.map.name.endswith(end) for e in cohort.entries)
    with pytest.raises(InputError, match=r'there is no map with space .*, suffix CBF') as reported:
        find_given(tmp_path, {'suffix': 'CBF'})
    assert '--derivatives' in str(reported.value)
    assert f'space-{SPACE}_label-lesion_mask.nii.gz' in str(reported.value)


def test_the_session_of_a_lesion_map_is_chosen_as_others(tmp_path):
    for session in ('24h', 'admission'):
        give(tmp_path, f'sub-01_ses-{session}_space-{SPACE}_label-lesion_mask.nii.gz')
    cohort = find_given(tmp_path)
    assert [e.session for e in cohort.entries] == ['admission']
    assert 'admission' in cohort.notes[0]
    assert find_given(tmp_path, session='24h').entries[0].session == '24h'
    give(tmp_path, f'sub-01_ses-admission_space-{SPACE}_label-lesion_probseg.nii.gz', 'ct')
    with pytest.raises(InputError, match='there are several maps'):
        find_given(tmp_path)
