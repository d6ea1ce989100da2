"""Reads what a workdir's files tell of its run. It needs neither JAX nor orbax nor TensorFlow."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cfg.runtime.errors import UserError, first_line, os_error
from cfg.runtime.files import lock

CONFIG_FILE = 'config.json'
METRICS_FILE = 'metrics.jsonl'
MERGED_FILE = 'merged.json'  # of a folder of several runs' rows: what a checkpoint of one of them says of itself
CHECKPOINTS = 'checkpoints'
DAMAGED = 'damaged_checkpoints'
SEAL = 'meta_sha256'  # checkpoints from before there was one have none
# What the system says of files that are not as they were written; all else that it says may pass.
OF_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


class DamagedError(UserError):
    """Says that a checkpoint cannot be read, or does not hold what was saved."""


def checkpoint_steps(workdir: Path) -> list[int]:
    """Returns the steps of the finished checkpoints, ascending; a folder has its number for a name once it is whole."""
    found = (workdir / CHECKPOINTS).glob('*')
    return sorted(int(path.name) for path in found if path.name.isdigit() and path.is_dir())


def is_merged(workdir: Path) -> bool:
    """Tells whether a folder holds the rows of several runs, and no run to measure more of."""
    return (workdir / MERGED_FILE).exists() and not checkpoint_steps(workdir)


@contextlib.contextmanager
def without_run(workdir: Path) -> Iterator[Path]:
    """Gives the folder of the checkpoints of a workdir that holds none; nobody else begins a run there meanwhile.

    Raises:
      UserError: when it holds a run.
    """
    folder = workdir / CHECKPOINTS
    with lock(workdir, 'train'):
        if checkpoint_steps(workdir):
            raise UserError(f'{folder} holds a run already: give another --workdir.')
        yield folder


def find_step(workdir: Path, step: int) -> int:
    """Returns `step` itself, or the newest one for -1.

    Raises:
      UserError: when there is no such checkpoint.
    """
    folder = (workdir / CHECKPOINTS).absolute()
    if not folder.is_dir():
        inside = next((each for each in (folder.parent, folder.parent.parent) if each.name == CHECKPOINTS), None)
        remedy = f'the workdir is {inside.parent}' if inside else 'run --mode=train with this --workdir first'
        raise UserError(f'{workdir} holds no checkpoints: {remedy}.')
    steps = checkpoint_steps(workdir)
    if not steps:
        raise UserError(f'{folder} holds no finished checkpoint: run --mode=train with this --workdir first.')
    if step not in (-1, *steps):
        raise UserError(
            f'The checkpoint of step {step} is not among those in {folder}: choose one of {steps} (config.eval.steps, '
            'or config.sampling.step of --mode=sample; () and -1 are the newest), or train on.'
        )
    return steps[-1] if step == -1 else step


def checkpoint_meta(workdir: Path, step: int) -> dict[str, Any]:
    """Returns what was saved beside the parameters of a step: their 'shapes' and 'sha256', and the run's 'config'.

    Raises:
      DamagedError: when it cannot be read.
      UserError: when there is no such checkpoint any more.
    """
    folder = workdir / CHECKPOINTS / str(step)
    try:
        meta = dict(json.loads((folder / 'meta' / 'metadata').read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(folder, error) from error
    if meta.get(SEAL) not in (None, sealed(meta)[SEAL]):
        raise DamagedError(
            f'The checkpoint {folder} is damaged: its meta is not what was saved. Restore it from a backup, or use the '
            'one before it.'
        )
    return meta


def sealed(meta: dict[str, Any]) -> dict[str, Any]:
    """Adds a digest of all the rest to what is saved beside the parameters, which tells a turned bit from a setting."""
    rest = {name: value for name, value in meta.items() if name != SEAL}
    return rest | {SEAL: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def unreadable(folder: Path, error: Exception) -> UserError:
    """Says why a checkpoint cannot be read: it is gone or damaged, or the file system fails, which may pass."""
    number = os_error(error)
    if number is not None and number not in OF_DAMAGE:
        return UserError(
            f'The checkpoint {folder} cannot be read now ({os.strerror(number)}): see to that disk, or its rights, and '
            'give the same command again; the checkpoint was left where it is.'
        )
    if not folder.exists():
        return UserError(f'The checkpoint {folder} is gone (training keeps only the last few): try again.')
    return DamagedError(
        f'The checkpoint {folder} cannot be read ({type(error).__name__}: {first_line(error, 200)}): restore it from a '
        'backup, or use the one before it.'
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of the metrics, a dict each, in order; [] if the file is missing."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # cut off when the process was killed
            values = json.loads(line)
            if isinstance(values, dict) and 'step' in values:
                found.append(values)
    return found
