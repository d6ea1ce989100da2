"""Writes training metrics to TensorBoard by clu, and the same numbers as JSON lines."""

import json
import logging
import os
from pathlib import Path

import numpy as np

# clu's writers import TensorFlow, which computes nothing here: this keeps its greetings out of the log.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
import tensorflow as tf
from clu import metric_writers

from cfg.runs.run_files import METRICS_FILE, read_metrics
from cfg.runtime.files import write_whole


class Logs:
    """Writes scalars and images of a run.

    Args:
      workdir: TensorBoard files go to `workdir/tensorboard`, numbers to `workdir/metrics.jsonl`.
      start_step: lines of later steps, left by a run that was killed, are dropped: they will come again.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        logging.getLogger('tensorflow').setLevel(logging.ERROR)
        tf.config.set_visible_devices([], 'GPU')
        self._path = workdir / METRICS_FILE
        _drop_later_lines(self._path, start_step)
        self._tensorboard = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir / 'tensorboard')))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._tensorboard.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers of a step to both places."""
        self._tensorboard.write_scalars(step, values)
        # Closed each time, as in a bucket that is mounted nothing is sure to be there before.
        with self._path.open('a') as file:
            file.write(json.dumps({'step': step} | values) + '\n')

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes one uint8 image [H, W, C] to TensorBoard."""
        self._tensorboard.write_images(step, {name: image[None]})

    def flush(self) -> None:
        """Returns when TensorBoard's files are written."""
        self._tensorboard.flush()


def _drop_later_lines(path: Path, step: int) -> None:
    """Keeps the whole lines up to a step; a cut-off last line goes too."""
    if not path.exists():
        return
    kept = [json.dumps(line) + '\n' for line in read_metrics(path) if line['step'] <= step]
    write_whole(path, ''.join(kept).encode())
