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
from bids_perfdeficit.reports.words import number

#: Regions that are arterial territories.
_TERRITORIES = ('ACA', 'MCA', 'PCA', 'VB')
#: Columns of the regional table that a reader of the page has no use for.
_UNSHOWN = ('voxels_', 'occlusion_')
#: Outputs whose sidecars carry notes for the reader, in the order in which they are made.
_NOTED = ('preproc_ct', 'brain_mask', 'preproc_cta', 'template_xfm', 'perfusion')


def build_page(
    output_dir: Path,
    pair: ScanPair,
    *,
    space: str,
    errors: Sequence[str] = (),
    methods: str = '',
    settings: str = '',
    versions: Mapping[str, str] | None = None,
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
    errors : sequence of str
        What failed, a sentence each.
    methods, settings : str
        Methods text, and the run's settings as TOML.
    versions : mapping of str to str, optional
        Of the software.
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

    notes = list(pair.notes)
    for key in _NOTED:
        notes += _read_json(path(f'{key}_json')).get('Notes', [])
    qc, regions = _read_table(path('qc_metrics')), _read_table(path('regions_metrics'))
    summary: dict[str, object] = {
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
        found=tell_findings(regions.to_dict('records')),
        qc=qc,
        regions=regions[[c for c in regions if not str(c).startswith(_UNSHOWN)]],
        methods=methods,
        notes=list(dict.fromkeys(notes)),
        errors=errors,
        settings=settings,
        versions=versions,
        self_contained=self_contained,
    )


def tell_findings(regions: Sequence[Mapping[str, Any]]) -> dict[str, object]:
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
    differences = {
        name: found
        for name in _TERRITORIES
        if (found := number(by_region.get(name, {}).get('asymmetry'))) is not None
    }
    found: dict[str, object] = {}
    site, confidence = whole.get('occlusion_site'), number(whole.get('occlusion_confidence'))
    if site and confidence is not None:
        side = whole.get('occlusion_side')
        where = f'{side} {site}' if side in ('left', 'right') else str(site)
        found['Most likely occlusion'] = f'{where} ({confidence:.0%})'
        if (some := number(whole.get('occlusion_any'))) is not None:
            found['Of any occlusion'] = f'{some:.0%}'
    for side in ('left', 'right'):
        if (volume := number(whole.get(f'hypoperfused_{side}'))) is not None:
            found[f'Hypoperfused {side}, mL'] = round(volume)
    if differences:
        region = max(differences, key=lambda name: abs(differences[name]))
        found['Later side, most in'] = (
            f'{"left" if differences[region] > 0 else "right"}, {region} territory'
        )
        found['Later by, on a scale of 0 to 1'] = abs(differences[region])
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')))
    except (OSError, ValueError):
        return {}


def _read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep='\t', na_values='n/a') if path.is_file() else pd.DataFrame()
