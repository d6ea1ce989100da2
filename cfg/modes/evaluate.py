"""Runs `--mode=eval`, the sweep of guidance."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from cfg.evaluation import sweep
from cfg.modes import report
from cfg.report.results import Results
from cfg.runtime import processes
from cfg.settings.values import config_dict
from cfg.training.wandb_writer import WandbWriter, package

log = logging.getLogger('cfg')


def run(config: ConfigDict, workdir: Path) -> None:
    """Measures the rows that are missing and prints the table; see `cfg.evaluation.sweep.evaluate`.

    The report is drawn anew as rows are finished.
    """
    drawn = []

    def draw(missing: int) -> None:
        page = report.run(config, workdir, missing=missing)
        if not drawn:
            log.info('%s shows the rows that are there, and grows with them.', page)
        drawn.append(page)

    project = config.train.wandb_project
    if project:
        processes.on_first(lambda: package(project))  # says now whether it is there
    sweep.evaluate(config, workdir, draw)
    if project:
        processes.on_first(lambda: _send(config, workdir))


def _send(config: ConfigDict, workdir: Path) -> None:
    writer = WandbWriter(config.train.wandb_project, workdir, config_dict(config), job='eval')
    writer.write_rows(Results(workdir).swept())
    writer.close()
