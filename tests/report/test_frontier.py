"""Comparing rules: means and spreads, the best at a cost, and the files of --mode=compare."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cfg.modes.compare import check
from cfg.report import compare, frontier, frontier_plots
from cfg.report.results import Results
from cfg.runtime.errors import UserError
from cfg.settings.values import config_dict
from tests.conftest import small_config
from tests.report.rows import row_of, write_rows


def row(fid, *, w=1.0, guidance='cfg', sampler='ancestral', num_steps=8, score=9.0, seed=1, **more):
    sampling = {'guidance': guidance, 'sampler': sampler, 'num_steps': num_steps}
    if sampler != 'ancestral':
        sampling['logvar_interp'] = None
    cost = num_steps * (1 + (w != 0))
    values = {'w': w, 'fid': fid, 'inception_score': score, 'seed': seed, 'evaluations': cost, 'cost': float(cost)}
    return row_of(sampling=sampling, **(values | more))


def test_the_spread_is_that_of_the_runs():
    """Of the means over sampling seeds; numpy's deviation with n - 1."""
    runs = [[row(1.0), row(2.0, seed=2)], [row(2.0), row(4.0, seed=2)], [row(6.0), row(6.0, seed=2)]]
    (point,) = frontier.points(runs)
    assert point.count == 3
    assert point.fid == pytest.approx(np.mean([1.5, 3.0, 6.0]))
    assert point.fid_spread == pytest.approx(np.std([1.5, 3.0, 6.0], ddof=1))
    assert point.inception_score_spread == 0.0


def test_the_spread_of_one_run_is_that_of_its_sampling_seeds():
    (point,) = frontier.points([[row(1.0), row(2.0, seed=2)]])
    assert (point.count, point.fid) == (2, 1.5)
    assert point.fid_spread == pytest.approx(math.sqrt(0.5))
    (alone,) = frontier.points([[row(1.0)]])
    assert math.isnan(alone.fid_spread)


def test_settings_are_told_apart_and_runs_of_other_parameters_are_not():
    runs = [
        [
            row(1.0, **params),
            row(2.0, w=0.0, **params),
            row(3.0, guidance='apg', **params),
            row(4.0, sampler='ddim', **params),
            row(5.0, num_steps=16, **params),
        ]
        for params in ({}, {'params_sha256': 'b', 'weaker_params_sha256': 'c'})
    ]
    found = frontier.points(runs)
    assert [point.count for point in found] == [2] * 5
    assert len(frontier.curves(found)) == 4
    assert [point.w for point in next(iter(frontier.curves(found).values()))] == [0.0, 1.0]


def test_scores_of_other_features_are_not_compared():
    with pytest.raises(UserError, match=r'No row of run 2 can be compared with .* differ in features_sha256: '):
        frontier.points([[row(1.0)], [row(2.0, features_sha256='b')]])
    # Of one run those count that are like the newest.
    older = {'num_samples': 9, 'finished': '2025'}
    found = frontier.points([[row(1.0), row(7.0, w=3.0, **older), row(2.0, w=0.5)]])
    assert [point.fid for point in found] == [1.0, 2.0]


def test_other_networks_are_other_points():
    """Two weaker models, say, whose rules are one text; over runs they go by their order."""
    runs = [
        [row(fid, guidance='autoguidance', weaker_params_sha256=f'{run}{fid}') for fid in fids]
        for run, fids in enumerate([(1.0, 5.0), (2.0, 7.0)])
    ]
    assert [(point.fid, point.count) for point in frontier.points(runs)] == [(1.5, 2), (6.0, 2)]


def test_the_same_classifier_is_the_same_over_runs():
    """Whatever the order in which each run used several."""
    rule = {'guidance': 'classifier'}
    runs = [
        [row(1.0, classifier_params_sha256='a', **rule), row(5.0, classifier_params_sha256='b', **rule)],
        [row(5.2, params_sha256='other', classifier_params_sha256='b', **rule)],
    ]
    found = [(point.fid, point.count) for point in frontier.points(runs)]
    assert found == [(1.0, 1), (pytest.approx(5.1), 2)]


def test_bars_are_inside_the_plot():
    found = frontier.points([[row(1.0)], [row(9.0)]])
    for figure in (frontier_plots.figure_frontier(found, 'title'), frontier_plots.figure_cost(found, 'title')):
        assert figure.axes[0].get_ylim()[1] > found[0].fid + found[0].fid_spread


def test_the_best_at_a_cost():
    found = frontier.points([[row(5.0, w=0.0), row(3.0), row(1.0, num_steps=16), row(4.0, w=2.0)]])
    assert frontier.best(found, 7.0) is None
    assert [frontier.best(found, cost).fid for cost in (8.0, 15.0, 16.0, 31.0, 32.0, math.inf)] == [5, 5, 3, 3, 1, 1]
    assert frontier.budgets(found) == [8.0, 16.0, 32.0]


def test_the_best_is_among_the_points_with_most_repetitions():
    """A point that one run alone has may be lowest by luck, and has no spread."""
    runs = [[row(fid, w=0.5)] for fid in (1.0, 1.2, 1.1)]
    runs[0].append(row(0.9, w=0.7))
    best = frontier.best(frontier.points(runs))
    assert (best.w, best.count) == (0.5, 3)
    assert frontier.best(frontier.points(runs[:1])).w == 0.7


