"""The heartbeat of a process: a small file that says who it is, where it stands, and how it ended. Imports no JAX."""

import dataclasses
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfg.runtime import progress
from cfg.runtime.files import write_whole

FOLDER = 'heartbeats'
SILENCE = 60.0  # seconds without a beat, after which a process that cannot be looked at counts as dead


@dataclass
class Beat:
    """A beat is what a process writes into its file every few seconds."""

    what: str  # the mode, and the part of the work
    process: int  # its number
    processes: int  # how many there are
    host: str = '?'
    pid: int = -1
    born: str = ''  # tells it from later processes of the same pid, see `birth`; '' where the system does not tell
    run: str | None = None  # the name of the run that it joined; None before
    state: str = 'starting'  # then 'running'; at the end 'finished', 'stopped' or 'failed'
    status: int = 0  # its exit status
    reason: str | None = None  # why it ended
    for_all: bool = False  # whether the reason is about another process, so that every process ends with it
    started: float = 0.0  # seconds since 1970, as of this beat, `time`
    time: float = 0.0
    beats: int = -1  # how many were written
    moves: int = 0  # how often the work got on
    work: dict[str, Any] | None = None  # the last `progress.Standing`, as a dict

    @classmethod
    def of_this_process(cls, what: str, process: int, processes: int) -> 'Beat':
        """Returns the first beat of this process, not written yet."""
        host, pid, now = socket.gethostname(), os.getpid(), time.time()
        return cls(what, process, processes, host, pid, birth(pid), started=now, time=now, beats=0)

    @property
    def runs(self) -> bool:
        """Tells whether the process says that it has not ended."""
        return self.state in ('starting', 'running')

    @property
    def name(self) -> str:
        """Names the process in words."""
        return f'process {self.process} ({self.host}, pid {self.pid})'

    @property
    def place(self) -> str:
        """Tells how far its work is, in words."""
        work = self.work
        return f'{work["what"]} {work["done"]}/{work["total"]} {work["unit"]}s' if work else 'at the start'

    def write(self, workdir: Path) -> None:
        """Replaces the file of this process."""
        path = path_of(workdir, self.what, self.process)
        write_whole(path, json.dumps(dataclasses.asdict(self)).encode(), sync=False)

    def is_gone(self, silent: float, limit: float = SILENCE) -> bool:
        """Tells whether a process that says it runs does not.

        It is looked up if it was started in this system, and counts as gone after `limit` seconds of silence elsewhere.
        """
        here, now = birth(os.getpid()), birth(self.pid)
        if not here or self.born.rpartition('/')[0] != here.rpartition('/')[0]:
            return silent > limit
        if now:
            return now != self.born
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return silent > limit

    def describe(self, now: float) -> str:
        """Returns one line for people: who, in what state, where, how fast, how long ago."""
        age = max(now - self.time, 0.0)
        state = self.state
        if self.runs and self.is_gone(age):
            state = 'gone'
        elif self.runs and age > SILENCE:
            state = 'silent'
        text = f'{self.what}, {self.name}: {state}, {self.place}'
        if state == 'running' and self.work and self.work['rate']:
            text += f', {self.work["rate"]:.3g} {self.work["unit"]}s/s'
        if state in ('failed', 'stopped') and self.reason:
            text += f' ({self.reason})'
        return f'{text}, {progress.format_seconds(age)} ago'


def path_of(workdir: Path, what: str, process: int) -> Path:
    """Returns the heartbeat file of a process."""
    return workdir / FOLDER / f'{what}.{process}.json'


def read(path: Path) -> Beat | None:
    """Reads the beat of a file; None if it is not there yet, or is half-written on a file system that shows it so."""
    try:
        return Beat(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def read_all(workdir: Path, what: str = '*') -> list[Beat]:
    """Reads the newest beat of every process that ever ran in a workdir, by name; leaves out what cannot be read."""
    found = (read(path) for path in sorted((workdir / FOLDER).glob(f'{what}.*.json')))
    return [beat for beat in found if beat is not None]


def birth(pid: int) -> str:
    """Returns the boot of this system, the pid namespace and the clock tick at which a process started, as a text.

    A pid is used again, by another process of this boot, after a boot, or in another container; this is not.

    Returns:
      '' where the system does not tell or there is no such process; one that nobody has waited for yet is dead too,
      and its last part is not a number.
    """
    try:
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        namespace = Path('/proc/self/ns/pid').readlink()
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return ''
    return f'{boot}/{namespace}/{fields[0] if fields[0] in "ZX" else fields[19]}'
