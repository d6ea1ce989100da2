"""The arithmetic of scaling on paper against closed forms worked by hand, and against --mode=describe."""

import re

import pytest

from benchmarks import scaling_on_paper as paper
from benchmarks.common import PEAKS
from cfg.modes import describe
from cfg.runtime.errors import UserError
from tests.conftest import small_config

# 100 FLOP/s, 1000 bytes; 10 bytes/s within groups of 4, 2 bytes/s between them.
CHIP = paper.Chip(peak=100.0, memory=1000.0, ring=10.0, island=4, network=2.0)
# 5 parameters: 20 bytes of gradient. 10 FLOP an image forward, 30 in training.
MODEL = paper.Model(parameters=5, forward_flops=10.0, guided_flops=16.0, activations=(100.0, 10.0))


@pytest.mark.parametrize(
    ('devices', 'seconds'),
    [
        (1, 0.0),  # nothing to send
        (2, 2.0),  # 2 x 1/2 x 20 bytes at 10 bytes/s
        (4, 3.0),  # 2 x 3/4 x 20 / 10
        # A quarter of the sum, 5 bytes, between two groups: 2 x 1/2 x 5 / 2 = 2.5 s more.
        (8, 5.5),
        (16, 6.75),  # 3 + 2 x 3/4 x 5 / 2
    ],
)
def test_an_all_reduce_by_hand(devices, seconds):
    assert paper.all_reduce_seconds(20.0, devices, CHIP) == pytest.approx(seconds)


def test_a_group_that_is_not_full_is_refused():
    with pytest.raises(UserError, match='--devices=6 is not a multiple of the 4'):
        paper.all_reduce_seconds(20.0, 6, CHIP)


def test_a_large_ring_sends_everything_twice():
    assert paper.ring_seconds(1.0, 10**9, 1.0) == pytest.approx(2.0)


def test_a_step_by_hand():
    # 16 images x 30 FLOP over 4 devices = 120 FLOP each, at half of 100 FLOP/s.
    step = paper.step_of(MODEL, CHIP, devices=4, batch_size=16, utilisation=0.5)
    assert step == pytest.approx((2.4, 3.0))
    assert step.separate == pytest.approx(5.4)
    # The forward pass takes 0.8 s; the backward pass, 1.6 s, hides 1.6 of the 3 s.
    assert step.overlapped == pytest.approx(3.8)


def test_what_the_backward_pass_hides_costs_nothing():
    step = paper.Step(compute=9.0, all_reduce=6.0)
    assert step.overlapped == 9.0
    assert paper.Step(9.0, 7.0).overlapped == 10.0


def test_strong_scaling_divides_the_arithmetic_and_not_the_gradients():
    few, many = (paper.step_of(MODEL, CHIP, devices=n, batch_size=64, utilisation=1.0) for n in (4, 16))
    assert few.compute == pytest.approx(4 * many.compute)
    assert many.all_reduce > few.all_reduce


def test_memory_by_hand():
    # Four copies of 20 bytes, the gradient, and 8 images of 100 bytes; in pieces, a running sum of gradients as well.
    assert paper.training_memory(MODEL, share=8, grad_accum=1, remat=False) == 80 + 20 + 800
    assert paper.training_memory(MODEL, share=8, grad_accum=2, remat=False) == 80 + 40 + 400
    assert paper.training_memory(MODEL, share=8, grad_accum=1, remat=True) == 80 + 20 + 80


@pytest.mark.parametrize(
    ('share', 'memory', 'plan'),
    [
        (8, 2000.0, (1, False, 900.0)),
        (8, 1000.0, (2, False, 520.0)),  # 900 are more than 80 %
        (8, 275.0, (8, False, 220.0)),
        (8, 250.0, (1, True, 180.0)),  # one image without remat takes 220 bytes
        (8, 100.0, None),
        (6, 650.0, (2, False, 420.0)),  # pieces are divisors of the share
    ],
)
def test_the_fewest_pieces_that_fit(share, memory, plan):
    assert paper.plan_of(MODEL, CHIP._replace(memory=memory), share=share) == plan


def test_a_checkpoint_holds_four_copies():
    assert paper.checkpoint_bytes(MODEL) == 80


def test_the_samples_of_a_sweep():
    config = small_config()
    config.eval.w, config.eval.num_samples, config.sampling.num_steps = (0.0, 0.5, 1.0), 7, 3
    # One prediction a step at w = 0, else two: 7 samples x 3 steps x (10 + 16 + 16) FLOP.
    assert paper.sweep_flops(MODEL, config) == 882


def test_a_model_is_what_describe_says():
    config = small_config()
    model = paper.model_of(config)
    text = describe.describe(config, num_devices=2)
    assert f'parameters: {model.parameters:,}' in text
    assert float(re.search(r'forward pass: (\S+) GFLOP', text)[1]) == pytest.approx(model.forward_flops / 1e9, rel=1e-3)
    total = float(re.search(r'of a device, about (\S+) GiB', text)[1])
    assert paper.training_memory(model, share=8, grad_accum=1, remat=False) / 2**30 == pytest.approx(total, rel=1e-2)
    assert model.activations[1] < 0.5 * model.activations[0]


def test_the_tables(monkeypatch):
    monkeypatch.setattr(paper, 'CHIPS', {'a chip': CHIP._replace(memory=1200.0)})
    monkeypatch.setattr(paper, 'model_of', lambda config: MODEL)
    config = small_config()
    config.train.batch_size, config.train.num_steps, config.train.checkpoint_every = 32, 24000, 1000
    text = paper.describe(config, counts=[4, 7], utilisation=0.5, write_rate=8.0)
    # 32 images over 4: 240 FLOP at 50 FLOP/s = 4.8 s; 3 s of all-reduce of which the backward pass hides all.
    assert '| a chip | 4 | 8 | 4800 | 3e+03 | 4 | 0.62 | 7 | 1.00 |' in text
    # 7.8 s a step: 24000 steps = 52 h = 2.17 days = 208 hours of a chip; 1000 steps = 2.2 h.
    assert '| a chip | 4 | 1 | False | 8.38e-07 of 1.12e-06 | 7.8 | 2.17 | 208 | 2.2 |' in text
    assert '| a chip | 7 |' not in text
    assert 'A checkpoint: 8e-08 GB, 10 s' in text
    assert 'of a chip.' in text


def test_every_chip_has_plausible_numbers():
    assert {chip.peak for chip in paper.CHIPS.values()} <= set(PEAKS.values())
    for chip in paper.CHIPS.values():
        assert chip.network < chip.ring
        assert 10e9 < chip.memory < 200e9


@pytest.mark.parametrize('text', ['', '8,', 'eight', '8,0', '-8'])
def test_devices_that_are_no_numbers(text):
    with pytest.raises(UserError, match='positive numbers'):
        paper.counts_of(text)


def test_devices():
    assert paper.counts_of('8, 32') == [8, 32]
