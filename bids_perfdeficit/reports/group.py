"""The page of a group: who was in, what was found for each item, and how far to trust it.

Reads the tables, sidecars and maps of the group level on disk and puts what they say into figures
and words; fills the same `data/reports/page.html` as the participant's page, and asks the network
for nothing. Must not compute results.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from markupsafe import Markup
from scipy import ndimage

from bids_perfdeficit import __version__
from bids_perfdeficit.bids import output_path, sidecar_path, write_text
from bids_perfdeficit.bids.cohort import contrast_label
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.bids.nihss import ITEMS
from bids_perfdeficit.data import load
from bids_perfdeficit.deficit import get_model
from bids_perfdeficit.perfusion.regions import ASPECTS_LABELS, aspects_regions
from bids_perfdeficit.reports import group_figures
from bids_perfdeficit.reports.viewer import describe_view, pack_volume
from bids_perfdeficit.reports.words import (
    DATA,
    TERRITORIES,
    cite,
    embed,
    environment,
    page_part,
    render_page,
    show,
    to_script,
    words_for,
)

#: Words for the sides of a cluster that are not words.
_SIDES = {'both': 'left and right'}
#: Correlation with coverage from which a map may be vascular bias.
_RESEMBLES = 0.7
#: Share of shuffled cohorts in which nothing may be declared.
_CLEAN = 0.95
#: Maps of an item that are linked, in order.
_STATISTICS = ('prob', 'effect', 'std', 't', 'threshold', 'credible', 'stability')
#: Share of expected false discoveries above which the credible set is shown, and not a region.
_MOSTLY = 0.5
#: Share of a substrate from which a territory is named.
_LEAST_SHARE = 0.01
#: Territories that are listed for each item.
_TERRITORIES = 3
#: p adjusted for all items up to which the summary counts an item.
_HOLDS = 0.05
#: Legend of the outline on the maps of all models.
_DECLARED = 'white line: declared'
#: Brightness of what was not analysed, of what was, and its legend.
_DIM, _DIMMED = 0.4, '; dark: not analysed'


@dataclass(frozen=True)
class GroupReport:
    """What the page is made of.

    Parameters
    ----------
    output_dir : Path
        OUTPUT_DIR: the page lies in it and links everything relative to it.
    space, res : str
        Template, and the label of the resolution.
    models : tuple of str
        Models that have results.
    facts : mapping of str to object
        Options of the run, for the summary.
    warnings : tuple of str
        Caveats of the cohort, a sentence each.
    errors : tuple of str
        What failed.
    methods : str
        With citations as ``[@key]``; an empty line parts two paragraphs.
    settings : str
        TOML.
    versions : mapping of str to str
    fingerprints : mapping of str to str
        Of the stages that the page shows.
    self_contained : bool
        Put figures and tables into the page, so that it can be mailed as one file.
    """

    output_dir: Path
    space: str
    res: str
    models: tuple[str, ...]
    facts: Mapping[str, object]
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    methods: str = ''
    settings: str = ''
    versions: Mapping[str, str] | None = None
    fingerprints: Mapping[str, str] | None = None
    self_contained: bool = False

    def path(self, key: str, **entities: str) -> Path:
        """Return where an output lies."""
        return output_path(self.output_dir, key, space=self.space, res=self.res, **entities)

    def link(self, path: Path) -> str:
        """Return a path as the page links it."""
        return embed(path) if self.self_contained else self.relative(path)

    def relative(self, path: Path) -> str:
        """Return a path as seen from the page."""
        return path.relative_to(self.output_dir).as_posix()

    def table(self, key: str, model: str = '') -> pd.DataFrame:
        """Return a table, empty when there is none."""
        path = self.path(key, model=model)
        if not path.is_file():
            return pd.DataFrame()
        return pd.read_csv(path, sep='\t', na_values='n/a')


def build_group_page(report: GroupReport) -> Path:
    """Draw the figures and write ``group.html``.

    Parameters
    ----------
    report : GroupReport
        What lies where.

    Returns
    -------
    Path
        The page.
    """
    common: Any = environment().get_template('pieces.html').module
    own: Any = environment().get_template('group.html').module
    page = _Page(report, common, own)
    sections = [
        ('Summary', page.summary()),
        ('Cohort', page.cohort()),
        ('Maps', page.maps()),
        ('Viewer', page.viewer()),
        ('Prediction', page.prediction()),
        ('Trust', page.trust()),
        ('Methods', page.methods()),
        ('Reproduce', page.reproduce()),
    ]
    index = output_path(report.output_dir, 'index')
    neighbours = not report.self_contained and any(report.output_dir.glob('sub-*.html'))
    html = render_page(
        page.words.title,
        sections,
        header=[own.style()],
        navbar=[common.up(index.name)] if neighbours else [],
        footer=[common.script((DATA / 'viewer.js').read_text(encoding='utf-8'))],
    )
    return write_text(html, report.path('group_report'))


class _Page:
    """The sections of a page."""

    def __init__(self, report: GroupReport, common: Any, own: Any) -> None:
        self.report, self.common, self.own = report, common, own
        self.people = report.table('group_cohort')
        self.facts = read_facts(sidecar_path(report.path('group_cohort')))
        self.words = words_for(self.facts)
        #: Contrast, model, title, map and declared mask of each map that was drawn.
        self.seen: list[tuple[str, str, str, Path, Path]] = []
        self.summaries = {m: report.table('group_summary', m) for m in report.models}
        self.metrics = {m: report.table('group_metrics', m) for m in report.models}
        self.nulls = {m: report.table('group_null', m) for m in report.models}
        self.stabilities = {m: report.table('group_stability', m) for m in report.models}
        self.items = list(
            dict.fromkeys(i for s in self.summaries.values() if len(s) for i in s['item'])
        )

    def summary(self) -> list[dict[str, Any]]:
        analysed = int((self.people['status'] == 'analysed').sum())
        fitted = {
            m: f'{int((s["status"] == "fitted").sum())} of {len(s)} items, '
            f'{int((s["declared_ml"] > 0).sum()) if "declared_ml" in s else 0} with a '
            f'declared substrate{_count_adjusted(s)}'
            for m, s in self.summaries.items()
            if len(s)
        }
        facts = {
            'Participants': f'{analysed} analysed, {len(self.people) - analysed} left out',
            **{f'Model {name}': text for name, text in fitted.items()},
            **self.report.facts,
        }
        findings = self._findings() if self.report.models and self.items else []
        return [
            page_part('Steps that failed', self.common.errors(list(self.report.errors)))
            if self.report.errors
            else page_part(''),
            page_part(
                'Findings',
                (self.own.conclusion(self._conclude(findings)), '') if findings else '',
                (
                    self.own.findings(findings),
                    f'One row per item, by the model {self.report.models[0]}; details of all '
                    'models are below. A map shows where '
                    f'{self.words.subject} is associated with the score, not where a function is '
                    'located: regions of one artery are affected together. '
                    'Expected false discoveries are the share of the declared volume that is '
                    'expected to lie outside the substrate, if the model holds (1 − mean '
                    'probability). The gain is the held-out log score minus that of the mean '
                    f'{self.words.size} of each arterial territory, with its 95 % interval: '
                    'interpret a region only if the interval is above 0. p is that of the item as '
                    'a whole, and not of the region. ✓ marks a region that is mostly true and has '
                    'such a gain, ⚠ one that lacks either.',
                )
                if findings
                else '',
            ),
            page_part(
                'Participants and options',
                self.common.summary(
                    [(label, show(value)) for label, value in facts.items()],
                    self._warnings(),
                ),
            ),
        ]

    def _findings(self) -> list[dict[str, Any]]:
        """Return a row per item for the table at the top, by the first model."""
        model = self.report.models[0]
        summary = self.summaries[model]
        rows = []
        for item in self.items:
            found = summary[summary['item'] == item] if len(summary) else summary
            if found.empty:
                continue
            row = found.iloc[0]
            entry: dict[str, Any] = {
                'item': _name(item),
                'anchor': contrast_label(item),
                'n': f'{row["scored"]:.0f} ({row["with_deficit"]:.0f})',
                'status': 'skipped',
                'result': str(row['reason']),
            }
            if row['status'] == 'fitted':
                entry |= self._finding(item, model, row)
            rows.append(entry)
        return rows

    @staticmethod
    def _conclude(rows: Sequence[Mapping[str, Any]]) -> str:
        """Return how many items have a region that may be interpreted, as a sentence."""
        met = [row['item'] for row in rows if row['status'] == 'declared']
        related = sum(row['status'] in ('declared', 'weak') for row in rows)
        return (
            f'A region may be interpreted in {len(met)} of {len(rows)} items'
            f'{": " + "; ".join(met) if met else ""}. {related} are associated with the maps.'
        )

    def _finding(self, item: str, model: str, row: pd.Series) -> dict[str, Any]:
        """Return the cells of a fitted item."""
        certain = float(row['declared_ml']) > 0
        held_out = self._held_out(item, model)
        passed = held_out is not None and held_out['gain_low'] > 0
        gain = 'not tested'
        if held_out is not None:
            gain = (
                f'{held_out["gain"]:+.3f} ({held_out["gain_low"]:+.3f} to '
                f'{held_out["gain_high"]:+.3f})'
            ).replace('-', '−')
        share = row.get('expected_false_discoveries') if certain else None
        share = None if pd.isna(share) else float(share)
        doubts = []
        if certain and not passed:
            doubts.append('not better than territories in held-out patients')
        weak = bool(doubts) or self._spread(row)
        regions = self._regions(item, model)
        result = f'{row["declared_ml"]:.0f} mL{": " + regions if regions else ""}'
        if certain and self._spread(row):
            shares = self._shares(item, model)
            result = (
                f'somewhere in {row["credible_ml"]:.0f} mL'
                f'{" (" + ", ".join(shares) + ")" if shares else ""}; no region can be delimited'
            )
            if doubts:
                result, doubts = f'{result}; {doubts[0]}', []
        return {
            'status': 'weak' if weak else 'declared',
            'doubts': doubts,
            'result': result,
            **({} if certain else {'status': 'nothing', 'result': 'nothing declared'}),
            'false': '' if share is None else f'{share:.0%}'.replace('%', ' %'),
            'gain': gain,
            'p': show(row['p_holm']),
            'picture': self._thumbnail(item, model, row),
        }

    def _regions(self, item: str, model: str) -> str:
        """Return side and territory of the declared clusters, the largest first."""
        clusters = self.report.table('group_clusters', model)
        if not len(clusters):
            return ''
        own = clusters[clusters['item'] == item].sort_values('volume_ml', ascending=False)
        return ', '.join(
            dict.fromkeys(
                f'{_SIDES.get(side, side)} {TERRITORIES.get(territory, territory)}'
                for side, territory in own[['side', 'territory']].astype(str).to_numpy()
            )
        )

    def _statmap(self, item: str, model: str, stat: str) -> Path:
        return self.report.path(
            'group_statmap', model=model, contrast=contrast_label(item), stat=stat
        )

    @staticmethod
    def _spread(row: pd.Series) -> bool:
        """Return whether most of a declared region is expected to lie outside the substrate."""
        return float(row.get('expected_false_discoveries', 0)) > _MOSTLY

    def _outline(self, item: str, model: str, row: pd.Series) -> tuple[Path, str]:
        """Return what is outlined on the maps of an item, and what the line is."""
        credible = self._statmap(item, model, 'credible')
        if self._spread(row) and credible.is_file():
            return credible, 'white line: 90 % credible set'
        return self._statmap(item, model, 'threshold'), self.outlined

    def _thumbnail(self, item: str, model: str, row: pd.Series) -> str:
        """Draw a small picture of an item, and return its link."""
        stat = get_model(model).drawing.statistic
        maps = [self._statmap(item, model, stat), self._outline(item, model, row)[0]]
        if not all(path.is_file() for path in maps):
            return ''
        t1 = _template(self.report.space)
        drawn = group_figures.draw_thumbnail(
            _on(maps[0], t1),
            _on(maps[1], t1, binary=True),
            t1,
            self.report.path(
                'group_figure', model=model, contrast=contrast_label(item), figure='thumbnail'
            ),
            title=f'{_name(item)}, {model}',
            limits=(0.0, 1.0) if stat == 'prob' else None,
        )
        return self.report.link(drawn)

    def _warnings(self) -> list[str]:
        warnings = [_sentence(warning) for warning in self.report.warnings]
        for model in self.summaries:
            fitted = read_facts(sidecar_path(self.report.path('group_params', model=model)))
            if fitted.get('Covariates') and not get_model(model).offers.covariates:
                warnings.append(f'{model} does not adjust its map for covariates.')
        for model, summary in self.summaries.items():
            if 'coverage_resemblance' in summary:
                alike = summary[
                    (summary['coverage_resemblance'] > _RESEMBLES) & (summary['declared_ml'] > 0)
                ]
                if len(alike):
                    warnings.append(
                        f'{model}: the maps of {_listed(alike["item"])} are similar to the map '
                        f'of often {self.words.affected} voxels (vascular bias); see Trust.'
                    )
        for model, null in self.nulls.items():
            if len(null):
                noisy = null[null['nothing_declared'] < _CLEAN]
                if len(noisy):
                    warnings.append(
                        f'{model}: on shuffled scores a substrate was declared in more than 5 % '
                        f'of the cohorts for {_listed(noisy["item"])}.'
                    )
        for model, metrics in self.metrics.items():
            if len(metrics):
                own = metrics[metrics['predictor'] == model]
                poor = own[own['gain_high'] < 0]
                if len(poor):
                    warnings.append(
                        f'{model}: held-out prediction is worse than by the {self.words.size} '
                        f'in each territory for {_listed(poor["item"])}.'
                    )
        return warnings

    def cohort(self) -> list[dict[str, Any]]:
        people = self.people
        left_out = people[people['status'] != 'analysed']
        steps = [
            ('Participants with derivatives or named', len(people)),
            ('left out', len(left_out)),
            ('analysed', len(people) - len(left_out)),
        ]
        reasons = [
            (_generalise(str(reason)), list(group['participant_id']))
            for reason, group in left_out.groupby('reason', sort=False)
        ]
        merged: dict[str, list[str]] = {}
        for reason, who in reasons:
            merged.setdefault(reason, []).extend(who)
        figure = self._coverage()
        return [
            page_part('Who is in', self.own.flow(steps, list(merged.items()))),
            page_part('Scores', self._distributions()),
            page_part(
                'Coverage',
                (
                    self.common.figure(
                        figure.name, self.report.link(figure), self._named(figure),
                        f'Share of participants {self.words.among} in each voxel',
                    ),
                    f'Share of the participants {self.words.among} in each voxel. No conclusion '
                    f'is possible about regions that are rarely {self.words.affected}. The '
                    f'outline is the group mask{self.least}.',
                ),
            )
            if figure
            else page_part(''),
            page_part(f'Largest volumes of the {self.words.size}', self._outliers()),
        ]  # fmt: skip

    def _coverage(self) -> Path | None:
        path = self.report.path('group_coverage')
        mask = self.report.path('group_mask')
        if not path.is_file() or not mask.is_file():
            return None
        out = self.report.path(
            'group_figure', model='none', contrast='coverage', figure='map'
        ).with_name(f'tpl-{self.report.space}_desc-coverage_probseg.svg')
        t1 = _template(self.report.space)
        return group_figures.draw_deficit(
            _on(path, t1), _on(mask, t1, binary=True), t1, out,
            title=f'Coverage: share of participants {self.words.among}', ends=('none', 'many'),
            cmap='viridis', outlined='white line: group mask',
        )  # fmt: skip

    def _distributions(self) -> Markup:
        analysed = self.people[self.people['status'] == 'analysed']
        rows, levels = [], 0
        for item in self.items:
            if item not in analysed:
                continue
            # scores of many values are counted by the levels that models take
            score = analysed.get(f'{item}_level', analysed[item])
            counts = score.value_counts()
            levels = max(levels, int(score.max()) if score.notna().any() else 0)
            rows.append((item, score.notna().sum(), score.isna().sum(), counts))
        table = [
            [_name(item), scored, missing, *(int(c.get(level, 0)) for level in range(levels + 1))]
            for item, scored, missing, c in rows
        ]
        columns = ['Item', 'Scored', 'Missing', *(f'Score {n}' for n in range(levels + 1))]
        return self.own.rows(columns, _words(table))

    def _outliers(self) -> Markup | str:
        if 'total_deficit_volume' not in self.people:
            return ''
        volume = self.people['total_deficit_volume'].dropna()
        largest = self.people.loc[volume.nlargest(5).index]
        entries = []
        for row in largest.itertuples():
            pages = sorted(self.report.output_dir.glob(f'{row.participant_id}*.html'))
            alone = self.report.self_contained  # a mailed page has no neighbours
            link = self.report.relative(pages[0]) if pages and not alone else ''
            entries.append((row.participant_id, link, f'{row.total_deficit_volume:.0f} mL'))
        median = f'{volume.median():.0f}'
        return self.own.people(f'The median volume is {median} mL; the largest have', entries)

    def maps(self) -> list[dict[str, Any]]:
        parts = [
            page_part(
                '',
                (
                    self.own.index([(contrast_label(i), _name(i)) for i in self.items]),
                    'The white line bounds what a model declares by its own rule or, where most '
                    'of that is expected to be false, its 90 % credible set; without a line, the '
                    'colours are a tendency and not a finding. A map shows where '
                    f'{self.words.subject} is associated with the score over patients; regions '
                    f'that {self.words.fall} together cannot be distinguished. Maps were '
                    f'computed at {self._resolution}; they are interpolated for display only.',
                ),
            )
        ]
        for item in self.items:
            components: list[Any] = [self.own.anchor(contrast_label(item))]
            for model in self.report.models:
                components += self._item(item, model)
            parts.append(page_part(_name(item), *components))
        return parts

    @functools.cached_property
    def ground(self) -> nib.Nifti1Image:
        """The template, dimmed where given maps were not analysed: nothing there means nothing."""
        t1 = _template(self.report.space)
        mask = self.report.path('group_mask')
        if 'MapThreshold' not in self.facts or not mask.is_file():
            return t1
        inside = np.asarray(_on(mask, t1, binary=True).dataobj) >= 0.5
        return nib.Nifti1Image(np.asarray(t1.dataobj) * np.where(inside, 1, _DIM), t1.affine)

    @property
    def outlined(self) -> str:
        """Legend of the maps."""
        return _DECLARED + (_DIMMED if 'MapThreshold' in self.facts else '')

    @property
    def least(self) -> str:
        """How many must be affected in a voxel of given maps, for the caption of the coverage."""
        if 'MapThreshold' not in self.facts:
            return ''
        share = float(self.facts.get('MinimumCoverage', 0)) * int(self.facts.get('N', 0))
        count = max(int(self.facts.get('MinimumParticipants', 0)), int(np.ceil(share)))
        return f': {self.words.affected} in at least {count} participants'

    @property
    def _resolution(self) -> str:
        return str(self.report.facts.get('Resolution', f'{self.report.res} mm'))

    def _item(self, item: str, model: str) -> list[Any]:
        summary = self.summaries[model]
        rows = summary[summary['item'] == item] if len(summary) else summary
        if rows.empty:
            return []
        row = rows.iloc[0]
        if row['status'] != 'fitted':
            return [self.own.verdict(f'{row["reason"]}.', f'{model}: not fitted')]
        contrast = contrast_label(item)

        def statmap(stat: str) -> Path:
            return self._statmap(item, model, stat)

        def figure(name: str) -> Path:
            return self.report.path('group_figure', model=model, contrast=contrast, figure=name)

        drawing = get_model(model).drawing
        stat, meaning = drawing.statistic, drawing.meaning.format(more=self.words.more)
        if not all(statmap(s).is_file() for s in (stat, 'threshold')):
            return [(self.common.no_figure(f'{model} {item}'), '')]
        t1 = self.ground
        bounds, outlined = self._outline(item, model, row)
        values, declared = _on(statmap(stat), t1), _on(bounds, t1, binary=True)
        if not np.asarray(values.dataobj).any():
            sentence = self._sentence(item, model, row) + ' The map is empty.'
            return [self.own.verdict(sentence, f'{model}: nothing declared')]
        limits = (0.0, 1.0) if stat == 'prob' else None
        title = f'{_name(item)} · {model}: {meaning}'
        drawn = group_figures.draw_deficit(
            values, declared, t1, figure('map'), title=title, limits=limits, ends=drawing.ends,
            outlined=outlined,
        )  # fmt: skip
        self.seen.append((contrast, model, title, statmap(stat), bounds))
        link = self.report.link
        certain = float(row['declared_ml']) > 0
        found: list[Any] = [
            self.own.verdict(
                self._sentence(item, model, row),
                f'{model}: declared' if certain else f'{model}: nothing declared',
                self._caveats(item, model, row) if certain else [],
            ),
            self.common.figure(drawn.name, link(drawn), '', title)
            if certain
            else self.own.more(f'Tendency, no finding ({model})', link(drawn), title),
            self.own.look(
                f'{contrast}-{model}',
                f'Show in the viewer ({model})',
                []
                if self.report.self_contained
                else [
                    (self.report.relative(statmap(name)), name)
                    for name in _STATISTICS
                    if statmap(name).is_file()
                ],
            ),
        ]
        others = self._others(item, model) if len(self.report.models) > 1 else ''
        if others and model == self.report.models[0]:
            found.append(Markup('<p class="caption">{}</p>').format(others))
        if statmap('std').is_file():
            group_figures.draw_deficit(
                _on(statmap('std'), t1), declared, t1, figure('uncertainty'),
                title=f'{_name(item)} · {model}: standard deviation of the effect',
                ends=('certain', 'uncertain'), cmap='cividis', glass=False,
                outlined=outlined,
            )  # fmt: skip
            found.append(
                self.own.more(
                    f'Uncertainty ({model})', link(figure('uncertainty')), 'Standard deviation'
                )
            )
        stability = statmap('stability')
        if stability.is_file():
            group_figures.draw_deficit(
                _on(stability, t1), declared, t1, figure('stability'), limits=(0.0, 1.0),
                title=f'{_name(item)} · {model}: share of resampled cohorts that declare it',
                ends=('never', 'always'), cmap='viridis', glass=False,
                outlined=outlined,
            )  # fmt: skip
            found.append(
                self.own.more(
                    f'Stability ({model})', link(figure('stability')), 'Share of resamples'
                )
            )
        clusters = self.report.table('group_clusters', model)
        clusters = clusters[clusters['item'] == item] if len(clusters) else clusters
        if len(clusters):
            table = [
                [c.cluster, f'{c.volume_ml:.1f}', f'{c.x:.0f}, {c.y:.0f}, {c.z:.0f}',
                 self._anatomy(c), self._with_error(c, statmap('std')), c.result]
                for c in clusters.itertuples()
            ]  # fmt: skip
            columns = ['Cluster', 'mL', 'Peak, mm (x right, y front, z up)',
                       'Side, arterial territory, ASPECTS region',
                       'Peak t' if get_model(model).offers.t else 'Peak effect (SD)',
                       'Result']  # fmt: skip
            units = read_facts(sidecar_path(statmap('effect'))).get('Units', '')
            found.append(
                (
                    self.own.rows(columns, _words(table)),
                    (f'Unit of the effect: {units}. ' if units else '')
                    + 'Clusters with the same result, here or in the item of the other side of '
                    'the body, are mirror images of each other and count once.',
                )
            )
        return found

    def _others(self, item: str, model: str) -> str:
        """Return what the other models declare for an item, as a sentence."""
        said = []
        for other in self.report.models:
            summary = self.summaries[other]
            rows = summary[summary['item'] == item] if len(summary) else summary
            if other == model or rows.empty or rows.iloc[0]['status'] != 'fitted':
                continue
            volume = float(rows.iloc[0]['declared_ml'])
            regions = self._regions(item, other)
            said.append(
                f'{other} declares {volume:.0f} mL ({regions})'
                if volume > 0
                else f'{other} declares nothing'
            )
        return f'Other models: {"; ".join(said)}.' if said else ''

    def _anatomy(self, cluster: Any) -> str:
        """Return side, territory and ASPECTS region of a cluster's peak."""
        side = _SIDES.get(str(cluster.side), cluster.side)
        name = f'{side} {TERRITORIES.get(str(cluster.territory), cluster.territory)}'
        affine = np.eye(4)
        affine[:3, 3] = (cluster.x, cluster.y, cluster.z)
        label = int(aspects_regions((1, 1, 1), affine)[0, 0, 0]) % 20
        known = {number: region for region, number in ASPECTS_LABELS.items()}
        return f'{name}, {known[label]} region' if label in known else name

    def _with_error(self, cluster: Any, std: Path) -> str:
        """Return the effect of a cluster's peak with its standard deviation there."""
        if not std.is_file():
            return show(cluster.peak)
        image = _canonical(std)
        voxel = np.round(
            nib.affines.apply_affine(
                np.linalg.inv(image.affine), (cluster.x, cluster.y, cluster.z)
            )
        ).astype(int)
        if not all(0 <= v < n for v, n in zip(voxel, image.shape, strict=True)):
            return show(cluster.peak)
        return f'{show(cluster.peak)} ({show(float(image.dataobj[tuple(voxel)]))})'

    def _named(self, path: Path) -> str:
        """Return the link below a figure, which a page that holds its figures does not need."""
        return '' if self.report.self_contained else self.report.relative(path)

    def viewer(self) -> list[dict[str, Any]]:
        if not self.seen:
            return [page_part('', Markup('<p>No map was fitted.</p>'))]
        t1 = self.ground
        grey = np.asarray(t1.dataobj, np.float32)
        high = np.percentile(grey[grey > 0], 99.5)
        maps = []
        for contrast, model, title, values, declared in self.seen:
            field = _canonical(values)
            top = float(np.nanmax(np.asarray(field.dataobj, np.float32))) or 1.0
            maps.append(
                {'id': f'{contrast}-{model}', 'title': title, 'max': top}
                | pack_volume(field, float(255 / top))
                | {'declared': pack_volume(_canonical(declared), np.inf)['data']}
            )
        view = describe_view(
            # 64 greys: the eye sees no more of them, and the page is a third smaller.
            {'template': pack_volume(t1, 63 / float(high))},
            [('Template', 'template', 0, 97)],
            maps,
            inside='declared',
            sides=True,
        )
        return [
            page_part(
                '',
                (
                    self.common.viewer(
                        [(m['id'], m['title']) for m in maps],
                        [g['title'] for g in view['grounds']],
                        to_script(view),
                    ),
                    'Every map in three planes. Click into a plane, or use the sliders, to move. '
                    'A map opens at its highest value. The white line bounds what the model '
                    'declares or, where most of that is expected to be false, the 90 % credible '
                    'set. Maps are interpolated for display; the value shown is that of the '
                    'voxel.',
                ),
            )
        ]

    def _sentence(self, item: str, model: str, row: pd.Series) -> str:
        text = f'{row["declared_ml"]:.0f} mL'
        if np.isfinite(row['p_value']):
            text += f', p = {show(row["p_value"])} for the item as a whole'.replace('= <', '<')
            text += f' ({show(row["p_holm"])} adjusted for all items)'
        text += f'; {row["with_deficit"]:.0f} of {row["scored"]:.0f} '
        text += 'have a deficit' if item in ITEMS else 'are above the lowest level'
        held_out = self._held_out(item, model)
        if held_out is not None:
            text += f'; held out: AUC {held_out["auc"]:.2f}, {_compare(held_out)} the '
            text += f'{self.words.size} in each territory'
        return text + '.' + self._expectation(item, model, row)

    def _expectation(self, item: str, model: str, row: pd.Series) -> str:
        """Return what is expected of the substrate and of what was declared, as sentences."""
        if not np.isfinite(row.get('expected_dice', np.nan)):
            return ''
        text = (
            f' By the probability of its voxels, {row["expected_false_discoveries"]:.0%} of the '
            f'declared volume lies outside the substrate (expected Dice '
            f'{row["expected_dice"]:.2f}), and 90 % of the substrate lies in a credible set of '
            f'{row["credible_ml"]:.0f} mL.'
        )
        shares = self._shares(item, model)
        return text + (f' Share by territory: {", ".join(shares)}.' if shares else '')

    def _shares(self, item: str, model: str) -> list[str]:
        """Return the territories with the largest shares of the substrate."""
        table = self.report.table('group_territories', model)
        if not len(table):
            return []
        own = table[(table['item'] == item) & (table['share'] >= _LEAST_SHARE)]
        return [
            f'{r.side} {r.territory} {r.share:.0%}'.replace('%', '\u00a0%')
            for r in own.head(_TERRITORIES).itertuples()
        ]

    def _held_out(self, item: str, model: str) -> pd.Series | None:
        metrics = self.metrics[model]
        if not len(metrics):
            return None
        own = metrics[(metrics['item'] == item) & (metrics['predictor'] == model)]
        return own.iloc[0] if len(own) else None

    def _caveats(self, item: str, model: str, row: pd.Series) -> list[str]:
        """Return what speaks against a declared map; it is as large as the declaration."""
        caveats = []
        held_out = self._held_out(item, model)
        if held_out is None:
            caveats.append('its prediction was not tested')
        elif held_out['gain_low'] <= 0:
            caveats.append(
                f'it predicts {_compare(held_out)} the {self.words.size} in each territory, so do '
                'not interpret the region'
            )
        if row['coverage_resemblance'] > _RESEMBLES:
            caveats.append(f'the map is similar to the map of often {self.words.affected} voxels')
        if self._spread(row):
            caveats.append(
                'most of the declared volume is expected to lie outside the substrate, so read '
                'the credible set, which is outlined, and the territories instead'
            )
        null = self.nulls[model]
        null = null[null['item'] == item] if len(null) else null
        if len(null) and null.iloc[0]['nothing_declared'] < _CLEAN:
            caveats.append('substrates are declared too often on shuffled scores too')
        return caveats

    def prediction(self) -> list[dict[str, Any]]:
        frames = [f.assign(model=m) for m, f in self.metrics.items() if len(f)]
        if not frames:
            return [page_part('', Markup('<p>There was no cross-validation (--folds 0).</p>'))]
        seen = pd.concat(frames)
        # Baselines are the same for all models, but for items that one of them lacks.
        seen = seen.drop_duplicates(['item', 'predictor'])
        names = {item: _name(item) for item in self.items}
        folder = self.report.path('group_figure', model='x', contrast='x', figure='x').parent
        items, predictors = list(self.items), list(group_figures.predictor_marks())
        rows = sorted(
            seen.to_dict('records'),
            key=lambda r: (items.index(r['item']), predictors.index(r['predictor'])),
        )
        gain = group_figures.draw_gain(
            [(r['item'], r['predictor'], r['gain'], r['gain_low'], r['gain_high']) for r in rows],
            folder / f'tpl-{self.report.space}_desc-gain_metrics.svg',
            names=names,
            size=self.words.size,
        )
        curves = {
            m: read_facts(sidecar_path(self.report.path('group_metrics', model=m))).get(
                'Calibration', {}
            )
            for m in self.report.models
        }
        calibration = group_figures.draw_calibration(
            {m: c for m, c in curves.items() if c},
            folder / f'tpl-{self.report.space}_desc-calibration_metrics.svg',
            names=names,
        )
        table = []
        for r in rows:
            table.append([
                _name(r['item']), r['predictor'], r['n'], f'{r["log_score"]:.3f}',
                '' if r['predictor'] == 'territories'
                else f'{r["gain"]:+.3f} ({r["gain_low"]:+.3f} to {r["gain_high"]:+.3f})',
                f'{r["kappa"]:.2f}', f'{r["auc"]:.2f}', f'{r["ece"]:.2f}',
            ])  # fmt: skip
        columns = ['Item', 'Predicted by', 'n', 'Log score', 'Gain over territories (95 %)',
                   'Weighted kappa', 'AUC any deficit', 'Calibration error']  # fmt: skip
        link = self.report.link
        return [
            page_part(
                f'Does the map predict more than the {self.words.size} in each territory?',
                (
                    _plain_figure(link(gain), 'Gain over the baseline of territories'),
                    'Every participant was predicted by models that had not seen them. Baselines: '
                    f'territories (mean {self.words.size} of each arterial territory and side), '
                    'sides (of each hemisphere), volume (of the brain), all with the covariates '
                    'and the likelihood of the models, and frequency (how often each score '
                    'occurs). Bars are 95 % intervals, corrected for the training data that '
                    f'folds share{self._folding()}.',
                ),
            ),
            page_part(
                'Calibration',
                (
                    _plain_figure(link(calibration), 'Calibration curves'),
                    'On the diagonal, a predicted probability of 30 % was right in 30 % of '
                    'patients.',
                ),
            ),
            page_part(
                'All numbers',
                (
                    self.own.rows(columns, _words(table)),
                    '',
                ),
            ),
        ]

    def _folding(self) -> str:
        """Return how participants were assigned to folds, as a clause."""
        facts: dict[str, Any] = {}
        for model, metrics in self.metrics.items():
            if len(metrics):
                facts = read_facts(sidecar_path(self.report.path('group_metrics', model=model)))
                break
        folding = ''
        if facts.get('FoldRepeats', 1) > 1:
            folding += f'; means over {facts["FoldRepeats"]} assignments to folds'
        if facts.get('FoldGroups'):
            folding += f'; no fold splits one of the {facts["FoldGroups"]} groups'
        return folding

    def trust(self) -> list[dict[str, Any]]:
        table = []
        has_null, has_stability = (
            any(len(f) for f in frames.values()) for frames in (self.nulls, self.stabilities)
        )
        for item in self.items:
            for model in self.report.models:
                summary = self.summaries[model]
                rows = summary[(summary['item'] == item) & (summary['status'] == 'fitted')]
                if rows.empty:
                    continue
                row = rows.iloc[0]
                null, stable = (
                    f[f['item'] == item].iloc[0] if len(f) and (f['item'] == item).any() else None
                    for f in (self.nulls[model], self.stabilities[model])
                )
                cells = [
                    _name(item), model, f'{row["declared_ml"]:.0f}', show(row['p_value']),
                    show(row['p_holm']),
                    'n/a' if np.isnan(row['coverage_resemblance'])
                    else f'{row["coverage_resemblance"]:.2f}',
                ]  # fmt: skip
                if has_null:
                    cells.append(
                        'n/a'
                        if null is None
                        else f'{null["nothing_declared"]:.0%} of {null["shuffles"]:.0f}'
                    )
                if has_stability:
                    cells.append(
                        'n/a'
                        if stable is None
                        else f'{stable["ml_in_half"]:.0f} mL in half of {stable["resamples"]:.0f}'
                    )
                table.append(cells)
        columns = ['Item', 'Model', 'Declared, mL', 'p', 'p adjusted', 'Similarity to coverage']
        columns += ['Nothing declared on shuffled scores'] if has_null else []
        columns += ['Declared in resampled cohorts'] if has_stability else []
        absent = [
            text
            for text, there in (
                ('shuffled scores (--permutations)', has_null),
                ('resampled cohorts (--bootstraps)', has_stability),
                ('held-out prediction (--folds)', any(len(f) for f in self.metrics.values())),
            )
            if not there
        ]
        skipped = f'Not asked for in this run: {", ".join(absent)}. ' if absent else ''
        return [
            page_part(
                'Models side by side',
                (
                    self.own.rows(columns, _words(table)),
                    skipped
                    + 'p is that of each item; adjusted, it holds for all items of a model '
                    'together (Holm). '
                    'Similarity to coverage is the rank correlation of the map with the '
                    f'{self.words.mean_map}: near 1, it may show where strokes occur rather than '
                    'their effect; near 0, the two are unrelated; below 0, the map is '
                    'strongest where deficits are rare, which is not an error. '
                    'Shuffled scores have no substrate: nothing should be declared in 95 % of '
                    'them or more.',
                ),
            ),
            *self._reliability(),
        ]

    def _reliability(self) -> list[dict[str, Any]]:
        """Return how reliable probabilities are on simulated items, of models that learned."""
        parts = []
        for model in self.report.models:
            facts = read_facts(sidecar_path(self.report.path('group_params', model=model)))
            rows = [
                [f'{mean:.3f}', f'{seen:.3f}', f'{count:,}']
                for mean, seen, count in facts.get('Reliability', [])
            ]
            if rows:
                columns = ['Mean probability', 'Share in the substrate', 'Voxels']
                parts.append(
                    page_part(
                        f'Reliability of the probabilities of {model}',
                        (
                            self.own.rows(columns, _words(rows)),
                            'Items with known substrates were simulated over the maps of this '
                            'cohort and kept from training. Both columns agree where '
                            'probabilities are reliable. Items whose substrates or links differ '
                            'from all simulated ones may be less so. '
                            + _support(model, facts.get('SimulatedItems', {})),
                        ),
                    )
                )
        return parts

    def methods(self) -> list[dict[str, Any]]:
        paragraphs, references = cite(self.report.methods)
        return [
            page_part('', self.common.methods(paragraphs, references)),
            page_part('How to cite', self.own.citation(str(__version__))),
        ]

    def reproduce(self) -> list[dict[str, Any]]:
        entries = []
        for key, meaning in (
            ('group_cohort', 'who was in, and who was not'),
            ('group_summary', 'what was found, a row per item'),
            ('group_clusters', 'declared clusters'),
            ('group_territories', 'where the substrate is expected, by territory'),
            ('group_metrics', 'held-out performance'),
            ('group_predictions', 'held-out predictions'),
            ('group_null', 'shuffled scores'),
            ('group_stability', 'resampled cohorts'),
            ('group_params', 'the fitted model, for --apply'),
        ):
            for model in self.report.models if key != 'group_cohort' else ('',):
                path = self.report.path(key, model=model)
                if self.report.self_contained and key == 'group_params':
                    continue  # too large to mail
                if path.is_file():
                    entries.append((path.name, self.report.link(path), meaning))
        return [
            page_part('Tables to download', self.own.downloads(entries)),
            page_part(
                'Settings and software',
                self.common.reproduce(
                    self.report.settings,
                    list((self.report.versions or {}).items()),
                    list((self.report.fingerprints or {}).items()),
                ),
            ),
        ]


