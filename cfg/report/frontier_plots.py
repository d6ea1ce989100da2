"""Draws the pictures of `--mode=compare`, and names settings."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from cfg.report import frontier, plots
from cfg.report.curves import grouped, phrase
from cfg.report.frontier import Point, Setting

FIELDS = ('network', 'step', 'guidance', 'sampler', 'grid', 'num_steps', 'logvar_interp', 'networks')
RULE = ('network', 'step', 'guidance', 'networks')
WAY = ('sampler', 'grid', 'num_steps', 'logvar_interp')
# Rules in one plot; more have a panel each.
_TOGETHER = 5
_COLUMNS = 3
_LEGEND_CHARACTERS = 145  # a line of the legend, in the width of a picture
# Of lines that only say where others are.
_BEHIND = {'color': '#b7bec6', 'linewidth': 1.0, 'markersize': 3, 'zorder': 1}


def namer(settings: Sequence[Setting], fields: Sequence[str] = FIELDS, lone: bool = True) -> Callable[[Setting], str]:
    """Returns what names settings: only by what differs; `lone`: by the rule, if nothing does, and the rest."""
    # Of samplers without v it says nothing that the sampler does not.
    values = {name: {getattr(setting, name) for setting in settings} - {None} for name in fields}
    differing = [name for name in fields if len(values[name]) > 1] or ['guidance'] * lone
    rests = [dict(setting.rest) for setting in settings]
    keys = [key for key in (rests[0] if rests else ()) if any(rest[key] != rests[0][key] for rest in rests)]

    def name(setting: Setting) -> str:
        found = [(field, getattr(setting, field)) for field in differing]
        found = [(field, value) for field, value in found if value is not None]
        return ', '.join(phrase(*item) for item in [*found, *((key, dict(setting.rest)[key]) for key in keys)])

    return name


def figure_frontier(found: Sequence[Point], title: str) -> Figure:
    """Draws FID against the inception score, a line a setting through its w, with spreads over repetitions as bars.

    Where there are too many rules for one plot each has a panel, with those of 'cfg', or of the first rule, in grey.
    """
    lines, limit = frontier.curves(found), _limit(found)
    styles, name = _styles(lines), namer(list(lines))
    rules = list(grouped(lines, lambda setting: setting.rule).values())
    many = len(rules) > _TOGETHER
    shown = rules if many else [list(lines)]
    columns = _COLUMNS if many else 1
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(10, 0.7 + 2.6 * rows) if many else (9, 7), layout='constrained')
    axes_of_all = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    panels = axes_of_all[: len(shown)]
    for axes in axes_of_all[len(shown) :]:
        axes.remove()
    if many:
        name, way = namer(list(lines), RULE), namer(list(lines), WAY, lone=False)
        reference = next((settings for settings in rules if settings[0].guidance == 'cfg'), rules[0])
    told = set()
    for axes, settings in zip(panels, shown, strict=True):
        if many:
            axes.set_title(name(settings[0]), fontsize=9, color=plots.INK)
            for setting in reference if settings is not reference else ():
                _draw(axes, lines[setting], **(styles[setting] | _BEHIND))
            if not any(_shown(point, limit) for setting in settings for point in lines[setting]):
                _say(axes, 'not shown')
        for setting in settings:
            # Ways of sampling are told apart once, by the first line of each.
            label = name(setting) if not many else '' if setting.way in told else way(setting)
            _draw(axes, lines[setting], label=label or None, **styles[setting])
            told.add(setting.way)
    scores = [point.inception_score for point in found if _shown(point, limit)]
    for place, axes in enumerate(panels):
        lowest = place >= len(panels) - columns
        plots.tidy(axes, x=plots.SCORE * lowest, y=plots.FID * (place % columns == 0))
        axes.tick_params(labelbottom=lowest)
        if scores:
            margin = 0.05 * (max(scores) - min(scores)) or 0.1
            axes.set_xlim(min(scores) - margin, max(scores) + margin)
    if not scores:
        _say(panels[0], 'no row has both a FID and an inception score')
    _finish(figure, panels, found, limit, title)
    return figure


def figure_cost(found: Sequence[Point], title: str) -> Figure:
    """Draws the lowest FID over w against the cost of a sample, a line for each rule and sampler through its T."""
    figure = Figure(figsize=(9, 7), layout='constrained')
    axes = figure.subplots()
    name = namer([point.setting for point in found], tuple(field for field in FIELDS if field != 'num_steps'))
    lines = {}
    for members in grouped(found, lambda point: dataclasses.replace(point.setting, num_steps=0)).values():
        best = map(frontier.best, grouped(members, lambda point: point.setting.num_steps).values())
        if line := sorted(filter(None, best), key=lambda point: point.cost):
            lines[members[0].setting] = line
    for line, style in zip(lines.values(), _styles(lines).values(), strict=True):
        _draw(axes, line, x='cost', label=name(line[0].setting), **style)
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(plots.PLAIN)
    plots.tidy(axes, x='network evaluations for one sample', y='lowest FID over w')
    _finish(figure, [axes], [point for line in lines.values() for point in line], _limit(found), title)
    return figure


def _draw(axes: Axes, line: Sequence[Point], *, x: str = 'inception_score', **style: Any) -> None:
    """Draws FID against another value of points, with spreads over repetitions as bars."""
    spreads = {'yerr': 'fid_spread'} | ({'xerr': 'inception_score_spread'} if x == 'inception_score' else {})
    bars = {name: np.nan_to_num([getattr(point, spread) for point in line]) for name, spread in spreads.items()}
    axes.errorbar([getattr(point, x) for point in line], [point.fid for point in line], elinewidth=0.8, **bars, **style)


def _shown(point: Point, limit: float) -> bool:
    return point.fid <= limit and math.isfinite(point.inception_score)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha='center', color=plots.MUTED)


def _styles(settings: Iterable[Setting]) -> dict[Setting, dict[str, Any]]:
    """Picks a colour for each rule, and a kind of line for each way to sample it."""
    rules = list(dict.fromkeys(setting.rule for setting in settings))
    ways = list(dict.fromkeys(setting.way for setting in settings))
    return {each: plots.styles_of(rules.index(each.rule), ways.index(each.way)) for each in settings}


def _limit(found: Sequence[Point]) -> float:
    """Returns the largest FID that is drawn, so that what has failed does not hide what is compared."""
    return 12.0 * min((point.fid for point in found if point.fid > 0), default=math.inf)


def _finish(figure: Figure, panels: Sequence[Axes], drawn: Sequence[Point], limit: float, title: str) -> None:
    """Sets the scale of FID, the same in all panels, the title with what it leaves out, and the legend."""
    shown = [point for point in drawn if 0 < point.fid <= limit]
    positive = [point.fid for point in shown]
    top = 1.1 * max((point.fid + np.nan_to_num(point.fid_spread) for point in shown), default=0.0)
    for axes in panels:
        if positive and max(positive) > plots.LOG_RATIO * min(positive):
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter(plots.PLAIN)
            if len(panels) > 1:  # too small for a label at every digit
                axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(plots.PLAIN)
            axes.set_ylim(0.8 * min(positive), top)
        elif positive:
            axes.set_ylim(0.0, top)
    outside = sum(point.fid > limit for point in drawn)
    note = f'\n{outside} points of FID above {limit:.3g} are not shown' if outside else ''
    figure.suptitle(f'{title}{note}', fontsize=9, color=plots.MUTED)
    labels = [label for axes in panels for label in axes.get_legend_handles_labels()[1]]
    if labels:
        columns = max(1, min(3, _LEGEND_CHARACTERS // (max(map(len, labels)) + 6)))
        figure.legend(loc='outside lower center', ncols=columns, frameon=False, fontsize=8)
