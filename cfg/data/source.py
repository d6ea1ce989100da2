"""The interface of a data set, and the order in which training reads it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ArraySource:
    """A labelled image data set with random access, held in memory.

    Attributes:
      name: what the user calls it, with its split, as it appears in results.
      images: uint8 [n, H, W, C].
      labels: int32 [n] in [0, num_classes).
      class_names: one a class.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f'{self.name}: images must be uint8 [n, H, W, C], not {self.images.dtype} {self.images.shape}'
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(f'{self.name}: {len(self.images)} images but labels of shape {self.labels.shape}')
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise ValueError(f'{self.name}: labels reach outside 0..{self.num_classes - 1}')

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return tuple(self.images.shape[1:])

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """{'image': uint8 [k, H, W, C], 'label': int32 [k]} of the examples at `indices` [k]."""
        return {'image': self.images[indices], 'label': self.labels[indices]}


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: a permutation of 0..num_examples-1 that depends on (seed, epoch) alone."""
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


def train_batches(
    source: ArraySource, *, batch_size: int, seed: int, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Endless training batches, from the one of step `start_step` on.

    Epochs follow each other without a gap: a batch may end one and begin the next, so each example is seen
    exactly once an epoch. The batch of a step is a function of (seed, step), so a resumed run reads on where
    it stopped.

    Yields:
      {'image': uint8 [B, H, W, C], 'label': int32 [B], 'index': int32 [B]}; 'index' is the place in the global
      batch, which seeds the example's randomness.
    """
    n = len(source)
    orders: dict[int, np.ndarray] = {}
    step = start_step
    while True:
        position = step * batch_size + np.arange(batch_size)
        epochs = position // n
        orders = {
            e: orders[e] if e in orders else epoch_order(n, seed=seed, epoch=e) for e in np.unique(epochs).tolist()
        }
        indices = np.array([orders[e][p] for e, p in zip(epochs.tolist(), (position % n).tolist(), strict=True)])
        yield source.fetch(indices) | {'index': np.arange(batch_size, dtype=np.int32)}
        step += 1
