"""Processes that work for this one: how they end, and how many there may be."""

import functools
import multiprocessing
import os
import signal
import threading
from typing import Any

from cfg.runtime.stopping import StopSignal


def begin_worker(*_: Any) -> None:
    """Makes a worker process leave signals to its parent, and end when the parent is gone, however it went.

    Ctrl-C, and SIGTERM from a scheduler, reach the whole group: the parent still needs its workers to end in order.
    """
    for number in StopSignal.NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@functools.cache
def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
