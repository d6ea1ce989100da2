"""Says what a rule of guidance is, what it costs, and which options rules share."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import options, strength
from cfg.diffusion.denoiser import Models
from cfg.diffusion.process import Prediction

Array = jax.Array


class Passes(NamedTuple):
    """Passes say how often each network runs for one sample."""

    single: int = 0  # evaluations of the model for one prediction
    both: int = 0  # those for two predictions at once (`Denoiser.both`)
    second: int = 0  # of the second model, the unconditional or the weaker one
    classifier: int = 0  # of the classifier, each forth and back
    back: int = 0  # passes back through the model, to its input, after some of `single`; no evaluations of their own

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
    if not end_of(low, -1) < end_of(high, 1):
        raise ValueError
    return None if low is high is None else (low, high)


_SCHEDULES = {'linear': strength.linear, 'cosine': strength.cosine}


def _read_schedule(value: Any) -> str | tuple[tuple[float, float], ...]:
    if isinstance(value, str):
        if value not in ('constant', *_SCHEDULES):
            raise ValueError
        return value
    pairs = tuple((options.finite(level), options.finite(factor)) for level, factor in value)
    if not pairs or any(low >= high for (low, _), (high, _) in itertools.pairwise(pairs)):
        raise ValueError
    return pairs


def end_of(value: float | None, sign: int) -> float:
    """Returns an end of a range, where None is infinity of that sign."""
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
    against, anneal_label, interval, schedule, threshold = None, None, None, 'constant', None
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
    def remembers(self) -> bool:
        """Tells whether it is nothing without the evaluations before, so that a single one cannot show it."""
        return False

    @property
    def is_constant(self) -> bool:
        """Tells whether w is the same at all levels."""
        return self.interval is None and self.schedule == 'constant'

    def strength_at(self, w: Array | strength.Given, logsnr: Array, *, logsnr_min: float, logsnr_max: float) -> Array:
        """Returns the strength at a level, by the options `schedule` and `interval` of rules that have them.

        w is [] or [N], and `logsnr` broadcasts with it. A named schedule goes over the model's levels, from end to end.
        """
        if isinstance(self.schedule, tuple):
            w = strength.Given(*zip(*self.schedule, strict=True), jnp.asarray(w, jnp.float32))
        w = w.at(logsnr) if isinstance(w, strength.Given) else jnp.asarray(w, jnp.float32)
        if self.schedule in _SCHEDULES:
            w = _SCHEDULES[self.schedule](w, logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
        if self.interval is not None:
            low, high = self.interval
            w = strength.interval(w, logsnr, logsnr_lo=end_of(low, -1), logsnr_hi=end_of(high, 1))
        return w

    def noise_factor(self, w: Array) -> Array | float:
        """Returns the factor of the noise that the steps of a solver add, [] or [N]."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Levelled(Rule):
    """A levelled rule may change its w over the levels, and threshold its estimate of x."""

    interval: tuple | None = options.option(None, _read_interval, '(lowest, highest) logsnr that is guided, or None')
    schedule: str | tuple = options.option(
        'constant',
        _read_schedule,
        "one of 'constant', 'linear', 'cosine', or pairs (logsnr, factor of w) in ascending logsnr",
    )
    threshold: float | None = threshold()
