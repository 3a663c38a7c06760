"""Write the files that make OUTPUT_DIR a BIDS derivative dataset.

Any number of jobs may do so at once, each for its own participants. Must not touch what belongs
to one participant.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import pandas as pd

from bids_perfdeficit.bids.files import create_bytes, write_bytes, write_text, write_tsv
from bids_perfdeficit.bids.jsonfile import read_json
from bids_perfdeficit.bids.outputs import output_path, read_spec
from bids_perfdeficit.bids.scores import prepare_rows
from bids_perfdeficit.bids.tables import Table, read_regular_file, read_table
from bids_perfdeficit.errors import InputError

_LOG = logging.getLogger('bids_perfdeficit.bids')

#: Columns of ``participants.tsv`` beside those of the raw dataset.
VERDICT_COLUMNS = ('verdict', 'verdict_reasons')

#: How results are acknowledged.
ACKNOWLEDGE = (
    'Please cite the software and the references of logs/CITATION.md, which also has the methods '
    'text of the latest run.'
)
#: Licence of results whose source dataset names none.
NO_LICENCE = 'That of the source dataset, which does not state one'
#: Of the specification that the outputs follow.
BIDS_VERSION = '1.10.0'


def write_dataset_files(
    out_dir: str | os.PathLike[str],
    *,
    bids_dir: str | os.PathLike[str],
    version: str,
    container: Mapping[str, str] | None = None,
    relink: bool = True,
) -> tuple[str, ...]:
    """Write ``dataset_description.json``, ``.bidsignore``, ``descriptions.tsv`` and ``README.md``.

    What this program wrote before is brought up to date: its version, where BIDS_DIR lies, and
    the list of descriptions. A README, and the description of another program, stay as they are;
    lines that ``.bidsignore`` lacks are added.

    Parameters
    ----------
    out_dir, bids_dir : path
        OUTPUT_DIR, which is created, and BIDS_DIR, which BIDS URIs call ``bids:raw:``.
    version : str
        Of this program.
    container : mapping, optional
        ``{'Type': 'docker', 'Tag': ...}`` as the specification has it.
    relink : bool
        Whether a description that is there gets this BIDS_DIR; False keeps that of the run that
        read the images.

    Returns
    -------
    tuple of str
        What a user should know, for example that another version began these outputs.

    Raises
    ------
    InputError
        When OUTPUT_DIR is a raw dataset or its description cannot be read.
    """
    out_dir, bids_dir = Path(out_dir), Path(bids_dir).absolute()
    generated: dict[str, Any] = {'Name': 'bids_perfdeficit', 'Version': version}
    if address := _code_url():
        generated['CodeURL'] = address
    if container:
        generated['Container'] = dict(container)
    description = {
        'Name': 'Computed perfusion from CT and CT angiography',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'License': _source_licence(bids_dir),
        'HowToAcknowledge': ACKNOWLEDGE,
        'GeneratedBy': [generated],
        'SourceDatasets': [{'URL': bids_dir.as_uri()}],
        'DatasetLinks': {'raw': bids_dir.as_uri()},
    }
    notes: list[str] = []
    path = out_dir / 'dataset_description.json'
    if not create_bytes(_encode(description), path):
        if _is_damaged(path) and _is_ours(out_dir):
            notes.append(f'{path} was damaged and is written again')
            write_bytes(_encode(description), path)
        notes += _update_description(path, description, version, relink)
    spec = read_spec()
    _add_lines(out_dir / '.bidsignore', spec['bidsignore'])
    table = pd.DataFrame(spec['descriptions'].items(), columns=['desc_id', 'description'])
    text = table.to_csv(sep='\t', index=False, lineterminator='\n')
    _write_changed(text.encode(), out_dir / 'descriptions.tsv')
    create_bytes(spec['readme'].encode(), out_dir / 'README.md')
    return tuple(notes)


def write_participants(
    out_dir: str | os.PathLike[str],
    *,
    bids_dir: str | os.PathLike[str],
    participants: Sequence[str],
) -> Path:
    """Write ``participants.tsv``: who is in OUTPUT_DIR, with all that BIDS_DIR says of them.

    Participants are those given and those that have a folder in OUTPUT_DIR already. All columns
    and rows of the original that concern them are kept as text; empty cells become ``n/a``. The
    verdicts on their results are added as `VERDICT_COLUMNS`. Jobs
    that write at the same time converge on all participants: after writing, each looks again.

    Parameters
    ----------
    out_dir, bids_dir : path
        OUTPUT_DIR and BIDS_DIR. A ``participants.tsv`` there that cannot be read is reported as a
        warning, and the table holds the participants alone.
    participants : sequence of str
        Labels without ``sub-``. Their folders are created.

    Returns
    -------
    Path
        The table.
    """
    out_dir, bids_dir = Path(out_dir), Path(bids_dir)
    for label in participants:
        (out_dir / f'sub-{label}').mkdir(parents=True, exist_ok=True)
    path = output_path(out_dir, 'participants')
    source = bids_dir / 'participants.tsv'
    table = _read_participants(source)
    if table is not None:
        described = source.with_suffix('.json')
        with contextlib.suppress(InputError):  # columns need no description
            write_bytes(read_regular_file(described), out_dir / 'participants.json')
    while True:
        labels = _folders(out_dir)
        frame = pd.DataFrame({'participant_id': labels})
        if table is not None:
            frame = frame.merge(_rows_of(table, labels), on='participant_id', how='left')
        verdicts = [_read_verdicts(out_dir / label) for label in labels]
        if any(status for status, _ in verdicts):
            for name, column in zip(VERDICT_COLUMNS, zip(*verdicts, strict=True), strict=True):
                frame[f'perfdeficit_{name}' if name in frame else name] = list(column)
        write_tsv(frame.replace('', 'n/a'), path)
        if _folders(out_dir) == labels:
            return path


def _read_verdicts(folder: Path) -> tuple[str, str]:
    """Return status and reasons of a participant; of several sessions, each with its name."""
    found = []
    for path in sorted(
        (*folder.glob('records/*_verdict.json'), *folder.glob('ses-*/records/*_verdict.json'))
    ):
        with contextlib.suppress(InputError):
            verdict = read_json(path)
            session = path.name.removesuffix('_verdict.json').partition('_')[2]
            reasons = '; '.join(map(str, verdict.get('Reasons', [])))
            found.append((session, str(verdict.get('Status', '')), ' '.join(reasons.split())))
    if len(found) == 1:
        return found[0][1:]
    return (
        '; '.join(f'{session} {status}'.strip() for session, status, _ in found),
        '; '.join(f'{session} {reasons}'.strip() for session, _, reasons in found if reasons),
    )


def _folders(out_dir: Path) -> list[str]:
    return sorted(p.name for p in out_dir.glob('sub-*') if p.is_dir())


def _read_participants(path: Path) -> Table | None:
    """Return the raw dataset's table, or None when it is absent or of no use."""
    if not os.path.lexists(path):
        return None
    try:
        table = read_table(path)
        return table if len(prepare_rows(table, None, [])) else None
    except InputError as error:
        _LOG.warning('%s The participants are listed without it.', error)
        return None


