"""What a run has to do for a patient, and what an earlier run has done already.

The participant level is a chain of stages. Each stage leaves files, and beside them a
fingerprint of everything that shaped them: the options of the stage, its code version and the
stages before it. Files whose fingerprint still holds are used again. Must not import Nipype: a
dry run asks here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_perfdeficit.bids import ScanPair, output_path, sidecar_path
from bids_perfdeficit.errors import printable
from bids_perfdeficit.settings import Level, Settings

#: Raised whenever a stage's results change, so that older files are not mixed with newer ones.
PIPELINE_VERSION = 4


@dataclass(frozen=True)
class Stage:
    """A step whose results are kept.

    Parameters
    ----------
    name : str
        For people.
    keys : tuple of str
        The outputs it leaves (keys of `data/io_spec.json`). The first one's sidecar carries the
        fingerprint.
    options : callable
        From the settings to the options that shape the result.
    level : Level
        The least `--level` that runs it.
    """

    name: str
    keys: tuple[str, ...]
    options: Callable[[Settings], Mapping[str, Any]]
    level: Level = Level.MINIMAL


def _seeded(settings: Settings) -> dict[str, Any]:
    return {'seed': settings.processing.random_seed, 'sloppy': settings.processing.sloppy}


STAGES: tuple[Stage, ...] = (
    Stage('conform', ('preproc_ct',), lambda s: {'spacing': s.processing.spacing}),
    Stage('brain', ('brain_mask',), lambda s: {}),
    Stage('cta', ('preproc_cta', 'cta_xfm'), _seeded),
    Stage('template', ('template_xfm', 'template_inverse_xfm'), _seeded),
    Stage(
        'perfusion',
        ('perfusion', 'toa', 'hypoperfused', 'subtraction', 'vessel'),
        lambda s: dataclasses.asdict(s.perfusion),
        Level.FULL,
    ),
    Stage(
        'standard',
        (
            'std_perfusion',
            'std_toa',
            'std_asymmetry',
            'std_hypoperfused',
            'std_preproc_ct',
            'std_preproc_cta',
            'std_brain_mask',
        ),
        lambda s: {},
        Level.FULL,
    ),
    # The version is raised when the tables change and no map does.
    Stage('metrics', ('qc_metrics', 'regions_metrics'), lambda s: {'version': 2}, Level.FULL),
)


@dataclass(frozen=True)
class Plan:
    """What is there and what is to be done for one pair of scans.

    Parameters
    ----------
    pair : ScanPair
        The scans.
    existing : mapping of str to Path
        Outputs, by key, that hold and will be read.
    fingerprints : mapping of str to str
        By stage name.
    """

    pair: ScanPair
    existing: Mapping[str, Path]
    fingerprints: Mapping[str, str]

    def has(self, stage: Stage) -> bool:
        """Tell whether a stage is done."""
        return all(key in self.existing for key in stage.keys)

    def to_run(self, level: Level) -> tuple[Stage, ...]:
        """Return the stages that are still to run."""
        return tuple(stage for stage in stages_of(level) if not self.has(stage))


def stages_of(level: Level) -> tuple[Stage, ...]:
    """Return the stages that a level comprises, in order."""
    return tuple(s for s in STAGES if level is Level.FULL or s.level is Level.MINIMAL)


def path_of(root: Path, pair: ScanPair, key: str, space: str) -> Path:
    """Return where an output of this pair lies."""
    return output_path(root, key, participant=pair.participant, session=pair.session, space=space)


def make_plan(pair: ScanPair, settings: Settings) -> Plan:
    """Find what an earlier run left for this pair.

    Files in OUTPUT_DIR count when their fingerprint holds. Files in `--derivatives` count as they
    are: whoever names them vouches for them.
    """
    space = settings.processing.output_spaces[0]
    existing: dict[str, Path] = {}
    fingerprints: dict[str, str] = {}
    chain = json.dumps(
        [PIPELINE_VERSION, space, str(pair.ncct.name), str(pair.cta.name)], sort_keys=True
    )
    for stage in stages_of(settings.processing.level):
        options = json.dumps(stage.options(settings), sort_keys=True, default=str)
        chain = hashlib.sha256(f'{chain}{stage.name}{options}'.encode()).hexdigest()[:16]
        fingerprints[stage.name] = chain
        existing |= _find(stage, pair, space, settings.inputs.output_dir, chain) or next(
            filter(None, (_find(stage, pair, space, d) for d in settings.inputs.derivatives)), {}
        )
    return Plan(pair, existing, fingerprints)


def _find(
    stage: Stage, pair: ScanPair, space: str, root: Path, fingerprint: str | None = None
) -> dict[str, Path]:
    paths = {key: path_of(root, pair, key, space) for key in stage.keys}
    if not all(path.is_file() for path in paths.values()):
        return {}
    if fingerprint is not None:
        try:
            sidecar = json.loads(sidecar_path(paths[stage.keys[0]]).read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return {}
        if sidecar.get('Fingerprint') != fingerprint:
            return {}
    return paths


def describe(plans: Sequence[Plan], settings: Settings) -> str:
    """Return the lines of `--dry-run`: who, from which files, and which stages would run."""
    lines = []
    for plan in plans:
        steps = [stage.name for stage in plan.to_run(settings.processing.level)]
        lines += [
            f'{plan.pair.prefix}: {", ".join(steps) if steps else "complete, nothing to do"}',
            f'    NCCT {plan.pair.ncct}',
            f'    CTA  {plan.pair.cta}',
            *(f'    doubtful: {doubt}' for doubt in plan.pair.doubts),
            *(f'    note: {note}' for note in plan.pair.notes),
        ]
    return '\n'.join(printable(line) for line in lines)
