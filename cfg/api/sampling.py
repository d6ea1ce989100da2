"""Guided samples of a trained run, or of any function: `sample`, and `guided` for loops of one's own."""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from cfg.api.models import Model
from cfg.diffusion.adapters import adapt
from cfg.diffusion.denoiser import Denoiser, EpsFn, Models
from cfg.diffusion.grids import Grid
from cfg.diffusion.rules.base import Rule
from cfg.diffusion.sampler import Sampler, check_fit
from cfg.diffusion.stepping import Guided, Solver
from cfg.runs.companions import check_guidable, on_devices, open_companions
from cfg.runs.generate import Generator
from cfg.runs.trained import TrainedRun
from cfg.runtime.errors import UserError
from cfg.settings.sampler import PARSERS, check_levels, check_w, read_sampler, with_logvar_interp

Network = Model | Models | Denoiser | EpsFn
FIELDS = {'guidance': 'rule', 'sampler': 'solver', 'steps': 'num_steps'}  # of `Sampler`, by the names of arguments
KINDS = {  # of what is no text, and how either is written
    'guidance': (Rule, "'apg' or cfg.rules.Apg()"),
    'sampler': (Solver, "'ddim' or cfg.solvers.Ddim()"),
    'grid': (Grid, "'uniform' or cfg.grids.Uniform()"),
}


