"""The paper's Tables 1 and 2, the numbers behind its Fig. 4 and 5."""

import csv
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfg.report.curves import Curve
from cfg.report.rows import Row
from cfg.runtime.errors import UserError

NUM_SAMPLES = 50_000  # of each number in the tables
NUM_STEPS = 256  # T where the paper does not state it, from the authors' related work


@dataclass(frozen=True)
class PaperCurve:
    """One model of a table, or one T.

    Attributes:
        setting: value of p_uncond or T.
        label: for people.
        w: guidance strengths, ascending [N].
        fid: [N].
        inception_score: [N].
    """

    setting: float
    label: str
    w: np.ndarray
    fid: np.ndarray
    inception_score: np.ndarray

    @property
    def best_fid(self) -> int:
        """Index of the lowest FID."""
        return int(np.argmin(self.fid))

    @property
    def best_inception_score(self) -> int:
        """Index of the highest inception score."""
        return int(np.argmax(self.inception_score))


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        title: what it is of.
        figure: the figure of the paper that draws it.
        key: what its columns differ in, 'p_uncond' or 'num_steps'.
        curves: one for each value of it.
    """

    title: str
    figure: str
    key: str
    curves: tuple[PaperCurve, ...]

    def match(self, curve: Curve) -> PaperCurve | None:
        """The paper's curve of the setting of one of ours, if there is one and ours is drawn as the paper does it."""
        row = curve.rows[0]
        if row.source.sampling.departures:
            return None
        return next((paper for paper in self.curves if paper.setting == self.setting_of(row)), None)

    def setting_of(self, row: Row) -> float:
        """The p_uncond or T of a row of ours."""
        return row.p_uncond if self.key == 'p_uncond' else row.source.sampling.num_steps


# Name of the file -> title, figure, what the columns differ in, how it is written in a column's name and in a label.
_TABLES = {
    'table1_imagenet64': ('Table 1, ImageNet 64x64', 'Fig. 4', 'p_uncond', 'p', 'p_uncond = {}'),
    'table2_imagenet128': ('Table 2, ImageNet 128x128', 'Fig. 5', 'num_steps', 'T', 'T = {}'),
}


def paper_table(name: str) -> PaperTable:
    """A table of the paper, from the package's data.

    Raises:
        UserError: there is no such table.
    """
    if name not in _TABLES:
        raise UserError(f'The paper has no table {name!r}: give one of {", ".join(_TABLES)}.')
    title, figure, key, prefix, label = _TABLES[name]
    text = importlib.resources.files('cfg.report').joinpath('tables', f'{name}.csv').read_text(encoding='utf-8')
    lines = list(csv.DictReader(text.splitlines()))
    start = f'fid_{prefix}'
    settings = [column.removeprefix(start) for column in lines[0] if column.startswith(start)]

    def column(column_name: str) -> np.ndarray:
        return np.array([float(line[column_name]) for line in lines])

    return PaperTable(
        title=title,
        figure=figure,
        key=key,
        curves=tuple(
            PaperCurve(
                setting=float(setting),
                label=label.format(setting),
                w=column('w'),
                fid=column(f'fid_{prefix}{setting}'),
                inception_score=column(f'is_{prefix}{setting}'),
            )
            for setting in settings
        ),
    )


def names() -> Sequence[str]:
    """The names of the tables."""
    return tuple(_TABLES)
