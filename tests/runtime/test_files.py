import json
import os
from unittest.mock import Mock

import pytest

from cfg.evaluation.rows import append, repair
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock, reaching, write_whole


@pytest.mark.parametrize('call', ['fsync', 'chmod', 'replace'])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / 'a' / 'file'
    write_whole(path, b'old')
    monkeypatch.setattr(os, call, Mock(side_effect=OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'):
        write_whole(path, b'new')
    assert path.read_bytes() == b'old'
    assert [p.name for p in path.parent.iterdir()] == ['file']


def test_a_lock_is_held_once_and_let_go(tmp_path):
    with lock(tmp_path, 'train'):
        with pytest.raises(UserError, match='Another process runs --mode=train'), lock(tmp_path, 'train'):
            pass
        with lock(tmp_path, 'eval'):
            pass
    with lock(tmp_path, 'train'):
        pass


def test_results_survive_a_cut_at_every_byte(tmp_path):
    """Whatever part of the last line was written, whole rows stay and the next row lands on a line of its own."""
    rows = [{'step': 1, 'w': 0.5}, {'step': 2, 'w': 1.0}]
    path = tmp_path / 'results.jsonl'
    assert repair(path) == []
    path.write_bytes(b'{"step": 0}\n\n{"broken\n')  # what an editor or a power cut may leave
    assert repair(path) == [{'step': 0}]
    assert path.read_bytes() == b'{"step": 0}\n'
    path.unlink()
    for row in rows:
        append(path, row)
    content = path.read_bytes()
    first = content.index(b'\n') + 1
    for end in range(first, len(content) + 1):
        path.write_bytes(content[:end])
        kept = repair(path)
        assert kept == rows[: 2 if end >= len(content) - 1 else 1]
        append(path, {'step': 3})
        assert [json.loads(line) for line in path.read_text().splitlines()] == [*kept, {'step': 3}]


def test_a_bucket_that_does_not_answer_is_one_sentence(tmp_path):
    expected = r'gs://b/x cannot be reached \(RuntimeError: HTTP 403\): check'
    with pytest.raises(UserError, match=expected), reaching('gs://b/x'):
        raise RuntimeError('HTTP 403\nmore')
    with pytest.raises(UserError, match='as it is'), reaching('gs://b/x'):
        raise UserError('as it is')
    with pytest.raises(RuntimeError), reaching(tmp_path):  # a disk has kinds of its own, which others know
        raise RuntimeError('HTTP 403')
