"""Counts of the arithmetic in a network, from its traced program: no device and no data."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def matmul_flops(fn: Any, *args: Any) -> float:
    """2 x multiply-adds of all convolutions and matrix products in one call of `fn`.

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
    """Of one evaluation of a UNet on one image [H, W, C]; a training step takes three times as many an image.

    Convolutions count in full on every machine, also where `cfg.models.winograd` saves some of their products.
    """
    network = network.clone(dtype=jnp.bfloat16)  # for which nothing is saved
    z = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    logsnr, labels = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(network.init, jax.random.key(0), z, logsnr, labels)
    return matmul_flops(network.apply, params, z, logsnr, labels)
