"""Checkpoints by orbax: written in the background, the last few kept besides every n-th.

A checkpoint has four items, so that sampling reads no optimizer: `params`, `ema_params`, `opt_state` and `meta`
(JSON: the shapes of the parameters, digests of the other items, and the config of the run); a run that keeps `averages`
of several lengths has them as a fifth. It appears under its name when it is whole, and what is read is held to the
digests, so that a damaged file is never trained on or sampled from.

Every process that opens them does so for itself: one process writes, and any may read.
"""

import itertools
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from cfg.runs.run_files import CHECKPOINTS, DAMAGED, DamagedError, checkpoint_meta, sealed, unreadable
from cfg.runs.state import AVERAGES, ITEMS, TrainState
from cfg.runtime.digest import sha256
from cfg.runtime.errors import UserError, reason_of_write
from cfg.runtime.files import make_folder

log = logging.getLogger('cfg')

Shapes = dict[str, list[int]]


def shapes_of(params: Any) -> Shapes:
    """Returns {name: shape} of every array of a tree."""
    return {jax.tree_util.keystr(p): list(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(params)}


def digests(trees: dict[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of each tree of arrays, computed at the same time."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(trees, pool.map(sha256, trees.values()), strict=True))


def check_shapes(folder: Path, meta: dict[str, Any], like: Any) -> None:
    """Checks by its meta that the parameters of a checkpoint have the names and shapes of a tree; reads none."""
    saved, expected = meta['shapes'], shapes_of(like)
    names = [name for name in sorted(saved | expected) if saved.get(name) != expected.get(name)]
    if names:
        raise UserError(
            f'The checkpoint {folder} is of another architecture than config.model: {names[0]} has shape '
            f'{saved.get(names[0], "(absent)")} there and {expected.get(names[0], "(absent)")} here, and '
            f'{len(names) - 1} more differ; use the config that it was trained with, or another --workdir.'
        )


def _check_types(folder: Path, found: Any, like: Any) -> None:
    """Checks that the arrays of a sound checkpoint have the types of a tree; None for parameters, which are float32."""
    leaves = jax.tree_util.tree_leaves_with_path(found)
    expected = [np.float32] * len(leaves) if like is None else [x.dtype for x in jax.tree.leaves(like)]
    pairs = [(path, x.dtype, np.dtype(ours)) for (path, x), ours in zip(leaves, expected, strict=True)]
    if others := [pair for pair in pairs if pair[1] != pair[2]]:
        path, theirs, ours = others[0]
        raise UserError(
            f'The checkpoint {folder} is whole but of other types: {jax.tree_util.keystr(path)} is {theirs} there and '
            f'{ours} here, and {len(others) - 1} more differ; most likely JAX_ENABLE_X64 was set when it was written, '
            'which is ignored now: train in another --workdir.'
        )


class Checkpoints:
    """Keeps the checkpoints of a workdir.

    Args:
      workdir: of the run.
      keep_last: how many of the newest are kept.
      keep_every: those at multiples of this step are kept besides; 0 for none.
      read_only: no folder is made and nothing is deleted.
    """

    def __init__(self, workdir: str | Path, *, keep_last: int = 1, keep_every: int = 0, read_only: bool = False):
        self.folder = Path(workdir).absolute() / CHECKPOINTS
        if read_only and not self.folder.is_dir():
            raise UserError(f'{workdir} holds no checkpoints: run --mode=train with this --workdir first.')
        if not read_only:
            make_folder(self.folder)
        _leave_the_last_word()
        process = jax.process_index()
        # orbax's own read_only option differs from this only in a warning at every start.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep_last,
            keep_period=None if read_only else keep_every or None,
            create=False,  # orbax lets no process do it alone
            cleanup_tmp_directories=not read_only,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}, barrier_sync_key_prefix=f'process{process}'
            ),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=(*ITEMS, AVERAGES, 'meta'))

    def __enter__(self):
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        try:
            self._manager.close()
        except Exception:  # of a write that failed; what ended the block says it better
            if error is None:
                raise

    def steps(self) -> list[int]:
        """Returns the steps that can be restored, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, *, meta: dict[str, Any]) -> None:
        """Starts writing a state of numpy arrays; returns when the arrays may be reused.

        Raises:
          UserError: when this one or an earlier one cannot be written.
        """
        self._save(int(state.step), state.items, meta)

    def save_imported(self, params: Any, *, meta: dict[str, Any]) -> None:
        """Writes parameters from elsewhere as the averaged ones of step 0: they can be sampled, not trained on."""
        self._save(0, {'ema_params': params}, meta | {'imported': True})
        self.wait()

    def _save(self, step: int, trees: dict[str, Any], meta: dict[str, Any]) -> None:
        meta = meta | {'shapes': shapes_of(trees['ema_params']), 'sha256': digests(trees)}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with self._writing():
            args = ocp.args.Composite(meta=ocp.args.JsonSave(sealed(meta)), **items)
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Waits until everything is on disk; a UserError says what cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises a UserError unless all that was written by now could be."""
        with self._writing():
            self._manager.check_for_errors()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # of the file system, through orbax and tensorstore, each in its own kind
            finished = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())
            last = f'the last good one is of step {finished[-1]}' if finished else 'there is no earlier one'
            free = shutil.disk_usage(self.folder).free / 2**20
            raise UserError(
                f'A checkpoint could not be written to {self.folder} ({reason_of_write(error)}; {free:.0f} MiB are '
                f'free there): make room, or see to that disk; {last}, and the same command goes on from it.'
            ) from error

    def check_room(self, state: Any) -> None:
        """Checks that another checkpoint fits on the disk, of a state of arrays or of their shapes and types."""
        need = sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise UserError(
                f'{self.folder} has {free / 2**20:.0f} MiB free, and a checkpoint takes {need / 2**20:.0f} MiB: make '
                'room, or give another --workdir.'
            )

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest state that is whole, and its meta; None if there is no checkpoint.

        Damaged ones after it are moved out of the way and named in the log.

        Raises:
          UserError: when all are damaged, or it is of another architecture.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                meta = self.meta(step)
                return self.restore_state(step, like, meta=meta), meta
            except DamagedError as error:
                if step == steps[0]:
                    raise UserError(f'No checkpoint in {self.folder} can be read; the oldest: {error}') from error
                aside = self._set_aside(step)
                log.warning('%s It is now %s, and training goes on from the one before it.', error, aside)
        return None

    def _set_aside(self, step: int) -> Path:
        folder = self.folder.with_name(DAMAGED)
        folder.mkdir(exist_ok=True)
        names = itertools.chain([str(step)], (f'{step}.{number}' for number in itertools.count(2)))
        aside = next(path for path in map(folder.joinpath, names) if not path.exists())
        (self.folder / str(step)).rename(aside)
        self._manager.reload()
        return aside

    def restore_state(self, step: int, like: TrainState, *, meta: dict[str, Any] | None = None) -> TrainState:
        """Reads the whole state at `step`, of the structure, shapes and types of `like`.

        Raises:
          UserError: when the checkpoint is of another architecture or other types, or cannot be read.
        """
        meta = meta or self.meta(step)
        check_shapes(self.folder / str(step), meta, like.params)
        if like.averages and AVERAGES not in meta['sha256']:
            raise UserError(
                f'The checkpoint {self.folder / str(step)} holds no averages for config.train.ema_lengths='
                f'{tuple(map(float, like.averages))}, which a run keeps from its first step: set it to (), or give '
                'another --workdir.'
            )
        found = self._read(step, meta, like.items)
        return like._replace(step=np.asarray(step, np.int32), **found)

    def restore_params(self, step: int, *, ema: bool) -> Any:
        """Reads the parameters at `step`, or their average, as they were saved: float32 numpy arrays."""
        name = 'ema_params' if ema else 'params'
        return self._read(step, self.meta(step), {name: None})[name]

    def restore_averages(self, step: int) -> dict[str, Any]:
        """Reads the averages at `step` by the text of their length, as `restore_params` does."""
        return self._read(step, self.meta(step), {AVERAGES: None})[AVERAGES]

    def meta(self, step: int) -> dict[str, Any]:
        """Returns what was saved beside the parameters; see `checkpoint_meta`."""
        return checkpoint_meta(self.folder.parent, step)

    def _read(self, step: int, meta: dict[str, Any], items: dict[str, Any]) -> dict[str, Any]:
        """Reads items of a checkpoint, which must be those that were saved, of the structure of trees or of their own.

        They are read in the types in which they were saved: in others their digests would be others.
        """
        folder = self.folder / str(step)
        try:
            targets = {name: _target(folder / name, like) for name, like in items.items()}
            found = dict(self._manager.restore(step, args=ocp.args.Composite(**targets)).items())
        except (UserError, MemoryError):
            raise
        except Exception as error:  # orbax, tensorstore and json each raise their own kinds on a damaged file
            raise unreadable(folder, error) from error
        for name, digest in digests({name: found[name] for name in items}).items():
            if digest != meta['sha256'][name]:
                raise DamagedError(f'The checkpoint {folder} is damaged: its {name} are not those that were saved.')
        for name, like in items.items():
            _check_types(folder, found[name], like)
        return found


