"""Label dropout for training (Alg. 1) and the rules that combine predictions in sampling (Eq. 6).

A rule takes an eps function to an eps function, `eps_fn(z, logsnr, labels) -> eps`, so no sampler knows
about guidance. `w` is the paper's guidance strength: 0 is the plain conditional model, -1 the
unconditional one. Code that speaks of a guidance scale s means s = 1 + w.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cfg.diffusion.process import expand

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


def classifier_free_eps_fn(eps_fn: EpsFn, w: Array, *, null_label: int) -> EpsFn:
    """Wraps `eps_fn` into the guided eps of Eq. 6.

    Both predictions come from one batch of 2N, conditional half first. Where every w is 0 or -1 each example
    needs only one of the two, and only one pass runs.

    Args:
      eps_fn: (z [N, ...], logsnr [] or [N], labels [N]) -> eps [N, ...].
      w: [] or [N]; may be traced, so that a sweep over w compiles once.
      null_label: the label of the unconditional pass.
    """
    w = jnp.asarray(w, jnp.float32)

    def guided(z, logsnr, labels):
        def both(z):
            levels = jnp.broadcast_to(logsnr, labels.shape)
            eps = eps_fn(
                jnp.concatenate([z, z]),
                jnp.concatenate([levels, levels]),
                jnp.concatenate([labels, jnp.full_like(labels, null_label)]),
            )
            eps_cond, eps_uncond = jnp.split(eps, 2)
            return classifier_free(eps_cond, eps_uncond, w).astype(z.dtype)

        def single(z):
            return eps_fn(z, logsnr, jnp.where(w == -1.0, null_label, labels)).astype(z.dtype)

        return jax.lax.cond(jnp.all((w == 0.0) | (w == -1.0)), single, both, z)

    return guided


def two_model_eps_fn(eps_fn: EpsFn, uncond_eps_fn: EpsFn, w: Array, *, null_label: int) -> EpsFn:
    """Eq. 6 with the unconditional eps from a second model.

    The paper trains one network for both and notes that two separate models would do as well (section 3.2). Where every
    w is 0 only the first model runs.

    Args:
      eps_fn, uncond_eps_fn: as in `classifier_free_eps_fn`.
      w: [] or [N]; may be traced.
      null_label: the label that the second model is given.
    """
    w = jnp.asarray(w, jnp.float32)

    def guided(z, logsnr, labels):
        def both(z):
            eps_uncond = uncond_eps_fn(z, logsnr, jnp.full_like(labels, null_label))
            return classifier_free(eps_fn(z, logsnr, labels), eps_uncond, w).astype(z.dtype)

        def conditional(z):
            return eps_fn(z, logsnr, labels).astype(z.dtype)

        return jax.lax.cond(jnp.any(w != 0.0), both, conditional, z)

    return guided
