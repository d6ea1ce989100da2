"""Takes one training step: what it minimises, its gradient, the mean over devices, clipping, Adam, the average."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cfg.data.augment import augment
from cfg.data.images import to_float
from cfg.diffusion import loss, schedule
from cfg.diffusion.denoiser import Models
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.weights import PLAIN, LossWeight
from cfg.runs.profiles import exponent, share
from cfg.runs.state import TrainState
from cfg.runtime import parallel
from cfg.training.bands import accuracies

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective is what a step minimises on a batch."""

    network: nn.Module
    logsnr_min: float  # the levels that it is trained on
    logsnr_max: float
    strata: int = 0  # into how many equal parts the times of a global batch are stratified; 0 for none
    augment: float = 0.0  # p of `cfg.data.augment`; 0 for images as they are

    def __call__(
        self, params: Any, images: Array, labels: Array, keys: Array, index: Array, *fixed: Any
    ) -> tuple[Array, dict[str, Any]]:
        """Returns the losses [n], and what is logged beside them.

        Args:
          images: in [-1, 1], [n, H, W, C].
          labels: int32 [n].
          keys: [n] typed PRNG keys.
          index: places in the global batch, int32 [n].
          fixed: the parameters of other networks, where there are any.
        """
        draw_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        draws = loss.draw(draw_keys, images.shape[1:])
        if self.strata:
            draws = draws._replace(u_time=schedule.stratify(draws.u_time, index, self.strata))

        beside = {}
        if self.augment:
            images, beside['augment'] = augment(
                images, jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys), self.augment
            )

        def network(*inputs: Array, **told: Array) -> Array:
            return self.network.apply({'params': params}, *inputs, dropout_keys, **told, **beside)

        return self.losses(network, images, labels, draws, *fixed)

    def losses(
        self, network: Callable[..., Array], images: Array, labels: Array, draws: loss.Draws, *fixed: Any
    ) -> tuple[Array, dict[str, Any]]:
        """Returns the losses [n] with these draws, and what is logged beside them."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """The objective is Eq. 5 with dropped labels, the body of Alg. 1; see `loss.denoising_loss`."""

    p_uncond: float
    prediction: str = 'eps'
    weight: LossWeight = PLAIN

    def losses(self, network, images, labels, draws):
        losses = loss.denoising_loss(
            network,
            images,
            labels,
            draws,
            p_uncond=self.p_uncond,
            null_label=self.network.num_classes,
            logsnr_min=self.logsnr_min,
            logsnr_max=self.logsnr_max,
            prediction=self.prediction,
            weight=self.weight,
        )
        return losses, {}


@dataclass(frozen=True, kw_only=True)
class GuidanceFree(Denoising):
    """The objective is that of guidance-free training, see `loss.guidance_free_loss`."""

    w_range: tuple[float, float]

    def losses(self, network, images, labels, draws):
        names = ('p_uncond', 'w_range', 'logsnr_min', 'logsnr_max', 'prediction', 'weight')
        options = {name: getattr(self, name) for name in names}
        null_label = self.network.num_classes
        return loss.guidance_free_loss(network, images, labels, draws, null_label=null_label, **options), {}


@dataclass(frozen=True, kw_only=True)
class Distillation(Objective):
    """The objective is a guided teacher's prediction, or two steps with it; the teacher's parameters are fixed.

    See `loss.distillation_loss` and `loss.halving_loss`.
    """

    sampler: Sampler  # its rule guides the teacher
    bind: Callable[[Any], Models]  # parameters -> the teacher, and what its rule needs beside it
    w_range: tuple[float, float]
    prediction: str
    weighting: str
    num_steps: int = 0  # of a student whose step is two of the teacher's; 0 for the prediction
    reach: int = 1  # of such a student's steps, in levels

    def losses(self, network, images, labels, draws, params):
        def teacher(z, logsnr, labels, w):
            guided = self.sampler.guided(self.bind(params), labels, w)
            return guided.predict(z, logsnr, guided.init(draws.key, z))[0]  # what a rule remembers begins anew

        options = {name: getattr(self, name) for name in ('w_range', 'prediction', 'weighting')}
        limits = {'logsnr_min': self.logsnr_min, 'logsnr_max': self.logsnr_max}
        if self.num_steps:
            options |= {'num_steps': self.num_steps, 'reach': self.reach}
        of_student = loss.halving_loss if self.num_steps else loss.distillation_loss
        return of_student(network, teacher, images, labels, draws, **options, **limits), {}


@dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """The objective is that of Section 3.1's classifier of noisy images, with accuracies in bands of noise."""

    bands: tuple[str, ...]

    def losses(self, network, images, labels, draws):
        limits = {'logsnr_min': self.logsnr_min, 'logsnr_max': self.logsnr_max}
        losses, correct = loss.classification_loss(network, images, labels, draws, **limits)
        return losses, accuracies(correct, draws.u_time, self.bands)


