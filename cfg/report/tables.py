"""Makes tables of rows: as text for the terminal, as CSV with all digits, and for LaTeX."""

import bisect
import csv
import itertools
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfg.report.curves import Curve, finite_sample_floors, number
from cfg.report.rows import FileRow, Row, Scores

NONE = '-'  # the text of what was not measured


@dataclass(frozen=True)
class Metric:
    """A metric is a column of a table."""

    key: str  # of the scores
    head: str  # of the column, with an arrow to where better values are
    show: Callable[[Scores], str]  # the text of a cell
    always: bool = False  # whether the column stays where no row has a value


def score_text(value: float | None) -> str:
    """Returns a FID or inception score as the report writes it everywhere."""
    if not math.isfinite(number(value)):
        return NONE
    return f'{value:.2f}' if abs(value) >= 1 else f'{value:.3g}'


def percent(value: float | None) -> str:
    """Returns a share of 1 in per cent."""
    return NONE if value is None else f'{100 * value:.1f}%'


def _share(value: float | None) -> str:
    return NONE if value is None else f'{value:.3f}'


def with_error(value: float | None, error: float | None) -> str:
    """Returns a score with its standard error, if it is known: '2.43 ± 0.04'."""
    text = score_text(value)
    if text == NONE or error is None:
        return text
    return f'{text} ± {error:.{len(text.partition(".")[2])}f}' if error >= 0.005 else f'{text} ± {error:.1g}'


def _kid(scores: Scores) -> str:
    """Returns KID with its standard error, in thousandths.

    A squared distance is not negative. Where 0 lies within two errors, all that is known is what it is not above.
    """
    kid, error = scores.kid, scores.kid_standard_error
    if kid is None or (kid < 0 and error is None):
        return NONE
    if error is None:
        return f'{1000 * kid:.3f}'
    if abs(kid) < 2 * error:
        most = 1000 * (kid + 2 * error)
        return f'≤ {most:,.0f}' if most >= 100 else f'≤ {most:.2g}'
    return f'{1000 * kid:.3f} ± {1000 * error:.3f}'


METRICS = (
    Metric('fid', 'FID ↓', lambda scores: with_error(scores.fid, scores.fid_standard_error), always=True),
    Metric(
        'inception_score',
        'IS ↑',
        lambda scores: with_error(scores.inception_score, scores.inception_score_standard_error),
        always=True,
    ),
    Metric(
        'fid_infinity', 'FID∞ ↓', lambda scores: with_error(scores.fid_infinity, scores.fid_infinity_standard_error)
    ),
    Metric('sfid', 'sFID ↓', lambda scores: score_text(scores.sfid)),
    Metric('precision', 'precision ↑', lambda scores: _share(scores.precision)),
    Metric('recall', 'recall ↑', lambda scores: _share(scores.recall)),
    Metric('density', 'density ↑', lambda scores: _share(scores.density)),
    Metric('coverage', 'coverage ↑', lambda scores: _share(scores.coverage)),
    Metric('kid', 'KID x 1000 ↓', _kid),
    Metric('mind', 'MIND ↓', lambda scores: score_text(scores.mind)),
    Metric('fd_dinov2', 'FD-DINOv2 ↓', lambda scores: with_error(scores.fd_dinov2, scores.fd_dinov2_standard_error)),
    Metric('authenticity', 'authentic', lambda scores: percent(scores.authenticity)),
    Metric('near_copies', 'near-copies', lambda scores: percent(scores.near_copies)),
    Metric('accuracy', 'accuracy', lambda scores: percent(scores.accuracy)),
)


def present(curves: Sequence[Curve]) -> list[Metric]:
    """Returns the metrics that any row has a number of."""
    scores = [row.scores for curve in curves for row in curve.rows]
    return [metric for metric in METRICS if metric.always or any(getattr(s, metric.key) is not None for s in scores)]


