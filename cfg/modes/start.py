"""Begins a mode: checks its config, makes its workdir, and joins and watches its processes."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from cfg.runtime import command_line, processes
from cfg.runtime.devices import check_devices
from cfg.runtime.errors import UserError
from cfg.runtime.files import check_workdir
from cfg.runtime.watch import Limits, Watch
from cfg.settings.checks import check_config, parse_job

FLAGS = flags.FLAGS  # of main.py


@contextlib.contextmanager
def prepared(
    mode: str, *, workdir: str, several: bool, devices: bool, memory: str
) -> Iterator[tuple[ConfigDict, Path | None]]:
    """Gives a mode its checked config and its workdir; its processes are joined and watched while it runs.

    Args:
      workdir: 'none', 'optional', 'existing', or 'made' if it is missing.
      several: whether it may run as several processes.
      devices: whether it computes on JAX's devices.
      memory: what takes less memory, in words.
    """
    processes.check_flags(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    config = command_line.read_config()
    check_config(config)
    folder, draws = None, config.data.name == 'mixture' and mode == 'report'
    if workdir != 'none' and (FLAGS.workdir is not None or workdir != 'optional'):
        if FLAGS.workdir is None:
            raise UserError('--workdir is missing: give the folder of the run.')
        folder = check_workdir(FLAGS.workdir, create=draws or workdir in ('made', 'optional'), write=True)
    if not several:
        if devices or draws:
            check_devices()
        yield config, folder
        return
    job = '' if mode not in ('eval', 'compare') else '.job{}of{}'.format(*parse_job(config.eval.job))

    def status_of(error: BaseException) -> int | None:
        return command_line.exit_status(error, memory=memory, stopped=command_line.STOPPED)

    with joined(config, folder, mode + job, status_of=status_of):
        yield config, folder


@contextlib.contextmanager
def joined(
    config: ConfigDict, workdir: Path, what: str, *, status_of: Callable[[BaseException], int | None]
) -> Iterator[Watch]:
    """Joins the processes of a run; while entered, all of them end when one fails, dies or hangs.

    Args:
      what: the mode and part of the work, for the heartbeat files.
      status_of: see `Watch`.

    Raises:
      UserError: when they cannot be joined, or were given different folders.
    """
    place = processes.announced(FLAGS.num_processes, FLAGS.process_id)
    limits = Limits(config.processes.start_seconds, config.processes.hang_seconds)
    with Watch(workdir, what, place, limits, status_of=status_of) as watch:
        # The watch says who is missing; JAX alone would not.
        run = processes.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, timeout=limits.start + 60)
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
