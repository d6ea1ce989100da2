"""Runs `--mode=describe`, which says what a config means: no pixel is read, no accelerator is needed."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from clu import parameter_overview
from ml_collections import ConfigDict

from cfg.data.spec import DataSpec
from cfg.models.flops import forward_flops, guided_flops
from cfg.models.unet import LABEL_IN
from cfg.modes.describe_target import describe_target
from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.settings.data import spec_of
from cfg.settings.networks import TAKE_W, abstract_params, build_trained
from cfg.training.build import objective_of

GIB = 2.0**30


def run(config: ConfigDict, workdir: None) -> str:
    """Describes a config, of the devices of `--target` or as if on `--num_devices` of this machine's kind."""
    options = flags.FLAGS
    if config.train.kind == 'student':  # the same network, and no teacher to open
        as_free = config.copy_and_resolve_references()
        as_free.train.kind = 'guidance_free'
        passes = (1 if config.train.teacher_guidance == 'one_pass' else 2) * (2 if config.train.student_steps else 1)
        return (
            f'{run(as_free, workdir)}\nA student holds the parameters of its teacher, float32, on each device too, and '
            f'training takes {passes} of its passes an image, where one is counted here.'
        )
    if options.target is None:
        return describe(config, num_devices=options.num_devices)
    if options.num_devices is not None:
        raise UserError('--num_devices and --target both say how many devices there are: give one of them.')
    return describe_target(config, options.target, part=options.part, largest=options.largest)


def describe(config: ConfigDict, *, num_devices: int | None = None) -> str:
    """Returns the model table, parameter count, arithmetic, training memory per device, and layout of the inputs.

    Args:
      num_devices: over which batches are divided; those of this process by default.

    Raises:
      UserError: when the config has no network, or a batch does not divide over the devices.
    """
    spec = spec_of(config)
    network = build_trained(config, spec)
    params = abstract_params(network, spec)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    devices = num_devices or len(parallel.local_devices())
    share = parallel.share(config.train.batch_size, devices, 'config.train.batch_size')
    flops = forward_flops(network, spec.image_shape)
    lines = [
        parameter_overview.get_parameter_overview(params, include_stats=False),
        '',
        *_inputs_and_parameters(config, network, spec, count),
        f'forward pass: {flops / 1e9:.4g} GFLOP an image (2 x multiply-adds of convolutions and matrix products)',
    ]
    if config.train.kind == 'model':
        lines += _sampling(config, network, spec, flops)
    if config.train.kind in TAKE_W:
        steps = config.sampling.num_steps
        lines.append(
            f'sampling: {flops * steps / 1e12:.4g} TFLOP an image at every w (T = {steps}, one prediction a step)'
        )
    if config.train.kind == 'model' and config.model.learned_variance:
        return '\n'.join([*lines, 'training: none, as the loss trains no variances'])
    batch = config.train.batch_size
    passes = 4 if config.train.kind == 'guidance_free' else 3  # with that for the null label, which has no gradient
    lines += [
        f'training: {passes * flops * batch / 1e12:.4g} TFLOP a step of {batch} images',
        '',
        *_memory(config, network, spec, params, share),
        '',
        *_layout(config, spec, devices, share),
    ]
    return '\n'.join(lines)


def _sampling(config: ConfigDict, network: nn.Module, spec: DataSpec, flops: float) -> list[str]:
    guided = {where: guided_flops(network.clone(label_in=where), spec.image_shape) for where in LABEL_IN}
    steps = config.sampling.num_steps
    return [
        f'sampling: {guided[config.model.label_in] * steps / 1e12:.4g} TFLOP an image at w > 0 (T = {steps}, two '
        f'predictions a step), {flops * steps / 1e12:.4g} at w = 0',
        'a guided step over one at w = 0: '
        + ', '.join(f"{guided[where] / flops:.4g} with model.label_in='{where}'" for where in LABEL_IN),
    ]


def _inputs_and_parameters(config: ConfigDict, network: nn.Module, spec: DataSpec, count: int) -> list[str]:
    data = f'data: {spec.name}, images {spec.image_shape}, {spec.num_classes} classes'
    if config.train.kind == 'classifier':
        return [f'{data}; a classifier of noisy images', f'parameters: {count:,}']
    return [
        f'{data}; the null label is {spec.num_classes}',
        f'parameters: {count:,}, of them {network.channels * 4:,} the row of the null label',
    ]


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def activation_bytes(config: ConfigDict, network: nn.Module, spec: DataSpec, params: Any) -> int:
    """Counts what the backward pass keeps of an example: the residuals of the loss's gradient, only traced.

    XLA may keep less, by computing again what is cheap, and needs working space besides.
    """
    loss_fn = objective_of(config, network)

    def residuals(n):
        images = jax.ShapeDtypeStruct((n, *spec.image_shape), jnp.float32)
        index = jax.ShapeDtypeStruct((n,), jnp.int32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), n))

        def kept(params, images, labels, keys, index):
            return jax.vjp(lambda p: jnp.mean(loss_fn(p, images, labels, keys, index)[0]), params)[1]

        return _bytes(
            [x for x in jax.tree.leaves(jax.eval_shape(kept, params, images, index, keys, index)) if _is_array(x)]
        )

    # The difference leaves out what does not grow with the batch: the parameters themselves.
    return residuals(2) - residuals(1)


def _is_array(x: Any) -> bool:
    return not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) and x.dtype != jax.dtypes.float0


def _memory(config: ConfigDict, network: nn.Module, spec: DataSpec, params: Any, share: int) -> list[str]:
    piece = share // config.train.grad_accum
    lengths = len(config.train.ema_lengths)
    state = (4 + lengths) * _bytes(params)
    more = f', averages of {lengths} lengths (train.ema_lengths)' if lengths else ''
    gradient = _bytes(params) * (2 if config.train.grad_accum > 1 else 1)
    example = activation_bytes(config, network, spec, params)
    total = state + gradient + example * piece
    return [
        f'training memory of a device, about {total / GIB:.3g} GiB:',
        f'  parameters, their average, two Adam moments{more}: {state / GIB:.3g} GiB',
        f'  gradient{" and its running sum" if config.train.grad_accum > 1 else ""}: {gradient / GIB:.3g} GiB',
        f'  kept for the backward pass: {example / 2**20:.4g} MiB an image x {piece} images at a time = '
        f'{example * piece / GIB:.3g} GiB ({config.model.dtype}, train.remat={config.train.remat}, '
        f'train.grad_accum={config.train.grad_accum}, attention by {network.attention_kernel})',
    ]


def _layout(config: ConfigDict, spec: DataSpec, devices: int, share: int) -> list[str]:
    height, width, channels = spec.image_shape
    return [
        f'a batch of train.batch_size={config.train.batch_size} over {devices} device{"s" * (devices > 1)}:',
        f'  image uint8 [{devices}, {share}, {height}, {width}, {channels}]: device, example, height, width, channel',
        f'  label, index int32 [{devices}, {share}]',
        '  on the device, images become float32 in [-1, 1]',
    ]
