"""What is done with references: whose maps have which, for an evaluation or a calibration.

Each participant is a task with a record (`stages.task`), and so is the cohort: it is done when the
record of an earlier run agrees with the maps and references as they are now. Must not import
Nipype: a dry run asks here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_perfdeficit.bids import ScanPair, output_path, sidecar_path
from bids_perfdeficit.bids.cohort import Entry, list_entries
from bids_perfdeficit.bids.jsonfile import read_facts
from bids_perfdeficit.bids.listing import natural
from bids_perfdeficit.bids.outputs import has_sidecar
from bids_perfdeficit.bids.references import (
    find_clot,
    find_copies,
    find_references,
    find_strangers,
    match_references,
)
from bids_perfdeficit.errors import InputError, printable
from bids_perfdeficit.settings import Settings
from bids_perfdeficit.stages.record import Stamp
from bids_perfdeficit.stages.task import State, Task, examine
from bids_perfdeficit.workflows.group_plan import find_unproven
from bids_perfdeficit.workflows.plan import file_uri, path_of, record_path

#: Versions of the stages, raised whenever results change, so that older ones are not mixed with
#: newer ones.
VERSIONS: Mapping[str, int] = {'evaluation': 1, 'cohort': 1, 'calibration': 1}
#: Outputs of the participant level that are read.
READ = (
    'preproc_ct', 'preproc_cta', 'brain_mask', 'template_xfm', 'template_inverse_xfm', 'toa',
    'perfusion', 'hypoperfused', 'regions_metrics',
)  # fmt: skip
#: What the evaluation of a participant leaves.
LEFT = ('reference_tmax', 'agreement_metrics', 'reference_metrics')


@dataclass(frozen=True)
class Use:
    """What is done with a participant and its reference.

    Parameters
    ----------
    name : str
        Of the stage.
    read, left : tuple of str
        Keys of the outputs that it reads and leaves.
    options : callable
        From the settings to the options that shape the result.
    """

    name: str
    read: tuple[str, ...]
    left: tuple[str, ...]
    options: Callable[[Settings], Mapping[str, Any]]


EVALUATION = Use('evaluation', READ, LEFT, lambda s: {'space': s.processing.output_spaces[0]})
#: A calibration reads the scans alone, so that it does not depend on an earlier one.
CALIBRATION = Use(
    'calibration',
    ('preproc_ct', 'preproc_cta', 'brain_mask', 'template_xfm', 'template_inverse_xfm'),
    ('calibration_samples',),
    lambda s: {
        'space': s.processing.output_spaces[0],
        'seed': s.processing.random_seed,
        **dataclasses.asdict(s.perfusion),
    },
)


@dataclass(frozen=True)
class Case:
    """One participant and session with a reference.

    Parameters
    ----------
    pair : ScanPair
        Names; its scans are not read.
    reference : Path
        Map of Tmax.
    clot : Path or None
        Mask of the occlusion.
    files : mapping of str to Path
        Outputs of the participant level, by key.
    task : Task
        The evaluation.
    state : State
        Of the task.
    seen : mapping of str to Stamp
        Of the inputs when the plan was made, by BIDS URI.
    refusal : str
        Why the reference cannot be this participant's; empty otherwise.
    use : Use
        What is done with it.
    """

    pair: ScanPair
    reference: Path
    clot: Path | None
    files: Mapping[str, Path]
    task: Task
    state: State
    seen: Mapping[str, Stamp | None] = field(default_factory=dict)
    refusal: str = ''
    use: Use = EVALUATION

    @property
    def name(self) -> str:
        """``sub-01`` or ``sub-01_ses-x``."""
        return self.pair.prefix

    def examined(self, *, verify: bool = False) -> Case:
        """Return the case with its state, and the stamps of its inputs, as they are now."""
        return dataclasses.replace(
            self,
            state=examine(self.task, verify=verify),
            seen={name: Stamp.of(path) for name, path in self.task.inputs.items()},
        )


@dataclass(frozen=True)
class EvaluationPlan:
    """What is there and what is to be done.

    Parameters
    ----------
    cases : mapping of str to Case
        By name, in natural order.
    unusable : mapping of str to str
        Participants with more than one reference, or who were asked for and have no results, each
        with a sentence.
    left_out : mapping of str to str
        Participants who have no reference, or no results that count, with the reason.
    notes : tuple of str
        What a user should know, a sentence each.
    """

    cases: Mapping[str, Case]
    unusable: Mapping[str, str]
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each participant whose reference cannot be used."""
        refused = [case.refusal for case in self.cases.values() if case.refusal]
        return (*self.unusable.values(), *refused)


