"""Counts of the arithmetic in a network, which are read off its traced program without a device or data."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cfg.models.unet import UNet


def matmul_flops(fn: Any, *args: Any) -> float:
    """Counts 2 x multiply-adds of all convolutions and matrix products in one call of `fn`.

    The usual convention for utilisation: element-wise work is left out, and so are the products with the zeros that
    pad an image's edge only in the sense that they count as if they were done.

    Args:
      args: arrays or shapes (jax.ShapeDtypeStruct) that `fn` takes.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == 'dot_general':
            (contracted, _), _ = params['dimension_numbers']
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == 'conv_general_dilated':
            kernel, output = equation.invars[1].aval, equation.outvars[0].aval
            features = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
            total += 2.0 * output.size * kernel.size / features
        elif name == 'cond':
            total += max(_count(branch.jaxpr) for branch in params['branches'])
        elif name == 'scan':
            total += params['length'] * _count(params['jaxpr'].jaxpr)
        else:
            for value in params.values():
                inner = getattr(value, 'jaxpr', value)
                if hasattr(inner, 'eqns'):
                    total += _count(inner)
    return total


def forward_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Counts the FLOP of a UNet or EncoderUNet for one image [H, W, C]; training takes three times as many an image.

    Convolutions count in full on every machine, also where `cfg.models.winograd` saves some of their products.
    """
    return _network_flops(network, image_shape, '__call__', num_labels=1)


def guided_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Counts the FLOP of the predictions for two labels of one image (`UNet.both`), as `forward_flops` does.

    It is twice as much, or less where the two share a part of the network.
    """
    return _network_flops(network, image_shape, 'both', num_labels=2)


@functools.lru_cache(maxsize=8)  # a large network takes seconds to trace
def _network_flops(network: nn.Module, image_shape: tuple[int, int, int], method: str, *, num_labels: int) -> float:
    network = network.clone(dtype=jnp.bfloat16)  # for which nothing is saved
    z = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    label = [jax.ShapeDtypeStruct((1,), jnp.int32)] if isinstance(network, UNet) else []
    inputs = (z, jax.ShapeDtypeStruct((1,), jnp.float32))
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs, *label)
    return matmul_flops(functools.partial(network.apply, method=method), params, *inputs, *label * num_labels)


def gradient_flops(logits_fn: Any, params: Any, image_shape: tuple[int, int, int]) -> float:
    """Counts the FLOP of a classifier for one image [H, W, C], forth and back to the image.

    Args:
      logits_fn: (params, z [1, H, W, C], logsnr [1]) -> logits [1, K].
      params: arrays or their shapes.
    """
    z = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    logsnr = jax.ShapeDtypeStruct((1,), jnp.float32)
    gradient = jax.grad(lambda z, logsnr, params: jnp.sum(jax.nn.log_softmax(logits_fn(params, z, logsnr))[:, 0]))
    return matmul_flops(gradient, z, logsnr, params)
