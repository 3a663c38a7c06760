"""Words, numbers, citations and links of all pages.

Must not know what a page is about.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from bids_perfdeficit.bids.cohort import LESION_LABEL
from bids_perfdeficit.data import load

#: Templates, scripts and limits.
DATA = Path(__file__).resolve().parents[1] / 'data' / 'reports'

#: How the script begins that holds what a viewer shows.
SCRIPT = 'window.perfdeficitView = '

#: Arterial territories, in words.
TERRITORIES: Mapping[str, str] = {
    'ACA': 'ACA',
    'MCA': 'MCA',
    'PCA': 'PCA',
    'VB': 'vertebrobasilar',
}


@dataclass(frozen=True)
class MapWords:
    """How the page of a group speaks of the participants' maps.

    Parameters
    ----------
    title : str
        Of the page.
    more : str
        What a higher value of a map is.
    subject : str
        What goes together with the score.
    among : str
        Which participants count for the coverage of a voxel.
    affected : str
        Adjective of a voxel.
    fall : str
        The same as a clause about several regions.
    size : str
        What the volume is of.
    mean : str
        Mean of a map.
    mean_map : str
        Mean over participants.
    """

    title: str = 'Perfusion-deficit maps of the group'
    more: str = 'later perfusion'
    subject: str = 'perfusion'
    among: str = 'with a deficit'
    affected: str = 'hypoperfused'
    fall: str = 'are always hypoperfused'
    size: str = 'deficit'
    mean: str = 'mean perfusion of the brain'
    mean_map: str = 'mean perfusion map'


_LESIONS = MapWords(
    title='Lesion-deficit maps of the group',
    more='the share of the voxel that is lesioned',
    subject='a lesion',
    among='with a lesion',
    affected='lesioned',
    fall='are always lesioned',
    size='lesion',
    mean='share of the analysed voxels that is lesioned',
    mean_map='map of how often each voxel is lesioned',
)
_GIVEN = MapWords(
    title='Deficit maps of the group',
    more="higher values of the participants' maps",
    subject="the participants' map",
    among='affected',
    affected='affected',
    fall='are always affected',
    size='affected tissue',
    mean='mean of the map over the analysed voxels',
    mean_map='mean map',
)


def words_for(facts: Mapping[str, Any]) -> MapWords:
    """Return the words for the maps that a sidecar of the group level names."""
    if 'MapEntities' not in facts:
        return MapWords()
    return _LESIONS if facts['MapEntities'].get('label') == LESION_LABEL else _GIVEN


_MEDIA = {'.svg': 'image/svg+xml', '.tsv': 'text/tab-separated-values', '.json': 'text/plain'}


def environment() -> jinja2.Environment:
    """Return where the templates of the pages are found; all that they print is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(DATA),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def quality_limits() -> dict[str, dict[str, Any]]:
    """Return what is usual of each metric, and what it means (``quality.yml``)."""
    return dict(yaml.safe_load((DATA / 'quality.yml').read_text(encoding='utf-8')))


def usual(entry: dict[str, Any]) -> str:
    """Return the limits of a metric in words."""
    low, high = entry.get('minimum'), entry.get('maximum')
    units = f' {entry["units"]}' if 'units' in entry else ''
    if low is not None and high is not None:
        return f'{low:g} to {high:g}{units}'
    if low is not None:
        return f'at least {low:g}{units}'
    if high is not None:
        return f'at most {high:g}{units}'
    expected = entry.get('expected', '')
    return ' or '.join(expected) if isinstance(expected, list) else str(expected)


def verdict(value: object, entry: dict[str, Any]) -> str:
    """Return ``'ok'``, ``'look'``, or nothing where there are no limits."""
    if 'expected' in entry:
        expected = entry['expected']
        allowed = expected if isinstance(expected, list) else [expected]
        return 'ok' if str(value) in allowed else 'look'
    low, high = entry.get('minimum', -math.inf), entry.get('maximum', math.inf)
    if math.isinf(low) and math.isinf(high):
        return ''
    found = number(value)
    return 'ok' if found is not None and low <= found <= high else 'look'


def number(value: object) -> float | None:
    """Return a value as a finite number, or None."""
    if isinstance(value, bool | str) or value is None:
        return None
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def page_part(subtitle: str, *components: tuple[Any, str] | Any) -> dict[str, Any]:
    """Return one piece of a section: pairs of content and caption, or contents alone."""
    pairs = [c if isinstance(c, tuple) else (c, '') for c in components]
    return {'subtitle': subtitle, 'components': [pair for pair in pairs if pair[0]]}


