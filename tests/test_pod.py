"""Several processes of one run on 127.0.0.1, as on a pod: equal results, failing together, stopping together."""

import json
import re
import shutil
import signal

import numpy as np
import pytest

from cfg.modes.status import run as describe
from cfg.runs.checkpoints import Checkpoints
from tests.forked import Run, finish, free_port, group, ok, wait_until

# Several times what the longest needs on a machine that does nothing else.
pytestmark = pytest.mark.timeout(1500)

STEPS = 24
TRAIN = ('--mode=train',)
SWEEP = ('--mode=eval', '--config.eval.keep_samples=80')
TUNE = ('--mode=tune', '--config.tune.evaluations=8', '--config.tune.num_steps=(4,)', '--config.tune.final_seeds=2')
TUNE += ('--config.tune.guidance=("cfg", "apg")', '--config.tune.sampler=()', '--config.tune.grid=()')
TUNE += ('--config.tune.first_samples=80', '--config.tune.samples=640')  # one rung of four


def state_of(workdir, step=STEPS):
    """(parameters, averages), as saved."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore_params(step, ema=False), checkpoints.restore_params(step, ema=True)


def leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def digests(workdir):
    return [line for line in describe(workdir).splitlines() if 'sha256' in line]


def rows(workdir):
    varying = ('seconds', 'finished', 'config_sha256')
    lines = (workdir / 'results.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in varying} for line in lines]


@pytest.fixture(scope='module', name='folder')
def folder_fixture(tmp_path_factory):
    return tmp_path_factory.mktemp('pod')


@pytest.fixture(scope='module', name='pair')
def pair_fixture(folder):
    """A run of 2 processes with 2 devices each."""
    workdir = folder / 'pair'
    ok(group(f'--workdir={workdir}', *TRAIN, '--config.train.sample_every=24', folder=folder / 'logs'))
    return workdir


@pytest.fixture(scope='module', name='one')
def one_fixture(folder):
    """The same run as 1 process with 4 devices."""
    workdir = folder / 'one'
    ok([Run(f'--workdir={workdir}', *TRAIN, output=folder / 'one.log')])
    return workdir


def test_two_processes_train_like_one(pair, one):
    for a, b in zip(leaves(state_of(pair)), leaves(state_of(one)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    logs = [
        [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()] for workdir in (pair, one)
    ]
    assert [row['step'] for row in logs[0]] == [row['step'] for row in logs[1]] == [6, 12, 18, 24]
    for a, b in zip(*logs, strict=True):
        np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-5)
        np.testing.assert_allclose(a['param_norm'], b['param_norm'], rtol=1e-5)
        assert a['learning_rate'] == b['learning_rate'] == pytest.approx(1e-3 * a['step'] / 50)


def test_one_process_speaks(pair, folder):
    first, second = ((folder / 'logs' / f'process{i}.log').read_text() for i in range(2))
    assert 'train: 24/24 steps' in first
    assert 'train' not in second
    assert [beat.split(',')[0] for beat in describe(pair).splitlines() if beat.startswith('heartbeat')] == [
        'heartbeat: train',
        'heartbeat: train',
    ]


def test_samples_are_the_same_bit_for_bit_and_so_are_the_metrics(one, folder, digits_classifier):
    """Of one checkpoint, on 2 processes of 2 devices and on 1 of 4."""
    copy, cache = folder / 'copy', folder / 'cache'
    digits_classifier(cache)  # without what was measured of the real images
    sample = ('--mode=sample', '--config.sampling.num_samples=100', '--config.sampling.w=(0.0, 1.0)')
    for arguments in (SWEEP, sample, TUNE):
        ok([Run(f'--workdir={one}', *arguments, output=folder / 'one.log')])
    shutil.copytree(one, copy, ignore=shutil.ignore_patterns('results*', 'samples', 'tune'))
    for arguments in (SWEEP, sample, TUNE):
        ok(group(f'--workdir={copy}', *arguments, f'--config.eval.cache_dir={cache}', folder=folder / 'logs'))
    assert len(rows(one)) == len(rows(copy)) >= 6 + 4 + 2
    assert (one / 'tune' / 'tuned.py').read_text() == (copy / 'tune' / 'tuned.py').read_text()
    for row, other in zip(rows(one), rows(copy), strict=True):
        assert row['identity'] == other['identity']
        for name, value in row.items():
            # The sums over the real images come from batches of another size.
            assert other[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    names = sorted(path.name for path in (one / 'samples').glob('*.npz'))
    assert names == sorted(path.name for path in (copy / 'samples').glob('*.npz'))
    assert len(names) == 8
    for name in names:
        assert (one / 'samples' / name).read_bytes() == (copy / 'samples' / name).read_bytes()


@pytest.mark.parametrize('devices', [1, pytest.param(4, marks=pytest.mark.chaos)])
def test_a_run_goes_on_with_other_devices(pair, one, folder, devices):
    """From the checkpoint of step 12, which 2 x 2 devices wrote."""
    workdir = folder / f'moved{devices}'
    shutil.copytree(pair, workdir)
    for step in (21, 24):
        shutil.rmtree(workdir / 'checkpoints' / str(step))
    ok([Run(f'--workdir={workdir}', *TRAIN, output=folder / 'moved.log', devices=devices)])
    assert 'Resuming from step 12.' in (folder / 'moved.log').read_text()
    for a, b in zip(leaves(state_of(workdir)), leaves(state_of(one)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize('early', [False, pytest.param(True, marks=pytest.mark.chaos)])
def test_sigterm_of_one_saves_a_common_step_and_stops_both(pair, folder, early):
    """Also one from before the first step, as a rule, which JAX's preemption service catches."""
    workdir = folder / f'stopped{early}'
    long = (f'--workdir={workdir}', '--mode=train', '--config.train.num_steps=100000')
    runs = group(*long, '--config.train.checkpoint_every=100000', folder=folder / 'logs')
    if early:
        beats = workdir / 'heartbeats'
        wait_until(lambda: [json.loads(path.read_text())['state'] for path in beats.glob('*.json')] == ['running'] * 2)
    else:
        wait_until(lambda: 'train: ' in runs[0].text)
    runs[1].signal(signal.SIGTERM)
    assert finish(runs) == [128 + signal.SIGTERM] * 2, runs[0].text + runs[1].text
    (step,) = map(int, re.findall(r'Stopped by SIGTERM; saved step (\d+)', runs[0].text))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps() == [step]
    assert 'stopped' in describe(workdir)


def test_when_one_is_killed_the_other_says_so_and_ends(folder):
    workdir = folder / 'killed'
    runs = group(f'--workdir={workdir}', '--mode=train', '--config.train.num_steps=100000', folder=folder / 'logs')
    beat = workdir / 'heartbeats' / 'train.1.json'  # rewritten every few seconds
    wait_until(lambda: beat.exists() and json.loads(beat.read_text())['work'])
    runs[1].signal(signal.SIGKILL)
    assert finish(runs) == [75, -signal.SIGKILL], runs[0].text
    assert re.search(r'error: process 1 \(.*\) is gone \(last seen train \d+/100000 steps', runs[0].text)


def test_who_has_not_started_is_named(folder):
    workdir = folder / 'alone'
    arguments = (f'--workdir={workdir}', *TRAIN, '--config.processes.start_seconds=3')
    place = (f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=3', '--process_id=2')
    run = Run(*arguments, *place, output=folder / 'alone.log')
    assert run.wait() == 75, run.text
    assert 'After 3 s of 3 processes, number 0, 1 has not started' in run.text
