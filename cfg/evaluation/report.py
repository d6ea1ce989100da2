"""The report of a guidance sweep: plots, sample grids, a table, and a page that holds them together."""

import csv
import dataclasses
import itertools
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from cfg.data.grids import mosaic
from cfg.errors import UserError
from cfg.evaluation import page
from cfg.evaluation.results import (
    Curve,
    Row,
    Samples,
    floors,
    group_curves,
    is_complete,
    load_samples,
    mixed_order,
    number,
    read_rows,
)

# The last curve (the final checkpoint) always takes the first of these.
_COLOURS = ('#1f5aa6', '#d9730d', '#2b8a57', '#9a3f9e', '#b8332e', '#0f8b9d', '#7a6a12')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
_INK = '#1b1f24'
_MUTED = '#6a737d'
_RULE = '#e3e6ea'

# Width in w of the nearly linear part of the w axis, beyond which it grows like a logarithm: small enough to set
# 0.1, 0.2 and 0.3 apart, large enough not to give them most of the axis.
_W_LINEAR = 0.2
# Above this ratio of the largest to the smallest FID, the smaller ones can be told apart on a logarithmic axis only.
_LOG_RATIO = 8.0

_LEGEND_CHARACTERS = 78  # a line of the legend, in the width of a plot

_MAX_PANELS = 6
_PANEL_PIXELS = 480  # about the width of a panel of a static grid
_PAGE_SAMPLES = 200
_PAGE_SAMPLE_PIXELS = 100 * 64 * 64  # of one (step, w) on the page: bounds the page's size

_CSV_KEYS = ('step', 'w', 'fid', 'inception_score', 'accuracy', 'num_samples', 'features', 'seed')


@dataclasses.dataclass(frozen=True)
class _Picked:
    """The few samples of one file that the report shows."""

    page: Samples
    mixed: Samples
    one_class: Samples


def write_report(
    workdir: str | Path,
    *,
    class_names: Sequence[str],
    title: str,
    grid_w: Sequence[float],
    grid_shape: tuple[int, int],
    one_class: int,
) -> Path:
    """Writes the report of `workdir`/results.jsonl to `workdir`/report.

    The folder then holds fid_is_vs_w.png, fid_vs_is.png, table.csv, index.html and, where sample files are
    left, grid_random_classes.png and grid_one_class.png of the last step; the grids of each earlier step
    have the step in their name (..._step000300.png).

    Args:
        workdir: folder of results.jsonl; the paths of sample files in it are relative to this folder.
        class_names: name of each label.
        title: title of the page.
        grid_w: guidance strengths of the panels of the grids; those without samples are skipped. If none
            has samples, the panels are of up to six of those that have.
        grid_shape: rows and columns of a panel.
        one_class: label of the samples of grid_one_class.png.

    Returns:
        The path of index.html.

    Raises:
        UserError: there are no results, results.jsonl is damaged, or `one_class` is not a label.
    """
    workdir = Path(workdir)
    if not 0 <= one_class < len(class_names):
        raise UserError(f'one_class is {one_class}, which is not a label: give one from 0 to {len(class_names) - 1}.')
    rows = read_rows(workdir / 'results.jsonl')
    complete = [row for row in rows if is_complete(row)]
    if not complete:
        raise UserError(f'{workdir / "results.jsonl"} has no complete row: run --mode=eval first.')
    curves = group_curves(complete)
    output = workdir / 'report'
    output.mkdir(exist_ok=True)

    write_table(output / 'table.csv', curves)
    plot_against_w(output / 'fid_is_vs_w.png', curves)
    plot_fid_against_is(output / 'fid_vs_is.png', curves)

    picked = _pick_all(workdir, curves, grid_shape=grid_shape, one_class=one_class)
    notices = _incomplete_notice(len(rows) - len(complete)) + _missing_notice(curves, picked)
    for curve in _curve_of_each_step(curves, picked):
        suffix = '' if curve.step == curves[-1].step else f'_step{curve.step:06d}'
        panels = _panel_rows(curve, picked, grid_w)
        mixed = [(row, picked[row['samples']].mixed) for row in panels]
        single = [(row, picked[row['samples']].one_class) for row in panels]
        if panels:
            caption = f'{curve.label}: samples of all classes; a cell has the same seed and class in every panel'
            draw_grid(output / f'grid_random_classes{suffix}.png', mixed, grid_shape, caption)
        if any(len(samples.labels) for _, samples in single):
            caption = f'{curve.label}: samples of class "{class_names[one_class]}"; a cell has the same seed throughout'
            draw_grid(output / f'grid_one_class{suffix}.png', single, grid_shape, caption)
        elif panels:
            notices.append(f'No sample at step {curve.step:,} is of class "{class_names[one_class]}".')

    return page.write_page(
        output / 'index.html',
        title=title,
        curves=curves,
        samples={path: pick.page for path, pick in picked.items()},
        class_names=class_names,
        plots=(output / 'fid_is_vs_w.png', output / 'fid_vs_is.png'),
        notices=notices,
    )


