"""Runs a feature network in PyTorch on random images, for evaluation.py; answers commands (side_by_side.py)."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import side_by_side
from tests import peers

Tensor = torch.Tensor


class PytorchFid:
    """This is Inception as pytorch-fid runs it: images are resized to 299, and pool features come out."""

    variants = ('contiguous', 'channels-last')

    def __init__(self, device: str):
        # Its weights are downloaded; the time does not depend on them, so these are torchvision's initial ones.
        module = peers.pytorch_fid_inception
        state = module._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict()
        module.load_state_dict_from_url = lambda *_, **__: state
        self._network = module.InceptionV3([3]).eval().to(device)
        self._layout = torch.contiguous_format

    def use(self, variant: str) -> None:
        """Lays the weights and the images out as a variant says."""
        self._layout = torch.channels_last if variant == 'channels-last' else torch.contiguous_format
        self._network.to(memory_format=self._layout)

    def __call__(self, images: Tensor) -> Tensor:
        """Maps uint8 [N, 3, H, W] to [N, 2048]."""
        x = images.float().div(255).contiguous(memory_format=self._layout)
        return self._network(x)[0].squeeze(3).squeeze(2)


class Transformers:
    """This is DINOv2 ViT-L/14 of transformers, with EDM2's resize to 224 before it, and class tokens after it."""

    variants = ('sdpa', 'eager')  # its attention

    def __init__(self, device: str):
        make_config, make = peers.dinov2()
        # Of 224 pixels, so that embeddings of positions are not interpolated at each call. The weights are random.
        config = make_config(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14, image_size=224
        )
        self._network = make(config).eval().to(device)
        self._mean, self._deviation = (
            torch.tensor(values, device=device)[:, None, None]
            for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )

    def use(self, variant: str) -> None:
        """Computes attention as a variant says."""
        self._network.set_attn_implementation(variant)

    def __call__(self, images: Tensor) -> Tensor:
        """Maps uint8 [N, 3, H, W] to [N, 1024]."""
        x = torch.nn.functional.interpolate(images.float(), (224, 224), mode='bicubic', antialias=True)
        return self._network((x / 255 - self._mean) / self._deviation).last_hidden_state[:, 0]


PEERS = {'pytorch_fid': PytorchFid, 'transformers': Transformers}


def main() -> None:
    """Answers the commands of the parent; the arguments are one of `PEERS`, images at a time, and pixels of a side."""
    pipe = side_by_side.take_stdout()
    name, batch_size, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # published numbers are float32, and so are ours
    peer = PEERS[name](device)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 3, size, size), dtype=np.uint8)

    def seconds(units: int) -> float:
        start = time.perf_counter()
        for _ in range(units):
            with torch.no_grad():
                peer(torch.from_numpy(images).to(device)).cpu().numpy()
        return time.perf_counter() - start

    def handle(words):
        if words[0] in ('try', 'use'):
            peer.use(words[1])
            return {'seconds': min(seconds(1) for _ in range(3))} if words[0] == 'try' else {}
        return {'seconds': seconds(int(words[1]))}

    kind = torch.cuda.get_device_name() if device == 'cuda' else 'cpu'
    side_by_side.serve(handle, {'device': kind, 'variants': list(peer.variants)}, pipe, sys.stdin)


if __name__ == '__main__':
    main()
