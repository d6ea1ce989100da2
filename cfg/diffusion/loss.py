"""Defines the training objectives: Eq. 5 as the body of Alg. 1, and that of a classifier of noisy images."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfg.diffusion import process, schedule, weights
from cfg.diffusion.weights import PLAIN, LossWeight

Array = jax.Array


class Draws(NamedTuple):
    """Draws are the random numbers of one training example (Alg. 1, lines 3 to 5)."""

    u_label: Array  # decides whether the label is dropped, [N]
    u_time: Array  # the time u of the noise level, [N]
    eps: Array  # the noise, [N, ...]
    u_strength: Array  # decides the guidance strength of networks that take one, [N]
    key: Array  # for what the rule of a teacher draws, typed keys [N]


def draw(keys: Array, shape: tuple[int, ...]) -> Draws:
    """Draws from one typed key an example, [N], so that nothing depends on how a batch is cut over devices."""

    def one(key):
        label_key, time_key, noise_key = jax.random.split(key, 3)
        return Draws(
            u_label=jax.random.uniform(label_key),
            u_time=jax.random.uniform(time_key),
            eps=jax.random.normal(noise_key, shape),
            u_strength=jax.random.uniform(jax.random.fold_in(key, 3)),
            key=jax.random.fold_in(key, 4),
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
    weight: LossWeight = PLAIN,
) -> Array:
    """Returns ||network(z, logsnr, c) - target||^2, averaged over an example's components: [N] float32 (Alg. 1, Eq. 5).

    With prediction = 'eps' this is the paper's loss up to the constant factor 1 / (number of components).
    With 'x' and 'v' it is the same squared error on what the network predicts, which weights the noise
    levels differently: relative to eps, by e^-logsnr for 'x' and by 1 + e^-logsnr for 'v'.

    Args:
      network: (z [N, ...], logsnr [N], labels [N]) -> [N, ...].
      x: clean data in [-1, 1], [N, ...].
      labels: int32 [N].
      weight: other levels than the paper's, and what errors count there.
    """
    limits = {'logsnr_min': logsnr_min, 'logsnr_max': logsnr_max}
    logsnr = weight.levels(draws.u_time, **limits)
    z = process.diffuse(x, draws.eps, logsnr)
    dropped = drop_labels(draws.u_label, labels, p_uncond=p_uncond, null_label=null_label)
    error = _squared_error(network(z, logsnr, dropped), process.Prediction(x, draws.eps), logsnr, prediction)
    return jnp.exp(weight.log_factor(logsnr, prediction=prediction, **limits)) * error if weight.name else error


def _squared_error(output: Array, wanted: process.Prediction, logsnr: Array, prediction: str) -> Array:
    """Returns the squared error of what a network predicts, averaged over an example's components, [N] float32."""
    error = output.astype(jnp.float32) - process.target(*wanted, logsnr, prediction=prediction)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def _weighted_error(output: Array, wanted: process.Prediction, logsnr: Array, prediction: str, weighting: str) -> Array:
    """Returns `_squared_error`, weighted."""
    factor = jnp.exp(weights.log_weight(logsnr, prediction=prediction, weighting=weighting))
    return factor * _squared_error(output, wanted, logsnr, prediction)


