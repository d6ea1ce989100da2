"""Heartbeats and the eye on them, with stand-ins for the other processes, a fake end of this one and a fake clock."""

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from cfg.runtime import beats, watch
from cfg.runtime.beats import Beat, path_of
from cfg.runtime.errors import UserError
from cfg.runtime.progress import Progress
from cfg.runtime.watch import STATUS_START_AGAIN, Limits, Watch

INTERVAL = Limits(1.0, 1.0).interval


class Ended(list):
    """Collects exit statuses in the place of os._exit."""

    def __call__(self, status):
        self.append(status)


@pytest.fixture(name='ended')
def ended_fixture():
    return Ended()


class Clock:
    """In the place of the module `time` and of the threads: time passes when somebody sleeps, and every eye looks."""

    def __init__(self):
        self.now, self.eyes = float(int(time.time())), []

    def monotonic(self):
        return self.now

    time = monotonic

    def sleep(self, seconds):
        while seconds > 0:
            self.now += min(seconds, INTERVAL)
            seconds -= INTERVAL
            for eye in self.eyes:
                if not eye._done.is_set():
                    eye.beat()
                    eye.look()


@pytest.fixture(name='clock', autouse=True)
def clock_fixture(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watch, 'time', clock)
    monkeypatch.setattr(beats, 'time', clock)
    monkeypatch.setattr(Watch, '_run', lambda eye: clock.eyes.append(eye))
    return clock


def make(workdir, ended, *, index=0, count=2, start=60.0, hang=600.0, interval=INTERVAL, status_of=lambda error: 2):
    limits = Limits(start, hang, interval)
    return Watch(workdir, 'train', (index, count), limits, status_of=status_of, leave=ended)


ELSEWHERE = {'host': 'elsewhere', 'born': 'another boot/pid:[1]/5'}


def other(workdir, index=1, **fields):
    """The beat of another process of run 'r': by default alive, with the pid of this one."""
    now = watch.time.time()
    beat = Beat.of_this_process('train', index, 2).__dict__ | {'run': 'r', 'state': 'running', 'started': now}
    beat |= {'time': now, 'beats': 1, 'moves': 1} | fields
    path = path_of(workdir, 'train', index)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(beat))
    return Beat(**beat)


def dead_pid():
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def own(workdir, index=0):
    return beats.read(path_of(workdir, 'train', index))


def test_the_beat_says_where_the_work_is(tmp_path, ended, clock):
    with make(tmp_path, ended, count=1) as eye:
        assert own(tmp_path).state == 'starting'
        eye.joined(0, 1, 'r')
        Progress('train', 10, unit='step').update(4)
        first = own(tmp_path).beats
        clock.sleep(INTERVAL)
        beat = own(tmp_path)
        assert beat.state == 'running'
        assert beat.beats > first
        assert beat.work == {'what': 'train', 'done': 4, 'total': 10, 'unit': 'step', 'rate': None}
        assert f'pid {os.getpid()}): running, train 4/10 steps, 0:00 ago' in beat.describe(clock.now)
    assert own(tmp_path).state == 'finished'
    assert not ended


@pytest.mark.parametrize('state', ['running', 'starting'])
def test_a_process_that_is_gone_ends_this_one(tmp_path, ended, clock, capsys, state):
    other(tmp_path, pid=dead_pid(), state=state, work={'what': 'train', 'done': 57, 'total': 90, 'unit': 'step'})
    with make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        clock.sleep(INTERVAL)
        assert ended == [STATUS_START_AGAIN]
    error = capsys.readouterr().err
    assert 'error: process 1 (' in error
    assert 'is gone (last seen train 57/90 steps)' in error
    assert own(tmp_path).state == 'finished'  # what the end of the block wrote, as nothing really ended here


def test_a_thread_looks_and_ends_this_process(tmp_path, monkeypatch):
    """With the clock, and the thread."""
    monkeypatch.undo()
    over = threading.Event()
    other(tmp_path, pid=dead_pid())
    with make(tmp_path, lambda status: over.set(), interval=0.01) as eye:
        eye.joined(0, 2, 'r')
        assert over.wait(300)


def test_a_process_of_another_host_is_known_by_its_silence(tmp_path, ended, clock, capsys):
    other(tmp_path, **ELSEWHERE, pid=1)
    with make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        for beats in range(2, 80):  # for longer than that it speaks
            other(tmp_path, **ELSEWHERE, pid=1, beats=beats)
            clock.sleep(INTERVAL)
        clock.sleep(60.0 - INTERVAL)
        assert not ended
        clock.sleep(2 * INTERVAL)
        assert ended == [STATUS_START_AGAIN]
    assert 'process 1 (elsewhere, pid 1) is gone' in capsys.readouterr().err


def test_the_reason_of_another_process_is_said_here(tmp_path, ended, clock, capsys):
    other(tmp_path, state='failed', status=2, reason='data.dir is empty')
    with make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        clock.sleep(2 * INTERVAL)
        assert ended == [2]
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
def test_nothing_is_wrong_with_these(tmp_path, ended, clock, fields):
    other(tmp_path, **fields)
    with make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        clock.sleep(12 * INTERVAL)
        assert not ended


