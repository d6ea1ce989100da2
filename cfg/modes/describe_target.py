"""Describes a config as the compiler of a TPU or a GPU sees it, without that device: `--mode=describe --target=...`."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cfg.data.spec import DataSpec
from cfg.features.inception import Inception, inception_shapes
from cfg.models import attention
from cfg.report.estimate import GIB, Estimate, estimate, table
from cfg.runs.generate import Generator, binder
from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.runtime.progress import format_seconds, waiting
from cfg.runtime.targets import Target, TooLargeError, compiled, parse_target
from cfg.settings.data import spec_of
from cfg.settings.networks import abstract_params, build_network, build_trained
from cfg.settings.sampler import read_sampler
from cfg.settings.values import config_dict
from cfg.training.build import abstract_state, make_optimizer, step_of

Array = jax.Array
PARTS = {
    'train': 'config.train.batch_size',
    'sample': 'config.sampling.batch_size',
    'features': 'config.eval.batch_size',
}
REMEDIES = {'train': ', raise config.train.grad_accum or set config.train.remat=True', 'sample': '', 'features': ''}
KERNELS = {'tpu': 'splash', 'gpu': 'cudnn'}


def describe_target(config: ConfigDict, text: str, *, part: str, largest: bool) -> str:
    """Returns what a part of a run takes of each device of a target.

    Args:
      text: names the target, see `cfg.runtime.targets.parse_target`.
      part: 'train', 'sample' or 'features'.
      largest: whether to look for the largest batch that fits as well.

    Raises:
      UserError: when the target or the part is not there, or the compiler refuses.
    """
    target = parse_target(text)
    spec = spec_of(config)
    kernel = kernel_of(config, target)
    config = config.copy_and_resolve_references()
    config.model.attention = 'xla'  # where nothing is compiled
    batch = batch_of(config, part)
    share = parallel.share(batch, target.count, PARTS[part])
    lines = [f'{part} on {target}, {target.facts["source"]}', f'{PARTS[part]}={batch}: {share} images a device']
    if part != 'features':
        lines.append(f'{config.model.dtype}, attention by {kernel}' + _training(config, part))
    compile_for = functools.partial(compile_part, config, spec, target, part, kernel)
    memory = math.inf
    try:
        found = compile_for(batch)
        memory = found.memory
        lines += table(found, images=share, kinds=_kinds(config, spec, part))
        lines.append(f'Compiled in {format_seconds(found.seconds)}.')
    except TooLargeError as error:
        if not largest:
            raise UserError(f'{error} Lower {PARTS[part]}{REMEDIES[part]}; --largest looks for what fits.') from error
        lines.append(str(error))
    if largest:
        pieces = config.train.grad_accum if part == 'train' else 1
        lines.append(_largest(compile_for, target, share, memory, pieces=pieces))
    lines.append(f'An estimate: the program is what {target} would run, and its times are bounds.')
    return '\n'.join(lines)


def kernel_of(config: ConfigDict, target: Target) -> str:
    """Returns the kernel of attention: what `config.model.attention` says, or the best that the target has."""
    choice, best = config.model.attention, KERNELS[target.kind]
    if choice not in ('auto', 'xla', best):
        raise UserError(
            f"config.model.attention={choice!r} is not a kernel of {target}: use 'auto', 'xla' or {best!r}."
        )
    return best if choice == 'auto' else choice


def _training(config: ConfigDict, part: str) -> str:
    train = config.train
    return f', train.remat={train.remat}, train.grad_accum={train.grad_accum}' if part == 'train' else ''


def batch_of(config: ConfigDict, part: str) -> int:
    """Returns the batch of a part of a run, of all devices."""
    return {'train': config.train, 'sample': config.sampling, 'features': config.eval}[part].batch_size


def compile_part(config: ConfigDict, spec: DataSpec, target: Target, part: str, kernel: str, batch: int) -> Estimate:
    """Compiles a part of a run for a target, and estimates what it takes of each device."""
    values = config_dict(config)
    with waiting(f'compiling {part} of {batch} images for {target}') as update:
        found = compiled(target, LOWER[part], values, spec, batch, kernel, waiting=update)
    return estimate(found, target)


def _largest(compile_for: Callable[[int], Estimate], target: Target, share: int, memory: float, *, pieces: int) -> str:
    """Says the largest share of a device that fits: memory grows by a straight line, which the compiler then confirms.

    Args:
      share: images a device that were tried.
      memory: that they take, in bytes; infinite where the compiler refused.
      pieces: into which a share is cut.
    """
    fits, fails, sizes = 0, math.inf, {share: memory}

    def judge(size: int) -> None:
        nonlocal fits, fails
        if sizes[size] <= target.memory:
            fits = max(fits, size)
        else:
            fails = min(fails, size)

    judge(share)
    while fails - fits > pieces * max(1, fits // pieces // 16):
        size = _next(sizes, target.memory, fits, fails, pieces)
        try:
            sizes[size] = compile_for(size * target.count).memory
        except TooLargeError:
            sizes[size] = math.inf
        judge(size)
    if not fits:
        return f'largest batch that fits: none, not even {pieces} images a device'
    return (
        f'largest batch that fits, to a sixteenth: {fits} images a device, {fits * target.count} on {target.count} '
        f'({sizes[fits] / GIB:.2f} GiB)'
    )


def _next(sizes: dict[int, float], memory: float, fits: int, fails: float, pieces: int) -> int:
    """Returns the share to try next, a multiple of `pieces` between one that fits and one that does not."""
    known = sorted((size, used) for size, used in sizes.items() if math.isfinite(used))
    guess = 2 * max(known[-1][0], pieces) if known and fails == math.inf else (fits + min(fails, 2 * fits + pieces)) / 2
    if len(known) > 1:
        (x0, y0), (x1, y1) = known[0], known[-1]
        slope = (y1 - y0) / (x1 - x0)
        guess = x0 + (memory - y0) / slope if slope > 0 else guess
    size = int(guess) // pieces * pieces
    lowest = fits + pieces
    highest = fails - pieces if fails < math.inf else 4 * max(fits, pieces)
    return int(min(max(size, lowest), highest))


def _kinds(config: ConfigDict, spec: DataSpec, part: str) -> dict[str, Sequence[int]]:
    """Returns the numbers of the program's arguments by what they are, in the order in which JAX flattens them."""
    if part == 'features':
        count = len(jax.tree.leaves(inception_shapes()))
        return {'parameters': range(count), 'images': range(count, count + 1)}
    network = build_trained(config, spec) if part == 'train' else build_network(config, spec)
    params = abstract_params(network, spec)
    if part == 'sample':
        count = len(jax.tree.leaves(params))
        return {'parameters': range(count), 'keys, labels, w': range(count, count + 4)}
    state = abstract_state(config, params)
    names = ('step', 'parameters', 'their average', "Adam's moments", 'averages of config.train.ema_lengths')
    kinds, first = {}, 0
    for name, tree in zip(names, state, strict=True):
        count = len(jax.tree.leaves(tree))
        kinds[name] = range(first, first + count)
        first += count
    del kinds['step']
    return {name: numbers for name, numbers in kinds.items() if numbers} | {'batch': range(first, first + 4)}


