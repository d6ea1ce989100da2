"""What the compilers of a TPU and of a GPU make of a small network, on a machine that has neither."""

import math
import re
import types

import jax
import pytest

from cfg.models.flops import forward_flops, guided_flops
from cfg.modes import describe_target
from cfg.modes.describe_target import LOWER, lower_train
from cfg.report.estimate import estimate, part_of
from cfg.runs.state import create
from cfg.runtime import targets
from cfg.runtime.errors import UserError
from cfg.runtime.hlo import Program, is_attention
from cfg.runtime.targets import CHIPS, PACKAGES, Target, TooLargeError, compiled, parse_target
from cfg.settings.networks import abstract_params, build_trained
from cfg.settings.values import config_dict
from cfg.training.build import make_optimizer
from configs import imagenet64
from tests.in_process import refused

TARGETS = ('tpu:v5e:2x2', 'gpu:h100:2')


def small():
    """The digits, enlarged: 16 x 16 positions is the least that a TPU's kernel of attention takes."""
    config = imagenet64.get_config()
    config.data.name, config.data.image_size = 'folder:none', 16
    config.model.channels, config.model.channel_mult, config.model.num_res_blocks = 32, (1, 2), 1
    config.model.attention_resolutions, config.model.head_channels = (16,), 32
    config.train.batch_size = config.sampling.batch_size = 8
    config.sampling.num_steps = 5
    return config


SPEC = describe_target.DataSpec('none', (16, 16, 3), 10)


@pytest.fixture(scope='module', name='compile')
def compile_fixture():
    """(target, part) -> the target and what its compiler printed, each compiled once."""
    done = {}

    def compile_once(text, part):
        target = parse_target(text)
        try:
            targets.check_compiler(target)
        except UserError as error:
            pytest.skip(str(error))
        if (text, part) not in done:
            config = small()
            kernel = describe_target.KERNELS[target.kind]
            done[text, part] = compiled(
                target, LOWER[part], config_dict(config), SPEC, 8, kernel, waiting=lambda _: None
            )
        return target, done[text, part]

    return compile_once


def state_leaves():
    config = small()
    params = abstract_params(build_trained(config, SPEC), SPEC)
    return jax.tree.leaves(jax.eval_shape(lambda params: create(params, make_optimizer(config)), params))


@pytest.mark.parametrize('target', TARGETS)
def test_the_training_step_is_what_it_should_be(target, compile):
    target, found = compile(target, 'train')
    program = Program(found.program)
    # Every array of the state is written where it was read.
    leaves, header = len(state_leaves()), found.program[: found.program.index('\n')]
    assert len(re.findall(r'(?:may|must)-alias', header)) == leaves
    # The gradients of all parameters go over the devices in one piece, or in two of which one runs beside the rest.
    reduced = [cost for cost in program.costs() if any(name.startswith('all-reduce') for name in cost.inside)]
    sizes = [math.prod(shape.dims) for cost in reduced for shape in cost.instruction.results if shape.dtype == 'f32']
    params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(build_trained(small(), SPEC), SPEC)))
    # The loss is among them; the biases of a skip and of the convolution beside it have the same gradient.
    assert 0.999 * params < sum(sizes) < params + 10
    assert len([cost for cost in reduced if cost.instruction.results[0].dtype == 'f32']) <= 2
    # Of the convolutions only the last one, with its gradients, is float32 in a bfloat16 network.
    float32, all_of_them = set(), set()
    for computation in program.computations.values():
        for i in computation.instructions.values():
            if i.opcode == 'convolution' or '"__cudnn$conv' in i.attributes:
                place = re.search(r'UNet\.\w+/[\w/]+(?=/conv_general_dilated)', i.scope)
                if place:
                    all_of_them.add(place[0])
                    float32 |= {place[0]} if i.shapes[0].dtype == 'f32' else set()
    assert float32 == {'UNet.decode/conv_out'}
    assert len(all_of_them) > 10


@pytest.mark.parametrize('target', TARGETS)
def test_the_memory_is_that_of_the_state_and_what_is_between(target, compile):
    target, found = compile(target, 'train')
    seen = estimate(found, target)
    exact = sum(leaf.size * leaf.dtype.itemsize for leaf in state_leaves())
    leaves = len(state_leaves())
    ours = sum(seen.arguments[i] for i in range(leaves))
    assert exact <= ours <= 2 * exact  # a TPU's tiles are large beside arrays this small
    assert set(seen.arguments) == set(range(leaves + 4))
    assert 0 <= seen.kept <= seen.temporary
    assert seen.memory == sum(seen.arguments.values()) + seen.temporary + seen.other


@pytest.mark.parametrize('target', TARGETS)
def test_the_arithmetic_is_that_of_the_network(target, compile):
    """Training takes three forward passes, by hand; padding and the kernels' second looks make the difference."""
    target, found = compile(target, 'train')
    config = small()
    images = 8 // target.count
    expected = 3 * forward_flops(build_trained(config, SPEC), SPEC.image_shape) * images
    assert estimate(found, target).flops == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize('target', TARGETS)
