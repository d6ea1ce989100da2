"""Turns the public files of DINOv2 into parameters of `cfg.features.dinov2.Dinov2`.

Meta's file calls a tensor `blocks.0.attn.qkv.weight`; Hugging Face's has three in its place,
`encoder.layer.0.attention.attention.query.weight` and so on. The same numbers give the same parameters, bit for bit,
from either.
"""

import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from cfg.features.dinov2 import VIT_L14, Sizes, cubic
from cfg.models.torch_file import read_state_dict, unwrapped
from cfg.runtime.errors import UserError, first_line

Array = np.ndarray
Params = dict[str, Any]

META = 'dinov2_vitl14_pretrain.pth'
HUGGING_FACE = 'dinov2-large.safetensors'  # model.safetensors of facebook/dinov2-large, by a name that says so
_REMEDY = f'give {META} of Meta, or model.safetensors of facebook/dinov2-large'

# From Meta's names to those of Hugging Face, one after the other.
_RENAMED = {
    r'^norm\b': 'layernorm',
    r'^(cls|mask)_token': r'embeddings.\1_token',
    r'^pos_embed': 'embeddings.position_embeddings',
    r'^patch_embed\.proj': 'embeddings.patch_embeddings.projection',
    r'^blocks': 'encoder.layer',
    r'attn\.proj': 'attention.output.dense',
    r'ls(\d)\.gamma': r'layer_scale\1.lambda1',
}
OFFSET = 0.1  # Meta's network adds it to the patches of a side before it interpolates embeddings of positions


def convert(path: Path, sizes: Sizes = VIT_L14) -> Params:
    """Converts either file; errors are those of `read_tensors` and `params_from_tensors`."""
    tensors = read_tensors(path)
    try:
        return params_from_tensors(tensors, sizes)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def read_tensors(path: Path) -> dict[str, Array]:
    """Reads the tensors of a .pth file or of safetensors, by their names; no code in them is run.

    Raises:
      UserError: when it is neither, or damaged.
    """
    with path.open('rb') as file:
        start = file.read(2)
    if start == b'PK' or start[:1] == pickle.PROTO:
        return read_state_dict(path)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f'{path} cannot be read as weights of DINOv2 ({first_line(error)}): it is damaged or another file; '
            f'{_REMEDY}.'
        ) from error


def params_from_tensors(tensors: Mapping[str, Array], sizes: Sizes = VIT_L14) -> Params:
    """Converts the tensors of either file.

    Raises:
      UserError: names a tensor that is missing, surplus, of another shape or not finite.
    """
    shapes = _shapes(sizes)
    named = _as_meta if any(name.endswith('pos_embed') for name in tensors) else _as_hugging_face
    names = {name: named(name) for name in shapes}
    known = {theirs for several in (*names.values(), named('mask_token')) for theirs in several}
    tensors = unwrapped(tensors, known)
    found = {name: _tensor(tensors, names[name], shape) for name, shape in shapes.items()}
    if surplus := sorted(tensors.keys() - known):
        raise UserError(f'The weights of DINOv2 hold {surplus[0]}, which ViT-L/14 has not: {_REMEDY}.')
    flat = {'norm.scale': found['norm.weight'], 'norm.bias': found['norm.bias']}
    kernel, class_token, positions = found['patch_embed.proj.weight'], found['cls_token'], found['pos_embed'][0]
    flat['patches.kernel'] = kernel.transpose(2, 3, 1, 0).reshape(-1, sizes.width)
    added = (class_token[0], np.broadcast_to(found['patch_embed.proj.bias'], (sizes.grid**2, sizes.width)))
    flat['tokens'] = np.concatenate(added) + np.concatenate([positions[:1], resized(positions[1:], sizes.grid)])
    for place in range(sizes.depth):
        theirs, ours = f'blocks.{place}', f'block{place}'
        for norm in ('norm1', 'norm2'):
            flat |= {f'{ours}.{norm}.scale': found[f'{theirs}.{norm}.weight']}
            flat |= {f'{ours}.{norm}.bias': found[f'{theirs}.{norm}.bias']}
        for layer, scale in (('attn.qkv', None), ('attn.proj', 'ls1'), ('mlp.fc1', None), ('mlp.fc2', 'ls2')):
            kernel, bias = found[f'{theirs}.{layer}.weight'].T, found[f'{theirs}.{layer}.bias']
            if scale:
                kernel, bias = (x * found[f'{theirs}.{scale}.gamma'] for x in (kernel, bias))
            name = layer.rpartition('.')[2]
            flat |= {f'{ours}.{name}.kernel': kernel, f'{ours}.{name}.bias': bias}
    flat = {name: np.ascontiguousarray(value, np.float32) for name, value in flat.items()}
    return traverse_util.unflatten_dict(flat, sep='.')


