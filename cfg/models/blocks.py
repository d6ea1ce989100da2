"""The blocks of ADM's networks (Dhariwal & Nichol 2021, arXiv 2105.05233), and the encoder that both of them have.

The blocks are residual blocks with scale-shift GroupNorm, BigGAN's up- and downsampling blocks, and self-attention at
chosen resolutions.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.diffusion.denoiser import Perturbation
from cfg.models.attention import attention, blur
from cfg.models.layers import Conv, Dense, GroupNorm, downsample, upsample
from cfg.models.time import logsnr_to_time, sinusoidal_embedding

Array = jax.Array


def dropout(x: Array, keys: Array, rate: float) -> Array:
    """Applies inverted dropout with one key an example, so that a mask does not depend on the batch around it.

    Args:
      x: [N, ...].
      keys: [N] typed PRNG keys.
      rate: the probability of a zero, in [0, 1).
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


class ResBlock(nn.Module):
    """Applies norm, SiLU, resampling, conv, scale-shift norm, SiLU, dropout, zero-initialised conv, and a skip.

    Attributes:
      channels: of the output.
      dropout: rate while dropout keys are given.
      norm_groups: of both norms.
      dtype: of the computation.
      resample: '', 'up' or 'down'.
    """

    channels: int
    dropout: float
    norm_groups: int
    dtype: Any
    resample: str = ''

    @nn.compact
    def __call__(self, x: Array, emb: Array, dropout_keys: Array | None) -> Array:
        """Takes x [N, H, W, C], emb [N, E] and keys [N], and returns [N, H', W', channels] in `dtype`."""
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
    """Applies multi-head self-attention over all positions, a zero-initialised projection, and a skip around them.

    Attributes:
      num_heads: must divide the channels.
      norm_groups: of the norm before it.
      dtype: of the computation.
      kernel: see `cfg.models.attention`.
    """

    num_heads: int
    norm_groups: int
    dtype: Any
    kernel: str = 'xla'

    @nn.compact
    def __call__(self, x: Array, change: Perturbation | None = None) -> Array:
        """Takes and returns [N, H, W, C]; `change` makes the attention worse."""
        n, height, width, c = x.shape
        h = GroupNorm(self.norm_groups, silu=False, dtype=self.dtype, name='norm')(x).reshape(n, height * width, c)
        qkv = Dense(3 * c, self.dtype, name='qkv')(h)
        # Split before the heads are told apart: a TPU pads arrays whose last side is a head's.
        q, k, v = jnp.split(qkv, 3, axis=-1)
        if change is not None and change.sigma is None:
            h = v
        else:
            q = q if change is None else blur(q.reshape(x.shape), sigma=change.sigma)
            q, k, v = (of.reshape(n, -1, self.num_heads, c // self.num_heads) for of in (q, k, v))
            h = attention(q, k, v, kernel=self.kernel).reshape(n, height * width, c)
        return x + Dense(c, self.dtype, zero=True, name='proj')(h).reshape(x.shape)


class Place(NamedTuple):
    """Says where a residual block stands in the network.

    Attributes:
      number: in the order that the blocks run; the block's dropout masks follow from it.
      name: of its parameters.
      channels: of its output.
      resample: '', 'up' or 'down'.
    """

    number: int
    name: str
    channels: int
    resample: str


def places(widths: Sequence[int], num_res_blocks: int) -> tuple[list[Place], list[Place], list[Place]]:
    """Lists the residual blocks of the way down, the middle and the way up.

    Args:
      widths: channels of each resolution, from the finest.
      num_res_blocks: blocks a resolution on the way down; the way up has one more.
    """
    number = itertools.count()
    down, up = [], []
    for level, width in enumerate(widths):
        down += [Place(next(number), f'down_{level}_{i}', width, '') for i in range(num_res_blocks)]
        if level < len(widths) - 1:
            down.append(Place(next(number), f'down_{level}_resample', width, 'down'))
    middle = [Place(next(number), f'middle_{i}', widths[-1], '') for i in range(2)]
    for level, width in reversed(list(enumerate(widths))):
        up += [Place(next(number), f'up_{level}_{i}', width, '') for i in range(num_res_blocks + 1)]
        if level > 0:
            up.append(Place(next(number), f'up_{level}_resample', width, 'up'))
    return down, middle, up


class Encoder(nn.Module, kw_only=True):
    """Holds what ADM's networks share: the embedding of the noise level, the way down and the middle.

    Attributes:
      channels: the base width; level i has channels * channel_mult[i].
      channel_mult: one factor a resolution, from the finest.
      num_res_blocks: residual blocks a level on the way down (one more on the way up).
      attention_resolutions: heights of feature maps that get self-attention.
      attention_kernel: that computes it, see `cfg.models.attention`.
      num_heads, head_channels: exactly one is positive: the number of heads, or the channels a head.
      dropout: rate inside residual blocks while dropout keys are given.
      norm_groups: groups of every GroupNorm (32 in ADM); must divide every level's channels.
      dtype: compute type, float32 or bfloat16; parameters are float32.
      time_fn: logsnr -> the number that is embedded, of the same shape; see `cfg.models.time`.
      remat: whether the backward pass computes each block again from its input instead of keeping what is inside.
      perturbation: makes self-attention worse, to guide with; None for the network that is trained.
    """

    channels: int
    channel_mult: Sequence[float]
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    attention_kernel: str = 'xla'
    num_heads: int = 0
    head_channels: int = 64
    dropout: float = 0.0
    norm_groups: int = 32
    dtype: Any = jnp.float32
    time_fn: Callable[[Array], Array] = logsnr_to_time
    remat: bool = False
    perturbation: Perturbation | None = None

    def setup(self) -> None:
        """Makes the layers, under the names of their parameters; those that are not called have none."""
        # A perturbed network has no backward pass, and what is said to its blocks is no array.
        remat = nn.remat if self.remat and self.perturbation is None else lambda block: block

        def attention_block(name, channels):
            heads = self.num_heads or channels // self.head_channels
            return remat(AttentionBlock)(heads, self.norm_groups, self.dtype, self.attention_kernel, name=name)

        # The embeddings and the last norm are float32 whatever the compute type: guidance and the step from eps to x
        # amplify rounding at the output.
        self.time_0 = Dense(4 * self.channels, jnp.float32)
        self.time_1 = Dense(4 * self.channels, jnp.float32)
        down, middle, up = self.ways()
        self.conv_in = Conv(down[0].channels, 3, self.dtype)
        self.blocks = {
            place.name: remat(ResBlock)(
                place.channels, self.dropout, self.norm_groups, self.dtype, place.resample, name=place.name
            )
            for place in (*down, *middle, *up)
        }
        self.attention = {
            place.name: attention_block(f'{place.name}_attention', place.channels)
            for place in (*down, *up)
            if not place.resample
        }
        self.middle_attention = attention_block('middle_attention', middle[0].channels)
        self.norm_out = GroupNorm(self.norm_groups, silu=True, dtype=jnp.float32)

    def embed_level(self, logsnr: Array, beside: Array | None = None) -> Array:
        """Embeds the noise level, and what is told beside it: [N] and [N, channels] -> [N, 4 channels] float32."""
        told = sinusoidal_embedding(self.time_fn(logsnr), self.channels)
        return self.time_1(nn.silu(self.time_0(told if beside is None else told + beside)))

    def encode(self, z: Array, emb: Array, dropout_keys: Array | None = None) -> tuple[Array, list[Array]]:
        """Runs the way down and the middle.

        Args:
          z: [N, H, W, C]; H and W divisible by 2^(levels - 1).
          emb: [N, 4 channels], what the blocks are told.
          dropout_keys: [N] typed PRNG keys, one an example, or None for no dropout.

        Returns:
          The coarsest feature map, and the map after each step on the way down, the finest first.
        """
        down, middle, _ = self.ways()
        changes = self.changes(z.shape[1])
        skips = [self.conv_in(z)]
        for place in down:
            skips.append(self.run(place, skips[-1], emb, dropout_keys, changes.get(place.name)))
        h = self.run(middle[0], skips[-1], emb, dropout_keys)
        h = self.run(middle[1], self.middle_attention(h, changes.get('middle')), emb, dropout_keys)
        return h, skips

    @nn.nowrap
    def changes(self, height: int) -> dict[str, Perturbation]:
        """Returns the perturbation of the attention of each place that has one, 'middle' among them.

        Args:
          height: of the images.
        """
        if self.perturbation is None:
            return {}
        attending = []
        for place in self.ways()[0]:
            if place.resample:
                height //= 2
            elif height in self.attention_resolutions:
                attending.append(place.name)
        return dict.fromkeys([*attending, 'middle'][-self.perturbation.blocks :], self.perturbation)

    @nn.nowrap
    def ways(self) -> tuple[list[Place], list[Place], list[Place]]:
        """Lists the residual blocks of the way down, the middle and the way up."""
        return places([int(self.channels * mult) for mult in self.channel_mult], self.num_res_blocks)

    @nn.nowrap
    def run(
        self, place: Place, h: Array, emb: Array, dropout_keys: Array | None, change: Perturbation | None = None
    ) -> Array:
        """Runs the residual block of a place, and self-attention where the map has one of the heights that attend.

        After resampling, and in the middle, there is none here.
        """
        keys = None
        if self.dropout and dropout_keys is not None:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, place.number))(dropout_keys)
        h = self.blocks[place.name](h, emb, keys)
        attends = place.name in self.attention and h.shape[1] in self.attention_resolutions
        return self.attention[place.name](h, change) if attends else h
