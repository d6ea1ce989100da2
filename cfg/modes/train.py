"""Runs `--mode=train`, which is Alg. 1."""

from pathlib import Path

from ml_collections import ConfigDict

from cfg.training import loop


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains until `config.train.num_steps`; see `cfg.training.loop.train`."""
    loop.train(config, workdir)
