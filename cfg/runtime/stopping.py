"""Takes SIGTERM and Ctrl-C as a wish to stop at the next good moment."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger('cfg')

PATIENCE = 2.0  # seconds for the last words after a second signal


class StopSignal:
    """Remembers, while entered, the first SIGTERM or Ctrl-C as `received`; a second one ends the process.

    Both are answered at once, by a thread: Python's own handlers wait until a compiler, say, returns. Handlers are only
    set in the main thread, and put back at the end.

    Args:
      saving: what is saved before the end.
      lost: what a second signal loses, in words; the attribute `lost`, called by the thread, may tell more.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, saving: str = 'what is done', lost: str = 'what came since the last saving'):
        self.received: signal.Signals | None = None
        self.lost: Callable[[], str] = lambda: lost
        self._saving = saving
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._answer, name='signals', daemon=True)
            self._thread.start()
            self._before = {number: signal.signal(number, self._handle) for number in self.NUMBERS}
        return self

    def __exit__(self, *_):
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._write, b'\0')
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def leave(self, save: Callable[[], None], received: int | None = None) -> None:
        """Ends the process if a signal came, after `save`; otherwise does nothing.

        Args:
          save: what is left to do.
          received: the number of the signal that counts instead, of several processes say; 0 for none.

        Raises:
          SystemExit: with 128 + the signal's number.
        """
        number = self.received if received is None else received
        if number:
            save()
            name = signal.Signals(number).name
            log.info('Stopped by %s; what is done is saved, and the same command goes on.', name)
            raise SystemExit(128 + number)

    def _handle(self, number: int, frame: Any) -> None:
        self.received = self.received or signal.Signals(number)
        told = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if told != self._write:  # an event loop of a library took the place
            signal.set_wakeup_fd(told, warn_on_full_buffer=False)
            os.write(self._write, bytes([number]))

    def _answer(self) -> None:
        """Answers each signal as it comes; the system writes their numbers into the pipe."""
        first = True
        while number := os.read(self._read, 1)[0]:
            if number not in self.NUMBERS:
                continue
            name = signal.Signals(number).name
            if first:
                first = False
                self.received = self.received or signal.Signals(number)
                log.info('%s: %s is being saved; a second one ends at once, without that.', name, self._saving)
                continue
            # A disk or a terminal that hangs is why some send a second one.
            timer = threading.Timer(PATIENCE, os._exit, [128 + number])
            timer.daemon = True
            timer.start()
            try:
                log.warning('Ended by a second signal (%s) without saving. Lost: %s.', name, self.lost())
                sys.stdout.flush()
            finally:
                os._exit(128 + number)
