import re

import pytest

from cfg.modes import describe
from cfg.runtime.errors import UserError
from cfg.settings.checks import check_config
from cfg.settings.data import spec_of
from cfg.settings.networks import abstract_params, build_classifier, build_network
from cfg.training import build
from configs import adm, digits_student, imagenet64
from tests.in_process import main, refused


def test_imagenet_without_data_or_accelerator():
    done = main('--mode=describe', '--num_devices=8', config='configs/imagenet64.py', small=False)
    assert done.returncode == 0, done.stderr
    assert 'parameters: 295,900,035' in done.stdout
    assert re.search(r'forward pass: 219\.3 GFLOP', done.stdout)
    assert 'image uint8 [8, 256, 64, 64, 3]' in done.stdout
    assert re.search(r'down_0_0/conv_in/kernel +\| \(3, 3, 192, 192\)', done.stdout)


def test_a_batch_that_does_not_divide_is_refused():
    message = refused('--mode=describe', '--num_devices=7', config='configs/imagenet64.py', small=False)
    assert 'config.train.batch_size=2048 does not divide over 7 devices' in message


def test_memory_falls_with_remat_and_accumulation(small_config):
    def kept(**changes):
        config = small_config.copy_and_resolve_references()
        config.train.update(changes)
        (line,) = (x for x in describe.describe(config, num_devices=1).splitlines() if 'kept for the backward' in x)
        return float(re.search(r'= ([\d.e-]+) GiB', line)[1])

    whole = kept()
    assert kept(remat=True) < 0.5 * whole
    assert kept(grad_accum=4) == pytest.approx(whole / 4, rel=0.02)


def test_the_cost_of_a_guided_step_follows_where_the_label_goes(small_config):
    small_config.model.label_in = 'decoder'
    text = describe.describe(small_config, num_devices=1)
    guided, plain = map(float, re.search(r'sampling: (\S+) TFLOP.* (\S+) at w = 0', text).groups())
    stated = re.findall(r"([\d.]+) with model\.label_in='(\w+)'", text)
    assert {where: float(ratio) for ratio, where in stated} == {
        'everywhere': 2,
        'decoder': pytest.approx(guided / plain, rel=1e-3),
    }
    assert 1 < guided / plain < 2


def test_what_the_backward_pass_keeps_is_counted_by_hand(small_config):
    """Halving the compute type's size halves the activations, nearly: a few stay float32."""
    sizes = []
    for dtype in ('float32', 'bfloat16'):
        small_config.model.dtype = dtype
        spec = spec_of(small_config)
        network = build_network(small_config, spec)
        sizes.append(describe.activation_bytes(small_config, network, spec, abstract_params(network, spec)))
    assert 0.45 < sizes[1] / sizes[0] < 0.75


def test_a_student_is_described_without_its_teacher():
    done = main('--mode=describe', '--num_devices=8', config='configs/imagenet64_student.py:4', small=False)
    assert done.returncode == 0, done.stderr
    flops = float(re.search(r'forward pass: (\S+) GFLOP', done.stdout)[1])
    sampling = float(re.search(r'sampling: (\S+) TFLOP an image at every w \(T = 4, one prediction', done.stdout)[1])
    assert sampling == pytest.approx(4 * flops / 1000, rel=1e-2)
    assert re.search(r'w_1/kernel +\| \(768, 768\)', done.stdout)
    training = float(re.search(r'training: (\S+) TFLOP a step of 2048 images', done.stdout)[1])
    assert training == pytest.approx(4 * flops * 2048 / 1000, rel=1e-2)
    assert 'A student holds the parameters of its teacher, float32, on each device too' in done.stdout
    assert done.stdout.endswith('training takes 2 of its passes an image, where one is counted here.\n')


@pytest.mark.parametrize('part', ['teacher', 'guided', *map(str, (32, 16, 8, 4, 2, 1))])
def test_every_part_of_the_ladder_has_a_config(part):
    config = digits_student.get_config(part)
    check_config(config)
    build.check_trainable(config)
    with pytest.raises(UserError, match=r'digits_student.py:64 is no part: give one of teacher, guided, 32'):
        digits_student.get_config('64')


def test_an_imported_network_has_no_training_to_describe():
    text = describe.describe(adm.get_config('256_uncond'), num_devices=1)
    assert 'parameters: 553,839,110' in text
    assert 'training: none' in text


@pytest.mark.parametrize('name', adm.NAMES)
def test_every_released_network_has_a_config(name):
    config = adm.get_config(name)
    check_config(config)
    spec = spec_of(config)
    assert build_network(config, spec).out_channels == 6
    assert build_classifier(config, spec).num_classes == 1000


def test_an_image_that_cannot_be_halved_often_enough():
    config = imagenet64.get_config()
    config.data.image_size = 36
    with pytest.raises(UserError, match='multiples of 8 pixels, but those of imagenet are 36x36'):
        describe.describe(config)
