"""From the names and layouts of guided-diffusion's PyTorch networks to the parameters of ours.

The networks are the same functions; names, the order of axes and, in some files, the order of the attention's rows
differ. The names follow from walking our network as guided-diffusion numbers its blocks, so that every architecture
converts and not only a list of released files (docs/adm.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cfg.models.classifier import EncoderUNet
from cfg.models.unet import UNet
from cfg.runtime.errors import UserError

# Our modules, and theirs: whole names of what is not numbered, then of the parts of each block.
_SINGLE = {
    'time_0': 'time_embed.0',
    'time_1': 'time_embed.2',
    'classes': 'label_emb',
    'conv_in': 'input_blocks.0.0',
    'middle_0': 'middle_block.0',
    'middle_attention': 'middle_block.1',
    'middle_1': 'middle_block.2',
    'norm_out': 'out.0',
    'conv_out': 'out.2',
    'pool': 'out.2',
}
_BLOCK_PARTS = {
    'norm_in': 'in_layers.0',
    'conv_in': 'in_layers.2',
    'emb': 'emb_layers.1',
    'norm_out': 'out_layers.0',
    'conv_out': 'out_layers.3',
    'skip': 'skip_connection',
    'norm': 'norm',
    'qkv': 'qkv',
    'proj': 'proj_out',
}
_POOL_PARTS = {'positions': 'positional_embedding', 'qkv': 'qkv_proj', 'proj': 'c_proj'}
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'bias': 'bias'}

_NAMES_SHOWN = 3

Path = tuple[str, ...]


def unet_params(
    state: Mapping[str, np.ndarray], network: UNet, image_shape: tuple[int, int, int], *, new_attention_order: bool
) -> dict[str, Any]:
    """The parameters of `network` from the state dict of guided-diffusion's UNet of the same architecture.

    The class embedding may have `num_classes` rows, to which a null label of zeros is added; or one more, the last
    being the null label; or be missing, as in an unconditional network, which makes every row zero.

    Args:
      state: name -> array.
      network: its `out_channels` are those of the file: 6 where variances are learned.
      image_shape: (H, W, C) of the input.
      new_attention_order: guided-diffusion's flag `use_new_attention_order`. Both orders have the same shapes, so
        that the wrong one is not noticed here.

    Returns:
      What `network.init(...)['params']` holds, as new float32 NumPy arrays.

    Raises:
      UserError: when names or shapes are not those of the architecture.
    """
    shapes = _shapes(network, image_shape, jnp.zeros(1, jnp.int32))
    heads = None if new_attention_order else (network.num_heads, network.head_channels)
    return _convert(state, shapes, network, heads, "config.model must be the checkpoint's architecture")


def classifier_params(
    state: Mapping[str, np.ndarray], network: EncoderUNet, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The parameters of `network` from the state dict of guided-diffusion's classifier with an attention pool.

    Args:
      state: name -> array; its attention blocks are in the old order, as guided-diffusion's classifiers always are.
      network: of the same architecture.
      image_shape: (H, W, C) of the input.

    Returns:
      What `network.init(...)['params']` holds, as new float32 NumPy arrays.

    Raises:
      UserError: when names or shapes are not those of the architecture.
    """
    heads = (0, network.head_channels)
    remedy = "the classifier must be built with the checkpoint's architecture"
    return _convert(state, _shapes(network, image_shape), network, heads, remedy)


def _shapes(network: UNet | EncoderUNet, image_shape: Sequence[int], *labels: jax.Array) -> dict[Path, tuple[int, ...]]:
    """Shape of each parameter by its path."""
    z = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda z: network.init(jax.random.key(0), z, jnp.zeros(1), *labels), z)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables['params']).items()}


