"""From the config to the compiled training step."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from cfg.diffusion import loss, schedule
from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.settings.checks import require
from cfg.training.bands import accuracies, band_names
from cfg.training.optimizer import optimizer
from cfg.training.step import train_step


def check_trainable(config: ConfigDict) -> None:
    """Whether what `config.train.kind` names can be trained on these devices.

    Raises:
      UserError: when it has outputs that no loss trains, or a batch does not divide over the devices.
    """
    check_batch(config)
    if config.train.kind != 'model':
        return
    if config.model.learned_variance:
        raise UserError(
            'config.model.learned_variance=True is for imported networks: the loss trains no variances; '
            'set it to False.'
        )
    parallel.per_device(config.sampling.batch_size, 'config.sampling.batch_size')


def check_batch(config: ConfigDict) -> int:
    """A device's share of the training batch.

    Raises:
      UserError: when the batch does not divide over the devices, or a share not into `train.grad_accum` pieces.
    """
    share = parallel.per_device(config.train.batch_size, 'config.train.batch_size', parallel.everywhere())
    pieces = config.train.grad_accum
    require(share % pieces == 0, 'train.grad_accum', pieces, f"a divisor of a device's share of the batch, {share}")
    return share


def make_loss_fn(config: ConfigDict, network: nn.Module, image_shape: tuple[int, ...]) -> Callable:
    """The loss of `config.train.kind` on a batch, as `train_step` takes it.

    Returns:
      (params, images, labels, keys, index) -> (losses [n], what is logged beside them).
    """
    return {'model': _denoising, 'classifier': _classification}[config.train.kind](config, network, image_shape)


def _draw(config: ConfigDict, image_shape: tuple[int, ...], keys: jax.Array, index: jax.Array):
    """(Alg. 1's draws, the keys of dropout) of examples with the given keys and places in the batch."""
    draw_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    draws = loss.draw(draw_keys, image_shape)
    if config.train.stratified:
        draws = draws._replace(u_time=schedule.stratify(draws.u_time, index, config.train.batch_size))
    return draws, dropout_keys


def _denoising(config: ConfigDict, network: nn.Module, image_shape: tuple[int, ...]) -> Callable:
    """Alg. 1."""

    def loss_fn(params, images, labels, keys, index):
        draws, dropout_keys = _draw(config, image_shape, keys, index)
        losses = loss.denoising_loss(
            lambda z, logsnr, labels: network.apply({'params': params}, z, logsnr, labels, dropout_keys),
            images,
            labels,
            draws,
            p_uncond=config.train.p_uncond,
            null_label=network.num_classes,
            logsnr_min=config.diffusion.logsnr_min,
            logsnr_max=config.diffusion.logsnr_max,
            prediction=config.diffusion.prediction,
        )
        return losses, {}

    return loss_fn


def _classification(config: ConfigDict, network: nn.Module, image_shape: tuple[int, ...]) -> Callable:
    """The classifier of noisy images of Section 3.1, with accuracies by noise level."""
    limits = {'logsnr_min': config.diffusion.logsnr_min, 'logsnr_max': config.diffusion.logsnr_max}
    names = band_names(**limits)

    def loss_fn(params, images, labels, keys, index):
        draws, dropout_keys = _draw(config, image_shape, keys, index)
        losses, correct = loss.classification_loss(
            lambda z, logsnr: network.apply({'params': params}, z, logsnr, dropout_keys),
            images,
            labels,
            draws,
            **limits,
        )
        return losses, accuracies(correct, draws.u_time, names)

    return loss_fn


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of a config."""
    train = config.train
    return optimizer(
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup_steps,
        beta1=train.beta1,
        beta2=train.beta2,
        weight_decay=train.weight_decay,
        grad_clip=train.grad_clip,
        decay_steps=train.decay_steps,
    )


def make_step(
    config: ConfigDict,
    network: nn.Module,
    image_shape: tuple[int, ...],
    devices: parallel.Devices = None,
    *,
    tx: optax.GradientTransformation | None = None,
):
    """The compiled training step: (replicated state, sharded batch, int32 [D]) -> (state, metrics).

    The last argument is a wish of each device to stop, 0 for none; metrics['stop'] is the largest over all devices of
    all processes, so that every process learns of it at the same step.

    Args:
      devices: to run on; those of all processes by default.
      tx: the optimizer whose state the training state holds; made from the config unless given.
    """
    one_step = functools.partial(
        train_step,
        loss_fn=make_loss_fn(config, network, image_shape),
        tx=tx or make_optimizer(config),
        ema_decay=config.train.ema_decay,
        grad_accum=config.train.grad_accum,
        seed=config.seed,
        mean_over_devices=parallel.mean_over_devices,
        skip_nonfinite=config.train.max_skipped > 0,
    )

    def step(state, batch, stop):
        state, metrics = one_step(state, batch)
        return state, metrics | {'stop': parallel.max_over_devices(stop)}

    devices = parallel.everywhere() if devices is None else devices
    return parallel.pmap(step, num_args=3, donate=(0,), devices=devices)
