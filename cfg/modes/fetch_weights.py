"""Runs `--mode=fetch_weights`, which gets the Inception network of published FIDs."""

from pathlib import Path

from ml_collections import ConfigDict

from cfg.features.network import default_cache
from cfg.features.weights import fetch_weights


def run(config: ConfigDict, workdir: None = None) -> Path:
    """Downloads the weights into the cache folder, or says which file to put where; returns their path."""
    return fetch_weights(default_cache(config.eval.cache_dir))
