"""The page of all participants: how each came through, and who stands apart.

Reads the tables and the status files on disk, as they are, and nothing else, so that a page of
1,400 participants is a matter of a second or two. Must not compute results or load images.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import output_path, write_text
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.bids.ratings import Rating, find_rating, read_ratings
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.reports.page import describe_findings
from bids_perfdeficit.reports.words import (
    DATA,
    environment,
    number,
    page_part,
    quality_limits,
    render_page,
    show,
    usual,
    verdict,
)

#: Robust standard deviations from the median at which a value stands apart from the cohort.
APART = 4.0
#: Participants from which a cohort has a spread to stand apart from.
FEW = 10
#: How many names a list shows before it refers to the table.
LISTED = 12
#: Metrics that show a failed registration.
REGISTRATIONS = ('skull_dice', 'template_dice')
_BARS = 40
#: Headings of columns that would be wider than what they hold.
_SHORT = {
    'Probability of any occlusion': 'Any occlusion',
    'Hypoperfused left, mL': 'Left, mL',
    'Hypoperfused right, mL': 'Right, mL',
}


@dataclass(frozen=True)
class Row:
    """One participant, or one session.

    Parameters
    ----------
    name : str
        ``sub-<label>[_ses-<label>]``.
    link : str
        Page, relative to the index; empty when there is none.
    status : str
        ``'complete'``, ``'doubtful'`` or ``'failed'``.
    reasons : tuple of str
        Why it is not complete.
    metrics : mapping of str to str or float
        As in ``desc-qc_metrics.tsv``.
    found : mapping of str to object
        As from `describe_findings`.
    log : str
        Messages of the run that failed, relative to the index; else empty.
    picture : str
        Thumbnail, relative to the index; empty when there is none.
    rating : Rating, optional
        What a person says of it.
    """

    name: str
    link: str
    status: str
    reasons: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, object] = field(default_factory=dict)
    log: str = ''
    picture: str = ''
    rating: Rating | None = None

    @property
    def doubts(self) -> list[str]:
        """Metrics beyond what is usual."""
        known = quality_limits()
        return [
            k for k, v in self.metrics.items() if k in known and verdict(v, known[k]) == 'look'
        ]


def build_index(
    output_dir: Path, statuses: Mapping[str, tuple[str, Sequence[str]]]
) -> Path | None:
    """Write ``index.html``.

    Parameters
    ----------
    output_dir : Path
        OUTPUT_DIR.
    statuses : mapping of str to (str, sequence of str)
        Status and reasons of the participants of this run; those of others are read from the logs
        of their last run.

    Returns
    -------
    Path or None
        The page; None when there are no participants.
    """
    rows = read_rows(output_dir, {**read_statuses(output_dir), **statuses})
    if not rows:
        return None
    problem = ''
    try:
        ratings = read_ratings(output_dir)
    except InputError as error:
        ratings, problem = {}, str(error)
    rows = [replace(row, rating=find_rating(ratings, *_entities(row.name))) for row in rows]
    shown = [k for k, entry in quality_limits().items() if 'short' in entry]
    pieces: Any = environment().get_template('cohort.html').module
    failed = [row for row in rows if row.status == 'failed']
    doubtful = [row for row in rows if row.status == 'doubtful']
    looked = [row for row in rows if row.status == 'complete' and row.doubts]
    description = read_facts(output_dir / 'dataset_description.json')
    facts = {
        **({'Dataset': name} if (name := _source_name(description)) else {}),
        'App version': __version__,
        'Participants or sessions': len(rows),
        'Complete': len(rows) - len(failed) - len(doubtful),
        'Doubtful': len(doubtful),
        'Failed': len(failed),
        'Complete, with a value to inspect': len(looked),
        'Rated by people': sum(row.rating is not None for row in rows),
    }
    others = [
        (path.name, title)
        for key, title in (
            ('group_report', 'Report of the group'),
            ('evaluation_report', 'Comparison with CT perfusion'),
            ('calibration_report', 'Calibration to CT perfusion'),
        )
        if (path := output_path(output_dir, key)).is_file()
    ]
    coverage = sorted(output_dir.glob('tpl-*/figures/tpl-*_desc-coverage_probseg.svg'))
    sections = [
        ('Summary', pieces.summary([(k, show(v)) for k, v in facts.items()], others, problem)),
        ('Participants', pieces.table(*_table(rows, shown))),
        ('Failures', pieces.failures(_failures(failed))),
        *([('Doubts', pieces.failures(_failures(doubtful)))] if doubtful else []),
        ('Registration', pieces.registrations(
            [_outliers(rows, key) for key in REGISTRATIONS]
        )),
        ('Distributions', pieces.distributions(
            [_distribution(rows, k) for k in shown if _values(rows, k).size]
        )),
        ('Coverage', pieces.coverage(
            Counter(str(r.metrics.get('coverage_missing', 'n/a')) for r in rows).most_common(),
            coverage[0].relative_to(output_dir).as_posix() if coverage else '',
        )),
    ]  # fmt: skip
    html = render_page(
        'All participants',
        [(name, [page_part('', content)]) for name, content in sections],
        footer=[pieces.script((DATA / 'cohort.js').read_text(encoding='utf-8'))],
    )
    return write_text(html, output_path(output_dir, 'index'))


def read_statuses(output_dir: Path) -> dict[str, tuple[str, Sequence[str]]]:
    """Return status and reasons of every participant, as reported by its last run."""
    found: dict[str, tuple[str, Sequence[str]]] = {}
    for path in sorted(output_dir.glob('logs/*/status.json')):  # names begin with the time
        try:
            people = json.loads(path.read_text(encoding='utf-8')).get('participants', {})
        except (OSError, ValueError):
            continue
        for name, entry in people.items():
            status, reasons = entry['status'], entry['reasons']
            if status not in ('complete', 'doubtful', 'failed'):
                status, reasons = 'failed', ['the run ended before it was finished']
            found[name] = status, reasons
    return found


def _source_name(description: Mapping[str, Any]) -> str:
    """Return the name of the dataset with the images, where it can be read."""
    link = str(description.get('DatasetLinks', {}).get('raw', ''))
    if not link.startswith('file://'):
        return ''
    raw = Path(unquote(link.removeprefix('file://')))
    return str(read_facts(raw / 'dataset_description.json').get('Name', ''))


def _entities(name: str) -> tuple[str, str]:
    """Return participant and session of ``sub-<label>[_ses-<label>]``."""
    participant, _, session = name.removeprefix('sub-').partition('_ses-')
    return participant, session


def _find_logs(output_dir: Path) -> dict[str, str]:
    """Return the messages of the last run of each participant, relative to the index."""
    found = {}
    for path in sorted(output_dir.glob('logs/*/status.json')):
        log = path.with_name('run.log')
        if log.is_file():
            for name in read_facts(path).get('participants', {}):
                found[name] = log.relative_to(output_dir).as_posix()
    return found


def read_rows(output_dir: Path, statuses: Mapping[str, tuple[str, Sequence[str]]]) -> list[Row]:
    """Return a row for each page and each participant that a run reports."""
    pages = {path.stem: path.name for path in output_dir.glob('sub-*.html')}
    rows, logs = [], _find_logs(output_dir)
    for name in sorted({*pages, *(n for n in statuses if n.startswith('sub-'))}):
        participant, session = _entities(name)
        picture = output_path(
            output_dir, 'figure_thumbnail', participant=participant, session=session or None
        )

        def read(key: str, who: str = participant, when: str = session) -> list[dict[str, Any]]:
            return _read(output_path(output_dir, key, participant=who, session=when or None))

        status, reasons = statuses.get(name, ('complete', ()))
        rows.append(
            Row(
                name,
                pages.get(name, ''),
                status,
                tuple(reasons),
                next(iter(read('qc_metrics')), {}),
                describe_findings(read('regions_metrics')),
                logs.get(name, '') if status == 'failed' else '',
                picture.relative_to(output_dir).as_posix() if picture.is_file() else '',
            )
        )
    return rows


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a small table; pandas takes ten times as long for it."""
    try:
        with path.open(encoding='utf-8', newline='') as stream:
            return [
                {k: _plain(v) for k, v in row.items()}
                for row in csv.DictReader(stream, delimiter='\t')
            ]
    except OSError:
        return []


