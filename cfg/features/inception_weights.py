"""Turns the public files of the FID Inception into parameters of `cfg.features.inception.Inception`.

The PyTorch files call a convolution `Mixed_5b.branch1x1.conv.weight` and its batch norm `Mixed_5b.branch1x1.bn.*`; the
TensorFlow graph calls them `mixed/conv/conv2d_params` and `mixed/conv/batchnorm/*`. The same numbers give the same
parameters, bit for bit, from either.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from cfg.features.inception import NUM_CLASSES, WIDTH, inception_shapes
from cfg.models.torch_file import unwrapped
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


def params_from_torch(state: Mapping[str, Array]) -> Params:
    """Converts a state dict of pytorch-fid's or torch-fidelity's file; numbers of batches are ignored.

    Raises:
      UserError: names a tensor that is missing, surplus, of another shape or not finite.
    """
    parts = ('conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')
    keys = {name: [f'{name}.{part}' for part in parts] for name in _shapes()}
    known = {'fc.weight', 'fc.bias', *itertools.chain(*keys.values())}
    state = unwrapped(state, known)
    tensors = {name: value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T for name, value in state.items()}
    params = _params(tensors, keys, 'fc.weight')
    surplus = sorted(name for name in state.keys() - known if not name.endswith('.num_batches_tracked'))
    if surplus:
        raise UserError(
            f'The Inception weights hold {surplus[0]}, which the FID Inception has not: give one of the three public '
            'files.'
        )
    return params


def params_from_graph(constants: Mapping[str, Array]) -> Params:
    """Converts the constants of TensorFlow's graph; those that are no weights of the network are ignored.

    Raises:
      UserError: as in `params_from_torch`.
    """
    parts = ('conv2d_params', *(f'batchnorm/{part}' for part in ('gamma', 'beta', 'moving_mean', 'moving_variance')))
    keys = {name: [f'{graph_name(name)}/{part}' for part in parts] for name in _shapes()}
    return _params(constants, keys, 'softmax/weights')


def graph_name(name: str) -> str:
    """Names a convolution as the graph does: 'Mixed_5b.branch3x3dbl_2' is 'mixed/tower_1/conv_1'."""
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


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """Reads {name of a convolution: shape of its kernel [H, W, in, out]} off the network."""
    flat = traverse_util.flatten_dict(inception_shapes(), sep='.')
    return {key.removesuffix('.kernel'): value.shape for key, value in flat.items() if key.endswith('.kernel')}


def _params(tensors: Mapping[str, Array], keys: Mapping[str, list[str]], logits_key: str) -> Params:
    """Folds batch norm into the convolutions, of which `keys` names kernel, gamma, beta, mean and variance."""
    flat = {}
    for name, shape in _shapes().items():
        shapes = (shape, *[shape[-1:]] * 4)
        # The same products from either file, rounded once.
        values = [np.asarray(_tensor(tensors, *wanted), np.float64) for wanted in zip(keys[name], shapes, strict=True)]
        kernel, gamma, beta, mean, variance = values
        if (variance < 0).any():
            raise UserError(
                f'{keys[name][-1]} of the Inception weights is a variance below 0: download the file again.'
            )
        scale = gamma / np.sqrt(variance + EPSILON)
        flat[f'{name}.kernel'] = np.ascontiguousarray(kernel * scale, np.float32)
        flat[f'{name}.bias'] = (beta - mean * scale).astype(np.float32)
    flat['logits'] = np.ascontiguousarray(_tensor(tensors, logits_key, (WIDTH, NUM_CLASSES)), np.float32)
    return traverse_util.unflatten_dict(flat, sep='.')


def _tensor(tensors: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    if name not in tensors:
        raise UserError(f'The Inception weights lack {name}: give one of the three public files.')
    value = np.asarray(tensors[name])
    if value.shape != shape:
        raise UserError(
            f'{name} of the Inception weights has shape {value.shape} in our order of axes, not {shape}: give one of '
            'the three public files.'
        )
    if not np.isfinite(value).all():
        raise UserError(f'{name} of the Inception weights is not finite: download the file again.')
    return value