def sample(
    model: Network,
    labels: Sequence[int] | np.ndarray,
    w: float | Sequence[float] | np.ndarray = 0.3,
    *,
    guidance: str | Rule | None = None,
    sampler: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    clip_x: bool | None = None,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """Draws guided samples, over all devices of this process; sample i depends on seed, i, its label and w alone.

    What is None is as the run's config says; for a function it is the paper's: Eq. 6, Alg. 2, its grid, T = 256.

    Args:
      model: of `load`; or an eps function (z [N, *shape], logsnr [N], labels [N]) -> eps, or one that `adapt` made, or
        `Models` for rules that compare with another network.
      labels: [N], each 0 to num_classes - 1; num_classes is the null label.
      w: the paper's guidance strength, one for all or one a sample. 0 is no guidance; a guidance scale s is 1 + w.
      guidance: a rule, such as 'apg' or 'cfg(interval=(-3, 3))'.
      sampler: such as 'ddim' or 'dpm_solver_2m(stochastic=True)'.
      grid: of the levels, such as 'uniform'.
      steps: T.
      clip_x: whether the estimate of x is clipped to [-1, 1] at every step; not for latents.
      shape: of one sample, where the model is no run.
      num_classes: where the model is a plain function.
      batch_size: the most samples at a time.

    Returns:
      uint8 images [N, H, W, C] of a run; float32 [N, *shape] of a function.

    Raises:
      UserError: names the argument that cannot be, and what it may be.
    """
    if _traced((labels, w, jnp.zeros(()))):  # within jit all new arrays are
        raise UserError(
            'cfg.sample is compiled by itself and cannot be called within jit or grad: use cfg.guided there.'
        )
    labels, shape = np.asarray(labels), None if shape is None else _shape(shape)
    seed, batch_size = _whole('seed', seed, 0), _whole('batch_size', batch_size, 1)
    steps = None if steps is None else _whole('steps', steps, 0)
    network = _read(model, num_classes)
    if isinstance(network, Model):
        if shape not in (None, network.shape):
            raise UserError(f'shape={shape} is not that of the run, {network.shape}: leave it out.')
        shape = network.shape
    elif shape is None:
        raise UserError('shape is missing: a function does not tell the shape of its samples, as in shape=(32, 32, 3).')
    _check_labels(labels, network)
    w = _strengths(w, len(labels))
    how = _sampler(network, w, guidance=guidance, sampler=sampler, grid=grid, steps=steps, clip_x=clip_x)
    ways = len(jax.local_devices())
    share = 1 << (max(min(batch_size, len(labels)) // ways, 1) - 1).bit_length()
    if isinstance(network, Model):
        generate, params, beside = _of_run(network, how, share * ways)
        check_guidable(np.unique(w).tolist(), network.run, how.rule, beside)
    else:
        generate, params = _of_functions(network, how, shape, share * ways)
    return np.concatenate([batch.images for batch in generate(params, labels.astype(np.int32), w, seed=seed)])


def guided(
    model: Network,
    labels: jax.Array,
    w: float | jax.Array = 0.3,
    *,
    guidance: str | Rule | None = None,
    num_classes: int | None = None,
) -> Guided:
    """Returns the predictions of a guidance rule, for a loop of one's own; they may be traced and differentiated.

    `init(keys [N], z)` gives the state before the first prediction, and `predict(z, logsnr, state)` the guided x and
    eps, and the next state.

    Args:
      model: as of `sample`.
      labels: int32 [N].
      w: the paper's guidance strength, [] or [N].
      guidance: the rule.
      num_classes: where the model is a plain function.

    Raises:
      UserError: as `sample` does.
    """
    network = _read(model, num_classes)
    if not _traced(labels):
        _check_labels(np.asarray(labels), network)
    how = _sampler(network, guidance=guidance)
    if isinstance(network, Model):
        beside = open_companions(network.config, network.run, how.rule)
        found = {name: run.bind(run.params()) for name, run in beside.items()}
        network = Models(model=network.denoiser, **found)
    _check_companion(network, how.rule)
    return how.ruled(network, jnp.asarray(labels), jnp.asarray(w))


def _traced(value: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def _read(model: Network, num_classes: int | None) -> Model | Models:
    if isinstance(model, Model):
        known = model.num_classes
    elif isinstance(model, Models):
        known = model.model.num_classes
    elif isinstance(model, Denoiser):
        known = model.num_classes
    elif not callable(model):
        raise UserError(f'model must be of cfg.load, or a function, not {type(model).__name__}.')
    elif num_classes is None:
        raise UserError('num_classes is missing: a function does not tell how many classes it has.')
    else:
        known, model = num_classes, adapt(model, 'eps', num_classes=num_classes)
    if num_classes not in (None, known):
        raise UserError(f'num_classes={num_classes} is not that of the model, {known}: leave it out.')
    return Models(model) if isinstance(model, Denoiser) else model


def _check_labels(labels: np.ndarray, network: Model | Models) -> None:
    count = network.num_classes if isinstance(network, Model) else network.model.num_classes
    whole = labels.ndim == 1 and len(labels) and np.issubdtype(labels.dtype, np.integer)
    if not whole or not ((labels >= 0) & (labels <= count)).all():
        raise UserError(f'labels must be whole numbers [N] from 0 to {count - 1} ({count} is the null label).')


def _shape(shape: Any) -> tuple[int, ...]:
    with contextlib.suppress(TypeError):
        found = tuple(map(operator.index, shape))
        if found and min(found) > 0:
            return found
    raise UserError(f'shape must be that of one sample, as in (32, 32, 3) or (2,), not {shape!r}.')


def _whole(name: str, value: Any, least: int) -> int:
    with contextlib.suppress(TypeError):
        found = operator.index(value)
        if least <= found < 1 << 32:  # of a larger seed JAX would drop the upper bits
            return found
    raise UserError(f'{name} must be a whole number of at least {least} and below 2^32, not {value!r}.')


def _strengths(w: Any, count: int) -> np.ndarray:
    with contextlib.suppress(TypeError, ValueError):
        found = np.asarray(w, np.float32)
        if found.shape in ((), (count,)) and np.isfinite(found).all():
            return found
    raise UserError(f'w must be a finite number, or one for each of the {count} labels, not {w!r}.')


def _sampler(network: Model | Models, w: np.ndarray | None = None, **options: Any) -> Sampler:
    """Returns the sampler of a run's config, or the paper's, with what options hold that is not None.

    With strengths w it is checked as a whole.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, (kind, examples) in KINDS.items():
        if not isinstance(given.get(name, ''), str | kind):
            raise UserError(f'{name} must be one such as {examples}, not {given[name]!r}.')
    own = read_sampler(network.config) if isinstance(network, Model) else Sampler()
    try:
        texts = {name: value for name, value in given.items() if isinstance(value, str)}
        read: dict[str, Any] = {name: parse(texts[name], name) for name, parse in PARSERS.items() if name in texts}
        if 'sampler' in read and isinstance(network, Model):  # a text does not say the paper's v
            read['sampler'] = with_logvar_interp(cast(Solver, read['sampler']), network.config.sampling.logvar_interp)
        sampler = dataclasses.replace(own, **{FIELDS.get(name, name): it for name, it in (given | read).items()})
        if sampler.rule.w is not None:
            raise UserError(f'guidance={sampler.rule.name!r} has a w of its own: give it as w.')
        if w is not None:
            _check(sampler, np.unique(w).tolist())
    except UserError as error:
        raise UserError(str(error).removeprefix('config.')) from None  # here they are arguments
    return sampler


def _check(sampler: Sampler, ws: Sequence[float]) -> None:
    check_fit(sampler.rule, sampler.solver)
    check_w(sampler.rule, sampler.solver, 'w', ws)
    ends = {'logsnr_min': sampler.logsnr_min, 'logsnr_max': sampler.logsnr_max}
    check_levels(sampler.grid, sampler.solver, sampler.num_steps, ends, fields=('sampler', 'steps'))


def _check_companion(models: Models, rule: Rule) -> None:
    if rule.companion and getattr(models, rule.companion) is None:
        what = f'cfg.Models(model=..., {rule.companion}=...)'
        raise UserError(f'The guidance {rule.name!r} needs another network beside the model: give {what} as the model.')


@functools.lru_cache(maxsize=8)  # compiled once for all w and labels
def _of_run(model: Model, sampler: Sampler, batch_size: int) -> tuple[Generator, dict[str, Any], dict[str, TrainedRun]]:
    """Returns what draws, its parameters, and the networks beside the model."""
    beside = open_companions(model.config, model.run, sampler.rule)
    bind = {name: run.bind for name, run in {'model': model.run, **beside}.items()}
    rounding = model.config.sampling.rounding
    generate = Generator(bind, sampler, image_shape=model.shape, rounding=rounding, batch_size=batch_size)
    return generate, {'model': model.on_devices, **on_devices(beside)}, beside


def _of_functions(
    models: Models, sampler: Sampler, shape: tuple[int, ...], batch_size: int
) -> tuple[Generator, dict[str, Any]]:
    """Returns what draws and its parameters, none: what a function closes over may be other values at the next call."""
    _check_companion(models, sampler.rule)
    given = {name: each for name, each in models._asdict().items() if each is not None}
    bind = {name: functools.partial(lambda each, params: each, each) for name, each in given.items()}
    generate = Generator(bind, sampler, image_shape=shape, rounding=None, batch_size=batch_size)
    return generate, dict.fromkeys(given, ())