def test_a_difference_in_its_standard_errors():
    """Student's paired t, as in scipy; over sampling seeds where there is one run."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 0.1, 3), rng.normal(1.3, 0.3, 3)
    expected = stats.ttest_rel(a, b).statistic
    runs = [[row(float(x)), row(float(y), guidance='apg')] for x, y in zip(a, b, strict=True)]
    seeds = [
        row(float(fid), guidance=guidance, seed=seed)
        for seed, fids in enumerate(zip(a, b, strict=True))
        for fid, guidance in zip(fids, ('cfg', 'apg'), strict=True)
    ]
    for found in (frontier.points(runs), frontier.points([seeds])):
        assert frontier.differs(*found) == pytest.approx(expected)
    assert math.isnan(frontier.differs(*frontier.points(runs[:1])))
    first, second = frontier.points([*runs[1:], [runs[0][1]]])  # one is missing in a run
    assert (first.count, second.count) == (2, 3)
    assert frontier.differs(first, second) == pytest.approx(stats.ttest_rel(a[1:], b[1:]).statistic)


def write_run(folder, factor):
    rows = []
    for guidance in ('cfg', 'apg(eta=0.5)', 'cfg(interval=(-3.0, 5.0))'):
        for num_steps in (8, 16):
            for w in (0.0, 1.0, 4.0):
                fid = factor * (1 + w * (guidance == 'cfg')) / num_steps
                finished = f'2026-01-01T00:00:{len(rows):02d}'
                rows.append(row(fid, w=w, guidance=guidance, num_steps=num_steps, score=9 + w / 9, finished=finished))
    write_rows(folder, rows)


def write(workdir, others=()):
    return compare.write(check(workdir, others))


def test_the_files(tmp_path):
    write_run(tmp_path / 'a', 1.0)
    write_run(tmp_path / 'b', 3.0)
    page = write(tmp_path / 'a', (str(tmp_path / 'b'), str(tmp_path / 'a')))
    assert page == tmp_path / 'a' / 'compare' / 'index.html'
    text = page.read_text()
    assert 'Means over 2 repetitions' in text
    assert 'apg(eta=0.5)' in text
    for name in ('frontier.png', 'cost.png'):
        assert (page.parent / name).read_bytes().startswith(b'\x89PNG')
    with (page.parent / 'points.csv').open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == 18
    assert float(points[0]['fid']) == pytest.approx(2 / 8)
    with (page.parent / 'best_at_cost.csv').open() as file:
        head, *lines = csv.reader(file)
    assert head == ['guidance', '8 evaluations', '16 evaluations', '32 evaluations']
    assert [line[0] for line in lines] == ['cfg', 'apg(eta=0.5)', 'cfg(interval=(-3.0, 5.0))']
    assert 'standard errors from cfg' not in lines[1][2]  # the same FIDs
    assert lines[0][2] == '0.125 ± 0.088 (w = 0, T = 16)'


def changed(**changes):
    """The config of a run, with fields of its parts changed."""
    config = small_config()
    with config.unlocked():
        for name, value in changes.items():
            part, _, field = name.rpartition('__')
            (config[part] if part else config)[field] = value
    return config_dict(config)


def runs_of(tmp_path, monkeypatch, *configs):
    """A sweep a config in folders a, b, c, ...; returns them."""
    folders = [tmp_path / 'abcdefgh'[place] for place in range(len(configs))]
    for place, folder in enumerate(folders):
        write_run(folder, 1.0 + place)
    metas = {folder: {'config': config} for folder, config in zip(folders, configs, strict=True)}
    monkeypatch.setattr('cfg.modes.compare.newest_meta', metas.get)
    return folders


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        (
            {'seed': 1, 'model__channels': 16},
            r'a and .*b cannot be compared: config\.model\.channels is 8 there and 16',
        ),
        ({'seed': 1, 'data__crop': 'random'}, r"cannot be compared: config\.data\.crop is 'area' there and 'random'"),
        ({}, r'both have config\.seed=0: .* give runs of other seeds'),
    ],
)
def test_runs_of_other_data_or_arithmetic_are_not_compared(tmp_path, monkeypatch, changes, expected):
    first, *others = runs_of(tmp_path, monkeypatch, changed(), changed(**changes))
    with pytest.raises(UserError, match=expected):
        write(first, others)


@pytest.mark.parametrize(
    'changes',
    [
        {'train__kind': 'guidance_free'},
        {'train__student_steps': 4},
        {'train__beta2': 0.9},
        {'train__decay_steps': 9},
        {'model__dropout': 0.5},
        {'diffusion__prediction': 'v'},
    ],
)
def test_runs_of_other_trainings_are_other_networks(tmp_path, monkeypatch, changes):
    """Each with its seeds as repetitions, which are paired by seed; cfg of the first stands beside all."""
    configs = [changed(seed=seed, **more) for more in ({}, changes) for seed in (3, 5)]
    first, *others = runs_of(tmp_path, monkeypatch, *configs)
    found = check(first, reversed(others))
    assert [(run.folder.name, run.network, run.seed) for run in found] == [
        ('a', 'a', 3),
        ('d', 'd', 5),
        ('c', 'd', 3),
        ('b', 'a', 5),
    ]
    points = frontier.points([Results(run.folder).read() for run in found], found)
    assert {point.count for point in points} == {2}
    assert dict(points[0].fids) == pytest.approx({3: 1 / 8, 5: 2 / 8})
    of_other = next(point for point in points if point.setting.network == 'd')
    assert dict(of_other.fids) == pytest.approx({3: 3 / 8, 5: 4 / 8})
    text = compare.write(found).read_text()
    assert 'Means over 2 repetitions' in text
    assert '<th scope="row">a, cfg</th>' in text
    assert '<th scope="row">d, apg(eta=0.5)</th>' in text


def test_a_network_without_cfg_stands_beside_the_first(tmp_path):
    """A student has one pass a step; what it is compared with at equal cost is its teacher."""
    teacher, student = (0.0, 1.0), (0.5, 0.9, 1.6)
    for seed in (0, 1, 2):
        fids = [row(1.0 + seed, w=w, num_steps=8) for w in teacher]
        write_rows(tmp_path / f'teacher{seed}', fids)
        # At seed differences of 0.5, 0.9 and 1.6 below.
        fid = 1.0 + seed - student[seed]
        write_rows(tmp_path / f'student{seed}', [row(fid, guidance='one_pass', step=9, cost=8.0)])
    runs = [
        frontier.Run(tmp_path / f'{name}{seed}', name, seed) for name in ('teacher', 'student') for seed in range(3)
    ]
    points = frontier.points([Results(run.folder).read() for run in runs], runs)
    head, *lines = compare.best_table(points)
    assert head == ['guidance', '8 evaluations', '16 evaluations']
    t = stats.ttest_1samp([-x for x in student], 0.0).statistic
    assert f'{t:+.1f} standard errors from cfg' in lines[1][1]


def test_runs_may_differ_in_what_their_rows_tell(tmp_path, monkeypatch):
    first, *others = runs_of(tmp_path, monkeypatch, changed(), changed(seed=1), changed(model__label_in='decoder'))
    assert {run.network for run in check(first, others)} == {''}
    write(first, others)
    with pytest.raises(UserError, match=r'holds .*none, which does not exist'):
        write(first, (str(tmp_path / 'none'),))


def test_a_run_counts_once_however_its_folder_is_written(tmp_path, monkeypatch):
    for folder in 'ab':
        write_run(tmp_path / folder, 1.0)
    monkeypatch.chdir(tmp_path)
    assert 'Means over 2 repetitions' in write(Path('a'), ('b', str(tmp_path / 'a'), './b')).read_text()


def test_nothing_to_compare(tmp_path):
    with pytest.raises(UserError, match='holds no rows to compare: run --mode=compare or --mode=eval first'):
        compare.write([frontier.Run(tmp_path)])


@pytest.mark.parametrize(
    'rows',
    [
        [{'score': None}, {'score': None, 'w': 2.0}],  # no inception score
        [{'fid': None, 'guidance': 'apg'}, {}],  # one rule without a FID
        [{}],  # a single point
        [{'w': 0.0}, {'w': 0.0, 'guidance': 'apg'}],  # all w equal
        [{'fid': 0.0}, {'fid': 0.0, 'w': 2.0}],
        [{'fid': 3e38, 'w': 2.0}, {'fid': 1e-300}],
        [{'fid': None, 'guidance': f'cfg(threshold={n})'} for n in range(1, 8)] + [{}],  # panels
    ],
)
def test_a_comparison_of_little_is_a_comparison(tmp_path, rows):
    write_rows(tmp_path, [row(**({'fid': 1.0} | changes)) for changes in rows])
    page = compare.write([frontier.Run(tmp_path)])
    for name in ('frontier.png', 'cost.png'):
        assert (page.parent / name).read_bytes().startswith(b'\x89PNG')
    with (page.parent / 'points.csv').open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_rows_without_any_fid_are_refused_with_a_sentence(tmp_path):
    write_rows(tmp_path, [row(None), row(None, w=2.0)])
    with pytest.raises(UserError, match=r'No row of .* has a FID, by which rules are compared: delete its folder '):
        compare.write([frontier.Run(tmp_path)])
    assert not (tmp_path / 'compare').exists()
    # The figures alone say it, too.
    found = frontier.points([[row(None), row(None, w=2.0)]])
    for figure in (frontier_plots.figure_frontier(found, 'title'), frontier_plots.figure_cost(found, 'title')):
        assert figure.axes


def test_what_a_page_says_is_escaped(tmp_path):
    hostile = '<b onclick="x">&'
    write_rows(tmp_path, [row(1.0, guidance=hostile, features=hostile), row(2.0, features=hostile)])
    text = compare.write([frontier.Run(tmp_path)], note=hostile).read_text()
    assert hostile not in text
    assert text.count('&lt;b onclick=&#34;x&#34;&gt;&amp;') == 3
