"""Averages of parameters whose weights grow like a power of time (Karras et al. 2024, arXiv 2312.02696).

Their profile at time t is p(t') = (gamma + 1) t'^gamma / t^(gamma + 1) on [0, t]. Its length is its standard deviation
in shares of t (the paper's sigma_rel). Equations and algorithms have the numbers that the authors' code gives them
(github.com/NVlabs/edm2, training/phema.py).
"""

import jax
import jax.numpy as jnp
import numpy as np


def length_of(gamma: float) -> float:
    """Returns the length of the profile of an exponent (Eq. 123)."""
    return float(np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2))


def exponent(length: float) -> float:
    """Returns the gamma >= 0 of a length in (0, 1 / sqrt(12)]: the largest root of a cubic (Eq. 126, Algorithm 2).

    It is Eq. 123, solved for gamma: (gamma + 2)^2 (gamma + 3) length^2 = gamma + 1.
    """
    t = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


def share(step: jax.Array, gamma: float) -> jax.Array:
    """Returns the weight of the newest parameters in the average after a step, counted from 1 (1 - beta of Eq. 127).

    So the parameters of step i have the weight of [i - 1, i] in the profile at time `step`, exactly.
    """
    return -jnp.expm1((gamma + 1.0) * jnp.log1p(-1.0 / step))


def inner_product(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """Returns the integral of the product of two profiles, at times t_a and t_b (Eq. 151)."""
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    longer = (first / last) ** np.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * longer / last


def solve(times: np.ndarray, gammas: np.ndarray, *, time: float, gamma: float) -> tuple[np.ndarray, float]:
    """Finds the weighted sum of profiles that is nearest to another in L2 (Algorithm 3).

    Args:
      times, gammas: of the profiles that there are, [N] each.
      time, gamma: of the one that is wanted.

    Returns:
      (weights float64 [N] whose sum is 1, the norm of what is missing over that of the profile).
    """
    each = (np.asarray(times, float), np.asarray(gammas, float))
    gram = inner_product(*(x[:, None] for x in each), *each)
    norms = np.sqrt(np.diag(gram))  # profiles of norm 1 make the system easier to solve
    products, own = inner_product(*each, time, gamma), inner_product(time, gamma, time, gamma)
    weights = np.linalg.solve(gram / norms / norms[:, None], products / norms) / norms
    weights /= weights.sum()
    missing = own - 2 * weights @ products + weights @ gram @ weights
    return weights, float(np.sqrt(max(missing, 0.0) / own))
