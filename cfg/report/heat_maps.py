"""Draws FID over the length of the average and w, where a sweep has averages of several lengths."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cfg.report.curves import Curve, alike, grouped, told
from cfg.report.plots import INK, MUTED, features_of
from cfg.report.rows import Row
from cfg.report.tables import score_text


def figure(curves: Sequence[Curve]) -> Figure | None:
    """Draws a panel for each group of curves that differ in the length alone; None where no group has two.

    A panel has a line for each length, the average by decay below, and a frame around its lowest FID.
    """
    groups = grouped((curve for curve in curves if curve.rows[0].source.ema), lambda it: alike(_without_length(it)))
    panels = [group for group in groups.values() if len(group) > 1]
    if not panels:
        return None
    labels = [', '.join(it.values()) for it in told([_without_length(group[0]).settings for group in panels])]
    heights = [0.32 * len(group) + 1.0 for group in panels]
    drawn = Figure(figsize=(6.0, sum(heights) + 0.3), dpi=200, layout='constrained')
    rows = [row for group in panels for curve in group for row in curve.rows]
    drawn.suptitle(features_of(rows), fontsize=9, color=MUTED)
    every = drawn.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, group, label in zip(every, panels, labels, strict=True):
        lengths = [curve.rows[0].source.ema_length for curve in group]
        ws = sorted({w for curve in group for w in curve.w})
        fid = np.array([[dict(zip(curve.w, curve.fid, strict=True)).get(w, np.nan) for w in ws] for curve in group])
        finite = fid[np.isfinite(fid) & (fid > 0)]
        if len(finite):
            colours = LogNorm(finite.min(), max(finite.max(), finite.min() * 1.01))
            axes.pcolormesh(fid, norm=colours, cmap='viridis_r', edgecolors='white', linewidth=1)
            for (line, column), value in np.ndenumerate(fid):
                dark = value > 0 and colours(value) > 0.5
                text = {'ha': 'center', 'va': 'center', 'fontsize': 8, 'color': 'white' if dark else INK}
                axes.text(column + 0.5, line + 0.5, score_text(value), **text)
            line, column = np.unravel_index(np.nanargmin(fid), fid.shape)
            axes.add_patch(
                Rectangle((column, line), 1, 1, fill=False, edgecolor='#b8332e', linewidth=2, zorder=3, clip_on=False)
            )
        axes.set_xticks(np.arange(len(ws)) + 0.5, [f'{w:g}' for w in ws])
        axes.set_yticks(np.arange(len(group)) + 0.5, ['decay' if it is None else f'{it:g}' for it in lengths])
        axes.tick_params(length=0, labelcolor=INK, labelsize=9)
        axes.spines[:].set_visible(False)
        axes.set_title(f'FID (lower is better), {label}', fontsize=9, color=MUTED, loc='left')
        axes.set_ylabel('length of EMA', color=INK)
    axes.set_xlabel('guidance strength w (0 is not guided)', color=INK)
    return drawn


def _without_length(curve: Curve) -> Row:
    """Returns a row of a curve as if its average had no length."""
    row = curve.rows[0]
    return dataclasses.replace(row, source=dataclasses.replace(row.source, ema_length=None, params_sha256=''))
