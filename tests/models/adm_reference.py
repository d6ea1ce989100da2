"""Holds ADM's UNet and classifier in PyTorch, as functions of a state dict with guided-diffusion's names.

Written from the architecture (Dhariwal & Nichol 2021, arXiv 2105.05233) to compare ours with; NCHW. A state dict does
not tell which residual blocks resample nor how heads are cut, hence the fields of `Adm`.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Adm:
    """An `Adm` says what a network is made of; `heads` counts unless `head_channels` > 0; no classes are 0 `rows`."""

    size: int
    channels: int
    mult: tuple[float, ...]
    blocks: int
    attention_sizes: tuple[int, ...]
    out_channels: int
    in_channels: int = 3
    heads: int = 0
    head_channels: int = 0
    rows: int = 0
    groups: int = 8
    new_order: bool = False


def random_state(adm: Adm, *, encoder: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns a state dict with nothing at zero; the classifier's where `encoder`, with `out_channels` classes."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    emb = 4 * adm.channels

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    def layer(name, *shape):
        state[f'{name}.weight'] = normal(*shape) / math.sqrt(math.prod(shape[1:]))
        state[f'{name}.bias'] = 0.3 * normal(shape[0])

    def norm(name, width):
        state[f'{name}.weight'] = 1 + 0.3 * normal(width)
        state[f'{name}.bias'] = 0.3 * normal(width)

    def res_block(name, before, after):
        norm(f'{name}.in_layers.0', before)
        layer(f'{name}.in_layers.2', after, before, 3, 3)
        layer(f'{name}.emb_layers.1', 2 * after, emb)
        norm(f'{name}.out_layers.0', after)
        layer(f'{name}.out_layers.3', after, after, 3, 3)
        if before != after:
            layer(f'{name}.skip_connection', after, before, 1, 1)

    def attention(name, width):
        norm(f'{name}.norm', width)
        layer(f'{name}.qkv', 3 * width, width, 1)
        layer(f'{name}.proj_out', width, width, 1)

    layer('time_embed.0', emb, adm.channels)
    layer('time_embed.2', emb, emb)
    if adm.rows:
        state['label_emb.weight'] = normal(adm.rows, emb)
    widths = [int(m * adm.channels) for m in adm.mult]
    size, width = adm.size, widths[0]
    layer('input_blocks.0.0', width, adm.in_channels, 3, 3)
    skips, number = [width], 0
    for level, after in enumerate(widths):
        for _ in range(adm.blocks):
            number += 1
            res_block(f'input_blocks.{number}.0', width, after)
            width = after
            skips.append(width)
            if size in adm.attention_sizes:
                attention(f'input_blocks.{number}.1', width)
        if level + 1 < len(widths):
            number += 1
            res_block(f'input_blocks.{number}.0', width, width)
            skips.append(width)
            size //= 2
    for place in (0, 2):
        res_block(f'middle_block.{place}', width, width)
    attention('middle_block.1', width)
    if encoder:
        norm('out.0', width)
        state['out.2.positional_embedding'] = normal(width, size * size + 1)
        layer('out.2.qkv_proj', 3 * width, width, 1)
        layer('out.2.c_proj', adm.out_channels, width, 1)
        return state
    number = -1
    for level, after in reversed(list(enumerate(widths))):
        for i in range(adm.blocks + 1):
            number += 1
            places = iter(range(3))
            res_block(f'output_blocks.{number}.{next(places)}', width + skips.pop(), after)
            width = after
            if size in adm.attention_sizes:
                attention(f'output_blocks.{number}.{next(places)}', width)
            if level and i == adm.blocks:
                res_block(f'output_blocks.{number}.{next(places)}', width, width)
                size *= 2
    norm('out.0', width)
    layer('out.2', adm.out_channels, width, 3, 3)
    return state


def unet_forward(state, adm: Adm, x, timesteps, labels=None, *, label_in='everywhere'):
    """Maps x [N, 3, H, W], timesteps [N], labels [N] or None to [N, out_channels, H, W].

    With label_in='decoder', which ADM does not have, the label is added for output_blocks alone.
    """
    level = emb = _embedding(state, adm, timesteps)
    if adm.rows:
        emb = emb + state['label_emb.weight'][labels]
    told = emb if label_in == 'everywhere' else level
    skips = _encode(state, adm, x, told)
    x = _middle(state, adm, skips[-1], told)
    for number in range(len(skips)):
        x = torch.cat([x, skips.pop()], dim=1)
        for place in range(3):
            # A second residual block at the same number is the one that upsamples.
            x = _module(state, adm, f'output_blocks.{number}.{place}', x, emb, 'up' if place else '')
    return _conv(state, 'out.2', F.silu(_norm(state, adm, 'out.0', x)))


def classifier_forward(state, adm: Adm, x, timesteps):
    """Maps x [N, 3, H, W], timesteps [N] to logits [N, out_channels]."""
    emb = _embedding(state, adm, timesteps)
    x = _middle(state, adm, _encode(state, adm, x, emb)[-1], emb)
    x = F.silu(_norm(state, adm, 'out.0', x)).flatten(2)
    x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + state['out.2.positional_embedding']
    qkv = _linear(state, 'out.2.qkv_proj', x.mT)
    mixed = _attend(qkv, x.shape[1] // adm.head_channels, new_order=True)
    return _linear(state, 'out.2.c_proj', mixed[:, 0])


def _embedding(state, adm, timesteps):
    rates = 10000.0 ** (-torch.arange(adm.channels // 2) / (adm.channels // 2))
    angles = torch.outer(timesteps.float(), rates)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    return _linear(state, 'time_embed.2', F.silu(_linear(state, 'time_embed.0', waves)))


def _encode(state, adm, x, emb):
    x = _conv(state, 'input_blocks.0.0', x)
    outputs = [x]
    for number in range(1, len(adm.mult) * (adm.blocks + 1)):
        resample = 'down' if number % (adm.blocks + 1) == 0 else ''
        for place in range(2):
            x = _module(state, adm, f'input_blocks.{number}.{place}', x, emb, resample)
        outputs.append(x)
    return outputs


def _middle(state, adm, x, emb):
    for place in range(3):
        x = _module(state, adm, f'middle_block.{place}', x, emb)
    return x


def _module(state, adm, name, x, emb, resample=''):
    """Applies the residual or attention block of that name; returns x where there is none."""
    if f'{name}.qkv.weight' in state:
        qkv = _linear(state, f'{name}.qkv', _norm(state, adm, f'{name}.norm', x).flatten(2).mT)
        heads = x.shape[1] // adm.head_channels if adm.head_channels else adm.heads
        mixed = _linear(state, f'{name}.proj_out', _attend(qkv, heads, adm.new_order))
        return x + mixed.mT.reshape(x.shape)
    if f'{name}.in_layers.0.weight' not in state:
        return x
    h = F.silu(_norm(state, adm, f'{name}.in_layers.0', x))
    if resample == 'down':
        h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
    elif resample == 'up':
        h, x = (y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) for y in (h, x))
    h = _conv(state, f'{name}.in_layers.2', h)
    scale, shift = _linear(state, f'{name}.emb_layers.1', F.silu(emb))[:, :, None, None].chunk(2, dim=1)
    h = F.silu(_norm(state, adm, f'{name}.out_layers.0', h) * (1 + scale) + shift)
    h = _conv(state, f'{name}.out_layers.3', h)
    if f'{name}.skip_connection.weight' in state:
        x = _conv(state, f'{name}.skip_connection', x)
    return x + h


def _attend(qkv, heads, new_order):
    """Maps [N, T, 3 C] to [N, T, C]; the last axis is (part, head, channel) if new, else (head, part, channel)."""
    axes = (3, heads) if new_order else (heads, 3)
    n, length, width = qkv.shape
    parts = qkv.reshape(n, length, *axes, width // (3 * heads))
    q, k, v = parts.movedim(2 if new_order else 3, 0)  # each [N, T, heads, channels]
    weights = torch.einsum('nihc,njhc->nhij', q, k).div(math.sqrt(q.shape[-1])).softmax(dim=-1)
    return torch.einsum('nhij,njhc->nihc', weights, v).reshape(n, length, -1)


def _linear(state, name, x):
    weight = state[f'{name}.weight']
    return F.linear(x, weight.reshape(weight.shape[:2]), state[f'{name}.bias'])


def _conv(state, name, x):
    weight = state[f'{name}.weight']
    return F.conv2d(x, weight, state[f'{name}.bias'], padding=weight.shape[-1] // 2)


def _norm(state, adm, name, x):
    return F.group_norm(x, adm.groups, state[f'{name}.weight'], state[f'{name}.bias'])
