"""Draws the plots of a guidance sweep: FID and inception score against w, and against each other (Fig. 4)."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

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


def figure_against_w(curves: Sequence[Curve], paper: PaperTable | None) -> Figure:
    """Draws FID and inception score against w, one above the other; the paper's curves too, if there are any."""
    floor_style = {'color': MUTED, 'linestyle': '--', 'linewidth': 1.1}
    figure = _figure(_legend_entries(curves, Line2D([], [], **floor_style), paper))
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, name in ((upper, 'fid'), (lower, 'inception_score')):
        for curve, style in zip(curves, styles(len(curves)), strict=True):
            w, values = curve.w, curve.values(name)
            axes.plot(w, values, **style)
            _mark_bests(axes, curve, w, values, style['color'])
        for theirs, style in _paper_styles(curves, paper):
            axes.plot(theirs.w, getattr(theirs, name), **style)
        for floor in floors(curves).values():
            axes.axhline(number(getattr(floor.beside, f'floor_{name}')), zorder=1, **floor_style)
        tidy(axes)
        axes.margins(y=0.08)
    figure.align_ylabels()
    upper.set_title(features_of([row for curve in curves for row in curve.rows]), fontsize=9, color=MUTED)
    upper.set_ylabel('FID (lower is better)', color=INK)
    lower.set_ylabel('inception score (higher is better)', color=INK)
    lower.set_xlabel('guidance strength w (asinh scale; 0 is not guided)', color=INK)
    _scale_fid(upper, curves, paper)
    theirs = paper.curves if paper else ()
    _scale_w(lower, sorted({w for curve in curves for w in curve.w} | {w for c in theirs for w in c.w}))
    return figure


def figure_fid_against_is(curves: Sequence[Curve], paper: PaperTable | None) -> Figure:
    """Draws FID against inception score, a point for each w (Fig. 4 and 5); the paper's curves too, if any."""
    figure = _figure(_legend_entries(curves, Line2D([], [], **_FLOOR_POINT), paper))
    axes = figure.subplots()
    own = styles(len(curves))
    for curve, style in zip(curves, own, strict=True):
        scores, fids = curve.values('inception_score'), curve.values('fid')
        axes.plot(scores, fids, **style)
        _mark_bests(axes, curve, scores, fids, style['color'])
    for theirs, style in _paper_styles(curves, paper):
        axes.plot(theirs.inception_score, theirs.fid, **style)
    for floor in floors(curves).values():
        axes.plot(floor.beside.floor_inception_score, floor.beside.floor_fid, **_FLOOR_POINT)
    tidy(axes)
    axes.margins(0.09)
    axes.set_title(features_of([row for curve in curves for row in curve.rows]), fontsize=9, color=MUTED)
    axes.set_xlabel('inception score (higher is better)', color=INK)
    axes.set_ylabel('FID (lower is better)', color=INK)
    _scale_fid(axes, curves, paper)
    # The labels are placed in pixels, so the layout has to be final before.
    FigureCanvasAgg(figure).draw()
    figure.set_layout_engine('none')
    _annotate_w(axes, curves, [style['color'] for style in own], paper)
    return figure


_FLOOR_POINT = {'marker': 'X', 'markersize': 8, 'color': MUTED, 'linestyle': 'none', 'markeredgecolor': 'white'}


def styles(count: int) -> list[dict]:
    """Returns the line style of each curve; the last one has the first colour and stands in front."""
    return [styles_of(place) | {'linewidth': 1.8, 'zorder': 3 - place / count} for place in reversed(range(count))]