def evaluation_path(settings: Settings, key: str, **entities: str) -> Path:
    """Return where an output about all participants lies."""
    return output_path(settings.inputs.output_dir.absolute(), key, **entities)


def make_evaluation_plan(settings: Settings, use: Use = EVALUATION) -> EvaluationPlan:
    """Find computed maps and references, and what an earlier run left.

    Parameters
    ----------
    settings : Settings
        Of the run.
    use : Use
        What is done with each participant.

    Raises
    ------
    InputError
        When there is no finished participant, or no reference.
    """
    inputs = settings.inputs
    root = inputs.output_dir.absolute()
    entries, left_out, unusable = _find_entries(settings, use)
    files, notes = find_references(
        inputs.bids_dir.absolute(), settings.evaluation.reference, output_dir=root
    )
    names = {(e.participant, e.session): _pair(e).prefix for e in entries}
    matched, absent, several = match_references(entries, files)
    left_out |= {names[key]: reason for key, reason in absent.items()}
    # More than one is for the user to decide; to have none is not an error.
    unusable |= {names[key]: f'{names[key]}: {reason}' for key, reason in several.items()}
    references = {names[key]: path for key, path in matched.items()}
    scans = {}
    for entry in entries:
        if (scan := _raw_scan(entry, settings)) is not None:
            scans[_pair(entry).prefix] = scan
    refused = find_strangers(references, scans) | find_copies(references)
    unused = sorted(
        {f'sub-{file.participant}' for file in files if not _has(entries, file.participant)},
        key=natural,
    )
    if unused and not inputs.participant_label:
        notes += (f'{len(unused)} references are of participants without results',)
    cases = {}
    for entry in entries:
        name = names[entry.participant, entry.session]
        if name in references:
            cases[name] = _case(
                _pair(entry), references[name], settings, refused.get(name, ''), use
            )
    return EvaluationPlan(cases, unusable, left_out, notes)


def _has(entries: list[Entry], participant: str) -> bool:
    return any(entry.participant == participant for entry in entries)


def _pair(entry: Entry) -> ScanPair:
    return ScanPair(entry.participant, entry.session or None, Path(), Path())


def _find_entries(
    settings: Settings, use: Use
) -> tuple[list[Entry], dict[str, str], dict[str, str]]:
    """Return whose maps can be compared, why those of others cannot, and who is not there."""
    inputs, space = settings.inputs, settings.processing.output_spaces[0]
    root = inputs.output_dir.absolute()
    wanted = {label.removeprefix('sub-') for label in inputs.participant_label}
    sessions = {label.removeprefix('ses-') for label in inputs.session_label}
    labels = [p.name.removeprefix('sub-') for p in root.glob('sub-*') if p.is_dir()]
    unusable = {
        f'sub-{label}': f'sub-{label}: has no results in OUTPUT_DIR; run the participant level '
        'for it first.'
        for label in sorted(wanted - set(labels))
    }
    left_out: dict[str, str] = {}
    entries = []
    for label in sorted(labels, key=natural):
        if wanted and label not in wanted:
            continue
        found = list_entries(root, label, 'std_perfusion', space)
        if sessions:
            found = [entry for entry in found if entry.session in sessions]
        if not found:
            left_out[f'sub-{label}'] = f'has no perfusion map in {space}'
        for entry in found:
            reason = next(
                iter(
                    find_unproven(
                        [entry], include_doubtful=settings.group.include_doubtful
                    ).values()
                ),
                '',
            )
            pair = _pair(entry)
            missing = [k for k in use.read if not path_of(root, pair, k, space).is_file()]
            if not reason and missing:
                reason = f'{path_of(root, pair, missing[0], space).name} is missing'
            if reason:
                left_out[pair.prefix] = reason
            else:
                entries.append(entry)
    if not entries:
        known = {**left_out, **unusable}
        reasons = '; '.join(f'{name}: {why}' for name, why in list(known.items())[:3])
        raise InputError(
            'no participant has a finished perfusion map' + (f' ({reasons})' if reasons else ''),
            fix='run the participant level first, with the same --output-spaces',
            path=root,
        )
    return entries, left_out, unusable


