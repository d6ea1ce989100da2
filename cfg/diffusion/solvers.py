"""Samplers of fewer steps: DDIM, DPM-Solver++ 2M and its SDE form, Heun's method of EDM.

All take what `sampling.ancestral` takes, an eps function or a rule, and give the estimate of x at the last level of
the grid, so that the last step adds no noise. Each is one scan. The noise of level i is `sampling.noise` number i, as
in Alg. 2. Steps go from logsnr_t to logsnr_s > logsnr_t; h = (logsnr_s - logsnr_t) / 2 is the step in
log(alpha / sigma).
"""

import math

import jax
import jax.numpy as jnp

from cfg.diffusion import process, rules, schedule
from cfg.diffusion.guidance import EpsFn
from cfg.diffusion.sampling import levels, noise

Array = jax.Array


def ddim(
    model: EpsFn | rules.Rule,
    keys: Array,
    labels: Array,
    logsnrs: Array,
    *,
    shape: tuple[int, ...],
    clip_x: bool,
    eta: float = 0.0,
    temperature: float | Array = 1.0,
) -> Array:
    """DDIM (Song et al. 2020, arXiv 2010.02502, Eq. 12 and 16): T evaluations, order 1.

    z_s = alpha_s x + sqrt(sigma_s^2 - eta^2 s~^2) eps + eta s~ noise, with Eq. 3's s~^2 = (1 - e^(logsnr_t - logsnr_s))
    sigma_s^2. eta = 0 is deterministic, eta = 1 is Alg. 2 with v = 0.

    Args:
      model, keys, labels, logsnrs, shape, clip_x, temperature: as in `sampling.ancestral`.
      eta: in [0, 1], a number.
    """
    rule = rules.as_rule(model)
    rule = rules.clipped(rule) if clip_x else rule

    def step(carry, level):
        z, state = carry
        prediction, state = rule.predict(z, level.logsnr_t, labels, state)
        alpha_s, sigma_s = schedule.alpha_sigma(level.logsnr_s)
        shrink = jnp.expm1(level.logsnr_t - level.logsnr_s)  # -s~^2 / sigma_s^2
        stepped = alpha_s * prediction.x + sigma_s * jnp.sqrt(1.0 + eta**2 * shrink) * prediction.eps
        if eta:
            scale = process.expand(temperature, z) * eta * sigma_s * jnp.sqrt(-shrink)
            stepped += scale * noise(keys, level.index, shape)
        return (jnp.where(level.last, prediction.x, stepped), state), None

    z = noise(keys, 0, shape)
    (x, _), _ = jax.lax.scan(step, (z, rule.init(keys, z)), levels(logsnrs))
    return x


def dpm_solver_2m(
    model: EpsFn | rules.Rule,
    keys: Array,
    labels: Array,
    logsnrs: Array,
    *,
    shape: tuple[int, ...],
    clip_x: bool,
    stochastic: bool,
    temperature: float | Array = 1.0,
) -> Array:
    """DPM-Solver++ (2M) and its SDE form (Lu et al. 2022, arXiv 2211.01095): T evaluations.

    With the estimate before, x', and the step before, h', D = x + (h / 2h') (x - x'); the first step has D = x.
      ODE, order 2: z_s = (sigma_s / sigma_t) z_t + alpha_s (1 - e^-h) D;
      SDE: z_s = (sigma_s / sigma_t) e^-h z_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) noise.
    With D = x they are DDIM with eta = 0 and with eta = 1. For a rule that renoises x' is the one of its eps, as in
    the released CFG++.

    Args:
      model, keys, labels, logsnrs, shape, clip_x, temperature: as in `sampling.ancestral`; temperature only of the SDE.
      stochastic: the SDE form.
    """
    rule = rules.as_rule(model)
    rule = rules.clipped(rule) if clip_x else rule

    def step(carry, level):
        z, state, x_before, h_before = carry
        prediction, state = rule.predict(z, level.logsnr_t, labels, state)
        start = rules.origin(rule, z, prediction, level.logsnr_t)
        h = 0.5 * (level.logsnr_s - level.logsnr_t)
        # h_before is infinite before the first step.
        extrapolated = prediction.x + h / (2.0 * h_before) * (prediction.x - x_before)
        alpha_s, _ = schedule.alpha_sigma(level.logsnr_s)
        log_sigma_s = 0.5 * jax.nn.log_sigmoid(-level.logsnr_s)
        log_ratio = log_sigma_s - 0.5 * jax.nn.log_sigmoid(-level.logsnr_t)
        if stochastic:
            stepped = jnp.exp(log_ratio - h) * start - alpha_s * jnp.expm1(-2.0 * h) * extrapolated
            scale = process.expand(temperature, z) * jnp.exp(log_sigma_s) * jnp.sqrt(-jnp.expm1(-2.0 * h))
            stepped += scale * noise(keys, level.index, shape)
        else:
            stepped = jnp.exp(log_ratio) * start - alpha_s * jnp.expm1(-h) * extrapolated
        x_before = process.x_from_eps(z, prediction.eps, level.logsnr_t) if rule.renoises else prediction.x
        return (jnp.where(level.last, prediction.x, stepped), state, x_before, h), None

    z = noise(keys, 0, shape)
    start = (z, rule.init(keys, z), jnp.zeros_like(z), jnp.float32(jnp.inf))
    (x, *_), _ = jax.lax.scan(step, start, levels(logsnrs))
    return x


