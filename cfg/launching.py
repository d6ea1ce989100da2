"""A mode that may run as several processes: joined before it begins, watched while it runs."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from cfg import processes
from cfg.errors import UserError
from cfg.watch import Watch

FLAGS = flags.FLAGS  # of `cfg.command_line.define_processes`

MODES = ('train', 'eval', 'compare', 'sample')


def check_flags(mode: str) -> None:
    """Whether the flags of several processes go together, and with the mode.

    Raises:
      UserError: when not.
    """
    processes.check_flags(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    if mode not in MODES and FLAGS.num_processes not in (None, 1):
        raise UserError(
            f'--num_processes={FLAGS.num_processes} is for --mode={", ".join(MODES)}: run --mode={mode} as one process.'
        )


@contextlib.contextmanager
def joined(
    config: ConfigDict,
    workdir: Path,
    what: str,
    *,
    status_of: Callable[[BaseException], int | None],
) -> Iterator[Watch]:
    """Joins the processes of a run; while entered, all of them end when one fails, dies or hangs.

    Args:
      what: the mode and part of the work, for the heartbeat files.
      status_of: see `Watch`.

    Raises:
      UserError: when they cannot be joined, or were given different folders.
    """
    index, count = processes.announced(FLAGS.num_processes, FLAGS.process_id)
    options = config.processes
    with Watch(
        workdir,
        what,
        index=index,
        count=count,
        start_limit=options.start_seconds,
        limit=options.hang_seconds,
        status_of=status_of,
    ) as watch:
        # The watch says who is missing; JAX alone would not.
        run = processes.start(
            FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, timeout=options.start_seconds + 60
        )
        if what != 'train':
            # JAX's preemption service has taken SIGTERM, and the training loop alone asks it whether one came.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        watch.joined(processes.index(), processes.count(), run)

        def look() -> None:
            if not watch.sees_first():
                raise UserError(
                    f'--workdir={workdir} is another folder here than for process 0: give one that all processes see.'
                )

        processes.on_each(look)
        yield watch
