"""The sweep in one process: its product, its jobs, and going on in the middle of a row."""

import contextlib
import gc
import itertools
import json
import re
import shutil
import signal
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cfg
from cfg.data.digits import digits
from cfg.evaluation import drawing, references, sweep
from cfg.evaluation.points import config_sha256
from cfg.features.network import FeatureNetwork, Features, default_cache, with_second
from cfg.features.opening import open_features
from cfg.features.small_classifier import small_classifier
from cfg.metrics import distances, jackknife
from cfg.metrics.memorisation import TrainingSet
from cfg.metrics.moments import Moments
from cfg.modes import compare, evaluate, import_adm, report
from cfg.report import gallery
from cfg.report.curves import group_curves
from cfg.report.results import Results
from cfg.report.sample_files import load_samples
from cfg.runs.companions import make_generator
from cfg.runs.trained import TrainedRun
from cfg.runtime import environment, progress
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock
from cfg.settings.checks import check_config
from cfg.training import loop
from tests.conftest import score_few, small_config
from tests.models.adm_reference import Adm, classifier_forward, random_state
from tests.report.rows import VALIDATOR

VARYING = ('seconds', 'finished', 'config_sha256')
pytestmark = pytest.mark.usefixtures('kept_sampling')


def config_of(**changes):
    config = small_config()
    config.eval.keep_samples, config.eval.save_seconds = 30, 0.0
    score_few(config, samples=100, of_split=50, subsets=5, of_subset=50)
    with config.unlocked():
        for name, value in changes.items():
            config.eval[name] = value
    return config


