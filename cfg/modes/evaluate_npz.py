"""Runs `--mode=evaluate_npz`, which measures any file of samples against a reference."""

import datetime
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cfg.evaluation import npz
from cfg.evaluation.measurement import Measurement
from cfg.evaluation.references import (
    Reference,
    measuring,
    open_reference,
    stream_of_file,
)
from cfg.evaluation.rows import append, table, versions
from cfg.evaluation.scoring import score, warnings
from cfg.features import opening
from cfg.features.network import FeatureNetwork
from cfg.runtime.errors import UserError
from cfg.runtime.stopping import StopSignal

Row = dict[str, Any]

RESULTS_FILE = 'evaluate_npz.jsonl'
SCORED = 'scored'  # folder in the cache of what is measured of samples, until their row is written


def run(config: ConfigDict, workdir: Path | None) -> str:
    """Returns all metrics of the images of `config.eval.samples` against `config.eval.reference`, as a table.

    With a workdir the row is also added to `evaluate_npz.jsonl` there.

    Raises:
      UserError: on input that does not fit, before anything is measured.
      SystemExit: on SIGTERM or Ctrl-C; what is measured is saved.
    """
    options = config.eval
    for field in ('samples', 'reference'):
        if not options[field]:
            raise UserError(f"config.eval.{field} is missing: give an npz of images in ADM's layout.")
    what = f'config.eval.samples={options.samples}'
    file = npz.open_images(Path(options.samples), 'config.eval.samples')
    if file.count < 2:
        raise UserError(f'{what} holds {file.count} images: give at least 2.')
    file.labels()  # says now what is wrong with them, and not when the reference has been measured
    npz.check(Path(options.reference), 'config.eval.reference')
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
            row = _row(config, file, network, reference, measured)
            if workdir is not None:
                append(workdir / RESULTS_FILE, row)
            measured.remove()
    return table([row])


def _row(
    config: ConfigDict, file: npz.ImageFile, network: FeatureNetwork, reference: Reference, measured: Measurement
) -> Row:
    options = config.eval
    notices = warnings(options, network, reference, num_samples=file.count, image_shape=file.image_shape)
    row = {
        'samples': str(options.samples),
        'samples_sha256': file.sha256,
        'num_samples': file.count,
        'is_split_size': options.is_split_size,
        'neighbours_dtype': options.neighbours_dtype,
        'kid_subsets': options.kid_subsets,
        'kid_subset_size': options.kid_subset_size,
        'num_reference_features': reference.num_features,
        'features': network.name,
        'features_sha256': network.sha256,
        'features_file_sha256': network.file_sha256,
        'classifier': network.classifier,
        **score(measured, reference, options),
        **reference.facts(file.count),
        'warnings': notices,
        'device': jax.devices()[0].device_kind,
        'versions': versions(),
        'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    }
    if file.labels() is None:
        row['accuracy'] = None
    return row
