"""Runs `--mode=fetch_weights`, which gets the networks of published FIDs and FD-DINOv2s."""

from pathlib import Path

from ml_collections import ConfigDict

from cfg.features.network import default_cache
from cfg.features.weights import INCEPTION_FILES, dinov2_files, fetch_weights
from cfg.settings.table import feature_names


def run(config: ConfigDict, workdir: None = None) -> Path:
    """Downloads the weights into the cache folder, or says which file to put where; returns the path of the last."""
    cache = default_cache(config.eval.cache_dir)
    path = fetch_weights(cache, INCEPTION_FILES)
    return fetch_weights(cache, dinov2_files()) if 'dinov2' in feature_names(config.eval.features) else path