@pytest.fixture(scope='module', name='trained')
def trained_fixture(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('sweep') / 'run'
    workdir.mkdir()
    config = small_config()
    config.train.ema_lengths = (0.05, 0.1)
    loop.train(config, workdir)
    sweep.evaluate(config_of(w=(5.0,)), workdir)  # measures the real images, once
    forget(workdir)
    return workdir


@pytest.fixture(name='workdir')
def workdir_fixture(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / 'run')


def forget(workdir):
    """Deletes all rows."""
    shutil.rmtree(workdir / 'results')
    (workdir / 'results.jsonl').unlink()


def flat_rows(workdir):
    return [row.flat for row in Results(workdir).read()]


def rows_of(workdir):
    return [{k: v for k, v in row.items() if k not in VARYING} for row in flat_rows(workdir)]


def test_a_sweep_is_the_product_of_all_that_varies(workdir, capsys):
    axes = {'steps': (4, 6), 'ema': (True, False), 'num_steps': (3, 4), 'seeds': (1, 7), 'w': (0.0, 1.0)}
    sweep.evaluate(config_of(num_samples=20, **axes), workdir)
    rows = rows_of(workdir)
    found = [(row['step'], row['ema'], row['sampling']['num_steps'], row['seed'], row['w']) for row in rows]
    assert found == list(itertools.product(*axes.values()))
    assert len({row['identity'] for row in rows}) == 32
    assert len({row['params_sha256'] for row in rows}) == 4
    assert len({row['fid'] for row in rows if row['w'] == 0}) >= 15  # of 20 samples of a network of few steps
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ['step', 'ema', 'T', 'seed', 'w']
    assert lines[5].split()[:5] == ['4', 'True', '4', '1', '1']


def test_the_report_says_how_to_draw_a_sample_again(workdir):
    axes = {'guidance': ('cfg', 'apg'), 'sampler': ('ancestral', 'ddim'), 'ema': (True, False), 'logvar_interp': (0.1,)}
    sweep.evaluate(config_of(num_samples=20, seeds=(3,), w=(1.0,), **axes), workdir)
    rows = Results(workdir).swept()
    files = {row.samples: load_samples(workdir / row.samples) for row in rows}
    shown = {path: gallery.Shown(samples, np.arange(20)) for path, samples in files.items()}
    found = gallery.data(group_curves(rows), shown, tuple('0123456789'), room=10**6)
    points = [point for curve in found['curves'] for point in curve['points']]
    assert len({point['how'] + point['load'] for point in points}) == len(points) == 8
    for point in points:
        sheet, wanted = found['sheets'][point['sheet']], files[rows[point['sheet']].samples]
        label = sheet['labels'][13]
        images = eval(
            f'cfg.sample(cfg.load(workdir, {point["load"]}), [{label}] * 14, {point["how"]})',
            {'cfg': cfg, 'workdir': workdir},
        )
        np.testing.assert_array_equal(images[13], wanted.images[13])


def test_lengths_of_averages_are_swept(workdir):
    axes = {'ema': (True, False), 'ema_length': (0.0, 0.05, 0.06), 'w': (0.0, 1.0)}
    config = config_of(num_samples=20, **axes)
    sweep.evaluate(config, workdir)
    report.run(config, workdir)
    rows = rows_of(workdir)
    averages = [(True, None), (True, 0.05), (True, 0.06), (False, None)]
    assert [(row['ema'], row['ema_length'], row['w']) for row in rows] == [
        (*average, w) for average in averages for w in axes['w']
    ]
    assert len({row['params_sha256'] for row in rows}) == len({row['fid'] for row in rows if row['w'] == 0}) == 4
    assert (workdir / 'report' / 'fid_vs_ema_length.png').exists()
    labels = [curve.label for curve in group_curves(Results(workdir).read())]
    assert labels == ['ema, EMA by decay', 'ema, EMA length 0.05', 'ema, EMA length 0.06', 'no ema, EMA by decay']
    plain = config_of(num_samples=20, w=(0.0,))
    sweep.evaluate(plain, workdir)  # is there
    plain.sampling.ema_length = 0.06
    sweep.evaluate(plain, workdir)  # is there, too
    assert rows_of(workdir) == rows
    with pytest.raises(UserError, match=r'ema_length=0\.25 at step 6 cannot be made of the averages of 3 checkpoints'):
        sweep.evaluate(config_of(ema_length=(0.05, 0.25)), workdir)


def test_the_sampler_may_vary_too(workdir, capsys):
    sweep.evaluate(config_of(num_samples=20, w=(1.0,)), workdir)
    sweep.evaluate(config_of(num_samples=20, w=(1.0,), logvar_interp=(0, 0.3, 0.3, 1.0)), workdir)
    rows = rows_of(workdir)
    # The first one was there: the sampler's own value is the same row.
    assert [row['sampling']['logvar_interp'] for row in rows] == [0.0, 0.3, 1.0]
    assert len({row['fid'] for row in rows}) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ['step', 'w', 'FID']
    (start,) = (number for number, line in enumerate(lines) if line.split()[:3] == ['step', 'v', 'w'])
    assert [line.split()[1] for line in lines[start + 1 : start + 4]] == ['0', '0.3', '1']
    alone = config_of(num_samples=20, w=(1.0,))
    alone.sampling.logvar_interp = 1.0
    sweep.evaluate(alone, workdir)  # is there too
    assert rows_of(workdir) == rows
    assert [curve.label for curve in group_curves(Results(workdir).read())] == ['v = 0', 'v = 0.3', 'v = 1']


def test_guidance_and_samplers_may_vary_too(workdir, capsys):
    """Rules with other networks, a w of their own and other costs; one row for one meaning, whatever the text."""
    rules = ('cfg', 'cfg( against = "null" )', 'cfg(interval=(None, 0))', 'autoguidance(step=2, w=90.0)')
    changes = {'num_samples': 20, 'w': (50.0,), 'guidance': rules, 'logvar_interp': (0.3, 0.3)}
    sweep.evaluate(config_of(sampler=('ancestral', 'ddim(eta=0.5)'), **changes), workdir)
    rows = rows_of(workdir)
    found = [(row['sampling']['guidance'], row['sampling']['sampler'], row['w']) for row in rows]
    assert found == [
        (rule, sampler, 90.0 if rule == 'autoguidance(step=2)' else 50.0)
        for rule in ('cfg', 'autoguidance(step=2)', 'cfg(interval=(None, 0.0))')
        for sampler in ('ancestral', 'ddim(eta=0.5)')
    ]
    assert len({row['fid'] for row in rows}) >= 4  # where there is little noise, this network hardly sees its label
    assert [row['evaluations'] for row in rows] == [8, 8, 8, 8, 6, 6]  # two of the four levels are below 0
    assert all(row['cost'] == row['evaluations'] for row in rows)  # the weaker model is as large
    assert [row['sampling']['logvar_interp'] for row in rows] == [0.3, None] * 3
    (weaker,) = {row['weaker_params_sha256'] for row in rows} - {None}
    sweep.evaluate(config_of(num_samples=20, w=(1.0,), steps=(2,)), workdir)
    (row,) = (row for row in rows_of(workdir) if row['step'] == 2)
    assert row['params_sha256'] == weaker
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header[:4] == ['step', 'guidance', 'sampler', 'v']
    alone = config_of(num_samples=20, w=(50.0,))
    alone.sampling.guidance, alone.sampling.sampler = 'cfg(interval=(None, 0.0))', 'ddim(eta=0.5)'
    before = rows_of(workdir)
    sweep.evaluate(alone, workdir)  # is there too
    assert rows_of(workdir) == before


def test_the_rules_of_a_sweep_share_the_reading_of_its_checkpoint(workdir, monkeypatch):
    read, params = [], TrainedRun.params
    monkeypatch.setattr(TrainedRun, 'params', lambda run: read.append(run.step) or params(run))
    sweep.evaluate(config_of(num_samples=20, w=(0.0,), guidance=('cfg', 'scaled_score')), workdir)
    assert len(rows_of(workdir)) == 2
    assert read == [6]  # for the devices; its digest is beside it
    sweep.evaluate(config_of(num_samples=20, w=(0.0,), guidance=('cfg', 'scaled_score')), workdir)
    assert read == [6]


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'guidance': ('cgf',)}, r"config\.eval\.guidance='cgf' must be one of cfg, "),
        ({'guidance': (1.0,)}, r'config\.eval\.guidance=\(1\.0,\) must be a tuple of texts'),
        ({'sampler': ('ddim(eta=3)',)}, r'config\.eval\.sampler=.*eta must be a number from 0 to 1'),
        ({'grid': ('paper(logsnr_min=5, logsnr_max=3)',)}, 'a grid with logsnr_min smaller than logsnr_max'),
        ({'guidance': ('temperature',), 'sampler': ('ddim',)}, "'temperature' scales the noise"),
        ({'guidance': ('temperature',), 'w': (-1.0, 1.0)}, r'config\.eval\.w=.* above -1'),
    ],
)
def test_samplers_that_cannot_be_are_named(changes, expected):
    with pytest.raises(UserError, match=expected):
        check_config(config_of(**changes))


