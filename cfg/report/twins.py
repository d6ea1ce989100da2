"""Sets rules beside their twins: how strong Eq. 6 would be in their place, and whether they are more than that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cfg.report import frontier, plots, strengths
from cfg.report.curves import grouped, number
from cfg.report.frontier import Run, Setting
from cfg.report.frontier_plots import namer
from cfg.report.results import Results
from cfg.report.rows import Row
from cfg.report.strengths import RowStrength

_SAME = 0.05  # what a difference may be of the twin's FID for the rule to be called CFG in other words
_COLUMNS = 3


@dataclass(frozen=True)
class Twinned:
    """A setting at one w with its strength and its twin, over all repetitions."""

    setting: Setting
    w: float
    logsnr: np.ndarray  # [K]
    w_eff: np.ndarray  # means over repetitions, [K]
    remainder: np.ndarray  # likewise
    fids: tuple[float, ...]  # of each repetition that has both
    twins: tuple[float, ...]  # of its twin there; empty for Eq. 6 itself
    costs: tuple[float, float]  # of a sample, in evaluations of the model, and of one of its twin

    @property
    def difference(self) -> float:
        """Returns the mean over repetitions of FID - FID of the twin; nan where there is none."""
        return float(np.mean(np.subtract(self.fids, self.twins))) if self.twins else math.nan

    @property
    def spread(self) -> float:
        """Returns the standard deviation of these differences (n - 1); nan for fewer than two."""
        return float(np.std(np.subtract(self.fids, self.twins), ddof=1)) if len(self.twins) > 1 else math.nan

    @property
    def verdict(self) -> str:
        """Says in words what the difference means beside its spread."""
        count = len(self.twins)
        if count < 2:
            return 'no spread is known' if count else ''
        chance = frontier.chance(self.spread, count)
        if abs(self.difference) + chance <= _SAME * float(np.mean(self.twins)):
            return 'CFG in other words'
        if abs(self.difference) <= chance:
            return 'not told apart'
        return 'better than its twin' if self.difference < 0 else 'worse than its twin'


def twinned(origins: Sequence[Run]) -> list[Twinned]:
    """Returns the settings of some runs whose strength was measured, in the order of their rows.

    Repetitions are those of `frontier.points`; sampling seeds of a run count as their mean where there are several
    runs. Only those count that have a row and that of its twin, with a FID.
    """
    several = frontier.repeated(origins)
    found: dict[tuple[Setting, float], list[tuple[int, RowStrength, tuple[float, float], float, float | None]]] = {}
    for origin in origins:
        rows = Results(origin.folder).read()
        by_identity = {row.identity: row for row in rows}
        for row in rows:
            strength = None if row.apart else strengths.read(origin.folder, row.identity)
            if strength is None:
                continue
            twin = by_identity.get(strength.twin_row)
            if strength.twin and twin is None:
                continue
            costs = row.cost, twin.cost if twin else row.cost
            entry = origin.seed if several else row.source.seed, strength, costs, number(row.scores.fid), _fid(twin)
            found.setdefault((frontier.setting_of(row, origin.network), row.source.w), []).append(entry)
    return [_twinned(*key, entries) for key, entries in found.items()]


def _fid(row: Row | None) -> float | None:
    return None if row is None else number(row.scores.fid)


def _twinned(
    setting: Setting, w: float, entries: Sequence[tuple[int, RowStrength, tuple[float, float], float, float | None]]
) -> Twinned:
    groups = grouped(entries, lambda entry: entry[0]).values()
    both = [np.mean([(fid, twin) for *_, fid, twin in group], axis=0) for group in groups if group[0][4] is not None]
    both = [pair for pair in both if np.isfinite(pair).all()]
    measured = [strength for _, strength, *_ in entries]
    return Twinned(
        setting,
        w,
        np.array(measured[0].logsnr),
        np.mean([strength.w_eff for strength in measured], axis=0),
        np.mean([strength.remainder for strength in measured], axis=0),
        tuple(float(fid) for fid, _ in both),
        tuple(float(twin) for _, twin in both),
        entries[0][2],
    )


def table(found: Sequence[Twinned]) -> list[list[str]]:
    """Returns a line for each setting that is no Eq. 6 by its definition, below a line of headings."""
    name = namer([one.setting for one in found])
    lines = [['guidance', 'w', 'w_eff', 'remainder', 'cost', 'cost of its twin', 'FID', 'FID of its twin']]
    lines[0] += ['difference', 'repetitions', 'verdict']
    for one in found:
        if not one.twins:
            continue
        ends = sorted((float(one.w_eff.min()), float(one.w_eff.max())))
        spread = '' if math.isnan(one.spread) else f' ± {one.spread:.3f}'
        lines.append(
            [
                *(name(one.setting), f'{one.w:g}', f'{ends[0]:.2f} to {ends[1]:.2f}'),
                *(f'{float(one.remainder.max()):.0%}', *(f'{cost:g}' for cost in one.costs)),
                *(f'{np.mean(one.fids):.3f}', f'{np.mean(one.twins):.3f}', f'{one.difference:+.3f}{spread}'),
                *(str(len(one.twins)), one.verdict),
            ]
        )
    return lines


def save_figure(found: Sequence[Twinned], path: Path) -> None:
    """Draws w_eff over logsnr and, below it, the remaining share: two panels for each rule, a line for each w."""
    shown = [one for one in found if one.twins]
    rules = list(grouped(shown, lambda one: (one.setting.rule, one.setting.way)).values())
    name, columns = namer([one.setting for one in shown]), min(_COLUMNS, len(rules))
    rows = math.ceil(len(rules) / columns)
    figure = Figure(figsize=(1.0 + 3.2 * columns, 0.6 + 3.6 * rows), layout='constrained')
    axes_of_all = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, height_ratios=[3, 2] * rows)
    colours = {w: plots.COLOURS[i % len(plots.COLOURS)] for i, w in enumerate(sorted({one.w for one in shown}))}
    for place in range(rows * columns):
        upper, lower = (axes_of_all[2 * (place // columns) + part, place % columns] for part in (0, 1))
        if place >= len(rules):
            for axes in (upper, lower):
                axes.remove()
            continue
        for one in rules[place]:
            upper.plot(one.logsnr, one.w_eff, color=colours[one.w], marker='o', markersize=2.5, label=f'w = {one.w:g}')
            lower.plot(one.logsnr, one.remainder, color=colours[one.w], marker='o', markersize=2.5)
        first = place % columns == 0
        upper.set_title(name(rules[place][0].setting), fontsize=9, color=plots.INK)
        plots.tidy(upper, y='w_eff' * first)
        plots.tidy(lower, x='logsnr', y='remainder' * first)
        values = [value for one in rules[place] for value in (0.0, *one.w_eff)]
        upper.set_ylim(min(values) - 0.05 * np.ptp(values), max(values) + 0.1 * np.ptp(values) or 1.0)
        lower.set_ylim(0.0, 1.0)
        upper.legend(frameon=False, fontsize=7)
    plots.save(figure, path)
