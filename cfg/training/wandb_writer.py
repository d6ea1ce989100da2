"""Sends what a run logs to Weights & Biases, for a config that names a project; nothing that fails there ends a run."""

import functools
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cfg.report.rows import Row
from cfg.runtime.errors import UserError, first_line
from cfg.runtime.files import write_whole

log = logging.getLogger('cfg')

ID_FILE = 'wandb_run_id'
FINISH_SECONDS = 60.0  # that the end of a run waits for the network; the rest stays on disk, for `wandb sync`
_STEP = 'train_step'  # the axis; W&B's own steps cannot go back to a checkpoint


def package(project: str) -> Any:
    """Imports W&B's package.

    Raises:
      UserError: when it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f'config.train.wandb_project={project!r} needs the package wandb ({first_line(error)}): pip install wandb, '
            "or leave the field ''."
        ) from error
    return wandb


class WandbWriter:
    """This is a writer like those of clu, to the run of a workdir, which goes on there when training does.

    Args:
      project: of W&B; entity, group and mode are those of its environment variables (`WANDB_ENTITY`, ...).
      config: of the run, which W&B shows.
      job: what the run is; that of 'train' has the id of the workdir, and others are beside it.

    Raises:
      UserError: when the package is not installed, or W&B does not know who logs.
    """

    def __init__(self, project: str, workdir: Path, config: dict[str, Any], *, job: str = 'train'):
        wandb, file, name = package(project), workdir / ID_FILE, workdir.resolve().name
        own = os.environ.get('WANDB_RUN_ID') or (file.read_text().strip() if file.exists() else uuid.uuid4().hex[:8])
        ours, shown = (own, name) if job == 'train' else (f'{own}-{job}', f'{name} {job}')
        named = {'project': project, 'id': ours, 'name': shown, 'job_type': job, 'config': config}
        settings = wandb.Settings(console='off', finish_timeout=FINISH_SECONDS)
        init = functools.partial(wandb.init, **named, dir=str(workdir), resume='allow', settings=settings)
        self._wandb, self._failed = wandb, False
        try:
            self._run = init()
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise UserError(
                f'Weights & Biases refuses config.train.wandb_project={project!r} ({first_line(error)}): give '
                "WANDB_API_KEY or `wandb login`, set WANDB_MODE=offline to send it later, or leave the field ''."
            ) from error
        except wandb.errors.Error as error:  # of a network that is down, which may pass
            log.warning('Weights & Biases cannot be reached (%s): `wandb sync` sends it later.', first_line(error))
            wandb.teardown()  # of the service that holds the id of the attempt
            self._run = init(mode='offline')
        write_whole(file, f'{own}\n'.encode())
        if job == 'train':
            self._try(lambda: self._run.define_metric('*', step_metric=_STEP))

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers of a step."""
        self._try(lambda: self._run.log({_STEP: step, **values}))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Sends uint8 images [1, H, W, C] of a step."""

        def send():
            shown = {name: self._wandb.Image(Image.fromarray(image[0].squeeze())) for name, image in images.items()}
            self._run.log({_STEP: step, **shown})

        self._try(send)

    def write_rows(self, rows: Sequence[Row]) -> None:
        """Sends a table of rows of results, a column for each field but those that are lists."""
        lines = [row.settings for row in rows]
        names = [name for name, value in lines[0].items() if not isinstance(value, dict | tuple)] if lines else []
        data = [[line[name] for name in names] for line in lines]
        self._try(lambda: self._run.log({'results': self._wandb.Table(columns=names, data=data)}))

    def flush(self) -> None:
        """Does nothing: a thread of W&B sends what there is."""

    def close(self, *, failed: bool = False) -> None:
        """Ends the run."""
        self._try(lambda: self._run.finish(exit_code=int(failed)))

    def _try(self, send: Callable[[], Any]) -> None:
        try:
            send()
        except Exception as error:  # of the network, the service process, a quota
            if not self._failed:
                log.warning('Weights & Biases fails (%s), and the run goes on.', first_line(error))
            self._failed = True
