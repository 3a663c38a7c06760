"""What the pages of the levels evaluate and calibrate share: report, methods, files, software.

Both compare participants with reference maps and read the tables of their level. Must not know
what either of them shows, and must not compute results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bids_perfdeficit.bids import output_path, write_text
from bids_perfdeficit.reports.words import cite, embed, environment, page_part, render_page


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """What a page is made of.

    Parameters
    ----------
    output_dir : Path
        OUTPUT_DIR: the page lies in it and links everything relative to it.
    methods : str
        With citations as ``[@key]``; an empty line parts two paragraphs.
    settings : str
        TOML.
    versions, fingerprints : mapping of str to str
        Of the software, and of the participants that the page shows.
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
        """Return where an output about all participants lies."""
        return output_path(self.output_dir, key, **entities)

    def link(self, path: Path) -> str:
        """Return a path as the page links it."""
        if self.self_contained:
            return embed(path)
        return path.relative_to(self.output_dir).as_posix()


class ComparisonPage:
    """Sections that both pages have.

    Parameters
    ----------
    report : ComparisonReport
    """

    def __init__(self, report: ComparisonReport) -> None:
        self.common: Any = environment().get_template('pieces.html').module
        self.own: Any = environment().get_template('group.html').module
        self._report = report

    def methods(self) -> list[dict[str, Any]]:
        """Return the methods text with its references."""
        paragraphs, references = cite(self._report.methods)
        return [page_part('', self.common.methods(paragraphs, references))]

    def reproduce(self, title: str, files: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return files to download (keys of outputs, with what they hold), and the software."""
        entries = [
            (path.name, self._report.link(path), meaning)
            for key, meaning in files.items()
            if (path := self._report.path(key)).is_file()
        ]
        software = self.common.reproduce(
            self._report.settings,
            list(self._report.versions.items()),
            list(self._report.fingerprints.items()),
        )
        return [
            page_part(title, self.own.downloads(entries)),
            page_part('Settings and software', software),
        ]

    def left_out(self, title: str, people: pd.DataFrame) -> dict[str, Any]:
        """Return who was left out, with status and reason."""
        rows = [
            [name_person(row), row['status'], str(row['reason'])] for _, row in people.iterrows()
        ]
        columns = ['Participant', 'Status', 'Reason']
        return page_part(title, self.common.notes(columns, rows) if rows else '')

    def write(
        self, key: str, title: str, sections: Sequence[tuple[str, list[dict[str, Any]]]]
    ) -> Path:
        """Write the page under the key of its output, and return it."""
        index = self._report.path('index')
        alone = self._report.self_contained or not index.is_file()
        html = render_page(
            title,
            sections,
            header=[self.own.style()],
            navbar=[] if alone else [self.common.up(index.name)],
        )
        return write_text(html, self._report.path(key))


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of the level; only ``n/a`` is missing, as "none" is a site."""
    return pd.read_csv(path, sep='\t', na_values=['n/a'], keep_default_na=False)


def name_person(row: Any) -> str:
    """Return the name of the participant of a row, with its session if it has one."""
    session = row.get('session_id')
    name = str(row['participant_id'])
    return f'{name}_{session}' if isinstance(session, str) else name
