"""Draws the figures of guidance on a Gaussian mixture: Fig. 2, and those of the study."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETUPBASE
from matplotlib.ticker import FixedLocator, NullLocator

from cfg.mixture.distances import SUBCELLS, histogram
from cfg.report import plots

Row = dict[str, Any]

COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')  # of the classes
GAMMA = 0.7  # of their inks: below 1, so that the tails, where the classes overlap, are visible

_COLOURS = (*plots.COLOURS, '#555b63')
_MARKERS = (*plots.MARKERS, '*')
_LINES = ('-', '--')
_COLUMNS = 3  # of panels of samplers
_FAR = 100.0  # further is no number worth reading
_VISIBLE = 0.02  # share of the peak, below which a cell is white to the eye
_FLOOR = '#c9ced4'


class Panels(NamedTuple):
    """Describes a line of panels."""

    guidance: str  # text of the rule
    sampler: str  # and of the sampler
    own_w: bool  # whether the rule has strengths of its own
    # (row, histograms [K, NUM_BINS, NUM_BINS] as shares of the exact density's peak) of each w
    shown: Sequence[tuple[Row, np.ndarray]]


def histograms(x: np.ndarray, *, extent: float) -> np.ndarray:
    """Counts fractions of the samples [K, M, 2] in the cells of the panel: [K, NUM_BINS, NUM_BINS]."""
    return np.stack([histogram(of_class, extent=extent) for of_class in x])


def fig2(columns: Sequence[tuple[Row, np.ndarray, np.ndarray]], drawn_by: str, *, extent: float) -> Figure:
    """Draws Fig. 2: the exact densities above what the sampler draws, a column for each w.

    A column is (row, exact masses on the fine grid of the panel, fractions of samples in its cells), classes first.
    """
    figure = Figure(figsize=(2.1 * len(columns) + 0.5, 4.9), layout='constrained')
    axes = figure.subplots(2, len(columns), sharex=True, sharey=True, squeeze=False)
    for (row, fine, drawn), (above, below) in zip(columns, axes.T, strict=True):
        # Both panels of a column on one scale, so that equal colours mean equal densities.
        peaks = fine.max(axis=(1, 2), keepdims=True) * SUBCELLS**2
        above.set_title(f'$w = {row["w"]:g}$')
        show(above, fine * SUBCELLS**2 / peaks, extent)
        show(below, drawn / peaks, extent)
        below.set_xlabel(f'TV distance {row["total_variation"]:.3f}\n(exact draws: {row["floor"]:.3f})')
    axes[0, 0].set_ylabel(r'exact $p(z \mid c)\, p(c \mid z)^w$')
    axes[1, 0].set_ylabel(f'{_wrapped(drawn_by)} with exact scores')
    return figure


def show(axis: Axes, intensities: np.ndarray, extent: float) -> None:
    """Draws each class in its colour on white; where classes overlap, the colours multiply like inks.

    Intensities are [K, rows, columns], 1 for the full colour.
    """
    colors = np.array([matplotlib.colors.to_rgb(color) for color in COLORS[: len(intensities)]])
    ink = np.clip(intensities, 0.0, 1.0)[..., None] ** GAMMA * (1.0 - colors[:, None, None])
    axis.imshow(np.prod(1.0 - ink, axis=0), origin='lower', extent=[-extent, extent] * 2, interpolation='nearest')
    axis.set_xticks([])
    axis.set_yticks([])


def rules_figure(exact: Sequence[tuple[float, np.ndarray]], panels: Sequence[Panels], *, extent: float) -> Figure:
    """Draws a column for each w, the exact densities first and then a line for each rule, in the colours of Fig. 2.

    `exact` is (w, masses of the cells [K, NUM_BINS, NUM_BINS]) of each column.
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
    """Draws sliced W2 to the exact density against w, a curve for each rule, a panel for each sampler."""
    figure = _distances_figure(rows, panel='sampler', curve='guidance', against='w', top=extent)
    for axis, of_panel in zip(figure.axes, _by(rows, 'sampler'), strict=False):
        axis.set_title(f'{of_panel[0]["sampler"]}, T = {of_panel[0]["num_steps"]}', fontsize=10)
        axis.set_xlabel('guidance strength $w$')
    return figure


def sampler_distances(rows: Sequence[Row], *, extent: float) -> Figure:
    """Draws sliced W2 to the exact density against T, a curve for each sampler, a panel for each w."""
    figure = _distances_figure(rows, panel='w', curve='sampler', against='num_steps', top=extent)
    for axis, of_panel in zip(figure.axes, _by(rows, 'w'), strict=False):
        axis.set_title(f'{of_panel[0]["guidance"]}, $w = {of_panel[0]["w"]:g}$', fontsize=10)
        axis.set_xscale('log', base=2)
        axis.xaxis.set_major_locator(FixedLocator(sorted({row['num_steps'] for row in rows})))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(plots.PLAIN)
        axis.set_xlabel('steps $T$')
    return figure


def _by(rows: Sequence[Row], key: str) -> list[list[Row]]:
    """Groups rows by a value, in the order in which the values come."""
    return [[row for row in rows if row[key] == value] for value in dict.fromkeys(row[key] for row in rows)]


def _distances_figure(rows: Sequence[Row], *, panel: str, curve: str, against: str, top: float) -> Figure:
    """Draws sliced W2 against one value of the rows: a panel and in it a curve for each value of two others."""
    panels = _by(rows, panel)
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns + 2.8, 4.2 * lines + 0.4), layout='constrained')
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    places = {name: place for place, name in enumerate(dict.fromkeys(row[curve] for row in rows))}
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, of_panel in zip(axes, panels, strict=False):
        _band(axis, of_panel, against)
        for of_curve in _by(of_panel, curve):
            name = of_curve[0][curve]
            _curve(axis, of_curve, against, places[name], name, top=top)
        axis.set_yscale('log')
        axis.grid(color='#e3e6ea', linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel('sliced $W_2$ to $p(z|c)\\,p(c|z)^w$')
    entries = {}
    for axis in axes:
        entries |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc='outside right center', frameon=False, fontsize=8.5)
    return figure


def _panel(axis: Axes, shares: np.ndarray, extent: float) -> None:
    axis.set_axis_on()
    show(axis, shares, extent)
    if shares.max() < _VISIBLE:
        axis.text(0.5, 0.5, '(outside)', transform=axis.transAxes, ha='center', va='center', fontsize=8)


def _wrapped(text: str) -> str:
    """Breaks the text of a rule or a sampler into lines beside a panel, the options below the name."""
    name, *options = text.replace('(', '\n(', 1).split('\n')
    return '\n'.join([name, *textwrap.wrap(''.join(options), 26)])


def distance_text(distance: float) -> str:
    """Writes a distance in few characters, however far."""
    return f'> {_FAR:g}' if distance >= _FAR else f'{distance:.3f}'


def _curve(axis: Axes, rows: Sequence[Row], key: str, place: int, label: str, *, top: float) -> None:
    """Draws a curve with the spread over seeds; what is further than `top`, or not finite, is an arrow at the edge."""
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
    """Shades what as many exact draws show: two standard deviations about the mean."""
    floors = sorted({row[key]: row for row in rows}.values(), key=lambda row: row[key])
    middle = np.array([row['floor_sliced_w2'] for row in floors])
    spread = 2.0 * np.array([row['floor_sliced_w2_spread'] for row in floors])
    low, high = np.maximum(middle - spread, 0.5 * middle), middle + spread
    axis.fill_between([row[key] for row in floors], low, high, color=_FLOOR, label='exact draws')
