"""The page of a calibration: before and after, each participant left out, and what it came from.

Reads the tables of the level calibrate on disk and puts what they say into figures and words;
fills the same `data/reports/page.html` as the other pages, and asks the network for nothing. Must
not compute results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_perfdeficit.bids import output_path, sidecar_path, write_text
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.perfusion.refit import PARTS
from bids_perfdeficit.pipeline import COMPARED
from bids_perfdeficit.reports import evaluation_figures
from bids_perfdeficit.reports.words import cite, embed, environment, page_part, render_page, show

#: Participants below which leaving one out says little.
FEW = 10
#: Measures that are drawn: of these, higher is better except where named.
_DRAWN = {
    'spearman': 'Spearman of the map',
    'auc': 'AUC of the probability',
    'error_ml': 'Error of the volume, mL (lower is better)',
    'dice': 'Dice',
}
#: Digits after the point, of mL and of the rest.
_DIGITS = 3


@dataclass(frozen=True)
class CalibrationReport:
    """What the page is made of.

    Parameters
    ----------
    output_dir : Path
        OUTPUT_DIR: the page lies in it and links everything relative to it.
    methods : str
        With citations as ``[@key]``; an empty line parts two paragraphs.
    settings : str
        TOML.
    versions, fingerprints : mapping of str to str
        Of the software, and of the participants' samples.
    self_contained : bool
        Put figures and tables into the page, so that it can be mailed as one file.
    """

    output_dir: Path
    methods: str = ''
    settings: str = ''
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    self_contained: bool = False

    def path(self, key: str, **entities: str) -> Path:
        """Return where an output lies."""
        return output_path(self.output_dir, key, **entities)

    def link(self, path: Path) -> str:
        """Return a path as the page links it."""
        if self.self_contained:
            return embed(path)
        return path.relative_to(self.output_dir).as_posix()


def build_calibration_page(report: CalibrationReport) -> Path:
    """Draw the figures and write ``calibration.html``.

    Parameters
    ----------
    report : CalibrationReport
        What lies where.

    Returns
    -------
    Path
        The page.
    """
    common: Any = environment().get_template('pieces.html').module
    own: Any = environment().get_template('group.html').module
    page = _Page(report, common, own)
    index = report.path('index')
    html = render_page(
        'Calibration of computed perfusion to CT perfusion',
        [
            ('Summary', page.summary()),
            ('Before and after', page.compared()),
            ('Participants', page.participants()),
            ('Provenance', page.provenance()),
            ('Methods', page.methods()),
            ('Reproduce', page.reproduce()),
        ],
        header=[own.style()],
        navbar=[] if report.self_contained or not index.is_file() else [common.up(index.name)],
    )
    return write_text(html, report.path('calibration_report'))


class _Page:
    """The sections of the page."""

    def __init__(self, report: CalibrationReport, common: Any, own: Any) -> None:
        self.report, self.common, self.own = report, common, own
        self.people = _read(report.path('calibration_participants'))
        self.table = _read(report.path('calibration_metrics')).set_index('measure')
        self.facts = read_facts(sidecar_path(report.path('calibration_metrics')))
        self.file = report.path('calibration_file')
        used = self.people[self.people['status'] == 'used']
        self.before, self.after = (
            used[used['calibration'] == name] for name in ('shipped', 'left out')
        )

    @property
    def taken(self) -> list[str]:
        """Return the parts of the refit that were taken."""
        return [str(part) for part in self.facts.get('Refitted', [])]

    def summary(self) -> list[dict[str, Any]]:
        large = {
            'Participants': str(len(self.before)),
            'Spearman': self._change('spearman'),
            'AUC of the probability': self._change('auc'),
            'Error of volumes, mL': self._change('error_ml'),
            'Concordance of volumes': self._change('concordance'),
        }
        if self.taken:
            verdict = 'A calibration file was written'
            sentence = (
                'Give it to the participant level with --calibration. Each part of it was taken '
                'because participants that were left out fared better with it.'
            )
        else:
            verdict = 'No calibration file was written'
            sentence = (
                'Nothing got better when each participant was left out. Go on with the '
                'calibration that is shipped.'
            )
        warnings = []
        if len(self.before) < FEW:
            warnings.append(f'Only {len(self.before)} participants: the comparison is uncertain.')
        if self.taken:
            warnings.append(
                'The comparison decided what was taken, so that the gains are somewhat '
                'optimistic. Compare with other participants by the level evaluate.'
            )
        if 'probability' in self.taken and 'occlusion' not in self.taken:
            warnings.append(
                'With this file no likely occlusion is reported: it is found by the probability, '
                'which was refitted, and its own refit was not taken.'
            )
        rows = [
            [title[:1].upper() + title[1:], 'refitted' if part in self.taken else 'as shipped',
             str(self.facts.get('Reasons', {}).get(part, 'n/a'))]
            for part, title in PARTS.items()
        ]  # fmt: skip
        return [
            page_part(
                '',
                (self.common.facts(list(large.items()), True), 'Before → after.'),
                (self.own.verdict(sentence, verdict), ''),
                (self.common.notes(['Part', 'Result', 'Each participant left out'], rows), ''),
                (self.common.summary([], warnings), ''),
            )
        ]

    def _change(self, measure: str) -> str:
        if measure not in self.table.index:
            return 'n/a'
        row: Any = self.table.loc[measure]
        return f'{_fixed(row["before"], measure)} → {_fixed(row["after"], measure)}'

    def compared(self) -> list[dict[str, Any]]:
        rows = []
        for measure, title in {**COMPARED, 'concordance': 'Concordance of volumes'}.items():
            row: Any = self.table.loc[measure]
            better = row['better']
            rows.append([
                title, show(int(row['n'])),
                *(_fixed(row[column], measure) for column in ('before', 'after', 'change')),
                'n/a' if pd.isna(better) else f'{int(better)} of {int(row["n"])}',
            ])  # fmt: skip
        measures = evaluation_figures.draw_changes(
            {
                title: (self.before[key].to_numpy(float), self.after[key].to_numpy(float))
                for key, title in _DRAWN.items()
            },
            self.report.path('calibration_figure', figure='changes'),
        )
        volumes = evaluation_figures.draw_volumes_twice(
            self.before['found_ml'].to_numpy(float),
            self.after['found_ml'].to_numpy(float),
            self.before['reference_ml'].to_numpy(float),
            self.report.path('calibration_figure', figure='volumes'),
        )
        return [
            page_part(
                'Table for a paper',
                (
                    self.own.rows(
                        ['Measure', 'n', 'Before', 'After', 'Change', 'Better in'], rows
                    ),
                    'Means over participants, over the drawn voxels. After: with the refit to all '
                    'other participants, all parts of it, whether taken or not. Lower is better '
                    'for the error of the volume and the log loss.',
                ),
            ),
            page_part(
                'Each participant',
                (
                    self.common.plot(
                        self.report.link(measures), 'Measures before and after, by participant'
                    ),
                    'Lines are participants: with the shipped calibration, and when left out of '
                    'the refit.',
                ),
                (
                    self.common.plot(
                        self.report.link(volumes), 'Volumes before and after against the reference'
                    ),
                    'Volumes of hypoperfusion; on the dashed line they agree.',
                ),
            ),
        ]

    def participants(self) -> list[dict[str, Any]]:
        rows = []
        for (_, one), (_, other) in zip(
            self.before.iterrows(), self.after.iterrows(), strict=True
        ):
            rows.append([
                _person(one),
                *(f'{_fixed(one[m], m)} → {_fixed(other[m], m)}' for m in
                  ('spearman', 'auc', 'found_ml')),
                show(one['reference_ml']),
                f'{_fixed(one["dice"], "dice")} → {_fixed(other["dice"], "dice")}',
            ])  # fmt: skip
        missing = self.people[self.people['status'] != 'used']
        failures = [[_person(row), row['status'], str(row['reason'])]
                    for _, row in missing.iterrows()]  # fmt: skip
        notes = [
            [_person(row), str(row['notes']).replace(' | ', '; ')]
            for _, row in self.before.iterrows()
            if pd.notna(row['notes'])
        ]
        columns = ['Participant', 'Spearman', 'AUC', 'Found, mL', 'Reference, mL', 'Dice']
        return [
            page_part('Who was used', (self.own.rows(columns, rows), 'Before → after.')),
            page_part(
                'Notes on the references',
                (self.common.notes(['Participant', 'Note'], notes) if notes else '', ''),
            ),
            page_part(
                'Who was not used, and why',
                (
                    self.common.notes(['Participant', 'Status', 'Reason'], failures)
                    if failures
                    else '',
                    '',
                ),
            ),
        ]

    def provenance(self) -> list[dict[str, Any]]:
        if not self.file.is_file():
            return [page_part('', ('', 'There is no file, because nothing was taken.'))]
        content = json.loads(self.file.read_text(encoding='utf-8'))
        stated = content['Provenance']
        facts = {
            'Made by': f'{stated["GeneratedBy"]["Name"]} {stated["GeneratedBy"]["Version"]}',
            'For the shipped weights with SHA-256': content['BaseSHA256'][:12],
            'Threshold of the probability': _fixed(content['Threshold'], ''),
            'Template': stated['Space'],
            'Random seed': str(stated['RandomSeed']),
        }
        rows = [
            [p['Participant'], p['Reference'], p['ReferenceSHA256'][:12]]
            for p in stated['Participants']
        ]
        return [
            page_part('', (self.common.facts(list(facts.items())), '')),
            page_part(
                'References',
                (self.common.notes(['Participant', 'Reference', 'SHA-256 begins'], rows), ''),
            ),
        ]

    def methods(self) -> list[dict[str, Any]]:
        paragraphs, references = cite(self.report.methods)
        return [page_part('', (self.common.methods(paragraphs, references), ''))]

    def reproduce(self) -> list[dict[str, Any]]:
        entries = [
            (path.name, self.report.link(path), meaning)
            for key, meaning in (
                ('calibration_file', 'for --calibration'),
                ('calibration_participants', 'two rows per participant'),
                ('calibration_metrics', 'a row per measure'),
            )
            if (path := self.report.path(key)).is_file()
        ]
        return [
            page_part('Files to download', (self.own.downloads(entries), '')),
            page_part(
                'Settings and software',
                (
                    self.common.reproduce(
                        self.report.settings,
                        list(self.report.versions.items()),
                        list(self.report.fingerprints.items()),
                    ),
                    '',
                ),
            ),
        ]


def _read(path: Path) -> pd.DataFrame:
    # Only n/a is missing: "none" is a site.
    return pd.read_csv(path, sep='\t', na_values=['n/a'], keep_default_na=False)


def _person(row: Any) -> str:
    session = row['session_id']
    return f'{row["participant_id"]}_{session}' if isinstance(session, str) else str(
        row['participant_id']
    )  # fmt: skip


def _fixed(value: Any, measure: str) -> str:
    """Return a measure with its digits, and no minus before a zero."""
    if value is None or not np.isfinite(value):
        return 'n/a'
    digits = 1 if measure.endswith('_ml') else _DIGITS
    text = f'{float(value):.{digits}f}'
    return (text if float(text) else f'{0:.{digits}f}').replace('-', '−')
