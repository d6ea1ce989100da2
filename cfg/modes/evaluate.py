"""Runs `--mode=eval`, the sweep of guidance."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from cfg.evaluation import sweep
from cfg.modes import report

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

    sweep.evaluate(config, workdir, draw)
