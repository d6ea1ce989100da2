"""Combines two predictions: Eq. 6, and the rules that change with what, or for what, it is used."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import denoiser, options, process, strength
from cfg.diffusion.denoiser import Annealing, Models, Point
from cfg.diffusion.process import Prediction
from cfg.diffusion.rules.base import Levelled, Passes, Rule, against, threshold

Array = jax.Array

# Separates what rules draw from the noise of the samplers, which is numbered from 0, and noise from labels.
_STREAM, _NOISE = 0x52554C45, 0x43414453


def classifier_free(eps_cond: Array, eps_uncond: Array, w: Array) -> Array:
    """Returns (1 + w) eps_cond - w eps_uncond (Eq. 6), [N, ...]; w is [] or [N].

    The same holds for what networks predict in the place of eps, x or v, at one z: the weights sum to 1.
    """
    w = process.expand(w, eps_cond)
    return (1.0 + w) * eps_cond - w * eps_uncond


class _PairState(NamedTuple):
    """The state is what a rule of two predictions carries along."""

    keys: Array  # of the examples, [N]
    count: Array  # of the evaluations so far, []
    memory: Any  # of the combination


@dataclass(frozen=True, kw_only=True)
class Pair(Rule):
    """A pair combines the prediction for the label with another one, by Eq. 6 unless a subclass says how."""

    # The w at which the conditional, and the other, prediction is not needed; nan for none.
    no_cond_at: ClassVar[float] = -1.0
    no_other_at: ClassVar[float] = 0.0

    def needs(self, w: Array) -> tuple[Array, Array]:
        """Tells which of the two predictions are needed at w [N]: (the conditional, the other), two bool [N]."""
        return w != self.no_cond_at, w != self.no_other_at

    def memory(self, z: Array) -> Any:
        """Returns what `combine` remembers before the first evaluation."""
        return ()

    def combine(self, at: Point, cond: Array, other: Array, memory: Any) -> tuple[Prediction, Any]:
        """Returns the guided prediction and the next memory from the two outputs, which `at.read` reads."""
        return at.read(classifier_free(cond, other, at.w)), memory

    def outputs(
        self, models: Models, z: Array, logsnr: Array, labels: Array, keys: Array, needed: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """Returns the two outputs; what no example needs, of two bool [N], is not computed.

        `keys` [N] are the examples' own, new at each evaluation.
        """
        raise NotImplementedError

    def init(self, keys: Array, z: Array) -> _PairState:
        streams = jax.vmap(lambda key: jax.random.fold_in(key, _STREAM))(keys)
        return _PairState(streams, jnp.zeros((), jnp.int32), self.memory(z))

    def predict(self, models, z, logsnr, labels, w, state):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, state.count))(state.keys)
        cond, other = self.outputs(models, z, logsnr, labels, keys, self.needs(w))
        prediction, memory = self.combine(Point(z, logsnr, w, models.model.prediction), cond, other, state.memory)
        return prediction, _PairState(state.keys, state.count + 1, memory)

    def passes(self, w: np.ndarray, *, second_uncond: bool) -> Passes:
        cond, other = self.needs(w)
        if second_uncond and self.compares_with_null:
            return Passes(single=int(cond.sum()), second=int(other.sum()))
        both = int(np.sum(cond & other))
        return Passes(single=len(w) - both, both=both)


def _read_anneal(value: Any) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    tau1, tau2, scale, mix = map(options.finite, value)
    if not (0.0 <= tau1 < tau2 and scale >= 0.0 and 0.0 <= mix <= 1.0):
        raise ValueError
    return tau1, tau2, scale, mix


@dataclass(frozen=True, kw_only=True)
class Labelled(Pair):
    """A labelled pair compares what the network predicts for the label with what it predicts for another one.

    Attributes:
      against: the other label, the null label or a random class. That is drawn anew for every evaluation, from the
        example's own key: independent condition guidance, for a network that has no null label (Sadat et al. 2024,
        arXiv 2407.02687).
      anneal_label: tau1, tau2, s and psi of noise on the embeddings of classes, see `denoiser.Annealing`, at the time t
        of the level (`strength.annealing`); the null label has none. It goes with every rule and sampler, and costs
        nothing. None, and tau1 >= 1, are no noise.
    """

    against: str = against()
    anneal_label: tuple | None = options.option(
        None, _read_anneal, '(tau1, tau2, s, psi), tau1 < tau2, s at least 0 and psi from 0 to 1, or None'
    )

    def predict(self, models, z, logsnr, labels, w, state):
        if self.anneal_label is not None:
            tau1, tau2, *rest = self.anneal_label
            kept = strength.annealing(logsnr, tau1=tau1, tau2=tau2)
            keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, _NOISE), state.count))(state.keys)
            told = (jnp.broadcast_to(jnp.asarray(each, jnp.float32), labels.shape) for each in (kept, *rest))
            models = models._replace(model=models.model.annealed(Annealing(keys, *told)))
        return super().predict(models, z, logsnr, labels, w, state)

    def outputs(
        self, models: Models, z: Array, logsnr: Array, labels: Array, keys: Array, needed: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        model = models.model
        if self.compares_with_null and models.uncond is not None:
            null = jnp.full_like(labels, models.uncond.null_label)
            return denoiser.of_two_networks((model, models.uncond), z, logsnr, labels, null, needed)
        if self.compares_with_null:
            others = jnp.full_like(labels, model.null_label)
        else:
            others = jax.vmap(lambda key: jax.random.randint(key, (), 0, model.num_classes, labels.dtype))(keys)
        return denoiser.of_one_network(model, z, logsnr, labels, others, needed)

    def asks_for(self, w: float) -> tuple[bool, bool]:
        if not self.compares_with_null:
            return True, False
        cond, other = self.needs(w)
        return cond or not self.is_constant, other


@dataclass(frozen=True, kw_only=True)
class Cfg(Levelled, Labelled):
    """Classifier-free guidance is eps = (1 + w) eps_cond - w eps_other (Eq. 6).

    Two evaluations; one where every w is 0 or -1.
    """

    name: ClassVar[str] = 'cfg'


@dataclass(frozen=True, kw_only=True)
class CfgPlusPlus(Labelled):
    """CFG++ takes x from the guided eps and renoises with the unguided one (Chung et al. 2024, arXiv 2406.08070).

    x comes from eps_other + lambda (eps_cond - eps_other), and the next z from x and eps_other. Our w is lambda - 1, so
    that x is that of Eq. 6. The paper has lambda in [0, 1], w in [-1, 0]: w = -1 is unconditional sampling, and no w is
    conditional sampling, as even lambda = 1 renoises with eps_other. A DDIM step with it is one of Eq. 6 with
    1 + w = lambda / (1 - e^((logsnr_t - logsnr_s) / 2)), which grows as steps get shorter. Two evaluations; one where
    every w is -1. It has no interval and no schedule: no w switches it off, and less of its w is more guidance.
    """

    name: ClassVar[str] = 'cfg_plus_plus'
    renoises: ClassVar[bool] = True
    no_other_at: ClassVar[float] = math.nan
    against: str = against()  # again, as options are said in the order in which a class names them
    threshold: float | None = threshold()

    def combine(self, at, cond, other, memory):
        return Prediction(at.read(classifier_free(cond, other, at.w)).x, at.read(other).eps), memory