def test_a_run_that_hangs_ends_and_names_who_is_behind(tmp_path, ended, clock, capsys):
    other(tmp_path, work={'what': 'train', 'done': 3, 'total': 9, 'unit': 'step'})
    with make(tmp_path, ended, hang=60.0) as eye:
        eye.joined(0, 2, 'r')
        progress = Progress('train', 9, unit='step')
        for done in (4, 5):
            clock.sleep(50.0)
            progress.update(done)
        clock.sleep(60.0)
        assert not ended
        clock.sleep(INTERVAL)
        assert ended == [STATUS_START_AGAIN]
    assert 'No process has got on for 60 s; process 1 (' in capsys.readouterr().err


def test_one_that_waits_for_another_that_works_does_not_hang(tmp_path, ended, clock):
    with make(tmp_path, ended, hang=20.0) as eye:
        eye.joined(0, 2, 'r')
        for moves in range(30):
            other(tmp_path, moves=moves, beats=moves)
            clock.sleep(INTERVAL)
        clock.sleep(20.0 - INTERVAL)
        assert not ended
        clock.sleep(2 * INTERVAL)
        assert ended == [STATUS_START_AGAIN]


def test_who_has_not_started_is_named(tmp_path, ended, clock, capsys):
    other(tmp_path, index=2, state='starting')
    other(tmp_path, index=1, state='starting', started=clock.now - 1000)  # of the day before
    other(tmp_path, index=4, state='starting', pid=dead_pid())  # it started, and died
    with make(tmp_path, ended, count=5, start=60.0):
        clock.sleep(60.0)
        assert not ended
        clock.sleep(INTERVAL)
        assert ended == [STATUS_START_AGAIN]
    assert 'After 60 s of 5 processes, number 1, 3, 4 has not started' in capsys.readouterr().err


def test_where_only_jax_knows_the_number_those_that_started_are_named(tmp_path, ended, clock, capsys):
    with make(tmp_path, ended, index=None, count=None, start=60.0):
        clock.sleep(60.0 + INTERVAL)
        assert ended == [STATUS_START_AGAIN]
    assert f'some processes have not started; these have: {socket.gethostname()}' in capsys.readouterr().err


@pytest.mark.parametrize('count', [1, None])  # None: only JAX would have known
def test_what_is_refused_before_it_is_joined_leaves_no_beat(tmp_path, ended, count):
    with pytest.raises(UserError), make(tmp_path, ended, index=count and 0, count=count):
        raise UserError('no such device')
    assert beats.read_all(tmp_path, 'train') == []
    assert not ended


def test_a_failure_is_written_down_for_the_others_with_its_status(tmp_path, ended):
    other(tmp_path, index=0)
    with pytest.raises(UserError), make(tmp_path, ended, index=1) as eye:
        eye.joined(1, 2, 'r')
        raise UserError('the disk is away')
    assert ended == [2]
    beat = own(tmp_path, 1)
    assert (beat.state, beat.status, beat.reason) == ('failed', 2, 'the disk is away')


def test_the_first_process_leaves_when_the_others_could_read_why(tmp_path, ended, clock):
    other(tmp_path)
    begin = clock.now
    with pytest.raises(UserError), make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        raise UserError('x')
    assert ended == [2]
    assert clock.now - begin == pytest.approx(watch.PATIENCE * INTERVAL, abs=0.2)
    ended.clear()
    other(tmp_path, state='failed', status=2)
    begin = clock.now
    with pytest.raises(UserError), make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        raise UserError('x')
    assert ended == [2]
    assert clock.now == begin


def test_a_fault_of_the_program_shows_its_traceback(tmp_path, ended, capsys):
    with pytest.raises(KeyError), make(tmp_path, ended, index=1, status_of=lambda error: None) as eye:
        eye.joined(1, 2, 'r')
        other(tmp_path, index=0)
        raise KeyError('z')
    assert ended == [1]
    assert 'Traceback' in capsys.readouterr().err


class JaxRuntimeError(RuntimeError):
    """What JAX calls a broken connection."""


@pytest.mark.parametrize(('fields', 'seconds'), [(ELSEWHERE, 64.0), ({'pid': 2**22 + 5}, INTERVAL)])
def test_who_broke_a_connection_is_named_when_it_is_known(tmp_path, clock, capsys, fields, seconds):
    other(tmp_path, index=2, **fields)
    begin, known = clock.now, {}

    def leave(index):
        return lambda status: known.setdefault(index, (status, clock.now - begin))

    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(make(tmp_path, leave(i), index=i, count=3, status_of=lambda error: None))
            for i in range(2)
        )
        first.joined(0, 3, 'r')
        second.joined(1, 3, 'r')
        error = JaxRuntimeError('connection closed by peer')
        second.__exit__(type(error), error, None)
    assert known[1] == (STATUS_START_AGAIN, pytest.approx(seconds, abs=INTERVAL))
    assert known[0][0] == STATUS_START_AGAIN
    assert len(re.findall(r'error: process 2 \(.*\) is gone', capsys.readouterr().err)) == 2


