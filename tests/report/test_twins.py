"""A rule beside its twin: differences over repetitions, and the verdict."""

import numpy as np
import pytest
from scipy import stats

from cfg.report import frontier, strengths, twins
from cfg.report.frontier import Run
from cfg.report.rows import TWIN
from cfg.report.strengths import RowStrength
from tests.report.rows import row_of, write_rows

TEXT = 'cfg(schedule=((-2.0, 1.0), (2.0, 1.5)))'


def run_of(folder, pairs, seed=0, **more):
    """A run with a rule and its twin a sampling seed: its FIDs and those of the twin."""
    folder.mkdir()
    rows = []
    for sampling_seed, (fid, twin_fid) in enumerate(pairs):
        row = row_of(sampling={'guidance': 'apg'}, w=2.0, fid=fid, seed=sampling_seed, cost=64.0, **more)
        warnings = [f'{TWIN}: of another row.']
        twin = row_of(
            sampling={'guidance': TEXT}, w=1.0, fid=twin_fid, seed=sampling_seed, warnings=warnings, cost=32.0, **more
        )
        rows += [row, twin]
        measured = {'logsnr': [-2.0, 2.0], 'w_eff': [1.0 + seed, 1.5 + seed], 'remainder': [0.25, 0.5]}
        strength = RowStrength(num_samples=9, twin=TEXT, twin_row=twin.identity, **measured)
        strengths.write(folder, row.identity, strength)
    write_rows(folder, rows)
    return Run(folder, seed=seed)


@pytest.mark.parametrize(
    ('differences', 'verdict'),
    [
        ((0.01, -0.02, 0.01), 'CFG in other words'),
        ((0.1, -0.1, 0.05), 'not told apart'),
        ((0.1, 0.3, 0.05), 'not told apart'),
        ((0.1, 0.11, 0.12), 'worse than its twin'),
        ((-0.1, -0.11, -0.12), 'better than its twin'),
        ((0.0, 0.0), 'CFG in other words'),
        ((-0.3,), 'no spread is known'),
    ],
)
def test_the_verdict_is_by_the_spread_of_the_differences(tmp_path, differences, verdict):
    """Over training seeds; that of chance is scipy's paired t at a twentieth."""
    runs = [run_of(tmp_path / str(seed), [(2.0 + d, 2.0)], seed) for seed, d in enumerate(differences)]
    (one,) = twins.twinned(runs)
    assert one.difference == pytest.approx(np.mean(differences))
    assert one.verdict == verdict
    np.testing.assert_allclose(one.w_eff, np.add([1.0, 1.5], np.mean(range(len(runs)))))
    if len(differences) > 2:
        assert one.spread == pytest.approx(np.std(differences, ddof=1))
        found = stats.ttest_1samp(differences, 0.0)
        low, high = found.confidence_interval(0.95)
        same = bool(low > -0.1 and high < 0.1)
        assert same is (verdict == 'CFG in other words')
        assert bool(found.pvalue < 0.05 and not same) is ('than its twin' in verdict)


def test_what_chance_exceeds_is_students():
    for count, found in enumerate(frontier._CHANCE, start=2):
        assert found == pytest.approx(stats.t.ppf(0.975, count - 1), abs=0.006)


def test_sampling_seeds_are_repetitions_of_one_run_and_a_mean_in_several(tmp_path):
    one = run_of(tmp_path / 'a', [(2.0, 1.0), (3.0, 1.0)])
    other = run_of(tmp_path / 'b', [(5.0, 1.0), (7.0, 1.0)], seed=1, params_sha256='b')
    assert twins.twinned([one])[0].fids == (2.0, 3.0)
    (both,) = twins.twinned([one, other])
    assert (both.fids, both.twins) == ((2.5, 6.0), (1.0, 1.0))


def test_the_table_and_the_figure(tmp_path):
    run = run_of(tmp_path / 'a', [(2.0, 1.0), (3.0, 1.5)])
    found = twins.twinned([run])
    _, line = twins.table(found)
    expected = [
        'apg',
        '2',
        '1.00 to 1.50',
        '50%',
        '64',
        '32',
        '2.500',
        '1.250',
        '+1.250 ± 0.354',
        '2',
        'not told apart',
    ]
    assert line == expected
    twins.save_figure(found, tmp_path / 'strength.png')
    assert (tmp_path / 'strength.png').read_bytes().startswith(b'\x89PNG')


def test_a_row_whose_twin_is_missing_or_has_no_fid_does_not_count(tmp_path):
    assert twins.twinned([run_of(tmp_path / 'a', [(None, 1.0)])])[0].fids == ()
    run = run_of(tmp_path / 'b', [(2.0, 1.0)])
    for path in (tmp_path / 'b' / 'results').iterdir():
        if TWIN in path.read_text():
            path.unlink()
    assert twins.twinned([run]) == []
    assert twins.table(twins.twinned([run])) == [twins.table([])[0]]
