"""The report of a guidance sweep: plots, sample grids, a table, and a page that holds them together."""

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cfg.data.grids import mosaic
from cfg.report import beside_paper as side_by_side
from cfg.report import page, plots
from cfg.report.columns import present, score_text
from cfg.report.latex import Cell, tabular
from cfg.report.paper import paper_table
from cfg.report.results import (
    RESULTS_FILE,
    Curve,
    Row,
    Samples,
    group_curves,
    is_complete,
    load_samples,
    mixed_order,
    number,
    read_results,
)
from cfg.runtime.errors import UserError

_MAX_PANELS = 6
_PANEL_PIXELS = 480  # about the width of a panel of a static grid
_PAGE_SAMPLES = 200
# Pixels of one (step, w) on the page, and of all: they bound the page's size.
_PAGE_SAMPLE_PIXELS = 100 * 64 * 64
_PAGE_PIXELS = 30 * _PAGE_SAMPLE_PIXELS
_WIDE = 2000  # pixels of a grid; wider ones have their panels in two lines

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
    paper: str = '',
    others: Sequence[str | Path] = (),
) -> Path:
    """Writes the report of a workdir's results to `workdir`/report.

    The folder then holds fid_is_vs_w.png, fid_vs_is.png, table.csv, table.tex, index.html and, where sample files
    are left, grid_random_classes.png and grid_one_class.png of the last step; the grids of each earlier step
    have the step in their name (..._step000300.png). With `paper`, paper_table.csv and paper_table.tex too.

    Args:
        workdir: folder of results.jsonl; the paths of sample files in it are relative to this folder.
        class_names: name of each label.
        title: title of the page.
        grid_w: guidance strengths of the panels of the grids; those without samples are skipped. If none
            has samples, the panels are of up to six of those that have.
        grid_shape: rows and columns of a panel.
        one_class: label of the samples of grid_one_class.png.
        paper: name of the paper's table to set beside our numbers; '' = none.
        others: workdirs whose results are in this report too, e.g. of models of another p_uncond.

    Returns:
        The path of index.html.

    Raises:
        UserError: there are no results, a file of them is damaged, `one_class` is not a label, or there is no such
            table.
    """
    workdir = Path(workdir)
    if not 0 <= one_class < len(class_names):
        raise UserError(f'one_class is {one_class}, which is not a label: give one from 0 to {len(class_names) - 1}.')
    table = paper_table(paper) if paper else None
    rows = [row for folder in (*others, workdir) for row in _rows_of(Path(folder), own=folder is workdir)]
    complete = [row for row in rows if is_complete(row)]
    curves = group_curves(complete)
    compared = side_by_side.compare(table, curves) if table else None
    output = workdir / 'report'
    output.mkdir(exist_ok=True)

    write_table(output / 'table.csv', curves)
    write_tex(output / 'table.tex', curves)
    plots.plot_against_w(output / 'fid_is_vs_w.png', curves, table)
    plots.plot_fid_against_is(output / 'fid_vs_is.png', curves, table)
    if compared:
        side_by_side.write_csv(output / 'paper_table.csv', compared)
        side_by_side.write_tex(output / 'paper_table.tex', compared)

    picked = _pick_all(workdir, curves, grid_shape=grid_shape, one_class=one_class)
    notices = _incomplete_notice(len(rows) - len(complete)) + _missing_notice(curves, picked) + _warnings(curves)
    for curve in _curve_of_each_step(curves, picked):
        suffix = '' if curve.step == curves[-1].step else f'_step{curve.step:06d}'
        panels = _panel_rows(curve, picked, grid_w)
        mixed = [(row, picked[row['samples']].mixed) for row in panels]
        single = [(row, picked[row['samples']].one_class) for row in panels]
        if panels:
            caption = f'{curve.label}: samples of all classes; a cell has the same seed and class in every panel'
            draw_grid(output / f'grid_random_classes{suffix}.png', mixed, grid_shape, caption)
        most = max((len(samples.labels) for _, samples in single), default=0)
        if 4 * most >= grid_shape[0] * grid_shape[1]:
            caption = f'{curve.label}: samples of class "{class_names[one_class]}"; a cell has the same seed throughout'
            draw_grid(output / f'grid_one_class{suffix}.png', single, grid_shape, caption)
        elif panels:
            notices.append(
                f'Samples at step {curve.step:,} that are of class "{class_names[one_class]}": {most}, too few for a '
                f'grid; --mode=sample --config.sampling.labels="({one_class},)" draws more.'
            )

    return page.write_page(
        output / 'index.html',
        title=title,
        curves=curves,
        samples={path: pick.page for path, pick in picked.items()},
        class_names=class_names,
        plots=(output / 'fid_is_vs_w.png', output / 'fid_vs_is.png'),
        notices=notices,
        comparison=compared,
    )


def _rows_of(workdir: Path, *, own: bool) -> list[Row]:
    """The rows of a workdir; the sample files of another one get their whole path."""
    rows = read_results(workdir)
    if not any(is_complete(row) for row in rows):
        raise UserError(f'{workdir / RESULTS_FILE} has no complete row: run --mode=eval first.')
    if own:
        return rows
    return [row | {'samples': str(workdir.resolve() / row['samples'])} if row.get('samples') else row for row in rows]


