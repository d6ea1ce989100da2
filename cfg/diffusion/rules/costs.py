"""Spends other passes than Eq. 6 does: fewer where the two predictions agree, or one back through the network."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from cfg.diffusion import corrections, options, process, schedule
from cfg.diffusion.denoiser import Point
from cfg.diffusion.rules.base import Levelled, Passes
from cfg.diffusion.rules.pairs import Labelled, classifier_free


@dataclass(frozen=True, kw_only=True)
class Adaptive(Levelled, Labelled):
    """Adaptive guidance is Eq. 6 until the two predictions agree, then the conditional one (arXiv 2312.12487).

    They agree once their cosine is above `cosine`, for each sample on its own; its later evaluations have w = 0. The
    source compares eps. At our first levels every eps is z and the cosine is 1, so that eps would end guidance at
    once: x is the default, and `prediction` says otherwise. cosine = 1 is Eq. 6. The other pass runs for a whole batch
    as long as one of its samples asks for it. So the cost depends on the samples, and what is counted is its bound,
    Eq. 6's. Guidance that ends at a level known before, `cfg(interval=(None, L))`, is counted exactly.
    """

    name: ClassVar[str] = 'adaptive'
    no_cond_at: ClassVar[float] = math.nan
    cosine: float = options.number(0.991, -1.0, 1.0)
    prediction: str = options.choice('x', 'eps', 'v')

    @property
    def remembers(self):
        return self.cosine < 1.0

    def memory(self, z):
        return jnp.zeros(len(z), bool)

    def predict(self, models, z, logsnr, labels, w, state):
        return super().predict(models, z, logsnr, labels, jnp.where(state.memory, 0.0, w), state)

    def combine(self, at, cond, other, memory):
        cosine = corrections.cosine(*(at.told_in(output, self.prediction) for output in (cond, other)))
        # Without guidance nothing was compared.
        return at.read(classifier_free(cond, other, at.w)), memory | ((at.w != 0.0) & (cosine > self.cosine))


@dataclass(frozen=True, kw_only=True)
class RectifiedGradient(Levelled, Labelled):
    """Rectified gradient guidance is eps_cond + w (1 - sigma g) d with g = grad_z sum(eps_cond) (arXiv 2501.18865).

    g has a number for each component, and d = eps_cond - eps_other. 1 - sigma g is alpha grad_z sum(x_cond), so the
    rule is the same in x, eps and v. It is Eq. 6 where eps does not depend on z; no option makes it so. Two evaluations
    and a pass back through the model, whose activations are held for it; one evaluation where every w is 0.
    """

    name: ClassVar[str] = 'rectified_gradient'
    no_cond_at: ClassVar[float] = math.nan

    def outputs(self, models, z, logsnr, labels, keys, needed):
        _, guided = needed

        def x_sum(z):
            output = models.model(z, logsnr, labels)
            return jnp.sum(Point(z, logsnr, guided, models.model.prediction).read(output).x), output

        def rectified(z):
            slope, cond = jax.grad(x_sum, has_aux=True)(z)
            alone = jnp.zeros_like(guided), guided
            _, other = super(RectifiedGradient, self).outputs(models, z, logsnr, labels, keys, alone)
            alpha, _ = schedule.alpha_sigma(process.expand(logsnr, z))
            # Eq. 6 then adds w times what is rectified.
            return cond, cond - alpha * slope * (cond - other)

        return jax.lax.cond(jnp.any(guided), rectified, lambda z: (models.model(z, logsnr, labels),) * 2, z)

    def passes(self, w, *, second_uncond):
        found = super().passes(w, second_uncond=second_uncond)
        return Passes(single=found.single + 2 * found.both, second=found.second, back=int((w != 0.0).sum()))