def _rows_of(table: Table, labels: Sequence[str]) -> pd.DataFrame:
    """Return the rows of some participants under the names of their folders."""
    raw = prepare_rows(table, labels, [])
    assert table.who is not None
    names = [table.who, *(c for c in raw.columns if c != table.who)]
    frame = raw[names].rename(columns={table.who: 'participant_id'})
    return frame.assign(participant_id='sub-' + frame['participant_id'])


def _update_description(
    path: Path, description: Mapping[str, Any], version: str, relink: bool
) -> list[str]:
    """Check a description that is there, bring our own up to date, and return what to note."""
    notes = _check_description(path, version)
    old = read_json(path)
    makers = old.get('GeneratedBy', [])
    if not any(maker.get('Name') == 'bids_perfdeficit' for maker in makers):
        return notes
    # what a person has changed stays
    new = {k: description[k] for k in ('Name', 'DatasetType', 'License', 'HowToAcknowledge')} | old
    new |= {'BIDSVersion': BIDS_VERSION, 'GeneratedBy': [
        *description['GeneratedBy'],
        *(maker for maker in makers if maker.get('Name') != 'bids_perfdeficit'),
    ]}  # fmt: skip
    if relink:
        new |= {key: description[key] for key in ('SourceDatasets', 'DatasetLinks')}
    if new['License'] == NO_LICENCE:
        new['License'] = description['License']
    if description['License'] not in (NO_LICENCE, new['License']):
        notes.append(
            f'{path} names the licence {new["License"]} and BIDS_DIR names '
            f'{description["License"]}; the one in OUTPUT_DIR stays until you change it'
        )
    # a new file has this order, so that a second run leaves the same bytes
    order = {key: place for place, key in enumerate(description)}
    new = dict(sorted(new.items(), key=lambda item: order.get(item[0], len(order))))
    _write_changed(_encode(new), path)
    return notes


