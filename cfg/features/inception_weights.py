"""From the public files of the FID Inception to the parameters of `cfg.features.inception.Inception`.

The PyTorch files call a convolution `Mixed_5b.branch1x1.conv.weight` and its batch norm `Mixed_5b.branch1x1.bn.*`; the
TensorFlow graph calls them `mixed/conv/conv2d_params` and `mixed/conv/batchnorm/*`. The same numbers give the same
parameters, bit for bit, from either.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from cfg.features.inception import NUM_CLASSES, SIZE, WIDTH, Inception
from cfg.runtime.errors import UserError

Array = np.ndarray
Params = dict[str, Any]

EPSILON = 1e-3  # of batch norm

# The blocks in the order of the graph: mixed, mixed_1, ..., mixed_10.
_BLOCKS = ('5b', '5c', '5d', '6a', '6b', '6c', '6d', '6e', '7a', '7b', '7c')
_STEM = ('Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3', 'Conv2d_3b_1x1', 'Conv2d_4a_3x3')
# Branches of a kind of block by their tower in the graph ('' = none).
_TOWERS = {
    'A': {'branch1x1': '', 'branch5x5': 'tower', 'branch3x3dbl': 'tower_1', 'branch_pool': 'tower_2'},
    'B': {'branch3x3': '', 'branch3x3dbl': 'tower'},
    'C': {'branch1x1': '', 'branch7x7': 'tower', 'branch7x7dbl': 'tower_1', 'branch_pool': 'tower_2'},
    'D': {'branch3x3': 'tower', 'branch7x7x3': 'tower_1'},
    'E': {'branch1x1': '', 'branch3x3': 'tower', 'branch3x3dbl': 'tower_1', 'branch_pool': 'tower_2'},
}
_KINDS = dict(zip(_BLOCKS, 'AAABCCCCDEE', strict=True))


class _Layer(NamedTuple):
    """The tensors of a convolution and its batch norm, as a file has them, with the kernel as [H, W, in, out]."""

    kernel: Array
    gamma: Array
    beta: Array
    mean: Array
    variance: Array


def params_from_torch(state: Mapping[str, Array]) -> Params:
    """The parameters from a state dict of pytorch-fid's or torch-fidelity's file.

    Args:
      state: {name: tensor}; numbers of batches are ignored.

    Raises:
      UserError: names a tensor that is missing, surplus, of another shape or not finite.
    """
    state = {name: value for name, value in state.items() if not name.endswith('.num_batches_tracked')}
    names, layers = {'fc.weight', 'fc.bias'}, {}
    for name in _shapes():
        keys = [f'{name}.conv.weight', *(f'{name}.bn.{x}' for x in ('weight', 'bias', 'running_mean', 'running_var'))]
        names |= set(keys)
        kernel, *rest = (_tensor(state, key) for key in keys)
        layers[name] = _Layer(kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel, *rest), keys
    logits = _tensor(state, 'fc.weight')
    _refuse_surplus(state, names)
    return _params(layers, logits.T, 'fc.weight')


def params_from_graph(constants: Mapping[str, Array]) -> Params:
    """The parameters from the constants of TensorFlow's graph.

    Args:
      constants: {name: value}; those that are no weights of the network are ignored.

    Raises:
      UserError: as in `params_from_torch`.
    """
    layers = {}
    for name in _shapes():
        scope = graph_name(name)
        keys = [f'{scope}/conv2d_params']
        keys += [f'{scope}/batchnorm/{x}' for x in ('gamma', 'beta', 'moving_mean', 'moving_variance')]
        layers[name] = _Layer(*(_tensor(constants, key) for key in keys)), keys
    return _params(layers, _tensor(constants, 'softmax/weights'), 'softmax/weights')


def graph_name(name: str) -> str:
    """'Mixed_5b.branch3x3dbl_2' -> 'mixed/tower_1/conv_1'."""
    if name in _STEM:
        return _numbered('conv', _STEM.index(name))
    block, branch = name.removeprefix('Mixed_').split('.')
    scope = _numbered('mixed', _BLOCKS.index(block))
    base, _, place = branch.rpartition('_') if branch[-1] in '0123456789ab' and '_' in branch else (branch, '', '1')
    tower = _TOWERS[_KINDS[block]][base]
    parts = [scope, *([tower] if tower else [])]
    if place[-1] in 'ab':  # the two ends of a branch of the last blocks are a block within the block
        return '/'.join([*parts, 'mixed', _numbered('conv', 'ab'.index(place[-1]))])
    return '/'.join([*parts, _numbered('conv', int(place) - 1)])


def _numbered(name: str, number: int) -> str:
    return f'{name}_{number}' if number else name


def _shapes() -> dict[str, tuple[int, ...]]:
    """{name of a convolution: shape of its kernel [H, W, in, out]}, read off the network."""
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)
    params = jax.eval_shape(lambda x: Inception().init(jax.random.key(0), x), image)['params']
    flat = traverse_util.flatten_dict(params, sep='.')
    return {key.removesuffix('.kernel'): value.shape for key, value in flat.items() if key.endswith('.kernel')}


def _params(layers: Mapping[str, tuple[_Layer, list[str]]], logits: Array, logits_key: str) -> Params:
    flat = {}
    for name, shape in _shapes().items():
        layer, keys = layers[name]
        expected = (shape, *[shape[-1:]] * 4)
        for key, value, wanted in zip(keys, layer, expected, strict=True):
            _check(key, value, wanted)
        # The same products from either file, rounded once.
        values = [np.asarray(value, np.float64) for value in layer]
        kernel, gamma, beta, mean, variance = values
        if (variance < 0).any():
            raise UserError(f'{keys[-1]} of the Inception weights is a variance below 0: download the file again.')
        scale = gamma / np.sqrt(variance + EPSILON)
        flat[f'{name}.kernel'] = np.ascontiguousarray(kernel * scale, np.float32)
        flat[f'{name}.bias'] = (beta - mean * scale).astype(np.float32)
    _check(logits_key, logits, (WIDTH, NUM_CLASSES))
    flat['logits'] = np.ascontiguousarray(logits, np.float32)
    return traverse_util.unflatten_dict({tuple(key.split('.')): value for key, value in flat.items()})


def _tensor(tensors: Mapping[str, Array], name: str) -> Array:
    if name not in tensors:
        raise UserError(f'The Inception weights lack {name}: give one of the three public files.')
    return np.asarray(tensors[name])


def _check(name: str, value: Array, shape: tuple[int, ...]) -> None:
    if value.shape != tuple(shape):
        raise UserError(
            f'{name} of the Inception weights has shape {value.shape} in our order of axes, not {tuple(shape)}: give '
            'one of the three public files.'
        )
    if not np.isfinite(value).all():
        raise UserError(f'{name} of the Inception weights is not finite: download the file again.')


def _refuse_surplus(tensors: Mapping[str, Array], names: set[str]) -> None:
    surplus = sorted(tensors.keys() - names)
    if surplus:
        raise UserError(
            f'The Inception weights hold {surplus[0]}, which the FID Inception has not: give one of the three public '
            'files.'
        )