def _support(model: str, compared: Mapping[str, Any]) -> str:
    """Return which of two models finds simulated substrates better, as a sentence or two."""
    if not compared.get('items'):
        return ''
    own, other, low, high = (compared[key] for key in ('deep', 'spatial', 'low', 'high'))
    better = model if low > 0 else 'spatial' if high < 0 else ''
    return (
        f'On {compared["items"]:.0f} of these items with a substrate the Dice coefficient of the '
        f'set that {model} declares is {own:.2f}, of that of spatial {other:.2f} (difference '
        f'{own - other:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}): in this cohort '
        + (f'{better} is better supported. ' if better else 'neither is better supported. ')
        + f'The items come from what {model} expects of substrates. In cohorts of other '
        'simulations spatial was better where substrates are single spheres or two of them, and '
        f'{model} where they are strips, tracts or networks.'
    )


@functools.cache
def _names() -> dict[str, str]:
    scale = json.loads(load('nihss.json').read_text(encoding='utf-8'))
    return {k: v['LongName'] for k, v in scale.items() if 'LongName' in v}


def _name(item: str) -> str:
    return _names().get(item, item)


def _listed(items: Sequence[str] | pd.Series) -> str:
    return ', '.join(_name(str(item)) for item in items)


def _compare(metrics: pd.Series) -> str:
    """Compare held-out prediction with that by the mean deficit of each territory."""
    if metrics['gain_low'] > 0:
        return 'better than'
    return 'worse than' if metrics['gain_high'] < 0 else 'no better than'


