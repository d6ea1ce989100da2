"""The figures of the study of guidance on a Gaussian mixture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETUPBASE
from matplotlib.ticker import FixedLocator, NullLocator

from cfg.mixture import fig2
from cfg.report import plots

Row = dict[str, Any]

_COLOURS = (*plots.COLOURS, '#555b63')
_MARKERS = (*plots.MARKERS, '*')
_LINES = ('-', '--')
_COLUMNS = 3  # of panels of samplers
_FAR = 100.0  # further is no number worth reading
_VISIBLE = 0.02  # share of the peak, below which a cell is white to the eye
_FLOOR = '#c9ced4'


class Panels(NamedTuple):
    """A line of panels.

    Attributes:
      guidance, sampler: their texts.
      own_w: whether the rule has strengths of its own.
      shown: (row, histograms [K, NUM_BINS, NUM_BINS] as shares of the exact density's peak) of each w.
    """

    guidance: str
    sampler: str
    own_w: bool
    shown: Sequence[tuple[Row, np.ndarray]]


def histograms(x: np.ndarray, *, extent: float) -> np.ndarray:
    """Fractions of the samples [K, M, 2] in the cells of the panel, for each class: [K, NUM_BINS, NUM_BINS]."""
    return np.stack([fig2.histogram(of_class, extent=extent) for of_class in x])


def rules_figure(exact: Sequence[tuple[float, np.ndarray]], panels: Sequence[Panels], *, extent: float) -> Figure:
    """A column for each w, the exact densities first and then a line for each rule, in the colours of Fig. 2.

    Args:
      exact: (w, masses of the cells [K, NUM_BINS, NUM_BINS]) of each column.
      panels: of the rules.
      extent: half the width of a panel.
    """
    columns = max(len(exact), *(len(line.shown) for line in panels))
    lines = 1 + len(panels)
    figure = Figure(figsize=(1.75 * columns + 0.6, 1.98 * lines + 0.2), layout='constrained')
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (w, masses) in zip(axes[0], exact, strict=False):
        _panel(axis, masses / masses.max(axis=(1, 2), keepdims=True), extent)
        axis.set_title(f'$w = {w:g}$', fontsize=10)
    axes[0, 0].set_ylabel('exact\n' + r'$p(z \mid c)\, p(c \mid z)^w$', fontsize=9)
    for line, of_line in zip(panels, axes[1:], strict=True):
        for axis, (row, shares) in zip(of_line, line.shown, strict=False):
            _panel(axis, shares, extent)
            own = f'$w = {row["w"]:g}$:  ' if line.own_w else ''
            axis.set_title(
                f'{own}{distance_text(row["sliced_w2"])} ({distance_text(row["floor_sliced_w2"])})', fontsize=8, pad=3
            )
        of_line[0].set_ylabel(f'{_wrapped(line.guidance)}\n[{_wrapped(line.sampler)}]', fontsize=8)
    figure.suptitle('above each panel: sliced $W_2$ to the exact density (exact draws)', fontsize=9)
    return figure


def rule_distances(rows: Sequence[Row], *, extent: float) -> Figure:
    """Sliced W2 to the exact density against w, a curve for each rule, a panel for each sampler."""
    samplers = list(dict.fromkeys(row['sampler'] for row in rows))
    rules = list(dict.fromkeys(row['guidance'] for row in rows))
    columns = min(_COLUMNS, len(samplers))
    lines = -(-len(samplers) // columns)
    figure = Figure(figsize=(4.2 * columns + 2.8, 4.2 * lines + 0.4), layout='constrained')
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axis in axes[len(samplers) :]:
        axis.set_axis_off()
    for axis, sampler in zip(axes, samplers, strict=False):
        of_sampler = [row for row in rows if row['sampler'] == sampler]
        _band(axis, of_sampler, 'w')
        for place, rule in enumerate(rules):
            _curve(axis, [row for row in of_sampler if row['guidance'] == rule], 'w', place, rule, top=extent)
        axis.set_title(f'{sampler}, T = {of_sampler[0]["num_steps"]}', fontsize=10)
        axis.set_xlabel('guidance strength $w$')
        _tidy(axis)
    for axis in axes[::columns]:
        axis.set_ylabel('sliced $W_2$ to $p(z|c)\\,p(c|z)^w$')
    _legend(figure, axes)
    return figure


def sampler_distances(rows: Sequence[Row], *, extent: float) -> Figure:
    """Sliced W2 to the exact density against T, a curve for each sampler, a panel for each w."""
    strengths = list(dict.fromkeys(row['w'] for row in rows))
    samplers = list(dict.fromkeys(row['sampler'] for row in rows))
    figure = Figure(figsize=(4.0 * len(strengths) + 2.6, 4.0), layout='constrained')
    axes = figure.subplots(1, len(strengths), sharey=True, squeeze=False)[0]
    steps = sorted({row['num_steps'] for row in rows})
    for axis, w in zip(axes, strengths, strict=True):
        of_w = [row for row in rows if row['w'] == w]
        _band(axis, of_w, 'num_steps')
        for place, sampler in enumerate(samplers):
            _curve(axis, [row for row in of_w if row['sampler'] == sampler], 'num_steps', place, sampler, top=extent)
        axis.set_title(f'{of_w[0]["guidance"]}, $w = {w:g}$', fontsize=10)
        axis.set_xscale('log', base=2)
        axis.xaxis.set_major_locator(FixedLocator(steps))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(plots.PLAIN)
        axis.set_xlabel('steps $T$')
        _tidy(axis)
    axes[0].set_ylabel('sliced $W_2$ to $p(z|c)\\,p(c|z)^w$')
    _legend(figure, axes)
    return figure


def _panel(axis: Axes, shares: np.ndarray, extent: float) -> None:
    axis.set_axis_on()
    fig2.show(axis, shares, extent)
    if shares.max() < _VISIBLE:
        axis.text(0.5, 0.5, '(outside)', transform=axis.transAxes, ha='center', va='center', fontsize=8)


def _wrapped(text: str) -> str:
    """A recipe in lines that fit beside a panel: its options below its name."""
    return text.replace('(', '\n(', 1)


def distance_text(distance: float) -> str:
    """A distance in few characters, however far."""
    return f'> {_FAR:g}' if distance >= _FAR else f'{distance:.3f}'


def _curve(axis: Axes, rows: Sequence[Row], key: str, place: int, label: str, *, top: float) -> None:
    """A curve with the spread over seeds; what is further than `top`, or not finite, is an arrow at the edge."""
    if not rows:
        return
    rows = sorted(rows, key=lambda row: row[key])
    x = np.array([row[key] for row in rows])
    y = np.array([row['sliced_w2'] for row in rows])
    spread = np.array([row['sliced_w2_spread'] or 0.0 for row in rows])
    color = _COLOURS[place % len(_COLOURS)]
    off = ~(y < top)
    y, spread = np.where(off, top, y), np.where(off, 0.0, spread)
    axis.errorbar(
        x,
        y,
        yerr=[np.minimum(spread, 0.5 * y), np.minimum(spread, top - y)],
        color=color,
        linestyle=_LINES[place // len(_COLOURS) % len(_LINES)],
        marker=_MARKERS[place % len(_MARKERS)],
        # Curves that coincide stay visible: the later ones are thinner.
        markersize=max(8.0 - 0.5 * place, 3.0),
        linewidth=max(3.0 - 0.25 * place, 1.2),
        capsize=2,
        label=label,
    )
    axis.plot(x[off], y[off], color=color, marker=CARETUPBASE, markersize=10, linestyle='none')
    if off.any():
        axis.plot([], [], color=_COLOURS[-1], marker=CARETUPBASE, linestyle='none', label='above the axis')


def _band(axis: Axes, rows: Sequence[Row], key: str) -> None:
    """What as many exact draws show: two standard deviations about the mean."""
    floors = sorted({row[key]: row for row in rows}.values(), key=lambda row: row[key])
    middle = np.array([row['floor_sliced_w2'] for row in floors])
    spread = 2.0 * np.array([row['floor_sliced_w2_spread'] for row in floors])
    low, high = np.maximum(middle - spread, 0.5 * middle), middle + spread
    axis.fill_between([row[key] for row in floors], low, high, color=_FLOOR, label='exact draws')


def _tidy(axis: Axes) -> None:
    axis.set_yscale('log')
    axis.grid(color='#e3e6ea', linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ('top', 'right'):
        axis.spines[side].set_visible(False)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    entries = {}
    for axis in axes:
        entries |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc='outside right center', frameon=False, fontsize=8.5)
