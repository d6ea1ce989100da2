"""Progress of long work: a line that rewrites itself on a terminal, plain lines in a log, and whoever listens."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO


class Standing(NamedTuple):
    """A standing says how far a piece of work is."""

    what: str  # is going on, 'train', say
    done: int  # units of it
    total: int
    unit: str  # one of them
    rate: float | None  # units a second; None before it is known


_listeners: list[Callable[[Standing], None]] = []
_silenced = False
_unended: TextIO | None = None  # where progress stands in a line without an end


@contextlib.contextmanager
def listening(listener: Callable[[Standing], None]) -> Iterator[None]:
    """Calls `listener` at every update of every piece of work, while entered; it must be quick."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def silence() -> None:
    """Prints no lines from this process from now on: of several processes only one speaks. Listeners still hear."""
    global _silenced
    _silenced = True


def format_seconds(seconds: float) -> str:
    """Formats seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def end_line(*, always: bool = False) -> None:
    """Ends the line in which progress stands, if any (or `always`), so that what is said next has one of its own."""
    global _unended
    if _unended or always:
        (_unended or sys.stderr).write('\n')
        _unended = None


class Handler(logging.StreamHandler):
    """Logs to stderr, in lines of their own."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        end_line()
        super().emit(record)


def _write(stream: TextIO, text: str, *, last: bool) -> None:
    """Writes a line, on a terminal over the one before it; what is not the last is written over."""
    global _unended
    _unended = None if last or not text else stream
    stream.write(('\r\x1b[K' if stream.isatty() else '') + text + ('\n' if last else ''))
    stream.flush()


@contextlib.contextmanager
def waiting(what: str, *, stream: TextIO | None = None, interval: float = 30.0) -> Iterator[Callable[[float], None]]:
    """Gives a function of the seconds so far, which says that work goes on whose length nobody knows.

    Args:
      what: is going on.
      stream: where to print.
      interval: seconds between lines when `stream` is not a terminal.
    """
    stream = stream or sys.stderr
    terminal, printed = stream.isatty(), 0.0

    def update(seconds: float) -> None:
        nonlocal printed
        if not _silenced and seconds - printed >= (0.2 if terminal else interval):
            printed = seconds
            _write(stream, f'{what}, {format_seconds(seconds)} so far', last=not terminal)

    yield update
    if terminal and printed:
        _write(stream, '', last=False)


class Progress:
    """Counts work done, of which `start` units are there before, and prints its rate and the time left.

    Where the first unit `compiles` a program, which may take minutes, a line says so before it.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: str,
        start: int = 0,
        compiles: bool = False,
        stream: TextIO | None = None,
    ):
        self._what, self._total, self._unit, self._done = what, total, unit, start
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        # The first piece of work carries the compilation, so the rate is taken from its end on.
        self._since: tuple[float, int] | None = None
        self._printed, self._begin = 0.0, time.monotonic()
        if compiles and start < total and not _silenced:
            _write(self._stream, f'{what}: compiling', last=not self._terminal)

    def update(self, done: int, note: str = '') -> None:
        """Says that `done` units are finished by now."""
        now = time.monotonic()
        self._done = done
        finished = done >= self._total
        for listener in _listeners:
            listener(Standing(self._what, done, self._total, self._unit, self._rate(now)))
        interval = 0.2 if self._terminal else 10.0  # seconds
        if not _silenced and (now - self._printed >= interval or finished):
            self._printed = now
            self._print(now, note, finished)
        if self._since is None:
            self._since = (now, done)

    def _rate(self, now: float) -> float | None:
        if self._since is None or now <= self._since[0] or self._done <= self._since[1]:
            return None
        return (self._done - self._since[1]) / (now - self._since[0])

    def _print(self, now: float, note: str, finished: bool) -> None:
        text = f'{self._what}: {self._done}/{self._total} {self._unit}s'
        rate = self._rate(now)
        if rate is not None:
            text += f', {rate:.3g}/s'
            if not finished:
                text += f', {format_seconds((self._total - self._done) / rate)} left'
        if finished:
            text += f', took {format_seconds(now - self._begin)}'
        if note:
            text += f' ({note})'
        _write(self._stream, text, last=finished or not self._terminal)
