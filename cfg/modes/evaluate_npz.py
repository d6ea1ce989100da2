"""Runs `--mode=evaluate_npz`, which measures any file of samples against a reference."""

from pathlib import Path

from ml_collections import ConfigDict

from cfg.evaluation.files import score_file
from cfg.report.results import Results
from cfg.report.rows import FileRow
from cfg.report.tables import terminal_table
from cfg.runtime.errors import UserError


def run(config: ConfigDict, workdir: Path | None) -> str:
    """Returns all metrics of the images of `config.eval.samples` against `config.eval.reference`, as a table.

    With a workdir the row is also written to `evaluate_npz/` there, see `cfg.report.results`.
    """
    for field in ('samples', 'reference'):
        if not config.eval[field]:
            raise UserError(f"config.eval.{field} is missing: give an npz of images in ADM's layout.")
    if workdir is None:
        return terminal_table([score_file(config)])
    results = Results(workdir, FileRow)
    results.check()
    return terminal_table([score_file(config, results.write)])
