"""Writes what a search found: fresh scores of the setting that it chose beside those of plain guidance, and its rungs.

The scores that it chose by are lower than those of other samples would be, and are not told.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfg.report import frontier, html
from cfg.report.rows import Row
from cfg.runtime.files import write_whole

FOLDER = 'tune'


@dataclass(frozen=True)
class Fresh:
    """These are the rows of one setting on fresh seeds, in the order of the seeds."""

    words: str  # of the setting
    rows: tuple[Row, ...]

    @property
    def fids(self) -> np.ndarray:
        """Returns the FID of each seed, float64 [seeds]."""
        return np.array([row.scores.fid for row in self.rows])

    @property
    def cells(self) -> list[str]:
        """Returns the setting, what a sample costs, and the scores."""
        scores = [self.fids, np.array([row.scores.inception_score for row in self.rows])]
        return [self.words, str(self.rows[0].evaluations), *map(_spread, scores)]


@dataclass(frozen=True)
class Round:
    """This is a rung as it was: its settings in words, best first, of which the first `kept` went on."""

    samples: int
    words: tuple[str, ...]
    kept: int


HEADS = ('setting', 'evaluations', 'FID', 'IS')


def _spread(values: np.ndarray, sign: str = '') -> str:
    return f'{values.mean():{sign}.3f} ± {values.std(ddof=1):.3f}'


def verdict(chosen: Fresh, beside: Fresh | None) -> str:
    """Returns a sentence on whether what was chosen is better than what stands beside it, by the 95 % interval."""
    if beside is None:
        return 'Nothing stands beside it: the last rung had no plain cfg, or had nothing else.'
    less = chosen.fids - beside.fids
    low, high = (less.mean() + side * frontier.chance(less.std(ddof=1), len(less)) for side in (-1, 1))
    better = 'better' if high < 0 else 'worse' if low > 0 else 'not told apart from it'
    other = 'plain cfg' if beside.rows[0].source.sampling.guidance == 'cfg' else 'the best that is not plain cfg'
    return (
        f'FID less that of {other}, seed by seed: {_spread(less, "+")}. '
        f'The 95 % interval of the mean is {low:+.3f} to {high:+.3f}: it is {better}.'
    )


def config_text(setting: Mapping[str, Any]) -> str:
    """Returns lines for a config file that say a setting, {'sampling.w': (0.5,), ...}."""
    return ''.join(f'config.{name} = {value!r}\n' for name, value in setting.items())


def flags(setting: Mapping[str, Any]) -> str:
    """Returns the same as words of a command line."""
    return shlex.join(f'--config.{name}={value}' for name, value in setting.items())


def write(
    workdir: Path,
    *,
    chosen: Fresh,
    beside: Fresh | None,
    setting: Mapping[str, Any],
    rounds: Sequence[Round],
    notes: Sequence[str],
) -> str:
    """Writes `tune`/tuned.py and `tune`/index.html; returns what to print.

    Args:
      chosen: the setting that was found.
      beside: plain guidance at the best that the search found for it, or the best other setting if that is chosen.
      setting: the fields of a config that make the setting.
      notes: sentences on the candidates.
    """
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    table = [fresh.cells for fresh in filter(None, (chosen, beside))]
    row = chosen.rows[0]
    of = f'{len(chosen.rows)} fresh seeds of {row.method.num_samples:,} samples each, mean ± standard deviation'
    scored = f'features: {row.method.features}; reference: {row.beside.reference}'
    lines = [': '.join([cells[0], ', '.join(map(' '.join, zip(HEADS[1:], cells[1:], strict=True)))]) for cells in table]
    lines += [verdict(chosen, beside), f'{of}; {scored}']
    text = config_text(setting)
    head = ''.join(f'# {line}\n' for line in lines)
    write_whole(folder / 'tuned.py', f'{head}{text}# {flags(setting)}\n'.encode())
    page = html.write(
        folder / 'index.html',
        'tune.html',
        heads=HEADS,
        table=table,
        verdict=verdict(chosen, beside),
        of=f'{of}; {scored}',
        text=text,
        flags=flags(setting),
        rounds=rounds,
        notes=notes,
    )
    return '\n'.join([*lines, '', text, flags(setting), '', str(folder / 'tuned.py'), str(page)])