def _target(folder: Path, like: Any) -> ocp.args.StandardRestore:
    """Says how to read an item: into numpy arrays, in the structure of a tree and in the types that are on disk."""
    if like is None:
        return ocp.args.StandardRestore()
    saved = ocp.tree.to_flat_dict(ocp.StandardCheckpointHandler().metadata(epath.Path(folder)).tree)
    ours = ocp.tree.to_flat_dict(like)
    if folder.name == 'opt_state' and (others := saved.keys() ^ ours.keys()):  # the names of parameters are in the meta
        raise UserError(
            f'{folder} has other parts than the optimizer here ({".".join(min(others))} and {len(others) - 1} more): '
            'go on with the version of optax that wrote it, or give another --workdir.'
        )
    flat = {path: np.empty(x.shape, saved[path].dtype) for path, x in ours.items()}
    return ocp.args.StandardRestore(ocp.tree.from_flat_dict(flat, target=like))


def _leave_the_last_word() -> None:
    """Keeps orbax and tensorstore from printing a traceback for each array of a checkpoint that fails.

    The first error is raised, and becomes a sentence; the other arrays are still under way then, and their threads find
    the event loop of the first closed.
    """
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    absl_logging.get_absl_logger().addFilter(_is_not_of_orbax_threads)
    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable(sys.unraisablehook)


def _is_not_of_orbax_threads(record: logging.LogRecord) -> bool:
    return not (record.exc_info and 'orbax' in record.pathname)


class _Unraisable:
    """A hook for exceptions that nobody can catch, which passes over those of a closed event loop."""

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != 'Event loop is closed':
            self._before(unraisable)
