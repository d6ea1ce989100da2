"""Defines the diffusion process: forward densities, posterior and reverse variance, and x <-> eps <-> v.

`logsnr_t` is the noisier of two levels and `logsnr_s` the cleaner one (logsnr_t < logsnr_s). Levels have
shape [] or [N] and broadcast against images [N, ...].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfg.diffusion.schedule import alpha_sigma

Array = jax.Array

PREDICTIONS = ('eps', 'x', 'v')


class Gaussian(NamedTuple):
    """Holds a normal distribution with independent components: mean [N, ...], log variance [N, 1, ...] or []."""

    mean: Array
    logvar: Array


class Prediction(NamedTuple):
    """A prediction is what a network output says of (x, eps); z = alpha x + sigma eps, unless a rule `renoises`."""

    x: Array
    eps: Array


def expand(level: Array, like: Array) -> Array:
    """Appends axes to a level of shape [] or [N] so that it broadcasts against `like` [N, ...]."""
    level = jnp.asarray(level)
    return level.reshape(level.shape + (1,) * (like.ndim - level.ndim)) if level.ndim else level


def diffuse(x: Array, eps: Array, logsnr: Array) -> Array:
    """Draws z = alpha x + sigma eps from q(z | x) = N(alpha x, sigma^2 I), given eps ~ N(0, I) (Eq. 1)."""
    alpha, sigma = alpha_sigma(expand(logsnr, x))
    return alpha * x + sigma * eps


def transition(z_s: Array, *, logsnr_s: Array, logsnr_t: Array) -> Gaussian:
    """Returns q(z_t | z_s) = N((alpha_t / alpha_s) z_s, (1 - e^(logsnr_t - logsnr_s)) sigma_t^2 I) (Eq. 2)."""
    logsnr_s, logsnr_t = expand(logsnr_s, z_s), expand(logsnr_t, z_s)
    ratio = jnp.exp(0.5 * (jax.nn.log_sigmoid(logsnr_t) - jax.nn.log_sigmoid(logsnr_s)))
    return Gaussian(ratio * z_s, _transition_logvar(logsnr_s=logsnr_s, logsnr_t=logsnr_t))


def posterior(z_t: Array, x: Array, *, logsnr_s: Array, logsnr_t: Array) -> Gaussian:
    """Returns q(z_s | z_t, x) (Eq. 3).

    mean = e^(logsnr_t - logsnr_s) (alpha_s / alpha_t) z_t + (1 - e^(logsnr_t - logsnr_s)) alpha_s x,
    variance = (1 - e^(logsnr_t - logsnr_s)) sigma_s^2.
    """
    logsnr_s, logsnr_t = expand(logsnr_s, z_t), expand(logsnr_t, z_t)
    log_alpha_s = 0.5 * jax.nn.log_sigmoid(logsnr_s)
    log_alpha_t = 0.5 * jax.nn.log_sigmoid(logsnr_t)
    delta = logsnr_t - logsnr_s
    mean = jnp.exp(delta + log_alpha_s - log_alpha_t) * z_t - jnp.expm1(delta) * jnp.exp(log_alpha_s) * x
    return Gaussian(mean, _posterior_logvar(logsnr_s=logsnr_s, logsnr_t=logsnr_t))


def reverse_logvar(*, logsnr_s: Array, logsnr_t: Array, logvar_interp: float) -> Array:
    """Returns the log of the reverse variance (posterior variance)^(1-v) (transition variance)^v (Eq. 4).

    `logvar_interp` is the paper's v in [0, 1]: 0 is the smallest variance, 1 the largest.
    """
    small = _posterior_logvar(logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    large = _transition_logvar(logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    return (1.0 - logvar_interp) * small + logvar_interp * large


def _transition_logvar(*, logsnr_s: Array, logsnr_t: Array) -> Array:
    """Returns the log of Eq. 2's variance, (1 - e^(logsnr_t - logsnr_s)) sigma_t^2."""
    return jax.nn.log1mexp(logsnr_s - logsnr_t) + jax.nn.log_sigmoid(-logsnr_t)


def _posterior_logvar(*, logsnr_s: Array, logsnr_t: Array) -> Array:
    """Returns the log of Eq. 3's variance, (1 - e^(logsnr_t - logsnr_s)) sigma_s^2."""
    return jax.nn.log1mexp(logsnr_s - logsnr_t) + jax.nn.log_sigmoid(-logsnr_s)


def x_from_eps(z: Array, eps: Array, logsnr: Array) -> Array:
    """Returns x = (z - sigma eps) / alpha (above Eq. 5). Errors of eps grow by sigma / alpha = e^(-logsnr / 2)."""
    alpha, sigma = alpha_sigma(expand(logsnr, z))
    return (z - sigma * eps) / alpha


def eps_from_x(z: Array, x: Array, logsnr: Array) -> Array:
    """Returns eps = (z - alpha x) / sigma."""
    alpha, sigma = alpha_sigma(expand(logsnr, z))
    return (z - alpha * x) / sigma


def v_from_x_eps(x: Array, eps: Array, logsnr: Array) -> Array:
    """Returns v = alpha eps - sigma x (Salimans & Ho 2022, arXiv 2202.00512)."""
    alpha, sigma = alpha_sigma(expand(logsnr, x))
    return alpha * eps - sigma * x


def from_output(output: Array, z: Array, logsnr: Array, *, prediction: str) -> Prediction:
    """Reads a network output [N, ...] that predicts eps, as the paper's, or x or v at the point z.

    Raises:
      ValueError: on any other prediction type.
    """
    if prediction == 'eps':
        return Prediction(x=x_from_eps(z, output, logsnr), eps=output)
    if prediction == 'x':
        return Prediction(x=output, eps=eps_from_x(z, output, logsnr))
    if prediction == 'v':
        alpha, sigma = alpha_sigma(expand(logsnr, z))
        return Prediction(x=alpha * z - sigma * output, eps=sigma * z + alpha * output)
    raise ValueError(f'prediction must be one of {PREDICTIONS}, not {prediction!r}')


def target(x: Array, eps: Array, logsnr: Array, *, prediction: str) -> Array:
    """Returns the value that a network of this prediction type should output: eps, x or v.

    Raises:
      ValueError: on any other prediction type.
    """
    if prediction == 'eps':
        return eps
    if prediction == 'x':
        return x
    if prediction == 'v':
        return v_from_x_eps(x, eps, logsnr)
    raise ValueError(f'prediction must be one of {PREDICTIONS}, not {prediction!r}')
