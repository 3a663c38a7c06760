"""The page of one participant, assembled by NiReports from figures and short pieces of HTML.

NiReports finds the pieces, puts them in the order of `data/reports/participant.yml` and fills
`data/reports/page.html`, which asks the network for nothing. Must not compute results: it shows
what it is handed, beside the limits of `data/reports/quality.yml`.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import jinja2
import pandas as pd
import yaml

from bids_perfdeficit.bids import write_text

#: The figures of a page by their `desc-` entity; each file is one that `reports.figures` drew.
FIGURES = (
    'perfusion',
    'asymmetry',
    'arrival',
    'sources',
    'brain',
    'registration',
    'normalization',
)
_DATA = Path(__file__).resolve().parents[1] / 'data' / 'reports'


def build_participant_report(
    out_dir: Path,
    participant: str,
    session: str | None = None,
    *,
    summary: Mapping[str, object],
    qc: Mapping[str, object] | pd.DataFrame,
    regions: pd.DataFrame | None = None,
    methods: str = '',
    notes: Sequence[str] = (),
    errors: Sequence[str] = (),
    settings: str = '',
    versions: Mapping[str, str] | None = None,
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
        Who and what was found, in order; a list or tuple is joined with commas.
    qc : mapping of str to object or DataFrame
        Metrics by name, or a table with one row, as in ``desc-qc_metrics.tsv``.
    regions : DataFrame, optional
        One row a region, as in ``desc-regions_metrics.tsv``.
    methods : str
        Plain text; an empty line parts two paragraphs.
    notes : sequence of str
        Caveats, a sentence each.
    errors : sequence of str
        What failed; of each the first line is the headline.
    settings : str
        TOML.
    versions : mapping of str to str
        Of the software.
    self_contained : bool
        Put the figures into the page, so that it can be mailed as one file.

    Returns
    -------
    Path
        ``sub-<participant>[_ses-<session>].html``.
    """
    # Imported here, for it takes a second and pybids with it.
    from nireports.assembler.report import Report

    out_dir = Path(out_dir)
    prefix = f'sub-{participant}' + (f'_ses-{session}' if session else '')
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_DATA),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pieces: Any = environment.get_template('pieces.html').module
    html = {
        'summary': pieces.summary(
            [(label, _tell(value)) for label, value in summary.items()], list(notes)
        ),
        'quality': pieces.quality(_quality_rows(qc)),
        'errors': pieces.errors(list(errors)),
        'methods': pieces.methods([p.strip() for p in methods.split('\n\n') if p.strip()]),
        'reproduce': pieces.reproduce(settings, list((versions or {}).items())),
    }
    if regions is not None and len(regions):
        html['regions'] = pieces.table(
            [_title(str(column)) for column in regions.columns],
            [[_tell(cell) for cell in row] for row in regions.itertuples(index=False)],
        )
    for name in FIGURES:
        html[name] = _figure(pieces, out_dir, prefix, name, self_contained)

    with TemporaryDirectory(prefix='report-') as work:
        # NiReports reads its pieces from files with BIDS names; figures stay where they are.
        folder = Path(work, f'sub-{participant}', 'figures')
        folder.mkdir(parents=True)
        for name, content in html.items():
            (folder / f'{prefix}_desc-{name}_ct.html').write_text(str(content), encoding='utf-8')
        page = Path(work, f'{prefix}.html')
        report = Report(
            work,
            run_uuid=None,
            bootstrap_file=_DATA / 'participant.yml',
            out_filename=page,
            reportlets_dir=work,
            subject=participant,
        )
        report.template_path = _DATA / 'page.html'
        report.generate_report()
        target = out_dir / page.name
        write_text(page.read_text(encoding='utf-8'), target)
    return target


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
        code = base64.b64encode(content).decode('ascii')
        return pieces.figure(
            name=path.name,
            source=f'data:image/svg+xml;base64,{code}' if self_contained else link,
            link='' if self_contained else link,
            alt=unescape(root.get('aria-label', name)),
            turning=root.get('class') == 'turning',
        )
    return pieces.no_figure(name)


def _quality_rows(qc: Mapping[str, object] | pd.DataFrame) -> list[dict[str, str]]:
    """Set each metric beside its limits; those without an entry are shown as they are."""
    known = yaml.safe_load((_DATA / 'quality.yml').read_text(encoding='utf-8'))
    if isinstance(qc, pd.DataFrame):
        qc = {str(k): v for k, v in qc.iloc[0].items()} if len(qc) else {}
    rows = []
    for name in [*(n for n in known if n in qc), *(n for n in qc if n not in known)]:
        entry = known.get(name, {})
        low, high, expected = (entry.get(key) for key in ('minimum', 'maximum', 'expected'))
        units = f' {entry["units"]}' if 'units' in entry else ''
        usual = (
            f'{low:g} to {high:g}{units}'
            if low is not None and high is not None
            else f'at least {low:g}{units}'
            if low is not None
            else f'at most {high:g}{units}'
            if high is not None
            else expected or ''
        )
        rows.append(
            {
                'label': entry.get('label', _title(name)),
                'value': _tell(qc[name]) + (units if _number(qc[name]) is not None else ''),
                'usual': usual,
                'verdict': _verdict(qc[name], low, high, expected),
                'meaning': entry.get('meaning', ''),
            }
        )
    return rows


def _verdict(value: object, low: float | None, high: float | None, expected: str | None) -> str:
    if expected is not None:
        return 'ok' if str(value) == expected else 'look'
    if low is None and high is None:
        return ''
    number = _number(value)
    if number is None:
        return 'look'
    below, above = low is not None and number < low, high is not None and number > high
    return 'look' if below or above else 'ok'


def _number(value: object) -> float | None:
    """Return a value as a finite number, or None."""
    if isinstance(value, bool | str) or value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _tell(value: object) -> str:
    """Return a value as a person would write it."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, list | tuple):
        return ', '.join(_tell(item) for item in value) or 'none'
    number = _number(value)
    if number is not None:
        plain = abs(number) >= 100 or number == round(number)  # no 1.43e+03 mL
        return (f'{number:.0f}' if plain else f'{number:.3g}').replace('-', '−')
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return 'n/a' if missing else str(value)


def _title(name: str) -> str:
    """Return a column's name in words."""
    words = name.replace('_', ' ').strip()
    return words[:1].upper() + words[1:]
