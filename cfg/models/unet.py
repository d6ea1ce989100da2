"""The UNet of ADM (Dhariwal & Nichol 2021, arXiv 2105.05233), conditioned on logsnr and a class label.

Residual blocks with scale-shift GroupNorm, BigGAN up- and downsampling blocks, self-attention at chosen
resolutions. The class embedding has `num_classes + 1` rows; the last is the null label, and that row is all
that classifier-free guidance adds to the network.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.models.layers import Conv, Dense, GroupNorm, attention, downsample, upsample
from cfg.models.time import logsnr_to_time, sinusoidal_embedding

Array = jax.Array

LABEL_IN = ('everywhere', 'decoder')  # which blocks of the network are told the label


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


def embed_time(time: Array, channels: int, first: Dense, second: Dense) -> Array:
    """time [N] -> [N, 4 channels] float32: the sinusoidal embedding of `channels` numbers, through two layers."""
    return second(nn.silu(first(sinusoidal_embedding(time, channels))))


class Place(NamedTuple):
    """Where a residual block stands in the network.

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
    """The residual blocks of the way down, the middle and the way up.

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


class UNet(nn.Module):
    """(z, logsnr, labels) -> prediction, shaped like z unless `out_channels` differs.

    The encoder is the way down and the middle, the decoder the way up.

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
      label_in: which blocks are told the label, 'everywhere' (ADM) or 'decoder': then predictions for several labels
        share one pass of the encoder, see `both`. The parameters are the same in number, names and shapes.
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
    label_in: str = 'everywhere'
    remat: bool = False

    def setup(self) -> None:
        """The layers, under the names of their parameters; only those that are called have any."""
        if self.label_in not in LABEL_IN:
            raise ValueError(f'label_in is one of {", ".join(LABEL_IN)}, not {self.label_in!r}')
        remat = nn.remat if self.remat else lambda block: block

        def attention(channels, name):
            heads = self.num_heads or channels // self.head_channels
            return remat(AttentionBlock)(heads, self.norm_groups, self.dtype, name=name)

        # The embeddings and the last convolution are float32 whatever the compute type: guidance and the step from eps
        # to x amplify rounding at the output.
        emb_dim = 4 * self.channels
        self.time_0 = Dense(emb_dim, jnp.float32)
        self.time_1 = Dense(emb_dim, jnp.float32)
        self.classes = nn.Embed(self.num_classes + 1, emb_dim, embedding_init=nn.initializers.normal(1.0))

        down, middle, up = self._places()
        self.conv_in = Conv(self._widths()[0], 3, self.dtype)
        self.blocks = {
            place.name: remat(ResBlock)(
                place.channels, self.dropout, self.norm_groups, self.dtype, place.resample, name=place.name
            )
            for place in (*down, *middle, *up)
        }
        self.attention = {
            place.name: attention(place.channels, f'{place.name}_attention')
            for place in (*down, *up)
            if not place.resample
        }
        self.middle_attention = attention(middle[0].channels, 'middle_attention')
        self.norm_out = GroupNorm(self.norm_groups, silu=True, dtype=jnp.float32)
        self.conv_out = Conv(self.out_channels, 3, jnp.float32, zero=True)

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
        level = self.embed_level(jnp.broadcast_to(logsnr, labels.shape))
        emb = level + self.classes(labels)
        h, skips = self.encode(z, emb if self.label_in == 'everywhere' else level, dropout_keys)
        return self.decode(h, skips, emb, dropout_keys)

    def both(self, z: Array, logsnr: Array, labels: Array, other_labels: Array) -> tuple[Array, Array]:
        """The predictions for `labels` and for `other_labels` of the same z, without dropout.

        With label_in='decoder' the encoder runs once for the two, on N images, and the decoder on 2N; else all of the
        network runs on 2N.

        Args:
          z, logsnr: as in a call.
          labels, other_labels: int32 [N].

        Returns:
          Two of [N, H, W, out_channels] float32.
        """
        logsnr, asked = jnp.broadcast_to(logsnr, labels.shape), jnp.concatenate([labels, other_labels])
        if self.label_in == 'everywhere':
            outputs = self(_twice(z), _twice(logsnr), asked)
        else:
            level = self.embed_level(logsnr)
            h, skips = self.encode(z, level)
            outputs = self.decode(_twice(h), [_twice(skip) for skip in skips], _twice(level) + self.classes(asked))
        output, other = jnp.split(outputs, 2)
        return output, other

    def embed_level(self, logsnr: Array) -> Array:
        """logsnr [N] -> the embedding of the noise level, [N, 4 channels] float32."""
        return embed_time(self.time_fn(logsnr), self.channels, self.time_0, self.time_1)

    def encode(self, z: Array, emb: Array, dropout_keys: Array | None = None) -> tuple[Array, list[Array]]:
        """The way down and the middle.

        Args:
          z: [N, H, W, C].
          emb: [N, 4 channels], what the blocks are told.
          dropout_keys: as in a call.

        Returns:
          The coarsest feature map, and the map after each step on the way down, the finest first.
        """
        down, middle, _ = self._places()
        skips = [self.conv_in(z)]
        for place in down:
            skips.append(self._attend(place, self._block(place, skips[-1], emb, dropout_keys)))
        h = self._block(middle[0], skips[-1], emb, dropout_keys)
        h = self._block(middle[1], self.middle_attention(h), emb, dropout_keys)
        return h, skips

    def decode(self, h: Array, skips: Sequence[Array], emb: Array, dropout_keys: Array | None = None) -> Array:
        """The way up, from what `encode` returns to [N, H, W, out_channels] float32; `emb` is as there."""
        _, _, up = self._places()
        skips = list(skips)
        for place in up:
            x = h if place.resample else jnp.concatenate([h, skips.pop()], axis=-1)
            h = self._attend(place, self._block(place, x, emb, dropout_keys))
        return self.conv_out(self.norm_out(h))

    @nn.nowrap
    def _widths(self) -> list[int]:
        return [int(self.channels * mult) for mult in self.channel_mult]

    @nn.nowrap
    def _places(self) -> tuple[list[Place], list[Place], list[Place]]:
        return places(self._widths(), self.num_res_blocks)

    @nn.nowrap
    def _block(self, place: Place, h: Array, emb: Array, dropout_keys: Array | None) -> Array:
        keys = block_keys(dropout_keys if self.dropout else None, place.number)
        return self.blocks[place.name](h, emb, keys)

    @nn.nowrap
    def _attend(self, place: Place, h: Array) -> Array:
        """Self-attention after a block that does not resample, where the map has one of the heights that attend."""
        attends = not place.resample and h.shape[1] in self.attention_resolutions
        return self.attention[place.name](h) if attends else h


def _twice(x: Array) -> Array:
    return jnp.concatenate([x, x])
