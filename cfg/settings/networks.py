"""From the config to its networks and their parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cfg.data.source import Source
from cfg.data.spec import DataSpec
from cfg.models.classifier import EncoderUNet
from cfg.models.time import TIME_FNS
from cfg.models.unet import UNet
from cfg.runtime.errors import UserError
from cfg.settings.values import require


def build_network(config: ConfigDict, source: DataSpec | Source) -> UNet:
    """The network of a config for the images and classes of a data set.

    Raises:
      UserError: when the image size does not fit the number of resolutions.
    """
    model = config.model
    _check_resolutions('model', model, source)
    channels = source.image_shape[-1]
    return UNet(
        out_channels=2 * channels if model.learned_variance else channels,
        num_classes=source.num_classes,
        channels=model.channels,
        channel_mult=tuple(model.channel_mult),
        num_res_blocks=model.num_res_blocks,
        attention_resolutions=tuple(model.attention_resolutions),
        num_heads=model.num_heads,
        head_channels=model.head_channels,
        dropout=model.dropout,
        norm_groups=model.norm_groups,
        dtype=getattr(jnp, model.dtype),
        time_fn=TIME_FNS[model.time],
        label_in=model.label_in,
        remat=config.train.remat,
    )


def build_classifier(config: ConfigDict, source: DataSpec | Source) -> EncoderUNet:
    """The noise-aware classifier of a config, told of the noise level in the same way as the network.

    Raises:
      UserError: when the image size does not fit the number of resolutions.
    """
    options = config.classifier
    _check_resolutions('classifier', options, source)
    return EncoderUNet(
        num_classes=source.num_classes,
        channels=options.channels,
        channel_mult=tuple(options.channel_mult),
        num_res_blocks=options.num_res_blocks,
        attention_resolutions=tuple(options.attention_resolutions),
        head_channels=options.head_channels,
        dropout=options.dropout,
        norm_groups=options.norm_groups,
        dtype=getattr(jnp, config.model.dtype),
        time_fn=TIME_FNS[config.model.time],
        remat=config.train.remat,
    )


def build_trained(config: ConfigDict, source: DataSpec | Source) -> UNet | EncoderUNet:
    """What `config.train.kind` trains.

    Raises:
      UserError: when the image size does not fit the number of resolutions.
    """
    return {'model': build_network, 'classifier': build_classifier}[config.train.kind](config, source)


def _check_resolutions(part: str, options: ConfigDict, source: DataSpec | Source) -> None:
    """Whether images can be halved as often as a network wants, and have the heights where it has attention."""
    levels = len(options.channel_mult)
    factor = 2 ** (levels - 1)
    height, width, _ = source.image_shape
    if height % factor or width % factor:
        raise UserError(
            f'config.{part}.channel_mult has {levels} resolutions, so images must be multiples of {factor} pixels, but '
            f'those of {source.name} are {height}x{width}: use fewer resolutions.'
        )
    heights = [height // 2**level for level in range(levels)]
    for resolution in options.attention_resolutions:
        field = f'{part}.attention_resolutions'
        require(resolution in heights, field, options.attention_resolutions, f'among the heights {heights}')


def init_params(network: UNet | EncoderUNet, source: DataSpec | Source, *, seed: int) -> Any:
    """The initial parameters, float32 numpy arrays."""
    inputs = _inputs(network, source.image_shape)
    # A program that runs once is not worth optimising: on the CPU this takes a third of the time.
    init = jax.jit(
        lambda key: network.init(key, *inputs)['params'],
        compiler_options={'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None,
    )
    return jax.tree.map(np.asarray, init(jax.random.key(seed)))


def abstract_params(network: UNet | EncoderUNet, source: DataSpec | Source) -> Any:
    """The shapes and types of the parameters, without computing any."""
    return _abstract_params(network, tuple(source.image_shape))


@functools.lru_cache(maxsize=8)  # a run asks at several places, and a large network takes seconds to trace
def _abstract_params(network: UNet | EncoderUNet, image_shape: tuple[int, int, int]) -> Any:
    inputs = _inputs(network, image_shape)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs)['params'])


def _inputs(network: UNet | EncoderUNet, image_shape: tuple[int, int, int]) -> tuple[jax.Array, ...]:
    """(z, logsnr) of one example, and the label if the network takes one."""
    inputs = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return (*inputs, jnp.zeros(1, jnp.int32)) if isinstance(network, UNet) else inputs