def _raw_scan(entry: Entry, settings: Settings) -> Path | None:
    """Return the NCCT that the maps were computed from, where it still lies in BIDS_DIR."""
    root, space = settings.inputs.output_dir.absolute(), settings.processing.output_spaces[0]
    facts = read_facts(sidecar_path(path_of(root, _pair(entry), 'preproc_ct', space)))
    for source in facts.get('Sources', []):
        path = settings.inputs.bids_dir.absolute() / str(source).removeprefix('bids:raw:')
        if str(source).startswith('bids:raw:') and path.is_file():
            return path
    return None


def _case(pair: ScanPair, reference: Path, settings: Settings, refusal: str, use: Use) -> Case:
    root, space = settings.inputs.output_dir.absolute(), settings.processing.output_spaces[0]
    files = {key: path_of(root, pair, key, space) for key in use.read}
    clot = find_clot(reference)
    read = [*files.values(), reference, *([clot] if clot is not None else [])]
    left = []
    for key in use.left:
        path = path_of(root, pair, key, space)
        left += [path, *([sidecar_path(path)] if has_sidecar(key) else [])]
    task = Task(
        f'{use.name} of {pair.prefix}',  # the cohort requires those of all
        VERSIONS[use.name],
        root,
        record_path(root, pair, use.name),
        use.options(settings),
        {file_uri(path, settings): path for path in read},
        outputs=tuple(path.relative_to(root).as_posix() for path in left),
    )
    case = Case(pair, reference, clot, files, task, State(False), refusal=refusal, use=use)
    return case.examined(verify=settings.outputs.verify)


def cohort_task(
    plan: EvaluationPlan, people: Sequence[Mapping[str, Any]], settings: Settings
) -> Task:
    """Return the tables of the cohort as a task: whom they are about, and where they lie."""
    root = settings.inputs.output_dir.absolute()
    paths = [evaluation_path(settings, f'evaluation_{k}') for k in ('participants', 'metrics')]
    paths += [sidecar_path(path) for path in paths]
    return Task(
        'cohort',
        VERSIONS['cohort'],
        root,
        evaluation_path(settings, 'evaluation_record', stage='cohort'),
        {
            'space': settings.processing.output_spaces[0],
            'seed': settings.processing.random_seed,
            'people': list(people),
        },
        requires=tuple(case.task for case in plan.cases.values() if case.state.done),
        outputs=tuple(path.relative_to(root).as_posix() for path in paths),
    )  # fmt: skip


def describe_evaluation(plan: EvaluationPlan) -> str:
    """Return the lines of `--dry-run`: who, with which reference, and what would run."""
    lines = []
    for case in plan.cases.values():
        what = f'{case.use.name} ({case.state.reason})'
        if case.refusal:
            what = 'refused'
        elif case.state.done:
            what = 'complete, nothing to do'
        lines += [f'{case.name}: {what}', f'    reference {case.reference}']
        if case.clot is not None:
            lines.append(f'    occlusion {case.clot}')
    lines += [f'{name}: left out: {reason}' for name, reason in plan.left_out.items()]
    lines += [f'note: {note}' for note in plan.notes]
    return '\n'.join(printable(line) for line in lines)
