"""Compares converted networks with those of openai/guided-diffusion itself, at full size (docs/adm.md).

    git clone https://github.com/openai/guided-diffusion
    python benchmarks/adm_parity.py --peer=guided-diffusion [--model=64]

Needs PyTorch and no accelerator. Each network is built with the flags of its released checkpoint, in float32, every
parameter random (guided-diffusion starts some at zero, which would hide the layers before), saved with torch.save,
read and converted, and both networks see the same inputs. The exit status is 1 where any differs by 1e-4 or more.
"""

import argparse
import dataclasses
import gc
import importlib
import math
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import torch

from cfg.models.classifier import EncoderUNet
from cfg.models.convert import adm_params
from cfg.models.torch_file import read_state_dict
from cfg.models.unet import UNet

BOUND = 1e-4
NUM_CLASSES = 1000
RESOLUTIONS = (32, 16, 8)


@dataclasses.dataclass(frozen=True)
class Released:
    """A `Released` holds the flags of one released network, as the README of guided-diffusion has them."""

    size: int
    channels: int
    blocks: int
    mult: tuple[float, ...]
    classifier: bool = False
    conditional: bool = True
    heads: int = 0  # or else 64 channels a head
    new_order: bool = False


MULT = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
MODELS = {
    '64': Released(64, 192, 3, MULT[64], new_order=True),
    '128': Released(128, 256, 2, MULT[128], heads=4),
    '256': Released(256, 256, 2, MULT[256]),
    '256_uncond': Released(256, 256, 2, MULT[256], conditional=False),
    '512': Released(512, 256, 2, MULT[512]),
    'classifier64': Released(64, 128, 4, MULT[64], classifier=True),
    'classifier128': Released(128, 128, 2, MULT[128], classifier=True),
    'classifier256': Released(256, 128, 2, MULT[256], classifier=True),
    'classifier512': Released(512, 128, 2, MULT[512], classifier=True),
}
# Within 16 GB of memory and minutes on two cores.
DEFAULT = ('64', '128', 'classifier64', 'classifier128')


def peer_network(script_util, released: Released) -> torch.nn.Module:
    """Builds guided-diffusion's network with every parameter random."""
    resolutions = ','.join(map(str, RESOLUTIONS))
    if released.classifier:
        flags = script_util.classifier_defaults() | {
            'image_size': released.size,
            'classifier_depth': released.blocks,
            'classifier_width': released.channels,
            'classifier_attention_resolutions': resolutions,
        }
        network = script_util.create_classifier(**flags)
    else:
        network = script_util.create_model(
            released.size,
            released.channels,
            released.blocks,
            learn_sigma=True,
            class_cond=released.conditional,
            attention_resolutions=resolutions,
            num_heads=released.heads or 4,
            num_head_channels=-1 if released.heads else 64,
            use_scale_shift_norm=True,
            resblock_updown=True,
            use_new_attention_order=released.new_order,
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:  # biases, and scales of norms
                value.copy_(0.1 * noise + name.endswith('.weight'))
            elif 'positional' in name or 'label_emb' in name:
                value.copy_(noise)
            else:
                value.copy_(noise / math.sqrt(math.prod(value.shape[1:])))
    return network.eval()


def our_network(released: Released) -> UNet | EncoderUNet:
    fields = {
        'num_classes': NUM_CLASSES,
        'channels': released.channels,
        'channel_mult': released.mult,
        'num_res_blocks': released.blocks,
        'attention_resolutions': RESOLUTIONS,
        'head_channels': 0 if released.heads else 64,
        'time_fn': lambda t: t,
    }
    if released.classifier:
        return EncoderUNet(**fields)
    return UNet(out_channels=6, num_heads=released.heads, **fields)


def compare(script_util, released: Released) -> dict[str, float]:
    """Compares the outputs of both networks at three timesteps."""
    rng = np.random.default_rng(0)
    timesteps = np.array([0, 250, 999])
    images = rng.normal(size=(len(timesteps), released.size, released.size, 3)).astype(np.float32)
    labels = rng.integers(NUM_CLASSES, size=len(timesteps))

    network = peer_network(script_util, released)
    count = sum(value.numel() for value in network.parameters())
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    has_labels = not released.classifier and released.conditional
    expected = []
    with torch.no_grad():
        for i, t in enumerate(timesteps):
            labels_i = [torch.from_numpy(labels[i : i + 1])] if has_labels else []
            expected.append(network(x[i : i + 1], torch.tensor([t]), *labels_i).numpy())
    expected = np.concatenate(expected)
    if not released.classifier:
        expected = expected.transpose(0, 2, 3, 1)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'state.pt'
        torch.save(network.state_dict(), path)
        del network
        gc.collect()
        state = read_state_dict(path)
    ours = our_network(released)
    shape = images.shape[1:]
    params = adm_params(state, ours, shape, new_attention_order=released.new_order)
    del state
    variables = {'params': jax.device_put(params)}
    del params
    gc.collect()
    apply = jax.jit(ours.apply)
    got = []
    for i, t in enumerate(timesteps):
        labels_i = [] if released.classifier else [labels[i : i + 1].astype(np.int32)]
        got.append(np.asarray(apply(variables, images[i : i + 1], np.float32([t]), *labels_i)))
    got = np.concatenate(got)

    error = np.abs(got - expected)
    relative = [np.linalg.norm(g - e) / np.linalg.norm(e) for g, e in zip(got, expected, strict=True)]
    return {'parameters': count, 'max': error.max(), 'relative': max(relative), 'std': expected.std()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--peer', required=True, help='a clone of openai/guided-diffusion')
    parser.add_argument('--model', default='all', choices=['all', *MODELS], help=f'all: {", ".join(DEFAULT)}')
    args = parser.parse_args()
    if not Path(args.peer, 'guided_diffusion', 'script_util.py').is_file():
        parser.error(f'--peer={args.peer} is not a clone of openai/guided-diffusion')
    sys.path.insert(0, args.peer)
    script_util = importlib.import_module('guided_diffusion.script_util')

    failed = False
    print(
        '| network | parameters | largest absolute error | relative error | std of the output | seconds |', flush=True
    )
    print('|---|---|---|---|---|---|', flush=True)
    for name in DEFAULT if args.model == 'all' else (args.model,):
        start = time.monotonic()
        row = compare(script_util, MODELS[name])
        # Not a plain >=, which nan would pass.
        failed |= not row['relative'] < BOUND
        print(
            f'| {name} | {row["parameters"]:,} | {row["max"]:.2e} | {row["relative"]:.2e} | {row["std"]:.3f} '
            f'| {time.monotonic() - start:.0f} |',
            flush=True,
        )
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
