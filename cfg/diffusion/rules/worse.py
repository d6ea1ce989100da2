"""Compares with a worse prediction for the same label: of another network, or of the same one made worse."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from cfg.diffusion import denoiser, options
from cfg.diffusion.denoiser import Denoiser, Models, Perturbation
from cfg.diffusion.rules.base import Levelled, Passes, end_of
from cfg.diffusion.rules.pairs import Pair


@dataclass(frozen=True, kw_only=True)
class Worse(Levelled, Pair):
    """Such a pair is Eq. 6 with a worse prediction for the same label in place of the unconditional one.

    It needs no null label. Two passes; one where every w is 0 or -1.
    """

    def worse(self, models: Models) -> Denoiser:
        """Returns the network that makes the worse prediction."""
        raise NotImplementedError

    def outputs(self, models, z, logsnr, labels, keys, needed):
        return denoiser.of_two_networks((models.model, self.worse(models)), z, logsnr, labels, labels, needed)

    def passes(self, w, *, second_uncond):
        cond, other = (int(needed.sum()) for needed in self.needs(w))
        return Passes(single=cond, second=other) if self.companion else Passes(single=cond + other)


@dataclass(frozen=True, kw_only=True)
class Autoguidance(Worse):
    """Autoguidance is Eq. 6 with a worse model of the same kind in place of the unconditional one (Karras 2024).

    arXiv 2406.02507. Both predictions are conditional. The worse model, smaller or less trained, is a checkpoint of
    this run (`step`) or of another one (`workdir`). Two passes, the second cheaper if the model is smaller.
    """

    name: ClassVar[str] = 'autoguidance'
    companion: ClassVar[str] = 'weaker'
    step: int = options.whole(-1, -1, 'a step, or -1 for the newest')
    workdir: str = options.folder()

    def worse(self, models):
        return models.weaker


@dataclass(frozen=True, kw_only=True)
class TimeStep(Worse):
    """Self-guidance is Eq. 6 with what the network says of the same z if told a noisier level (arXiv 2412.05827).

    The level told is logsnr - `shift`. What the network predicts is combined as it is, whether eps, x or v: the rules
    are not the same, as a change of space depends on the level. The source shifts by 10 of 1000 timesteps, at w = 3.
    Levels within `shift` of the model's noisiest are not guided, since nothing noisier was trained. w = 0 is neutral.
    A network may hardly react to so small a shift, and then its rounding is multiplied by w. Two passes; one where
    every w is 0 or -1.
    """

    name: ClassVar[str] = 'time_step'
    shift: float = options.number(0.1, 0.0, above=True)

    def worse(self, models):
        fn = models.model.fn
        return dataclasses.replace(models.model, fn=lambda z, logsnr, labels: fn(z, logsnr - self.shift, labels))

    def strength_at(self, w, logsnr, *, logsnr_min, logsnr_max):
        w = super().strength_at(w, logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
        return jnp.where(logsnr - self.shift >= logsnr_min, w, 0.0)


@dataclass(frozen=True, kw_only=True)
class PerturbedAttention(Worse):
    """Perturbed-attention guidance is Eq. 6 with a network whose attention is the identity (arXiv 2403.17377).

    In the last `blocks` attention blocks of the way down and the middle each position takes its own value: the matrix
    of softmax(q k^T) is I. The label stays. The default is the source's for ADM at 256x256; its scale is 1 + w there, 4
    of it, and in Stable Diffusion's pipelines it is w. It is linear, so the rule is the same in x, eps and v. w = 0 is
    neutral. A network without other attention has that of the middle. Two passes; one where every w is 0 or -1.
    """

    name: ClassVar[str] = 'perturbed_attention'
    blocks: int = options.whole(4, 1, 'a whole number, 1 or more')

    def worse(self, models):
        return models.model.perturbed(Perturbation(self.blocks))


@dataclass(frozen=True, kw_only=True)
class BlurredAttention(Worse):
    """Smoothed energy guidance is Eq. 6 with a network whose attention has blurred queries (arXiv 2408.00760).

    In the last `blocks` attention blocks of the way down and the middle queries are blurred over the map of positions
    by a Gaussian of deviation `sigma`, in positions; None is infinite, and gives all positions the mean query. The
    label stays. The source has the middle of Stable Diffusion XL, w = 3 and an infinite sigma. It is linear, so the
    rule is the same in x, eps and v. w = 0 is neutral. The kernel is no wider than the map, so that from some sigma on
    little changes, without reaching the mean. Two passes; one where every w is 0 or -1.
    """

    name: ClassVar[str] = 'blurred_attention'
    blocks: int = options.whole(1, 1, 'a whole number, 1 or more')
    sigma: float | None = options.number(None, 0.0, above=True, optional=True)

    def worse(self, models):
        return models.model.perturbed(Perturbation(self.blocks, end_of(self.sigma, 1)))
