"""One optimizer step: gradient, mean over devices, clip, Adam, EMA. A pure function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cfg.data.images import to_float
from cfg.runs.state import TrainState

Array = jax.Array


def example_keys(seed: int, step: Array, index: Array) -> Array:
    """One PRNG key an example, from (seed, step, place in the global batch): independent of the device count."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(index)


def mean_gradient(loss_fn: Callable, params: Any, batch: Any, keys: Array, *, grad_accum: int) -> tuple[Any, Any]:
    """The mean loss of a batch and its gradient, in `grad_accum` pieces one after the other.

    Args:
      loss_fn: (params, batch, keys) -> (losses [n], tree of other arrays [n]).
      batch: arrays [n, ...]; n must be divisible by `grad_accum`.
      keys: [n] typed PRNG keys.

    Returns:
      ((loss [], the means of the other arrays), gradient like params).
    """

    def value_and_grad(batch, keys):
        def mean(params):
            losses, others = loss_fn(params, batch, keys)
            return jnp.mean(losses), jax.tree.map(jnp.mean, others)

        return jax.value_and_grad(mean, has_aux=True)(params)

    if grad_accum == 1:
        return value_and_grad(batch, keys)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, value_and_grad(*piece)), None

    pieces = jax.tree.map(lambda x: x.reshape((grad_accum, -1, *x.shape[1:])), (batch, keys))
    shapes = jax.eval_shape(value_and_grad, *jax.tree.map(lambda x: x[0], pieces))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, pieces)
    return jax.tree.map(lambda x: x / grad_accum, total)


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    *,
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    ema_decay: float,
    grad_accum: int,
    seed: int,
    mean_over_devices: Callable[[Any], Any],
    skip_nonfinite: bool = False,
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step (Alg. 1, lines 6 and 7).

    Args:
      state: the state before the step.
      batch: this device's share: 'image' uint8 [n, H, W, C], 'label' int32 [n], 'index' int32 [n].
      loss_fn: (params, images [n, H, W, C] in [-1, 1], labels [n], keys [n], index [n]) -> (losses [n], {name: array
        [n], or tuple of such}); what is beside the losses is averaged and reported like them.
      tx: from `state.optimizer`.
      ema_decay: ema <- ema_decay * ema + (1 - ema_decay) * params, after the step.
      grad_accum: how many pieces the share is cut into to save memory.
      seed: of the run.
      mean_over_devices: the mean of a tree over devices.
      skip_nonfinite: where the loss or the gradient is not finite, nothing but the number of the step changes.

    Returns:
      (the state after the step, {'loss', 'grad_norm', 'param_norm', and what `loss_fn` names} as scalars; grad_norm is
      before clipping, and param_norm after the step).
    """
    keys = example_keys(seed, state.step, batch['index'])

    def losses(params, piece, keys):
        return loss_fn(params, to_float(piece['image']), piece['label'], keys, piece['index'])

    (loss, others), grads = mean_over_devices(mean_gradient(losses, state.params, batch, keys, grad_accum=grad_accum))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = optax.incremental_update(params, state.ema_params, 1.0 - ema_decay)
    grad_norm = optax.tree.norm(grads)
    after = (params, ema_params, opt_state)
    if skip_nonfinite:
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state[1:])
    metrics = {'loss': loss, 'grad_norm': grad_norm, 'param_norm': optax.tree.norm(after[0])}
    return TrainState(state.step + 1, *after), metrics | others
