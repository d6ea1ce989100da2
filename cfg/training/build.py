"""Makes from a config what trains: the checks, the optimizer, the objective and the compiled step."""

import functools
from collections.abc import Callable

import flax.linen as nn
import optax
from ml_collections import ConfigDict

from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.settings.values import require
from cfg.training.bands import band_names
from cfg.training.optimizer import optimizer
from cfg.training.step import Classification, Denoising, Objective, compiled, train_step


def check_trainable(config: ConfigDict) -> None:
    """Checks that what `config.train.kind` names can be trained on these devices."""
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
    """Returns a device's share of the training batch, which must divide into `train.grad_accum` pieces."""
    share = parallel.per_device(config.train.batch_size, 'config.train.batch_size', parallel.everywhere())
    pieces = config.train.grad_accum
    require(share % pieces == 0, 'train.grad_accum', pieces, f"a divisor of a device's share of the batch, {share}")
    return share


def objective_of(config: ConfigDict, network: nn.Module) -> Objective:
    """Returns what `config.train.kind` minimises."""
    limits = {'logsnr_min': config.diffusion.logsnr_min, 'logsnr_max': config.diffusion.logsnr_max}
    common = {'network': network, 'strata': config.train.batch_size if config.train.stratified else 0, **limits}
    if config.train.kind == 'classifier':
        return Classification(**common, bands=tuple(band_names(**limits)))
    return Denoising(**common, p_uncond=config.train.p_uncond, prediction=config.diffusion.prediction)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer of a config."""
    names = ('learning_rate', 'warmup_steps', 'decay_steps', 'beta1', 'beta2', 'weight_decay', 'grad_clip')
    return optimizer(**{name: config.train[name] for name in names})


def step_of(
    config: ConfigDict, network: nn.Module, tx: optax.GradientTransformation, devices: parallel.Devices = None
) -> Callable:
    """Compiles the training step of a config; see `cfg.training.step.compiled`."""
    one_step = functools.partial(
        train_step,
        loss_fn=objective_of(config, network),
        tx=tx,
        seed=config.seed,
        ema_decay=config.train.ema_decay,
        grad_accum=config.train.grad_accum,
        skip_nonfinite=config.train.max_skipped > 0,
        mean_over_devices=parallel.mean_over_devices,
    )
    return compiled(one_step, devices)
