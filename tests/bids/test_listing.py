"""One bad thing in a dataset is one line, and all other participants are found."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bids_perfdeficit.bids import discover, listing
from bids_perfdeficit.bids.listing import Problem, natural, parse_name


def add_pair(root: Path, participant: str, session: str | None = None) -> Path:
    """Make the two images of a participant, and return the folder they are in."""
    folder, prefix = root / f'sub-{participant}', f'sub-{participant}'
    if session is not None:
        folder, prefix = folder / f'ses-{session}', f'{prefix}_ses-{session}'
    folder /= 'ct'
    folder.mkdir(parents=True)
    for suffix in ('ct', 'cta'):
        (folder / f'{prefix}_{suffix}.nii.gz').write_bytes(b'\x1f\x8b')
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a dataset with a good participant."""
    root = tmp_path / 'bids'
    add_pair(root, 'good')
    (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root


def raw(path: Path, name: bytes) -> bytes:
    """Return a path with a name that need not be UTF-8."""
    return os.path.join(os.fsencode(path), name)


def bind(path: Path) -> None:
    """Put a socket somewhere; its address may be longer than the system allows."""
    with tempfile.TemporaryDirectory() as short:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f'{short}/s')
        shutil.move(f'{short}/s', path)


#: What may stand where the NCCT of sub-x should be, and what is said of it.
INSTEAD_OF_A_FILE = {
    'pipe': (os.mkfifo, 'the NCCT is a pipe, not a file'),
    'folder': (os.mkdir, 'the NCCT is a folder, not a file'),
    'socket': (bind, 'the NCCT is a socket, not a file'),
    'device': (lambda p: p.symlink_to('/dev/zero'), 'the NCCT is a device, not a file'),
    'loop': (lambda p: p.symlink_to(p.name), 'Too many levels of symbolic links'),
    'dangling link': (lambda p: p.symlink_to('gone'), 'a link to gone, which does not exist'),
    'link to a pipe': (
        lambda p: (os.mkfifo(p.parent / 'pipe'), p.symlink_to('pipe')),
        'the NCCT is a pipe, not a file',
    ),
    'below a file': (lambda p: p.symlink_to('sub-x_cta.nii.gz/x'), 'Not a directory'),
}


@pytest.mark.parametrize(
    ('make', 'reported'), INSTEAD_OF_A_FILE.values(), ids=list(INSTEAD_OF_A_FILE)
)
def test_an_image_that_is_not_a_file_costs_its_participant_one_line(root, make, reported):
    path = add_pair(root, 'x') / 'sub-x_ct.nii.gz'
    path.unlink()
    make(path)
    found = discover(root)
    assert [pair.participant for pair in found.pairs] == ['good']
    (problem,) = found.problems
    assert problem.participant == 'x'
    assert reported in str(problem)


#: What may stand where a participant's folder should be.
INSTEAD_OF_A_FOLDER = {
    'file': (lambda p: p.write_text(''), 'x', 'is not a folder'),
    'pipe': (os.mkfifo, 'x', 'is not a folder'),
    'loop': (lambda p: p.symlink_to('sub-x'), 'x', 'Too many levels of symbolic links'),
    'dangling link': (lambda p: p.symlink_to('gone'), 'x', 'a link to gone, which leads nowhere'),
    'link to the dataset': (lambda p: p.symlink_to('.'), 'x', 'no images in sub-x'),
    'link above the dataset': (lambda p: p.symlink_to('..'), 'x', 'no images in sub-x'),
    'empty': (os.mkdir, 'x', 'no images in sub-x'),
}


@pytest.mark.parametrize(
    ('make', 'label', 'reported'), INSTEAD_OF_A_FOLDER.values(), ids=list(INSTEAD_OF_A_FOLDER)
)
def test_a_participant_that_is_not_a_folder_of_images_is_one_line(root, make, label, reported):
    make(root / 'sub-x')
    found = discover(root)
    assert [pair.participant for pair in found.pairs] == ['good']
    (problem,) = found.problems
    assert problem.participant == label
    assert reported in str(problem)


#: Labels that BIDS does not have, as bytes, and how they are printed.
BAD_LABELS = {
    'circled digit': ('①'.encode(), '①'),
    'superscript': ('²'.encode(), '²'),
    'Arabic digit': ('٣'.encode(), '٣'),
    'Latin-1': (b'caf\xe9', r'caf\xe9'),
    'half a character': (b'\xf0\x9f', r'\xf0\x9f'),
    'space': (b'pre op', 'pre op'),
    'line break': (b'01\nsub-99: complete', r'01\nsub-99: complete'),
    'escape sequence': (b'\x1b[2J', r'\x1b[2J'),
    'right-to-left': ('\u202egnp'.encode(), r'\u202egnp'),
    'line separator': ('a\u2028b'.encode(), r'a\u2028b'),
    'umlaut': ('Müller'.encode(), 'Müller'),
    'hyphen': (b'a-b', 'a-b'),
    'percent': (b'100%s', '100%s'),
    'brackets': (b'{x}[1]', '{x}[1]'),
    'empty': (b'', ''),
}


