"""From a participant's derivatives to the contents of the page.

Reads tables and sidecars on disk, and puts what they say into words. Must not measure anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bids_perfdeficit.bids import ScanPair, output_path
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.bids.series import sidecar_of
from bids_perfdeficit.errors import InputError
from bids_perfdeficit.nifti import open_nifti
from bids_perfdeficit.reports.participant import build_participant_report
from bids_perfdeficit.reports.words import TERRITORIES, fixed, number

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
#: Contrast of the sinuses over that of the arteries from which a CTA is called equilibrium, and
#: venous; between them neither clearly leads.
_EQUILIBRIUM, _VENOUS = 0.8, 1.2
#: HU of arterial contrast below which a phase is not named.
_LEAST_CONTRAST = 50.0
#: mL of filled vessels on the better filled side below which a ratio of sides means nothing.
_LEAST_VESSELS_ML = 0.5
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
    reasons: Sequence[str] = (),
    person: Mapping[str, str] | None = None,
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
    reasons : sequence of str
        Of the verdict, a sentence each.
    person : mapping of str to str, optional
        What the tables of the dataset say of the participant, such as ``Age`` and ``NIHSS``.

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
        caveats += read_facts(path(f'{key}_json')).get('Notes', [])
    qc, regions = _read_table(path('qc_metrics')), _read_table(path('regions_metrics'))
    first = next(iter(qc.to_dict('records')), {})
    summary: dict[str, object] = {
        'Participant': pair.prefix.replace('_', ', '),
        **(person or {}),
        'NCCT': _describe_scan(pair.ncct, read_facts(path('preproc_ct_json'))),
        'CTA': _describe_scan(pair.cta, read_facts(path('preproc_cta_json'))),
        'Phase of the CTA': _describe_phase({str(k): v for k, v in first.items()}),
        **_describe_later(read_facts(path('perfusion_json'))),
        'Template': space,
    }
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
        vessels=format_vessels(regions),
        verdict=(verdict, list(reasons)) if verdict else None,
        methods=methods,
        notes=list(dict.fromkeys(caveats)),
        errors=errors,
        settings=settings,
        versions=versions,
        fingerprints=fingerprints,
        self_contained=self_contained,
    )


def _describe_later(facts: Mapping[str, Any]) -> dict[str, object]:
    """Say how many phases of the CTA were used, where there was more than one."""
    phases = facts.get('LaterPhases')
    if not isinstance(phases, list):
        return {}
    used = [str(phase['File']) for phase in phases if phase.get('Used')]
    count = f'{facts.get("PhasesUsed", 1)}'
    return {'Phases used': f'{count} (the CTA, {", ".join(used)})' if used else count}


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
            found[f'Hypoperfused {side}, mL'] = _with_range(whole, side, volume)
    left, right = volumes.values()
    if left is not None and right is not None:
        found['Later side'] = _describe_side(left, right, by_region)
    return found


def _with_range(whole: Mapping[str, Any], side: str, volume: float) -> object:
    """Return a volume in mL, with its interval where that is known."""
    low, high = (number(whole.get(f'hypoperfused_{end}_{side}')) for end in ('low', 'high'))
    if low is None or high is None or round(low) == round(high):
        return round(volume)
    return f'{volume:.0f} ({low:.0f} to {high:.0f})'


def describe_volumes(whole: Mapping[str, Any]) -> str:
    """Return the hypoperfused volumes of both sides as a line for a figure.

    Parameters
    ----------
    whole : mapping
        First row of ``desc-regions_metrics.tsv``.

    Returns
    -------
    str
        Empty when there are no volumes.
    """
    shown = {}
    for side in ('left', 'right'):
        volume = number(whole.get(f'hypoperfused_{side}'))
        if volume is None:
            return ''
        shown[side] = _with_range(whole, side, volume)
    text = f'Hypoperfused: left {shown["left"]} mL, right {shown["right"]} mL'
    if any(isinstance(value, str) for value in shown.values()):
        text += '; in brackets: 90 % interval'
    return text


def _describe_scan(path: Path, derived: Mapping[str, Any]) -> str:
    """Return a scan's name with slice thickness and scanner, where they are known."""
    raw = read_facts(sidecar_of(path))
    thickness = (
        number(derived.get('SliceThickness'))
        or number(raw.get('SliceThickness'))
        or _spacing(path)
    )
    scanner = ' '.join(
        str(raw[k]) for k in ('Manufacturer', 'ManufacturersModelName') if raw.get(k)
    )
    facts = [f'slices of {thickness:.3g} mm' if thickness else '', scanner]
    known = '; '.join(fact for fact in facts if fact)
    return f'{path.name} ({known})' if known else path.name