def distillation_loss(
    network: Callable[..., Array],
    teacher: Callable[[Array, Array, Array, Array], process.Prediction],
    x: Array,
    labels: Array,
    draws: Draws,
    *,
    w_range: tuple[float, float],
    logsnr_min: float,
    logsnr_max: float,
    prediction: str = 'eps',
    weighting: str = 'truncated',
) -> Array:
    """Returns the weighted squared distance of a student from its guided teacher, averaged over components: [N].

    This is stage one of guided distillation (Meng et al. 2022, arXiv 2210.03142, Section 3.1): z, logsnr and c as in
    Alg. 1 without dropped labels, w uniform in a range, the teacher's prediction by Eq. 6. Their w is the paper's.

    Args:
      network: the student, (z [N, ...], logsnr [N], labels [N], w=[N]) -> [N, ...].
      teacher: (z, logsnr, labels, w) -> the guided prediction of x and eps.
      x: clean data in [-1, 1], [N, ...].
      labels: int32 [N].
      w_range: the least and the largest w.
      prediction: what the student predicts: eps, x or v.
      weighting: see `weights.log_weight`.
    """
    logsnr = schedule.logsnr_from_u(draws.u_time, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    z, w = process.diffuse(x, draws.eps, logsnr), strengths(draws, w_range)
    wanted = jax.lax.stop_gradient(teacher(z, logsnr, labels, w))
    return _weighted_error(network(z, logsnr, labels, w=w), wanted, logsnr, prediction, weighting)


def halving_target(first: Array, second: Array, *, logsnr_t: Array, logsnr_m: Array, logsnr_s: Array) -> Array:
    """Returns the x with which one DDIM step from t to s is two of them, by the estimates `first` at t, `second` at m.

    Salimans & Ho (2022, arXiv 2202.00512, Appendix G) have it as a quotient of differences, which are small where steps
    are. With r = alpha / sigma = e^(logsnr / 2) it is c first + (1 - c) second, c = (r_m - r_t) / (r_s - r_t), and c is

      e^((logsnr_m - logsnr_s) / 2) (1 - e^((logsnr_t - logsnr_m) / 2)) / (1 - e^((logsnr_t - logsnr_s) / 2)).

    Args:
      first, second: [N, ...].
      logsnr_t, logsnr_m, logsnr_s: levels from noisy to clean, [] or [N]; logsnr_s = inf is clean data, where c = 0.
    """
    part, whole = (-jnp.expm1(0.5 * (logsnr_t - level)) for level in (logsnr_m, logsnr_s))
    share = process.expand(jnp.exp(0.5 * (logsnr_m - logsnr_s)) * part / whole, first)
    return share * first + (1.0 - share) * second


def halving_loss(
    network: Callable[..., Array],
    teacher: Callable[[Array, Array, Array, Array], process.Prediction],
    x: Array,
    labels: Array,
    draws: Draws,
    *,
    num_steps: int,
    w_range: tuple[float, float],
    logsnr_min: float,
    logsnr_max: float,
    prediction: str,
    weighting: str = 'truncated',
    reach: int = 1,
) -> Array:
    """Returns the weighted squared distance of one step of a student from two of its teacher, [N].

    This is a round of progressive distillation with w as an input (Meng et al. 2022, arXiv 2210.03142, Algorithm 2).
    The student has `num_steps` levels of `schedule.nested_grid`, and steps are DDIM's, from each level to the next
    (`reach` = 1) or over it to the one after (2: those of `solvers.ForthAndBack`). The teacher's are half as long. At
    its last level a student of reach 2 takes the only step that is left, its teacher's.

    Args:
      num_steps: of the student.
      prediction: what the student predicts.
      reach: levels that a step goes.

    The others are those of `distillation_loss`.
    """
    index = jnp.minimum(jnp.floor(num_steps * draws.u_time) + 1.0, num_steps)  # of the level, the cleanest is 1
    logsnr_t, logsnr_m, logsnr_s = (
        schedule.logsnr_from_u(
            jnp.maximum(index - share * reach, 0.0) / num_steps, logsnr_min=logsnr_min, logsnr_max=logsnr_max
        )
        for share in (0.0, 0.5, 1.0)
    )
    logsnr_s = jnp.where(index == reach, jnp.inf, logsnr_s)
    z, w = process.diffuse(x, draws.eps, logsnr_t), strengths(draws, w_range)
    first = teacher(z, logsnr_t, labels, w)
    second = teacher(process.diffuse(first.x, first.eps, logsnr_m), logsnr_m, labels, w)
    levels = {'logsnr_t': logsnr_t, 'logsnr_m': logsnr_m, 'logsnr_s': logsnr_s}
    wanted = jax.lax.stop_gradient(halving_target(first.x, second.x, **levels))
    both = process.Prediction(wanted, process.eps_from_x(z, wanted, logsnr_t))
    return _weighted_error(network(z, logsnr_t, labels, w=w), both, logsnr_t, prediction, weighting)


def guidance_free_loss(
    network: Callable[..., Array],
    x: Array,
    labels: Array,
    draws: Draws,
    *,
    p_uncond: float,
    null_label: int,
    w_range: tuple[float, float],
    logsnr_min: float,
    logsnr_max: float,
    prediction: str = 'eps',
    weight: LossWeight = PLAIN,
) -> Array:
    """Returns the loss of guidance-free training (Chen et al. 2025, arXiv 2501.15420), [N].

    With b = 1 / (1 + w) it is ||b network(z, logsnr, c, w) + (1 - b) network(z, logsnr, null, 0) - target||^2 as in
    Eq. 5, the second prediction without a gradient. Its optimum at (c, w) is Eq. 6. Where the label is dropped, w = 0.

    Args: those of `denoising_loss` and `distillation_loss`.
    """

    def mixed(z, logsnr, labels):
        w = jnp.where(labels == null_label, 0.0, strengths(draws, w_range))
        null = network(z, logsnr, jnp.full_like(labels, null_label), w=jnp.zeros_like(w))
        share = process.expand(1.0 / (1.0 + w), z)
        return share * network(z, logsnr, labels, w=w) + (1.0 - share) * jax.lax.stop_gradient(null)

    options = {'logsnr_min': logsnr_min, 'logsnr_max': logsnr_max, 'prediction': prediction, 'weight': weight}
    return denoising_loss(mixed, x, labels, draws, p_uncond=p_uncond, null_label=null_label, **options)


def strengths(draws: Draws, w_range: tuple[float, float]) -> Array:
    """Returns w uniform in a range, [N]."""
    low, high = w_range
    return low + (high - low) * draws.u_strength


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
