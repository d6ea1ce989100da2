"""Holds what a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

Params = Any


class TrainState(NamedTuple):
    """Everything that a checkpoint holds. Randomness and data order are functions of the seed and `step`."""

    step: jax.Array  # number of optimizer steps taken, int32 []
    params: Params
    ema_params: Params
    opt_state: optax.OptState


def create(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """Returns a state before the first step; the average starts at the initial parameters."""
    return TrainState(step=np.zeros((), np.int32), params=params, ema_params=params, opt_state=tx.init(params))