def write_tex(path: Path, curves: Sequence[Curve]) -> None:
    """Writes the metrics of all rows for LaTeX; the lowest FID and the highest inception score of a curve are bold."""
    metrics = present(curves)
    heads = [[Cell(''), Cell('w'), *(Cell(metric.head) for metric in metrics), Cell('samples')]]
    groups = []
    for curve in curves:
        best = {'fid': curve.best_fid, 'inception_score': curve.best_inception_score}
        groups.append(
            [
                [
                    Cell(curve.label if place == 0 else ''),
                    Cell(f'{row["w"]:g}'),
                    *(Cell(metric.show(row), bold=best.get(metric.key) == place) for metric in metrics),
                    Cell(f'{row["num_samples"]:,}'),
                ]
                for place, row in enumerate(curve.rows)
            ]
        )
    notes = dict.fromkeys(f'{row["features"]}; {row.get("reference")}.' for curve in curves for row in curve.rows)
    path.write_text(tabular('lr' + 'r' * (len(metrics) + 1), heads, groups, [*notes]), encoding='utf-8')


def write_table(path: Path, curves: Sequence[Curve]) -> None:
    """Writes all rows of the curves as CSV, every key a column; objects are written as JSON."""
    rows = [row for curve in curves for row in curve.rows]
    columns = list(dict.fromkeys([*_CSV_KEYS, *(key for row in rows for key in row)]))
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns, restval='')
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()})


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
    columns = len(panels) if len(panels) <= 4 and len(panels) * width <= _WIDE else math.ceil(len(panels) / 2)
    lines = math.ceil(len(panels) / columns)
    margin, head, top = 24, 58, 44
    total = (margin + columns * (width + margin), top + lines * (head + height) + margin)
    dpi = 100
    figure = Figure(figsize=(total[0] / dpi, total[1] / dpi), dpi=dpi)
    caption_text = figure.text(margin / total[0], 1 - 26 / total[1], caption, fontsize=10, color=plots.MUTED)
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
            f'{short} {score_text(number(row, key))}'
            for short, key in (('FID', 'fid'), ('IS', 'inception_score'))
            if key in row
        )
        figure.text(x / total[0], place + 28 / total[1], name, fontsize=13, color=plots.INK, fontweight='bold')
        figure.text(x / total[0], place + 9 / total[1], scores, fontsize=10, color=plots.MUTED)
    plots.save(figure, path)


def _pick_all(
    workdir: Path, curves: Sequence[Curve], *, grid_shape: tuple[int, int], one_class: int
) -> dict[str, _Picked]:
    """What the report shows of each sample file that is left, by its path; one file is in memory at a time."""
    picked = {}
    paths = dict.fromkeys(row['samples'] for curve in curves for row in curve.rows if row.get('samples'))
    pixels = min(_PAGE_SAMPLE_PIXELS, _PAGE_PIXELS // max(len(paths), 1))
    for path in paths:
        samples = load_samples(workdir / path)
        if samples is not None and len(samples.labels):
            picked[path] = _pick(samples, cells=grid_shape[0] * grid_shape[1], one_class=one_class, pixels=pixels)
    return picked


def _pick(samples: Samples, *, cells: int, one_class: int, pixels: int) -> _Picked:
    order = mixed_order(samples.labels)
    height, width = samples.images.shape[1:3]
    page_count = max(1, min(_PAGE_SAMPLES, pixels // (height * width)))
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


def _warnings(curves: Sequence[Curve]) -> list[str]:
    """The warnings of the rows, each once, with the rows that it is of where it is not of all."""
    rows = [(curve, row) for curve in curves for row in curve.rows]
    notices = []
    for text in dict.fromkeys(text for _, row in rows for text in row.get('warnings') or ()):
        ws: dict[str, list[str]] = {}
        for curve, row in rows:
            if text in (row.get('warnings') or ()):
                ws.setdefault(curve.label, []).append(f'{row["w"]:g}')
        everywhere = sum(map(len, ws.values())) == len(rows)
        where = '; '.join(f'{label}: w = {", ".join(values)}' for label, values in ws.items())
        notices.append(text if everywhere else f'{text} ({where})')
    return notices


def _missing_notice(curves: Sequence[Curve], picked: Mapping[str, _Picked]) -> list[str]:
    """One sentence that names the rows whose samples are gone, and one where none were kept; or nothing."""
    parts = []
    if not any(row.get('samples') for curve in curves for row in curve.rows):
        return ['No samples were kept (config.eval.keep_samples=0), so there are no grids.']
    for curve in curves:
        ws = [f'{row["w"]:g}' for row in curve.rows if row.get('samples') and row['samples'] not in picked]
        if ws:
            parts.append(f'{curve.label}: w = {", ".join(ws)}')
    if not parts:
        return []
    return [
        f'The sample files of these rows are missing or unreadable, so their grids are missing ({"; ".join(parts)}).'
    ]
