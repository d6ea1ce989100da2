"""Ancestral sampling (Alg. 2) over any eps function."""

import jax
import jax.numpy as jnp

from cfg.diffusion import process
from cfg.diffusion.guidance import EpsFn

Array = jax.Array


def _noise(keys: Array, index: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise number `index` of each key: [N, *shape]. Number 0 is the start at logsnr_min."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def ancestral(
    eps_fn: EpsFn,
    keys: Array,
    labels: Array,
    logsnrs: Array,
    *,
    shape: tuple[int, ...],
    logvar_interp: float,
    clip_x: bool,
) -> Array:
    """Draws samples by Alg. 2, as one scan over the grid.

    Starts from N(0, I) at logsnrs[0]. At each level x is estimated from the (guided) eps; the step to the
    next level is Eq. 4 with this estimate in the place of x. What is returned is the estimate at the last
    level, so the last step adds no noise.

    Args:
      eps_fn: (z [N, ...], logsnr [], labels [N]) -> eps [N, ...], guided or not.
      keys: [N] typed PRNG keys, one a sample; a sample depends on nothing else.
      labels: int32 [N].
      logsnrs: [T], increasing, from `schedule.sampling_grid`.
      shape: of one sample, without the batch axis.
      logvar_interp: the paper's v in [0, 1].
      clip_x: whether the estimate of x is clipped to [-1, 1] at every step.

    Returns:
      [N, *shape] float32.
    """

    def step(z, inputs):
        index, logsnr_t, logsnr_s = inputs
        eps = eps_fn(z, logsnr_t, labels)
        x = process.clip_prediction(z, eps, logsnr_t).x if clip_x else process.x_from_eps(z, eps, logsnr_t)
        mean = process.posterior(z, x, logsnr_s=logsnr_s, logsnr_t=logsnr_t).mean
        logvar = process.reverse_logvar(logsnr_s=logsnr_s, logsnr_t=logsnr_t, logvar_interp=logvar_interp)
        stepped = mean + jnp.exp(0.5 * logvar) * _noise(keys, index, shape)
        # The last level has no next one: its estimate of x is the sample.
        return jnp.where(index == logsnrs.shape[0], x, stepped), None

    z = _noise(keys, 0, shape)
    index = jnp.arange(1, logsnrs.shape[0] + 1)
    # The last level has no next one; any cleaner level will do, as that step's result is not used.
    following = jnp.concatenate([logsnrs[1:], logsnrs[-1:] + 1.0])
    x, _ = jax.lax.scan(step, z, (index, logsnrs, following))
    return x