def write_table(path: Path, curves: Sequence[Curve]) -> None:
    """Writes all rows of the curves as CSV, every key a column; objects are written as JSON."""
    rows = [row for curve in curves for row in curve.rows]
    columns = list(dict.fromkeys([*_CSV_KEYS, *(key for row in rows for key in row)]))
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns, restval='')
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()})


# Plots.


def plot_against_w(path: Path, curves: Sequence[Curve]) -> None:
    """Draws FID and inception score against w, one above the other."""
    floor_style = {'color': _MUTED, 'linestyle': '--', 'linewidth': 1.1}
    figure = _figure(_legend_entries(curves, Line2D([], [], **floor_style)))
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, name in ((upper, 'fid'), (lower, 'inception_score')):
        for curve, style in zip(curves, _styles(len(curves)), strict=True):
            w, values = curve.values('w'), curve.values(name)
            axes.plot(w, values, **style)
            if curve.best_fid is not None:
                _mark_best(axes, w[curve.best_fid], values[curve.best_fid], style['color'])
        for floor in floors(curves).values():
            axes.axhline(number(floor, f'floor_{name}'), zorder=1, **floor_style)
        _tidy(axes)
        axes.margins(y=0.08)
    figure.align_ylabels()
    upper.set_ylabel('FID (lower is better)', color=_INK)
    lower.set_ylabel('inception score (higher is better)', color=_INK)
    lower.set_xlabel('guidance strength w (asinh scale; 0 is not guided)', color=_INK)
    _scale_fid(upper, curves)
    _scale_w(lower, sorted({w for curve in curves for w in curve.values('w')}))
    _save(figure, path)


def plot_fid_against_is(path: Path, curves: Sequence[Curve]) -> None:
    """Draws FID against inception score, a point for each w."""
    figure = _figure(_legend_entries(curves, Line2D([], [], **_FLOOR_POINT)))
    axes = figure.subplots()
    styles = _styles(len(curves))
    for curve, style in zip(curves, styles, strict=True):
        scores, fids = curve.values('inception_score'), curve.values('fid')
        axes.plot(scores, fids, **style)
        if curve.best_fid is not None:
            _mark_best(axes, scores[curve.best_fid], fids[curve.best_fid], style['color'])
    for floor in floors(curves).values():
        axes.plot(number(floor, 'floor_inception_score'), number(floor, 'floor_fid'), **_FLOOR_POINT)
    _tidy(axes)
    axes.margins(0.09)
    axes.set_xlabel('inception score (higher is better)', color=_INK)
    axes.set_ylabel('FID (lower is better)', color=_INK)
    _scale_fid(axes, curves)
    # The labels are placed in pixels, so the layout has to be final before.
    FigureCanvasAgg(figure).draw()
    figure.set_layout_engine('none')
    _annotate_w(axes, curves, [style['color'] for style in styles])
    _save(figure, path)


_FLOOR_POINT = {'marker': 'X', 'markersize': 8, 'color': _MUTED, 'linestyle': 'none', 'markeredgecolor': 'white'}


def _styles(count: int) -> list[dict]:
    """The line style of each curve; the last one stands in front."""
    return [
        {
            'color': _COLOURS[place % len(_COLOURS)],
            'marker': _MARKERS[place % len(_MARKERS)],
            'markersize': 5,
            'linewidth': 1.8,
            'zorder': 3 - place / count,
        }
        for place in reversed(range(count))
    ]


def _mark_best(axes: Axes, x: float, y: float, colour: str) -> None:
    axes.plot(x, y, marker='*', markersize=15, color=colour, markeredgecolor='white', markeredgewidth=1.0, zorder=4)


def _tidy(axes: Axes) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(_MUTED)
    axes.tick_params(color=_MUTED, labelcolor=_INK, labelsize=9)
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)


