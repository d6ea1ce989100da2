"""The command line: the whole run, kill -9, and what a careless user types."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import ROOT, command, main, refused


def ok(*arguments, **kwargs):
    done = main(*arguments, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(workdir):
    lines = ok(f'--workdir={workdir}', '--mode=status').splitlines()
    return dict(line.split(': ', 1) for line in lines)


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]


def numbers(workdir):
    """What a sweep measured, without what may differ between two runs of it."""
    varying = ('seconds', 'finished')
    return sorted(
        json.dumps({k: v for k, v in row.items() if k not in varying}, sort_keys=True) for row in rows(workdir)
    )


@pytest.fixture(scope='module', name='trained')
def trained_fixture(tmp_path_factory):
    """A run that was killed with kill -9 twice while it trained, and one that was not."""
    folder = tmp_path_factory.mktemp('main')
    unbroken, killed = folder / 'unbroken', folder / 'killed'
    ok(f'--workdir={unbroken}', '--mode=train')
    chance = random.Random(0)
    for checkpoint in (3, 15):
        process = subprocess.Popen(command(f'--workdir={killed}', '--mode=train'), cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 200
        while not list((killed / 'checkpoints').glob(f'{checkpoint}*')) and time.monotonic() < deadline:
            time.sleep(0.02)
        # Some moment soon after a checkpoint was begun: in the middle of its writing, or of a later step.
        time.sleep(chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
    ok(f'--workdir={killed}', '--mode=train')
    return unbroken, killed


def test_killed_and_resumed_is_the_same_bit_for_bit(trained):
    unbroken, killed = (status(workdir) for workdir in trained)
    assert unbroken['step'] == killed['step'] == '24'
    for name in ('params_sha256', 'ema_params_sha256', 'checkpoints'):
        assert unbroken[name] == killed[name]
    assert len(unbroken['params_sha256']) == 64
    for workdir in trained:
        log = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
        assert [row['step'] for row in log] == [6, 12, 18, 24]


def test_a_killed_sweep_goes_on_and_ends_like_an_unbroken_one(trained):
    unbroken, killed = trained
    table = ok(f'--workdir={unbroken}', '--mode=eval')
    assert 'not Inception' in table
    shutil.copytree(unbroken / 'features', killed / 'features')
    process = subprocess.Popen(command(f'--workdir={killed}', '--mode=eval'), cwd=ROOT, stderr=subprocess.DEVNULL)
    results = killed / 'results.jsonl'
    deadline = time.monotonic() + 200
    while not (results.exists() and results.read_bytes().count(b'\n') >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(rows(killed))
    assert 2 <= before <= 6
    with results.open('a') as file:
        file.write('{"step": 24, "w": 2.0, "fid')  # a row that was being written
    assert ok(f'--workdir={killed}', '--mode=eval') == table
    assert numbers(killed) == numbers(unbroken)
    assert [(row['step'], row['w']) for row in rows(killed)] == [(s, w) for s in (12, 24) for w in (0.0, 0.5, 2.0)]
    finished = results.read_bytes()
    ok(f'--workdir={killed}', '--mode=eval')
    assert results.read_bytes() == finished

    for row in rows(killed):
        assert np.isfinite([row['fid'], row['inception_score'], row['floor_fid']]).all()
        assert row['num_samples'] == 80
        assert 'not Inception' in row['features']
        with np.load(killed / row['samples'], allow_pickle=False) as file:
            assert file['arr_0'].shape == (80, 8, 8, 1)
            assert file['arr_0'].dtype == np.uint8
            assert np.array_equal(file['arr_1'], np.arange(80) % 10)

    page = ok(f'--workdir={killed}', '--mode=report').strip()
    assert page == str(killed / 'report' / 'index.html')
    names = ('fid_is_vs_w.png', 'fid_vs_is.png', 'grid_random_classes.png', 'grid_one_class.png', 'index.html')
    assert all((killed / 'report' / name).stat().st_size > 1000 for name in names)


def test_samples_of_chosen_labels_at_several_w(trained):
    workdir, _ = trained
    written = ok(
        f'--workdir={workdir}', '--mode=sample', '--config.sampling.labels=(7, 3)', '--config.sampling.w=(0.0, 2.0)'
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
    workdir, _ = trained
    assert expected in refused(f'--workdir={workdir}', f'--mode={mode}', f'--config.{field}')


def test_the_environment_is_the_suites():
    """The processes above run on four devices, so that a kill hits a run over several."""
    assert 'device_count=4' in os.environ['XLA_FLAGS']