@pytest.mark.parametrize(
    ('guidance', 'expected'),
    [
        ('autoguidance', r"'autoguidance' does not say which model is the weaker one"),
        ('autoguidance(step=5)', r'The checkpoint of step 5 is not among those'),
        ('autoguidance(workdir="/nowhere")', r"'autoguidance': workdir=/nowhere does not exist"),
        ('classifier', r"The guidance 'classifier' does not say which one"),
        ('classifier(workdir="/nowhere")', r'/nowhere does not exist: give the workdir of a classifier'),
    ],
)
def test_networks_that_are_not_there_are_named_before_any_sample(workdir, guidance, expected):
    with pytest.raises(UserError, match=expected):
        sweep.evaluate(config_of(guidance=(guidance,)), workdir)
    assert not flat_rows(workdir)


@pytest.mark.parametrize('values', [(1.5,), (-0.1, 0.3), (float('nan'),), ('0.3',), (True,)])
def test_values_of_the_sampler_that_cannot_be_are_named(values):
    with pytest.raises(UserError, match=r'config\.eval\.logvar_interp=.* must be numbers in \[0, 1\]'):
        check_config(config_of(logvar_interp=values))


def test_a_row_says_how_it_was_measured(workdir):
    sweep.evaluate(config_of(w=(0.5,)), workdir)
    (row,) = flat_rows(workdir)
    VALIDATOR.validate(json.loads((workdir / 'results.jsonl').read_text()))
    assert row['warnings'] == ()
    for name in ('config_sha256', 'params_sha256', 'features_sha256', 'reference_sha256'):
        assert len(row[name]) == 64
    assert row['features_file_sha256'] is None
    assert row['reference_file_sha256'] is None
    assert row['sfid'] is None
    assert {'jax', 'jaxlib', 'flax', 'numpy'} | environment.recorded().keys() == set(row['versions'])
    assert 'XLA_FLAGS' in row['versions']  # which the tests set
    assert (row['num_samples'], row['labels'], row['seed'], row['is_split_size']) == (100, 'balanced', 1, 50)
    numbers = ('fid', 'inception_score', 'precision', 'recall', 'kid', 'kid_standard_error', 'finite_sample_fid')
    assert np.isfinite([row[name] for name in numbers]).all()
    assert all(0 <= row[name] <= 1 for name in ('precision', 'recall', 'coverage')) and row['density'] >= 0
    with np.load(workdir / row['samples'], allow_pickle=False) as file:
        assert file['arr_0'].shape == (30, 8, 8, 1)
        assert np.array_equal(file['arr_1'], np.arange(30) % 10)


def test_the_kept_samples_are_the_measured_ones(workdir):
    sweep.evaluate(config_of(w=(0.5,), keep_samples=1000), workdir)
    (row,) = flat_rows(workdir)
    with np.load(workdir / row['samples'], allow_pickle=False) as file:
        images = file['arr_0']
    network = small_classifier(default_cache(''), digits('train'), batch_size=100)
    pool = network.extract(images).pool
    real = network.extract(digits('all').images).pool
    means, covs = zip(*((x.mean(axis=0), np.cov(x.T.astype(np.float64))) for x in (pool, real)), strict=True)
    assert row['fid'] == pytest.approx(distances.frechet_distance(means[0], covs[0], means[1], covs[1]), rel=1e-4)


