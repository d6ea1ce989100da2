"""The small feature network of data sets that Inception is not meant for."""

import flax.linen as nn
import jax
import jax.numpy as jnp

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


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label], [N]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
