"""The page of one participant, assembled from figures and short pieces of HTML.

The pieces come in the order of `data/reports/participant.yml` and fill `data/reports/page.html`,
which asks the network for nothing. Must not compute results: it shows
what it is handed, beside the limits of `data/reports/quality.yml`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import yaml
from markupsafe import Markup

from bids_perfdeficit.bids import output_path, write_text
from bids_perfdeficit.reports.words import (
    DATA,
    cite,
    embed,
    environment,
    number,
    quality_limits,
    read_view,
    show,
    title,
    to_script,
    usual,
    verdict,
)

#: The figures of a page by their `desc-` entity; each file is one that `reports.figures` drew.
FIGURES = (
    'hypoperfused',
    'delay',
    'arrival',
    'perfusion',
    'asymmetry',
    'slabs',
    'rotation',
    'sources',
    'brain',
    'stroke',
    'registration',
    'normalization',
)


def build_participant_report(
    out_dir: Path,
    participant: str,
    session: str | None = None,
    *,
    summary: Mapping[str, object],
    found: Mapping[str, object] | None = None,
    qc: Mapping[str, object] | pd.DataFrame,
    regions: pd.DataFrame | None = None,
    vessels: pd.DataFrame | None = None,
    verdict: tuple[str, Sequence[str]] | None = None,
    methods: str = '',
    notes: Sequence[str] = (),
    errors: Sequence[str] = (),
    settings: str = '',
    versions: Mapping[str, str] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    self_contained: bool = False,
) -> Path:
    """Write the page of one participant, or of one session.

    Figures are taken from ``sub-<participant>/figures/``; for one that is missing or broken the
    page says so.

    Parameters
    ----------
    out_dir : Path
        OUTPUT_DIR: the page lies in it, and links the figures relative to it.
    participant, session : str
        Without ``sub-`` and ``ses-``.
    summary : mapping of str to object
        Who, and which scans, in order; a list or tuple is joined with commas.
    found : mapping of str to object, optional
        What was found, likewise; it comes first.
    qc : mapping of str to object or DataFrame
        Metrics by name, or a table with one row, as in ``desc-qc_metrics.tsv``.
    regions : DataFrame, optional
        One row a region, as in ``desc-regions_metrics.tsv``.
    vessels : DataFrame, optional
        One row a territory.
    verdict : (str, sequence of str), optional
        ``'complete'``, ``'doubtful'`` or ``'failed'``, and the reasons; the page begins with it.
    methods : str
        With citations as ``[@key]``; an empty line parts two paragraphs.
    notes : sequence of str
        Caveats, a sentence each.
    errors : sequence of str
        What failed; of each the first line is the headline.
    settings : str
        TOML.
    versions : mapping of str to str
        Of the software.
    fingerprints : mapping of str to str
        Of the stages that the page shows.
    self_contained : bool
        Put the figures into the page, so that it can be mailed as one file.

    Returns
    -------
    Path
        ``sub-<participant>[_ses-<session>].html``.
    """
    out_dir = Path(out_dir)
    prefix = f'sub-{participant}' + (f'_ses-{session}' if session else '')
    pieces: Any = environment().get_template('pieces.html').module
    rows = _quality_rows(qc)
    html = {
        'verdict': pieces.verdict(verdict[0], list(verdict[1])) if verdict else '',
        'found': pieces.facts(_formatted(found or {}), large=True),
        'summary': pieces.summary(
            _formatted(summary), [*notes, *([] if verdict else _doubts(rows))]
        ),
        'quality': pieces.quality(rows),
        'errors': pieces.errors(list(errors)),
        'methods': pieces.methods(*cite(methods)),
        'reproduce': pieces.reproduce(
            settings, list((versions or {}).items()), list((fingerprints or {}).items())
        ),
    }
    if not found:
        del html['found']
    for name, frame in (('regions', regions), ('vessels', vessels)):
        if frame is not None and len(frame):
            html[name] = pieces.table(
                [title(str(column)) for column in frame.columns],
                [[show(cell) for cell in row] for row in frame.itertuples(index=False)],
            )
    for name in FIGURES:
        html[name] = _figure(pieces, out_dir, prefix, name, self_contained)
    script = out_dir / f'sub-{participant}' / 'figures' / f'{prefix}_desc-viewer_ct.js'
    view = read_view(script)
    if view is not None:
        html['viewer'] = pieces.viewer(
            [(m['id'], m['title']) for m in view['maps']],
            [g['title'] for g in view['grounds']],
            to_script(view) if self_contained else '',
            '' if self_contained else script.relative_to(out_dir).as_posix(),
        )

    page = yaml.safe_load((DATA / 'participant.yml').read_text(encoding='utf-8'))
    up = [] if self_contained else [pieces.up(output_path('.', 'index').name)]
    text = (
        environment()
        .get_template('page.html')
        .render(
            title=page['title'].format(filename=prefix),
            header=[],
            navbar=up,  # a page that is mailed has nowhere to lead
            footer=[pieces.script((DATA / 'viewer.js').read_text(encoding='utf-8'))]
            if view is not None
            else [],
            sections=[
                {'name': section['name'], 'reportlets': reportlets}
                for section in page['sections']
                if (reportlets := _reportlets(section, html))
            ],
        )
    )
    return write_text(text, out_dir / f'{prefix}.html')


def _reportlets(section: Mapping[str, Any], html: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return the pieces of a section that have a content, with their captions."""
    return [
        {
            'subtitle': entry.get('subtitle', ''),
            'components': [(Markup(html[entry['piece']]), entry.get('caption', ''))],  # noqa: S704
        }
        for entry in section['reportlets']
        if str(html.get(entry['piece'], '')).strip()
    ]


