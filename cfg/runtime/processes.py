"""Several processes: how they find each other and agree. One process is the simplest case of everything here.

Only the training step computes across processes (`cfg/runtime/parallel.py`). All else runs on each process alone, and
what they must agree on goes through the few functions below, which every process calls in the same order. A UserError
or SystemExit in what `on_first`, `on_each`, `in_turn` or `held_by_first` runs on any process is raised on every one.
"""

import contextlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cfg.runtime import progress
from cfg.runtime.devices import check_devices
from cfg.runtime.errors import UserError

log = logging.getLogger('cfg')

T = TypeVar('T')

# Where launchers say (the number of a process, how many there are), for messages only: JAX reads them itself.
_LAUNCHERS = (
    ('SLURM_PROCID', 'SLURM_NTASKS'),
    ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
)
_MARKS = ('JAX_COORDINATOR_ADDRESS', 'SLURM_STEP_NODELIST', 'OMPI_MCA_orte_hnp_uri', 'KUBERNETES_SERVICE_HOST')


def announced(num_processes: int | None, process_id: int | None) -> tuple[int | None, int | None]:
    """Returns (this process's number, how many there are) by flags or the launcher; None where only JAX will know."""
    if num_processes is not None:
        return process_id or 0, num_processes
    for index, count in _LAUNCHERS:
        if index in os.environ and count in os.environ:
            return int(os.environ[index]), int(os.environ[count])
    if 'TPU_WORKER_HOSTNAMES' in os.environ and 'TPU_WORKER_ID' in os.environ:
        return int(os.environ['TPU_WORKER_ID']), len(os.environ['TPU_WORKER_HOSTNAMES'].split(','))
    return (None, None) if _may_be_several() else (0, 1)


def check_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Checks that the three flags go together."""
    if num_processes in (None, 1):
        if coordinator is not None or process_id not in (None, 0):
            raise UserError('--coordinator and --process_id go with --num_processes: give all three, or none of them.')
        return
    if process_id is None or not 0 <= process_id < num_processes:
        raise UserError(
            f'--process_id={process_id} must be 0 to {num_processes - 1} with --num_processes={num_processes}: a '
            'different one for each process.'
        )
    address = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS', '')
    host, _, port = address.rpartition(':')
    if not host or not port.isdigit():
        raise UserError(
            f'--coordinator={coordinator} must be HOST:PORT, an address of process 0 that every process can reach.'
        )


def start(coordinator: str | None, num_processes: int | None, process_id: int | None, *, timeout: float) -> str:
    """Joins the processes of a run, before JAX does anything else, and starts the devices of this one.

    With no flags JAX asks Slurm, Open MPI, Cloud TPU and GKE whether there are several; `num_processes` = 1 is one
    process whatever they say.

    Args:
      timeout: seconds; JAX ends the process if the others have not come by then.

    Returns:
      A name of this run of the processes, the same on all.

    Raises:
      UserError: when the launcher that JAX found cannot be used, or JAX does not find the one there is, or cannot use
        the devices.
    """
    if num_processes != 1 and (num_processes is not None or _may_be_several()):
        try:
            jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=int(timeout))
        except (ValueError, RuntimeError) as error:
            # With no flags it may be that none of the launchers is there.
            if num_processes is not None or 'coordinator_address should be defined' not in str(error):
                reason = ' '.join(str(error).split())[:300]
                raise UserError(
                    f'JAX cannot join the processes of this run ({reason}): give --coordinator, --num_processes and '
                    '--process_id, or --num_processes=1 to run alone.'
                ) from error
    check_devices()
    size = os.environ.get('OMPI_COMM_WORLD_SIZE', '1')
    if num_processes is None and size != '1' and count() == 1:  # from version 5 on it does not say what JAX looks for
        raise UserError(
            f'Open MPI started {size} processes, which JAX does not find: give --coordinator, --num_processes and '
            '--process_id, or --num_processes=1 to run alone.'
        )
    if not is_first():
        # One process speaks.
        progress.silence()
        log.setLevel(logging.WARNING)
    return from_first(os.urandom(8).hex() if is_first() else None)


def _may_be_several() -> bool:
    """Tells whether it is worth asking JAX: that takes seconds on some machines, and warns on others."""
    launched = any(mark in os.environ for mark in _MARKS) or any(name.startswith('TPU_') for name in os.environ)
    return launched or importlib.util.find_spec('libtpu') is not None


def index() -> int:
    """Returns the number of this process."""
    return jax.process_index()


def count() -> int:
    """Counts the processes."""
    return jax.process_count()


def is_first() -> bool:
    """Tells whether this is the process that writes logs, checkpoints and results."""
    return index() == 0


def gather(tree: Any) -> Any:
    """Returns arrays [n, ...] of each process as numpy [count() * n, ...] on all, in the order of the processes."""
    if count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def largest(number: int) -> int:
    """Returns the largest of the processes' numbers."""
    return max(_of_each(number))


def from_first(value: Any) -> Any:
    """Returns the first process's value, a JSON value, on every process."""
    return _of_each(value if is_first() else None)[0]


def on_first(fn: Callable[[], T]) -> T | None:
    """Runs `fn` on the first process while the others wait; its result there, None elsewhere."""
    result, ending = _try(fn) if is_first() else (None, None)
    _raise(from_first(ending))
    return result


def on_each(fn: Callable[[], T]) -> T:
    """Runs `fn` on every process; each gets its own result. An error names its process if they are several."""
    result, ending = _try(fn)
    for process, each in enumerate(_of_each(ending)):
        _raise(f'Process {process}: {each}' if isinstance(each, str) and each != ending else each)
    return result


def in_turn(fn: Callable[[], T]) -> T:
    """Runs `fn` on the first process, then on all others: what the first one finds missing, it makes for all."""
    if count() == 1:
        return fn()
    result = on_first(fn)
    return on_each(lambda: result if is_first() else fn())


@contextlib.contextmanager
def held_by_first(open_it: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
    """Enters what `open_it` gives on the first process; None on the others."""
    with contextlib.ExitStack() as stack:
        yield on_first(lambda: stack.enter_context(open_it()))


def told_to_stop(step: int) -> bool:
    """Tells whether JAX's preemption service has picked this step for all processes to save and stop at.

    It catches a SIGTERM of any process, unless a handler of ours is in its place (`cfg/runtime/stopping.py`). Every
    process asks at each step from the same one on.
    """
    return jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(step)


def _try(fn: Callable[[], T]) -> tuple[T | None, str | int | None]:
    """Returns the result of `fn`, and the sentence or the exit status with which it ended."""
    try:
        return fn(), None
    except UserError as error:
        return None, str(error)
    except SystemExit as stop:
        return None, stop.code if isinstance(stop.code, int) else 1


def _raise(ending: str | int | None) -> None:
    if ending is not None:
        raise UserError(ending) if isinstance(ending, str) else SystemExit(ending)


def _of_each(value: Any) -> list[Any]:
    """Returns the JSON value of every process, on every process."""
    if count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = gather(np.array([len(content)], np.int32))
    padded = np.zeros((1, int(sizes.max())), np.uint8)
    padded[0, : len(content)] = content
    return [json.loads(row[:size].tobytes()) for row, size in zip(gather(padded), sizes, strict=True)]
