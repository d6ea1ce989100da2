"""Turns the state dicts of guided-diffusion's PyTorch networks into parameters of ours.

The networks are the same functions; names, the order of axes and, in some files, the order of the attention's rows
differ. The names follow from walking our network as guided-diffusion numbers its blocks, so that every architecture
converts and not only a list of released files (docs/adm.md).
"""

from collections.abc import Collection, Mapping, Sequence
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


def adm_params(
    state: Mapping[str, np.ndarray],
    network: UNet | EncoderUNet,
    image_shape: tuple[int, int, int],
    *,
    new_attention_order: bool = False,
) -> dict[str, Any]:
    """Converts the state dict of guided-diffusion's UNet or classifier of the same architecture as `network`.

    The class embedding of a UNet may have `num_classes` rows, to which a null label of zeros is added; or one more, the
    last being the null label; or be missing, as in an unconditional network, which makes every row zero.

    Args:
      state: name -> array.
      network: a UNet's `out_channels` are those of the file: 6 where variances are learned.
      image_shape: (H, W, C) of the input.
      new_attention_order: guided-diffusion's flag `use_new_attention_order`, which its classifiers do not have. Both
        orders have the same shapes, so that the wrong one is not noticed here.

    Returns:
      What `network.init(...)['params']` holds, as new float32 NumPy arrays.

    Raises:
      UserError: when names or shapes are not those of the architecture.
    """
    shapes = _shapes(network, image_shape)
    names = _names(network, shapes)
    params, misshapen, missing = {}, [], []
    for path, shape in shapes.items():
        name, expected = names[path], _file_shape(path, shape)
        is_table = path[-1] == 'embedding'
        value = state.get(name, np.zeros(shape) if is_table else None)
        if value is None:
            missing.append(name)
        elif value.shape == expected or (is_table and value.shape == shape):
            heads_first = path[-2:-1] == ('qkv',) and path[0] != 'pool' and not new_attention_order
            params[path] = _to_ours(path, _parts_first(value, network) if heads_first else value, shape)
        else:
            misshapen.append(f'{name} has shape {value.shape} where {expected} is needed')
    left_over = sorted(state.keys() - set(names.values()))
    problems = [_first(misshapen)] if misshapen else []
    problems += [f'it lacks {_first(missing)}'] if missing else []
    problems += [f'left over are {_first(left_over)}'] if left_over else []
    if problems:
        raise UserError(f'The state dict does not fit the network ({"; ".join(problems)}): {_remedy(state, network)}.')
    return traverse_util.unflatten_dict(params)


def _remedy(state: Collection[str], network: UNet | EncoderUNet) -> str:
    """Tells what to change where a state dict does not fit."""
    of_model = isinstance(network, UNet)
    if of_model and 'out.2.positional_embedding' in state:
        return "it is that of a classifier, config.adm.kind='classifier'"
    if not of_model and any(name.startswith('output_blocks.') for name in state):
        return "it is that of a diffusion network, config.adm.kind='model'"
    built = 'config.model must be' if of_model else 'the classifier must be built with'
    return f"{built} the checkpoint's architecture"


def adm_names(network: UNet | EncoderUNet, image_shape: tuple[int, int, int]) -> list[str]:
    """Returns the names that a state dict of the same architecture as `network` has."""
    return list(_names(network, _shapes(network, image_shape)).values())


def _shapes(network: UNet | EncoderUNet, image_shape: tuple[int, int, int]) -> dict[Path, tuple[int, ...]]:
    z = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    labels = [jnp.zeros(1, jnp.int32)] if isinstance(network, UNet) else []
    variables = jax.eval_shape(lambda z: network.init(jax.random.key(0), z, jnp.zeros(1), *labels), z)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables['params']).items()}


def _names(network: UNet | EncoderUNet, paths: Collection[Path]) -> dict[Path, str]:
    """Maps our parameters to theirs."""
    modules = _module_names(network, {path[0] for path in paths})
    return {path: _file_name(path, modules) for path in paths}


def _module_names(network: UNet | EncoderUNet, modules: set[str]) -> dict[str, str]:
    """Maps our top-level modules to theirs.

    Their blocks are numbered on the way down, after the first convolution, and on the way up; what follows a residual
    block at the same place (attention, then upsampling) shares its number.
    """
    down, _, up = network.ways()
    inputs, outputs = [['conv_in']], []
    for place in (*down, *up):
        if place.resample == 'up':
            outputs[-1].append(place.name)
        else:
            (inputs if place in down else outputs).append([place.name, f'{place.name}_attention'])
    names = dict(_SINGLE)
    for part, groups in (('input_blocks', inputs), ('output_blocks', outputs)):
        for number, group in enumerate(groups):
            present = [module for module in group if module in modules]
            names |= {module: f'{part}.{number}.{place}' for place, module in enumerate(present)}
    return names


def _file_name(path: Path, modules: Mapping[str, str]) -> str:
    """Returns the state dict's name of one of our parameters."""
    module, *inner = path
    parts = (_POOL_PARTS if module == 'pool' else _BLOCK_PARTS) | _LEAVES
    return '.'.join([modules[module], *(parts[name] for name in inner)])


def _file_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that one of our parameters has in the state dict, where output channels come first."""
    if path[-1] == 'embedding':  # without the null label
        return (shape[0] - 1, shape[1])
    if path[-1] == 'kernel' and len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if path[-1] == 'kernel' and path[-2] in ('qkv', 'proj'):  # convolutions of width 1 along the positions
        return (shape[1], shape[0], 1)
    return shape[::-1]


def _to_ours(path: Path, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Puts one parameter into our layout, whose shape is given."""
    if path[-1] == 'embedding':
        null_label = np.zeros((shape[0] - len(value), shape[1]))
        value = np.concatenate([value, null_label])
    elif path[-1] == 'kernel' and len(shape) == 4:
        value = value.transpose(2, 3, 1, 0)
    else:
        value = value.reshape(shape[::-1]).T
    return np.array(value, np.float32, order='C')


def _parts_first(rows: np.ndarray, network: UNet | EncoderUNet) -> np.ndarray:
    """Brings rows of qkv from the order (head, part, channel), the parts being q, k and v, to (part, head, channel)."""
    heads = network.num_heads or len(rows) // (3 * network.head_channels)
    return rows.reshape(heads, 3, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _first(items: Sequence[str]) -> str:
    """Names the first few of a list, and says how many more there are."""
    more = len(items) - _NAMES_SHOWN
    return ', '.join(items[:_NAMES_SHOWN]) + (f' and {more} more' if more > 0 else '')