# Columns of the printed table: what they show, the field, and how: a format, or a function of the scores.
_PRINTED = (
    ('step', 'step', '9d'),
    ('ema', 'ema', ''),
    ('EMA', 'ema_length', 'g'),
    ('guidance', 'guidance', ''),
    ('sampler', 'sampler', ''),
    ('grid', 'grid', ''),
    ('T', 'num_steps', 'd'),
    ('v', 'logvar_interp', 'g'),
    ('seed', 'seed', 'd'),
    ('w', 'w', '5g'),
    ('FID', 'fid', '9.4f'),
    ('+-', 'fid_standard_error', '.4f'),
    ('FID-inf', 'fid_infinity', '9.4f'),
    ('sFID', 'sfid', '9.4f'),
    ('IS', 'inception_score', '8.4f'),
    ('+-', 'inception_score_standard_error', '.4f'),
    ('precision', 'precision', '.4f'),
    ('recall', 'recall', '.4f'),
    ('density', 'density', '.4f'),
    ('coverage', 'coverage', '.4f'),
    ('KID x 1000', 'kid', _kid),
    ('MIND', 'mind', '.4f'),
    ('FD-DINOv2', 'fd_dinov2', '9.4f'),
    ('+-', 'fd_dinov2_standard_error', '.4f'),
    ('authentic', 'authenticity', '.4f'),
    ('near-copies', 'near_copies', '.4f'),
    ('accuracy', 'accuracy', '.4f'),
    ('evaluations', 'evaluations', 'd'),
    ('samples', 'num_samples', '8d'),
)
_ONLY_IF_SEVERAL = (
    *('ema', 'ema_length', 'guidance', 'sampler', 'grid', 'num_steps', 'logvar_interp', 'seed', 'evaluations'),
)


def _cell(value: Any, form: str) -> str:
    return NONE if value is None else format(value, form)