@pytest.mark.parametrize(('name', 'shown'), BAD_LABELS.values(), ids=list(BAD_LABELS))
@pytest.mark.parametrize('of', ['participant', 'session'])
def test_a_label_that_bids_does_not_have_is_one_line_that_a_terminal_can_show(
    root, name, shown, of
):
    label = os.fsdecode(name)
    if of == 'participant':
        add_pair(root, label)
    else:
        add_pair(root, 'x', label)
    found = discover(root)
    assert [pair.participant for pair in found.pairs] == ['good']
    (problem,) = found.problems
    assert problem.participant == (shown if of == 'participant' else 'x')
    assert shown in str(problem)
    assert str(problem).isprintable()
    assert 'label' in problem.reason


def test_a_session_with_a_bad_label_costs_no_other_session(root):
    add_pair(root, 'x', 'pre op')
    add_pair(root, 'x', '1')
    found = discover(root)
    assert [pair.prefix for pair in found.pairs] == ['sub-good', 'sub-x_ses-1']
    assert len(found.problems) == 1


def test_a_label_that_leaves_no_room_for_names_of_outputs_is_one_line(root):
    add_pair(root, 'a' * 200)
    add_pair(root, 'b' * 100, 'c' * 100)
    add_pair(root, 'd' * 60, 'e' * 60)
    found = discover(root)
    assert [pair.participant[0] for pair in found.pairs] == ['d', 'g']
    assert ['too long' in str(problem) for problem in found.problems] == [True, True]


@pytest.mark.parametrize('labels', [('A+B', 'AplusB'), ('a01', 'A01'), ('1', '01', '001')])
def test_labels_that_are_alike_are_all_found(root, labels):
    for label in labels:
        add_pair(root, label)
    found = discover(root)
    assert {pair.participant for pair in found.pairs} == {'good', *labels}
    assert not found.problems
    alike = len({label.lower() for label in labels}) < len(labels)
    assert any('upper and lower case' in note for note in found.notes) == alike


@pytest.mark.parametrize(
    'name',
    [b'sub-x_acq-caf\xe9_ct.nii.gz', b'sub-x_acq-\xff_cta.nii.gz', b'sub-x_acq-\x1b[2J_ct.nii.gz'],
)
def test_an_image_whose_name_cannot_be_printed_is_left_out(root, name):
    folder = add_pair(root, 'x')
    os.close(os.open(raw(folder, name), os.O_CREAT))
    found = discover(root)
    assert [p.ncct.name for p in found.pairs] == ['sub-good_ct.nii.gz', 'sub-x_ct.nii.gz']
    assert [p.cta.name for p in found.pairs] == ['sub-good_cta.nii.gz', 'sub-x_cta.nii.gz']
    assert not found.problems
    assert any(r'\x' in note and note.isprintable() for note in found.notes)


def test_the_only_ncct_with_a_name_that_is_not_utf8_is_one_line(root):
    folder = add_pair(root, 'x')
    os.rename(folder / 'sub-x_ct.nii.gz', raw(folder, b'sub-x_acq-caf\xe9_ct.nii.gz'))
    (problem,) = discover(root).problems
    assert r'sub-x_acq-caf\xe9_ct.nii.gz looks like CT; rename it' in str(problem)


def test_links_in_circles_end(root):
    folder = add_pair(root, 'x')
    os.symlink('.', folder / 'here')
    os.symlink('..', folder / 'up')
    os.symlink('../..', root / 'sub-x/back')
    os.symlink('/', root / 'sub-x/all')
    os.symlink('two', root / 'sub-x/one')
    os.symlink('one', root / 'sub-x/two')
    for left, right in (('a', 'b'), ('b', 'a')):
        (root / 'sub-x' / left).mkdir()
        for number in range(5):
            os.symlink(f'../{right}', root / f'sub-x/{left}/{number}')
    found = discover(root)
    assert [pair.participant for pair in found.pairs] == ['good', 'x']
    assert found.pairs[1].ncct == folder / 'sub-x_ct.nii.gz'


def test_a_folder_with_too_much_in_it_is_one_line(root, monkeypatch):
    monkeypatch.setattr(listing, 'ENTRIES', 50)
    folder = add_pair(root, 'x')
    for number in range(60):
        (folder.parent / f'{number}.dcm').touch()
    found = discover(root)
    assert 'good' in [pair.participant for pair in found.pairs]
    assert [p.participant for p in found.problems if 'more than 50 files' in p.reason] == ['x']


