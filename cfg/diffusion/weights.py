"""Defines which noise levels training draws, and what an error counts at each: the weighted forms of Eq. 5.

A weight is a density w(logsnr): the loss is the integral of w times the squared error of eps (Kingma & Gao 2023, arXiv
2303.00848). Where the levels are drawn from a density q, the error counts w / q.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from cfg.diffusion import schedule

Array = jax.Array

WEIGHTINGS = ('truncated', 'eps', 'x', 'v')
LOSS_WEIGHTS = ('', 'eps', 'v', 'edm', 'sigmoid')
TIMES = ('paper', 'edm')
# Of EDM, whose sigma is e^(-logsnr / 2): ln sigma ~ N(-1.2, 1.2^2), so logsnr ~ N(2.4, 2.4^2), and the deviation of its
# data (Karras et al. 2022, arXiv 2206.00364, Table 1).
EDM_MEAN, EDM_STD, EDM_DATA = 2.4, 2.4, 0.5


def log_weight(logsnr: Array, *, prediction: str, weighting: str) -> Array:
    """Returns the log of the factor that turns a squared error of a prediction into that of a weighting.

    At one z errors of x, eps and v are multiples of each other: |eps|^2 = e^logsnr |x|^2, |v|^2 = (1 + e^logsnr) |x|^2.
    'truncated' is max(|x|^2, |eps|^2) (Salimans & Ho 2022, arXiv 2202.00512, "truncated SNR").
    """
    over_x = {
        'x': jnp.zeros_like(logsnr),
        'eps': logsnr,
        'v': jax.nn.softplus(logsnr),
        'truncated': jnp.maximum(logsnr, 0.0),
    }
    return over_x[weighting] - over_x[prediction]


def edm_over_eps(logsnr: Array) -> Array:
    """Returns the log of 1 + sigma^2 / 0.5^2, EDM's lambda(sigma) |x|^2 over |eps|^2 of errors.

    lambda(sigma) = (sigma^2 + 0.5^2) / (0.5 sigma)^2 (Karras et al. 2022, Table 1); |x| = sigma |eps| of errors.
    """
    return jax.nn.softplus(-logsnr - 2.0 * math.log(EDM_DATA))


def edm_log_density(logsnr: Array) -> Array:
    """Returns the log density of EDM's levels (Karras et al. 2022, Table 1), of any logsnr."""
    return -0.5 * jnp.square((logsnr - EDM_MEAN) / EDM_STD) - math.log(EDM_STD * math.sqrt(2.0 * math.pi))


def edm_from_u(u: Array, *, logsnr_min: float, logsnr_max: float) -> Array:
    """Returns the quantile function of EDM's levels, cut to the range; it decreases in u in [0, 1], of any shape."""
    first, last = _cleaner(logsnr_max), _cleaner(logsnr_min)
    logsnr = EDM_MEAN - EDM_STD * jax.scipy.special.ndtri(first + (last - first) * jnp.asarray(u))
    return jnp.clip(logsnr, logsnr_min, logsnr_max)


def _cleaner(logsnr: float) -> float:
    """Returns the share of EDM's levels above one."""
    return 0.5 * math.erfc((logsnr - EDM_MEAN) / (EDM_STD * math.sqrt(2.0)))


@dataclass(frozen=True, kw_only=True)
class LossWeight:
    """A loss weight says which levels are drawn, and what the squared error of a network's output counts there.

    Attributes:
      name: 'eps', the paper's, 'v' (Salimans & Ho 2022), 'edm' (Karras et al. 2022), 'sigmoid', which is w =
        sigmoid(bias - logsnr) (Kingma & Gao 2023; Hoogeboom et al. 2024, arXiv 2410.19324), or '' for the plain error
        of whatever the network predicts.
      times: the levels that are drawn: the 'paper's, or those of 'edm', which go with its weight alone.
      bias: of 'sigmoid'.

    Raises:
      ValueError: on other names.
    """

    name: str = ''
    times: str = 'paper'
    bias: float = 0.0

    def __post_init__(self):
        if self.name not in LOSS_WEIGHTS or self.times not in TIMES or (self.times == 'edm' and self.name != 'edm'):
            raise ValueError(f'there is no weight {self.name!r} at the times {self.times!r}')

    def levels(self, u: Array, *, logsnr_min: float, logsnr_max: float) -> Array:
        """Returns the levels at times u in [0, 1], from clean to noisy; any shape."""
        quantile = edm_from_u if self.times == 'edm' else schedule.logsnr_from_u
        return quantile(u, logsnr_min=logsnr_min, logsnr_max=logsnr_max)

    def log_factor(self, logsnr: Array, *, prediction: str, logsnr_min: float, logsnr_max: float) -> Array:
        """Returns the log of what the squared error of a prediction counts at levels that were drawn; any shape."""
        if self.name in ('', 'eps', 'v'):  # the paper's density is a factor of w
            return log_weight(logsnr, prediction=prediction, weighting=self.name or prediction)
        over_eps = log_weight(logsnr, prediction=prediction, weighting='eps')
        if self.times == 'edm':
            return over_eps + edm_over_eps(logsnr) + math.log(_cleaner(logsnr_min) - _cleaner(logsnr_max))
        drawn = jnp.log(schedule.logsnr_density(logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max))
        if self.name == 'edm':
            return over_eps + edm_over_eps(logsnr) + edm_log_density(logsnr) - drawn
        return over_eps + jax.nn.log_sigmoid(self.bias - logsnr) - drawn


PLAIN = LossWeight()  # the paper's