def _figure(pieces: Any, out_dir: Path, prefix: str, name: str, self_contained: bool) -> str:
    """Return the HTML of a figure, or of its absence."""
    pattern = re.compile(rf'{re.escape(prefix)}(_(?!ses-)[a-z]+-[A-Za-z0-9]+)*_[A-Za-z0-9]+\.svg')
    folder = out_dir / prefix.partition('_')[0] / 'figures'
    for path in sorted(folder.glob(f'{prefix}_*desc-{name}_*.svg')):
        if not pattern.fullmatch(path.name):
            continue
        try:
            content = path.read_bytes()
            root = ElementTree.fromstring(content)  # noqa: S314 - a file that we drew
        except (OSError, ElementTree.ParseError):
            continue
        link = path.relative_to(out_dir).as_posix()
        return pieces.figure(
            name=path.name,
            source=embed(path) if self_contained else link,
            link='' if self_contained else link,
            alt=unescape(root.get('aria-label', name)),
            # In the page itself pointer and keyboard focus reach it; in a frame of its own it is
            # not even painted before it is scrolled to.
            inline=Markup(content.decode('utf-8')) if root.get('class') == 'turning' else '',  # noqa: S704
        )
    return pieces.no_figure(name)


def _formatted(facts: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(label, show(value)) for label, value in facts.items()]


def _quality_rows(qc: Mapping[str, object] | pd.DataFrame) -> list[dict[str, str]]:
    """Set each metric beside its limits; those without an entry are shown as they are."""
    known = quality_limits()
    if isinstance(qc, pd.DataFrame):
        qc = {str(k): v for k, v in qc.iloc[0].items()} if len(qc) else {}
    rows = []
    for name in [*(n for n in known if n in qc), *(n for n in qc if n not in known)]:
        entry = known.get(name, {})
        units = f' {entry["units"]}' if 'units' in entry and number(qc[name]) is not None else ''
        rows.append(
            {
                'label': entry.get('label', title(name)),
                'value': show(qc[name]) + units,
                'usual': usual(entry),
                'verdict': verdict(qc[name], entry),
                'meaning': entry.get('meaning', ''),
            }
        )
    return rows


def _doubts(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a sentence for each metric that asks for a look, for the top of the page."""
    return [
        f'{row["label"]}: {row["value"]} (usual: {row["usual"]}). {row["meaning"]}'
        for row in rows
        if row['verdict'] == 'look'
    ]
