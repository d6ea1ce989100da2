"""The command line: the whole run, as a user starts it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests import forked, in_process
from tests.command_line import main

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


@pytest.fixture(scope='module', name='trained')
def trained_fixture(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('main') / 'run'
    ok(f'--workdir={workdir}', '--mode=train', run=main)  # as a user does, from the very start
    return workdir


def test_what_training_leaves(trained, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'tpu')  # which is not there, or is in use
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
