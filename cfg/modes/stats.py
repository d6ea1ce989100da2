"""Runs `--mode=stats`, which writes the statistics of a data set as a reference file."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from cfg.evaluation import npz
from cfg.evaluation.references import chosen, images_of, measure, second_moments, stream_of_source
from cfg.features import opening
from cfg.features.network import default_cache
from cfg.runtime.errors import UserError
from cfg.runtime.files import check_writable
from cfg.runtime.stopping import StopSignal
from cfg.settings.data import open_source

log = logging.getLogger('cfg')


def run(config: ConfigDict, workdir: None = None) -> Path:
    """Writes moments of the images of `config.data.split`, and some of these images, as an npz in ADM's layout.

    Returns its path, `config.stats.path` or one in the cache folder.
    """
    cache = default_cache(config.eval.cache_dir)
    if config.stats.path:
        _check_path(Path(config.stats.path))
    else:
        check_writable(cache, f'config.eval.cache_dir={cache}')
    source = open_source(config)
    network = opening.open_features(config, source.image_shape, f'The data set {source.name}')
    data = source.name.rpartition(':')[2].strip('/').replace('/', '_')
    hashes = {'features_sha256': network.sha256} | ({'dinov2_sha256': network.second.sha256} if network.second else {})
    name = '_'.join([data, source.fingerprint[:8], *(it[:8] for it in hashes.values())])
    path = Path(config.stats.path or cache / f'{name}.npz')
    stream = stream_of_source(source, config.stats.num_images)
    with StopSignal() as stop:
        measured = measure(config, stream, network, stop)
        second = second_moments(config, stream, network, stop)
    indices = chosen(len(source), config.stats.num_images)
    npz.write_reference(
        path,
        moments=measured.moments,
        spatial=measured.spatial,
        shape=(len(indices), *source.image_shape),
        batches=images_of(source, indices),
        hashes=hashes,
        second=second,
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
