"""Draws the plots of a guidance sweep: the scores against w, and FID against inception score (Fig. 4)."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from cfg.report.curves import Curve, floors, number
from cfg.report.paper import PaperCurve, PaperTable
from cfg.report.rows import Row
from cfg.report.tables import score_text

# The last curve (the final checkpoint) always takes the first of these.
COLOURS = ('#1f5aa6', '#d9730d', '#2b8a57', '#9a3f9e', '#b8332e', '#0f8b9d', '#7a6a12')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
INK = '#1b1f24'
MUTED = '#6a737d'
_RULE = '#e3e6ea'

# Width in w of the nearly linear part of the w axis, beyond which it grows like a logarithm: small enough to set
# 0.1, 0.2 and 0.3 apart, large enough not to give them most of the axis.
_W_LINEAR = 0.2
# Above this ratio of the largest to the smallest FID, the smaller ones can be told apart on a logarithmic axis only.
LOG_RATIO = 8.0

PLAIN = FuncFormatter(lambda value, _: f'{value:g}')  # of ticks on a logarithmic axis, without powers

_LEGEND_CHARACTERS = 78  # a line of the legend, in the width of a plot

FID, SCORE = 'FID (lower is better)', 'inception score (higher is better)'
_PANELS = {'fid': FID, 'inception_score': SCORE, 'fd_dinov2': 'FD-DINOv2 (lower is better)'}
_FLOOR_LINE = {'color': MUTED, 'linestyle': '--', 'linewidth': 1.1}
_FLOOR_POINT = {'marker': 'X', 'markersize': 8, 'color': MUTED, 'linestyle': 'none', 'markeredgecolor': 'white'}
# A filled star at the lowest FID fits into a hollow one at the highest inception score, and a small diamond at the
# lowest FD-DINOv2 into both.
_STAR = {'marker': '*', 'linestyle': 'none'}
_STARS = {
    'fid': _STAR | {'markersize': 13, 'markeredgecolor': 'white', 'markeredgewidth': 1.0, 'zorder': 4},
    'inception_score': _STAR | {'markersize': 17, 'markerfacecolor': 'white', 'markeredgewidth': 1.2, 'zorder': 3.9},
    'fd_dinov2': _STAR | {'marker': 'd', 'markersize': 7, 'markeredgecolor': INK, 'zorder': 4.1},
}
_NAMES = {'fid': 'FID', 'inception_score': 'IS', 'fd_dinov2': 'FD-DINOv2'}
_ENDS = {'fid': 'lowest', 'inception_score': 'highest', 'fd_dinov2': 'lowest'}  # which errors may make no best

# Of the paper's curves: one that has a curve of ours beside it takes its colour, the others these.
_PAPER_COLOURS = ('#8a939c', '#b9a27a', '#93b0a0')
# Thin and with hollow points, behind ours.
_PAPER = {
    'markersize': 4.5,
    'markerfacecolor': 'white',
    'linestyle': (0, (4, 2)),
    'linewidth': 1.0,
    'zorder': 1.8,
}

Line = tuple[Curve | PaperCurve, dict[str, Any]]  # with its style, in which is its label


def figure_against_w(curves: Sequence[Curve], paper: PaperTable | None) -> Figure:
    """Draws the scores against w, one above the other; the paper's curves too, if there are any."""
    lines, names = _lines(curves, paper), _scores(curves)
    figure = _figure(lines, curves, _FLOOR_LINE, height=2.9 * len(names))
    panels = dict(zip(names, figure.subplots(len(names), 1, sharex=True), strict=True))
    for name, axes in panels.items():
        _draw(axes, lines, 'w', name)
        for floor in floors(curves).values():
            axes.axhline(number(getattr(floor.beside, f'floor_{name}')), zorder=1, **_FLOOR_LINE)
        axes.margins(y=0.08)
        tidy(axes, y=_PANELS[name])
        if name != 'inception_score':
            _scale_distance(axes, lines, curves, name)
    figure.align_ylabels()
    panels['fid'].set_title(features_of([row for curve in curves for row in curve.rows]), fontsize=9, color=MUTED)
    axes.set_xlabel('guidance strength w (asinh scale; 0 is not guided)', color=INK)
    _scale_w(axes, sorted({w for curve, _ in lines for w in curve.w}))
    return figure


def _scores(curves: Sequence[Curve]) -> list[str]:
    """Returns the names of the scores that have a panel: FD-DINOv2 where it was measured, the others always."""
    return [name for name in _PANELS if name != 'fd_dinov2' or any(name in curve.bests for curve in curves)]


