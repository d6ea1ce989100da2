"""The guidance strength w as a function of the noise level.

A strength is a number w or a function of logsnr that gives it, and every wrapper that takes w takes both. So limited
intervals and schedules need no rule of their own: they are strengths, they go with every rule, and one goes around
another: interval(cosine(w, ...), ...). Where w is 0 for the whole batch the rules run one pass only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cfg.diffusion import schedule

Array = jax.Array
Strength = float | Array | Callable[[Array], Array]


def strength_at(w: Strength, logsnr: Array) -> Array:
    """w at this level, float32 [] or [N].

    Args:
      w: [] or [N], or a function of logsnr that gives one of these.
      logsnr: [] or [N].
    """
    return jnp.asarray(w(logsnr) if callable(w) else w, jnp.float32)


def interval(w: Strength, *, logsnr_lo: float, logsnr_hi: float) -> Callable[[Array], Array]:
    """w for logsnr_lo <= logsnr < logsnr_hi and 0 elsewhere (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    The paper states it for EDM's sigma: guidance where sigma is in (sigma_lo, sigma_hi], the conditional model
    elsewhere. With sigma = e^(-logsnr / 2) this is logsnr_lo = -2 log sigma_hi and logsnr_hi = -2 log sigma_lo
    (`schedule.logsnr_from_sigma`). Outside the interval a step costs one pass. Infinite ends change nothing.
    """

    def limited(logsnr):
        inside = (logsnr >= logsnr_lo) & (logsnr < logsnr_hi)
        return jnp.where(inside, strength_at(w, logsnr), 0.0)

    return limited


def linear(w: Strength, *, logsnr_min: float, logsnr_max: float) -> Callable[[Array], Array]:
    """2 (1 - u) w with the time u of the level (Wang et al. 2024, arXiv 2404.13040).

    It grows from 0 at the noise to 2 w at the data. The paper states it for the share t / T of the timestep; u is that
    of our grid. The mean over u is w.
    """

    def scheduled(logsnr):
        u = schedule.u_from_logsnr(logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
        return 2.0 * (1.0 - u) * strength_at(w, logsnr)

    return scheduled


def cosine(w: Strength, *, logsnr_min: float, logsnr_max: float) -> Callable[[Array], Array]:
    """(1 + cos(pi u)) w with the time u of the level: as `linear`, but level at both ends (Wang et al. 2024)."""

    def scheduled(logsnr):
        u = schedule.u_from_logsnr(logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
        return (1.0 + jnp.cos(jnp.pi * u)) * strength_at(w, logsnr)

    return scheduled
