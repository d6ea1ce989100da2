"""Changes what Eq. 6 makes of the two predictions, or what it adds: rules that are not linear in them."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from cfg.diffusion import corrections, options, process
from cfg.diffusion.process import Prediction
from cfg.diffusion.rules.base import Levelled, against, end_of
from cfg.diffusion.rules.pairs import Pair, classifier_free


@dataclass(frozen=True, kw_only=True)
class Rescale(Levelled, Pair):
    """Eq. 6 is rescaled to the conditional output's standard deviation: see `corrections.rescale` (Lin et al. 2023).

    phi = 0 is Eq. 6. `prediction` says of which output the deviation is matched: the paper's models output v, and
    common code takes whatever the network outputs. Two evaluations; one where every w is 0.
    """

    name: ClassVar[str] = 'rescale'
    no_cond_at: ClassVar[float] = math.nan
    phi: float = options.number(0.7, 0.0, 1.0)
    prediction: str = options.choice('v', 'eps', 'x')
    against: str = against()

    def combine(self, at, cond, other, memory):
        combined = classifier_free(cond, other, at.w)
        read = (at.read(output) for output in (combined, cond))
        guided, plain = (process.target(p.x, p.eps, at.logsnr, prediction=self.prediction) for p in read)
        return at.change(combined, corrections.rescale(guided, plain, phi=self.phi), self.prediction), memory


@dataclass(frozen=True, kw_only=True)
class Apg(Levelled, Pair):
    """APG projects the update of x adaptively: see `corrections.adaptive_projection` (Sadat et al. 2024).

    `eta` is what is kept of the parallel part of the update, `norm_threshold` the paper's r (of the L2 norm of an
    image's update; None is infinity), `momentum` the paper's beta, for which it proposes negative values. The update is
    the running sum m <- x_cond - x_other + momentum m over the evaluations, of each example on its own; one at w = 0
    leaves m as it is. eta = 1 without the two others is Eq. 6. Two evaluations; one where every w is 0.
    """

    name: ClassVar[str] = 'apg'
    no_cond_at: ClassVar[float] = math.nan
    eta: float = options.number(0.0)
    norm_threshold: float | None = options.number(None, 0.0, above=True, optional=True)
    momentum: float = options.number(0.0, -1.0, 1.0)
    against: str = against()

    def memory(self, z):
        return jnp.zeros_like(z)

    def combine(self, at, cond, other, memory):
        plain = at.read(cond)
        update = plain.x - at.read(other).x + process.expand(self.momentum, at.z) * memory
        r = end_of(self.norm_threshold, 1)
        x = corrections.adaptive_projection(plain.x, update, at.w, eta=self.eta, norm_threshold=r)
        unguided = process.expand(at.w == 0.0, at.z)
        # Eq. 6 on x and on eps are the same, so at w = 0 this is the conditional eps itself.
        eps = jnp.where(unguided, plain.eps, process.eps_from_x(at.z, x, at.logsnr))
        return Prediction(x, eps), jnp.where(unguided, memory, update)
