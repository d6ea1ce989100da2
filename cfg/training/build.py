"""Makes from a config what trains: the checks, the optimizer, the objective and the compiled step."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from cfg.diffusion.sampler import parse_rule, parse_solver
from cfg.diffusion.weights import LossWeight
from cfg.runs.state import TrainState, create
from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.settings.networks import TAKE_W
from cfg.settings.values import require
from cfg.training.bands import band_names
from cfg.training.optimizer import optimizer
from cfg.training.step import (
    Classification,
    Denoising,
    Distillation,
    GuidanceFree,
    Objective,
    compiled,
    train_step,
)

if TYPE_CHECKING:  # it opens checkpoints, which a benchmark of the step must not need
    from cfg.training.teacher import Teacher


def check_trainable(config: ConfigDict) -> None:
    """Checks that what `config.train.kind` names can be trained on these devices."""
    check_batch(config)
    _check_denoising(config)
    if config.train.kind == 'classifier':
        return
    _check_strength(config)
    if config.model.learned_variance:
        raise UserError(
            'config.model.learned_variance=True is for imported networks: the loss trains no variances; '
            'set it to False.'
        )
    parallel.per_device(config.sampling.batch_size, 'config.sampling.batch_size')


def _check_strength(config: ConfigDict) -> None:
    """Checks how a network is told of w, and that what is drawn of it on the way is guided so."""
    train, rule = config.train, parse_rule(config.sampling.guidance)
    takes = train.kind in TAKE_W
    words = f"'one_pass' with train.kind={train.kind!r}" if takes else "another than 'one_pass'"
    require(takes is (rule.name == 'one_pass'), 'sampling.guidance', rule.text, words)
    low, high = train.w
    require(low < high, 'train.w', tuple(train.w), 'two numbers, the smaller first')
    eps = train.kind == 'student' and config.diffusion.prediction == 'eps'
    words = "'x' or 'v' with train.student_steps: in few steps too little of x is left in eps"
    require(not (eps and train.student_steps), 'diffusion.prediction', 'eps', words)
    learned = not takes or (train.p_uncond < 1.0 and (train.p_uncond > 0.0 or train.kind == 'student'))
    words = "below 1 where the network takes w, and above 0 with train.kind='guidance_free', for its null label"
    require(learned, 'train.p_uncond', train.p_uncond, words)
    sampling, few = config.sampling, train.student_steps if train.kind == 'student' else 0
    drawn = (sampling.sampler, sampling.grid, sampling.num_steps)
    learned = train.student_sampler
    words = f"{learned!r} with sampling.grid='nested' and sampling.num_steps={few}, the steps that the student learns"
    require(not few or drawn == (learned, 'nested', few), 'sampling.sampler', sampling.sampler, words)
    words = "'eps' where the network predicts eps, whose errors weigh e^20 times as much as those of x at logsnr -20"
    require(not eps or train.weighting == 'eps', 'train.weighting', train.weighting, words)


def _check_denoising(config: ConfigDict) -> None:
    """Checks what Eq. 5 alone has: a weight that the network can bear, and images that are changed."""
    train, weight = config.train, config.train.loss_weight
    denoises = train.kind in ('model', 'guidance_free')
    words = f"'' with train.kind={train.kind!r}, whose loss is another"
    require(denoises or not weight, 'train.loss_weight', weight, words)
    words = f'0 with train.kind={train.kind!r}, which is not told of it'
    require(denoises or not config.data.augment, 'data.augment', config.data.augment, words)
    words = "'', 'eps' or 'edm' where the network predicts eps, whose errors at logsnr -20 would weigh e^10 or more"
    eps = config.diffusion.prediction == 'eps'
    require(not eps or weight in ('', 'eps', 'edm'), 'train.loss_weight', weight, words)
    words = "'paper' unless train.loss_weight='edm': others need more of the noisy and the clean levels"
    require(train.times == 'paper' or weight == 'edm', 'train.times', train.times, words)


def check_batch(config: ConfigDict) -> int:
    """Returns a device's share of the training batch, which must divide into `train.grad_accum` pieces."""
    share = parallel.per_device(config.train.batch_size, 'config.train.batch_size', parallel.everywhere())
    pieces = config.train.grad_accum
    require(share % pieces == 0, 'train.grad_accum', pieces, f"a divisor of a device's share of the batch, {share}")
    return share


def objective_of(config: ConfigDict, network: nn.Module, teacher: 'Teacher | None' = None) -> Objective:
    """Returns what `config.train.kind` minimises; `teacher` is that of a student."""
    limits = {'logsnr_min': config.diffusion.logsnr_min, 'logsnr_max': config.diffusion.logsnr_max}
    common = {'network': network, 'strata': config.train.batch_size if config.train.stratified else 0, **limits}
    if config.train.kind == 'classifier':
        return Classification(**common, bands=tuple(band_names(**limits)))
    common['prediction'] = config.diffusion.prediction
    if config.train.kind == 'student':
        w_range, weighting = tuple(config.train.w), config.train.weighting
        of_teacher = {'sampler': teacher.sampler, 'bind': teacher.bind}
        steps = {'num_steps': config.train.student_steps, 'reach': parse_solver(config.train.student_sampler).reach}
        return Distillation(**common, **of_teacher, **steps, w_range=w_range, weighting=weighting)
    common['p_uncond'] = config.train.p_uncond
    common['augment'] = config.data.augment
    common['weight'] = LossWeight(
        name=config.train.loss_weight, times=config.train.times, bias=config.train.sigmoid_bias
    )
    if config.train.kind == 'guidance_free':
        return GuidanceFree(**common, w_range=tuple(config.train.w))
    return Denoising(**common)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer of a config."""
    names = ('learning_rate', 'warmup_steps', 'decay_steps', 'beta1', 'beta2', 'weight_decay', 'grad_clip')
    return optimizer(**{name: config.train[name] for name in names})


def abstract_state(config: ConfigDict, params: Any) -> TrainState:
    """Returns the shapes of all that a training run of a config holds, from those of its parameters."""
    begin = functools.partial(create, tx=make_optimizer(config), ema_lengths=config.train.ema_lengths)
    return jax.eval_shape(begin, params)


def step_of(
    config: ConfigDict,
    network: nn.Module,
    tx: optax.GradientTransformation,
    devices: parallel.Devices = None,
    teacher: 'Teacher | None' = None,
) -> Callable:
    """Compiles the training step of a config; see `cfg.training.step.compiled`. `teacher` is that of a student."""
    one_step = functools.partial(
        train_step,
        loss_fn=objective_of(config, network, teacher),
        tx=tx,
        seed=config.seed,
        ema_decay=config.train.ema_decay,
        grad_accum=config.train.grad_accum,
        skip_nonfinite=config.train.max_skipped > 0,
        mean_over_devices=parallel.mean_over_devices,
    )
    return compiled(one_step, devices, (teacher.params,) if teacher else ())
