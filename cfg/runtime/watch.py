"""Keeps an eye on the other processes of a run, so that all fail together.

Each process writes its heartbeat (`cfg/runtime/beats.py`) and reads that of the first one; the first one reads all.
What it finds wrong with one it writes into its own, where the others read it. So n processes read 2 (n - 1) files a
round. Imports no JAX: it must work while JAX waits for a dead process.
"""

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfg.runtime import beats, progress
from cfg.runtime.beats import Beat
from cfg.runtime.errors import UserError
from cfg.runtime.files import make_folder

# Intervals in which news reach all processes: the first one sees it (two), and then the others (two).
PATIENCE = 4

# Exit status of a process that ends because another one of its run died or hangs: the same command goes on.
STATUS_START_AGAIN = 75


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits say how long a watch waits, in seconds."""

    start: float  # for all processes to start
    hang: float  # without any progress of any process, after which the run counts as hung
    interval: float = 2.0  # between two beats
    silence: float = beats.SILENCE  # without a beat of a process on another host, after which it counts as dead


class Watch:
    """Writes the heartbeat of this process, and ends the process when another one of its run is lost.

    Args:
      workdir: that all processes see.
      what: the mode, and the part of the work; no other run in this workdir has the same.
      place: the number of this process, and of all; None while only JAX will know.
      status_of: prints what went wrong for the user and gives the exit status; None if it is not for the user.
      leave: ends the process.
    """

    def __init__(
        self,
        workdir: Path,
        what: str,
        place: tuple[int | None, int | None],
        limits: Limits,
        *,
        status_of: Callable[[BaseException], int | None],
        leave: Callable[[int], Any] | None = None,
    ):
        self._workdir, self._limits, self._status_of = workdir, limits, status_of
        self._index, self._count = place
        self._leave = _exit_now if leave is None else leave
        self._own = Beat.of_this_process(what, self._index or 0, self._count or 1)
        self._lock, self._writing, self._done = threading.Lock(), threading.Lock(), threading.Event()
        self._seen: dict[int, tuple[int, int, float]] = {}
        self._moved = self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name='watch', daemon=True)

    def __enter__(self) -> 'Watch':
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(progress.listening(self._hear))
        make_folder(self._workdir / beats.FOLDER)
        self._before = beats.read(self._path(self._own.process))
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        self._stack.close()
        if error is None:
            self._end('finished')
        elif isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else 1
            self._end('stopped', status, f'exit status {status}')
        elif self._count not in (None, 1):
            self._fail(error)
        elif isinstance(error, UserError) and self._own.work is None:
            self._take_back()
        else:
            self._end('failed', 0, _reason(error))

    def joined(self, index: int, count: int, run: str) -> None:
        """Says that all processes of the run are there: who this one is, and the name of the run."""
        with self._lock:
            if self._index is None and index != self._own.process:
                self._path(self._own.process).unlink(missing_ok=True)
            self._index, self._count = index, count
            self._own.process, self._own.processes = index, count
            self._own.run, self._own.state = run, 'running'
            self._moved = time.monotonic()
        if index == 0:  # left by an earlier run on more processes
            for beat in beats.read_all(self._workdir, self._own.what):
                if beat.process >= count:
                    self._path(beat.process).unlink(missing_ok=True)
        self.beat()

    def sees_first(self, timeout: float = 30.0) -> bool:
        """Tells whether the first process's file is seen here, that is, whether both were given the same folder."""
        deadline = time.monotonic() + timeout
        while True:
            beat = beats.read(self._path(0))
            if beat is not None and beat.run == self._own.run:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)

    def beat(self) -> None:
        """Writes the file once."""
        with self._writing:  # the last beat stays the last
            with self._lock:
                self._own.beats += 1
                self._own.time = time.time()
                beat = dataclasses.replace(self._own)
            # A full disk, or a server that is away for a moment, is no reason to end; the others notice if it lasts.
            with contextlib.suppress(OSError):
                beat.write(self._workdir)

    def look(self) -> None:
        """Looks at the others once, and ends this process if one of them is lost."""
        trouble = None if self._done.is_set() else self._trouble()
        if trouble is not None:
            status, sentence = trouble
            self._end('failed', status, sentence, for_all=True)
            progress.end_line()
            print(f'error: {sentence}', file=sys.stderr, flush=True)
            self._leave_last(status)

    def _run(self) -> None:
        while not self._done.wait(self._limits.interval):
            self.beat()
            self.look()

    def _hear(self, standing: progress.Standing) -> None:
        with self._lock:
            self._own.work = standing._asdict()
            self._own.moves += 1
            self._moved = time.monotonic()

    def _path(self, process: int) -> Path:
        return beats.path_of(self._workdir, self._own.what, process)

    def _trouble(self) -> tuple[int, str] | None:
        """Tells what is wrong with another process, as (exit status, sentence)."""
        if self._own.run is None:
            return self._not_all_there()
        limits, first = self._limits, self._index == 0
        others = [self._beat_of(index) for index in (range(1, self._count) if first else (0,))]
        for beat, silent in others:
            if beat.for_all and not first:
                return beat.status, beat.reason
            if not beat.runs and beat.status and silent >= limits.interval:
                return beat.status, f'{beat.name} ended ({beat.reason}), and this process ends with it.'
            if beat.runs and beat.is_gone(silent, limits.silence):
                return STATUS_START_AGAIN, (
                    f'{beat.name} is gone (last seen {beat.place}), and this process ends with it: start the same '
                    'command again, and it goes on from what is saved.'
                )
        # Only the first process sees who gets on; the others leave it to that one while it runs.
        judges = first or not others[0][0].runs
        if judges and self._count != 1 and time.monotonic() - self._moved > limits.hang:
            known = [self._own, *(beat for beat, _ in others if first)]
            behind = min(known, key=lambda beat: ((beat.work or {}).get('done', -1), beat.moves))
            return STATUS_START_AGAIN, (
                f'No process has got on for {limits.hang:.0f} s; {behind.name} is the furthest behind '
                f'({behind.place}), so it hangs or its data do: look there, and start the same command again.'
            )
        return None

    def _not_all_there(self) -> tuple[int, str] | None:
        limit = self._limits.start
        if self._count == 1 or time.monotonic() - self._began <= limit:
            return None
        now, earliest = time.time(), self._own.started - limit
        found = [beat for beat in beats.read_all(self._workdir, self._own.what) if beat.started > earliest]
        there = [beat for beat in found if not beat.is_gone(now - beat.time, self._limits.silence)]
        if self._count is None:
            what = f'some processes have not started; these have: {", ".join(sorted(beat.host for beat in there))}'
        else:
            missing = sorted(set(range(self._count)) - {beat.process for beat in there})
            numbers = ', '.join(map(str, missing)) or '?'
            what = f'of {self._count} processes, number {numbers} has not started'
        return STATUS_START_AGAIN, (
            f'After {limit:.0f} s {what}: see to it that every one is started with this --workdir, which '
            'all must see, and with the same --coordinator, and start all of them again.'
        )

    def _beat_of(self, index: int) -> tuple[Beat, float]:
        """Returns the newest beat of another process of this run, and for how long it has been the newest."""
        beat = beats.read(self._path(index))
        if beat is None or beat.run != self._own.run:
            beat = Beat(self._own.what, index, self._own.processes)
        now = time.monotonic()
        count, moves, since = self._seen.get(index, (None, None, now))
        if count != beat.beats:
            since = now
        if moves != beat.moves:
            self._moved = now  # others may work while this one waits for them
        self._seen[index] = (beat.beats, beat.moves, since)
        return beat, now - since

    def _fail(self, error: BaseException) -> None:
        """Ends this process, and says why, so that the others end too; does not return in a real process."""
        status = self._status_of(error)
        if status is None:
            sys.excepthook(type(error), error, error.__traceback__)
            # A connection breaks when the process at its other end dies. Once that is known, which takes `silence`
            # where it was on another host, the thread ends this process and names it.
            broken = type(error).__name__ in ('JaxRuntimeError', 'XlaRuntimeError')
            time.sleep(PATIENCE * self._limits.interval + (self._limits.silence if broken else 0.0))
            status = STATUS_START_AGAIN if broken else 1
        self._end('failed', status, _reason(error))
        self._leave_last(status)

    def _leave_last(self, status: int) -> None:
        """Ends this process; the first one waits until the others know why, as they lose JAX's coordinator with it."""
        deadline = time.monotonic() + PATIENCE * self._limits.interval
        while (
            self._index == 0
            and time.monotonic() < deadline
            and any(
                beat.runs and not beat.is_gone(silent, self._limits.silence)
                for beat, silent in map(self._beat_of, range(1, self._count or 1))
            )
        ):
            time.sleep(self._limits.interval / 4)
        self._leave(status)

    def _end(self, state: str, status: int = 0, reason: str | None = None, *, for_all: bool = False) -> None:
        self._done.set()
        with self._lock:
            own = self._own
            own.state, own.status, own.reason, own.for_all = state, status, reason, for_all
        self.beat()

    def _take_back(self) -> None:
        """Leaves the file as it was before: a command that was refused has done nothing that others should know of."""
        self._done.set()
        self._thread.join()
        if self._before is None:
            self._path(self._own.process).unlink(missing_ok=True)
        else:
            self._before.write(self._workdir)


def _reason(error: BaseException) -> str:
    text = ' '.join(str(error).split())[:500]
    return text if isinstance(error, UserError) else f'{type(error).__name__}: {text}'


def _exit_now(status: int) -> None:
    """Ends the process without JAX's farewell, which would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
