"""The layers that ADM's networks are made of, written so that XLA runs them fast on every platform.

Group norm keeps its input and two numbers a group for the backward pass, and computes the rest again; sums are
float32's whatever the network computes in. Everything else is left to XLA.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.models import winograd

Array = jax.Array

# ADM's weights start from PyTorch's defaults: uniform with variance 1 / (3 fan_in), biases likewise.
_kernel_init = nn.initializers.variance_scaling(1.0 / 3.0, 'fan_in', 'uniform')


def _bias_init(fan_in: int) -> Callable:
    bound = 1.0 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """Returns x + bias for x [..., C] and bias [C]."""
    return x + bias.astype(x.dtype)


def _add_bias_fwd(x, bias):
    return add_bias(x, bias), None


def _add_bias_bwd(_, dy):
    return dy, jnp.sum(dy.astype(jnp.float32).reshape(-1, dy.shape[-1]), axis=0)


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize(x: Array, scale: Array, shift: Array, groups: int, silu: bool, dtype: Any) -> Array:
    """Normalises groups, with one scale and one shift an example and channel, and SiLU after it if wanted.

    y = scale (x - mean) / sqrt(var + 1e-5) + shift, with mean and variance over the positions and channels of a group;
    all in float32. The backward pass keeps x and the statistics, and computes everything else again.

    Args:
      x: [N, H, W, C].
      scale, shift: [N, C] float32.
      groups: number of groups; divides C.
      silu: whether the result is y sigmoid(y).
      dtype: of the result.
    """
    return _normalize_fwd(x, scale, shift, groups, silu, dtype)[0]


def _group_means(sums: Array, groups: int, positions: int) -> Array:
    """Turns sums over positions [N, C] into the mean of each group, at each of its channels [N, C]."""
    n, c = sums.shape
    means = sums.reshape(n, groups, c // groups).sum(axis=-1, keepdims=True) / (positions * (c // groups))
    return jnp.broadcast_to(means, (n, groups, c // groups)).reshape(n, c)


def _moments(h: Array, groups: int) -> tuple[Array, Array]:
    """Returns the mean and the variance of each group of h [N, M, C], at each of its channels: both [N, C]."""
    means = functools.partial(_group_means, groups=groups, positions=h.shape[1])
    mean = means(h.sum(axis=1))
    return mean, jnp.maximum(means(jnp.square(h).sum(axis=1)) - jnp.square(mean), 0.0)


def _positions(x: Array) -> Array:
    """Flattens [N, H, W, C] to [N, H W, C], in float32."""
    return x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])


def _scaled(h: Array, scale: Array, shift: Array, mean: Array, rstd: Array) -> Array:
    """Returns scale (h - mean) rstd + shift for h [N, M, C], the others being [N, C]."""
    return h * (scale * rstd)[:, None] + (shift - scale * rstd * mean)[:, None]


def _normalize_fwd(x, scale, shift, groups, silu, dtype):
    h = _positions(x)
    mean, var = _moments(h, groups)
    rstd = jax.lax.rsqrt(var + 1e-5)
    y = _scaled(h, scale, shift, mean, rstd)
    y = nn.silu(y) if silu else y
    return y.reshape(x.shape).astype(dtype), (x, scale, shift, mean, rstd)


def _normalize_bwd(groups, silu, dtype, residuals, dy):
    x, scale, shift, mean, rstd = residuals
    h, dy = _positions(x), _positions(dy)
    means = functools.partial(_group_means, groups=groups, positions=h.shape[1])
    if silu:
        y = _scaled(h, scale, shift, mean, rstd)
        gate = jax.nn.sigmoid(y)
        dy = dy * (gate * (1.0 + y * (1.0 - gate)))
    dshift = dy.sum(axis=1)
    dscale = (dy * (h - mean[:, None]) * rstd[:, None]).sum(axis=1)
    # d/dx of (x - mean) rstd: what the mean and the variance pass on is the same for all of a group.
    along_x = jnp.square(rstd) * means(scale * dscale)
    constant = mean * along_x - rstd * means(scale * dshift)
    dx = dy * (scale * rstd)[:, None] - h * along_x[:, None] + constant[:, None]
    return dx.reshape(x.shape).astype(x.dtype), dscale, dshift


normalize.defvjp(_normalize_fwd, _normalize_bwd)


class GroupNorm(nn.Module):
    """A group norm with SiLU after it if wanted; statistics are float32, the result is of `dtype`."""

    num_groups: int
    silu: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
        """Normalises x [N, H, W, C]; with scale and shift [N, C] it is norm(x) (1 + scale) + shift before the SiLU."""
        c = x.shape[-1]
        gamma = jnp.broadcast_to(self.param('scale', nn.initializers.ones, (c,)), (len(x), c))
        beta = jnp.broadcast_to(self.param('bias', nn.initializers.zeros, (c,)), (len(x), c))
        if scale is not None:
            gamma, beta = gamma * (1.0 + scale), beta * (1.0 + scale) + shift
        return normalize(x, gamma, beta, self.num_groups, self.silu, self.dtype)


class Dense(nn.Module):
    """Computes x W + b over the last axis; `zero` starts it at 0 ("zero-initialised output")."""

    features: int
    dtype: Any
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., C] to [..., features]."""
        return _affine(self, x, (), jnp.matmul)


class Conv(nn.Module):
    """Convolves at odd width with 'same' padding; `zero` starts it at 0 ("zero-initialised output")."""

    features: int
    width: int
    dtype: Any
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H, W, features]."""
        return _affine(self, x, (self.width, self.width), _convolve)


def _affine(layer: Dense | Conv, x: Array, widths: tuple[int, ...], product: Callable[[Array, Array], Array]) -> Array:
    """Returns product(x, kernel [*widths, C, features]) + bias, computed in the layer's type."""
    shape = (*widths, x.shape[-1], layer.features)
    zeros = nn.initializers.zeros
    kernel_init, bias_init = (zeros, zeros) if layer.zero else (_kernel_init, _bias_init(math.prod(shape[:-1])))
    kernel = layer.param('kernel', kernel_init, shape).astype(layer.dtype)
    bias = layer.param('bias', bias_init, shape[-1:])
    return add_bias(product(x.astype(layer.dtype), kernel), bias)


def _convolve(x: Array, kernel: Array) -> Array:
    """Convolves by whatever is fastest here."""
    width, _, _, features = kernel.shape
    if width == 1:
        return x @ kernel[0, 0]
    return (winograd.conv if width == 3 and winograd.applies(x, features) else winograd.direct)(x, kernel)


@jax.custom_vjp
def downsample(x: Array) -> Array:
    """Takes the mean of each 2x2 block, [N, H, W, C] -> [N, H/2, W/2, C]."""
    return _block_sums(x) * 0.25


@jax.custom_vjp
def upsample(x: Array) -> Array:
    """Repeats each pixel along both axes, [N, H, W, C] -> [N, 2H, 2W, C]."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def _block_sums(x: Array) -> Array:
    """Sums each 2x2 block, by additions, which XLA fuses with what is around them as it does not fuse sums."""
    n, h, w, c = x.shape
    blocks = x.reshape(n, h // 2, 2, w // 2, 2, c)
    return (blocks[:, :, 0, :, 0] + blocks[:, :, 0, :, 1]) + (blocks[:, :, 1, :, 0] + blocks[:, :, 1, :, 1])


# Each is the other's transpose, up to the factor of the mean.
downsample.defvjp(lambda x: (downsample(x), None), lambda _, dy: (upsample(dy * 0.25),))
upsample.defvjp(lambda x: (upsample(x), None), lambda _, dy: (_block_sums(dy),))
