"""The UNet of ADM (Dhariwal & Nichol 2021, arXiv 2105.05233), conditioned on logsnr and a class label.

Residual blocks with scale-shift GroupNorm, BigGAN up- and downsampling blocks, self-attention at chosen
resolutions. The class embedding has `num_classes + 1` rows; the last is the null label, and that row is all
that classifier-free guidance adds to the network.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.models.layers import Conv, Dense, GroupNorm, attention, downsample, upsample
from cfg.models.time import logsnr_to_time, sinusoidal_embedding

Array = jax.Array


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
        h = GroupNorm(self.norm_groups, silu=True, dtype=self.dtype, name='norm_in')(x)
        if self.resample:
            change = upsample if self.resample == 'up' else downsample
            h, x = change(h), change(x)
        h = Conv(self.channels, 3, self.dtype, name='conv_in')(h)

        scale, shift = jnp.split(Dense(2 * self.channels, self.dtype, name='emb')(nn.silu(emb)), 2, axis=-1)
        h = GroupNorm(self.norm_groups, silu=True, dtype=self.dtype, name='norm_out')(h, scale, shift)
        if self.dropout and dropout_keys is not None:
            h = dropout(h, dropout_keys, self.dropout)
        h = Conv(self.channels, 3, self.dtype, zero=True, name='conv_out')(h)

        if x.shape[-1] != self.channels:
            x = Conv(self.channels, 1, self.dtype, name='skip')(x)
        return x + h


class AttentionBlock(nn.Module):
    """Multi-head self-attention over all positions, with a zero-initialised projection, plus the skip."""

    num_heads: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, c = x.shape
        h = GroupNorm(self.norm_groups, silu=False, dtype=self.dtype, name='norm')(x).reshape(n, height * width, c)
        qkv = Dense(3 * c, self.dtype, name='qkv')(h)
        q, k, v = jnp.split(qkv.reshape(n, height * width, 3 * self.num_heads, c // self.num_heads), 3, axis=2)
        h = attention(q, k, v).reshape(n, height * width, c)
        return x + Dense(c, self.dtype, zero=True, name='proj')(h).reshape(x.shape)


def block_keys(keys: Array | None, index: int) -> Array | None:
    """The dropout keys of residual block number `index` from those of the examples, [N]; None for no dropout."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def embed_time(time: Array, channels: int) -> Array:
    """time [N] -> [N, 4 channels] float32, through the two layers `time_0`, `time_1` of the module that calls it."""
    emb = sinusoidal_embedding(time, channels)
    emb = nn.silu(Dense(4 * channels, jnp.float32, name='time_0')(emb))
    return Dense(4 * channels, jnp.float32, name='time_1')(emb)


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
      time_fn: logsnr -> the number that is embedded, of the same shape; see `cfg.models.time`.
      remat: whether the backward pass computes each block again from its input instead of keeping what is inside.
    """

    out_channels: int
    num_classes: int
    channels: int
    channel_mult: Sequence[float]
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    num_heads: int = 0
    head_channels: int = 64
    dropout: float = 0.0
    norm_groups: int = 32
    dtype: Any = jnp.float32
    time_fn: Callable[[Array], Array] = logsnr_to_time
    remat: bool = False

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
        remat = nn.remat if self.remat else lambda block: block
        block_index = 0

        def res_block(h, channels, name, resample=''):
            nonlocal block_index
            keys = block_keys(dropout_keys if self.dropout else None, block_index)
            block_index += 1
            block = remat(ResBlock)(channels, self.dropout, self.norm_groups, self.dtype, resample, name=name)
            return block(h, emb, keys)

        def attend(h, name):
            heads = self.num_heads or h.shape[-1] // self.head_channels
            return remat(AttentionBlock)(heads, self.norm_groups, self.dtype, name=name)(h)

        emb_dim = 4 * self.channels
        logsnr = jnp.broadcast_to(logsnr, labels.shape)
        # The embeddings and the last convolution are float32 whatever the compute type: guidance and the step from eps
        # to x amplify rounding at the output.
        emb = embed_time(self.time_fn(logsnr), self.channels)
        classes = nn.Embed(self.num_classes + 1, emb_dim, embedding_init=nn.initializers.normal(1.0), name='classes')
        emb = emb + classes(labels)

        last = len(self.channel_mult) - 1
        h = Conv(int(self.channels * self.channel_mult[0]), 3, self.dtype, name='conv_in')(z)
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            for i in range(self.num_res_blocks):
                h = res_block(h, int(self.channels * mult), f'down_{level}_{i}')
                if h.shape[1] in self.attention_resolutions:
                    h = attend(h, f'down_{level}_{i}_attention')
                skips.append(h)
            if level < last:
                h = res_block(h, h.shape[-1], f'down_{level}_resample', 'down')
                skips.append(h)

        h = res_block(h, h.shape[-1], 'middle_0')
        h = attend(h, 'middle_attention')
        h = res_block(h, h.shape[-1], 'middle_1')

        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                h = res_block(jnp.concatenate([h, skips.pop()], axis=-1), int(self.channels * mult), f'up_{level}_{i}')
                if h.shape[1] in self.attention_resolutions:
                    h = attend(h, f'up_{level}_{i}_attention')
            if level > 0:
                h = res_block(h, h.shape[-1], f'up_{level}_resample', 'up')

        h = GroupNorm(self.norm_groups, silu=True, dtype=jnp.float32, name='norm_out')(h)
        return Conv(self.out_channels, 3, jnp.float32, zero=True, name='conv_out')(h)
