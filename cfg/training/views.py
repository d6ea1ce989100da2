"""Shows a run's network while it trains: sample grids, or accuracies on images that it does not learn."""

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cfg.data.grids import mosaic
from cfg.data.images import to_float
from cfg.data.source import Source
from cfg.diffusion import loss
from cfg.diffusion.rules import Cfg
from cfg.diffusion.sampler import Sampler
from cfg.runs.generate import Generator, binder
from cfg.runs.state import TrainState
from cfg.runtime import parallel
from cfg.settings.data import open_held_out
from cfg.settings.networks import held
from cfg.settings.sampler import read_sampler
from cfg.training.bands import accuracies, band_names
from cfg.training.meter import average

log = logging.getLogger('cfg')

MOST_HELD_OUT = 2048  # images; the standard error of an accuracy over all of them is at most 1.1 points


class View(NamedTuple):
    """A view is what is logged of a network: numbers, and uint8 images [H, W, C]."""

    scalars: dict[str, float]
    images: dict[str, np.ndarray]


def open_view(config: ConfigDict, source: Source, network: nn.Module) -> Callable[[TrainState], View] | None:
    """Returns a function of the replicated state: what is logged every `config.train.sample_every` steps, or None.

    It runs on the devices of this process.

    Raises:
      UserError: when a batch does not divide over them, or held-out images cannot be read.
    """
    if not config.train.sample_every:
        return None
    return {'model': _sample_grid, 'classifier': _held_out}[held(config.train.kind)](config, source, network)


def _sample_grid(config: ConfigDict, source: Source, network: nn.Module) -> Callable[[TrainState], View]:
    """Draws one row a w and one column a class, with the same noise in a column."""
    columns = min(source.num_classes, 10)
    devices = len(parallel.local_devices())
    sampler, ws = _trained(read_sampler(config), tuple(config.sampling.w), config.train.p_uncond)
    generator = Generator(
        {'model': binder(network, config.diffusion.prediction)},
        sampler,
        image_shape=source.image_shape,
        batch_size=-(-columns // devices) * devices,
        rounding=config.sampling.rounding,
    )
    seed = config.sampling.seed
    labels = np.arange(columns)

    def view(state: TrainState) -> View:
        params = parallel.on_this_process(state.ema_params if config.sampling.ema else state.params)
        rows = [batch.images for w in ws for batch in generator({'model': params}, labels, w, seed=seed)]
        return View({}, {'samples': mosaic(np.concatenate(rows), (len(ws), columns), width=640)})

    return view


def _trained(sampler: Sampler, ws: tuple[float, ...], p_uncond: float) -> tuple[Sampler, tuple[float, ...]]:
    """Returns the sampler and the strengths that the network can show by itself: its rule's own, or else `ws`.

    Eq. 6 takes the place of a rule that needs another network. Strengths that ask for a prediction that is not trained
    are left out, and where none is left the network is shown without guidance.
    """
    if sampler.rule.companion:
        sampler = dataclasses.replace(sampler, rule=Cfg())
    ws = sampler.rule.w or ws
    trained = p_uncond < 1, p_uncond > 0  # the conditional and the unconditional prediction
    kept = tuple(w for w in ws if all(np.greater_equal(trained, sampler.rule.asks_for(w))))
    if kept != ws:
        left_out = ', '.join(f'{w:g}' for w in ws if w not in kept)
        words = 'Sample grids leave out w = %s: they need a prediction that config.train.p_uncond=%g does not train.'
        log.warning(words, left_out, p_uncond)
    if kept:
        return sampler, kept
    return dataclasses.replace(sampler, rule=Cfg()), (0.0 if trained[0] else -1.0,)


def _held_out(config: ConfigDict, source: Source, network: nn.Module) -> Callable[[TrainState], View] | None:
    """Measures loss and accuracies on up to `MOST_HELD_OUT` images of the split that is not trained on.

    They are of the averaged parameters, with which a classifier guides. Images, noise and noise levels are the same
    each time. The levels lie in the middle of as many equal strata of p(logsnr) as there are images.
    """
    held = open_held_out(config)
    if held is None or held.name == source.name or source.name.endswith('/all'):
        log.info('%s leaves no images that are not trained on: accuracies are those of training.', source.name)
        return None
    count = min(len(held), MOST_HELD_OUT)
    examples = held.fetch(np.linspace(0, len(held) - 1, count).round().astype(int))
    u_time = (np.random.default_rng(0).permutation(count) + 0.5) / count
    examples |= {'index': np.arange(count, dtype=np.int32), 'u_time': u_time.astype(np.float32)}
    devices = len(parallel.local_devices())
    size = min(config.train.batch_size // len(parallel.everywhere()), -(-count // devices)) * devices
    limits = {'logsnr_min': config.diffusion.logsnr_min, 'logsnr_max': config.diffusion.logsnr_max}
    names = band_names(**limits)

    def classify(params, examples):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(examples['index'])
        draws = loss.draw(keys, source.image_shape)._replace(u_time=examples['u_time'])
        return loss.classification_loss(
            lambda *inputs: network.apply({'params': params}, *inputs),
            to_float(examples['image']),
            examples['label'],
            draws,
            **limits,
        )

    run = parallel.pmap(classify, num_args=2)

    def view(state: TrainState) -> View:
        params, results = parallel.on_this_process(state.ema_params), []
        for start in range(0, count, size):
            # The last batch is filled up with the first examples, and what is too much is cut off again.
            batch = {name: np.take(x, range(start, start + size), axis=0, mode='wrap') for name, x in examples.items()}
            results.append(parallel.unshard(run(params, parallel.shard(batch))))
        losses, correct = (np.concatenate(parts)[:count] for parts in zip(*results, strict=True))
        measured = {'loss': losses} | accuracies(correct, u_time, names)
        found = {name: average([jax.tree.map(float, jax.tree.map(jnp.mean, x))]) for name, x in measured.items()}
        return View({f'held_out_{name}': value for name, value in found.items() if value is not None}, {})

    return view
