"""Runs `--mode=prepare_data` for the data set that a config wants prepared."""

import os

from absl import logging as absl_logging
from ml_collections import ConfigDict

from cfg.data.manifest import default_dir, is_preparable
from cfg.data.prepare.parts import Options
from cfg.data.prepare.run import Folders, prepare
from cfg.runtime.errors import UserError


def run(config: ConfigDict, workdir: None = None) -> str:
    """Prepares the data set of a config, or checks it if it is prepared; returns what is there, for the user."""
    data, options = config.data, config.prepare
    if not is_preparable(data.name):
        raise UserError(f'config.data.name={data.name!r} needs no preparation; tfds:NAME, folder:PATH and imagenet do.')
    # TensorFlow's greetings and TFDS's remarks, of this process and its workers.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    absl_logging.set_verbosity(absl_logging.ERROR)
    folders = Folders(default_dir(data.dir), default_dir(options.tfds_dir or data.dir), options.manual_dir)
    wanted = Options(data.image_size, data.crop, skip=options.on_error == 'skip', classes_from=options.classes_from)
    return prepare(data.name, wanted, folders, workers=options.workers)
