"""Runs `--mode=merge`: the rows of several runs, and what is shown of them, become one folder that needs no run."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from cfg.modes import report
from cfg.report import strengths
from cfg.report.curves import grouped
from cfg.report.results import Results
from cfg.report.rows import Row
from cfg.report.sample_files import pairs_of
from cfg.report.tables import score_text
from cfg.runs.run_files import MERGED_FILE, without_run
from cfg.runs.trained import newest_meta
from cfg.runtime.errors import UserError
from cfg.runtime.files import make_folder, replacing, write_whole
from cfg.settings.values import config_dict

log = logging.getLogger('cfg')


def run(config: ConfigDict, workdir: Path) -> Path:
    """Puts the rows of `config.report.workdirs` beside those of a workdir, and writes its report; returns the page.

    A file is there by a second name, or as a copy where it is on another disk. Of rows that are the same measurement
    there is one, where their scores differ the newest.
    """
    if not config.report.workdirs:
        raise UserError("config.report.workdirs is empty: give the workdirs to merge, such as ('runs/a', 'runs/b').")
    others = list(map(Path, config.report.workdirs))
    with without_run(workdir):
        found = [_Found(row, folder) for folder in (workdir, *others) for row in Results(folder).read()]
        if missing := set(others) - {it.folder for it in found}:
            raise UserError(f'{min(missing) / Row.FOLDER} has no rows: run --mode=eval first.')
        said = _said(config, (workdir, *others))
        for of_row in grouped(found, lambda it: it.row.identity).values():
            _take(of_row, workdir)
        write_whole(workdir / MERGED_FILE, (json.dumps(said, indent=1) + '\n').encode())
        Results(workdir).write_lines()
    config.report.workdirs = ()  # whose rows are here now
    return report.run(config, workdir)


class _Found(NamedTuple):
    row: Row
    folder: Path  # of the run

    @property
    def has_samples(self) -> bool:
        return self.row.samples is not None and (self.folder / self.row.samples).exists()


def _said(config: ConfigDict, folders: Sequence[Path]) -> dict:
    """Returns the config of the first run that has a checkpoint, and the names of its data, which are all runs'."""
    told = {folder: meta for folder in folders if (meta := newest_meta(folder))}
    first = next(iter(told), folders[0])
    name, class_names = report.names(config, first)
    for folder, meta in told.items():
        theirs = meta.get('data', {}).get('class_names', class_names)
        if list(theirs) != list(class_names):
            raise UserError(
                f'{first} and {folder} are of data with other classes, {len(class_names)} and {len(theirs)}: merge '
                'runs of the same data.'
            )
    config = told[first]['config'] if told else config_dict(config)
    return {'config': config, 'data': {'name': name, 'class_names': list(class_names)}}


def _take(of_row: Sequence[_Found], workdir: Path) -> None:
    """Brings one of several rows of the same identity, the newest or one with its scores that has samples still."""
    newest = max(of_row, key=lambda it: it.row.origin.finished)
    alike = [it for it in of_row if it.row.scores == newest.row.scores]
    for other in of_row:
        if other not in alike:
            log.warning(
                'Row %s has other scores in %s (FID %s) than in %s (FID %s), which is newer and kept.',
                newest.row.identity,
                *(other.folder, score_text(other.row.scores.fid), newest.folder, score_text(newest.row.scores.fid)),
            )
    row, folder = next((it for it in alike if it.has_samples), alike[0])
    if folder == workdir:
        return
    files = [strengths.path_of(Path(), row.identity), Results(Path()).path(row.identity)]  # that of the row last
    for file in (row.samples, pairs_of(row.samples), *files) if row.samples else files:
        _bring(folder / file, workdir / file)


def _bring(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where that cannot be; one that is gone is left out.

    Files of a run are replaced and never written to, so that two names may share one.
    """
    if not source.exists():
        return
    make_folder(target.parent)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        with source.open('rb') as content, replacing(target) as file:
            shutil.copyfileobj(content, file)
