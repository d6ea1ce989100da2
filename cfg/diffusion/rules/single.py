"""Guides with one prediction of the network: by a classifier, by what Section 3 names, or by nothing more."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import loss, options, process, schedule
from cfg.diffusion.denoiser import Point
from cfg.diffusion.rules.base import Levelled, Passes, Rule

Array = jax.Array


def classifier_guided(eps: Array, grad_log_prob: Array, w: Array, *, logsnr: Array) -> Array:
    """Returns eps - w sigma grad_z log p(c | z), [N, ...] (Section 3.1; Dhariwal & Nichol 2021, arXiv 2105.05233).

    `w` and `logsnr` are [] or [N].
    """
    _, sigma = schedule.alpha_sigma(process.expand(logsnr, eps))
    return eps - process.expand(w, eps) * sigma * grad_log_prob


@dataclass(frozen=True, kw_only=True)
class Classifier(Levelled):
    """Classifier guidance is eps - w sigma grad_z log p(c | z), with a classifier of noisy images (Section 3.1).

    The paper guides a conditional model with w, or an unconditional one with w + 1, which is the same where model and
    classifier are exact: log p(c | z) = log p(z | c) - log p(z) + log p(c). A step costs one pass of the network, and
    one pass of the classifier forth and back; the classifier does not run where no example is guided.
    """

    name: ClassVar[str] = 'classifier'
    companion: ClassVar[str] = 'classifier'
    workdir: str = options.folder()
    model: str = options.choice('conditional', 'unconditional')

    @property
    def _more(self) -> float:
        return 1.0 if self.model == 'unconditional' else 0.0

    def predict(self, models, z, logsnr, labels, w, state):
        asked = jnp.full_like(labels, models.model.null_label) if self._more else labels
        w = w + self._more
        output = models.model(z, logsnr, asked)
        at = Point(z, logsnr, w, models.model.prediction)

        def log_prob(z):
            return -jnp.sum(loss.cross_entropy(models.classifier(z, logsnr), labels))

        def guided(output):
            eps = classifier_guided(at.read(output).eps, jax.grad(log_prob)(z), w, logsnr=logsnr).astype(z.dtype)
            return at.change(output, eps, 'eps')

        return jax.lax.cond(jnp.any(w != 0.0), guided, at.read, output), state

    def passes(self, w: np.ndarray, *, second_uncond: bool) -> Passes:
        return Passes(single=len(w), classifier=int(np.sum(w + self._more != 0.0)))

    def asks_for(self, w: float) -> tuple[bool, bool]:
        return not self._more, bool(self._more)


@dataclass(frozen=True, kw_only=True)
class ScaledScore(Levelled):
    """The scaled score is (1 + w) eps, as the score is -eps / sigma. It needs one pass.

    Section 3 of the paper names it as what does not work for diffusion models (its samples are blurred), as does
    lowering the noise, see `Temperature`.
    """

    name: ClassVar[str] = 'scaled_score'

    def predict(self, models, z, logsnr, labels, w, state):
        output = models.model(z, logsnr, labels)
        at = Point(z, logsnr, w, models.model.prediction)
        eps = (process.expand(1.0 + w, z) * at.read(output).eps).astype(z.dtype)
        return at.change(output, eps, 'eps'), state


@dataclass(frozen=True, kw_only=True)
class Temperature(Rule):
    """The steps' noise is scaled by 1 / (1 + w), which Section 3 says does not work. It needs one pass."""

    name: ClassVar[str] = 'temperature'
    scales_noise: ClassVar[bool] = True
    divides: ClassVar[bool] = True

    def predict(self, models, z, logsnr, labels, w, state):
        at = Point(z, logsnr, w, models.model.prediction)
        return at.read(models.model(z, logsnr, labels)), state

    def noise_factor(self, w):
        return 1.0 / (1.0 + w)


@dataclass(frozen=True, kw_only=True)
class OnePass(Rule):
    """The network takes w as an input, and its one prediction is the guided one.

    Such networks are students, to which guidance was distilled (Meng et al. 2022, arXiv 2210.03142), and those that
    were trained with guidance from the start (Chen et al. 2025, arXiv 2501.15420).
    """

    name: ClassVar[str] = 'one_pass'
    divides: ClassVar[bool] = True

    def predict(self, models, z, logsnr, labels, w, state):
        at = Point(z, logsnr, w, models.model.prediction)
        return at.read(models.model.at_strength(z, logsnr, labels, w)), state