def styles_of(number: int, variant: int = 0) -> dict:
    """Returns the line style of the curve of this number, different for 49; variants share its colour and marker."""
    cycle = len(COLOURS)
    return {
        'color': COLOURS[number % cycle],
        'marker': MARKERS[(number + number // cycle) % len(MARKERS)],
        'markersize': 5,
        'linewidth': 1.5,
        'linestyle': ('-', '--', ':', '-.')[variant % 4],
    }


# Of the paper's curves: one that has a curve of ours beside it takes its colour, the others these.
_PAPER_COLOURS = ('#8a939c', '#b9a27a', '#93b0a0')
_PAPER_MARKERS = ('o', 's', '^')


def _paper_styles(curves: Sequence[Curve], paper: PaperTable | None) -> list[tuple[PaperCurve, dict]]:
    """Returns the paper's curves with their styles: thin and with hollow points, behind ours."""
    if paper is None:
        return []
    colours = {}
    for curve, style in zip(curves, styles(len(curves)), strict=True):
        match = paper.match(curve)
        if match is not None:
            colours[match.setting] = style['color']  # the last one is the final checkpoint
    return [
        (
            theirs,
            {
                'color': colours.get(theirs.setting, _PAPER_COLOURS[place % len(_PAPER_COLOURS)]),
                'marker': _PAPER_MARKERS[place % len(_PAPER_MARKERS)],
                'markersize': 4.5,
                'markerfacecolor': 'white',
                'linestyle': (0, (4, 2)),
                'linewidth': 1.0,
                'zorder': 1.8,
                'label': f'paper, {theirs.label}',
            },
        )
        for place, theirs in enumerate(paper.curves)
    ]


_BEST_FID = {'marker': '*', 'markersize': 13, 'markeredgecolor': 'white', 'markeredgewidth': 1.0, 'linestyle': 'none'}
_BEST_IS = {'marker': '*', 'markersize': 17, 'markerfacecolor': 'white', 'markeredgewidth': 1.2, 'linestyle': 'none'}


def _mark_bests(axes: Axes, curve: Curve, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """Draws a hollow star at the highest inception score, and a filled one, that fits into it, at the lowest FID."""
    if curve.best_inception_score is not None:
        place = curve.best_inception_score
        axes.plot(x[place], y[place], **_BEST_IS, markeredgecolor=colour, zorder=3.9)
    if curve.best_fid is not None:
        axes.plot(x[curve.best_fid], y[curve.best_fid], **_BEST_FID, color=colour, zorder=4)


def features_of(rows: Sequence[Row]) -> str:
    """Says of which features scores are, above a plot: a picture is often shown without its page."""
    return f'FID and IS with the features of: {" and ".join(dict.fromkeys(row.method.features for row in rows))}'


def tidy(axes: Axes) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(MUTED)
    axes.tick_params(color=MUTED, labelcolor=INK, labelsize=9)
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)


def _scale_fid(axes: Axes, curves: Sequence[Curve], paper: PaperTable | None) -> None:
    """Makes the y axis logarithmic where FID spans so much that a linear one would hide the small values."""
    fids = np.concatenate([curve.values('fid') for curve in curves])
    fids = np.append(fids, [floor.beside.floor_fid for floor in floors(curves).values()])
    fids = np.concatenate([fids, *(curve.fid for curve in (paper.curves if paper else ()))])
    fids = fids[np.isfinite(fids)]
    if not len(fids) or fids.min() <= 0 or fids.max() / fids.min() < LOG_RATIO:
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


def _legend_entries(curves: Sequence[Curve], floor: Line2D, paper: PaperTable | None) -> list[tuple[Line2D, str]]:
    """Returns the handles and labels of the legend; `floor` is how the plot draws the floors of real data."""
    entries = []
    for curve, style in zip(curves, styles(len(curves)), strict=True):
        note = _bests(curve.w, curve.values('fid'), curve.values('inception_score'), curve)
        entries.append((Line2D([], [], **style), curve.label + note))
    stars = (_BEST_FID | {'color': INK}, _BEST_IS | {'markeredgecolor': INK})
    for star, name in zip(stars, ('FID', 'IS'), strict=True):
        entries.append((Line2D([], [], **star), f'best {name} of the curve'))
    for theirs, style in _paper_styles(curves, paper):
        note = _bests(theirs.w, theirs.fid, theirs.inception_score, theirs)
        entries.append((Line2D([], [], **style), style['label'] + note))
    entries += [(floor, f'floor: {label}') for label in floors(curves)]
    return [
        (handle, textwrap.fill(label, _LEGEND_CHARACTERS, break_on_hyphens=False, break_long_words=False))
        for handle, label in entries
    ]


def _bests(w: np.ndarray, fid: np.ndarray, score: np.ndarray, curve: Curve | PaperCurve) -> str:
    """Returns the lowest FID and the highest inception score of a curve, in brackets; nothing where there is none."""
    places = (('FID', fid, curve.best_fid), ('IS', score, curve.best_inception_score))
    parts = [f'best {name} {score_text(of[at])} at w = {w[at]:g}' for name, of, at in places if at is not None]
    return f' ({", ".join(parts)})' if parts else ''


def _figure(legend: Sequence[tuple[Line2D, str]]) -> Figure:
    """Makes a figure with the legend on top, and below it the same room whatever the legend's length."""
    lines = sum(label.count('\n') + 1 for _, label in legend)
    figure = Figure(figsize=(6.0, 5.8 + 0.2 * lines), dpi=200, layout='constrained')
    handles, labels = zip(*legend, strict=True)
    figure.legend(handles, labels, loc='outside upper left', fontsize=9, frameon=False, labelcolor=INK)
    return figure


def _annotate_w(axes: Axes, curves: Sequence[Curve], colours: Sequence[str], paper: PaperTable | None) -> None:
    """Writes w beside the points where there is room: the ends first, then the best, then the others."""
    canvas = FigureCanvasAgg(axes.figure)
    renderer = canvas.get_renderer()
    tracks = [_pixels(axes, curve.values('inception_score'), curve.values('fid')) for curve in curves]
    theirs = [_pixels(axes, curve.inception_score, curve.fid) for curve in (paper.curves if paper else ())]
    taken = [_around(point, 5 if at_point else 2) for track in tracks + theirs for point, at_point in _along(track)]
    unit = axes.figure.dpi / 72
    jobs = []
    for curve, track, colour in zip(curves, tracks, colours, strict=True):
        ends, bests = {0, len(curve.rows) - 1}, {curve.best_fid, curve.best_inception_score}
        for i in np.flatnonzero(np.isfinite(track).all(axis=1)):
            rank, reach = 0 if i in ends else 1 if i in bests else 2, 10 if i in bests else 7
            jobs.append((rank, reach, curve.w[i], track[i], colour))
    for rank, reach, w, point, colour in sorted(jobs, key=lambda job: job[0]):
        for dx, dy, horizontal, vertical in _SIDES:
            text = axes.annotate(
                f'w = {w:g}' if rank == 0 else f'{w:g}',
                axes.transData.inverted().transform(point),
                (dx * reach, dy * reach),
                textcoords='offset points',
                ha=horizontal,
                va=vertical,
                fontsize=8.5,
                color=colour,
                fontweight='bold' if rank == 0 else 'normal',
                annotation_clip=False,
            )
            box = text.get_window_extent(renderer).padded(unit)
            inside = axes.figure.bbox.x0 <= box.x0 and box.x1 <= axes.figure.bbox.x1 and box.y0 >= axes.bbox.y0
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


_SIDES = (
    (0.0, 1.0, 'center', 'bottom'),
    (0.0, -1.0, 'center', 'top'),
    (1.0, 0.0, 'left', 'center'),
    (-1.0, 0.0, 'right', 'center'),
    (0.8, 0.8, 'left', 'bottom'),
    (0.8, -0.8, 'left', 'top'),
    (-0.8, 0.8, 'right', 'bottom'),
    (-0.8, -0.8, 'right', 'top'),
)


def _pixels(axes: Axes, scores: np.ndarray, fids: np.ndarray) -> np.ndarray:
    """Returns a curve's points in pixels of the figure, [N, 2]."""
    return axes.transData.transform(np.stack([scores, fids], axis=1))


def _along(track: np.ndarray) -> list[tuple[np.ndarray, bool]]:
    """Returns places along the line through the points, each with whether it is one of the points."""
    places = [(point, True) for point in track if np.isfinite(point).all()]
    for start, end in itertools.pairwise(track):
        length = np.hypot(*(end - start))
        if np.isfinite(length):
            places += [(start + (end - start) * t, False) for t in np.arange(0, 1, 6 / max(length, 6.0))]
    return places


def _around(point: np.ndarray, radius: float) -> Bbox:
    return Bbox([point - radius, point + radius])


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    FigureCanvasAgg(figure).print_png(path)
