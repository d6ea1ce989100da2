"""Takes SIGTERM and Ctrl-C as a wish to stop at the next good moment."""

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger('cfg')


class StopSignal:
    """Remembers, while entered, the first SIGTERM or Ctrl-C as `received`; a second one ends the process.

    Handlers are only set in the main thread, and put back at the end.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.NUMBERS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
        self.received = signal.Signals(number)
        for each in self.NUMBERS:
            signal.signal(each, signal.SIG_DFL)
