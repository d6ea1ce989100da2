"""`--mode=stats` writes a reference file; `--mode=evaluate_npz` scores any file of samples against one."""

import datetime
import logging
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cfg import setup
from cfg.errors import UserError
from cfg.evaluation import loading, npz
from cfg.evaluation.features import FeatureNetwork, default_cache
from cfg.evaluation.measurement import Measurement
from cfg.evaluation.references import (
    Reference,
    chosen,
    images_of,
    measure_reference,
    measuring,
    open_reference,
    stream_of_file,
    stream_of_source,
)
from cfg.evaluation.rows import append, table, versions
from cfg.evaluation.scoring import score, warnings
from cfg.evaluation.weights import fetch_weights
from cfg.files import check_writable
from cfg.stopping import StopSignal

log = logging.getLogger('cfg')

Row = dict[str, Any]

RESULTS_FILE = 'evaluate_npz.jsonl'
SCORED = 'scored'  # folder in the cache of what is measured of samples, until their row is written


def write_stats(config: ConfigDict, workdir: Path | None) -> Path:
    """Moments of the images of `config.data.split`, and some of these images, as an npz in ADM's layout.

    Returns:
      its path, `config.stats.path` or one in the cache folder.

    Raises:
      UserError: on input that does not fit, before anything is measured.
      SystemExit: on SIGTERM or Ctrl-C; what is measured is saved.
    """
    cache = default_cache(config.eval.cache_dir)
    if config.stats.path:
        _check_path(Path(config.stats.path))
    else:
        check_writable(cache, f'config.eval.cache_dir={cache}')
    source = setup.open_source(config)
    network = loading.open_features(config, workdir, source.image_shape, f'The data set {source.name}')
    data = source.name.rpartition(':')[2].strip('/').replace('/', '_')
    name = f'{data}_{source.fingerprint[:8]}_{network.sha256[:8]}.npz'
    path = Path(config.stats.path or cache / name)
    with StopSignal() as stop:
        measured = measure_reference(config, stream_of_source(source, config.stats.num_images), network, stop)
    indices = chosen(len(source), config.stats.num_images)
    npz.write_reference(
        path,
        moments=measured.moments,
        spatial=measured.spatial,
        shape=(len(indices), *source.image_shape),
        batches=images_of(source, indices),
        features_sha256=network.sha256,
    )
    log.info('Moments of %d images by %s, and %d images.', measured.count, network.name, len(indices))
    return path


def _check_path(path: Path) -> None:
    named = f'config.stats.path={path}'
    if path.suffix != '.npz':
        raise UserError(f'{named} must end in .npz.')
    if path.is_dir():
        raise UserError(f'{named} is a folder: give the path of a file.')
    check_writable(path.parent, named)


def evaluate_npz(config: ConfigDict, workdir: Path | None) -> str:
    """All metrics of the images of `config.eval.samples` against `config.eval.reference`, as a table.

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
    network = loading.open_features(config, workdir, file.image_shape, what)
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


def fetch(config: ConfigDict) -> Path:
    """The weights of Inception, downloaded into the cache folder; returns their path.

    Raises:
      UserError: when they cannot be fetched; it says which file to put where.
    """
    return fetch_weights(default_cache(config.eval.cache_dir))
