"""Changes what Eq. 6 makes of the two predictions, or what it adds: rules that are not linear in them."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from cfg.diffusion import corrections, options, process, schedule
from cfg.diffusion.denoiser import Point
from cfg.diffusion.process import Prediction
from cfg.diffusion.rules.base import Levelled, end_of
from cfg.diffusion.rules.pairs import Labelled, classifier_free

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Rescale(Levelled, Labelled):
    """Eq. 6 is rescaled to the conditional output's standard deviation: see `corrections.rescale` (Lin et al. 2023).

    phi = 0 is Eq. 6. `prediction` says of which output the deviation is matched: the paper's models output v, and
    common code takes whatever the network outputs. Two evaluations; one where every w is 0.
    """

    name: ClassVar[str] = 'rescale'
    no_cond_at: ClassVar[float] = math.nan
    phi: float = options.number(0.7, 0.0, 1.0)
    prediction: str = options.choice('v', 'eps', 'x')

    def combine(self, at, cond, other, memory):
        combined = classifier_free(cond, other, at.w)
        guided, plain = (at.told_in(output, self.prediction) for output in (combined, cond))
        return at.change(combined, corrections.rescale(guided, plain, phi=self.phi), self.prediction), memory


@dataclass(frozen=True, kw_only=True)
class Apg(Levelled, Labelled):
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

    def memory(self, z):
        return jnp.zeros_like(z)

    def combine(self, at, cond, other, memory):
        plain = at.read(cond)
        update = plain.x - at.read(other).x + process.expand(self.momentum, at.z) * memory
        r = end_of(self.norm_threshold, 1)
        x = corrections.adaptive_projection(plain.x, update, at.w, eta=self.eta, norm_threshold=r)
        guided = _unless_unguided(at, cond, Prediction(x, process.eps_from_x(at.z, x, at.logsnr)))
        return guided, jnp.where(process.expand(at.w == 0.0, at.z), memory, update)


@dataclass(frozen=True, kw_only=True)
class Power(Levelled, Labelled):
    """Power-law guidance is eps_cond + w ||d / sigma||^alpha d, d = eps_cond - eps_other (arXiv 2502.07849).

    The norm is of the difference of the scores, over all components of an image, so it grows with the image's size and
    as 1 / sigma: a w of Eq. 6 says nothing here. The factor is one number for an image, so the rule is the same in x,
    eps and v. alpha = 0 is Eq. 6; the source has about 0.9. Two evaluations; one where every w is 0.
    """

    name: ClassVar[str] = 'power'
    no_cond_at: ClassVar[float] = math.nan
    alpha: float = options.number(0.9, 0.0)

    def combine(self, at, cond, other, memory):
        a, sigma = schedule.alpha_sigma(at.logsnr)
        # d of eps is alpha times that of v, and -alpha / sigma times that of x.
        to_score = {'eps': 1.0, 'v': a, 'x': a / sigma}[at.prediction] / sigma
        size = to_score * jnp.linalg.norm((cond - other).reshape(len(cond), -1), axis=1)
        return at.read(classifier_free(cond, other, at.w * size**self.alpha)), memory


@dataclass(frozen=True, kw_only=True)
class CfgZero(Levelled, Labelled):
    """CFG-Zero* scales the other prediction to the conditional one: (1 + w) v - w s v', s = <v, v'> / ||v'||^2.

    Fan et al. 2025, arXiv 2503.18886, for velocities of flows. Ours is v = alpha eps - sigma x, and `prediction` may
    say another space; s differs between them. The source also zeroes the velocity in the first 4 % of the steps:
    `zero_init` evaluations here, at any w. v = 0 is x = alpha z and eps = sigma z, what a perfect network says of data
    of N(0, I). With it z stays, to first order of a step, while the level moves on; to zero eps would instead blow x up
    to z / alpha. A step of Heun's method has two evaluations. s = 1 with zero_init = 0 is Eq. 6. Two evaluations, also
    where v is zeroed; one where every w is 0.
    """

    name: ClassVar[str] = 'cfg_zero'
    no_cond_at: ClassVar[float] = math.nan
    zero_init: int = options.whole(0, 0, 'a whole number, 0 or more')
    prediction: str = options.choice('v', 'eps', 'x')

    @property
    def remembers(self):
        return self.zero_init > 0

    def memory(self, z):
        return jnp.zeros((), jnp.int32)

    def combine(self, at, cond, other, memory):
        one, two = (at.told_in(output, self.prediction) for output in (cond, other))
        guided = at.change(cond, classifier_free(one, corrections.decompose(one, two)[0], at.w), self.prediction)
        guided = _unless_unguided(at, cond, guided)
        if self.zero_init:
            still = process.from_output(jnp.zeros_like(at.z), at.z, at.logsnr, prediction='v')
            guided = jax.tree.map(lambda zero, other: jnp.where(memory < self.zero_init, zero, other), still, guided)
        return guided, memory + 1


@dataclass(frozen=True, kw_only=True)
class Tcfg(Levelled, Labelled):
    """Tangential damping is Eq. 6 without the part of eps_other in which the two differ (arXiv 2503.18137).

    The part is along the second right singular vector of the two, see `corrections.along_common`. The source takes
    what the network predicts, and `prediction` says which. No option makes it Eq. 6. Where the two have one norm, what
    stays of eps_other is their mean, so that it is Eq. 6 at w / 2. Two evaluations; one where every w is 0.
    """

    name: ClassVar[str] = 'tcfg'
    no_cond_at: ClassVar[float] = math.nan
    prediction: str = options.choice('eps', 'v', 'x')

    def combine(self, at, cond, other, memory):
        one, two = (at.told_in(output, self.prediction) for output in (cond, other))
        guided = at.change(cond, classifier_free(one, corrections.along_common(two, one), at.w), self.prediction)
        return _unless_unguided(at, cond, guided), memory


@dataclass(frozen=True, kw_only=True)
class Fdg(Levelled, Labelled):
    """Frequency-decoupled guidance is Eq. 6 with a weaker w, low w, for low frequencies (arXiv 2506.19713).

    eps_cond + w (d - (1 - low) L d), d = eps_cond - eps_other, where L d is the low one of the two bands of a Laplacian
    pyramid (`corrections.low_pass`). It is linear, so the rule is the same in x, eps and v. low = 1 is Eq. 6. The
    source names a scale for each band, 10 and 5 for a latent model. What is a low frequency depends on the image's
    size; of a point without axes everything is. Two evaluations; one where every w is 0.
    """

    name: ClassVar[str] = 'fdg'
    no_cond_at: ClassVar[float] = math.nan
    low: float = options.number(0.5, 0.0)

    def combine(self, at, cond, other, memory):
        kept = other + (1.0 - self.low) * corrections.low_pass(cond - other)
        return at.read(classifier_free(cond, kept, at.w)), memory


def _unless_unguided(at: Point, cond: Array, guided: Prediction) -> Prediction:
    """Returns a prediction, where w is 0 that of the conditional output itself, which a change of space would round."""
    unguided = process.expand(at.w == 0.0, at.z)
    return jax.tree.map(lambda plain, other: jnp.where(unguided, plain, other), at.read(cond), guided)