def _scale_fid(axes: Axes, curves: Sequence[Curve]) -> None:
    """Makes the y axis logarithmic where FID spans so much that a linear one would hide the small values."""
    fids = np.concatenate([curve.values('fid') for curve in curves])
    fids = np.append(fids, [number(floor, 'floor_fid') for floor in floors(curves).values()])
    fids = fids[np.isfinite(fids)]
    if not len(fids) or fids.min() <= 0 or fids.max() / fids.min() < _LOG_RATIO:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f'{axes.get_ylabel()[:-1]}; log scale)', color=_INK)


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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))


def _legend_entries(curves: Sequence[Curve], floor: Line2D) -> list[tuple[Line2D, str]]:
    """The handles and labels of the legend; `floor` is how the plot draws the floors of real data."""
    entries = []
    for curve, style in zip(curves, _styles(len(curves)), strict=True):
        best = curve.rows[curve.best_fid] if curve.best_fid is not None else None
        note = f' (best FID {page.score_text(best["fid"])} at w = {best["w"]:g})' if best else ''
        entries.append((Line2D([], [], **style), curve.label + note))
    star = Line2D([], [], marker='*', markersize=12, color=_INK, markeredgecolor='white', linestyle='none')
    entries.append((star, 'best FID of the curve'))
    entries += [(floor, f'floor: {label}') for label in floors(curves)]
    return [
        (handle, textwrap.fill(label, _LEGEND_CHARACTERS, break_on_hyphens=False, break_long_words=False))
        for handle, label in entries
    ]


def _figure(legend: Sequence[tuple[Line2D, str]]) -> Figure:
    """A figure with the legend on top, and below it the same room whatever the legend's length."""
    lines = sum(label.count('\n') + 1 for _, label in legend)
    figure = Figure(figsize=(6.0, 5.8 + 0.2 * lines), dpi=200, layout='constrained')
    handles, labels = zip(*legend, strict=True)
    figure.legend(handles, labels, loc='outside upper left', fontsize=9, frameon=False, labelcolor=_INK)
    return figure


