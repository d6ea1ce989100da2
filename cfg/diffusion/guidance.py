"""Label dropout for training (Alg. 1) and the guidance of the paper: Eq. 6, classifier guidance, scaled scores.

Each takes an eps function to an eps function, `eps_fn(z, logsnr, labels) -> eps`, so no sampler knows
about guidance. `w` is the paper's guidance strength: 0 is the plain conditional model, -1 the
unconditional one. Code that speaks of a guidance scale s means s = 1 + w. Wherever a wrapper takes w, it may
also be a function of logsnr (`cfg.diffusion.strength`). Guidance that needs more than an eps is in
`cfg.diffusion.rules`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cfg.diffusion.process import expand
from cfg.diffusion.schedule import alpha_sigma
from cfg.diffusion.strength import Strength, strength_at

Array = jax.Array
EpsFn = Callable[[Array, Array, Array], Array]


def drop_labels(u: Array, labels: Array, *, p_uncond: float, null_label: int) -> Array:
    """c <- null with probability p_uncond, for each example on its own (Alg. 1, line 3).

    Args:
      u: uniform draws in [0, 1), [N].
      labels: int32 [N].
      p_uncond: in [0, 1].
      null_label: the row of the class embedding that stands for "no label".
    """
    return jnp.where(u < p_uncond, null_label, labels)


def classifier_free(eps_cond: Array, eps_uncond: Array, w: Array) -> Array:
    """(1 + w) eps_cond - w eps_uncond (Eq. 6).

    Args:
      eps_cond, eps_uncond: [N, ...].
      w: [] or [N].
    """
    w = expand(w, eps_cond)
    return (1.0 + w) * eps_cond - w * eps_uncond


def classifier(eps: Array, grad_log_prob: Array, w: Array, *, logsnr: Array) -> Array:
    """eps - w sigma grad_z log p(c | z), classifier guidance (Section 3.1; Dhariwal & Nichol 2021, arXiv 2105.05233).

    Args:
      eps, grad_log_prob: [N, ...].
      w: [] or [N].
      logsnr: [] or [N].
    """
    _, sigma = alpha_sigma(expand(logsnr, eps))
    return eps - expand(w, eps) * sigma * grad_log_prob


def predict_both(eps_fn: EpsFn, z: Array, logsnr: Array, labels: Array, *, other_labels: Array) -> tuple[Array, Array]:
    """eps for `labels` and for `other_labels`, from one batch of 2N with the former first."""
    levels = jnp.broadcast_to(logsnr, labels.shape)
    eps = eps_fn(jnp.concatenate([z, z]), jnp.concatenate([levels, levels]), jnp.concatenate([labels, other_labels]))
    eps, other = jnp.split(eps, 2)
    return eps, other


def classifier_free_eps_fn(eps_fn: EpsFn, w: Strength, *, null_label: int) -> EpsFn:
    """Wraps `eps_fn` into the guided eps of Eq. 6.

    Both predictions come from one batch of 2N, conditional half first. Where every w is 0 or -1 each example
    needs only one of the two, and only one pass runs.

    Args:
      eps_fn: (z [N, ...], logsnr [] or [N], labels [N]) -> eps [N, ...].
      w: [] or [N]; may be traced, so that a sweep over w compiles once.
      null_label: the label of the unconditional pass.
    """

    def guided(z, logsnr, labels):
        now = strength_at(w, logsnr)

        def both(z):
            null_labels = jnp.full_like(labels, null_label)
            eps_cond, eps_uncond = predict_both(eps_fn, z, logsnr, labels, other_labels=null_labels)
            return classifier_free(eps_cond, eps_uncond, now).astype(z.dtype)

        def single(z):
            return eps_fn(z, logsnr, jnp.where(now == -1.0, null_label, labels)).astype(z.dtype)

        return jax.lax.cond(jnp.all((now == 0.0) | (now == -1.0)), single, both, z)

    return guided


def classifier_eps_fn(
    eps_fn: EpsFn, logits_fn: Callable[[Array, Array], Array], w: Strength, *, null_label: int | None = None
) -> EpsFn:
    """Classifier guidance: eps - w sigma grad_z log p(c | z), with a classifier of noisy images (Section 3.1).

    The paper guides a conditional model with w, or an unconditional one with w + 1, which is the same where model and
    classifier are exact: log p(c | z) = log p(z | c) - log p(z) + log p(c). A step costs one pass of the network, and
    one pass of the classifier forth and back; the classifier does not run where no example is guided.

    Args:
      eps_fn: of the model that is guided.
      logits_fn: (z [N, ...], logsnr [] or [N]) -> logits [N, number of classes] (log p(c | z) up to a constant of z).
      w: [] or [N]; may be traced.
      null_label: None guides the conditional model with w; else the model is asked for this label, which makes it
        unconditional, and guided with w + 1.
    """

    def log_prob(z, logsnr, labels):
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits_fn(z, logsnr)), labels[:, None], axis=1))

    def guided(z, logsnr, labels):
        asked = labels if null_label is None else jnp.full_like(labels, null_label)
        now = strength_at(w, logsnr) + (0.0 if null_label is None else 1.0)
        eps = eps_fn(z, logsnr, asked).astype(z.dtype)

        def with_classifier(eps):
            gradient = jax.grad(log_prob)(z, logsnr, labels)
            return classifier(eps, gradient, now, logsnr=logsnr).astype(z.dtype)

        return jax.lax.cond(jnp.any(now != 0.0), with_classifier, lambda eps: eps, eps)

    return guided


def scaled_eps_fn(eps_fn: EpsFn, factor: Array) -> EpsFn:
    """factor * eps, which is the score -eps / sigma times the factor; 1 changes nothing. One pass.

    Section 3 of the paper names it as what does not work for diffusion models (its samples are blurred), as does
    lowering the noise, for which the samplers have a temperature.

    Args:
      factor: [] or [N]; may be traced.
    """

    def scaled(z, logsnr, labels):
        return (expand(factor, z) * eps_fn(z, logsnr, labels)).astype(z.dtype)

    return scaled