def _module_names(network: UNet | EncoderUNet, modules: set[str]) -> dict[str, str]:
    """Our top-level modules to theirs.

    Their blocks are numbered on the way down, after the first convolution, and on the way up; what follows a residual
    block at the same place (attention, then upsampling) shares its number.
    """
    levels, blocks = range(len(network.channel_mult)), network.num_res_blocks
    down, up = [], []
    for level in levels:
        down += [(f'down_{level}_{i}', f'down_{level}_{i}_attention') for i in range(blocks)]
        down += [(f'down_{level}_resample',)]
    for level in reversed(levels):
        up += [(f'up_{level}_{i}', f'up_{level}_{i}_attention') for i in range(blocks)]
        up += [(f'up_{level}_{blocks}', f'up_{level}_{blocks}_attention', f'up_{level}_resample')]
    names = dict(_SINGLE)
    for part, first, groups in (('input_blocks', 1, down), ('output_blocks', 0, up)):
        for number, group in enumerate(groups, first):
            present = [module for module in group if module in modules]
            names |= {module: f'{part}.{number}.{place}' for place, module in enumerate(present)}
    return names


def _file_name(path: Path, modules: Mapping[str, str]) -> str:
    """The state dict's name of one of our parameters."""
    module, *inner = path
    parts = (_POOL_PARTS if module == 'pool' else _BLOCK_PARTS) | _LEAVES
    return '.'.join([modules[module], *(parts[name] for name in inner)])


def _file_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the state dict of one of our parameters: output channels come first."""
    if path[-1] == 'embedding':  # without the null label
        return (shape[0] - 1, shape[1])
    if path[-1] == 'kernel' and len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if path[-1] == 'kernel' and path[-2] in ('qkv', 'proj'):  # convolutions of width 1 along the positions
        return (shape[1], shape[0], 1)
    return shape[::-1]


def _to_ours(path: Path, value: np.ndarray, shape: tuple[int, ...], heads: tuple[int, int] | None) -> np.ndarray:
    """One parameter in our layout; `shape` is ours."""
    if path[-1] == 'embedding':
        null_label = np.zeros((shape[0] - len(value), shape[1]))
        value = np.concatenate([value, null_label])
    elif path[-1] == 'kernel' and len(shape) == 4:
        value = value.transpose(2, 3, 1, 0)
    else:
        if heads and path[-2] == 'qkv' and path[0] != 'pool':
            number, channels = heads
            value = _parts_first(value, number or len(value) // (3 * channels))
        value = value.reshape(shape[::-1]).T
    return np.array(value, np.float32, order='C')


def _parts_first(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows ordered (head, part, channel), the parts being q, k and v, as (part, head, channel)."""
    return rows.reshape(heads, 3, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _convert(
    state: Mapping[str, np.ndarray],
    shapes: Mapping[Path, tuple[int, ...]],
    network: UNet | EncoderUNet,
    heads: tuple[int, int] | None,
    remedy: str,
) -> dict[str, Any]:
    """The parameters of the given shapes.

    Args:
      heads: (number or 0, channels) of heads where the rows of qkv come ordered by head first, or None.
      remedy: the end of the sentence when they do not fit.
    """
    modules = _module_names(network, {path[0] for path in shapes})
    names = {path: _file_name(path, modules) for path in shapes}
    params, misshapen, missing = {}, [], []
    for path, shape in shapes.items():
        name, expected = names[path], _file_shape(path, shape)
        is_table = path[-1] == 'embedding'
        value = state.get(name)
        if value is None and is_table:
            value = np.zeros(shape)
        if value is None:
            missing.append(name)
        elif value.shape == expected or (is_table and value.shape == shape):
            params[path] = _to_ours(path, value, shape, heads)
        else:
            misshapen.append(f'{name} has shape {value.shape} where {expected} is needed')
    left_over = sorted(state.keys() - set(names.values()))
    problems = [_first(misshapen)] if misshapen else []
    problems += [f'it lacks {_first(missing)}'] if missing else []
    problems += [f'left over are {_first(left_over)}'] if left_over else []
    if problems:
        raise UserError(f'The state dict does not fit the network ({"; ".join(problems)}): {remedy}.')
    return traverse_util.unflatten_dict(params)


def _first(items: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = len(items) - _NAMES_SHOWN
    return ', '.join(items[:_NAMES_SHOWN]) + (f' and {more} more' if more > 0 else '')
