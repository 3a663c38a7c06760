"""Every option of a run, as frozen dataclasses that go to TOML and back.

A run is described by one `Settings`. It is built once, by the command line or in a notebook, and
handed down; nothing below reads a global. Must not know argparse, Nipype or any image library.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from bids_perfdeficit.deficit.models import ModelName, model_names
from bids_perfdeficit.errors import printable
from bids_perfdeficit.perfusion.settings import PerfusionSettings
from bids_perfdeficit.ranges import RangeError, check_ranges, ranged

T = TypeVar('T')

#: The symmetric ICBM 152 template that nilearn ships: nothing is fetched, and left-right is exact.
DEFAULT_SPACE = 'MNI152NLin2009aSym'

#: GB. One participant at 1 mm takes 1.9 GiB at its peak, a coarse one less. A smaller number is
#: most often meant in another unit.
LEAST_MEMORY = 1.0
#: GB, cores, folds and repetitions that are more than any machine has or any user waits for.
MOST_MEMORY = 100_000.0
MOST_CORES = 10_000
MOST_FOLDS = 10_000
MANY = 1_000_000


class AnalysisLevel(StrEnum):
    """The two levels of a BIDS App, and what is done with reference maps."""

    PARTICIPANT = 'participant'
    GROUP = 'group'
    EVALUATE = 'evaluate'
    CALIBRATE = 'calibrate'


class Level(StrEnum):
    """How much of the participant level to write."""

    MINIMAL = 'minimal'  #: stop after the normalisation
    FULL = 'full'  #: everything


class CtaPhases(StrEnum):
    """Which phases of a multi-phase CTA are used."""

    ALL = 'all'  #: the first and up to two later ones
    FIRST = 'first'  #: the first alone


@dataclass(frozen=True)
class InputSettings:
    """What to read."""

    bids_dir: Path = Path()
    output_dir: Path = Path()
    analysis_level: AnalysisLevel = AnalysisLevel.PARTICIPANT
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    pair_sessions: bool = False  #: pair an NCCT and a CTA of one day across sessions
    phases: CtaPhases = CtaPhases.ALL  #: of a multi-phase CTA
    bids_database_dir: Path | None = None  #: accepted, without effect
    skip_bids_validation: bool = False  #: accepted, without effect
    derivatives: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ProcessingSettings:
    """What to compute."""

    level: Level = Level.FULL
    output_spaces: tuple[str, ...] = (DEFAULT_SPACE,)
    random_seed: int = ranged(20260101, 0, 2**31 - 1)
    sloppy: bool = False
    device: str = 'auto'
    #: A site's own calibration, from the level calibrate; none is the one that is shipped.
    calibration: Path | None = None

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def spacing(self) -> float:
        """Voxel size of the conformed images, in mm."""
        return 2.0 if self.sloppy else 1.0


class MapKind(StrEnum):
    """Which of a participant's maps the group level is about."""

    PERFUSION = 'perfusion'  #: computed perfusion, 0 to 1
    ASYMMETRY = 'asymmetry'  #: how much later than the other side; 0 where it is earlier
    HYPOPERFUSED = 'hypoperfused'  #: probability of a delay of more than 6 s
    LESION = 'lesion'  #: lesion masks, or other maps that the user gives

    @property
    def is_given(self) -> bool:
        """Whether users give the maps, which are then used as they are."""
        return self is MapKind.LESION


#: Least share of participants with a deficit in a voxel of computed maps, and of maps that users
#: give. Lesions are smaller: of 1,000 acute strokes 2 % leave 41 % of the brain, 1 % leave 67 %.
LEAST_COVERAGE = (0.02, 0.01)


@dataclass(frozen=True)
class GroupSettings:
    """What the group level infers."""

    items: tuple[str, ...] = ()  #: scores by name; none means all NIHSS items of the table
    higher_is_better: tuple[str, ...] = ()  #: those of `items` whose higher scores are better
    scores: Path | None = None  #: table of scores instead of the dataset's own
    covariates: tuple[str, ...] = ()  #: columns of participants.tsv, or total_deficit_volume
    model: tuple[ModelName, ...] = (ModelName('spatial'),)  #: of the registry
    map_kind: MapKind = MapKind.PERFUSION
    #: Of the cross-validation; 0 leaves it out.
    folds: int = ranged(5, 2, MOST_FOLDS, zero='none')
    fold_repeats: int = ranged(1, 1, MANY)  #: repetitions of the cross-validation
    fold_groups: str | None = None  #: column whose values folds keep whole, e.g. the site
    permutations: int = ranged(0, 0, MANY)  #: refits on shuffled scores
    bootstraps: int = ranged(0, 0, MANY)  #: refits on resampled participants
    #: mm; participants' maps have 2.
    resolution: float = ranged(4.0, 2, 10, unit='mm', why="participants' maps have 2 mm")
    #: Value above which a voxel of a map that the user gives is affected; 0.5 for lesion maps.
    map_threshold: float = ranged(0.5, 0, MANY, above=True)
    #: Least share of participants with a deficit in a voxel; unset is `LEAST_COVERAGE`.
    min_coverage: float | None = ranged(None, 0, 1, below=True, why='a share of the participants')
    vae_epochs: int | None = ranged(None, 1, MANY)  #: of `vae`; 4,000 unless set
    #: mm of the grid of `vae`; 6 unless set.
    vae_spacing: float | None = ranged(None, 4, 30, unit='mm', why='models have 4 mm')
    include_doubtful: bool = False  #: take participants whose verdict is doubtful
    apply: Path | None = None  #: folder of a finished group level whose models predict

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def least_coverage(self) -> float:
        """Return `min_coverage`, or what it is for the kind of map."""
        if self.min_coverage is not None:
            return self.min_coverage
        return LEAST_COVERAGE[self.map_kind.is_given]


