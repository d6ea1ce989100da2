"""Heartbeats and the eye on them, with stand-ins for the other processes and a fake end of this one."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from cfg import watch
from cfg.errors import UserError
from cfg.progress import Progress
from cfg.watch import STATUS_START_AGAIN, Watch, describe, path_of, read_beats

INTERVAL = 0.03


class Ended(list):
    """Collects exit statuses in the place of os._exit."""

    def __call__(self, status):
        self.append(status)

    def wait(self, timeout=10.0):
        deadline = time.monotonic() + timeout
        while not self and time.monotonic() < deadline:
            time.sleep(0.005)
        return self[0] if self else None


@pytest.fixture(name='ended')
def ended_fixture():
    return Ended()


def make(workdir, ended, *, index=0, count=2, start_limit=60.0, limit=60.0, silence=60.0, status_of=lambda error: 2):
    return Watch(
        workdir,
        'train',
        index=index,
        count=count,
        start_limit=start_limit,
        limit=limit,
        status_of=status_of,
        interval=INTERVAL,
        silence=silence,
        leave=ended,
    )


def other(workdir, index=1, **fields):
    """The beat of another process of run 'r': by default alive, with the pid of this one."""
    beat = {
        'what': 'train',
        'process': index,
        'processes': 2,
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'pids': watch._pid_namespace(),
        'run': 'r',
        'state': 'running',
        'started': time.time(),
        'time': time.time(),
        'beats': 1,
        'moves': 1,
    } | fields
    path = path_of(workdir, 'train', index)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(beat))
    return beat


def dead_pid():
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def own(workdir, index=0):
    return next(beat for beat in read_beats(workdir) if beat['process'] == index)


def test_the_beat_says_where_the_work_is(tmp_path, ended, capsys):
    with make(tmp_path, ended, count=1) as eye:
        assert own(tmp_path)['state'] == 'starting'
        eye.joined(0, 1, 'r')
        Progress('train', 10, unit='step').update(4)
        first = own(tmp_path)['beats']
        deadline = time.monotonic() + 10
        while own(tmp_path).get('work') is None and time.monotonic() < deadline:
            time.sleep(INTERVAL)
        beat = own(tmp_path)
        assert beat['state'] == 'running'
        assert beat['beats'] >= first
        assert beat['work'] == {'what': 'train', 'done': 4, 'total': 10, 'unit': 'step', 'rate': None}
        assert f'pid {os.getpid()}): running, train 4/10 steps, 0:0' in describe(beat, time.time())
    assert own(tmp_path)['state'] == 'finished'
    assert not ended


@pytest.mark.parametrize('state', ['running', 'starting'])
def test_a_process_that_is_gone_ends_this_one(tmp_path, ended, capsys, state):
    other(tmp_path, pid=dead_pid(), state=state, work={'what': 'train', 'done': 57, 'total': 90, 'unit': 'step'})
    with make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        assert ended.wait() == STATUS_START_AGAIN
    error = capsys.readouterr().err
    assert 'error: process 1 (' in error
    assert 'is gone (last seen train 57/90 steps)' in error
    assert own(tmp_path)['state'] == 'finished'  # what the end of the block wrote, as nothing really ended here


def test_a_process_of_another_host_is_known_by_its_silence(tmp_path, ended, capsys):
    other(tmp_path, host='elsewhere', pid=1)
    with make(tmp_path, ended, silence=0.5) as eye:
        eye.joined(0, 2, 'r')
        for beats in range(2, 30):  # for longer than that it speaks
            other(tmp_path, host='elsewhere', pid=1, beats=beats)
            time.sleep(INTERVAL)
        assert not ended
        assert ended.wait() == STATUS_START_AGAIN
    assert 'process 1 (elsewhere, pid 1) is gone' in capsys.readouterr().err


def test_the_reason_of_another_process_is_said_here(tmp_path, ended, capsys):
    other(tmp_path, state='failed', status=2, reason='data.dir is empty')
    with make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        assert ended.wait() == 2
    assert 'ended (data.dir is empty), and this process ends with it' in capsys.readouterr().err


@pytest.mark.parametrize(
    'fields',
    [
        {'state': 'finished', 'status': 0, 'pid': 2**22 + 5},
        {'state': 'stopped', 'status': 0, 'pid': 2**22 + 5},
        {'run': 'an earlier one', 'state': 'failed', 'status': 2, 'reason': 'x'},
        {},
    ],
)
def test_nothing_is_wrong_with_these(tmp_path, ended, fields):
    other(tmp_path, **fields)
    with make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        time.sleep(12 * INTERVAL)
        assert not ended


def test_a_run_that_hangs_ends_and_names_who_is_behind(tmp_path, ended, capsys):
    other(tmp_path, work={'what': 'train', 'done': 3, 'total': 9, 'unit': 'step'})
    with make(tmp_path, ended, limit=0.6) as eye:
        eye.joined(0, 2, 'r')
        progress = Progress('train', 9, unit='step')
        for done in (4, 5):
            time.sleep(0.3)
            progress.update(done)
        assert not ended
        assert ended.wait() == STATUS_START_AGAIN
    assert 'No process has got on for 1 s; process 1 (' in capsys.readouterr().err


def test_one_that_waits_for_another_that_works_does_not_hang(tmp_path, ended):
    with make(tmp_path, ended, limit=0.4) as eye:
        eye.joined(0, 2, 'r')
        for moves in range(30):
            other(tmp_path, moves=moves, beats=moves)
            time.sleep(INTERVAL)
        assert not ended
        assert ended.wait() == STATUS_START_AGAIN


def test_who_has_not_started_is_named(tmp_path, ended, capsys):
    other(tmp_path, index=2, state='starting')
    other(tmp_path, index=1, state='starting', started=time.time() - 1000)  # of the day before
    with make(tmp_path, ended, count=4, start_limit=0.2):
        assert ended.wait() == STATUS_START_AGAIN
    assert 'After 0 s of 4 processes, number 1, 3 has not started' in capsys.readouterr().err


def test_where_only_jax_knows_the_number_those_that_started_are_named(tmp_path, ended, capsys):
    with make(tmp_path, ended, index=None, count=None, start_limit=0.2):
        assert ended.wait() == STATUS_START_AGAIN
    assert f'some processes have not started; these have: {socket.gethostname()}' in capsys.readouterr().err


def test_a_failure_is_written_down_for_the_others_with_its_status(tmp_path, ended):
    other(tmp_path, index=0)
    with pytest.raises(UserError), make(tmp_path, ended, index=1) as eye:
        eye.joined(1, 2, 'r')
        raise UserError('the disk is away')
    assert ended == [2]
    beat = own(tmp_path, 1)
    assert (beat['state'], beat['status'], beat['reason']) == ('failed', 2, 'the disk is away')


def test_the_first_process_leaves_when_the_others_could_read_why(tmp_path, ended):
    other(tmp_path)
    begin = time.monotonic()
    with pytest.raises(UserError), make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        raise UserError('x')
    assert ended == [2]
    assert time.monotonic() - begin >= watch.PATIENCE * INTERVAL
    ended.clear()
    other(tmp_path, state='failed', status=2)
    with pytest.raises(UserError), make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        raise UserError('x')
    assert ended == [2]


def test_a_fault_of_the_program_shows_its_traceback(tmp_path, ended, capsys):
    with pytest.raises(KeyError), make(tmp_path, ended, index=1, status_of=lambda error: None) as eye:
        eye.joined(1, 2, 'r')
        other(tmp_path, index=0)
        raise KeyError('z')
    assert ended == [1]
    assert 'Traceback' in capsys.readouterr().err


def test_a_stop_is_no_failure(tmp_path, ended):
    with pytest.raises(SystemExit), make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        other(tmp_path)
        raise SystemExit(143)
    assert not ended
    assert (own(tmp_path)['state'], own(tmp_path)['status']) == ('stopped', 143)


def test_beats_that_cannot_be_written_or_read_cost_nothing(tmp_path, ended):
    with make(tmp_path, ended, count=1) as eye:
        eye.joined(0, 1, 'r')
        path_of(tmp_path, 'train', 7).write_text('{"beats": ')
        assert [beat['process'] for beat in read_beats(tmp_path)] == [0]
        for path in (tmp_path / watch.FOLDER).iterdir():
            path.unlink()
        (tmp_path / watch.FOLDER).rmdir()
        time.sleep(4 * INTERVAL)
    assert not ended


def test_fewer_processes_than_before_leave_no_old_beats(tmp_path, ended):
    other(tmp_path, index=3, run='old')
    with make(tmp_path, ended, count=1) as eye:
        eye.joined(0, 1, 'r')
    assert [beat['process'] for beat in read_beats(tmp_path)] == [0]


def test_the_folder_of_the_first_process_is_seen_or_not(tmp_path, ended):
    with make(tmp_path, ended, index=1) as eye:
        eye.joined(1, 2, 'r')
        assert not eye.sees_first(timeout=0.1)
        other(tmp_path, index=0)
        assert eye.sees_first(timeout=0.1)
