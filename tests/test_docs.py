"""The documentation names what there is: its links lead somewhere, its commands are understood."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import filelock
import pytest

from bids_perfdeficit.bids.outputs import read_spec
from bids_perfdeficit.cli import ctp, draw, phantom
from bids_perfdeficit.cli.parser import build_parser, parse_settings
from bids_perfdeficit.perfusion.recalibration import (
    FORMAT,
    FORMAT_VERSION,
    base_sha256,
    calibration,
    last_layer,
)
from bids_perfdeficit.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
TEXTS = {path.name: path.read_text() for path in (ROOT / 'README.md', *sorted(DOCS.glob('*.rst')))}

#: Options in the text that belong to other programs.
FOREIGN = {
    '--build-arg', '--containall', '--gpus', '--nv', '--pipeline', '--pipeline-step', '--tmpfs',
}  # fmt: skip


def commands() -> list[tuple[str, str]]:
    """Return (file, command) for all commands that readers are to type."""
    found = []
    for name, text in TEXTS.items():
        whole = re.sub(r'\\\n\s*', '', text)
        lines = re.findall(
            r'^ *(?:\$ )?((?:bids_perfdeficit|docker run|apptainer run).*)', whole, re.M
        )
        inline = re.findall(
            r'``(bids_perfdeficit (?:[^`]* )?(?:participant|group|evaluate|calibrate)\b[^`]*)``',
            whole,
        )
        found += [
            (name, line)
            for line in lines + inline
            if re.search(r' (participant|group|evaluate|calibrate)\b', line)
        ]
    return found


def arguments(command: str) -> list[str]:
    """Return what the app is given, also within a container."""
    words = shlex.split(command, comments=True)
    (start,) = (i for i, w in enumerate(words) if re.fullmatch(r'bids_perfdeficit(\.sif)?', w))
    return [word.removeprefix('/') for word in words[start + 1 :]]


def site_calibration() -> dict:
    """Return a calibration file that changes nothing."""
    shipped = calibration()
    return {
        'Format': FORMAT, 'FormatVersion': FORMAT_VERSION, 'BaseSHA256': base_sha256(),
        'LastLayer': last_layer(), 'Threshold': shipped['threshold'],
        'OcclusionBias': shipped['occlusion']['bias'], 'OcclusionWithheld': False,
    }  # fmt: skip


def test_there_are_commands():
    assert len(commands()) > 10


@pytest.mark.parametrize(('name', 'command'), commands())
def test_a_command_is_understood(name, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path / 'templates'))
    words = arguments(command)
    Path(words[0]).mkdir(parents=True)  # what a reader has
    for option, value in itertools.pairwise(words):
        if option in ('--scores', '--bids-filter-file'):
            Path(value).write_text('{}')
        elif option == '--calibration':
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            Path(value).write_text(json.dumps(site_calibration()))
        elif option in ('--apply', '-d', '--derivatives'):
            Path(value).mkdir(parents=True, exist_ok=True)
        elif option == '--output-spaces':
            (tmp_path / 'templates' / f'tpl-{value}').mkdir(parents=True)
    settings = parse_settings(words)
    assert settings.inputs.analysis_level == words[2]


@pytest.mark.parametrize('program', [phantom, ctp, draw])
def test_commands_of_other_programs_are_understood(program):
    name = program.__name__.rpartition('.')[2]
    written = re.findall(rf'bids_perfdeficit-{name} [A-Z].*|bids_perfdeficit-{name} \S+ .+',
                      '\n'.join(TEXTS.values()))  # fmt: skip
    assert written
    for line in written:
        if '``' not in line:
            program.build_parser().parse_args(shlex.split(line)[1:])


def test_options_in_the_text_exist():
    known = {
        name
        for parser in (build_parser(), *(p.build_parser() for p in (phantom, ctp, draw)))
        for action in parser._actions
        for name in action.option_strings
    }
    reported = {
        (name, option)
        for name, text in TEXTS.items()
        if name.endswith('.rst')
        for literal in re.findall(r'``([^`]+)``', text)
        if not literal.startswith('benchmarks')
        for option in re.findall(r'(?<![\w-])--[a-z][a-z-]*', literal)
    }
    assert {(n, o) for n, o in reported if o not in known | FOREIGN} == set()


def test_settings_files_in_the_text_are_read():
    blocks = re.findall(r'code-block:: toml\n\n((?:   .*\n|\n)+)', TEXTS['settings.rst'])
    assert blocks
    for block in blocks:
        Settings.from_toml(re.sub('^   ', '', block, flags=re.M))


def test_targets_and_files_in_the_text_exist():
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))
    for name, text in TEXTS.items():
        reported = re.findall(r'(?:``|^ *(?:\$ )?)make ([a-z-]+)', text, re.M)
        assert set(reported) <= targets, name
        paths = re.findall(r'\b((?:benchmarks|scripts|examples|containers)/[\w./-]+\w)', text)
        assert [p for p in paths if not (ROOT / p).exists()] == [], name


def test_the_model_that_is_added_is_the_one_that_a_test_runs():
    shown = re.findall(r'literalinclude:: \.\./(\S+)', TEXTS['howto.rst'])
    assert shown == ['examples/toy_model.py']
    contract = (ROOT / 'tests' / 'deficit' / 'test_contract.py').read_text()
    assert Path(shown[0]).stem in contract
    assert 'deficit.register(MeanDifference())' in TEXTS['howto.rst']


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r'\]\(([^)]+)\)', TEXTS['README.md'])
    inside = [link for link in links if not link.startswith('https://')]
    assert inside
    assert [link for link in inside if not (ROOT / link.partition('#')[0]).exists()] == []


@pytest.mark.parametrize('key', read_spec()['outputs'])
def test_an_output_is_documented(key):
    name = read_spec()['outputs'][key]['path'].rpartition('/')[2]
    native, template = TEXTS['outputs.rst'].split('In the template')
    where = template if 'space-{space}_res-2_' in name else native + template
    name = re.sub(r'^(\{prefix\}_|tpl-\{space\}_)?(space-\{space\}_res-2_)?', '', name)
    for field, sign in (
        ('{prefix}', 'sub-<label>[_ses-<label>]'), ('{space}', '<space>'), ('{res}', '<mm>'),
        ('{model}', '<m>'), ('{contrast}', '<item>'), ('{stat}', '<stat>'),
        ('{figure}', '<figure>'), ('{stage}', '<stage>'),
    ):  # fmt: skip
        name = name.replace(field, sign)
    assert re.search(rf'``(phenotype/)?{re.escape(name)}``', where)


@pytest.mark.parametrize('package', ['ct', 'perfusion', 'deficit', 'phantom'])
def test_what_a_domain_package_offers_is_documented(package):
    text = ''.join(TEXTS[n] for n in TEXTS if n.startswith('api-')) + TEXTS['settings.rst']
    reported = re.findall(rf'::\s+bids_perfdeficit\.{package}\.(\w+)$', text, re.M)
    offered = import_module(f'bids_perfdeficit.{package}').__all__
    assert set(offered) <= set(reported)


def test_the_usage_page_has_the_values_of_options(pages):
    text = (next(iter(pages)).parent / 'usage.html').read_text()
    for values in (('minimal', 'full'), ('spatial', 'deep', 'vae', 'ridge', 'voxelwise')):
        assert f'Possible choices: {", ".join(values)}' in re.sub('<[^>]+>', '', text)


class Page(HTMLParser):
    """What a page of the built documentation refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.needs: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.anchors |= {own[k] for k in ('id', 'name') if own.get(k)}
        if tag == 'a' and own.get('href'):
            self.links.append(own['href'])
        elif tag == 'link' and own.get('rel') in (
            'stylesheet',
            'preload',
            'icon',
            'shortcut icon',
        ):
            self.needs.append(own['href'])
        elif tag in ('script', 'img', 'iframe', 'source', 'video') and own.get('src'):
            self.needs.append(own['src'])


