"""Guidance: Eq. 6, and the rules that followed the paper, each a frozen dataclass whose fields are its options.

A rule says which predictions it needs at a strength w, how it combines them, and what that costs. `w` is the paper's
guidance strength: 0 is the plain conditional model, -1 the unconditional one. Code that speaks of a guidance scale s
means s = 1 + w. RULES at the end lists those that a config may name.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import corrections, denoiser, loss, options, process, schedule, strength
from cfg.diffusion.denoiser import Models, Point
from cfg.diffusion.process import Prediction

Array = jax.Array

# Separates what rules draw from the noise of the samplers, which is numbered from 0.
_STREAM = 0x52554C45


def classifier_free(eps_cond: Array, eps_uncond: Array, w: Array) -> Array:
    """Returns (1 + w) eps_cond - w eps_uncond (Eq. 6), [N, ...]; w is [] or [N].

    The same holds for what networks predict in the place of eps, x or v, at one z: the weights sum to 1.
    """
    w = process.expand(w, eps_cond)
    return (1.0 + w) * eps_cond - w * eps_uncond


def classifier_guided(eps: Array, grad_log_prob: Array, w: Array, *, logsnr: Array) -> Array:
    """Returns eps - w sigma grad_z log p(c | z), [N, ...] (Section 3.1; Dhariwal & Nichol 2021, arXiv 2105.05233).

    `w` and `logsnr` are [] or [N].
    """
    _, sigma = schedule.alpha_sigma(process.expand(logsnr, eps))
    return eps - process.expand(w, eps) * sigma * grad_log_prob


class Passes(NamedTuple):
    """Passes say how often each network runs for one sample."""

    single: int = 0  # evaluations of the model for one prediction
    both: int = 0  # those for two predictions at once (`Denoiser.both`)
    second: int = 0  # of the second model, the unconditional or the weaker one
    classifier: int = 0  # of the classifier, each forth and back

    @property
    def total(self) -> int:
        """Returns the network evaluations, where two predictions at once are two."""
        return self.single + 2 * self.both + self.second + self.classifier


def _read_w(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    values = value if isinstance(value, tuple) else (value,)
    if not values:
        raise ValueError
    return tuple(map(options.finite, values))


def _read_interval(value: Any) -> tuple[float | None, float | None] | None:
    if value is None:
        return None
    low, high = (None if end is None else options.finite(end) for end in value)
    if not _end(low, -1) < _end(high, 1):
        raise ValueError
    return None if low is high is None else (low, high)


def _end(value: float | None, sign: int) -> float:
    return sign * math.inf if value is None else value


def threshold() -> Any:
    """Declares the quantile of dynamic thresholding, see `corrections.dynamic_threshold`."""
    return options.number(None, 0.0, 1.0, optional=True)


def against() -> Any:
    """Declares what the prediction is compared with: the null label, or a random one."""
    return options.choice('null', 'random')


@dataclass(frozen=True, kw_only=True)
class Rule(options.Described):
    """A rule is a way of guidance.

    Subclasses say how a prediction is made; those of two predictions derive from `Pair`.

    Attributes:
      renoises: whether the eps of a prediction is not the one of its x. A solver then steps from alpha x + sigma eps
        in the place of z.
      scales_noise: whether it acts through `noise_factor` alone, and so needs a solver that adds noise.
      divides: whether it takes 1 / (1 + w), so that w must be above -1.
      companion: the field of `Models` that it needs beside the model; None for none.
      w: the strengths that a text names for this rule, in the place of those of the config; None for none.
    """

    renoises: ClassVar[bool] = False
    scales_noise: ClassVar[bool] = False
    divides: ClassVar[bool] = False
    companion: ClassVar[str | None] = None
    # Options that a subclass may declare; one without them acts as these say.
    against, interval, schedule, threshold = None, None, 'constant', None
    w: tuple[float, ...] | None = options.option(
        None, _read_w, 'a number or several, such as (0.5, 1.0)', printed=False
    )

    def init(self, keys: Array, z: Array) -> Any:
        """Returns the state before the first evaluation, a pytree whose arrays have the leading axis N or none."""
        return ()

    def predict(
        self, models: Models, z: Array, logsnr: Array, labels: Array, w: Array, state: Any
    ) -> tuple[Prediction, Any]:
        """Returns the guided prediction for z [N, ...] at levels [] or [N], and the next state.

        `labels` are int32 [N], and `w` [N] is the strength at this level, see `strength_at`.
        """
        raise NotImplementedError

    def passes(self, w: np.ndarray, *, second_uncond: bool) -> Passes:
        """Counts the evaluations at the strengths [T] of all levels, the same for a whole batch.

        `second_uncond` tells whether a second model gives the unconditional prediction.
        """
        return Passes(single=len(w))

    def asks_for(self, w: float) -> tuple[bool, bool]:
        """Tells whether the model's conditional, and its unconditional, predictions are asked for at this w."""
        return True, False

    @property
    def compares_with_null(self) -> bool:
        """Tells whether it compares with an unconditional prediction, which a second model may give."""
        return self.against == 'null'

    @property
    def is_constant(self) -> bool:
        """Tells whether w is the same at all levels."""
        return self.interval is None and self.schedule == 'constant'

    def strength_at(self, w: Array, logsnr: Array, *, logsnr_min: float, logsnr_max: float) -> Array:
        """Returns the strength at a level, by the options `schedule` and `interval` of rules that have them.

        w is [] or [N], and `logsnr` broadcasts with it. A schedule goes over the model's levels, from end to end.
        """
        w = jnp.asarray(w, jnp.float32)
        if self.schedule != 'constant':
            scheduled = {'linear': strength.linear, 'cosine': strength.cosine}[self.schedule]
            w = scheduled(w, logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
        if self.interval is not None:
            low, high = self.interval
            w = strength.interval(w, logsnr, logsnr_lo=_end(low, -1), logsnr_hi=_end(high, 1))
        return w

    def noise_factor(self, w: Array) -> Array | float:
        """Returns the factor of the noise that the steps of a solver add, [] or [N]."""
        return 1.0


class _PairState(NamedTuple):
    """The state is what a rule of two predictions carries along."""

    keys: Array  # of the examples, [N]
    count: Array  # of the evaluations so far, []
    memory: Any  # of the combination


@dataclass(frozen=True, kw_only=True)
class Levelled(Rule):
    """A levelled rule may change its w over the levels, and threshold its estimate of x."""

    interval: tuple | None = options.option(None, _read_interval, '(lowest, highest) logsnr that is guided, or None')
    schedule: str = options.choice('constant', 'linear', 'cosine')
    threshold: float | None = threshold()


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
        """Returns the two outputs; what no example needs is not computed.

        'random' draws another class anew for every evaluation, from the example's own key: independent condition
        guidance, for a network that has no null label (Sadat et al. 2024, arXiv 2407.02687).
        """
        model = models.model
        if self.compares_with_null and models.uncond is not None:
            null = jnp.full_like(labels, models.uncond.null_label)
            return denoiser.of_two_networks((model, models.uncond), z, logsnr, labels, null, needed)
        if self.compares_with_null:
            others = jnp.full_like(labels, model.null_label)
        else:
            others = jax.vmap(lambda key: jax.random.randint(key, (), 0, model.num_classes, labels.dtype))(keys)
        return denoiser.of_one_network(model, z, logsnr, labels, others, needed)

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
        if self.companion or (second_uncond and self.compares_with_null):
            return Passes(single=int(cond.sum()), second=int(other.sum()))
        both = int(np.sum(cond & other))
        return Passes(single=len(w) - both, both=both)

    def asks_for(self, w: float) -> tuple[bool, bool]:
        if not self.compares_with_null:
            return True, False
        cond, other = self.needs(w)
        return cond or not self.is_constant, other


@dataclass(frozen=True, kw_only=True)
class Cfg(Levelled, Pair):
    """Classifier-free guidance is eps = (1 + w) eps_cond - w eps_other (Eq. 6).

    Two evaluations; one where every w is 0 or -1.
    """

    name: ClassVar[str] = 'cfg'
    against: str = against()


@dataclass(frozen=True, kw_only=True)
class CfgPlusPlus(Pair):
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
    against: str = against()
    threshold: float | None = threshold()

    def combine(self, at, cond, other, memory):
        return Prediction(at.read(classifier_free(cond, other, at.w)).x, at.read(other).eps), memory


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
        r = _end(self.norm_threshold, 1)
        x = corrections.adaptive_projection(plain.x, update, at.w, eta=self.eta, norm_threshold=r)
        unguided = process.expand(at.w == 0.0, at.z)
        # Eq. 6 on x and on eps are the same, so at w = 0 this is the conditional eps itself.
        eps = jnp.where(unguided, plain.eps, process.eps_from_x(at.z, x, at.logsnr))
        return Prediction(x, eps), jnp.where(unguided, memory, update)


def _read_step(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise ValueError
    return value


@dataclass(frozen=True, kw_only=True)
class Autoguidance(Levelled, Pair):
    """Autoguidance is Eq. 6 with a worse model of the same kind in place of the unconditional one (Karras 2024).

    arXiv 2406.02507. Both predictions are conditional. The worse model, smaller or less trained, is a checkpoint of
    this run (`step`) or of another one (`workdir`). Two passes, the second cheaper if the model is smaller.
    """

    name: ClassVar[str] = 'autoguidance'
    companion: ClassVar[str] = 'weaker'
    step: int = options.option(-1, _read_step, 'a step, or -1 for the newest')
    workdir: str = options.folder()

    def outputs(self, models, z, logsnr, labels, keys, needed):
        return denoiser.of_two_networks((models.model, models.weaker), z, logsnr, labels, labels, needed)


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


RULES = (Cfg, CfgPlusPlus, Rescale, Apg, Autoguidance, Classifier, ScaledScore, Temperature, OnePass)
