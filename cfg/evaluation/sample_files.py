"""Sample files in ADM's layout."""

from pathlib import Path

import numpy as np

from cfg.runtime.files import replacing

FOLDER = 'samples'


def write_samples(workdir: Path, name: str, images: np.ndarray, labels: np.ndarray) -> str:
    """Writes `arr_0` uint8 [N, H, W, C] and `arr_1` int32 [N], whole or not at all; returns the path in the workdir."""
    path = workdir / FOLDER / name
    with replacing(path) as file:
        np.savez_compressed(file, images, labels)
    return str(path.relative_to(workdir))
