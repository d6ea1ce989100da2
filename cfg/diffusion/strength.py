"""Makes the guidance strength a function of the noise level: limited intervals and schedules.

They go with every rule, and one goes around another. Where w is 0 for a whole batch the rules run one pass only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfg.diffusion import schedule

Array = jax.Array


class Given(NamedTuple):
    """A given strength is w times a factor, which is known at some levels, linear in logsnr between them, and level
    beyond. It stands where a strength w does, so that its numbers may be traced.
    """

    levels: Array  # increasing, [K]
    factors: Array  # [K]
    w: Array  # [] or [N]

    def at(self, logsnr: Array) -> Array:
        """Returns the strength at a level that broadcasts with w."""
        return self.w * jnp.interp(logsnr, jnp.float32(self.levels), jnp.float32(self.factors))


def interval(w: Array, logsnr: Array, *, logsnr_lo: float, logsnr_hi: float) -> Array:
    """Returns w for logsnr_lo <= logsnr < logsnr_hi and 0 elsewhere (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    The paper states it for EDM's sigma: guidance where sigma is in (sigma_lo, sigma_hi], the conditional model
    elsewhere. With sigma = e^(-logsnr / 2) this is logsnr_lo = -2 log sigma_hi and logsnr_hi = -2 log sigma_lo
    (`schedule.logsnr_from_sigma`). Outside the interval a step costs one pass. Infinite ends change nothing.
    """
    return jnp.where((logsnr >= logsnr_lo) & (logsnr < logsnr_hi), w, 0.0)


def linear(w: Array, logsnr: Array, *, logsnr_min: float, logsnr_max: float) -> Array:
    """Returns 2 (1 - u) w with the time u of the level (Wang et al. 2024, arXiv 2404.13040).

    It grows from 0 at the noise to 2 w at the data. The paper states it for the share t / T of the timestep; u is that
    of our grid. The mean over u is w.
    """
    u = schedule.u_from_logsnr(logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    return 2.0 * (1.0 - u) * w


def cosine(w: Array, logsnr: Array, *, logsnr_min: float, logsnr_max: float) -> Array:
    """Returns (1 + cos(pi u)) w with the time u of the level: as `linear`, but level at both ends (Wang et al.)."""
    u = schedule.u_from_logsnr(logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    return (1.0 + jnp.cos(jnp.pi * u)) * w


def annealing(logsnr: Array, *, tau1: float, tau2: float) -> Array:
    """Returns what is kept of a label at a level: 1 at times up to tau1, 0 from tau2 on, linear between.

    Sadat et al. 2023, arXiv 2310.17347. Their time goes from 0 at the data to 1 at the noise. Here it is that of the
    cosine schedule, the u of p(logsnr) over all levels, (2 / pi) arctan(e^(-logsnr / 2)).
    """
    time = 2.0 / jnp.pi * jnp.arctan(jnp.exp(-0.5 * logsnr))
    return jnp.clip((tau2 - time) / (tau2 - tau1), 0.0, 1.0)
