"""Holds what a training run carries from step to step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

Params = Any
ITEMS, AVERAGES = ('params', 'ema_params', 'opt_state'), 'averages'


class TrainState(NamedTuple):
    """Everything that a checkpoint holds. Randomness and data order are functions of the seed and `step`."""

    step: jax.Array  # number of optimizer steps taken, int32 []
    params: Params
    ema_params: Params
    opt_state: optax.OptState
    averages: dict[str, Params]  # by power functions, see `cfg.runs.profiles`; by the text of their length

    @property
    def items(self) -> dict[str, Any]:
        """Returns the trees of arrays that a checkpoint holds, by name; without averages it has none."""
        found = {name: getattr(self, name) for name in ITEMS}
        return found | ({AVERAGES: self.averages} if self.averages else {})


def create(params: Params, tx: optax.GradientTransformation, ema_lengths: Sequence[float] = ()) -> TrainState:
    """Returns a state before the first step; the averages start at the initial parameters."""
    averages = {str(float(length)): params for length in ema_lengths}
    return TrainState(np.zeros((), np.int32), params, ema_params=params, opt_state=tx.init(params), averages=averages)