def terminal_table(rows: Sequence[Row | FileRow]) -> str:
    """Returns rows as text for stdout: as wide as it must be, and on a terminal no wider than that."""
    return text_table(rows, width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def text_table(rows: Sequence[Row | FileRow], *, width: int | None = None) -> str:
    """Returns rows as text, one a line; below are the features, the reference and what must be known of them.

    Args:
        width: where all columns are wider, those that do not fit stand in further tables below, beside the settings.
    """
    flat = [row.settings for row in rows]
    settings, columns, scored = [], [], False
    for header, key, form in _PRINTED:
        scored = scored or key == 'fid'
        values = [row.get(key) for row in flat]
        shown = len(set(values)) > 1 if key in _ONLY_IF_SEVERAL else any(value is not None for value in values)
        if shown:
            texts = (form(row.scores) for row in rows) if callable(form) else (_cell(value, form) for value in values)
            cells = [header, *texts]
            widest = max(map(len, cells))
            column = [cell.rjust(widest) for cell in cells]
            (columns if scored else settings).append(column)
    lines = []
    while columns:
        fitting = [sum(len(it[0]) + 1 for it in [*settings, *columns[:n]]) - 1 for n in range(1, len(columns) + 1)]
        count = len(columns) if width is None else max(bisect.bisect_right(fitting, width), 1)
        lines += [' '.join(cells) for cells in zip(*settings, *columns[:count], strict=True)]
        columns = columns[count:]
    lines += dict.fromkeys(f'features: {row.method.networks}; reference: {row.beside.reference}' for row in rows)
    for beside in {row.beside.floor: row.beside for row in rows if row.beside.floor is not None}.values():
        lines.append(f'{beside.floor}: FID {beside.floor_fid:.4f}, IS {beside.floor_inception_score:.4f}')
    for text, value in finite_sample_floors(rows):
        lines.append(f'floor of {text}: FID {value:.4f}')
    lines += dict.fromkeys(f'warning: {text}' for row in rows for text in row.origin.warnings)
    return '\n'.join(lines)


# What people look for stands first.
_CSV_FIRST = ('step', 'w', 'fid', 'inception_score', 'accuracy', 'num_samples', 'features', 'seed')


def write_csv(path: Path, curves: Sequence[Curve]) -> None:
    """Writes all rows of the curves, every field a column; objects are written as JSON."""
    rows = [row.flat for curve in curves for row in curve.rows]
    names = dict.fromkeys([*_CSV_FIRST, *rows[0]])
    texts = [{k: json.dumps(v) if isinstance(v, dict | tuple) else v for k, v in row.items()} for row in rows]
    write_lines(path, [names, *([row[name] for name in names] for row in texts)])


def write_lines(path: Path, lines: Iterable[Iterable[Any]]) -> None:
    """Writes lines of cells as CSV."""
    with path.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows(lines)


def write_tex(path: Path, curves: Sequence[Curve]) -> None:
    """Writes the metrics of all rows for LaTeX; the best of a curve's scores are bold."""
    metrics = present(curves)
    head = [(text, 1) for text in ('', 'w', *(metric.head for metric in metrics), 'samples')]
    groups = [
        [
            [
                '' if place else escape(curve.label),
                escape(f'{row.source.w:g}'),
                *(escape(it.show(row.scores), bold=it.key in curve.bests_at(place)) for it in metrics),
                f'{row.method.num_samples:,}',
            ]
            for place, row in enumerate(curve.rows)
        ]
        for curve in curves
    ]
    rows = [row for curve in curves for row in curve.rows]
    notes = dict.fromkeys(f'{row.method.features}; {row.beside.reference}.' for row in rows)
    path.write_text(tabular('lr' + 'r' * (len(metrics) + 1), [head], groups, [*notes]), encoding='utf-8')


_ESCAPED = {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '±': r'$\pm$',
    '∞': r'$\infty$',
    '≤': r'$\leq$',
    '↓': r'$\downarrow$',
    '↑': r'$\uparrow$',
} | {character: f'\\{character}' for character in '&%$#_{}'}
_SIGNED = re.compile(r'[+-][0-9.]+')


def escape(text: str, *, bold: bool = False) -> str:
    """Returns text that LaTeX prints as it is, a number's sign as a sign."""
    escaped = f'${text}$' if _SIGNED.fullmatch(text) else text.translate(str.maketrans(_ESCAPED))
    return rf'\textbf{{{escaped}}}' if bold else escaped


Line = Sequence[str]  # of cells


def tabular(
    columns: str, heads: Sequence[Sequence[tuple[str, int]]], groups: Sequence[Sequence[Line]], notes: Sequence[str]
) -> str:
    """Returns a tabular environment, which needs the package booktabs.

    Args:
        columns: LaTeX's column types, e.g. 'lrr'.
        heads: lines of (text, columns that it spans) above the first rule; what spans several gets a rule under it.
        groups: lines of the body, escaped, with a space between groups.
        notes: sentences that become comments above the table, one a line.
    """
    lines = [f'% {note}' for note in [*notes, r'Needs \usepackage{booktabs}.']]
    lines += [rf'\begin{{tabular}}{{{columns}}}', r'\toprule']
    for head in heads:
        texts = [(escape(text), n) for text, n in head]
        lines.append(_line([rf'\multicolumn{{{n}}}{{c}}{{{text}}}' if n > 1 else text for text, n in texts]))
        spans = zip(itertools.accumulate(n for _, n in head), (n for _, n in head), strict=True)
        if rules := [rf'\cmidrule(lr){{{last - n + 1}-{last}}}' for last, n in spans if n > 1]:
            lines.append(' '.join(rules))
    for place, group in enumerate(groups):
        lines.append(r'\addlinespace' if place else r'\midrule')
        lines += [_line(cells) for cells in group]
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])


def _line(cells: Line) -> str:
    return ' & '.join(cells) + r' \\'
