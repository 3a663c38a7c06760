"""The texts are plain scientific English: words of the style guide's left column stay out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Words that have a plainer replacement, in all texts, names and comments.
ANYWHERE = {
    r'told|tells?|telling': 'report, show, describe, distinguish',
    r'lest': 'so that ... does not',
    r'as far as': 'to the extent that',
    r'of another making': 'generated differently',
    r'whoever|nobody': 'users, no participant, has not been measured',
    r'no fault of': 'is not an error',
    r'mend(s|ed|ing)?': 'fix',
    r'heed(s|ed|ing)?|insists?': 'handle, require',
    r'hold(s|ing)? (its|their) tongue': 'suppress the message',
    r'leaves? (\w+ )?alone|left alone': 'keep',
    r'reckon(s|ed|ing)?': 'compute',
    r'(stand|stands|stood) for': 'represent',
    r'comes? to it': 'is derived',
    r"validator's eyes": 'from validation',
    r'(is|are|was|were) none of (?!these|them|the\b)': 'is not one of',
    r'(?<!there )(is|are|was|were) no (?!longer\b|more\b|less\b|better\b|worse\b|need\b|smaller\b|'
    r'larger\b|other\b)\w+': 'is not a',
}  # fmt: skip
#: Words that name something of the field wrongly; in code they may be names of arrays.
IN_TEXTS = {
    r'ill': 'affected, hypoperfused',
    r'signs': 'features',
    r'places': 'candidate regions, positions',
    r'balls?': 'spherical ROIs',
    r'rooms?|house': 'package',
}
#: Where a word has its plain meaning.
ALLOWED = ('anatomy places', 'There are no', 'There is no')

TEXTS = ('*.md', '*.rst', '*.cff', 'Makefile', 'Dockerfile', 'docs/*.rst', 'benchmarks/*.md')
PAGES = ('bids_perfdeficit/data/reports/*', 'bids_perfdeficit/reports/*.py',
         'bids_perfdeficit/cli/*.py', 'bids_perfdeficit/workflows/*.py')  # fmt: skip
CODE = ('bids_perfdeficit/**/*.py', 'bids_perfdeficit/data/*.json', 'scripts/*', 'examples/*',
        'benchmarks/*.py', 'docs/**/*.py', 'containers/*')  # fmt: skip


def files(*patterns: str) -> list[Path]:
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path for path in found if '_build' not in path.parts)


def find(words: dict[str, str], path: Path) -> list[str]:
    """Return the lines with such words, each with what to write instead."""
    text = path.read_text(encoding='utf-8')
    found = []
    for pattern, instead in words.items():
        for match in re.finditer(rf'(?<![\w.])(?:{pattern})(?![\w(=])', text, re.I):
            line = text[: match.start()].count('\n') + 1
            around = text[max(match.start() - 12, 0) : match.end() + 12]
            if not any(fine in around for fine in ALLOWED):
                name = path.relative_to(ROOT)
                found.append(f'{name}:{line}: "{match.group()}"; write: {instead}')
    return found


@pytest.mark.parametrize(
    ('words', 'patterns'),
    [(ANYWHERE, TEXTS + PAGES + CODE), (IN_TEXTS, TEXTS + PAGES)],
    ids=['anywhere', 'in texts'],
)
def test_words_that_the_style_guide_replaces_are_not_used(words, patterns):
    read = files(*patterns)
    assert len(read) > 20
    assert [line for path in read for line in find(words, path)] == []


def test_the_search_finds_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), 'ROOT', tmp_path)
    path = tmp_path / 'page.rst'
    path.write_text('The page told so.\nA mark is no finding, there is no doubt.\n')
    assert [line.split('"')[1] for line in find(ANYWHERE, path)] == ['told', 'is no finding']