def test_a_flash_kernel_computes_attention(target, compile):
    """On the GPU in name alone: what stands for cuDNN's kernel takes and makes the same arrays."""
    _, found = compile(target, 'train')
    kernels = [cost for cost in Program(found.program).costs() if is_attention(cost.instruction)]
    assert {part_of(cost) for cost in kernels} == {'attention'}
    # Forth and back: a block on the way down and two on the way up; the middle is too small for a TPU's kernel.
    assert len(kernels) == 2 * (3 if target.startswith('tpu') else 4)
    assert not re.search(r'\b256,256\]', found.program)  # no scores of all pairs


def test_a_sampler_counts_all_its_steps(compile):
    target, found = compile('tpu:v5e:2x2', 'sample')
    config = small()
    expected = 5 * guided_flops(build_trained(config, SPEC), SPEC.image_shape) * 8 // target.count
    seen = estimate(found, target)
    assert seen.flops == pytest.approx(expected, rel=0.12)
    assert seen.kept == 0


def test_a_program_that_cannot_be_lowered_is_one_sentence(compile):
    compile('gpu:h100:2', 'train')  # or skips
    with pytest.raises(UserError, match=r'gpu:h100:2 cannot run this program: \w+: '):
        compiled(parse_target('gpu:h100:2'), lower_train, {}, SPEC, 8, 'xla', waiting=lambda _: None)


@pytest.mark.parametrize(
    ('text', 'kind', 'chip', 'sides'),
    [
        ('tpu:v5e:2x4', 'tpu', 'v5e', (2, 4)),
        ('tpu:v5p:2x2x4', 'tpu', 'v5p', (2, 2, 4)),
        ('gpu:h100', 'gpu', 'h100', (8,)),
        ('gpu:b200:1', 'gpu', 'b200', (1,)),
    ],
)
def test_a_target_is_read_from_its_text(text, kind, chip, sides):
    assert parse_target(text) == Target(kind, chip, sides)


@pytest.mark.parametrize('text', ['tpu', 'tpu:h100:8', 'tpu:v5e:8', 'gpu:h100:2x4', 'gpu:h100:0', 'tpu:v5e:2x', ''])
def test_a_target_that_is_none(text):
    with pytest.raises(UserError, match=rf'^--target={text} '):
        parse_target(text)


def test_a_missing_compiler_names_its_command(monkeypatch):
    monkeypatch.setattr(targets, '_is_installed', lambda module: False)
    for kind, chip, names in (('tpu', 'v5e', "'libtpu=="), ('gpu', 'h100', 'jax-cuda13-plugin==')):
        with pytest.raises(UserError, match=f'python -m pip install --no-deps --target .compilers {names}'):
            targets.check_compiler(Target(kind, chip, (1,)))
    assert set(PACKAGES) == {facts['kind'] for facts in CHIPS.values()}


def test_devices_are_counted_once():
    message = refused(
        '--mode=describe', '--num_devices=8', '--target=gpu:h100:8', config='configs/imagenet64.py', small=False
    )
    assert '--num_devices and --target both say' in message


@pytest.mark.parametrize('pieces', [1, 4])
@pytest.mark.parametrize('first', [8, 120, 148, 400])
def test_the_largest_batch_is_found_by_the_line_through_two(first, pieces):
    """Memory that grows by a straight line, and a compiler that refuses a little above it: few are compiled."""
    target, tried = parse_target('tpu:v5e:2x4'), []

    def memory(share):
        return 2**30 + share * 100 * 2**20

    def compile_for(batch):
        tried.append(batch // target.count)
        if memory(tried[-1]) > 17.5 * 2**30:
            raise TooLargeError('no')
        return types.SimpleNamespace(memory=memory(tried[-1]))

    known = memory(first) if memory(first) < 17.5 * 2**30 else math.inf
    text = describe_target._largest(compile_for, target, first, known, pieces=pieces)
    most = int((target.memory - 2**30) / (100 * 2**20))
    found = int(re.search(r': (\d+) images a device', text)[1])
    assert most - max(pieces, most // 16) <= found <= most
    assert found % pieces == 0
    assert len(tried) <= 6
    assert first not in tried


def test_nothing_fits():
    def compile_for(batch):
        raise TooLargeError('no')

    text = describe_target._largest(compile_for, parse_target('tpu:v5e:2x4'), 8, math.inf, pieces=2)
    assert text == 'largest batch that fits: none, not even 2 images a device'


def test_what_does_not_fit_is_a_sentence_with_the_remedy(monkeypatch):
    """A real compiler takes minutes to give up, so one that refuses at once stands in its place."""

    def refuse(*args, waiting):
        raise TooLargeError('tpu:v5e:2x2 cannot run this program: RESOURCE_EXHAUSTED: Ran out of memory.')

    for name, value in {'spec_of': lambda _: SPEC, 'compiled': refuse}.items():
        monkeypatch.setattr(describe_target, name, value)
    with pytest.raises(UserError, match=r'Ran out of memory\. Lower config.train.batch_size, raise config.train.grad_'):
        describe_target.describe_target(small(), 'tpu:v5e:2x2', part='train', largest=False)
    text = describe_target.describe_target(small(), 'tpu:v5e:2x2', part='train', largest=True)
    assert 'Ran out of memory.\nlargest batch that fits: none' in text


def test_a_kernel_of_another_device():
    config = imagenet64.get_config()
    config.model.attention = 'cudnn'
    with pytest.raises(UserError, match="'cudnn' is not a kernel of tpu:v5e:2x4: use 'auto', 'xla' or 'splash'"):
        describe_target.kernel_of(config, parse_target('tpu:v5e:2x4'))
