"""Standard errors of scores in tables, curves and plots."""

import math

import numpy as np
import pytest
from scipy import stats

from cfg.report import frontier, page, tuned
from cfg.report.curves import group_curves
from cfg.report.plots import figure_against_w
from cfg.report.tables import METRICS, text_table, with_error
from tests.report.rows import row_of

SHOW = {metric.key: metric.show for metric in METRICS}


@pytest.mark.parametrize(
    ('value', 'error', 'text'),
    [
        (2.431, 0.0412, '2.43 ± 0.04'),
        (2.431, None, '2.43'),
        (None, 0.1, '-'),
        (0.2217, 0.0123, '0.222 ± 0.012'),
        (2.431, 0.00041, '2.43 ± 0.0004'),
    ],
)
def test_a_score_has_its_error_beside_it(value, error, text):
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ('kid', 'error', 'text'),
    [
        (0.002, 0.0001, '2.000 ± 0.100'),
        (0.002, None, '2.000'),
        (-1.162, 1.924, '≤ 2,686'),
        (0.00002, 0.0001, '≤ 0.22'),
        (-0.5, None, '-'),
    ],
)
def test_kid_says_what_is_known(kid, error, text):
    assert SHOW['kid'](row_of(w=0.0, kid=kid, kid_standard_error=error).scores) == text


@pytest.mark.parametrize(('error', 'marked'), [(0.3, []), (0.1, ['fid']), (None, [])])
def test_the_best_is_marked_where_the_difference_is_clear(error, marked):
    rows = [row_of(w=w, fid=fid, fid_standard_error=error) for w, fid in ((0.0, 2.0), (1.0, 1.5), (2.0, 4.0))]
    (curve,) = group_curves(rows)
    assert curve.bests_at(1) == marked


def test_several_seeds_have_a_mean_with_its_standard_error():
    fids = {(0, 1.0): 2.0, (1, 1.0): 2.2, (2, 1.0): 2.7, (0, 2.0): 3.0}
    rows = [row_of(seed=seed, w=w, fid=fid, inception_score=None) for (seed, w), fid in fids.items()]
    ((label, cells),) = page.seed_lines(group_curves(rows))
    assert (label, list(cells)) == ('Mean of 3 seeds, w = 1', ['fid'])
    assert cells['fid'] == with_error(2.3, stats.sem([2.0, 2.2, 2.7]))
    assert not page.seed_lines(group_curves(rows[2:]))


@pytest.mark.parametrize(
    ('differences', 'said'),
    [((-0.3, -0.1), 'not told apart'), ((-0.3, -0.28, -0.31), 'better.'), ((0.3, 0.28, 0.31), 'worse.')],
)
def test_a_search_calls_better_what_the_interval_of_scipy_does(differences, said):
    chosen, beside = (
        tuned.Fresh('', tuple(row_of(fid=2.0 + d, seed=seed) for seed, d in enumerate(of)))
        for of in (differences, [0.0] * len(differences))
    )
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    found = tuned.verdict(chosen, beside)
    assert said in found and (said == 'not told apart') == (low < 0 < high)
    ends = [float(text) for text in found.partition('mean is ')[2].partition(':')[0].split(' to ')]
    assert ends == pytest.approx([low, high], rel=1e-3, abs=1e-3)


def test_a_point_alone_is_not_the_best_of_anything():
    rows = [row_of(w=0.0, fid_standard_error=0.1), row_of(w=1.0, fid=None, inception_score=None)]
    assert [group_curves(rows[:count])[0].bests_at(0) for count in (1, 2)] == [[], []]


def test_the_printed_table_has_a_column_of_errors():
    header, line, *_ = text_table([row_of(w=0.0, fid=2.0, fid_standard_error=0.25)]).splitlines()
    assert '+-' in header and '0.2500' in line


def test_rows_without_errors_print_as_before():
    assert '+-' not in text_table([row_of(w=0.0, fid=2.0)])


def test_plots_draw_an_error_to_each_side():
    rows = [row_of(w=w, fid=2.0, fid_standard_error=error) for w, error in ((0.0, 0.25), (1.0, None))]
    axes, *_ = figure_against_w(group_curves(rows), None).axes
    (bars,) = axes.collections
    assert [end[1] for end in bars.get_segments()[0]] == [1.75, 2.25]
    assert not figure_against_w(group_curves(rows[1:]), None).axes[0].collections


def test_one_repetition_has_the_error_of_its_samples_and_several_their_spread():
    one = row_of(fid=2.0, fid_standard_error=0.25, inception_score=3.0)
    (point,) = frontier.points([[one]])
    assert (point.fid, point.fid_spread) == (2.0, 0.25)
    assert math.isnan(point.inception_score_spread)
    other = row_of(fid=3.0, fid_standard_error=0.25, seed=1)
    (point,) = frontier.points([[one, other]])
    assert (point.fid, point.fid_spread) == (2.5, pytest.approx(np.sqrt(0.5)))
