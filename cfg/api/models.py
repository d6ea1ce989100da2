"""A trained run as a model that can be sampled from."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cfg.api.configs import completed
from cfg.diffusion.denoiser import Denoiser
from cfg.runs.run_files import checkpoint_meta, find_step
from cfg.runs.trained import TrainedRun
from cfg.runtime import parallel
from cfg.runtime.paths import user_path


@dataclass(frozen=True, eq=False)
class Model:
    """A model is a trained network of a run.

    Attributes:
      run: which checkpoint it is; its parameters are read when they are first needed.
      config: what it was trained with, and the sampler that `sample` takes where it is told of no other.
    """

    run: TrainedRun
    config: ConfigDict

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns (H, W, C) of its images."""
        return tuple(self.run.spec.image_shape)

    @property
    def num_classes(self) -> int:
        """Returns the number of classes; labels are 0 to num_classes - 1."""
        return self.run.spec.num_classes

    @property
    def step(self) -> int:
        """Returns the training step of the checkpoint."""
        return self.run.step

    @functools.cached_property
    def on_devices(self) -> Any:
        """Returns the parameters, on all devices of this process."""
        return parallel.replicate(self.run.params())

    @functools.cached_property
    def denoiser(self) -> Denoiser:
        """Returns the network as a function of (z, logsnr, labels), for use within `jit` and `grad`."""
        return self.run.bind(self.run.params())

    def __repr__(self) -> str:
        """Returns one line that says which it is."""
        return f'Model({str(self.run.workdir)!r}, step={self.step}, shape={self.shape}, num_classes={self.num_classes})'


def load(workdir: str | Path, *, step: int = -1, ema: bool | None = None, ema_length: float | None = None) -> Model:
    """Opens the model of a run.

    Args:
      workdir: of the run, such as 'runs/digits'.
      step: of the checkpoint; -1 for the newest.
      ema: whether to take the averaged parameters; None for what its config says.
      ema_length: of their average, such as 0.08, of a run that kept some (docs/ema.md); None as before.

    Raises:
      UserError: when there is no such run or checkpoint, or it is no generative model.
    """
    folder = Path(user_path(workdir, 'workdir'))
    config = completed(checkpoint_meta(folder, find_step(folder, step))['config'])
    return Model(TrainedRun.of_config(config, folder, step, ema=ema, ema_length=ema_length), config)