class Fleet:
    """The processes of one run, each with an eye of its own, and how they ended."""

    def __init__(self, workdir, count):
        self.ended = {}
        self.eyes = [
            make(workdir, functools.partial(self.ended.setdefault, index), index=index, count=count)
            for index in range(count)
        ]
        for eye in self.eyes:
            eye.__enter__()
        for index, eye in enumerate(self.eyes):
            eye._thread.join()
            eye.joined(index, count, 'r')

    def lose(self, clock, workdir, index, **fields):
        """From now on a process is silent; `fields` are what its last beat says."""
        self.eyes[index]._done.set()
        clock.eyes.remove(self.eyes[index])
        other(workdir, index, **fields)


def test_a_round_reads_each_file_but_the_first_once(tmp_path, clock, monkeypatch):
    """With n processes 2 (n - 1) files, and not n (n - 1)."""
    fleet = Fleet(tmp_path, 64)
    read, reads = beats.read, []

    def counted(path):
        reads.append(path.name)
        return read(path)

    monkeypatch.setattr(beats, 'read', counted)
    clock.sleep(INTERVAL)
    assert len(reads) == 126
    assert reads.count('train.0.json') == 63
    assert not fleet.ended


@pytest.mark.parametrize(
    ('fields', 'status', 'sentence'),
    [
        ({'pid': 2**22 + 5}, 75, r'process 5 \(\S+, pid \d+\) is gone \(last seen at the start\), and this process'),
        ({'state': 'failed', 'status': 2, 'reason': 'no room'}, 2, r'process 5 \(.*\) ended \(no room\), and this'),
    ],
)
def test_all_say_who_is_lost_as_the_first_one_found_it(tmp_path, clock, capsys, fields, status, sentence):
    fleet = Fleet(tmp_path, 8)
    fleet.lose(clock, tmp_path, 5, **fields)
    clock.sleep(watch.PATIENCE * INTERVAL)
    assert fleet.ended == dict.fromkeys([1, 2, 3, 4, 6, 7, 0], status)
    assert list(fleet.ended)[-1] == 0  # the first, with JAX's coordinator, leaves last
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 7
    assert len(set(said)) == 1
    assert re.match(f'error: {sentence}', said[0])
    beat = own(tmp_path)
    assert (beat.state, beat.status, beat.for_all) == ('failed', status, True)
    assert f'error: {beat.reason}' == said[0]


def test_the_others_see_by_themselves_that_the_first_is_lost(tmp_path, clock, capsys):
    fleet = Fleet(tmp_path, 4)
    fleet.lose(clock, tmp_path, 0, **ELSEWHERE)
    clock.sleep(60.0)
    assert not fleet.ended
    clock.sleep(2 * INTERVAL)
    assert fleet.ended == dict.fromkeys([1, 2, 3], STATUS_START_AGAIN)
    assert capsys.readouterr().err.count('error: process 0 (elsewhere, ') == 3


def test_all_end_when_none_gets_on(tmp_path, clock, capsys):
    fleet = Fleet(tmp_path, 4)
    clock.sleep(600.0)
    assert not fleet.ended
    clock.sleep(watch.PATIENCE * INTERVAL)
    assert fleet.ended == dict.fromkeys(range(4), STATUS_START_AGAIN)
    assert len(set(capsys.readouterr().err.splitlines())) == 1


def test_a_stop_is_no_failure(tmp_path, ended):
    with pytest.raises(SystemExit), make(tmp_path, ended) as eye:
        eye.joined(0, 2, 'r')
        other(tmp_path)
        raise SystemExit(143)
    assert not ended
    assert (own(tmp_path).state, own(tmp_path).status) == ('stopped', 143)


def test_beats_that_cannot_be_written_or_read_cost_nothing(tmp_path, ended, clock):
    with make(tmp_path, ended, count=1) as eye:
        eye.joined(0, 1, 'r')
        path_of(tmp_path, 'train', 7).write_text('{"beats": ')
        assert [beat.process for beat in beats.read_all(tmp_path)] == [0]
        shutil.rmtree(tmp_path / beats.FOLDER)
        clock.sleep(4 * INTERVAL)
    assert not ended


def test_fewer_processes_than_before_leave_no_old_beats(tmp_path, ended):
    other(tmp_path, index=3, run='old')
    with make(tmp_path, ended, count=1) as eye:
        eye.joined(0, 1, 'r')
    assert [beat.process for beat in beats.read_all(tmp_path)] == [0]


def test_the_folder_of_the_first_process_is_seen_or_not(tmp_path, ended, clock):
    with make(tmp_path, ended, index=1) as eye:
        eye.joined(1, 2, 'r')
        begin = clock.now
        assert not eye.sees_first(timeout=10.0)
        assert clock.now - begin >= 10.0
        other(tmp_path, index=0)
        assert eye.sees_first(timeout=0.1)
