"""Our numbers beside the paper's: one column a curve, one row a w."""

import csv
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfg.report.latex import Cell, tabular
from cfg.report.paper import NUM_SAMPLES, NUM_STEPS, PaperTable, departures, setting_of
from cfg.report.results import Curve

_METRICS = (('fid', 'FID'), ('inception_score', 'IS'))
_DIGITS = 6  # w that agree to so many are one w


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        metric: 'FID' or 'IS'.
        whose: 'paper', 'ours', or 'difference' (ours minus the paper's).
        label: of the curve.
        values: [number of w], nan where there is none.
        best: index of the lowest FID or the highest IS; None for differences, and where nothing is finite.
    """

    metric: str
    whose: str
    label: str
    values: np.ndarray
    best: int | None

    @property
    def name(self) -> str:
        """Heading of the column where there is one line of headings."""
        return f'{self.metric} {self.whose} ({self.label})'


@dataclass(frozen=True)
class Comparison:
    """The paper's table with our columns beside it.

    Attributes:
        title: of the paper's table.
        w: every w of the paper and of ours, ascending.
        columns: those of FID, then those of IS; of each the paper's, ours, and the differences.
        notes: sentences to read with the table.
    """

    title: str
    w: np.ndarray
    columns: tuple[Column, ...]
    notes: tuple[str, ...]


def compare(paper: PaperTable, curves: Sequence[Curve]) -> Comparison:
    """Sets our curves beside the paper's; one of its method, with a p_uncond or T that it has, gets differences."""
    measured = [row['w'] for curve in curves for row in curve.rows]
    w = np.unique(np.round(np.concatenate([*(curve.w for curve in paper.curves), measured]), _DIGITS))
    columns = []
    for key, metric in _METRICS:
        theirs = {curve.setting: _on(w, curve.w, getattr(curve, key)) for curve in paper.curves}
        ours = [_on(w, curve.values('w'), curve.values(key)) for curve in curves]
        columns += [_column(metric, 'paper', curve.label, theirs[curve.setting]) for curve in paper.curves]
        columns += [_column(metric, 'ours', curve.label, values) for curve, values in zip(curves, ours, strict=True)]
        for curve, values in zip(curves, ours, strict=True):
            match = paper.match(curve)
            if match is not None:
                columns.append(Column(metric, 'difference', curve.label, values - theirs[match.setting], None))
    return Comparison(paper.title, w, tuple(columns), tuple(_notes(paper, curves)))


def write_csv(path: Path, comparison: Comparison) -> None:
    """Writes the table as CSV with all digits; a number that does not exist is empty."""
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['w', *(column.name for column in comparison.columns)])
        for place, w in enumerate(comparison.w.tolist()):
            values = [column.values[place] for column in comparison.columns]
            writer.writerow([f'{w:g}', *('' if math.isnan(value) else f'{value:.7g}' for value in values)])


def write_tex(path: Path, comparison: Comparison) -> None:
    """Writes the table for LaTeX; the best of a column is bold."""
    groups = _groups(comparison.columns)
    columns = 'r' + ''.join('r' * len(group) for _, _, group in groups)
    heads = [
        [Cell(''), *(Cell(metric, columns=sum(len(g) for m, _, g in groups if m == metric)) for _, metric in _METRICS)],
        [Cell(''), *(Cell(whose, columns=len(group)) for _, whose, group in groups)],
        [Cell('w'), *(Cell(column.label) for column in comparison.columns)],
    ]
    body = [
        [Cell(f'{w:g}'), *(Cell(text(column, place), bold=place == column.best) for column in comparison.columns)]
        for place, w in enumerate(comparison.w.tolist())
    ]
    path.write_text(tabular(columns, heads, [body], [f'{comparison.title}.', *comparison.notes]), encoding='utf-8')


def to_html(comparison: Comparison) -> str:
    """A table element; the best of a column is marked, and the notes stand below."""
    groups = _groups(comparison.columns)
    spans = ''.join(
        f'<th scope="colgroup" colspan="{sum(len(g) for m, _, g in groups if m == metric)}">{metric}</th>'
        for _, metric in _METRICS
    )
    whose = ''.join(f'<th scope="colgroup" colspan="{len(group)}">{name}</th>' for _, name, group in groups)
    labels = ''.join(f'<th scope="col">{html.escape(column.label)}</th>' for column in comparison.columns)
    lines = []
    for place, w in enumerate(comparison.w.tolist()):
        cells = ''.join(
            f'<td class="{column.whose}{" best" * (place == column.best)}">{text(column, place)}</td>'
            for column in comparison.columns
        )
        lines.append(f'<tr><th scope="row">{w:g}</th>{cells}</tr>')
    notes = ''.join(f'<p class="hint">{html.escape(note)}</p>' for note in comparison.notes)
    return (
        f'<h2 id="paper">{html.escape(comparison.title)}: the paper and ours</h2>'
        '<div class="scroll" role="region" aria-labelledby="paper" tabindex="0"><table class="paper"><thead>'
        f'<tr><td></td>{spans}</tr><tr><td></td>{whose}</tr><tr><th scope="col">w</th>{labels}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div>'
        f'<p class="hint">Bold: the lowest FID and the highest IS of a column.</p>{notes}'
    )


def text(column: Column, place: int) -> str:
    """A cell as people read it; differences have their sign."""
    value = column.values[place]
    if math.isnan(value):
        return ''
    return f'{value:+.2f}' if column.whose == 'difference' else f'{value:.2f}'


def _on(w: np.ndarray, own_w: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at `own_w`, placed at the same w of a longer list."""
    placed = np.full(len(w), np.nan)
    placed[np.searchsorted(w, np.round(own_w, _DIGITS))] = values
    return placed


def _column(metric: str, whose: str, label: str, values: np.ndarray) -> Column:
    best = None
    if np.isfinite(values).any():
        best = int(np.nanargmin(values) if metric == 'FID' else np.nanargmax(values))
    return Column(metric, whose, label, values, best)


def _groups(columns: Sequence[Column]) -> list[tuple[str, str, list[Column]]]:
    """(metric, whose, columns) of neighbours that share both."""
    groups: list[tuple[str, str, list[Column]]] = []
    for column in columns:
        if not groups or groups[-1][:2] != (column.metric, column.whose):
            groups.append((column.metric, column.whose, []))
        groups[-1][2].append(column)
    return groups


def _notes(paper: PaperTable, curves: Sequence[Curve]) -> list[str]:
    """How our numbers were made, and what keeps them from being compared with the paper's."""
    notes, reasons = [], {}
    for curve in curves:
        row = curve.rows[0]
        counts = sorted({int(row['num_samples']) for row in curve.rows})
        samples = ' or '.join(f'{count:,}' for count in counts)
        notes.append(f'{curve.label}: {samples} samples for each w; {row["features"]}; {row.get("reference")}.')
        if not str(row['features']).startswith('Inception'):
            reasons.setdefault('their features are not those of Inception', []).append(curve.label)
        if counts != [NUM_SAMPLES]:
            reasons.setdefault(f'they are not of {NUM_SAMPLES:,} samples', []).append(curve.label)
        if others := departures(row):
            reasons.setdefault(f'they are not drawn as there but with {", ".join(others)}', []).append(curve.label)
        num_steps = setting_of(row, 'num_steps')
        if paper.key != 'num_steps' and num_steps not in (None, NUM_STEPS):
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