def _count_adjusted(summary: pd.DataFrame) -> str:
    """Return how many items pass when all are accounted for, as a clause; '' without a test."""
    adjusted = summary['p_holm'].dropna()
    passed = int((adjusted <= _HOLDS).sum())
    return f', {passed} with p ≤ {_HOLDS:g} adjusted for all items' if len(adjusted) else ''


def _sentence(warning: str) -> str:
    """Return a caveat with the names of items as people know them."""
    named = re.sub(r'\bnihss_\w+', lambda match: _name(match.group()), warning)
    return named[:1].upper() + named[1:]


def _words(table: Sequence[Sequence[object]]) -> list[list[str]]:
    return [[re.sub(r'(?<!\w)-(?=\d)', '−', show(cell)) for cell in row] for row in table]


def _generalise(reason: str) -> str:
    """Return a reason without the file's name, so that equal ones are shown once."""
    return re.sub(r'\S*sub-\S+\.nii\.gz', 'the file', reason)


def _plain_figure(link: str, alt: str) -> Markup:
    return Markup('<div class="plain"><img src="{}" alt="{}" /></div>').format(link, alt)


def _canonical(path: Path) -> nib.Nifti1Image:
    image = nib.as_closest_canonical(nib.load(path))
    assert isinstance(image, nib.Nifti1Image)
    return image


