"""Runs pytorch-fid's Inception on random images, for evaluation.py; answers commands on stdin (side_by_side.py)."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import side_by_side
from tests.peers import pytorch_fid_inception

VARIANTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}


class Peer:
    """A peer is the network as pytorch-fid runs it: images are resized to 299, and pool features go to the host.

    Args:
      batch_size: images at a time.
      size: pixels of their sides.
      device: of PyTorch.
    """

    def __init__(self, batch_size: int, size: int, device: str):
        # Its weights are downloaded; the time does not depend on them, so these are torchvision's initial ones.
        make = pytorch_fid_inception._inception_v3
        state = make(num_classes=1008, aux_logits=False, weights=None).state_dict()
        pytorch_fid_inception.load_state_dict_from_url = lambda *_, **__: state
        self._network = pytorch_fid_inception.InceptionV3([3]).eval().to(device)
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (batch_size, 3, size, size), dtype=np.uint8)
        self._device, self._layout = device, torch.contiguous_format

    def use(self, variant: str) -> None:
        """Lays the weights and the images out as a variant says."""
        self._layout = VARIANTS[variant]
        self._network.to(memory_format=self._layout)

    def seconds(self, units: int) -> float:
        """Returns the seconds of some batches together."""
        start = time.perf_counter()
        for _ in range(units):
            with torch.no_grad():
                images = torch.from_numpy(self._images).to(self._device).float().div(255)
                self._network(images.contiguous(memory_format=self._layout))[0].squeeze(3).squeeze(2).cpu().numpy()
        return time.perf_counter() - start


def main() -> None:
    """Answers the commands of the parent."""
    pipe = side_by_side.take_stdout()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # published numbers are float32, and so are ours
    peer = Peer(int(sys.argv[1]), int(sys.argv[2]), device)

    def handle(words):
        if words[0] in ('try', 'use'):
            peer.use(words[1])
            return {'seconds': min(peer.seconds(1) for _ in range(3))} if words[0] == 'try' else {}
        return {'seconds': peer.seconds(int(words[1]))}

    name = torch.cuda.get_device_name() if device == 'cuda' else 'cpu'
    side_by_side.serve(handle, {'device': name, 'variants': list(VARIANTS)}, pipe, sys.stdin)


if __name__ == '__main__':
    main()
