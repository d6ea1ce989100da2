"""Guides by how far the sampler's last step agreed with the conditional prediction."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cfg.diffusion import options, process
from cfg.diffusion.rules.base import Levelled
from cfg.diffusion.rules.pairs import Labelled, classifier_free

Array = jax.Array

MOST = 3.0  # the largest log p of the source


class _Seen(NamedTuple):
    """A `_Seen` is what the evaluation before leaves for the next one, each of a sample."""

    log_p: Array  # of the class given the way so far, up to a constant, [N]
    logsnr: Array  # of that evaluation, [N]; infinite before the first one
    z: Array  # [N, ...], as the two estimates of x are
    cond: Array
    other: Array


@dataclass(frozen=True, kw_only=True)
class Feedback(Levelled, Labelled):
    """Feedback guidance is Eq. 6 at the strength w + lambda - 1, lambda = p / (p - (1 - pi)) (arXiv 2506.06085).

    p is what the way so far says of the class. It starts at 1, and with t the level before and s this one
    log p <- log p - tau / (2 v) (||z_s - mu_cond||^2 - ||z_s - mu_other||^2) + delta,
    with the mean mu and the variance v of q(z_s | z_t, x), Eq. 3, for the two estimates of x. So lambda falls where the
    step went the conditional one's way, and delta < 0 raises it with every step. log p is cut to [l, 3], with l such
    that w + lambda is `limit` at most. w adds to it, on an interval if wanted, as the source's hybrids do; w = 0 is the
    source's rule, and not the conditional model. pi = 1 is Eq. 6. The change of log p is the same number in x, eps and
    z / alpha, in which the source states it. delta belongs to a number of steps and tau to an image's size. At a level
    that is not cleaner than the one before, as in half of Heun's evaluations, p stays. Two evaluations.
    """

    name: ClassVar[str] = 'feedback'
    no_cond_at: ClassVar[float] = math.nan
    no_other_at: ClassVar[float] = math.nan
    pi: float = options.number(0.999, 0.0, 1.0, above=True)
    tau: float = options.number(0.2, 0.0)
    delta: float = options.number(-0.02)
    limit: float = options.number(10.0, 1.0, above=True)

    @property
    def remembers(self):
        return self.pi < 1.0

    def memory(self, z):
        zero = jnp.zeros(len(z), jnp.float32)
        return _Seen(zero, zero + jnp.inf, *(jnp.zeros_like(z),) * 3)

    def combine(self, at, cond, other, memory):
        level = jnp.broadcast_to(at.logsnr, memory.logsnr.shape)
        log_p = self.updated(memory, at.z, level, at.w)
        rest = 1.0 - self.pi
        w = at.w + (rest / (jnp.exp(log_p) - rest) if rest else 0.0)
        seen = _Seen(log_p, level, at.z, at.read(cond).x, at.read(other).x)
        return at.read(classifier_free(cond, other, w)), seen

    def updated(self, seen: _Seen, z: Array, level: Array, w: Array) -> Array:
        """Returns log p [N] at a level [N], where the sampler went to z [N, ...]; w [N] is what adds to lambda - 1."""
        cleaner = level > seen.logsnr
        ends = {'logsnr_s': level, 'logsnr_t': jnp.where(cleaner, seen.logsnr, level - 1.0)}
        mu_cond, mu_other = (process.posterior(seen.z, x, **ends) for x in (seen.cond, seen.other))
        # The difference of the squares, without what is the same in both.
        product = (mu_other.mean - mu_cond.mean) * (2.0 * z - mu_cond.mean - mu_other.mean)
        farther = jnp.sum(product.reshape(len(z), -1), axis=1)
        precision = jnp.exp(-mu_cond.logvar.reshape(len(z)))
        log_p = seen.log_p - 0.5 * self.tau * precision * farther + self.delta
        room = self.limit - w  # for lambda; 1 is none, and not reached
        least = jnp.where(room > 1.0, jnp.log((1.0 - self.pi) * room / jnp.maximum(room - 1.0, 1e-6)), MOST)
        return jnp.where(cleaner, jnp.clip(log_p, jnp.minimum(least, MOST), MOST), seen.log_p)
