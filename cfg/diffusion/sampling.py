"""Ancestral sampling (Alg. 2) over any eps function or guidance rule, and what it shares with the other samplers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfg.diffusion import process, rules
from cfg.diffusion.guidance import EpsFn

Array = jax.Array


class Levels(NamedTuple):
    """The steps over a grid [T], in the order that they are taken."""

    index: Array  # 1..T
    logsnr_t: Array  # where the step starts
    logsnr_s: Array  # where it goes
    last: Array  # whether this is the last level, whose estimate of x is the sample


def levels(logsnrs: Array) -> Levels:
    """All steps of a grid. The last level has no next one; any cleaner level will do, as that step is not used."""
    index = jnp.arange(1, logsnrs.shape[0] + 1)
    following = jnp.concatenate([logsnrs[1:], logsnrs[-1:] + 1.0])
    return Levels(index, logsnrs, following, index == logsnrs.shape[0])


def noise(keys: Array, index: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise number `index` of each key: [N, *shape]. Number 0 is the start at logsnr_min."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def ancestral(
    model: EpsFn | rules.Rule,
    keys: Array,
    labels: Array,
    logsnrs: Array,
    *,
    shape: tuple[int, ...],
    logvar_interp: float,
    clip_x: bool,
    temperature: float | Array = 1.0,
) -> Array:
    """Draws samples by Alg. 2, as one scan over the grid: T evaluations.

    Starts from N(0, I) at logsnrs[0]. At each level x is estimated from the (guided) eps; the step to the
    next level is Eq. 4 with this estimate in the place of x. What is returned is the estimate at the last
    level, so the last step adds no noise.

    Args:
      model: (z [N, ...], logsnr [], labels [N]) -> eps [N, ...], guided or not, or a rule.
      keys: [N] typed PRNG keys, one a sample; a sample depends on nothing else.
      labels: int32 [N].
      logsnrs: [T], increasing, from `schedule.sampling_grid`.
      shape: of one sample, without the batch axis.
      logvar_interp: the paper's v in [0, 1].
      clip_x: whether the estimate of x is clipped to [-1, 1] at every step.
      temperature: factor of the noise that the steps add, [] or [N]. Below 1 it blurs (Section 3).

    Returns:
      [N, *shape] float32.
    """
    rule = rules.as_rule(model)
    rule = rules.clipped(rule) if clip_x else rule

    def step(carry, level):
        z, state = carry
        prediction, state = rule.predict(z, level.logsnr_t, labels, state)
        ends = {'logsnr_s': level.logsnr_s, 'logsnr_t': level.logsnr_t}
        mean = process.posterior(rules.origin(rule, z, prediction, level.logsnr_t), prediction.x, **ends).mean
        std = jnp.exp(0.5 * process.reverse_logvar(**ends, logvar_interp=logvar_interp))
        stepped = mean + process.expand(temperature, z) * std * noise(keys, level.index, shape)
        return (jnp.where(level.last, prediction.x, stepped), state), None

    z = noise(keys, 0, shape)
    (x, _), _ = jax.lax.scan(step, (z, rule.init(keys, z)), levels(logsnrs))
    return x