def render_page(
    title: str,
    sections: Iterable[tuple[str, Iterable[dict[str, Any]]]],
    *,
    header: Sequence[Any] = (),
    navbar: Sequence[Any] = (),
    footer: Sequence[Any] = (),
) -> str:
    """Return a page of named sections; pieces of a section without a content are left out."""
    page: str = (
        environment()
        .get_template('page.html')
        .render(
            title=title,
            header=header,
            navbar=navbar,
            footer=footer,
            sections=[
                {'name': name, 'reportlets': [part for part in parts if part['components']]}
                for name, parts in sections
            ],
        )
    )
    return page


def show(value: object) -> str:
    """Return a value as a person would write it."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, list | tuple):
        return ', '.join(show(item) for item in value) or 'none'
    found = number(value)
    if found is not None:
        if 0 < found < 0.0005:
            return '< 0.001'
        size = abs(found)
        plain = size >= 100 or found == round(found)  # no 1.43e+03 mL
        text = f'{found:.0f}' if plain else f'{found:.1f}' if size >= 1 else f'{round(found, 3):g}'
        return (text if float(text) else '0').replace('-', '−')
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return 'n/a' if missing else str(value)


def fixed(value: object, digits: int) -> str:
    """Return a number with so many digits after the point, and no minus before a zero."""
    found = number(value)
    if found is None:
        return 'n/a'
    text = f'{found:.{digits}f}'
    return (text if float(text) else f'{0:.{digits}f}').replace('-', '−')


def title(name: str) -> str:
    """Return a column's name in words."""
    words = name.replace('_', ' ').strip()
    return words[:1].upper() + words[1:]


def embed(path: Path) -> str:
    """Return a file as a link that holds it."""
    code = base64.b64encode(path.read_bytes()).decode('ascii')
    return f'data:{_MEDIA.get(path.suffix, "application/octet-stream")};base64,{code}'


def read_view(path: Path) -> dict[str, Any] | None:
    """Return what `viewer.write_patient_view` wrote into a script; None when there is none."""
    try:
        text = path.read_text(encoding='utf-8')
        view = json.loads(text.removeprefix(SCRIPT).rstrip().removesuffix(';'))
    except (OSError, ValueError):
        return None
    known = isinstance(view, dict) and {'maps', 'grounds', 'volumes'} <= view.keys()
    return view if known else None


def to_script(view: Mapping[str, Any]) -> Markup:
    """Return a view as JSON that cannot end the element of the page that holds it."""
    return Markup(json.dumps(view).replace('<', '\\u003c'))  # noqa: S704


def cite(text: str) -> tuple[list[str], list[str]]:
    """Replace ``[@key; @other]`` and ``@key`` by numbers.

    Returns
    -------
    tuple of list of str
        Paragraphs, and the references in the order of their numbers.
    """
    known = references()
    used: list[str] = []

    def numbers(match: re.Match[str]) -> str:
        keys = re.findall(r'@(\w+)', match.group(0))
        used.extend(k for k in keys if k in known and k not in used)
        return '[' + ', '.join(str(used.index(k) + 1) for k in keys if k in known) + ']'

    plain = text.replace('*', '')
    numbered = re.sub(r'\[[^\]]*@[^\]]+\]|(?<!\w)@\w+', numbers, plain)
    paragraphs = [' '.join(p.split()) for p in numbered.split('\n\n') if p.strip()]
    return paragraphs, [known[k] for k in used]


@functools.cache
def references() -> dict[str, str]:
    """Return each entry of the bibliography as a line of text."""
    found = {}
    text = load('boilerplate.bib').read_text(encoding='utf-8')
    for key, body in re.findall(r'@\w+\{(\w+),(.*?)\n\}', text, re.S):
        fields = dict(re.findall(r'(\w+)\s*=\s*\{(.*?)\},?\s*(?=\n|$)', body, re.S))
        plain = {k: re.sub(r'[{}]', '', v) for k, v in fields.items()}
        people = [person.partition(',')[0] for person in plain['author'].split(' and ')]
        who = ', '.join('et al.' if p == 'others' else p for p in people)
        where = plain.get('journal') or plain.get('publisher') or ''
        more = plain.get('doi') or plain.get('url') or ''
        if not more and 'eprint' in plain:
            more = f'arXiv {plain["eprint"]}'
        found[key] = '. '.join(
            p.rstrip('.') for p in (who, plain['title'], where, plain['year'], more) if p
        )
    return found
