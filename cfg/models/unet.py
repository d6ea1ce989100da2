"""Defines the UNet of ADM (Dhariwal & Nichol 2021, arXiv 2105.05233), conditioned on logsnr and a class label.

The class embedding has `num_classes + 1` rows; the last is the null label, and that row is all that classifier-free
guidance adds to the network.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.diffusion import corrections
from cfg.diffusion.denoiser import Annealing, twice
from cfg.models.blocks import Encoder
from cfg.models.layers import Conv, Dense
from cfg.models.time import sinusoidal_embedding, strength_to_time

Array = jax.Array

LABEL_IN = ('everywhere', 'decoder')  # which blocks of the network are told the label


class UNet(Encoder, kw_only=True):
    """Maps (z, logsnr, labels) to a prediction, shaped like z unless `out_channels` differs.

    The encoder is the way down and the middle, the decoder the way up.

    Attributes:
      out_channels: of the prediction (3 for RGB: learned variances are not part of the method).
      num_classes: the embedding has one more row, for the null label.
      label_in: which blocks are told the label, 'everywhere' (ADM) or 'decoder': then predictions for several labels
        share one pass of the encoder, see `both`. The parameters are the same in number, names and shapes.
      takes_w: whether the guidance strength is an input too. What tells it starts at zero, so that a network with the
        parameters of one without it begins as that one.
      augment_size: of what tells an augmentation of the image, 0 for none; it starts at zero, too.
    """

    out_channels: int
    num_classes: int
    label_in: str = 'everywhere'
    takes_w: bool = False
    augment_size: int = 0

    def setup(self) -> None:
        """Makes the layers of the encoder, the class embedding and the last convolution, which is float32."""
        if self.label_in not in LABEL_IN:
            raise ValueError(f'label_in is one of {", ".join(LABEL_IN)}, not {self.label_in!r}')
        super().setup()
        self.classes = nn.Embed(self.num_classes + 1, 4 * self.channels, embedding_init=nn.initializers.normal(1.0))
        if self.takes_w:
            self.w_0 = Dense(4 * self.channels, jnp.float32)
            self.w_1 = Dense(4 * self.channels, jnp.float32, zero=True)
        if self.augment_size:  # EDM's, without a bias: zeros say nothing
            self.augment = nn.Dense(self.channels, use_bias=False, kernel_init=nn.initializers.zeros)
        self.conv_out = Conv(self.out_channels, 3, jnp.float32, zero=True)

    def __call__(
        self,
        z: Array,
        logsnr: Array,
        labels: Array,
        dropout_keys: Array | None = None,
        *,
        w: Array | None = None,
        anneal: Annealing | None = None,
        augment: Array | None = None,
    ) -> Array:
        """Predicts from noisy images.

        Args:
          z: [N, H, W, C]; H and W divisible by 2^(levels - 1).
          logsnr: [] or [N].
          labels: int32 [N] in [0, num_classes]; num_classes is the null label.
          dropout_keys: [N] typed PRNG keys, one an example, or None for no dropout.
          w: the guidance strength, above -1, [] or [N], for a network that takes one; None for 0.
          anneal: noise on the embeddings of classes; None for none.
          augment: how each image was changed, [N, augment_size]; None for not at all.

        Returns:
          [N, H, W, out_channels] float32.
        """
        beside = None
        if self.augment_size:
            beside = self.augment(jnp.zeros((len(labels), self.augment_size)) if augment is None else augment)
        level = self.embed_level(jnp.broadcast_to(logsnr, labels.shape), beside)
        if self.takes_w:
            told = strength_to_time(jnp.broadcast_to(0.0 if w is None else w, labels.shape))
            level += self.w_1(nn.silu(self.w_0(sinusoidal_embedding(told, self.channels))))
        emb = level + self.embed_labels(labels, anneal)
        h, skips = self.encode(z, emb if self.label_in == 'everywhere' else level, dropout_keys)
        return self.decode(h, skips, emb, dropout_keys)

    def embed_labels(self, labels: Array, anneal: Annealing | None = None) -> Array:
        """Embeds labels [N], with noise on those of classes if wanted: [N, 4 channels] float32."""
        y = self.classes(labels)
        if anneal is None:
            return y
        noise = jax.vmap(lambda key: jax.random.normal(key, y.shape[1:]))(anneal.keys)
        noisy = corrections.anneal(y, noise, kept=anneal.kept, scale=anneal.scale, mix=anneal.mix)
        return jnp.where((labels == self.num_classes)[:, None], y, noisy)

    def both(
        self, z: Array, logsnr: Array, labels: Array, other_labels: Array, anneal: Annealing | None = None
    ) -> tuple[Array, Array]:
        """Predicts for `labels` and for `other_labels` of the same z, without dropout.

        With label_in='decoder' the encoder runs once for the two, on N images, and the decoder on 2N; else all of the
        network runs on 2N.

        Args:
          z, logsnr, anneal: as in a call.
          labels, other_labels: int32 [N].

        Returns:
          Two predictions [N, H, W, out_channels] float32.
        """
        logsnr, asked = jnp.broadcast_to(logsnr, labels.shape), jnp.concatenate([labels, other_labels])
        if self.label_in == 'everywhere':
            outputs = self(_twice(z), _twice(logsnr), asked, anneal=twice(anneal))
        else:
            level = self.embed_level(logsnr)
            h, skips = self.encode(z, level)
            emb = _twice(level) + self.embed_labels(asked, twice(anneal))
            outputs = self.decode(_twice(h), [_twice(skip) for skip in skips], emb)
        output, other = jnp.split(outputs, 2)
        return output, other

    def decode(self, h: Array, skips: Sequence[Array], emb: Array, dropout_keys: Array | None = None) -> Array:
        """Runs the way up, from what `encode` returns to [N, H, W, out_channels] float32; `emb` is as there."""
        _, _, up = self.ways()
        skips = list(skips)
        for place in up:
            x = h if place.resample else jnp.concatenate([h, skips.pop()], axis=-1)
            h = self.run(place, x, emb, dropout_keys)
        return self.conv_out(self.norm_out(h))


def _twice(x: Array) -> Array:
    return jnp.concatenate([x, x])
