"""Files appear whole or not at all, and equal content is equal bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_perfdeficit.bids import (
    copy_file,
    write_bytes,
    write_json,
    write_nifti,
    write_text,
    write_tsv,
)
from bids_perfdeficit.bids.files import create_bytes


@pytest.fixture
def image() -> nib.Nifti1Image:
    data = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    return nib.Nifti1Image(data, np.diag([1.0, 2.0, 3.0, 1.0]))


@pytest.mark.parametrize('name', ['a.nii.gz', 'a.nii'])
def test_image_comes_back_as_it_was(tmp_path, image, name):
    path = write_nifti(image, tmp_path / 'deep' / name)
    back = nib.load(path)
    np.testing.assert_array_equal(back.get_fdata(), image.get_fdata())
    np.testing.assert_array_equal(back.affine, image.affine)
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_same_image_is_same_bytes_later_and_under_another_name(tmp_path, image):
    first = write_nifti(image, tmp_path / 'a.nii.gz').read_bytes()
    time.sleep(1.1)  # gzip's time stamp counts seconds
    assert write_nifti(image, tmp_path / 'b.nii.gz').read_bytes() == first


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, image):
    path = write_nifti(image, tmp_path / 'a.nii.gz')
    before = path.read_bytes()

    class Broken:
        def to_stream(self, stream):
            stream.write(b'half')
            raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        write_nifti(Broken(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_what_python_and_numpy_have(tmp_path):
    path = write_json(
        {'z': np.float32(0.5), 'a': np.arange(2), 'n': float('nan'), 'p': Path('x'), 'u': 'ä'},
        tmp_path / 'a.json',
    )
    assert json.loads(path.read_text()) == {'z': 0.5, 'a': [0, 1], 'n': None, 'p': 'x', 'u': 'ä'}
    assert list(json.loads(path.read_text())) == ['z', 'a', 'n', 'p', 'u']


def test_table_has_tabs_and_na(tmp_path):
    frame = pd.DataFrame({'a': [1, 2], 'b': [0.123456789, np.nan], 'c': ['x', None]})
    assert write_tsv(frame, tmp_path / 'a.tsv').read_text() == (
        'a\tb\tc\n1\t0.123457\tx\n2\tn/a\tn/a\n'
    )


def test_text_bytes_and_copy(tmp_path):
    text = write_text('ä\n', tmp_path / 'a.txt')
    assert text.read_bytes() == 'ä\n'.encode()
    assert copy_file(text, tmp_path / 'b/c.txt').read_bytes() == text.read_bytes()
    assert write_bytes(b'\0', tmp_path / 'a.bin').read_bytes() == b'\0'


def test_files_have_the_rights_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_text('x', tmp_path / 'a')
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_create_writes_once(tmp_path):
    assert create_bytes(b'first', tmp_path / 'a')
    assert not create_bytes(b'second', tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == b'first'
    assert len(list(tmp_path.iterdir())) == 1


def test_of_many_processes_that_create_one_writes(tmp_path):
    code = (
        'import sys; from bids_perfdeficit.bids.files import create_bytes; '
        f'print(create_bytes(sys.argv[1].encode() * 100000, {str(tmp_path / "a")!r}))'
    )
    running = [
        subprocess.Popen([sys.executable, '-c', code, str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(6)
    ]
    said = [process.communicate()[0].strip() for process in running]
    assert sorted(said) == ['False'] * 5 + ['True']
    assert set((tmp_path / 'a').read_text()) == {str(said.index('True'))}


def lose_the_reply(monkeypatch, name, error):
    """Let a function of `os` do its work and fail, as when NFS repeats what had been done."""
    real = getattr(os, name)

    def repeated(*args):
        real(*args)
        raise error

    monkeypatch.setattr(os, name, repeated)


def test_a_rename_whose_reply_was_lost_counts(monkeypatch, tmp_path):
    path = write_text('old', tmp_path / 'a')
    lose_the_reply(monkeypatch, 'replace', FileNotFoundError(2, 'No such file or directory'))
    assert write_text('new', path).read_text() == 'new'
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_was_not_done_fails(monkeypatch, tmp_path):
    path = write_text('old', tmp_path / 'a')

    def vanished(aside, path):
        Path(aside).unlink()
        raise FileNotFoundError(2, 'No such file or directory')

    monkeypatch.setattr(os, 'replace', vanished)
    with pytest.raises(FileNotFoundError):
        write_text('new', path)
    assert path.read_text() == 'old'


def test_a_link_whose_reply_was_lost_counts(monkeypatch, tmp_path):
    lose_the_reply(monkeypatch, 'link', FileExistsError(17, 'File exists'))
    assert create_bytes(b'first', tmp_path / 'a')
    assert not create_bytes(b'second', tmp_path / 'a')
    assert [path.name for path in tmp_path.iterdir()] == ['a']