@dataclass(frozen=True)
class EvaluationSettings:
    """What computed maps are compared with, or refitted to."""

    #: Files, folders or patterns of Tmax maps; none means those of ISLES'24, by name.
    reference: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResourceSettings:
    """What the run may use."""

    #: Processes; 0 is every core that this process may use.
    nprocs: int = ranged(0, 0, MOST_CORES)
    #: Threads of one step; 0 is decided from `nprocs`.
    omp_nthreads: int = ranged(0, 0, MOST_CORES)
    #: GB; 0 is what the machine or the control group has.
    mem: float = ranged(
        0.0, LEAST_MEMORY, MOST_MEMORY, zero='all there is', unit='GB',
        why='one participant needs 2 GB at 1 mm',
    )  # fmt: skip
    low_mem: bool = False
    use_plugin: Path | None = None
    work_dir: Path | None = None
    clean_workdir: bool = False
    resource_monitor: bool = False
    stop_on_first_crash: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class OutputSettings:
    """What to report, and how."""

    reports_only: bool = False
    verify: bool = False  #: hash all inputs and outputs of earlier runs
    self_contained_reports: bool = False  #: pages that hold their figures
    boilerplate_only: bool = False
    write_graph: bool = False
    dry_run: bool = False
    verbose: int = ranged(0, 0, 10)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Settings:
    """One run, whole."""

    inputs: InputSettings = field(default_factory=InputSettings)
    processing: ProcessingSettings = field(default_factory=ProcessingSettings)
    perfusion: PerfusionSettings = field(default_factory=PerfusionSettings)
    group: GroupSettings = field(default_factory=GroupSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    outputs: OutputSettings = field(default_factory=OutputSettings)

    def to_toml(self, tables: Sequence[str] = ()) -> str:
        """Return the settings as TOML; options that are unset (None) are left out.

        Parameters
        ----------
        tables : sequence of str
            Only these; all by default.
        """
        content = _to_plain(self)
        return tomli_w.dumps({k: v for k, v in content.items() if not tables or k in tables})

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Read settings back.

        Raises
        ------
        ValueError
            If the text is not TOML, or holds a table, key or value that no option has. The
            message lists every problem, one a line.
        """
        try:
            content = tomllib.loads(text)
        except RecursionError as error:
            raise ValueError('not valid TOML: nested too deeply') from error
        except ValueError as error:  # of the parser, or of `int` for endless digits
            raise ValueError(f'not valid TOML: {error}') from error
        problems: list[str] = []
        settings = _from_plain(cls, content, '', problems)
        if problems:
            raise ValueError('\n'.join(problems))
        return settings


def option_fields(settings_class: type = Settings) -> Iterator[tuple[str, str]]:
    """Yield (table, key) of every option, e.g. ``('processing', 'level')``."""
    for table, hint in get_type_hints(settings_class).items():
        for option in dataclasses.fields(hint):
            yield table, option.name


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {key: item for key, item in plain.items() if item is not None}
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, Path | StrEnum):
        return str(value)
    return value


def _from_plain(cls: type[T], content: Mapping[str, Any], where: str, problems: list[str]) -> T:
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, item in content.items():
        name = f'{where}{key}'
        if key not in known:
            problems.append(f'{name} is not an option (known here: {", ".join(sorted(known))})')
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(item, Mapping):
                values[key] = _from_plain(hints[key], item, f'{name}.', problems)
            else:
                problems.append(f'{name} must be a table')
        else:
            try:
                values[key] = coerce(item, hints[key])
            except (TypeError, ValueError) as error:
                problems.append(f'{name}: {error}')
    try:
        return cls(**values)
    except RangeError as error:
        problems += [f'{where}{name} {clause}' for name, clause in error.problems.items()]
        return cls()


def coerce(value: Any, hint: Any) -> Any:
    """Turn a string or TOML value into the type that an option is declared with.

    Raises
    ------
    ValueError
        In one clause, without naming the option.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return coerce(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            value = [value]
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ValueError(f'needs {len(arguments)} values, has {len(value)}')
        return tuple(coerce(item, arguments[0]) for item in value)
    if hint is ModelName:
        if value not in model_names():
            raise ValueError(f'{value!r} is not one of {", ".join(model_names())}')
        return value
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        try:
            return hint(value)
        except ValueError:
            raise ValueError(f'{value!r} is not one of {", ".join(hint)}') from None
    if get_origin(hint) is not None and all(isinstance(a, str) for a in arguments):  # Literal
        if value not in arguments:
            raise ValueError(f'{value!r} is not one of {", ".join(arguments)}')
        return value
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f'{value!r} is neither true nor false')
        return value
    if hint in (int, float):
        if isinstance(value, bool):
            raise ValueError(f'{value!r} is not a number')
        try:
            number = hint(value)
        except (TypeError, ValueError, OverflowError):
            kind = 'a whole number' if hint is int else 'a number'
            raise ValueError(f'{value!r} is not {kind}') from None
        if hint is int and isinstance(value, float) and value != number:
            raise ValueError(f'{value!r} is not a whole number')
        return number
    if hint is Path:
        if not isinstance(value, str | Path):
            raise ValueError(f'{value!r} is not a path')
        if any(unicodedata.category(char) in ('Cc', 'Cs') for char in str(value)):
            raise ValueError(
                f"'{printable(value)}' holds control characters or bytes that are not UTF-8; "
                'rename the folder or file'
            )
        return Path(value)
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not text')
    return value
