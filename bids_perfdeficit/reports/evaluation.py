"""The page of an evaluation: how computed maps agree with reference maps, and with which not.

Reads the tables and maps of the level evaluate on disk and puts what they say into figures and
words; fills the same `data/reports/page.html` as the other pages, and asks the network for
nothing. Must not compute results.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from markupsafe import Markup

from bids_perfdeficit.bids import ScanPair, output_path, sidecar_path
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.pipeline import MAPS, MEASURES
from bids_perfdeficit.reports import evaluation_figures
from bids_perfdeficit.reports.comparison import ComparisonPage, ComparisonReport, read_table
from bids_perfdeficit.reports.figures import draw_side_by_side
from bids_perfdeficit.reports.words import fixed, page_part, show

#: Participants below which a mean says little.
FEW = 10
#: s at the upper end of the colours of Tmax.
_TMAX_S = 12.0
#: Participants with a deficit from which the best and the worst are chosen by the AUC.
_BY_AUC = 3
#: Digits after the point.
_DIGITS = 2
#: Outputs to download, with what they hold.
_FILES = {
    'evaluation_participants': 'a row per participant',
    'evaluation_metrics': 'a row per map and measure',
}


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(ComparisonReport):
    """What the page is made of; see `ComparisonReport`.

    Parameters
    ----------
    space : str
        Template.
    pairs : tuple of ScanPair
        Who was evaluated.
    """

    space: str
    pairs: tuple[ScanPair, ...]

    def of(self, pair: ScanPair, key: str) -> Path:
        """Return where an output of a participant lies."""
        return output_path(
            self.output_dir,
            key,
            participant=pair.participant,
            session=pair.session,
            space=self.space,
        )


def build_evaluation_page(report: EvaluationReport) -> Path:
    """Draw the figures and write ``evaluation.html``.

    Parameters
    ----------
    report : EvaluationReport
        What lies where.

    Returns
    -------
    Path
        The page.
    """
    page = _Page(report)
    sections = [
        ('Summary', page.summary()),
        ('Agreement', page.agreement()),
        ('Volumes', page.volumes()),
        ('Maps', page.maps()),
        ('Participants', page.participants()),
        ('Methods', page.methods()),
        ('Reproduce', page.reproduce('Tables to download', _FILES)),
    ]
    title = 'Computed perfusion against CT perfusion'
    return page.write('evaluation_report', title, sections)


class _Page(ComparisonPage):
    """The sections of the page."""

    def __init__(self, report: EvaluationReport) -> None:
        super().__init__(report)
        self.report = report
        self.people = read_table(report.path('evaluation_participants'))
        self.summarised = read_table(report.path('evaluation_metrics')).set_index(
            ['map', 'measure']
        )
        self.evaluated = self.people[self.people['status'] == 'evaluated']
        #: Measures by participant and map.
        self.tables: dict[str, dict[str, dict[str, Any]]] = {
            pair.prefix: _rows(report.of(pair, 'agreement_metrics')) for pair in report.pairs
        }
        self.patients: dict[str, dict[str, Any]] = {
            pair.prefix: {
                str(name): value
                for name, value in read_table(report.of(pair, 'reference_metrics')).iloc[0].items()
            }
            for pair in report.pairs
        }

    def value(self, name: str, measure: str, column: str = 'mean') -> float:
        """Return a number of the summary, NaN where there is none."""
        if (name, measure) not in self.summarised.index:
            return float('nan')
        found: Any = self.summarised.loc[(name, measure), column]
        return float(found)

    def mean(self, name: str, measure: str) -> str:
        """Return mean and standard deviation in words."""
        spread = self.value(name, measure, 'sd')
        text = _fixed(self.value(name, measure))
        return text if np.isnan(spread) else f'{text} ({_fixed(spread)})'

    def summary(self) -> list[dict[str, Any]]:
        counts = self.people['status'].value_counts()
        deficits = sum(float(row['reference_ml']) >= 1 for row in self.patients.values())
        facts = {
            'Participants compared': len(self.patients),
            'of them with 1 mL or more above 6 s': deficits,
            'Failed': int(counts.get('failed', 0)),
            'Left out': int(counts.get('left out', 0)),
        }
        large = {
            'Spearman, mean (SD)': self.mean('computed', 'spearman'),
            'Partial Spearman': self.mean('computed', 'partial'),
            'AUC of the map': self.mean('computed', 'auc'),
            'Concordance of volumes': _fixed(self.value('computed', 'concordance')),
            'Later side right': self._share('side'),
            'Site right': self._share('site'),
        }
        return [
            page_part(
                '',
                (self.common.facts(list(large.items()), True), ''),
                (self.own.verdict(self._compare(), 'Against an unlearned blend'), ''),
                (
                    self.common.summary(
                        [(k, show(v)) for k, v in facts.items()], self._warnings()
                    ),
                    '',
                ),
            )
        ]

    def _share(self, measure: str) -> str:
        count = self.value('computed', measure, 'n')
        if not count > 0:
            return 'n/a'
        return f'{round(self.value("computed", measure) * count)} of {count:.0f}'

    def _compare(self) -> str:
        """Set the computed map beside the best of what needs no learning."""
        gains = []
        for measure in ('spearman', 'auc'):
            gain, low, high = (
                self.value('blend', measure, column)
                for column in ('gain', 'gain_low', 'gain_high')
            )
            if np.isnan(gain):
                continue
            word = 'higher' if gain >= 0 else 'lower'
            within = '' if np.isnan(low) else f' (95 % interval {_fixed(low)} to {_fixed(high)})'
            gains.append(f'{MEASURES[measure]} is {_fixed(abs(gain))} {word}{within}')
        if not gains:
            return 'No measure could be compared.'
        return f'In the same participants, {" and ".join(gains)}, for the computed map.'

    def _warnings(self) -> list[str]:
        warnings = []
        if len(self.patients) < FEW:
            warnings.append(
                f'Only {len(self.patients)} participants: means and intervals are uncertain.'
            )
        artefacts = [name for name in self.patients if self._sidecar(name).get('Notes')]
        if artefacts:
            warnings.append(
                f'{len(artefacts)} of {len(self.patients)} references have artefacts (see '
                'Participants): they are compared as they are, so that agreement cannot be '
                'perfect.'
            )
        doubtful = [n for n in self.patients if self._sidecar(n).get('Doubts')]
        if doubtful:
            warnings.append(f'References that fit the brain poorly: {", ".join(doubtful)}.')
        covered = [float(row['covered']) for row in self.patients.values()]
        if min(covered) < 0.9:
            warnings.append(
                f'References cover {min(covered):.0%} to {max(covered):.0%} of the brain; volumes '
                'and sides are those of the covered part.'
            )
        if any(self._sloppy(pair) for pair in self.report.pairs):
            warnings.append('Maps were computed with --sloppy: for trials, never for results.')
        return warnings

    def _sidecar(self, name: str) -> dict[str, Any]:
        pair = next(p for p in self.report.pairs if p.prefix == name)
        return read_facts(sidecar_path(self.report.of(pair, 'reference_metrics')))

    def _sloppy(self, pair: ScanPair) -> bool:
        return bool(read_facts(sidecar_path(self.report.of(pair, 'perfusion'))).get('Sloppy'))

    def agreement(self) -> list[dict[str, Any]]:
        columns = ['Map', *(f'{title}, n = {self._count(m)}' for m, title in MEASURES.items()),
                   'Later side right']  # fmt: skip
        rows = []
        for name, title in MAPS.items():
            side, count = self.value(name, 'side_matched'), self.value(name, 'side_matched', 'n')
            rows.append([
                title[:1].upper() + title[1:],
                *(self.mean(name, measure) for measure in MEASURES),
                f'{round(side * count)} of {count:.0f}' if count > 0 else 'n/a',
            ])  # fmt: skip
        gains = []
        for name in list(MAPS)[1:]:
            cells = []
            for measure in MEASURES:
                gain, low, high = (
                    self.value(name, measure, c) for c in ('gain', 'gain_low', 'gain_high')
                )
                within = '' if np.isnan(low) else f' ({_fixed(low)} to {_fixed(high)})'
                cells.append(f'{_fixed(gain)}{within}')
            gains.append([f'Computed minus {MAPS[name]}', *cells])
        figure = evaluation_figures.draw_measures(
            {
                measure: {
                    name: [
                        float(table[name][measure])
                        for table in self.tables.values()
                        if name in table
                    ]
                    for name in MAPS
                }
                for measure in MEASURES
            },
            self.report.path('evaluation_figure', figure='measures'),
            maps=MAPS,
            measures=MEASURES,
        )
        return [
            page_part(
                'Table for a paper',
                (
                    self.own.rows(columns, rows),
                    'Mean (standard deviation) over participants. Each voxel of the brain that '
                    'the reference covers counts; the last four columns need 1 mL or more with '
                    'Tmax above 6 s. The last four maps are controls: nothing in them was '
                    'learned. Dice and later side are those of as many of the highest voxels as '
                    'the reference has above 6 s.',
                ),
            ),
            page_part(
                'Each participant',
                (
                    self._plot(figure, 'Agreement of each map with the reference'),
                    'Lines are participants, marks their means.',
                ),
            ),
            page_part(
                'Differences in the same participants',
                (
                    self.own.rows(['Difference', *MEASURES.values()], gains),
                    'Mean (95 % interval over resampled participants). Above 0, the computed map '
                    'agrees better.',
                ),
            ),
        ]

    def _count(self, measure: str) -> str:
        return f'{self.value("computed", measure, "n"):.0f}'

    def _plot(self, figure: Path, alt: str) -> Any:
        return self.common.plot(self.report.link(figure), alt)

    def volumes(self) -> list[dict[str, Any]]:
        found, true = (
            [float(row[key]) for row in self.patients.values()]
            for key in ('found_ml', 'reference_ml')
        )
        bias, low, high = (
            self.value('computed', key) for key in ('bias', 'limit_low', 'limit_high')
        )
        figure = evaluation_figures.draw_volumes(
            found,
            true,
            self._short_names(),
            self.report.path('evaluation_figure', figure='volumes'),
            bias=bias,
            limits=(low, high),
            concordance=self.value('computed', 'concordance'),
        )
        facts = {
            "Lin's concordance": _fixed(self.value('computed', 'concordance')),
            'Bias, mL': show(bias),
            '95 % limits of agreement, mL': f'{show(low)} to {show(high)}',
            'Median of computed over reference': _fixed(self.value('computed', 'volume_ratio')),
            'Dice, mean (SD)': self.mean('computed', 'dice'),
            'Dice, median': _fixed(self.value('computed', 'dice', 'median')),
        }
        parts = [
            page_part(
                '',
                (
                    self._plot(figure, 'Volumes against each other, and their differences'),
                    'Left: volumes that are found and those of the reference, on equality (dashed)'
                    ' where they agree. Right: their differences (Bland and Altman). The three '
                    'largest differences are named.',
                ),
                (self.common.facts(list(facts.items())), ''),
            )
        ]
        for title, key in (('Later side', 'side'), ('Site of the occlusion', 'site')):
            if table := self._confusion(f'found_{key}', f'reference_{key}'):
                columns, rows = table
                parts.append(
                    page_part(title, (
                        self.own.rows(columns, rows),
                        'Rows are what the reference has, columns what was found.',
                    ))
                )  # fmt: skip
        return parts

    def _short_names(self) -> list[str]:
        """Return names for plots: labels of participants, with the session where it is needed."""
        labels = [pair.participant for pair in self.report.pairs]
        return [
            pair.participant
            if labels.count(pair.participant) == 1
            else f'{pair.participant} {pair.session}'
            for pair in self.report.pairs
        ]

    def _confusion(self, found: str, true: str) -> tuple[list[str], list[list[str]]] | None:
        pairs = [
            (str(row[true]), str(row[found]))
            for row in self.patients.values()
            if pd.notna(row[true]) and pd.notna(row[found])
        ]
        if not pairs:
            return None
        names = sorted({name for pair in pairs for name in pair})
        rows = [
            [one, *(str(sum(pair == (one, other) for pair in pairs)) for other in names)]
            for one in names
            if any(pair[0] == one for pair in pairs)
        ]
        return ['Reference', *names], rows

    def maps(self) -> list[dict[str, Any]]:
        by_auc = {
            name: float(table['computed']['auc'])
            for name, table in self.tables.items()
            if np.isfinite(table['computed']['auc'])
        }
        by_rank = {
            name: float(table['computed']['spearman']) for name, table in self.tables.items()
        }
        chosen_by = 'AUC' if len(by_auc) >= _BY_AUC else 'Spearman'
        values = by_auc if chosen_by == 'AUC' else by_rank
        order = sorted(values, key=lambda name: (-values[name], name))
        picked = {'Best': order[0]}
        if len(order) > 2:
            picked |= {'Median': order[(len(order) - 1) // 2]}
        if len(order) > 1:
            picked |= {'Worst': order[-1]}
        parts = []
        for word, name in picked.items():
            pair = next(p for p in self.report.pairs if p.prefix == name)
            title = f'{word} by {chosen_by}: {name}'
            try:
                drawn = self._draw(pair, title, word.lower())
            except (OSError, ValueError) as error:
                parts.append(page_part(title, (self.common.no_figure(f'{name}: {error}'), '')))
                continue
            row = self.patients[name]
            caption = (
                f'Spearman {_fixed(by_rank[name])}, AUC {_fixed(by_auc.get(name, np.nan))}; '
                f'{show(row["found_ml"])} mL found, {show(row["reference_ml"])} mL in the '
                f'reference, Dice {_fixed(float(row["dice"]))}.'
            )
            link = self.report.link(drawn)
            parts.append(
                page_part(title, (self.common.figure(drawn.name, link, '', title), caption))
            )
        return parts

    def _draw(self, pair: ScanPair, title: str, word: str) -> Path:
        ncct, brain, computed, probability, reference = (
            _load(self.report.of(pair, key))
            for key in ('preproc_ct', 'brain_mask', 'perfusion', 'hypoperfused', 'reference_tmax')
        )
        threshold = read_facts(sidecar_path(self.report.of(pair, 'hypoperfused'))).get(
            'HypoperfusionThreshold', 0.5
        )
        delay = np.asarray(reference.dataobj, np.float32)
        found = np.asarray(probability.dataobj, np.float32) > threshold
        late = np.nan_to_num(delay) > 6
        computed_values = np.asarray(computed.dataobj, np.float32)
        return draw_side_by_side(
            [
                (computed, nib.Nifti1Image(found.astype(np.uint8), ncct.affine),
                 'Computed perfusion, 0 to 1; white line: hypoperfused', (0.0, 1.0)),
                (reference, nib.Nifti1Image(late.astype(np.uint8), ncct.affine),
                 f'Reference, Tmax 0 to {_TMAX_S:g} s; white line: above 6 s', (0.0, _TMAX_S)),
                (nib.Nifti1Image(np.full_like(computed_values, np.nan), ncct.affine),
                 nib.Nifti1Image((found & late).astype(np.uint8), ncct.affine),
                 'NCCT; white line: both', (0.0, 1.0)),
            ],
            brain, ncct, self.report.path('evaluation_figure', figure=f'{word}Patient'),
            title=title, ends=('earlier (0; 0 s)', f'later (1; {_TMAX_S:g} s)'),
        )  # fmt: skip

    def participants(self) -> list[dict[str, Any]]:
        columns = ['Participant', 'Spearman', 'Partial', 'In the deficit', 'AUC', 'Found, mL',
                   'Reference, mL', 'Dice', 'Side: found, reference',
                   'Site: found, reference', 'Covered']  # fmt: skip
        rows = []
        notes = []
        for name, row in self.patients.items():
            own = self.tables[name]['computed']
            measures = ('spearman', 'partial', 'spearman_deficit', 'auc')
            rows.append([
                self._link(name), *(_fixed(float(own[m])) for m in measures),
                show(row['found_ml']), show(row['reference_ml']), _fixed(float(row['dice'])),
                f'{show(row["found_side"])}, {show(row["reference_side"])}',
                f'{show(row["found_site"])}, {show(row["reference_site"])}',
                f'{float(row["covered"]):.0%}',
            ])  # fmt: skip
            facts = self._sidecar(name)
            if said := [*facts.get('Doubts', []), *facts.get('Notes', [])]:
                notes.append([name, '; '.join(said)])
        missing = self.people[self.people['status'] != 'evaluated']
        return [
            page_part('Who was compared', (self.own.rows(columns, rows), '')),
            page_part(
                'Notes on the references',
                (
                    self.common.notes(['Participant', 'Note'], notes) if notes else '',
                    'Software for CT perfusion leaves artefacts: values that were cut off, '
                    'isolated specks, delays outside the brain.',
                ),
            ),
            self.left_out('Who was not compared, and why', missing),
        ]

    def _link(self, name: str) -> str:
        """Return a participant's name, with a link to the page where it lies beside this one."""
        page = self.report.output_dir / f'{name}.html'
        if self.report.self_contained or not page.is_file():
            return name
        return Markup('<a href="{}">{}</a>').format(page.name, name)


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a table by their map."""
    records = read_table(path).to_dict('records')
    return {str(row['map']): {str(k): v for k, v in row.items()} for row in records}


def _load(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


def _fixed(value: float) -> str:
    """Return a measure with its digits."""
    return fixed(value, _DIGITS)