def test_thousands_of_other_files_do_no_harm(root):
    folder = add_pair(root, 'x')
    for number in range(3000):
        (folder / f'IM{number:05d}').touch()
        (root / f'junk{number}').touch()
    found = discover(root)
    assert [pair.participant for pair in found.pairs] == ['good', 'x']
    assert not found.problems


def test_a_folder_that_cannot_be_read_is_one_line(root, monkeypatch):
    add_pair(root, 'x')
    scandir = os.scandir

    def refuse(path):
        if 'sub-x' in str(path):  # for root no folder is closed
            raise PermissionError(13, 'Permission denied')
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    found = discover(root)
    assert [pair.participant for pair in found.pairs] == ['good']
    (problem,) = found.problems
    assert 'this folder cannot be read (Permission denied)' in str(problem)


@pytest.mark.parametrize('name', ['dataset_description.json', 'participants.tsv',
                                  'layout_config.json', 'sub-good/sub-good_scans.tsv',
                                  'sub-good/ct/sub-good_ct.json'])  # fmt: skip
@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda p: p.write_text('{"x":' * 100_000),
                                  lambda p: p.write_bytes(b'\0\xff' * 99)],
                         ids=['pipe', 'folder', 'deep', 'binary'])  # fmt: skip
def test_tables_and_sidecars_of_any_kind_do_no_harm(root, name, make):
    (root / name).unlink(missing_ok=True)
    make(root / name)
    found = discover(root)
    assert [pair.participant for pair in found.pairs] == ['good']
    assert not found.problems


def test_a_dataset_of_bad_participants_only_is_no_error_of_the_dataset(tmp_path):
    (tmp_path / 'sub-01\nsub-99: complete').mkdir()
    found = discover(tmp_path)
    assert not found.pairs
    (problem,) = found.problems
    assert problem.participant == r'01\nsub-99: complete'


NAMES = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.text(min_size=1, max_size=30).map(lambda text: text.encode('utf-8', 'ignore')),
    st.builds(
        lambda *parts: b''.join(parts),
        st.sampled_from([b'sub-x_', b'sub-good_', b'sub-', b'']),
        st.sampled_from([b'acq-', b'run-', b'ce-', b'rec-', b'ses-', b'']),
        st.one_of(
            st.binary(max_size=8), st.text(max_size=8).map(lambda t: t.encode('utf-8', 'ignore'))
        ),
        st.sampled_from([b'_ct', b'_cta', b'_CT_Tilt_Eq_1', b'']),
        st.sampled_from([b'.nii.gz', b'.nii', b'.json', b'']),
    ),
).map(lambda name: name.replace(b'/', b'-').replace(b'\0', b'0'))
KINDS = st.sampled_from(['file', 'empty', 'pipe', 'folder', 'link', 'loop'])


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(things=st.lists(st.tuples(st.sampled_from(['', 'sub-x', 'sub-x/ct', 'sub-x/ses-1']),
                                 NAMES, KINDS), max_size=8))  # fmt: skip
def test_whatever_lies_about_the_good_one_is_found_and_all_lines_can_be_shown(things):
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        add_pair(root, 'good')
        for place, name, kind in things:
            path = raw(root / place, name)
            (root / place).mkdir(parents=True, exist_ok=True)
            if name in (b'.', b'..', b'sub-good') or os.path.lexists(path):
                continue
            if kind == 'pipe':
                os.mkfifo(path)
            elif kind == 'folder':
                os.mkdir(path)
            elif kind in ('link', 'loop'):
                os.symlink(b'gone' if kind == 'link' else name, path)
            else:
                with open(path, 'wb') as stream:
                    stream.write(b'' if kind == 'empty' else b'\x1f\x8b')
        found = discover(root)
        assert 'good' in [pair.participant for pair in found.pairs]
        reported = [*map(str, found.problems), *found.notes]
        reported += [line for pair in found.pairs for line in (*pair.notes, *pair.doubts)]
        assert all(line.isprintable() for line in reported)
        assert all(os.path.isfile(p) for pair in found.pairs for p in (pair.ncct, pair.cta))


@given(st.lists(st.text('0123456789ab²①٣/', max_size=6)))
def test_natural_order_exists_for_any_text(names):
    first = sorted(names, key=natural)
    assert [natural(name) for name in first] == sorted(natural(name) for name in names)
    assert sorted(['sub-10', 'sub-9', 'sub-²'], key=natural) == ['sub-9', 'sub-10', 'sub-²']


@given(st.text())
def test_any_name_has_entities_of_ascii(name):
    entities = parse_name(name)
    numbers = [entities[key] for key in ('run', 'chunk') if key in entities]
    assert all(int(number) >= 0 for number in numbers)


def test_a_problem_without_a_participant_is_about_the_dataset():
    assert str(Problem('is odd', 'change it')) == 'is odd; change it.'
    assert str(Problem('is odd', 'change it', '')) == 'sub-: is odd; change it.'
