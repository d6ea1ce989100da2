"""Heartbeats: a file that says where each process stands, and an eye on those of the others, so that all fail together.

`heartbeats/<what>.<process>.json` in the workdir is rewritten every few seconds. When a process fails, falls silent or
hangs, the others read it there, say so and end. Imports no JAX: it must work while JAX waits for a dead process.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfg.runtime import progress
from cfg.runtime.errors import UserError

FOLDER = 'heartbeats'
INTERVAL = 2.0  # seconds between beats
SILENCE = 60.0  # without a beat of a process on another host, after which it counts as dead
PATIENCE = 3  # intervals in which the cause of an error may show in the files of the others

# Exit status of a process that ends because another one of its run died or hangs: the same command goes on.
STATUS_START_AGAIN = 75

Beat = dict[str, Any]


def path_of(workdir: Path, what: str, index: int) -> Path:
    """The heartbeat file of a process."""
    return workdir / FOLDER / f'{what}.{index}.json'


def read_beats(workdir: Path) -> list[Beat]:
    """The newest beat of every process that ever ran in a workdir, by name; what cannot be read is left out."""
    beats = [_read(path) for path in sorted((workdir / FOLDER).glob('*.json'))]
    return [beat for beat in beats if beat is not None]


def _read(path: Path) -> Beat | None:
    try:
        beat = json.loads(path.read_text())
    except (OSError, ValueError):  # not there yet, or a file system that shows it half-written
        return None
    return beat if isinstance(beat, dict) and 'beats' in beat else None


class Watch:
    """Writes the heartbeat of this process, and ends the process when another one of its run is lost.

    Args:
      workdir: that all processes see.
      what: the mode, and the part of the work; no other run in this workdir has the same.
      index, count: the number of this process, and of all; None while only JAX will know.
      start_limit: seconds for all processes to start.
      limit: seconds without any progress of any process, after which the run counts as hung.
      status_of: prints what went wrong for the user and gives the exit status; None if it is not for the user.
      interval, silence: seconds, see INTERVAL and SILENCE.
      leave: ends the process.
    """

    def __init__(
        self,
        workdir: Path,
        what: str,
        *,
        index: int | None,
        count: int | None,
        start_limit: float,
        limit: float,
        status_of: Callable[[BaseException], int | None],
        interval: float = INTERVAL,
        silence: float = SILENCE,
        leave: Callable[[int], Any] | None = None,
    ):
        self._workdir, self._what = workdir, what
        self._index, self._count = index, count
        self._start_limit, self._limit = start_limit, limit
        self._status_of, self._interval, self._silence = status_of, interval, silence
        self._leave = _exit_now if leave is None else leave
        self._lock, self._done = threading.Lock(), threading.Event()
        self._seen: dict[int, tuple[int, int, float]] = {}
        self._moved = self._began = time.monotonic()
        self._own: Beat = {
            'what': what,
            'process': index or 0,
            'processes': count or 1,
            'host': socket.gethostname(),
            'pid': os.getpid(),
            'pids': _pid_namespace(),
            'run': None,
            'state': 'starting',
            'started': time.time(),
            'beats': 0,
            'moves': 0,
        }
        self._thread = threading.Thread(target=self._run, name='watch', daemon=True)

    def __enter__(self) -> 'Watch':
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(progress.listening(self._hear))
        self._workdir.joinpath(FOLDER).mkdir(parents=True, exist_ok=True)
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        self._stack.close()
        if error is None or isinstance(error, SystemExit) or self._count in (None, 1):
            self._end('finished' if error is None else 'stopped' if isinstance(error, SystemExit) else 'failed', error)
            return
        self._fail(error)

    def joined(self, index: int, count: int, run: str) -> None:
        """All processes of the run are there: who this one is, and the name of the run."""
        with self._lock:
            old = path_of(self._workdir, self._what, self._own['process'])
            if self._index is None and index != self._own['process']:
                old.unlink(missing_ok=True)
            self._index, self._count = index, count
            self._own |= {'process': index, 'processes': count, 'run': run, 'state': 'running'}
            self._moved = time.monotonic()
        if index == 0:  # left by an earlier run on more processes
            for path in self._workdir.joinpath(FOLDER).glob(f'{self._what}.*.json'):
                if (beat := _read(path)) and beat['process'] >= count:
                    path.unlink(missing_ok=True)
        self.beat()

    def sees_first(self, timeout: float = 30.0) -> bool:
        """Whether the first process's file is seen here, that is, whether both were given the same folder."""
        deadline = time.monotonic() + timeout
        while True:
            beat = _read(path_of(self._workdir, self._what, 0))
            if beat is not None and beat['run'] == self._own['run']:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)

    def _hear(self, standing: progress.Standing) -> None:
        with self._lock:
            self._own['work'] = standing._asdict()
            self._own['moves'] += 1
            self._moved = time.monotonic()

    def _run(self) -> None:
        while not self._done.wait(self._interval):
            self.beat()
            self.look()

    def look(self) -> None:
        """Looks at the others once, and ends this process if one of them is lost."""
        reason = self._trouble()
        if reason is not None and not self._done.is_set():
            status, sentence = reason
            self._end('failed', sentence, status=status)
            print(f'error: {sentence}', file=sys.stderr, flush=True)
            self._leave(status)

    def _trouble(self) -> tuple[int, str] | None:
        """What is wrong with another process, as (exit status, sentence)."""
        if self._own['run'] is None:
            return self._not_all_there()
        others = [self._beat_of(index) for index in range(self._count or 1) if index != self._index]
        for beat, silent in others:
            who = _name(beat)
            if beat['state'] in ('failed', 'stopped') and beat.get('status') and silent >= self._interval:
                return beat['status'], f'{who} ended ({beat.get("reason", "")}), and this process ends with it.'
            if beat['state'] in ('starting', 'running') and _is_gone(beat, silent, self._silence):
                return STATUS_START_AGAIN, (
                    f'{who} is gone (last seen {_place(beat)}), and this process ends with it: start the same command '
                    'again, and it goes on from what is saved.'
                )
        if self._count != 1 and time.monotonic() - self._moved > self._limit:
            all_beats = [self._own, *(beat for beat, _ in others)]
            behind = min(all_beats, key=_done_units)
            return STATUS_START_AGAIN, (
                f'No process has got on for {self._limit:.0f} s; {_name(behind)} is the furthest behind '
                f'({_place(behind)}), so it hangs or its data do: look there, and start the same command again.'
            )
        return None

    def _not_all_there(self) -> tuple[int, str] | None:
        if self._count == 1 or time.monotonic() - self._began <= self._start_limit:
            return None
        recent = self._own['started'] - self._start_limit
        there = {
            beat['process']: beat
            for beat in read_beats(self._workdir)
            if beat['what'] == self._what and beat['started'] > recent
        }
        if self._count is None:
            hosts = ', '.join(sorted(beat['host'] for beat in there.values()))
            what = f'some processes have not started; these have: {hosts}'
        else:
            missing = [str(index) for index in range(self._count) if index not in there]
            what = f'of {self._count} processes, number {", ".join(missing) or "?"} has not started'
        return STATUS_START_AGAIN, (
            f'After {self._start_limit:.0f} s {what}: see to it that every one is started with this --workdir, which '
            'all must see, and with the same --coordinator, and start all of them again.'
        )

    def _beat_of(self, index: int) -> tuple[Beat, float]:
        """The newest beat of another process of this run, and for how long it has been the newest."""
        beat = _read(path_of(self._workdir, self._what, index))
        if beat is None or beat['run'] != self._own['run']:
            beat = {'process': index, 'host': '?', 'pid': -1, 'state': 'starting'} | {
                'beats': -1,
                'moves': 0,
            }
        now = time.monotonic()
        beats, moves, since = self._seen.get(index, (None, None, now))
        if beats != beat['beats']:
            since = now
        if moves != beat['moves']:
            self._moved = now  # others may work while this one waits for them
        self._seen[index] = (beat['beats'], beat['moves'], since)
        return beat, now - since

    def _fail(self, error: BaseException) -> None:
        """Ends this process, and says why, so that the others end too; does not return in a real process."""
        status = self._status_of(error)
        if status is None:
            sys.excepthook(type(error), error, error.__traceback__)
            # A connection breaks when the process at its other end dies. Once that is known, which takes `silence`
            # where it was on another host, the thread ends this process and names it.
            broken = type(error).__name__ in ('JaxRuntimeError', 'XlaRuntimeError')
            time.sleep(PATIENCE * self._interval + (self._silence if broken else 0.0))
            status = STATUS_START_AGAIN if broken else 1
        self._end('failed', error, status=status)
        if self._index == 0:  # the others lose JAX's coordinator with this process: they first read why
            deadline = time.monotonic() + PATIENCE * self._interval
            while time.monotonic() < deadline and any(
                beat['state'] in ('starting', 'running') and not _is_gone(beat, silent, self._silence)
                for beat, silent in map(self._beat_of, range(1, self._count or 1))
            ):
                time.sleep(0.1)
        self._leave(status)

    def _end(self, state: str, reason: BaseException | str | None, *, status: int = 0) -> None:
        self._done.set()
        if isinstance(reason, SystemExit):
            status = reason.code if isinstance(reason.code, int) else 1
            reason = f'exit status {status}'
        elif isinstance(reason, BaseException):
            text = ' '.join(str(reason).split())[:500]
            reason = text if isinstance(reason, UserError) else f'{type(reason).__name__}: {text}'
        with self._lock:
            self._own |= {'state': state, 'status': status, 'reason': reason}
        self.beat()

    def beat(self) -> None:
        """Writes the file once."""
        with self._lock:
            self._own['beats'] += 1
            self._own['time'] = time.time()
            content, index = json.dumps(self._own), self._own['process']
        path = path_of(self._workdir, self._what, index)
        part = path.with_name(f'.{path.name}.{os.getpid()}')
        # A full disk, or a server that is away for a moment, is no reason to end; the others notice if it lasts.
        with contextlib.suppress(OSError):
            part.write_text(content)
            part.replace(path)