@functools.cache
def _template(space: str) -> nib.Nifti1Image:
    """Return the brain of the template at 2 mm, 0 outside."""
    from bids_perfdeficit.ct import load_template

    template = load_template(space, spacing=2.0)
    brain = np.asarray(template.brain_mask.dataobj) > 0
    t1 = np.asarray(template.t1.dataobj, np.float32)
    return nib.Nifti1Image(np.where(brain, np.maximum(t1, 1e-3), 0), template.t1.affine)


def _on(path: Path, target: nib.Nifti1Image, *, binary: bool = False) -> nib.Nifti1Image:
    """Interpolate a map at the voxels of the template, for display; a mask ends at 0.5."""
    image = _canonical(path)
    values = np.nan_to_num(np.asarray(image.dataobj, np.float32))
    if binary:
        values = (values != 0).astype(np.float32)
    to_image = np.linalg.inv(image.affine) @ target.affine
    array = ndimage.affine_transform(
        values, to_image[:3, :3], to_image[:3, 3], target.shape, order=1 if binary else 3
    )
    if not binary:  # cubic: smooth to the eye, but it swings beyond the ends
        array = np.clip(array, min(values.min(), 0), values.max())
        array = np.where(np.asarray(target.dataobj) > 0, array, 0)
    return nib.Nifti1Image(array, target.affine)
