"""The metrics of a row as people read them, in tables of every kind."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cfg.report.results import Curve, Row, number


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Attributes:
        key: of the row.
        head: of the column, with an arrow to where better values are.
        show: the text of a row's cell.
        always: whether the column stays where no row has a value.
    """

    key: str
    head: str
    show: Callable[[Row], str]
    always: bool = False


def score_text(value: float) -> str:
    """A FID or inception score as the report writes it everywhere."""
    if not math.isfinite(value):
        return 'n/a'
    return f'{value:.2f}' if abs(value) >= 1 else f'{value:.3g}'


def percent(value: float) -> str:
    """A share of 1."""
    return f'{100 * value:.1f}%' if math.isfinite(value) else 'n/a'


def _score(key: str) -> Callable[[Row], str]:
    return lambda row: score_text(number(row, key))


def _share(key: str) -> Callable[[Row], str]:
    return lambda row: f'{number(row, key):.3f}' if math.isfinite(number(row, key)) else 'n/a'


def _kid(row: Row) -> str:
    """With its standard error, in thousandths."""
    value, error = 1000 * number(row, 'kid'), 1000 * number(row, 'kid_standard_error')
    if not math.isfinite(value):
        return 'n/a'
    return f'{value:.3f}' + (f' ± {error:.3f}' if math.isfinite(error) else '')


METRICS = (
    Metric('fid', 'FID ↓', _score('fid'), always=True),
    Metric('inception_score', 'IS ↑', _score('inception_score'), always=True),
    Metric('sfid', 'sFID ↓', _score('sfid')),
    Metric('precision', 'precision ↑', _share('precision')),
    Metric('recall', 'recall ↑', _share('recall')),
    Metric('kid', 'KID x 1000 ↓', _kid),
    Metric('accuracy', 'accuracy', lambda row: percent(number(row, 'accuracy'))),
)


def present(curves: Sequence[Curve]) -> list[Metric]:
    """The metrics that any row has a number of."""
    rows = [row for curve in curves for row in curve.rows]
    return [metric for metric in METRICS if metric.always or any(math.isfinite(number(r, metric.key)) for r in rows)]
