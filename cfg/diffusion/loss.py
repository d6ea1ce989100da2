"""Defines the training objectives: Eq. 5 as the body of Alg. 1, and that of a classifier of noisy images."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfg.diffusion import process, schedule

Array = jax.Array


class Draws(NamedTuple):
    """Draws are the random numbers of one training example (Alg. 1, lines 3 to 5)."""

    u_label: Array  # decides whether the label is dropped, [N]
    u_time: Array  # the time u of the noise level, [N]
    eps: Array  # the noise, [N, ...]


def draw(keys: Array, shape: tuple[int, ...]) -> Draws:
    """Draws from one typed key an example, [N], so that nothing depends on how a batch is cut over devices."""

    def one(key):
        label_key, time_key, noise_key = jax.random.split(key, 3)
        return Draws(
            u_label=jax.random.uniform(label_key),
            u_time=jax.random.uniform(time_key),
            eps=jax.random.normal(noise_key, shape),
        )

    return jax.vmap(one)(keys)


def drop_labels(u: Array, labels: Array, *, p_uncond: float, null_label: int) -> Array:
    """Replaces c by null with probability p_uncond, for each example on its own (Alg. 1, line 3).

    `u` [N] is uniform in [0, 1), and `null_label` the row of the class embedding that stands for "no label".
    """
    return jnp.where(u < p_uncond, null_label, labels)


def denoising_loss(
    network: Callable[[Array, Array, Array], Array],
    x: Array,
    labels: Array,
    draws: Draws,
    *,
    p_uncond: float,
    null_label: int,
    logsnr_min: float,
    logsnr_max: float,
    prediction: str = 'eps',
) -> Array:
    """Returns ||network(z, logsnr, c) - target||^2, averaged over an example's components: [N] float32 (Alg. 1, Eq. 5).

    With prediction = 'eps' this is the paper's loss up to the constant factor 1 / (number of components).
    With 'x' and 'v' it is the same squared error on what the network predicts, which weights the noise
    levels differently: relative to eps, by e^-logsnr for 'x' and by 1 + e^-logsnr for 'v'.

    Args:
      network: (z [N, ...], logsnr [N], labels [N]) -> [N, ...].
      x: clean data in [-1, 1], [N, ...].
      labels: int32 [N].
    """
    logsnr = schedule.logsnr_from_u(draws.u_time, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    z = process.diffuse(x, draws.eps, logsnr)
    dropped = drop_labels(draws.u_label, labels, p_uncond=p_uncond, null_label=null_label)
    output = network(z, logsnr, dropped).astype(jnp.float32)
    error = output - process.target(x, draws.eps, logsnr, prediction=prediction)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, x.ndim)))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns -log softmax(logits)[label] in nats, [N]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def classification_loss(
    logits_fn: Callable[[Array, Array], Array],
    x: Array,
    labels: Array,
    draws: Draws,
    *,
    logsnr_min: float,
    logsnr_max: float,
) -> tuple[Array, Array]:
    """Returns -log p(c | z) in nats, of images as noisy as those of Alg. 1 (Section 3.1; Dhariwal & Nichol 2021).

    z = alpha x + sigma eps with logsnr ~ p(logsnr), as in `denoising_loss`. The expectation is smallest at Bayes' rule,
    p(c | z) proportional to p(c) p(z | c), where it is the conditional entropy of c given z and logsnr. Its gradient
    by z is then what classifier guidance needs at every level.

    Args:
      logits_fn: (z [N, ...], logsnr [N]) -> logits [N, number of classes].
      x: clean data in [-1, 1], [N, ...].
      labels: int32 [N]; `draws.u_label` is not used, as no label is dropped.

    Returns:
      (losses [N], whether the largest logit is that of the label, as 0 or 1 [N]), float32.
    """
    logsnr = schedule.logsnr_from_u(draws.u_time, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    logits = logits_fn(process.diffuse(x, draws.eps, logsnr), logsnr).astype(jnp.float32)
    return cross_entropy(logits, labels), (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