@jax.custom_vjp
def cudnn_stand_in(q: Array, k: Array, v: Array) -> Array:
    """Stands for cuDNN's attention, which asks the GPU while it is traced: it takes and makes the same arrays.

    It is lowered and never run.
    """
    return _cudnn_stand_in_fwd(q, k, v)[0]


def _cudnn_stand_in_fwd(q, k, v):
    n, m, heads, _ = q.shape
    results = (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((n, heads, m), jnp.float32))
    y, normalizers = jax.ffi.ffi_call('__cudnn$fmhaStandIn', results)(q, k, v)
    return y, (q, k, v, y, normalizers)


def _cudnn_stand_in_bwd(residuals, dy):
    like = jax.ShapeDtypeStruct(dy.shape, dy.dtype)
    return tuple(jax.ffi.ffi_call('__cudnn$fmhaStandInBackward', (like, like, like))(*residuals, dy))


cudnn_stand_in.defvjp(_cudnn_stand_in_fwd, _cudnn_stand_in_bwd)


def _with_kernel(network: Any, kernel: str) -> Any:
    """Returns the network with another kernel, in the process that compiles for a device and does nothing else."""
    attention.KERNELS['cudnn'] = cudnn_stand_in
    return network.clone(attention_kernel=kernel)


def lower_train(devices: Sequence[jax.Device], values: dict[str, Any], spec: DataSpec, batch: int, kernel: str) -> Any:
    """Lowers the training step of a config's values for devices."""
    config = ConfigDict(values)
    network, tx = _with_kernel(build_trained(config, spec), kernel), make_optimizer(config)
    state = abstract_state(config, abstract_params(build_trained(config, spec), spec))
    share = batch // len(devices)
    inputs = {
        'image': jax.ShapeDtypeStruct((share, *spec.image_shape), jnp.uint8),
        'label': jax.ShapeDtypeStruct((share,), jnp.int32),
        'index': jax.ShapeDtypeStruct((share,), jnp.int32),
    }
    arguments = parallel.per_device_shapes((state, inputs, jax.ShapeDtypeStruct((), jnp.int32)), len(devices))
    return step_of(config, network, tx, devices).lower(*arguments)


def lower_sample(devices: Sequence[jax.Device], values: dict[str, Any], spec: DataSpec, batch: int, kernel: str) -> Any:
    """Lowers the sampler of a config's values, as --mode=sample runs it, for devices."""
    config = ConfigDict(values)
    network = _with_kernel(build_network(config, spec), kernel)
    generator = Generator(
        {'model': binder(network, config.diffusion.prediction)},
        read_sampler(config),
        image_shape=spec.image_shape,
        batch_size=batch,
        rounding=config.sampling.rounding,
        devices=devices,
    )
    return generator.lower({'model': abstract_params(build_network(config, spec), spec)})


def lower_features(
    devices: Sequence[jax.Device], values: dict[str, Any], spec: DataSpec, batch: int, kernel: str
) -> Any:
    """Lowers Inception for the images of a data set, for devices."""
    images = jax.ShapeDtypeStruct((batch // len(devices), *spec.image_shape), jnp.uint8)
    run = parallel.pmap(
        lambda params, images: Inception().apply({'params': params}, images), num_args=2, devices=devices
    )
    return run.lower(*parallel.per_device_shapes((inception_shapes(), images), len(devices)))


LOWER = {'train': lower_train, 'sample': lower_sample, 'features': lower_features}
