"""The scripts of benchmarks/ run, and their arithmetic is right; nothing here is about speed."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import (
    classifier_accuracy,
    common,
    evaluation,
    guidance_cost,
    rule_cost,
    sampling,
    side_by_side,
    train_step,
)
from benchmarks import config as sizes
from benchmarks import input as input_benchmark
from cfg.models.flops import forward_flops, guided_flops
from cfg.runtime.errors import UserError
from cfg.settings.checks import check_config
from cfg.settings.data import spec_of
from cfg.settings.networks import build_network
from tests.command_line import ROOT, SMALL

FIELDS = ('network', 'device', 'batch', 'compilation', 'peak memory', 'utilisation', 'its peak is')


def rows_of(text):
    return {line[:20].strip(): line[20:].strip() for line in text.splitlines()}


# The small config as it is: other tests run the same programs, which are compiled once for all.


def test_the_training_step(small_config):
    rows = rows_of(train_step.describe(small_config, steps=2, warmup=1, peak_tflops=1.0))
    assert not {*FIELDS, 'images/s', 'ms/step'} - rows.keys()
    assert float(rows['images/s']) > 0
    assert 'median' in rows['ms/step']
    assert 'min' in rows['ms/step']
    assert 'of 2' in rows['ms/step']
    assert rows['its peak is'] == '--peak_tflops'
    assert 'of 4 TFLOP/s' in rows['utilisation']  # four devices


def test_sampling(small_config):
    small_config.sampling.num_steps = 8
    rows = rows_of(sampling.describe(small_config, w=1.0, num_steps=4, repeats=1, warmup=0, peak_tflops=1.0))
    assert not {*FIELDS, 'evaluations/s', 'ms/network call', 'images/s'} - rows.keys()
    assert rows['images/s'].endswith('at T=8, extrapolated from 4 steps')
    evaluations, images = float(rows['evaluations/s']), float(rows['images/s'].split()[0])
    assert evaluations == pytest.approx(images * 8 * 2, rel=1e-2)
    assert '8 predictions in 4 steps' in rows['batch']


def test_the_cost_of_both_predictions(small_config):
    small_config.sampling.batch_size = 4
    text = guidance_cost.describe(small_config, rounds=2, units=1)
    rows = dict(line.split('  ', 1) for line in text.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    spec = spec_of(small_config)
    network = build_network(small_config, spec)
    counted = guided_flops(network.clone(label_in='decoder'), (8, 8, 1)) / forward_flops(network, (8, 8, 1))
    assert float(rows['FLOP ratio, decoder']) == pytest.approx(counted, rel=1e-3)
    assert float(rows['FLOP ratio, everywhere']) == 2
    times = {name: float(rows[f'{name}, ms'].split()[0]) for name in ('guided, decoder', 'plain, decoder')}
    ratio, low, high = (float(x) for x in re.findall(r'\d+\.\d+', rows['time ratio, decoder']))
    assert low <= ratio <= high
    assert min(times.values()) > 0
    assert 'decoder/everywhere' in rows


def test_the_cost_of_rules(small_config):
    rules = ['cfg', 'cfg(interval=(None, 0))']
    text = rule_cost.describe(small_config, rules=rules, w=1.0, num_steps=4, rounds=2)
    rows = dict(re.split(r'  +', line, maxsplit=1) for line in text.splitlines())
    assert [*rows] == ['network', 'batch', 'unguided', *rules]
    shares = [float(re.search(r'evaluations (\S+) of', rows[name])[1]) for name in ('unguided', *rules)]
    assert shares == [1.0, 2.0, 1.5]  # two of four levels are below 0
    with pytest.raises(UserError, match=r'--rules: autoguidance needs a second network'):
        rule_cost.describe(small_config, rules=['autoguidance'], w=1.0, num_steps=4, rounds=2)


def test_guidance_is_half_the_work_at_no_strength():
    assert [sampling.is_guided(w) for w in (-1.0, 0.0, 0.1, 1.0)] == [False, False, True, True]


def test_the_input_pipeline(small_config):
    training = input_benchmark.Training(tflops=1.0, utilisation=0.5, devices=3)
    text = input_benchmark.describe(
        small_config, counts=[0, 1], batches=2, seconds=0.01, images=None, training=training
    )
    for stage in ('decode', 'crop area to 8x8', 'crop adm to 8x8', 'encode PNG', 'all with crop area'):
        assert float(text.split(stage)[1].split()[0]) > 0
    table = text.split('digits/all:')[1].splitlines()
    assert [line.split()[0] for line in table[2:4]] == ['0', '1']
    needed = float(table[4].split()[1])
    assert '3 device(s) at 50 % of 1 TFLOP/s' in table[4]
    flops = forward_flops(build_network(small_config, spec_of(small_config)), (8, 8, 1))
    assert needed == pytest.approx(1.5e12 / (3 * flops), rel=1e-3)
    got, part = (float(value) for value in table[2].split()[1:3])
    assert part == pytest.approx(got / needed, abs=0.01)


@pytest.mark.parametrize('text', ['1,x', '-1', '2,,3'])
def test_numbers_of_workers(text):
    assert input_benchmark.worker_counts('0,3') == [0, 3]
    assert input_benchmark.worker_counts('')[:2] == [0, 1]
    with pytest.raises(UserError, match='--workers='):
        input_benchmark.worker_counts(text)


@pytest.mark.usefixtures('narrow')
def test_the_evaluation_by_part(small_config):
    small_config.eval.num_samples = 40
    small_config.eval.batch_size = 4
    small_config.eval.kid_subset_size = 10
    small_config.eval.kid_subsets = 2
    text = evaluation.describe(small_config, w=1.0, num_steps=2, batch_size=8, repeats=1, num_real=20)
    head, _, *lines, rest, alone = text.splitlines()
    assert head.startswith('40 samples, 20 real images, w = 1; 4 x ')
    parts = {line[:20].strip(): [float(value) for value in line[20:].split()[:2]] for line in lines}
    metrics = ['FID', 'FID at infinity', 'sFID', 'precision, recall', 'KID', 'MIND', 'inception score']
    assert [*parts] == ['sampler', 'Inception', 'moments, score sums', *metrics, 'saving']
    assert sum(share for _, share in parts.values()) == pytest.approx(100, abs=0.1)
    others = sum(seconds for name, (seconds, _) in parts.items() if name not in evaluation.NETWORKS)
    assert float(rest.split(':')[1].split()[0]) == pytest.approx(others, rel=1e-2)
    total = sum(seconds for seconds, _ in parts.values())
    assert float(rest.split()[-8]) == pytest.approx(100 * others / total, abs=0.1)
    assert float(alone.split()[-2]) == pytest.approx(100 * others / (total - parts['sampler'][0]), abs=1)


def test_savings_are_scaled_to_the_length_of_the_evaluation():
    parts = [
        evaluation.Part('sampler', 590.0, ''),
        evaluation.Part('FID', 10.0, ''),
        evaluation.Part('saving', 0.5, ''),
    ]
    assert evaluation.table(parts, 60.0).splitlines()[3].split()[:2] == ['saving', '5']
    assert 'networks: 15 s, 2.48 %' in evaluation.table(parts, 60.0)
    assert 'already: 10.5 s, 100.00 %' in evaluation.table(parts, 60.0)


def script(name, config, *arguments):
    command = [sys.executable, f'benchmarks/{name}.py', f'--config={config}', *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_line():
    arguments = ('--config.model.channel_mult=(1,)', '--config.sampling.batch_size=8', '--repeats=1', '--warmup=0')
    done = script('sampling', 'configs/digits.py', *SMALL, *arguments, '--peak_tflops=1', '--forward')
    assert done.returncode == 0, done.stderr
    assert not {*FIELDS, 'evaluations/s', 'ms/network call'} - rows_of(done.stdout).keys()


@pytest.mark.parametrize(
    ('name', 'config', 'arguments', 'expected'),
    [
        ('train_step', 'benchmarks/config.py:medium', [], 'medium_32, small_16, small_8'),
        ('sampling', 'configs/digits.py', ['--peer=.'], 'config.model.norm_groups=8 must be 32'),
    ],
)
def test_a_mistake_is_one_sentence(name, config, arguments, expected):
    done = script(name, config, *arguments)
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    assert expected in done.stderr.strip().splitlines()[-1]


def test_bayes_rule_of_known_images():
    """By scipy in float64: p(c | z) with p(z | c) the mean of Gaussians around the known images of the class."""
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(-1, 1, (7, 2, 2, 1)), np.array([0, 0, 1, 1, 1, 2, 2])
    logsnr = np.array([-20.0, -3.0, 0.0, 2.0, 4.0])
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    z = alpha[:, None, None, None] * images[:5] + sigma[:, None, None, None] * rng.standard_normal((5, 2, 2, 1))
    arrays = (np.float32(x) for x in (z, logsnr, images))
    logits = np.asarray(classifier_accuracy.bayes_logits(*arrays, labels, 3), np.float64)
    for n in range(5):
        mean, covariance = alpha[n] * images.reshape(7, 4), sigma[n] ** 2 * np.eye(4)
        density = np.array([stats.multivariate_normal.pdf(z[n].ravel(), m, covariance) for m in mean])
        expected = np.array([density[labels == label].sum() for label in range(3)])
        posterior = np.exp(logits[n] - logits[n].max())
        np.testing.assert_allclose(posterior / posterior.sum(), expected / expected.sum(), rtol=1e-4, atol=1e-6)


def test_the_accuracy_of_a_classifier_needs_one(small_config, tmp_path):
    with pytest.raises(UserError, match=r'only the halves of the digits'):
        small_config.data.name = 'mixture'
        classifier_accuracy.describe(small_config, str(tmp_path), draws=1)


@pytest.mark.parametrize('name', sizes.SIZES)
def test_the_sizes_are_configs(name):
    config = sizes.get_config(name)
    check_config(config)
    build_network(config, spec_of(config))


def test_peaks_by_the_name_of_the_device():
    assert common.peak_flops('NVIDIA H100 80GB HBM3') == 989e12
    assert common.peak_flops('NVIDIA H100 PCIe') == 756e12
    assert common.peak_flops('NVIDIA H200') == 989e12
    assert common.peak_flops('NVIDIA A100-SXM4-80GB') == 312e12
    assert common.peak_flops('TPU v4') == 275e12
    assert common.peak_flops('TPU v5 lite') == 197e12
    assert common.peak_flops('TPU v5p') == 459e12
    assert common.peak_flops('cpu') is None
    assert common.peak_flops('NVIDIA A10G') is None


def test_a_measured_peak():
    assert common.matmul_rate(64, 'float32', repeats=2) > 0


def test_statistics():
    assert common.quartiles([4.0]) == (4.0, 4.0)
    assert common.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert common.describe_times([0.003, 0.001, 0.002]) == '2 median, 1 min, 1 between the quartiles of 3'


@pytest.mark.parametrize('ahead', [0, 1])
def test_as_many_units_as_asked_for_are_timed(ahead):
    started = []
    work = common.Work(lambda: started.append(0), images=1, flops=1.0, network='', ahead=ahead)
    times = common.measure(work, units=3, warmup=2)
    assert len(times.units) == 3
    assert len(started) == 6
    assert all(seconds >= 0 for seconds in [times.first, *times.units, common.seconds_of(work, 2)])
    assert len(started) == 8


def test_what_the_kernel_says_of_the_processor():
    assert side_by_side.busy_ticks('cpu  10 1 5 900 50 2 3 4 7 7\ncpu0 1 1 1 1') == 10 + 1 + 5 + 2 + 3 + 4
    assert side_by_side.process_ticks('7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 120 34 5 6') == 154


def a_round(ours, theirs, others):
    return side_by_side.Round(side_by_side.Run(ours, 0.0), side_by_side.Run(theirs, others))


def test_the_table_of_a_comparison():
    kept = [a_round(2.0, 1.0, 0.05), a_round(2.0, 2.0, 0.01), a_round(1.0, 2.0, None)]
    text = side_by_side.table(kept, [a_round(9.0, 9.0, 0.5)], (2, 1), 'contiguous', 0.1)
    # Ours ran two units in that time, so it is twice as fast as the seconds say.
    assert side_by_side.ratios(kept, (2, 1)) == [1.0, 2.0, 4.0]
    assert '| contiguous | 1 | 2 | 2.000 | 1.500..3.000 | 1.000..4.000 |' in text
    assert '3 rounds' in text
    assert '1 discarded' in text
    assert '0.050 cores' in text
    with pytest.raises(UserError, match='in each of 1 rounds'):
        side_by_side.table([], kept[:1], (1, 1), 'contiguous', 0.1)


def test_rounds_alternate_and_disturbed_ones_do_not_count(monkeypatch):
    log = []

    def run(child, units):
        log.append((child, units))
        return side_by_side.Run(1.0, 0.5 if len(log) in (2, 5) else 0.0)

    monkeypatch.setattr(side_by_side, 'run_measured', run)
    kept, discarded = side_by_side.alternate('ours', 'theirs', (3, 4), rounds=2, limit=0.1)
    assert (len(kept), len(discarded)) == (2, 2)
    assert [child for child, _ in log] == ['ours', 'theirs', 'theirs', 'ours'] * 2
    assert set(log) == {('ours', 3), ('theirs', 4)}

    monkeypatch.setattr(side_by_side, 'run_measured', lambda child, units: side_by_side.Run(1.0, 0.5))
    kept, discarded = side_by_side.alternate('ours', 'theirs', (1, 1), rounds=2, limit=0.1)
    assert (len(kept), len(discarded)) == (0, 6)


CHILD = """
import sys
from benchmarks import side_by_side
pipe = side_by_side.take_stdout()
print('a library that talks')
side_by_side.serve(lambda words: {'seconds': float(words[1])}, {'device': 'none'}, pipe, sys.stdin)
"""


def test_a_child_answers_over_its_pipe():
    with side_by_side.Child('a child', [sys.executable, '-c', CHILD], {'PYTHONPATH': str(ROOT)}) as child:
        assert child.answer() == {'device': 'none'}
        run = side_by_side.run_measured(child, 3)
        assert run.seconds == 3.0
        assert Path('/proc/stat').exists() == (run.others is not None)
    with (
        side_by_side.Child('a child', [sys.executable, '-c', 'raise SystemExit(3)'], {}) as child,
        pytest.raises(UserError, match='a child ended with status 3'),
    ):
        child.ask('go 1')


def test_our_child_reports_a_mistake(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(side_by_side, 'take_stdout', lambda: pipe)

    def prepare():
        raise UserError('This is wrong.')

    side_by_side.serve_work(prepare, warmup=0)
    assert json.loads(pipe.getvalue()) == {'error': 'This is wrong.'}


def test_the_peer_gets_the_same_network():
    config = sizes.get_config('medium_32')
    config.model.attention_resolutions = (16, 4)
    request = common.peer_request(config, spec_of(config), 'training')
    assert request['unet'] == {
        'image_size': 32,
        'in_channels': 3,
        'model_channels': 128,
        'out_channels': 3,
        'num_res_blocks': 2,
        'attention_resolutions': [2, 8],
        'dropout': 0.0,
        'channel_mult': [1, 2, 2, 2],
        'num_classes': 1001,
        'use_checkpoint': False,
        'num_heads': 1,
        'num_head_channels': 64,
        'use_scale_shift_norm': True,
        'resblock_updown': True,
        'use_new_attention_order': True,
    }
    assert request['batch_size'] == 16
    assert request['train']['learning_rate'] == config.train.learning_rate
    json.dumps(request)

    config.model.learned_variance = True
    config.model.num_heads, config.model.head_channels = 4, 0
    config.sampling.batch_size = 5
    request = common.peer_request(config, spec_of(config), 'sampling', guided=False, num_steps=7)
    assert request['unet']['out_channels'] == 6
    assert (request['unet']['num_heads'], request['unet']['num_head_channels']) == (4, -1)
    assert (request['batch_size'], request['guided'], request['num_steps']) == (5, False, 7)
    config.model.label_in = 'decoder'
    with pytest.raises(UserError, match='label_in'):
        common.peer_request(config, spec_of(config), 'sampling')
