"""Defines log signal-to-noise ratios: the training distribution p(logsnr) and the sampling grids.

`logsnr` is the paper's lambda; large values are clean. `u` in [0, 1] is time, with u = 0 at `logsnr_max`
(data) and u = 1 at `logsnr_min` (noise). Everything here is float32-safe for |logsnr| <= 20.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def alpha_sigma(logsnr: Array) -> tuple[Array, Array]:
    """Returns signal and noise scales of the variance-preserving process: alpha^2 = sigmoid(logsnr) (Eq. 1).

    Each comes from its own logarithm: sigma = sqrt(1 - alpha^2) would be 0 at logsnr = 20 in float32. Any shape.
    """
    alpha = jnp.exp(0.5 * jax.nn.log_sigmoid(logsnr))
    sigma = jnp.exp(0.5 * jax.nn.log_sigmoid(-logsnr))
    return alpha, sigma


def _angles(logsnr_min: float, logsnr_max: float) -> tuple[float, float, float]:
    """Returns (a, b, b'): the paper's a and b, and b' = pi/2 - a - b, each exact to float64."""
    if not logsnr_min < logsnr_max:
        raise ValueError(f'logsnr_min={logsnr_min} must be smaller than logsnr_max={logsnr_max}')
    b = np.arctan(np.exp(-0.5 * logsnr_max))
    b_end = np.arctan(np.exp(0.5 * logsnr_min))
    return float(np.pi / 2 - b - b_end), float(b), float(b_end)


def logsnr_from_u(u: Array, *, logsnr_min: float, logsnr_max: float) -> Array:
    """Returns the quantile function of p(logsnr): -2 log tan(a u + b) (Section 2, "hyperbolic secant").

    It decreases in u in [0, 1], of any shape. Towards pi/2 float32 cannot resolve the angle; past pi/4 the
    complementary one, a (1 - u) + b', takes its place, with tan(pi/2 - t) = 1 / tan(t).
    """
    a, b, b_end = _angles(logsnr_min, logsnr_max)
    u = jnp.asarray(u)
    angle, complement = a * u + b, a * (1.0 - u) + b_end
    clean = angle < complement
    # Both sides of `where` are evaluated, so each gets an argument inside its own range.
    near_data = -2.0 * jnp.log(jnp.tan(jnp.where(clean, angle, np.pi / 4)))
    near_noise = 2.0 * jnp.log(jnp.tan(jnp.where(clean, np.pi / 4, complement)))
    return jnp.clip(jnp.where(clean, near_data, near_noise), logsnr_min, logsnr_max)


def u_from_logsnr(logsnr: Array, *, logsnr_min: float, logsnr_max: float) -> Array:
    """Inverts `logsnr_from_u`: u = (arctan(exp(-logsnr / 2)) - b) / a, in [0, 1]."""
    a, b, b_end = _angles(logsnr_min, logsnr_max)
    from_data = (jnp.arctan(jnp.exp(-0.5 * logsnr)) - b) / a
    from_noise = 1.0 - (jnp.arctan(jnp.exp(0.5 * logsnr)) - b_end) / a
    return jnp.clip(jnp.where(logsnr > 0.0, from_data, from_noise), 0.0, 1.0)


def logsnr_density(logsnr: Array, *, logsnr_min: float, logsnr_max: float) -> Array:
    """Returns p(logsnr) = sech(logsnr / 2) / (4 a) inside the range and 0 outside (Section 2).

    With an unbounded range a = pi / 2 and this is the hyperbolic secant law sech(logsnr / 2) / (2 pi).
    """
    a, _, _ = _angles(logsnr_min, logsnr_max)
    inside = (logsnr >= logsnr_min) & (logsnr <= logsnr_max)
    return jnp.where(inside, 1.0 / (4.0 * a * jnp.cosh(0.5 * logsnr)), 0.0)


def stratify(u: Array, index: Array, total: int) -> Array:
    """Moves a uniform draw into stratum `index` of `total` equal ones: (index + u) / total.

    Over a batch whose indices run through 0..total-1 the result covers [0, 1] evenly, which lowers the
    variance of the loss; each draw, u in [0, 1), is still uniform if the index is independent of the example.
    """
    return (index + u) / total


def sampling_grid(num_steps: int, *, logsnr_min: float, logsnr_max: float) -> Array:
    """Returns the increasing sequence of T >= 2 logsnr that Alg. 2 visits: uniform in u, both ends included."""
    _check(num_steps, logsnr_min, logsnr_max)
    return logsnr_from_u(jnp.linspace(1.0, 0.0, num_steps), logsnr_min=logsnr_min, logsnr_max=logsnr_max)


def nested_grid(num_steps: int, *, logsnr_min: float, logsnr_max: float) -> Array:
    """Returns the increasing logsnr at u = i / T for i = T to 1: every other level of twice as many steps.

    It is the grid of progressive distillation (Salimans & Ho 2022, arXiv 2202.00512). After the last level comes clean
    data, u = 0, so that T may be 1.
    """
    _check(num_steps, logsnr_min, logsnr_max, least=1)
    levels = jnp.arange(num_steps, 0, -1) / num_steps
    return logsnr_from_u(levels, logsnr_min=logsnr_min, logsnr_max=logsnr_max)


def uniform_grid(num_steps: int, *, logsnr_min: float, logsnr_max: float) -> Array:
    """Returns a grid as `sampling_grid` does, uniform in logsnr: DPM-Solver's (Lu et al. 2022, arXiv 2206.00927)."""
    _check(num_steps, logsnr_min, logsnr_max)
    return jnp.asarray(np.linspace(logsnr_min, logsnr_max, num_steps), jnp.float32)


def rho_grid(num_steps: int, *, logsnr_min: float, logsnr_max: float, rho: float = 7.0) -> Array:
    """Returns a grid as `sampling_grid` does, uniform in sigma^(1/rho) with EDM's sigma = e^(-logsnr / 2).

    sigma_i = (sigma_max^(1/rho) + i / (T - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i = 0..T-1 (Karras et al.
    2022, arXiv 2206.00364, Eq. 5). There sigma is in [0.002, 80], which is logsnr in [-8.76, 12.43].
    """
    _check(num_steps, logsnr_min, logsnr_max)
    if not rho > 0.0:
        raise ValueError(f'rho must be positive, not {rho}')
    ends = np.exp(-0.5 * np.array([logsnr_min, logsnr_max], np.float64) / rho)
    grid = -2.0 * rho * np.log(np.linspace(ends[0], ends[1], num_steps))
    grid[[0, -1]] = logsnr_min, logsnr_max
    return jnp.asarray(grid, jnp.float32)


def _check(num_steps: int, logsnr_min: float, logsnr_max: float, *, least: int = 2) -> None:
    if num_steps < least:
        words = 'the sampling grid includes both ends, so num_steps' if least == 2 else 'num_steps'
        raise ValueError(f'{words} must be at least {least}, not {num_steps}')
    if not logsnr_min < logsnr_max:
        raise ValueError(f'logsnr_min={logsnr_min} must be smaller than logsnr_max={logsnr_max}')


def logsnr_from_sigma(sigma: Array) -> Array:
    """Returns -2 log sigma of EDM's sigma: the noise of z / alpha = x + sigma eps, which is our sigma / alpha."""
    return -2.0 * jnp.log(sigma)


def sigma_from_logsnr(logsnr: Array) -> Array:
    """Returns EDM's sigma, e^(-logsnr / 2), not that of `alpha_sigma`, which is sigma / sqrt(1 + sigma^2)."""
    return jnp.exp(-0.5 * jnp.asarray(logsnr))
