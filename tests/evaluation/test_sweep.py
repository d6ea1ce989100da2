"""The sweep in one process: its product, its jobs, and going on in the middle of a row."""

import itertools
import json
import shutil

import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.errors import UserError
from cfg.evaluation import metrics, references, sweep
from cfg.evaluation.results import read_results
from cfg.evaluation.rows import results_path
from cfg.evaluation.small_classifier import small_classifier
from cfg.files import lock
from cfg.training import loop
from tests.conftest import small_config

VARYING = ('seconds', 'finished', 'config_sha256')


def config_of(**changes):
    config = small_config()
    config.eval.num_samples = 100
    config.eval.keep_samples = 30
    config.eval.is_split_size = 40
    config.eval.save_seconds = 0.0
    config.eval.kid_subset_size = 50
    config.eval.kid_subsets = 5
    with config.unlocked():
        for name, value in changes.items():
            config.eval[name] = value
    return config


@pytest.fixture(scope='module', name='trained')
def trained_fixture(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('sweep') / 'run'
    workdir.mkdir()
    loop.train(small_config(), workdir)
    sweep.evaluate(config_of(w=(5.0,)), workdir)  # trains the classifier and measures the real images, once
    (workdir / 'results.jsonl').unlink()
    return workdir


@pytest.fixture(name='workdir')
def workdir_fixture(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / 'run')


def rows_of(workdir):
    return [{k: v for k, v in row.items() if k not in VARYING} for row in read_results(workdir)]


def test_a_sweep_is_the_product_of_all_that_varies(workdir, capsys):
    axes = {'steps': (4, 6), 'ema': (True, False), 'num_steps': (3, 4), 'seeds': (1, 7), 'w': (0.0, 1.0)}
    sweep.evaluate(config_of(num_samples=20, **axes), workdir)
    rows = rows_of(workdir)
    found = [(row['step'], row['ema'], row['sampling']['num_steps'], row['seed'], row['w']) for row in rows]
    assert found == list(itertools.product(*axes.values()))
    assert len({row['identity'] for row in rows}) == 32
    assert len({row['params_sha256'] for row in rows}) == 4
    assert len({row['fid'] for row in rows if row['w'] == 0}) == 16
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ['step', 'ema', 'T', 'seed', 'w']
    assert lines[5].split()[:5] == ['4', 'True', '4', '1', '1']


def test_a_row_says_how_it_was_measured(workdir):
    sweep.evaluate(config_of(w=(0.5,)), workdir)
    (row,) = read_results(workdir)
    assert row['warnings'] == []
    for name in ('config_sha256', 'params_sha256', 'features_sha256', 'reference_sha256'):
        assert len(row[name]) == 64
    assert row['features_file_sha256'] is None
    assert row['reference_file_sha256'] is None
    assert row['sfid'] is None
    assert {'jax', 'jaxlib', 'flax', 'numpy'} == set(row['versions'])
    assert (row['num_samples'], row['labels'], row['seed'], row['is_split_size']) == (100, 'balanced', 1, 40)
    numbers = ('fid', 'inception_score', 'precision', 'recall', 'kid', 'kid_standard_error', 'finite_sample_fid')
    assert np.isfinite([row[name] for name in numbers]).all()
    assert 0 <= row['precision'] <= 1
    with np.load(workdir / row['samples'], allow_pickle=False) as file:
        assert file['arr_0'].shape == (30, 8, 8, 1)
        assert np.array_equal(file['arr_1'], np.arange(30) % 10)


def test_the_kept_samples_are_the_measured_ones(workdir):
    sweep.evaluate(config_of(w=(0.5,), keep_samples=1000), workdir)
    (row,) = read_results(workdir)
    with np.load(workdir / row['samples'], allow_pickle=False) as file:
        images = file['arr_0']
    network = small_classifier(workdir / 'features', digits('train'), batch_size=100)
    pool = network.extract(images).pool
    real = network.extract(digits('all').images).pool
    means, covs = zip(*((x.mean(axis=0), np.cov(x.T.astype(np.float64))) for x in (pool, real)), strict=True)
    assert row['fid'] == pytest.approx(metrics.frechet_distance(means[0], covs[0], means[1], covs[1]), rel=1e-4)


def test_no_sample_needs_to_be_kept(workdir):
    before = set((workdir / 'samples').iterdir())
    sweep.evaluate(config_of(w=(0.5,), keep_samples=0), workdir)
    (row,) = read_results(workdir)
    assert row['samples'] is None
    assert set((workdir / 'samples').iterdir()) == before


def test_jobs_share_the_rows_and_a_merge_counts_each_once(workdir, tmp_path):
    ws = (0.0, 0.5, 1.0, 2.0, 3.0)
    alone = shutil.copytree(workdir, tmp_path / 'alone')
    sweep.evaluate(config_of(w=ws), alone)
    for job in ('2/3', '1/3', '3/3'):
        sweep.evaluate(config_of(w=ws, job=job), workdir)
    counts = [len(results_path(workdir, (i, 3)).read_text().splitlines()) for i in (1, 2, 3)]
    assert counts == [2, 2, 1]
    assert sorted(rows_of(workdir), key=lambda row: row['w']) == rows_of(alone)
    # Another division measures nothing again, and lines that are there twice count once.
    for job in ('1/1', '1/2', '2/2'):
        sweep.evaluate(config_of(w=ws, job=job), workdir)
    assert not (workdir / 'results.jsonl').exists()
    shutil.copy(results_path(workdir, (1, 3)), workdir / 'results.job1of9.jsonl')
    assert len(rows_of(workdir)) == 5
    hashes = {row['config_sha256'] for row in [*read_results(workdir), *read_results(alone)]}
    assert len(hashes) == 1  # the job is no part of what is measured


def test_a_row_that_another_process_measures_is_left_to_it(workdir, caplog):
    config = config_of(w=(0.0, 1.0))
    sweep.evaluate(config, workdir)
    taken, _ = read_results(workdir)
    (workdir / 'results.jsonl').unlink()
    with lock(workdir / sweep.UNFINISHED, 'eval', part=taken['identity']), caplog.at_level('WARNING', 'cfg'):
        sweep.evaluate(config, workdir)
    assert [row['w'] for row in read_results(workdir)] == [1.0]
    assert '1 rows are left to another process' in caplog.text
    sweep.evaluate(config, workdir)
    assert [row['w'] for row in read_results(workdir)] == [1.0, 0.0]


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
    assert not (workdir / 'results.jsonl').exists()

    again = []

    def counting(self, images, *args, **kwargs):
        again.append(len(images))
        return add(self, images, *args, **kwargs)

    monkeypatch.setattr(sweep.Measurement, 'add', counting)
    sweep.evaluate(config, workdir)
    assert (sum(drawn), sum(again)) == (60, 40)
    assert rows_of(workdir) == rows_of(alone)
    assert not list((workdir / sweep.UNFINISHED).glob('[!.]*'))


@pytest.mark.parametrize('damage', ['state.npz', 'features.f32', 'images.u8'])
def test_a_damaged_unfinished_row_is_measured_again(workdir, tmp_path, monkeypatch, damage, caplog):
    config = config_of(w=(1.0,))
    alone = shutil.copytree(workdir, tmp_path / 'alone')
    sweep.evaluate(config, alone)

    def dies(*_):
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(sweep, 'score', dies)
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
    assert [row['w'] for row in read_results(workdir)] == [0.0, 1.0]


def test_few_samples_are_a_warning_that_stays_in_the_row(workdir, capsys):
    sweep.evaluate(config_of(w=(0.0,), num_samples=40), workdir)
    (row,) = read_results(workdir)
    assert any(text.startswith('40 samples are no more than the 64 features') for text in row['warnings'])
    assert any(text.startswith('KID is of subsets of 40') for text in row['warnings'])
    assert 'warning: 40 samples' in capsys.readouterr().out


def test_a_reference_file_takes_the_place_of_the_data_set(workdir, tmp_path):
    network = small_classifier(workdir / 'features', digits('train'), batch_size=100)
    images = digits('test').images
    path = tmp_path / 'reference.npz'
    np.savez(path, images)
    sweep.evaluate(config_of(w=(0.0,), reference=str(path)), workdir)
    (row,) = read_results(workdir)
    assert row['reference'] == f'reference.npz ({len(images)} images)'
    assert len(row['reference_file_sha256']) == 64
    assert 'floor' not in row
    pool = network.extract(images).pool.astype(np.float64)
    np.savez(path, images[:100], mu=pool.mean(axis=0), sigma=np.cov(pool.T))
    sweep.evaluate(config_of(w=(0.0,), reference=str(path)), workdir)
    stored = read_results(workdir)[-1]
    assert stored['reference'] == 'reference.npz (moments, 100 images)'
    assert stored['fid'] == pytest.approx(row['fid'], rel=1e-4)  # of all, though the file holds 100 images
    assert stored['kid'] != row['kid']
    np.savez(path, mu=pool.mean(axis=0), sigma=np.cov(pool.T))
    sweep.evaluate(config_of(w=(0.0,), reference=str(path)), workdir)
    bare = read_results(workdir)[-1]
    assert bare['fid'] == stored['fid']
    assert bare['kid'] is None
    assert bare['precision'] is None
    assert 'no precision' in bare['warnings'][0]


def test_a_reference_of_other_features_is_refused(workdir, tmp_path):
    path = tmp_path / 'adm.npz'
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match=r'adm\.npz holds moments of 2048 features \(mu\), but digits classifier'):
        sweep.evaluate(config_of(reference=str(path)), workdir)
    np.savez(path, np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(
        UserError, match=r'adm\.npz has images of 16x16x3, but digits classifier .* takes images of 8x8x1'
    ):
        sweep.evaluate(config_of(reference=str(path)), workdir)


def test_a_classifier_from_elsewhere_says_what_it_is(workdir, tmp_path):
    with pytest.raises(UserError, match=r'config\.eval\.classifier_workdir=.* does not exist'):
        sweep.evaluate(config_of(classifier_workdir=str(tmp_path / 'none')), workdir)


def test_the_config_hash_changes_with_what_is_measured():
    hashes = [sweep.config_sha256(config_of(**changes)) for changes in ({}, {'job': '2/3'}, {'num_samples': 99})]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_sweep_over_real_images_twice_measures_them_once(workdir, monkeypatch):
    def again(*_, **__):
        raise AssertionError('measured again')

    monkeypatch.setattr(references.Measurement, 'add', again)
    config = config_of(w=(0.0,))
    with pytest.raises(AssertionError, match='measured again'):  # of the samples, after the reference was opened
        sweep.evaluate(config, workdir)
    monkeypatch.undo()
    sweep.evaluate(config, workdir)
    assert json.loads((workdir / 'results.jsonl').read_text())['floor_fid'] > 0