def _spacing(path: Path) -> float | None:
    """Return the largest distance between voxels in mm, None when the file cannot be read."""
    try:
        return float(max(open_nifti(path).header.get_zooms()[:3]))
    except InputError:
        return None


def _describe_phase(qc: Mapping[str, Any]) -> str:
    """Return the phase of the CTA by the contrast of sinuses and arteries."""
    artery, sinus = number(qc.get('artery_contrast')), number(qc.get('sinus_contrast'))
    if artery is None or sinus is None:
        return 'not measured'
    measured = f'arteries {artery:.0f} HU, sinuses {sinus:.0f} HU'
    if max(artery, sinus) < _LEAST_CONTRAST:
        return f'not known, too little contrast ({measured})'
    ratio = sinus / max(artery, 1.0)
    name = 'venous' if ratio > _VENOUS else 'equilibrium' if ratio > _EQUILIBRIUM else 'arterial'
    return f'{name} ({measured})'


def _describe_site(whole: Mapping[str, Any]) -> str:
    """Return the likeliest site, and the next where it is likely or easily taken for it."""
    site = str(whole.get('occlusion_site'))
    first = _name_site(site, whole.get('occlusion_side'))
    likeliest = f'{first} ({_chance(number(whole.get("occlusion_confidence")) or 0.0)})'
    chance = number(whole.get('occlusion_next_confidence')) or 0.0
    other = ''
    if chance > 1 - _SURE:
        other = _name_site(str(whole['occlusion_next_site']), whole.get('occlusion_next_side'))
        likeliest += f', or {other} ({_chance(chance)})'
    rival = _name_site(_CONFUSED[site], whole.get('occlusion_side')) if site in _CONFUSED else ''
    return f'{likeliest}; often confused with {rival}' if rival not in ('', other) else likeliest


def _name_site(site: str, side: object) -> str:
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
        heading: [fixed(value, digits) for value in regions[column]]
        for column, (heading, digits) in _COLUMNS.items()
        if column in regions
    }
    return pd.DataFrame({'Region': [_region(str(r)) for r in regions['region']], **shown})


def format_vessels(regions: pd.DataFrame) -> pd.DataFrame:
    """Put the filled vessels of ``desc-regions_metrics.tsv`` into a table of sides.

    Parameters
    ----------
    regions : DataFrame
        May lack columns.

    Returns
    -------
    DataFrame
        Text; empty where vessels were not measured.
    """
    if not {'vessels_left', 'vessels_right'} <= set(regions.columns):
        return pd.DataFrame()
    rows = []
    for row in regions.to_dict('records'):
        name = str(row['region'])
        if name != 'hemisphere' and name not in TERRITORIES:
            continue
        left, right = number(row['vessels_left']) or 0.0, number(row['vessels_right']) or 0.0
        ratio = f'{left / right:.2f}' if right else 'n/a'
        if max(left, right) < _LEAST_VESSELS_ML:
            ratio = 'too few vessels'
        rows.append([_region(name), f'{left:.1f}', f'{right:.1f}', ratio])
    return pd.DataFrame(
        rows, columns=['Region', 'Filled left, mL', 'Filled right, mL', 'Ratio, left / right']
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table of the derivatives, ``n/a`` as NaN."""
    return [{str(k): v for k, v in row.items()} for row in _read_table(path).to_dict('records')]


def _region(name: str) -> str:
    if name in TERRITORIES:
        return f'{TERRITORIES[name]} territory'
    return 'Hemisphere' if name == 'hemisphere' else f'ASPECTS {name} region'


def _read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep='\t', na_values='n/a') if path.is_file() else pd.DataFrame()
