"""The ways from noise to a sample: Alg. 2, and those of fewer steps.

h = (logsnr_s - logsnr_t) / 2 is a step in log(alpha / sigma). `temperature` is the factor of the noise that steps add.
SOLVERS at the end lists those that a config may name; `tilted` has two more.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import options, process, schedule
from cfg.diffusion.stepping import Solver

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    """Ancestral sampling (Alg. 2) takes T evaluations.

    At each level x is estimated from the guided prediction; the step to the next level is Eq. 4 with this estimate in
    the place of x. `logvar_interp` is the paper's v in [0, 1]; in a config it is a field of its own.
    """

    name: ClassVar[str] = 'ancestral'
    logvar_interp: float = options.number(0.3, 0.0, 1.0, parsed=False)
    temperature: float = options.number(1.0, 0.0)

    def step(self, guided, at, z, state, memory, noise):
        prediction, state = guided.predict(z, at.logsnr_t, state)
        ends = {'logsnr_s': at.logsnr_s, 'logsnr_t': at.logsnr_t}
        mean = process.posterior(guided.origin(z, prediction, at.logsnr_t), prediction.x, **ends).mean
        std = jnp.exp(0.5 * process.reverse_logvar(**ends, logvar_interp=self.logvar_interp))
        factor = process.expand(guided.noise_factor * self.temperature, z)
        return jnp.where(at.last, prediction.x, mean + factor * std * noise()), state, memory

    @property
    def adds_noise(self):
        return self.temperature > 0.0


@dataclass(frozen=True, kw_only=True)
class Ddim(Solver):
    """DDIM takes T evaluations and is of order 1 (Song et al. 2020, arXiv 2010.02502, Eq. 12 and 16).

    z_s = alpha_s x + sqrt(sigma_s^2 - eta^2 s~^2) eps + eta s~ noise, with Eq. 3's s~^2 = (1 - e^(logsnr_t - logsnr_s))
    sigma_s^2. eta = 0 is deterministic, eta = 1 is Alg. 2 with v = 0.
    """

    name: ClassVar[str] = 'ddim'
    reach: ClassVar[int] = 1  # the levels of the grid that a step goes towards clean data, for `loss.halving_loss`
    eta: float = options.number(0.0, 0.0, 1.0)
    temperature: float = options.number(1.0, 0.0, needs='eta')

    def step(self, guided, at, z, state, memory, noise):
        prediction, state = guided.predict(z, at.logsnr_t, state)
        alpha_s, sigma_s = schedule.alpha_sigma(at.logsnr_s)
        shrink = jnp.expm1(at.logsnr_t - at.logsnr_s)  # -s~^2 / sigma_s^2
        stepped = alpha_s * prediction.x + sigma_s * jnp.sqrt(1.0 + self.eta**2 * shrink) * prediction.eps
        if self.eta:
            factor = process.expand(guided.noise_factor * self.temperature, z)
            stepped += factor * self.eta * sigma_s * jnp.sqrt(-shrink) * noise()
        return jnp.where(at.last, prediction.x, stepped), state, memory

    @property
    def adds_noise(self):
        return self.eta > 0.0 and self.temperature > 0.0


@dataclass(frozen=True, kw_only=True)
class ForthAndBack(Solver):
    """DDIM two levels forth, then noise that leads one back, takes T evaluations (Meng et al. 2022, Section 3.3).

    arXiv 2210.03142. With k the level after s, z_k is the step of DDIM with eta = 0 from t, and z_s ~ q(z_s | z_k) =
    N((alpha_s / alpha_k) z_k, sigma_{s|k}^2). Together z_s = alpha_s x + sigma_s (sqrt(r) eps + sqrt(1 - r) noise) with
    r = e^(logsnr_s - logsnr_k). After the last level comes clean data, r = 0. It is for students that learned steps of
    this length.
    """

    name: ClassVar[str] = 'forth_and_back'
    reach: ClassVar[int] = 2
    temperature: float = options.number(1.0, 0.0)

    def step(self, guided, at, z, state, memory, noise):
        prediction, state = guided.predict(z, at.logsnr_t, state)
        alpha_s, sigma_s = schedule.alpha_sigma(at.logsnr_s)
        kept = at.logsnr_s - at.logsnr_after
        factor = process.expand(guided.noise_factor * self.temperature, z)
        both = jnp.exp(0.5 * kept) * prediction.eps + factor * jnp.sqrt(-jnp.expm1(kept)) * noise()
        return jnp.where(at.last, prediction.x, alpha_s * prediction.x + sigma_s * both), state, memory

    @property
    def adds_noise(self):
        return self.temperature > 0.0


@dataclass(frozen=True, kw_only=True)
class DpmSolver2M(Solver):
    """DPM-Solver++ (2M) and its SDE form take T evaluations (Lu et al. 2022, arXiv 2211.01095).

    With the estimate before, x', and the step before, h', D = x + (h / 2h') (x - x'); the first step has D = x.
      ODE, order 2: z_s = (sigma_s / sigma_t) z_t + alpha_s (1 - e^-h) D;
      SDE (`stochastic`): z_s = (sigma_s / sigma_t) e^-h z_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) noise.
    With D = x they are DDIM with eta = 0 and with eta = 1. For a rule that renoises x' is the one of its eps, as in
    the released CFG++.
    """

    name: ClassVar[str] = 'dpm_solver_2m'
    stochastic: bool = options.choice(False, True)
    temperature: float = options.number(1.0, 0.0, needs='stochastic')

    def memory(self, z, num_steps):
        return jnp.zeros_like(z), jnp.float32(jnp.inf)  # no step before the first one is as one that is infinite

    def step(self, guided, at, z, state, memory, noise):
        x_before, h_before = memory
        prediction, state = guided.predict(z, at.logsnr_t, state)
        start = guided.origin(z, prediction, at.logsnr_t)
        h = 0.5 * (at.logsnr_s - at.logsnr_t)
        extrapolated = prediction.x + h / (2.0 * h_before) * (prediction.x - x_before)
        alpha_s, _ = schedule.alpha_sigma(at.logsnr_s)
        log_sigma_s = 0.5 * jax.nn.log_sigmoid(-at.logsnr_s)
        log_ratio = log_sigma_s - 0.5 * jax.nn.log_sigmoid(-at.logsnr_t)
        if self.stochastic:
            stepped = jnp.exp(log_ratio - h) * start - alpha_s * jnp.expm1(-2.0 * h) * extrapolated
            factor = process.expand(guided.noise_factor * self.temperature, z)
            stepped += factor * jnp.exp(log_sigma_s) * jnp.sqrt(-jnp.expm1(-2.0 * h)) * noise()
        else:
            stepped = jnp.exp(log_ratio) * start - alpha_s * jnp.expm1(-h) * extrapolated
        x_before = process.x_from_eps(z, prediction.eps, at.logsnr_t) if guided.renoises else prediction.x
        return jnp.where(at.last, prediction.x, stepped), state, (x_before, h)

    @property
    def adds_noise(self):
        return self.stochastic and self.temperature > 0.0


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """EDM's sampler takes 2T - 1 evaluations, of order 2 without churn (Karras et al. 2022, 2206.00364, Alg. 1 and 2).

    EDM's variable is y = z / alpha = x + sigma eps with EDM's sigma = e^(-logsnr / 2), and its slope dy / dsigma =
    (y - x) / sigma is eps. A step is y_s = y_t + (sigma_s - sigma_t) eps_t, then the same with the mean of eps_t and
    the eps there; the last level, which leads to sigma = 0, takes the first alone. In z the step with slope d is
    z_s = (alpha_s / alpha_t) z_t - sigma_s (e^h - 1) d, with our sigma_s.
    Churn raises sigma by the factor 1 + gamma with gamma = min(s_churn / T, sqrt(2) - 1) before a step where EDM's
    sigma is in [s_min, s_max], and adds the noise s_noise sqrt((1 + gamma)^2 - 1) sigma. At the first level this asks
    the network for a level below the grid, unless s_max excludes it. s_noise is the temperature of this sampler.
    """

    name: ClassVar[str] = 'heun'
    s_churn: float = options.number(0.0, 0.0)
    s_min: float = options.number(0.0, 0.0, needs='s_churn')
    s_max: float | None = options.number(None, 0.0, optional=True, needs='s_churn')
    s_noise: float = options.number(1.0, 0.0, needs='s_churn')

    def __post_init__(self):
        super().__post_init__()
        if self.s_max is not None and self.s_min > self.s_max:
            raise ValueError('s_min must be at most s_max, or s_churn changes nothing')

    def gamma(self, sigma: Array, largest: Array | float) -> Array:
        """Returns by which share churn raises EDM's sigma; `largest` where there is churn at all."""
        inside = (sigma >= self.s_min) & (sigma <= (math.inf if self.s_max is None else self.s_max))
        return jnp.where(inside, largest, 0.0)

    def largest_gamma(self, num_steps: int) -> float:
        """Returns min(S_churn / T, sqrt(2) - 1) (Karras et al. 2022, Alg. 2)."""
        return min(self.s_churn / num_steps, math.sqrt(2.0) - 1.0)

    def memory(self, z, num_steps):
        return jnp.float32(self.largest_gamma(num_steps))

    def step(self, guided, at, z, state, memory, noise):
        logsnr_t = at.logsnr_t
        if self.s_churn:
            gamma = self.gamma(schedule.sigma_from_logsnr(logsnr_t), memory)
            z, logsnr_t = self._churn(z, logsnr_t, gamma, noise())
        prediction, state = guided.predict(z, logsnr_t, state)
        start = guided.origin(z, prediction, logsnr_t)

        def corrected(state):
            ends = {'logsnr_s': at.logsnr_s, 'logsnr_t': logsnr_t}
            second, state = guided.predict(_along(start, prediction.eps, **ends), at.logsnr_s, state)
            return _along(start, 0.5 * (prediction.eps + second.eps), **ends), state

        z, state = jax.lax.cond(at.last, lambda state: (prediction.x, state), corrected, state)
        return z, state, memory

    def _churn(self, z: Array, logsnr_t: Array, gamma: Array, noise: Array) -> tuple[Array, Array]:
        """Returns z with more noise, and its level."""
        raised = logsnr_t - 2.0 * jnp.log1p(gamma)
        added = self.s_noise * jnp.sqrt(gamma * (2.0 + gamma)) / (1.0 + gamma)
        _, sigma_raised = schedule.alpha_sigma(raised)
        ratio = jnp.exp(0.5 * (jax.nn.log_sigmoid(raised) - jax.nn.log_sigmoid(logsnr_t)))
        return ratio * z + added * sigma_raised * noise, raised

    def visits(self, logsnrs):
        found = np.empty(2 * len(logsnrs) - 1, logsnrs.dtype)
        found[::2] = logsnrs - 2.0 * np.log1p(self.gamma(np.exp(-0.5 * logsnrs), self.largest_gamma(len(logsnrs))))
        found[1::2] = logsnrs[1:]
        return found


def _along(z: Array, slope: Array, *, logsnr_s: Array, logsnr_t: Array) -> Array:
    """Returns z after an Euler step of EDM's equation with this slope."""
    _, sigma_s = schedule.alpha_sigma(logsnr_s)
    ratio = jnp.exp(0.5 * (jax.nn.log_sigmoid(logsnr_s) - jax.nn.log_sigmoid(logsnr_t)))
    return ratio * z - sigma_s * jnp.expm1(0.5 * (logsnr_s - logsnr_t)) * slope


SOLVERS = (Ancestral, Ddim, ForthAndBack, DpmSolver2M, Heun)
