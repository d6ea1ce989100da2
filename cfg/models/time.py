"""Makes what the network is told of the noise level: logsnr -> a number in [0, 1000] -> a sinusoidal embedding.

Networks of this project see the continuous time of the paper's schedule. Networks that were trained elsewhere on 1000
discrete steps see the step whose noise level it is, with a fraction between two steps, so that any sampler runs them on
a grid of logsnr.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

NUM_STEPS = 1000


def logsnr_to_time(logsnr: Array) -> Array:
    """Returns the network's time input, arctan(exp(-logsnr / 2)) * 2 / pi * 1000, in [0, 1000].

    The sinusoidal embedding needs a bounded number: this is the time u of the untruncated schedule (0 is
    data), on the scale of the step numbers that ADM's embedding was designed for.
    """
    return jnp.arctan(jnp.exp(-0.5 * logsnr)) * (2000.0 / math.pi)


def strength_to_time(w: Array) -> Array:
    """Returns how a network is told of a guidance strength above -1: 1000 / (1 + w), 1000 for w = 0.

    1 / (1 + w) is what guidance-free training gives the network (Chen et al. 2025, arXiv 2501.15420); it is on the
    scale of the time.
    """
    return 1000.0 / (1.0 + w)


def adm_logsnrs(kind: str) -> np.ndarray:
    """Returns logsnr after each of ADM's 1000 steps, float64 [1000], decreasing.

    With beta_t the variance added in step t, alpha^2 = prod(1 - beta) and logsnr = log(alpha^2 / (1 - alpha^2)).

    Args:
      kind: 'adm_linear', beta from 1e-4 to 0.02 (Ho et al. 2020); or 'adm_cosine', alpha^2 proportional to
        cos^2((t / 1000 + 0.008) / 1.008 * pi / 2) with beta at most 0.999 (Nichol & Dhariwal 2021).

    Raises:
      ValueError: on another kind.
    """
    if kind == 'adm_linear':
        log_keep = np.log1p(-np.linspace(1e-4, 0.02, NUM_STEPS))
    elif kind == 'adm_cosine':
        angle = (np.arange(NUM_STEPS + 1) / NUM_STEPS + 0.008) / 1.008 * (np.pi / 2)
        log_keep = np.log(np.maximum(np.cos(angle[1:]) ** 2 / np.cos(angle[:-1]) ** 2, 1.0 - 0.999))
    else:
        raise ValueError(f"the discrete schedules are 'adm_cosine' and 'adm_linear', not {kind!r}")
    log_alpha_squared = np.cumsum(log_keep)
    return log_alpha_squared - np.log(-np.expm1(log_alpha_squared))


def adm_step(logsnr: Array, *, kind: str) -> Array:
    """Returns ADM's step number for a logsnr, fractional between steps and held at 0 and 999 outside their levels."""
    levels = adm_logsnrs(kind)[::-1]
    return jnp.interp(logsnr, jnp.asarray(levels, jnp.float32), jnp.arange(NUM_STEPS - 1, -1, -1, dtype=jnp.float32))


# config.model.time: how a network is told of logsnr. The released 64x64 networks of ADM have the cosine schedule, those
# of all other sizes the linear one.
TIME_FNS = {
    'continuous': logsnr_to_time,
    'adm_cosine': functools.partial(adm_step, kind='adm_cosine'),
    'adm_linear': functools.partial(adm_step, kind='adm_linear'),
}
TIMES = tuple(TIME_FNS)


def sinusoidal_embedding(time: Array, dim: int, max_period: float = 10000.0) -> Array:
    """Returns [cos(t f_i), sin(t f_i)] with f_i = max_period^(-i / (dim / 2)); time [N] -> [N, dim]."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = time.astype(jnp.float32)[:, None] * frequencies[None]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))
