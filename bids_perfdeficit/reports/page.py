"""From a participant's derivatives to the contents of the page.

Reads tables and sidecars on disk, and puts what they say into words. Must not measure anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bids_perfdeficit.bids import ScanPair, output_path
from bids_perfdeficit.reports.participant import build_participant_report
from bids_perfdeficit.reports.words import TERRITORIES, number

#: mL by which one side must be hypoperfused more than the other to be called later. In digital
#: patients the site with the least, P2, has a median of 12 mL (`benchmarks/RESULTS.md`).
LEAST_ML = 5.0
#: Beyond these no probability is shown: on digital patients the method is too sure of itself.
_SURE = 0.95
#: What each site is most often reported for, whatever the probability (`benchmarks/RESULTS.md`).
_CONFUSED: Mapping[str, str] = {'ICA': 'M1', 'M1': 'ICA', 'PCA': 'BA'}
#: Columns of the regional table that are shown: heading, and digits after the point.
_COLUMNS: Mapping[str, tuple[str, int]] = {
    'arrival_left': ('Arrival, left', 0),
    'arrival_right': ('Arrival, right', 0),
    'perfusion_left': ('Perfusion, left', 2),
    'perfusion_right': ('Perfusion, right', 2),
    'asymmetry': ('Asymmetry, left − right', 2),
    'hypoperfused_left': ('Hypoperfused left, mL', 1),
    'hypoperfused_right': ('Hypoperfused right, mL', 1),
}
#: Outputs whose sidecars carry notes for the reader, in the order in which they are made.
_NOTED = ('preproc_ct', 'brain_mask', 'preproc_cta', 'template_xfm', 'perfusion')


def build_page(
    output_dir: Path,
    pair: ScanPair,
    *,
    space: str,
    verdict: str = '',
    errors: Sequence[str] = (),
    notes: Sequence[str] = (),
    methods: str = '',
    settings: str = '',
    versions: Mapping[str, str] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    self_contained: bool = False,
) -> Path:
    """Write the page of one pair of scans from what lies in OUTPUT_DIR.

    Parameters
    ----------
    output_dir : Path
        OUTPUT_DIR.
    pair : ScanPair
        Whose page.
    space : str
        Template of the standard-space maps.
    verdict : str
        ``'complete'``, ``'doubtful'`` or ``'failed'``; comes first.
    errors : sequence of str
        What failed, a sentence each.
    notes : sequence of str
        Reasons of doubt and caveats, a sentence each.
    methods, settings : str
        Methods text, and the settings that shaped the results as TOML.
    versions : mapping of str to str, optional
        Of the software that computed the results.
    fingerprints : mapping of str to str, optional
        Of the stages that the page shows, by name.
    self_contained : bool
        Put the figures into the page.

    Returns
    -------
    Path
        The page.
    """

    def path(key: str) -> Path:
        return output_path(
            output_dir, key, participant=pair.participant, session=pair.session, space=space
        )

    caveats = [*notes, *pair.notes]
    for key in _NOTED:
        caveats += _read_json(path(f'{key}_json')).get('Notes', [])
    qc, regions = _read_table(path('qc_metrics')), _read_table(path('regions_metrics'))
    summary: dict[str, object] = {
        **({'Verdict': verdict} if verdict else {}),
        'Participant': f'sub-{pair.participant}',
        'NCCT': pair.ncct.name,
        'CTA': pair.cta.name,
        'Template': space,
    }
    if pair.session:
        summary['Session'] = f'ses-{pair.session}'
    return build_participant_report(
        output_dir,
        pair.participant,
        pair.session,
        summary=summary,
        found=describe_findings(
            [{str(k): v for k, v in row.items()} for row in regions.to_dict('records')]
        ),
        qc=qc,
        regions=format_regions(regions),
        methods=methods,
        notes=list(dict.fromkeys(caveats)),
        errors=errors,
        settings=settings,
        versions=versions,
        fingerprints=fingerprints,
        self_contained=self_contained,
    )


def describe_findings(regions: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Put ``desc-regions_metrics.tsv`` into a few facts, without calling them a diagnosis.

    Parameters
    ----------
    regions : sequence of mapping
        Rows of the table.

    Returns
    -------
    dict of str to object
        Empty when there are no rows.
    """
    by_region = {str(row['region']): row for row in regions}
    whole = by_region.get('hemisphere', {})
    found: dict[str, object] = {}
    if (any_at_all := number(whole.get('occlusion_any'))) is not None:
        found['Likely occlusion'] = _describe_site(whole)
        found['Probability of any occlusion'] = _chance(any_at_all)
    elif isinstance(reason := whole.get('occlusion_withheld'), str) and reason != 'n/a':
        found['Likely occlusion'] = f'not reported: {reason}'
    volumes = {side: number(whole.get(f'hypoperfused_{side}')) for side in ('left', 'right')}
    for side, volume in volumes.items():
        if volume is not None:
            found[f'Hypoperfused {side}, mL'] = round(volume)
    left, right = volumes.values()
    if left is not None and right is not None:
        found['Later side'] = _describe_side(left, right, by_region)
    return found


