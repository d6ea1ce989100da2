"""Classifiers: the small feature network of data sets that Inception is not meant for, and ADM's of noisy images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.models.blocks import Encoder
from cfg.models.layers import Dense

Array = jax.Array


class SmallClassifier(nn.Module):
    """Classifies small images by convolutions, and gives its features.

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
        """Classifies images [N, H, W, C] in [-1, 1].

        Training takes an rng 'dropout'.

        Returns:
          (features [N, width], logits [N, num_classes])
        """
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
    """Pools a feature map to one vector: what its mean sees when it attends to every position (as in CLIP).

    It computes in float32 throughout.

    Attributes:
      features: of the output.
      head_channels: channels of an attention head; must divide the input's channels.
    """

    features: int
    head_channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Pools [N, H, W, C] to [N, features]."""
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


class EncoderUNet(Encoder, kw_only=True):
    """Classifies noisy images as ADM does: the encoder of the UNet, then an attention pool.

    Dhariwal & Nichol 2021, arXiv 2105.05233, Sec. 4. There is no class embedding. The pool has heads of
    `head_channels` too.

    Attributes:
      num_classes: of the output.
    """

    num_classes: int

    def setup(self) -> None:
        """Makes the layers of the encoder and the pool."""
        super().setup()
        self.pool = AttentionPool(self.num_classes, self.head_channels)

    def __call__(self, z: Array, logsnr: Array, dropout_keys: Array | None = None) -> Array:
        """Classifies noisy images.

        Args:
          z: [N, H, W, C]; H and W divisible by 2^(levels - 1).
          logsnr: [] or [N].
          dropout_keys: [N] typed PRNG keys, one an example, or None for no dropout.

        Returns:
          logits [N, num_classes] float32.
        """
        h, _ = self.encode(z, self.embed_level(jnp.broadcast_to(logsnr, z.shape[:1])), dropout_keys)
        return self.pool(self.norm_out(h))