def _plain(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return None if text == 'n/a' else text


def _values(rows: Iterable[Row], key: str) -> np.ndarray:
    return np.array([n for r in rows if (n := number(r.metrics.get(key))) is not None])


def _table(rows: Sequence[Row], shown: Sequence[str]) -> tuple[list[tuple[str, str]], list[Any]]:
    """Return columns with their explanation, and cells with their verdict."""
    known = quality_limits()
    found = list(dict.fromkeys(label for row in rows for label in row.found))
    columns = [
        ('Participant', 'Leads to the page; the picture is the slice with the largest deficit'),
        ('Status', ''),
        ('Rating', 'By a person: pass, doubt or fail, and a remark'),
        ('To inspect', 'Number of values beyond what is usual'),
        *((_SHORT.get(label, label), f'{label}, as at the top of the page') for label in found),
        *((known[k]['short'], _explain(k)) for k in shown),
    ]
    cells = []
    for row in rows:
        doubts = set(row.doubts)
        line = [(row.status, row.status != 'complete')]
        line += [(show(len(doubts)), False)]
        line += [(show(row.found.get(label)), False) for label in found]
        line += [(show(row.metrics.get(k)), k in doubts) for k in shown]
        cells.append((row, line))
    return columns, cells


def _explain(key: str) -> str:
    entry = quality_limits()[key]
    return f'{entry["label"]}; usual: {usual(entry)}. {entry["meaning"]}'


def _failures(failed: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return failed participants by reason, equal ones but for the name of a file together."""
    by_reason: dict[str, list[Row]] = {}
    for row in failed:
        reason = re.sub(r'\S*sub-\S+', 'the file', ' '.join(row.reasons) or 'no reason is known')
        by_reason.setdefault(reason, []).append(row)
    return sorted(by_reason.items(), key=lambda item: -len(item[1]))


def _outliers(rows: Sequence[Row], key: str) -> dict[str, Any]:
    """Return who is beyond what is usual, or apart from the cohort, farthest first."""
    entry, values = quality_limits()[key], _values(rows, key)
    middle = float(np.median(values)) if values.size else 0.0
    spread = 1.4826 * float(np.median(np.abs(values - middle))) if values.size else 0.0
    away = []
    for row in rows:
        value = number(row.metrics.get(key))
        if value is None:
            continue
        distance = abs(value - middle) / spread if spread > 0 else 0.0
        beyond = verdict(value, entry) == 'look'
        if beyond or (values.size >= FEW and distance > APART):
            away.append((distance, row, show(value), beyond))
    away.sort(key=lambda item: -item[0])
    return {
        'label': entry['label'],
        'usual': usual(entry),
        'meaning': entry['meaning'],
        'middle': show(middle),
        'units': entry.get('units', ''),
        'beyond': sum(beyond for *_, beyond in away),
        'apart': sum(not beyond for *_, beyond in away),
        'listed': [(row, value) for _, row, value, _ in away[:LISTED]],
        'more': max(len(away) - LISTED, 0),
    }


def _distribution(rows: Sequence[Row], key: str) -> dict[str, Any]:
    """Return a histogram with the limits of what is usual, and the outliers."""
    entry, values = quality_limits()[key], _values(rows, key)
    limits = [entry[k] for k in ('minimum', 'maximum') if k in entry]
    low, high = min([*values, *limits]), max([*values, *limits])
    high = high if high > low else low + 1.0
    counts, edges = np.histogram(values, bins=_BARS, range=(low, high))
    width = 100.0 / _BARS
    centres = (edges[:-1] + edges[1:]) / 2
    bars = [
        {'x': n * width, 'height': 60.0 * count / counts.max(), 'count': int(count),
         'look': verdict(float(centre), entry) == 'look',
         'range': f'{show(float(a))} to {show(float(b))}'}
        for n, (count, centre, a, b) in enumerate(
            zip(counts, centres, edges[:-1], edges[1:], strict=True)
        )
        if count
    ]  # fmt: skip
    return _outliers(rows, key) | {
        'bars': bars,
        'width': width * 0.9,
        'marks': [100.0 * (limit - low) / (high - low) for limit in limits],
        'low': show(float(low)),
        'high': show(float(high)),
        'n': len(values),
    }
