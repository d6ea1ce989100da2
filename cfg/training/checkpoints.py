"""Checkpoints by orbax: written in the background, the last few kept besides every n-th.

A checkpoint has four items, so that sampling reads no optimizer: `params`, `ema_params`, `opt_state` and `meta`
(JSON: the shapes of the parameters and the config of the run).
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cfg.errors import UserError, first_line
from cfg.training.state import TrainState

FOLDER = 'checkpoints'
Shapes = dict[str, list[int]]


def shapes_of(params: Any) -> Shapes:
    """{name: shape} of every array of a tree."""
    return {jax.tree_util.keystr(p): list(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(params)}


class Checkpoints:
    """The checkpoints of a workdir.

    Args:
      workdir: of the run.
      keep_last: how many of the newest are kept.
      keep_every: those at multiples of this step are kept besides; 0 for none.
      read_only: no folder is made and nothing is deleted.
    """

    def __init__(self, workdir: str | Path, *, keep_last: int = 1, keep_every: int = 0, read_only: bool = False):
        self.folder = Path(workdir).absolute() / FOLDER
        if read_only and not self.folder.is_dir():
            raise UserError(f'{workdir} holds no checkpoints: run --mode=train with this --workdir first.')
        # orbax's own read_only option differs from this only in a warning at every start.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep_last,
            keep_period=None if read_only else keep_every or None,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_names=('params', 'ema_params', 'opt_state', 'meta'),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(self._manager.all_steps())

    def find(self, step: int, what: str) -> int:
        """`step` itself, or the newest one for -1.

        Raises:
          UserError: when there is no such checkpoint; `what` names what asked for it.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f'{self.folder} holds no finished checkpoint: run --mode=train with this --workdir first.')
        if step == -1:
            return steps[-1]
        if step not in steps:
            raise UserError(f'{what} {step} is not among those in {self.folder}: {steps}.')
        return step

    def save(self, state: TrainState, *, meta: dict[str, Any]) -> None:
        """Starts writing a state of numpy arrays; returns when the arrays may be reused."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                ema_params=ocp.args.StandardSave(state.ema_params),
                opt_state=ocp.args.StandardSave(state.opt_state),
                meta=ocp.args.JsonSave(meta | {'shapes': shapes_of(state.params)}),
            ),
        )

    def save_imported(self, params: Any, *, meta: dict[str, Any]) -> None:
        """Writes parameters from elsewhere as the averaged ones of step 0: they can be sampled, not trained on."""
        meta = meta | {'shapes': shapes_of(params), 'imported': True}
        self._manager.save(
            0, args=ocp.args.Composite(ema_params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(meta))
        )
        self.wait()

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def restore_state(self, step: int, like: TrainState, *, meta: dict[str, Any] | None = None) -> TrainState:
        """The whole state at `step`.

        Args:
          step: one of `steps()`.
          like: a state of the same structure, shapes and types.
          meta: what `meta(step)` gave; saves reading it again.

        Raises:
          UserError: when the checkpoint is of another architecture or cannot be read.
        """
        items = ('params', 'ema_params', 'opt_state')
        found = self._restore(step, {name: getattr(like, name) for name in items}, meta or self.meta(step))
        return TrainState(step=np.asarray(step, np.int32), **found)

    def restore_params(self, step: int, like: Any = None, *, ema: bool, meta: dict[str, Any] | None = None) -> Any:
        """The parameters at `step`, or their average; arguments and errors as in `restore_state`.

        Without `like` they come as they were saved, whatever the architecture; `meta` saves reading it again.
        """
        name = 'ema_params' if ema else 'params'
        meta = meta or self.meta(step)
        if not ema and meta.get('imported'):
            raise UserError(
                f'{self.folder / str(step)} was imported and has one set of parameters: use config.sampling.ema=True.'
            )
        if like is None:
            return self._read(step, **{name: ocp.args.StandardRestore()})[name]
        return self._restore(step, {name: like}, meta)[name]

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the parameters: their 'shapes', and the 'config' of the run."""
        return self._read(step, meta=ocp.args.JsonRestore())['meta']

    def _restore(self, step: int, like: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
        tree = like.get('params', like.get('ema_params'))
        self._check_shapes(step, meta['shapes'], shapes_of(tree))
        targets = {
            name: ocp.args.StandardRestore(jax.tree.map(lambda x: np.empty(x.shape, x.dtype), value))
            for name, value in like.items()
        }
        return dict(self._read(step, **targets).items())

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except MemoryError:
            raise
        except Exception as error:  # orbax, tensorstore and json each raise their own kinds on a damaged file
            if not (self.folder / str(step)).exists():
                raise UserError(
                    f'The checkpoint {self.folder / str(step)} is gone (training keeps only the last few): try again.'
                ) from error
            raise UserError(
                f'The checkpoint {self.folder / str(step)} cannot be read ({type(error).__name__}: '
                f'{first_line(error, 200)}): restore it from a backup, or delete that folder to go on from the '
                'checkpoint before it.'
            ) from error

    def _check_shapes(self, step: int, saved: Shapes, expected: Shapes) -> None:
        if saved == expected:
            return
        names = [name for name in sorted(saved | expected) if saved.get(name) != expected.get(name)]
        name = names[0]
        raise UserError(
            f'The checkpoint {self.folder / str(step)} is of another architecture than config.model: {name} has shape '
            f'{saved.get(name, "(absent)")} there and {expected.get(name, "(absent)")} here, and {len(names) - 1} more '
            'differ; use the config that it was trained with, or another --workdir.'
        )
