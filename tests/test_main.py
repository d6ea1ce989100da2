"""The command line: the whole run, as a user starts it."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from cfg.runs.checkpoints import Checkpoints
from cfg.runs.run_files import checkpoint_meta, read_metrics
from tests import forked, in_process
from tests.command_line import main, refused

# Several times what the longest needs on a machine that does nothing else.
pytestmark = pytest.mark.timeout(1500)


def ok(*arguments, run=in_process.main, **kwargs):
    """stdout of a run that succeeds."""
    done = run(*arguments, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(workdir, **kwargs):
    lines = ok(f'--workdir={workdir}', '--mode=status', **kwargs).splitlines()
    return dict(line.split(': ', 1) for line in lines)


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]


# Of the environment of a user: what would change the meaning of a run, and what only changes its rounding.
IGNORED = {'JAX_ENABLE_X64': '1', 'JAX_DEFAULT_PRNG_IMPL': 'rbg', 'JAX_NUMPY_RANK_PROMOTION': 'raise'}
PRECISION = {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}


@pytest.fixture(scope='module', name='training')
def training_fixture(tmp_path_factory):
    """Trains as a user does, from the very start: the workdir, and what was printed."""
    workdir = tmp_path_factory.mktemp('main') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (IGNORED | PRECISION).items():
            patch.setenv(name, value)
        done = main(f'--workdir={workdir}', '--mode=train')
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


@pytest.fixture(scope='module', name='trained')
def trained_fixture(training):
    return training[0]


def test_the_environment_changes_no_type_and_no_seed(training, tmp_path):
    workdir, said = training
    for name, value in IGNORED.items():
        assert said.count(f'{name}={value} is ignored') == 1
    meta = checkpoint_meta(workdir, 24)
    assert meta['environment'].items() >= PRECISION.items()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        params = checkpoints.restore_params(24, ema=False)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {'float32'}
    ok(f'--workdir={tmp_path}', '--mode=train', '--config.train.num_steps=6')
    first, same = (read_metrics(folder / 'metrics.jsonl')[0] for folder in (workdir, tmp_path))
    assert first['loss'] == pytest.approx(same['loss'], rel=1e-4)


def test_what_training_leaves(trained, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'tpu')  # which is not there, or is in use
    assert 'JAX_PLATFORMS=tpu' in refused(f'--workdir={trained}', '--mode=train')
    lines = status(trained, run=main)
    assert lines['step'] == '24'
    assert len(lines['params_sha256']) == len(lines['ema_params_sha256']) == 64
    log = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in log] == [6, 12, 18, 24]


@pytest.mark.usefixtures('digits_classifier')
def test_a_sweep_and_its_report(trained):
    table = ok(f'--workdir={trained}', '--mode=eval', run=forked.main)
    assert 'not Inception' in table
    results = trained / 'results.jsonl'
    finished = results.read_bytes()
    results.unlink()  # it is made of the rows
    assert ok(f'--workdir={trained}', '--mode=eval') == table
    assert results.read_bytes() == finished
    assert status(trained)['result_rows'] == '6'
    assert [(row['step'], row['w']) for row in rows(trained)] == [(s, w) for s in (12, 24) for w in (0.0, 0.5, 2.0)]

    for row in rows(trained):
        assert np.isfinite([row['fid'], row['inception_score'], row['floor_fid']]).all()
        assert row['num_samples'] == 80
        assert 'not Inception' in row['features']
        with np.load(trained / row['samples'], allow_pickle=False) as file:
            assert file['arr_0'].shape == (80, 8, 8, 1)
            assert file['arr_0'].dtype == np.uint8
            assert np.array_equal(file['arr_1'], np.arange(80) % 10)

    page = ok(f'--workdir={trained}', '--mode=report').strip()
    assert page == str(trained / 'report' / 'index.html')
    names = ('fid_is_vs_w.png', 'fid_vs_is.png', 'grid_random_classes.png', 'grid_one_class.png', 'index.html')
    assert all((trained / 'report' / name).stat().st_size > 1000 for name in names)


def test_samples_of_chosen_labels_at_several_w(trained):
    written = ok(
        f'--workdir={trained}', '--mode=sample', '--config.sampling.labels=(7, 3)', '--config.sampling.w=(0.0, 2.0)'
    ).split()
    stems = [re.sub(r'_[0-9a-f]{8}\.', '.', Path(path).name) for path in written]
    assert stems == ['sample_step00000024_w0.npz', 'sample_step00000024_w2.npz', 'sample_step00000024.png']
    images = []
    for path in written[:2]:
        with np.load(path, allow_pickle=False) as file:
            assert np.array_equal(file['arr_1'], [7, 3] * 6)
            images.append(file['arr_0'])
    assert images[0].shape == (12, 8, 8, 1)
    assert images[0].dtype == np.uint8
    assert Path(written[2]).read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('mode', 'field', 'expected'),
    [
        ('sample', 'model.channels=16', 'another architecture'),
        # These leave every shape as it is.
        ('eval', 'diffusion.prediction=v', "trained with config.diffusion.prediction='eps', not 'v'"),
        ('sample', 'model.norm_groups=2', 'trained with config.model.norm_groups=4, not 2'),
    ],
)
def test_a_checkpoint_of_another_model(trained, mode, field, expected):
    assert expected in in_process.refused(f'--workdir={trained}', f'--mode={mode}', f'--config.{field}')