def example_keys(seed: int, step: Array, index: Array) -> Array:
    """Returns a PRNG key an example, from (seed, step, place in the global batch): the device count plays no part."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(index)


def mean_gradient(loss_fn: Callable, params: Any, batch: Any, keys: Array, *, grad_accum: int) -> tuple[Any, Any]:
    """Returns the mean loss of a batch and its gradient, in `grad_accum` pieces one after the other.

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
    *fixed: Any,
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    ema_decay: float,
    grad_accum: int,
    seed: int,
    mean_over_devices: Callable[[Any], Any],
    skip_nonfinite: bool = False,
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step (Alg. 1, lines 6 and 7), a pure function.

    Args:
      batch: this device's share: 'image' uint8 [n, H, W, C], 'label' int32 [n], 'index' int32 [n].
      fixed: what else the loss takes, of which it has no gradient.
      loss_fn: (params, images [n, H, W, C] in [-1, 1], labels [n], keys [n], index [n], *fixed) -> (losses [n], {name:
        array [n], or tuple of such}); what is beside the losses is averaged and reported like them.
      ema_decay: ema <- ema_decay * ema + (1 - ema_decay) * params, after the step.
      grad_accum: how many pieces the share is cut into to save memory.
      skip_nonfinite: where the loss or the gradient is not finite, nothing but the number of the step changes.

    Returns:
      (the state after the step, {'loss', 'grad_norm', 'param_norm', and what `loss_fn` names} as scalars; grad_norm is
      before clipping, and param_norm after the step).
    """
    keys = example_keys(seed, state.step, batch['index'])

    def losses(params, piece, keys):
        return loss_fn(params, to_float(piece['image']), piece['label'], keys, piece['index'], *fixed)

    (loss, others), grads = mean_over_devices(mean_gradient(losses, state.params, batch, keys, grad_accum=grad_accum))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = optax.incremental_update(params, state.ema_params, 1.0 - ema_decay)
    grad_norm = optax.tree.norm(grads)
    after = (params, ema_params, opt_state)
    if skip_nonfinite:
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state[1:4])
    averages = {text: _averaged(tree, after[0], state.step + 1, text) for text, tree in state.averages.items()}
    metrics = {'loss': loss, 'grad_norm': grad_norm, 'param_norm': optax.tree.norm(after[0])}
    return TrainState(state.step + 1, *after, averages), metrics | others


def _averaged(average: Any, params: Any, step: Array, length: str) -> Any:
    """Returns an average by a power function after a step, see `cfg.runs.profiles`.

    It moves by a share of the difference: in float32 the two weights of a sum would miss 1 by as much as a small share.
    """
    weight = share(step, exponent(float(length)))
    return jax.tree.map(lambda old, new: old + weight * (new - old), average, params)


def compiled(one_step: Callable, devices: parallel.Devices = None, fixed: Sequence[Any] = ()) -> Callable:
    """Compiles `train_step`, of which all but state and batch is bound: (state, batch, int32 [D]) -> (state, metrics).

    `fixed`, replicated over the devices, are the step's further arguments.

    The state is replicated and the batch sharded over the devices, by default those of all processes. The last argument
    is a wish of each device to stop, 0 for none; metrics['stop'] is the largest over all devices, so that every process
    learns of it at the same step.
    """

    def step(state, batch, stop, *fixed):
        state, metrics = one_step(state, batch, *fixed)
        return state, metrics | {'stop': parallel.max_over_devices(stop)}

    devices = parallel.everywhere() if devices is None else devices
    mapped = parallel.pmap(step, num_args=3 + len(fixed), donate=(0,), devices=devices)
    return (lambda *args: mapped(*args, *fixed)) if fixed else mapped
