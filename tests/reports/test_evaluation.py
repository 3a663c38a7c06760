"""The page of an evaluation says what the tables hold, and shows whom it names."""

from __future__ import annotations

import re
from dataclasses import replace

import pandas as pd
import pytest

from bids_perfdeficit.bids import write_tsv
from bids_perfdeficit.reports.evaluation import build_evaluation_page


def test_the_table_for_a_paper_and_the_comparison_with_controls(evaluation):
    text = build_evaluation_page(evaluation).read_text()
    assert 'Spearman, n = 4' in text
    assert 'AUC, n = 3' in text
    row = re.search(r'<th scope="row">Computed perfusion</th>(.*?)</tr>', text, re.S)
    assert re.findall(r'>([^<]+)</td>', row[1])[:4] == [
        '0.80 (0.00)', '0.70 (0.00)', '0.40 (0.00)', '0.83 (0.19)',
    ]  # fmt: skip
    assert 'Spearman is 0.20 higher (95 % interval 0.20 to 0.20)' in text
    assert 'Computed minus distance from the inflow' in text


def test_best_median_and_worst_are_drawn_beside_their_references(evaluation):
    text = build_evaluation_page(evaluation).read_text()
    for word, name in (('Best', '01'), ('Median', '02'), ('Worst', '03')):
        assert f'{word} by AUC: sub-{name}' in text
        figure = evaluation.path('evaluation_figure', figure=f'{word.lower()}Patient')
        drawn = figure.read_text()
        assert f'{word} by AUC: sub-{name}' in drawn
        assert 'Reference, Tmax 0 to 12 s' in drawn
        # the deficit is on the left, which is on the right of every picture
        places = [float(x) for x in re.findall(r'class="core" d="M([\d.]+),', drawn)]
        tiles = [float(x) for x in re.findall(r'<image x="([\d.]+)"', drawn)]
        wide = float(re.search(r'<image x="[\d.]+" y="[\d.]+" width="([\d.]+)"', drawn)[1])
        assert places
        for place in places:
            left = max(tile for tile in tiles if tile <= place)
            assert place - left > wide / 2


def test_what_failed_and_what_the_references_lack_is_said(evaluation):
    text = build_evaluation_page(evaluation).read_text()
    assert '/d/&lt;b&gt;tmax&lt;/b&gt;.nii: is cut' in text
    assert '1 of 4 references have artefacts' in text
    assert 'the reference ends at 12 s' in text
    assert 'References cover 80% to 80% of the brain' in text
    assert 'Only 4 participants' in text
    assert '0 of 4' in text  # no site is right
    assert '<a href="sub-01.html">sub-01</a>' in text
    assert 'index.html' in text


def test_a_mailed_page_has_all_in_itself(evaluation):
    text = build_evaluation_page(replace(evaluation, self_contained=True)).read_text()
    links = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert links
    assert all(link.startswith('data:') for link in links)


@pytest.mark.parametrize('count', [1, 2])
def test_few_participants_make_a_page_too(evaluation, count):
    people = pd.read_csv(evaluation.path('evaluation_participants'), sep='\t')
    write_tsv(people[:count], evaluation.path('evaluation_participants'))
    few = replace(evaluation, pairs=evaluation.pairs[:count])
    text = build_evaluation_page(few).read_text()
    assert 'Best by Spearman: sub-01' in text
    assert ('Worst by Spearman' in text) == (count == 2)
    assert 'Median by' not in text