def figure_fid_against_is(curves: Sequence[Curve], paper: PaperTable | None) -> Figure:
    """Draws FID against inception score, a point for each w (Fig. 4 and 5); the paper's curves too, if any."""
    lines = _lines(curves, paper)
    figure = _figure(lines, curves, _FLOOR_POINT)
    axes = figure.subplots()
    _draw(axes, lines, 'inception_score', 'fid')
    for floor in floors(curves).values():
        axes.plot(floor.beside.floor_inception_score, floor.beside.floor_fid, **_FLOOR_POINT)
    axes.margins(0.09)
    axes.set_title(features_of([row for curve in curves for row in curve.rows]), fontsize=9, color=MUTED)
    tidy(axes, x=SCORE, y=FID)
    _scale_distance(axes, lines, curves, 'fid')
    # The labels are placed in pixels, so the layout has to be final before.
    FigureCanvasAgg(figure).draw()
    figure.set_layout_engine('none')
    _annotate_w(axes, lines)
    return figure


def styles_of(number: int, variant: int = 0) -> dict[str, Any]:
    """Returns the line style of the curve of this number, different for 49; variants share its colour and marker."""
    cycle = len(COLOURS)
    return {
        'color': COLOURS[number % cycle],
        'marker': MARKERS[(number + number // cycle) % len(MARKERS)],
        'markersize': 5,
        'linewidth': 1.5,
        'linestyle': ('-', '--', ':', '-.')[variant % 4],
    }


def _lines(curves: Sequence[Curve], paper: PaperTable | None) -> list[Line]:
    """Returns our curves, of which the last has the first colour and stands in front, and then the paper's."""
    lines, colours = [], {}
    for place, curve in zip(reversed(range(len(curves))), curves, strict=True):
        style = {'linewidth': 1.8, 'zorder': 3 - place / len(curves), 'label': curve.label}
        lines.append((curve, styles_of(place) | style))
        if paper and (match := paper.match(curve)):
            colours[match.setting] = COLOURS[place % len(COLOURS)]  # the last one is the final checkpoint
    for place, theirs in enumerate(paper.curves if paper else ()):
        colour = colours.get(theirs.setting, _PAPER_COLOURS[place % len(_PAPER_COLOURS)])
        style = {'color': colour, 'marker': MARKERS[place % 3], 'label': f'paper, {theirs.label}'}
        lines.append((theirs, _PAPER | style))
    return lines


def _draw(axes: Axes, lines: Sequence[Line], x: str, y: str) -> None:
    """Draws lines, with a mark at the lowest or highest of each score of each of ours."""
    for curve, style in lines:
        xs, ys = getattr(curve, x), getattr(curve, y)
        axes.plot(xs, ys, **style)
        ends = {f'{axis}err': curve.errors(name) for axis, name in (('x', x), ('y', y))}
        ends = {axis: errors for axis, errors in ends.items() if np.isfinite(errors).any()}
        if ends:  # one standard error to each side
            axes.errorbar(xs, ys, **ends, fmt='none', ecolor=style['color'], elinewidth=1, zorder=style['zorder'])
        for name, place in curve.bests.items() if isinstance(curve, Curve) else ():
            axes.plot(xs[place], ys[place], **_STARS[name], color=style['color'])


def features_of(rows: Sequence[Row]) -> str:
    """Says of which features scores are, above a plot: a picture is often shown without its page."""
    return f'FID and IS with the features of: {" and ".join(dict.fromkeys(row.method.features for row in rows))}'


def tidy(axes: Axes, *, x: str = '', y: str = '') -> None:
    """Gives axes the looks of all our plots, and labels."""
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(MUTED)
    axes.tick_params(color=MUTED, labelcolor=INK, labelsize=9)
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)


def _scale_distance(axes: Axes, lines: Sequence[Line], curves: Sequence[Curve], name: str) -> None:
    """Makes the y axis logarithmic where a distance spans so much that a linear one would hide the small values."""
    values = np.array([number(getattr(floor.beside, f'floor_{name}')) for floor in floors(curves).values()])
    values = np.concatenate([values, *(getattr(curve, name) for curve, _ in lines)])
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0 or values.max() / values.min() < LOG_RATIO:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f'{axes.get_ylabel()[:-1]}; log scale)', color=INK)


