"""Reads the paper's Tables 1 and 2, the numbers behind its Fig. 4 and 5."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfg.report.curves import Curve, Scored

NUM_SAMPLES = 50_000  # of each number in the tables
NUM_STEPS = 256  # T where the paper does not state it, from the authors' related work


@dataclass(frozen=True)
class PaperCurve(Scored):
    """A curve of the paper is one model of a table, or one T; w (ascending) and scores are [N]."""

    setting: float  # value of p_uncond or T
    label: str  # for people
    w: np.ndarray
    fid: np.ndarray
    inception_score: np.ndarray


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper has a curve for each value of what its columns differ in."""

    title: str  # what it is of
    key: str  # what its columns differ in, 'p_uncond' or 'num_steps'
    curves: tuple[PaperCurve, ...]

    def match(self, curve: Curve) -> PaperCurve | None:
        """Returns the paper's curve of the setting of ours; None if there is none, or ours is drawn otherwise."""
        row = curve.rows[0]
        if row.source.sampling.departures:
            return None
        setting = row.settings[self.key]
        return next((paper for paper in self.curves if paper.setting == setting), None)


# Name of the file -> title, what the columns differ in, how it is written in a column's name and in a label.
_TABLES = {
    'table1_imagenet64': ('Table 1, ImageNet 64x64', 'p_uncond', 'p', 'p_uncond = {}'),
    'table2_imagenet128': ('Table 2, ImageNet 128x128', 'num_steps', 'T', 'T = {}'),
}


def paper_table(name: str) -> PaperTable:
    """Reads a table of the paper by its file's name, see `cfg.settings.table.TABLES`."""
    title, key, prefix, label = _TABLES[name]
    text = (Path(__file__).with_name('paper_tables') / f'{name}.csv').read_text(encoding='utf-8')
    lines = list(csv.DictReader(text.splitlines()))
    columns = {head: np.array([float(line[head]) for line in lines]) for head in lines[0]}
    settings = [head.removeprefix(f'fid_{prefix}') for head in columns if head.startswith(f'fid_{prefix}')]
    curves = [
        PaperCurve(
            setting=float(setting),
            label=label.format(setting),
            w=columns['w'],
            fid=columns[f'fid_{prefix}{setting}'],
            inception_score=columns[f'is_{prefix}{setting}'],
        )
        for setting in settings
    ]
    return PaperTable(title, key, tuple(curves))
