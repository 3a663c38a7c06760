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
    if len(regions):
        summary['Later side'] = _later_side(regions)
    return build_participant_report(
        output_dir,
        pair.participant,
        pair.session,
        summary=summary,
        qc=qc,
        regions=regions if len(regions) else None,
        methods=methods,
        notes=list(dict.fromkeys(notes)),
        errors=errors,
        settings=settings,
        versions=versions,
    )


def _later_side(regions: pd.DataFrame) -> str:
    """Name the side and territory of the largest difference, without calling it a diagnosis."""
    territories = regions[regions['region'] != 'hemisphere'].dropna(subset=['asymmetry'])
    if territories.empty:
        return 'n/a'
    row = territories.loc[territories['asymmetry'].abs().idxmax()]
    side = 'left' if row['asymmetry'] > 0 else 'right'
    return f'{side}, most in the {row["region"]} territory (by {abs(row["asymmetry"]):.2f})'


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')))
    except (OSError, ValueError):
        return {}


def _read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep='\t', na_values='n/a') if path.is_file() else pd.DataFrame()
