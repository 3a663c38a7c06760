"""Numbers in the documentation and on the pages are those of ``benchmarks/RESULTS.md``.

Each is looked up where the script's table has it, and rounded as the text has it.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / 'benchmarks' / 'RESULTS.md').read_text(encoding='utf-8')
READERS = {
    name: re.sub(r'\s+', ' ', (ROOT / name).read_text(encoding='utf-8'))
    for name in (
        'docs/validity.rst', 'docs/reading.rst', 'docs/perfusion.rst',
        'bids_perfdeficit/data/reports/participant.yml',
    )
}  # fmt: skip


def row(start: str) -> list[str]:
    """Return the cells of the row of RESULTS.md that starts so, the first left out."""
    (line,) = [line for line in RESULTS.splitlines() if line.startswith(f'| {start}')][:1]
    return [cell.strip() for cell in line.strip('| ').split('|')][1:]


def numbers(text: str) -> list[str]:
    return re.findall(r'-?\d*\.?\d+', text)


def agree(shown: str, measured: str) -> bool:
    """Return whether a number is another one, rounded to its own digits."""
    digits = Decimal(1).scaleb(-len(shown.partition('.')[2]))
    return Decimal(measured).quantize(digits, ROUND_HALF_UP) == Decimal(shown)


@pytest.mark.parametrize(
    ('label', 'column'),
    [
        ('Spearman with the true delay', 1),
        ('the same without what distance explains', 2),
        ('AUC of the map for a delay above 6 s', 3),
    ],
)
def test_the_agreement_of_the_maps_is_that_of_the_benchmark(label, column):
    text = (ROOT / 'docs' / 'validity.rst').read_text(encoding='utf-8')
    shown = numbers(re.search(rf'^{label} +(.*)$', text, re.M)[1])
    measured = [
        number
        for name in ('default | 40', 'published, isotropic | 40', 'distance | 40')
        for number in numbers(row(name)[column])
    ]
    assert len(measured) >= 4
    for number, source in zip(shown, measured, strict=False):
        assert agree(number, source), (label, number, source)


@pytest.mark.parametrize(
    ('label', 'start'),
    [
        ('AUC of the probability of hypoperfusion', 'AUC of the probability |'),
        ('concordance of hypoperfused volumes', "Lin's concordance of volumes"),
        (r'median Dice over 20 mL \(26 patients\)', 'median Dice over 20 mL (26)'),
    ],
)
def test_the_read_outs_are_those_of_the_benchmark(label, start):
    shown = numbers(re.search(rf'{label} +([\d.]+)', READERS['docs/validity.rst'])[1])[0]
    assert agree(shown, numbers(row(start)[0])[0])


@pytest.mark.parametrize('name', READERS)
def test_sides_and_sites_are_those_of_the_benchmark_wherever_they_are_named(name):
    text = READERS[name]
    found = {
        'side': re.findall(r'side[^.]*?(\d+) of (26)', text),
        'site': re.findall(r'site[^.]*?(\d+) of (29)', text),
        'alarm': re.findall(r'(\d+) of (11)', text),
    }
    measured = {
        'site': float(numbers(row('site right (29)')[0])[0]),
        'alarm': float(numbers(row('the same with 1 mL hypoperfused or more')[0])[0]),
        'side': float(numbers(row('side right (26)')[0])[0]),
    }
    for key, share in measured.items():
        for right, of in found[key]:
            assert round(share * int(of)) == int(right), (name, key)
    if name != 'docs/perfusion.rst':
        assert all(found.values()), 'the page gives them'


@pytest.mark.parametrize(
    ('label', 'start'),
    [
        ('misregistration of 1.5 mm and 1 degree', 'misregistration 1.5 mm, 1 degree'),
        ('shading of 2 HU, front-back', 'shading 2 HU, front-back'),
        ('shading of 2 HU, top-base', 'shading 2 HU, top-base'),
        ('shading of 2 HU, left-right', 'shading 2 HU, left-right'),
        ('shading of 1 HU, left-right', 'shading 1 HU, left-right'),
        ('cupping of 2 HU', 'cupping 2 HU'),
        ('noise of 1 HU, smooth over 10 mm', 'noise of 10 mm, 1 HU'),
        ('CTA slices of 5 mm', 'CTA of 5 mm'),
        ('contrast of 0.6 of the usual one', 'contrast x 0.6'),
    ],
)
def test_what_nuisances_cost_is_what_was_measured(label, start):
    text = (ROOT / 'docs' / 'validity.rst').read_text(encoding='utf-8')
    shown = numbers(re.search(rf'^{label} +(.*)$', text, re.M)[1])[:2]
    lines = [line for line in RESULTS.splitlines() if line.startswith(f'| {start} (')]
    falls = {
        variant: re.search(r'\(\+?(-?[\d.]+);', line)[1]
        for line in lines
        for variant in ('without', 'now')
        if f'| {variant} |' in line
    }
    assert agree(shown[0], falls['without']), (label, shown, falls)
    assert agree(shown[1], falls['now']), (label, shown, falls)


def test_the_demo_takes_as_long_as_it_was_measured_to():
    measured = re.search(r'## `make demo`.*?(\d+) min (\d+) s', RESULTS, re.S)
    assert measured is not None
    minutes = round(int(measured[1]) + int(measured[2]) / 60)
    for name in ('README.md', 'docs/tutorial.rst'):
        text = (ROOT / name).read_text(encoding='utf-8')
        assert f'about {minutes} minutes' in text, name
    assert re.search(rf'make demo.*? {minutes} min', READERS['docs/validity.rst'])
