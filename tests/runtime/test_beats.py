"""Whether a process is still there, from what it wrote and what the system says of its pid."""

import os
import subprocess
import sys
import time

import pytest

from cfg.runtime import beats
from cfg.runtime.beats import SILENCE, Beat, birth

DAYS = 3 * 24 * 3600.0


@pytest.fixture(name='beat')
def beat_fixture():
    """What this process would write now."""
    beat = Beat.of_this_process('train', 0, 1)
    beat.state = 'running'
    return beat


@pytest.fixture(name='child')
def child_fixture():
    """A process that waits until it is killed."""
    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate()


def test_a_beat_is_read_as_it_was_written(tmp_path, beat):
    beat.work = {'what': 'train', 'done': 1, 'total': 2, 'unit': 'step', 'rate': None}
    beat.write(tmp_path)
    assert beats.read_all(tmp_path) == [beat]


@pytest.mark.parametrize('content', ['', '{', '[]', '3', '{"beats": 3}', '{"what": "train", "no such field": 1}'])
def test_what_is_no_beat_is_left_out(tmp_path, content):
    path = beats.path_of(tmp_path, 'train', 0)
    path.parent.mkdir()
    path.write_text(content)
    assert beats.read_all(tmp_path) == []


def test_a_process_that_works_runs(beat):
    assert not beat.is_gone(0.0)
    assert ': running, at the start, 0:05 ago' in beat.describe(beat.time + 5)


def test_a_new_process_with_an_old_pid_is_another_one(beat, child):
    """What was running three days ago does not run because its pid is in use again."""
    beat.pid = child.pid
    assert beat.is_gone(0.0)
    assert ': gone, ' in beat.describe(beat.time + DAYS)
    beat.born = birth(child.pid)
    assert not beat.is_gone(0.0)


@pytest.mark.parametrize('part', [0, 1])
def test_a_pid_of_another_boot_or_container_says_nothing(beat, part):
    parts = beat.born.split('/')
    parts[part] = 'another'
    beat.born = '/'.join(parts)
    assert not beat.is_gone(SILENCE)
    assert ': gone, ' in beat.describe(beat.time + DAYS)


def test_where_the_system_does_not_tell_silence_decides(beat, monkeypatch):
    monkeypatch.setattr(beats, 'birth', lambda pid: '')
    beat.born = ''
    assert not beat.is_gone(SILENCE)
    assert beat.is_gone(SILENCE + 1)


@pytest.mark.parametrize('waited', [False, True])
def test_a_dead_process_is_gone_at_once(beat, child, waited):
    beat.pid, beat.born = child.pid, birth(child.pid)
    child.kill()
    if waited:
        child.wait()
    else:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert beat.is_gone(0.0)


def test_an_old_beat_is_never_called_running(beat):
    """Its process is there, but stopped, say."""
    assert ': silent, at the start, 72:00:00 ago' in beat.describe(beat.time + DAYS)
    assert ': running, ' in beat.describe(beat.time + SILENCE)


def test_the_birth_of_a_process_stays_and_is_its_own(child):
    first = birth(os.getpid())
    time.sleep(0.02)
    assert birth(os.getpid()) == first
    assert birth(child.pid) != first
    assert birth(2**22 + 5) == ''
