"""Classifiers: the small feature network of data sets that Inception is not meant for, and ADM's of noisy images."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.models.layers import Conv, Dense, GroupNorm
from cfg.models.time import logsnr_to_time
from cfg.models.unet import AttentionBlock, ResBlock, block_keys, embed_time

Array = jax.Array


class SmallClassifier(nn.Module):
    """A convolutional classifier of small images, and its features.

    Attributes:
      num_classes: of the output.
      width: number of features.
      channels: of the convolutions of each resolution; the image is halved after each.
      dropout: rate between features and output in training.
    """

    num_classes: int
    width: int
    channels: tuple[int, ...] = (32, 64)
    dropout: float = 0.3

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[Array, Array]:
        """[N, H, W, C] in [-1, 1] -> (features [N, width], logits [N, num_classes]); rng 'dropout' in training."""
        h = images
        for i, channels in enumerate(self.channels):
            for j in range(2):
                h = nn.Conv(channels, (3, 3), name=f'conv_{i}_{j}')(h)
                h = nn.relu(nn.GroupNorm(num_groups=8, name=f'norm_{i}_{j}')(h))
            h = nn.avg_pool(h, (2, 2), (2, 2))
        features = nn.Dense(self.width, name='features')(h.reshape(len(h), -1))
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(features))
        return features, nn.Dense(self.num_classes, name='logits')(h)


class AttentionPool(nn.Module):
    """One vector from a feature map: what its mean sees when it attends to every position (as in CLIP).

    Float32 throughout.

    Attributes:
      features: of the output.
      head_channels: channels of an attention head; must divide the input's channels.
    """

    features: int
    head_channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, H, W, C] -> [N, features]."""
        n, height, width, c = x.shape
        x = x.astype(jnp.float32).reshape(n, height * width, c)
        tokens = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        init = nn.initializers.normal(c**-0.5)
        tokens = tokens + self.param('positions', init, (height * width + 1, c))
        qkv = Dense(3 * c, jnp.float32, name='qkv')(tokens)
        heads = c // self.head_channels
        q, k, v = jnp.split(qkv.reshape(n, -1, 3 * heads, self.head_channels), 3, axis=2)
        h = jax.nn.dot_product_attention(q[:, :1], k, v).reshape(n, c)
        return Dense(self.features, jnp.float32, name='proj')(h)


class EncoderUNet(nn.Module):
    """ADM's classifier of noisy images: the way down and the middle of the UNet, then an attention pool.

    Dhariwal & Nichol 2021, arXiv 2105.05233, Sec. 4. There is no class embedding.

    Attributes:
      num_classes: of the output.
      channels, channel_mult, num_res_blocks, attention_resolutions, dropout, norm_groups, dtype, time_fn,
        remat: as in `UNet`.
      head_channels: channels of a head, in the attention blocks and in the pool.
    """

    num_classes: int
    channels: int
    channel_mult: Sequence[float]
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    head_channels: int = 64
    dropout: float = 0.0
    norm_groups: int = 32
    dtype: Any = jnp.float32
    time_fn: Callable[[Array], Array] = logsnr_to_time
    remat: bool = False

    @nn.compact
    def __call__(self, z: Array, logsnr: Array, dropout_keys: Array | None = None) -> Array:
        """Classifies noisy images.

        Args:
          z: [N, H, W, C]; H and W divisible by 2^(levels - 1).
          logsnr: [] or [N].
          dropout_keys: [N] typed PRNG keys, one an example, or None for no dropout.

        Returns:
          logits [N, num_classes] float32.
        """
        remat = nn.remat if self.remat else lambda block: block
        block_index = 0

        def res_block(h, channels, name, resample=''):
            nonlocal block_index
            keys = block_keys(dropout_keys if self.dropout else None, block_index)
            block_index += 1
            block = remat(ResBlock)(channels, self.dropout, self.norm_groups, self.dtype, resample, name=name)
            return block(h, emb, keys)

        def attention(h, name):
            heads = h.shape[-1] // self.head_channels
            return remat(AttentionBlock)(heads, self.norm_groups, self.dtype, name=name)(h)

        time = self.time_fn(jnp.broadcast_to(logsnr, z.shape[:1]))
        layers = [Dense(4 * self.channels, jnp.float32, name=f'time_{i}') for i in range(2)]
        emb = embed_time(time, self.channels, *layers)

        widths = [int(self.channels * mult) for mult in self.channel_mult]
        h = Conv(widths[0], 3, self.dtype, name='conv_in')(z)
        for level, width in enumerate(widths):
            for i in range(self.num_res_blocks):
                h = res_block(h, width, f'down_{level}_{i}')
                if h.shape[1] in self.attention_resolutions:
                    h = attention(h, f'down_{level}_{i}_attention')
            if level < len(widths) - 1:
                h = res_block(h, width, f'down_{level}_resample', 'down')

        h = res_block(h, widths[-1], 'middle_0')
        h = attention(h, 'middle_attention')
        h = res_block(h, widths[-1], 'middle_1')

        h = GroupNorm(self.norm_groups, silu=True, dtype=jnp.float32, name='norm_out')(h)
        return AttentionPool(self.num_classes, self.head_channels, name='pool')(h)
