"""Writes training metrics to TensorBoard by clu, and the same numbers as JSON lines."""

import functools
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cfg.data.crop import to_png
from cfg.report.sample_files import FOLDER
from cfg.runs.run_files import METRICS_FILE, read_metrics
from cfg.runtime.errors import UserError, reason_of_write
from cfg.runtime.files import write_whole
from cfg.training.wandb_writer import WandbWriter

log = logging.getLogger('cfg')


class Logs:
    """Writes scalars and images of a run.

    Those of TensorBoard go to `workdir/tensorboard`, numbers to `workdir/metrics.jsonl` too. TensorBoard's files are
    written by a thread, which imports TensorFlow for the first of them: training does not wait.

    Args:
      start_step: lines of later steps, left by a run that was killed, are dropped: they will come again.
      beside: more writers, which get what TensorBoard gets.
    """

    def __init__(self, workdir: Path, *, start_step: int, beside: Sequence[WandbWriter] = ()):
        self._path, self._folder = workdir / METRICS_FILE, workdir / 'tensorboard'
        _drop_later_lines(self._path, start_step)
        self._thread = ThreadPoolExecutor(1, 'tensorboard')
        self._written: list[Future] = []
        self._beside = tuple(beside)

    def __enter__(self):
        return self

    def __exit__(self, error: type[BaseException] | None, *_):
        try:
            with self._thread:
                self.flush()
        except UserError:  # what ended the block says it better
            if error is None:
                raise
        finally:
            for writer in self._beside:
                writer.close(failed=error is not None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers of a step to both places."""
        self._tensorboard('write_scalars', step, values)
        # Closed each time, as in a bucket that is mounted nothing is sure to be there before.
        with self._path.open('a') as file:
            file.write(json.dumps({'step': step} | values) + '\n')

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes one uint8 image [H, W, C] to TensorBoard, and as `workdir/samples/train_step........png`."""
        path = self._path.parent / FOLDER / f'train_step{step:08d}.png'
        path.parent.mkdir(exist_ok=True)
        write_whole(path, to_png(image))
        log.info('Samples of step %d: %s', step, path)
        self._tensorboard('write_images', step, {name: image[None]})

    def flush(self) -> None:
        """Returns when TensorBoard's files are written; a UserError says what cannot be."""
        if self._written:
            self._tensorboard('flush')
        while self._written:
            self._written.pop(0).result()

    def _tensorboard(self, method: str, *args: Any) -> None:
        """Has the thread call a method of clu's writer; raises what an earlier call raised."""
        while self._written and self._written[0].done():
            self._written.pop(0).result()
        self._written.append(self._thread.submit(self._write, method, *args))

    def _write(self, method: str, *args: Any) -> None:
        try:
            getattr(self._writer, method)(*args)
        except Exception as error:
            if not isinstance(error, OSError) and not type(error).__module__.startswith('tensorflow'):
                raise
            raise UserError(
                f'{self._folder} cannot be written ({reason_of_write(error)}): make room, or see to that disk; the '
                'same command goes on from the last checkpoint.'
            ) from error

    @functools.cached_property
    def _writer(self) -> Any:
        # TensorFlow computes nothing here: this keeps its greetings out of the log, and its hands off the GPU.
        os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
        os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
        logging.getLogger('tensorflow').setLevel(logging.ERROR)
        import tensorflow as tf
        from clu.metric_writers import MultiWriter, SummaryWriter

        tf.config.set_visible_devices([], 'GPU')
        return MultiWriter([*self._beside, SummaryWriter(str(self._folder))])


def _drop_later_lines(path: Path, step: int) -> None:
    """Keeps the whole lines up to a step; a cut-off last line goes too."""
    if not path.exists():
        return
    kept = [json.dumps(line) + '\n' for line in read_metrics(path) if line['step'] <= step]
    write_whole(path, ''.join(kept).encode())