def _annotate_w(axes: Axes, curves: Sequence[Curve], colours: Sequence[str]) -> None:
    """Writes w beside the points where there is room: the ends first, then the best, then the others."""
    canvas = FigureCanvasAgg(axes.figure)
    renderer = canvas.get_renderer()
    tracks = [_pixels(axes, curve) for curve in curves]
    taken = [_around(point, 5 if at_point else 2) for track in tracks for point, at_point in _along(track)]
    unit = axes.figure.dpi / 72
    jobs = []
    for curve, track, colour in zip(curves, tracks, colours, strict=True):
        ends = {0, len(curve.rows) - 1}
        for i in np.flatnonzero(np.isfinite(track).all(axis=1)):
            jobs.append((0 if i in ends else 1 if i == curve.best_fid else 2, curve.rows[i]['w'], track[i], colour))
    for rank, w, point, colour in sorted(jobs, key=lambda job: job[0]):
        for dx, dy, horizontal, vertical in _SIDES:
            text = axes.annotate(
                f'w = {w:g}' if rank == 0 else f'{w:g}',
                axes.transData.inverted().transform(point),
                (dx * 7, dy * 7),
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


def _pixels(axes: Axes, curve: Curve) -> np.ndarray:
    """The curve's points in pixels of the figure, [len(rows), 2]."""
    return axes.transData.transform(np.stack([curve.values('inception_score'), curve.values('fid')], axis=1))


def _along(track: np.ndarray) -> list[tuple[np.ndarray, bool]]:
    """Places along the line through the points, each with whether it is one of the points."""
    places = [(point, True) for point in track if np.isfinite(point).all()]
    for start, end in itertools.pairwise(track):
        length = np.hypot(*(end - start))
        if np.isfinite(length):
            places += [(start + (end - start) * t, False) for t in np.arange(0, 1, 6 / max(length, 6.0))]
    return places


def _around(point: np.ndarray, radius: float) -> Bbox:
    return Bbox([point - radius, point + radius])


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(path)


# Grids.


def draw_grid(path: Path, panels: Sequence[tuple[Row, Samples]], shape: tuple[int, int], caption: str) -> None:
    """Draws a panel of samples for each row, pixel for pixel (enlarged by whole factors only).

    Args:
        path: the PNG to write.
        panels: (row, samples); cell i of each panel is sample i, and cells without a sample stay empty.
        shape: rows and columns of cells of a panel.
        caption: one line above the panels.
    """
    mosaics = [mosaic(samples.images, shape, width=_PANEL_PIXELS) for _, samples in panels]
    height, width = mosaics[0].shape[:2]
    columns = len(panels) if len(panels) <= 4 else math.ceil(len(panels) / 2)
    lines = math.ceil(len(panels) / columns)
    margin, head, top = 24, 58, 44
    total = (margin + columns * (width + margin), top + lines * (head + height) + margin)
    dpi = 100
    figure = Figure(figsize=(total[0] / dpi, total[1] / dpi), dpi=dpi)
    caption_text = figure.text(margin / total[0], 1 - 26 / total[1], caption, fontsize=10, color=_MUTED)
    # Narrow panels get the short form of a caption that would be cut.
    if caption_text.get_window_extent(FigureCanvasAgg(figure).get_renderer()).x1 > total[0]:
        caption_text.set_text(caption.split(':')[0])
    for i, ((row, _), picture) in enumerate(zip(panels, mosaics, strict=True)):
        x = margin + (i % columns) * (width + margin)
        y = total[1] - top - (i // columns + 1) * (head + height)
        figure.figimage(picture, xo=x, yo=y, origin='upper')
        place = (y + height) / total[1]
        name = f'w = {row["w"]:g}' + (' (not guided)' if row['w'] == 0 else '')
        scores = '   '.join(
            f'{short} {page.score_text(number(row, key))}'
            for short, key in (('FID', 'fid'), ('IS', 'inception_score'))
            if key in row
        )
        figure.text(x / total[0], place + 28 / total[1], name, fontsize=13, color=_INK, fontweight='bold')
        figure.text(x / total[0], place + 9 / total[1], scores, fontsize=10, color=_MUTED)
    _save(figure, path)


def _pick_all(
    workdir: Path, curves: Sequence[Curve], *, grid_shape: tuple[int, int], one_class: int
) -> dict[str, _Picked]:
    """What the report shows of each sample file that is left, by its path; one file is in memory at a time."""
    picked = {}
    for path in dict.fromkeys(row['samples'] for curve in curves for row in curve.rows if row.get('samples')):
        samples = load_samples(workdir / path)
        if samples is not None and len(samples.labels):
            picked[path] = _pick(samples, cells=grid_shape[0] * grid_shape[1], one_class=one_class)
    return picked


def _pick(samples: Samples, *, cells: int, one_class: int) -> _Picked:
    order = mixed_order(samples.labels)
    height, width = samples.images.shape[1:3]
    page_count = max(1, min(_PAGE_SAMPLES, _PAGE_SAMPLE_PIXELS // (height * width)))
    return _Picked(
        page=samples.take(order[:page_count]),
        mixed=samples.take(order[:cells]),
        one_class=samples.take(np.flatnonzero(samples.labels == one_class)[:cells]),
    )


def _panel_rows(curve: Curve, picked: Mapping[str, _Picked], grid_w: Sequence[float]) -> list[Row]:
    """The rows of the panels: those of `grid_w`, else up to six spread over all that have samples."""
    available = [row for row in curve.rows if row.get('samples') in picked]
    wanted = [row for w in grid_w for row in available if math.isclose(row['w'], w, abs_tol=1e-9)]
    if wanted or len(available) <= _MAX_PANELS:
        return wanted or available
    return [available[i] for i in np.linspace(0, len(available) - 1, _MAX_PANELS).round().astype(int)]


def _curve_of_each_step(curves: Sequence[Curve], picked: Mapping[str, _Picked]) -> list[Curve]:
    """For each step, the curve with samples at the most w; the newest of equals."""
    chosen: dict[int, Curve] = {}
    for curve in curves:
        rival = chosen.get(curve.step)
        if rival is None or _sampled(curve, picked) >= _sampled(rival, picked):
            chosen[curve.step] = curve
    return list(chosen.values())


def _sampled(curve: Curve, picked: Mapping[str, _Picked]) -> int:
    return sum(row.get('samples') in picked for row in curve.rows)


def _incomplete_notice(count: int) -> list[str]:
    return [f'Rows of results.jsonl that lack a score are left out: {count}.'] if count else []


def _missing_notice(curves: Sequence[Curve], picked: Mapping[str, _Picked]) -> list[str]:
    """One sentence that names the rows without samples, or nothing."""
    parts = []
    for curve in curves:
        ws = [f'{row["w"]:g}' for row in curve.rows if row.get('samples') not in picked]
        if ws:
            parts.append(f'{curve.label}: w = {", ".join(ws)}')
    if not parts:
        return []
    return [
        f'The sample files of these rows are missing or unreadable, so their grids are missing ({"; ".join(parts)}).'
    ]
