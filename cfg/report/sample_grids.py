"""Draws pictures of samples: a panel for each w, the same cells in each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cfg.data.grids import mosaic
from cfg.report import plots
from cfg.report.sample_files import Samples

_PANEL_PIXELS = 480  # about the width of a panel
_WIDE = 2000  # pixels of a grid; wider ones have their panels in two lines


@dataclass(frozen=True)
class Panel:
    """A panel holds the samples of one w, and a line of text on them."""

    w: float
    samples: Samples
    text: str = ''


def draw_grid(path: Path, panels: Sequence[Panel], shape: tuple[int, int], caption: str) -> None:
    """Draws panels of samples, pixel for pixel (enlarged by whole factors only).

    Args:
        path: the PNG to write.
        panels: cell i of each panel is sample i, and cells without a sample stay empty.
        shape: rows and columns of cells of a panel.
        caption: one line above the panels.
    """
    mosaics = [mosaic(panel.samples.images, shape, width=_PANEL_PIXELS) for panel in panels]
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
    for i, (panel, picture) in enumerate(zip(panels, mosaics, strict=True)):
        x = margin + (i % columns) * (width + margin)
        y = total[1] - top - (i // columns + 1) * (head + height)
        figure.figimage(picture, xo=x, yo=y, origin='upper')
        place = (y + height) / total[1]
        name = f'w = {panel.w:g}' + (' (not guided)' if panel.w == 0 else '')
        figure.text(x / total[0], place + 28 / total[1], name, fontsize=13, color=plots.INK, fontweight='bold')
        figure.text(x / total[0], place + 9 / total[1], panel.text, fontsize=10, color=plots.MUTED)
    plots.save(figure, path)
