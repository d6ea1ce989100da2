"""Writes sample files in ADM's layout, and reads them for a report."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfg.runtime.files import BROKEN_NPZ, replacing

FOLDER = 'samples'
PAIRS = 16  # of a sample and its nearest training image that are kept of a row


@dataclass(frozen=True)
class Samples:
    """Samples are images, uint8 [N, H, W, C] with C 1 or 3, and their intended labels, int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, indices: np.ndarray) -> 'Samples':
        """Returns the samples at `indices`, in that order."""
        return Samples(self.images[indices], self.labels[indices])


def write_samples(workdir: Path, name: str, images: np.ndarray, labels: np.ndarray) -> str:
    """Writes `arr_0` uint8 [N, H, W, C] and `arr_1` int32 [N], whole or not at all; returns the path in the workdir."""
    path = workdir / FOLDER / name
    with replacing(path) as file:
        np.savez_compressed(file, images, labels)
    return str(path.relative_to(workdir))


def pairs_of(samples: str) -> str:
    """Returns the path of what `write_pairs` writes beside a sample file."""
    return str(Path(samples).parent.with_name('nearest') / Path(samples).name)


def write_pairs(workdir: Path, samples: str, images: np.ndarray, training: np.ndarray) -> None:
    """Writes samples and their nearest training images, each uint8 [n, H, W, C], beside the file `samples` of a row."""
    with replacing(workdir / pairs_of(samples)) as file:
        np.savez_compressed(file, images, training)


def load_pairs(workdir: Path, samples: str) -> np.ndarray | None:
    """Reads what `write_pairs` wrote, each pair as one image [n, H, 2 W, C]; None if it is not there."""
    try:
        with np.load(workdir / pairs_of(samples), allow_pickle=False) as archive:
            return np.concatenate([archive['arr_0'], archive['arr_1']], axis=2)
    except BROKEN_NPZ:
        return None


def load_samples(path: Path) -> Samples | None:
    """Reads a sample file; None if it was deleted or cut off."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Samples(images=archive['arr_0'], labels=archive['arr_1'])
    except BROKEN_NPZ:
        return None


def mixed_order(labels: np.ndarray) -> np.ndarray:
    """Returns an order of the samples in which every prefix is as even over the classes as it can be.

    The first sample of each class comes first, then the second of each, whatever order the labels, int [N], are in.
    Labels that already alternate (0, 1, ..., 9, 0, 1, ...) keep their order.
    """
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange(np.sum(labels == label))
    return np.argsort(rank, kind='stable')
