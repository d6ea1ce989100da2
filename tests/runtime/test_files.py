import os
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from cfg.runtime.errors import UserError
from cfg.runtime.files import lock, reaching, replacing, write_whole


@pytest.mark.parametrize('call', ['fsync', 'chmod', 'replace'])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / 'a' / 'file'
    write_whole(path, b'old')
    monkeypatch.setattr(os, call, Mock(side_effect=OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'):
        write_whole(path, b'new')
    assert path.read_bytes() == b'old'
    assert [p.name for p in path.parent.iterdir()] == ['file']


def test_a_write_removes_what_killed_writers_of_the_file_left_and_spares_the_living(tmp_path):
    for name in ('.file.abcd_123', '.file.npz.abcd_123', '.other.abcd_123', '.file.lock'):
        (tmp_path / name).write_bytes(b'a part')
    with replacing(tmp_path / 'file') as first:
        first.write(b'fir')
        write_whole(tmp_path / 'file', b'second')
        assert not (tmp_path / '.file.abcd_123').exists()
        first.write(b'st')
    assert (tmp_path / 'file').read_bytes() == b'first'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.file.lock', '.file.npz.abcd_123', '.other.abcd_123', 'file']


def test_a_writer_whose_file_is_taken_for_a_dead_ones_makes_another(tmp_path, monkeypatch):
    real, made = tempfile.NamedTemporaryFile, []

    def taken(**arguments):
        made.append(real(**arguments))
        if len(made) == 1:
            Path(made[0].name).unlink()
        return made[-1]

    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', taken)
    write_whole(tmp_path / 'file', b'new')
    assert len(made) == 2
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('file', b'new')]


def test_a_lock_is_held_once_and_let_go(tmp_path):
    with lock(tmp_path, 'train'):
        with pytest.raises(UserError, match='Another process runs --mode=train'), lock(tmp_path, 'train'):
            pass
        with lock(tmp_path, 'eval'):
            pass
    with lock(tmp_path, 'train'):
        pass


def test_a_lock_leaves_no_file_and_holds_although_files_come_and_go(tmp_path, monkeypatch):
    """Eight threads add to a number that only who holds the lock may touch; each removes the file when it is done."""
    monkeypatch.setattr('cfg.runtime.files.time', Mock(sleep=lambda _: time.sleep(0.001)))
    held, most, total = 0, 0, 0

    def work():
        nonlocal held, most, total
        for _ in range(25):
            with lock(tmp_path, 'eval', wait=True):
                held += 1
                most = max(most, held)
                before = total
                time.sleep(0.0001)
                total = before + 1
                held -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, total) == (1, 200)
    assert not any(tmp_path.iterdir())


def test_a_lock_holds_where_files_have_no_number_that_stays(tmp_path, monkeypatch):
    monkeypatch.setattr('cfg.runtime.files.os.path.samestat', lambda *_: False)
    with lock(tmp_path, 'train'), pytest.raises(UserError, match='Another process runs'), lock(tmp_path, 'train'):
        pass
    assert not any(tmp_path.iterdir())


def test_a_bucket_that_does_not_answer_is_one_sentence(tmp_path):
    expected = r'gs://b/x cannot be reached \(RuntimeError: HTTP 403\): check'
    with pytest.raises(UserError, match=expected), reaching('gs://b/x'):
        raise RuntimeError('HTTP 403\nmore')
    with pytest.raises(UserError, match='as it is'), reaching('gs://b/x'):
        raise UserError('as it is')
    with pytest.raises(RuntimeError), reaching(tmp_path):  # a disk has kinds of its own, which others know
        raise RuntimeError('HTTP 403')