def _scale_w(axes: Axes, ws: Sequence[float]) -> None:
    """Spreads small w apart and puts a tick at each w, but for those too near to the one before."""
    axes.set_xscale('function', functions=(lambda w: np.arcsinh(w / _W_LINEAR), lambda x: _W_LINEAR * np.sinh(x)))
    places = np.arcsinh(np.array(ws) / _W_LINEAR)
    span = max(float(np.ptp(places)), 1e-9)
    axes.set_xlim(*(_W_LINEAR * np.sinh([places[0] - 0.04 * span, places[-1] + 0.04 * span])))
    kept = [0]
    for i in range(1, len(ws)):
        if (places[i] - places[kept[-1]]) / span > 0.055:
            kept.append(i)
    axes.xaxis.set_major_locator(FixedLocator([ws[i] for i in kept]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PLAIN)


def _figure(lines: Sequence[Line], curves: Sequence[Curve], floor: dict[str, Any], *, height: float = 5.8) -> Figure:
    """Makes a figure with the legend on top, and below it `height` inches whatever the legend's length."""
    entries = [(style, style['label'] + _bests(curve)) for curve, style in lines]
    stars = [(_STARS[name] | {'color': INK}, f'{_ENDS[name]} {_NAMES[name]} of the curve') for name in _scores(curves)]
    entries[len(curves) : len(curves)] = stars
    entries += [(floor, label) for label in floors(curves)]
    labels = [
        textwrap.fill(label, _LEGEND_CHARACTERS, break_on_hyphens=False, break_long_words=False) for _, label in entries
    ]
    lines_of_legend = sum(label.count('\n') + 1 for label in labels)
    figure = Figure(figsize=(6.0, height + 0.2 * lines_of_legend), dpi=200, layout='constrained')
    handles = [Line2D([], [], **style) for style, _ in entries]
    figure.legend(handles, labels, loc='outside upper left', fontsize=9, frameon=False, labelcolor=INK)
    return figure


def _bests(curve: Curve | PaperCurve) -> str:
    """Returns the lowest or highest of each score of a curve, in brackets; nothing where there is none."""
    parts = [
        f'{_ENDS[name]} {_NAMES[name]} {score_text(getattr(curve, name)[at])} at w = {curve.w[at]:g}'
        for name, at in curve.bests.items()
    ]
    return f' ({", ".join(parts)})' if parts else ''


def _annotate_w(axes: Axes, lines: Sequence[Line]) -> None:
    """Writes w beside the points of our lines where there is room: the ends first, then the best, then the others."""
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    taken, jobs = [], []
    for curve, style in lines:
        points, segments = np.stack([curve.inception_score, curve.fid], axis=1), []
        for place, name in enumerate(('inception_score', 'fid')):  # the bars of errors
            reach = np.zeros_like(points)
            reach[:, place] = curve.errors(name)
            segments += zip(*(axes.transData.transform(points + sign * reach) for sign in (-1, 1)), strict=True)
        track = axes.transData.transform(points)  # in pixels, [N, 2]
        finite = np.flatnonzero(np.isfinite(track).all(axis=1))
        taken += [Bbox([track[i] - 5, track[i] + 5]) for i in finite]
        for start, end in (*itertools.pairwise(track), *segments):
            length = np.hypot(*(end - start))
            if np.isfinite(length):
                along = [start + (end - start) * t for t in np.arange(0, 1, 6 / max(length, 6.0))]
                taken += [Bbox([place - 2, place + 2]) for place in along]
        for i in finite if isinstance(curve, Curve) else ():
            best = i in curve.bests.values()
            rank = 0 if i in (0, len(track) - 1) else 1 if best else 2
            jobs.append((rank, 10 if best else 7, curve.w[i], track[i], style['color']))
    for rank, reach, w, point, colour in sorted(jobs, key=lambda job: job[0]):
        for dx, dy in _SIDES:
            text = axes.annotate(
                f'w = {w:g}' if rank == 0 else f'{w:g}',
                axes.transData.inverted().transform(point),
                (dx * reach, dy * reach),
                textcoords='offset points',
                ha=('center', 'left', 'right')[int(np.sign(dx))],
                va=('center', 'bottom', 'top')[int(np.sign(dy))],
                fontsize=8.5,
                color=colour,
                fontweight='bold' if rank == 0 else 'normal',
                annotation_clip=False,
            )
            box = text.get_window_extent(renderer).padded(axes.figure.dpi / 72)
            inside = axes.figure.bbox.x0 <= box.x0 and box.x1 <= axes.figure.bbox.x1 and box.y0 >= axes.bbox.y0
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


_SIDES = ((0, 1), (0, -1), (1, 0), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8))  # of a point


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    FigureCanvasAgg(figure).print_png(path)