@pytest.fixture(scope='module')
def pages(session_folder) -> dict[Path, Page]:
    pytest.importorskip('sphinx', reason='Sphinx is not installed')
    folder = session_folder / 'docs'
    with filelock.FileLock(f'{folder}.lock'):
        if not folder.is_dir():
            where = ['-d', folder.with_name('docs-trees'), DOCS, folder]
            done = subprocess.run(
                [sys.executable, '-m', 'sphinx', '-W', '-q', '-b', 'html', *where],
                capture_output=True, text=True, check=False, timeout=600,
                env={**os.environ, 'PYTHONPATH': str(ROOT)},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    return {path: Page(path) for path in folder.glob('*.html')}


def test_no_link_of_the_documentation_is_broken(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.needs:
            parts = urlsplit(link)
            if parts.scheme or link == '#':
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            anchors = pages[target].anchors if target in pages else set()
            if not target.is_file() or (parts.fragment and parts.fragment not in anchors):
                broken.append((path.name, link))
    assert broken == []


def test_the_documentation_needs_no_network(pages):
    needed = {(path.name, n) for path, page in pages.items() for n in page.needs}
    assert {n for n in needed if re.match('https?:|//', n[1])} == set()
    folder = next(iter(pages)).parent
    styles = [p.read_text() for p in folder.glob('_static/**/*.css')]
    assert not any(re.search(r'(?:@import|url\()\s*["\']?(?:https?:)?//', s) for s in styles)


def test_every_page_is_reached_from_the_first(pages):
    folder = next(iter(pages)).parent
    index = pages[folder / 'index.html']
    reached = {urlsplit(link).path for link in index.links}
    reached |= {urlsplit(link).path for link in pages[folder / 'api.html'].links}
    assert {f'{Path(name).stem}.html' for name in TEXTS if name.endswith('.rst')} - {
        'index.html'
    } <= reached
