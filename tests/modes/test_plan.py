"""Plans: their arithmetic by hand, of rates that are given; test_describe_target.py has the compilers."""

import json
import re
import types
from unittest import mock

import jax
import numpy as np
import pytest

from cfg.models.flops import forward_flops
from cfg.modes import plan
from cfg.runs.state import create
from cfg.runtime.targets import CHIPS
from cfg.settings.data import spec_of
from cfg.settings.networks import build_network, init_params
from cfg.training.build import make_optimizer
from configs import cifar10
from tests import in_process
from tests.command_line import sentence

SECONDS = {'train': 0.05, 'sample': 4.0, 'features': 0.02}  # of a program
NARROW = ('--config.model.channels=32', '--config.model.norm_groups=8', '--config.model.head_channels=32')


def planned(*arguments):
    return in_process.main('--mode=plan', *arguments, config='configs/cifar10.py', small=False)


def cells(text, name):
    """The hours and costs of a row of the table."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    found = re.findall(r'([\d.e+-]+)( h| min|)', line[48:])
    return [float(number) / (60 if unit == ' min' else 1) for number, unit in found]


@pytest.fixture(name='compilers')
def compilers_fixture(monkeypatch):
    def compile_part(config, spec, target, part, kernel, batch):
        return types.SimpleNamespace(bound_seconds=SECONDS[part], memory=10 * 2**30)

    monkeypatch.setattr(plan, 'compile_part', compile_part)


def test_hours_and_money_are_those_of_the_rates(compilers):
    config = cifar10.get_config()
    done = planned('--target=gpu:h100:2', '--price=3', '--config.eval.w=(0.0, 1.0)')
    assert done.returncode == 0, done.stderr
    steps, batch = config.train.num_steps, config.train.batch_size
    training = steps * SECONDS['train'] / 3600
    flops = forward_flops(build_network(config, spec_of(config)), (32, 32, 3))
    peak = 0.4 * CHIPS['h100']['tflops'] * 1e12 * 2
    at_peak = max(training, steps * batch * 3 * flops / peak / 3600)
    got = cells(done.stdout, f'train to step {steps}')
    assert got == pytest.approx([training, 6 * training, at_peak, 6 * at_peak], rel=6e-3)
    assert cells(done.stdout, 'train to step 97600,')[0] == pytest.approx(training / 4, rel=6e-3)
    # A sample is 64 evaluations at w = 1 and 32 at w = 0; 1024 samples at w = 1 take the sampler's four seconds.
    drawing = 50_000 * (64 + 32) / 64 * SECONDS['sample'] / config.sampling.batch_size
    scoring = 2 * 50_000 * SECONDS['features'] / config.eval.batch_size
    sweep = cells(done.stdout, 'sweep of 2 rows, 50000')[0]
    assert sweep == pytest.approx((drawing + scoring) / 3600, rel=6e-3)
    total = cells(done.stdout, 'training, and a sweep of eval.num_samples')[0]
    assert total == pytest.approx(training + sweep, rel=6e-3)


def test_what_was_measured_is_beside_it(compilers, tmp_path):
    empty = planned(f'--workdir={tmp_path}')
    assert 'holds no run of this network' in sentence(empty)
    config = cifar10.get_config()
    (tmp_path / 'config.json').write_text(json.dumps({'model': config.model.to_dict()}))
    lines = [{'step': step, 'images_per_second': rate} for step, rate in ((100, 900.0), (200, 1000.0), (300, 1001.0))]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    for options, columns in (((), 1), (('--target=gpu:h100:1',), 3)):
        done = planned(f'--workdir={tmp_path}', *options)
        assert done.returncode == 0, done.stderr
        found = cells(done.stdout, 'train to step 390400')
        assert len(found) == columns
        assert found[-1] == pytest.approx(390_400 * 512 / 1000 / 3600, rel=6e-3)
        assert re.search('sweep of 10 rows, 50000 samples each .* -$', done.stdout, re.MULTILINE)
    other = planned(f'--workdir={tmp_path}', *NARROW)
    assert 'holds no run of this network' in sentence(other)


def test_rows_say_how_fast_evaluations_are(tmp_path, monkeypatch):
    config = cifar10.get_config()
    (tmp_path / 'config.json').write_text(json.dumps({'model': config.model.to_dict()}))
    row = types.SimpleNamespace(settings={'evaluations': 64, 'num_samples': 5000, 'seconds': 320.0})
    monkeypatch.setattr(plan.Results, 'read', lambda self: [row])
    rate = plan._measured(config, tmp_path)
    assert np.isnan(rate.train)
    assert rate.evaluations == 1000.0


def test_the_disk_holds_the_state_and_what_is_kept(compilers):
    config = cifar10.get_config()
    config.model.channels, config.model.norm_groups, config.model.head_channels = 32, 8, 32
    spec = spec_of(config)
    state = create(init_params(build_network(config, spec), spec, seed=0), make_optimizer(config))
    size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(state))
    done = planned('--target=gpu:h100:1', *NARROW)
    found = re.search(r'disk: (\d+) checkpoints of ([\d.]+) GB', done.stdout)
    assert int(found[1]) == 3 + 4  # the newest, and one at each mark
    assert float(found[2]) == pytest.approx(size / 1e9, rel=6e-3)


def test_the_disk_holds_the_averages_of_several_lengths():
    """Six copies of the parameters in a checkpoint in the place of four (docs/ema.md)."""
    config, sizes = cifar10.get_config(), []
    for config.train.ema_lengths in ((), (0.05, 0.1)):
        sizes.append(float(re.search(r'checkpoints of ([\d.]+) GB', plan._disk(config, spec_of(config))[0])[1]))
    assert sizes[1] / sizes[0] == pytest.approx(6 / 4, rel=6e-3)


def test_what_does_not_fit_is_refused(compilers):
    words = (
        r'gpu:h100:1 has 79.1 GiB a device, and config.train.batch_size=512 takes 90: .* raise config.train.grad_accum'
    )
    with mock.patch.object(plan, 'compile_part', lambda *_: types.SimpleNamespace(memory=90 * 2**30)):
        assert re.search(words, sentence(planned('--target=gpu:h100:1')))


def test_without_a_rate_it_says_what_to_give():
    assert 'needs --target=gpu:h100:1, say, the --workdir of a run' in sentence(planned())
    student = planned('--config.train.kind=student', '--target=gpu:h100:1')
    assert "train.kind='student' must be 'model'" in sentence(student)