def resized(positions: Array, grid: int, offset: float = OFFSET) -> Array:
    """Interpolates the embeddings of positions to another grid, by bicubic interpolation with a = -3/4.

    Args:
      positions: [side^2, width], row by row.
      grid: patches along a side.
      offset: 0.1 is as Meta's network does it, of which published values are; 0 as transformers does.

    Returns:
      float64 [grid^2, width].
    """
    side = math.isqrt(len(positions))
    table = positions.astype(np.float64).reshape(side, side, -1)
    if side != grid:
        place = (np.arange(grid) + 0.5) * side / (grid + offset) - 0.5
        taps = np.floor(place).astype(int)[:, None] + np.arange(-1, 3)
        weights = np.zeros((grid, side))
        # What lies outside is the border again.
        np.add.at(weights, (np.arange(grid)[:, None], taps.clip(0, side - 1)), cubic(place[:, None] - taps, a=-0.75))
        table = np.einsum('ys,xt,stc->yxc', weights, weights, table, optimize=True)
    return table.reshape(grid**2, -1)


def _shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors by Meta's names; -1 is the number of positions, which is not fixed."""
    c, patch = sizes.width, sizes.patch
    shapes = {'cls_token': (1, 1, c), 'pos_embed': (1, -1, c), 'norm.weight': (c,), 'norm.bias': (c,)}
    shapes |= {'patch_embed.proj.weight': (c, 3, patch, patch), 'patch_embed.proj.bias': (c,)}
    layers = {'attn.qkv': (3 * c, c), 'attn.proj': (c, c), 'mlp.fc1': (4 * c, c), 'mlp.fc2': (c, 4 * c)}
    vectors = ('norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias', 'ls1.gamma', 'ls2.gamma')
    for block in (f'blocks.{place}' for place in range(sizes.depth)):
        shapes |= {f'{block}.{vector}': (c,) for vector in vectors}
        for layer, shape in layers.items():
            shapes |= {f'{block}.{layer}.weight': shape, f'{block}.{layer}.bias': shape[:1]}
    return shapes


def _as_meta(name: str) -> list[str]:
    return [name]


def _as_hugging_face(name: str) -> list[str]:
    """Names the tensors that, one after the other, are the one that Meta calls `name`."""
    for ours, theirs in _RENAMED.items():
        name = re.sub(ours, theirs, name)
    parts = ('query', 'key', 'value') if 'attn.qkv' in name else ('',)
    return [name.replace('attn.qkv', f'attention.attention.{part}') for part in parts]


def _tensor(tensors: Mapping[str, Array], names: Sequence[str], shape: tuple[int, ...]) -> Array:
    """Returns a tensor of this shape, checked, that is one or, along its first axis, several of the file."""
    wanted, parts = (shape[0] // len(names), *shape[1:]), []
    for name in names:
        if name not in tensors:
            raise UserError(f'The weights of DINOv2 lack {name}: {_REMEDY}.')
        parts.append(value := np.asarray(tensors[name]))
        fits = len(value.shape) == len(wanted)
        fits = fits and all(want in (-1, have) for want, have in zip(wanted, value.shape, strict=True))
        if not fits or (-1 in wanted and math.isqrt(value.shape[1] - 1) ** 2 != value.shape[1] - 1):
            raise UserError(
                f'{name} of the weights of DINOv2 has shape {value.shape}, not {wanted} as that of ViT-L/14: {_REMEDY}.'
            )
        if not np.isfinite(value).all():
            raise UserError(f'{name} of the weights of DINOv2 is not finite: download the file again.')
    return np.concatenate(parts) if len(parts) > 1 else parts[0]  # a copy of all would be 1.2 GB
