"""The UNet of ADM (Dhariwal & Nichol 2021, arXiv 2105.05233), conditioned on logsnr and a class label.

Residual blocks with scale-shift GroupNorm, BigGAN up- and downsampling blocks, self-attention at chosen
resolutions. The class embedding has `num_classes + 1` rows; the last is the null label, and that row is all
that classifier-free guidance adds to the network.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

# ADM's weights start from PyTorch's defaults: uniform with variance 1 / (3 fan_in), biases likewise.
_kernel_init = nn.initializers.variance_scaling(1.0 / 3.0, 'fan_in', 'uniform')


def _bias_init(fan_in: int):
    bound = 1.0 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _dense(features: int, fan_in: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=_kernel_init, bias_init=_bias_init(fan_in), name=name)


def _conv(features: int, width: int, fan_in: int, dtype: Any, name: str, *, zero: bool = False) -> nn.Conv:
    """A convolution of odd width with 'same' padding; `zero` starts it at 0 ("zero-initialised output")."""
    kernel_init = nn.initializers.zeros if zero else _kernel_init
    bias_init = nn.initializers.zeros if zero else _bias_init(fan_in * width * width)
    return nn.Conv(
        features, (width, width), padding='SAME', dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, name=name
    )


def _norm(groups: int, name: str) -> nn.GroupNorm:
    """GroupNorm whose statistics and result are float32 whatever the compute type."""
    return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=jnp.float32, name=name)


def logsnr_to_time(logsnr: Array) -> Array:
    """The network's time input, arctan(exp(-logsnr / 2)) * 2 / pi * 1000, in [0, 1000].

    The sinusoidal embedding needs a bounded number: this is the time u of the untruncated schedule (0 is
    data), on the scale of the step numbers that ADM's embedding was designed for.
    """
    return jnp.arctan(jnp.exp(-0.5 * logsnr)) * (2000.0 / math.pi)


def sinusoidal_embedding(time: Array, dim: int, max_period: float = 10000.0) -> Array:
    """[cos(t f_i), sin(t f_i)] with f_i = max_period^(-i / (dim / 2)); time [N] -> [N, dim]."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = time.astype(jnp.float32)[:, None] * frequencies[None]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def downsample(x: Array) -> Array:
    """The mean of each 2x2 block, [N, H, W, C] -> [N, H/2, W/2, C]."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x: Array) -> Array:
    """Each pixel twice along both axes, [N, H, W, C] -> [N, 2H, 2W, C]."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def dropout(x: Array, keys: Array, rate: float) -> Array:
    """Inverted dropout with one key an example, so that a mask does not depend on the batch around it.

    Args:
      x: [N, ...].
      keys: [N] typed PRNG keys.
      rate: the probability of a zero, in [0, 1).
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


class ResBlock(nn.Module):
    """norm, SiLU, [resample], conv, scale-shift norm, SiLU, dropout, zero-initialised conv, plus the skip."""

    channels: int
    dropout: float
    norm_groups: int
    dtype: Any
    resample: str = ''  # '', 'up' or 'down'

    @nn.compact
    def __call__(self, x: Array, emb: Array, dropout_keys: Array | None) -> Array:
        fan_in = x.shape[-1]
        h = nn.silu(_norm(self.norm_groups, 'norm_in')(x)).astype(self.dtype)
        if self.resample:
            change = upsample if self.resample == 'up' else downsample
            h, x = change(h), change(x)
        h = _conv(self.channels, 3, fan_in, self.dtype, 'conv_in')(h)

        emb = _dense(2 * self.channels, emb.shape[-1], self.dtype, 'emb')(nn.silu(emb))
        scale, shift = jnp.split(emb[:, None, None, :], 2, axis=-1)
        h = _norm(self.norm_groups, 'norm_out')(h) * (1.0 + scale) + shift
        h = nn.silu(h).astype(self.dtype)
        if self.dropout and dropout_keys is not None:
            h = dropout(h, dropout_keys, self.dropout)
        h = _conv(self.channels, 3, self.channels, self.dtype, 'conv_out', zero=True)(h)

        if fan_in != self.channels:
            x = _conv(self.channels, 1, fan_in, self.dtype, 'skip')(x)
        return x + h


class AttentionBlock(nn.Module):
    """Multi-head self-attention over all positions, with a zero-initialised projection, plus the skip."""

    num_heads: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, c = x.shape
        h = _norm(self.norm_groups, 'norm')(x).astype(self.dtype).reshape(n, height * width, c)
        qkv = _dense(3 * c, c, self.dtype, 'qkv')(h)
        q, k, v = jnp.split(qkv.reshape(n, height * width, 3 * self.num_heads, c // self.num_heads), 3, axis=2)
        h = jax.nn.dot_product_attention(q, k, v).reshape(n, height * width, c)
        h = nn.Dense(
            c, dtype=self.dtype, kernel_init=nn.initializers.zeros, bias_init=nn.initializers.zeros, name='proj'
        )(h)
        return x + h.reshape(x.shape)


class UNet(nn.Module):
    """(z, logsnr, labels) -> prediction, shaped like z unless `out_channels` differs.

    Attributes:
      out_channels: of the prediction (3 for RGB: learned variances are not part of the method).
      num_classes: the embedding has one more row, for the null label.
      channels: the base width; level i has channels * channel_mult[i].
      channel_mult: one factor a resolution, from the finest.
      num_res_blocks: residual blocks a level on the way down (one more on the way up).
      attention_resolutions: heights of feature maps that get self-attention.
      num_heads, head_channels: exactly one is positive: the number of heads, or the channels a head.
      dropout: rate inside residual blocks while dropout keys are given.
      norm_groups: groups of every GroupNorm (32 in ADM); must divide every level's channels.
      dtype: compute type, float32 or bfloat16; parameters are float32.
    """

    out_channels: int
    num_classes: int
    channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    num_heads: int = 0
    head_channels: int = 64
    dropout: float = 0.0
    norm_groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, logsnr: Array, labels: Array, dropout_keys: Array | None = None) -> Array:
        """Predicts from noisy images.

        Args:
          z: [N, H, W, C]; H and W divisible by 2^(levels - 1).
          logsnr: [] or [N].
          labels: int32 [N] in [0, num_classes]; num_classes is the null label.
          dropout_keys: [N] typed PRNG keys, one an example, or None for no dropout.

        Returns:
          [N, H, W, out_channels] float32.
        """
        block_index = 0

        def res_block(h, channels, name, resample=''):
            nonlocal block_index
            keys = None
            if self.dropout and dropout_keys is not None:
                index = block_index
                keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(dropout_keys)
            block_index += 1
            block = ResBlock(channels, self.dropout, self.norm_groups, self.dtype, resample, name=name)
            return block(h, emb, keys)

        def attention(h, name):
            heads = self.num_heads or h.shape[-1] // self.head_channels
            return AttentionBlock(heads, self.norm_groups, self.dtype, name=name)(h)

        emb_dim = 4 * self.channels
        logsnr = jnp.broadcast_to(logsnr, labels.shape)
        emb = sinusoidal_embedding(logsnr_to_time(logsnr), self.channels)
        # The embeddings and the last convolution are float32 whatever the compute type: guidance and the step from eps
        # to x amplify rounding at the output.
        emb = nn.silu(_dense(emb_dim, self.channels, jnp.float32, 'time_0')(emb))
        emb = _dense(emb_dim, emb_dim, jnp.float32, 'time_1')(emb)
        classes = nn.Embed(self.num_classes + 1, emb_dim, embedding_init=nn.initializers.normal(1.0), name='classes')
        emb = emb + classes(labels)

        last = len(self.channel_mult) - 1
        h = _conv(self.channels * self.channel_mult[0], 3, z.shape[-1], self.dtype, 'conv_in')(z.astype(self.dtype))
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            for i in range(self.num_res_blocks):
                h = res_block(h, self.channels * mult, f'down_{level}_{i}')
                if h.shape[1] in self.attention_resolutions:
                    h = attention(h, f'down_{level}_{i}_attention')
                skips.append(h)
            if level < last:
                h = res_block(h, h.shape[-1], f'down_{level}_resample', 'down')
                skips.append(h)

        h = res_block(h, h.shape[-1], 'middle_0')
        h = attention(h, 'middle_attention')
        h = res_block(h, h.shape[-1], 'middle_1')

        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                h = res_block(jnp.concatenate([h, skips.pop()], axis=-1), self.channels * mult, f'up_{level}_{i}')
                if h.shape[1] in self.attention_resolutions:
                    h = attention(h, f'up_{level}_{i}_attention')
            if level > 0:
                h = res_block(h, h.shape[-1], f'up_{level}_resample', 'up')

        h = nn.silu(_norm(self.norm_groups, 'norm_out')(h))
        return _conv(self.out_channels, 3, h.shape[-1], jnp.float32, 'conv_out', zero=True)(h)
