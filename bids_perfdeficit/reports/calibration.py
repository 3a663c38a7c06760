"""The page of a calibration: before and after, each participant left out, and what it came from.

Reads the tables of the level calibrate on disk and puts what they say into figures and words;
fills the same `data/reports/page.html` as the other pages, and asks the network for nothing. Must
not compute results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from bids_perfdeficit.bids import sidecar_path
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.perfusion.refit import PARTS
from bids_perfdeficit.pipeline import COMPARED
from bids_perfdeficit.reports import evaluation_figures
from bids_perfdeficit.reports.comparison import (
    ComparisonPage,
    ComparisonReport,
    name_person,
    read_table,
)
from bids_perfdeficit.reports.words import fixed, page_part, show

#: Participants below which leaving one out says little.
FEW = 10
#: Measures that are drawn: of these, higher is better except where named.
_DRAWN = {
    'spearman': 'Spearman of the map',
    'auc': 'AUC of the probability',
    'error_ml': 'Error of the volume, mL (lower is better)',
    'dice': 'Dice',
}
#: Digits after the point of what is not mL.
_DIGITS = 3
#: Outputs to download, with what they hold.
_FILES = {
    'calibration_file': 'for --calibration',
    'calibration_participants': 'two rows per participant',
    'calibration_metrics': 'a row per measure',
}


def build_calibration_page(report: ComparisonReport) -> Path:
    """Draw the figures and write ``calibration.html``.

    Parameters
    ----------
    report : ComparisonReport
        What lies where.

    Returns
    -------
    Path
        The page.
    """
    page = _Page(report)
    sections = [
        ('Summary', page.summary()),
        ('Before and after', page.compared()),
        ('Participants', page.participants()),
        ('Provenance', page.provenance()),
        ('Methods', page.methods()),
        ('Reproduce', page.reproduce('Files to download', _FILES)),
    ]
    title = 'Calibration of computed perfusion to CT perfusion'
    return page.write('calibration_report', title, sections)


class _Page(ComparisonPage):
    """The sections of the page."""

    def __init__(self, report: ComparisonReport) -> None:
        super().__init__(report)
        self.report = report
        self.people = read_table(report.path('calibration_participants'))
        self.table = read_table(report.path('calibration_metrics')).set_index('measure')
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
                name_person(one),
                *(f'{_fixed(one[m], m)} → {_fixed(other[m], m)}' for m in
                  ('spearman', 'auc', 'found_ml')),
                show(one['reference_ml']),
                f'{_fixed(one["dice"], "dice")} → {_fixed(other["dice"], "dice")}',
            ])  # fmt: skip
        missing = self.people[self.people['status'] != 'used']
        notes = [
            [name_person(row), str(row['notes']).replace(' | ', '; ')]
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
            self.left_out('Who was not used, and why', missing),
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


def _fixed(value: Any, measure: str) -> str:
    """Return a measure with its digits."""
    return fixed(value, 1 if measure.endswith('_ml') else _DIGITS)