def describe(beat: Beat, now: float) -> str:
    """One line for people: who, in what state, where, how fast, how long ago."""
    age = now - beat['time']
    state = beat['state']
    if state in ('starting', 'running') and _is_gone(beat, age, SILENCE):
        state = 'gone'
    text = f'{beat["what"]}, {_name(beat)}: {state}, {_place(beat)}'
    rate = (beat.get('work') or {}).get('rate')
    if rate and state == 'running':
        text += f', {rate:.3g} {beat["work"]["unit"]}s/s'
    if state in ('failed', 'stopped') and beat.get('reason'):
        text += f' ({beat["reason"]})'
    return f'{text}, {progress.format_seconds(max(age, 0.0))} ago'


def _name(beat: Beat) -> str:
    return f'process {beat["process"]} ({beat["host"]}, pid {beat["pid"]})'


def _place(beat: Beat) -> str:
    work = beat.get('work')
    return f'{work["what"]} {work["done"]}/{work["total"]} {work["unit"]}s' if work else 'at the start'


def _done_units(beat: Beat) -> tuple[int, int]:
    return (beat.get('work') or {}).get('done', -1), beat['moves']


def _is_gone(beat: Beat, silent: float, limit: float) -> bool:
    """Whether a process that says it runs does not: known at once of one on this host, by its silence elsewhere."""
    here = socket.gethostname(), _pid_namespace()
    if (beat['host'], beat.get('pids')) == here and beat['pid'] > 0:
        try:
            os.kill(beat['pid'], 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        try:  # one that nobody has waited for yet is dead too
            return Path(f'/proc/{beat["pid"]}/stat').read_text().rpartition(')')[2].split()[0] in 'ZX'
        except OSError:
            pass
    return silent > limit


def _pid_namespace() -> str | None:
    """Containers on one host may each count their processes anew."""
    try:
        return str(Path('/proc/self/ns/pid').readlink())
    except OSError:
        return None


def _exit_now(status: int) -> None:
    """Ends the process without JAX's farewell, which would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
