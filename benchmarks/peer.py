"""Runs guided-diffusion's network in PyTorch, in a child that --peer starts (benchmarks/side_by_side.py).

    python benchmarks/peer.py PATH_TO_GUIDED_DIFFUSION REQUEST

REQUEST is the JSON of `common.peer_request`. Commands, one a line: `try VARIANT` builds a variant and times it shortly,
`use VARIANT` builds it, `go N` runs N units. It does what our own step does: the diffused images, the loss, AdamW and
the average for training; two predictions in one batch and the step of the ancestral sampler for sampling.
"""

import contextlib
import gc
import importlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks import side_by_side

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}


def variants_of(what: str, on_cpu: bool) -> list[str]:
    """Returns the ways to run the network that are worth trying, as LAYOUT[,ATTENTION[,compiled]]."""
    if what != 'training':  # nothing is checkpointed where nothing is kept
        plain = list(LAYOUTS)
    else:
        plain = [f'{layout},{attention}' for layout in LAYOUTS for attention in ('checkpointed', 'not-checkpointed')]
    if on_cpu:
        return plain
    return plain + [f'{name},compiled' for name in plain if not name.endswith(',checkpointed')]


class Peer:
    """A peer is guided-diffusion's network and what is done with it.

    Args:
      unet_module: its guided_diffusion.unet.
      request: from `common.peer_request`.
      device: 'cpu' or 'cuda'.
    """

    def __init__(self, unet_module: Any, request: dict[str, Any], device: str):
        self._unet = unet_module
        self._request = request
        self._device = device
        self._checkpointed = unet_module.AttentionBlock.forward
        self._start: Callable[[], None] | None = None
        self._variant = ''

    def use(self, variant: str) -> None:
        """Builds the network and everything around it, and runs it once."""
        if variant == self._variant:
            return
        self._start, self._variant = None, ''
        gc.collect()  # the last variant's memory
        layout, *rest = variant.split(',')
        block = self._unet.AttentionBlock
        # As released every attention block is computed again in the backward pass.
        block.forward = block._forward if 'not-checkpointed' in rest else self._checkpointed
        torch.manual_seed(0)
        network = self._unet.UNetModel(**self._request['unet'])
        network = network.to(self._device, memory_format=LAYOUTS[layout])
        params = list(network.parameters())
        run = torch.compile(network) if 'compiled' in rest else network
        what = self._request['what']
        if what == 'training':
            network.train()
            self._start = self._training(run, params, LAYOUTS[layout])
        else:
            network.eval()
            make = self._forward if what == 'forward' else self._sampling
            self._start = make(run, LAYOUTS[layout])
        self.seconds(1)
        self._variant = variant

    def seconds(self, units: int) -> float:
        """Runs some units of the variant in use."""
        self._wait()
        start = time.perf_counter()
        for _ in range(units):
            self._start()
        self._wait()
        return time.perf_counter() - start

    def try_out(self, variant: str) -> float:
        """Builds a variant; returns the seconds of a unit, the best of a few."""
        self.use(variant)
        seconds = self.seconds(1)
        if seconds > 1.0:
            return min(seconds, self.seconds(1))
        self.seconds(3)
        return min(self.seconds(3) / 3 for _ in range(3))

    def _wait(self) -> None:
        if self._device == 'cuda':
            torch.cuda.synchronize()

    def _precision(self) -> Any:
        if self._request['dtype'] == 'bfloat16':
            return torch.autocast(self._device, torch.bfloat16)
        return contextlib.nullcontext()

    def _noise(self, layout: torch.memory_format) -> torch.Tensor:
        unet = self._request['unet']
        shape = (self._request['batch_size'], unet['in_channels'], unet['image_size'], unet['image_size'])
        return torch.randn(shape, device=self._device).to(memory_format=layout)

    def _labels(self) -> torch.Tensor:
        return torch.randint(self._null, (self._request['batch_size'],), device=self._device)

    @property
    def _null(self) -> int:
        return self._request['unet']['num_classes'] - 1

    def _training(self, network: Callable, params: list, layout: torch.memory_format) -> Callable[[], None]:
        train, channels = self._request['train'], self._request['unet']['in_channels']
        optimizer = torch.optim.AdamW(
            params,
            lr=train['learning_rate'],
            betas=(train['beta1'], train['beta2']),
            weight_decay=train['weight_decay'],
            fused=True,
        )
        averages = [p.detach().clone() for p in params]
        average = get_ema_multi_avg_fn(train['ema_decay'])
        images = self._noise(layout).mul(60).add(128).clamp(0, 255).to(torch.uint8)
        labels = self._labels()

        def start():
            optimizer.zero_grad(set_to_none=True)
            pieces = train['grad_accum']
            for piece, classes in zip(images.chunk(pieces), labels.chunk(pieces), strict=True):
                x = piece.float() / 127.5 - 1.0
                time_u = torch.rand(len(x), device=self._device)
                angle = (0.5 * math.pi * time_u)[:, None, None, None]
                eps = torch.randn_like(x)
                z = torch.cos(angle) * x + torch.sin(angle) * eps
                dropped = torch.rand(len(x), device=self._device) < train['p_uncond']
                with self._precision():
                    output = network(z, 1000.0 * time_u, torch.where(dropped, self._null, classes))
                loss = torch.nn.functional.mse_loss(output[:, :channels].float(), eps)
                (loss / pieces).backward()
            if train['grad_clip']:
                torch.nn.utils.clip_grad_norm_(params, train['grad_clip'])
            optimizer.step()
            average(averages, params, 1)

        return start

    def _forward(self, network: Callable, layout: torch.memory_format) -> Callable[[], None]:
        z, labels = self._noise(layout), self._labels()
        times = 1000.0 * torch.rand(len(z), device=self._device)

        def start():
            with torch.no_grad(), self._precision():
                network(z, times, labels)

        return start

    def _sampling(self, network: Callable, layout: torch.memory_format) -> Callable[[], None]:
        guided, steps = self._request['guided'], self._request['num_steps']
        channels = self._request['unet']['in_channels']
        labels = self._labels()
        both = torch.cat([labels, torch.full_like(labels, self._null)]) if guided else labels
        # The cosine schedule, from noise to data, away from both ends; as plain numbers.
        angles = [0.5 * math.pi * (1.0 - (i + 0.5) / (steps + 1)) for i in range(steps + 1)]

        @torch.no_grad()
        def start():
            z = self._noise(layout)
            for now, following in itertools.pairwise(angles):
                alpha, sigma, alpha_s, sigma_s = math.cos(now), math.sin(now), math.cos(following), math.sin(following)
                inputs = torch.cat([z, z]) if guided else z
                times = torch.full((len(inputs),), 2000.0 * now / math.pi, device=self._device)
                with self._precision():
                    eps = network(inputs, times, both)[:, :channels].float()
                if guided:
                    conditional, unconditional = eps.chunk(2)
                    eps = 2.0 * conditional - unconditional
                x = (z - sigma * eps) / alpha
                if self._request['clip_x']:
                    x = x.clamp(-1, 1)
                # Eq. 3: the mean given x, and noise.
                ratio = (alpha / alpha_s) * (sigma_s / sigma) ** 2
                rest = 1.0 - (alpha * sigma_s / (alpha_s * sigma)) ** 2
                z = ratio * z + rest * alpha_s * x + math.sqrt(rest) * sigma_s * self._noise(layout)
            x.add(1).mul(127.5).clamp(0, 255).to(torch.uint8).cpu()

        return start


def main() -> None:
    """Answers the commands of the parent."""
    path, request = sys.argv[1], json.loads(sys.argv[2])
    pipe = side_by_side.take_stdout()
    sys.path.insert(0, path)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_float32_matmul_precision('high')  # on a GPU: TF32, as JAX by default
    torch.backends.cudnn.benchmark = True
    peer = Peer(importlib.import_module('guided_diffusion.unet'), request, device)

    def handle(words):
        if words[0] == 'try':
            try:
                return {'seconds': peer.try_out(words[1])}
            except Exception as error:  # one variant of several: the user is told, and the others are tried
                return {'failed': f'{type(error).__name__}: {error}'.splitlines()[0]}
        if words[0] == 'use':
            peer.use(words[1])
            return {}
        return {'seconds': peer.seconds(int(words[1]))}

    name = torch.cuda.get_device_name() if device == 'cuda' else 'cpu'
    hello = {'device': name, 'variants': variants_of(request['what'], device == 'cpu'), 'torch': torch.__version__}
    side_by_side.serve(handle, hello, pipe, sys.stdin)


if __name__ == '__main__':
    main()