def churn_factor(s_churn: float, num_steps: int) -> float:
    """gamma = min(S_churn / T, sqrt(2) - 1), by which churn raises EDM's sigma (Karras et al. 2022, Alg. 2)."""
    return min(s_churn / num_steps, math.sqrt(2.0) - 1.0)


def heun(
    model: EpsFn | rules.Rule,
    keys: Array,
    labels: Array,
    logsnrs: Array,
    *,
    shape: tuple[int, ...],
    clip_x: bool,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Array:
    """EDM's sampler (Karras et al. 2022, arXiv 2206.00364, Alg. 1 and 2): 2T - 1 evaluations, order 2 without churn.

    EDM's variable is y = z / alpha = x + sigma eps with EDM's sigma = e^(-logsnr / 2), and its slope dy / dsigma =
    (y - x) / sigma is eps. A step is y_s = y_t + (sigma_s - sigma_t) eps_t, then the same with the mean of eps_t and
    the eps there; the last level, which leads to sigma = 0, takes the first alone. In z the step with slope d is
    z_s = (alpha_s / alpha_t) z_t - sigma_s (e^h - 1) d, with our sigma_s.
    Churn raises sigma by the factor 1 + gamma with gamma = min(s_churn / T, sqrt(2) - 1) before a step, and adds the
    noise s_noise sqrt((1 + gamma)^2 - 1) sigma. At logsnrs[0] this asks the network for a level below the grid, unless
    s_max excludes it.

    Args:
      model, keys, labels, logsnrs, shape, clip_x: as in `sampling.ancestral`.
      s_churn: EDM's S_churn, a number; 0 is deterministic.
      s_min, s_max: churn only where EDM's sigma is in [s_min, s_max].
      s_noise: factor of the noise; the temperature of this sampler.
    """
    rule = rules.as_rule(model)
    rule = rules.clipped(rule) if clip_x else rule
    most = churn_factor(s_churn, logsnrs.shape[0])

    def churn(z, level):
        sigma = schedule.sigma_from_logsnr(level.logsnr_t)
        gamma = jnp.where((sigma >= s_min) & (sigma <= s_max), most, 0.0)
        raised = level.logsnr_t - 2.0 * jnp.log1p(gamma)
        added = s_noise * jnp.sqrt(gamma * (2.0 + gamma)) / (1.0 + gamma)
        _, sigma_raised = schedule.alpha_sigma(raised)
        ratio = jnp.exp(0.5 * (jax.nn.log_sigmoid(raised) - jax.nn.log_sigmoid(level.logsnr_t)))
        return ratio * z + added * sigma_raised * noise(keys, level.index, shape), raised

    def along(z, slope, *, logsnr_s, logsnr_t):
        _, sigma_s = schedule.alpha_sigma(logsnr_s)
        ratio = jnp.exp(0.5 * (jax.nn.log_sigmoid(logsnr_s) - jax.nn.log_sigmoid(logsnr_t)))
        return ratio * z - sigma_s * jnp.expm1(0.5 * (logsnr_s - logsnr_t)) * slope

    def step(carry, level):
        z, state = carry
        z, logsnr_t = churn(z, level) if s_churn else (z, level.logsnr_t)
        prediction, state = rule.predict(z, logsnr_t, labels, state)
        start = rules.origin(rule, z, prediction, logsnr_t)

        def corrected(state):
            ends = {'logsnr_s': level.logsnr_s, 'logsnr_t': logsnr_t}
            second, state = rule.predict(along(start, prediction.eps, **ends), level.logsnr_s, labels, state)
            return along(start, 0.5 * (prediction.eps + second.eps), **ends), state

        return jax.lax.cond(level.last, lambda state: (prediction.x, state), corrected, state), None

    z = noise(keys, 0, shape)
    (x, _), _ = jax.lax.scan(step, (z, rule.init(keys, z)), levels(logsnrs))
    return x
