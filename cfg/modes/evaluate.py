"""Runs `--mode=eval`, the sweep of guidance."""

from pathlib import Path

from ml_collections import ConfigDict

from cfg.evaluation import sweep


def run(config: ConfigDict, workdir: Path) -> None:
    """Measures the rows that are missing and prints the table; see `cfg.evaluation.sweep.evaluate`."""
    sweep.evaluate(config, workdir)
