"""Sets our numbers beside the paper's: one column a curve, one row a w."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfg.report.curves import Curve, Scored
from cfg.report.paper import NUM_SAMPLES, NUM_STEPS, PaperTable
from cfg.report.tables import escape, tabular, write_lines

_METRICS = (('fid', 'FID'), ('inception_score', 'IS'))
_DIGITS = 6  # w that agree to so many are one w


@dataclass(frozen=True)
class Column:
    """A column of the table holds one score of one curve."""

    metric: str  # 'FID' or 'IS'
    whose: str  # 'paper', 'ours', or 'difference' (ours minus the paper's)
    label: str  # of the curve
    values: np.ndarray  # [number of w], nan where there is none
    best: int | None = None  # the place of the lowest FID or highest IS; None of differences, or where errors hide it

    def text(self, place: int) -> str:
        """Returns a cell as people read it; differences have their sign."""
        value = self.values[place]
        if math.isnan(value):
            return ''
        return f'{value:+.2f}' if self.whose == 'difference' else f'{value:.2f}'


@dataclass(frozen=True)
class Comparison:
    """A comparison is the paper's table with our columns beside it."""

    title: str  # of the paper's table
    w: np.ndarray  # every one of the paper and of ours, ascending
    columns: tuple[Column, ...]  # those of FID, then those of IS; of each the paper's, ours, and the differences
    notes: tuple[str, ...]  # sentences to read with the table

    def heads(self, name: str) -> list[tuple[str, int]]:
        """Returns the 'metric' or 'whose' of neighbouring columns of one metric, with the number of these columns."""
        groups = itertools.groupby(self.columns, key=lambda column: (column.metric, getattr(column, name)))
        return [(value, len(list(columns))) for (_, value), columns in groups]


def compare(paper: PaperTable, curves: Sequence[Curve]) -> Comparison:
    """Sets our curves beside the paper's; one of its method, with a p_uncond or T that it has, gets differences."""
    w = np.unique(np.round(np.concatenate([curve.w for curve in (*paper.curves, *curves)]), _DIGITS))
    columns = []
    for key, metric in _METRICS:
        for whose, group in (('paper', paper.curves), ('ours', curves)):
            columns += [Column(metric, whose, curve.label, _on(w, curve, key), _best(w, curve, key)) for curve in group]
        for curve in curves:
            if match := paper.match(curve):
                difference = _on(w, curve, key) - _on(w, match, key)
                columns.append(Column(metric, 'difference', curve.label, difference))
    return Comparison(paper.title, w, tuple(columns), tuple(_notes(paper, curves)))


def write_csv(path: Path, comparison: Comparison) -> None:
    """Writes the table as CSV with all digits; a number that does not exist is empty."""
    lines = [['w', *(f'{column.metric} {column.whose} ({column.label})' for column in comparison.columns)]]
    for place, w in enumerate(comparison.w):
        values = [column.values[place] for column in comparison.columns]
        lines.append([f'{w:g}', *('' if math.isnan(value) else f'{value:.7g}' for value in values)])
    write_lines(path, lines)


def write_tex(path: Path, comparison: Comparison) -> None:
    """Writes the table for LaTeX; the best of a column is bold."""
    columns = comparison.columns
    heads = [[('', 1), *comparison.heads(name)] for name in ('metric', 'whose')]
    heads.append([('w', 1), *((column.label, 1) for column in columns)])
    body = [
        [escape(f'{w:g}'), *(escape(column.text(place), bold=place == column.best) for column in columns)]
        for place, w in enumerate(comparison.w)
    ]
    notes = [f'{comparison.title}.', *comparison.notes]
    path.write_text(tabular('r' * (1 + len(columns)), heads, [body], notes), encoding='utf-8')


def _best(w: np.ndarray, curve: Scored, key: str) -> int | None:
    """Returns the place among w of the best of a curve, where it is clear."""
    place = curve.bests.get(key)
    if place is None or key not in curve.bests_at(place):
        return None
    return int(np.searchsorted(w, np.round(curve.w[place], _DIGITS)))


def _on(w: np.ndarray, curve: Scored, name: str) -> np.ndarray:
    """Puts a score of a curve at the same w of a longer list."""
    placed = np.full(len(w), np.nan)
    placed[np.searchsorted(w, np.round(curve.w, _DIGITS))] = getattr(curve, name)
    return placed


def _notes(paper: PaperTable, curves: Sequence[Curve]) -> list[str]:
    """Says how our numbers were made, and what keeps them from being compared with the paper's."""
    notes, reasons = [], {}
    for curve in curves:
        row = curve.rows[0]
        features, count, num_steps = row.method.features, row.method.num_samples, row.source.sampling.num_steps
        notes.append(f'{curve.label}: {count:,} samples for each w; {features}; {row.beside.reference}.')
        if not features.startswith('Inception'):
            reasons.setdefault('their features are not those of Inception', []).append(curve.label)
        if count != NUM_SAMPLES:
            reasons.setdefault(f'they are not of {NUM_SAMPLES:,} samples', []).append(curve.label)
        if others := row.source.sampling.departures:
            reasons.setdefault(f'they are not drawn as there but with {", ".join(others)}', []).append(curve.label)
        if paper.key != 'num_steps' and num_steps != NUM_STEPS:
            notes.append(
                f"{curve.label}: T = {num_steps}; the paper does not state its own here, and the authors' related work "
                f'has {NUM_STEPS}.'
            )
    if reasons:
        why = ', and '.join(f'{reason} ({"; ".join(labels)})' for reason, labels in reasons.items())
        notes.append(f'Our numbers cannot be compared with those of the paper: {why}.')
    pairs = [(curve.label, match.label) for curve in curves if (match := paper.match(curve))]
    if pairs:
        notes.append(f'Differences: {"; ".join(f"{ours} minus the paper at {theirs}" for ours, theirs in pairs)}.')
    else:
        name = {'p_uncond': 'p_uncond', 'num_steps': 'T'}[paper.key]
        notes.append(f'No curve of ours has the method and a {name} of the paper, so there are no differences.')
    return notes