def _describe_site(whole: Mapping[str, Any]) -> str:
    """Return the likeliest site, and the next where it is likely or easily taken for it."""
    site = str(whole.get('occlusion_site'))
    first = _place(site, whole.get('occlusion_side'))
    likeliest = f'{first} ({_chance(number(whole.get("occlusion_confidence")) or 0.0)})'
    chance = number(whole.get('occlusion_next_confidence')) or 0.0
    if chance > 1 - _SURE:
        other = _place(str(whole['occlusion_next_site']), whole.get('occlusion_next_side'))
        return f'{likeliest}, or {other} ({_chance(chance)})'
    if site in _CONFUSED:
        return f'{likeliest}, or {_place(_CONFUSED[site], whole.get("occlusion_side"))}'
    return likeliest


def _place(site: str, side: object) -> str:
    sided = side in ('left', 'right') and site not in ('BA', 'none')
    return f'{side} {site}' if sided else site


def _chance(probability: float) -> str:
    """Return a probability in steps of 5 %, and none that claims to be sure."""
    if probability > _SURE:
        return f'> {_SURE:.0%}'.replace('%', ' %')
    if probability < 1 - _SURE:
        return f'< {1 - _SURE:.0%}'.replace('%', ' %')
    return f'{5 * round(20 * probability)} %'


def _describe_side(left: float, right: float, by_region: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which side is later, by the mL that are hypoperfused, and where most of it is."""
    if max(left, right) < LEAST_ML:
        return f'neither (both under {LEAST_ML:.0f} mL)'
    if abs(left - right) < LEAST_ML:
        return 'both alike'
    side = 'left' if left > right else 'right'
    most = {
        name: volume
        for name in TERRITORIES
        if (volume := number(by_region.get(name, {}).get(f'hypoperfused_{side}')))
    }
    if not most:
        return side
    return f'{side}, most in the {TERRITORIES[max(most, key=lambda name: most[name])]} territory'


def format_regions(regions: pd.DataFrame) -> pd.DataFrame:
    """Put ``desc-regions_metrics.tsv`` into words and as many digits as mean something.

    Parameters
    ----------
    regions : DataFrame
        May lack columns.

    Returns
    -------
    DataFrame
        Text, under the headings of the page.
    """
    if regions.empty:
        return regions
    shown = {
        heading: [_fixed(value, digits) for value in regions[column]]
        for column, (heading, digits) in _COLUMNS.items()
        if column in regions
    }
    return pd.DataFrame({'Region': [_region(str(r)) for r in regions['region']], **shown})


def _region(name: str) -> str:
    if name in TERRITORIES:
        return f'{TERRITORIES[name]} territory'
    return 'Hemisphere' if name == 'hemisphere' else f'ASPECTS {name}'


def _fixed(value: object, digits: int) -> str:
    found = number(value)
    if found is None:
        return 'n/a'
    text = f'{found:.{digits}f}'
    return (text if float(text) else f'{0:.{digits}f}').replace('-', '−')


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')))
    except (OSError, ValueError):
        return {}


def _read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep='\t', na_values='n/a') if path.is_file() else pd.DataFrame()
