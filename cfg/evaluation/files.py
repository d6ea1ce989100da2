"""Scores any file of samples against a reference."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cfg.evaluation import edm2, npz
from cfg.evaluation.references import measuring, open_reference, stream_of_file
from cfg.evaluation.scoring import Scoring
from cfg.features import opening
from cfg.report.rows import FileRow, Given
from cfg.runtime.errors import UserError
from cfg.runtime.stopping import StopSignal
from cfg.settings.data import spec_of

SCORED = 'scored'  # folder in the cache of what is measured of samples, until their row is written


def score_file(config: ConfigDict, keep: Callable[[FileRow], Any] = lambda row: None) -> FileRow:
    """Returns all metrics of the images of `config.eval.samples` against `config.eval.reference`.

    Args:
      keep: takes the row before what was measured is removed.

    Raises:
      UserError: when a file cannot be read, or does not fit the features.
    """
    options = config.eval
    what = f'config.eval.samples={options.samples}'
    file = npz.ImageFile(Path(options.samples), 'config.eval.samples')
    if file.count < 2:
        raise UserError(f'{what} holds {file.count} images: give at least 2.')
    # Says now what is wrong with them, and not when the reference has been measured.
    file.labels(spec_of(config).num_classes if opening.classifies(options) else None)
    edm2.reference_file(Path(options.reference), 'config.eval.reference')
    network = opening.open_features(config, file.image_shape, what)
    with StopSignal() as stop:
        reference = open_reference(config, network, stop)
        with measuring(
            stream_of_file(file),
            network,
            is_split_size=options.is_split_size,
            save_seconds=options.save_seconds,
            stop=stop,
            folder=SCORED,
        ) as measured:
            scoring = Scoring(options, network, reference, file.count, file.image_shape)
            scores = scoring.scores(measured, file.labels())
            row = FileRow(
                source=Given(samples_sha256=file.sha256),
                samples=str(options.samples),
                method=scoring.method,
                scores=dataclasses.replace(scores, accuracy=None) if file.labels() is None else scores,
                beside=reference.beside(file.count),
                origin=scoring.origin(),
            )
            keep(row)
            measured.remove()
    return row
