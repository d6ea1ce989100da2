"""Runs `--mode=import_export`: what `--mode=export` wrote becomes a checkpoint again."""

from pathlib import Path

from ml_collections import ConfigDict

from cfg.runs.checkpoints import Checkpoints
from cfg.runs.exported import read_exported
from cfg.runs.run_files import without_run
from cfg.runtime.errors import UserError


def run(config: ConfigDict, workdir: Path) -> Path:
    """Writes the network of `config.export.dir` as step 0 of the workdir, with its own config; returns its folder.

    It can be sampled and evaluated, and is no start for training.
    """
    if not config.export.dir:
        raise UserError('config.export.dir is missing: give the folder that --mode=export wrote.')
    with without_run(workdir) as folder:
        params, meta = read_exported(Path(config.export.dir))
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save_imported(params, meta=meta)
        return folder
