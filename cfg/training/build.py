"""From the config to the compiled training step."""

import functools

import jax
import optax
from ml_collections import ConfigDict

from cfg import parallel, setup
from cfg.diffusion import loss, schedule
from cfg.models.unet import UNet
from cfg.training import state as states
from cfg.training.step import train_step


def check_batch(config: ConfigDict) -> int:
    """A device's share of the training batch.

    Raises:
      UserError: when the batch does not divide over the devices, or a share not into `train.grad_accum` pieces.
    """
    share = parallel.per_device(config.train.batch_size, 'config.train.batch_size')
    pieces = config.train.grad_accum
    setup.require(
        share % pieces == 0, 'train.grad_accum', pieces, f"a divisor of a device's share of the batch, {share}"
    )
    return share


def make_loss_fn(config: ConfigDict, network: UNet, image_shape: tuple[int, ...]):
    """Alg. 1 on a batch: (params, images, labels, keys, index) -> losses [n]."""

    def loss_fn(params, images, labels, keys, index):
        draw_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        draws = loss.draw(draw_keys, image_shape)
        if config.train.stratified:
            u_time = schedule.stratify(draws.u_time, index, config.train.batch_size)
            draws = draws._replace(u_time=u_time)
        return loss.denoising_loss(
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

    return loss_fn


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of a config."""
    train = config.train
    return states.optimizer(
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup_steps,
        beta1=train.beta1,
        beta2=train.beta2,
        weight_decay=train.weight_decay,
        grad_clip=train.grad_clip,
    )


def make_step(
    config: ConfigDict,
    network: UNet,
    image_shape: tuple[int, ...],
    devices: parallel.Devices = None,
    *,
    tx: optax.GradientTransformation | None = None,
):
    """The compiled training step over devices: (replicated state, sharded batch) -> (state, metrics).

    Args:
      tx: the optimizer whose state the training state holds; made from the config unless given.
    """
    step = functools.partial(
        train_step,
        loss_fn=make_loss_fn(config, network, image_shape),
        tx=tx or make_optimizer(config),
        ema_decay=config.train.ema_decay,
        grad_accum=config.train.grad_accum,
        seed=config.seed,
        mean_over_devices=parallel.mean_over_devices,
    )
    return parallel.pmap(step, num_args=2, donate=(0,), devices=devices)
