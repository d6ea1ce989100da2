"""Builds a config's networks and their parameters.

Building raises a UserError when the size of the images does not fit the number of resolutions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cfg.data.augment import SIZE
from cfg.data.source import Source
from cfg.data.spec import DataSpec
from cfg.models.attention import kernel_of
from cfg.models.classifier import EncoderUNet
from cfg.models.time import TIME_FNS
from cfg.models.unet import UNet
from cfg.runtime.errors import UserError
from cfg.settings.values import require


def build_network(config: ConfigDict, source: DataSpec | Source) -> UNet:
    """Returns the network of a config for the images and classes of a data set."""
    model, channels = config.model, source.image_shape[-1]
    return UNet(
        **_common(config, 'model', source),
        out_channels=2 * channels if model.learned_variance else channels,
        num_heads=model.num_heads,
        label_in=model.label_in,
        takes_w=config.train.kind in TAKE_W,
        augment_size=SIZE if config.data.get('augment', 0.0) else 0,
    )


def build_classifier(config: ConfigDict, source: DataSpec | Source) -> EncoderUNet:
    """Returns the noise-aware classifier of a config, told of the noise level in the same way as the network."""
    return EncoderUNet(**_common(config, 'classifier', source))


# By what a checkpoint holds.
BUILDERS = {'model': build_network, 'classifier': build_classifier}
# Kinds of training whose model has the guidance strength as an input.
TAKE_W = ('student', 'guidance_free')


def held(kind: str) -> str:
    """Returns what the checkpoints of a kind of training hold: 'model' or 'classifier'."""
    return 'classifier' if kind == 'classifier' else 'model'


def build_trained(config: ConfigDict, source: DataSpec | Source) -> UNet | EncoderUNet:
    """Returns what `config.train.kind` trains."""
    return BUILDERS[held(config.train.kind)](config, source)


def _common(config: ConfigDict, part: str, source: DataSpec | Source) -> dict[str, Any]:
    """Returns the arguments that both networks have."""
    options = config[part]
    _check_resolutions(part, options, source)
    same = ('channels', 'num_res_blocks', 'head_channels', 'dropout', 'norm_groups')
    return {name: options[name] for name in same} | {
        'num_classes': source.num_classes,
        'channel_mult': tuple(options.channel_mult),
        'attention_resolutions': tuple(options.attention_resolutions),
        'attention_kernel': kernel_of(config.model.get('attention', 'auto')),
        'dtype': getattr(jnp, config.model.dtype),
        'time_fn': TIME_FNS[config.model.time],
        'remat': config.train.remat,
    }


def _check_resolutions(part: str, options: ConfigDict, source: DataSpec | Source) -> None:
    """Checks that images can be halved as often as a network wants, and have the heights where it has attention."""
    levels = len(options.channel_mult)
    factor = 2 ** (levels - 1)
    height, width, _ = source.image_shape
    if height % factor or width % factor:
        raise UserError(
            f'config.{part}.channel_mult has {levels} resolutions, so images must be multiples of {factor} pixels, but '
            f'those of {source.name} are {height}x{width}: use fewer resolutions.'
        )
    heights, wanted = [height // 2**level for level in range(levels)], options.attention_resolutions
    require(set(wanted) <= set(heights), f'{part}.attention_resolutions', wanted, f'among the heights {heights}')


def init_params(network: UNet | EncoderUNet, source: DataSpec | Source, *, seed: int) -> Any:
    """Returns the initial parameters, float32 numpy arrays."""
    inputs = _inputs(network, source.image_shape)
    # A program that runs once is not worth optimising: on the CPU this takes a third of the time.
    init = jax.jit(
        lambda key: network.init(key, *inputs)['params'],
        compiler_options={'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None,
    )
    return jax.tree.map(np.asarray, init(jax.random.key(seed)))


def abstract_params(network: UNet | EncoderUNet, source: DataSpec | Source) -> Any:
    """Returns the shapes and types of the parameters, without computing any."""
    return _abstract_params(network, tuple(source.image_shape))


@functools.lru_cache(maxsize=8)  # a run asks at several places, and a large network takes seconds to trace
def _abstract_params(network: UNet | EncoderUNet, image_shape: tuple[int, int, int]) -> Any:
    inputs = _inputs(network, image_shape)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs)['params'])


def _inputs(network: UNet | EncoderUNet, image_shape: tuple[int, int, int]) -> tuple[jax.Array, ...]:
    """Returns (z, logsnr) of one example, and the label if the network takes one."""
    inputs = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return (*inputs, jnp.zeros(1, jnp.int32)) if isinstance(network, UNet) else inputs