def test_samples_are_compared_with_the_training_images(workdir):
    """All from the definition, in float64, on the features of the kept samples, which are all samples."""
    sweep.evaluate(config_of(w=(0.5,), keep_samples=1000), workdir)
    (row,) = flat_rows(workdir)
    with np.load(workdir / row['samples'], allow_pickle=False) as file:
        images = file['arr_0']
    network = small_classifier(default_cache(''), digits('train'), batch_size=100)
    samples, train, test = (
        network.extract(it).pool.astype(np.float64) for it in (images, digits('train').images, digits('test').images)
    )

    def distances_to_train(x):
        return ((x[:, None] - train[None]) ** 2).sum(axis=2)

    to_train, held_out, within = map(distances_to_train, (samples, test, train))
    np.fill_diagonal(within, np.inf)
    assert row['near_copies'] == np.mean(to_train.min(axis=1) < np.quantile(held_out.min(axis=1), 0.05))
    for name, found in (('authenticity', to_train), ('floor_authenticity', held_out)):
        expected = np.mean(within.min(axis=1)[found.argmin(axis=1)] < found.min(axis=1))
        assert row[name] == pytest.approx(expected, abs=2 / len(found))
    with np.load(workdir / row['samples'].replace('samples/', 'nearest/'), allow_pickle=False) as file:
        pairs = file['arr_0'], file['arr_1']
    order = np.argsort(to_train.min(axis=1))[:16]
    assert np.array_equal(pairs[0], images[order])
    assert np.array_equal(pairs[1], digits('train').images[to_train.argmin(axis=1)[order]])


def test_no_sample_needs_to_be_kept(workdir):
    before = set((workdir / 'samples').iterdir())
    sweep.evaluate(config_of(w=(0.5,), keep_samples=0), workdir)
    (row,) = flat_rows(workdir)
    assert row['samples'] is None
    assert set((workdir / 'samples').iterdir()) == before


def test_jobs_share_the_rows(workdir, tmp_path):
    ws = (0.0, 0.5, 1.0, 2.0, 3.0)
    alone = shutil.copytree(workdir, tmp_path / 'alone')
    sweep.evaluate(config_of(w=ws), alone)
    counts = [0]
    for job in ('2/3', '1/3', '3/3'):
        sweep.evaluate(config_of(w=ws, job=job), workdir)
        counts.append(len(flat_rows(workdir)))
    assert np.diff(counts).tolist() == [2, 2, 1]
    assert rows_of(workdir) == rows_of(alone)
    # Another division measures nothing again.
    before = {path: path.stat().st_mtime_ns for path in (workdir / 'results').iterdir()}
    for job in ('1/1', '1/2', '2/2'):
        sweep.evaluate(config_of(w=ws, job=job), workdir)
    assert {path: path.stat().st_mtime_ns for path in (workdir / 'results').iterdir()} == before
    lines = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
    assert [line['w'] for line in lines] == list(ws)
    hashes = {row['config_sha256'] for row in [*flat_rows(workdir), *flat_rows(alone)]}
    assert len(hashes) == 1  # the job is no part of what is measured


def test_the_coarse_curve_comes_first_and_is_drawn_as_it_grows(workdir):
    drawn = []
    config = config_of(w=(0.0, 0.5, 1.0, 2.0, 3.0))
    config.report.w = (0.0, 2.0)
    sweep.evaluate(config, workdir, lambda missing: drawn.append((missing, [row['w'] for row in flat_rows(workdir)])))
    assert drawn[:3] == [(4, [0.0]), (3, [0.0, 2.0]), (2, [0.0, 0.5, 2.0])]
    assert drawn[-1] == (0, [0.0, 0.5, 1.0, 2.0, 3.0])


def test_the_report_is_drawn_a_twentieth_of_the_time_and_at_the_end(monkeypatch, caplog):
    now, drawn = [0.0], []
    monkeypatch.setattr(sweep.time, 'monotonic', lambda: now[0])

    def draw(missing):
        drawn.append((now[0], missing))
        now[0] += 2.0
        if len(drawn) == 2:
            raise UserError('a row is damaged')

    redraw = sweep._Redraw(draw)
    for missing in range(99, -1, -1):
        now[0] += 10.0
        redraw(lambda: missing)  # noqa: B023
    assert [time for time, _ in drawn[:4]] == [10.0, 52.0, 94.0, 136.0]  # two of forty seconds
    assert 'The report is not drawn: a row is damaged' in caplog.text
    last = now[0]
    redraw(lambda: 0)
    redraw(lambda: 0, last=True)
    assert drawn[-1] == (last, 0)
    sweep._Redraw(None)(lambda: 1 / 0)


def test_eval_leaves_a_report_that_says_what_is_missing(workdir, monkeypatch):
    pages = []
    write = report.run
    monkeypatch.setattr(report, 'run', lambda *args, **kwargs: pages.append(write(*args, **kwargs).read_text()))
    evaluate.run(config_of(w=(0.5, 1.0)), workdir)
    assert 'The sweep goes on. Rows still to be measured: 1.' in pages[0]
    assert 'The sweep goes on' not in (workdir / 'report' / 'index.html').read_text()