def _source_licence(bids_dir: Path) -> str:
    """Return the licence of the images, which is that of what was computed from them."""
    given = ''
    with contextlib.suppress(InputError, OSError):
        given = str(read_json(bids_dir / 'dataset_description.json').get('License') or '')
    return given or NO_LICENCE


def _code_url() -> str:
    """Return where the source code is published, from the metadata of the installed package."""
    try:
        listed = metadata('bids_perfdeficit').get_all('Project-URL') or []
    except PackageNotFoundError:
        return ''
    urls = dict(line.split(', ', 1) for line in listed if ', ' in line)
    return urls.get('Repository', '')


def _is_damaged(path: Path) -> bool:
    try:
        read_json(path)
    except InputError:
        return path.is_file()
    return False


def _is_ours(out_dir: Path) -> bool:
    """Return whether this program wrote into a folder, from what only it leaves there."""
    return any(out_dir.glob('logs/*/status.json')) or any(out_dir.glob('*/records/*_record.json'))


def _write_changed(content: bytes, path: Path) -> None:
    """Write a file unless it has this content already."""
    try:
        same = path.read_bytes() == content
    except OSError:
        same = False
    if not same:
        write_bytes(content, path)


def _check_description(path: Path, version: str) -> list[str]:
    fix = 'give OUTPUT_DIR a folder of its own'
    try:
        description = read_json(path)
        kind = description.get('DatasetType', 'raw')
        makers = {g.get('Name'): g.get('Version') for g in description.get('GeneratedBy', [])}
    except (ValueError, AttributeError) as error:  # an `InputError` is a `ValueError`
        raise InputError(
            'cannot be read as JSON', fix=f'correct it, or {fix}', path=path
        ) from error
    if kind != 'derivative':
        raise InputError(f'the folder holds a {kind} dataset, not derivatives', fix=fix, path=path)
    if 'bids_perfdeficit' not in makers:
        return [f"{path} is another program's ({', '.join(map(str, makers)) or 'unnamed'})"]
    if makers['bids_perfdeficit'] != version:
        return [
            f'the outputs in {path.parent} were begun by version {makers["bids_perfdeficit"]}; '
            f'this is {version}'
        ]
    return []


def _add_lines(path: Path, lines: Iterable[str]) -> None:
    text = path.read_text(encoding='utf-8') if path.is_file() else ''
    missing = [line for line in lines if line not in text.splitlines()]
    if missing:
        start = text if not text or text.endswith('\n') else text + '\n'
        write_text(start + '\n'.join(missing) + '\n', path)


def _encode(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + '\n').encode()
