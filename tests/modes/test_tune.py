"""--mode=tune on a tiny network: its rungs, its fresh seeds, going on after a kill, and the config that it prints."""

import itertools
import json
import re
import shlex
import shutil
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from cfg.evaluation import candidates, drawing, sweep
from cfg.modes import compare, report, tune
from cfg.report.results import Results
from cfg.report.rows import TUNED
from cfg.report.tuned import config_text
from cfg.runtime.errors import UserError
from cfg.settings.checks import check_config
from cfg.settings.sampler import read_sampler
from cfg.training import loop
from configs import digits, digits_tune
from tests.conftest import score_few, small_config
from tests.kept import keep, of_generator

VARYING = ('seconds', 'finished')
NUM_SEEDS, FINAL = 2, 80
RUNGS = ((9, 65), (3, 195))


@pytest.fixture(scope='module', autouse=True)
def kept_programs():
    """Searches of this file share what is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        keep(patch, drawing, make_generator=of_generator, guided_flops=lambda network, shape: (network, tuple(shape)))
        yield


def config_of(**changes):
    config = small_config()
    config.sampling.batch_size = 100
    config.eval.save_seconds = 0.0
    score_few(config, samples=FINAL, of_split=50, subsets=2, of_subset=50)
    with config.unlocked():
        config.tune.evaluations = 8
        config.tune.first_samples = 65
        config.tune.samples = 2 * NUM_SEEDS * FINAL + sum(count * samples for count, samples in RUNGS)
        config.tune.final_seeds = NUM_SEEDS
        config.tune.w = (0.5, 1.0, 2.0, 3.0, 4.0)
        config.tune.guidance = ('cfg', 'cfg(interval=(-3, 3))', 'temperature')
        config.tune.sampler, config.tune.grid, config.tune.num_steps = ('ddim', 'ancestral'), ('uniform',), (4, 8)
        for name, value in changes.items():
            config.tune[name] = value
    check_config(config)
    return config


@pytest.fixture(scope='module', name='trained')
def trained_fixture(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('tune') / 'run'
    workdir.mkdir()
    loop.train(small_config(), workdir)
    return workdir


@pytest.fixture(scope='module', name='tuned')
def tuned_fixture(trained, tmp_path_factory):
    """(workdir, what was printed) of a search that nothing disturbed."""
    workdir = shutil.copytree(trained, tmp_path_factory.mktemp('tuned') / 'run')
    return workdir, tune.run(config_of(), workdir)


@pytest.fixture(name='workdir')
def workdir_fixture(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / 'run')


def rows_of(workdir):
    rows = [json.loads(path.read_text()) for path in sorted((workdir / 'results').glob('*.json'))]
    return [{name: value for name, value in row.items() if name not in VARYING} for row in rows]


def of_seeds(workdir, *seeds):
    return [row for row in Results(workdir).read() if row.source.seed in seeds]


def test_every_row_of_every_rung_is_kept_with_a_mark(tuned):
    workdir, _ = tuned
    for number, (count, samples) in enumerate(RUNGS):
        rows = of_seeds(workdir, 1000 + number)
        assert len(rows) == count
        assert {row.method.num_samples for row in rows} == {samples}
        assert all('is too low' in row.origin.warnings[-1] for row in rows)
        plain = [row for row in rows if row.source.sampling.guidance == 'cfg']
        assert len(plain) >= count // 3
    assert all(row.apart for row in Results(workdir).read())
    assert all(row.evaluations <= 8 for row in Results(workdir).read())
    assert not list((workdir / 'samples').glob('step*_w*_*.npz'))


def setting(row):
    return row.source.sampling, row.source.w


def test_the_best_of_a_rung_go_on(tuned):
    """By their FID, of which some are equal here; one of three is plain."""
    workdir, _ = tuned
    first, second, fresh = (
        {setting(row): row.scores.fid for row in of_seeds(workdir, seed)} for seed in (1000, 1001, 2000)
    )
    plain = {which: which[0].guidance == 'cfg' for which in first}
    ranked = [sorted(fid for which, fid in first.items() if plain[which] is kind) for kind in (True, False)]
    third = min(ranked[0][1], ranked[1][1])
    assert sorted(first[which] for which in second) == sorted([ranked[0][0], ranked[1][0], third])
    assert {plain[which] for which in fresh} == {True, False}
    for kind in (True, False):  # the best, and the best of the other kind
        assert min(second[which] for which in second if plain[which] is kind) in [second[which] for which in fresh]
    assert len(fresh) == 2
    assert set(fresh) < set(second) < set(first)


def test_only_fresh_samples_are_reported(tuned):
    workdir, text = tuned
    fresh = [row for row in Results(workdir).read() if row.source.seed >= 2000]
    assert {row.source.seed for row in fresh} == {2000, 2001}
    assert len(fresh) in (2, 4)
    assert {row.method.num_samples for row in fresh} == {FINAL}
    chose = [row for row in Results(workdir).read() if row.source.seed < 2000]
    page = (workdir / 'tune' / 'index.html').read_text()
    assert f'{NUM_SEEDS} fresh seeds of {FINAL} samples each' in text
    for said in (text, page, (workdir / 'tune' / 'tuned.py').read_text()):
        for row in chose:
            assert f'{row.scores.fid:.3f}' not in said
        best = [row for row in fresh if row.evaluations == fresh[0].evaluations]
        assert best
        assert re.search(r'\d+\.\d{3} ± \d+\.\d{3}', said)


def config_by(text):
    """The config that lines of a file make of that of the tests."""
    config = small_config()
    exec(text, {'config': config})
    check_config(config)
    return config


def config_by_flags(words, monkeypatch):
    """The config that main.py would read from a command line."""
    values = flags.FlagValues()
    line = ['main.py', '--config=configs/digits.py', *words]
    monkeypatch.setattr(sys, 'argv', line)
    config_flags.DEFINE_config_file('config', flag_values=values)
    values(line)
    check_config(values.config)
    return values.config


@pytest.mark.filterwarnings('ignore:the load_module')  # of ml_collections
def test_the_config_to_paste_is_the_setting_that_was_measured(tuned, monkeypatch):
    workdir, text = tuned
    content = (workdir / 'tune' / 'tuned.py').read_text()
    assert content.splitlines()[0].removeprefix('# ') in text
    words = shlex.split(content.splitlines()[-1].removeprefix('# '))
    pasted = config_by(content), config_by_flags(words, monkeypatch)
    assert read_sampler(pasted[0]) == read_sampler(pasted[1])
    sampler, (w,) = read_sampler(pasted[0]), pasted[0].sampling.w
    assert pasted[0].sampling.step == pasted[1].sampling.step == 6
    pasted[0].eval = config_of().eval.copy_and_resolve_references()
    with pasted[0].unlocked():
        pasted[0].eval.w, pasted[0].eval.seeds, pasted[0].eval.keep_samples = (w,), (2000, 2001), 0
    before = rows_of(workdir)
    sweep.evaluate(pasted[0], workdir)  # are there: the same identity
    assert rows_of(workdir) == before
    assert sampler.rule.text in content


def test_rules_with_networks_of_their_own_are_pasted_whole(tuned):
    workdir, _ = tuned
    rule = f'autoguidance(step=2, workdir={str(workdir)!r})'
    searched = candidates.as_sweep(config_of(guidance=(rule, 'cfg')), workdir)
    found, _ = candidates.candidates(searched, workdir)
    point = next(point for point in found if point.sampler.rule.name == 'autoguidance')
    pasted = config_by(config_text(tune.setting(point)))
    assert read_sampler(pasted) == point.sampler


def test_the_same_command_again_measures_nothing_and_says_the_same(tuned):
    workdir, text = tuned
    before = {path: path.stat().st_mtime_ns for path in (workdir / 'results').iterdir()}
    assert tune.run(config_of(), workdir) == text
    assert {path: path.stat().st_mtime_ns for path in (workdir / 'results').iterdir()} == before


class Died(BaseException):
    """A process that is gone."""


@pytest.mark.parametrize('rung', [0, 1, 2])
def test_a_search_killed_on_any_rung_goes_on_to_the_same(tuned, workdir, monkeypatch, rung):
    """In the middle of a row; the last one is that of the fresh samples. Nothing finished is measured again."""
    alone, text = tuned
    add, drawn = sweep.Measurement.add, []
    rows = sum(count for count, _ in RUNGS[:rung]) + 1  # one of the rung is finished

    def dying(self, images, *args, **kwargs):
        if len(list((workdir / 'results').glob('*.json'))) == rows and self.count:
            raise Died
        return add(self, images, *args, **kwargs)

    if rung != 1:  # rows of one batch die when they are scored
        scores = sweep.Scoring.scores
        monkeypatch.setattr(
            sweep.Scoring,
            'scores',
            lambda *args: scores(*args) if len(list((workdir / 'results').glob('*.json'))) < rows else _die(),
        )
    monkeypatch.setattr(sweep.Measurement, 'add', dying)
    with pytest.raises(Died):
        tune.run(config_of(), workdir)
    assert len(rows_of(workdir)) == rows
    assert len(list((workdir / 'unfinished').glob('[!.]*'))) == 1
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in (workdir / 'results').glob('*.json')}

    def counting(self, images, *args, **kwargs):
        drawn.append(len(images))
        return add(self, images, *args, **kwargs)

    monkeypatch.setattr(sweep.Measurement, 'add', counting)
    assert tune.run(config_of(), workdir).splitlines()[:-2] == text.splitlines()[:-2]
    assert rows_of(workdir) == rows_of(alone)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list((workdir / 'unfinished').glob('[!.]*'))


def _die():
    raise Died


def test_a_setting_that_cannot_be_measured_loses(tuned, workdir, monkeypatch):
    """The best of the first rung, say."""
    alone, _ = tuned
    best = min(of_seeds(alone, 1000), key=lambda row: row.scores.fid).identity
    measure = sweep.Sweep._measure

    def measuring(self, point, row, *args):
        if row.identity == best:
            raise UserError('its samples are not finite')
        return measure(self, point, row, *args)

    monkeypatch.setattr(sweep.Sweep, '_measure', measuring)
    tune.run(config_of(), workdir)
    assert len(of_seeds(workdir, 1000)) == RUNGS[0][0] - 1
    setting = next(row.source for row in Results(alone).read() if row.identity == best)
    assert all((row.source.sampling, row.source.w) != (setting.sampling, setting.w) for row in Results(workdir).read())


def test_report_and_comparison_leave_a_search_out(tuned, tmp_path):
    workdir = shutil.copytree(tuned[0], tmp_path / 'run')
    config = config_of()
    with pytest.raises(UserError, match='run --mode=eval first'):
        report.run(config, workdir)
    sweep.evaluate(config, workdir)  # w = 0 and 1 of the sampler of the config
    assert TUNED not in report.run(config, workdir).read_text()
    compare.run(config, workdir)
    assert len((workdir / 'compare' / 'points.csv').read_text().splitlines()) == 3


def test_what_costs_too_much_or_does_not_fit_is_left_out_and_said(workdir):
    """And w = 0, which no interval changes, is there once."""
    cut = 'cfg(interval=(None, 5.0))'
    searched = candidates.as_sweep(config_of(guidance=('cfg', cut, 'temperature', 'one_pass'), w=(0.0, 1.0)), workdir)
    assert searched.eval.guidance == ('cfg', cut, 'temperature')
    found, notes = candidates.candidates(searched, workdir)
    said = {(it.sampler.rule.text, it.sampler.solver.name, it.sampler.num_steps, it.w) for it in found}
    plain = [('cfg', 4, 0.0), ('cfg', 4, 1.0), ('cfg', 8, 0.0), (cut, 4, 1.0)]
    expected = {(rule, solver, *rest) for solver in ('ancestral', 'ddim') for rule, *rest in plain}
    assert said == expected | {('temperature', 'ancestral', *rest) for rest in itertools.product((4, 8), (0.0, 1.0))}
    assert len(said) == len(found)
    assert notes == [
        '4 candidates cost more than config.tune.evaluations=8, and are left out.',
        '4 candidates have a guidance that their sampler does not take, and are left out.',
    ]


def test_without_a_number_of_steps_each_has_the_most_that_the_budget_pays_for(workdir):
    config = config_of(
        num_steps=(), sampler=('ddim', 'heun', 'gibbs'), evaluations=21, guidance=('cfg', 'cfg(interval=(-3, 3))')
    )
    found, _ = candidates.candidates(candidates.as_sweep(config, workdir), workdir)
    steps = {(it.sampler.rule.text, it.sampler.solver.name): it.sampler.num_steps for it in found}
    assert steps['cfg', 'ddim'] == 10
    assert steps['cfg', 'heun'] == 5  # two predictions of two networks' worth a step, but the last
    assert steps['cfg', 'gibbs'] == 8  # (2 4 - 1) + 2 2 (2 2 - 1): four steps without guidance, twice two with it
    assert steps['cfg(interval=(-3.0, 3.0))', 'ddim'] > 10
    for it in found:
        assert it.sampler.passes(it.w).total <= 21
        assert (
            read_sampler(
                config,
                guidance=it.sampler.rule.text,
                sampler=it.sampler.solver.text,
                grid='uniform',
                num_steps=it.sampler.num_steps + 1,
            )
            .passes(it.w)
            .total
            > 21
        )


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'guidance': ('cgf',)}, r"config\.tune\.guidance='cgf' must be one of cfg, "),
        ({'grid': ('nested', 'paper'), 'num_steps': (1,)}, r'config\.tune\.num_steps=\(1,\) must be at least 2 with'),
        ({'factor': 1}, r'config\.tune\.factor=1 must be a whole number of at least 2'),
        ({'w': (-1.0,)}, r'config\.tune\.w=\(-1\.0,\) must be above -1'),
        ({'guidance': ('one_pass',)}, r"names no rule of this network, which takes no w, as 'one_pass' needs"),
        ({'steps': (5,)}, r'The checkpoint of step 5 is not among those'),
        ({'evaluations': 3}, r'leaves 0 candidates, .*50 candidates cost more .* raise config\.tune\.evaluations'),
        ({'samples': 449}, r'config\.tune\.samples=449 is too small: .* take 320 of them, .* give 450 or more'),
        ({'first_samples': 64}, r'config\.tune\.first_samples=64 is too small: .* than the 64 features'),
    ],
)
def test_what_cannot_be_is_a_sentence_before_any_sample(workdir, changes, expected):
    before = sorted(workdir.rglob('*'))
    with pytest.raises(UserError, match=expected):
        tune.run(config_of(**changes), workdir)
    assert sorted(workdir.rglob('*')) == before


def test_it_is_one_job(workdir):
    config = config_of()
    config.eval.job = '1/2'
    with pytest.raises(UserError, match=r"config\.eval\.job='1/2' must be 1/1 with --mode=tune"):
        tune.run(config, workdir)


def test_the_config_of_make_tune_fits():
    check_config(digits_tune.get_config())
    assert digits_tune.get_config().model == digits.get_config().model
