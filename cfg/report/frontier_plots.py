"""Draws the pictures of `--mode=compare`, and names settings."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from cfg.report import frontier, plots
from cfg.report.curves import phrase
from cfg.report.frontier import Point, Setting

FIELDS = ('step', 'guidance', 'sampler', 'grid', 'num_steps', 'logvar_interp', 'networks')
# Of a setting: what is the rule, and not the way to sample it.
_RULE = ('step', 'guidance', 'networks', 'rest')
# Rules in one plot; more have a panel each.
_TOGETHER = 5
_COLUMNS = 3
_LEGEND_CHARACTERS = 145  # a line of the legend, in the width of a picture


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


def rule_namer(settings: Sequence[Setting]) -> Callable[[Setting], str]:
    """Returns what names the rule of each setting; by the rule alone if nothing else differs."""
    return namer(settings, ('step', 'guidance', 'networks'))


def way_namer(settings: Sequence[Setting]) -> Callable[[Setting], str]:
    """Returns what names the way each setting is sampled; '' if all are sampled alike."""
    return namer(settings, ('sampler', 'grid', 'num_steps', 'logvar_interp'), lone=False)


def figure_frontier(found: Sequence[Point], title: str) -> Figure:
    """Draws FID against the inception score, a line a setting through its w, with spreads over repetitions as bars.

    Where there are too many rules for one plot each has a panel, with those of 'cfg', or of the first rule, in grey.
    """
    lines, limit = frontier.curves(found), _limit(found)
    by_rule: dict[tuple, list[Setting]] = {}
    for setting in lines:
        by_rule.setdefault(rule_of(setting), []).append(setting)
    styles = dict(zip(lines, _styles(lines), strict=True))
    if len(by_rule) <= _TOGETHER:
        figure = Figure(figsize=(9, 7), layout='constrained')
        panels = lowest = leftmost = [figure.subplots()]
        name = namer(list(lines))
        for setting, line in lines.items():
            _draw(panels[0], line, label=name(setting), **styles[setting])
    else:
        rows = math.ceil(len(by_rule) / _COLUMNS)
        figure = Figure(figsize=(10, 0.7 + 2.6 * rows), layout='constrained')
        panels = list(figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).flat)
        for axes in panels[len(by_rule) :]:
            axes.remove()
        panels = panels[: len(by_rule)]
        lowest, leftmost = panels[-_COLUMNS:], panels[::_COLUMNS]
        name, way = rule_namer(list(lines)), way_namer(list(lines))
        reference = next(
            (rule for rule, (first, *_) in by_rule.items() if first.guidance == 'cfg'), next(iter(by_rule))
        )
        for axes, (rule, settings) in zip(panels, by_rule.items(), strict=True):
            axes.set_title(name(settings[0]), fontsize=9, color=plots.INK)
            if rule != reference:
                for setting in by_rule[reference]:
                    _draw(axes, lines[setting], **(styles[setting] | _BEHIND))
            for setting in settings:
                # Ways of sampling are told apart once, by the lines of the reference.
                label = way(setting) if rule == reference else ''
                _draw(axes, lines[setting], label=label or None, **styles[setting])
            if not any(_shown(point, limit) for setting in settings for point in lines[setting]):
                _say(axes, 'not shown')
    scores = [point.inception_score for point in found if _shown(point, limit)]
    for axes in panels:
        plots.tidy(axes)
        if scores:
            margin = 0.05 * (max(scores) - min(scores)) or 0.1
            axes.set_xlim(min(scores) - margin, max(scores) + margin)
    if not scores:
        _say(panels[0], 'no row has both a FID and an inception score')
    for axes in lowest:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel('inception score (higher is better)', color=plots.INK)
    for axes in leftmost:
        axes.set_ylabel('FID (lower is better)', color=plots.INK)
    _finish(figure, panels, found, limit, title)
    return figure


def _shown(point: Point, limit: float) -> bool:
    return point.fid <= limit and math.isfinite(point.inception_score)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha='center', color=plots.MUTED)


# Of lines that only say where others are.
_BEHIND = {'color': '#b7bec6', 'linewidth': 1.0, 'markersize': 3, 'zorder': 1}


def _draw(axes: Axes, line: Sequence[Point], **style: Any) -> None:
    axes.errorbar(
        [point.inception_score for point in line],
        [point.fid for point in line],
        xerr=[_bar(point.inception_score_spread) for point in line],
        yerr=[_bar(point.fid_spread) for point in line],
        elinewidth=0.8,
        **style,
    )


def figure_cost(found: Sequence[Point], title: str) -> Figure:
    """Draws the lowest FID over w against the cost of a sample, a line for each rule and sampler through its T."""
    figure = Figure(figsize=(9, 7), layout='constrained')
    axes = figure.subplots()
    name = namer([point.setting for point in found], tuple(field for field in FIELDS if field != 'num_steps'))
    families: dict[tuple, list[Point]] = {}
    for point in found:
        families.setdefault(_key(point.setting, ('num_steps',)), []).append(point)
    lines = {}
    for members in families.values():
        groups: dict[int, list[Point]] = {}
        for point in members:
            groups.setdefault(point.setting.num_steps, []).append(point)
        line = sorted(filter(None, map(frontier.best, groups.values())), key=lambda point: point.cost)
        if line:
            lines[members[0].setting] = line
    for line, style in zip(lines.values(), _styles(lines), strict=True):
        axes.errorbar(
            [point.cost for point in line],
            [point.fid for point in line],
            yerr=[_bar(point.fid_spread) for point in line],
            label=name(line[0].setting),
            elinewidth=0.8,
            **style,
        )
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(plots.PLAIN)
    plots.tidy(axes)
    axes.set_xlabel('network evaluations for one sample', color=plots.INK)
    axes.set_ylabel('lowest FID over w', color=plots.INK)
    best = [point for line in lines.values() for point in line]
    _finish(figure, [axes], best, _limit(found), title)
    return figure


def rule_of(setting: Setting) -> tuple:
    """Returns what makes two settings the same rule."""
    return tuple(getattr(setting, name) for name in _RULE)


def _key(setting: Setting, without: Sequence[str]) -> tuple:
    return tuple(getattr(setting, name) for name in (*FIELDS, 'rest') if name not in without)


def _styles(settings: Iterable[Setting]) -> list[dict]:
    """Picks a colour for each rule, and a kind of line for each way to sample it."""
    rules, ways, found = [], [], []
    for setting in settings:
        rule, way = rule_of(setting), _key(setting, _RULE)
        rules += [rule] * (rule not in rules)
        ways += [way] * (way not in ways)
        found.append(plots.styles_of(rules.index(rule), ways.index(way)))
    return found


def _limit(found: Sequence[Point]) -> float:
    """Returns the largest FID that is drawn, so that what has failed does not hide what is compared."""
    return 12.0 * min((point.fid for point in found if point.fid > 0), default=math.inf)


def _bar(spread: float) -> float:
    return 0.0 if math.isnan(spread) else spread


def _finish(figure: Figure, panels: Sequence[Axes], drawn: Sequence[Point], limit: float, title: str) -> None:
    """Sets the scale of FID, the same in all panels, the title with what it leaves out, and the legend."""
    positive = [point.fid for point in drawn if 0 < point.fid <= limit]
    for axes in panels:
        if positive and max(positive) > plots.LOG_RATIO * min(positive):
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter(plots.PLAIN)
            if len(panels) > 1:  # too small for a label at every digit
                axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(plots.PLAIN)
            axes.set_ylim(0.8 * min(positive), 1.1 * max(positive))
        elif positive:
            axes.set_ylim(0.0, 1.1 * max(positive))
    outside = sum(point.fid > limit for point in drawn)
    note = f'\n{outside} points of FID above {limit:.3g} are not shown' if outside else ''
    figure.suptitle(f'{title}{note}', fontsize=9, color=plots.MUTED)
    labels = [label for axes in panels for label in axes.get_legend_handles_labels()[1]]
    if labels:
        columns = max(1, min(3, _LEGEND_CHARACTERS // (max(map(len, labels)) + 6)))
        figure.legend(loc='outside lower center', ncols=columns, frameon=False, fontsize=8)