def test_a_workdir_of_an_older_version_is_refused_and_left_alone(workdir):
    (workdir / 'results.jsonl').write_text('{"step": 6}\n')
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
    with pytest.raises(UserError, match=r'results\.jsonl is of an older version'):
        sweep.evaluate(config_of(), workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before


def test_a_generator_is_let_go_of_when_no_row_needs_it(workdir, monkeypatch):
    """Those of a sweep over T at two steps: each is built once, and is gone once its rows of the second are done."""
    alive, built = [], []

    def making(config, networks, sampler):
        generator = make_generator(config, networks, sampler)  # not one that is kept for other tests
        built.append(weakref.ref(generator))
        return generator

    def measuring(self, point, *_):
        self.drawing.generator(point)
        gc.collect()
        alive.append((point.step, point.sampler.num_steps, sum(ref() is not None for ref in built)))

    monkeypatch.setattr(drawing, 'make_generator', making)
    monkeypatch.setattr(sweep.Sweep, '_measure', measuring)
    sweep.evaluate(config_of(steps=(4, 6), num_steps=(2, 3, 4), w=(1.0, 2.0)), workdir)
    assert alive[::2] == [(4, 2, 1), (4, 3, 2), (4, 4, 3), (6, 2, 3), (6, 3, 2), (6, 4, 1)]
    assert len(built) == 3


def test_a_comparison_of_a_part_of_the_sweep_says_so(workdir, capsys):
    """--mode=compare as two jobs, one after the other: the page of the first tells of the rows of the second."""
    rules = {'num_samples': 20, 'w': (1.0, 3.0), 'guidance': ('cfg', 'scaled_score')}
    page = workdir / 'compare' / 'index.html'
    compare.run(config_of(job='1/2', **rules), workdir)
    assert '2 rows of this sweep are not measured yet' in page.read_text()
    compare.run(config_of(job='2/2', **rules), workdir)
    assert 'not measured' not in page.read_text()
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert len((workdir / 'compare' / 'points.csv').read_text().splitlines()) == 5


def test_a_comparison_with_a_bad_row_is_written_and_says_so(workdir, monkeypatch):
    scores = sweep.Scoring.scores

    def scored(scoring, *measured):
        if scored.count == 0:
            scored.count = 1
            raise UserError('no')
        return scores(scoring, *measured)

    scored.count = 0
    monkeypatch.setattr(sweep.Scoring, 'scores', scored)
    with pytest.raises(UserError, match='1 of 2 rows could not be measured'):
        compare.run(config_of(num_samples=20, w=(1.0, 3.0)), workdir)
    assert '1 of 2 rows could not be measured' in (workdir / 'compare' / 'index.html').read_text()


def test_a_row_that_another_process_measures_is_left_to_it(workdir, caplog):
    config = config_of(w=(0.0, 1.0))
    sweep.evaluate(config, workdir)
    taken, _ = Results(workdir).read()
    forget(workdir)
    with lock(workdir / sweep.UNFINISHED, 'eval', part=taken.identity), caplog.at_level('WARNING', 'cfg'):
        sweep.evaluate(config, workdir)
    assert [row['w'] for row in flat_rows(workdir)] == [1.0]
    assert '1 rows are left to another process' in caplog.text
    sweep.evaluate(config, workdir)
    assert [row['w'] for row in flat_rows(workdir)] == [0.0, 1.0]


class Died(BaseException):
    """A process that is gone."""


def test_a_row_goes_on_where_its_process_died(workdir, tmp_path, monkeypatch):
    """Samples that were counted are not drawn again, and the numbers are those of an unbroken row, bit for bit."""
    config = config_of(w=(1.0,))
    alone = shutil.copytree(workdir, tmp_path / 'alone')
    sweep.evaluate(config, alone)
    drawn = []
    add = sweep.Measurement.add

    def dying(self, images, *args, **kwargs):
        if len(drawn) == 3:
            raise Died
        drawn.append(len(images))
        return add(self, images, *args, **kwargs)

    monkeypatch.setattr(sweep.Measurement, 'add', dying)
    with pytest.raises(Died):
        sweep.evaluate(config, workdir)
    assert not flat_rows(workdir)

    again = []

    def counting(self, images, *args, **kwargs):
        again.append(len(images))
        return add(self, images, *args, **kwargs)

    monkeypatch.setattr(sweep.Measurement, 'add', counting)
    sweep.evaluate(config, workdir)
    assert (sum(drawn), sum(again)) == (60, 40)
    assert rows_of(workdir) == rows_of(alone)
    assert not list((workdir / sweep.UNFINISHED).glob('[!.]*'))


def test_a_second_network_sees_the_same_samples_and_goes_on_too(workdir, tmp_path, monkeypatch):
    def extract(images):
        return Features(images.reshape(len(images), -1)[:, 18:24].astype(np.float32) / 256, None, None, None)

    second = FeatureNetwork('second', '2' * 64, None, 6, 0, (8, 8, 1), extract, None, tmp_path / 'cache')
    monkeypatch.setattr(sweep.opening, 'open_features', lambda *args: with_second(open_features(*args), second))
    config, alone = config_of(w=(1.0,), keep_samples=100), shutil.copytree(workdir, tmp_path / 'alone')
    sweep.evaluate(config, alone)
    add, drawn = sweep.Measurement.add, []

    def dying(self, images, *args, **kwargs):
        drawn.append(len(images))
        if len(drawn) == 3:
            raise Died
        return add(self, images, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(sweep.Measurement, 'add', dying)
        sweep.evaluate(config, workdir)
    sweep.evaluate(config, workdir)
    (row,) = rows_of(workdir)
    assert [row] == rows_of(alone)
    with np.load(workdir / row['samples']) as file:
        samples, labels = extract(file['arr_0']).pool, file['arr_1']
    real = {split: extract(digits(split).images).pool for split in ('all', 'train', 'test')}
    moments = {split: Moments.of(features) for split, features in real.items()}
    assert row['fd_dinov2'] == pytest.approx(distances.fid(Moments.of(samples), moments['all']), rel=1e-9)
    assert row['floor_fd_dinov2'] == pytest.approx(distances.fid(moments['test'], moments['train']), rel=1e-9)
    blocks = jackknife.blocks_of(len(labels), labels)
    error = jackknife.fid(samples, moments['all'].mean, moments['all'].covariance(), blocks=blocks).standard_error
    assert row['fd_dinov2_standard_error'] == pytest.approx(error, rel=1e-4)
    # Whose features also tell who is a copy.
    copying = TrainingSet.of(real['train'], real['test']).copying(samples)
    assert (row['near_copies'], row['authenticity']) == (copying.near_copies, copying.authenticity)


@pytest.mark.parametrize(('before', 'after', 'kept'), [(10, 1000, 10), (1000, 30, 30)])
def test_the_kept_samples_are_the_first_ones_if_their_number_changes_within_a_row(
    workdir, tmp_path, monkeypatch, before, after, kept
):
    alone = shutil.copytree(workdir, tmp_path / 'alone')
    sweep.evaluate(config_of(w=(1.0,), keep_samples=1000, labels='random'), alone)
    (whole,) = flat_rows(alone)
    add = sweep.Measurement.add

    def dying(self, *args, **kwargs):
        if self.count == 60:
            raise Died
        add(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(sweep.Measurement, 'add', dying)
        sweep.evaluate(config_of(w=(1.0,), keep_samples=before, labels='random'), workdir)
    sweep.evaluate(config_of(w=(1.0,), keep_samples=after, labels='random'), workdir)
    (row,) = flat_rows(workdir)
    with np.load(alone / whole['samples']) as expected, np.load(workdir / row['samples']) as found:
        assert np.array_equal(found['arr_0'], expected['arr_0'][:kept])
        assert np.array_equal(found['arr_1'], expected['arr_1'][:kept])


@pytest.mark.parametrize('damage', ['state.npz', 'features.f32', 'images.u8'])
def test_a_damaged_unfinished_row_is_measured_again(workdir, tmp_path, monkeypatch, damage, caplog):
    config = config_of(w=(1.0,))
    alone = shutil.copytree(workdir, tmp_path / 'alone')
    sweep.evaluate(config, alone)

    def dies(*_):
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(sweep.Scoring, 'scores', dies)
        sweep.evaluate(config, workdir)
    (path,) = (workdir / sweep.UNFINISHED).glob(f'*/{damage}')
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level('WARNING', 'cfg'):
        sweep.evaluate(config, workdir)
    assert 'is measured again' in caplog.text
    assert rows_of(workdir) == rows_of(alone)


def test_a_bad_row_costs_no_other_row(workdir, monkeypatch):
    """A sample that is not finite is named with its index and w."""
    config = config_of(w=(0.0, 1e30, 1.0), num_samples=40)
    config.sampling.clip_x = False
    with pytest.raises(UserError, match=r'1 of 3 rows could not be measured; .*Sample \d+ at w=1e\+30 is not finite'):
        sweep.evaluate(config, workdir)
    assert [row['w'] for row in flat_rows(workdir)] == [0.0, 1.0]


def test_a_checkpoint_that_one_process_cannot_read_is_a_bad_row_for_all(workdir, monkeypatch):
    """With a stand-in for the agreement of the processes: the second one has the bad disk."""

    def on_each(fn):
        result = fn()
        if result and set(result) >= {'model'} and not rows_of(workdir):
            monkeypatch.undo()
            raise UserError('Process 1: the checkpoint is damaged')
        return result

    monkeypatch.setattr(sweep.processes, 'on_each', on_each)
    with pytest.raises(UserError, match=r'1 of 2 rows could not be measured; .* Process 1: the checkpoint is damaged'):
        sweep.evaluate(config_of(w=(0.0, 1.0), num_samples=20), workdir)
    assert [row['w'] for row in flat_rows(workdir)] == [1.0]


def test_a_stop_while_a_row_is_scored_begins_no_other_row(workdir, monkeypatch):
    score, add, drawn = sweep.Scoring.scores, sweep.Measurement.add, []

    def scored(*args):
        signal.raise_signal(signal.SIGTERM)
        return score(*args)

    def added(self, images, *args, **kwargs):
        drawn.append(len(images))
        return add(self, images, *args, **kwargs)

    monkeypatch.setattr(sweep.Scoring, 'scores', scored)
    monkeypatch.setattr(sweep.Measurement, 'add', added)
    with pytest.raises(SystemExit, match='143'):
        sweep.evaluate(config_of(w=(0.0, 1.0), num_samples=20), workdir)
    assert [row['w'] for row in flat_rows(workdir)] == [0.0]
    assert drawn == [20]


def test_a_job_that_waits_for_another_can_be_stopped(workdir, monkeypatch):
    """Both measure the real images; the wait is progress, so that nobody takes it for a process that hangs."""
    measured = default_cache('') / 'measured'
    parts = [path.name for path in measured.iterdir() if path.is_dir()]
    heard, slept = [], []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr('cfg.runtime.files.time', SimpleNamespace(sleep=sleep))
    with contextlib.ExitStack() as held:
        for part in parts:
            held.enter_context(lock(measured, 'eval', part=part))
        held.enter_context(progress.listening(heard.append))
        with pytest.raises(SystemExit, match='143'):
            sweep.evaluate(config_of(), workdir)
    assert len(slept) == 3
    assert [(work.what.split(' of ')[0], work.done) for work in heard] == [('real images', 0)] * 4


def test_few_samples_are_a_warning_that_stays_in_the_row(workdir, capsys):
    sweep.evaluate(config_of(w=(0.0,), num_samples=40), workdir)
    (row,) = flat_rows(workdir)
    assert any(text.startswith('40 samples are no more than the 64 features') for text in row['warnings'])
    assert any(text.startswith('KID is of subsets of 40') for text in row['warnings'])
    assert 'warning: 40 samples' in capsys.readouterr().out


def test_a_reference_file_takes_the_place_of_the_data_set(workdir, tmp_path):
    network = small_classifier(default_cache(''), digits('train'), batch_size=100)
    images = digits('test').images
    path = tmp_path / 'reference.npz'
    np.savez(path, images)
    sweep.evaluate(config_of(w=(0.0,), reference=str(path)), workdir)
    (row,) = flat_rows(workdir)
    assert row['reference'] == f'reference.npz ({len(images)} images)'
    assert len(row['reference_file_sha256']) == 64
    assert row['floor'] is None
    pool = network.extract(images).pool.astype(np.float64)
    np.savez(path, images[:100], mu=pool.mean(axis=0), sigma=np.cov(pool.T))
    sweep.evaluate(config_of(w=(0.0,), reference=str(path)), workdir)
    (stored,) = (row for row in flat_rows(workdir) if row['reference'].startswith('reference.npz (moments, '))
    assert stored['reference'] == 'reference.npz (moments, 100 images)'
    assert stored['fid'] == pytest.approx(row['fid'], rel=1e-4)  # of all, though the file holds 100 images
    assert stored['kid'] != row['kid']
    np.savez(path, mu=pool.mean(axis=0), sigma=np.cov(pool.T))
    sweep.evaluate(config_of(w=(0.0,), reference=str(path)), workdir)
    (bare,) = (row for row in flat_rows(workdir) if row['reference'] == 'reference.npz (moments)')
    assert bare['fid'] == stored['fid']
    assert bare['kid'] is None
    assert bare['precision'] is None
    assert 'no precision' in bare['warnings'][0]


def test_a_reference_of_other_features_is_refused(workdir, tmp_path):
    path = tmp_path / 'adm.npz'
    np.savez(path, mu=np.zeros(100), sigma=np.eye(100))
    with pytest.raises(UserError, match=r'adm\.npz holds moments of 100 features \(mu\), but digits classifier'):
        sweep.evaluate(config_of(reference=str(path)), workdir)
    np.savez(path, np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(
        UserError, match=r'adm\.npz has images of 16x16x3, but digits classifier .* takes images of 8x8x1'
    ):
        sweep.evaluate(config_of(reference=str(path)), workdir)


def test_a_classifier_from_elsewhere_says_what_it_is(workdir, tmp_path):
    with pytest.raises(UserError, match=r'config\.eval\.classifier_workdir=.* does not exist'):
        sweep.evaluate(config_of(classifier_workdir=str(tmp_path / 'none')), workdir)


@pytest.fixture(scope='module', name='adm_classifier')
def adm_classifier_fixture(tmp_path_factory):
    """(workdir of an imported classifier of digits, what sets its architecture in a config, its classes in PyTorch)."""
    folder = tmp_path_factory.mktemp('classifier')
    adm = Adm(8, 8, (1, 2), 1, (4,), out_channels=10, in_channels=1, head_channels=8, groups=4)
    state = random_state(adm, encoder=True, seed=9)  # says four different classes
    torch.save(state, folder / 'classifier.pt')

    def shape(config):
        config.classifier.channels, config.classifier.channel_mult = 8, (1, 2)
        config.classifier.num_res_blocks, config.classifier.attention_resolutions = 1, (4,)
        config.classifier.head_channels, config.classifier.norm_groups = 8, 4
        config.adm.new_attention_order = False
        return config

    def classes(images):
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
        logits = classifier_forward(state, adm, x, torch.zeros(len(x)))  # time 0: logsnr_max, no noise
        return logits.argmax(dim=1).numpy()

    config = shape(config_of())
    config.adm.kind, config.adm.checkpoint = 'classifier', str(folder / 'classifier.pt')
    (folder / 'run').mkdir()
    import_adm.run(config, folder / 'run')
    return folder / 'run', shape, classes


def test_the_accuracy_of_an_imported_classifier_is_the_share_that_it_assigns_to_their_label(workdir, adm_classifier):
    folder, shape, classes = adm_classifier
    config = shape(config_of(w=(0.5,), keep_samples=1000, classifier_workdir=str(folder)))
    sweep.evaluate(config, workdir)
    (row,) = flat_rows(workdir)
    assert re.fullmatch('imported classifier [0-9a-f]{16}', row['classifier'])
    with np.load(workdir / row['samples'], allow_pickle=False) as file:
        images, labels = file['arr_0'], file['arr_1']
    found = classes(images)
    assert len(images) == 100
    assert len(set(found)) > 2
    assert row['accuracy'] == np.mean(found == labels)
    test = digits('test')
    assert row['floor_accuracy'] == np.mean(classes(test.images) == test.labels)
    assert 0 < row['floor_accuracy'] < 0.5
    # Another classifier is another measurement, and nothing else of it changes.
    sweep.evaluate(config_of(w=(0.5,)), workdir)
    (own,) = (other for other in flat_rows(workdir) if other['classifier'] == 'the feature network')
    assert own['accuracy'] != row['accuracy']
    assert own['fid'] == row['fid']


def test_a_classifier_guides(workdir, adm_classifier):
    """The conditional model with w, the unconditional one with w + 1."""
    folder, _, _ = adm_classifier
    rules = (f'classifier(workdir="{folder}")', f'classifier(model="unconditional", workdir="{folder}")')
    sweep.evaluate(config_of(w=(0.0, 30.0), num_samples=20, guidance=rules), workdir)
    sweep.evaluate(config_of(w=(0.0,), num_samples=20), workdir)
    plain, *guided = flat_rows(workdir)
    assert [row['sampling']['guidance'] for row in guided[::2]] == [
        'classifier',
        "classifier(model='unconditional')",
    ]
    assert guided[0]['fid'] == plain['fid']
    assert len({row['fid'] for row in guided}) == 4
    assert [row['evaluations'] for row in guided] == [4, 8, 8, 8]
    assert guided[0]['cost'] == 4.0
    assert len({row['classifier_params_sha256'] for row in guided}) == len({row['cost'] for row in guided[1:]}) == 1
    assert str(folder) not in (workdir / 'results.jsonl').read_text()  # a row is the same wherever the classifier is


def test_the_config_hash_changes_with_what_is_measured():
    changed = {}, {'job': '2/3'}, {'w': (9.0,)}, {'num_samples': 99}
    hashes = [config_sha256(config_of(**changes)) for changes in changed]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


def test_a_sweep_over_real_images_twice_measures_them_once(workdir, monkeypatch):
    def again(*_, **__):
        raise AssertionError('measured again')

    monkeypatch.setattr(references.Measurement, 'add', again)
    config = config_of(w=(0.0,))
    with pytest.raises(AssertionError, match='measured again'):  # of the samples, after the reference was opened
        sweep.evaluate(config, workdir)
    monkeypatch.undo()
    sweep.evaluate(config, workdir)
    assert flat_rows(workdir)[0]['floor_fid'] > 0
