"""Writes the report of a guidance sweep: plots, sample grids, a table, and a page that holds them together."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cfg.report import beside_paper as side_by_side
from cfg.report import gallery, heat_maps, html, page, plots, tables
from cfg.report.curves import Curve, group_curves, grouped
from cfg.report.paper import paper_table
from cfg.report.results import Results
from cfg.report.rows import Row
from cfg.report.sample_files import PAIRS, Samples, load_pairs, load_samples, mixed_order
from cfg.report.sample_grids import Panel, draw_grid
from cfg.runtime.errors import UserError

_MAX_PANELS = 6
_PAGE_SAMPLES = 200
# Pixels of one (step, w) on the page, and of all: they bound the memory. Characters bound the page itself.
_PAGE_SAMPLE_PIXELS = 100 * 64 * 64
_PAGE_PIXELS = 30 * _PAGE_SAMPLE_PIXELS
_PAGE_CHARACTERS = 4_500_000


@dataclasses.dataclass(frozen=True)
class _Picked:
    """These are the few samples of one file that the report shows."""

    page: gallery.Shown
    mixed: Samples
    one_class: Samples


def write_report(
    workdir: Path,
    *,
    class_names: Sequence[str],
    title: str,
    grid_w: Sequence[float],
    grid_shape: tuple[int, int],
    one_class: int,
    paper: str = '',
    others: Sequence[str | Path] = (),
    missing: int = 0,
) -> Path:
    """Writes the report of a workdir's results to `workdir`/report; returns the path of index.html.

    The folder then holds fid_is_vs_w.png, fid_vs_is.png, table.csv, table.tex, index.html, fid_vs_ema_length.png where
    averages of several lengths were swept, and, where sample files are left, grid_random_classes.png,
    grid_one_class.png and nearest_pairs.png of the last step; those of each earlier step have the step in their name
    (..._step000300.png). With `paper`, paper_table.csv and paper_table.tex too.

    Args:
        workdir: of a sweep; the paths of sample files in its rows are relative to this folder.
        grid_w: guidance strengths of the panels of the grids; those without samples are skipped. If none
            has samples, the panels are of up to six of those that have.
        grid_shape: rows and columns of a panel.
        one_class: label of the samples of grid_one_class.png.
        paper: name of the paper's table to set beside our numbers; '' = none.
        others: workdirs whose results are in this report too, e.g. of models of another p_uncond.
        missing: rows that are still to be measured.

    Raises:
        UserError: when there are no results, or a file of them is damaged.
    """
    table = paper_table(paper) if paper else None
    rows = [row for folder in others for row in _rows_of(Path(folder), own=False)] + _rows_of(workdir, own=True)
    curves = group_curves(rows)
    compared = side_by_side.compare(table, curves) if table else None
    output = workdir / 'report'
    output.mkdir(exist_ok=True)

    tables.write_csv(output / 'table.csv', curves)
    tables.write_tex(output / 'table.tex', curves)
    pictures = [output / 'fid_is_vs_w.png', output / 'fid_vs_is.png']
    plots.save(plots.figure_against_w(curves, table), pictures[0])
    plots.save(plots.figure_fid_against_is(curves, table), pictures[1])
    if heat := heat_maps.figure(curves):
        pictures.append(output / 'fid_vs_ema_length.png')
        plots.save(heat, pictures[-1])
    if compared:
        side_by_side.write_csv(output / 'paper_table.csv', compared)
        side_by_side.write_tex(output / 'paper_table.tex', compared)

    cells = grid_shape[0] * grid_shape[1]
    shown = [(curve, row) for curve in curves for row in curve.rows]
    picked = _pick_all(workdir, [row for _, row in shown], cells=cells, one_class=one_class)
    notices = [f'The sweep goes on. Rows still to be measured: {missing}.'] if missing else []
    notices += _missing_notice(shown, picked) + _warnings(shown)
    of_class = f'class "{class_names[one_class]}"'
    nearest = []  # pictures of pairs
    for of_step in grouped(curves, lambda curve: curve.step).values():
        # That with samples at the most w, the last of equals.
        curve = max(reversed(of_step), key=lambda curve: sum(row.samples in picked for row in curve.rows))
        suffix = '' if curve.step == curves[-1].step else f'_step{curve.step:06d}'
        panels = _panel_rows(curve, picked, grid_w)
        if not panels:
            continue
        pairs = [_pairs_panel(row, found) for row in panels if (found := load_pairs(workdir, row.samples)) is not None]
        if pairs:
            caption = f'{curve.label}: samples (left) and their nearest training images (right), the nearest first'
            nearest.append(output / f'nearest_pairs{suffix}.png')
            draw_grid(nearest[-1], pairs, (PAIRS // 4, 4), caption)
        caption = f'{curve.label}: samples of all classes; a cell has the same seed and class in every panel'
        mixed = [_panel(row, picked[row.samples].mixed) for row in panels]
        draw_grid(output / f'grid_random_classes{suffix}.png', mixed, grid_shape, caption)
        single = [_panel(row, picked[row.samples].one_class) for row in panels]
        most = max(len(panel.samples.labels) for panel in single)
        if 4 * most >= cells:
            caption = f'{curve.label}: samples of {of_class}; a cell has the same seed throughout'
            draw_grid(output / f'grid_one_class{suffix}.png', single, grid_shape, caption)
        else:
            notices.append(
                f'Samples at step {curve.step:,} that are of {of_class}: {most}, too few for a grid; --mode=sample '
                f'--config.sampling.labels="({one_class},)" draws more.'
            )

    embedded = {path: gallery.data_uri(path.read_bytes()) for path in [*pictures, *nearest]}
    shown_there = {path: pick.page for path, pick in picked.items()}
    room = _PAGE_CHARACTERS - sum(map(len, embedded.values()))
    return html.write(
        output / 'index.html',
        'report.html',
        title=title,
        summary=page.summary(curves),
        notices=notices,
        plots=[embedded[picture] for picture in pictures],
        nearest=[embedded[picture] for picture in nearest],
        copies_in=dict.fromkeys(row.method.copies_in for _, row in shown if row.scores.near_copies is not None),
        curves=curves,
        metrics=tables.present(curves),
        summed_up=page.seed_lines(curves) + page.floor_lines(curves),
        paper=compared,
        provenance=page.provenance(curves),
        data=gallery.data(curves, shown_there, class_names, room=room),
    )


def _rows_of(workdir: Path, *, own: bool) -> list[Row]:
    """Reads the rows of a workdir; the sample files of another one get their whole path."""
    results = Results(workdir)
    rows = results.swept()
    if not rows:
        raise UserError(f'{results.folder} has no rows: run --mode=eval first.')
    if own:
        return rows
    return [
        dataclasses.replace(row, samples=str(workdir.resolve() / row.samples)) if row.samples else row for row in rows
    ]


def _panel(row: Row, samples: Samples) -> Panel:
    scores = {'FID': row.scores.fid, 'IS': row.scores.inception_score}
    return Panel(row.source.w, samples, '   '.join(f'{name} {tables.score_text(of)}' for name, of in scores.items()))


def _pairs_panel(row: Row, pairs: np.ndarray) -> Panel:
    text = f'near-copies {tables.percent(row.scores.near_copies)}'
    return Panel(row.source.w, Samples(pairs, np.full(len(pairs), -1, np.int32)), text)


def _pick_all(workdir: Path, rows: Sequence[Row], *, cells: int, one_class: int) -> dict[str, _Picked]:
    """Picks what the report shows of each sample file that is left, by its path; one is in memory at a time."""
    picked = {}
    paths = dict.fromkeys(row.samples for row in rows if row.samples)
    pixels = min(_PAGE_SAMPLE_PIXELS, _PAGE_PIXELS // max(len(paths), 1))
    for path in paths:
        samples = load_samples(workdir / path)
        if samples is not None and len(samples.labels):
            order = mixed_order(samples.labels)
            of_page = max(1, min(_PAGE_SAMPLES, pixels // math.prod(samples.images.shape[1:3])))
            picked[path] = _Picked(
                page=gallery.Shown(samples.take(order[:of_page]), order[:of_page]),
                mixed=samples.take(order[:cells]),
                one_class=samples.take(np.flatnonzero(samples.labels == one_class)[:cells]),
            )
    return picked


def _panel_rows(curve: Curve, picked: Mapping[str, _Picked], grid_w: Sequence[float]) -> list[Row]:
    """Picks the rows of the panels: those of `grid_w`, else up to six spread over all that have samples."""
    available = [row for row in curve.rows if row.samples in picked]
    wanted = [row for w in grid_w for row in available if math.isclose(row.source.w, w, abs_tol=1e-9)]
    if wanted or len(available) <= _MAX_PANELS:
        return wanted or available
    return [available[i] for i in np.linspace(0, len(available) - 1, _MAX_PANELS).round().astype(int)]


def _warnings(shown: Sequence[tuple[Curve, Row]]) -> list[str]:
    """Returns the warnings of the rows, each once, with the rows that it is of where it is not of all."""
    notices = []
    for text in dict.fromkeys(text for _, row in shown for text in row.origin.warnings):
        warned = [(curve, row) for curve, row in shown if text in row.origin.warnings]
        notices.append(text if len(warned) == len(shown) else f'{text} ({_named(warned)})')
    return notices


def _missing_notice(shown: Sequence[tuple[Curve, Row]], picked: Mapping[str, _Picked]) -> list[str]:
    """Returns a sentence that names the rows whose samples are gone, or one where none were kept, or nothing."""
    if not any(row.samples for _, row in shown):
        return ['No samples were kept (config.eval.keep_samples=0), so there are no grids.']
    gone = [(curve, row) for curve, row in shown if row.samples and row.samples not in picked]
    if not gone:
        return []
    return [f'The sample files of these rows are missing or unreadable, so their grids are missing ({_named(gone)}).']


def _named(rows: Sequence[tuple[Curve, Row]]) -> str:
    """Names rows by their curves and w."""
    by_curve = grouped(rows, lambda pair: pair[0].label)
    return '; '.join(
        f'{label}: w = {", ".join(f"{row.source.w:g}" for _, row in of_curve)}' for label, of_curve in by_curve.items()
    )
